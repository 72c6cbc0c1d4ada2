"""How good the answers of a network are, and where they differ from those of another."""

import math

import numpy as np

from kdtoolkit import logits
from kdtoolkit.evaluation import calibration

BINS = 15
# The quantile of the normal distribution that 95 % intervals end at.
_Z = 1.959963984540054
# Softmax outputs of 8 bits sum to 1 up to half a step for each class.
_NEARLY_ONE = 0.1
_WORST = 3


def log_probabilities(outputs, from_logits):
    """Bring logits or probabilities to logarithms of probabilities.

    Probabilities are divided by their sum, which rounding to 8 bits moves away from 1.

    Args:
        outputs: Float64 array `(examples, classes)`.
        from_logits: Bool, or `"auto"`: probabilities are outputs without negative numbers whose
            rows all sum to 1 within 0.1.

    Returns:
        A pair: array of the same shape; whether the outputs were logits.

    Raises:
        ValueError: If outputs that should be probabilities are not.
    """
    sums = outputs.sum(axis=1, keepdims=True)
    nearly = outputs.min() >= 0 and np.abs(sums - 1).max() <= _NEARLY_ONE
    if from_logits == "auto":
        from_logits = not nearly
    if from_logits:
        return logits.log_probabilities(outputs), True
    if outputs.min() < 0 or sums.min() <= 0:
        raise ValueError(
            "With from_logits=False it must return probabilities. Received: values from "
            f"{outputs.min():g}, sums from {sums.min():g}. Pass from_logits='auto'."
        )
    with np.errstate(divide="ignore"):
        return np.log(outputs / sums), False


def wilson(right, count):
    """The 95 % confidence interval of a share, after Wilson.

    With p = right / count and z = 1.96, the ends are
    `(p + z^2 / 2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`. Unlike p ± z s it stays
    within 0 and 1 and has a width where all is right.

    Args:
        right: Number of examples that are right.
        count: Number of examples, at least 1.

    Returns:
        A pair of floats, low and high.

    Source: Wilson, 1927, Journal of the American Statistical Association 22.

    Example:
        >>> low, high = wilson(90, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)
    """
    share, squared = right / count, _Z**2 / count
    middle = share + squared / 2
    half = _Z * math.sqrt(share * (1 - share) / count + squared / (4 * count))
    return max(0.0, (middle - half) / (1 + squared)), min(1.0, (middle + half) / (1 + squared))


def quality(logs, y):
    """Accuracy with its interval and calibration; all `None` without labels.

    Args:
        logs: Log-probabilities `(examples, classes)`.
        y: Class numbers `(examples,)`, or `None`.

    Returns:
        A dict of floats: `test_accuracy`, `accuracy_low`, `accuracy_high`, `nll`, `ece`.
    """
    if y is None:
        names = ("test_accuracy", "accuracy_low", "accuracy_high", "nll", "ece")
        return dict.fromkeys(names)
    # The logarithms say more than small probabilities, but that of 0 is not finite.
    exact = bool(np.isfinite(logs).all())
    found = calibration(logs if exact else np.exp(logs), y, bins=BINS, from_logits=exact)
    low, high = wilson(int((logs.argmax(axis=1) == y).sum()), len(y))
    return {
        "test_accuracy": found["accuracy"],
        "accuracy_low": low,
        "accuracy_high": high,
        "nll": found["nll"],
        "ece": found["ece"],
    }


def differences(logs, reference, y, class_names):
    """What differs from the reference: answers, and the accuracy class by class.

    Args:
        logs: Log-probabilities `(examples, classes)`.
        reference: Those of the reference.
        y: Class numbers `(examples,)`, or `None`.
        class_names: List of str.

    Returns:
        A dict: `agreement`, the share of examples with the same largest output;
        `class_changes`, accuracy minus that of the reference for each class, `None` for a class
        without examples; `worst_classes`, up to 3 dicts `class`, `change` and `examples` of the
        classes that lost most; `worst_class` and `worst_change`, the first of them.
    """
    own, other = logs.argmax(axis=1), reference.argmax(axis=1)
    changes, counts = [], []
    if y is not None:
        counts = np.bincount(y, minlength=logs.shape[1])
        gained = (own == y).astype(int) - (other == y)
        sums = np.bincount(y, weights=gained, minlength=logs.shape[1])
        changes = [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
    lost = sorted((change, k) for k, change in enumerate(changes) if change and change < 0)
    worst = [
        {"class": class_names[k], "change": change, "examples": int(counts[k])}
        for change, k in lost[:_WORST]
    ]
    return {
        "agreement": float(np.mean(own == other)),
        "worst_class": worst[0]["class"] if worst else None,
        "worst_change": worst[0]["change"] if worst else (None if y is None else 0.0),
        "worst_classes": worst,
        "class_changes": changes,
    }
