"""The ensemble: numbers against NumPy, both outputs, saving, teaching, export."""

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

import kdtoolkit as kd
from kdtoolkit.ensemble import Ensemble
from tests.support import (
    CLASSES,
    FEATURES,
    Subclassed,
    arrays,
    crossentropy,
    data,
    dense,
    fit,
    largest_difference,
)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor).astype("float64")


def members(count=3, **kwargs):
    return [dense(4 + seed, seed, **kwargs) for seed in range(count)]


class Constant(keras.layers.Layer):
    """Returns the same logits for every example."""

    def __init__(self, logits, **kwargs):
        super().__init__(**kwargs)
        self.logits = logits

    def call(self, inputs):
        return keras.ops.zeros_like(inputs[:, :1]) + keras.ops.array(self.logits, "float32")


def constant(*logits):
    inputs = keras.Input((FEATURES,))
    return keras.Model(inputs, Constant(logits)(inputs))


@pytest.mark.core
def test_the_output_is_the_mean_of_the_members_probabilities_or_its_log():
    models, (x, _) = members(), data()
    mean = np.mean([softmax(numpy(model(x)), axis=-1) for model in models], axis=0)
    logits, probabilities = Ensemble(models)(x), Ensemble(models, output="probabilities")(x)
    np.testing.assert_allclose(numpy(logits), np.log(mean), atol=1e-6)
    np.testing.assert_allclose(numpy(probabilities), mean, atol=1e-7)


def test_classes_that_no_member_believes_in_stay_finite():
    extremes = [(0.0, -1000.0, 5.0), (0.0, -2000.0, 30.0)]
    found = numpy(Ensemble([constant(*z) for z in extremes])(data()[0]))[0]
    expected = logsumexp([log_softmax(z) for z in extremes], axis=0) - np.log(2)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_one_member_keeps_its_probabilities():
    (model,), (x, _) = members(1), data()
    expected = log_softmax(numpy(model(x)), axis=-1)
    np.testing.assert_allclose(numpy(Ensemble([model])(x)), expected, atol=1e-6)


def test_it_is_built_at_once_and_holds_every_weight_once():
    models = members()
    ensemble = Ensemble(models)
    assert ensemble.built and ensemble.members == models
    assert len(ensemble.weights) == sum(len(model.weights) for model in models)


def test_training_reaches_the_members_and_inference_does_not():
    ensemble, (x, _) = Ensemble(members(2, dropout=0.5)), data()
    still = [numpy(ensemble(x, training=False)) for _ in range(2)]
    assert np.array_equal(*still)
    assert np.array_equal(numpy(ensemble(x)), still[0])
    assert not np.array_equal(numpy(ensemble(x, training=True)), still[0])


def test_fitting_it_trains_every_member():
    models, (x, y) = members(2), data()
    before = [arrays(model) for model in models]
    ensemble = Ensemble(models)
    ensemble.compile("sgd", crossentropy())
    fit(ensemble, x, y)
    for model, old in zip(models, before, strict=True):
        assert largest_difference(arrays(model), old) > 0


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_saving_and_loading_is_bit_equal_with_members_of_several_kinds(output, tmp_path):
    x, _ = data()
    sequential = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)])
    subclassed = Subclassed()
    subclassed(x)
    ensemble = Ensemble([dense(8), sequential, subclassed], output=output, name="three")
    ensemble.save(tmp_path / "ensemble.keras")
    loaded = keras.models.load_model(tmp_path / "ensemble.keras")
    assert loaded.name == "three" and len(loaded.members) == 3
    assert np.array_equal(numpy(loaded(x)), numpy(ensemble(x)))


def test_the_config_makes_the_same_ensemble():
    first = Ensemble(members(), output="probabilities")
    second = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(first))
    assert second.get_config() == first.get_config()


def test_half_precision_members_are_averaged_in_single_precision():
    models, (x, _) = members(2, dtype="mixed_float16"), data()
    ensemble = Ensemble(models)
    assert keras.backend.standardize_dtype(ensemble(x).dtype) == "float32"


def test_it_teaches():
    ensemble, student, (x, y) = Ensemble(members()), dense(8, 7, norm=False), data()
    distiller = kd.Distiller(
        student=student, teacher=ensemble, transfers=[kd.Transfer(kd.losses.SoftCrossEntropy())]
    )
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy())
    before = arrays(ensemble)
    mean = np.mean([softmax(numpy(model(x)), axis=-1) for model in ensemble.members], axis=0)
    expected = -np.mean(np.sum(mean * log_softmax(numpy(student(x)), axis=-1), axis=-1))
    logs = fit(distiller, x, y, epochs=1).history
    assert logs["soft_cross_entropy"][0] == pytest.approx(expected, rel=1e-5)
    assert largest_difference(arrays(ensemble), before) == 0.0


def test_members_may_have_one_name(tmp_path):
    (x, _), models = data(), [dense(8, seed, name="generation") for seed in range(2)]
    ensemble = Ensemble(models)
    ensemble.save(tmp_path / "ensemble.keras")
    loaded = keras.models.load_model(tmp_path / "ensemble.keras")
    assert np.array_equal(numpy(loaded(x)), numpy(ensemble(x)))


@pytest.mark.export
@pytest.mark.tensorflow
@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_the_exported_file_agrees_with_keras(output, tmp_path):
    convnet = kd.models.convnet((8, 8, 1), CLASSES, filters=(4, 8), dropout=0.5, seed=0)
    mlp = kd.models.mlp((8, 8, 1), CLASSES, units=(8,), seed=1)
    ensemble = Ensemble([convnet, mlp], output=output)
    x = np.random.default_rng(0).normal(size=(20, 8, 8, 1)).astype("float32")
    kd.export.litert(ensemble, tmp_path / "ensemble.tflite", check_data=x)
    file = kd.export.LiteRTModel(tmp_path / "ensemble.tflite")
    np.testing.assert_allclose(file.predict(x), numpy(ensemble(x)), atol=1e-5)


REFUSED = {
    "no member": (lambda: [], ValueError, "one or more models"),
    "not a list": (lambda: dense(), ValueError, "must be a list"),
    "no model": (lambda: [dense(), "dense"], TypeError, "keras.Model objects"),
    "probabilities": (
        lambda: [dense(), keras.Sequential([dense(), keras.layers.Softmax()])],
        ValueError,
        r"models\[1\].*kd.as_logits",
    ),
    "the same twice": (lambda: [dense()] * 2, ValueError, "twice"),
    "other inputs": (
        lambda: [dense(), kd.models.mlp((FEATURES + 1,), CLASSES)],
        ValueError,
        r"\[\(6,\)\] and \[\(7,\)\]",
    ),
    "other classes": (lambda: [dense(), dense(classes=4)], ValueError, "same classes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_members_that_do_not_fit_are_refused_at_once(case):
    models, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        Ensemble(models())


def test_an_unknown_output_is_refused():
    with pytest.raises(ValueError, match="'logits', 'probabilities'"):
        Ensemble([dense()], output="labels")
