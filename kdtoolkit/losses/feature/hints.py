"""FitNets: regression of the source's features."""

from keras import ops

from kdtoolkit import functional
from kdtoolkit.losses.feature.base import FeatureLoss
from kdtoolkit.losses.feature.projector import projector, projector_where_needed
from kdtoolkit.registry import public


@public
class Hint(FeatureLoss):
    """FitNets' hint: mean squared difference of features, behind a learned projector.

        mean (source - r(student))^2,  over positions and channels

    r is a linear layer over the channels, a strided or a transposed convolution, or a layer over
    tokens: whatever brings the student's features into the shape of the source's (vectors, tokens,
    maps, or the student's maps against a transformer's tokens). It is trained, saved with the
    distiller, and never part of the student.

    Source: Romero et al., 2015, arXiv:1412.6550. The paper writes half the squared norm, which is
    this times `positions * channels / 2`, and trains it alone, before the labels: see the method's
    card. CRD's benchmark trains it beside the labels, with weight 100, at the second of three
    stages, and adds batch normalisation and a ReLU to r; `norm=True` is the former, without which
    that weight diverges easily.

    Args:
        project: True for a projector always, False for none (shapes must agree), or "auto"
            (default) for one where the shapes differ.
        norm: whether batch normalisation follows the projector. Defaults to False.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: an unknown `project`; when connected, shapes that no projector can match, or
            that differ with `project=False`.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> source, student = np.ones((2, 4, 4, 3)), np.zeros((2, 4, 4, 3))
        >>> float(losses.Hint()(source, student))
        1.0
    """

    def __init__(
        self,
        project="auto",
        norm=False,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        if project not in (True, False, "auto"):
            raise ValueError(
                f"`project` of Hint must be True, False or 'auto'. Received: project={project!r}"
            )
        self.project = project
        self.norm = norm

    def check_pair(self, source, student):
        super().check_pair(source, student)
        functional.check_arrangement(student, source, "Hint")
        if self.project is False and source[1:] != student[1:]:
            raise ValueError(
                "Hint with project=False expects features of one shape. Received: source "
                f"{source} and student {student}. Leave `project` out for a learned projector."
            )

    def make_layer(self, source, student):
        if self.project is False:
            return None
        make = projector if self.project is True else projector_where_needed
        return make(source, student, norm=self.norm)

    def pair_values(self, source, student, layer):
        if layer is not None:
            student = layer(student, training=self.training)
        return functional.per_example(ops.square(source - student))

    def get_config(self):
        return {**super().get_config(), "project": self.project, "norm": self.norm}
