"""Early exits: classifiers behind inner layers of a network, beside its own.

`kd.wirings.own_exits` has the transfers by which a network teaches them.
"""

import math

import keras
import numpy as np
from keras import layers as keras_layers

from kdtoolkit.models.factory import LayerFactory
from kdtoolkit.taps import Tapped, find_layer

BOTTLENECKS = ("conv", "separable")


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
        layers: list of str, the paths of the layers, first to last.
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
        ValueError: a model with another output, with exits already, or whose classifier can't be
            found; no layer, one that is unknown, runs twice, or gives no map, tokens or vector;
            reductions that don't fit; an unknown bottleneck; a weight decay or seed as in `resnet`.

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
    _check_arguments(model, layers, reductions, bottleneck)
    features = classifier_path(model) + ":input" if features is None else features
    for path in [*layers, features]:
        find_layer(model, path)
    read = _reader(model, [*layers, features])
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


def classifier_path(model):
    """Path of the dense layer that gives a model's output, without an activation.

    Raises:
        ValueError: the output comes from something else.
    """
    if isinstance(model, keras.Sequential):
        last = model.layers[-1]
    else:
        # Not all operations of a graph are layers.
        last = next(o for o in model.operations if o.name == model.output_names[0])
    name = last.name
    if _has_graph(last):
        return f"{name}/{classifier_path(last)}"
    if isinstance(last, keras_layers.Dense) and last.activation is keras.activations.linear:
        return name
    raise ValueError(
        f"'{model.name}' must end in a dense layer without an activation, so that exits learn what "
        f"it reads and give logits like it. Received: '{name}', {type(last).__name__}. Wrap a "
        "network that ends in a softmax: `kd.as_logits(model)`; and say with `features` what the "
        "classifier reads"
    )


# Inner tensors of a graph -------------------------------------------------------------------


def _has_graph(operation):
    return isinstance(operation, keras.Model) and bool(getattr(operation, "inputs", None))


def _reader(model, paths):
    """A functional model on the same layers that returns `[output, *tensors of the paths]`.

    The layers run anew, since a layer doesn't say which of its outputs is of which graph; and
    nested models on the paths are opened.
    """
    sequential = isinstance(model, keras.Sequential)
    inputs, output = (
        (model.inputs[0], model.outputs[0]) if sequential else (model.input, model.output)
    )
    # A plain one, since a sequential model has no graph and a subclass may be made in another way.
    output, found = _run_anew(keras.Model(inputs, output), paths)
    return keras.Model(inputs, [output, *(found[path] for path in paths)])


def _first(value):
    return value[0] if isinstance(value, list | tuple) and value else value


def _run_anew(model, paths):
    """`(output, {path: tensor})` of a model's graph, on the model's inputs."""
    found = {path: [] for path in paths}

    def call(operation, *args, **kwargs):
        own = [path for path in paths if path.partition(":")[0] == operation.name]
        inner = [path for path in paths if path.startswith(f"{operation.name}/")]
        if inner:
            output, *tensors = _opened(operation, [_behind(p) for p in inner], args, kwargs)
            for path, tensor in zip(inner, tensors, strict=True):
                found[path].append(_first(tensor))
        else:
            output = operation(*args, **kwargs)
        for path in own:
            found[path].append(_first(args[0] if path.endswith(":input") else output))
        return output

    copy = keras.models.clone_model(
        model, model.input, clone_function=lambda layer: layer, call_function=call
    )
    for path, tensors in found.items():
        if len(tensors) != 1:
            raise ValueError(
                f"A path must name a layer that runs once in '{model.name}'. "
                f"Received: {path!r}, which runs {len(tensors)} times"
            )
    return copy.output, {path: tensors[0] for path, tensors in found.items()}


def _behind(path):
    return path.partition("/")[2]


def _opened(operation, paths, args, kwargs):
    """Run a part of a graph: `[output, *tensors of the paths in it]`."""
    if _has_graph(operation):
        # `call` itself runs the layers one by one, so that they become part of the outer graph.
        return _reader(operation, paths).call(*args, **kwargs)
    tapped = Tapped(operation, paths)(*args, **kwargs)
    return [tapped["output"], *(tapped[path] for path in paths)]


# The exits ----------------------------------------------------------------------------------


class _Exits(LayerFactory):
    """Makes exits that end in as many features and classes as the network."""

    def __init__(self, seed, weight_decay, bottleneck, width, classes):
        super().__init__(seed, weight_decay)
        if self.seeded:
            # Another stream than the network's, which may well have been made with this seed.
            self._random = np.random.default_rng((seed, 1))
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


def _check_arguments(model, layers, reductions, bottleneck):
    outputs = (getattr(model, "outputs", None) or []) if isinstance(model, keras.Model) else []
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
    if any(layer.name.startswith("exit1_") for layer in model.layers):
        raise ValueError(
            f"'{model.name}' has exits already. Expected a network without, with all exits in one "
            "list of `layers`"
        )
    if bottleneck not in BOTTLENECKS:
        raise ValueError(
            f"`bottleneck` must be one of {BOTTLENECKS}. Received: bottleneck={bottleneck!r}"
        )
    _check_reductions(reductions, layers, bottleneck)


def _check_reductions(reductions, layers, bottleneck):
    if reductions is None:
        return
    whole = [isinstance(k, int) and k >= 1 for k in reductions]
    if len(reductions) != len(layers) or not all(whole):
        raise ValueError(
            f"`reductions` must be a whole number of 1 or more for each of {len(layers)} layers. "
            f"Received: reductions={reductions!r}"
        )
    if bottleneck == "separable" and any(k & (k - 1) for k in reductions):
        raise ValueError(
            'Each `reductions` must be a power of 2 with bottleneck="separable", which halves. '
            f"Received: reductions={reductions!r}"
        )
