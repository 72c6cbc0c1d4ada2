"""Adds to each batch what is stored about its examples, outside of the training step."""

from collections.abc import Mapping

import keras

from kdtoolkit.data.epochs import passing_on
from kdtoolkit.data.keys import (
    EXAMPLE_ID,
    EXAMPLE_VIEW,
    STORED,
    has_ids,
    is_arrays,
    is_tf_dataset,
    strip,
)


def join(x, name, function, columns, compared):
    """The training input with `x["stored"][name]` in each batch, read by example id.

    Arrays get the rows of all examples at once, and all their inputs are compared. A `PyDataset`
    and a `tf.data.Dataset` get those of a batch when it is made.

    Args:
        x: input with example ids, as given to `fit`: a dict of arrays, a `PyDataset`, or a batched
            `tf.data.Dataset`.
        name: str.
        function: `function(inputs, ids, views)` that returns `{column: array (batch, ...)}`; gets
            NumPy arrays, `inputs` of the first few examples alone, and None for `views` where
            the batch has none.
        columns: list of what the function returns, each with `name`, `dtype` and `shape`.
        compared: int, of how many examples the function gets the inputs.

    Returns:
        An input of the same kind, which can be told the epoch where `x` can.

    Raises:
        TypeError: data of another kind.
    """
    if is_arrays(x):
        return _with_rows(x, name, function, None)
    if isinstance(x, keras.utils.PyDataset):
        return passing_on(_Joined(x, name, function, compared), x)
    if is_tf_dataset(x):
        return passing_on(_mapped(x, name, function, columns, compared), x)
    raise TypeError(
        "What is stored about examples can be read for arrays, a keras.utils.PyDataset or a "
        f"tf.data.Dataset. Received: {type(x).__name__}"
    )


def _with_rows(x, name, function, compared):
    _check_ids(x)
    inputs, ids = strip(x)
    few = keras.tree.map_structure(lambda leaf: leaf[:compared], inputs)
    found = function(few, _numpy(ids), _numpy(x.get(EXAMPLE_VIEW)))
    return _beside(x, name, found)


def _check_ids(x):
    if not has_ids(x):
        raise ValueError(
            "Stored outputs are found by example id. Expected batches with the key "
            f"'{EXAMPLE_ID}'. Received: {sorted(x) if isinstance(x, Mapping) else type(x).__name__}"
        )


def _beside(x, name, found):
    others = x.get(STORED, {})
    if name in others:
        raise ValueError(
            f"The batches have stored rows under the name '{name}' already. Give each source a "
            "name of its own, and leave it to `fit` to attach them"
        )
    return {**x, STORED: {**others, name: found}}


def _numpy(array):
    return None if array is None else keras.ops.convert_to_numpy(array)


class _Joined(keras.utils.PyDataset):
    """The same batches with stored rows. It counts epochs and works as its data set does."""

    def __init__(self, batches, name, function, compared):
        super().__init__(
            workers=batches.workers,
            use_multiprocessing=batches.use_multiprocessing,
            max_queue_size=batches.max_queue_size,
        )
        self._batches = batches
        self._given = name, function, compared

    @property
    def num_batches(self):
        return self._batches.num_batches

    def __getitem__(self, index):
        batch = self._batches[index]
        if not isinstance(batch, tuple):
            return _with_rows(batch, *self._given)
        x, *rest = batch
        return (_with_rows(x, *self._given), *rest)

    def on_epoch_begin(self):
        self._batches.on_epoch_begin()

    def on_epoch_end(self):
        self._batches.on_epoch_end()


def _mapped(dataset, name, function, columns, compared):
    import tensorflow as tf

    def read(ids, views, *few):
        found = function(list(few), ids, views if len(views) else None)
        return [found[column.name] for column in columns]

    def add(x, *rest):
        _check_ids(x)
        inputs, ids = strip(x)
        few = [leaf[:compared] for leaf in tf.nest.flatten(inputs)]
        views = x.get(EXAMPLE_VIEW, tf.zeros([0], tf.int32))
        kinds = [tf.as_dtype(column.dtype) for column in columns]
        found = tf.numpy_function(read, [ids, views, *few], kinds, stateful=False)
        for tensor, column in zip(found, columns, strict=True):
            tensor.set_shape((ids.shape[0], *column.shape))
        rows = {column.name: tensor for column, tensor in zip(columns, found, strict=True)}
        x = _beside(x, name, rows)
        return (x, *rest) if rest else x

    return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE)
