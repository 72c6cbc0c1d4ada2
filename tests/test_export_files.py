"""What reads finished files: predicting, comparing, timing, inspecting."""

import json

import keras
import numpy as np
import pytest

import kdtoolkit.export as export
from kdtoolkit.export.examples import TensorInfo
from kdtoolkit.export.graph import describe
from kdtoolkit.export.limits import check_limits
from kdtoolkit.export.quantize import recipe_for, to_quantized
from kdtoolkit.export.verify import compare_with, reference

pytestmark = [pytest.mark.export, pytest.mark.tensorflow]

layers = keras.layers


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


# Finished files


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,), name="x")
    # The converter would drop biases of zero.
    hidden = layers.Dense(64, activation="relu", bias_initializer="ones")(inputs)
    return keras.Model(inputs, layers.Dense(4, bias_initializer="ones", name="y")(hidden))


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    target = tmp_path_factory.mktemp("export") / "m.tflite"
    export.litert(model, target)
    return target


def test_a_file_predicts_any_number_of_examples(model, path):
    runner = export.LiteRTModel(path)
    assert runner.inputs == (TensorInfo("x", (1, 8), "float32"),)
    assert runner.outputs == (TensorInfo("y", (1, 4), "float32"),)
    for count in (1, 2, 9):
        x = normal(count, 8)
        np.testing.assert_allclose(runner.predict(x), model(x), atol=1e-5)
        np.testing.assert_array_equal(runner.predict({"x": x}), runner.predict(x))
    with pytest.raises(ValueError, match=r"Expected: \(examples, 8\)"):
        runner.predict(normal(2, 7))


def test_comparing_gives_the_numbers_of_the_definition(model, path):
    x = normal(20, 8)
    other = keras.models.clone_model(model)
    other.set_weights([w + 0.2 * normal(*w.shape) for w in model.get_weights()])
    expected, actual = np.asarray(other(x), "float64"), np.asarray(model(x), "float64")
    result = export.compare(other, path, x)
    gap = np.abs(actual - expected)
    assert result.examples == 20
    assert result.max_difference == pytest.approx(gap.max(), rel=1e-5)
    assert result.mean_difference == pytest.approx(gap.mean(), rel=1e-5)
    assert result.agreement == np.mean(expected.argmax(-1) == actual.argmax(-1)) < 1
    assert result.sqnr_db == pytest.approx(
        10 * np.log10(expected.var() / np.mean(gap**2)), abs=1e-4
    )
    (output,) = result.outputs
    assert output.relative_difference == pytest.approx(gap.max() / np.abs(expected).max(), rel=1e-5)
    stored = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert stored["outputs"][0]["name"] == "y"


class Runner:
    """Stands in for a file with given outputs."""

    def __init__(self, **outputs):
        self.outputs = tuple(TensorInfo(name, a.shape, "float32") for name, a in outputs.items())
        self.inputs = (TensorInfo("x", (1,), "float32"),)
        self.predict_dict = lambda examples: outputs


def compared(expected, actual):
    return compare_with({"y": expected}, Runner(y=actual), {"x": np.zeros(len(expected))})


def test_special_values_are_compared_as_they_should():
    values = np.array([[0.0, -np.inf], [3.0, 1.0]])
    assert compared(values, values).max_difference == 0
    assert compared(values, values).sqnr_db == np.inf
    for bad in (np.nan, np.inf):
        broken = values.copy()
        broken[1, 0] = bad
        result = compared(values, broken)
        assert result.max_difference == np.inf and result.sqnr_db == -np.inf
        with pytest.raises(export.ExportMismatchError):
            check_limits(result, "int8", tolerance=np.inf)
        assert result.to_dict()["outputs"][0]["max_difference"] is None
    # A file that returns the mean of everything carries no signal.
    assert compared(values[1:], np.full((1, 2), 2.0)).sqnr_db == pytest.approx(0)
    constant = np.ones((3, 1))
    assert compared(constant, 1.5 * constant).outputs[0].relative_difference == 0.5
    assert compared(constant, constant).agreement is None


def test_files_with_other_names_or_shapes_are_refused():
    one = np.ones((2, 3))
    with pytest.raises(ValueError, match="other outputs than the model"):
        compare_with({"y": one, "z": one}, Runner(y=one, w=one), {"x": one})
    with pytest.raises(ValueError, match="another shape"):
        compared(one, np.ones((2, 4)))
    # One output cannot be mistaken for another, whatever its name.
    assert compare_with({"y": one}, Runner(output_0=one), {"x": one}).max_difference == 0


def test_keras_is_run_in_the_batch_size_that_a_model_is_built_for():
    inputs = keras.Input(batch_shape=(4, 2), name="x")
    graph = describe(keras.Model(inputs, layers.Dense(1, name="y")(inputs)))
    sizes = []
    graph.model.layers[-1].call = lambda x, **_: sizes.append(len(x)) or x
    assert reference(graph, {"x": normal(6, 2)})["y"].shape == (6, 2)
    assert sizes == [4, 4]


def test_latency_orders_its_numbers(path):
    result = export.latency(path, num_threads=1, warmup=1, runs=20)
    assert 0 < result.min_ms <= result.median_ms <= result.p95_ms
    assert (result.runs, result.num_threads) == (20, 1)
    assert result.to_dict()["median_ms"] == result.median_ms
    for arguments, message in (
        ({"runs": 0}, "`runs` must be at least 1"),
        ({"warmup": -1}, "`warmup` at least 0"),
        ({"num_threads": 0}, "`num_threads` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            export.latency(path, **arguments)


def test_inspecting_counts_operators_tensors_and_bytes(path):
    summary = export.inspect(path)
    assert summary.bytes == path.stat().st_size
    assert summary.ops == {"FULLY_CONNECTED": 2}
    # Input, hidden and output, with two kernels and two biases.
    assert summary.tensor_counts == {"float32": 7}
    assert summary.tensor_bytes == {"float32": 4 * (8 * 64 + 64 + 64 * 4 + 4)}
    assert not summary.full_integer
    assert json.loads(json.dumps(summary.to_dict()))["outputs"][0]["shape"] == [1, 4]


def test_four_bit_weights_are_seen_as_such(path, tmp_path):
    from ai_edge_quantizer import quantizer, recipe

    result = quantizer.Quantizer(str(path), recipe.dynamic_wi4_afp32()).quantize(
        enable_progress_report=False
    )
    small = tmp_path / "four.tflite"
    small.write_bytes(result.quantized_model)
    assert export.inspect(small).tensor_bytes["int4"] == (8 * 64 + 64 * 4) // 2


def test_constants_that_share_a_buffer_count_once(path, tmp_path):
    from ai_edge_litert.tools import flatbuffer_utils

    content = flatbuffer_utils.read_model(str(path))
    first, second = (t for t in content.subgraphs[0].tensors if len(t.shape) == 1)
    kept = max(first, second, key=lambda tensor: tensor.buffer)
    first.buffer = second.buffer = kept.buffer
    # Constants that aren't as long as their shapes say are refused.
    first.shape = second.shape = kept.shape
    shared = tmp_path / "shared.tflite"
    flatbuffer_utils.write_model(content, str(shared))
    removed = (
        export.inspect(path).tensor_bytes["float32"]
        - export.inspect(shared).tensor_bytes["float32"]
    )
    assert removed in (4 * 64, 4 * 4)


def compare(path):
    inputs = keras.Input((8,))
    return export.compare(keras.Model(inputs, layers.Dense(4)(inputs)), path, normal(2, 8))


@pytest.mark.parametrize("read", [export.LiteRTModel, export.inspect, export.latency, compare])
def test_broken_and_missing_files_are_refused(path, tmp_path, read):
    content = path.read_bytes()
    broken = tmp_path / "broken.tflite"
    for wrong in (b"", b"not a model at all", content[: len(content) // 2], content[:-1]):
        broken.write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"broken.tflite'.*{len(wrong)} bytes"):
            read(broken)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.tflite")


def test_a_file_that_is_cut_anywhere_is_refused(path, tmp_path):
    content, broken = path.read_bytes(), tmp_path / "broken.tflite"
    for size in np.random.default_rng(0).integers(0, len(content), 12):
        broken.write_bytes(content[:size])
        for read in (export.LiteRTModel, export.inspect):
            with pytest.raises(ValueError, match="broken.tflite"):
                read(broken)


def test_inspecting_a_damaged_file_gives_a_summary_or_a_value_error(path, tmp_path):
    content, broken, refused = path.read_bytes(), tmp_path / "broken.tflite", 0
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.integers(8)
        broken.write_bytes(damaged)
        try:
            assert export.inspect(broken).bytes == len(content)
        except ValueError as error:
            refused += "not a complete .tflite file" in str(error)
    assert refused > 0


def weight_file(tmp_path, kernel, quantize=None):
    """A file of one dense layer with a known kernel."""
    inputs = keras.Input((kernel.shape[0],), name="x")
    model = keras.Model(inputs, layers.Dense(kernel.shape[1], use_bias=False)(inputs))
    model.set_weights([kernel])
    target = tmp_path / "w.tflite"
    export.litert(model, target, quantize=quantize, overwrite=True)
    return export.inspect(target)


@pytest.mark.parametrize(
    ("quantize", "dtype"),
    [
        (None, "float32"),
        ("float16", "float16"),
        ("weight_only_int8", "int8"),
        ("weight_only_int4", "int4"),
    ],
)
def test_weights_are_counted_in_every_type(tmp_path, quantize, dtype):
    # An odd number of entries leaves half a byte of int4 unused.
    kernel = np.zeros((5, 3), "float32")
    kernel[0], kernel[1] = 0.7, -0.7
    kernel[2, 0] = 0.4
    summary = weight_file(tmp_path, kernel, quantize)
    (weight,) = summary.weights
    assert (weight.shape, weight.dtype) == ((3, 5), dtype)
    assert summary.sparsity == weight.zeros == pytest.approx(8 / 15)
    assert summary.unique == weight.distinct == 4


def test_a_zero_point_stands_for_zero():
    from types import SimpleNamespace

    from kdtoolkit.export.weights import weights_of

    parameters = SimpleNamespace(zeroPoint=np.array([0, 5]), quantizedDimension=1)
    tensor = SimpleNamespace(
        shape=np.array([3, 2]), buffer=0, name=b"kernel", quantization=parameters
    )
    data = np.array([[0, 5], [5, 5], [1, 0]], np.int8).reshape(-1).view(np.uint8)
    model = SimpleNamespace(
        subgraphs=[SimpleNamespace(tensors=[tensor])], buffers=[SimpleNamespace(data=data)]
    )
    (weight,) = weights_of(model, lambda tensor: "int8")
    assert weight == export.WeightInfo("kernel", (3, 2), "int8", 3 / 6, 3)


METADATA = {"labels": ["cat", "häßlich"], "preprocessing": {"scale": 0.5}, "none": None}


@pytest.mark.parametrize("quantize", [None, "dynamic"])
def test_metadata_comes_back_and_changes_nothing_else(model, tmp_path, quantize):
    for name, metadata in (("plain", None), ("told", METADATA)):
        export.litert(model, tmp_path / f"{name}.tflite", quantize=quantize, metadata=metadata)
    plain, told = (export.LiteRTModel(tmp_path / f"{n}.tflite") for n in ("plain", "told"))
    assert plain.metadata == {} and told.metadata == METADATA
    summary = export.inspect(tmp_path / "told.tflite")
    assert summary.metadata == METADATA
    before = export.inspect(tmp_path / "plain.tflite")
    assert (summary.inputs, summary.outputs) == (before.inputs, before.outputs)
    assert (summary.ops, summary.weights) == (before.ops, before.weights)
    assert (told.inputs, told.outputs) == (plain.inputs, plain.outputs)
    np.testing.assert_array_equal(told.predict(normal(3, 8)), plain.predict(normal(3, 8)))


def test_metadata_leaves_the_weights_at_multiples_of_16_bytes(model, tmp_path):
    from ai_edge_litert import schema_py_generated as schema

    path = tmp_path / "m.tflite"
    export.litert(model, path, metadata={"labels": ["a", "b", "c"]})
    content = path.read_bytes()
    file = schema.Model.GetRootAs(content, 0)
    places = []
    for index in range(file.BuffersLength()):
        data = file.Buffers(index).DataAsNumpy()
        if isinstance(data, np.ndarray) and data.size >= 16:
            places.append(data.__array_interface__["data"][0])
    start = np.frombuffer(content, np.uint8).__array_interface__["data"][0]
    assert len(places) >= 3
    assert [(place - start) % 16 for place in places] == [0] * len(places)


def test_calibration_keeps_rare_extremes(model, path):
    x = np.full((50, 8), 0.01, "float32")
    x[0] = 100
    calibration = [{"x": row[None]} for row in x]
    content = to_quantized(path.read_bytes(), recipe_for([(".*", "int8")]), True, calibration)
    file = path.with_name("rare.tflite")
    file.write_bytes(content)
    # A moving average over the rows would have forgotten the large one and cut it off.
    expected, actual = model(x[:1]), export.LiteRTModel(file).predict(x[:1])
    np.testing.assert_allclose(actual, expected, atol=0.03 * np.abs(expected).max())
