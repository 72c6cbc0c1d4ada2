"""Statistics over the trials of an experiment: two methods compared, many tests corrected."""

import math
from dataclasses import dataclass

import numpy as np

from kdtoolkit.evaluation.extras import require

# Differences of equal decimals, such as 0.3 - 0.2 and 0.2 - 0.1, agree to about 1e-16 only.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Comparison:
    """What `compare` found out about two methods.

    Attributes:
        mean_difference: mean of the first minus mean of the second.
        low, high: 95 % confidence interval of this difference.
        t: Student's t of the difference.
        p: two-sided p-value, not corrected for other tests: see `holm`.
        cohen_d: Cohen's d, the difference in standard deviations.
        count_first, count_second: number of trials.
        paired: whether the trials were compared in pairs.
    """

    mean_difference: float
    low: float
    high: float
    t: float
    p: float
    cohen_d: float
    count_first: int
    count_second: int
    paired: bool


def compare(first, second, paired=True):
    """Tests whether two methods differ, given the results of their trials.

    With `paired=True` it is Student's t-test of the differences `first[i] - second[i]`, and Cohen's
    d is their mean divided by their standard deviation (often called d_z). Use it where trial i of
    both methods shares seed and split: what the trials have in common then cancels.

    With `paired=False` it is Welch's t-test, which allows the two variances to differ, and Cohen's
    d is the difference divided by the pooled standard deviation,
    `sqrt(((m - 1) * var(first) + (n - 1) * var(second)) / (m + n - 2))`.

    If the trials don't vary at all (paired: all differences are equal), the interval is a point.
    Then t = d = 0 and p = 1 for equal means, else t and d are infinite and p = 0. Such a p says
    only that there were too few different results.

    Args:
        first: numbers `(trials,)`, one result per trial, at least 2.
        second: the same of the other method; paired: of the same trials in the same order.
        paired: bool. Defaults to True.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: for fewer than 2 trials, paired trials of different number, or a result that is
            NaN or infinite.
        ImportError: without SciPy.

    Example:

    ```python
    result = kdtoolkit.evaluation.compare([0.70, 0.71, 0.69], [0.68, 0.70, 0.68])
    result.mean_difference, result.low, result.high, result.p
    ```

    Source: Welch, 1947, Biometrika 34; Cohen, 1988, Statistical Power Analysis, 2nd edition.
    """
    special = require("scipy.special")
    first, second = _trials(first, "first", least=2), _trials(second, "second", least=2)
    if paired and len(first) != len(second):
        raise ValueError(
            "Paired methods must have the same trials. Received: "
            f"{len(first)} and {len(second)} results. Leave out the trials that only one of them "
            "has, or use `paired=False`"
        )
    difference = float(first.mean() - second.mean())
    error, freedom, deviation = (_paired if paired else _welch)(first, second)
    if error:
        t, cohen_d = difference / error, difference / deviation
        p = 2 * special.stdtr(freedom, -abs(t))
        half = special.stdtrit(freedom, 0.975) * error
    else:
        differs = abs(difference) > _ROUNDING * _largest(first, second)
        t = cohen_d = math.copysign(math.inf, difference) if differs else 0.0
        p, half = 0.0 if differs else 1.0, 0.0
    return Comparison(
        mean_difference=difference,
        low=float(difference - half),
        high=float(difference + half),
        t=float(t),
        p=float(p),
        cohen_d=float(cohen_d),
        count_first=len(first),
        count_second=len(second),
        paired=bool(paired),
    )


def holm(p_values):
    """Adjusts p-values for the number of tests, after Holm.

    With m p-values in ascending order, `adjusted_i = max over j <= i of min(1, (m - j + 1) * p_j)`.
    Rejecting where the adjusted value is at most 0.05 keeps the chance of any false rejection
    in the whole family at 5 % or less, however the tests depend on each other.

    Args:
        p_values: numbers from 0 to 1, of any shape; all together are one family.

    Returns:
        Array of the same shape: never below the p-values, never above 1, in the same order.

    Raises:
        ValueError: for a value that isn't from 0 to 1.

    Example:

    ```python
    kdtoolkit.evaluation.holm([0.01, 0.04, 0.03])  # 0.03, 0.06, 0.06
    ```

    Source: Holm, 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    p_values = np.asarray(p_values, dtype="float64")
    wrong = p_values[~((p_values >= 0) & (p_values <= 1))]
    if wrong.size:
        raise ValueError(f"`p_values` must be from 0 to 1. Received: {wrong[0]}")
    flat = p_values.ravel()
    order = np.argsort(flat)
    factors = np.arange(flat.size, 0, -1)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * flat[order]), 1.0)
    return adjusted.reshape(p_values.shape)


def summary(values):
    """Mean and standard deviation over trials.

    Args:
        values: numbers `(trials,)`, at least 1.

    Returns:
        A pair of floats `(mean, sd)`, the standard deviation with `trials - 1` in the denominator;
        it is NaN for a single trial.

    Raises:
        ValueError: without trials, or for a value that is NaN or infinite.

    Example:

    ```python
    mean, sd = kdtoolkit.evaluation.summary([0.70, 0.71, 0.69])  # 0.70, 0.01
    ```
    """
    values = _trials(values, "values", least=1)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _paired(first, second):
    """Standard error of the mean difference, degrees of freedom, deviation for Cohen's d."""
    deviation = _deviation(first - second, _largest(first, second))
    return deviation / math.sqrt(len(first)), len(first) - 1, deviation


def _welch(first, second):
    """The same for independent trials, with the degrees of freedom of Welch and Satterthwaite."""
    counts = np.array([len(first), len(second)])
    scale = _largest(first, second)
    variances = np.array([_deviation(first, scale), _deviation(second, scale)]) ** 2
    parts = variances / counts
    if not parts.any():
        return 0.0, 0, 0.0
    freedom = parts.sum() ** 2 / (parts**2 / (counts - 1)).sum()
    pooled = ((counts - 1) * variances).sum() / (counts - 1).sum()
    return math.sqrt(parts.sum()), freedom, math.sqrt(pooled)


def _deviation(values, scale):
    """Standard deviation, 0 where the values differ by rounding alone."""
    return 0.0 if np.ptp(values) <= _ROUNDING * scale else float(values.std(ddof=1))


def _largest(first, second):
    return max(abs(first).max(), abs(second).max())


def _trials(values, name, least):
    values = np.asarray(values, dtype="float64")
    if values.ndim != 1 or len(values) < least:
        raise ValueError(
            f"`{name}` must hold one number per trial, and {least} or more trials. "
            f"Received: shape {values.shape}"
        )
    if not np.isfinite(values).all():
        wrong = int(np.argmin(np.isfinite(values)))
        raise ValueError(
            f"`{name}` must be finite numbers. Received: {values[wrong]} in trial {wrong} of "
            f"{len(values)}. Leave out trials that failed, in both methods if they are paired"
        )
    return values
