"""Accuracy against what it costs: time, or size."""

import math
import numbers
from collections.abc import Mapping

from kdtoolkit.evaluation.extras import require
from kdtoolkit.evaluation.files import written
from kdtoolkit.registry import expects

_LATENCY = "Latency ({}), median; line from the fastest run to the 95th percentile"
# What an axis says, and its unit in that of the rows.
_COSTS = {
    "latency_ms": (_LATENCY.format("ms"), 1),
    "bytes": ("File (kB)", 1000),
    "gzip_bytes": ("File after gzip (kB)", 1000),
    "parameters": ("Parameters (thousands)", 1000),
}


@expects(rows="several", x="text")
def pareto_front(rows, x="latency_ms"):
    """Finds the rows that nothing dominates: no other is as accurate for less, or more for as much.

    A row drops out if another has no higher cost and no lower accuracy, and one of the two is
    better. Of rows that are equal in both, all stay.

    Args:
        rows: iterable of dicts with `test_accuracy` and the cost, such as those of
            `kd.export.measure`.
        x: str, the key of the cost; less is better. Defaults to `"latency_ms"`.

    Returns:
        A list of these rows, the cheapest first.

    Raises:
        ValueError: without rows, for a row without one of the keys, or a number that isn't finite.

    Example:
        >>> costs = [("exit1", 1.0, 0.7), ("exit2", 2.0, 0.9), ("last", 3.0, 0.8)]
        >>> rows = [{"model": m, "bytes": b, "test_accuracy": a} for m, b, a in costs]
        >>> [row["model"] for row in pareto_front(rows, "bytes")]
        ['exit1', 'exit2']
    """
    rows = _checked(rows, ("test_accuracy", x))

    def dominated(row):
        return any(
            other[x] <= row[x]
            and other["test_accuracy"] >= row["test_accuracy"]
            and (other[x], other["test_accuracy"]) != (row[x], row["test_accuracy"])
            for other in rows
        )

    return sorted((row for row in rows if not dominated(row)), key=lambda row: row[x])


def plot_tradeoff(rows, path=None, *, x="latency_ms", title=None, overwrite=False):
    """Draws accuracy against cost: a point with its name per network, and a line through the best.

    The line joins the rows of `pareto_front`. One of them beats whatever lies below it, in grey.

    Args:
        rows: iterable of rows of `kd.export.measure`, of several calls if you like.
        path: a file to write, or None. Its ending, such as `.png` or `.pdf`, is the format.
        x: the cost: `"latency_ms"` (default; a thin line goes from the fastest run to the 95th
            percentile, in microseconds if all are short), `"bytes"`, `"gzip_bytes"` or
            `"parameters"`.
        title: str or None.
        overwrite: bool. True replaces an existing file. Defaults to False.

    Returns:
        A `matplotlib.figure.Figure`. It belongs to no window; Jupyter shows it.

    Raises:
        FileExistsError: if the file exists and `overwrite` is False.
        ValueError: as `pareto_front`, for an unknown `x`, or a `path` without a known ending.
        ImportError: without matplotlib.

    Example:

    ```python
    rows = kdtoolkit.export.measure(networks, "out", x_test, y_test)
    kdtoolkit.evaluation.plot_tradeoff(rows, "out/tradeoff.png")
    ```
    """
    if x not in _COSTS:
        raise ValueError(f"`x` must be one of {list(_COSTS)}. Received: x={x!r}")
    ends = ("latency_min_ms", "latency_p95_ms") if x == "latency_ms" else (x, x)
    rows = _checked(rows, ("test_accuracy", x, *ends))
    best = pareto_front(rows, x)
    label, unit = _axis(x, rows)
    figure = require("matplotlib.figure").Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*_points(best, x, unit), color="C0", alpha=0.4)
    for row in rows:
        color, side = ("C0", -1) if row in best else ("0.5", 1)
        _draw(axes, row, x, ends, unit, color, side)
    axes.margins(0.15)
    axes.locator_params(nbins=6)
    axes.set_xlabel(label)
    axes.set_ylabel("Test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if title is not None:
        axes.set_title(title)
    return written(figure, path, overwrite)


def _axis(x, rows):
    if x == "latency_ms" and max(row[x] for row in rows) < 0.1:
        return _LATENCY.format("µs"), 0.001
    return _COSTS[x]


def _draw(axes, row, x, ends, unit, color, side):
    """A point with a line through it, and its name on the side that the best leave free."""
    (middle,), (accuracy,) = _points([row], x, unit)
    axes.plot([row[end] / unit for end in ends], [accuracy] * 2, color=color, linewidth=0.8)
    axes.plot(middle, accuracy, "o", color=color)
    place = {"xytext": (6 * side, -8 * side), "textcoords": "offset points"}
    across = {"ha": "left" if side > 0 else "right", "va": "center"}
    axes.annotate(str(row["model"]), (middle, accuracy), **place, **across)


def _points(rows, x, unit):
    return [row[x] / unit for row in rows], [100 * row["test_accuracy"] for row in rows]


def _checked(rows, keys):
    """The rows as a list, if each has a finite number under each of the keys."""
    rows = list(rows)
    if not rows:
        raise ValueError("There must be rows to compare. Received: none")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"Each row must be a dict. Received: {row!r} as row {number}")
        for key in keys:
            value = row.get(key)
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise ValueError(
                    f"Each row must have a finite number `{key}`, as those of `kd.export.measure`. "
                    f"Received: {value!r} in row {number}"
                )
    return rows
