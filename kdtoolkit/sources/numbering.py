"""Example ids for the data given to `fit`, and memories of the right length."""

from collections.abc import Mapping

import keras
import numpy as np

from kdtoolkit.data.keys import EXAMPLE_ID, is_tf_dataset, with_ids

WAY_OUT = (
    "Expected arrays, `kd.data.ArrayPipeline(..., example_ids=True)`, or inputs from "
    "`kd.data.with_ids`, applied to single examples before shuffling and batching."
)


def with_example_ids(sources, x):
    """The input of `fit`, with example ids where memories need them, and memories that fit it.

    Args:
        sources: list of `Source`.
        x: input as given to `fit`. Arrays get ids by themselves. Other data must carry them; it
            may say how many examples there are in an attribute `examples`.

    Returns:
        x, as a dict with ids if it was arrays without.

    Raises:
        ValueError: data without ids, or another number of examples than a memory has rows.
    """
    memories = [source for source in sources if source.needs_ids]
    if not memories:
        return x
    if _is_arrays(x):
        x, examples = _numbered(x)
    else:
        _check_ids(memories[0], x)
        examples = getattr(x, "examples", None)
    for memory in memories:
        memory.prepare(examples)
    return x


def _is_arrays(x):
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(len(getattr(leaf, "shape", None) or ()) > 0 for leaf in leaves)


def _numbered(x):
    """Arrays with ids, and the number of rows that a memory of them has."""
    if not isinstance(x, Mapping) or EXAMPLE_ID not in x:
        x = with_ids(x)
    # Whoever chose the ids may train on a part of the data; the largest one tells the least length.
    return x, int(np.max(keras.ops.convert_to_numpy(x[EXAMPLE_ID]))) + 1


def _check_ids(memory, x):
    """Refuse data that shows in advance that it has no ids."""
    if isinstance(x, keras.utils.PyDataset):
        batch = x[0]
        inputs = batch[0] if isinstance(batch, tuple) else batch
    elif is_tf_dataset(x):
        spec = x.element_spec
        inputs = spec[0] if isinstance(spec, tuple) else spec
    else:
        return
    if not isinstance(inputs, Mapping) or EXAMPLE_ID not in inputs:
        raise ValueError(
            f"{type(memory).__name__} '{memory.name}' needs example ids, and the data has none. "
            f"{WAY_OUT} Received: a {type(x).__name__} without '{EXAMPLE_ID}'"
        )
