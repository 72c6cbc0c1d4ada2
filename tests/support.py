"""Small networks and data that the tests share."""

import keras
import numpy as np
from keras import layers

CLASSES = 3
FEATURES = 6


def data(examples=40, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(examples, FEATURES)).astype("float32")
    return x, random.integers(CLASSES, size=examples)


def images(examples=12, size=8, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(examples, size, size, 1)).astype("float32")
    return x, random.integers(CLASSES, size=examples)


def dense(
    units=8, seed=0, *, dropout=0.0, norm=True, l2=0.0, classes=CLASSES, name=None, dtype=None
):
    """A dense network with BatchNorm and dropout. The same seed gives the same weights."""
    keras.utils.set_random_seed(seed)
    regularizer = keras.regularizers.L2(l2) if l2 else None
    inputs = keras.Input((FEATURES,))
    h = layers.Dense(units, "relu", kernel_regularizer=regularizer, name="hidden", dtype=dtype)(
        inputs
    )
    if norm:
        h = layers.BatchNormalization(name="norm", dtype=dtype)(h)
    if dropout:
        h = layers.Dropout(dropout, seed=seed, name="dropout", dtype=dtype)(h)
    outputs = layers.Dense(classes, name="logits", dtype="float32" if dtype else None)(h)
    return keras.Model(inputs, outputs, name=name)


def conv(filters=4, seed=0, size=8, name=None):
    """A small convolutional network with the named stages `stage1`, `stage2`."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 1))
    h = layers.Conv2D(filters, 3, padding="same", activation="relu", name="stage1")(inputs)
    h = layers.Conv2D(2 * filters, 3, 2, padding="same", activation="relu", name="stage2")(h)
    h = layers.GlobalAveragePooling2D(name="features")(h)
    return keras.Model(inputs, layers.Dense(CLASSES, name="logits")(h), name=name)


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A network without a graph: layers as attributes, one of them made in `build`."""

    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.trunk = layers.Dense(units, "relu")
        self.norm = layers.BatchNormalization()

    def build(self, input_shape):
        self.head = layers.Dense(CLASSES)
        self.trunk.build(input_shape)
        self.norm.build((*input_shape[:-1], self.units))
        self.head.build((*input_shape[:-1], self.units))
        self.built = True

    def call(self, inputs, training=None):
        return self.head(self.norm(self.trunk(inputs), training=training))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def arrays(model):
    """All state of a model, as arrays."""
    return [keras.ops.convert_to_numpy(v).copy() for v in model.variables]


def largest_difference(first, second):
    return max(
        (
            float(np.max(np.abs(np.asarray(a, "float64") - np.asarray(b, "float64"))))
            for a, b in zip(first, second, strict=True)
        ),
        default=0.0,
    )


def fit(model, x, y=None, *, seed=1, **kwargs):
    """Train with a fixed order of examples; quiet."""
    keras.utils.set_random_seed(seed)
    kwargs = {"batch_size": 16, "epochs": 2, "verbose": 0, **kwargs}
    return model.fit(x, y, **kwargs)


def transformer(dim=8, seed=0, size=8, patch=2, name=None):
    """A small vision transformer: one token more and patches through `block1` and `block2`."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 1))
    h = layers.Conv2D(dim, patch, patch, name="patches")(inputs)
    h = layers.Reshape((-1, dim))(h)
    # The mean stands for a class token: one more token in front.
    first = layers.GlobalAveragePooling1D(keepdims=True)(h)
    h = layers.Concatenate(axis=1, name="tokens")([first, h])
    for block in ("block1", "block2"):
        y = layers.LayerNormalization()(h)
        y = layers.MultiHeadAttention(2, dim // 2)(y, y)
        h = layers.Add(name=block)([h, y])
    h = layers.GlobalAveragePooling1D(name="features")(h)
    return keras.Model(inputs, layers.Dense(CLASSES, name="logits")(h), name=name)
