"""Two augmented views of each image through one network, in one pass."""

import keras
from keras import ops

from kdtoolkit import checks
from kdtoolkit.registry import public
from kdtoolkit.saving import KeepsRandomStates, random_states
from kdtoolkit.taps import in_stage, output_spec

#: The keys of the output.
FIRST, SECOND = NAMES = "first", "second"


@public
class TwoViews(KeepsRandomStates, keras.Model):
    """A network that reads two augmented views of its input in training. See `two_views`.

    Attributes:
        model: the network itself.
        augment_first, augment_second: the layers that make the views, or None.
    """

    def __init__(self, model, first=None, second=None, name=None):
        _check_parts(model, first, second)
        # Keras scales the loss by the policy of the model that is compiled. The parts cast their
        # inputs themselves, each by its own.
        name = name or f"{model.name}_views"
        super().__init__(name=name, dtype=model.dtype_policy, autocast=False)
        self.model = model
        self.augment_first = first
        self.augment_second = second
        spec = checks.input_spec(model)
        if spec is not None:
            _check_single("input", spec)
            self.build(spec.shape)

    # So that the names of the outputs are known before a batch.
    output_keys = NAMES

    # As functional models have them.

    @property
    def inputs(self):
        """The network's symbolic inputs, a list; None where only a batch tells its shape."""
        return getattr(self.model, "inputs", None)

    @property
    def input(self):
        return self.inputs[0]

    @property
    def output(self):
        return dict.fromkeys(NAMES, self.model.outputs[0])

    def build(self, input_shape):
        # A symbolic pass of training: it builds all parts, and finds what doesn't fit.
        spec = checks.input_spec(self.model)
        spec = keras.KerasTensor(input_shape) if spec is None else spec
        output_spec(lambda x: self.call(x, training=True), spec)

    def call(self, inputs, training=None):
        _check_single("input", inputs)
        if not training:
            return dict.fromkeys(NAMES, self._logits(inputs, training))
        layers = self.augment_first, self.augment_second
        views = [_view(layer, inputs) for layer in layers]
        shapes = [tuple(view.shape)[1:] for view in views]
        if not checks.compatible(*shapes):
            raise ValueError(
                "Both views must have one shape, since they are one batch. Received: "
                f"first {shapes[0]} and second {shapes[1]}, behind the batch axis"
            )
        both = ops.concatenate(views, axis=0)
        return dict(zip(NAMES, ops.split(self._logits(both, training), 2, axis=0), strict=True))

    def _logits(self, x, training):
        logits = in_stage(self.model, x, training)
        _check_single("output", logits)
        return logits

    def get_config(self):
        parts = {"model": self.model, FIRST: self.augment_first, SECOND: self.augment_second}
        parts = {key: keras.saving.serialize_keras_object(part) for key, part in parts.items()}
        return {**parts, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**{k: keras.saving.deserialize_keras_object(v) for k, v in config.items()})


def two_views(model, first, second, name=None):
    """A student that reads two augmented views of each image in training.

    In training, with x a batch `(batch, ...)`:

        z = model(concatenate(first(x), second(x)))        one pass over 2 * batch examples
        output = {"first": z[:batch], "second": z[batch:]}

    Else `z = model(x)` is the output under both names: one pass, no augmentation. So evaluation is
    that of `model`. It stays the object it was, and is what to save, export and deploy:
    `student.model`.

    `kd.wirings.views` lets the views teach each other. Labels are given once and reach each output
    that has a label loss; two losses add up, about twice the gradient of one view.

    The network sees both views as one batch: BatchNorm takes its statistics over both, and Keras
    averages activity regularisers over both. Losses that a network adds itself see 2 * batch
    examples, and so do taps of inner layers, such as `"model/stage3"`. With None for both views,
    what differs between them is what is random in the network, such as dropout.

    Variants: one pass over both views is our choice, and that of the public re-implementations of
    DDGSD that are named in the method's card.

    Source: Xu and Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks" (AAAI
    2019), https://doi.org/10.1609/aaai.v33i01.33015565.

    Args:
        model: a `keras.Model` of any kind with one input tensor, which returns logits `(batch, ...,
            classes)`.
        first, second: Keras layers that augment a batch, such as `kd.data.FlipShift()` or a
            `keras.Sequential` of several, or None for the image as it is. Two objects with random
            states of their own. They run in training alone, with `training=True`, and leave labels
            what they are. Both views must have one shape.
        name: str, or None for the model's name with `_views` behind it.

    Returns:
        A `keras.Model` that shares the weights of `model`; see `TwoViews` for its attributes.

    Raises:
        TypeError: `model` is no Keras model, or a view is made by something that is no layer.
        ValueError: one layer for both views, or equal seeds in both; a network that ends in a
            softmax, or has several inputs or outputs; a part that is called "first" or "second".
            Of a network whose shapes only a batch tells, some of it shows with the first batch.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> student = kd.two_views(network, None, keras.layers.GaussianNoise(0.1))
        >>> outputs = student(np.ones((5, 4)), training=True)
        >>> {key: tuple(logits.shape) for key, logits in outputs.items()}
        {'first': (5, 3), 'second': (5, 3)}
        >>> student.model is network
        True
    """
    return TwoViews(model, first, second, name)


def _view(layer, x):
    return x if layer is None else in_stage(layer, x, True)


def _check_single(what, value):
    if keras.tree.is_nested(value):
        known = list(value) if isinstance(value, dict) else f"a {type(value).__name__}"
        raise ValueError(
            f"`two_views` takes a network with one input tensor and one output tensor. Received as "
            f"{what}: {known}. `kd.models.single_output` makes a network of one of several outputs"
        )


def _check_parts(model, first, second):
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
    checks.check_logits("model", model)
    views = {FIRST: first, SECOND: second}
    for key, layer in views.items():
        if layer is not None and not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                f"`{key}` must be a Keras layer such as kd.data.FlipShift(), or None for the image "
                f"as it is. Received: {key}={layer!r}. keras.layers.Lambda makes one of a function"
            )
    # A path such as "first" finds a layer of that name before an output.
    taken = [part.name for part in (model, first, second) if getattr(part, "name", None) in NAMES]
    if taken:
        raise ValueError(
            f"{list(NAMES)} are the names of the outputs. Expected other names for the network "
            f"and the layers that make the views. Received: a part called {taken}"
        )
    if first is not None and (first is second or _states(first) & _states(second)):
        raise ValueError(
            "Each view needs random numbers of its own, or both would be distorted alike. Expected "
            f"two layers with different seeds, or seeds of None. Received: first={first!r}, "
            f"second={second!r}"
        )


def _states(layer):
    """The random states of a layer and of all in it; as bytes, which can be compared."""
    states = [] if layer is None else random_states(layer)
    return {ops.convert_to_numpy(state).tobytes() for state in states}
