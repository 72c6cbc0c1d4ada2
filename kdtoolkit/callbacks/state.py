"""What callbacks know, as arrays: the protocol of `Resume` and its adapters to Keras's own.

A callback that knows something from epoch to epoch has

- `get_state()`: returns a dict from names to arrays or numbers, None left out;
- `set_state(saved)`: takes such a dict of NumPy arrays and goes on from there.
"""

import warnings

import keras
import numpy as np

#: What Keras's own callbacks count, by public attributes.
KERAS_COUNTERS = {
    keras.callbacks.EarlyStopping: ("best", "best_epoch", "wait", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best",),
}


def pack(numbers, weights):
    """One dict of numbers, without those that are None, and a list of arrays, or None.

    `unpack` returns both.
    """
    packed = {name: value for name, value in numbers.items() if value is not None}
    packed.update((f"weights_{i:05d}", array) for i, array in enumerate(weights or []))
    return packed


def unpack(packed):
    """The dict of numbers and the list of arrays, or None, that `pack` was given."""
    weights = [packed[name] for name in sorted(packed) if name.startswith("weights_")]
    numbers = {name: v for name, v in packed.items() if not name.startswith("weights_")}
    return numbers, weights or None


class KerasState:
    """Gives one of Keras's own callbacks `get_state` and `set_state`.

    Args:
        callback: one of `KERAS_COUNTERS`.
        counters: names of its attributes.
    """

    def __init__(self, callback, counters):
        self.callback = callback
        self.counters = counters
        self._keeps_weights = isinstance(callback, keras.callbacks.EarlyStopping)

    def get_state(self):
        weights = self.callback.best_weights if self._keeps_weights else None
        return pack({name: getattr(self.callback, name) for name in self.counters}, weights)

    def set_state(self, saved):
        numbers, weights = unpack(saved)
        for name in self.counters:
            value = numbers.get(name)
            setattr(self.callback, name, None if value is None else value.item())
        if self._keeps_weights:
            self.callback.best_weights = weights


def stateful(callback):
    """Return an object with `get_state` and `set_state` for a callback.

    Raises:
        TypeError: it has no such methods.
    """
    for cls, counters in KERAS_COUNTERS.items():
        # Not for subclasses: they may well know more than Keras's own.
        if type(callback) is cls:
            return KerasState(callback, counters)
    methods = [getattr(callback, name, None) for name in ("get_state", "set_state")]
    if not all(map(callable, methods)):
        raise TypeError(
            "`callbacks` of Resume must have `get_state() -> dict of arrays` and "
            "`set_state(dict)`, or be Keras's EarlyStopping, ReduceLROnPlateau or "
            f"ModelCheckpoint. Received: {type(callback).__name__}. Write the two methods, or "
            "leave it out if it knows nothing from epoch to epoch"
        )
    return callback


def with_state(callbacks, warn=True):
    """Those of a list of callbacks that know something from epoch to epoch.

    Args:
        callbacks: list of callbacks.
        warn: bool, whether to warn of one that seems to know something that nobody can read.
    """
    found = []
    for callback in callbacks:
        try:
            stateful(callback)
            found.append(callback)
        except TypeError:
            if warn and _knows_something(callback):
                warnings.warn(
                    f"{type(callback).__name__} starts anew when this run goes on: it has neither "
                    "`get_state() -> dict of arrays` nor `set_state(dict)`. Write them if it knows "
                    "something from epoch to epoch",
                    stacklevel=2,
                )
    return found


def _knows_something(callback):
    """Whether a callback of the user's has attributes of its own."""
    own = vars(callback).keys() - vars(keras.callbacks.Callback()).keys()
    return bool(own) and type(callback).__module__.split(".")[0] not in ("keras", "kdtoolkit")


def as_array(value):
    """An array that NumPy can write without pickle.

    Raises:
        TypeError: neither numbers nor text.
    """
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise TypeError(f"The state of a callback must be arrays and numbers. Received: {value!r}")
    # bfloat16 isn't a type of NumPy's own; float32 holds its values exactly.
    return array.astype("float32") if array.dtype.kind == "V" else array
