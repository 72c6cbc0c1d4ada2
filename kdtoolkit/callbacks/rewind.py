"""Keeps the weights of the best epoch, and goes back to them where training doesn't improve."""

import keras
import numpy as np

from kdtoolkit import scalars
from kdtoolkit.callbacks import state
from kdtoolkit.callbacks.monitor import Monitor
from kdtoolkit.distiller import Distiller

MOMENTUM = ("zero", "keep")
STOP_COUNTS = ("all", "at_min_lr")
NOT_SLOTS = ("iteration", "learning_rate")


class BestWeights(Monitor, keras.callbacks.Callback):
    """Keeps the weights of the epoch with the best score, and puts them back at the end.

    The copy is in the computer's memory, not on the device. Of a `kd.Distiller` it holds
    `learned_variables`: the students and the losses' own layers, with their BatchNorm statistics,
    and not what sources remember. Of another model it holds `model.weights`. Each `fit` starts
    anew, unless `kd.callbacks.Resume` goes on.

    Attributes:
        best_score: float, or None before any epoch had a score.
        best_epoch: int, from 0, or None.

    Args:
        monitor: str, key of the logs. Defaults to `"val_accuracy"`.
        mode: `"min"`, `"max"`, or `"auto"` (default): the smaller the better if the name ends in
            "loss" or "error", else the larger. Only a strictly better score is an improvement.
        restore: bool. True (default): the model has the best weights after `fit`. The last ones
            are in `last_weights()`.

    Raises:
        ValueError: another mode; at the end of an epoch, if the logs don't have the monitored
            value.

    Example:
        >>> import kdtoolkit as kd
        >>> best = kd.callbacks.BestWeights("val_loss")
    """

    def __init__(self, monitor="val_accuracy", mode="auto", restore=True):
        super().__init__(monitor, mode)
        self.restore = restore
        self._reset()

    def _reset(self):
        self.best_score = None
        self.best_epoch = None
        self._best = None
        self._last = None

    def best_weights(self):
        """The weights of the best epoch, a list of arrays, for `put`.

        Raises:
            ValueError: no epoch had a score.
        """
        return _known(
            self._best,
            "No epoch had a score, so there are no best weights. Expected a number as "
            f"'{self.monitor}' in the logs of some epoch. Received: NaN in all of them, or no "
            "`fit`. If it was NaN, lower the learning rate, or keep the last weights instead",
        )

    def last_weights(self):
        """The weights at the end of the last epoch, a list of arrays, for `put`.

        Raises:
            ValueError: `fit` hasn't ended.
        """
        return _known(self._last, "There are no last weights before the end of `fit`")

    def put(self, weights):
        """Gives the model the weights that `best_weights` or `last_weights` returned."""
        for variable, value in zip(self._variables(), weights, strict=True):
            variable.assign(value)

    def _variables(self):
        model = self.model
        return model.learned_variables if isinstance(model, Distiller) else model.weights

    def _weights(self):
        # Copies, because JAX reuses the memory of its arrays.
        return [np.array(keras.ops.convert_to_numpy(v)) for v in self._variables()]

    def _improved(self, epoch, logs):
        """Whether this epoch is the best so far; if so, its weights are kept."""
        score = self.score_of(logs)
        if not self.better(score, self.best_score):
            return False
        self.best_score, self.best_epoch, self._best = score, epoch, self._weights()
        return True

    def on_train_begin(self, logs=None):
        self._reset()

    def on_epoch_begin(self, epoch, logs=None):
        self._last = None

    def on_epoch_end(self, epoch, logs=None):
        self._improved(epoch, logs)

    def on_train_end(self, logs=None):
        if self._last is None:
            self._last = self._weights()
        if self.restore and self._best is not None:
            self.put(self._best)

    def get_state(self):
        """What `kd.callbacks.Resume` saves: a dict of arrays."""
        numbers = {"score": self.best_score, "epoch": self.best_epoch}
        # What a rewind in the last epoch replaced: a run that ends there may still be resumed.
        last = {f"last_{i:05d}": array for i, array in enumerate(self._last or [])}
        return {**state.pack(numbers, self._best), **last}

    def set_state(self, saved):
        """Goes on from what `get_state` returned."""
        self._reset()
        last = [saved[name] for name in sorted(saved) if name.startswith("last_")]
        self._last = last or None
        numbers, self._best = state.unpack(saved)
        if "score" in numbers:
            self.best_score, self.best_epoch = float(numbers["score"]), int(numbers["epoch"])


class RewindOnPlateau(BestWeights):
    """Goes back to the best weights and lowers the learning rate where nothing improves.

    At the end of each epoch, with "better" always strict:

        the score is the best so far         -> keep the weights; both counters start again at 0
        `patience` epochs without a better   -> the best weights return,
        one, since the best or last rewind      rate <- max(rate * factor, min_lr)
        `stop_patience` epochs without a     -> training stops
        better one, since the best

    At the lowest rate the weights still return. With the defaults, a plateau that never ends is one
    rewind after 20 epochs and the end after 40, without a second rewind. The logs get
    `learning_rate`, the rate of this epoch (`learning_rate_<optimizer>` for several), and
    `rewound`, 1.0 or 0.0.

    All optimizers of a distiller with several are treated alike.

    Args:
        monitor, mode, restore: see `BestWeights`.
        patience: int >= 1, epochs without improvement before a rewind. Defaults to 20.
        factor: number in (0, 1], defaults to 0.1.
        min_lr: number >= 0, the lowest learning rate. Defaults to 0.001.
        stop_patience: int >= 1, epochs without improvement before training stops, or None for
            never. Defaults to 40.
        momentum: `"zero"` (default): a rewind sets what the optimizer remembers of old gradients
            to 0; its step count stays. Use `"keep"` for optimizers whose state doesn't start at 0
            (Adagrad, Ftrl, Nadam, ScheduleFreeAdamW). Adam corrects its averages by the step count,
            so with `"zero"` its first steps after a rewind are up to about 3 times as long.
        stop_counts: `"all"` (default): all epochs count for `stop_patience`. `"at_min_lr"`: only
            epochs at the rate `min_lr`, so that every rate has its turn.

    Raises:
        ValueError: a number out of range or an unknown option; at the start of `fit`, a learning
            rate that can't be set or is below `min_lr`, or an optimizer with `use_ema` whose
            averages would be zeroed; at the end of an epoch, if the logs don't have the monitored
            value.

    Example:
        >>> import kdtoolkit as kd
        >>> rewind = kd.callbacks.RewindOnPlateau(patience=5, stop_patience=10)

    Source: Takagi and Hattori, "Reducing Training Time for Distillation of DNN by Self
    Distillation" (81st National Convention of IPSJ, 2019, 4U-02), section 5.1: after 20 epochs
    without improvement the weights are reset to the best and the rate is multiplied by 0.1, from
    0.1 to 0.001; after 40 the next generation begins. The paper says neither what happens to the
    momentum nor from which epoch the 40 are counted; `momentum` and `stop_counts` choose.
    """

    def __init__(
        self,
        monitor="val_accuracy",
        mode="auto",
        patience=20,
        factor=0.1,
        min_lr=0.001,
        stop_patience=40,
        momentum="zero",
        stop_counts="all",
        restore=True,
    ):
        super().__init__(monitor, mode, restore)
        owner = type(self).__name__
        self.patience = scalars.whole(patience, "patience", owner)
        self.factor = scalars.checked(factor, "factor", owner, above=0.0, maximum=1.0)
        self.min_lr = scalars.checked(min_lr, "min_lr", owner, minimum=0.0)
        self.stop_patience = stop_patience
        if stop_patience is not None:
            self.stop_patience = scalars.whole(stop_patience, "stop_patience", owner)
        self.momentum = _one_of(MOMENTUM, momentum, "momentum")
        self.stop_counts = _one_of(STOP_COUNTS, stop_counts, "stop_counts")

    def _reset(self):
        super()._reset()
        self._since_rewind = 0
        self._since_best = 0

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        for optimizer in optimizers_of(self.model.optimizer):
            self._check(optimizer)

    def on_epoch_end(self, epoch, logs=None):
        optimizers = optimizers_of(self.model.optimizer)
        self._log_rates(optimizers, logs)
        logs["rewound"] = 0.0
        if self._improved(epoch, logs):
            self._since_rewind = self._since_best = 0
            return
        self._since_rewind += 1
        self._since_best += self.stop_counts == "all" or self._at_min_lr(optimizers)
        if self.stop_patience is not None and self._since_best >= self.stop_patience:
            self.model.stop_training = True
        elif self._since_rewind == self.patience:
            self._rewind(optimizers, epoch)
            self._since_rewind = 0
            logs["rewound"] = 1.0

    def _rewind(self, optimizers, epoch):
        if epoch + 1 == self.params["epochs"]:
            self._last = self._weights()
        # Without any score, such as NaN from the start, there is nothing to go back to.
        if self._best is not None:
            self.put(self._best)
        for optimizer in optimizers:
            rate = scalars.number(optimizer.learning_rate)
            optimizer.learning_rate = max(rate * self.factor, self.min_lr)
            if self.momentum == "zero":
                _zero_slots(optimizer)

    def _at_min_lr(self, optimizers):
        return all(_rate(optimizer) <= np.float32(self.min_lr) for optimizer in optimizers)

    def _log_rates(self, optimizers, logs):
        # The names are those of `keras.callbacks.ReduceLROnPlateau`.
        for optimizer in optimizers:
            suffix = f"_{optimizer.name}" if len(optimizers) > 1 else ""
            logs[f"learning_rate{suffix}"] = scalars.number(optimizer.learning_rate)

    def _check(self, optimizer):
        rate = optimizer.learning_rate
        if not isinstance(rate, keras.Variable):
            raise ValueError(
                "RewindOnPlateau sets the learning rate by itself. Expected an optimizer with a "
                "number, such as `keras.optimizers.SGD(learning_rate=0.1)`. Received: "
                f"{type(optimizer).__name__} with a schedule or function"
            )
        if _rate(optimizer) < np.float32(self.min_lr):
            raise ValueError(
                f"`min_lr` must not be above the learning rate {scalars.number(rate):g} of "
                f"{type(optimizer).__name__}, else a rewind would raise it. Received: "
                f"min_lr={self.min_lr:g}. Pass a smaller `min_lr` or start with a larger rate"
            )
        if optimizer.use_ema and self.momentum == "zero":
            raise ValueError(
                "With `use_ema=True`, the optimizer's state holds averaged weights, which "
                "momentum='zero' would set to 0. Expected momentum='keep' or an optimizer without "
                "`use_ema`. Received: momentum='zero'"
            )

    def get_state(self):
        """What `kd.callbacks.Resume` saves: a dict of arrays."""
        counters = {"since_rewind": self._since_rewind, "since_best": self._since_best}
        return {**super().get_state(), **counters}

    def set_state(self, saved):
        """Goes on from what `get_state` returned."""
        saved = dict(saved)
        counters = int(saved.pop("since_rewind")), int(saved.pop("since_best"))
        super().set_state(saved)
        self._since_rewind, self._since_best = counters


def optimizers_of(optimizer):
    """The optimizers that update weights, out of what wraps them."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return [optimizer.inner_optimizer]
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return list(optimizer.optimizers)
    return [optimizer]


def _rate(optimizer):
    """The learning rate as float32, for comparisons: its variable rounds what it is given."""
    return np.float32(scalars.number(optimizer.learning_rate))


def _zero_slots(optimizer):
    for variable in optimizer.variables:
        if variable.name not in NOT_SLOTS:
            variable.assign(keras.ops.zeros(variable.shape, variable.dtype))


def _known(weights, otherwise):
    if weights is None:
        raise ValueError(otherwise)
    return weights


def _one_of(options, value, name):
    if value not in options:
        raise ValueError(f"`{name}` must be one of {options}. Received: {name}={value!r}")
    return value
