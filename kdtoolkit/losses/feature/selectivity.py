"""Neuron selectivity transfer: the same set of patterns, whichever channel shows which."""

import math

from keras import ops

from kdtoolkit import functional
from kdtoolkit.functional.positions import check_common_layout, check_positions, in_common
from kdtoolkit.losses.feature.base import FeatureLoss
from kdtoolkit.registry import public

# Squared distances of vectors of length 1 that are smaller than this may be rounding alone.
_ROUNDING = 1e-5


@public
class NeuronSelectivity(FeatureLoss):
    """Neuron selectivity transfer (NST): MMD^2 between the two sets of channels' patterns.

        mean_cd k(s_c, s_d) + mean_cd k(z_c, z_d) - 2 mean_cd k(s_c, z_d)

    s_c is what one channel of the source shows over the positions, divided by its L2 norm; z_d the
    same of the student. The kernel k(x, y) is

        polynomial:  (x . y)^2
        linear:      x . y
        gaussian:    exp(-|x - y|^2 / (2 v)),  v = mean_cd |s_c - z_d|^2

    so channels needn't correspond, their numbers may differ, and nothing is learned. Their order
    and their positive scales don't matter. With the polynomial kernel the loss is the squared
    distance between the networks' Gram matrices over the positions; with the linear one it compares
    the mean patterns, a relative of attention transfer. v is held constant in the gradient, and is
    of one example.

    Where the grids differ, the features of the larger one are first averaged down to the smaller
    one (adaptive average pooling; tokens are read as a grid). A dead channel counts as a pattern of
    zeros.

    Source: Huang and Wang, 2017, arXiv:1707.01219; the polynomial kernel has degree 2 and no
    constant. The CRD benchmark gives it the weight 50.

    Args:
        kernel: "polynomial" (default), "linear" or "gaussian".
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: an unknown kernel; when connected, vectors, features of one position, or tokens
            that form no grid against a map.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> source, student = np.array([[[3.0], [0.0]]]), np.array([[[0.0], [3.0]]])
        >>> float(losses.NeuronSelectivity()(source, student))
        2.0
    """

    kinds = ("tokens", "maps")

    def __init__(self, kernel="polynomial", reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        if not isinstance(kernel, str) or kernel not in _KERNELS:
            raise ValueError(
                f"`kernel` of NeuronSelectivity must be one of {tuple(_KERNELS)}. "
                f"Received: kernel={kernel!r}"
            )
        self.kernel = kernel

    def check_pair(self, source, student):
        super().check_pair(source, student)
        owner = "NeuronSelectivity"
        check_positions(check_common_layout(source, student, owner), owner)

    def pair_values(self, source, student, layer):
        source, student = (
            functional.unit_vectors(ops.transpose(functional.as_tokens(one), (0, 2, 1)))
            for one in in_common(source, student)
        )
        return _KERNELS[self.kernel](source, student)

    def get_config(self):
        return {**super().get_config(), "kernel": self.kernel}


def _products(x, y):
    return ops.matmul(x, ops.transpose(y, (0, 2, 1)))


def _discrepancy(kernel, source, student):
    """MMD^2 of two sets of patterns `(batch, channels, positions)`, one value per example."""
    within = [functional.per_example(kernel(one, one)) for one in (source, student)]
    return within[0] + within[1] - 2 * functional.per_example(kernel(source, student))


def _polynomial(source, student):
    channels, positions = (source.shape[1], student.shape[1]), source.shape[2]
    if positions**2 > math.prod(channels):
        return _discrepancy(lambda x, y: ops.square(_products(x, y)), source, student)
    # The same, from smaller matrices where there are more channels than positions.
    turned = [ops.transpose(one, (0, 2, 1)) for one in (source, student)]
    grams = [_products(one, one) / count for one, count in zip(turned, channels, strict=True)]
    return ops.sum(ops.square(grams[0] - grams[1]), axis=(1, 2))


def _linear(source, student):
    return ops.sum(ops.square(ops.mean(source, axis=1) - ops.mean(student, axis=1)), axis=-1)


def _squared_distances(x, y):
    sizes = [ops.sum(ops.square(one), axis=-1) for one in (x, y)]
    return ops.maximum(sizes[0][:, :, None] + sizes[1][:, None, :] - 2 * _products(x, y), 0.0)


def _gaussian(source, student):
    width = functional.per_example(ops.stop_gradient(_squared_distances(source, student)))
    # Where all patterns agree, the distances are rounding, and nothing to measure others by.
    width = ops.where(width > _ROUNDING, width, 1.0)[:, None, None]
    return _discrepancy(
        lambda x, y: ops.exp(-_squared_distances(x, y) / (2 * width)), source, student
    )


_KERNELS = {"polynomial": _polynomial, "linear": _linear, "gaussian": _gaussian}
