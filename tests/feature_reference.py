"""Layers and layouts in plain NumPy float64, for the references of losses that own layers."""

import numpy as np


def weights_of(layer):
    """The layer's weights as float64 arrays, by their names."""
    import keras

    return {
        v.path.split("/")[-1]: keras.ops.convert_to_numpy(v).astype("float64")
        for v in layer.weights
    }


def dense(x, weights):
    """A linear layer over the last axis."""
    y = np.asarray(x, "float64") @ weights["kernel"]
    return y + weights.get("bias", 0.0)


def conv2d(x, kernel, bias=0.0, strides=1):
    """A convolution with Keras's `same` padding, loop by loop. Kernel: (h, w, in, out)."""
    x = np.asarray(x, "float64")
    height, width = -(-x.shape[1] // strides), -(-x.shape[2] // strides)
    pads = []
    for size, new, k in zip(x.shape[1:3], (height, width), kernel.shape[:2], strict=True):
        total = max((new - 1) * strides + k - size, 0)
        pads.append((total // 2, total - total // 2))
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[
                :,
                i * strides : i * strides + kernel.shape[0],
                j * strides : j * strides + kernel.shape[1],
            ]
            y[:, i, j] = np.tensordot(patch, kernel, axes=([1, 2, 3], [0, 1, 2]))
    return y + bias


def average_pool(x, height, width):
    """Adaptive average pooling, cell by cell."""
    x = np.asarray(x, "float64")
    old = x.shape[1:3]
    y = np.zeros((len(x), height, width, x.shape[-1]))
    for i in range(height):
        for j in range(width):
            rows = slice(i * old[0] // height, -(-(i + 1) * old[0] // height))
            columns = slice(j * old[1] // width, -(-(j + 1) * old[1] // width))
            y[:, i, j] = x[:, rows, columns].mean(axis=(1, 2))
    return y


def batch_norm(x, gamma=1.0, beta=0.0, epsilon=1e-3):
    """Batch normalisation in training mode, over every axis but the last."""
    x = np.asarray(x, "float64")
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axis=axes), x.var(axis=axes)
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta
