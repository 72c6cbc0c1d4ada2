"""The examples run, in miniature, and end in what they promise."""

import argparse
import importlib.util
import pathlib

import pytest
from rich.progress import Progress

from kdtoolkit.evaluation import read_csv
from kdtoolkit.export import LiteRTModel

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"

pytestmark = [pytest.mark.tensorflow, pytest.mark.export]


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quickstart_ends_in_a_table_a_picture_and_four_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    load("quickstart").main(["--seeds", "1", "--steps", "24", "--out", str(tmp_path)])
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
    monkeypatch.setenv("COLUMNS", "120")
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
    monkeypatch.setenv("COLUMNS", "120")
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
    monkeypatch.setenv("COLUMNS", "120")
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
