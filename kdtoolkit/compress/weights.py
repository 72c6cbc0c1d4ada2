"""Which weights of a layer are compressed, and what their axes mean."""

import dataclasses
from typing import Any

import keras
from keras import layers

from kdtoolkit.taps import walk

TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One compressible weight.

    Attributes:
        variable: the `keras.Variable`.
        owner: the layer that holds it.
        kind: `"conv"`, `"depthwise"`, `"transposed"`, `"embedding"`, or `"dense"` for all else.
    """

    variable: Any
    owner: Any
    kind: str

    @property
    def input_axis(self):
        """The last axis that is summed over; None where each channel is filtered alone."""
        if isinstance(self.owner, layers.EinsumDense):
            inputs, outputs = self.owner.equation.split("->")
            letters = inputs.split(",")[1]
            return max(i for i, letter in enumerate(letters) if letter not in outputs)
        return {"depthwise": None, "embedding": None, "transposed": -1}.get(self.kind, -2)


def _is_weight(variable):
    named = variable.name.endswith("kernel") or variable.name == "embeddings"
    return named and len(variable.shape) >= 2


def _kind(owner, variable):
    if isinstance(owner, DEPTHWISE) or variable.name == "depthwise_kernel":
        return "depthwise"
    if isinstance(owner, TRANSPOSED):
        return "transposed"
    if isinstance(owner, CONVOLUTIONS) or variable.name == "pointwise_kernel":
        return "conv"
    return "embedding" if isinstance(owner, layers.Embedding) else "dense"


def _own_variables(layer):
    inner = {id(v) for _, child in walk(layer) for v in child.variables}
    return [v for v in layer.variables if id(v) not in inner]


def weights_of(layer):
    """`{path: Weight}` of all weights in a layer that compression changes, in a fixed order.

    They are the variables with two axes and more whose names end in `kernel`, and embeddings, at
    any depth: those of convolutions, dense and recurrent layers, attention, and of custom layers
    that call theirs so. Biases, normalisation, positions and tokens are few and stay as they are.
    """
    found = {}
    for path, owner in [("", layer), *walk(layer)]:
        if isinstance(owner, keras.layers.Layer):
            for variable in filter(_is_weight, _own_variables(owner)):
                name = f"{path}/{variable.name}" if path else variable.name
                weight = Weight(variable, owner, _kind(owner, variable))
                if all(weight.variable is not other.variable for other in found.values()):
                    found[name] = weight
    return found
