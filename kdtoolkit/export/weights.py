"""The weights in a .tflite file: how many are zero, how many differ."""

import math
from dataclasses import dataclass

import numpy as np

_BITS = {"int2": 2, "int4": 4}
_NUMPY = ("int8", "uint8", "int16", "float16", "float32", "float64")


@dataclass(frozen=True)
class WeightInfo:
    """One weight tensor of a file.

    Attributes:
        name: Name of the tensor.
        shape: Its shape.
        dtype: Its type in the file, for example `"int4"`.
        zeros: Share of entries that stand for exactly zero, 0 to 1. Of a quantised tensor,
            these are the entries at the zero point.
        distinct: Number of distinct stored values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    zeros: float
    distinct: int


def weights_of(model, dtype_name):
    """List the weights: constants of two or more axes with more than one entry.

    Vectors, such as biases, and the integers that tell operators about shapes are left out.

    Args:
        model: The parsed file.
        dtype_name: Function from a tensor to the name of its type.

    Returns:
        Tuple of `WeightInfo`. Tensors that share their data count once.
    """
    found, seen = [], set()
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        shape = () if tensor.shape is None else tuple(int(size) for size in tensor.shape)
        data, dtype = model.buffers[tensor.buffer].data, dtype_name(tensor)
        known = dtype in _BITS or dtype in _NUMPY
        if data is None or tensor.buffer in seen or not known:
            continue
        if len(shape) < 2 or math.prod(shape) < 2 or not len(data):
            continue
        seen.add(tensor.buffer)
        values = _values(np.asarray(data, np.uint8), shape, dtype)
        zeros = float(np.mean(values == _zero_point(tensor, values.ndim)))
        name = tensor.name.decode()
        found.append(WeightInfo(name, shape, dtype, zeros, int(np.unique(values).size)))
    return tuple(found)


def sparsity_of(weights):
    """Return the share of zeros over all weights, 0 without any.

    Args:
        weights: Tuple of `WeightInfo`.

    Returns:
        A number from 0 to 1.
    """
    sizes = [math.prod(weight.shape) for weight in weights]
    zeros = sum(weight.zeros * size for weight, size in zip(weights, sizes, strict=True))
    return zeros / sum(sizes) if sizes else 0.0


def _values(data, shape, dtype):
    """Return the stored numbers as an array."""
    bits = _BITS.get(dtype)
    if bits is None:
        return data.view(dtype).reshape(shape)
    # The first entry is in the lowest bits of the first byte.
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = ((data[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[: math.prod(shape)]
    signed = codes.astype(np.int8) - (codes >= 2 ** (bits - 1)) * np.int8(2**bits)
    return signed.reshape(shape)


def _zero_point(tensor, axes):
    """Return the stored number that stands for zero, in a shape that broadcasts."""
    parameters = tensor.quantization
    points = None if parameters is None else parameters.zeroPoint
    if points is None or not len(points):
        return 0
    shape = [1] * axes
    if len(points) > 1:
        shape[parameters.quantizedDimension] = len(points)
    return np.reshape(points, shape)
