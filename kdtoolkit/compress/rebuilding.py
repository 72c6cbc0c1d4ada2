"""A functional model as a list of calls, and the model that other calls make of it."""

import dataclasses
from typing import Any

import keras

from kdtoolkit.inner import anew, give_weights, plain_graph


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation in a graph, with symbolic tensors."""

    operation: Any
    args: tuple
    kwargs: dict
    output: Any

    @property
    def inputs(self):
        """The tensors it reads, in a list."""
        values = keras.tree.flatten((self.args, self.kwargs))
        return [value for value in values if isinstance(value, keras.KerasTensor)]

    @property
    def outputs(self):
        """The tensors it gives, in a list."""
        return keras.tree.flatten(self.output)


def graph_of(model):
    """A model as a plain functional one on the same layers.

    Raises:
        ValueError: it has no graph.
    """
    graph = plain_graph(model)
    if graph is None:
        raise ValueError(
            "Compression needs a functional or a built sequential model, whose layers can be "
            f"exchanged. Received: '{getattr(model, 'name', model)}', a "
            f"{type(model).__name__}. Make a subclassed model one layer of a functional one: "
            "keras.Model(inputs, model(inputs)), then its weights are reached inside it"
        )
    return graph


class Graph:
    """The calls of a functional or sequential model, in the order in which they run.

    Attributes:
        model: a plain functional model on the layers of the one given.
        calls: list of `Call`, inputs not among them.
        runs: dict from id of an operation to how many calls it has.
    """

    def __init__(self, model):
        graph = graph_of(model)
        self.calls = []
        self.model = anew(graph, self._record)
        self.runs = {}
        for call in self.calls:
            self.runs[id(call.operation)] = self.runs.get(id(call.operation), 0) + 1
        self._producers = {id(t): call for call in self.calls for t in call.outputs}
        self._consumers = {}
        for call in self.calls:
            for tensor in call.inputs:
                self._consumers.setdefault(id(tensor), []).append(call)
        self._ends = {id(tensor) for tensor in keras.tree.flatten(self.model.output)}

    def _record(self, operation, *args, **kwargs):
        output = operation(*args, **kwargs)
        self.calls.append(Call(operation, args, kwargs, output))
        return output

    def producer(self, tensor):
        """The call that gives a tensor; None for an input of the model."""
        return self._producers.get(id(tensor))

    def only_consumer(self, tensor):
        """The one call that reads a tensor; None if there are several or the model returns it."""
        consumers = self._consumers.get(id(tensor), [])
        return consumers[0] if len(consumers) == 1 and id(tensor) not in self._ends else None

    def rebuild(self, run):
        """A functional model of the same name from other calls.

        Args:
            run: function `(call, args, kwargs)` that gives what stands for the call's output.
        """
        fresh = keras.tree.map_structure(_same_input, self.model.input)
        pairs = zip(keras.tree.flatten(self.model.input), keras.tree.flatten(fresh), strict=True)
        known = {id(old): new for old, new in pairs}

        def new(value):
            return known[id(value)] if isinstance(value, keras.KerasTensor) else value

        for call in self.calls:
            args, kwargs = keras.tree.map_structure(new, (call.args, call.kwargs))
            output = run(call, args, kwargs)
            known.update(zip(map(id, call.outputs), keras.tree.flatten(output), strict=True))
        outputs = keras.tree.map_structure(new, self.model.output)
        return keras.Model(fresh, outputs, name=self.model.name)


def _same_input(tensor):
    return keras.Input(
        batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name, sparse=tensor.sparse
    )


def copy_of(model):
    """A model with layers and weights of its own."""
    graph_of(model)
    copy = keras.models.clone_model(model)
    give_weights(model, copy)
    return copy


def transform(model, make_run):
    """Rebuild a model and, likewise, the functional models nested in it, which keep their names.

    Args:
        make_run: function of a `Graph` that gives the function `run` for its `rebuild`.
    """
    graph = Graph(model)
    run = make_run(graph)
    nested = {}

    def step(call, args, kwargs):
        operation = call.operation
        if plain_graph(operation) is None:
            return run(call, args, kwargs)
        if id(operation) not in nested:
            nested[id(operation)] = transform(operation, make_run)
        return nested[id(operation)](*args, **kwargs)

    return graph.rebuild(step)


def exchange(model, function):
    """Rebuild a model with `function(layer)` in place of every layer.

    A layer that runs several times is exchanged once.
    """
    new = {}

    def run(call, args, kwargs):
        operation = call.operation
        if id(operation) not in new:
            is_layer = isinstance(operation, keras.layers.Layer)
            new[id(operation)] = function(operation) if is_layer else operation
        return new[id(operation)](*args, **kwargs)

    return transform(model, lambda graph: run)
