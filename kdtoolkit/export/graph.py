"""What goes in and out of a Keras model, by name."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from kdtoolkit.export.examples import TensorInfo
from kdtoolkit.taps import walk


@dataclass(frozen=True)
class ModelGraph:
    """A model that is called with a dict of tensors and returns a dict of tensors.

    Attributes:
        model: The Keras model, of Keras 3 or tf_keras.
        inputs: One `TensorInfo` per input, in the order in which Keras flattens them.
        structure: The nesting in which the model takes its inputs.
        output_names: Names of the outputs. Empty for a subclassed model, which has no graph.
        by_name: `True` if the model itself takes a dict.
    """

    model: Any
    inputs: tuple[TensorInfo, ...]
    structure: Any
    output_names: tuple[str, ...]
    by_name: bool

    def __call__(self, tensors):
        """Run the model in inference mode.

        Args:
            tensors: Dict from input name to tensor `[batch, ...]`.

        Returns:
            Dict from output name to tensor.
        """
        flat = [tensors[info.name] for info in self.inputs]
        outputs = self.model(keras.tree.pack_sequence_as(self.structure, flat), training=False)
        leaves = keras.tree.flatten_with_path(outputs)
        names = self.output_names
        if not names:
            names = ["output"] if len(leaves) == 1 else [f"output_{i}" for i in range(len(leaves))]
        names = _unique(_names([path for path, _ in leaves], names))
        return dict(zip(names, [leaf for _, leaf in leaves], strict=True))

    def predict(self, examples):
        """Run the model on NumPy arrays.

        Args:
            examples: Dict from input name to array `[batch, ...]`.

        Returns:
            Dict from output name to array.
        """
        outputs = self({name: keras.ops.convert_to_tensor(a) for name, a in examples.items()})
        return {name: keras.ops.convert_to_numpy(tensor) for name, tensor in outputs.items()}

    def fixed(self, batch_size, examples):
        """Return the same graph with every shape and dtype known.

        Args:
            batch_size: Size of the batch axis.
            examples: Dict from input name to array, or `None`. It decides sizes and dtypes
                that the model leaves open.

        Returns:
            A `ModelGraph`.

        Raises:
            ValueError: If a size stays unknown, or the model has another fixed batch size.
        """
        examples = examples or {}
        inputs = tuple(_fixed(i, batch_size, examples.get(i.name)) for i in self.inputs)
        return replace(self, inputs=inputs)


def is_tf_keras(model):
    """Tell whether a model was built by tf_keras, the TensorFlow part of Keras 2.

    Such models come from tensorflow-model-optimization. They are recognised by the module of
    their classes, so that tf_keras need not be installed.

    Args:
        model: Any object.

    Returns:
        `True` for an instance of `tf_keras.Model`.
    """
    return hasattr(model, "layers") and any(
        cls.__module__.partition(".")[0] == "tf_keras" for cls in type(model).__mro__
    )


def describe(model):
    """Find the inputs and outputs of a model.

    Args:
        model: A built `keras.Model`: functional, sequential or subclassed. A subclassed model
            must have been called once, and take all inputs as its first argument. A tf_keras
            model must be functional or sequential.

    Returns:
        A `ModelGraph`. Sizes that the model leaves open are `None`.

    Raises:
        ValueError: If the inputs are unknown or of a dtype that LiteRT cannot take.
    """
    structure, output_names = _structure(model)
    leaves = keras.tree.flatten_with_path(structure)
    if not leaves:
        raise ValueError(
            f"The inputs of model '{model.name}' are unknown. Expected a model that was called "
            "once, or of tf_keras a functional or sequential one. Call it on one batch of data "
            "before the export; of a distiller, export `distiller.student`."
        )
    names = ["inputs"] if len(leaves) == 1 else [f"input_{i}" for i in range(len(leaves))]
    names = [leaf.name or name for (_, leaf), name in zip(leaves, names, strict=True)]
    names = _unique(_names([path for path, _ in leaves], names))
    inputs = tuple(
        TensorInfo(name, tuple(leaf.shape), _dtype(leaf.dtype))
        for name, (_, leaf) in zip(names, leaves, strict=True)
    )
    strings = [info.name for info in inputs if info.dtype == "string"]
    if strings:
        raise ValueError(
            f"The inputs {strings} take strings, which the export does not support. Move the "
            "text preprocessing out of the model and export the part that takes numbers."
        )
    return ModelGraph(model, inputs, structure, output_names, isinstance(structure, dict))


def _structure(model):
    """Return the nested inputs (leaves with name, shape and dtype) and the output names."""
    if is_tf_keras(model):
        return (model.input, tuple(model.output_names)) if model.inputs else ([], ())
    try:
        inputs = model.inputs
    except AttributeError:  # Only models with a symbolic graph have inputs.
        return _recorded(model.get_build_config()), ()
    if isinstance(model, keras.Sequential):
        return inputs[0], (model.layers[-1].name,)
    return model.input, tuple(model.output_names)


def _dtype(dtype):
    # TensorFlow's dtypes, of tf_keras models, are objects.
    return getattr(dtype, "name", dtype)


def _recorded(build_config):
    """Return the input structure that a subclassed model recorded at its first call."""
    shapes = (build_config or {}).get("input_shape")
    return _as_leaves(shapes) if shapes else []


def _as_leaves(shapes):
    if isinstance(shapes, dict):
        return {key: _as_leaves(value) for key, value in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        # The batch size of the first call says nothing about the next.
        return TensorInfo("", (None, *shapes[1:]), None)
    return [_as_leaves(value) for value in shapes]


def _names(paths, fallbacks):
    """Name each leaf by the dict keys on its path, else by its fallback."""
    keys = ["_".join(key for key in path if isinstance(key, str)) for path in paths]
    return [key or fallback for key, fallback in zip(keys, fallbacks, strict=True)]


def _unique(names):
    """Number the names that occur again, so that none hides another in a dict."""
    result = []
    for name in names:
        numbered = (f"{name}_{number}" for number in itertools.count(1))
        candidates = itertools.chain([name], numbered)
        result.append(
            next(c for c in candidates if c not in result and (c == name or c not in names))
        )
    return result


def _fixed(info, batch_size, array):
    if info.shape[0] not in (None, batch_size):
        raise ValueError(
            f"Input '{info.name}' has the fixed batch size {info.shape[0]}. "
            f"Received: batch_size={batch_size}. Pass batch_size={info.shape[0]}."
        )
    shape = (batch_size, *(info.shape[1:] if array is None else array.shape[1:]))
    if None in shape:
        raise ValueError(
            f"Input '{info.name}' has sizes that the model leaves open: {info.shape}. A .tflite "
            "file is exported for one size. Pass `check_data` of that size."
        )
    dtype = info.dtype or ("float32" if array is None else np.dtype(array.dtype).name)
    return TensorInfo(info.name, shape, dtype)


def parameters_of(model):
    """Count the weights of a model, without what compression keeps beside them, such as masks."""
    beside = [v for _, layer in walk(model) for v in getattr(layer, "bookkeeping", ())]
    return model.count_params() - sum(math.prod(variable.shape) for variable in beside)
