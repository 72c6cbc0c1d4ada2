"""Correlation congruence: kernel matrices over a batch."""

from keras import ops

from kdtoolkit import functional, scalars
from kdtoolkit.functional.relation import cosine_similarities
from kdtoolkit.losses.relation.base import RelationLoss
from kdtoolkit.registry import public
from kdtoolkit.scalars import Scalar


@public
class CorrelationCongruence(RelationLoss):
    """The student's matrix of correlations between examples agrees with the source's.

        |C^S - C^T|_F^2 / batch^2,  C_ij = kernel(x_i, x_j)

    of features x of length 1. The kernel is `<x, y>` (bilinear), or the Gaussian
    `exp(-gamma |x - y|^2)` by the first terms of its Taylor series:

        exp(-2 gamma) * sum over p = 0 ... order of (2 gamma)^p / p! * <x, y>^p

    Nothing changes when single examples' features are scaled, or when a network's are rotated. An
    example's value is the mean over its row of the squared difference.

    Source: Peng et al., 2019, arXiv:1904.01802, with the Gaussian kernel, order 2 and gamma 0.4;
    there beside `SoftTargets`, on batches in which each class comes several times. Elsewhere:
    torchdistill takes the root of the squared norm. CRD's benchmark, from code sent by an author,
    has `mean_i <|D_i|, |D_i+1|>` with the differences D of two learned embeddings, weight 0.02.
    That isn't offered here: it compares no correlations, and since it trains the embeddings of both
    networks, they can bring it to 0 without the student.

    Args:
        kernel: "gaussian" (default) or "bilinear".
        gamma: > 0, the Gaussian kernel's width. Defaults to 0.4.
        order: highest power of the Gaussian kernel's series, an integer >= 1. Defaults to 2.
        pool: whether maps and tokens are averaged over their positions first, or flattened.
            Defaults to True: the paper correlates embeddings, one per example.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: an unknown kernel, a gamma that isn't > 0 and finite, an order that isn't an
            integer >= 1; when called, a batch known to hold one example. Where the size isn't known
            in advance, such a batch costs nothing.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> alike, unlike = np.array([[1.0, 0.0], [1.0, 0.0]]), np.eye(2)
        >>> round(float(losses.CorrelationCongruence(kernel="bilinear")(alike, unlike)), 4)
        0.5
        >>> round(float(losses.CorrelationCongruence()(alike, unlike)), 4)
        0.1266
    """

    gamma = Scalar(above=0.0)

    def __init__(
        self,
        kernel="gaussian",
        gamma=0.4,
        order=2,
        pool=True,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(pool=pool, reduction=reduction, name=name, dtype=dtype)
        if kernel not in ("gaussian", "bilinear"):
            raise ValueError(
                "`kernel` of CorrelationCongruence must be 'gaussian' or 'bilinear'. "
                f"Received: kernel={kernel!r}"
            )
        self.kernel = kernel
        self.gamma = gamma
        self.order = scalars.whole(order, "order", "CorrelationCongruence")

    def _correlations(self, vectors):
        cosines = cosine_similarities(vectors)
        if self.kernel == "bilinear":
            return cosines
        scale = 2 * ops.cast(self.gamma, cosines.dtype)
        term = total = ops.ones_like(cosines)
        for power in range(1, self.order + 1):
            term = term * scale * cosines / power
            total = total + term
        return ops.exp(-scale) * total

    def compare(self, source, student):
        difference = self._correlations(student) - self._correlations(source)
        return functional.per_example(ops.square(difference))

    def get_config(self):
        return {**super().get_config(), "kernel": self.kernel, "order": self.order}
