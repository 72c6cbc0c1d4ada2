"""Similarity of each example to the others, as inner products or as probabilities."""

from keras import ops

from kdtoolkit import functional
from kdtoolkit.functional.relation import cosine_similarities, gram_matrix, unit_vectors
from kdtoolkit.losses.relation.base import RelationLoss
from kdtoolkit.registry import public


@public
class SimilarityPreserving(RelationLoss):
    """Examples that activate the source alike shall activate the student alike.

        |G^S - G^T|_F^2 / batch^2,  G = F F^T with rows of length 1

    F has an example's features in each row. Nothing changes when one network's features are scaled
    or rotated, or when the same examples change their sign in both. An example's value is the mean
    over its row of the squared difference.

    Source: Tung and Mori, 2019, arXiv:1907.09682, with weight 3000 at the last stage's maps.

    Args:
        pool: whether maps and tokens are averaged over their positions first, or flattened.
            Defaults to False: the paper flattens the last maps.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: when called, a batch known to hold one example. Where the size isn't known in
            advance, such a batch costs nothing.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> loss = losses.SimilarityPreserving()
        >>> alike, unlike = np.array([[1.0, 0.0], [1.0, 0.0]]), np.eye(2)
        >>> round(float(loss(unlike, 3 * unlike)), 4), round(float(loss(unlike, alike)), 4)
        (0.0, 0.2929)
    """

    def __init__(self, pool=False, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(pool=pool, reduction=reduction, name=name, dtype=dtype)

    def compare(self, source, student):
        source, student = (unit_vectors(gram_matrix(vectors)) for vectors in (source, student))
        return functional.per_example(ops.square(student - source))


@public
class ProbabilisticTransfer(RelationLoss):
    """PKT: each example's nearness to the others is a distribution; match the source's.

        KL_i = sum_j p_ij log(p_ij / q_ij)
        p_ij = K_ij / sum_j K_ij,  K_ij = (cos(x_i, x_j) + 1) / 2

    p comes from the source, q likewise from the student; j runs over the examples other than i.
    Nothing changes when single examples' features are scaled, or when a network's are rotated. An
    example's value is KL_i.

    The logarithm is that of `(p + 1e-7) / (q + 1e-7)`, as in the authors' code: without it, a
    student with two examples that are exact opposites would cost infinitely much.

    Source: Passalis and Tefas, 2018, arXiv:1803.10837. The paper sums over the examples
    (`reduction="sum"`); here Keras takes their mean, as for every loss. The authors' code and CRD's
    benchmark let j run over all examples, i itself included (`include_self=True`), and take the
    mean over i and j. The benchmark's weight of 30000 is therefore 30000 / batch here: 469 for its
    batches of 64.

    Args:
        include_self: whether an example's similarity to itself, which is always 1 before the
            division, takes part. Defaults to False, as in the paper.
        pool: whether maps and tokens are averaged over their positions first, or flattened.
            Defaults to True: paper and benchmarks compare one feature vector per example.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: when called, a batch known to hold one example. Where the size isn't known in
            advance, such a batch costs nothing. So does one of two without `include_self`: each has
            only the other to be near to.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> loss = losses.ProbabilisticTransfer()
        >>> source = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> round(float(loss(source, 2 * source)), 4)
        0.0
        >>> round(float(loss(source, np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))), 4)
        0.0321
    """

    def __init__(
        self,
        include_self=False,
        pool=True,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(pool=pool, reduction=reduction, name=name, dtype=dtype)
        self.include_self = include_self

    def _probabilities(self, vectors):
        kernel = (cosine_similarities(vectors) + 1) / 2
        if not self.include_self:
            kernel = kernel * (1 - ops.eye(ops.shape(kernel)[0], dtype=kernel.dtype))
        total = ops.sum(kernel, axis=-1, keepdims=True)
        return kernel / ops.where(total > 0, total, 1.0)

    def compare(self, source, student):
        p, q = self._probabilities(source), self._probabilities(student)
        epsilon = 1e-7
        return ops.sum(p * (ops.log(p + epsilon) - ops.log(q + epsilon)), axis=-1)

    def get_config(self):
        return {**super().get_config(), "include_self": self.include_self}
