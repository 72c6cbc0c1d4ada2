"""Accuracy against what it costs: the best, and the picture."""

import itertools

import numpy as np
import pytest

from kdtoolkit import evaluation

# Nothing here needs a Keras backend, so nothing is marked `core`.


def row(name, cost, accuracy):
    return {
        "model": name,
        "test_accuracy": accuracy,
        "latency_ms": cost,
        "latency_min_ms": 0.9 * cost,
        "latency_p95_ms": 1.5 * cost,
        "bytes": 1000 * cost,
    }


ROWS = [row("last", 4.0, 0.9), row("exit1", 1.0, 0.5), row("poor", 3.0, 0.6), row("exit2", 2, 0.8)]


def test_the_front_is_what_nothing_beats_from_the_cheapest_on():
    front = evaluation.pareto_front(iter(ROWS))
    assert [row["model"] for row in front] == ["exit1", "exit2", "last"]
    assert front[0] is ROWS[1]


def test_the_front_is_that_of_the_definition_on_a_grid_with_ties():
    random = np.random.default_rng(0)
    for _ in range(20):
        rows = [row(str(i), *random.integers(1, 5, size=2).tolist()) for i in range(8)]
        points = [(r["latency_ms"], r["test_accuracy"]) for r in rows]
        beaten = {
            i
            for (i, a), (j, b) in itertools.permutations(enumerate(points), 2)
            if (b[0] < a[0] and b[1] >= a[1]) or (b[0] <= a[0] and b[1] > a[1])
        }
        front = evaluation.pareto_front(rows)
        assert {int(r["model"]) for r in front} == set(range(8)) - beaten
        assert [r["latency_ms"] for r in front] == sorted(r["latency_ms"] for r in front)


def test_the_front_depends_on_the_cost():
    rows = [{**ROWS[0], "bytes": 1}, *ROWS[1:]]
    assert [row["model"] for row in evaluation.pareto_front(rows, "bytes")] == ["last"]


def test_each_network_is_a_point_with_its_name_and_the_best_are_joined(tmp_path):
    pytest.importorskip("matplotlib")
    figure = evaluation.plot_tradeoff(ROWS, tmp_path / "t.png", title="Exits")
    (axes,) = figure.axes
    front, *others = axes.get_lines()
    np.testing.assert_allclose(front.get_xydata(), [[1, 50], [2, 80], [4, 90]])
    bars, points = others[::2], others[1::2]
    np.testing.assert_allclose(
        [p.get_xydata()[0] for p in points], [[4, 90], [1, 50], [3, 60], [2, 80]]
    )
    np.testing.assert_allclose(bars[0].get_xydata(), [[3.6, 90], [6, 90]])
    colors = dict(
        zip("last exit1 poor exit2".split(), [p.get_color() for p in points], strict=True)
    )
    assert colors["exit1"] == colors["exit2"] == colors["last"] != colors["poor"]
    names = {text.get_text(): text.xy for text in axes.texts}
    assert names["exit2"] == (2, 80) and len(names) == 4
    assert axes.get_title() == "Exits" and "Latency (ms)" in axes.get_xlabel()
    assert (tmp_path / "t.png").stat().st_size > 1000
    with pytest.raises(FileExistsError):
        evaluation.plot_tradeoff(ROWS, tmp_path / "t.png")


def test_short_latencies_are_drawn_in_microseconds():
    pytest.importorskip("matplotlib")
    (axes,) = evaluation.plot_tradeoff([row("exit1", 0.004, 0.5), row("last", 0.05, 0.9)]).axes
    front, bar = axes.get_lines()[:2]
    np.testing.assert_allclose(front.get_xdata(), [4, 50])
    np.testing.assert_allclose(bar.get_xdata(), [3.6, 6])
    assert "Latency (µs)" in axes.get_xlabel()


def test_sizes_are_drawn_in_thousands_and_need_no_times():
    pytest.importorskip("matplotlib")
    rows = [{key: r[key] for key in ("model", "test_accuracy", "bytes")} for r in ROWS]
    (axes,) = evaluation.plot_tradeoff(rows, x="bytes").axes
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata(), [1, 2, 4])
    assert axes.get_xlabel() == "File (kB)"


@pytest.mark.parametrize(
    "rows, x, message",
    [
        ([], "latency_ms", "There must be rows to compare. Received: none"),
        ([ROWS[0], {"bytes": 1}], "bytes", "`test_accuracy`.*Received: None in row 1"),
        ([{**ROWS[0], "bytes": "large"}], "bytes", "`bytes`.*Received: 'large' in row 0"),
        ([{**ROWS[0], "latency_ms": np.nan}], "latency_ms", "Received: nan in row 0"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(rows, x, message):
    pytest.importorskip("matplotlib")
    for function in (evaluation.pareto_front, evaluation.plot_tradeoff):
        with pytest.raises(ValueError, match=message):
            function(rows, x=x)


def test_an_unknown_cost_is_refused():
    with pytest.raises(ValueError, match=r"must be one of \['latency_ms'.*x='energy'"):
        evaluation.plot_tradeoff(ROWS, x="energy")
