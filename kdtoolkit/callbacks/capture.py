"""All that a `fit` changes, as arrays: variables, callbacks, the processes' random states."""

import itertools
import random

import keras
import numpy as np

from kdtoolkit import steps
from kdtoolkit.callbacks.state import as_array, stateful

_OF_METRIC = "a variable of a metric"


class RunState:
    """Reads the state of a run between two steps, and gives it back.

    Args:
        model: a compiled `keras.Model`.
        callbacks: list of the callbacks whose state belongs to the run, see `stateful`.
    """

    def __init__(self, model, callbacks):
        self.model = model
        self.callbacks = callbacks
        self._states = [stateful(callback) for callback in callbacks]

    def arrays(self, metrics):
        """The state as `{name: array}`.

        Args:
            metrics: bool, whether the metrics' state is part of it: in the middle of an epoch.
        """
        found = {"made_of": self.made_of(metrics)}
        for group, variables in self._variables(metrics).items():
            for index, variable in enumerate(variables):
                found.update(_of_copies(f"{group}/{index}", variable))
        for index, state in enumerate(self._states):
            saved = {n: value for n, value in state.get_state().items() if value is not None}
            found.update((f"callback/{index}/{name}", value) for name, value in saved.items())
        found.update(_random_states())
        return {name: as_array(value) for name, value in found.items()}

    def give(self, saved, metrics):
        """Give everything the state that `arrays` returned."""
        for group, variables in self._variables(metrics).items():
            for index, variable in enumerate(variables):
                name = f"{group}/{index}"
                others = below(saved, f"{name}/copy-")
                values = [saved[name], *(others[str(i + 1)] for i in range(len(others)))]
                steps.assign_copies(variable, values)
        for index, state in enumerate(self._states):
            state.set_state(below(saved, f"callback/{index}/"))
        _give_random_states(saved)

    def compare(self, saved, directory, metrics=False):
        """Refuse the state of another run.

        Args:
            saved: what `arrays` returned.
            directory: where it was, for the message.
            metrics: whether the metrics are there to be compared.

        Raises:
            ValueError: other variables, optimizer or callbacks.
        """
        parts = [part for part in saved["made_of"] if metrics or not part.startswith(_OF_METRIC)]
        pairs = itertools.zip_longest(parts, self.made_of(metrics), fillvalue="nothing")
        for before, after in pairs:
            if before != after:
                raise ValueError(
                    f"The run in '{directory}' was of another model, optimizer, metrics or list of "
                    f"callbacks. Expected {before}. Received: {after}. Use what it was started "
                    "with, or another folder"
                )

    def made_of(self, metrics):
        """What must be the same to go on: shapes of variables, optimizer and callbacks by class."""
        found = self._variables(metrics)
        parts = [f"a variable of the model of shape {tuple(v.shape)}" for v in found["model"]]
        parts.append(f"the optimizer {type(self.model.optimizer).__name__}")
        parts += [
            f"a variable of the optimizer of shape {tuple(v.shape)}" for v in found["optimizer"]
        ]
        parts += [f"the callback {type(callback).__name__}" for callback in self.callbacks]
        return parts + [f"{_OF_METRIC} of shape {tuple(v.shape)}" for v in found.get("metrics", [])]

    def _variables(self, metrics):
        model = self.model
        found = {"model": model.variables, "optimizer": model.optimizer.variables}
        return {**found, "metrics": model.metrics_variables} if metrics else found


def below(arrays, prefix):
    """The entries whose names start with `prefix`, without it."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _of_copies(name, variable):
    """A variable's value, and its replicas' own where they differ: BatchNorm's statistics do."""
    copies = (keras.ops.convert_to_numpy(copy) for copy in steps.own_copies(variable))
    first, *others = map(as_array, copies)
    if all(first.tobytes() == other.tobytes() for other in others):
        others = []
    return {name: first, **{f"{name}/copy-{i + 1}": other for i, other in enumerate(others)}}


# Python's and NumPy's own generators, which data and callbacks may draw from.


def _random_states():
    _, numbers, gauss = random.getstate()
    found = {"random/python": np.array(numbers, "uint64")}
    if gauss is not None:
        found["random/python_gauss"] = gauss
    kind, keys, position, has_gauss, cached = np.random.get_state()
    if kind == "MT19937":
        found["random/numpy"] = keys
        found["random/numpy_rest"] = np.array([position, has_gauss, cached], "float64")
    return found


def _give_random_states(saved):
    gauss = saved.get("random/python_gauss")
    numbers = tuple(int(number) for number in saved["random/python"])
    random.setstate((3, numbers, None if gauss is None else float(gauss)))
    if "random/numpy" in saved:
        position, has_gauss, cached = saved["random/numpy_rest"]
        keys = saved["random/numpy"]
        np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
