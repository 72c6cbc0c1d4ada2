"""OFD: regression of what a teacher's ReLU lets through, and a little of what it doesn't."""

import math

import numpy as np
from keras import layers, ops

from kdtoolkit import functional
from kdtoolkit.losses.feature.base import FeatureLoss, as_pairs
from kdtoolkit.losses.feature.projector import projector
from kdtoolkit.registry import public

# Beyond this, a normal variable is below 0 so rarely that erfc underflows.
_FAR = 30.0


def _mean_below_zero(mean, deviation):
    """E[x | x < 0] of a normal variable."""
    if deviation == 0:
        return min(mean, 0.0)
    ratio = mean / deviation
    if ratio > _FAR:
        return -deviation / ratio
    density = math.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)
    below = 0.5 * math.erfc(ratio / math.sqrt(2))
    return mean - deviation * density / below


def bn_margin(layer):
    """Margins for `Overhaul` from the batch normalisation before a ReLU, one per channel.

        m = beta - |gamma| * phi(beta / |gamma|) / Phi(-beta / |gamma|)

    It takes a channel as a normal variable of mean beta and deviation |gamma|, and returns its mean
    where it is below 0; phi and Phi are the standard normal density and distribution.

    Source: Heo et al., 2019, arXiv:1904.01866. The authors' code returns `-3 |gamma|` where a
    channel is below 0 less than once in a thousand times; here the formula holds for all.

    Args:
        layer: a built `keras.layers.BatchNormalization` of the source, whose output is compared.

    Returns:
        NumPy array `(channels,)`, below or at 0.

    Raises:
        TypeError: another kind of layer.
        ValueError: a layer that isn't built.

    Example:
        >>> import keras
        >>> from kdtoolkit.losses.feature.overhaul import bn_margin
        >>> layer = keras.layers.BatchNormalization()
        >>> layer.build((None, 2))
        >>> [round(float(m), 4) for m in bn_margin(layer)]
        [-0.7979, -0.7979]
    """
    if not isinstance(layer, layers.BatchNormalization):
        raise TypeError(
            "bn_margin reads a `keras.layers.BatchNormalization`, such as "
            f"`teacher.get_layer('stage1_norm')`. Received: {layer!r}"
        )
    if not layer.built:
        raise ValueError(f"bn_margin reads a layer with weights. Received: {layer!r}, not built")
    channels = layer.moving_mean.shape[0]
    beta = ops.convert_to_numpy(layer.beta) if layer.center else np.zeros(channels)
    gamma = ops.convert_to_numpy(layer.gamma) if layer.scale else np.ones(channels)
    pairs = zip(beta.tolist(), np.abs(gamma).tolist(), strict=True)
    return np.array([_mean_below_zero(*pair) for pair in pairs])


def partial_squares(source, student, margin):
    """`(t - student)^2` with `t = max(source, margin)`, 0 where `student <= t <= 0`.

    Args:
        source, student: float tensors of one shape, channels last.
        margin: tensor `(channels,)`, at or below 0.

    Returns:
        Tensor of their shape.

    Example:
        >>> from kdtoolkit.losses.feature.overhaul import partial_squares
        >>> squares = partial_squares([[-3.0, -3.0, 1.0]], [[-2.0, 1.0, 0.0]], [-1.0, -1.0, -1.0])
        >>> [float(v) for v in squares[0]]
        [0.0, 4.0, 1.0]
    """
    target = ops.maximum(source, margin)
    negative_enough = ops.logical_and(student <= target, target <= 0)
    return ops.where(negative_enough, 0.0, ops.square(target - student))


class _Connector(layers.Layer):
    """The student's 1x1 convolution with batch normalisation, and the source's margins.

    Args:
        projector: a built `Projector`.
        channels: int, of the source.
        margin: list of `channels` floats, or None for the mean of all negative responses so far.
    """

    def __init__(self, projector, channels, margin):
        super().__init__(dtype="float32", autocast=False)
        self.projector = projector
        self.margin = margin
        if margin is None:
            # A replica sees a part of the batch; what they hold is averaged.
            options = {"initializer": "zeros", "trainable": False, "aggregation": "mean"}
            self.mean = self.add_weight(shape=(channels,), name="negative_mean", **options)
            self.count = self.add_weight(shape=(channels,), name="negative_count", **options)
        self.built = True

    def call(self, student, training=None):
        return self.projector(student, training=training)

    def margin_of(self, source, training):
        """The margins, `(channels,)`, after a look at this batch if `training`."""
        if self.margin is not None:
            return ops.convert_to_tensor(self.margin, dtype=source.dtype)
        if not training:
            return ops.cast(self.mean, source.dtype)
        negative = ops.minimum(functional.as_tokens(source), 0.0)
        number = ops.cast(ops.count_nonzero(negative, axis=(0, 1)), self.count.dtype)
        count = self.count + number
        change = ops.cast(ops.sum(negative, axis=(0, 1)), self.mean.dtype) - number * self.mean
        mean = self.mean + change / ops.maximum(count, 1.0)
        self.count.assign(count)
        self.mean.assign(mean)
        return ops.cast(mean, source.dtype)


@public
class Overhaul(FeatureLoss):
    """Overhaul of feature distillation (OFD): partial squared distance before the ReLU.

        t = max(source, m),  s = r(student)
        mean over positions and channels of  0 where s <= t <= 0,  else (t - s)^2

    It reads features before the ReLU, of both networks. The margin m < 0 of a channel is the mean
    of its negative responses, E[x | x < 0]: below it, a teacher's number says nothing. Where the
    teacher is negative, the student only has to be as negative. r is a 1x1 convolution without bias
    and batch normalisation (a strided or transposed one where the resolutions differ, see `Hint`);
    it is trained, saved with the distiller, and never part of the student.

    Source: Heo et al., 2019, arXiv:1904.01866. The paper sums where this takes the mean, weighs the
    deepest layer by 1e-3 (1e-4 on ImageNet) and halves the weight with each layer before it. One
    layer's sum is its mean times `height * width * channels`: 4.1 for 1e-3 and 8 x 8 x 64 features.
    A network that doubles its channels where it halves its sides gives the same product, halving
    included, at every layer. So give the transfer that product of the deepest layer as its weight.

    Args:
        margin: `None` (default) for the mean over all negative responses seen in training, kept
            with the loss's layers; or numbers at or below 0, one per channel of the source, such as
            `bn_margin(layer)` computes from a batch normalisation as in the paper; for several
            pairs of layers a list with such numbers for each.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: margins that aren't numbers at or below 0; when connected, another number of
            them than channels or layers, or shapes that no projector can match.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> loss = losses.Overhaul(margin=[-1.0, -1.0])
        >>> source, student = -2.0 * np.ones((2, 4, 4, 2)), np.zeros((2, 4, 4, 3))
        >>> float(loss(source, student))
        1.0
    """

    def __init__(self, margin=None, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.margin = None if margin is None else _checked(margin)

    def check_pair(self, source, student):
        super().check_pair(source, student)
        functional.check_arrangement(student, source, "Overhaul")

    def check_shapes(self, source, student):
        super().check_shapes(source, student)
        pairs = as_pairs(source, student, "Overhaul")
        expected = [pair[0][-1] for pair in pairs]
        found = expected if self.margin is None else [len(margin) for margin in self.margin]
        if found != expected:
            raise ValueError(
                "`margin` of Overhaul must hold one number per channel of each source layer: "
                f"expected {expected} numbers. Received: {found}. Leave `margin` out for the mean "
                "of the negative responses."
            )

    def make_layers(self, source, student):
        pairs = as_pairs(source, student, "Overhaul")
        margins = self.margin or [None] * len(pairs)
        return [self._connector(*pair, m) for pair, m in zip(pairs, margins, strict=True)]

    def _connector(self, source, student, margin):
        connector = projector(source, student, norm=True, use_bias=False)
        return _Connector(connector, source[-1], margin)

    def pair_values(self, source, student, layer):
        margin = layer.margin_of(source, self.training)
        student = layer(student, training=self.training)
        return functional.per_example(partial_squares(source, student, margin))

    def get_config(self):
        return {**super().get_config(), "margin": self.margin}


def _checked(margin):
    """Margins as a list of lists of floats, one for each pair of layers."""
    try:
        several = np.ndim(margin[0]) > 0
        rows = [np.asarray(row, "float64") for row in (margin if several else [margin])]
    except (TypeError, ValueError, LookupError):
        rows = []
    if not rows or not all(row.ndim == 1 and np.all(row <= 0) for row in rows):
        raise ValueError(
            "`margin` of Overhaul must be None, numbers <= 0 for the channels of a layer, or a "
            f"list of those for several layers. Received: margin={margin!r}"
        )
    return [row.tolist() for row in rows]
