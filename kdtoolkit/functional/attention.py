"""Where features are strong."""

import keras
from keras import ops

from kdtoolkit import scalars
from kdtoolkit.functional.numbers import at_least_float32, largest


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

    Raises:
        ValueError: a power below 1.

    Example:
        >>> from kdtoolkit.functional.attention import attention
        >>> [float(v) for v in attention([[[1.0, 0.0], [2.0, 0.0]]])[0, :, 0]]
        [0.125, 0.5]
    """
    if not ops.is_tensor(power) and not isinstance(power, keras.Variable):
        scalars.checked(power, "power", "attention", minimum=1.0)
    features = at_least_float32(features, 2)
    axes = tuple(range(1, len(features.shape)))
    size = ops.stop_gradient(largest(features, axes))
    features = features / ops.where(size == 0, 1.0, size)
    powers = ops.square(features) if power == 2 else ops.power(ops.abs(features), power)
    return ops.mean(powers, axis=-1, keepdims=True)
