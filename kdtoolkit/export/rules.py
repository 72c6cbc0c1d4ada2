"""Rules by layer name: which operators of a file belong to which layer of the model."""

import re

from kdtoolkit.export.names import layer_path
from kdtoolkit.export.quantize import recipe_for
from kdtoolkit.export.summary import parse

_UNKNOWN = "(no layer)"


def recipe_by_layer(content, rules, graph):
    """Turn rules about layers into the quantiser's rules about operators.

    The quantiser knows an operator by the names of its output tensors. These hold several
    layers where operators were fused, and none for the last operator of a model. So every
    operator gets a rule of its own, and its layer is looked up here: the layer of its largest
    weight, else of its output.

    Args:
        content: A float .tflite file as `bytes`.
        rules: Tuple of `(regex, mode)`, matched in full with the name or the path of a layer.
            Later rules win. Operators that no rule matches stay float32.
        graph: The `ModelGraph` behind the file.

    Returns:
        A recipe.

    Raises:
        ValueError: If a rule matches no layer of the file.
    """
    operators = layers_of_operators(content, graph)
    paths = list(dict.fromkeys(operators.values()))
    unused = [regex for regex, _ in rules if not any(_matches(regex, path) for path in paths)]
    if unused:
        raise ValueError(
            f"The rule(s) {unused} of `quantize` match no layer with an operator of its own. "
            f"Expected a regular expression for the full name of one of: {paths}. Batch "
            "normalisation and activations are part of the layer before them."
        )
    exact = []
    for scope, path in operators.items():
        modes = [mode for regex, mode in rules if _matches(regex, path)]
        if modes:
            exact.append((f"^{re.escape(scope)}$", modes[-1]))
    return recipe_for(exact)


def layers_of_operators(content, graph):
    """Find the layer of every operator.

    Args:
        content: A float .tflite file as `bytes`.
        graph: The `ModelGraph` behind the file.

    Returns:
        Dict from the quantiser's name of an operator (the names of its outputs, each followed
        by a semicolon) to the path of a layer, such as `"block/conv"`.
    """
    model = parse(content)
    outputs = {
        entry.tensorIndex: entry.name.decode()
        for signature in model.signatureDefs or ()
        for entry in signature.outputs
    }
    found = {}
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            tensors = [(i, subgraph.tensors[i]) for i in operator.outputs if i != -1]
            scope = "".join(f"{tensor.name.decode()};" for _, tensor in tensors)
            names = _by_size(model, subgraph, operator) + [t.name.decode() for _, t in tensors]
            paths = [path for path in (layer_path(name, graph.model) for name in names) if path]
            # The last operator has lost its name, but a functional model names its outputs
            # after their layers.
            paths += [outputs[index] for index, _ in tensors if index in outputs]
            found[scope] = (paths or [_UNKNOWN])[0]
    return found


def _matches(regex, path):
    return bool(re.fullmatch(regex, path) or re.fullmatch(regex, path.rpartition("/")[2]))


def _by_size(model, subgraph, operator):
    """Return the names of an operator's constants, the largest first."""
    sizes = {}
    for tensor in (subgraph.tensors[i] for i in operator.inputs if i != -1):
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            sizes[tensor.name.decode()] = len(data)
    return sorted(sizes, key=sizes.get, reverse=True)
