"""The parts of the export: data, model descriptions, preparation, limits."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import kdtoolkit.export as export
from kdtoolkit.export import prepare
from kdtoolkit.export.examples import TensorInfo, collect, in_batches, random_examples
from kdtoolkit.export.graph import describe
from kdtoolkit.export.limits import check_limits

pytestmark = [pytest.mark.export, pytest.mark.tensorflow]

layers = keras.layers
ONE = (TensorInfo("x", (None, 3), "float32"),)
TWO = (TensorInfo("a", (None, 2), "float32"), TensorInfo("b", (None,), "int32"))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


# Importing


def test_importing_the_package_imports_no_converter_and_no_tensorflow():
    code = (
        "import sys, kdtoolkit.export; "
        "print([m for m in ('tensorflow', 'ai_edge_litert', 'ai_edge_quantizer') "
        "if m in sys.modules])"
    )
    root = Path(export.__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["tensorflow", "ai_edge_litert.interpreter", "ai_edge_quantizer.quantizer"]
)
def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch, module):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(1)(inputs))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "kdtoolkit\[export\]"'):
        export.litert(model, tmp_path / "m.tflite", quantize="dynamic")


# Example data


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: x.astype("float64"),
        lambda x: tf.constant(x),
        lambda x: [x],
        lambda x: {"x": x, "example_id": np.arange(7)},
        lambda x: [x[:4], x[4:]],
        lambda x: ((batch, "label") for batch in (x[:4], x[4:])),
        lambda x: [({"x": x[:3]}, 0, 1.0), ({"x": x[3:]}, 0, 1.0)],
        lambda x: tf.data.Dataset.from_tensor_slices((x, np.arange(7))).batch(2),
    ],
)
def test_every_form_of_data_gives_the_same_examples(form):
    x = normal(7, 3)
    examples = collect(form(x), ONE, "data", limit=100)
    assert list(examples) == ["x"] and examples["x"].dtype == np.float32
    np.testing.assert_array_equal(examples["x"], x)


@pytest.mark.parametrize(
    "form",
    [
        lambda a, b: [a, b],
        lambda a, b: (a, b),
        lambda a, b: {"b": b, "a": a},
        lambda a, b: [([a[:2], b[:2]], 0), ([a[2:], b[2:]], 0)],
        lambda a, b: tf.data.Dataset.from_tensor_slices(((a, b), b)).batch(3),
    ],
)
def test_every_form_of_several_inputs_gives_the_same_examples(form):
    a, b = normal(5, 2), np.arange(5)
    examples = collect(form(a, b), TWO, "data", limit=100)
    np.testing.assert_array_equal(examples["a"], a)
    np.testing.assert_array_equal(examples["b"], b)
    assert examples["b"].dtype == np.int32


def test_long_arrays_are_thinned_evenly_and_streams_are_cut():
    x = np.arange(1000.0).reshape(-1, 1) * np.ones(3)
    kept = collect(x, ONE, "data", limit=5)["x"][:, 0]
    np.testing.assert_allclose(kept, [0, 250, 500, 749, 999], atol=1)

    def endless():
        while True:
            yield x[:4]

    np.testing.assert_array_equal(
        collect(endless(), ONE, "data", limit=6)["x"][:, 0], [0, 1, 2, 3, 0, 1]
    )


@pytest.mark.parametrize(
    ("data", "inputs", "error", "message"),
    [
        ((normal(2, 3), np.arange(2)), ONE, ValueError, "without labels"),
        ({"y": normal(2, 3)}, ONE, ValueError, r"lacks the input\(s\) \['x'\]"),
        ([normal(2, 3), normal(2, 4)], ONE, ValueError, "wrong shape"),
        (["text"], ONE, TypeError, "Received: str"),
        (None, ONE, TypeError, "Received: NoneType"),
        (normal(2, 2), TWO, ValueError, r"must give 2 input\(s\)"),
        ([normal(2, 2), np.arange(3)], TWO, ValueError, "differ in length"),
        ([normal(2, 2), np.array([0.5, 1.0])], TWO, ValueError, "wrong dtype for input 'b'"),
        ([normal(2, 2), np.array([0, 2**40])], TWO, ValueError, "int32 cannot express"),
        ([np.array([[np.nan, 0]]), np.arange(1)], TWO, ValueError, "NaN or infinity in input 'a'"),
    ],
)
def test_bad_data_is_refused(data, inputs, error, message):
    with pytest.raises(error, match=message):
        collect(data, inputs, "data", limit=100)


def test_a_list_is_refused_where_only_names_tell_inputs_apart():
    with pytest.raises(ValueError, match=r"told apart by name: \['a', 'b'\]"):
        collect([normal(2, 2), np.arange(2)], TWO, "data", limit=100, by_name=True)


def test_random_examples_are_seeded_and_fit_their_inputs():
    inputs = tuple(TensorInfo(d, (1, 50), d) for d in ("float32", "int32", "uint8", "bool"))
    examples = random_examples(inputs, 4, seed=3)
    for name, array in examples.items():
        assert array.shape == (4, 50) and array.dtype == name
        np.testing.assert_array_equal(array, random_examples(inputs, 4, seed=3)[name])
    assert set(np.unique(examples["int32"])) == {0, 1}
    assert examples["uint8"].max() > 200


def test_batches_are_filled_and_the_filling_is_dropped():
    sizes = []

    def double(batch):
        sizes.append(len(batch["x"]))
        return {"y": 2 * batch["x"]}

    x = normal(7, 3)
    np.testing.assert_array_equal(in_batches(double, {"x": x}, 3)["y"], 2 * x)
    assert sizes == [3, 3, 3]


# Descriptions of models


def test_names_come_from_keys_then_from_tensors_and_layers():
    first, second = keras.Input((1,), name="p"), keras.Input((2,), name="o")
    listed = describe(keras.Model([first, second], layers.Dense(1, name="d")(first)))
    assert [info.name for info in listed.inputs] == ["p", "o"]
    assert list(listed.predict({"p": normal(2, 1), "o": normal(2, 2)})) == ["d"]
    assert not listed.by_name

    nested = {"k": first, "l": [second, first], "l_1": second}
    named = describe(keras.Model({"p": first, "o": second}, nested))
    assert named.by_name
    x = {"p": normal(2, 1), "o": normal(2, 2)}
    outputs = named.predict(x)
    assert sorted(outputs) == ["k", "l", "l_1", "l_2"]
    np.testing.assert_array_equal(outputs["l"], x["o"])
    np.testing.assert_array_equal(outputs["l_1"], x["o"])
    np.testing.assert_array_equal(outputs["l_2"], x["p"])


def test_a_subclassed_model_with_unknown_inputs_is_refused():
    class Built(keras.Model):
        def call(self, x):
            return x

    model = Built()
    model.built = True
    with pytest.raises(ValueError, match="inputs of model .* are unknown"):
        describe(model)


# Preparing a model


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"axis": 1},
        {"axis": [1, 3]},
        {"axis": -2, "center": False},
        {"scale": False},
        {"epsilon": 0.5},
    ],
)
def test_the_rewritten_layer_normalization_computes_the_same(arguments):
    layer = layers.LayerNormalization(**arguments)
    x = 3 * normal(4, 5, 6, 7) + 2
    layer.build(x.shape)
    layer.set_weights([normal(*weight.shape) for weight in layer.get_weights()])
    expected, original = layer(x), layers.LayerNormalization.call
    with prepare.quantizable_layer_normalization():
        assert layers.LayerNormalization.call is not original
        actual = layer(x)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert layers.LayerNormalization.call is original


def test_a_float32_copy_reaches_nested_and_wrapped_layers():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((4, 2))
        inner = keras.Model(inputs, layers.MultiHeadAttention(1, 2)(inputs, inputs))
        model = keras.Model(inputs, layers.Bidirectional(layers.GRU(3))(inner(inputs)))
        copy = prepare.float32_copy(model)
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert not prepare.uses_float32(model)
    assert prepare.uses_float32(copy)
    assert copy.layers[-1].forward_layer.compute_dtype == "float32"
    x = normal(3, 4, 2)
    # Computed in float32, which half precision cannot reach.
    assert copy(x).dtype == "float32" and model(x).dtype == "float16"
    np.testing.assert_allclose(copy(x), model(x), atol=5e-3)
    assert prepare.float32_copy(copy) is copy


# Limits


def comparison(relative=0.0, sqnr=np.inf, maximum=None):
    maximum = relative if maximum is None else maximum
    output = export.OutputDifference("y", maximum, maximum / 2, relative, 0.5, sqnr)
    return export.Comparison(10, (output,))


@pytest.mark.parametrize(
    ("precision", "good", "bad"),
    [
        ("float32", {"relative": 9e-5}, {"relative": 1.1e-4}),
        ("float32", {"relative": 1.0, "maximum": 9e-7}, {"relative": 1.0, "maximum": 2e-6}),
        ("float16", {"relative": 0.5, "sqnr": 20.1}, {"relative": 0.5, "sqnr": 19.9}),
        ("dynamic", {"relative": 0.5, "sqnr": 10.1}, {"relative": 0.5, "sqnr": 9.9}),
        ("int8", {"relative": 0.5, "sqnr": 10.1}, {"relative": 0.5, "sqnr": 9.9}),
        ("int8", {"relative": 0.009, "sqnr": -5}, {"relative": 0.011, "sqnr": -5}),
    ],
)
def test_limits_divide_files_where_they_say(precision, good, bad):
    check_limits(comparison(**good), precision)
    with pytest.raises(export.ExportMismatchError, match=f"The {precision} file disagrees"):
        check_limits(comparison(**bad), precision)


def test_a_tolerance_never_accepts_an_undefined_output():
    check_limits(comparison(relative=0.2, sqnr=-3), "int8", tolerance=0.2)
    with pytest.raises(export.ExportMismatchError, match="at most 0.2"):
        check_limits(comparison(relative=0.21, sqnr=90), "int8", tolerance=0.2)
