"""How a cache knows its teacher and its inputs again."""

import hashlib
import zlib

import keras
import numpy as np

# What a layer was used for doesn't change what it does.
_OF_THE_PAST = ("build_config", "build_input_shape", "compile_config")


def fingerprint(model):
    """SHA-256 of a model's weights, their shapes and dtypes, in their order; a hexadecimal string.

    Names don't count, since Keras numbers those of layers anew in each process. Nor does what has
    no weights, such as activations.

    Args:
        model: a built `keras.Model`.

    Raises:
        TypeError: something else.
        ValueError: a model that has no weights yet.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"The teacher must be a keras.Model. Received: {type(model).__name__}")
    if not model.built:
        raise ValueError(
            f"The teacher '{model.name}' isn't built, so it has no weights yet. Expected a trained "
            "network: load its weights, or call it once"
        )
    return _digest(model.weights)


def _digest(weights):
    digest = hashlib.sha256()
    for weight in weights:
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
    """What a layer does, as JSON: its configuration and its weights; None for None."""
    if layer is None:
        return None
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(f"`preprocess` must be a Keras layer. Received: {layer!r}")
    config = _numbered(keras.saving.serialize_keras_object(layer), {})
    return {"config": config, "weights": _digest(layer.weights)}


def _numbered(config, names):
    """The configuration with numbers for names, which Keras makes anew in each process."""
    if isinstance(config, dict):
        if isinstance(config.get("name"), str):
            names.setdefault(config["name"], f"#{len(names)}")
        kept = {key: value for key, value in config.items() if key not in _OF_THE_PAST}
        return {key: _numbered(value, names) for key, value in kept.items()}
    if isinstance(config, list | tuple):
        return [_numbered(value, names) for value in config]
    return names.get(config, config) if isinstance(config, str) else config


def _plain(array):
    if not isinstance(array, np.ndarray):
        array = keras.ops.convert_to_numpy(array)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            "A cache knows inputs again that are numbers. Received: inputs of dtype "
            f"{array.dtype}. Make numbers of them in the data"
        )
    return np.ascontiguousarray(array, "float32" if array.dtype.kind == "f" else None)
