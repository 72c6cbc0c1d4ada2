"""How example ids travel with a batch: the names, and the two functions that add and remove them.

An example id is the row of an example in the training table. Memories and caches find the stored
output of an example by it. A batch with ids is a dict; a batch without stays what it was.
"""

import sys
from collections.abc import Mapping

import keras
import numpy as np

EXAMPLE_ID = "example_id"
INPUTS = "inputs"
#: Which of several augmented views of an example a batch holds, and the seed that makes it.
EXAMPLE_VIEW = "example_view"
AUGMENTATION_SEED = "augmentation_seed"
#: What is stored about the examples, `{name: arrays}`.
STORED = "stored"
_WITH_IDS = (EXAMPLE_ID, EXAMPLE_VIEW, AUGMENTATION_SEED, STORED)


def with_ids(x, ids=None):
    """Adds example ids to inputs.

    Args:
        x: what the ids go with, one of
            - an array `(examples, ...)`: becomes `{"inputs": x, "example_id": ids}`;
            - a dict of arrays `(examples, ...)`: gains the key `"example_id"`;
            - a `tf.data.Dataset` of single examples `x`, `(x, y)` or `(x, y, sample_weight)`,
              before shuffling, batching and random augmentation: each `x` becomes a dict as above.
        ids: int array `(examples,)` of ids >= 0, or None for `0, 1, 2, ...`. A dataset numbers its
            elements by itself in their order, so that order must be the same in every epoch.

    Returns:
        A dict of arrays with int32 ids, or a dataset.

    Raises:
        ValueError: if there are ids already, if lengths differ, if an id is negative, if a dataset
            is batched already, or if `ids` come with a dataset.
        TypeError: if `x` is a list or a tuple, or `ids` are not integers.

    Example:

    ```python
    x = np.zeros((100, 8, 8, 1), "float32")
    batch = kdtoolkit.data.with_ids(x)
    batch["example_id"][:3]  # 0, 1, 2
    ```
    """
    if is_tf_dataset(x):
        if ids is not None:
            raise ValueError("A tf.data.Dataset numbers its own elements. Leave `ids` out.")
        return _dataset_with_ids(x)
    if isinstance(x, list | tuple):
        raise TypeError(
            "`with_ids` takes an array, a dict of arrays or a tf.data.Dataset. "
            f"Received: a {type(x).__name__}. Name several inputs in a dict"
        )
    inputs = _without_collision(x) if isinstance(x, Mapping) else {INPUTS: x}
    if not all(hasattr(value, "__len__") and np.shape(value) for value in inputs.values()):
        raise TypeError(
            "`with_ids` takes arrays with the examples on their first axis. Received: "
            f"{[type(value).__name__ for value in inputs.values()]} of no axis"
        )
    lengths = {len(value) for value in inputs.values()}
    if len(lengths) != 1:
        raise ValueError(f"All inputs must have the same length. Received lengths: {lengths}")
    return {**inputs, EXAMPLE_ID: _checked_ids(ids, lengths.pop())}


def strip(x):
    """Takes the example ids out of a batch again, as `with_ids` put them in.

    Args:
        x: the inputs of a batch, of any kind.

    Returns:
        A pair `(x, ids)`. With the key `"example_id"` in a dict `x`: the rest of the dict (or only
        its value, if the key `"inputs"` is all that is left) and the ids. What else belongs to
        the ids (`"example_view"`, `"augmentation_seed"`, `"stored"`) is left out too. Otherwise `x`
        unchanged and None.

    Example:

    ```python
    x, ids = kdtoolkit.data.strip({"inputs": images, "example_id": ids})
    ```
    """
    if not has_ids(x):
        return x, None
    rest = {key: value for key, value in x.items() if key not in _WITH_IDS}
    return (rest[INPUTS] if rest.keys() == {INPUTS} else rest), x[EXAMPLE_ID]


def has_ids(x):
    """Whether the inputs of a batch, or their specification, come with example ids."""
    return isinstance(x, Mapping) and EXAMPLE_ID in x


def stored(x):
    """What is stored about the examples of a batch, `{name: tensors}`; empty without."""
    return x.get(STORED, {}) if has_ids(x) else {}


def with_views(dataset, views, seed=0):
    """Repeats a data set in several views, each example with a seed of its own in each.

    For augmentation that can be replayed: what it draws must follow from `"augmentation_seed"`,
    as `tf.image.stateless_random_flip_left_right` and its like do. One pass over the result holds
    `views` times as many elements, one view after the other.

    Args:
        dataset: `tf.data.Dataset` of single examples from `with_ids`, before shuffling, batching
            and augmentation.
        views: int >= 1.
        seed: int, from 0 to 2**31 - 1. Another seed, other views.

    Returns:
        A dataset whose inputs have the keys `"example_view"`, an int32 from 0 to `views` - 1, and
        `"augmentation_seed"`, int32 `(2,)`.

    Raises:
        ValueError: a dataset without ids or without end, or numbers out of range.

    Example:

    ```python
    def augmented(x, y):
        image = tf.image.stateless_random_flip_left_right(x["inputs"], x["augmentation_seed"])
        return {**x, "inputs": image}, y


    numbered = kdtoolkit.data.with_views(kdtoolkit.data.with_ids(dataset), views=10)
    train = numbered.map(augmented).shuffle(10_000).batch(128)
    ```
    """
    import tensorflow as tf

    spec = dataset.element_spec
    inputs = spec[0] if isinstance(spec, tuple) else spec
    if not has_ids(inputs):
        raise ValueError(
            f"`with_views` needs example ids. Expected a dataset from `with_ids`. Received: {spec}"
        )
    if inputs[EXAMPLE_ID].shape.rank:
        raise ValueError("`with_views` takes single examples. Call it before `.batch()`")
    if not (is_whole(views) and views >= 1 and is_whole(seed) and 0 <= seed < 2**31):
        raise ValueError(
            "`views` must be an integer >= 1 and `seed` one from 0 to 2**31 - 1. "
            f"Received: views={views!r}, seed={seed!r}"
        )
    count = int(dataset.cardinality())
    if count == -1:
        raise ValueError("The data set repeats for ever, so its first view has no end")

    def of(view):
        view = tf.cast(view, tf.int32)
        # Any two views or examples have different pairs, and with them different draws.
        first = int(seed) ^ (view * 65537)

        def add(x, *rest):
            pair = tf.stack([first, x[EXAMPLE_ID]])
            x = {**x, EXAMPLE_VIEW: view, AUGMENTATION_SEED: pair}
            return (x, *rest) if rest else x

        return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE)

    repeated = tf.data.Dataset.range(views).flat_map(of)
    if count < 0:
        return repeated
    return repeated.apply(tf.data.experimental.assert_cardinality(views * count))


def is_whole(number):
    """Whether something is an integer, of Python or NumPy; True and False aren't."""
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _checked_ids(ids, length):
    if ids is None:
        return np.arange(length, dtype="int32")
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"`ids` must be integers. Received: dtype {ids.dtype}")
    if ids.shape != (length,):
        raise ValueError(
            f"`ids` must hold one id for each of the {length} examples. Received shape: {ids.shape}"
        )
    if length and (ids.min() < 0 or ids.max() > np.iinfo("int32").max):
        raise ValueError(
            "`ids` must be from 0 to 2**31 - 1: they are rows of a table. "
            f"Received: {ids.min()} to {ids.max()}"
        )
    return ids.astype("int32")


def _without_collision(x):
    taken = [key for key in _WITH_IDS if key in x]
    if taken == [EXAMPLE_ID]:
        raise ValueError(f'The inputs have the key "{EXAMPLE_ID}" already. Add ids only once.')
    if taken:
        raise ValueError(
            f"Beside example ids the keys {_WITH_IDS} mean something. Expected inputs of other "
            f"names. Received: {taken}"
        )
    return x


def is_arrays(x):
    """Whether `x` is arrays or tensors and nothing else: each has a first axis, and slices."""
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(len(getattr(leaf, "shape", None) or ()) > 0 for leaf in leaves)


def is_tf_dataset(x):
    """Whether `x` is a `tf.data.Dataset`, found out without importing TensorFlow."""
    # Whoever holds a dataset has imported TensorFlow, so there is no need to import it here.
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(x, tf.data.Dataset)


def _dataset_with_ids(dataset):
    import tensorflow as tf

    spec = dataset.element_spec
    shapes = [leaf.shape for leaf in tf.nest.flatten(spec)]
    # A lone input of unknown size may well be an image; labels of unknown length are a batch.
    if len(shapes) > 1 and all(shape.rank and shape[0] is None for shape in shapes):
        raise ValueError(
            "`with_ids` numbers single examples, but every part of the dataset has a leading axis "
            f"of unknown length, as batches have. Call it before `.batch()`. Received: {spec}"
        )

    def number(index, element):
        x, *rest = element if isinstance(element, tuple) else (element,)
        inputs = dict(_without_collision(x)) if isinstance(x, Mapping) else {INPUTS: x}
        return ({**inputs, EXAMPLE_ID: tf.cast(index, tf.int32)}, *rest)

    return dataset.enumerate().map(number, num_parallel_calls=tf.data.AUTOTUNE)
