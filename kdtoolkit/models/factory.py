"""Makes the layers of one network, so that seeds, initialisation and weight decay have one home."""

import inspect

import keras
import numpy as np

from kdtoolkit.registry import expects

# The momentum and epsilon of the distillation literature's CIFAR networks. Keras's own momentum
# of 0.99 needs hundreds of steps before validation means anything; small runs do not have them.
NORM_MOMENTUM = 0.9
NORM_EPSILON = 1e-5

_KINDS = {
    "input_shape": "shape", "num_classes": "count", "name": "text", "weight_decay": "number",
    **dict.fromkeys(("filters", "units", "dense"), "sizes"),
    **dict.fromkeys(("width", "stem_width", "depth", "heads", "patch_size"), "count"),
    **dict.fromkeys(("dropout", "conv_dropout", "input_dropout", "attention_dropout"), "number"),
    **dict.fromkeys(("mlp_ratio", "stochastic_depth"), "number"),
}  # fmt: skip


class LayerFactory:
    """Makes layers that share one weight decay and draw their seeds from one stream.

    Kernels start He-normal. Layers are channels-last whatever the Keras configuration says.

    Args:
        seed: int >= 0, or None. The same seed and the same order of calls give the same initial
            weights and dropout masks; every layer gets another seed of its own. None leaves the
            choice to Keras (`keras.utils.set_random_seed` then governs it).
        weight_decay: float >= 0. Adds `weight_decay / 2 * sum(kernel**2)` per kernel to the loss.
            Its gradient is `weight_decay * kernel`, which is what the same number means in the
            papers (and half of what it would be as the argument of `keras.regularizers.L2`).
        stream: int >= 0, or None (default): which of several streams of seeds. What is added to a
            network takes another one, since both may well be made with the same seed.

    Raises:
        ValueError: for a negative seed or weight decay.
        TypeError: for a seed that is not an integer.
    """

    def __init__(self, seed=None, weight_decay=0.0, stream=None):
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer)):
            raise TypeError(f"`seed` must be an integer or None. Received: seed={seed!r}")
        if seed is not None and seed < 0:
            raise ValueError(f"`seed` must be 0 or more, or None. Received: seed={seed}")
        if weight_decay < 0:
            raise ValueError(f"`weight_decay` must be 0 or more. Received: {weight_decay}")
        self.weight_decay = weight_decay
        self.seeded = seed is not None
        entropy = seed if stream is None else (seed, stream)
        self._random = np.random.default_rng(entropy) if self.seeded else None

    def conv(self, filters, kernel_size, name, *, strides=1, use_bias=False, padding="same"):
        """Returns a Conv2D layer; `filters` output channels."""
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            use_bias=use_bias,
            data_format="channels_last",
            kernel_initializer=self._initializer(),
            kernel_regularizer=self._regularizer(),
            name=name,
        )

    def dense(self, units, name, *, dtype=None):
        """Returns a Dense layer without activation; `dtype=None` follows the Keras policy."""
        return keras.layers.Dense(
            units,
            kernel_initializer=self._initializer(),
            kernel_regularizer=self._regularizer(),
            dtype=dtype,
            name=name,
        )

    def logits(self, num_classes):
        """Returns the output layer. It stays float32 so that softmax of it is exact enough."""
        return self.dense(num_classes, "logits", dtype="float32")

    def dropout(self, rate, name):
        """Returns a Dropout layer that drops a share `rate` of its inputs in training."""
        return keras.layers.Dropout(rate, seed=self._next_seed(), name=name)

    def dropped(self, x, rate, name):
        """Returns `x` behind such a layer, or `x` itself for a rate of 0."""
        return self.dropout(rate, name)(x) if rate else x

    def norm(self, name):
        """Returns a BatchNormalization layer over the channels."""
        return keras.layers.BatchNormalization(
            momentum=NORM_MOMENTUM, epsilon=NORM_EPSILON, name=name
        )

    def relu(self, name):
        """Returns a ReLU layer of its own, so that activations can be tapped by name."""
        return keras.layers.ReLU(name=name)

    def pool(self, name):
        """Returns the layer that averages over height and width."""
        return keras.layers.GlobalAveragePooling2D(data_format="channels_last", name=name)

    def _next_seed(self):
        return None if self._random is None else int(self._random.integers(2**31 - 1))

    def _initializer(self):
        return keras.initializers.HeNormal(seed=self._next_seed())

    def _regularizer(self):
        return keras.regularizers.L2(self.weight_decay / 2) if self.weight_decay else None


def network_arguments(function):
    """Checks the kinds of a builder's arguments, which all builders call the same."""
    parameters = inspect.signature(function).parameters
    kinds = {name: kind for name, kind in _KINDS.items() if name in parameters}
    if isinstance(getattr(parameters.get("dense"), "default", None), int):
        kinds["dense"] = "count"
    return expects(**kinds)(function)


def model_name(name, prefix):
    """Returns `name`, or the next free `prefix`, `prefix_1`, ... as Keras does for layers."""
    if name is not None:
        return name
    count = keras.backend.get_uid(prefix)
    return prefix if count == 1 else f"{prefix}_{count - 1}"


def check_num_classes(num_classes):
    """Raises ValueError unless `num_classes` is a positive number."""
    if num_classes < 1:
        raise ValueError(f"`num_classes` must be 1 or more. Received: num_classes={num_classes}")


def image_input(input_shape):
    """Returns a Keras input for one image of `(height, width, channels)`.

    Raises:
        ValueError: if the shape is not three positive numbers. Sizes must be known because the
            networks are made to be exported with static shapes.
    """
    if len(input_shape) != 3 or any(size is None or size < 1 for size in input_shape):
        raise ValueError(
            "`input_shape` must be (height, width, channels), all known, without the batch axis; "
            f"for example (32, 32, 3). Received: input_shape={input_shape}"
        )
    return keras.Input(input_shape, name="inputs")
