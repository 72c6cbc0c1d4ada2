"""Input that nobody should give, drawn by Hypothesis: a right answer, or an error of ours.

The rule is in `tests/hostile.py`. `benchmarks/hostile_input.py` runs many more cases.
"""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import kdtoolkit as kd
from kdtoolkit import functional
from kdtoolkit.registry import expects
from tests import hostile, hostile_arguments

#: Cases by area, with what a case costs in mind.
CASES = {
    "functional": 250,
    "response losses": 120,
    "feature losses": 60,
    "loss arguments": 120,
    "distillers": 12,
    "sources, gates, callbacks": 100,
    "data": 80,
    "models": 60,
    "compress": 30,
    "export, generations, compare": 40,
    "evaluation": 100,
}
AREAS = {**hostile.NUMBERS, **hostile_arguments.AREAS}


def run(area, count):
    """Judge `count` calls, always the same; returns the outcomes and the failures in words."""
    outcomes, failures = [], []

    @settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(AREAS[area])
    def judged(call):
        outcome, why = hostile.judge(call)
        outcomes.append(outcome)
        if outcome == "failure":
            failures.append(f"{call.name}: {why}\n{call.given!r}")

    judged()
    return outcomes, failures


def test_every_area_has_its_cases():
    assert CASES.keys() == AREAS.keys()


@pytest.mark.tensorflow
@pytest.mark.parametrize("area", CASES)
def test_each_call_gives_a_right_answer_or_an_error_of_ours(area):
    outcomes, failures = run(area, CASES[area])
    assert not failures, "\n".join(failures[:5])
    # Both happen, or the cases say nothing.
    assert {"right", "ours"} <= set(outcomes)


@pytest.mark.core
def test_a_few_functions_of_numbers_on_any_backend():
    outcomes, failures = run("functional", 12)
    assert not failures, "\n".join(failures[:5])


# The judge must be able to say no.


def call(function, check=lambda value: None):
    return hostile.judge(hostile.Call("area", "name", function, check))[0]


@pytest.mark.core
def test_the_judge_refuses_bare_errors_and_accepts_ours():
    assert call(lambda: 1) == "right"
    assert call(lambda: kd.losses.SoftTargets(temperature=-1)) == "ours"
    assert call(lambda: {}["key"]) == "failure"
    assert call(lambda: np.zeros(3).reshape(2, 2)) == "failure"
    assert call(lambda: keras.layers.Conv2D("many", 3)) == "failure"


@pytest.mark.core
def test_the_judge_sees_wrong_numbers():
    ones, nan = np.ones((2, 3)), np.array([[1.0, np.nan, 1.0], [1.0, 1.0, 1.0]])

    def judged(value, given, **kwargs):
        return call(lambda: value, lambda v: hostile.check_numbers(v, given, **kwargs))

    assert judged(np.ones(2), [ones], each=2) == "right"
    assert judged(np.ones(3), [ones], each=2) == "failure"
    assert judged(np.array([1.0, np.nan]), [ones], each=2) == "failure"
    assert judged(np.array([1.0, np.inf]), [ones], each=2) == "failure"
    assert judged(np.array([1.0, -1.0]), [ones], each=2, positive=True) == "failure"
    assert judged(np.ones(2), [nan], each=2) == "failure"
    assert judged(np.array([np.nan, 1.0]), [nan], each=2) == "right"


# Defects that such input found.


@pytest.mark.core
@pytest.mark.parametrize("place", ["source", "student"])
@pytest.mark.parametrize(
    "loss",
    [
        kd.losses.HardTargets,
        kd.losses.ActivationBoundaries,
        kd.losses.RelationalDistance,
        kd.losses.CorrelationCongruence,
        kd.losses.ProbabilisticTransfer,
    ],
)
def test_a_nan_is_never_taken_for_a_number(loss, place):
    ends = {name: np.random.default_rng(0).normal(size=(3, 4)) for name in ("source", "student")}
    ends[place][1, 2] = np.nan
    value = keras.ops.convert_to_numpy(loss(reduction=None)(ends["source"], ends["student"]))
    assert np.isnan(value[1])


@pytest.mark.core
def test_complex_numbers_do_not_lose_their_imaginary_part_in_silence():
    with pytest.raises(TypeError, match="source.*complex"):
        kd.losses.LogitsMSE()(np.ones((2, 3)) * 1j, np.ones((2, 3)))


@pytest.mark.core
def test_batches_of_different_sizes_are_not_broadcast():
    with pytest.raises(ValueError, match=r"one batch from both.*\[1, 4\]"):
        kd.losses.Hint(project=False)(np.ones((1, 3)), np.ones((4, 3)))


@pytest.mark.core
@pytest.mark.parametrize("temperature", [1e30, 1e-30, None, "4", np.array([1.0, 2.0])])
def test_temperatures_whose_square_is_beyond_float32_are_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` of kdtoolkit.functional must be"):
        functional.kl_divergence(np.ones((1, 2)), np.ones((1, 2)), temperature)


@pytest.mark.core
def test_arguments_are_checked_by_kind_and_signatures_stay():
    @expects(model="model", sizes="sizes", name="text")
    def build(model, *, sizes=(1,), name=None):
        return sizes

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert build(model, sizes=[2, 3]) == [2, 3] and build(model) == (1,)
    for wrong, match in (
        (lambda: build(3), "`model` of .*build must be a keras.Model. Received: model=3"),
        (lambda: build(model, sizes=[0]), "`sizes` .* a list of integers >= 1"),
        (lambda: build(model, sizes="12"), "`sizes`"),
        (lambda: build(model, name=7), "`name` .* a text"),
        (lambda: build(), "missing 1 required positional argument"),
    ):
        with pytest.raises(TypeError, match=match):
            wrong()
