"""Pruning, clustering and quantisation by tensorflow-model-optimization, on a copy."""

import keras

from kdtoolkit.tfmot import loading
from kdtoolkit.tfmot.bridge import to_tf_keras


def prune(model, sparsity, *, begin_step=0, end_step=None, frequency=100, skip=()):
    """Wrap the layers of a model so that training sets small weights to zero.

    At the steps `begin_step, begin_step + frequency, ...` the smallest weights of each kernel by
    magnitude are cut. With `end_step` their share rises from 0 to `sparsity` by a cubic schedule

        sparsity · (1 - (1 - (step - begin_step) / (end_step - begin_step))^3)

    else it is `sparsity` from the start. Layers without kernels are not wrapped.

    Args:
        model: a built model, functional or Sequential: of Keras 3, which crosses by
            `kd.tfmot.to_tf_keras`, or of tf_keras. It is copied, never changed.
        sparsity: float in [0, 1), the share of zeros.
        begin_step, end_step: int, steps of training. `end_step=None` for a constant share.
        frequency: int >= 1, steps between two cuts. `end_step - begin_step` is a multiple of it,
            since tfmot makes no cut at another step, and none after `end_step`.
        skip: names of layers that stay as they are.

    Returns:
        The wrapped tf_keras model. Train it with `kd.tfmot.PruningStep` (in Keras 3) or tfmot's
        `UpdatePruningStep` (in tf_keras), then take `kd.tfmot.strip(model)`.

    Raises:
        ImportError: tensorflow-model-optimization is not installed.
        TypeError: `model` is no model of Keras 3 or tf_keras.
        ValueError: a layer that can't be pruned or can't cross (all are named), or a name in
            `skip` that is no layer's.

    Source: Zhu and Gupta, "To prune, or not to prune" (2017), https://arxiv.org/abs/1710.01878, as
    tensorflow-model-optimization computes it. That the share begins at 0 is our choice.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
        >>> [layer.name for layer in kd.tfmot.prune(model, 0.5).layers[1:]]
        ['prune_low_magnitude_logits']
    """
    tools = loading.load().sparsity.keras
    if not 0 <= sparsity < 1:
        raise ValueError(f"`sparsity` must be in [0, 1). Received: {sparsity}")
    if end_step is not None and (end_step <= begin_step or (end_step - begin_step) % frequency):
        raise ValueError(
            "The last cut must fall on `end_step`, or `sparsity` would not be reached. Expected "
            f"`end_step` as `begin_step` plus a multiple of `frequency`. Received: begin_step="
            f"{begin_step}, end_step={end_step}, frequency={frequency}"
        )
    if end_step is None:
        schedule = tools.ConstantSparsity(sparsity, begin_step, frequency=frequency)
    else:
        schedule = tools.PolynomialDecay(0.0, sparsity, begin_step, end_step, frequency=frequency)

    def pruned(layer):
        return tools.prune_low_magnitude(layer, schedule) if _has_kernel(layer) else layer

    return _wrapped(model, pruned, skip, "pruned")


def cluster(model, clusters, *, skip=()):
    """Wrap the layers of a model so that each kernel has few different values.

    The values (centroids) start evenly spread between the smallest and the largest weight, and
    training moves them. A centroid's gradient is the sum of those of its weights, so it needs a
    learning rate about a tenth of the weights' own.

    Layers without kernels are not wrapped: tfmot's own `cluster_weights` wraps them too and then
    runs them in inference mode, so that BatchNorm's statistics stand still and dropout does
    nothing. Dropout inside recurrent and attention layers is lost here as well.

    Args:
        model: as for `prune`.
        clusters: int >= 2, how many different values.
        skip: names of layers that stay as they are.

    Returns:
        The wrapped tf_keras model. Train it, then take `kd.tfmot.strip(model)`.

    Raises:
        ImportError, TypeError, ValueError: as for `prune`.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> model = keras.Sequential([keras.Input((9,)), keras.layers.Dense(8)])
        >>> kernel = kd.tfmot.strip(kd.tfmot.cluster(model, 4)).get_weights()[0]
        >>> len(np.unique(kernel)) <= 4
        True
    """
    tools = loading.load().clustering.keras
    if not isinstance(clusters, int) or clusters < 2:
        raise ValueError(f"`clusters` must be an integer of at least 2. Received: {clusters!r}")
    start = tools.CentroidInitialization.LINEAR

    def clustered(layer):
        return tools.cluster_weights(layer, clusters, start) if _has_kernel(layer) else layer

    return _wrapped(model, clustered, skip, "clustered")


def quantize(model, *, skip=()):
    """Wrap the layers of a model so that training feels the rounding to 8 bits.

    Weights and activations are rounded in each forward pass (tfmot's default scheme: weights
    symmetric and per channel in convolutions, activations per tensor with moving ranges); gradients
    go straight through. The result goes to a file with `kd.export.litert`, not back to Keras 3.

    Args:
        model: as for `prune`, without nested models.
        skip: names of layers that stay in float.

    Returns:
        The wrapped tf_keras model.

    Raises:
        ImportError, TypeError, ValueError: as for `prune`.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
        >>> [layer.name for layer in kd.tfmot.quantize(model).layers[1:]]
        ['quantize_layer', 'quant_logits']
    """
    tools = loading.load().quantization.keras
    tf_keras = loading.load_tf_keras()
    known = tools.default_8bit.Default8BitQuantizeRegistry()

    def annotated(layer):
        if isinstance(layer, tf_keras.Model):
            raise ValueError("nested models can't be quantised")
        # Known behind a layer that it can be folded into, so where it stands decides.
        if not (known.supports(layer) or isinstance(layer, tf_keras.layers.BatchNormalization)):
            raise ValueError("tfmot doesn't know it")
        return tools.quantize_annotate_layer(layer)

    marked = _wrapped(model, annotated, skip, "quantised", opens=False)
    try:
        return tools.quantize_apply(marked)
    except RuntimeError as error:
        raise ValueError(
            "BatchNormalization can be quantised by tensorflow-model-optimization only where it "
            "follows a Dense or convolutional layer without an activation. Expected such a place, "
            f"or its name in `skip`. Received: {error}"
        ) from error


def strip(model):
    """Take off the wrappers of `prune` and `cluster`; what they did to the weights stays.

    Args:
        model: the wrapped tf_keras model. It is not changed and shares nothing with the result.

    Returns:
        A plain tf_keras model. `kd.tfmot.copy_weights` brings its weights back to Keras 3.

    Raises:
        TypeError: `model` is no tf_keras model.
        ValueError: nothing to take off, or a quantised model, which is exported as it is.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
        >>> [layer.name for layer in kd.tfmot.strip(kd.tfmot.prune(model, 0.5)).layers[1:]]
        ['logits']
    """
    layers = _layers(model).values()
    if any(map(loading.is_quantizer, layers)):
        raise ValueError(
            f"'{model.name}' is quantisation-aware: its rounding can't be taken off. Export it as "
            "it is: `kd.export.litert(model, ...)`."
        )
    if not any(map(loading.is_wrapper, layers)):
        raise ValueError(
            f"`model` must have the wrappers of `prune` or `cluster`. Received: '{model.name}', "
            "which has none."
        )
    tfmot = loading.load()
    plain = tfmot.clustering.keras.strip_clustering(model)
    plain = tfmot.sparsity.keras.strip_pruning(plain)
    return _copy(plain)


def _layers(model):
    """`{path: layer}` of a tf_keras model."""
    tf_keras = loading.check_tf_keras_model(model)
    return loading.layers_by_path(model, lambda layer: isinstance(layer, tf_keras.Model))


def _copy(model):
    """A tf_keras model of its own layers and weights."""
    copy = loading.load_tf_keras().models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def _wrapped(model, wrap, skip, what, opens=True):
    """A copy of a model, with its layers in wrappers.

    Args:
        model: of Keras 3 or tf_keras.
        wrap: function of a tf_keras layer. It raises a ValueError for what it can't wrap.
        skip: names of layers that are not wrapped.
        what: what the layers become, for the message.
        opens: whether layers of nested models are wrapped, instead of these.
    """
    copy = to_tf_keras(model) if isinstance(model, keras.Model) else _checked_copy(model)
    tf_keras = loading.load_tf_keras()
    clone = tf_keras.models.clone_model

    def nested(layer):
        return opens and isinstance(layer, tf_keras.Model)

    layers = loading.layers_by_path(copy, nested)
    unknown = set(skip) - {layer.name for layer in layers.values()}
    if unknown:
        raise ValueError(
            f"`skip` must hold names of layers. Received: {sorted(unknown)}, which are none of "
            f"{list(layers)}"
        )
    wrappers = _wrappers(layers, wrap, skip, what)

    def replaced(layer):
        if nested(layer):
            return clone(layer, clone_function=replaced)
        return wrappers.get(id(layer), layer)

    return clone(copy, clone_function=replaced)


def _has_kernel(layer):
    return any(len(weight.shape) > 1 for weight in layer.weights)


def _checked_copy(model):
    wrapped = [path for path, layer in _layers(model).items() if loading.is_wrapper(layer)]
    if wrapped:
        raise ValueError(
            "`model` must be a plain one. Received a tf_keras model with the wrapped layers "
            f"{wrapped}. Take them off with `kd.tfmot.strip(model)`, or combine methods by tfmot's "
            "own functions: `kd.tfmot.load()`."
        )
    return _copy(model)


def _wrappers(layers, wrap, skip, what):
    """`{id of a layer: its wrapper}`; refuses those that can't be wrapped, all at once."""
    tf_keras = loading.load_tf_keras()
    wrappers, problems = {}, []
    for path, layer in layers.items():
        if layer.name in skip or isinstance(layer, tf_keras.layers.InputLayer):
            continue
        try:
            wrapper = wrap(layer)
            # The wrappers run the layer without it, and leave a broken loss behind.
            if wrapper is not layer and getattr(layer, "activity_regularizer", None) is not None:
                raise ValueError("its activity regulariser would get lost; build it without")
        except ValueError as error:
            problems.append(f"'{path}' ({type(layer).__name__}): {error}")
        else:
            wrappers[id(layer)] = wrapper
    if not problems and all(wrapper in layers.values() for wrapper in wrappers.values()):
        problems = [f"no layer that can be, in {list(layers)}"]
    if problems:
        raise ValueError(
            f"Some layers can't be {what} by tensorflow-model-optimization. Expected layers that "
            "it knows, or the names of others in `skip`. Received: " + "; ".join(problems)
        )
    return wrappers
