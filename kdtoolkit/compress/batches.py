"""Batches of inputs from arrays, datasets and iterables."""

import itertools

import keras
import numpy as np


def batches_of(data, batch_size, what):
    """Yields batches of inputs.

    Args:
        data: an array, a dict, list or tuple of arrays of one length that matches the model's
            inputs, or an iterable of batches such as a `tf.data.Dataset` or a `PyDataset`, of which
            a tuple is read as `(x, y, ...)`.
        batch_size: int, rows per batch of arrays.
        what: name of the argument, for errors.

    Raises:
        TypeError: if it is none of these.
    """
    if isinstance(data, str | bytes):
        raise TypeError(f"`{what}` must be arrays or an iterable of batches. Received: {data!r}")
    leaves = keras.tree.flatten(data)
    if leaves and all(isinstance(leaf, np.ndarray) or keras.ops.is_tensor(leaf) for leaf in leaves):
        for start in range(0, len(leaves[0]), batch_size):
            yield keras.tree.map_structure(lambda a, s=start: a[s : s + batch_size], data)
        return
    if isinstance(data, keras.utils.PyDataset):
        data = (data[index] for index in range(len(data)))
    try:
        rows = iter(data)
    except TypeError:
        raise TypeError(
            f"`{what}` must be an array, a structure of arrays, or an iterable of batches. "
            f"Received: {type(data).__name__}"
        ) from None
    for batch in rows:
        yield batch[0] if isinstance(batch, tuple) else batch


def run_on(function, data, batch_size, batches, what):
    """Call a function on batches; refuses data that hold none, or what isn't a number.

    Returns:
        How many batches there were.
    """
    count = 0
    for count, batch in enumerate(itertools.islice(batches_of(data, batch_size, what), batches), 1):
        for leaf in keras.tree.flatten(batch):
            if not np.shape(leaf):
                raise ValueError(
                    f"`{what}` must hold batches with the examples on the first axis. Received: "
                    f"{leaf!r} as batch {count}"
                )
            if not np.isfinite(keras.ops.convert_to_numpy(leaf).astype("float64")).all():
                raise ValueError(
                    f"`{what}` must hold finite numbers. Received: NaN or infinity in batch {count}"
                )
        function(batch)
    if not count:
        raise ValueError(f"`{what}` holds no examples. Expected at least one batch")
    return count
