"""The examples on which candidates are compared: all read once, labels as class numbers."""

import keras
import numpy as np


def examples_of(x, y):
    """Read examples and labels.

    A data set is read once, because a second pass may come in another order.

    Args:
        x: Array, dict or list of arrays, or an iterable of batches: `tf.data.Dataset`,
            `keras.utils.PyDataset`, generator. A batch that is a tuple is `(x, y, ...)`.
        y: Class numbers `(examples,)` or `(examples, 1)`, one-hot labels `(examples, classes)`,
            or `None`.

    Returns:
        A pair: array, or dict or list of arrays, `(examples, ...)`; int array `(examples,)` or
        `None`.

    Raises:
        TypeError: If `x` has none of these forms.
        ValueError: If there are no examples, no end of them, or labels that don't fit.
    """
    if not _is_arrays(x):
        x, found = _read(x)
        if y is not None and found is not None:
            raise ValueError(
                "Labels must come once. Received: `y`, and batches of `x` that are tuples with "
                "labels. Leave out `y`, or the labels in the batches."
            )
        y = found if y is None else y
    if not all(np.shape(array) for array in keras.tree.flatten(x)):
        raise ValueError("`x` must have the examples on its first axis. Received: a number.")
    lengths = {len(array) for array in keras.tree.flatten(x)}
    if len(lengths) != 1 or not min(lengths):
        raise ValueError(
            "`x` must hold 1 or more examples, as many for each input. "
            f"Received: {sorted(lengths)} examples."
        )
    return x, None if y is None else _classes(y, *lengths)


def _is_arrays(x):
    leaves = [x] if not isinstance(x, dict | list | tuple) else keras.tree.flatten(x)
    return bool(leaves) and all(_is_array(leaf) for leaf in leaves)


def _is_array(value):
    return isinstance(value, np.ndarray) or keras.ops.is_tensor(value)


def _read(batches):
    """Join the batches of a data set."""
    cardinality = getattr(batches, "cardinality", None)
    if callable(cardinality) and int(cardinality()) == -1:
        raise ValueError("`x` is a data set without an end. Cut it: dataset.take(batches).")
    if isinstance(batches, keras.utils.PyDataset):
        # Python itself would ask for one batch after another without an end.
        batches = map(batches.__getitem__, range(batches.num_batches or 0))
    elif isinstance(batches, str | bytes) or not hasattr(batches, "__iter__"):
        raise TypeError(
            "`x` must be an array, a dict or list of arrays, or an iterable of batches. "
            f"Received: {type(batches).__name__}."
        )
    parts = [batch[:2] if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not parts:
        raise ValueError("`x` holds no examples. Expected at least one batch.")
    if len({len(part) for part in parts}) > 1:
        raise ValueError("Either all batches of `x` must have labels, or none. Received: both.")
    x, *y = (_joined(column) for column in zip(*parts, strict=True))
    return x, y[0] if y else None


def _joined(parts):
    parts = [keras.tree.map_structure(keras.ops.convert_to_numpy, part) for part in parts]
    return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)


def _classes(y, count):
    """Labels as class numbers `(examples,)`."""
    y = np.atleast_1d(np.asarray(y))
    if len(y.shape) == 2 and y.shape[1] > 1 and y.dtype.kind in "fiub":
        if np.abs(y.sum(axis=1) - 1).max(initial=0) > 1e-3:
            raise ValueError(
                f"`y` of shape {y.shape} must be one-hot labels, whose rows sum to 1. "
                f"Received: sums from {y.sum(axis=1).min():g} to {y.sum(axis=1).max():g}."
            )
        y = y.argmax(axis=1)
    if y.shape not in ((len(y),), (len(y), 1)) or y.dtype.kind not in "iu":
        raise ValueError(
            "`y` must be class numbers, integers (examples,), or one-hot labels. "
            f"Received: {y.dtype} of shape {y.shape}."
        )
    if len(y) != count:
        raise ValueError(
            f"`x` and `y` must have the same number of examples. Received: {count} and {len(y)}."
        )
    return y.ravel()
