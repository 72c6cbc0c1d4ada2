"""Cuts a network in two: what comes before its first dropout, and the rest."""

import keras

from kdtoolkit.dropout.family import holds
from kdtoolkit.inner import anew, names_in_graph, plain_graph


def split(model, dropping):
    """`(before, behind)`, functional models on the same layers: `behind(before(x)) = model(x)`.

    An operation is behind if it is or holds one of the layers `dropping`, or reads what one that
    is behind returned. All else comes before. Both talk in lists of tensors, as many as lead from
    one part to the other; a Keras mask is one of them. Nested models that hold dropout are opened.

    Args:
        model: a `keras.Model` of any kind.
        dropping: list of layers.

    Returns:
        `(None, model)` where there is nothing to cut: a model without a graph, or dropout on the
        input.
    """
    graph = plain_graph(model)
    if graph is None:
        return None, model
    names = list(names_in_graph(graph, lambda operation, _: holds(operation, dropping)))
    # Where layers of the models inside share a name, these stay whole.
    opened = _opened(graph, dropping) if len(set(names)) == len(names) else graph
    graph, between = _cut(opened, dropping)
    inputs = {id(tensor) for tensor in graph.inputs}
    if all(id(tensor) in inputs for tensor in between):
        return None, model
    return keras.Model(graph.input, between), keras.Model(between, graph.output)


def _opened(graph, dropping):
    """The same graph, with models inside it that hold dropout dissolved into their layers."""

    def call(operation, *args, **kwargs):
        inner = plain_graph(operation) if holds(operation, dropping) else None
        if inner is None:
            return operation(*args, **kwargs)
        # `call` itself runs the layers one by one, so that they become part of the outer graph.
        return _opened(inner, dropping).call(*args, **kwargs)

    return anew(graph, call)


def _cut(graph, dropping):
    """The graph once more, and the tensors in it that lead to what is random."""
    random, between = set(), {}

    def call(operation, *args, **kwargs):
        output = operation(*args, **kwargs)
        read = [t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
        steady = [tensor for tensor in read if id(tensor) not in random]
        if len(steady) < len(read) or holds(operation, dropping):
            between.update((id(tensor), tensor) for tensor in steady)
            random.update(id(tensor) for tensor in keras.tree.flatten(output))
        return output

    return anew(graph, call), list(between.values())
