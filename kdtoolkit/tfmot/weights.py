"""Weights between Keras 3 layers and their tf_keras twins."""

import keras

from kdtoolkit.inner import plain_graph
from kdtoolkit.tfmot import loading

# What tf_keras calls them, by what Keras 3 does.
_OTHER_NAMES = {
    "DepthwiseConv1D": {"kernel": "depthwise_kernel"},
    "DepthwiseConv2D": {"kernel": "depthwise_kernel"},
}


def pairs(layer, twin):
    """`[(Keras 3 variable, tf_keras variable)]` of a layer and its twin.

    Names decide where they are unique, since wrappers change the order; elsewhere (several kernels
    in an attention layer) the order does, which both packages share.

    Raises:
        ValueError: the weights don't correspond; the message says how they differ.
    """
    if isinstance(layer, keras.layers.Normalization):
        return []  # Its twin has the same numbers as constants.
    other = _OTHER_NAMES.get(type(layer).__name__, {})
    mine = [(other.get(_leaf(v.path), _leaf(v.path)), v) for v in layer.weights]
    theirs = [(_leaf(v.name), v) for v in twin.weights]
    names = [name for name, _ in mine]
    if len(set(names)) == len(names):
        mine, theirs = (sorted(side, key=lambda pair: pair[0]) for side in (mine, theirs))
    shown = [[(name, tuple(v.shape)) for name, v in side] for side in (mine, theirs)]
    if shown[0] != shown[1]:
        raise ValueError(f"weights {shown[0]} in Keras 3, {shown[1]} in tf_keras")
    return [(a, b) for (_, a), (_, b) in zip(mine, theirs, strict=True)]


def _leaf(path):
    return path.rsplit("/", 1)[-1].partition(":")[0]


def copy_weights(source, target):
    """Copy the weights of a tf_keras model into the Keras 3 model that it was made from.

    Layers are found by name, those of nested models by path. All is checked before the first
    weight changes. The values arrive exactly.

    A model that was pruned or clustered comes back after `kd.tfmot.strip(model)`. A quantised one
    can't: its rounding is a part of the tf_keras model. Convert that with
    `kd.export.litert(tf_keras_model, ...)`.

    Args:
        source: the tf_keras model.
        target: the Keras 3 model, functional or Sequential. Its weights are replaced.

    Raises:
        TypeError: `source` is no tf_keras model, or `target` no Keras 3 model.
        ValueError: `source` still has wrappers, or the layers don't correspond; all are named.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> twin = kd.tfmot.to_tf_keras(model)
        >>> twin.set_weights([2 * weights for weights in twin.get_weights()])
        >>> kd.tfmot.copy_weights(twin, model)
        >>> bool((model.get_weights()[0] == twin.get_weights()[0]).all())
        True
    """
    tf_keras = loading.check_tf_keras_model(source, "source")
    if not isinstance(target, keras.Model):
        raise TypeError(f"`target` must be a Keras 3 model. Received: {target!r}")
    theirs = loading.layers_by_path(source, lambda layer: isinstance(layer, tf_keras.Model))
    _refuse_wrapped(theirs)
    mine = loading.layers_by_path(target, lambda layer: plain_graph(layer) is not None)
    found, problems = _matched(mine, theirs)
    if problems:
        raise ValueError(
            f"The weights of '{source.name}' don't fit '{target.name}'. Expected the same layers "
            f"with the same weights. Received: {'; '.join(problems)}"
        )
    for variable, value in found:
        variable.assign(value.numpy())


def _refuse_wrapped(layers):
    wrapped = [path for path, layer in layers.items() if loading.is_wrapper(layer)]
    if not wrapped:
        return
    if any(loading.is_quantizer(layer) for layer in layers.values()):
        raise ValueError(
            "A quantisation-aware model can't go back to Keras 3, since its rounding is a part of "
            f"it. Received the quantised layers {wrapped}. Convert the tf_keras model itself: "
            "`kd.export.litert(tf_keras_model, ...)`."
        )
    raise ValueError(
        "`source` must be a plain tf_keras model. Received one with the wrapped layers "
        f"{wrapped}. Take them off first: `kd.tfmot.strip(model)`."
    )


def _matched(mine, theirs):
    """Pairs of variables of all layers, and what doesn't fit."""
    found, problems = [], []
    for path in dict.fromkeys([*mine, *theirs]):
        sides = [side.get(path) for side in (mine, theirs)]
        if None not in sides:
            try:
                found += pairs(*sides)
            except ValueError as error:
                problems.append(f"'{path}': {error}")
        elif any(side is not None and side.weights for side in sides):
            problems.append(f"'{path}' is in {'tf_keras' if sides[0] is None else 'Keras 3'} alone")
    return found, problems
