"""Statistics of the evaluation, against formulas written out here.

Nothing here needs a Keras backend, so nothing is marked `core`.
"""

import dataclasses
import math

import numpy as np
import pytest

from kdtoolkit import evaluation

RNG = np.random.default_rng(0)
FIRST = 0.70 + 0.010 * RNG.normal(size=10)
SECOND = 0.69 + 0.004 * RNG.normal(size=10)


# --- statistics ----------------------------------------------------------------------------------


def two_sided_p(t, freedom):
    """P(|T| > |t|) through the incomplete beta function."""
    special = pytest.importorskip("scipy.special")
    return special.betainc(freedom / 2, 0.5, freedom / (freedom + t**2))


def written_out(first, second, paired):
    """t, degrees of freedom, standard error and Cohen's d, as textbooks have them."""
    m, n = len(first), len(second)
    mean_first, mean_second = sum(first) / m, sum(second) / n
    if paired:
        differences = [a - b for a, b in zip(first, second, strict=True)]
        mean = sum(differences) / n
        sd = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
        return mean / (sd / math.sqrt(n)), n - 1, sd / math.sqrt(n), mean / sd
    var_first = sum((a - mean_first) ** 2 for a in first) / (m - 1)
    var_second = sum((b - mean_second) ** 2 for b in second) / (n - 1)
    u, v = var_first / m, var_second / n
    freedom = (u + v) ** 2 / (u**2 / (m - 1) + v**2 / (n - 1))
    pooled = math.sqrt(((m - 1) * var_first + (n - 1) * var_second) / (m + n - 2))
    mean = mean_first - mean_second
    return mean / math.sqrt(u + v), freedom, math.sqrt(u + v), mean / pooled


@pytest.mark.parametrize("paired, trials", [(True, 10), (False, 10), (False, 4)])
def test_the_t_test_and_cohens_d_are_those_of_the_textbook(paired, trials):
    first, second = FIRST, SECOND[:trials]
    result = evaluation.compare(first, second, paired=paired)
    t, freedom, error, cohen_d = written_out(first, second, paired)
    assert result.t == pytest.approx(t, rel=1e-10)
    assert result.p == pytest.approx(two_sided_p(t, freedom), rel=1e-10)
    assert result.cohen_d == pytest.approx(cohen_d, rel=1e-10)
    assert result.mean_difference == pytest.approx(first.mean() - second.mean(), rel=1e-12)
    # An interval of 95 % reaches to where the test's p would be 0.05.
    half = (result.high - result.low) / 2
    assert (result.high + result.low) / 2 == pytest.approx(result.mean_difference, rel=1e-10)
    assert two_sided_p(half / error, freedom) == pytest.approx(0.05, rel=1e-8)
    assert (result.count_first, result.count_second, result.paired) == (10, trials, paired)


def test_the_interval_uses_the_quantiles_of_printed_tables():
    pytest.importorskip("scipy")
    # Differences with mean 2 and variance 2.5; the table's quantile is 2.776 for 4 degrees.
    result = evaluation.compare([0.0, 1.0, 2.0, 3.0, 4.0], [0.0] * 5)
    assert result.high - 2 == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=2e-4)
    assert result.low == pytest.approx(4 - result.high)


@pytest.mark.parametrize("paired", [True, False])
def test_scipy_finds_the_same(paired):
    stats = pytest.importorskip("scipy.stats")
    options = {} if paired else {"equal_var": False}
    expected = (stats.ttest_rel if paired else stats.ttest_ind)(FIRST, SECOND, **options)
    result = evaluation.compare(FIRST, SECOND, paired=paired)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(
        [result.t, result.p, result.low, result.high],
        [expected.statistic, expected.pvalue, interval.low, interval.high],
        rtol=1e-8,
    )


@pytest.mark.parametrize("paired", [True, False])
def test_swapping_the_methods_changes_signs_and_nothing_else(paired):
    pytest.importorskip("scipy")
    one, other = (
        evaluation.compare(*methods, paired=paired)
        for methods in ((FIRST, SECOND), (SECOND, FIRST))
    )
    for name in ("mean_difference", "t", "cohen_d"):
        assert getattr(one, name) == pytest.approx(-getattr(other, name)) != 0
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.p == pytest.approx(other.p)


@pytest.mark.parametrize("paired", [True, False])
def test_the_test_ignores_a_common_shift_and_the_unit(paired):
    pytest.importorskip("scipy")
    expected = evaluation.compare(FIRST, SECOND, paired=paired)
    shifted = evaluation.compare(FIRST + 5, SECOND + 5, paired=paired)
    percent = evaluation.compare(100 * FIRST, 100 * SECOND, paired=paired)
    for result in (shifted, percent):
        assert (result.t, result.p, result.cohen_d) == pytest.approx(
            (expected.t, expected.p, expected.cohen_d), rel=1e-9
        )
    assert shifted.mean_difference == pytest.approx(expected.mean_difference)
    assert percent.high == pytest.approx(100 * expected.high)


def test_pairing_cancels_what_trials_have_in_common():
    pytest.importorskip("scipy")
    trials = np.linspace(0, 1, 10)
    first, second = trials + FIRST, trials + SECOND
    assert evaluation.compare(first, second).p < 0.05
    assert evaluation.compare(first, second, paired=False).p > 0.5
    np.testing.assert_allclose(
        evaluation.compare(first, second).p, evaluation.compare(FIRST, SECOND).p
    )


# 0.3 - 0.2 and 0.2 - 0.1 differ in the last bit.
@pytest.mark.parametrize("paired, first", [(True, [0.2, 0.3, 0.4]), (False, [0.3, 0.3, 0.3])])
def test_without_any_variation_the_interval_is_a_point(paired, first):
    pytest.importorskip("scipy")
    second = np.subtract(first, 0.1)
    result = evaluation.compare(first, second, paired=paired)
    assert (result.p, result.t, result.cohen_d) == (0.0, math.inf, math.inf)
    assert result.low == result.high == result.mean_difference == pytest.approx(0.1)
    assert evaluation.compare(second, first, paired=paired).t == -math.inf
    same = evaluation.compare(first, first, paired=paired)
    assert (same.p, same.t, same.cohen_d, same.low, same.high) == (1, 0, 0, 0, 0)


def test_one_constant_method_is_tested_against_a_varying_one():
    pytest.importorskip("scipy")
    result = evaluation.compare(FIRST, [0.7] * 10, paired=False)
    t, freedom, _, cohen_d = written_out(FIRST, [0.7] * 10, paired=False)
    assert freedom == pytest.approx(9)
    assert (result.t, result.cohen_d) == pytest.approx((t, cohen_d), rel=1e-6)
    assert result.p == pytest.approx(two_sided_p(t, 9), rel=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([0.1], [0.2]), r"`first` must .* 2 or more trials. Received: shape \(1,\)"),
        (([0.1, 0.2], []), r"`second` .*shape \(0,\)"),
        (([0.1, 0.2], 0.3), r"`second` .*shape \(\)"),
        (([0.1, 0.2], [0.1, 0.2, 0.3]), "2 and 3 results.*paired=False"),
        (([0.1, math.nan], [0.1, 0.2]), "`first` must be finite.*nan in trial 1 of 2"),
        (([0.1, 0.2], [math.inf, 0.2], False), "`second` must be finite.*inf in trial 0"),
    ],
)
def test_trials_that_cannot_be_compared_are_refused(arguments, message):
    pytest.importorskip("scipy")
    with pytest.raises(ValueError, match=message):
        evaluation.compare(*arguments)


def test_a_comparison_cannot_be_changed():
    pytest.importorskip("scipy")
    with pytest.raises(dataclasses.FrozenInstanceError):
        evaluation.compare(FIRST, SECOND).p = 0.0


@pytest.mark.parametrize(
    "p_values, adjusted",
    [
        # Sorted: 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04 raised to the 0.06 before it.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.5], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([[0.01, 0.04], [0.03, 0.005]], [[0.03, 0.06], [0.06, 0.02]]),
        ([], []),
    ],
)
def test_holm_is_what_a_hand_computes(p_values, adjusted):
    result = evaluation.holm(p_values)
    assert result.shape == np.shape(p_values)
    np.testing.assert_allclose(result, adjusted, rtol=1e-12)


def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order():
    p_values = np.random.default_rng(1).uniform(size=(5, 6)) ** 3
    adjusted = evaluation.holm(p_values)
    assert (adjusted >= p_values).all() and (adjusted <= np.minimum(1, 30 * p_values)).all()
    order = np.argsort(p_values, axis=None)
    assert (np.diff(adjusted.ravel()[order]) >= 0).all()
    np.testing.assert_array_equal(evaluation.holm(p_values.T), adjusted.T)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_probability(wrong):
    with pytest.raises(ValueError, match=f"from 0 to 1. Received: {wrong}"):
        evaluation.holm([0.5, wrong])


def test_the_summary_divides_by_one_trial_less():
    # Squared deviations 1, 1, 4, 4 of the mean 2: 10 / 3.
    assert evaluation.summary([1.0, 3.0, 0.0, 4.0]) == pytest.approx((2.0, math.sqrt(10 / 3)))
    mean, sd = evaluation.summary([0.5])
    assert mean == 0.5 and math.isnan(sd)
    with pytest.raises(ValueError, match="1 or more trials"):
        evaluation.summary([])
