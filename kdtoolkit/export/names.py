"""The names of layers in what the converters make of a model."""

import itertools
import re

from kdtoolkit.export.prepare import layers_of


def layer_path(name, model):
    """Find the layer in the name of a tensor or a TensorFlow operation.

    Names look like `model/block/conv/MatMul`, several of them joined by semicolons. Keras 3
    numbers the scope of every layer when it is traced: `model_1/block_1/conv_1/MatMul`. Behind
    the layers there may be scopes of TensorFlow's own.

    Args:
        name: The name.
        model: The model, of Keras 3 or tf_keras.

    Returns:
        The path of the layer, such as `"block/conv"`, or `None`.
    """
    for part in name.split(";"):
        first, *scopes = part.split("/")
        numbered = re.fullmatch(re.escape(model.name) + r"(_\d+)?", first)
        if not numbered:
            continue
        if numbered[1]:
            parts = [re.fullmatch(r"(.+)_\d+", scope) for scope in scopes[:-1]]
            path = [match[1] for match in itertools.takewhile(bool, parts)]
        else:
            known = {layer.name for layer in layers_of(model)}
            path = list(itertools.takewhile(known.__contains__, scopes[:-1]))
        if path:
            return "/".join(path)
    return None
