"""What a .tflite file holds and computes: weights, zeros, multiplications."""

import math
from pathlib import Path

from kdtoolkit.export.engines import require


def multiplications(path):
    """Count the multiply-accumulate operations of one example.

    Convolutions, fully connected layers and products of matrices are counted, which is nearly all
    that a network computes. Activations, additions and normalisations are not.

    Args:
        path: The `.tflite` file.

    Returns:
        An int, or `None` for a file with loops, whose number of turns it doesn't hold.
    """
    model, tools = _read(path)
    graph = model.subgraphs[0]
    counts = {name: 0 for name in _COUNTERS}
    for op in graph.operators:
        name = tools.opcode_to_name(model, op.opcodeIndex)
        if name == "WHILE":
            return None
        if name in _COUNTERS:
            shapes = [_shape(graph, i) for i in op.inputs]
            counts[name] += _COUNTERS[name](shapes, _shape(graph, op.outputs[0]), op)
    first = _shape(graph, graph.inputs[0])
    return int(sum(counts.values()) // (first[0] if first else 1))


def stored_weights(path):
    """Count the weights in a file.

    Constants of floats, and of integers with a scale, are weights; shapes and axes are not. A
    batch normalisation that the converter folded into its neighbour is gone, so that there are
    fewer than in Keras.

    Args:
        path: The `.tflite` file.

    Returns:
        An int.
    """
    model, tools = _read(path)
    found = {}
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        data = model.buffers[tensor.buffer].data
        kind = tools.type_to_name(tensor.type).lower()
        scaled = tensor.quantization is not None and tensor.quantization.scale is not None
        if data is not None and len(data) and (scaled or "float" in kind):
            # Tensors may share one buffer.
            found[tensor.buffer] = math.prod(int(n) for n in _sizes(tensor))
    return sum(found.values())


def _read(path):
    tools = require("ai_edge_litert.tools.flatbuffer_utils")
    return tools.read_model_from_bytearray(bytearray(Path(path).read_bytes())), tools


def _sizes(tensor):
    return () if tensor.shape is None else tensor.shape


def _shape(graph, index):
    return [] if index < 0 else [int(size) for size in _sizes(graph.tensors[index])]


def _rows(inputs, output, op):
    """CONV_2D, weights (out, height, width, in); FULLY_CONNECTED, weights (out, in)."""
    return math.prod(output) * math.prod(inputs[1][1:])


def _depthwise(inputs, output, op):
    """Weights (1, height, width, out)."""
    return math.prod(output) * math.prod(inputs[1][1:3])


def _volumes(inputs, output, op):
    """CONV_3D, weights (depth, height, width, in, out)."""
    return math.prod(output) * math.prod(inputs[1][:4])


def _transposed(inputs, output, op):
    """TRANSPOSE_CONV: output shape, weights (out, height, width, in), input."""
    return math.prod(inputs[2]) * math.prod(inputs[1][:3])


def _matrices(inputs, output, op):
    """BATCH_MATMUL: the axis that vanishes is the last of the first factor, or the one before."""
    return math.prod(output) * inputs[0][-2 if op.builtinOptions.adjX else -1]


_COUNTERS = {
    "BATCH_MATMUL": _matrices,
    "CONV_2D": _rows,
    "CONV_3D": _volumes,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _rows,
    "TRANSPOSE_CONV": _transposed,
}
