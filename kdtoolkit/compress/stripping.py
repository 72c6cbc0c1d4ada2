"""A compressed network as a plain one, and what was compressed in it."""

import numpy as np

from kdtoolkit.compress.changed import Compressed
from kdtoolkit.compress.ranges import ActivationRange
from kdtoolkit.compress.rebuilding import copy_of, transform
from kdtoolkit.compress.weights import weights_of
from kdtoolkit.compress.wrapping import holders, values_of
from kdtoolkit.registry import expects


@expects(model="model")
def strip(model):
    """Gives a plain network with the weights that a compressed one computes with.

    Zeros, shared values and weights on the grid of integers are in its kernels; masks, tables and
    the rounding of activations are gone, so that behind `quantize_aware` it computes in float
    activations. It has no layers of this package, and trains as any network: nothing keeps
    the zeros then.

    Args:
        model: what `prune`, `cluster` or `quantize_aware` returned, trained or not.

    Returns:
        A functional `keras.Model` with its own weights.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="head")])
        >>> plain = kd.compress.strip(kd.compress.prune(network, 0.5))
        >>> float((plain.get_layer("head").kernel.numpy() == 0).mean())
        0.5
    """
    new = {}

    def make_run(graph):
        def run(call, args, kwargs):
            operation = call.operation
            if isinstance(operation, ActivationRange):
                return args[0]
            if isinstance(operation, Compressed):
                if id(operation) not in new:
                    new[id(operation)] = _stripped(operation)
                operation = new[id(operation)]
            return operation(*args, **kwargs)

        return run

    return transform(copy_of(model), make_run)


def _stripped(compressed):
    values = compressed.used()
    for path, weight in weights_of(compressed.layer).items():
        weight.variable.trainable = True
        weight.variable.assign(values[path])
    return compressed.layer


@expects(model="model")
def summary(model):
    """What was compressed in a network, weight by weight.

    Args:
        model: functional or built sequential `keras.Model`, compressed or not.

    Returns:
        List of dicts, one per compressible weight: `layer` and `weight` (its path in the layer),
        `shape`, `size`, `sparsity` (share of exact zeros, 0 to 1), `distinct` (number of different
        values), `changes` (names of the changes, in order).

    Example:
        >>> import keras, kdtoolkit as kd
        >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="head")])
        >>> kd.compress.summary(kd.compress.prune(network, 0.5))[0]["changes"]
        ['Mask']
    """
    rows = []
    for layer in holders(model):
        changes = layer.changes if isinstance(layer, Compressed) else []
        for index, (path, value) in enumerate(values_of(layer).items()):
            rows.append(
                {
                    "layer": layer.name,
                    "weight": path,
                    "shape": value.shape,
                    "size": value.size,
                    "sparsity": float((value == 0).mean()),
                    "distinct": int(np.unique(value).size),
                    "changes": [type(c).__name__ for c in changes if c.index == index],
                }
            )
    return rows
