"""Compression of a network: pruning, weight sharing, and training as the int8 file will compute.

Each function takes a functional or sequential model and returns another one, with weights of its
own, that trains in `fit` and in `kd.Distiller` like any. They follow one another: `prune`,
`cluster`, `quantize_aware`, each keeping what the one before did, after `prune_filters`; `strip`
gives a plain network.
"""

from kdtoolkit.compress.changed import Compressed
from kdtoolkit.compress.clusters import Clusters, cluster
from kdtoolkit.compress.filters import prune_filters
from kdtoolkit.compress.folding import fold_batchnorm
from kdtoolkit.compress.masks import Mask
from kdtoolkit.compress.pruning import GradualPruning, prune
from kdtoolkit.compress.quantization import quantize_aware
from kdtoolkit.compress.ranges import ActivationRange, RoundedWeight
from kdtoolkit.compress.recalibration import recalibrate_batchnorm
from kdtoolkit.compress.stripping import strip, summary

__all__ = [
    "ActivationRange",
    "Clusters",
    "Compressed",
    "GradualPruning",
    "Mask",
    "RoundedWeight",
    "cluster",
    "fold_batchnorm",
    "prune",
    "prune_filters",
    "quantize_aware",
    "recalibrate_batchnorm",
    "strip",
    "summary",
]
