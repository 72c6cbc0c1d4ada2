"""How tensorflow-model-optimization and tf_keras come into a process without changing it."""

import functools
import os

from kdtoolkit import optional

_LEGACY = "TF_USE_LEGACY_KERAS"

require = functools.partial(optional.require, part="kdtoolkit.tfmot", extra="tfmot")


def load():
    """Import tensorflow-model-optimization and leave the process as it was.

    A plain `import tensorflow_model_optimization` sets the environment variable
    `TF_USE_LEGACY_KERAS`. If nobody has looked at `tf.keras` before, `tf.keras` is Keras 2 from
    then on, for the whole process, and child processes inherit the variable. Here `tf.keras` is
    settled first and the variable gets its old value back.

    Returns:
        The module `tensorflow_model_optimization`.

    Raises:
        ImportError: if it, tf_keras or TensorFlow is not installed.

    Example:
        >>> import os, kdtoolkit as kd
        >>> tfmot = kd.tfmot.load()
        >>> tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=0).get_config()["class_name"]
        'ConstantSparsity'
        >>> "TF_USE_LEGACY_KERAS" in os.environ
        False
    """
    # `tf.keras` reads the variable once, when it is first looked at.
    _ = require("tensorflow").keras.Model
    before = os.environ.get(_LEGACY)
    try:
        return require("tensorflow_model_optimization")
    finally:
        if before is None:
            os.environ.pop(_LEGACY, None)
        else:
            os.environ[_LEGACY] = before


def load_tf_keras():
    """Import tf_keras; the same errors as `load`."""
    _ = require("tensorflow").keras.Model
    return require("tf_keras")


def check_tf_keras_model(model, what="model"):
    """Raise unless `model` is a tf_keras model with weights; returns the package tf_keras.

    Raises:
        TypeError: it is something else.
        ValueError: it is not built.
    """
    tf_keras = load_tf_keras()
    if not isinstance(model, tf_keras.Model):
        raise TypeError(
            f"`{what}` must be a model of tf_keras. Received: {model!r}. A Keras 3 model becomes "
            "one by `kd.tfmot.to_tf_keras(model)`."
        )
    if not model.built:
        raise ValueError(
            f"`{what}` must have its weights. Received: the tf_keras model '{model.name}', which "
            "is not built. Call it on one batch first."
        )
    return tf_keras


def is_wrapper(layer):
    """Whether a tf_keras layer is one that tensorflow-model-optimization puts around others."""
    return type(layer).__module__.startswith("tensorflow_model_optimization.")


def is_quantizer(layer):
    """Whether a tf_keras layer is one of quantisation-aware training."""
    return is_wrapper(layer) and type(layer).__name__.startswith("Quantize")


def layers_by_path(model, is_open):
    """`{path: layer}` of a model, with the layers of nested models in place of these.

    Args:
        model: a model of Keras 3 or of tf_keras.
        is_open: function of a layer, whether it is a nested model to look into.
    """
    found = {}
    for layer in model.layers:
        if is_open(layer):
            inner = layers_by_path(layer, is_open)
            found.update({f"{layer.name}/{path}": child for path, child in inner.items()})
        else:
            found[layer.name] = layer
    return found
