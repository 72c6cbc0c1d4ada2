"""Cosine annealing with restarts and warm-ups, against a float64 reference step by step."""

import math

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit.schedules import CosineRestarts
from tests.support import dense

pytestmark = pytest.mark.core


def by_hand(
    steps, maximum, length, cycles, warmup=0, minimum=0.0, cycle_factor=1.0, maximum_factor=1.0
):
    """The rates of steps 0, 1, 2, ..., by walking through the cycles."""
    rates = []
    for _ in range(cycles):
        for s in range(length):
            if s < warmup:
                rates.append(minimum + (maximum - minimum) * s / warmup)
            else:
                angle = math.pi * (s - warmup) / (length - warmup)
                rates.append(minimum + (maximum - minimum) * (1 + math.cos(angle)) / 2)
        maximum *= maximum_factor
        length = round((length - warmup) * cycle_factor) + warmup
    return np.array(rates + [minimum] * steps)[:steps]


def rates(schedule, steps):
    return keras.ops.convert_to_numpy(schedule(np.asarray(steps, "int32"))).astype("float64")


@pytest.mark.parametrize(
    "arguments",
    [
        (0.1, 10, 3),
        (0.1, 10, 3, 4, 0.01),
        (0.3, 8, 4, 2, 0.0, 2.0, 0.5),
        (0.3, 20, 4, 3, 0.001, 0.7, 0.9),
        (2.0, 9, 3, 8, 0.5, 1.5),
        (0.1, 1, 2),
        (0.1, 7, 1, 3, 0.1),
    ],
)
def test_the_rate_of_every_step_is_the_formula_s(arguments):
    steps = 120
    expected = by_hand(steps, *arguments)
    found = rates(CosineRestarts(*arguments), np.arange(steps))
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-7 * arguments[0])


def test_peaks_and_ends_of_cycles_are_exact():
    schedule = CosineRestarts(0.3, 8, 3, 2, 0.05, 2.0, 0.5)
    # Cycles of 8, 14 and 26 steps.
    peaks, ends = rates(schedule, [2, 10, 24]), rates(schedule, [0, 8, 22, 48, 49, 10**6])
    np.testing.assert_array_equal(peaks, np.float32([0.3, 0.15, 0.075]))
    np.testing.assert_array_equal(ends, np.float32([0.05] * 6))


@pytest.mark.parametrize("cycles, start", [(1, 0), (3, 2_000_000)])
def test_a_million_steps_later_the_rate_is_still_right(cycles, start):
    schedule = CosineRestarts(0.1, 1_000_000, cycles, 5000, 0.001)
    steps = np.random.default_rng(0).integers(0, 1_000_000, 300)
    expected = by_hand(1_000_000, 0.1, 1_000_000, 1, 5000, 0.001)[steps]
    error = np.abs(rates(schedule, start + steps) - expected).max()
    assert error < 5e-7 * 0.1


def test_one_cycle_is_the_cosine_decay_of_keras():
    theirs = keras.optimizers.schedules.CosineDecay(
        0.01, 9 - 4, alpha=0.01 / 0.2, warmup_target=0.2, warmup_steps=4
    )
    ours = rates(CosineRestarts(0.2, 9, 1, 4, 0.01), np.arange(12))
    found = [float(keras.ops.convert_to_numpy(theirs(step))) for step in range(12)]
    np.testing.assert_allclose(found, ours, rtol=1e-6)


def test_an_optimizer_keeps_its_schedule_when_it_is_saved():
    schedule = CosineRestarts(0.2, 9, 3, 2, 0.01, 1.5, 0.5, name="cycles")
    config = keras.optimizers.serialize(keras.optimizers.SGD(schedule))
    again = keras.optimizers.deserialize(config)
    # An optimizer shows the rate of its step; its config has the schedule.
    kept = keras.optimizers.schedules.deserialize(again.get_config()["learning_rate"])
    assert type(kept) is CosineRestarts and kept.get_config() == schedule.get_config()
    np.testing.assert_array_equal(rates(kept, range(40)), rates(schedule, range(40)))


def test_the_compiled_step_reads_it_without_tracing_again():
    traces = []

    def output(y, prediction):
        traces.append(1)
        return prediction[:, 0]

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.zeros((1, 1))])
    arguments = (0.1, 4, 3, 2, 0.01, 2.0, 0.5)
    model.compile(keras.optimizers.SGD(CosineRestarts(*arguments)), output)
    x = np.ones((8, 1), "float32")
    model.fit(x, x, batch_size=4, verbose=0)
    first = len(traces)
    model.fit(x, x, batch_size=4, epochs=11, initial_epoch=1, verbose=0)
    # The gradient is 1, so the weight is minus the sum of the rates of 22 steps.
    expected = -by_hand(22, *arguments).sum()
    np.testing.assert_allclose(model.get_weights()[0], [[expected]], rtol=1e-5)
    assert len(traces) == first


def test_as_a_schedule_of_a_weight_it_counts_in_epochs():
    edge = kd.Transfer(kd.losses.SoftTargets())
    callback = kd.callbacks.Schedule(edge, "weight", CosineRestarts(1.0, 4, 2, 2))
    callback.set_model(dense(4))
    found = []
    for epoch in range(6):
        callback.on_epoch_begin(epoch)
        found.append(kd.scalars.number(edge.weight))
    np.testing.assert_allclose(found, [0, 0.5, 1, 0.5, 0, 0.5], atol=1e-6)


GIVEN = {"maximum": 0.1, "cycle_steps": 10, "cycles": 3}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"maximum": 0}, "`maximum` of CosineRestarts.*> 0.*maximum=0"),
        ({"maximum": "0.1"}, "maximum='0.1'"),
        ({"cycle_steps": 0}, "`cycle_steps`.*>= 1"),
        ({"cycle_steps": 10.0}, "cycle_steps=10.0"),
        ({"cycles": 0}, "`cycles`.*>= 1"),
        ({"warmup_steps": -1}, "`warmup_steps`.*>= 0"),
        ({"warmup_steps": 10}, "longer than its warm-up of 10.*10 steps in cycle 1"),
        (
            {"warmup_steps": 5, "cycle_factor": 0.2, "cycles": 9},
            "5 steps in cycle 3.*`cycle_factor`",
        ),
        ({"cycle_factor": 0}, "`cycle_factor`.*> 0"),
        ({"cycle_factor": 1e9, "cycles": 5}, "less than 2.31.*by the end of cycle 2"),
        ({"maximum_factor": 1.1}, "`maximum_factor`.*<= 1"),
        ({"maximum_factor": 0}, "`maximum_factor`.*> 0"),
        ({"minimum": -0.1}, "`minimum`.*>= 0"),
        ({"minimum": 0.2}, "at least the minimum, 0.2. Received: 0.1 in the last cycle"),
        ({"minimum": 0.03, "maximum_factor": 0.5}, "Received: 0.025.*fewer `cycles`"),
    ],
)
def test_impossible_cycles_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        CosineRestarts(**{**GIVEN, **changed})
