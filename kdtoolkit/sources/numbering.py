"""Example ids for the data given to `fit`, and memories of the right length."""

import keras
import numpy as np

from kdtoolkit.data.keys import EXAMPLE_ID, has_ids, is_arrays, is_tf_dataset, with_ids

WAY_OUT = (
    "Expected arrays, `kd.data.ArrayPipeline(..., example_ids=True)`, or inputs from "
    "`kd.data.with_ids`, applied to single examples before shuffling and batching."
)


def with_example_ids(sources, losses, x):
    """The input of `fit`, with example ids where something needs them, and memories that fit it.

    Args:
        sources: list of `Source`.
        losses: list of the losses that need ids, and may keep a row for each example.
        x: input as given to `fit`. Arrays get ids by themselves. Other data must carry them; it
            may say how many examples there are in an attribute `examples`.

    Returns:
        x, as a dict with ids if it was arrays without.

    Raises:
        ValueError: data without ids, or another number of examples than a memory has rows.
    """
    memories = [source for source in sources if source.needs_ids]
    readers = [*memories, *losses]
    if not readers:
        return x
    chosen = False
    if not is_arrays(x):
        _check_ids(readers[0], x)
        examples = getattr(x, "examples", None)
    else:
        chosen = has_ids(x)
        x = x if chosen else with_ids(x)
        examples = int(np.max(keras.ops.convert_to_numpy(x[EXAMPLE_ID]))) + 1
    for loss in losses:
        _check_rows(loss, examples)
    for memory in memories:
        # Whoever chose the ids may train with a part of the data: there are at least that many.
        enough = chosen and memory.examples is not None and examples < memory.examples
        memory.prepare(None if enough else examples)
    return x


def _check_ids(reader, x):
    """Refuse data that shows in advance that it has no ids."""
    if isinstance(x, keras.utils.PyDataset):
        batch = x[0]
        inputs = batch[0] if isinstance(batch, tuple) else batch
    elif is_tf_dataset(x):
        spec = x.element_spec
        inputs = spec[0] if isinstance(spec, tuple) else spec
    else:
        return
    if not has_ids(inputs):
        raise ValueError(
            f"{type(reader).__name__} '{reader.name}' needs example ids, and the data has none. "
            f"{WAY_OUT} Received: a {type(x).__name__} without '{EXAMPLE_ID}'"
        )


def _check_rows(loss, examples):
    """Refuse data with more examples than a loss that keeps a row for each has rows."""
    rows = getattr(loss, "examples", None)
    if None not in (rows, examples) and examples > rows:
        raise ValueError(
            f"'{loss.name}' keeps a row for each of {rows} examples, and the data has {examples}. "
            f"Expected `{type(loss).__name__}(examples={examples})`. Received: examples={rows}"
        )
