"""The experiments run, in miniature, go on where they were, and end in their tables."""

import importlib
import pathlib

import pytest

from kdtoolkit.evaluation import read_csv

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"

pytestmark = pytest.mark.tensorflow


# The first of two stages leaves the layers behind the hint alone, and Keras says so.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_the_comparison_of_losses_ends_in_rows_lines_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    losses = importlib.import_module("losses")
    runs, out = tmp_path / "runs", tmp_path / "out"
    methods = ["student alone", "hint, two stages"]
    command = ["digits", "--seeds", "2", "--epochs", "8", "--max-train", "50", "--out", str(out)]
    command += ["--teacher-epochs", "1", "--runs", str(runs), "--methods", *methods]
    losses.main(command)
    rows = read_csv(out / "losses_digits_runs.csv")
    assert [(row["method"], row["seed"]) for row in rows] == [
        (m, s) for m in methods for s in (0, 1)
    ]
    assert all(row["finite"] and 0 <= row["test_accuracy"] <= 1 for row in rows)
    assert (out / "losses_digits.png").stat().st_size > 5_000
    # What is there isn't trained again; the times of steps join the table.
    losses.main([*command, "--times", "--rounds", "1"])
    assert read_csv(out / "losses_digits_runs.csv") == rows
    lines = read_csv(out / "losses_digits.csv")
    assert [line["method"] for line in lines] == methods
    # Two stages have no single step.
    assert [line["step_time"] for line in lines] == [1, None]
    difference = [row["test_accuracy"] for row in rows]
    expected = (difference[2] + difference[3] - difference[0] - difference[1]) / 2
    assert lines[1]["difference"] == pytest.approx(expected)
    assert "hint, two stages" in capsys.readouterr().out


def test_mutual_learning_ends_in_rows_noise_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    mutual = importlib.import_module("mutual")
    command = ["digits", "--seeds", "1", "--epochs", "2", "--max-train", "64", "--depth", "1"]
    command += ["--no-jit", "--draws", "2", "--methods", "dml-deit", "--cohorts", "tiny+small"]
    mutual.main([*command, "--runs", str(tmp_path), "--out", str(tmp_path)])
    rows = read_csv(tmp_path / "mutual_digits_runs.csv")
    assert [row["student"] for row in rows] == ["tiny1", "small2"]
    assert all(0 <= row["test_accuracy"] <= 1 for row in rows)
    curves = read_csv(tmp_path / "mutual_digits_noise.csv")
    assert {(c["model"], c["relative"]) for c in curves} == {
        (name, kind) for name in ("tiny1", "small2") for kind in (True, False)
    }
    assert (tmp_path / "mutual_digits.png").stat().st_size > 5_000
    assert "dml-deit" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["offline + self, teacher 1", "two views"])
def test_rows_of_own_exits_run(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    exits = importlib.import_module("exits")
    command = ["digits", "--seeds", "1", "--epochs", "1", "--max-train", "64", "--methods", name]
    command += ["--teacher-epochs", "1", "--runs", str(tmp_path), "--no-report"]
    exits.main(command)
    losses = importlib.import_module("losses")
    (row,) = losses.rows_of(exits.parse(command), exits.path_of)
    assert row["method"] == name and 0 <= row["test_accuracy"] <= 1
    assert ("exit2_accuracy" in row) is ("ensemble_accuracy" in row) is name.startswith("offline")


def test_own_exits_end_in_lines_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    exits, report = (importlib.import_module(name) for name in ("exits", "exits_report"))
    accuracies = {"baseline": (0.5, 0.6), "self": (0.7, 0.6), "baseline + mixup": (0.4, 0.5)}
    rows = [
        {"method": method, "seed": seed, "cpu_seconds": 2.0 if method == "self" else 1.0}
        | {"test_accuracy": value, "val_accuracy": value}
        | ({"exit1_accuracy": value / 2, "ensemble_accuracy": 1.0} if method == "self" else {})
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    report.write(exits.parse(["digits", "--methods", *accuracies, "--out", str(tmp_path)]), rows)
    lines = read_csv(tmp_path / "exits_digits.csv")
    found = {(line["against"], line["method"]): line for line in lines}
    assert found["baseline", "self"]["difference"] == pytest.approx(0.1)
    assert found["baseline + mixup", "self"]["difference"] == pytest.approx(0.2)
    assert found["baseline", "self"]["exit1_accuracy"] == pytest.approx(0.325)
    assert found["baseline", "self"]["time"] == pytest.approx(2.0)
    assert found["baseline", "baseline"]["exit1_accuracy"] is None
    assert (tmp_path / "exits_digits.png").stat().st_size > 5_000
    assert "self" in capsys.readouterr().out


def test_rows_of_dropout_distillation_run_and_go_on_where_they_were(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    dropout = importlib.import_module("dropout")
    monkeypatch.setattr(dropout, "REFERENCE_SAMPLES", 10)
    methods = ["standard", "monte carlo (100)", "distilled, more images", "0.125 of all: distilled"]
    command = ["digits", "--seeds", "1", "--epochs", "1", "--distil-epochs", "1", "--dense", "16"]
    command += ["--max-train", "50", "--unlabelled", "50", "--methods", *methods]
    command += ["--runs", str(tmp_path), "--out", str(tmp_path / "out")]
    dropout.main(command)
    rows = read_csv(tmp_path / "out/dropout_digits_runs.csv")
    assert [row["method"] for row in rows] == methods
    assert all(0 <= row["test_accuracy"] <= 1 and row["kl_to_mean"] >= 0 for row in rows)
    assert [row["val_accuracy"] is None for row in rows] == [False, True, False, False]
    # Trained again, they would have taken another time.
    dropout.main(command)
    assert read_csv(tmp_path / "out/dropout_digits_runs.csv") == rows
    assert "0.125 of all: distilled" in capsys.readouterr().out


def test_dropout_distillation_ends_in_lines_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    dropout, report = (importlib.import_module(name) for name in ("dropout", "dropout_report"))
    accuracies = {
        "standard": (0.5, 0.6),
        "labels again": (0.4, None),
        "distilled, test": (0.7, 0.6),
    }
    accuracies |= {"0.5 of all: labels": (None, 0.3)}
    rows = [
        {"method": method, "seed": seed, "test_accuracy": value, "nll": 2 * value}
        | {"brier": value, "ece": 0.1, "kl_to_mean": 0.2 + seed}
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
        if value is not None
    ]
    options = dropout.parse(["digits", "--methods", *accuracies, "--out", str(tmp_path)])
    report.write(options, rows)
    lines = read_csv(tmp_path / "dropout_digits.csv")
    found = {(line["against"], line["method"]): line for line in lines}
    line = found["standard", "distilled, test"]
    assert line["difference"] == pytest.approx(0.1) and line["nll_difference"] == pytest.approx(0.2)
    assert (line["error_mean"], line["nll"]) == (pytest.approx(0.35), pytest.approx(1.3))
    # Of what is there, the seeds that both have.
    line = found["labels again", "distilled, test"]
    assert (line["seeds"], line["kl_to_mean"], line["difference"]) == (1, 0.2, None)
    assert found["standard", "0.5 of all: labels"]["error_mean"] == pytest.approx(0.7)
    assert ("labels again", "0.5 of all: labels") not in found
    assert (tmp_path / "dropout_digits.png").stat().st_size > 5_000
    assert "distilled, test" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="Nothing to compare with"):
        report.write(options, rows[-1:])


def test_a_cached_teacher_ends_in_the_rows_of_the_live_one(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    cached = importlib.import_module("cached_teacher")
    command = ["digits", "--seeds", "2", "--epochs", "2", "--teacher-epochs", "1"]
    command += ["--max-train", "100", "--methods", "live", "live, 4 views", "dense, 4 views"]
    cached.main([*command, "--runs", str(tmp_path), "--out", str(tmp_path)])
    rows = read_csv(tmp_path / "cached_digits_runs.csv")
    said = {(row["method"], row["seed"]): row["test_accuracy"] for row in rows}
    for seed in (0, 1):
        assert said["dense, 4 views", seed] == said["live, 4 views", seed]
    # Ten float32 logits, a checksum, and the header of the file.
    assert 44 < rows[-1]["bytes_per_view"] < 50
    assert "dense, 4 views" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cached.main([*command[:-1], "no such row"])


def test_every_method_of_the_comparison_names_a_loss_that_exists(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    methods = importlib.import_module("loss_methods").METHODS
    names = [method.name for method in methods]
    assert len(set(names)) == len(names) > 30
    assert names[0] == "student alone"


def test_compression_ends_in_rows_lines_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    compressing = importlib.import_module("compressing")
    command = ["digits", "--ways", "pruned 75%, 16 clusters, QAT int8", "--seeds", "1"]
    command += ["--student", "convnet-8-8", "--teacher", "convnet-2-4", "--max-train", "100"]
    command += ["--epochs", "1", "--teacher-epochs", "1", "--tune-epochs", "3"]
    command += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    compressing.main(command)
    rows = read_csv(tmp_path / "out/compression_digits_runs.csv")
    assert [(row["way"], row["teacher"]) for row in rows] == [
        ("float", False),
        ("pruned 75%, 16 clusters, QAT int8", False),
        ("pruned 75%, 16 clusters, QAT int8", True),
    ]
    assert rows[1]["gzip_bytes"] < rows[0]["gzip_bytes"] and rows[1]["agreement"] > 0.9
    (line,) = read_csv(tmp_path / "out/compression_digits_teacher.csv")
    lost = rows[0]["test_accuracy"] - rows[1]["test_accuracy"]
    assert line["lost_from_labels"] == pytest.approx(lost)
    assert (tmp_path / "out/compression_digits.png").stat().st_size > 5_000
    assert "pruned 75%" in capsys.readouterr().out
