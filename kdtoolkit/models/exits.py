"""Early exits: classifiers behind inner layers of a network, beside its own.

`kd.wirings.own_exits` has the transfers by which a network teaches them.
"""

import collections
import math
import numbers
import re

import keras
from keras import layers as keras_layers

from kdtoolkit.inner import names_in_graph, plain_graph, reader, squashes
from kdtoolkit.models.factory import LayerFactory
from kdtoolkit.registry import expects
from kdtoolkit.taps import find_layer

BOTTLENECKS = ("conv", "separable")


@expects(model="model", layers="texts", weight_decay="number", name="text", seed="seed")
def attach_exits(
    model,
    layers,
    *,
    reductions=None,
    bottleneck="conv",
    features=None,
    weight_decay=0.0,
    name=None,
    seed=None,
):
    """Adds a bottleneck and a classifier behind each of some layers of a network.

    The network keeps its architecture and its weights: the layers are the same objects, so training
    the result trains `model`, and `model` is what to deploy. Each exit brings what its layer gives
    to as many features as the network's own classifier reads, D, and classifies them:

        map (h, w, c)   1x1 to D/4, k x k with stride k, 1x1 to D channels, average over positions
        tokens (n, c)   dense to D/4 for each token, average over tokens, dense to D
        vector (c,)     dense to D

    with normalisation and a nonlinearity behind each of these: batch normalisation and ReLU, and
    for tokens layer normalisation and GELU, without one at the end. `bottleneck="separable"` gives
    maps log2(k) separable 3x3 convolutions with stride 2 instead, whose channels double up to D.

    Layers are named as for `kd.tap`: `"stage1"`, `"backbone/stage1"`. In a nested functional model
    the graph is opened, and its layers become layers of the result; composite layers (a subclassed
    encoder) stay whole. Of a tuple that a layer returns, the first tensor counts.

    Variants: Be Your Own Teacher has exits behind all stages but the last, each with a bottleneck
    that shrinks the map as often as the rest of the network does. The conv kind is that of a
    re-implementation (k = 8, 4, 2 for ResNet-18), the separable kind follows the authors' later
    code, without its attention. Those for tokens and vectors are our choice.

    Source: Zhang et al., "Be Your Own Teacher" (ICCV 2019), arXiv:1905.08094.

    Args:
        model: a functional or built sequential `keras.Model` with one output, logits `(batch,
            classes)`.
        layers: list of str, the paths of the layers, first to last: the default `reductions` go by
            this order.
        reductions: list of int >= 1, k of each exit, at most the side of its map. None (default)
            halves for each stage to come: with n exits 2^n, ..., 4, 2. Only maps read it.
        bottleneck: `"conv"` (default) or `"separable"`.
        features: path of what the network's own classifier reads, `(batch, D)`. None (default)
            finds it in front of the dense layer that ends the network.
        weight_decay: float >= 0 of the exits' kernels, as in `resnet`.
        name: str, or None for the model's name with `_exits` behind it.
        seed: int >= 0 for reproducible exits, or None.

    Returns:
        A functional `keras.Model` with the input of `model` and a dict of logits: `"exit1"`,
        `"exit2"`, ... and the network's own, `"last"`. Layers `exit1_features`, ... are what each
        exit classifies. `single_output(result, "exit1")` is a network that ends there,
        `single_output(result, "last")` the original, `mean_output(result)` all together.

    Raises:
        ValueError: a model with another output, with exits already, that ends in a softmax, or
            whose classifier can't be found; no layer, one that is unknown, runs twice, or gives no
            map, tokens or vector; names taken twice; reductions that don't fit; an unknown
            bottleneck; a negative weight decay or seed.
        TypeError: a seed that is no integer.

    Example:
        >>> from kdtoolkit import models
        >>> network = models.resnet(8, (16, 16, 3), 10, width=4, seed=0)
        >>> student = models.attach_exits(network, ["stage1", "stage2"], seed=1)
        >>> sorted(student.output)
        ['exit1', 'exit2', 'last']
        >>> student.get_layer("exit1_features").output.shape
        (None, 16)
        >>> student.get_layer("stage2") is network.get_layer("stage2")
        True
    """
    graph = plain_graph(model)
    _check_arguments(model, graph, layers, reductions, bottleneck)
    classifier = _classifier_path(graph, required=features is None)
    features = features or f"{classifier}:input"
    for path in [*layers, features]:
        find_layer(model, path)
    _check_names(graph, [*layers, features], classifier)
    read = reader(graph, [*layers, features])
    output, *tensors, last = read.outputs
    if len(last.shape) != 2:
        raise ValueError(
            "`features` must name what the last classifier reads, (batch, features). "
            f"Received: features={features!r} of shape {last.shape}"
        )
    make = _Exits(seed, weight_decay, bottleneck, width=last.shape[-1], classes=output.shape[-1])
    outputs = {}
    for number, (path, tensor) in enumerate(zip(layers, tensors, strict=True), start=1):
        k = _reduction(reductions, number, path, tensor, len(layers))
        outputs[f"exit{number}"] = make(tensor, f"exit{number}", path, k)
    outputs["last"] = output
    return keras.Model(read.input, outputs, name=name or f"{model.name}_exits")


def _classifier_path(graph, required):
    """Path of the dense layer that gives a graph's output, without an activation.

    Raises:
        ValueError: the output is a softmax; or it comes from something else, where that is needed.
    """
    # Not all operations of a graph are layers.
    last = next(o for o in graph.operations if o.name == graph.output_names[0])
    inner = plain_graph(last)
    if inner is not None:
        return f"{last.name}/{_classifier_path(inner, required)}"
    if squashes(last):
        raise ValueError(
            f"'{graph.name}' ends in a softmax or sigmoid, expected logits. Build the last layer "
            "without an activation; or wrap a network that can't be rebuilt, "
            "`kd.as_logits(model)`, and say with `features` what its classifier reads"
        )
    dense = isinstance(last, keras_layers.Dense) and last.activation is keras.activations.linear
    if required and not dense:
        raise ValueError(
            f"'{graph.name}' ends in '{last.name}', {type(last).__name__}, and not in a dense "
            "layer without an activation. Say with `features` the path of what the classifier "
            "reads, such as 'features', or 'logits:input' for what goes into that layer"
        )
    return last.name


# The exits ----------------------------------------------------------------------------------


class _Exits(LayerFactory):
    """Makes exits that end in as many features and classes as the network."""

    def __init__(self, seed, weight_decay, bottleneck, width, classes):
        super().__init__(seed, weight_decay, stream=1)
        self._bottleneck = bottleneck
        self._width = width
        self._middle = max(1, width // 4)
        self._classes = classes

    def __call__(self, x, prefix, path, reduction):
        kinds = {4: self._maps, 3: self._tokens, 2: self._vectors}
        if len(x.shape) not in kinds:
            raise ValueError(
                "An exit reads maps (batch, height, width, channels), tokens (batch, tokens, "
                f"channels) or vectors. Received: '{path}' of shape {tuple(x.shape)}"
            )
        x = kinds[len(x.shape)](x, prefix, reduction)
        return self.dense(self._classes, f"{prefix}_logits", dtype="float32")(x)

    def _maps(self, x, prefix, reduction):
        make = self._separable if self._bottleneck == "separable" else self._conv
        return self.pool(f"{prefix}_features")(make(x, prefix, reduction))

    def _conv(self, x, prefix, reduction):
        convs = ((self._middle, 1), (self._middle, reduction), (self._width, 1))
        for number, (filters, size) in enumerate(convs, start=1):
            x = self.conv(filters, size, f"{prefix}_conv{number}", strides=size)(x)
            x = self._normal(x, f"{prefix}_norm{number}", f"{prefix}_relu{number}")
        return x

    def _separable(self, x, prefix, reduction):
        steps = max(1, round(math.log2(reduction)))
        for number in range(1, steps + 1):
            filters = self._width if number == steps else min(2 * x.shape[-1], self._width)
            conv = self._separable_conv(filters, f"{prefix}_conv{number}", min(2, reduction))
            x = self._normal(conv(x), f"{prefix}_norm{number}", f"{prefix}_relu{number}")
        return x

    def _separable_conv(self, filters, name, strides):
        return keras_layers.SeparableConv2D(
            filters,
            3,
            strides=strides,
            padding="same",
            use_bias=False,
            data_format="channels_last",
            depthwise_initializer=self._initializer(),
            pointwise_initializer=self._initializer(),
            depthwise_regularizer=self._regularizer(),
            pointwise_regularizer=self._regularizer(),
            name=name,
        )

    def _tokens(self, x, prefix, _):
        x = self.dense(self._middle, f"{prefix}_dense1")(x)
        x = keras_layers.LayerNormalization(epsilon=1e-6, name=f"{prefix}_norm1")(x)
        x = keras_layers.Activation("gelu", name=f"{prefix}_gelu")(x)
        x = keras_layers.GlobalAveragePooling1D(
            data_format="channels_last", name=f"{prefix}_average"
        )(x)
        x = self.dense(self._width, f"{prefix}_dense2")(x)
        return keras_layers.LayerNormalization(epsilon=1e-6, name=f"{prefix}_features")(x)

    def _vectors(self, x, prefix, _):
        x = self.dense(self._width, f"{prefix}_dense")(x)
        return self._normal(x, f"{prefix}_norm", f"{prefix}_features")

    def _normal(self, x, norm, relu):
        return self.relu(relu)(self.norm(norm)(x))


def _reduction(reductions, number, path, tensor, count):
    """k of one exit; 1 for tokens and vectors, which have no positions to reduce."""
    if len(tensor.shape) != 4:
        return 1
    side = min(side or math.inf for side in tensor.shape[1:3])
    if reductions is None:
        return 2 ** min(count - number + 1, int(math.log2(side)) if side < math.inf else count)
    k = reductions[number - 1]
    if not 1 <= k <= side:
        raise ValueError(
            "`reductions` must be from 1 to the side of each map. "
            f"Received: {k} for '{path}' of shape {tuple(tensor.shape)}"
        )
    return k


def _check_arguments(model, graph, layers, reductions, bottleneck):
    outputs = [] if graph is None else graph.outputs
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise ValueError(
            "`model` must be a functional or built sequential model with one output, logits "
            f"(batch, classes). Received: {getattr(model, 'name', model)} with the outputs "
            f"{outputs}. `kd.models.single_output` takes one of several"
        )
    if isinstance(layers, str) or not layers or len(set(layers)) < len(layers):
        raise ValueError(
            "`layers` must be a list of different paths of layers, such as ['stage1', 'stage2']. "
            f"Received: layers={layers!r}"
        )
    if bottleneck not in BOTTLENECKS:
        raise ValueError(
            f"`bottleneck` must be one of {BOTTLENECKS}. Received: bottleneck={bottleneck!r}"
        )
    _check_reductions(reductions, layers, bottleneck)


def _check_names(graph, paths, classifier):
    """Refuse names that would be taken twice, or stand for an output, in the result's graph."""
    names = list(
        names_in_graph(graph, lambda _, inside: any(path.startswith(inside) for path in paths))
    )
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            "The layers of nested models on the paths become layers of the result, which needs "
            f"different names for all. Received: {twice} more than once in '{graph.name}'. Rename "
            "one of each, or name a layer outside the nested model"
        )
    taken = [name for name in names if re.fullmatch(r"last|exit[1-9][0-9]*(_.*)?", name)]
    # The classifier may well be called "last": it is what gives that output.
    if [name for name in taken if name != "last" or classifier.rpartition("/")[2] != "last"]:
        raise ValueError(
            "'last', 'exit1', 'exit1_...' are the names of the result's outputs and of the exits' "
            f"layers. Expected other names in '{graph.name}', which has exits already if it came "
            f"from `attach_exits`: then take the network without. Received: {taken}"
        )


def _check_reductions(reductions, layers, bottleneck):
    if reductions is None:
        return
    given = reductions if isinstance(reductions, list | tuple) else []
    whole = [isinstance(k, numbers.Integral) and not isinstance(k, bool) and k >= 1 for k in given]
    if len(given) != len(layers) or not all(whole):
        raise ValueError(
            f"`reductions` must be a list, a whole number of 1 or more for each of {len(layers)} "
            f"layers. Received: reductions={reductions!r}"
        )
    if bottleneck == "separable" and any(k & (k - 1) for k in reductions):
        raise ValueError(
            'Each `reductions` must be a power of 2 with bottleneck="separable", which halves. '
            f"Received: reductions={reductions!r}"
        )
