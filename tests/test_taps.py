"""Taps read inner tensors by path, in one forward pass, in every kind of model."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdtoolkit as kd
from tests.support import FEATURES, Subclassed, conv, data, dense, images

pytestmark = pytest.mark.core


def to_numpy(tensor):
    return ops.convert_to_numpy(tensor)


def test_a_functional_tap_equals_the_submodel_that_ends_there():
    model, (x, _) = conv(), images()
    read = kd.tap(model, ["stage1", "stage2"])(x)
    for name in ("stage1", "stage2"):
        expected = keras.Model(model.input, model.get_layer(name).output)(x)
        np.testing.assert_array_equal(to_numpy(read[name]), to_numpy(expected))
    np.testing.assert_array_equal(to_numpy(read["output"]), to_numpy(model(x)))


def test_an_input_tap_reads_what_goes_into_a_layer():
    model, (x, _) = conv(), images()
    read = kd.tap(model, ["logits:input", "features"])(x)
    np.testing.assert_array_equal(to_numpy(read["logits:input"]), to_numpy(read["features"]))


def test_a_nested_model_is_read_by_path():
    backbone = conv(name="backbone")
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(2.0), backbone])
    x, _ = images()
    read = kd.tap(model, ["backbone/stage2", "backbone"])(x)
    expected = keras.Model(backbone.input, backbone.get_layer("stage2").output)(2 * x)
    np.testing.assert_allclose(to_numpy(read["backbone/stage2"]), to_numpy(expected), rtol=1e-6)
    np.testing.assert_array_equal(to_numpy(read["backbone"]), to_numpy(read["output"]))


@pytest.mark.parametrize("built", [False, True])
def test_a_subclassed_model_is_read_by_attribute(built):
    model, (x, _) = Subclassed(), data()
    if built:
        model(x)
    read = kd.tap(model, ["trunk", "head"])(x)
    np.testing.assert_allclose(to_numpy(read["trunk"]), to_numpy(model.trunk(x)), rtol=1e-6)
    np.testing.assert_array_equal(to_numpy(read["head"]), to_numpy(read["output"]))


def test_a_composite_layer_inside_a_model_is_read():
    inputs = keras.Input((4, 8))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    model = keras.Model(inputs, layers.Dense(2)(attention(inputs, inputs)))
    x = np.random.default_rng(0).normal(size=(2, 4, 8)).astype("float32")
    read = kd.tap(model, ["attention/query", "attention"])(x)
    assert tuple(read["attention/query"].shape) == (2, 4, 2, 4)
    assert tuple(read["attention"].shape) == (2, 4, 8)


def test_a_bare_operation_is_read_by_its_name():
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, layers.Dense(2)(ops.relu(inputs)))
    name = next(op.name for op in model.operations if "relu" in op.name)
    x, _ = data()
    np.testing.assert_array_equal(to_numpy(kd.tap(model, [name])(x)[name]), np.maximum(x, 0))


def test_a_key_of_a_dict_output_is_a_path():
    inputs = keras.Input((FEATURES,))
    heads = {"class": layers.Dense(3)(inputs), "distillation": layers.Dense(3)(inputs)}
    model, (x, _) = keras.Model(inputs, heads), data()
    read = kd.tap(model, ["distillation"])(x)
    np.testing.assert_array_equal(
        to_numpy(read["distillation"]), to_numpy(model(x)["distillation"])
    )


def test_reading_leaves_no_trace_on_the_layers():
    model, (x, _) = conv(), images()
    layer = model.get_layer("stage1")
    kd.tap(model, ["stage1"])(x)
    assert "call" not in vars(layer)
    with pytest.raises(ValueError, match="has no layer"):
        kd.tap(model, ["stage1", "nowhere"])(x)
    assert "call" not in vars(layer)


def test_the_network_runs_once_for_any_number_of_taps():
    runs = []

    class Counting(layers.Layer):
        def call(self, inputs):
            runs.append(1)
            return inputs

    inputs = keras.Input((FEATURES,))
    h = Counting(name="count")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Dense(4, name="mid")(h)))
    x, _ = data()
    tapped = kd.tap(model, ["count", "mid", "out"])
    runs.clear()
    tapped(x)
    assert len(runs) == 1


def test_training_mode_reaches_the_network():
    model, (x, _) = dense(dropout=0.5), data()
    tapped = kd.tap(model, ["dropout", "norm"])
    kept = tapped(x, training=False)
    np.testing.assert_array_equal(to_numpy(kept["dropout"]), to_numpy(kept["norm"]))
    dropped = to_numpy(tapped(x, training=True)["dropout"])
    assert np.mean(dropped == 0) > 0.3


def test_a_missing_layer_is_named_with_near_names():
    model = keras.Sequential([keras.Input((8, 8, 1)), conv(name="backbone")])
    with pytest.raises(ValueError, match=r"no layer 'stage2'.*Near names: backbone/stage2"):
        kd.tap(model, ["stage2"])(images()[0])
    with pytest.raises(ValueError, match=r"no layer 'backbone/stge1'.*backbone/stage1"):
        kd.tap(model, ["backbone/stge1"])(images()[0])


def test_a_layer_that_runs_twice_is_refused():
    shared = layers.Dense(FEATURES, name="shared")
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, shared(shared(inputs)))
    with pytest.raises(ValueError, match="'shared'.* ran 2 times in one pass, expected once"):
        kd.tap(model, ["shared"])(data()[0])


def test_a_tapped_model_saves_and_loads(tmp_path):
    model, (x, _) = conv(), images()
    tapped = kd.tap(model, ["stage1"])
    tapped(x)
    tapped.save(tmp_path / "tapped.keras")
    loaded = keras.models.load_model(tmp_path / "tapped.keras")
    np.testing.assert_array_equal(to_numpy(loaded(x)["stage1"]), to_numpy(tapped(x)["stage1"]))
