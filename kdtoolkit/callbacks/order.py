"""Training data in an order that a later process can take up again."""

import math

import keras
import numpy as np

from kdtoolkit.data.epochs import repeats
from kdtoolkit.data.keys import is_arrays
from kdtoolkit.data.pipeline import ArrayPipeline


def in_order(given, seed):
    """The arguments of `fit`, with an order of the examples that depends on the epoch alone.

    Args:
        given: dict of the arguments of `fit`.
        seed: int >= 0, for arrays, which are shuffled here and not by Keras.

    Returns:
        `(given, data)`: the arguments, and the training data if their order is known, else None.
    """
    if given.get("steps_per_epoch") is not None:
        return given, None
    x, shuffle = given["x"], given.get("shuffle", True)
    if repeats(x):
        return {**given, "shuffle": False}, x
    if is_arrays(x) and shuffle in (True, False):
        return _shuffled(given, seed) if shuffle else (given, x)
    return given, None


def _shuffled(given, seed):
    """Arrays in a pipeline that shuffles them, and everything else that Keras does with arrays."""
    arrays = (given["x"], given.get("y"), given.get("sample_weight"))
    arrays = keras.tree.map_structure(_as_keras_would, arrays)
    given = {**given, "y": None, "sample_weight": None, "shuffle": False}
    share = given.pop("validation_split", None)
    if share and given.get("validation_data") is None:
        arrays, given["validation_data"] = _split(arrays, share)
    size = given.get("batch_size") or 32
    x, y, sample_weight = arrays
    data = ArrayPipeline(x, y, batch_size=size, sample_weight=sample_weight, seed=seed)
    size = given.get("validation_batch_size") or size
    return {**given, "x": data, "batch_size": None, "validation_batch_size": size}, data


def _as_keras_would(array):
    if array is None:
        return None
    array = keras.ops.convert_to_numpy(array)
    is_float = np.issubdtype(array.dtype, np.floating)
    return array.astype(keras.config.floatx(), copy=False) if is_float else array


def _split(arrays, share):
    """The first and the last part, as Keras's `validation_split` does it."""
    examples = len(keras.tree.flatten(arrays)[0])
    first = math.floor(examples * (1.0 - share))
    if not 0 < first < examples:
        raise ValueError(
            f"`validation_split` must leave examples on both sides. Expected a number in (0, 1) "
            f"for {examples} examples. Received: validation_split={share}"
        )
    parts = (slice(None, first), slice(first, None))
    return tuple(
        keras.tree.map_structure(lambda a, part=part: None if a is None else a[part], arrays)
        for part in parts
    )
