"""The tf_keras twin of one Keras 3 layer or operation, made from its config."""

import inspect
import numbers

import keras

from kdtoolkit.tfmot.loading import load_tf_keras

_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
# Keras 3 computes another function under this name.
_OTHER_FUNCTION = ("hard_sigmoid",)
_MERGES = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")
_FUNCTIONS = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Silu": "swish",
    "Selu": "selu", "Softplus": "softplus", "Softsign": "softsign",
}  # fmt: skip


class NoTwin(Exception):
    """Why a layer can't cross."""


def layer_twin(layer, twins):
    """An unbuilt tf_keras layer that computes the same.

    Args:
        layer: a Keras 3 layer.
        twins: `{Keras 3 class: function(layer) -> tf_keras layer}`, asked first.

    Raises:
        NoTwin: there is none.
    """
    for kind, make in twins.items():
        if isinstance(layer, kind):
            return make(layer)
    name = type(layer).__name__
    if type(layer) is not getattr(keras.layers, name, None):
        raise NoTwin("a custom layer; give its twin in `twins`")
    cls = getattr(load_tf_keras().layers, name, None)
    if cls is None:
        raise NoTwin(f"tf_keras has no {name}; give a twin in `twins`")
    if name == "Lambda":
        raise NoTwin("a function that can't be rebuilt from a config; give a twin in `twins`")
    options = _options(layer, cls, twins)
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise NoTwin(f"tf_keras refuses its options ({error})") from error


def _options(layer, cls, twins):
    """The config of a layer as arguments of its tf_keras class."""
    known = {name for base in cls.__mro__ for name in _parameters(base)}
    defaults = _parameters(type(layer))
    renamed = _RENAMED.get(type(layer).__name__, {})
    options = {}
    for key, value in layer.get_config().items():
        if key.endswith("initializer"):
            continue  # The weights are copied.
        name = renamed.get(key, key)
        if name in known:
            options[name] = _converted(key, value, twins)
        elif value and value not in ("channels_last", defaults.get(key)):
            raise NoTwin(f"tf_keras has no option {key}={value!r}")
    if isinstance(layer, keras.layers.Normalization):
        options |= _constants(layer)
    return options


def _constants(layer):
    """What a normalisation layer has learned, as options, since its twin can't be built with it."""
    mean, variance = (keras.ops.convert_to_numpy(v) for v in (layer.mean, layer.variance))
    constants = {"mean": mean, "variance": variance}
    return constants | ({"axis": None} if mean.size == 1 else {})


def _parameters(cls):
    """`{name: default}` of a class's own constructor."""
    init = vars(cls).get("__init__")
    found = inspect.signature(init).parameters.values() if inspect.isfunction(init) else ()
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default for p in found if p.kind in plain}


def _converted(key, value, twins):
    """One option, with what Keras 3 serialises made anew in tf_keras."""
    tf_keras = load_tf_keras()
    if key.endswith("activation") and value is not None:
        return _activation(value)
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    name, config = value["class_name"], value["config"]
    if key == "dtype":
        if name != "DTypePolicy":
            raise NoTwin(f"its dtype policy is a {name}")
        return config["name"]
    for module in ("regularizers", "constraints"):
        if value.get("module") == f"keras.{module}":
            return getattr(getattr(tf_keras, module), name)(**config)
    if value.get("module") == "keras.layers":
        return layer_twin(keras.saving.deserialize_keras_object(value), twins)
    raise NoTwin(f"its {key} is custom ({value.get('registered_name') or config})")


def _activation(name):
    if not isinstance(name, str):
        raise NoTwin("its activation is a function of its own, not a name")
    try:
        load_tf_keras().activations.get(name)
    except ValueError as error:
        raise NoTwin(f"tf_keras has no activation '{name}'") from error
    if name in _OTHER_FUNCTION:
        raise NoTwin(f"the activation '{name}' is another function in tf_keras")
    return name


def operation_twin(operation, arguments):
    """A tf_keras layer for a `keras.ops` operation in a graph, and what it is called on.

    Args:
        operation: a `keras.Operation` that is no layer.
        arguments: its positional arguments in the graph; tensors are dicts.

    Returns:
        `(tf_keras layer, arguments of its call)`.

    Raises:
        NoTwin: there is no simple one.
    """
    layers, name = load_tf_keras().layers, type(operation).__name__
    tensors = [value for value in arguments if isinstance(value, dict)]
    if name in _MERGES and len(tensors) == 2:
        return getattr(layers, name)(name=operation.name), [tensors]
    if name in _MERGES and len(tensors) == 1 and len(arguments) == 2:
        scale, offset = _line(name, *arguments)
        return layers.Rescaling(scale, offset, name=operation.name), tensors
    if name in _FUNCTIONS and len(arguments) == 1:
        return layers.Activation(_FUNCTIONS[name], name=operation.name), tensors
    shape = getattr(operation, "newshape", None)
    if name == "Reshape" and shape and shape[0] in (-1, None) and len(arguments) == 1:
        return layers.Reshape(shape[1:], name=operation.name), tensors
    raise NoTwin(f"the operation {name} has no layer in tf_keras; use a layer instead")


def _line(name, first, second):
    """`(scale, offset)` of an operation between a tensor and a number."""
    number = second if isinstance(first, dict) else first
    lines = {"Add": (1, number), "Multiply": (number, 0)}
    lines["Subtract"] = (-1, number) if isinstance(second, dict) else (1, number)
    if name not in lines or not isinstance(number, numbers.Real):
        raise NoTwin(f"the operation {name} with a constant has no layer in tf_keras")
    scale, offset = lines[name]
    negative = name == "Subtract" and isinstance(first, dict)
    return float(scale), float(-offset if negative else offset)
