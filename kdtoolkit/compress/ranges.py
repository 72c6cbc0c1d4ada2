"""Fake quantisation: numbers that stay floats and take the values that integers can hold."""

import keras
from keras import ops

from kdtoolkit.compress.changed import WeightChange
from kdtoolkit.registry import public


@public
class RoundedWeight(WeightChange):
    """Rounds a weight to a symmetric grid of integers, as LiteRT stores it.

        scale = max|w| / (2^(bits - 1) - 1),    w' = scale * round(w / scale)

    per tensor or per output channel, so that the integers are -127 to 127 for 8 bits and -7 to 7
    for 4. The gradient passes as it comes (straight through).

    Args:
        index: int, which weight of the layer.
        bits: int, 2 to 8.
        axes: int, how many axes at the end are channels with a scale of their own: 0 for one scale
            for all, 1 for a convolution, 2 for a depthwise one.
    """

    rank = 2

    def __init__(self, index, bits=8, axes=0, **kwargs):
        super().__init__(index, **kwargs)
        self.bits = bits
        self.axes = axes

    def call(self, weight):
        shape = weight.shape
        if self.axes == 2:
            weight = ops.reshape(weight, (*shape[:-2], -1))
        reduced = list(range(len(weight.shape) - 1)) if self.axes else None
        # A channel of zeros has no scale; any will do.
        high = ops.maximum(ops.max(ops.abs(ops.stop_gradient(weight)), axis=reduced), 1e-8)
        rounded = keras.quantizers.fake_quant_with_min_max_vars(
            weight,
            -high,
            high,
            num_bits=self.bits,
            narrow_range=True,
            axis=-1 if self.axes else None,
        )
        return ops.reshape(rounded, shape) if self.axes == 2 else rounded

    def get_config(self):
        return {**super().get_config(), "bits": self.bits, "axes": self.axes}


@public
class ActivationRange(keras.layers.Layer):
    """Rounds activations to the integers that a range of real numbers has room for.

        scale = (high - low) / (2^bits - 1),    x' = scale * round(clip(x) / scale)

    with low <= 0 <= high moved so that zero is one of the values. In training, the range follows
    the extremes of each batch, `range = momentum * range + (1 - momentum) * extremes`; otherwise it
    stays. The gradient passes inside the range, and is zero outside.

    `kd.compress.quantize_aware` puts these where LiteRT rounds.

    Args:
        bits: int, 2 to 8. Defaults to 8.
        momentum: float in [0, 1). Defaults to 0.99.
        fixed: None, or (low, high), a range that never moves, as LiteRT has it behind a softmax.

    Attributes:
        low: variable, lower end.
        high: variable, upper end.
    """

    def __init__(self, bits=8, momentum=0.99, fixed=None, **kwargs):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        self.bits = bits
        self.momentum = momentum
        self.fixed = None if fixed is None else tuple(fixed)
        self.observes = False
        self.supports_masking = True

    def build(self, shape):
        for name, value in zip(("low", "high"), self.fixed or (0.0, 0.0), strict=True):
            setattr(
                self,
                name,
                self.add_weight(
                    name=name,
                    shape=(),
                    initializer=keras.initializers.Constant(value),
                    trainable=False,
                    aggregation="mean",
                ),
            )

    def call(self, inputs, training=False):
        if self.fixed is None and (training or self.observes):
            self._follow(inputs)
        if self.observes:
            return inputs
        low, high = ops.convert_to_tensor(self.low), ops.convert_to_tensor(self.high)
        # An empty range, where all was zero, would divide by nothing.
        high = ops.maximum(high, low + 1e-6)
        return keras.quantizers.fake_quant_with_min_max_vars(inputs, low, high, num_bits=self.bits)

    @property
    def bookkeeping(self):
        """Variables that are no weights of the network: the range."""
        return self.variables

    def compute_output_spec(self, inputs, training=False):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def _follow(self, inputs):
        values = ops.stop_gradient(ops.cast(inputs, "float32"))
        # While it observes, the widest counts. Zero is always inside: padding needs it.
        low, high = ops.minimum(ops.min(values), 0.0), ops.maximum(ops.max(values), 0.0)
        before = ops.convert_to_tensor(self.low), ops.convert_to_tensor(self.high)
        if self.observes:
            low, high = ops.minimum(before[0], low), ops.maximum(before[1], high)
        else:
            low, high = (
                self.momentum * old + (1.0 - self.momentum) * new
                for old, new in zip(before, (low, high), strict=True)
            )
        self.low.assign(low)
        self.high.assign(high)

    def get_config(self):
        own = {"bits": self.bits, "momentum": self.momentum, "fixed": self.fixed}
        return {**super().get_config(), **own}
