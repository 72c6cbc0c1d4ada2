"""Training as the integer file computes: what is rounded, where, and with which gradient."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import kdtoolkit as kd
from tests.helpers import array, gradient
from tests.support import CLASSES, conv, data, images

pytestmark = pytest.mark.core


def grid(values, low, high, steps):
    """Rounding to a range in float64: zero is moved to a step, halves go up."""
    scale = (high - low) / steps
    zero = np.clip(np.floor(-low / scale + 0.5), 0, steps)
    whole = np.clip(np.floor(values / scale + zero + 0.5), 0, steps)
    return (whole - zero) * scale


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("shape", "axes"), [((6, 5), 0), ((3, 3, 2, 4), 1), ((3, 3, 2, 3), 2)])
def test_weights_are_whole_multiples_of_their_scale(bits, shape, axes):
    weight = np.random.default_rng(0).normal(size=shape).astype("float32")
    rounded = array(kd.compress.RoundedWeight(0, bits, axes)(weight))
    reduced = tuple(range(len(shape) - axes))
    scale = np.abs(weight.astype("float64")).max(reduced, keepdims=True) / (2 ** (bits - 1) - 1)
    whole = rounded / scale
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-4)
    assert np.abs(whole).max() <= 2 ** (bits - 1) - 1 + 1e-4
    # The nearest one, but for a hair where two are as near.
    assert np.abs(weight - rounded).max() <= (scale * 0.5001).max()
    assert np.all(np.abs(weight - rounded) <= scale * 0.5001)


def test_zeros_stay_zeros_and_channels_of_zeros_do_no_harm():
    weight = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype("float32")
    weight[..., 1] = 0
    weight[0] = 0
    rounded = array(kd.compress.RoundedWeight(0, 8, 1)(weight))
    assert np.all(rounded[weight == 0] == 0) and np.isfinite(rounded).all()


def test_the_gradient_passes_the_rounding_of_weights():
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    factor = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
    layer = kd.compress.RoundedWeight(0, 4)
    np.testing.assert_allclose(gradient(lambda w: layer(w) * factor, weight), factor, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 6.0), (-2.0, 0.0), (-0.3, 0.1)])
def test_activations_are_rounded_to_the_steps_of_their_range(low, high):
    values = np.linspace(-4, 7, 401, dtype="float32")
    layer = kd.compress.ActivationRange(fixed=(low, high))
    rounded = array(layer(values))
    expected = grid(values.astype("float64"), low, high, 255)
    scale = (high - low) / 255
    assert np.abs(rounded - expected).max() < 1.001 * scale
    assert (np.abs(rounded - expected) > 1e-5).mean() < 0.01  # halves
    assert np.unique(np.round(rounded / scale)).size <= 256
    inside = (values > expected.min() + scale) & (values < expected.max() - scale)
    outside = (values < expected.min() - scale) | (values > expected.max() + scale)
    slope = gradient(layer, values)
    assert np.all(slope[inside] == 1) and np.all(slope[outside] == 0)


def test_ranges_follow_the_batches_of_training_only():
    layer = kd.compress.ActivationRange(momentum=0.75)
    layer.build((None, 4))
    layer.low.assign(-1.0)
    layer.high.assign(2.0)
    batch = np.array([[0.5, 4.0, 1.0, 0.0]], "float32")
    layer(batch, training=False)
    assert (array(layer.low), array(layer.high)) == (-1.0, 2.0)
    layer(batch, training=True)
    # No value is below zero, and zero belongs to every range.
    assert (array(layer.low), array(layer.high)) == (-0.75, 0.75 * 2 + 0.25 * 4)


def test_ranges_start_from_the_extremes_on_the_data():
    network = conv()
    x, _ = images(20)
    aware = kd.compress.quantize_aware(network, x)
    names = ["input_range", "stage1_range", "stage2_range", "features_range", "logits_range"]
    found = [layer for layer in aware.layers if isinstance(layer, kd.compress.ActivationRange)]
    assert [layer.name for layer in found][1:] == names[1:]
    rounded = kd.compress.quantize_aware(network, activations=None)
    seen = kd.tap(rounded, ["stage1", "stage2", "features", "logits"])(x)
    for layer in found[1:]:
        values = array(seen[layer.name.removesuffix("_range")])
        assert array(layer.low) == pytest.approx(min(values.min(), 0), abs=1e-5)
        assert array(layer.high) == pytest.approx(values.max(), rel=1e-5)


def places(network, x):
    """Names of the layers behind which something is rounded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        aware = kd.compress.quantize_aware(network, x)
    found = [layer for layer in aware.layers if isinstance(layer, kd.compress.ActivationRange)]
    return {layer.name.removesuffix("_range"): layer.fixed for layer in found}


def test_rounding_stands_where_the_file_rounds():
    inputs = keras.Input((8, 8, 1), name="image")
    h = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(inputs)
    h = layers.ReLU(6.0, name="relu")(layers.BatchNormalization(name="norm")(h))
    g = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(h)
    h = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([h, g]))
    h = layers.MaxPooling2D(name="pool")(layers.Dropout(0.1, name="dropout")(h))
    h = layers.Flatten(name="flat")(h)
    h = layers.Dense(5, "sigmoid", name="gate")(h)
    network = keras.Model(inputs, layers.Softmax(name="soft")(layers.Dense(3, name="head")(h)))
    found = places(network, images()[0])
    assert found == {
        "image": None,
        "relu": None,
        "depthwise": None,
        "sum_relu": None,
        "gate_linear": None,
        "gate": (0.0, 255 / 256),
        "head": None,
        "soft": (0.0, 255 / 256),
    }


def test_a_tensor_that_others_read_too_is_rounded_before_its_relu():
    inputs = keras.Input((4,), name="x")
    h = layers.Dense(3, name="dense")(inputs)
    network = keras.Model(inputs, layers.Add(name="sum")([h, layers.ReLU(name="relu")(h)]))
    assert list(places(network, data()[0][:, :4])) == ["x", "dense", "relu", "sum"]


def test_layers_that_compute_in_steps_are_named_before_training():
    inputs = keras.Input((5, 8))
    h = layers.LayerNormalization(name="norm")(inputs)
    h = layers.MultiHeadAttention(2, 4, name="attention")(h, h)
    network = keras.Model(inputs, layers.Dense(2, "gelu", name="mlp")(h))
    x = np.random.default_rng(0).normal(size=(4, 5, 8)).astype("float32")
    with pytest.warns(UserWarning, match="inside norm, attention, mlp. In the file"):
        aware = kd.compress.quantize_aware(network, x)
    assert np.abs(array(aware(x)) - array(network(x))).max() < 0.1 * np.abs(array(network(x))).max()
    recurrent = keras.Sequential([keras.Input((5, 8)), layers.LSTM(3, name="memory")])
    with pytest.raises(ValueError, match="Received: memory. Round the weights alone"):
        kd.compress.quantize_aware(recurrent, x)
    rounded = kd.compress.quantize_aware(recurrent, activations=None)
    assert all(row["distinct"] <= 255 for row in kd.compress.summary(rounded))


@pytest.mark.parametrize("bits", [4, 8])
def test_training_goes_on_through_the_rounding_and_is_saved(bits, tmp_path):
    aware = kd.compress.quantize_aware(conv(), images(20)[0], weights=bits)
    x, y = images(40)
    distiller = kd.Distiller(
        student=aware, teacher=conv(8, 1), transfers=[kd.Transfer(kd.losses.SoftTargets(2.0))]
    )
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    high = array(aware.get_layer("stage1_range").high)
    history = distiller.fit(x, y, batch_size=8, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert array(aware.get_layer("stage1_range").high) != high
    levels = 2**bits - 1
    assert all(row["distinct"] <= levels * 8 for row in kd.compress.summary(aware))
    dense = next(row for row in kd.compress.summary(aware) if row["layer"] == "logits")
    assert dense["distinct"] <= levels
    aware.save(tmp_path / "aware.keras")
    loaded = keras.models.load_model(tmp_path / "aware.keras")
    np.testing.assert_array_equal(aware.predict(x, verbose=0), loaded.predict(x, verbose=0))


def test_each_step_keeps_what_the_one_before_did():
    x, y = images(40)
    network = kd.compress.prune(conv(8), 0.5)
    for change in (
        lambda n: kd.compress.cluster(n, 8),
        lambda n: kd.compress.quantize_aware(n, x),
    ):
        network = change(network)
        network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        network.fit(x, y, batch_size=8, verbose=0)
        rows = kd.compress.summary(network)
        assert [row["sparsity"] for row in rows] == [0.5] * 3
        assert all(row["distinct"] <= 8 for row in rows)
    assert rows[0]["changes"] == ["Mask", "Clusters", "RoundedWeight"]
    plain = kd.compress.strip(network)
    assert [row["sparsity"] for row in kd.compress.summary(plain)] == [0.5] * 3
    assert {type(layer).__module__.split(".")[0] for layer in plain.layers} == {"keras"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": 3}, "weights=4 or 8"),
        ({"activations": 16}, "activations=8 or None"),
        ({"momentum": 1.0}, r"`momentum` must lie in \[0, 1\)"),
        ({"data": None}, "needs `data` to start their ranges from"),
        ({"data": np.zeros((0, 8, 8, 1), "float32")}, "holds no examples"),
        ({"data": np.full((2, 8, 8, 1), np.nan, "float32")}, "finite numbers"),
        ({"layers": ["stage9"]}, "stage9"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    arguments = {"data": images()[0], **arguments}
    with pytest.raises(ValueError, match=message):
        kd.compress.quantize_aware(conv(), **arguments)


def test_a_network_is_made_aware_once():
    rounded = kd.compress.quantize_aware(conv(), activations=None)
    with pytest.raises(ValueError, match="RoundedWeight already"):
        kd.compress.quantize_aware(rounded, images()[0], weights=4)
    aware = kd.compress.quantize_aware(conv(), images()[0])
    with pytest.raises(ValueError, match="quantisation-aware already"):
        kd.compress.quantize_aware(aware, images()[0])
    assert aware.output_shape == (None, CLASSES)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.ReLU(4.0, name="act"), ["conv", "act"]),
        (layers.ReLU(negative_slope=0.1, name="act"), ["conv", "act"]),
        (layers.ReLU(6.0, name="act"), ["act"]),
    ],
)
def test_only_a_plain_relu_is_taken_along_by_a_convolution(layer, expected):
    inputs = keras.Input((8, 8, 1), name="x")
    h = layer(layers.Conv2D(2, 3, name="conv")(inputs))
    network = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(h)))
    assert list(places(network, images()[0])) == ["x", *expected, "head"]


def test_an_activation_that_stands_apart_in_the_file_does_so_in_training():
    inputs = keras.Input((8, 8, 1), name="x")
    h = layers.Conv2DTranspose(2, 2, activation="relu", name="up")(inputs)
    network = keras.Model(inputs, layers.Dense(3, "tanh", name="head")(layers.Flatten()(h)))
    x, _ = images()
    assert places(network, x) == {
        "x": None,
        "up_linear": None,
        "up": None,
        "head_linear": None,
        "head": (-1.0, 127 / 128),
    }
    aware = kd.compress.quantize_aware(kd.compress.prune(network, 0.5), x)
    assert [row["layer"] for row in kd.compress.summary(aware)] == ["up_linear", "head_linear"]
    assert all(row["sparsity"] >= 0.5 for row in kd.compress.summary(aware))
    difference = np.abs(array(aware(x)) - array(kd.compress.strip(aware)(x))).max()
    assert difference < 0.05
