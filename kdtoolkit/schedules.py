"""Learning rates that Keras doesn't have."""

import math

import keras
import numpy as np
from keras import ops

from kdtoolkit.registry import public
from kdtoolkit.scalars import checked, whole

# Steps are counted in 32 bits on JAX.
_LAST_STEP = 2**31 - 1


@public
class CosineRestarts(keras.optimizers.schedules.LearningRateSchedule):
    """Cosine annealing with restarts, and a linear warm-up at the start of every cycle.

    In a cycle of S steps, w of them warm-up, at its step s:

        s < w:   rate = minimum + (maximum - minimum) * s / w
        s >= w:  rate = minimum + (maximum - minimum) * (1 + cos(pi * (s - w) / (S - w))) / 2

        next cycle:  maximum <- maximum * maximum_factor,   S <- (S - w) * cycle_factor + w

    The first step of a cycle has the minimum, step w the maximum, and after the last cycle the rate
    stays at the minimum. Cycles are whole numbers of steps: S is rounded.

    For one cycle you need no class of ours: it is Keras's
    `CosineDecay(minimum, S - w, alpha=minimum / maximum, warmup_target=maximum, warmup_steps=w)`.
    Keras's `CosineDecayRestarts` restarts without a warm-up.

    It counts steps, as optimizers do. In `kd.callbacks.Schedule` it counts epochs, so give it
    lengths in epochs there. The rate is float32, and differs from the exact one by less than 5e-7
    times the maximum, after a million steps as after ten.

    Source: Loshchilov and Hutter, 2017, arXiv:1608.03983, for the restarts; with a warm-up in each
    cycle it is the scheme of the PyTorch package `cosine_annealing_warmup`, which has no last
    cycle, and cuts S down to a whole number instead of rounding.

    Args:
        maximum: > 0, the highest rate of the first cycle.
        cycle_steps: int >= 1, S of the first cycle, warm-up included.
        cycles: int >= 1, how many there are.
        warmup_steps: int from 0 to `cycle_steps - 1`, w of every cycle. Defaults to 0: cycles start
            at the maximum.
        minimum: 0 or more, and not above any cycle's maximum. Defaults to 0.
        cycle_factor: > 0, what a cycle behind its warm-up is longer than the one before. Defaults
            to 1; 2 doubles it.
        maximum_factor: > 0 and at most 1. Defaults to 1, the same maximum in all cycles.
        name: str.

    Raises:
        ValueError: an argument out of range, a cycle that is nothing but warm-up, or cycles of
            2^31 steps and more.

    Example:
        >>> import kdtoolkit as kd
        >>> rate = kd.schedules.CosineRestarts(0.1, cycle_steps=6, cycles=2, warmup_steps=2)
        >>> [round(float(rate(step)), 3) for step in range(13)]
        [0.0, 0.05, 0.1, 0.085, 0.05, 0.015, 0.0, 0.05, 0.1, 0.085, 0.05, 0.015, 0.0]
    """

    def __init__(
        self,
        maximum,
        cycle_steps,
        cycles,
        warmup_steps=0,
        minimum=0.0,
        cycle_factor=1.0,
        maximum_factor=1.0,
        name="CosineRestarts",
    ):
        super().__init__()
        owner = type(self).__name__
        self.maximum = checked(maximum, "maximum", owner, above=0.0)
        self.cycle_steps = whole(cycle_steps, "cycle_steps", owner)
        self.cycles = whole(cycles, "cycles", owner)
        self.warmup_steps = whole(warmup_steps, "warmup_steps", owner, minimum=0)
        self.minimum = checked(minimum, "minimum", owner, minimum=0.0)
        self.cycle_factor = checked(cycle_factor, "cycle_factor", owner, above=0.0)
        self.maximum_factor = checked(
            maximum_factor, "maximum_factor", owner, above=0.0, maximum=1.0
        )
        self.name = name
        self._starts, self._lengths = self._cycles()
        self._maxima = self.maximum * self.maximum_factor ** np.arange(self.cycles)
        if self._maxima[-1] < self.minimum:
            raise ValueError(
                f"The maximum of each cycle must be at least the minimum, {self.minimum:g}. "
                f"Received: {self._maxima[-1]:g} in the last cycle. Use a larger `maximum` or "
                "`maximum_factor`, or fewer `cycles`"
            )

    def _cycles(self):
        """First step and length of every cycle."""
        starts, lengths, start, length = [], [], 0, self.cycle_steps
        for cycle in range(1, self.cycles + 1):
            if length <= self.warmup_steps:
                raise ValueError(
                    f"Each cycle must be longer than its warm-up of {self.warmup_steps} steps. "
                    f"Received: {length} steps in cycle {cycle}. Use a larger `cycle_steps` or "
                    "`cycle_factor`, or a smaller `warmup_steps`"
                )
            starts.append(start)
            lengths.append(length)
            start += length
            if start > _LAST_STEP:
                raise ValueError(
                    "All cycles together must have less than 2^31 steps. Received: "
                    f"{start} by the end of cycle {cycle}. Use fewer `cycles` or a smaller "
                    "`cycle_factor`"
                )
            length = round((length - self.warmup_steps) * self.cycle_factor) + self.warmup_steps
        return starts, lengths

    def __call__(self, step):
        step = ops.convert_to_tensor(step)
        starts = ops.convert_to_tensor(self._starts, step.dtype)
        begun = ops.cast(ops.expand_dims(step, -1) >= starts, "int32")
        cycle = ops.sum(begun, axis=-1) - 1

        def of_this_cycle(values):
            return ops.take(ops.convert_to_tensor(values, "float32"), cycle)

        position = ops.cast(step - ops.take(starts, cycle), "float32")
        warmup = float(self.warmup_steps)
        falling = (position - warmup) / (of_this_cycle(self._lengths) - warmup)
        share = ops.where(
            position < warmup,
            position / max(warmup, 1.0),
            (1 + ops.cos(math.pi * ops.minimum(falling, 1.0))) / 2,
        )
        # So both ends are exact.
        return share * of_this_cycle(self._maxima) + (1 - share) * self.minimum

    def get_config(self):
        return {
            "maximum": self.maximum,
            "cycle_steps": self.cycle_steps,
            "cycles": self.cycles,
            "warmup_steps": self.warmup_steps,
            "minimum": self.minimum,
            "cycle_factor": self.cycle_factor,
            "maximum_factor": self.maximum_factor,
            "name": self.name,
        }
