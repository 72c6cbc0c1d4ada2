"""Calibration against sums written out one example at a time.

Nothing here needs a Keras backend, so nothing is marked `core`.
"""

import math

import numpy as np
import pytest

from kdtoolkit import evaluation

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(200, 5)) * 2
Y = RNG.integers(5, size=200)


def softmax(row):
    weights = [math.exp(z - max(row)) for z in row]
    return [w / sum(weights) for w in weights]


def written_out(logits, y, bins):
    """All measures by loops over examples and bins."""
    chances = [softmax(row) for row in logits]
    held = [[] for _ in range(bins)]
    nll = brier = 0.0
    for p, label in zip(chances, y, strict=True):
        nll -= math.log(p[label])
        brier += sum((value - (c == label)) ** 2 for c, value in enumerate(p))
        number = next(b for b in range(bins) if max(p) <= (b + 1) / bins)
        held[number].append((p.index(max(p)) == label, max(p)))
    gaps = [
        (len(own), abs(sum(r for r, _ in own) / len(own) - sum(c for _, c in own) / len(own)))
        for own in held
        if own
    ]
    right = sum(r for own in held for r, _ in own)
    return {
        "accuracy": right / len(y),
        "confidence": sum(max(p) for p in chances) / len(y),
        "nll": nll / len(y),
        "brier": brier / len(y),
        "ece": sum(count * gap for count, gap in gaps) / len(y),
        "mce": max(gap for _, gap in gaps),
    }


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_all_measures_are_those_written_out(bins):
    found = evaluation.calibration(LOGITS, Y, bins=bins)
    assert found == pytest.approx(written_out(LOGITS, Y, bins), rel=1e-10)


def test_probabilities_say_the_same_as_their_logits():
    chances = np.array([softmax(row) for row in LOGITS])
    found = evaluation.calibration(chances, Y[:, None], from_logits=False)
    assert found == pytest.approx(evaluation.calibration(LOGITS, Y), rel=1e-9)


def test_only_differences_of_logits_count_and_huge_ones_stay_finite():
    found = evaluation.calibration(LOGITS + 1e4, Y)
    assert found == pytest.approx(evaluation.calibration(LOGITS, Y), rel=1e-6)
    huge = evaluation.calibration([[1e4, -1e4], [1e4, -1e4]], [0, 1])
    assert huge["nll"] == pytest.approx(1e4) and huge["ece"] == pytest.approx(0.5)


def test_a_sure_network_that_is_right_is_perfect():
    found = evaluation.calibration(np.eye(3)[[0, 1, 2]], [0, 1, 2], from_logits=False)
    assert found == {"accuracy": 1, "confidence": 1, "nll": 0, "brier": 0, "ece": 0, "mce": 0}


def test_a_guess_of_equal_chances_is_calibrated():
    y = np.arange(12) % 4
    found = evaluation.calibration(np.zeros((12, 4)), y)
    # The first class is taken, and right as often as it says.
    assert found["ece"] == pytest.approx(0, abs=1e-12)
    assert found["nll"] == pytest.approx(math.log(4)) and found["brier"] == pytest.approx(0.75)


def test_an_impossible_event_has_an_infinite_loss():
    assert evaluation.calibration([[1.0, 0.0]], [1], from_logits=False)["nll"] == math.inf


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    rows = evaluation.reliability([[0.5, 0.5], [1.0, 0.0]], [0, 0], bins=4, from_logits=False)
    assert [row["count"] for row in rows] == [0, 1, 0, 1]
    assert rows[0] == {"low": 0, "high": 0.25, "count": 0, "accuracy": None, "confidence": None}
    assert rows[3]["accuracy"] == 1 and rows[3]["confidence"] == 1


REFUSED = {
    "no examples": (np.zeros((0, 3)), np.zeros(0, int), {}, "1 or more examples"),
    "one class": (np.zeros((3, 1)), [0, 0, 0], {}, "2 or more classes"),
    "a map": (np.zeros((3, 2, 2)), [0, 0, 0], {}, "(examples, classes)"),
    "one-hot labels": (np.zeros((3, 2)), np.eye(2)[[0, 1, 1]], {}, "argmax"),
    "too few labels": (np.zeros((3, 2)), [0, 1], {}, "class numbers, integers (3,)"),
    "a class beyond": (np.zeros((2, 2)), [0, 2], {}, "from 0 to 1"),
    "a NaN": ([[0.0, math.nan]], [0], {}, "1 values that are NaN"),
    "no bins": (LOGITS, Y, {"bins": 0}, "`bins` must be an integer"),
    "logits as probabilities": (LOGITS, Y, {"from_logits": False}, "sum to 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused(name):
    outputs, y, options, message = REFUSED[name]
    with pytest.raises(ValueError) as error:
        evaluation.calibration(outputs, y, **options)
    assert message in str(error.value)


def test_the_diagram_has_a_line_for_each_network(tmp_path):
    path = tmp_path / "reliability.png"
    figure = evaluation.plot_reliability({"one": LOGITS, "two": LOGITS / 4}, Y, path, title="both")
    (axes,) = figure.axes
    diagonal, one, two = axes.lines
    np.testing.assert_allclose(diagonal.get_xydata(), [[0, 0], [1, 1]])
    rows = [row for row in evaluation.reliability(LOGITS, Y) if row["count"]]
    expected = [[row["confidence"], row["accuracy"]] for row in rows]
    np.testing.assert_allclose(one.get_xydata(), expected)
    ece = evaluation.calibration(LOGITS / 4, Y)["ece"]
    assert two.get_label() == f"two, ece {100 * ece:.1f} %"
    assert path.stat().st_size > 5_000
    with pytest.raises(FileExistsError):
        evaluation.plot_reliability({"one": LOGITS}, Y, path)
    with pytest.raises(ValueError, match="none"):
        evaluation.plot_reliability({}, Y)
