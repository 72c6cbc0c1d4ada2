"""Evaluation of experiments in generations: groups, comparisons, figure, table and files.

Nothing here needs a Keras backend, so nothing is marked `core`.
"""

import dataclasses
import math
import sys
import types

import numpy as np
import pytest

from kdtoolkit import evaluation
from kdtoolkit.files import draft_of

# --- generations ---------------------------------------------------------------------------------


def accuracy(method, trial, generation):
    """Reproducible results: `self` is better, and `trial` shifts both methods."""
    noise = np.random.default_rng([len(method), trial, generation]).normal()
    start = {"self": 0.66, "born-again": 0.65}[method]
    return start + 0.01 * generation + 0.02 * trial + 0.002 * noise


def row(method, trial, generation):
    value = accuracy(method, trial, generation)
    return {
        "method": method,
        "trial": trial,
        "generation": generation,
        "test_accuracy": value,
        "val_accuracy": value + 0.01,
        "seconds": 10.0 * generation + trial,
        "epochs": 100 + trial,
    }


def experiment(generations=(("self", 2), ("born-again", 3)), trials=4):
    """Rows in an order that is none: nothing may depend on it."""
    rows = [
        row(method, trial, generation)
        for method, count in generations
        for trial in range(trials)
        for generation in range(1, count + 1)
    ]
    rest = rows[1:]
    np.random.default_rng(3).shuffle(rest)
    return [rows[0], *rest]


def test_rows_are_grouped_by_method_and_generation_in_the_order_of_trials():
    groups = evaluation.by_generation(experiment(), "test_accuracy")
    assert list(groups) == ["self", "born-again"]
    assert [list(generations) for generations in groups.values()] == [[1, 2], [1, 2, 3]]
    expected = [accuracy("born-again", trial, 3) for trial in range(4)]
    np.testing.assert_array_equal(groups["born-again"][3], expected)


def test_objects_are_rows_too():
    rows = experiment()
    objects = [types.SimpleNamespace(**entry) for entry in rows]
    assert evaluation.generation_table(objects) == evaluation.generation_table(rows)
    np.testing.assert_equal(
        evaluation.by_generation(iter(objects), "epochs"), evaluation.by_generation(rows, "epochs")
    )


def test_time_adds_up_over_the_generations_of_a_trial():
    rows = experiment()
    result = evaluation.cumulative(rows)
    assert [{**entry, "cumulative_seconds": None} for entry in rows] == [
        {**entry, "cumulative_seconds": None} for entry in result
    ]
    for entry in result:
        expected = sum(10.0 * g + entry["trial"] for g in range(1, entry["generation"] + 1))
        assert entry["cumulative_seconds"] == expected
    assert "cumulative_seconds" not in rows[0]
    epochs = evaluation.by_generation(evaluation.cumulative(rows, "epochs"), "cumulative_epochs")
    np.testing.assert_array_equal(epochs["self"][2], [200, 202, 204, 206])


def test_the_table_has_a_line_per_method_and_generation():
    table = evaluation.generation_table(experiment())
    assert [(line["method"], line["generation"]) for line in table] == [
        ("self", 1),
        ("self", 2),
        ("born-again", 1),
        ("born-again", 2),
        ("born-again", 3),
    ]
    values = [accuracy("self", trial, 2) for trial in range(4)]
    expected = {
        "method": "self",
        "generation": 2,
        "n": 4,
        "test_accuracy_mean": np.mean(values),
        "test_accuracy_sd": np.std(values, ddof=1),
        "val_accuracy_mean": np.mean(values) + 0.01,
        "val_accuracy_sd": np.std(values, ddof=1),
        # 30 + 2 * trial seconds for trials 0 to 3.
        "cumulative_seconds_mean": 33.0,
        "cumulative_seconds_sd": math.sqrt(20 / 3),
        "epochs_mean": 101.5,
    }
    assert table[1].keys() == expected.keys()
    assert table[1] == pytest.approx(expected)


@pytest.mark.parametrize("paired", [True, False])
def test_methods_are_compared_at_their_common_generations(paired):
    pytest.importorskip("scipy")
    rows = experiment()
    lines = evaluation.compare_methods(rows, "self", "born-again", paired=paired)
    assert [line["first_generation"] for line in lines] == [1, 2]
    groups = evaluation.by_generation(rows, "test_accuracy")
    for line in lines:
        generation = line["second_generation"]
        assert generation == line["first_generation"]
        expected = evaluation.compare(
            groups["self"][generation], groups["born-again"][generation], paired=paired
        )
        assert {key: line[key] for key in dataclasses.asdict(expected)} == dataclasses.asdict(
            expected
        )
    np.testing.assert_allclose(
        [line["p_holm"] for line in lines], evaluation.holm([line["p"] for line in lines])
    )
    # Trials differ by much and methods by little, so pairing alone sees the difference.
    assert (max(line["p_holm"] for line in lines) < 0.05) == paired


def test_every_generation_of_one_method_meets_every_one_of_the_other():
    pytest.importorskip("scipy")
    rows = experiment()
    matrix = evaluation.compare_matrix(rows, "self", "born-again")
    pairs = [(line["first_generation"], line["second_generation"]) for line in matrix]
    assert pairs == [(i, j) for i in (1, 2) for j in (1, 2, 3)]
    groups = evaluation.by_generation(rows, "test_accuracy")
    expected = evaluation.compare(groups["self"][2], groups["born-again"][3])
    assert (matrix[5]["p"], matrix[5]["low"]) == (expected.p, expected.low)
    np.testing.assert_allclose(
        [line["p_holm"] for line in matrix], evaluation.holm([line["p"] for line in matrix])
    )


def test_accumulated_time_can_be_compared():
    pytest.importorskip("scipy")
    rows = evaluation.cumulative(experiment())
    lines = evaluation.compare_matrix(rows, "self", "born-again", "cumulative_seconds")
    # Generation 1 against 2: 10 + trial less 30 + 2 * trial.
    assert lines[1]["mean_difference"] == pytest.approx(-21.5)
    assert lines[0]["p"] == 1.0


def without(rows, **match):
    return [row for row in rows if any(row[key] != value for key, value in match.items())]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda rows: evaluation.by_generation([], "seconds"), "must be rows"),
        (lambda rows: evaluation.by_generation(rows, "loss"), "must have `loss`"),
        (lambda rows: evaluation.by_generation([object()], "loss"), "must have `method`"),
        (lambda rows: evaluation.by_generation(rows * 2, "seconds"), "Received twice: .*trial=0"),
        (
            lambda rows: evaluation.by_generation([{**rows[0], "seconds": None}], "seconds"),
            "`seconds` must be a finite number.*None",
        ),
        (
            lambda rows: evaluation.cumulative(
                without(rows, method="born-again", trial=3, generation=2)
            ),
            "Trial 3 of 'born-again' has generation 3, but not 2",
        ),
        (
            lambda rows: evaluation.generation_table([{**rows[0], "test_accuracy": 70.0}]),
            "`test_accuracy` must be fractions",
        ),
        (lambda rows: evaluation.compare_methods(rows, "self", "self"), "'self' twice"),
        (lambda rows: evaluation.compare_matrix(rows, "self", "ban"), "'ban'.*'born-again'"),
        (
            lambda rows: evaluation.compare_methods(
                without(rows, method="self", trial=1, generation=2), "self", "born-again"
            ),
            r"\[0, 2, 3\] and \[0, 1, 2, 3\].*paired=False",
        ),
        (
            lambda rows: evaluation.compare_matrix(
                without(without(rows, method="self", trial=1), method="born-again", trial=2),
                "self",
                "born-again",
            ),
            r"same trials. Received: \[0, 2, 3\] and \[0, 1, 3\]",
        ),
        (
            lambda rows: evaluation.compare_methods(
                [row("self", 0, 1), row("born-again", 0, 2)], "self", "born-again"
            ),
            r"no generation in common. Received: \[1\] and \[2\]",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(call, message):
    pytest.importorskip("scipy")
    with pytest.raises(ValueError, match=message):
        call(experiment())


def test_incomplete_trials_can_be_compared_unpaired():
    pytest.importorskip("scipy")
    rows = without(experiment(), method="self", trial=1, generation=2)
    lines = evaluation.compare_methods(rows, "self", "born-again", paired=False)
    assert (lines[1]["count_first"], lines[1]["count_second"]) == (3, 4)


# --- figure and table ----------------------------------------------------------------------------


def test_the_figure_has_a_line_and_bars_for_each_method(monkeypatch):
    pytest.importorskip("matplotlib")
    # Whoever imports pyplot here gets an ImportError.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    figure = evaluation.generations_figure(experiment(), title="Digits")
    accuracies, times = figure.axes
    table = evaluation.generation_table(experiment())
    lines, bars = accuracies.containers, times.containers
    assert len(lines) == len(bars) == 2 and [len(group) for group in bars] == [2, 3]
    for line, group, method in zip(lines, bars, ["self", "born-again"], strict=True):
        expected = [entry for entry in table if entry["method"] == method]
        x, y = line.lines[0].get_data(orig=False)
        np.testing.assert_allclose(x, [entry["generation"] for entry in expected], atol=0.1)
        means = np.array([100 * entry["test_accuracy_mean"] for entry in expected])
        deviations = np.array([100 * entry["test_accuracy_sd"] for entry in expected])
        np.testing.assert_allclose(y, means)
        ends = np.array([segment[:, 1] for segment in line.lines[2][0].get_segments()])
        np.testing.assert_allclose(ends, np.stack([means - deviations, means + deviations], 1))
        heights = [bar.get_height() for bar in group]
        np.testing.assert_allclose(heights, [e["cumulative_seconds_mean"] for e in expected])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "self",
        "self, time",
        "born-again",
        "born-again, time",
    ]
    np.testing.assert_array_equal(accuracies.get_xticks(), [1, 2, 3])
    assert accuracies.get_title() == "Digits"
    assert "(%)" in accuracies.get_ylabel() and "(s)" in times.get_ylabel()
    assert accuracies.get_zorder() > times.get_zorder()


def test_bars_of_two_methods_stand_side_by_side():
    pytest.importorskip("matplotlib")
    _, times = evaluation.generations_figure(experiment()).axes
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in times.patches)
    for (_, right), (left, _) in zip(edges, edges[1:], strict=False):
        assert left >= right - 1e-9


@pytest.mark.parametrize("factor, unit, height", [(1, "s", 11.5), (10, "min", 23 / 12)])
def test_long_times_are_drawn_in_longer_units(factor, unit, height):
    pytest.importorskip("matplotlib")
    rows = [{**row, "seconds": row["seconds"] * factor} for row in experiment()]
    _, times = evaluation.generations_figure(rows).axes
    assert f"({unit})" in times.get_ylabel()
    assert times.containers[0][0].get_height() == pytest.approx(height)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_figure_is_written_whole_and_replaced_only_if_asked(tmp_path, ending):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"generations.{ending}"
    # A single trial has no error bars, and that is no error.
    rows = experiment(trials=1)
    evaluation.plot_generations(rows, path)
    assert {"png": b"\x89PNG", "svg": b"<?xml"}[ending] == path.read_bytes()[
        : 4 + (ending == "svg")
    ]
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        evaluation.plot_generations(rows, path)
    assert path.read_bytes() == b"mine"
    evaluation.plot_generations(rows, str(path), overwrite=True)
    assert path.read_bytes() != b"mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name, message", [("figure", "end in the format"), ("a.xyz", "xyz")])
def test_a_figure_that_cannot_be_written_leaves_nothing_behind(tmp_path, name, message):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=message):
        evaluation.plot_generations(experiment(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_printed_table_shows_percent_and_deviations(capsys):
    console = pytest.importorskip("rich.console")
    rows = [
        {**row("self", trial, 1), "method": "[b]self", "test_accuracy": value}
        for trial, value in enumerate([0.70, 0.71, 0.72])
    ]
    table = evaluation.print_table(rows, title="Digits")
    assert capsys.readouterr().out == ""
    out = console.Console(width=80)
    out.print(table)
    text = capsys.readouterr().out
    for part in ("Digits", "[b]self", "71.00 ± 1.00", "11.0 ± 1.0", "(s)", "101.0"):
        assert part in text
    assert table.row_count == 1
    out.print(evaluation.print_table(rows[:1]))
    assert "70.00" in (text := capsys.readouterr().out) and "±" not in text and "nan" not in text


@pytest.mark.parametrize(
    "module, call",
    [
        ("scipy.special", lambda: evaluation.compare_matrix(experiment(), "self", "born-again")),
        ("matplotlib.figure", lambda: evaluation.generations_figure(experiment())),
        ("rich.table", lambda: evaluation.print_table(experiment())),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(module, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    with pytest.raises(ImportError, match=rf'`{package}`.*pip install "kdtoolkit\[plot\]"'):
        call()


# --- files ---------------------------------------------------------------------------------------


def test_rows_come_back_from_a_file_with_their_types(tmp_path):
    rows = experiment()
    rows[0] |= {"method": "12", "test_accuracy": np.float32(0.1), "trial": np.int64(7)}
    rows = [
        {**entry, "note": 'with, "quotes"\nand lines', "done": True, "teacher": None, "t": math.inf}
        for entry in rows
    ]
    path = tmp_path / "results.csv"
    evaluation.write_csv(iter(rows), path)
    again = evaluation.read_csv(str(path))
    assert again == rows
    assert {type(again[0][key]) for key in ("method", "note")} == {str}
    assert {type(again[0][key]) for key in ("trial", "generation", "epochs")} == {int}
    assert {type(again[0][key]) for key in ("test_accuracy", "seconds", "t")} == {float}
    assert again[0]["done"] is True and again[0]["teacher"] is None


def test_objects_and_comparisons_can_be_written(tmp_path):
    pytest.importorskip("scipy")
    rows = experiment()
    objects = [types.SimpleNamespace(**entry, model=object()) for entry in rows]
    evaluation.write_csv(objects, tmp_path / "rows.csv")
    assert evaluation.read_csv(tmp_path / "rows.csv") == rows
    lines = evaluation.compare_matrix(rows, "self", "born-again")
    evaluation.write_csv(lines, tmp_path / "matrix.csv")
    assert evaluation.read_csv(tmp_path / "matrix.csv") == lines


def test_a_file_is_replaced_only_if_asked_and_then_whole(tmp_path):
    path = tmp_path / "results.csv"
    evaluation.write_csv(experiment(), path)
    before = path.read_text()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        evaluation.write_csv(experiment(trials=1), path)
    with pytest.raises(TypeError, match="model=<object"):
        evaluation.write_csv([{"model": object()}], path, overwrite=True)
    assert path.read_text() == before
    evaluation.write_csv(experiment(trials=1), path, overwrite=True)
    assert len(evaluation.read_csv(path)) == 5
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "rows, message",
    [([], "must be rows to write"), ([{"a": 1}, {"b": 1}], r"\['a'\] in row 0 and \['b'\] in row")],
)
def test_rows_that_make_no_table_are_not_written(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        evaluation.write_csv(rows, tmp_path / "results.csv")
    assert not list(tmp_path.iterdir())


def test_writing_that_fails_half_way_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), draft_of(path, overwrite=True) as draft:
        draft.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_is_refused_with_the_line(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("method,trial\nself,1\nself\n")
    with pytest.raises(ValueError, match=r"Line 3 of .*2 cells.*\['self'\]"):
        evaluation.read_csv(path)
