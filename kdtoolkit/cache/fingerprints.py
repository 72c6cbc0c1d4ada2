"""How a cache knows its teacher and its inputs again."""

import hashlib
import zlib

import keras
import numpy as np


def fingerprint(model):
    """SHA-256 of a model's weights, their shapes and dtypes, in their order; a hexadecimal string.

    Names don't count, since Keras numbers those of layers anew in each process. Nor does what has
    no weights, such as activations.

    Args:
        model: a built `keras.Model`.

    Raises:
        TypeError: something else.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"The teacher must be a keras.Model. Received: {type(model).__name__}")
    digest = hashlib.sha256()
    for weight in model.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        digest.update(f"{value.dtype.name}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def checksums(inputs):
    """CRC-32 of each example's inputs, which tells whether a teacher saw the same.

    Numbers with a fraction count as float32, whatever they came in. Several inputs count in the
    order of their names.

    Args:
        inputs: an array `(batch, ...)`, or a structure of arrays.

    Returns:
        uint32 array `(batch,)`.
    """
    parts = [_plain(leaf) for leaf in keras.tree.flatten(inputs)]
    sums = np.zeros(len(parts[0]), "uint32")
    for part in parts:
        for row, example in enumerate(part):
            sums[row] = zlib.crc32(example.tobytes(), int(sums[row]))
    return sums


def description(layer):
    """A layer's configuration as JSON without names, which Keras numbers anew; None for None."""
    return None if layer is None else _nameless(keras.saving.serialize_keras_object(layer))


def _nameless(config):
    if isinstance(config, dict):
        return {key: _nameless(value) for key, value in config.items() if key != "name"}
    return [_nameless(value) for value in config] if isinstance(config, list | tuple) else config


def _plain(array):
    array = np.asarray(keras.ops.convert_to_numpy(array))
    return np.ascontiguousarray(array, "float32" if array.dtype.kind == "f" else None)
