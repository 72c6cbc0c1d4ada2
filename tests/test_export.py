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
from kdtoolkit.export import pipeline

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


def no_conversion(*args, **kwargs):
    raise RuntimeError("the slow conversion was started")


@pytest.fixture
def fast(monkeypatch):
    """Make every attempt to convert fail with an error that no test expects."""
    monkeypatch.setattr(pipeline, "to_float", no_conversion)


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


# Files that disagree


@pytest.mark.parametrize("quantize", [None, "float16", "dynamic", "int8"])
def test_other_weights_are_an_error_and_leave_no_file(net, images, tmp_path, monkeypatch, quantize):
    convert, other = pipeline.to_float, conv_net(seed=7)
    wrong = convert(pipeline.describe(other).fixed(1, None))
    if quantize is None:
        monkeypatch.setattr(pipeline, "to_float", lambda graph: wrong)
    else:
        quantized = pipeline.to_quantized(
            wrong, quantize, calibration=[{"image": image[None]} for image in images]
        )
        monkeypatch.setattr(pipeline, "to_quantized", lambda *args: quantized)
    with pytest.raises(export.ExportMismatchError, match="disagrees with Keras in output 'logits'"):
        export.litert(net, tmp_path / "n.tflite", quantize=quantize, representative_data=images)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_float_file_is_noticed_before_it_is_quantised(net, tmp_path, monkeypatch):
    convert, other = pipeline.to_float, conv_net(seed=7)
    monkeypatch.setattr(pipeline, "to_float", lambda graph: convert(replace(graph, model=other)))
    with pytest.raises(export.ExportMismatchError, match="The float32 file disagrees"):
        # A tolerance for the quantised file says nothing about the float one.
        export.litert(net, tmp_path / "n.tflite", quantize="dynamic", tolerance=100.0)


def test_a_random_model_is_an_error(tmp_path):
    inputs = keras.Input((4,), name="x")
    noise = layers.Lambda(lambda x: x + tf.random.normal((1, 4)))
    model = keras.Model(inputs, noise(inputs))
    with pytest.raises(export.ExportMismatchError, match="random or stateful"):
        export.litert(model, tmp_path / "n.tflite")


def test_a_tolerance_replaces_the_limits(net, images, tmp_path):
    arguments = dict(quantize="dynamic", check_data=images)
    with pytest.raises(export.ExportMismatchError, match="at most 1e-06"):
        export.litert(net, tmp_path / "n.tflite", tolerance=1e-6, **arguments)
    assert export.litert(net, tmp_path / "n.tflite", tolerance=0.5, **arguments).bytes


def test_a_failed_export_keeps_the_file_that_was_there(net, tmp_path):
    path = tmp_path / "n.tflite"
    path.write_bytes(b"precious")
    with pytest.raises(export.ExportMismatchError):
        export.litert(net, path, quantize="dynamic", tolerance=0.0, overwrite=True)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_overwrite_replaces_a_file_only_when_asked(tmp_path):
    path, model = tmp_path / "m.tflite", small_model()
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export.litert(model, path)
    assert path.read_bytes() == b"precious"
    report = export.litert(model, path, overwrite=True)
    assert report.bytes == path.stat().st_size > len(b"precious")
    assert list(tmp_path.iterdir()) == [path]


# Models that cannot be exported


def test_operations_without_a_kernel_are_named(tmp_path):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, layers.Lambda(lambda x: tf.math.erfinv(x / 9))(inputs))
    with pytest.raises(ValueError, match="no built-in kernels: Erfinv"):
        export.litert(model, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


def test_a_loop_over_dynamic_lists_is_named(tmp_path):
    def collect(x):
        # The number of rounds depends on x, so that the list has no fixed length.
        rounds = tf.cast(tf.reduce_sum(x * 0) + 3, tf.int32)
        values = tf.TensorArray(tf.float32, size=0, dynamic_size=True)
        _, values = tf.while_loop(
            lambda i, _: i < rounds, lambda i, v: (i + 1, v.write(i, x)), [0, values]
        )
        return tf.transpose(values.stack(), [1, 0, 2])

    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, layers.Lambda(collect, output_shape=(3, 4))(inputs))
    with pytest.raises(ValueError, match="dynamic lists.*unroll=True"):
        export.litert(model, tmp_path / "m.tflite")


def test_a_model_that_cannot_be_traced_reports_its_own_error(tmp_path):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, layers.Lambda(lambda x: tf.constant(x.numpy()), (4,))(inputs))
    with pytest.raises(ValueError, match="(?s)could not be converted .*no attribute 'numpy'"):
        export.litert(model, tmp_path / "m.tflite")


def test_a_file_that_litert_cannot_run_is_an_error(tmp_path):
    inputs = keras.Input((4,), name="x")
    # This converts, into a file whose shapes do not fit each other.
    spectrum = layers.Lambda(lambda x: tf.math.real(tf.signal.fft(tf.cast(x, tf.complex64))), (4,))
    with pytest.raises(export.ExportMismatchError, match="LiteRT cannot run the float32 file"):
        export.litert(keras.Model(inputs, spectrum(inputs)), tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


def test_what_the_quantiser_cannot_do_names_the_way_out(tmp_path):
    series = keras.Input((2, 2))
    model = keras.Model(series, layers.LSTM(2, unroll=True)(series))
    with pytest.raises(ValueError, match="could not be quantised to 'int8'.*'dynamic'"):
        export.litert(
            model, tmp_path / "m.tflite", quantize="int8", representative_data=normal(5, 2, 2)
        )


class WithoutConfig(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2, dtype="mixed_float16")

    def call(self, x):
        return self.dense(x)


def test_a_half_precision_model_that_cannot_be_copied_names_the_way_out(fast, tmp_path):
    model = WithoutConfig()
    model(normal(2, 4))
    with pytest.raises(ValueError, match=r"set_dtype_policy\('float32'\)"):
        export.litert(model, tmp_path / "m.tflite")


def test_int8_of_a_recurrent_model_names_the_way_out(tmp_path):
    series = keras.Input((3, 2))
    model = keras.Model(series, layers.GRU(2)(series))
    with pytest.raises(ValueError, match="loops.*quantize='dynamic'"):
        export.litert(
            model, tmp_path / "m.tflite", quantize="int8", representative_data=normal(5, 3, 2)
        )


def test_quantising_a_model_without_weights_is_an_error(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.ReLU()(inputs))
    with pytest.raises(ValueError, match="found no weights"):
        export.litert(model, tmp_path / "m.tflite", quantize="dynamic")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"quantize": "int4"}, ValueError, "`quantize` must be .*'int4'"),
        ({"quantize": "int8"}, ValueError, "needs `representative_data`"),
        ({"io": "int8"}, ValueError, "together with quantize='int8'"),
        ({"io": "uint8"}, ValueError, "`io` must be"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be a positive"),
        ({"batch_size": 2.0}, ValueError, "`batch_size` must be a positive"),
        ({"tolerance": -1.0}, ValueError, "`tolerance` must be"),
        ({"tolerance": float("nan")}, ValueError, "`tolerance` must be"),
        ({"num_threads": 0}, ValueError, "`num_threads` must be"),
        ({"representative_data": normal(0, 4)}, ValueError, "holds no examples"),
        ({"representative_data": iter(())}, ValueError, "holds no examples"),
        ({"representative_data": normal(3, 5)}, ValueError, r"Expected: \(examples, 4\)"),
        ({"representative_data": normal(4)}, ValueError, r"x\[None\]"),
        ({"check_data": np.full((2, 4), np.nan)}, ValueError, "`check_data` holds NaN"),
        ({"check_data": np.full((2, 4), np.inf)}, ValueError, "`check_data` holds NaN"),
        ({"check_data": np.full((2, 4), "a")}, ValueError, "wrong dtype for input 'x'"),
        ({"check_data": 3}, TypeError, "must be an array"),
    ],
)
def test_bad_arguments_are_refused_before_the_conversion(fast, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        export.litert(small_model(), tmp_path / "m.tflite", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("m.h5", ValueError, "must end in '.tflite'"),
        ("missing/m.tflite", FileNotFoundError, "does not exist"),
        ("folder.tflite", IsADirectoryError, "is a directory"),
    ],
)
def test_bad_paths_are_refused_before_the_conversion(fast, tmp_path, name, error, message):
    (tmp_path / "folder.tflite").mkdir()
    with pytest.raises(error, match=message):
        export.litert(small_model(), tmp_path / name)


def test_a_directory_without_write_permission_is_refused(fast, tmp_path, monkeypatch):
    def refuse(self, **kwargs):
        raise PermissionError("denied")

    # Permissions do not stop an administrator, so they are simulated.
    monkeypatch.setattr(pipeline.Path, "touch", refuse)
    with pytest.raises(PermissionError, match="cannot be written to"):
        export.litert(small_model(), tmp_path / "m.tflite")


def test_models_that_are_no_models_or_not_built_are_refused(fast, tmp_path):
    path = tmp_path / "m.tflite"
    with pytest.raises(TypeError, match="must be a keras.Model. Received: Dense"):
        export.litert(layers.Dense(2), path)
    with pytest.raises(ValueError, match="is not built"):
        export.litert(keras.Sequential([layers.Dense(2)]), path)
    with pytest.raises(ValueError, match="is not built"):
        export.litert(Subclassed(), path)


def test_another_backend_is_told_how_to_reach_tensorflow(fast, tmp_path, monkeypatch):
    model = small_model()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
        export.litert(model, tmp_path / "m.tflite")


def test_a_model_quantised_by_keras_is_refused(fast, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    model.layers[0].quantize("int8")
    with pytest.raises(ValueError, match="quantised by keras.Model.quantize"):
        export.litert(model, tmp_path / "m.tflite")


def test_a_fixed_batch_size_is_respected(fast, tmp_path):
    inputs = keras.Input(batch_shape=(4, 2))
    model = keras.Model(inputs, layers.Dense(1)(inputs))
    with pytest.raises(ValueError, match="Pass batch_size=4"):
        export.litert(model, tmp_path / "m.tflite")


def test_a_model_that_returns_nan_is_refused(fast, tmp_path):
    model = small_model(bias_initializer=keras.initializers.Constant(np.nan))
    with pytest.raises(ValueError, match=r"itself returns NaN in the output\(s\) \['y'\]"):
        export.litert(model, tmp_path / "m.tflite")


def test_an_output_without_batch_axis_is_refused(fast, tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.ops.mean(inputs))
    with pytest.raises(ValueError, match="must keep the batch axis"):
        export.litert(model, tmp_path / "m.tflite")


def test_string_inputs_are_refused(fast, tmp_path):
    inputs = keras.Input((), dtype="string", name="text")
    model = keras.Model(inputs, layers.StringLookup(vocabulary=["a"])(inputs))
    with pytest.raises(ValueError, match=r"\['text'\] take strings"):
        export.litert(model, tmp_path / "m.tflite")
