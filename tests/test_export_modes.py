"""Modes beyond the four basic ones: int16, weights alone, four bits, rules by layer, recipes."""

import json

import keras
import numpy as np
import pytest

import kdtoolkit.export as export
from kdtoolkit.export.names import layer_path
from kdtoolkit.export.quantize import recipe_for
from tests.test_export import normal, run_with_interpreter

pytestmark = [pytest.mark.export, pytest.mark.tensorflow]

layers = keras.layers


def named_net():
    """Names that differ by a number, as TensorFlow's scopes do, and a nested model."""
    keras.utils.set_random_seed(0)
    inner_image = keras.Input((4, 4, 4))
    inner = keras.Model(
        inner_image, layers.Conv2D(4, 2, padding="same", name="conv")(inner_image), name="block"
    )
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    y = layers.Conv2D(4, 3, padding="same", name="conv_1")(x)
    x = inner(layers.Add(name="add")([x, y]))
    x = layers.Dense(6, activation="gelu", name="dense")(layers.Flatten(name="flat")(x))
    return keras.Model(image, layers.Dense(5, name="dense_1")(x), name="net")


@pytest.fixture(scope="module")
def net():
    return named_net()


@pytest.fixture(scope="module")
def images():
    return normal(30, 6, 6, 3)


KERNELS = {"conv": 108, "conv_1": 144, "block/conv": 64, "dense": 384, "dense_1": 30}


def types(path):
    """Return the type of each kernel by its number of entries."""
    weights = export.inspect(path).weights
    found = {int(np.prod(weight.shape)): weight.dtype for weight in weights}
    return {name: found[size] for name, size in KERNELS.items()}


@pytest.mark.parametrize(
    ("quantize", "dtype", "lowest_db"),
    [
        ("weight_only_int8", "int8", 35),
        ("weight_only_int4", "int4", 12),
        ("dynamic_int4", "int4", 12),
        ("int16", "int8", 35),
    ],
)
def test_every_mode_stores_its_weights_and_says_so(
    net, images, tmp_path, quantize, dtype, lowest_db
):
    path = tmp_path / "n.tflite"
    report = export.litert(net, path, quantize=quantize, representative_data=images)
    assert report.quantize == quantize
    assert set(types(path).values()) == {dtype}
    assert report.full_integer == (quantize == "int16")
    noise = run_with_interpreter(path, images).astype("float64") - net(images)
    assert 10 * np.log10(np.var(net(images)) / np.mean(noise**2)) > lowest_db


def test_int16_is_finer_than_int8_at_both_ends(net, images, tmp_path):
    found = {}
    for mode in ("int8", "int16"):
        path = tmp_path / f"{mode}.tflite"
        report = export.litert(net, path, quantize=mode, io=mode, representative_data=images)
        assert [info.dtype for info in report.inputs + report.outputs] == [mode, mode]
        assert report.full_integer
        found[mode] = export.compare(net, path, images).sqnr_db
    assert found["int16"] > found["int8"] + 6


def test_rules_give_every_layer_its_mode_and_the_last_one_wins(net, images, tmp_path):
    path = tmp_path / "n.tflite"
    rules = [(".*", "weight_only_int8"), ("dense.*", "weight_only_int4"), ("dense_1", "float32")]
    report = export.litert(net, path, quantize=rules, check_data=images)
    assert report.quantize == "mixed"
    assert str(report).startswith("n.tflite: mixed, ")
    assert types(path) == {
        "conv": "int8",
        "conv_1": "int8",
        "block/conv": "int8",
        "dense": "int4",
        "dense_1": "float32",
    }


def test_rules_match_names_and_paths_in_full(net, tmp_path):
    path = tmp_path / "n.tflite"
    rules = [("conv", "dynamic"), ("block/.*", "float16")]
    export.litert(net, path, quantize=rules)
    assert types(path) == {
        "conv": "int8",
        "conv_1": "float32",
        "block/conv": "float16",
        "dense": "float32",
        "dense_1": "float32",
    }


def test_the_head_stays_float_in_an_integer_file(net, images, tmp_path):
    path = tmp_path / "n.tflite"
    rules = [(".*", "int8"), ("dense_1", "float32")]
    report = export.litert(net, path, quantize=rules, representative_data=images)
    assert types(path) == dict.fromkeys(KERNELS, "int8") | {"dense_1": "float32"}
    assert not report.full_integer
    with pytest.raises(ValueError, match="'mixed' needs `representative_data`"):
        export.litert(net, tmp_path / "o.tflite", quantize=rules)


def test_a_rule_without_a_layer_lists_the_layers(net, tmp_path):
    with pytest.raises(ValueError) as caught:
        export.litert(
            net, tmp_path / "n.tflite", quantize=[("conv", "dynamic"), ("norm|den", "float32")]
        )
    assert "['norm|den']" in str(caught.value)
    for name in ("'conv'", "'conv_1'", "'block/conv'", "'dense'", "'dense_1'", "'add'"):
        assert name in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_last_layer_has_a_name_even_without_weights(tmp_path):
    inputs = keras.Input((4,), name="x")
    x = layers.Softmax(name="chances")(layers.Dense(3, name="dense")(inputs))
    rules = [(".*", "dynamic"), ("chances", "float32")]
    export.litert(keras.Model(inputs, x), tmp_path / "n.tflite", quantize=rules)


def test_a_ready_recipe_is_used_as_it_is(net, images, tmp_path):
    # The quantiser matches names of tensors, which hold those of the layers.
    recipe = recipe_for([("/dense_1/", "weight_only_int8")])
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe))
    expected = dict.fromkeys(KERNELS, "float32") | {"dense": "int8"}
    for number, given in enumerate((recipe, file, str(file))):
        path = tmp_path / f"{number}.tflite"
        report = export.litert(net, path, quantize=given, check_data=images)
        assert report.quantize == "recipe"
        assert types(path) == expected
    with pytest.raises(ValueError, match="'recipe' needs `representative_data`"):
        export.litert(net, tmp_path / "n.tflite", quantize=recipe_for([(".*", "int8")]))
    with pytest.raises(ValueError, match="could not be quantised to 'recipe'"):
        export.litert(net, tmp_path / "n.tflite", quantize=[{"regex": ".*"}])
    # The quantiser itself says nothing about a recipe that changes nothing.
    with pytest.raises(ValueError, match="'recipe' found no weights"):
        export.litert(net, tmp_path / "n.tflite", quantize=recipe_for([("nothing", "dynamic")]))


class Named:
    layers = ()

    def __init__(self, name, *names):
        self.name = name
        self.layers = [Named(name) for name in names]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net_1/conv_1/convolution", "conv"),
        ("net_1/conv_1_2/convolution1", "conv_1"),
        ("net_1/block_1/conv_1/convolution", "block/conv"),
        ("net_1/dense_1/Gelu/mul_2;net_1/x_1/y", "dense"),
        ("arith.constant;net_12/dense_3/MatMul", "dense"),
        ("net/conv_1/Conv2D", "conv_1"),
        ("net/conv_1/inner/Conv2D", "conv_1"),
        ("net/Relu", None),
        ("other_1/conv_1/Conv2D", None),
        ("StatefulPartitionedCall_1:0", None),
    ],
)
def test_layers_are_found_in_the_names_of_both_keras(name, path):
    assert layer_path(name, Named("net", "conv", "conv_1")) == path


def test_calibration_shows_its_progress_only_if_asked(images, tmp_path, capfd):
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, layers.Conv2D(2, 3)(inputs))
    for verbose in (False, True):
        export.litert(
            model,
            tmp_path / "n.tflite",
            quantize="int8",
            representative_data=images,
            verbose=verbose,
            overwrite=True,
        )
        captured = capfd.readouterr()
        assert captured.err == ""
        assert (f"{len(images)}/{len(images)}" in captured.out) == verbose


class Pictures(keras.utils.PyDataset):
    def __init__(self, images):
        super().__init__()
        self.images = images

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.images[10 * index : 10 * index + 10], np.zeros(10)


def test_a_keras_dataset_can_be_the_data(net, images, tmp_path):
    found = []
    for name, data in (("array", images), ("dataset", Pictures(images))):
        path = tmp_path / f"{name}.tflite"
        export.litert(net, path, quantize="int8", representative_data=data)
        found.append(path.read_bytes())
    assert found[0] == found[1]
