"""Read what is inside a .tflite file."""

import contextlib
import gzip
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdtoolkit.export.engines import require
from kdtoolkit.export.examples import TensorInfo
from kdtoolkit.export.metadata import metadata_of
from kdtoolkit.export.structure import check_structure
from kdtoolkit.export.weights import WeightInfo, sparsity_of, weights_of
from kdtoolkit.registry import expects

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
        sparsity: Share of the weights that are exactly zero, 0 to 1. Weights are constants of
            two or more axes, so biases do not count.
        unique: Largest number of distinct values in one weight tensor, as clustering leaves.
        weights: Tuple with one `WeightInfo` per weight tensor.
        metadata: What was passed to `litert` as `metadata`, else an empty dict.
    """

    bytes: int
    gzip_bytes: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    ops: dict[str, int]
    tensor_counts: dict[str, int]
    tensor_bytes: dict[str, int]
    full_integer: bool
    sparsity: float
    unique: int
    weights: tuple[WeightInfo, ...]
    metadata: dict[str, Any]

    def to_dict(self):
        """Return the attributes as a dict that JSON can store."""
        return asdict(self)


@expects(path="path")
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
    model = parse(content, path)
    # Damage that leaves the file readable shows when its parts are looked up.
    with _complete(content, path):
        weights = weights_of(model, _dtype)
        inputs, outputs = _io(model, model.subgraphs[0])
        return FileSummary(
            bytes=len(content),
            # A fixed time stamp makes the size repeatable.
            gzip_bytes=len(gzip.compress(content, mtime=0)),
            inputs=inputs,
            outputs=outputs,
            ops=op_counts(model),
            tensor_counts=_count(_dtype(tensor) for g in model.subgraphs for tensor in g.tensors),
            tensor_bytes=constant_bytes(model),
            full_integer=not any(_computes_in_floats(model, g) for g in model.subgraphs),
            sparsity=sparsity_of(weights),
            unique=max((weight.distinct for weight in weights), default=0),
            weights=weights,
            metadata=metadata_of(model),
        )


def parse(content, name="the file"):
    """Read the flatbuffer of a .tflite file.

    Args:
        content: The file as `bytes`.
        name: What to call it in messages.

    Returns:
        The parsed file, as LiteRT's schema describes it.

    Raises:
        ValueError: If it is not a complete .tflite file, or its parts don't fit together.
    """
    tools = require("ai_edge_litert.tools.flatbuffer_utils")
    with _complete(content, name):
        if content[4:8] != b"TFL3":
            raise ValueError("the identifier TFL3 is missing")
        model = tools.read_model_from_bytearray(bytearray(content))
        check_structure(model)
        return model


@contextlib.contextmanager
def _complete(content, name):
    try:
        yield
    # The reader checks nothing, so a damaged file fails wherever it happens to be damaged.
    except Exception as error:
        raise ValueError(
            f"'{name}' is not a complete .tflite file ({error}). Received: {len(content)} bytes. "
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


def op_counts(model):
    """Count the operators of a file.

    Args:
        model: The parsed file.

    Returns:
        Dict from name to number.
    """
    return _count(_op_name(model, op) for graph in model.subgraphs for op in graph.operators)


def constant_bytes(model):
    """Add up the sizes of the constants of a file.

    Args:
        model: The parsed file.

    Returns:
        Dict from dtype to bytes.
    """
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
