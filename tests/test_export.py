"""The export pipeline: every mode and kind of model, and what it refuses."""

import gzip
import json
import os
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import kdtoolkit.export as export

pytestmark = [pytest.mark.export, pytest.mark.tensorflow]

layers = keras.layers


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def randomise_batch_normalization(model, seed=0):
    """Give the statistics values that a wrong folding would not reproduce."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])


def conv_net(seed=0):
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.RandomFlip("horizontal")(image)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.GaussianNoise(0.5)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.5)(x)
    model = keras.Model(image, layers.Dense(5, name="logits")(x))
    randomise_batch_normalization(model, seed)
    return model


@pytest.fixture(scope="module")
def net():
    return conv_net()


@pytest.fixture(scope="module")
def images():
    return normal(40, 8, 8, 3)


def small_model(units=3, **kwargs):
    inputs = keras.Input((4,), name="x")
    return keras.Model(inputs, layers.Dense(units, name="y", **kwargs)(inputs))


def run_with_interpreter(path, x):
    """Run a file of one float input and one output without the package under test."""
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    results = []
    for example in x:
        interpreter.set_tensor(source["index"], example[None])
        interpreter.invoke()
        results.append(interpreter.get_tensor(target["index"])[0])
    return np.stack(results)


# The files


@pytest.mark.parametrize(
    ("quantize", "weights", "lowest_db"),
    [
        (None, "float32", 100),
        ("float16", "float16", 50),
        ("dynamic", "int8", 25),
        ("int8", "int8", 25),
    ],
)
def test_every_mode_writes_a_file_whose_record_is_true(
    net, images, tmp_path, quantize, weights, lowest_db
):
    path = tmp_path / "net.tflite"
    report = export.litert(net, path, quantize=quantize, representative_data=images)

    expected = np.asarray(net(images, training=False))
    actual = run_with_interpreter(path, images)
    noise = actual.astype("float64") - expected
    assert report.max_difference == pytest.approx(np.abs(noise).max(), rel=1e-6)
    assert report.mean_difference == pytest.approx(np.abs(noise).mean(), rel=1e-6)
    assert report.agreement == np.mean(actual.argmax(-1) == expected.argmax(-1))
    sqnr = 10 * np.log10(expected.astype("float64").var() / np.mean(noise**2))
    assert report.sqnr_db == pytest.approx(sqnr, rel=1e-4)
    assert sqnr > lowest_db

    content = path.read_bytes()
    assert report.path == str(path)
    assert report.bytes == os.path.getsize(path)
    assert report.gzip_bytes == len(gzip.compress(content))
    # Convolution, four vectors of BatchNormalization, depthwise convolution, dense layer.
    assert report.parameters == 3 * 3 * 3 * 8 + 4 * 8 + (3 * 3 * 8 + 8) + (8 * 5 + 5)
    assert report.quantize == quantize
    assert report.examples == len(images)
    assert report.tensor_bytes[weights] >= (216 + 72 + 40) * np.dtype(weights).itemsize
    assert report.full_integer == (quantize == "int8")
    assert report.latency is None


def test_batch_normalization_is_folded_and_randomness_is_gone(net, tmp_path):
    report = export.litert(net, tmp_path / "net.tflite")
    assert report.ops == {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "MEAN": 1}


def test_int8_computes_the_convolutions_in_int8(net, images, tmp_path):
    path = tmp_path / "net.tflite"
    export.litert(net, path, quantize="int8", representative_data=images)
    interpreter = Interpreter(model_path=str(path))
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    convolutions = [op for op in interpreter._get_ops_details() if "CONV_2D" in op["op_name"]]
    assert len(convolutions) == 2
    for op in convolutions:
        source, kernel = (tensors[index]["dtype"] for index in op["inputs"][:2])
        (target,) = (tensors[index]["dtype"] for index in op["outputs"])
        assert source == kernel == target == np.int8


def test_int8_inputs_and_outputs_hold_scaled_integers(net, images, tmp_path):
    path = tmp_path / "net.tflite"
    report = export.litert(net, path, quantize="int8", representative_data=images, io="int8")
    assert [info.dtype for info in report.inputs + report.outputs] == ["int8", "int8"]
    assert "QUANTIZE" not in report.ops and "DEQUANTIZE" not in report.ops

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = source["quantization"]
    integers = np.clip(np.round(images[:1] / scale) + zero_point, -128, 127).astype("int8")
    interpreter.set_tensor(source["index"], integers)
    interpreter.invoke()
    scale, zero_point = target["quantization"]
    by_hand = (interpreter.get_tensor(target["index"]).astype("float32") - zero_point) * scale
    np.testing.assert_allclose(export.LiteRTModel(path).predict(images[:1]), by_hand, rtol=1e-6)


def test_a_transformer_is_full_integer_without_islands_around_negations(tmp_path):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((6, 8), name="tokens")
    x = layers.LayerNormalization()(tokens)
    x = tokens + layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.LayerNormalization()(x)
    model = keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    report = export.litert(
        model, tmp_path / "t.tflite", quantize="int8", representative_data=normal(40, 6, 8)
    )
    assert report.full_integer
    assert "NEG" not in report.ops
    assert (report.ops["QUANTIZE"], report.ops["DEQUANTIZE"]) == (1, 1)


@pytest.mark.parametrize("quantize", [None, "dynamic"])
def test_a_recurrent_model_exports_without_flex_operations(tmp_path, quantize):
    keras.utils.set_random_seed(0)
    series = keras.Input((5, 3), name="series")
    model = keras.Model(series, layers.Dense(2)(layers.LSTM(4)(series)))
    path, x = tmp_path / "lstm.tflite", normal(6, 5, 3)
    report = export.litert(model, path, quantize=quantize, check_data=x)
    assert not any(name.startswith("Flex") or name == "CUSTOM" for name in report.ops)
    atol = 1e-5 if quantize is None else 0.05
    np.testing.assert_allclose(run_with_interpreter(path, x), model(x), atol=atol)


def test_a_mixed_precision_model_exports_in_float32_and_stays_as_it_is(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = conv_net()
    finally:
        keras.config.set_dtype_policy("float32")
    weights = model.get_weights()
    report = export.litert(model, tmp_path / "net.tflite")
    assert set(report.tensor_counts) <= {"float32", "int32"}
    assert model.layers[2].compute_dtype == "float16"
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    # The file equals the same weights in float32, not the rounding of half precision.
    twin, x = conv_net(), normal(8, 8, 8, 3)
    twin.set_weights(weights)
    actual = run_with_interpreter(report.path, x)
    np.testing.assert_allclose(actual, twin(x, training=False), atol=1e-5)


def test_a_double_precision_model_exports_in_float32(tmp_path):
    keras.config.set_dtype_policy("float64")
    try:
        model = small_model()
    finally:
        keras.config.set_dtype_policy("float32")
    report = export.litert(model, tmp_path / "m.tflite", check_data=normal(6, 4))
    assert set(report.tensor_bytes) == {"float32"}
    assert model.layers[-1].compute_dtype == "float64"
    assert report.sqnr_db > 100


def test_inputs_and_outputs_keep_their_names_and_are_not_swapped(tmp_path):
    keras.utils.set_random_seed(0)
    # The alphabetical order, in which files list them, is the reverse of this one.
    first, second = keras.Input((4,), name="zebra"), keras.Input((4,), name="ant")
    outputs = [layers.Dense(2, name="zoo")(first), layers.Dense(2, name="hill")(second)]
    model = keras.Model([first, second], outputs)
    x = [normal(9, 4, seed=1), normal(9, 4, seed=2)]
    path = tmp_path / "two.tflite"
    export.litert(model, path, quantize="int8", representative_data=x)

    predicted = export.LiteRTModel(path).predict({"zebra": x[0], "ant": x[1]})
    zoo, hill = (np.asarray(output) for output in model(x))
    np.testing.assert_allclose(predicted["zoo"], zoo, atol=0.1)
    np.testing.assert_allclose(predicted["hill"], hill, atol=0.1)
    assert np.abs(zoo - hill).max() > 1


def test_a_dict_model_exports_from_a_labelled_dataset(tmp_path):
    inputs = {name: keras.Input((4,), name=name) for name in ("left", "right")}
    total = layers.Add()(list(inputs.values()))
    model = keras.Model(inputs, {"sum": total, "copy": inputs["left"]})
    x = {"left": normal(10, 4, seed=1), "right": normal(10, 4, seed=2)}
    data = tf.data.Dataset.from_tensor_slices((x, np.arange(10))).batch(4)
    report = export.litert(model, tmp_path / "d.tflite", check_data=data)
    assert report.examples == 10
    predicted = export.LiteRTModel(report.path).predict(x)
    np.testing.assert_allclose(predicted["sum"], x["left"] + x["right"], rtol=1e-6)
    np.testing.assert_array_equal(predicted["copy"], x["left"])


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)
        self.norm = layers.LayerNormalization()
        self.dropout = layers.Dropout(0.5)

    def call(self, x, training=False):
        return {"y": self.dropout(self.norm(self.dense(x["u"])), training=training), "z": x["v"]}


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_subclassed_model_exports_after_one_call(tmp_path, policy):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        model = Subclassed()
        x = {"u": normal(20, 4), "v": normal(20, 2)}
        model(x)
    finally:
        keras.config.set_dtype_policy("float32")
    report = export.litert(model, tmp_path / "s.tflite", quantize="int8", representative_data=x)
    assert [info.name for info in report.inputs] == ["u", "v"]
    assert [info.name for info in report.outputs] == ["y", "z"]
    assert report.full_integer


def test_a_larger_batch_size_is_fixed_in_the_file(tmp_path):
    path, x = tmp_path / "b.tflite", normal(10, 4)
    model = small_model()
    report = export.litert(model, path, batch_size=4, check_data=x)
    assert report.inputs[0].shape == (4, 4)
    # Ten examples make two full batches and one that must be filled.
    np.testing.assert_allclose(export.LiteRTModel(path).predict(x), model(x), atol=1e-5)


def test_open_sizes_are_taken_from_the_data(tmp_path):
    image = keras.Input((None, None, 1), name="image")
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(image)))
    with pytest.raises(ValueError, match="sizes that the model leaves open"):
        export.litert(model, tmp_path / "o.tflite")
    report = export.litert(model, tmp_path / "o.tflite", check_data=normal(2, 7, 5, 1))
    assert report.inputs[0].shape == (1, 7, 5, 1)
    with pytest.raises(ValueError, match=r"`check_data` has a wrong shape.*\(examples, 6, 5, 1\)"):
        export.litert(
            model,
            tmp_path / "p.tflite",
            representative_data=normal(2, 6, 5, 1),
            check_data=normal(2, 7, 5, 1),
        )


# The record


def test_the_record_can_be_stored_and_read(tmp_path):
    report = export.litert(
        small_model(), tmp_path / "m.tflite", measure_latency=True, check_data=normal(6, 4)
    )
    stored = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert stored["ops"] == {"FULLY_CONNECTED": 1}
    assert stored["inputs"] == [{"name": "x", "shape": [1, 4], "dtype": "float32"}]
    assert stored["latency"]["runs"] == 50
    line = str(report)
    assert "\n" not in line
    for part in ("m.tflite: float32", f"{report.bytes:,} bytes", "15 parameters", "agreement 100"):
        assert part in line
    perfect = replace(report, sqnr_db=float("inf"))
    assert perfect.to_dict()["sqnr_db"] is None


def test_nothing_is_printed(net, images, tmp_path, capfd):
    export.litert(
        net,
        tmp_path / "n.tflite",
        quantize="int8",
        representative_data=images,
        measure_latency=True,
    )
    assert tuple(capfd.readouterr()) == ("", "")
