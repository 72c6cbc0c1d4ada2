"""What the losses between relations have in common: they need a batch, and no projector."""

from kdtoolkit import functional
from kdtoolkit.losses.feature.base import FeatureLoss


class RelationLoss(FeatureLoss):
    """A loss between relations that the examples of a batch have in two networks.

    The relations have no channels, so networks of any width and kind fit, and nothing is projected.
    A subclass fills in `compare`.
    """

    def __init__(self, pool=True, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.pool = pool

    def pair_values(self, source, student, layer):
        functional.check_pairs(student.shape, type(self).__name__)
        as_one_vector = functional.pooled if self.pool else functional.as_vectors
        return self.compare(as_one_vector(source), as_one_vector(student))

    def compare(self, source, student):
        """One value per example from one vector per example, `(batch, features)`."""
        raise NotImplementedError(f"{type(self).__name__} must define `compare(source, student)`.")

    def get_config(self):
        return {**super().get_config(), "pool": self.pool}
