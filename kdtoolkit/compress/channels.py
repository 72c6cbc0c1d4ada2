"""Which channels of a graph belong together: what is removed in one place must go in all."""

import numbers

import keras
import numpy as np
from keras import layers

from kdtoolkit.compress.weights import CONVOLUTIONS, DEPTHWISE, TRANSPOSED
from kdtoolkit.inner import plain_graph

#: Operations that treat every channel alike and alone, by the start of their class's name.
_ALONE = (
    "Activation",
    "AveragePooling",
    "Cropping",
    "Dropout",
    "ELU",
    "Elu",
    "Gaussian",
    "Gelu",
    "GlobalAveragePooling",
    "GlobalMaxPooling",
    "Identity",
    "LeakyReLU",
    "MaxPooling",
    "ReLU",
    "Relu",
    "Sigmoid",
    "Silu",
    "SpatialDropout",
    "Tanh",
    "UpSampling",
    "ZeroPadding",
)
_MERGES = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")


class Channels:
    """Ids of the channels of every tensor; channels that must go together share a root.

    Attributes:
        of: dict from id of a tensor to an int array, one id for each place on its last axis.
        producers: calls of convolutions and dense layers, whose filters are channels.
    """

    def __init__(self, graph):
        self._graph = graph
        self._parent = np.zeros(0, int)
        self._kept = set()
        self.of = {}
        self.producers = []
        for tensor in graph.model.inputs:
            self.of[id(tensor)] = self._new(tensor.shape[-1], keep=True)
        for call in graph.calls:
            self._follow(call)
        for tensor in graph.model.outputs:
            self._keep(self.of[id(tensor)])
        self._kept_roots = set(self.roots(np.array(sorted(self._kept), int)).tolist())

    def roots(self, ids):
        """The root of each id."""
        ids = np.asarray(ids)
        while not np.array_equal(parents := self._parent[ids], ids):
            ids = parents
        return ids

    def free(self, ids):
        """Which ids may be removed: a bool array."""
        return ~np.isin(self.roots(ids), list(self._kept_roots))

    def _new(self, count, keep=False):
        ids = np.arange(self._parent.size, self._parent.size + (count or 0))
        self._parent = np.concatenate([self._parent, ids])
        if keep:
            self._keep(ids)
        return ids

    def _keep(self, ids):
        self._kept.update(ids.tolist())

    def _tie(self, first, other):
        # One by one: the same channel may stand in several places of both.
        for one, another in zip(first.tolist(), other.tolist(), strict=True):
            one, another = self.roots([one])[0], self.roots([another])[0]
            self._parent[another] = one

    def _follow(self, call):
        read = [self.of[id(tensor)] for tensor in call.inputs]
        ids = self._output(call, read) if len(call.outputs) == 1 else None
        if ids is None:
            # Whatever happens in there needs all of what it reads.
            for each in read:
                self._keep(each)
            for tensor in call.outputs:
                last = tensor.shape[-1] if tensor.shape else 0
                self.of[id(tensor)] = self._new(last, keep=True)
        else:
            self.of[id(call.outputs[0])] = ids

    def _output(self, call, read):
        """Ids behind a call, or None where channels can't be followed."""
        operation = call.operation
        weighs = getattr(operation, "weights", None)
        if plain_graph(operation) is not None or (weighs and self._graph.runs[id(operation)] > 1):
            return None
        if getattr(operation, "data_format", "channels_last") != "channels_last" or not read:
            return None
        if is_producer(operation):
            self.producers.append(call)
            return self._new(call.outputs[0].shape[-1])
        if isinstance(operation, DEPTHWISE):
            return np.repeat(read[0], operation.depth_multiplier)
        if is_vector(operation):
            last = operation.axis in (-1, len(call.inputs[0].shape) - 1)
            return read[0] if last else None
        return self._without_weights(call, read)

    def _without_weights(self, call, read):
        kind = type(call.operation).__name__
        given = keras.tree.flatten((call.args, call.kwargs))
        plain_numbers = (keras.KerasTensor, numbers.Number, str, type(None))
        ours = type(call.operation).__module__.startswith("keras.")
        if not ours or not all(isinstance(value, plain_numbers) for value in given):
            return None
        shapes = [tensor.shape for tensor in call.inputs]
        if kind == "Flatten" and None not in shapes[0][1:]:
            return np.tile(read[0], int(np.prod(shapes[0][1:-1], dtype=int)))
        if kind == "Concatenate" and call.operation.axis in (-1, len(shapes[0]) - 1):
            return np.concatenate(read)
        if kind in _MERGES and len({ids.size for ids in read}) == 1:
            for other in read[1:]:
                self._tie(read[0], other)
            return read[0]
        one = kind.startswith(_ALONE) and len(read) == 1
        return read[0] if one and _each_alone(call.operation) else None


def _each_alone(operation):
    """Whether an activation treats every channel alone: a softmax looks at all at once."""
    function = getattr(operation, "activation", None)
    return function is None or getattr(function, "__name__", "softmax") not in (
        "softmax",
        "log_softmax",
        "sparsemax",
    )


def is_producer(operation):
    """Whether the filters of a layer are channels of their own."""
    kinds = isinstance(operation, (layers.Dense, *CONVOLUTIONS, *TRANSPOSED))
    return kinds and getattr(operation, "groups", 1) == 1 and _each_alone(operation)


def is_vector(operation):
    """Whether a layer has one number per channel."""
    return isinstance(operation, layers.BatchNormalization)


def sliced(layer, values, before, behind):
    """The weights of a layer that stay.

    Args:
        layer: a producer, depthwise convolution or batch normalisation.
        values: its weights, a list of arrays.
        before: bool array, which input channels stay.
        behind: bool array, which output channels stay.
    """
    if is_vector(layer):
        return [value[behind] for value in values]
    kernel, *bias = values
    if isinstance(layer, DEPTHWISE):
        kernel = kernel[..., before, :]
    elif isinstance(layer, TRANSPOSED):
        kernel = kernel[..., behind, :][..., before]
    else:
        kernel = kernel[..., before, :][..., behind]
    return [kernel, *(value[behind] for value in bias)]


def resized(layer, count):
    """The configuration of a layer with another number of filters."""
    config = layer.get_config()
    if is_producer(layer):
        config["units" if isinstance(layer, layers.Dense) else "filters"] = count
    return config


def has_slices(layer):
    """Whether `sliced` knows a layer."""
    return is_producer(layer) or is_vector(layer) or isinstance(layer, DEPTHWISE)
