"""Training as the int8 file will compute: weights and activations rounded in the forward pass."""

import functools
import warnings

import keras

from kdtoolkit.compress.batches import run_on
from kdtoolkit.compress.changed import Compressed
from kdtoolkit.compress.clusters import Clusters
from kdtoolkit.compress.folding import fold_batchnorm
from kdtoolkit.compress.fusing import has_inner_steps, range_behind, recurrent, takes_apart
from kdtoolkit.compress.ranges import ActivationRange, RoundedWeight
from kdtoolkit.compress.rebuilding import transform
from kdtoolkit.compress.wrapping import layers_of, plain, with_changes

MAX_EXAMPLES = 512
_BATCH = 64


def quantize_aware(model, data=None, *, weights=8, activations=8, momentum=0.99, layers=None):
    """Makes a network compute with numbers that the int8 file can hold, and train with them.

    Returns a copy of the network that folds batch normalisation (`fold_batchnorm`), rounds every
    kernel to integers (per output channel where LiteRT does: convolutions but for transposed and
    one-dimensional ones; else per tensor) and every activation that is a tensor of the
    file to 256 steps of a range. Ranges start as the extremes on `data` and follow those of the
    training batches. It trains in any `fit`, `kd.Distiller` among them. Gradients pass the
    rounding straight through.

    `kd.export.litert(network, path, quantize="int8")` writes the file with these ranges. With
    `activations=None` weights alone are rounded: `kd.compress.strip` gives the float network on the
    grid, for `quantize="weight_only_int8"` or `"weight_only_int4"`. This serves every
    architecture.

    A layer whose own activation LiteRT computes apart (`Dense(10, "softmax")`) becomes two: the
    activation has the layer's name, the rest `_linear` behind it.

    Masks of `prune` stay exact, since zero is on every grid. Kernels of `cluster` are rounded per
    tensor, so that the file has no more values than the network, but for layers named below.

    Source: Jacob et al. (2018), arXiv:1712.05877, with batch normalisation folded before training
    and not in it: no statistics of batches, and what training sees is what the file computes.
    Ranges by moving averages of the extremes are theirs; that they start from data is our choice.

    Args:
        model: functional or built sequential `keras.Model`, pruned or clustered or not.
        data: typical inputs as in training, preprocessed alike: an array, a dict or list of
            arrays, or an iterable of batches with or without labels. The first 512 examples are
            used, or 8 batches of an iterable. Needed unless `activations=None`.
        weights: int, bits of a weight, 4 or 8. Defaults to 8.
        activations: 8 (default), or None for weights alone.
        momentum: float in [0, 1), how slowly ranges follow. Defaults to 0.99.
        layers: whose weights are rounded, as in `prune`. None (default) for all.

    Returns:
        A functional `keras.Model` with its own weights and the names of `model`; the layers that
        round are called like the layer in front, with `_range` behind it.

    Raises:
        ValueError: other bits; no data, empty data or NaN in it; a model without a graph, that is
            quantisation-aware already; an unknown layer; a recurrent layer with `activations=8`,
            which LiteRT can't run in integers.
        TypeError: `data` of another form.

    Warns:
        UserWarning: names the layers that compute in steps of their own, such as attention, layer
            normalisation and GELU. No ranges are trained inside these: in the file they are in
            integers if `litert` gets `representative_data`, else they stay in floats.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> network = keras.Sequential([keras.Input((4,), name="x"),
        ...                             keras.layers.Dense(8, name="head")])
        >>> x = np.linspace(-1, 1, 40, dtype="float32").reshape(10, 4)
        >>> aware = kd.compress.quantize_aware(network, x)
        >>> [layer.name for layer in aware.layers]
        ['x', 'x_range', 'head', 'head_range']
    """
    _check(model, data, weights, activations, momentum)
    folded = fold_batchnorm(model)
    if activations:
        _announce(folded)

    def make(layer, index, path, weight):
        return RoundedWeight(index, weights, _own_scales(layer, weight))

    rounded = with_changes(folded, make, layers)
    if not activations:
        return rounded
    used = set()
    aware = transform(rounded, lambda graph: _Rounding(graph, activations, momentum, used))
    calibrate(aware, data)
    return aware


def _check(model, data, weights, activations, momentum):
    if weights not in (4, 8) or activations not in (8, None):
        raise ValueError(
            "Expected weights=4 or 8 and activations=8 or None. Received: "
            f"weights={weights!r}, activations={activations!r}"
        )
    if not 0 <= momentum < 1:
        raise ValueError(f"`momentum` must lie in [0, 1). Received: {momentum!r}")
    if activations and data is None:
        raise ValueError(
            "Rounding activations needs `data` to start their ranges from: some hundred inputs of "
            "training. With activations=None, weights alone are rounded"
        )


def _own_scales(layer, weight):
    """How many axes at the end of a weight have a scale of their own in LiteRT."""
    clustered = any(isinstance(change, Clusters) for change in getattr(layer, "changes", ()))
    if clustered or weight.owner is not plain(layer) or len(weight.variable.shape) != 4:
        return 0
    return {"conv": 1, "depthwise": 2}.get(weight.kind, 0)


def _announce(model):
    """Say which layers can't be seen through, before anything is trained."""
    loops, inner = [], []

    def look(call, args, kwargs):
        operation = call.operation
        if recurrent(plain(operation)):
            loops.append(operation.name)
        elif isinstance(operation, ActivationRange):
            raise ValueError(f"'{model.name}' is quantisation-aware already: {operation.name}")
        elif has_inner_steps(operation):
            inner.append(operation.name)
        return operation(*args, **kwargs)

    transform(model, lambda graph: look)
    if loops:
        raise ValueError(
            "LiteRT can't run recurrent layers in integers. Received: "
            f"{', '.join(loops)}. Round the weights alone, with activations=None, and export "
            "kd.compress.strip(network) with quantize='dynamic' or 'weight_only_int8'"
        )
    if inner:
        warnings.warn(
            f"No ranges are trained inside {', '.join(inner)}. In the file these compute in "
            "integers if kd.export.litert gets `representative_data`, else in floats",
            stacklevel=3,
        )


class _Rounding:
    """Runs the calls of one graph with ranges between them.

    Args:
        graph: a `Graph`.
        bits, momentum: of the ranges.
        used: set of the names that ranges have already, in other graphs too.
    """

    def __init__(self, graph, bits, momentum, used):
        self._graph = graph
        self._bits, self._momentum, self._used = bits, momentum, used
        self._entries, self._parts = {}, {}

    def __call__(self, call, args, kwargs):
        args, kwargs = keras.tree.map_structure(
            self._entered, (call.args, call.kwargs), (args, kwargs)
        )
        operation = call.operation
        if takes_apart(operation):
            linear, operation = self._apart(operation)
            args, kwargs = (self._rounds(linear(*args, **kwargs), linear.name),), {}
        output = operation(*args, **kwargs)
        found = range_behind(self._graph, call)
        if found is None:
            return output
        return self._rounds(output, operation.name, None if found == "learned" else found)

    def _apart(self, operation):
        """A layer without its activation, and that as a layer with its name."""
        if id(operation) not in self._parts:
            layer = plain(operation)
            name = f"{layer.name}_linear"
            config = {**layer.get_config(), "activation": "linear", "name": name}
            linear = type(layer).from_config(config)
            linear.build_from_config(layer.get_build_config())
            linear.set_weights(layer.get_weights())
            if operation is not layer:
                linear = Compressed(linear, operation.changes).prepare()
            activation = keras.layers.Activation(layer.activation, name=layer.name)
            self._parts[id(operation)] = linear, activation
        return self._parts[id(operation)]

    def _entered(self, old, new):
        """An input of the graph is rounded once, whoever reads it; indices aren't."""
        entry = isinstance(old, keras.KerasTensor) and self._graph.producer(old) is None
        if not entry or "float" not in old.dtype:
            return new
        if id(old) not in self._entries:
            self._entries[id(old)] = self._rounds(new, old.name)
        return self._entries[id(old)]

    def _rounds(self, tensor, name, fixed=None):
        while f"{name}_range" in self._used:
            name += "_again"
        self._used.add(f"{name}_range")
        return ActivationRange(self._bits, self._momentum, fixed, name=f"{name}_range")(tensor)


def calibrate(model, data):
    """Set the ranges of a network to the extremes on `data`."""
    ranges = [layer for layer in layers_of(model) if isinstance(layer, ActivationRange)]
    for layer in ranges:
        layer.observes = True
    try:
        observe = functools.partial(model, training=False)
        run_on(observe, data, _BATCH, MAX_EXAMPLES // _BATCH, "data")
    finally:
        for layer in ranges:
            layer.observes = False
