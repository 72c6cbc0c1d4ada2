"""Read what is inside a .tflite file."""

import gzip
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from kdtoolkit.export.engines import require
from kdtoolkit.export.examples import TensorInfo

_FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class FileSummary:
    """Contents of a `.tflite` file.

    Attributes:
        bytes: Size of the file.
        gzip_bytes: Size after gzip, which shows what pruning or clustering would save.
        inputs: Tuple of `TensorInfo`.
        outputs: Tuple of `TensorInfo`.
        ops: Number of operators by name, for example `{"CONV_2D": 21}`.
        tensor_counts: Number of tensors by dtype, constants and activations together.
        tensor_bytes: Bytes of the constants (weights) by dtype. Two `int4` share a byte.
        full_integer: `True` if no operator computes in floats. Only a QUANTIZE of an input
            and a DEQUANTIZE of an output may touch them.
    """

    bytes: int
    gzip_bytes: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    ops: dict[str, int]
    tensor_counts: dict[str, int]
    tensor_bytes: dict[str, int]
    full_integer: bool

    def to_dict(self):
        """Return the attributes as a dict that JSON can store."""
        return asdict(self)


def inspect(path):
    """Summarise a `.tflite` file without running it.

    The file is read through its flatbuffer schema, because the interpreter reports 4-bit
    tensors as int8.

    Args:
        path: The `.tflite` file.

    Returns:
        A `FileSummary`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a complete `.tflite` file.

    Example:

    ```python
    print(kd.export.inspect("student.tflite").ops)
    ```
    """
    content = Path(path).read_bytes()
    model = _parse(content, path)
    graph = model.subgraphs[0]
    inputs, outputs = _io(model, graph)
    return FileSummary(
        bytes=len(content),
        # A fixed time stamp makes the size repeatable.
        gzip_bytes=len(gzip.compress(content, mtime=0)),
        inputs=inputs,
        outputs=outputs,
        ops=_count(_op_name(model, op) for g in model.subgraphs for op in g.operators),
        tensor_counts=_count(_dtype(tensor) for g in model.subgraphs for tensor in g.tensors),
        tensor_bytes=_constant_bytes(model),
        full_integer=not any(_computes_in_floats(model, g) for g in model.subgraphs),
    )


def _parse(content, path):
    tools = require("ai_edge_litert.tools.flatbuffer_utils")
    try:
        if content[4:8] != b"TFL3":
            raise ValueError("the identifier TFL3 is missing")
        return tools.read_model_from_bytearray(bytearray(content))
    # The reader checks nothing, so a cut file fails wherever it happens to be cut.
    except Exception as error:
        raise ValueError(
            f"'{path}' is not a complete .tflite file ({error}). Received: {len(content)} bytes. "
            "Export it again with kdtoolkit.export.litert."
        ) from error


def _io(model, graph):
    """Return inputs and outputs under their signature names, or tensor names without one."""
    if not model.signatureDefs:
        return (
            tuple(_info(_text(graph.tensors[i].name), graph.tensors[i]) for i in graph.inputs),
            tuple(_info(_text(graph.tensors[i].name), graph.tensors[i]) for i in graph.outputs),
        )
    signature = model.signatureDefs[0]
    return tuple(
        tuple(_info(_text(entry.name), graph.tensors[entry.tensorIndex]) for entry in entries)
        for entries in (signature.inputs, signature.outputs)
    )


def _info(name, tensor):
    # A scalar has no shape vector in the file.
    shape = () if tensor.shape is None else tensor.shape
    return TensorInfo(name, tuple(int(size) for size in shape), _dtype(tensor))


def _text(name):
    return name.decode() if isinstance(name, bytes) else name


def _dtype(tensor):
    return require("ai_edge_litert.tools.flatbuffer_utils").type_to_name(tensor.type).lower()


def _op_name(model, op):
    tools = require("ai_edge_litert.tools.flatbuffer_utils")
    return tools.opcode_to_name(model, op.opcodeIndex)


def _count(names):
    return dict(sorted(Counter(names).items()))


def _constant_bytes(model):
    sizes, seen = Counter(), set()
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data) and tensor.buffer not in seen:
            # Tensors may share one buffer.
            seen.add(tensor.buffer)
            sizes[_dtype(tensor)] += len(data)
    return dict(sorted(sizes.items()))


def _computes_in_floats(model, graph):
    inputs, outputs = set(graph.inputs), set(graph.outputs)
    for op in graph.operators:
        used, made = set(op.inputs) - {-1}, set(op.outputs)
        name = _op_name(model, op)
        at_edge = (name == "QUANTIZE" and used <= inputs) or (
            name == "DEQUANTIZE" and made <= outputs
        )
        if not at_edge and any(_dtype(graph.tensors[i]) in _FLOATS for i in used | made):
            return True
    return False
