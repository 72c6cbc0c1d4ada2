"""Inner tensors of a functional model, also of models inside it, as part of one graph."""

import keras
from keras import layers

from kdtoolkit.taps import Tapped, walk


def plain_graph(operation):
    """A model's graph as a plain functional model on the same layers; None for what has none."""
    if not isinstance(operation, keras.Model) or not getattr(operation, "inputs", None):
        return None
    sequential = isinstance(operation, keras.Sequential)
    inputs, output = (
        (operation.inputs[0], operation.outputs[0])
        if sequential
        else (operation.input, operation.output)
    )
    plain = keras.Model(inputs, output, name=operation.name)
    # A subclass may have inputs and yet do something else with them.
    follows = type(operation).call in (keras.Sequential.call, type(plain).call)
    return plain if follows else None


def give_weights(source, target):
    """Give a copy of a model the weights of the original."""
    target.set_weights(source.get_weights())
    for _, layer in walk(target):
        if isinstance(layer, layers.Normalization):
            # What it computes with is made of its weights, and it isn't told that they are new.
            layer.finalize_state()


def squashes(operation):
    """Whether a layer gives probabilities: a softmax or sigmoid, or one as its activation."""
    activation = getattr(operation, "activation", None)
    squashing = (keras.activations.softmax, keras.activations.sigmoid)
    return isinstance(operation, layers.Softmax) or activation in squashing


def anew(graph, call):
    """Run a plain functional model's layers anew, each by `call(operation, *args, **kwargs)`.

    A layer doesn't say which of its outputs is of which graph, so whoever wants to read inner
    tensors makes a graph of its own. Returns a functional model on the inputs of `graph`.
    """
    return keras.models.clone_model(
        graph, graph.input, clone_function=lambda layer: layer, call_function=call
    )


def reader(graph, paths):
    """A functional model on the same layers that returns `[output, *tensors of the paths]`.

    Nested models on the paths are opened. `graph` is a plain functional model.
    """
    output, found = _run_anew(graph, paths)
    return keras.Model(graph.input, [output, *(found[path] for path in paths)])


def _single(path, value):
    """A tensor, or the first of several."""
    value = value[0] if isinstance(value, list | tuple) and value else value
    if not isinstance(value, keras.KerasTensor):
        known = f" with the keys {sorted(value)}" if isinstance(value, dict) else ""
        raise ValueError(
            f"An exit reads one tensor. Received: '{path}', which gives a {type(value).__name__}"
            f"{known}. Name a layer inside it, such as '{path}/...'"
        )
    return value


def _run_anew(model, paths):
    """`(output, {path: tensor})` of a model's graph, on the model's inputs."""
    found = {path: [] for path in paths}

    def call(operation, *args, **kwargs):
        own = [path for path in paths if path.partition(":")[0] == operation.name]
        inner = [path for path in paths if path.startswith(f"{operation.name}/")]
        if inner:
            output, *tensors = _opened(operation, [_behind(p) for p in inner], args, kwargs)
            for path, tensor in zip(inner, tensors, strict=True):
                found[path].append(_single(path, tensor))
        else:
            output = operation(*args, **kwargs)
        for path in own:
            found[path].append(_single(path, args[0] if path.endswith(":input") else output))
        return output

    copy = anew(model, call)
    for path, tensors in found.items():
        if len(tensors) != 1:
            raise ValueError(
                f"A path must name a layer of '{model.name}' that runs once, and not its input. "
                f"Received: {path!r}, which runs {len(tensors)} times"
            )
    return copy.output, {path: tensors[0] for path, tensors in found.items()}


def _behind(path):
    return path.partition("/")[2]


def _opened(operation, paths, args, kwargs):
    """Run a part of a graph: `[output, *tensors of the paths in it]`."""
    graph = plain_graph(operation)
    if graph is not None:
        # `call` itself runs the layers one by one, so that they become part of the outer graph.
        return reader(graph, paths).call(*args, **kwargs)
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    given = keras.tree.flatten((args, {k: v for k, v in kwargs.items() if k != "training"}))
    if not all(isinstance(value, keras.KerasTensor) for value in given):
        # Keras refuses a mixture where a layer takes any arguments.
        raise ValueError(
            f"Inside '{operation.name}' no layer can be read, since it is called with more than "
            f"tensors. Name '{operation.name}' itself, or a layer behind it. Received: {paths}"
        )
    tapped = Tapped(operation, paths)(*args, **kwargs)
    return [tapped["output"], *(tapped[path] for path in paths)]


def names_in_graph(graph, opens, prefix=""):
    """Names of all operations, with those in nested models that are opened.

    Args:
        graph: a plain functional model.
        opens: function `(operation, path)`, the path with a slash at its end.
        prefix: path of `graph` itself.
    """
    for operation in graph.operations:
        path = f"{prefix}{operation.name}/"
        inner = plain_graph(operation) if opens(operation, path) else None
        if inner is not None:
            yield from names_in_graph(inner, opens, path)
        elif not isinstance(operation, layers.InputLayer):
            yield operation.name
