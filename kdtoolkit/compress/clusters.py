"""Weight sharing: the weights of a layer take few values, which train."""

import numpy as np
from keras import ops

from kdtoolkit.compress.changed import WeightChange
from kdtoolkit.compress.folding import fold_batchnorm
from kdtoolkit.compress.wrapping import compressed_layers, values_of, with_changes
from kdtoolkit.optional import require
from kdtoolkit.registry import public

GRADIENTS = ("mean", "sum")


@public
class Clusters(WeightChange):
    """Looks each weight up in a short table of values, `centroids[assignment]`.

    The table trains, the assignment stays.

    Args:
        index: int, which weight of the layer.
        count: int >= 1, how many values train; a fixed zero is one more.
        zero: bool, whether assignment 0 means a fixed zero.
        gradient: `"mean"` or `"sum"` over the weights that share a value.
    """

    rank = 1
    replaces = True

    def __init__(self, index, count, zero=False, gradient="mean", **kwargs):
        super().__init__(index, **kwargs)
        self.count = count
        self.zero = zero
        self.gradient = gradient

    def build(self, shape):
        self.centroids = self.add_weight(name="centroids", shape=(self.count,))
        self.assignment = self.add_weight(
            name="assignment", shape=shape, dtype="int32", initializer="zeros", trainable=False
        )
        self.members = self.add_weight(
            name="members", shape=(self.count,), initializer="ones", trainable=False
        )

    def assign(self, weight, seed_values):
        """Group a weight by k-means from first values, and keep the means."""
        flat = weight.reshape(-1)
        rows = np.flatnonzero(flat) if self.zero else np.arange(flat.size)
        labels, means = _k_means(flat[rows], seed_values)
        assignment = np.zeros(flat.size, "int32")
        assignment[rows] = labels + int(self.zero)
        self.assignment.assign(assignment.reshape(weight.shape))
        self.centroids.assign(means)
        self.members.assign(np.bincount(labels, minlength=self.count).clip(1))

    def call(self, weight):
        # The stored weight is read no more: what trains is the table.
        values = ops.convert_to_tensor(self.centroids)
        if self.gradient == "mean":
            fixed = ops.stop_gradient(values)
            values = fixed + (values - fixed) / ops.convert_to_tensor(self.members)
        if self.zero:
            values = ops.pad(values, [[1, 0]])
        return ops.take(values, ops.convert_to_tensor(self.assignment), axis=0)

    def get_config(self):
        own = {"count": self.count, "zero": self.zero, "gradient": self.gradient}
        return {**super().get_config(), **own}


def _k_means(values, first):
    """`(labels, means)` of one-dimensional k-means from given first means."""
    cluster = require("sklearn.cluster", "kdtoolkit.compress.cluster", "compress")
    fitted = cluster.KMeans(len(first), init=first.reshape(-1, 1), n_init=1, max_iter=100)
    labels = fitted.fit_predict(values.reshape(-1, 1).astype("float64"))
    return labels, fitted.cluster_centers_.reshape(-1)


def _first_means(values, count):
    """Evenly spaced between the extremes: large weights, which are few, get values too."""
    distinct = np.unique(values)
    if distinct.size <= count:
        return distinct.astype("float64")
    return np.linspace(distinct[0], distinct[-1], count)


def cluster(model, clusters=16, *, gradient="mean", layers=None, fold=True):
    """Makes the weights of each layer share few values, which go on training.

    Returns a copy of the network. The weights of each kernel are grouped by k-means once; then
    `layer(x; centroids[assignment])` runs, and the centroids train in any `fit`, `kd.Distiller`
    among them. Each kernel has at most `clusters` distinct values, whatever training does. A kernel
    with zeros keeps them: zero is one of its values, and stays exactly zero.

    The compressed file shrinks: a value of 16 needs 4 bits. The raw file doesn't, and speed is what
    it was.

    The file has other kernels than the network where LiteRT folds batch normalisation into them,
    with a factor per channel, which would make many values of few. So it is folded before:
    `fold_batchnorm`.

    Source: Han et al., "Deep Compression" (2016), arXiv:1510.00149: k-means from evenly spaced
    first values, fixed assignments, trained centroids. There, a centroid's gradient is the sum over
    the weights that share it, `gradient="sum"`, which fits small learning rates only; the mean,
    our default, trains a centroid as fast as a weight.

    Args:
        model: functional or built sequential `keras.Model`, pruned or not.
        clusters: int >= 2, values per kernel, zero included.
        gradient: `"mean"` (default) or `"sum"`.
        layers: as in `prune`.
        fold: bool, whether batch normalisation is folded first. Defaults to True.

    Returns:
        A functional `keras.Model` with its own weights and the names of `model`.

    Raises:
        ValueError: too few clusters, an unknown gradient or layer, weights that aren't finite, or
            a model that is clustered or quantisation-aware already.
        ImportError: without scikit-learn.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> shared = kd.compress.cluster(kd.compress.prune(network, 0.5), 4)
        >>> row = kd.compress.summary(shared)[0]
        >>> row["sparsity"], row["distinct"]
        (0.5, 4)
    """
    if not isinstance(clusters, int) or clusters < 2:
        raise ValueError(f"`clusters` must be an integer of at least 2. Received: {clusters!r}")
    if gradient not in GRADIENTS:
        raise ValueError(f"`gradient` must be one of {GRADIENTS}. Received: {gradient!r}")
    require("sklearn.cluster", "kdtoolkit.compress.cluster", "compress")
    model = fold_batchnorm(model) if fold else model
    first = {}

    def make(layer, index, path, weight):
        value = values_of(layer)[path]
        if not np.isfinite(value).all():
            raise ValueError(f"Weights must be finite. Received: NaN in {layer.name}/{path}")
        if not value.any():
            # One value it has, and nothing to share.
            return None
        zero = bool((value == 0).any())
        means = _first_means(value[value != 0] if zero else value, clusters - zero)
        change = Clusters(index, len(means), zero, gradient)
        first[id(change)] = (value, means)
        return change

    shared = with_changes(model, make, layers)
    for layer in compressed_layers(shared):
        for change in layer.changes:
            if id(change) in first:
                change.assign(*first[id(change)])
    return shared
