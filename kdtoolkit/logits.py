"""Logits from a network that returns probabilities."""

import keras
import numpy as np
from keras import ops

from kdtoolkit.registry import expects, public


@public
class LogProbabilities(keras.layers.Layer):
    """`log(p)`, which is a valid set of logits: `softmax(log p) = p`.

    Probabilities below 1e-30 are raised to it, so that a class of probability 0 stays finite.
    """

    def __init__(self, **kwargs):
        # A half-precision softmax has already lost the small classes; don't lose more.
        super().__init__(dtype="float32", **kwargs)

    def call(self, inputs):
        return ops.log(ops.maximum(inputs, 1e-30))

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        return config


@expects(model="model")
def as_logits(model):
    """A model that returns logits, from one that ends in a softmax.

    For teachers that can't be rebuilt without their softmax. The weights are shared. Where you can
    choose, build the network with `activation=None` instead: float32 softmax outputs have lost
    what lies more than about 100 below the largest logit.

    Args:
        model: a functional or Sequential `keras.Model` with one output of probabilities.

    Returns:
        A `keras.Model` on the same input.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> logits = kd.as_logits(teacher)(np.ones((1, 4)))
        >>> bool(np.allclose(keras.ops.softmax(logits), teacher(np.ones((1, 4))), atol=1e-6))
        True
    """
    # A Sequential model takes its one input bare; any other as it was built.
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, LogProbabilities()(model.outputs[0]), name=f"{model.name}_logits")


def log_probabilities(logits):
    """log softmax of arrays `(..., classes)` outside of any step: NumPy, float64."""
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
