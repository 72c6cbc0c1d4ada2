"""Read inner tensors of a network by path, from the same forward pass that computes its output.

A path names a layer as a person finds it in the model: `"stage3"`, `"backbone/stage3"` for a layer
inside a nested model or a composite layer, with `":input"` at the end for what goes into the layer
instead of what comes out. In a subclassed model the attribute's name works as well as the layer's.
In a model whose output is a dict, a key of that dict is a path too.

Calls are listened to while the network runs, so functional, nested and subclassed models are read
the same way. Nothing is added to the graph, and the listeners are gone when the pass ends.
"""

import contextlib
import difflib
import functools
import inspect
import threading

import keras

from kdtoolkit.registry import expects, public

_LOCK = threading.Lock()
_AROUND = {}


def _children(operation):
    """The direct children of a model or composite layer, under each name they are known by."""
    # A layer around another one, with its name, shows what is inside that.
    operation = getattr(operation, "stands_for", operation)
    if not isinstance(operation, keras.layers.Layer):
        return {}
    if isinstance(operation, keras.Model):
        found = list(getattr(operation, "operations", None) or operation.layers)
    else:
        # `layers` is public on models only; composite layers hold theirs behind this method.
        found = operation._flatten_layers(include_self=False, recursive=False)
    # What was wrapped to be read is still found where it was.
    found = [child.model if isinstance(child, Tapped) else child for child in found]
    named = {id(child): child for child in found}
    attributes = {
        key: value
        for key, value in vars(operation).items()
        if id(value) in named and not key.startswith("_")
    }
    return {**attributes, **{child.name: child for child in found}}


def walk(operation, prefix="", seen=()):
    """`(path, layer)` of all that is inside, under each of its names."""
    for name, child in _children(operation).items():
        if id(child) in seen:
            continue
        yield prefix + name, child
        yield from walk(child, f"{prefix}{name}/", (*seen, id(child)))


def _no_such_layer(model, path):
    known = list(dict.fromkeys(path for path, _ in walk(model)))
    leaf = path.rsplit("/", 1)[-1]
    near = [name for name in known if name.rsplit("/", 1)[-1] == leaf]
    near += difflib.get_close_matches(path, known, n=5, cutoff=0.4)
    hint = ", ".join(dict.fromkeys(near or known[:10])) or "none"
    return ValueError(
        f"Model '{model.name}' has no layer '{path}'. Expected the path of a layer, such as "
        f"'stage3' or 'backbone/stage3'. Received: '{path}'. Near names: {hint}"
    )


def _descend(model, path):
    operation = model
    for part in path.split("/"):
        operation = _children(operation).get(part) if operation is not None else None
    return operation


def find_layer(model, path):
    """The layer that a path names.

    Raises:
        ValueError: there is none; the message lists near names.
    """
    if not isinstance(path, str):
        raise TypeError(f"A layer's path must be a text, such as 'stage1'. Received: {path!r}")
    layer = _descend(model, path.partition(":")[0])
    if layer is None:
        raise _no_such_layer(model, path)
    return layer


def _guarded(operation, original):
    @functools.wraps(original)
    def call(*args, **kwargs):
        run = original
        for around in tuple(_AROUND.get(id(operation), ())):
            run = functools.partial(around, operation, run)
        return run(*args, **kwargs)

    return call


@contextlib.contextmanager
def around_calls(operations, function):
    """Each call that this thread makes to `operations` becomes `function(operation, call, ...)`.

    `call` with the arguments that follow is what would have run. Replicas trace the same layers in
    threads of their own and may take turns, so each thread keeps to its own calls, and the layer's
    own `call` comes back when the last one leaves.

    Args:
        operations: list of layers and other operations, each once.
        function: what runs in their place.
    """
    thread = threading.get_ident()

    def around(operation, call, *args, **kwargs):
        own = threading.get_ident() == thread
        return function(operation, call, *args, **kwargs) if own else call(*args, **kwargs)

    # `vars(...)` instead of setattr: Keras tracks what is set on a layer, and this is no state.
    with _LOCK:
        for operation in operations:
            if not _AROUND.setdefault(id(operation), []):
                vars(operation)["call"] = _guarded(operation, operation.call)
            _AROUND[id(operation)].append(around)
    try:
        yield
    finally:
        with _LOCK:
            for operation in operations:
                _AROUND[id(operation)].remove(around)
                if not _AROUND[id(operation)]:
                    del _AROUND[id(operation)], vars(operation)["call"]


@contextlib.contextmanager
def _recording(operations):
    """Collect `(first argument, output)` of every call that this thread makes to `operations`."""
    calls = {id(operation): [] for operation in operations}

    def record(operation, call, *args, **kwargs):
        output = call(*args, **kwargs)
        first = args[0] if args else next(iter(kwargs.values()), None)
        calls[id(operation)].append((first, output))
        return output

    with around_calls(operations, record):
        yield calls


def takes_training(layer):
    """Whether a layer's `call` declares `training`. Keras fills it in there, else refuses it."""
    return "training" in inspect.signature(layer.call).parameters


def in_stage(layer, inputs, training):
    """Run a layer, told outright whether it trains where it wants to know.

    Keras's step on JAX gives layers no call context to learn it from.
    """
    return layer(inputs, training=training) if takes_training(layer) else layer(inputs)


class Taps:
    """The inner tensors of one network that somebody reads, from one forward pass.

    Args:
        model: a `keras.Model` of any kind.
        paths: what to read, see the module's first lines.
    """

    def __init__(self, model, paths=()):
        self.model = model
        self.paths = tuple(dict.fromkeys(paths))
        self._kwargs = ("training",) if takes_training(model) else ()

    def __call__(self, inputs, *args, training=None, **kwargs):
        """Run the network once. Returns `(output, {path: tensor})`.

        Raises:
            ValueError: a path names neither a layer nor a key of the output, or its layer doesn't
                run exactly once in the pass.
        """
        kwargs.update((name, training) for name in self._kwargs)
        if not self.paths:
            return self.model(inputs, *args, **kwargs), {}
        layers = self._layers(inputs)
        unique = list({id(layer): layer for layer in layers.values()}.values())
        with _recording(unique) as calls:
            output = self.model(inputs, *args, **kwargs)
        read = {}
        for path in self.paths:
            if path in layers:
                read[path] = self._pick(path, calls[id(layers[path])])
            elif isinstance(output, dict) and path in output:
                read[path] = output[path]
            else:
                raise _no_such_layer(self.model, path)
        return output, read

    def _layers(self, inputs):
        """The layers of the paths that name one; the other paths may be keys of the output."""
        if not self.model.built and self._missing():
            # Layers that `build` creates don't exist before the first call: trace one aside.
            output_spec(self.model, spec_of(inputs))
        return {path: layer for path in self.paths if (layer := self._find(path)) is not None}

    def _missing(self):
        return any(self._find(path) is None for path in self.paths)

    def _find(self, path):
        return _descend(self.model, path.partition(":")[0])

    def _pick(self, path, calls):
        if len(calls) != 1:
            raise ValueError(
                f"Layer '{path}' of model '{self.model.name}' ran {len(calls)} times in one pass, "
                "expected once. Name a layer that runs once, such as the one that follows it."
            )
        return calls[0][0 if path.endswith(":input") else 1]


class _Probe(keras.layers.Layer):
    def __init__(self, function):
        super().__init__(dtype="float32", autocast=False)
        self.function = function
        self.error = None

    def call(self, inputs):
        try:
            return self.function(inputs)
        except Exception as error:
            self.error = error
            raise


def output_spec(function, spec):
    """What a function of networks returns for symbolic tensors, computed aside.

    Networks that aren't built yet are built; nothing else in them changes.
    """
    probe = _Probe(function)
    try:
        return probe.compute_output_spec(spec)
    except Exception:
        if probe.error is None:
            raise
        # Keras wraps what goes wrong in a page about the probe.
        raise probe.error from None


def spec_of(tensors):
    """The symbolic twin of a structure of arrays or tensors, with an unknown batch size."""

    def spec(value):
        dtype = keras.backend.standardize_dtype(value.dtype)
        return keras.KerasTensor((None, *tuple(value.shape)[1:]), dtype=dtype)

    return keras.tree.map_structure(spec, tensors)


@public
class Tapped(keras.Model):
    """A model that returns its inner tensors beside its output. See `tap`."""

    def __init__(self, model, layers, name=None, **kwargs):
        # The model casts its inputs by itself, by its own policy.
        super().__init__(name=name or f"{model.name}_tapped", autocast=False, **kwargs)
        self.model = model
        self.paths = list(layers)
        self._taps = Taps(model, layers)
        self.supports_masking = True

    def call(self, inputs, *args, training=None, **kwargs):
        output, read = self._taps(inputs, *args, training=training, **kwargs)
        return {"output": output, **read}

    def compute_mask(self, inputs, previous_mask):
        passed = self.model.supports_masking
        mask = self.model.compute_mask(inputs, previous_mask) if passed else None
        return {"output": mask, **dict.fromkeys(self.paths)}

    def get_build_config(self):
        # The model inside builds itself; Keras can't do it for several inputs.
        return None

    def get_config(self):
        model = keras.saving.serialize_keras_object(self.model)
        return {"name": self.name, "model": model, "layers": list(self.paths)}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("model")), **config)


@expects(model="model", layers="texts")
def tap(model, layers):
    """A model that shares the weights of `model` and also returns inner tensors by path.

    One forward pass serves the output and every tap. `model` itself isn't changed.

    Args:
        model: a `keras.Model`: functional, Sequential, subclassed, or nested.
        layers: list of paths: `"stage3"`, `"backbone/stage3"`, `"logits:input"`.

    Returns:
        A `keras.Model` whose output is `{"output": ..., path: ..., ...}`.

    Raises:
        ValueError: a path names no layer (the message lists near names), or the layer runs more
            than once in a pass.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden"),
        ...                           keras.layers.Dense(2)])
        >>> outputs = kd.tap(model, ["hidden"])(np.ones((5, 4)))
        >>> tuple(outputs["hidden"].shape)
        (5, 3)
    """
    return Tapped(model, layers)
