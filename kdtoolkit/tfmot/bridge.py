"""A Keras 3 model as a tf_keras model: the graph is read from its config, nothing of it runs."""

import inspect

import keras
import numpy as np

from kdtoolkit.inner import plain_graph
from kdtoolkit.tfmot import weights
from kdtoolkit.tfmot.loading import load_tf_keras
from kdtoolkit.tfmot.twins import NoTwin, layer_twin, operation_twin

# Said by whoever calls the model (a recorded True would augment at inference), and carried by
# tf_keras from layer to layer.
_NOT_REPLAYED = ("training", "mask")
_EXAMPLES = 4
_OPEN_SIZE = 16


def to_tf_keras(model, *, twins=None, tolerance=None):
    """Rebuild a Keras 3 model in tf_keras, with the same weights and the same outputs.

    The graph is read from the model's config, as for saving; each layer is made anew by its name
    and options, also in nested models, and a layer that is shared stays shared. Simple operations
    (`x + y`, `2 * x`, `keras.ops.relu`) become layers. Then both models run on random inputs in
    inference mode and must agree. The original is not changed.

    What can't cross is refused before anything runs, all at once and with reasons: custom layers,
    subclassed models, layers, options or activations that tf_keras doesn't know, other
    `keras.ops`. Initialisers stay behind, since the weights are copied.

    Args:
        model: a built functional or Sequential `keras.Model`.
        twins: `{Keras 3 layer class: function(layer) -> tf_keras layer}` for custom layers. The
            twin's weights must have the same names, shapes and order; they are copied too.
        tolerance: float >= 0, how far the outputs may differ, as a share of the largest one.
            Defaults to 1e-4, in mixed precision to 1e-2.

    Returns:
        A functional tf_keras model, not compiled.

    Raises:
        ImportError: tf_keras is not installed.
        TypeError: `model` is no Keras 3 model.
        ValueError: layers that can't cross, or outputs that differ.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "relu")])
        >>> twin = kd.tfmot.to_tf_keras(model)
        >>> type(twin).__module__.split(".")[0], twin.count_params()
        ('tf_keras', 10)
    """
    load_tf_keras()
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras 3 model. Received: {model!r}")
    if tolerance is None:
        half = any("16" in layer.compute_dtype for layer in model.layers)
        tolerance = 1e-2 if half else 1e-4
    crossing = _Crossing(twins or {})
    graph = crossing.read(model, "")
    if crossing.problems:
        raise ValueError(
            f"'{model.name}' can't become a tf_keras model. Expected a built functional or "
            "Sequential model of layers that tf_keras has, or a function for each other one in "
            f"`twins`. Received: {'; '.join(crossing.problems)}"
        )
    twin = crossing.connect(graph)
    crossing.copy_weights()
    _check_outputs(model, twin, tolerance)
    return twin


class _Graph:
    """One model's graph: its twins and how they are called, in an order in which they can run."""

    def __init__(self, plain, config):
        self.plain = plain
        self.inputs, self.outputs = config["input_layers"], config["output_layers"]
        self.nodes = []
        self.twin = None


class _Crossing:
    """What is known while a model crosses.

    Attributes:
        problems: why it can't, one line each.
        made: `{id of a layer: (path, layer, its twin, or a nested `_Graph`)}`.
    """

    def __init__(self, twins):
        self.twins = twins
        self.problems = []
        self.made = {}

    # Before anything runs ---------------------------------------------------------------------

    def read(self, model, path):
        """The `_Graph` of a model, None with a line in `problems`."""
        plain = plain_graph(model)
        if plain is None:
            kind = "a subclassed model" if model.built else "a model that isn't built"
            self.problems.append(f"'{path or model.name}': {kind}, without a graph to read")
            return None
        inside = f"{path}/" if path else ""
        for operation in plain.operations:
            self._make(operation, f"{inside}{operation.name}")
        try:
            config = plain.get_config()
        # Custom layers decide what happens in their `get_config`.
        except Exception as error:
            self.problems.append(f"'{path or model.name}': it has no config ({error})")
            return None
        graph = _Graph(plain, config)
        self._order(graph, config, inside)
        return graph

    def _make(self, operation, path):
        if isinstance(operation, keras.layers.InputLayer) or id(operation) in self.made:
            return
        twin = None
        if isinstance(operation, keras.Model) and not self._given(operation):
            twin = self.read(operation, path)
        elif isinstance(operation, keras.layers.Layer):
            try:
                twin = layer_twin(operation, self.twins)
            except NoTwin as error:
                self._refuse(path, operation, error)
        self.made[id(operation)] = path, operation, twin

    def _given(self, operation):
        return isinstance(operation, tuple(self.twins))

    def _refuse(self, path, operation, error):
        self.problems.append(f"'{path}' ({type(operation).__name__}): {error}")

    def _order(self, graph, config, path):
        """Put the calls that the outputs need in an order in which they can run."""
        operations = {operation.name: operation for operation in graph.plain.operations}
        calls = {}
        for entry in config["layers"]:
            for index, node in enumerate(entry["inbound_nodes"]):
                kwargs = {k: v for k, v in node["kwargs"].items() if k not in _NOT_REPLAYED}
                calls[entry["name"], index] = list(node["args"]), kwargs
        needed, waiting = set(), [key[:2] for key in _references(graph.outputs)]
        while waiting:
            key = waiting.pop()
            if key in calls and key not in needed:
                needed.add(key)
                waiting += [found[:2] for found in _references(calls[key])]
        while needed:
            ready = [k for k in calls if k in needed and not self._wants(calls[k], needed)]
            needed -= set(ready)
            for key in ready:
                operation = operations[key[0]]
                call = self._call(operation, *calls[key], f"{path}{operation.name}")
                graph.nodes.append((key, *call))

    def _wants(self, call, needed):
        return any(key[:2] in needed for key in _references(call))

    def _call(self, operation, args, kwargs, path):
        """`(twin, args, kwargs)` of one call."""
        twin = self.made[id(operation)][2]
        try:
            if not isinstance(operation, keras.layers.Layer):
                twin, args = operation_twin(operation, [*args, *kwargs.values()])
                kwargs = {}
            elif twin is not None and not isinstance(twin, _Graph):
                kwargs = _known_to(twin, kwargs)
        except NoTwin as error:
            self._refuse(path, operation, error)
        return twin, args, kwargs

    # The twin ---------------------------------------------------------------------------------

    def connect(self, graph):
        """The tf_keras model of a `_Graph`."""
        tf_keras = load_tf_keras()
        if graph.twin is not None:
            return graph.twin
        tensors = {}
        for operation in graph.plain.operations:
            if isinstance(operation, keras.layers.InputLayer):
                batch, *shape = operation.batch_shape
                tensors[operation.name, 0, 0] = tf_keras.Input(
                    shape, batch, operation.name, operation.dtype
                )
        for (name, index), twin, args, kwargs in graph.nodes:
            layer = self.connect(twin) if isinstance(twin, _Graph) else twin
            args, kwargs = (_filled(value, tensors) for value in (args, kwargs))
            output = _called(layer, args, kwargs)
            for position, tensor in enumerate(keras.tree.flatten(output)):
                tensors[name, index, position] = tensor
        ends = (_filled(side, tensors) for side in (graph.inputs, graph.outputs))
        graph.twin = tf_keras.Model(*ends, name=graph.plain.name)
        return graph.twin

    def copy_weights(self):
        """Give the twins the weights."""
        for path, layer, twin in self.made.values():
            if twin is None or isinstance(twin, _Graph) or not twin.built:
                continue
            try:
                found = weights.pairs(layer, twin)
            except ValueError as error:
                raise ValueError(
                    f"The tf_keras twin of '{path}' ({type(layer).__name__}) has other weights. "
                    f"Expected the same. Received: {error}. Give another one in `twins`."
                ) from error
            for mine, theirs in found:
                theirs.assign(keras.ops.convert_to_numpy(mine))


def _called(layer, args, kwargs):
    try:
        return layer(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The tf_keras twin of '{layer.name}' ({type(layer).__name__}) can't be called as the "
            f"original: {error}. Give another one in `twins`."
        ) from error


def _is_reference(value):
    names = isinstance(value, list | tuple) and len(value) == 3 and isinstance(value[0], str)
    return names and all(isinstance(number, int) for number in value[1:])


def _history(value):
    """`(layer, call, output)` of a tensor in a config, None for anything else."""
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        value = value["config"]["keras_history"]
    return tuple(value) if _is_reference(value) else None


def _references(value):
    """The histories of all tensors in a structure of a config."""
    history = _history(value)
    if history is not None:
        yield history
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _references(inner)


def _filled(value, tensors):
    """A structure of a config with its tensors in place."""
    history = _history(value)
    if history is not None:
        return tensors[history]
    if isinstance(value, dict):
        return {key: _filled(inner, tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(inner, tensors) for inner in value]
    return value


def _known_to(twin, kwargs):
    """The arguments of a call that say something, refused where the twin doesn't take them."""
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    parameters = inspect.signature(twin.call).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return kwargs
    for name, value in kwargs.items():
        if name not in parameters and value:
            raise NoTwin(f"its call takes no {name} in tf_keras")
    return {name: value for name, value in kwargs.items() if name in parameters}


def _check_outputs(model, twin, tolerance):
    """Run both on random inputs; raise a ValueError where they differ."""
    plain = plain_graph(model)
    random = np.random.default_rng(0)
    inputs = keras.tree.map_structure(lambda tensor: _random(tensor, random), plain.input)
    expected = [keras.ops.convert_to_numpy(t) for t in _outputs(plain, inputs)]
    received = [np.asarray(tensor) for tensor in _outputs(twin, inputs)]
    for name, mine, theirs in zip(plain.output_names, expected, received, strict=True):
        mine, theirs = (np.asarray(a, "float64") for a in (mine, theirs))
        scale = max(float(np.max(np.abs(mine), initial=0)), 1e-6)
        same = mine.shape == theirs.shape
        difference = float(np.max(np.abs(mine - theirs), initial=0)) / scale if same else np.inf
        # Not `>`: NaN must not pass.
        if not difference <= tolerance:
            raise ValueError(
                f"The tf_keras twin of '{model.name}' computes something else. Expected outputs "
                f"within {tolerance:g} of the largest. Received: a difference of {difference:.3g} "
                f"in output '{name}'. A layer means something else there; give its twin in `twins`."
            )


def _outputs(model, inputs):
    return keras.tree.flatten(model(inputs, training=False))


def _random(tensor, random):
    """Random values for one input."""
    shape = [_OPEN_SIZE if size is None else size for size in tensor.shape[1:]]
    shape = (tensor.shape[0] or _EXAMPLES, *shape)
    dtype = np.dtype(keras.backend.standardize_dtype(tensor.dtype))
    if dtype.kind == "f":
        return random.normal(size=shape).astype(dtype)
    return random.integers(0, 2, size=shape).astype(dtype)
