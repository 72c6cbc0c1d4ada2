"""Structured pruning: whole filters go, and the graph is built anew, smaller."""

import math

import keras
import numpy as np

from kdtoolkit.compress.channels import Channels, has_slices, resized, sliced
from kdtoolkit.compress.masks import rounded
from kdtoolkit.compress.rebuilding import Graph, copy_of
from kdtoolkit.compress.weights import weights_of
from kdtoolkit.compress.wrapping import chosen, compressed_layers


def prune_filters(model, share, *, multiple_of=1, layers=None):
    """Removes the weakest filters of a network and builds it anew without them.

    The result is a smaller network with the same inputs, outputs and layer names: a smaller file, a
    faster interpreter, and no zeros. Train it on, in any `fit`, with a teacher in `kd.Distiller`.

    Filters are the output channels of convolutions and the units of dense layers. Channels that a
    graph ties together go together: those that an addition, a multiplication or a depthwise
    convolution reads or gives, so that all blocks of a stage of a ResNet lose the same channels. A
    group of n tied channels loses `round(share * n)`, those with the smallest

        sum over the group's filters at this channel of  sum |w|

    What a concatenation or a flattening makes of channels is followed. Whole stay: what the network
    reads and returns, layers that run several times, and everything around operations that look at
    all channels (attention, layer normalisation, reshapes, softmax), separable convolutions, nested
    models and custom layers.

    Source: Li et al., "Pruning Filters for Efficient ConvNets" (2017), arXiv:1608.08710: the L1
    norm and tied shortcuts. There, the shortcut's filters alone decide for a group; here all of its
    filters do.

    Args:
        model: functional or built sequential `keras.Model`, not compressed: masks, shared values
            and ranges come afterwards.
        share: share of filters to remove, 0 < share < 1. About the square root of what stays of
            the weights stays of the filters: 0.3 halves a network of convolutions.
        multiple_of: int >= 1; groups keep a multiple of it, rounded up. 8 suits the vector units
            of processors. Defaults to 1.
        layers: names of layers, or a function `layer -> bool`: groups with another layer stay. None
            (default) for all.

    Returns:
        A functional `keras.Model` with its own weights.

    Raises:
        ValueError: a share out of range; a compressed model; an unknown layer; no filter that can
            go.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> network = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(16, 3),
        ...                             keras.layers.Flatten(), keras.layers.Dense(10)])
        >>> network.count_params(), kd.compress.prune_filters(network, 0.5).count_params()
        (5930, 2970)
    """
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise ValueError(f"`share` must lie between 0 and 1. Received: {share!r}")
    if not isinstance(multiple_of, int) or multiple_of < 1:
        raise ValueError(f"`multiple_of` must be an integer >= 1. Received: {multiple_of!r}")
    graph = Graph(copy_of(model))
    if compressed_layers(graph.model):
        raise ValueError(
            f"'{model.name}' is compressed already. Remove filters first, then prune, cluster and "
            "quantise; kd.compress.strip gives a plain network"
        )
    channels = Channels(graph)
    groups = _groups(channels, chosen(graph.model, layers))
    gone = [ids for group in groups for ids in _weakest(channels, group, share, multiple_of)]
    if not gone:
        raise ValueError(
            f"No filter of '{model.name}' can go. Expected convolutions or dense layers inside the "
            "network whose channels nothing else needs whole, and a share that removes one of them"
        )
    return _without(graph, channels, np.array(gone))


def _groups(channels, wanted):
    """Lists of producing calls whose channels are tied, without those that nobody wants."""
    groups = []
    for call in channels.producers:
        roots = set(channels.roots(channels.of[id(call.outputs[0])]).tolist())
        tied = [group for group in groups if group[0] & roots]
        for group in tied:
            groups.remove(group)
            roots |= group[0]
        groups.append((roots, [c for group in tied for c in group[1]] + [call]))
    return [calls for _, calls in groups if all(wanted(call.operation) for call in calls)]


def _weakest(channels, calls, share, multiple_of):
    """The roots of a group's channels that go."""
    scores = {}
    for call in calls:
        ids = channels.of[id(call.outputs[0])]
        norms = _norms(call.operation)
        for root, norm in zip(channels.roots(ids).tolist(), norms, strict=True):
            scores[root] = scores.get(root, 0.0) + float(norm)
    roots = np.array(sorted(scores))
    free = roots[channels.free(roots)]
    stay = max(roots.size - rounded(share * roots.size), 1)
    count = roots.size - min(math.ceil(stay / multiple_of) * multiple_of, roots.size)
    order = np.argsort([scores[root] for root in free.tolist()], kind="stable")
    # One filter at least stays of every layer.
    left = [set(channels.roots(channels.of[id(call.outputs[0])]).tolist()) for call in calls]
    gone = []
    for root in free[order].tolist():
        if len(gone) < count and all(own != {root} for own in left):
            gone.append(root)
            for own in left:
                own.discard(root)
    return gone


def _norms(layer):
    (weight,) = weights_of(layer).values()
    kernel = np.abs(keras.ops.convert_to_numpy(weight.variable).astype("float64"))
    axis = kernel.ndim - (2 if weight.kind == "transposed" else 1)
    return kernel.sum(tuple(i for i in range(kernel.ndim) if i != axis))


def _without(graph, channels, gone):
    """The network without the channels of some roots."""

    def stays(tensor):
        return ~np.isin(channels.roots(channels.of[id(tensor)]), gone)

    def run(call, args, kwargs):
        layer = call.operation
        if not isinstance(layer, keras.layers.Layer):
            return layer(*args, **kwargs)
        whole = all(stays(tensor).all() for tensor in [*call.inputs, *call.outputs])
        if whole or not has_slices(layer):
            return layer(*args, **kwargs)
        before, behind = stays(call.inputs[0]), stays(call.outputs[0])
        fresh = type(layer).from_config(resized(layer, int(behind.sum())))
        output = fresh(*args, **kwargs)
        fresh.set_weights(sliced(layer, layer.get_weights(), before, behind))
        return output

    return graph.rebuild(run)
