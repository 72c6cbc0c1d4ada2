"""Models of tf_keras, which tensorflow-model-optimization works on, are exported as they are."""

import importlib.util

import numpy as np
import pytest

import kdtoolkit.export as export
from kdtoolkit.export.graph import describe, is_tf_keras
from kdtoolkit.tfmot import load
from tests.test_export import normal, small_model

tf_keras = pytest.importorskip("tf_keras")

pytestmark = [pytest.mark.export, pytest.mark.tensorflow]

layers = tf_keras.layers


@pytest.fixture
def tfmot():
    """The package; its import would change the environment of all tests behind these."""
    if importlib.util.find_spec("tensorflow_model_optimization") is None:
        pytest.skip("tensorflow-model-optimization is not installed")
    return load()


def old_net():
    tf_keras.utils.set_random_seed(0)
    return tf_keras.Sequential(
        [
            layers.Input((6, 6, 3), name="image"),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3, name="logits"),
        ],
        name="old",
    )


@pytest.fixture(scope="module")
def images():
    return normal(30, 6, 6, 3)


def test_tf_keras_models_are_told_from_others():
    assert is_tf_keras(old_net())
    assert not is_tf_keras(small_model())
    assert not is_tf_keras(layers.Dense(2)) and not is_tf_keras(3)


@pytest.mark.parametrize(
    ("quantize", "dtype"),
    [
        (None, "float32"),
        ("int8", "int8"),
        ([("conv", "weight_only_int8"), ("logits", "float16")], "float16"),
    ],
)
def test_a_plain_model_goes_the_same_way(images, tmp_path, quantize, dtype):
    model = old_net()
    report = export.litert(
        model, tmp_path / "n.tflite", quantize=quantize, representative_data=images
    )
    assert [info.name for info in report.inputs] == ["image"]
    assert [info.name for info in report.outputs] == ["logits"]
    assert report.parameters == model.count_params() == (3 * 3 * 3 * 4 + 4) + 4 * 4 + (64 * 3 + 3)
    assert dtype in report.tensor_bytes
    predicted = export.LiteRTModel(report.path).predict(images)
    assert np.abs(predicted - model(images, training=False)).max() == pytest.approx(
        report.max_difference, rel=1e-5
    )
    compared = export.compare(model, report.path, images)
    assert compared.max_difference == report.max_difference
    other = tf_keras.models.clone_model(model)
    assert export.compare(other, report.path, images).sqnr_db < 5


def test_several_inputs_and_outputs_keep_their_names(tmp_path):
    first, second = tf_keras.Input((4,), name="zebra"), tf_keras.Input((4,), name="ant")
    outputs = {"zoo": layers.Dense(2)(first), "hill": layers.Dense(2)(second)}
    model = tf_keras.Model({"zebra": first, "ant": second}, outputs)
    x = {"zebra": normal(5, 4, seed=1), "ant": normal(5, 4, seed=2)}
    export.litert(model, tmp_path / "n.tflite", check_data=x)
    predicted = export.LiteRTModel(tmp_path / "n.tflite").predict(x)
    for name, expected in model(x).items():
        np.testing.assert_allclose(predicted[name], expected, atol=1e-5)


def test_a_pruned_model_keeps_its_zeros(tfmot, images, tmp_path):
    pruning = tfmot.sparsity.keras
    schedule = pruning.ConstantSparsity(0.75, begin_step=0, frequency=1)
    model = pruning.prune_low_magnitude(old_net(), pruning_schedule=schedule)
    model.compile("sgd", "mse")
    model.fit(images, normal(30, 3), verbose=0, callbacks=[pruning.UpdatePruningStep()])
    stripped = pruning.strip_pruning(model)
    path = tmp_path / "n.tflite"
    for quantize in (None, "int8"):
        export.litert(stripped, path, quantize=quantize, representative_data=images, overwrite=True)
        assert export.inspect(path).sparsity == pytest.approx(0.75, abs=0.03)


def test_a_clustered_model_keeps_its_values(tfmot, tmp_path):
    clustering = tfmot.clustering.keras
    model = clustering.cluster_weights(
        old_net(),
        number_of_clusters=4,
        cluster_centroids_init=clustering.CentroidInitialization.LINEAR,
    )
    export.litert(clustering.strip_clustering(model), tmp_path / "n.tflite")
    weights = {w.shape: w.distinct for w in export.inspect(tmp_path / "n.tflite").weights}
    assert weights[(3, 64)] <= 4


def test_a_quantisation_aware_model_brings_its_ranges(tfmot, images, tmp_path):
    model = tfmot.quantization.keras.quantize_model(old_net())
    model.compile("sgd", "mse")
    model.fit(images, normal(30, 3), verbose=0, epochs=2)
    report = export.litert(
        model, tmp_path / "n.tflite", quantize="int8", check_data=images, io="int8"
    )
    assert report.full_integer
    assert report.agreement > 0.9
    with pytest.raises(ValueError, match="Pass quantize='int8'"):
        export.litert(model, tmp_path / "f.tflite")


def test_what_cannot_be_exported_names_the_way_out(tmp_path):
    class Subclassed(tf_keras.Model):
        def call(self, x):
            return 2 * x

    model = Subclassed()
    model(normal(2, 3))
    with pytest.raises(ValueError, match="functional or sequential"):
        describe(model)
    tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        mixed = old_net()
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    with pytest.raises(ValueError, match="under the dtype policy 'float32'"):
        export.litert(mixed, tmp_path / "n.tflite")
    with pytest.raises(ValueError, match="is not built"):
        export.litert(tf_keras.Sequential([layers.Dense(2)]), tmp_path / "n.tflite")
