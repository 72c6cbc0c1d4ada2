"""What tests need on every backend."""

import keras
import numpy as np
from keras import ops


def array(tensor):
    """A tensor as a float64 NumPy array."""
    return np.asarray(ops.convert_to_numpy(tensor)).astype("float64")


def gradient(function, *arrays, argnum=0):
    """Gradient of the sum of `function(*arrays)` with respect to one argument.

    Args:
        function: takes tensors, returns a tensor of any shape.
        arrays: arrays or tensors; they keep their dtype.
        argnum: which of them the gradient is taken for.

    Returns:
        A float64 NumPy array.
    """
    tensors = [ops.convert_to_tensor(a) for a in arrays]

    def total(x):
        return ops.sum(function(*tensors[:argnum], x, *tensors[argnum + 1 :]))

    return array(gradient_tensor(total, tensors[argnum]))


def gradient_tensor(total, x):
    """Gradient of a scalar function of one tensor, as a tensor."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            value = total(x)
        return tape.gradient(value, x, unconnected_gradients="zero")
    if backend == "jax":
        import jax

        return jax.grad(total)(x)
    x = x.detach().clone().requires_grad_(True)
    total(x).backward()
    return x.grad if x.grad is not None else ops.zeros_like(x)


class WithMask(keras.layers.Layer):
    """Gives its input a Keras mask, as an embedding with `mask_zero=True` does."""

    def __init__(self, mask):
        super().__init__()
        self.supports_masking = True
        self.mask = mask

    def call(self, inputs):
        return inputs * 1

    def compute_mask(self, inputs, previous_mask=None):
        return ops.convert_to_tensor(self.mask)
