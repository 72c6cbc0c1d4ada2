"""The flow of the solution procedure: how one layer leads to the next."""

from keras import ops

from kdtoolkit import functional
from kdtoolkit.functional.positions import check_common_layout
from kdtoolkit.functional.relation import flow_matrix
from kdtoolkit.losses.feature.base import LayeredLoss, as_pairs
from kdtoolkit.losses.feature.projector import projector
from kdtoolkit.registry import public


def _steps(layers):
    """Each layer with the next one."""
    return list(zip(layers[:-1], layers[1:], strict=True))


@public
class FlowOfSolutions(LayeredLoss):
    """FSP: from each layer to the next, the student's features change as the source's do.

        sum over steps l of mean over c, d of (G^S_cd - G^T_cd)^2
        G_cd = mean over positions of F_l,c F_l+1,d

    `source_layer` and `student_layer` of the transfer are lists of at least two layers, shallow to
    deep. Where a step makes the maps smaller, the larger ones are averaged to the smaller size. The
    two networks may have different sizes and kinds; where their channels differ, a learned linear
    layer over the channels brings the student's to the number of the source's. It is trained, saved
    with the distiller, and never part of the student.

    Each example has a value of its own: no other example takes part.

    Source: Yim et al., 2017, "A Gift from Knowledge Distillation" (CVPR), for networks of equal
    channels, and in two stages: this alone first, then the labels alone; see the method's card. The
    paper sums over the entries of G (`average=False`). CRD's benchmark takes their mean, with
    weight 50; that keeps wide layers from drowning the others and is the default here. It averages
    larger maps to the smaller size, as this loss does, where torchdistill takes the maximum.

    Args:
        average: whether the squared error is averaged over a matrix's entries (default) or summed.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: when connected, fewer than two layers, different numbers of layers, or maps next
            to tokens that form no grid.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> source, student = np.ones((2, 4, 4, 3)), np.zeros((2, 4, 4, 3))
        >>> loss = losses.FlowOfSolutions()
        >>> each = loss.values([source, source], [student, source])
        >>> [float(v) for v in each]
        [1.0, 1.0]
    """

    def __init__(self, average=True, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.average = average

    def check_shapes(self, source, student):
        pairs = as_pairs(source, student, "FlowOfSolutions")
        if not isinstance(source, list) or len(pairs) < 2:
            raise ValueError(
                "FlowOfSolutions compares how each layer leads to the next and expects a list of "
                f"at least 2 layers from each network, shallow to deep. Received: source {source} "
                f"and student {student}"
            )
        for layers in (source, student):
            for shape in layers:
                functional.check_features(shape, "FlowOfSolutions")
            for step in _steps(layers):
                check_common_layout(*step, "FlowOfSolutions")

    def make_layers(self, source, student):
        return [self._projector(*pair) for pair in zip(source, student, strict=True)]

    def _projector(self, source, student):
        if source[-1] == student[-1]:
            return None
        return projector((*student[:-1], source[-1]), student)

    def values(self, source, student):
        self.prepare(source, student)
        student = [
            features if layer is None else layer(features, training=self.training)
            for layer, features in zip(self._layers, student, strict=True)
        ]
        total = 0.0
        for old, new in zip(_steps(source), _steps(student), strict=True):
            errors = ops.square(flow_matrix(*new) - flow_matrix(*old))
            total = total + (ops.mean if self.average else ops.sum)(errors, axis=(1, 2))
        return total

    def get_config(self):
        return {**super().get_config(), "average": self.average}
