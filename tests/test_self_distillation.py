"""Self-distillation from the best epoch: Algorithm 1 re-enacted, and what users may do with it."""

import keras
import numpy as np
import pytest
from keras import layers

import kdtoolkit as kd
from tests import algorithm1
from tests.reference import softmax
from tests.support import (
    CLASSES,
    FEATURES,
    crossentropy,
    data,
    dense,
    fit,
    largest_difference,
)

SETTINGS = {"epochs": 9, "batch": 10, "patience": 2, "momentum": 0.9, "rate": 0.2}


def tanh_network(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    hidden = layers.Dense(5, "tanh")(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES)(hidden))


class Watch(keras.callbacks.Callback):
    """Keeps what each epoch left: the targets, whether they are new, the weights, the rate."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.record = x, y, []

    def on_epoch_end(self, epoch, logs=None):
        distiller = self.model
        context = {"labels": self.y, "example_id": np.arange(len(self.x), dtype="int32")}
        output = distiller.student(self.x)
        view = distiller.source.read(lambda: {"output": output, "taps": {}}, output, context)
        self.record.append(
            {
                "stored": softmax(keras.ops.convert_to_numpy(view["output"]).astype("float64")),
                "accuracy": logs["val_accuracy"],
                "improved": bool(logs["teacher_updated"]),
                "weights": [np.array(w) for w in distiller.student.get_weights()],
                "rate": float(distiller.optimizer.learning_rate),
            }
        )


def both(previous=None, seed=6):
    """The same run by NumPy and by the package."""
    x, y = data(40)
    validation = data(30, seed=5)
    student = tanh_network(seed)
    reference = algorithm1.train(
        algorithm1.Network(student.get_weights()),
        (x.astype("float64"), y),
        validation,
        previous=previous and algorithm1.Network(previous.get_weights()),
        **SETTINGS,
    )
    distiller = kd.SelfDistiller(student=student, teacher=previous)
    optimizer = keras.optimizers.SGD(SETTINGS["rate"], SETTINGS["momentum"])
    distiller.compile(optimizer, crossentropy(), metrics=["accuracy"])
    watch = Watch(x, y)
    rewind = kd.callbacks.RewindOnPlateau(
        patience=SETTINGS["patience"], stop_patience=None, restore=False
    )
    fit(
        distiller,
        x,
        y,
        batch_size=SETTINGS["batch"],
        epochs=SETTINGS["epochs"],
        shuffle=False,
        validation_data=validation,
        callbacks=[kd.callbacks.BestTeacher(), rewind, watch],
    )
    return reference, watch.record


@pytest.mark.core
@pytest.mark.parametrize("generation", [1, 2])
def test_every_epoch_agrees_with_algorithm_1(generation):
    previous = tanh_network(7) if generation == 2 else None
    reference, ours = both(previous)
    for expected, found in zip(reference, ours, strict=True):
        assert found["improved"] == expected["improved"]
        np.testing.assert_allclose(found["accuracy"], expected["accuracy"], atol=1e-6)
        np.testing.assert_allclose(found["stored"], expected["stored"], atol=1e-6)
        assert largest_difference(found["weights"], expected["weights"]) < 2e-6
        np.testing.assert_allclose(found["rate"], expected["rate"], rtol=1e-6)
    # The run has what it is to show: new targets, an epoch without, a rewind.
    assert sum(e["improved"] for e in reference) >= 2
    assert not all(e["improved"] for e in reference)
    assert any(e["rewound"] for e in reference)
    assert largest_difference([reference[0]["stored"]], [reference[-1]["stored"]]) > 0.01


def compiled(distiller, rate=0.1):
    distiller.compile(keras.optimizers.SGD(rate), crossentropy(), metrics=["accuracy"])
    return distiller


def test_arrays_and_validation_are_enough():
    x, y = data(40)
    distiller = compiled(kd.SelfDistiller(student=dense()))
    history = fit(distiller, x, y, validation_split=0.25, epochs=3).history
    assert history["teacher_updated"][0] == 1.0
    assert distiller.source.score == pytest.approx(max(history["val_accuracy"]))


def test_the_first_epoch_is_plain_training():
    x, y = data(40)
    validation = data(20, seed=3)
    distiller = compiled(kd.SelfDistiller(student=dense(dropout=0.2)))
    fit(distiller, x, y, validation_data=validation, epochs=1)
    plain = compiled(dense(dropout=0.2))
    fit(plain, x, y, validation_data=validation, epochs=1)
    assert largest_difference(distiller.student.get_weights(), plain.get_weights()) < 1e-6


@pytest.mark.parametrize("source", [pytest.param("snapshot", marks=pytest.mark.core), "memory"])
def test_a_saved_self_distiller_is_the_same_again(source, tmp_path):
    x, y = data(32)
    distiller = kd.SelfDistiller(
        student=dense(), teacher=dense(16, 1), source=source, teacher_share=0.3, normalise=True
    )
    compiled(distiller)
    fit(distiller, x, y, epochs=1, validation_split=0.25)
    distiller.save(tmp_path / "self.keras")
    loaded = keras.models.load_model(tmp_path / "self.keras")
    assert isinstance(loaded, kd.SelfDistiller)
    first, second = distiller.get_config(), loaded.get_config()
    models = ("student", "teacher", "source")
    assert {k: second[k] for k in second if k not in models} == {
        k: first[k] for k in first if k not in models
    }
    assert type(loaded.source) is type(distiller.source)
    assert largest_difference(loaded.get_weights(), distiller.get_weights()) == 0
    for model in (distiller, loaded):
        fit(model, x, y, epochs=2, initial_epoch=1, validation_split=0.25, shuffle=False)
    assert largest_difference(loaded.get_weights(), distiller.get_weights()) == 0


def weights_of(distiller):
    own = [float(t.weight) for t in distiller.transfers]
    return [float(distiller.label_weight), *own]


def test_shares_and_weights_are_those_of_the_equations():
    assert weights_of(kd.SelfDistiller(student=dense())) == [0.5, 0.5]
    with_teacher = kd.SelfDistiller(student=dense(), teacher=dense(seed=1))
    assert weights_of(with_teacher) == [0.5, 0.5, 1.0]
    halved = kd.SelfDistiller(student=dense(), teacher=dense(seed=1), normalise=True)
    assert weights_of(halved) == [0.25, 0.25, 0.5]
    halved.teacher_share = 0.8
    np.testing.assert_allclose(weights_of(halved), [0.1, 0.4, 0.5], rtol=1e-6)
    assert halved.teacher_share == pytest.approx(0.8)
    alone = kd.SelfDistiller(student=dense(), normalise=True, teacher_share=0.25)
    assert weights_of(alone) == [0.75, 0.25]


@pytest.mark.core
def test_ps_kd_is_a_rising_share_of_the_epoch_before():
    x, y = data(32)
    distiller = compiled(kd.SelfDistiller(student=dense(norm=False), teacher_share=0.0), 0.0)
    epochs = 4
    rising = kd.callbacks.Schedule(
        distiller, "teacher_share", lambda epoch: 0.8 * (epoch + 1) / epochs, name="teacher_share"
    )
    history = fit(
        distiller, x, y, epochs=epochs, callbacks=[kd.callbacks.PeriodicTeacher(), rising]
    ).history
    np.testing.assert_allclose(history["teacher_share"], [0.2, 0.4, 0.6, 0.8], rtol=1e-6)
    logits = keras.ops.convert_to_numpy(distiller.student(x)).astype("float64")
    p, hot = softmax(logits), np.eye(CLASSES)[y]
    # With a rate of 0 the student stays, and the epoch before said what it says now.
    target = (1 - 0.8) * hot + 0.8 * p
    expected = -np.mean(np.sum(target * np.log(p), axis=-1))
    np.testing.assert_allclose(history["loss"][-1], expected, rtol=1e-5)


def test_the_deployed_student_is_itself_alone():
    distiller = kd.SelfDistiller(student=dense(), source="snapshot", teacher=dense(seed=1))
    assert distiller.student.count_params() == dense().count_params()
    trained = {id(v) for v in distiller.trainable_variables}
    assert trained == {id(v) for v in distiller.student.trainable_variables}


def test_self_distillation_says_what_is_missing():
    x, y = data(16)
    with pytest.raises(ValueError, match="there is no validation data.*PeriodicTeacher"):
        fit(compiled(kd.SelfDistiller(student=dense())), x, y)
    with pytest.raises(ValueError, match="`source` must be one of.*'best'"):
        kd.SelfDistiller(student=dense(), source="best")
    with pytest.raises(ValueError, match="`teacher_share` of SelfDistiller.*<= 1"):
        kd.SelfDistiller(student=dense(), teacher_share=1.5)
    with pytest.raises(ValueError, match="trains one student.*kd.Distiller"):
        kd.SelfDistiller(student={"a": dense(), "b": dense(seed=1)})
    distiller = kd.SelfDistiller(student=dense())
    distiller.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match=r"nothing measures it.*compile\(metrics=\['accuracy'\]\)"):
        fit(distiller, x, y, validation_split=0.25)


def test_the_added_best_teacher_agrees_with_the_best_weights():
    x, y = data(40)
    distiller = compiled(kd.SelfDistiller(student=dense()))
    rewind = kd.callbacks.RewindOnPlateau("val_loss", patience=2)
    fit(distiller, x, y, epochs=4, validation_split=0.25, callbacks=[rewind])
    assert distiller.source.score == pytest.approx(rewind.best_score)
