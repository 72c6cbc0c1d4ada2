"""Activation boundaries: on which side of zero each neuron is."""

from keras import ops

from kdtoolkit import functional
from kdtoolkit.losses.feature.base import FeatureLoss
from kdtoolkit.losses.feature.projector import projector_where_needed
from kdtoolkit.registry import public
from kdtoolkit.scalars import Scalar


@public
class ActivationBoundaries(FeatureLoss):
    """Distillation of activation boundaries (AB): neurons shall be active where the source's are.

        mean of relu(m - r(student))^2  where source > 0
                relu(m + r(student))^2  elsewhere

    Both read what goes into an activation function, such as the layer path "stage2:input" of a
    ReLU. Of the source only the sign counts. The student shall lie on the same side of 0, by a
    margin m; beyond it nothing is asked of it, so a neuron's size is free. r is a linear layer with
    batch normalisation (`Projector(norm=True)`, without a bias) where the shapes differ, and
    nothing where they agree.

    The mean is over positions and channels. The paper sums over them, so its loss is this times
    `positions * channels`. The authors' code multiplies the sum by 3/1000 and halves it with each
    earlier stage; for their CIFAR teacher (WRN-22-4) that is this loss with weight 49 at every
    stage, since each earlier stage has twice as many neurons.

    Source: Heo et al., 2019, arXiv:1811.03233. There it initialises the student, alone and before
    any labels: see the method's card.

    Args:
        margin: m > 0. Defaults to 1.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: a margin that isn't > 0 and finite; when connected, shapes that no projector can
            match.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> loss, source = losses.ActivationBoundaries(), np.array([[9.0]])
        >>> [float(loss(source, np.array([[z]]))) for z in (2.0, 0.5, -1.0)]
        [0.0, 0.25, 4.0]
    """

    margin = Scalar(above=0.0)

    def __init__(self, margin=1.0, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.margin = margin

    def check_pair(self, source, student):
        super().check_pair(source, student)
        functional.check_arrangement(student, source, "ActivationBoundaries")

    def make_layer(self, source, student):
        return projector_where_needed(source, student, norm=True, use_bias=False)

    def pair_values(self, source, student, layer):
        if layer is not None:
            student = layer(student, training=self.training)
        # NaN, which is on neither side, stays NaN.
        inactive = ops.where(source <= 0, -student, source)
        inside = ops.where(source > 0, student, inactive)
        margin = ops.cast(self.margin, inside.dtype)
        return functional.per_example(ops.square(ops.relu(margin - inside)))
