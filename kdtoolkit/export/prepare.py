"""What is done to a model before its conversion: checks, a float32 copy, plain arithmetic."""

import contextlib

import keras

from kdtoolkit.export.graph import describe, is_tf_keras
from kdtoolkit.inner import give_weights

_NOT_FLOAT32 = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64")
_LOOKUPS = {"StringLookup", "IntegerLookup", "TextVectorization", "Hashing", "HashedCrossing"}
# Names of classes, because tf_keras has its own.
_LOOPS = {"RNN", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"}


def check_model(model):
    """Refuse a model that cannot be exported, before any slow step.

    Args:
        model: The object given as a model.

    Raises:
        TypeError: If it is not a `keras.Model`.
        ValueError: If the backend is not TensorFlow, or the model is unbuilt or quantised.
    """
    if not isinstance(model, keras.Model) and not is_tf_keras(model):
        raise TypeError(f"`model` must be a keras.Model. Received: {type(model).__name__}.")
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            "The export to LiteRT needs the TensorFlow backend of Keras. "
            f"Received: backend '{backend}'. Save the model with model.save('model.keras'), "
            "load it in a process started with KERAS_BACKEND=tensorflow, and export it there."
        )
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built, so its weights do not exist yet. "
            "Call it on one batch of data before the export."
        )
    quantised = [layer.name for layer in layers_of(model) if _is_quantised(layer)]
    if quantised:
        raise ValueError(
            f"The layers {quantised} were quantised by keras.Model.quantize, which LiteRT cannot "
            "express. Export the model as it was before, with "
            "litert(..., quantize='int8' or 'dynamic')."
        )


def check_layers(model, integer_mode=None):
    """Refuse layers that LiteRT cannot run, by name, before any slow step.

    Args:
        model: A model that `check_model` accepted.
        integer_mode: `"int8"` or `"int16"` if all activations shall be integers.

    Raises:
        ValueError: If there is such a layer.
    """
    lookups = [layer for layer in layers_of(model) if _is_a(layer, _LOOKUPS)]
    if lookups:
        names = [f"{layer.name} ({type(layer).__name__})" for layer in lookups]
        raise ValueError(
            f"LiteRT has no tables for the layers {names}. Move them out of the model, into the "
            "preprocessing, and export the part that takes numbers."
        )
    # A loop that is unrolled is none.
    loops = [
        layer.name
        for layer in layers_of(model)
        if _is_a(layer, _LOOPS) and not getattr(layer, "unroll", False)
    ]
    if loops and integer_mode:
        raise ValueError(
            f"quantize='{integer_mode}' does not support models with loops, such as the recurrent "
            f"layers {loops}. Use quantize='dynamic', whose weights are int8 too."
        )


def uses_float32(model):
    """Tell whether all layers of a model compute in float32.

    Args:
        model: A `keras.Model`.

    Returns:
        `False` if a layer computes in another float type, as under `mixed_float16`.
    """
    return not any(layer.compute_dtype in _NOT_FLOAT32 for layer in layers_of(model))


def float32_copy(model):
    """Return the model with all layers computing in float32.

    The converter finds no LiteRT kernels for half precision layers, so the same weights are
    put in a copy whose layers have the dtype policy `"float32"`.

    Args:
        model: A built `keras.Model`.

    Returns:
        The model itself if it computes in float32, else a copy.

    Raises:
        ValueError: If the copy cannot be made from the configuration of the model.
    """
    if uses_float32(model):
        return model
    if is_tf_keras(model):
        raise ValueError(
            f"The tf_keras model '{model.name}' does not compute in float32, which the export of "
            "tf_keras models needs. Build it once more under the dtype policy 'float32', give it "
            "the weights with set_weights, and export that."
        )
    policy = keras.config.dtype_policy()
    # Layers that are created inside other layers' constructors take the global policy.
    keras.config.set_dtype_policy("float32")
    try:
        copy = _clone(model)
        give_weights(model, copy)
    # User code runs in get_config, from_config and build, and may raise anything.
    except Exception as error:
        raise ValueError(
            f"Model '{model.name}' does not compute in float32, and no float32 copy of it could "
            f"be made ({type(error).__name__}: {str(error)[:300]}). Build the model once more "
            "under keras.config.set_dtype_policy('float32'), give it the weights with "
            "set_weights, and export that."
        ) from error
    finally:
        keras.config.set_dtype_policy(policy)
    return copy


@contextlib.contextmanager
def quantizable_layer_normalization():
    """Let LayerNormalization compute in operations that LiteRT can run in int8.

    Keras computes `x * inv - mean * inv`, whose negation has no int8 kernel and leaves float
    islands in the file. Inside this block it computes the same value as
    `(x - mean) * rsqrt(mean((x - mean)^2) + epsilon) * gamma + beta`.

    The method is exchanged on the class, for the time of a trace, because that also reaches
    layers inside subclassed models and custom layers, which cloning does not.
    """
    original = keras.layers.LayerNormalization.call

    def call(self, inputs):
        # The deprecated rms_scaling is not this formula.
        return original(self, inputs) if self.rms_scaling else _layer_normalization(self, inputs)

    keras.layers.LayerNormalization.call = call
    try:
        yield
    finally:
        keras.layers.LayerNormalization.call = original


def _layer_normalization(layer, inputs):
    ops = keras.ops
    centred = inputs - ops.mean(inputs, axis=layer.axis, keepdims=True)
    variance = ops.mean(centred * centred, axis=layer.axis, keepdims=True)
    outputs = centred * ops.rsqrt(variance + layer.epsilon)
    shape = [n if i in _axes(layer, inputs) else 1 for i, n in enumerate(inputs.shape)]
    if layer.gamma is not None:
        outputs = outputs * ops.reshape(layer.gamma, shape)
    if layer.beta is not None:
        outputs = outputs + ops.reshape(layer.beta, shape)
    return outputs


def _axes(layer, inputs):
    return [axis % len(inputs.shape) for axis in layer.axis]


def layers_of(model):
    """Yield the layers of a model and of the models in it.

    Args:
        model: A model of Keras 3 or tf_keras.

    Yields:
        Its layers.
    """
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model) or is_tf_keras(layer):
            yield from layers_of(layer)


def _is_a(layer, class_names):
    return any(cls.__name__ in class_names for cls in type(layer).__mro__)


def _is_quantised(layer):
    # tf_keras has no such policies.
    return getattr(getattr(layer, "dtype_policy", None), "quantization_mode", None) is not None


def _clone(model):
    graph = describe(model)
    if graph.output_names:
        return keras.models.clone_model(model, clone_function=_float32_layer)
    copy = _float32_layer(model)
    # One call creates the weights.
    arrays = [keras.ops.zeros((1, *info.shape[1:])) for info in graph.inputs]
    copy(keras.tree.pack_sequence_as(graph.structure, arrays), training=False)
    return copy


def _float32_layer(layer):
    return type(layer).from_config(_float32_config(layer.get_config()))


def _float32_config(config):
    """Return a configuration with every float policy in it, at any depth, set to float32."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return "float32" if config["config"]["name"] in _NOT_FLOAT32 else config
        if config.get("dtype") in _NOT_FLOAT32:
            config = {**config, "dtype": "float32"}
        return {key: _float32_config(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_float32_config(value) for value in config)
    return config
