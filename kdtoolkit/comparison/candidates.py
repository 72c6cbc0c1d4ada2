"""What can be compared: Keras models and files, opened and asked for their outputs."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdtoolkit.compress import ActivationRange
from kdtoolkit.export import LiteRTModel, litert
from kdtoolkit.export.examples import collect, in_batches
from kdtoolkit.export.graph import describe, is_tf_keras
from kdtoolkit.files import check_archive
from kdtoolkit.taps import walk

_BATCH = 256
# Enough to see that the file computes what the model computes.
_CHECKED = 64
_NO_LIMIT = 2**62


@dataclass(frozen=True)
class Candidate:
    """A network with a name.

    Attributes:
        name: Its name in the table.
        source: The path given, or the name of the Keras model.
        model: The model of Keras or tf_keras, or `None` for a `.tflite` file.
        path: The `.tflite` file given, or `None`.
    """

    name: str
    source: str
    model: Any = None
    path: Path | None = None

    def outputs(self, x, output):
        """Return what the network says of the examples.

        Args:
            x: Array, or dict or list of arrays, `(examples, ...)`.
            output: Name of the output to take, or `None` for the only one.

        Returns:
            Float64 array `(examples, classes)`.

        Raises:
            ValueError: If the network doesn't take the examples, has no such output, or returns
                something else than finite numbers of that shape.
        """
        with named(self.name):
            found = self._run_file(x) if self.model is None else self._run_model(x)
            return _checked(_chosen(found, output))

    @property
    def precision(self):
        """Of the file that is made of a Keras model: the one that it was trained for."""
        rounds = [layer for _, layer in walk(self.model) if isinstance(layer, ActivationRange)]
        return "int8" if rounds else "float32"

    def shipped(self, folder, x):
        """Return the `.tflite` file that is measured, made in `folder` of a Keras model."""
        if self.path is not None:
            return self.path
        path = Path(folder, f"{len(os.listdir(folder))}.tflite")
        few = keras.tree.map_structure(lambda array: array[:_CHECKED], x)
        mode = self.precision
        with named(self.name, f"It is measured as a {mode} .tflite file, which could not be made"):
            inputs = describe(self.model).inputs
            # A model may have been built for one batch size only.
            size = inputs[0].shape[0] or 1
            mode = "int8" if mode == "int8" else None
            checked = _fitting(few, inputs)
            litert(self.model, path, quantize=mode, check_data=checked, batch_size=size)
        return path

    def _run_model(self, x):
        graph = describe(self.model)
        examples = collect(_fitting(x, graph.inputs), graph.inputs, "x", _NO_LIMIT, graph.by_name)
        size = graph.inputs[0].shape[0] or min(_BATCH, len(next(iter(examples.values()))))
        return in_batches(graph.predict, examples, size)

    def _run_file(self, x):
        runner = LiteRTModel(self.path)
        found = runner.predict(_fitting(x, runner.inputs))
        return found if isinstance(found, dict) else {runner.outputs[0].name: found}


def open_candidate(name, value):
    """Recognise a candidate.

    Args:
        name: Its name.
        value: A Keras model, or the path of a `.tflite` or `.keras` file.

    Returns:
        A `Candidate`.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If it is something else.
        ValueError: If the file has another ending or cannot be loaded.
    """
    if _is_model(value):
        return Candidate(name, f"Keras model '{value.name}'", model=value)
    if not isinstance(value, str | os.PathLike):
        raise TypeError(
            f"Candidate '{name}' must be a keras.Model or the path of a .tflite or .keras file. "
            f"Received: {type(value).__name__}."
        )
    path = Path(value)
    if path.suffix not in (".tflite", ".keras"):
        raise ValueError(
            f"Candidate '{name}' must be a path that ends in .tflite or .keras. Received: '{path}'."
        )
    if not path.is_file():
        raise FileNotFoundError(f"Candidate '{name}': there is no file '{path}'. Check the path.")
    if path.suffix == ".tflite":
        return Candidate(name, str(path), path=path)
    return Candidate(name, str(path), model=load_model(path, f"Candidate '{name}': "))


def load_model(path, prefix=""):
    """Load a `.keras` file in Keras's safe mode.

    Args:
        path: The file.
        prefix: Put in front of the error message.

    Returns:
        The `keras.Model`.

    Raises:
        ValueError: If it is damaged or cannot be loaded.
    """
    try:
        check_archive(path)
        return keras.saving.load_model(path, compile=False)
    # Layers of other people are rebuilt here, and may raise anything.
    except Exception as error:
        raise ValueError(
            f"{prefix}'{path}' could not be loaded ({type(error).__name__}: {_short(error)}). "
            "Expected a file that model.save wrote. If it holds custom layers, import the module "
            "that registers them and pass the loaded model."
        ) from error


@contextlib.contextmanager
def named(name, what=None):
    """Put the name of the candidate in front of what goes wrong inside the block."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        middle = f"{what}: " if what else ""
        raise ValueError(f"Candidate '{name}': {middle}{error}") from error


def _is_model(value):
    return isinstance(value, keras.Model) or is_tf_keras(value)


def _short(error):
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."


def _fitting(x, inputs):
    """A single input may carry any name: it cannot be mistaken for another."""
    leaves = keras.tree.flatten(x)
    return leaves[0] if len(leaves) == len(inputs) == 1 else x


def _chosen(outputs, name):
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    if name not in outputs:
        raise ValueError(
            f"`output` must name one of its outputs {list(outputs)}. Received: output={name!r}."
        )
    return outputs[name]


def _checked(outputs):
    outputs = np.asarray(outputs).astype("float64")
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(
            "It must return (examples, classes), with 2 or more classes. "
            f"Received: shape {outputs.shape}."
        )
    wrong = int((~np.isfinite(outputs)).any(axis=1).sum())
    if wrong:
        raise ValueError(
            f"It must return finite numbers. Received: NaN or infinity for {wrong} of "
            f"{len(outputs)} examples. Check the weights, or leave it out."
        )
    return outputs
