"""The examples run, in miniature, and end in what they promise."""

import argparse
import importlib.util
import pathlib

import pytest
from rich.progress import Progress

from kdtoolkit.evaluation import read_csv
from kdtoolkit.export import LiteRTModel, inspect

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"

pytestmark = [pytest.mark.tensorflow, pytest.mark.export]


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quickstart_ends_in_a_table_a_picture_and_four_files(tmp_path, capsys, monkeypatch):
    load("quickstart").main(
        ["--seeds", "1", "--steps", "24", "--views", "2", "--out", str(tmp_path)]
    )
    printed = capsys.readouterr().out
    for row in ("large network", "small, alone", "small, distilled on all", "full int8 file"):
        assert row in printed
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000
    files = sorted(path.name for path in tmp_path.glob("*.tflite"))
    modes = ("dynamic-int8", "float16", "float32", "full-int8")
    assert files == [f"student-0-{mode}.tflite" for mode in modes]


def test_self_distillation_ends_in_a_table_a_picture_and_an_int8_file(
    tmp_path, capsys, monkeypatch
):
    load("self_distillation").main(["--seeds", "1", "--epochs", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for text in ("plain", "self-distilled", "PS-KD", "bytes in int8, test accuracy"):
        assert text in printed
    assert (tmp_path / "self_distillation.png").stat().st_size > 10_000
    # The weights alone are four times as large in float32.
    assert (tmp_path / "student.tflite").stat().st_size < 40_000


def test_born_again_ends_in_tables_a_picture_numbers_and_a_file_and_goes_on_where_it_was(
    tmp_path, capsys, monkeypatch
):
    born_again = load("born_again")
    # Two of the three, for speed; the first generation of born_again is an independent network.
    monkeypatch.setattr(born_again, "METHODS", ("born_again", "self_distillation"))
    short = ["--trials", "1", "--generations", "2", "--epochs", "1"]
    born_again.main([*short, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for text in (*born_again.METHODS, "Ensemble of", "needs two trials", "2 networks in"):
        assert text in printed
    assert (tmp_path / "born_again.png").stat().st_size > 10_000
    assert (tmp_path / "ensemble.tflite").exists()
    rows = read_csv(tmp_path / "born_again.csv")
    assert [(row["method"], row["generation"]) for row in rows] == [
        (method, generation) for method in born_again.METHODS for generation in (1, 2)
    ]
    # Trained again, they would have taken another time.
    options = argparse.Namespace(trials=1, generations=2, epochs=1, out=tmp_path)
    again = born_again.run(options, Progress(disable=True))
    assert [row["seconds"] for row in again] == [row["seconds"] for row in rows]


def test_born_again_compares_networks_and_ensembles_in_pairs_of_trials():
    born_again = load("born_again")
    rows = [
        {
            "method": m,
            "trial": trial,
            "generation": g,
            "test_accuracy": 0.8 + 0.01 * i + 0.1 * trial,
        }
        for i, m in enumerate(born_again.METHODS)
        for g in (1, 2)
        for trial in (0, 1)
    ]
    table = born_again.comparison_table(rows, [row for row in rows if row["generation"] == 2])
    compared, generations, points = (list(column.cells) for column in table.columns[:3])
    assert compared[::3] == [f"{first} - {second}" for first, second in born_again.PAIRS]
    assert generations == ["1", "2", "all 2"] * 3
    assert points == ["+1.00"] * 3 + ["+2.00"] * 3 + ["+1.00"] * 3


def test_mutual_learning_ends_in_tables_a_picture_accuracies_and_an_int8_file(
    tmp_path, capsys, monkeypatch
):
    mutual_learning = load("mutual_learning")
    # Fewer layers, for speed.
    monkeypatch.setattr(mutual_learning, "SIZES", {"small": (4,), "wide": (16,)})
    mutual_learning.main(["--seeds", "1", "--epochs", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for text in (*mutual_learning.CONTROLS, "rise, relative noise", "bytes in int8, test accuracy"):
        assert text in printed
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["mutual_learning.csv", "mutual_learning.png", "student.tflite"]
    assert (tmp_path / "mutual_learning.png").stat().st_size > 10_000
    rows = read_csv(tmp_path / "mutual_learning.csv")
    found = {row["network"]: row["test_accuracy"] for row in rows}
    assert len(found) == len(rows) == 8
    # The file is one of the two students that trained together, so it has that one's accuracy.
    data = mutual_learning.load(seed=0)
    file = LiteRTModel(tmp_path / "student.tflite")
    gaps = [
        abs(mutual_learning.accuracy(file, data) - found[line])
        for line in (mutual_learning.SMALL_WIDE, mutual_learning.WIDE_SMALL)
    ]
    assert min(gaps) < 0.02


def test_mutual_learning_compares_each_network_with_itself_alone_in_pairs_of_seeds():
    mutual_learning = load("mutual_learning")
    lines = dict.fromkeys([*mutual_learning.CONTROLS.values(), *mutual_learning.CONTROLS])
    noise = (0.000, 0.001, 0.002)
    rows = [
        {"network": line, "seed": seed, "test_accuracy": 0.5 + 0.1 * seed + 0.02 * i + i * extra}
        for i, line in enumerate(lines)
        for seed, extra in enumerate(noise)
    ]
    table = mutual_learning.table_of(rows)
    names, _, points, _, _, verdicts = (list(column.cells) for column in table.columns)
    place = {line: i for i, line in enumerate(lines)}
    expected = {
        line: f"{2.1 * (place[line] - place[control]):+.2f}"
        for line, control in mutual_learning.CONTROLS.items()
    }
    shown = dict(zip(names, zip(points, verdicts, strict=True), strict=True))
    for line in lines:
        assert shown[line] == ((expected[line], "better") if line in expected else ("", ""))


def test_own_exits_end_in_tables_pictures_accuracies_and_a_file_for_each_head(
    tmp_path, capsys, monkeypatch
):
    own_exits = load("own_exits")
    # Fewer channels and methods, for speed.
    monkeypatch.setattr(own_exits, "FILTERS", {"student": (4, 4, 4), "teacher": (8,)})
    methods = (own_exits.TEACHER, own_exits.ALONE, own_exits.OWN)
    monkeypatch.setattr(own_exits, "METHODS", methods)
    monkeypatch.setattr(own_exits, "PAIRS", own_exits.PAIRS[1:2])
    # The second seed's networks stay as they were made.
    train = own_exits.train
    monkeypatch.setattr(own_exits, "train", lambda m, d, seed, *rest: seed or train(m, d, 0, *rest))
    own_exits.main(["--seeds", "2", "--epochs", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for text in (*methods, *own_exits.HEADS, "no trace of the exits"):
        assert text in printed
    for name in ("own_exits.png", "anytime.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    rows = read_csv(tmp_path / "own_exits.csv")
    assert [(row["seed"], row["method"]) for row in rows] == [
        (s, m) for s in (0, 1) for m in methods
    ]
    trained = {row["method"]: row for row in rows if row["seed"] == 0}
    assert trained[own_exits.ALONE]["exit1"] is None
    # Each file is one head of the network with own exits.
    measured = read_csv(tmp_path / "anytime.csv")
    assert [row["model"] for row in measured] == list(own_exits.HEADS)
    data = own_exits.load(seed=0)
    for row in measured:
        file = LiteRTModel(tmp_path / f"{row['model']}.tflite")
        found = (file.predict(data.x_test).argmax(axis=-1) == data.y_test).mean()
        assert found == row["test_accuracy"]
        assert found == pytest.approx(trained[own_exits.OWN][row["model"]], abs=0.005)
    assert measured[2]["bytes"] < measured[3]["bytes"]  # the exits are in the mean alone
    assert inspect(tmp_path / "last-int8.tflite").full_integer


@pytest.mark.parametrize("method", ["OWN", "DEEP", "TAUGHT", "BOTH", "ALONE"])
def test_own_exits_have_the_teachers_and_the_loss_weights_that_the_names_say(method):
    own_exits = load("own_exits")
    teacher = own_exits.network("teacher", seed=0)
    model, student, weights = own_exits.entrant(getattr(own_exits, method), teacher, seed=0)
    edges = {"ALONE": [], "TAUGHT": ["soft_targets"], "DEEP": []}
    own = [f"exit{k}_{kind}" for k in (1, 2) for kind in ("soft_targets", "features")]
    edges |= {"OWN": own, "BOTH": [*own, "soft_targets"]}
    assert [edge.name for edge in getattr(model, "transfers", [])] == edges[method]
    with_exits = method not in ("ALONE", "TAUGHT")
    assert isinstance(student.output, dict) == with_exits == (weights is not None)


def test_own_exits_are_compared_in_pairs_of_seeds():
    own_exits = load("own_exits")
    rows = [
        {"method": method, "seed": seed}
        | {h: 0.5 + 0.1 * seed + 0.02 * i + 0.005 * j for j, h in enumerate(own_exits.HEADS)}
        for i, method in enumerate(own_exits.METHODS)
        for seed in (0, 1)
    ]
    place = {m: i for i, m in enumerate(own_exits.METHODS)}
    heads = {h: j for j, h in enumerate(own_exits.HEADS)}
    points = [
        2 * (place[first] - place[second]) + 0.5 * (heads[one] - heads[other])
        for (first, one), (second, other) in own_exits.PAIRS
    ]
    columns = [list(column.cells) for column in own_exits.differences(rows).columns]
    assert columns[0][-1] == "own exits (mean) - alone (last)"
    assert columns[1] == [f"{p:+.2f}" for p in points]


def test_dropout_distillation_ends_in_tables_pictures_and_a_checked_file(
    tmp_path, capsys, monkeypatch
):
    dropout = load("dropout_distillation")
    # Fewer units and passes, for speed; the second seed's networks stay as they were made.
    monkeypatch.setattr(dropout, "UNITS", {"whole": (16, 16), "small": (4, 4)})
    monkeypatch.setattr(dropout, "SAMPLES", 5)
    monkeypatch.setattr(dropout, "REFERENCE_SAMPLES", 10)
    train = dropout.train
    monkeypatch.setattr(dropout, "train", lambda s, b, *rest: b.seed or train(s, b, *rest))
    dropout.main(["--seeds", "2", "--epochs", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for text in (*dropout.NETWORKS, *dropout.MEASURES.values(), "can't tell", "330 parameters"):
        assert text in printed
    for name in ("dropout_distillation.png", "unsure.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    rows = read_csv(tmp_path / "dropout_distillation.csv")
    assert [(row["seed"], row["network"]) for row in rows] == [
        (s, name) for s in (0, 1) for name in dropout.NETWORKS
    ]
    assert all(0 <= row["kept"] <= 100 and row["kl"] >= 0 for row in rows)
    # The file is the first seed's small distilled network.
    data, file = dropout.load(seed=0), LiteRTModel(tmp_path / "student.tflite")
    error = 100 * (file.predict(data.x_test).argmax(axis=-1) != data.y_test).mean()
    assert error == pytest.approx(rows[dropout.NETWORKS.index(dropout.SMALL)]["error"], abs=0.2)


@pytest.mark.parametrize("name", ["AGAIN", "DISTILLED", "SMALL_LABELS", "SMALL"])
def test_dropout_distillation_starts_and_teaches_its_students_as_their_names_say(name, monkeypatch):
    dropout = load("dropout_distillation")
    monkeypatch.setattr(dropout, "UNITS", {"whole": (8,), "small": (1,)})
    given = []
    monkeypatch.setattr(dropout, "train", lambda *arguments: given.append(arguments))
    teacher, data = dropout.network("whole", seed=0, dropout=0.5), dropout.load(seed=0)
    student = dropout.student_of(getattr(dropout, name), teacher, data, 0, epochs=40)
    ((trained, batches, epochs, taught_by),) = given
    assert trained is student
    distilled = name in ("DISTILLED", "SMALL")
    assert taught_by is (teacher if distilled else None)
    # Images alone, or with labels; those of the control have zeros as well.
    assert len(batches[0]) == 1 + (not distilled) and batches.augment.rate == 0.2
    assert epochs == (80 if name.startswith("SMALL") else 20)
    same = (student.get_weights()[0] == teacher.get_weights()[0]).all()
    assert same == (name in ("AGAIN", "DISTILLED"))
    assert not any("dropout" in layer.name for layer in student.layers)


def test_dropout_distillation_leaves_the_least_sure_to_a_person():
    dropout = load("dropout_distillation")
    logits = [[2, 0], [2, 0], [0, 2], [0, 2]]
    # The wrong one, the second, is the least sure; then it is the surest.
    for unsure, expected in (([1, 9, 2, 3], [0, 0, 0, 25]), ([1, 0, 2, 3], [100, 50, 100 / 3, 25])):
        found = dropout.errors_of_the_surest(logits, [0, 1, 1, 1], unsure)
        assert found.tolist() == pytest.approx(expected)


def test_dropout_distillation_is_compared_in_pairs_of_seeds():
    dropout = load("dropout_distillation")
    rows = [
        {"network": name, "seed": seed, "error": 5 + seed + 0.5 * i, "nll": 0.1 + seed - 0.01 * i}
        for i, name in enumerate(dropout.NETWORKS)
        for seed in (0, 1)
    ]
    place = {name: i for i, name in enumerate(dropout.NETWORKS)}
    steps = [place[first] - place[second] for first, second in dropout.PAIRS]
    columns = [list(column.cells) for column in dropout.differences(rows).columns]
    assert columns[0][0] == "100 random passes - one pass"
    expected = [f"{0.5 * n:+.2f}" for n in steps] + [f"{-0.01 * n:+.4f}" for n in steps]
    assert columns[2] == expected
    verdicts = ["worse" if n > 0 else "better" for n in steps]
    assert columns[-1] == verdicts + [{"worse": "better", "better": "worse"}[v] for v in verdicts]


def test_compression_ends_in_tables_pictures_a_page_and_checked_files(
    tmp_path, capsys, monkeypatch
):
    compression = load("compressed_student")
    # Fewer channels and ways, for speed; the chain has the stages of those left out.
    filters = {compression.TEACHER: (8,), compression.STUDENT: (4, 16)}
    monkeypatch.setattr(compression, "FILTERS", filters)
    chain = "pruned, 16 values, int8"
    names = (
        compression.STUDENT,
        compression.LONGER,
        compression.NARROW,
        compression.CONTROL,
        chain,
    )
    ways = {name: compression.WAYS[name] for name in names}
    monkeypatch.setattr(compression, "WAYS", ways)
    # What learns from labels is trained, and of the rest what is pruned.
    train = compression.train

    def train_few(network, data, seed, epochs, rate, teacher=None, callbacks=()):
        if teacher is None or callbacks:
            train(network, data, seed, epochs, rate, teacher, callbacks)

    monkeypatch.setattr(compression, "train", train_few)
    compression.main(["--seeds", "1", "--epochs", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for text in ("as the teacher %", "Half of the filters: ", "The smallest that loses at most 1"):
        assert text in printed
    for name in ("bytes.png", "gzip_bytes.png", "latency_ms.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert chain in (tmp_path / "seed0.html").read_text()
    rows = {row["model"]: row for row in read_csv(tmp_path / "compression.csv")}
    assert list(rows) == [compression.TEACHER, *names]
    assert [row["model"] for row in read_csv(tmp_path / "seed0.csv")] == list(rows)
    narrow, student = rows[compression.NARROW], rows[compression.STUDENT]
    assert narrow["bytes"] < student["bytes"]
    assert rows[chain]["gzip_bytes"] < student["gzip_bytes"]
    points = 100 * (narrow["test_accuracy"] - rows[compression.LONGER]["test_accuracy"])
    assert f"{points:+.2f} with the teacher" in printed
    # The file is what the row says.
    path = tmp_path / "seed0" / "pruned-16-values-int8.tflite"
    file, data = inspect(path), compression.kd.data.load_digits(seed=0)
    assert file.full_integer and file.unique <= 16 and file.sparsity > 0.5
    found = compression.accuracy(path, data.x_test, data.y_test)
    assert found == rows[chain]["test_accuracy"]


def test_the_neighbour_ends_in_a_table_and_a_file_for_each_method(tmp_path, capsys, monkeypatch):
    neighbour = load("tfmot_neighbour")
    # Fewer channels and methods, for speed.
    monkeypatch.setattr(neighbour, "FILTERS", {"student": (4, 16), "teacher": (8,)})
    monkeypatch.setattr(neighbour, "RATES", {neighbour.PRUNED: 0.01, neighbour.AWARE: 0.01})
    # The teacher and the student stay as they were made.
    fit = neighbour.fit
    monkeypatch.setattr(
        neighbour, "fit", lambda m, d, e, rate, *c: rate > 0.01 or fit(m, d, e, rate, *c)
    )
    neighbour.main(["--seeds", "1", "--epochs", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    names = (neighbour.FLOAT, neighbour.INT8, neighbour.PRUNED, neighbour.AWARE)
    for name in names:
        assert name in printed
    rows = read_csv(tmp_path / "tfmot_neighbour.csv")
    assert [row["network"] for row in rows] == list(names)
    assert rows[2]["gzip"] < rows[1]["gzip"] < rows[0]["gzip"]
    files = sorted(path.name for path in tmp_path.glob("*.tflite"))
    assert files == ["aware-0.tflite", "float32-0.tflite", "int8-0.tflite", "pruned-0.tflite"]
