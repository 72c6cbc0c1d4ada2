"""A layer whose weights pass through changes before it runs: masks, shared values, rounding."""

import keras
from keras import ops

from kdtoolkit.compress.weights import weights_of
from kdtoolkit.registry import public


class WeightChange(keras.layers.Layer):
    """What stands between a stored weight and the one that a layer computes with.

    Args:
        index: int, which of the layer's compressible weights it is. Names of layers inside may
            change when a model is loaded; their order doesn't.

    Attributes:
        rank: int, place in the order of changes: pruning 0, sharing 1, rounding 2.
        replaces: bool, whether the stored weight isn't read.
    """

    rank = 0
    replaces = False

    def __init__(self, index, **kwargs):
        # Weights are changed as they are stored, whatever the layer computes in.
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.index = index

    def call(self, weight):
        raise NotImplementedError

    def get_config(self):
        return {"name": self.name, "index": self.index}


@public
class Compressed(keras.layers.Layer):
    """A layer that computes with changed weights, and trains the ones it stores.

        output = layer(inputs; weight <- change_n(... change_1(weight)))

    It stands where the layer stood and has its name, so that a path of `kd.tap` and of transfers
    names the same outputs as before, inside of it too. `kd.compress.prune`, `cluster` and
    `quantize_aware` make these; `kd.compress.strip` gives back plain layers with the changed
    weights.

    Args:
        layer: a built `keras.layers.Layer`.
        changes: list of changes, each of one weight, applied in this order.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> head = kd.compress.prune(network, 0.5).get_layer("head")
        >>> type(head).__name__, head.layer.name, (head.used()["kernel"] == 0).mean()
        ('Compressed', 'head', np.float64(0.5))
    """

    def __init__(self, layer, changes, name=None, **kwargs):
        kwargs.pop("dtype", None)
        super().__init__(name=name or layer.name, dtype=layer.dtype_policy, **kwargs)
        # The layer inside casts its inputs by itself.
        self.autocast = False
        self.layer = layer
        self.changes = list(changes)
        self.supports_masking = layer.supports_masking

    @property
    def bookkeeping(self):
        """Variables that are no weights of the network: masks, tables."""
        return [variable for change in self.changes for variable in change.variables]

    @property
    def stands_for(self):
        """The layer whose inner paths are this one's."""
        return self.layer

    def call(self, *args, **kwargs):
        layer = self.layer
        if not layer.built:
            layer(*args, **kwargs)
            self.prepare()
        weights = list(weights_of(layer).values())
        values = {id(v): ops.convert_to_tensor(v) for v in layer.variables}
        for change in self.changes:
            variable = weights[change.index].variable
            values[id(variable)] = change(ops.cast(values[id(variable)], "float32"))
        # Inside, every variable must have its value, or a step without state would not see it.
        mapping = [(v, ops.cast(values[id(v)], v.dtype)) for v in layer.variables]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            outputs = layer(*args, **kwargs)
        for variable, given in mapping:
            # Statistics and random states that the layer has moved.
            if (new := scope.get_current_value(variable)) is not given:
                variable.assign(new)
        return outputs

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask)

    def used(self):
        """`{path: array}` of all compressible weights as the layer computes with them."""
        found = {}
        for index, (path, weight) in enumerate(weights_of(self.layer).items()):
            value = ops.convert_to_tensor(weight.variable, "float32")
            for change in self.changes:
                value = change(value) if change.index == index else value
            found[path] = ops.convert_to_numpy(value)
        return found

    def get_build_config(self):
        return {"built": self.built}

    def build_from_config(self, config):
        # The layer inside has been built with its own configuration, if it can be.
        if self.layer.built:
            self.prepare()

    def prepare(self):
        """Give each change its variables, now that the layer has its own."""
        weights = list(weights_of(self.layer).values())
        for change in self.changes:
            variable = weights[change.index].variable
            if not change.built:
                change.build(variable.shape)
                change.built = True
            if change.replaces:
                # What isn't read would get no gradient, and a warning at each step.
                variable.trainable = False
        self.built = True
        return self

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "trainable": self.trainable,
            "layer": serialize(self.layer),
            "changes": [serialize(change) for change in self.changes],
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        load = keras.saving.deserialize_keras_object
        layer, changes = load(config.pop("layer")), map(load, config.pop("changes"))
        return cls(layer, list(changes), **config)
