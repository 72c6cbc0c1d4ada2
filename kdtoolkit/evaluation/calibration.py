"""How far a network's probabilities can be believed."""

import numpy as np

from kdtoolkit.evaluation.extras import require
from kdtoolkit.evaluation.files import written


def calibration(outputs, y, *, bins=15, from_logits=True):
    """Measures what a network says of examples against what they are.

    With p the probabilities, c the largest of them ("confidence") and r 1 where its class is right:

        accuracy      mean r
        confidence    mean c
        nll           mean of -log p_y, in nats
        brier         mean of sum_c (p_c - [c = y])^2, from 0 to 2
        ece           sum_b n_b / n * |accuracy_b - confidence_b| over bins of equal width
        mce           the largest |accuracy_b - confidence_b| of a bin that holds something

    Bin b of B holds the confidences in (b / B, (b + 1) / B]. All is computed in float64. The ece
    depends on the number of bins and is biased upwards for few examples: compare networks on the
    same examples with the same bins.

    Variants: Brier's score is that of the paper, summed over the classes; half of it, or its mean
    over the classes, is found elsewhere. `mce` is noisy: a bin with one example counts in full.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), arXiv:1706.04599, with 15
    bins; Brier, "Verification of forecasts expressed in terms of probability" (1950).

    Args:
        outputs: array `(examples, classes)`, at least 2 classes: logits, or probabilities with
            `from_logits=False`, such as the mean of an ensemble.
        y: int array `(examples,)` or `(examples, 1)`, class numbers.
        bins: int >= 1. Defaults to 15.
        from_logits: bool. Defaults to True.

    Returns:
        A dict of floats with the names above, in this order. `nll` is infinite where a probability
        of 0 was given to what happened.

    Raises:
        ValueError: shapes that don't fit, no examples, class numbers outside the classes, values
            that aren't finite, or rows that aren't probabilities.

    Example:
        >>> from kdtoolkit import evaluation
        >>> found = evaluation.calibration([[0.8, 0.2], [0.6, 0.4]], [0, 1], from_logits=False)
        >>> {name: round(value, 2) for name, value in found.items()}
        {'accuracy': 0.5, 'confidence': 0.7, 'nll': 0.57, 'brier': 0.4, 'ece': 0.4, 'mce': 0.6}
    """
    logs, y = _log_probabilities(outputs, y, from_logits)
    filled = [row for row in _reliability(logs, y, bins) if row["count"]]
    chances = np.exp(logs)
    right = np.arange(logs.shape[1]) == y[:, None]
    return {
        "accuracy": float(np.mean(np.argmax(logs, axis=1) == y)),
        "confidence": float(np.mean(chances.max(axis=1))),
        "nll": float(-np.mean(logs[right])),
        "brier": float(np.mean(np.sum((chances - right) ** 2, axis=1))),
        "ece": _expected_error(filled),
        "mce": max(_gap(row) for row in filled),
    }


def reliability(outputs, y, *, bins=15, from_logits=True):
    """Accuracy and confidence bin by bin: the numbers of a reliability diagram.

    Args:
        outputs, y, bins, from_logits: as in `calibration`.

    Returns:
        A list of dicts, one per bin: `low` and `high`, its ends; `count`, examples in it;
        `accuracy` and `confidence`, their means, None where it is empty.

    Raises:
        ValueError: as `calibration`.

    Example:
        >>> from kdtoolkit import evaluation
        >>> rows = evaluation.reliability([[0.8, 0.2], [0.6, 0.4]], [0, 1], bins=2,
        ...                               from_logits=False)
        >>> rows[1]["count"], rows[1]["accuracy"], round(rows[1]["confidence"], 2)
        (2, 0.5, 0.7)
    """
    return _reliability(*_log_probabilities(outputs, y, from_logits), bins)


def plot_reliability(
    networks, y, path=None, *, bins=15, from_logits=True, title=None, overwrite=False
):
    """Draws reliability diagrams: accuracy against confidence, one line per network.

    On the diagonal a network is as sure as it is right; below it, it is too sure. The size of a
    point grows with the share of examples in its bin. The legend gives each network's ece.

    Args:
        networks: dict `{name: outputs}`, outputs as in `calibration`.
        y, bins, from_logits: as in `calibration`.
        path: a file to write, or None. Its ending, such as `.png` or `.pdf`, is the format.
        title: str or None.
        overwrite: bool. True replaces an existing file. Defaults to False.

    Returns:
        A `matplotlib.figure.Figure`. It belongs to no window; Jupyter shows it.

    Raises:
        FileExistsError: if the file exists and `overwrite` is False.
        ValueError: without networks, as `calibration`, or for a `path` without a known ending.
        ImportError: without matplotlib.

    Example:

    ```python
    outputs = {"alone": alone.predict(x), "distilled": student.predict(x)}
    kdtoolkit.evaluation.plot_reliability(outputs, y, "reliability.png")
    ```
    """
    if not networks:
        raise ValueError("`networks` must be a dict {name: outputs}. Received: none")
    figure = require("matplotlib.figure").Figure(figsize=(5.0, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    for index, (name, outputs) in enumerate(networks.items()):
        logs, labels = _log_probabilities(outputs, y, from_logits)
        rows = [row for row in _reliability(logs, labels, bins) if row["count"]]
        ece = _expected_error(rows)
        points = [[row[key] for row in rows] for key in ("confidence", "accuracy")]
        sizes = [15 + 150 * row["count"] / len(labels) for row in rows]
        axes.plot(*points, color=f"C{index}", label=f"{name}, ece {100 * ece:.1f} %")
        axes.scatter(*points, s=sizes, color=f"C{index}", alpha=0.7)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="Confidence", ylabel="Accuracy", title=title or "")
    axes.legend(loc="upper left")
    return written(figure, path, overwrite)


def _gap(row):
    return abs(row["accuracy"] - row["confidence"])


def _expected_error(filled):
    """The ece of the bins that hold something."""
    examples = sum(row["count"] for row in filled)
    return sum(row["count"] / examples * _gap(row) for row in filled)


def _reliability(logs, y, bins):
    if not isinstance(bins, int | np.integer) or bins < 1:
        raise ValueError(f"`bins` must be an integer of 1 or more. Received: bins={bins!r}")
    confidence, right = np.exp(logs.max(axis=1)), np.argmax(logs, axis=1) == y
    edges = np.arange(bins + 1) / bins
    # Rounding may lift a sum of probabilities a little above 1.
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    rows = []
    for number in range(bins):
        own = place == number
        means = (float(part[own].mean()) if own.any() else None for part in (right, confidence))
        accuracy, mean = means
        ends = {"low": float(edges[number]), "high": float(edges[number + 1])}
        rows.append({**ends, "count": int(own.sum()), "accuracy": accuracy, "confidence": mean})
    return rows


def _log_probabilities(outputs, y, from_logits):
    """Logarithms of the probabilities in float64, and the labels as `(examples,)`."""
    outputs, y = np.asarray(outputs, "float64"), np.asarray(y)
    if outputs.ndim != 2 or outputs.shape[1] < 2 or not len(outputs):
        raise ValueError(
            "`outputs` must be (examples, classes), with 1 or more examples and 2 or more classes. "
            f"Received: shape {outputs.shape}"
        )
    if y.shape not in ((len(outputs),), (len(outputs), 1)) or y.dtype.kind not in "iu":
        raise ValueError(
            f"`y` must be class numbers, integers ({len(outputs)},). Received: {y.dtype} of shape "
            f"{y.shape}. Of one-hot labels take `y.argmax(axis=-1)`"
        )
    if not 0 <= y.min() <= y.max() < outputs.shape[1]:
        raise ValueError(
            f"`y` must be class numbers from 0 to {outputs.shape[1] - 1}. "
            f"Received: {y.min()} to {y.max()}"
        )
    if not np.isfinite(outputs).all():
        raise ValueError(
            f"`outputs` must be finite. Received: {int((~np.isfinite(outputs)).sum())} values that "
            "are NaN or infinite"
        )
    if from_logits:
        outputs = outputs - outputs.max(axis=1, keepdims=True)
        return outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True)), y.ravel()
    sums = outputs.sum(axis=1)
    if outputs.min() < 0 or np.abs(sums - 1).max() > 1e-2:
        raise ValueError(
            "With from_logits=False the rows of `outputs` must be probabilities that sum to 1. "
            f"Received: values from {outputs.min():g}, sums from {sums.min():g} to {sums.max():g}"
        )
    with np.errstate(divide="ignore"):
        return np.log(outputs), y.ravel()
