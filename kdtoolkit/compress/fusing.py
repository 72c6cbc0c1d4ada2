"""Where LiteRT rounds: which outputs of a graph are tensors of the file."""

import keras
from keras import layers

from kdtoolkit.compress.weights import CONVOLUTIONS, DEPTHWISE, TRANSPOSED
from kdtoolkit.compress.wrapping import plain

#: Outputs with the scale of the input: no arithmetic happens, or LiteRT demands it.
_PASSES = {
    "ActivityRegularization",
    "Cropping",
    "Dropout",
    "ExpandDims",
    "Flatten",
    "GaussianDropout",
    "GaussianNoise",
    "GetItem",
    "Identity",
    "Masking",
    "Permute",
    "RepeatVector",
    "Reshape",
    "Squeeze",
    "Transpose",
    "ZeroPadding",
    "AveragePooling",
    "GlobalMaxPooling",
    "MaxPooling",
    "SpatialDropout",
    "UpSampling",
}
#: Operations whose kernels take a ReLU along.
_TAKES_RELU = {"Add", "Subtract", "Multiply", "Dense", "Conv", "DepthwiseConv"}
#: Ranges that LiteRT's kernels prescribe: 256 steps, the highest one missing.
_FIXED = {
    "softmax": (0.0, 255 / 256),
    "sigmoid": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}
#: Arithmetic in several steps, with tensors between them that no layer of the graph shows.
_INNER = (
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.BatchNormalization,
    layers.MultiHeadAttention,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
)
_KNOWN = (
    *(layers.Dense, layers.EinsumDense, layers.Embedding),
    *(*CONVOLUTIONS, *DEPTHWISE, *TRANSPOSED),
)
_SIMPLE_ACTIVATIONS = {"linear", "relu", "relu6", "softmax", "sigmoid", "tanh"}


def _kind(operation):
    """The class's name, without the number of dimensions."""
    return type(plain(operation)).__name__.removesuffix("1D").removesuffix("2D").removesuffix("3D")


def _activation(operation):
    """Name of the activation that a layer or operation ends with."""
    layer = plain(operation)
    if isinstance(layer, layers.ReLU):
        plain_relu = layer.max_value in (None, 6) and not (layer.negative_slope or layer.threshold)
        return "relu" if plain_relu else "other"
    named = {"Relu": "relu", "Relu6": "relu6", "Softmax": "softmax"}
    named |= {"Sigmoid": "sigmoid", "Tanh": "tanh", "Silu": "silu", "Gelu": "gelu"}
    if _kind(layer) in named:
        return named[_kind(layer)]
    function = getattr(layer, "activation", None)
    # A layer may be an activation too, and has no such name.
    return getattr(function, "__name__", "other") if callable(function) else "linear"


def takes_apart(operation):
    """Whether a layer's own activation needs a range in front of it in the file."""
    layer = plain(operation)
    if not isinstance(layer, _KNOWN) or isinstance(layer, layers.Embedding):
        return False
    fused = _activation(layer) in ("relu", "relu6") and _kind(layer) in _TAKES_RELU
    return _activation(layer) != "linear" and not fused


def passes(operation):
    """Whether the output of an operation has the scale of what it reads."""
    kind = _kind(operation)
    if kind == "Activation":
        return _activation(operation) == "linear"
    return kind in _PASSES or kind.startswith("Random") or isinstance(operation, layers.Embedding)


def range_behind(graph, call):
    """What is rounded behind a call: None for nothing, `"learned"`, or a fixed (low, high)."""
    operation = call.operation
    floats = all("float" in keras.backend.standardize_dtype(t.dtype) for t in call.outputs)
    if passes(operation) or len(call.outputs) != 1 or not floats:
        return None
    activation = _activation(operation)
    if activation in _FIXED:
        return _FIXED[activation]
    follower = graph.only_consumer(call.outputs[0])
    if activation == "linear" and _kind(operation) in _TAKES_RELU and follower is not None:
        alone = _kind(follower.operation) in ("ReLU", "Relu", "Relu6", "Activation")
        if alone and _activation(follower.operation) in ("relu", "relu6"):
            return None
    return "learned"


def recurrent(layer):
    """Whether a layer runs a loop over time, which LiteRT can't run in integers."""
    return isinstance(layer, layers.RNN | layers.Bidirectional | layers.TimeDistributed)


def has_inner_steps(operation):
    """Whether a layer computes in steps whose ranges aren't seen from outside."""
    layer = plain(operation)
    if not isinstance(layer, keras.layers.Layer):
        return _activation(layer) not in _SIMPLE_ACTIVATIONS
    if isinstance(layer, _INNER) or _activation(layer) not in _SIMPLE_ACTIVATIONS:
        return True
    return not type(layer).__module__.startswith("keras.") and not isinstance(layer, _KNOWN)
