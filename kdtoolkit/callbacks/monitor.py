"""The monitored value: where it is in the logs, and when it is better."""

import numpy as np

from kdtoolkit.registry import expects

MODES = ("auto", "min", "max")


class Monitor:
    """What a callback gets that compares one value of the logs from epoch to epoch.

    A mixin, named before the callback's other base class. A value is better only if it is strictly
    better: neither a tie nor NaN is an improvement.

    Args:
        monitor: str, key of the logs, such as `"val_accuracy"`.
        mode: `"min"`, `"max"`, or `"auto"`: the smaller the better if the name ends in "loss" or
            "error", else the larger.

    Raises:
        ValueError: another mode.
    """

    @expects(monitor="text", mode="text")
    def __init__(self, monitor, mode):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {MODES}. Received: mode={mode!r}")
        self.monitor = monitor
        if mode == "auto":
            mode = "min" if monitor.endswith(("loss", "error")) else "max"
        self.mode = mode

    def score_of(self, logs):
        """The monitored value of an epoch, a float.

        Raises:
            ValueError: it isn't in the logs.
        """
        if self.monitor not in (logs or {}):
            raise ValueError(
                f"`monitor` must be in the logs of every epoch. Expected one of "
                f"{sorted(logs or {})}. Received: monitor={self.monitor!r}. Names with 'val_' need "
                "`fit(validation_data=...)` with `validation_freq=1`; the rest of the name is a "
                "metric of `compile(metrics=[...])`"
            )
        return float(logs[self.monitor])

    def better(self, new, old):
        """Whether `new` is strictly better than `old`, a number or None for "nothing yet".

        In float32, in which Keras computes and variables store what is compared here.
        """
        new = np.float32(new)
        if old is None:
            return not np.isnan(new)
        old = np.float32(old)
        return bool(new < old if self.mode == "min" else new > old)
