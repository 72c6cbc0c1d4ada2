"""Masks of pruned weights: which ones go, exactly as many as asked."""

import math

import numpy as np
from keras import ops

from kdtoolkit.compress.changed import WeightChange
from kdtoolkit.registry import public


@public
class Mask(WeightChange):
    """Sets pruned weights to zero: `w * mask`. Their gradient is zero too.

    Args:
        index: int, which weight of the layer.
        scope: `"layer"` or `"global"`, whether the weight competes with those of other layers.
        pattern: None, or (n, m): of each m neighbours along `axis`, n stay.
        axis: int, axis of the pattern.

    Attributes:
        mask: bool variable of the weight's shape, False where it is pruned.
    """

    def __init__(self, index, scope="layer", pattern=None, axis=None, **kwargs):
        super().__init__(index, **kwargs)
        self.scope = scope
        self.pattern = None if pattern is None else tuple(pattern)
        self.axis = axis

    def build(self, shape):
        self.mask = self.add_weight(
            name="mask", shape=shape, dtype="bool", initializer="ones", trainable=False
        )

    def call(self, weight):
        return ops.where(ops.convert_to_tensor(self.mask), weight, ops.zeros_like(weight))

    def get_config(self):
        own = {"scope": self.scope, "pattern": self.pattern, "axis": self.axis}
        return {**super().get_config(), **own}


def smallest_pruned(magnitudes, sparsity):
    """Masks that prune the smallest of all given magnitudes together.

    Args:
        magnitudes: list of arrays >= 0 that compete; those pruned already hold -1, so that they
            stay.
        sparsity: share to prune, 0 to 1.

    Returns:
        List of bool arrays, False for exactly `round(sparsity * size)` entries over all, and for
        those that were pruned before if these are more.
    """
    flat = np.concatenate([np.ravel(part) for part in magnitudes])
    count = max(rounded(sparsity * flat.size), int((flat < 0).sum()))
    keep = np.ones(flat.size, bool)
    # A stable order makes ties, such as many equal weights, no matter of chance.
    keep[np.argsort(flat, kind="stable")[:count]] = False
    ends = np.cumsum([part.size for part in magnitudes])[:-1]
    return [
        part.reshape(own.shape) for part, own in zip(np.split(keep, ends), magnitudes, strict=True)
    ]


def rounded(value):
    """The nearest whole number, halves up: Python rounds them to even ones."""
    return math.floor(value + 0.5)


def pattern_kept(magnitudes, pattern, axis, sparsity):
    """The mask of an N:M pattern.

    Args:
        magnitudes: array >= 0, -1 where pruned already.
        pattern: (n, m).
        axis: the axis along which m neighbours form a group; its length is a multiple of m.
        sparsity: share to prune at this moment, at most (m - n) / m. Of each group
            `round(sparsity * m)` go.
    """
    m = pattern[1]
    moved = np.moveaxis(magnitudes, axis, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, m)
    ranks = groups.argsort(-1, kind="stable").argsort(-1, kind="stable")
    keep = ranks >= rounded(sparsity * m)
    return np.moveaxis(keep.reshape(moved.shape), -1, axis) & (magnitudes >= 0)
