"""What the export refuses: files that disagree, models without a way, bad arguments."""

import tempfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import kdtoolkit.export as export
from kdtoolkit.export import pipeline
from tests.test_export import Subclassed, conv_net, normal, small_model

pytestmark = [pytest.mark.export, pytest.mark.tensorflow]

layers = keras.layers


@pytest.fixture(scope="module")
def net():
    return conv_net()


@pytest.fixture(scope="module")
def images():
    return normal(40, 8, 8, 3)


def no_conversion(*args, **kwargs):
    raise RuntimeError("the slow conversion was started")


@pytest.fixture
def fast(monkeypatch):
    """Make every attempt to convert fail with an error that no test expects."""
    monkeypatch.setattr(pipeline, "save_graph", no_conversion)


# Files that disagree


@pytest.mark.parametrize("quantize", [None, "float16", "dynamic", "int8"])
def test_other_weights_are_an_error_and_leave_no_file(net, images, tmp_path, monkeypatch, quantize):
    other = pipeline.describe(conv_net(seed=7)).fixed(1, None)
    with tempfile.TemporaryDirectory() as folder:
        wrong = pipeline.to_float(pipeline.save_graph(other, folder))
    if quantize is None:
        monkeypatch.setattr(pipeline, "to_float", lambda saved: wrong)
    else:
        quantized = pipeline.to_quantized(
            wrong,
            pipeline.recipe_for([(".*", quantize)]),
            calibration=[{"image": image[None]} for image in images],
        )
        monkeypatch.setattr(pipeline, "to_quantized", lambda *args: quantized)
    with pytest.raises(export.ExportMismatchError, match="disagrees with Keras in output 'logits'"):
        export.litert(net, tmp_path / "n.tflite", quantize=quantize, representative_data=images)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_float_file_is_noticed_before_it_is_quantised(net, tmp_path, monkeypatch):
    save, other = pipeline.save_graph, conv_net(seed=7)
    monkeypatch.setattr(
        pipeline, "save_graph", lambda graph, folder: save(replace(graph, model=other), folder)
    )
    with pytest.raises(export.ExportMismatchError, match="The float32 file disagrees"):
        # A tolerance for the quantised file says nothing about the float one.
        export.litert(net, tmp_path / "n.tflite", quantize="dynamic", tolerance=100.0)


def test_a_random_model_is_an_error(tmp_path):
    inputs = keras.Input((4,), name="x")
    noise = layers.Lambda(lambda x: x + tf.random.normal((1, 4)), name="noise")
    model = keras.Model(inputs, noise(inputs))
    with pytest.raises(ValueError, match=r"random numbers .*RandomStandardNormal \(in 'noise'\)"):
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


def test_int8_without_data_is_refused_before_the_conversion(tmp_path, monkeypatch):
    # The trace must come first: it tells whether the model brings trained ranges.
    monkeypatch.setattr(pipeline, "to_float", no_conversion)
    with pytest.raises(ValueError, match="needs `representative_data`"):
        export.litert(small_model(), tmp_path / "m.tflite", quantize="int8")
    assert list(tmp_path.iterdir()) == []


def test_operations_without_a_kernel_are_named(tmp_path):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, layers.Lambda(lambda x: tf.math.erfinv(x / 9))(inputs))
    with pytest.raises(ValueError, match=r"no built-in kernels: Erfinv \(in 'lambda'\)"):
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
    with pytest.raises(ValueError, match=r"loops.*\['gru'\].*quantize='dynamic'"):
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
        ({"quantize": "int16"}, ValueError, "needs `representative_data`"),
        ({"io": "int8"}, ValueError, "together with quantize='int8'"),
        ({"io": "uint8"}, ValueError, "`io` must be"),
        ({"io": "int16", "quantize": "int8"}, ValueError, "`io` must be"),
        ({"quantize": []}, ValueError, "`quantize` must be"),
        ({"quantize": [("dense", "int4")]}, ValueError, "mode is one of .*'weight_only_int4'"),
        ({"quantize": [("(", "int8")]}, ValueError, "no regular expression"),
        ({"quantize": "missing.json"}, ValueError, "'missing.json' could not be read"),
        ({"metadata": ["a"]}, TypeError, "`metadata` must be a dict"),
        ({"metadata": {"a": np.zeros(2)}}, ValueError, "that JSON can store"),
        ({"metadata": {1: "a"}}, ValueError, "string keys"),
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
    monkeypatch.setattr(Path, "touch", refuse)
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
    model = keras.Model(inputs, layers.Lambda(tf.strings.length, (), dtype="int32")(inputs))
    with pytest.raises(ValueError, match=r"\['text'\] take strings"):
        export.litert(model, tmp_path / "m.tflite")


def test_tables_are_refused_by_name(fast, tmp_path):
    inputs = keras.Input((1,), dtype="int64")
    model = keras.Model(inputs, layers.IntegerLookup(vocabulary=[5, 7], name="table")(inputs))
    with pytest.raises(ValueError, match=r"no tables .*'table \(IntegerLookup\)'"):
        export.litert(model, tmp_path / "m.tflite")
