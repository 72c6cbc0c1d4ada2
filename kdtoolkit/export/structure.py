"""Whether the parts of a .tflite file fit together, before LiteRT runs it.

LiteRT checks that a file can be read, and little of what it says. A flipped bit may make it read
outside of its memory, which ends the process, or count to a number without end. What is checked
here is what holds in every file: numbers of tensors, buffers and operators that exist, constants
as long as their shapes say, scales and zero points that can be computed with.

A file has no checksum. A weight that was changed into another weight, or a stride into another
stride, is a file like any other, and only a comparison with the Keras model tells.
"""

import math

import numpy as np

from kdtoolkit.export.engines import require

_BITS = {
    "INT2": 2, "INT4": 4, "UINT4": 4, "INT8": 8, "UINT8": 8, "BOOL": 8, "INT16": 16, "UINT16": 16,
    "FLOAT16": 16, "BFLOAT16": 16, "INT32": 32, "UINT32": 32, "FLOAT32": 32, "INT64": 64,
    "UINT64": 64, "FLOAT64": 64, "COMPLEX64": 64, "COMPLEX128": 128,
}  # fmt: skip
_WITH_BIAS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_INTEGERS = ("INT8", "UINT8", "INT16")
# Bytes of one tensor. Far more than fits on a device.
_LARGEST = 2**31


def check_structure(model):
    """Refuse a file whose parts don't fit together.

    Args:
        model: The parsed file.

    Raises:
        ValueError: What doesn't fit.
    """
    tools = require("ai_edge_litert.tools.flatbuffer_utils")
    _check(bool(model.subgraphs), "it has no graph")
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            # A text that isn't one ends here, and not where LiteRT's records are read.
            (tensor.name or b"").decode()
        for index, tensor in enumerate(graph.tensors):
            _check_tensor(model, tensor, tools.type_to_name(tensor.type), f"tensor {index}")
        count = len(graph.tensors)
        _check_numbers(graph.inputs, count, "an input of the graph")
        _check_numbers(graph.outputs, count, "an output of the graph")
        for operator in graph.operators:
            _check_numbers([operator.opcodeIndex], len(model.operatorCodes), "an operator's code")
            # -1 stands for an input that is left out.
            _check_numbers(operator.inputs, count, "an operator's input", minimum=-1)
            _check_numbers(operator.outputs, count, "an operator's output")
            _check_bias(model, graph, operator)
    for signature in model.signatureDefs or ():
        _check_numbers([signature.subgraphIndex], len(model.subgraphs), "a signature's graph")
        count = len(model.subgraphs[signature.subgraphIndex].tensors)
        for entry in (*(signature.inputs or ()), *(signature.outputs or ())):
            _check_numbers([entry.tensorIndex], count, "a signature's tensor")
    for entry in model.metadata or ():
        _check_numbers([entry.buffer], len(model.buffers), "the buffer of metadata")


def check_computed(model, content):
    """Refuse a file in which LiteRT computes other shapes than the file says.

    An input that is larger by a flipped bit makes all that follows larger, up to hours of work.

    Args:
        model: The parsed file.
        content: The file as `bytes`.

    Raises:
        ValueError: What doesn't fit.
        RuntimeError: LiteRT can't run the file.
    """
    interpreters = require("ai_edge_litert.interpreter")
    # Without delegates, inside of which no shapes are known.
    plain = interpreters.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = interpreters.Interpreter(
        model_content=content, experimental_op_resolver_type=plain
    )
    interpreter.allocate_tensors()
    tensors = model.subgraphs[0].tensors
    for details in interpreter.get_tensor_details():
        index = details["index"]
        # LiteRT adds tensors of its own.
        if index >= len(tensors):
            continue
        stored, open_sizes = (
            _shape(s) for s in (tensors[index].shape, tensors[index].shapeSignature)
        )
        computed = [int(size) for size in details["shape"]]
        fits = stored == computed or -1 in open_sizes
        _check(fits, f"tensor {index} has the shape {stored}, and LiteRT computes {computed}")


def _check(fits, flaw):
    if not fits:
        raise ValueError(flaw)


def _check_bias(model, graph, operator):
    """LiteRT reads the bias of an integer convolution whether there is one or not."""
    tools = require("ai_edge_litert.tools.flatbuffer_utils")
    if tools.opcode_to_name(model, operator.opcodeIndex) not in _WITH_BIAS:
        return
    count = len(operator.inputs)
    integer = count and tools.type_to_name(graph.tensors[operator.inputs[0]].type) in _INTEGERS
    _check(count == 3 or (count == 2 and not integer), f"a convolution has {count} inputs")


def _check_numbers(numbers, count, what, minimum=0):
    for number in () if numbers is None else numbers:
        _check(minimum <= number < count, f"{what} is number {number} of {count}")


def _check_tensor(model, tensor, kind, name):
    shape = _shape(tensor.shape)
    _check(all(size >= 0 for size in shape), f"{name} has the shape {shape}")
    _check_numbers([tensor.buffer], len(model.buffers), f"the buffer of {name}")
    size = -(-math.prod(shape) * _BITS.get(kind, 0) // 8)
    _check(size < _LARGEST, f"{name} has the shape {shape}, {size} bytes")
    data = model.buffers[tensor.buffer].data
    # Texts and sparse tensors have lengths of their own.
    if data is not None and len(data) and kind in _BITS and tensor.sparsity is None:
        _check(len(data) == size, f"{name} has {len(data)} bytes, and its shape {shape} {size}")
    if tensor.quantization is not None:
        _check_scales(tensor.quantization, shape, kind, name)


def _shape(sizes):
    # A scalar has no shape vector in the file.
    return [] if sizes is None else [int(size) for size in sizes]


def _check_scales(quantization, shape, kind, name):
    scales, points = (
        np.zeros(0) if values is None else np.asarray(values, "float64")
        for values in (quantization.scale, quantization.zeroPoint)
    )
    _check(np.all(np.isfinite(scales)) and np.all(scales > 0), f"{name} has the scales {scales}")
    _check(len(points) in (0, 1, len(scales)), f"{name} has {len(points)} zero points")
    if len(scales) > 1:
        axis = quantization.quantizedDimension
        _check_numbers([axis], len(shape), f"the quantised axis of {name}")
        _check(len(scales) == shape[axis], f"{name} has {len(scales)} scales for {shape[axis]}")
    if len(points) and kind.startswith("INT"):
        largest = 2 ** (_BITS[kind] - 1)
        inside = np.all((points >= -largest) & (points < largest))
        _check(inside, f"{name} of {kind} has the zero points {points}")
