"""Relational knowledge distillation: distances and angles between examples."""

from keras import ops

from kdtoolkit import functional
from kdtoolkit.functional.relation import angle_cosines, pairwise_distances
from kdtoolkit.losses.relation.base import RelationLoss
from kdtoolkit.registry import public


def _huber(difference):
    size = ops.abs(difference)
    return ops.where(size <= 1, 0.5 * ops.square(difference), size - 0.5)


def _relative_distances(vectors):
    """Distances divided by their mean over the pairs that differ."""
    distances = pairwise_distances(vectors)
    count = ops.sum(ops.cast(distances > 0, distances.dtype))
    mean = ops.sum(distances) / ops.maximum(count, 1.0)
    return distances / ops.where(mean > 0, mean, 1.0)


@public
class RelationalDistance(RelationLoss):
    """RKD-D: the student's examples lie as far from each other as the source's do.

        mean over all i, j of huber(d^S_ij - d^T_ij),  d_ij = |x_i - x_j| / mu

    mu is the network's own mean over the distances that aren't 0, and huber(e) is e^2 / 2 up to
    |e| = 1 and |e| - 1/2 beyond. Nothing changes when one network's features are scaled, shifted or
    rotated. An example's value is the mean over j.

    Source: Park et al., 2019, arXiv:1904.05068. The paper sums over the pairs; the authors' code,
    CRD's benchmark and this loss take the mean over all batch^2 entries, the zeros of i = j among
    them. The weight is 25 for classification (CRD's benchmark), beside 50 for `RelationalAngle`; 1
    and 2 for metric learning.

    Args:
        pool: whether maps and tokens are averaged over their positions first, or flattened.
            Defaults to True: the paper compares embeddings, the benchmarks read the pooled
            features. Vectors are taken as they are.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: when called, a batch known to hold one example. Where the size isn't known in
            advance, such a batch costs nothing. Nor does one of two: they have one distance, and no
            angle.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> source = np.array([[0.0], [1.0], [3.0]])
        >>> loss = losses.RelationalDistance()
        >>> round(float(loss(source, 10 * source)), 4)
        0.0
        >>> round(float(loss(source, np.array([[0.0], [1.0], [2.0]]))), 4)
        0.0139
    """

    def compare(self, source, student):
        difference = _relative_distances(student) - _relative_distances(source)
        return functional.per_example(_huber(difference))


@public
class RelationalAngle(RelationLoss):
    """RKD-A: three examples of the student form the same angles as the source's.

        mean over all j, i, k of huber(a^S_jik - a^T_jik),
        a_jik = <e_ij, e_kj>,  e_ij = (x_i - x_j) / |x_i - x_j|

    huber(e) is e^2 / 2 up to |e| = 1 and |e| - 1/2 beyond. Nothing changes when one network's
    features are scaled, shifted or rotated. An example's value is the mean over the angles at it.

    Each network takes a few tensors of batch^3 numbers, whatever its width: 8 MB each in float32
    for 128 examples, 540 MB for 512.

    Source: Park et al., 2019, arXiv:1904.05068. The paper sums over the triplets; the authors'
    code, CRD's benchmark and this loss take the mean over all batch^3 entries, among them those
    where two of the three are one example, which add nothing. The weight is 50 for classification
    (CRD's benchmark), twice that of `RelationalDistance`.

    Args:
        pool: whether maps and tokens are averaged over their positions first, or flattened.
            Defaults to True, as in `RelationalDistance`.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: when called, a batch known to hold one example. Where the size isn't known in
            advance, such a batch costs nothing. Nor does one of two: they have one distance, and no
            angle.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> source = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> loss = losses.RelationalAngle()
        >>> round(float(loss(source, 5 * source + 1)), 4)
        0.0
        >>> round(float(loss(source, source * [1.0, 2.0])), 4)
        0.0038
    """

    def compare(self, source, student):
        difference = angle_cosines(student) - angle_cosines(source)
        return functional.per_example(_huber(difference))
