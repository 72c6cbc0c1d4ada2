"""A description inside the file: labels, preprocessing, whatever the user of the file needs."""

import json

import numpy as np

from kdtoolkit.export.engines import require

_NAME = "kdtoolkit.metadata"


def check_metadata(metadata):
    """Return the metadata as JSON text.

    Args:
        metadata: A dict that JSON can store.

    Returns:
        The text.

    Raises:
        TypeError: If it is no dict.
        ValueError: If JSON cannot store it.
    """
    if not isinstance(metadata, dict):
        raise TypeError(f"`metadata` must be a dict. Received: {type(metadata).__name__}.")
    try:
        text = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
        same = json.loads(text) == metadata
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`metadata` must be a dict that JSON can store. Received: {error}. "
            "Turn arrays into lists with tolist()."
        ) from error
    if not same:
        raise ValueError(
            "`metadata` must come back from JSON as it is. Expected string keys, and lists "
            f"instead of tuples. Received: {metadata!r}."
        )
    return text


def with_metadata(content, text):
    """Store a text in a .tflite file.

    Args:
        content: The file as `bytes`.
        text: What `check_metadata` returned.

    Returns:
        The file as `bytes`. Signatures, operators and weights are as before.
    """
    tools = require("ai_edge_litert.tools.flatbuffer_utils")
    schema = require("ai_edge_litert.schema_py_generated")
    model = tools.read_model_from_bytearray(bytearray(content))
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(text.encode(), np.uint8)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), schema.MetadataT(_NAME, len(model.buffers) - 1)]
    builder = _aligned_builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def metadata_of(model):
    """Read what `with_metadata` stored.

    Args:
        model: The parsed file.

    Returns:
        The metadata as a dict, empty without any.
    """
    for entry in model.metadata or ():
        if entry.name == _NAME.encode():
            return json.loads(bytes(model.buffers[entry.buffer].data).decode())
    return {}


def _aligned_builder():
    class Builder(require("flatbuffers").Builder):
        """Starts vectors at multiples of 16 bytes, as LiteRT wants weights.

        The schema demands it, but the generated Python code does not know the demand.
        """

        def StartVector(self, elem_size, count, alignment):
            large = elem_size * count >= 16
            return super().StartVector(elem_size, count, 16 if large else alignment)

    return Builder(1024)
