"""Where features are strong, and how two networks' positions are brought together."""

import math

from keras import ops

from kdtoolkit.functional.logits import at_least_float32
from kdtoolkit.functional.positions import arrange, check_arrangement, smaller_layout


def check_positions(shape, owner):
    """Refuse features of one position, where a pattern over the positions says nothing.

    Args:
        shape: tuple with the batch first, channels last.
        owner: what the message calls the loss.

    Raises:
        ValueError: fewer than 2 positions.

    Example:
        >>> from kdtoolkit.functional.attention import check_positions
        >>> check_positions((None, 2, 2, 8), "my loss")
    """
    positions = math.prod(shape[1:-1])
    if positions < 2:
        raise ValueError(
            f"{owner} compares patterns over positions and expects at least 2 of them. Received: "
            f"shape {tuple(shape)}, which has {positions}. Read a layer before the last pooling."
        )


def check_common_layout(source, student, owner):
    """Refuse shapes that `in_common` can't bring to one layout; otherwise return that layout.

    Args:
        source, student: shapes, tuples with the batch first.
        owner: what the message calls the loss.

    Raises:
        ValueError: see `functional.check_arrangement`.

    Example:
        >>> from kdtoolkit.functional.attention import check_common_layout
        >>> check_common_layout((None, 8, 8, 16), (None, 4, 4, 64), "my loss")
        (None, 4, 4, 64)
    """
    layout = smaller_layout(source, student)
    for shape in (source, student):
        check_arrangement(shape, layout, owner)
    return layout


def in_common(source, student):
    """Both networks' features, laid out like those with the fewer positions.

    Args:
        source, student: tensors of any kind.

    Returns:
        Two tensors of the same layout, each with its own channels.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit.functional.attention import in_common
        >>> [tuple(x.shape) for x in in_common(np.ones((2, 4, 4, 3)), np.ones((2, 2, 2, 5)))]
        [(2, 2, 2, 3), (2, 2, 2, 5)]
    """
    source, student = at_least_float32(source), at_least_float32(student)
    layout = smaller_layout(source.shape, student.shape)
    return arrange(source, layout), arrange(student, layout)


def attention(features, power=2.0):
    """Where the features are strong: `mean_c |A_c|^p` at each position.

    Divided by the largest `|A|^p` of the example, which keeps large features and large powers
    within float32's range. The factor has no gradient: divide by the length, for instance with
    `functional.unit_vectors`, to be rid of it.

    Args:
        features: maps or tokens.
        power: p >= 1. The larger, the more the strongest positions stand out. Defaults to 2.

    Returns:
        Tensor of the same layout with one channel.

    Example:
        >>> from kdtoolkit.functional.attention import attention
        >>> [float(v) for v in attention([[[1.0, 0.0], [2.0, 0.0]]])[0, :, 0]]
        [0.125, 0.5]
    """
    features = at_least_float32(features)
    axes = tuple(range(1, len(features.shape)))
    largest = ops.stop_gradient(ops.max(ops.abs(features), axis=axes, keepdims=True))
    features = features / ops.where(largest > 0, largest, 1.0)
    powers = ops.square(features) if power == 2 else ops.power(ops.abs(features), power)
    return ops.mean(powers, axis=-1, keepdims=True)
