"""Models with fake quantisation: the trained ranges become the scales of the file."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import kdtoolkit.export as export
from tests.test_export import normal

pytestmark = [pytest.mark.export, pytest.mark.tensorflow]

layers = keras.layers
fake_quant = keras.quantizers.fake_quant_with_min_max_vars
# The range of every activation, in 255 steps.
LIMIT = 4.0
STEP = 2 * LIMIT / 255


class Rounded(layers.Layer):
    """Rounds activations to 8 bits."""

    def call(self, x):
        return fake_quant(x, tf.constant(-LIMIT), tf.constant(LIMIT))


class Trained(layers.Wrapper):
    """Rounds the kernel of a layer, with one range per channel along `axis`, or one in all."""

    def __init__(self, layer, axis=None, bits=8):
        super().__init__(layer)
        self.axis, self.bits = axis, bits

    def call(self, x):
        kernel = self.layer.kernel
        values = tf.convert_to_tensor(kernel.value)
        others = None
        if self.axis is not None:
            others = [i for i in range(4) if i != self.axis % 4]
        limit = tf.reduce_max(tf.abs(values), axis=others)
        rounded = fake_quant(
            values, -limit, limit, num_bits=self.bits, narrow_range=True, axis=self.axis
        )
        with keras.StatelessScope(state_mapping=[(kernel, rounded)]):
            return self.layer(x)


def trained_net(bits=8, activations=True, middle=None):
    """Convolutions per channel, a dense layer per tensor, an addition."""
    rounded = Rounded if activations else layers.Identity
    image = keras.Input((6, 6, 3), name="image")
    x = Trained(layers.Conv2D(8, 3, padding="same"), axis=-1, bits=bits)(rounded()(image))
    x = rounded()(layers.ReLU()(x))
    y = Trained(layers.DepthwiseConv2D(3, padding="same"), axis=-2, bits=bits)(x)
    x = rounded()(layers.Add()([x, rounded()(y)]))
    if middle is not None:
        x = middle(x)
    x = rounded()(layers.GlobalAveragePooling2D()(x))
    x = Trained(layers.Dense(5, name="logits"), bits=bits)(x)
    return keras.Model(image, rounded()(x))


@pytest.fixture(scope="module")
def images():
    return normal(40, 6, 6, 3)


def output_scale(path):
    (target,) = Interpreter(model_path=str(path)).get_output_details()
    return target["quantization"][0]


@pytest.mark.parametrize("bits", [8, 4])
def test_trained_ranges_give_an_integer_file_without_data(images, tmp_path, bits):
    model, path = trained_net(bits), tmp_path / "n.tflite"
    report = export.litert(model, path, quantize="int8", check_data=images, io="int8")
    assert report.full_integer
    assert report.quantize == "int8"
    assert report.ops == {
        "CONV_2D": 1,
        "DEPTHWISE_CONV_2D": 1,
        "ADD": 1,
        "MEAN": 1,
        "FULLY_CONNECTED": 1,
    }
    kernels = 3 * 3 * 3 * 8 + 3 * 3 * 8 + 8 * 5
    assert report.tensor_bytes[f"int{bits}"] == kernels * bits // 8
    assert output_scale(path) == pytest.approx(STEP)
    # Both sides round to the same grid: an output may fall to the neighbouring step.
    difference = export.LiteRTModel(path).predict(images) - np.asarray(model(images))
    assert np.abs(difference).max() < 1.01 * STEP
    assert np.mean(np.abs(difference) < STEP / 2) > 0.8


def test_trained_ranges_win_over_those_of_the_data(images, tmp_path):
    path, data = tmp_path / "n.tflite", 0.1 * images
    export.litert(
        trained_net(), path, quantize="int8", representative_data=data, check_data=images, io="int8"
    )
    assert output_scale(path) == pytest.approx(STEP)


def test_operators_without_a_range_stay_float_unless_data_gives_them_one(images, tmp_path):
    model = trained_net(middle=layers.Activation("silu"))
    report = export.litert(model, tmp_path / "n.tflite", quantize="int8", check_data=images)
    assert not report.full_integer
    assert report.tensor_bytes["int8"] > 0
    report = export.litert(
        model, tmp_path / "f.tflite", quantize="int8", representative_data=images
    )
    assert report.full_integer


def test_trained_kernels_alone_need_data(images, tmp_path):
    model = trained_net(activations=False)
    with pytest.raises(ValueError, match="Only the kernels .* Pass `representative_data`"):
        export.litert(model, tmp_path / "n.tflite", quantize="int8")
    with pytest.raises(ValueError, match="io='int8'.*no trained range.*representative_data"):
        export.litert(model, tmp_path / "n.tflite", quantize="int8", io="int8")
    report = export.litert(
        model, tmp_path / "n.tflite", quantize="int8", representative_data=images, io="int8"
    )
    assert report.full_integer


@pytest.mark.parametrize("quantize", [None, "float16", [(".*", "dynamic")]])
def test_other_modes_of_a_trained_model_are_refused(tmp_path, quantize):
    with pytest.raises(ValueError, match=r"Pass quantize='int8', or export kd.compress.strip"):
        export.litert(trained_net(), tmp_path / "n.tflite", quantize=quantize)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("layer", "shape"), [(layers.Dense(3), (4,)), (layers.Conv1D(3, 2), (6, 4))]
)
def test_a_range_per_channel_that_litert_cannot_take_is_named(tmp_path, layer, shape):
    class PerChannel(Trained):
        def call(self, x):
            limit = tf.constant([1.0, 2.0, 3.0])
            kernel = self.layer.kernel
            rounded = fake_quant(tf.convert_to_tensor(kernel.value), -limit, limit, axis=-1)
            with keras.StatelessScope(state_mapping=[(kernel, rounded)]):
                return self.layer(x)

    inputs = keras.Input(shape)
    model = keras.Model(inputs, Rounded()(PerChannel(layer)(Rounded()(inputs))))
    with pytest.raises(ValueError, match="one range per tensor"):
        export.litert(model, tmp_path / "n.tflite", quantize="int8")
