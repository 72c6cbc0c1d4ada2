"""Variational information distillation: how well the student's features predict the source's."""

import math

from keras import initializers, layers, ops

from kdtoolkit import functional, scalars
from kdtoolkit.functional.positions import check_common_layout, in_common
from kdtoolkit.losses.feature.base import FeatureLoss
from kdtoolkit.registry import public

# No channel's variance goes below this, however well it is predicted: the loss stays bounded.
LEAST_VARIANCE = 1e-5


class GaussianPredictor(layers.Layer):
    """Predicts features as a normal distribution: a mean from its input, a variance per channel.

    The mean is three linear layers over the channels, with ReLU between them. The variances are
    weights of their own: they depend neither on the input nor on the position.

    Args:
        channels: how many channels to predict.
        hidden: channels of the two inner layers.
        variance: what all variances start from.
        name: the layer's name.
    """

    def __init__(self, channels, hidden, variance, name=None):
        super().__init__(name=name, dtype="float32", autocast=False)
        sizes = ((hidden, "relu"), (hidden, "relu"), (channels, None))
        self._maps = [layers.Dense(units, kind, dtype="float32") for units, kind in sizes]
        # The inverse of softplus, written so that it doesn't overflow.
        above = variance - LEAST_VARIANCE
        self._start = above + math.log(-math.expm1(-above))

    def build(self, shape):
        for dense in self._maps:
            dense.build(shape)
            shape = (*shape[:-1], dense.units)
        self._spread = self.add_weight(
            shape=(shape[-1],), initializer=initializers.Constant(self._start), name="spread"
        )
        self.built = True

    def call(self, features):
        for dense in self._maps:
            features = dense(features)
        return features

    @property
    def variance(self):
        """The variance of each channel, `(channels,)`: softplus of a weight, plus 1e-5."""
        return ops.softplus(ops.convert_to_tensor(self._spread)) + LEAST_VARIANCE


@public
class VariationalInformation(FeatureLoss):
    """Variational information distillation (VID): negative log-likelihood of the source's features.

        mean_ic ((source_ic - mu_c(student)_i)^2 / v_c + log v_c) / 2

    i runs over the positions, c over the source's channels. mu is a small network over the
    student's channels (three linear layers with ReLU between them: 1x1 convolutions on maps), and
    v_c = softplus(a_c) + 1e-5 is a learned variance: a channel that the student can't predict gets
    a large one, and counts less. To minimise it is to maximise a lower bound of the mutual
    information of the two layers. It may be negative. mu and the variances are trained, saved with
    the distiller, and never part of the student.

    Where the grids differ, the features of the larger one are first averaged down to the smaller
    one (adaptive average pooling; tokens are read as a grid, and a vector meets the mean over the
    positions).

    Source: Ahn et al., 2019, arXiv:1904.05835, which sums over positions and channels. The CRD
    benchmark's code takes the mean, with weight 1 and the variances starting from 5; so do we. Its
    convolutions have no bias, ours have one.

    Args:
        hidden: channels inside mu, at least 1. None (default) takes the source's channels.
        variance: what all variances start from, > 1e-5. Defaults to 5.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: `hidden` or `variance` out of range; when connected, tokens that form no grid
            against a map.

    Example:
        >>> import math, numpy as np
        >>> from kdtoolkit import losses
        >>> zeros = np.zeros((2, 4, 4, 3))
        >>> value = losses.VariationalInformation(variance=math.e)(zeros, zeros)
        >>> round(float(value), 4)
        0.5
    """

    def __init__(
        self,
        hidden=None,
        variance=5.0,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        owner = "VariationalInformation"
        self.hidden = hidden if hidden is None else scalars.whole(hidden, "hidden", owner)
        self.variance = scalars.checked(variance, "variance", owner, above=LEAST_VARIANCE)

    def check_pair(self, source, student):
        super().check_pair(source, student)
        check_common_layout(source, student, "VariationalInformation")

    def make_layer(self, source, student):
        channels = source[-1]
        predictor = GaussianPredictor(channels, self.hidden or channels, self.variance)
        layout = check_common_layout(source, student, "VariationalInformation")
        predictor.build((None, *layout[1:-1], student[-1]))
        return predictor

    def pair_values(self, source, student, layer):
        source, student = in_common(source, student)
        variance = layer.variance
        squared = ops.square(source - layer(student))
        return functional.per_example(squared / variance + ops.log(variance)) / 2

    def get_config(self):
        return {**super().get_config(), "hidden": self.hidden, "variance": self.variance}
