"""Channel-wise distillation: where each channel is strong."""

from keras import ops

from kdtoolkit import functional
from kdtoolkit.functional.positions import check_positions
from kdtoolkit.losses.feature.base import FeatureLoss
from kdtoolkit.losses.feature.projector import projector_where_needed
from kdtoolkit.registry import public
from kdtoolkit.scalars import Scalar


@public
class ChannelWise(FeatureLoss):
    """Channel-wise distillation (CWD): for each channel, KL of distributions over the positions.

        T^2 / C * sum_c KL(softmax_i(source_ci / T) || softmax_i(r(student)_ci / T))

    i runs over the positions, c over the C channels of the source. A channel counts by where it is
    strong: a constant added to all its positions changes nothing. r is a `Projector` to the
    source's channels, resolution and kind where the shapes differ, and nothing where they agree:
    the score maps of two segmentation networks, class by class, need none.

    Source: Shu et al., 2021, arXiv:2011.13256; the authors' example has T = 4 and the weight 3, on
    score maps. For feature maps their code puts batch normalisation and a ReLU behind its 1x1
    convolution; r is linear. MMRazor starts from T = 1.

    Args:
        temperature: T > 0. Above 1 it shows the student more than a channel's peak. Defaults to 4.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: a temperature that isn't > 0 and finite; when connected, vectors, a source of
            one position, or shapes that no projector can match.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> source, student = np.array([[[2.0], [0.0]]]), np.array([[[0.0], [0.0]]])
        >>> round(float(losses.ChannelWise(temperature=2.0)(source, student)), 4)
        0.4438
    """

    kinds = ("tokens", "maps")
    temperature = Scalar(above=0.0, maximum=1e9)

    def __init__(self, temperature=4.0, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.temperature = temperature

    def check_pair(self, source, student):
        super().check_pair(source, student)
        check_positions(source, "ChannelWise")
        functional.check_arrangement(student, source, "ChannelWise")

    def make_layer(self, source, student):
        return projector_where_needed(source, student)

    def pair_values(self, source, student, layer):
        if layer is not None:
            student = layer(student, training=self.training)
        # A channel's positions are the classes of its distribution.
        source, student = (
            ops.transpose(functional.as_tokens(one), (0, 2, 1)) for one in (source, student)
        )
        return functional.kl_divergence(source, student, self.temperature)
