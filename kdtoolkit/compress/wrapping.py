"""Choosing layers by name, and adding changes to their weights in a copy of the network."""

from collections.abc import Iterable

from kdtoolkit.compress.changed import Compressed
from kdtoolkit.compress.rebuilding import copy_of, exchange
from kdtoolkit.compress.weights import weights_of
from kdtoolkit.inner import plain_graph
from kdtoolkit.registry import expects


def plain(layer):
    """The layer itself, without the changes around it."""
    return layer.layer if isinstance(layer, Compressed) else layer


def chosen(model, layers):
    """A function `layer -> bool` for what a user gave as `layers`.

    Args:
        model: the network.
        layers: None for all with weights, a list of names, or a function of a layer.
    """
    if layers is None:
        return lambda layer: True
    if callable(layers):
        return lambda layer: bool(layers(plain(layer)))
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise TypeError(f"`layers` must be a list of names or a function. Received: {layers!r}")
    wanted = set(layers)
    known = [layer.name for layer in holders(model)]
    missing = sorted(wanted - set(known))
    if missing:
        raise ValueError(
            f"`layers` must name layers of '{model.name}' that have weights to compress. "
            f"Received: {missing}. Expected some of: {', '.join(known)}"
        )
    return lambda layer: layer.name in wanted


@expects(model="model")
def layers_of(model):
    """The layers of a model and of the functional models nested in it, each once, in order."""
    found = {}
    for layer in model.layers:
        inner = layers_of(layer) if plain_graph(layer) is not None else [layer]
        found.update((id(each), each) for each in inner)
    return list(found.values())


def holders(model):
    """The layers of a model that have weights to compress, in order."""
    return [layer for layer in layers_of(model) if weights_of(plain(layer))]


def with_changes(model, make, layers=None):
    """A copy of a network with further changes of its weights.

    Args:
        model: functional or sequential `keras.Model`, compressed already or not.
        make: function `(layer, index, path, Weight)` that gives a `WeightChange` or None; `layer`
            may be a `Compressed` one.
        layers: as in `chosen`.
    """
    wanted = chosen(model, layers)
    total = [0]

    def wrap(layer):
        if not wanted(layer):
            return layer
        inner = plain(layer)
        changes = [make(layer, *numbered) for numbered in _numbered(inner)]
        changes = [change for change in changes if change is not None]
        if not changes:
            return layer
        total[0] += len(changes)
        before = layer.changes if isinstance(layer, Compressed) else []
        _check_order(layer, before, changes)
        return Compressed(inner, [*before, *changes]).prepare()

    result = exchange(copy_of(model), wrap)
    if not total[0]:
        raise ValueError(
            f"No weight of '{model.name}' was chosen. Expected layers with a `kernel` or "
            "`embeddings` of two axes or more"
        )
    return result


def _check_order(layer, before, changes):
    later = [
        old
        for old in before
        for new in changes
        # A second mask goes behind the first; all else is done once.
        if old.rank > new.rank or old.rank == new.rank > 0
    ]
    if later:
        raise ValueError(
            "Compression goes in this order: prune, cluster, quantize_aware, so that each keeps "
            f"what the one before did. Received: '{layer.name}', which has a "
            f"{type(later[0]).__name__} already. kd.compress.strip gives a plain network"
        )


def _numbered(layer):
    for index, (path, weight) in enumerate(weights_of(layer).items()):
        yield index, path, weight


def values_of(layer):
    """`{path: array}` of a layer's compressible weights, as it computes with them."""
    return (layer if isinstance(layer, Compressed) else Compressed(layer, [])).used()


def compressed_layers(model):
    """All `Compressed` layers of a network, in order."""
    return [layer for layer in layers_of(model) if isinstance(layer, Compressed)]
