"""What an `ArrayPipeline` refuses, and its arrays in one form."""

from collections.abc import Mapping

import keras
import numpy as np

from kdtoolkit.data.augment import Augmentation
from kdtoolkit.data.keys import is_arrays, is_whole


def arrays(x, y, sample_weight):
    """The three, made of NumPy arrays of one length; None stays None.

    Raises:
        TypeError: something else.
        ValueError: different lengths; weights without labels.
    """
    if sample_weight is not None and y is None:
        raise ValueError("`sample_weight` weighs the loss of labels `y`, but `y` is None.")
    leaves = keras.tree.flatten(x)
    if not is_arrays(x) or not all(isinstance(leaf, np.ndarray) for leaf in leaves):
        kinds = sorted({type(leaf).__name__ for leaf in leaves})
        raise TypeError(
            "`x` must be one NumPy array (examples, ...), or a dict, list or tuple of them. "
            f"Received: a {type(x).__name__} of {kinds}"
        )
    examples = len(leaves[0]) if leaves[0].shape else 0
    parts = {"x": x, "y": _labels("y", y), "sample_weight": _labels("weights", sample_weight)}
    for name, part in parts.items():
        for leaf in [] if part is None else keras.tree.flatten(part):
            if not leaf.shape:
                raise TypeError(
                    f"`{name}` must be arrays with the examples on their first axis. "
                    f"Received: {leaf!r}"
                )
            if len(leaf) != examples:
                raise ValueError(
                    f"`{name}` must be as long as {'its first array' if name == 'x' else '`x`'}. "
                    f"Received: {len(leaf)} and {examples} examples"
                )
    return tuple(
        None if part is None else keras.tree.lists_to_tuples(part) for part in parts.values()
    )


def _labels(name, given):
    """Labels or weights as NumPy arrays: one of a list of numbers, several of a list of arrays."""
    if given is None:
        return None
    if is_arrays(given):
        return keras.tree.map_structure(np.asarray, given)
    if isinstance(given, Mapping):
        raise TypeError(
            f"Several {name} must be NumPy arrays (examples, ...). Received: a dict of "
            f"{sorted({type(leaf).__name__ for leaf in keras.tree.flatten(given)})}"
        )
    return np.asarray(given)


def single(x, y, augment, mix, num_classes):
    """Refuses several inputs or labels where one array is worked on.

    Raises:
        ValueError: see above.
    """
    works_on = [
        ("augment", augment, "x", x),
        ("mix", mix, "x", x),
        ("mix", mix, "y", y),
        ("num_classes", num_classes, "y", y),
    ]
    for option, given, name, part in works_on:
        if given is not None and part is not None and not isinstance(part, np.ndarray):
            raise ValueError(
                f"`{option}` works on one array. Expected `{name}` as one NumPy array. Received: a "
                f"{type(part).__name__} of arrays. Leave `{option}` out, and do the same to the "
                "arrays before or in the model"
            )


def batches(batch_size, overlap):
    """Refuses batches of no size.

    Raises:
        ValueError: see above, or an odd size with `overlap`.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be 1 or more. Received: batch_size={batch_size}")
    if overlap and batch_size % 2:
        raise ValueError(
            "`batch_size` must be even with `overlap=True`, which repeats half of each batch. "
            f"Received: batch_size={batch_size}"
        )


def augmentation(augment):
    """Refuses what doesn't augment.

    Raises:
        TypeError: something without the two methods.
    """
    parts = augment if isinstance(augment, list | tuple) else [augment]
    for part in parts if augment is not None else []:
        # A class has the methods too: `ZeroPixels` for `ZeroPixels()`.
        if isinstance(part, type) or not isinstance(part, Augmentation):
            raise TypeError(
                "`augment` must have the methods `draw` and `apply`, as `kdtoolkit.data.FlipShift` "
                f"has. Received: {part!r}. Other Keras layers belong in the model"
            )


def views(count, augment, mix, overlap):
    """Refuses a number of views that isn't one, or of what has none.

    Raises:
        ValueError: see above.
    """
    if count is None:
        return
    if not is_whole(count) or count < 1:
        raise ValueError(f"`views` must be an integer >= 1, or None. Received: views={count!r}")
    if augment is None or mix is not None or overlap:
        raise ValueError(
            "`views` numbers the augmented views of single examples. Expected `augment`, and "
            "neither `mix` nor `overlap`. Without augmentation there is one view, leave `views` out"
        )


def shard(given, examples, batch_size, overlap, drop_remainder):
    """Refuses a shard that isn't one, and batches that can't be cut in equal parts.

    Raises:
        ValueError: see above.
    """
    pair = isinstance(given, list | tuple) and len(given) == 2 and all(map(is_whole, given))
    if not pair or not 0 <= given[0] < given[1]:
        raise ValueError(
            "`shard` must be two integers (index, count) with 0 <= index < count. "
            f"Received: shard={given!r}"
        )
    count = given[1]
    if count == 1:
        return
    if overlap:
        raise ValueError(
            "`shard` doesn't go with `overlap=True`: the half of a batch that is repeated would "
            "belong to another process. Leave one of them out"
        )
    if batch_size % count:
        raise ValueError(
            "`batch_size` is that of all processes together, and each takes an equal part. "
            f"Expected a multiple of {count}. Received: batch_size={batch_size}"
        )
    if examples % count and not drop_remainder:
        raise ValueError(
            f"The last batch has {examples % batch_size} examples, which can't be cut in {count} "
            "equal parts. Expected `drop_remainder=True`, or a number of examples that is a "
            f"multiple of {count}"
        )
