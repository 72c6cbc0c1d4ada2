"""Batch normalisation, folded into the layer in front of it."""

import keras
from keras import layers, ops

from kdtoolkit.compress.changed import Compressed
from kdtoolkit.compress.masks import Mask
from kdtoolkit.compress.rebuilding import copy_of, transform
from kdtoolkit.compress.weights import CONVOLUTIONS, DEPTHWISE, TRANSPOSED, weights_of
from kdtoolkit.compress.wrapping import plain

_FOLDS = (layers.Dense, *CONVOLUTIONS, *DEPTHWISE, *TRANSPOSED)


def fold_batchnorm(model):
    """Folds each batch normalisation into the convolution or dense layer in front of it.

        kernel' = kernel * s    bias' = (bias - mean) * s + beta    s = gamma / sqrt(variance + eps)

    with one factor s per output channel. The network computes what it did with `training=False`,
    with one layer less; this is what LiteRT does to a file. It still trains, without batch
    statistics, which is how networks are made ready for integers: see `quantize_aware`.

    Folded are normalisations over the last axis behind a dense layer or a convolution of any kind,
    without an activation between them, where both run once and nobody else reads what goes from one
    to the other. Others stay as they are. Masks of `prune` are kept.

    Args:
        model: functional or built sequential `keras.Model`.

    Returns:
        A functional `keras.Model` with its own weights. Folded layers keep their names, those of
        the normalisations are gone.

    Raises:
        ValueError: a model without a graph.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, use_bias=False),
        ...                             keras.layers.BatchNormalization(), keras.layers.ReLU()])
        >>> [type(layer).__name__ for layer in kd.compress.fold_batchnorm(network).layers]
        ['InputLayer', 'Dense', 'ReLU']
    """
    return transform(copy_of(model), _folding)


def _folding(graph):
    norms = {}
    for call in graph.calls:
        before = _folds_into(graph, call)
        if before is not None:
            norms[id(before.operation)] = call.operation
    gone = {id(norm) for norm in norms.values()}

    def run(call, args, kwargs):
        if id(call.operation) in gone:
            return args[0]
        norm = norms.get(id(call.operation))
        layer = call.operation if norm is None else _folded(call.operation, norm)
        return layer(*args, **kwargs)

    return run


def _folds_into(graph, call):
    """The call that a normalisation can be folded into, or None."""
    norm = call.operation
    if not isinstance(norm, layers.BatchNormalization) or graph.runs[id(norm)] > 1:
        return None
    before = graph.producer(call.inputs[0])
    if before is None or graph.runs[id(before.operation)] > 1:
        return None
    layer = plain(before.operation)
    if not isinstance(layer, _FOLDS) or layer.activation is not keras.activations.linear:
        return None
    if before.operation is not layer and any(
        not isinstance(change, Mask) for change in before.operation.changes
    ):
        return None
    rank = len(call.inputs[0].shape)
    last = norm.axis in (-1, rank - 1)
    last = last and getattr(layer, "data_format", "channels_last") == "channels_last"
    return before if last and graph.only_consumer(before.output) is call else None


def _folded(operation, norm):
    """A new layer that computes what the two did."""
    layer = plain(operation)
    fresh = type(layer).from_config({**layer.get_config(), "use_bias": True})
    fresh.build_from_config(layer.get_build_config())
    (weight,) = weights_of(layer).values()
    kernel, factor, shift = _scaled(layer, norm, weight)
    (target,) = weights_of(fresh).values()
    target.variable.assign(kernel)
    bias = 0.0 if layer.bias is None else ops.convert_to_tensor(layer.bias)
    fresh.bias.assign(bias * factor + shift)
    if operation is layer:
        return fresh
    masks = [Mask.from_config(change.get_config()) for change in operation.changes]
    changed = Compressed(fresh, masks).prepare()
    for old, new in zip(operation.changes, changed.changes, strict=True):
        new.mask.assign(old.mask)
    return changed


def _scaled(layer, norm, weight):
    """The kernel times s, s itself, and what a bias of zero becomes."""
    factor = 1 / ops.sqrt(norm.moving_variance + norm.epsilon)
    if norm.scale:
        factor = factor * norm.gamma
    shift = -norm.moving_mean * factor
    if norm.center:
        shift = shift + norm.beta
    kernel = ops.convert_to_tensor(weight.variable)
    shape = [1] * len(kernel.shape)
    if weight.kind == "depthwise":
        # Output channel c * multiplier + m is filter m of input channel c.
        shape[-2:] = kernel.shape[-2:]
    else:
        shape[-2 if weight.kind == "transposed" else -1] = -1
    return kernel * ops.reshape(factor, shape), factor, shift
