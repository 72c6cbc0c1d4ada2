"""The distiller's step: what it computes, what it trains, and what it leaves alone."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdtoolkit as kd
from tests import reference
from tests.support import (
    CLASSES,
    FEATURES,
    Subclassed,
    arrays,
    conv,
    crossentropy,
    data,
    dense,
    fit,
    images,
    largest_difference,
)

pytestmark = pytest.mark.core


def hinton(**kwargs):
    student, teacher = dense(8, 0), dense(32, 1)
    distiller = kd.Distiller(student=student, teacher=teacher, **kwargs)
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy(), metrics=["accuracy"])
    return distiller


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(1e-2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05)),
    "accumulation": lambda: keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weight_zero_trains_exactly_like_plain_fit(optimizer, weighted):
    (x, y), weights = data(), None
    if weighted:
        weights = np.random.default_rng(2).uniform(size=len(x)).astype("float32")
    plain = dense(8, 0, dropout=0.3, l2=1e-3)
    plain.compile(OPTIMIZERS[optimizer](), crossentropy())
    fit(plain, x, y, sample_weight=weights)
    transfer = kd.Transfer(kd.losses.SoftTargets(), weight=0.0)
    distiller = kd.Distiller(
        student=dense(8, 0, dropout=0.3, l2=1e-3), teacher=dense(32, 1), transfers=[transfer]
    )
    distiller.compile(OPTIMIZERS[optimizer](), crossentropy())
    fit(distiller, x, y, sample_weight=weights)
    assert largest_difference(arrays(plain), arrays(distiller.student)) == 0.0


def test_one_step_is_the_gradient_of_the_stated_loss():
    # A linear student: the gradient of the whole loss is known in closed form.
    (x, y), temperature, rate = data(16), 3.0, 0.5
    student = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES)])
    teacher = dense(16, 1)
    distiller = kd.Distiller(
        student=student,
        teacher=teacher,
        transfers=[kd.Transfer(kd.losses.SoftTargets(temperature=temperature), weight=0.7)],
        label_weight=0.3,
    )
    distiller.compile(keras.optimizers.SGD(rate), crossentropy())
    kernel, bias = (w.astype("float64") for w in student.get_weights())
    source = ops.convert_to_numpy(teacher(x, training=False)).astype("float64")
    logits = x @ kernel + bias
    q, q_t = reference.softmax(logits), reference.softmax(logits / temperature)
    gradient = 0.3 * (q - np.eye(CLASSES)[y])
    gradient += 0.7 * temperature * (q_t - reference.softmax(source / temperature))
    gradient /= len(x)
    fit(distiller, x, y, epochs=1, batch_size=len(x))
    new_kernel, new_bias = student.get_weights()
    np.testing.assert_allclose(new_kernel, kernel - rate * x.T @ gradient, atol=1e-6)
    np.testing.assert_allclose(new_bias, bias - rate * gradient.sum(0), atol=1e-6)


def test_the_logged_loss_is_the_weighted_sum_with_a_ragged_last_batch():
    distiller, (x, y) = hinton(), data(37)
    logs = fit(distiller, x, y, epochs=1).history
    expected = 0.1 * logs["label_loss"][0] + 0.9 * logs["soft_targets"][0]
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-6)


def test_logged_values_are_those_of_an_independent_reference():
    student, teacher, (x, y) = dense(8, 0, norm=False), dense(32, 1), data(37)
    distiller = kd.Distiller(student=student, teacher=teacher)
    # A rate of zero: every batch of the epoch sees the same weights.
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy())
    logs = fit(distiller, x, y, epochs=1).history
    z, v = ops.convert_to_numpy(student(x)), ops.convert_to_numpy(teacher(x))
    assert logs["soft_targets"][0] == pytest.approx(
        reference.kl_divergence(v, z, 4.0).mean(), rel=1e-5
    )
    label_loss = -np.log(reference.softmax(z.astype("float64"))[np.arange(37), y]).mean()
    assert logs["label_loss"][0] == pytest.approx(label_loss, rel=1e-5)


def test_the_teacher_is_bit_identical_after_training():
    distiller, (x, y) = hinton(), data()
    before = arrays(distiller.teachers["teacher"])
    fit(distiller, x, y)
    assert largest_difference(before, arrays(distiller.teachers["teacher"])) == 0.0


def test_the_student_moves_towards_the_teacher():
    distiller, (x, y) = hinton(label_weight=0.0), data()
    logs = fit(distiller, x, y, epochs=30).history
    assert logs["soft_targets"][-1] < 0.5 * logs["soft_targets"][0]


def test_each_teacher_runs_once_and_one_that_no_edge_reads_never():
    runs = {"used": 0, "idle": 0}

    @keras.saving.register_keras_serializable("tests")
    class Counting(keras.Model):
        def __init__(self, key):
            super().__init__()
            self.key, self.inner = key, dense(4)

        def call(self, inputs, training=None):
            assert not training
            runs[self.key] += 1
            return self.inner(inputs)

    teachers = {"used": Counting("used"), "idle": Counting("idle")}
    edges = [
        kd.Transfer(kd.losses.SoftTargets(), source="used"),
        kd.Transfer(kd.losses.LogitsMSE(), source="used"),
    ]
    distiller, (x, y) = (
        kd.Distiller(student=dense(4), teacher=teachers, transfers=edges),
        data(16),
    )
    distiller.compile("sgd", crossentropy(), run_eagerly=True)
    for teacher in teachers.values():
        teacher(x)
    distiller.train_on_batch(x, y)
    runs.update(used=0, idle=0)
    distiller.train_on_batch(x, y)
    assert runs == {"used": 1, "idle": 0}


def test_several_teachers_share_the_default_weight():
    teachers = {"large": dense(16, 1), "older": dense(16, 2)}
    distiller, (x, y) = kd.Distiller(student=dense(8), teacher=teachers), data()
    distiller.compile("sgd", crossentropy())
    logs = fit(distiller, x, y, epochs=1).history
    parts = [logs["soft_targets_large"][0], logs["soft_targets_older"][0]]
    assert logs["loss"][0] == pytest.approx(0.1 * logs["label_loss"][0] + 0.45 * sum(parts), 1e-5)


def test_a_feature_transfer_reads_named_layers_of_both():
    student, teacher, (x, y) = conv(4, 0), conv(4, 1), images()

    def squared(source, student):
        return ops.mean(ops.square(source - student), axis=(1, 2, 3))

    edge = kd.Transfer(squared, source_layer="stage2", student_layer="stage2", weight=2.0)
    distiller = kd.Distiller(student=student, teacher=teacher, transfers=[edge])
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy())
    logs = fit(distiller, x, y, epochs=1).history
    maps = [ops.convert_to_numpy(kd.tap(m, ["stage2"])(x)["stage2"]) for m in (teacher, student)]
    assert logs["squared"][0] == pytest.approx(np.mean((maps[0] - maps[1]) ** 2), rel=1e-5)


def test_gradient_stops_at_a_source_that_is_a_student():
    # Mutual learning: each peer moves as if the other were a frozen teacher.
    x, y = data(16)
    edges = [
        kd.Transfer(kd.losses.SoftTargets(1.0), source="a", student="b"),
        kd.Transfer(kd.losses.SoftTargets(1.0), source="b", student="a"),
    ]
    peers = {"a": dense(8, 0, norm=False), "b": dense(8, 5, norm=False)}
    mutual = kd.Distiller(student=peers, transfers=edges)
    mutual.compile(keras.optimizers.SGD(0.1), crossentropy())
    fit(mutual, x, y, epochs=1, batch_size=16)
    alone = kd.Distiller(
        student=dense(8, 0, norm=False),
        teacher=dense(8, 5, norm=False),
        transfers=[kd.Transfer(kd.losses.SoftTargets(1.0))],
    )
    alone.compile(keras.optimizers.SGD(0.1), crossentropy())
    fit(alone, x, y, epochs=1, batch_size=16)
    assert largest_difference(arrays(peers["a"]), arrays(alone.student)) < 1e-7


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_self_distillation_reads_two_places_of_one_network():
    inputs = keras.Input((FEATURES,))
    h = layers.Dense(8, "relu")(inputs)
    early, last = layers.Dense(CLASSES, name="early")(h), layers.Dense(CLASSES, name="last")(h)
    student = keras.Model(inputs, {"early": early, "last": last})
    edge = kd.Transfer(
        kd.losses.SoftTargets(), source="student", source_layer="last", student_layer="early"
    )
    distiller, (x, _) = kd.Distiller(student=student, transfers=[edge]), data()
    distiller.compile("sgd")
    before = student.get_layer("last").get_weights()
    fit(distiller, x)
    assert largest_difference(before, student.get_layer("last").get_weights()) == 0.0
    assert distiller.evaluate(x, verbose=0, return_dict=True)["soft_targets"] > 0


def test_each_student_has_its_own_optimizer_metrics_and_logs():
    (x, y), names = data(48), ["a", "b"]
    peers = {"a": dense(8, 0), "b": dense(8, 5)}
    edge = kd.Transfer(kd.losses.SoftTargets(), source="a", student="b")
    distiller = kd.Distiller(student=peers, transfers=[edge])
    optimizers = {
        "a": keras.optimizers.SGD(0.0, name="first"),
        "b": keras.optimizers.SGD(0.1, name="second"),
    }
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    distiller.compile(optimizers, crossentropy(), metrics=[accuracy])
    before = peers["a"].get_layer("hidden").get_weights()
    logs = fit(distiller, x, y, validation_data=(x, y)).history
    assert largest_difference(before, peers["a"].get_layer("hidden").get_weights()) == 0.0
    assert {"b_soft_targets", "label_loss", "loss"} <= set(logs)
    for name in names:
        peers[name].compile(loss=crossentropy(), metrics=["accuracy"])
        alone = peers[name].evaluate(x, y, verbose=0, return_dict=True)
        assert logs[f"val_{name}_accuracy"][-1] == pytest.approx(alone["accuracy"])
        assert logs[f"val_{name}_loss"][-1] == pytest.approx(alone["loss"], rel=1e-5)
    assert distiller.predict(x, verbose=0)["b"].shape == (len(x), CLASSES)
    with pytest.raises(ValueError, match=r"has the students \['a', 'b'\]"):
        _ = distiller.student


def test_predict_and_call_are_the_students():
    distiller, (x, _) = hinton(), data()
    expected = ops.convert_to_numpy(distiller.student(x))
    np.testing.assert_allclose(distiller.predict(x, verbose=0), expected, atol=1e-6)
    np.testing.assert_array_equal(ops.convert_to_numpy(distiller(x)), expected)


def test_evaluate_equals_the_students_own():
    distiller, (x, y) = hinton(), data()
    fit(distiller, x, y)
    ours = distiller.evaluate(x, y, verbose=0, return_dict=True)
    distiller.student.compile(loss=crossentropy(), metrics=["accuracy"])
    theirs = distiller.student.evaluate(x, y, verbose=0, return_dict=True)
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_unlabelled_training_may_be_validated_with_labels():
    distiller, (x, y) = kd.Distiller(student=dense(8), teacher=dense(32, 1)), data()
    distiller.compile("sgd", metrics=["accuracy"])
    logs = fit(distiller, x, validation_data=(x, y)).history
    assert set(logs) == {"loss", "soft_targets", "val_loss", "val_soft_targets", "val_accuracy"}
    distiller.student.compile(loss=crossentropy(), metrics=["accuracy"])
    accuracy = distiller.student.evaluate(x, y, verbose=0, return_dict=True)["accuracy"]
    assert logs["val_accuracy"][-1] == pytest.approx(accuracy)


def test_subclassed_networks_are_connected_by_the_first_batch():
    distiller, (x, y) = kd.Distiller(student=Subclassed(4), teacher=Subclassed(16)), data()
    distiller.compile("adam", crossentropy())
    logs = fit(distiller, x, y, epochs=3).history
    assert logs["loss"][-1] < logs["loss"][0]
    assert distiller.built and distiller.transfers[0].built


def test_ids_and_a_wrapped_input_are_taken_out_of_the_batch():
    seen = []

    @keras.saving.register_keras_serializable("tests")
    def recording(source, student, example_id):
        seen.append(tuple(example_id.shape))
        return ops.mean(ops.square(source - student), axis=-1) + 0 * ops.cast(
            example_id, student.dtype
        )

    distiller, (x, y) = (
        kd.Distiller(student=dense(8), teacher=dense(8, 1), transfers=[kd.Transfer(recording)]),
        data(),
    )
    distiller.compile("sgd", crossentropy())
    fit(distiller, kd.data.with_ids(x), y)
    assert seen and all(len(shape) == 1 for shape in seen)


def test_losses_may_see_labels_and_progress_but_evaluation_stays_the_students():
    def late(source, student, labels, progress, epoch):
        hot = ops.one_hot(ops.cast(labels, "int32"), CLASSES)
        return progress * ops.sum(hot * ops.square(source - student), axis=-1) + 0 * epoch

    distiller, (x, y) = (
        kd.Distiller(student=dense(8), teacher=dense(8, 1), transfers=[kd.Transfer(late)]),
        data(),
    )
    distiller.compile("sgd", crossentropy())
    logs = fit(distiller, x, y, epochs=4).history
    assert logs["late"][0] == 0.0
    assert logs["late"][3] > 0.0
    assert "val_late" not in fit(distiller, x, y, epochs=1, validation_data=(x, y)).history


def test_preprocess_gives_a_network_its_own_view():
    teacher = conv(4, 1, size=16)
    distiller = kd.Distiller(
        student=conv(4, 0, size=8),
        teacher=teacher,
        preprocess={"teacher": layers.UpSampling2D(2)},
    )
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy())
    x, y = images(size=8)
    logs = fit(distiller, x, y, epochs=1).history
    z = ops.convert_to_numpy(distiller.student(x))
    v = ops.convert_to_numpy(teacher(x.repeat(2, 1).repeat(2, 2)))
    expected = reference.kl_divergence(v, z, 4.0).mean()
    assert logs["soft_targets"][0] == pytest.approx(expected, rel=1e-3)


def test_weights_may_be_changed_by_assignment():
    distiller = hinton()
    distiller.label_weight = 0.5
    distiller.transfers[0].weight = 0.25
    assert float(distiller.label_weight) == 0.5
    assert float(distiller.transfers[0].weight) == 0.25
    with pytest.raises(ValueError, match="`label_weight` of Distiller must be .* >= 0"):
        distiller.label_weight = -1


def test_a_run_goes_on_bit_equal_after_saving_with_dropout(tmp_path):
    (x, y) = data()
    distiller = kd.Distiller(student=dense(8, 0, dropout=0.4), teacher=dense(32, 1))
    distiller.compile(keras.optimizers.Adam(1e-2), crossentropy(), metrics=["accuracy"])
    fit(distiller, x, y)
    distiller.label_weight = 0.3
    distiller.save(tmp_path / "run.keras")
    loaded = keras.models.load_model(tmp_path / "run.keras")
    for model in (distiller, loaded):
        fit(model, x, y, shuffle=False)
    assert largest_difference(arrays(distiller), arrays(loaded)) == 0.0
    assert float(loaded.label_weight) == pytest.approx(0.3)


def test_optimizers_per_student_are_saved_too(tmp_path):
    (x, y) = data()
    edge = kd.Transfer(kd.losses.SoftTargets(), source="a", student="b")
    distiller = kd.Distiller(student={"a": dense(8, 0), "b": dense(8, 5)}, transfers=[edge])
    distiller.compile(
        {"a": keras.optimizers.Adam(name="one"), "b": keras.optimizers.SGD(0.1, 0.9, name="two")},
        crossentropy(),
    )
    fit(distiller, x, y)
    distiller.save(tmp_path / "run.keras")
    loaded = keras.models.load_model(tmp_path / "run.keras")
    for model in (distiller, loaded):
        fit(model, x, y, shuffle=False)
    assert largest_difference(arrays(distiller), arrays(loaded)) == 0.0


@pytest.mark.core
@pytest.mark.parametrize("way", ["fitted", "loaded"])
def test_networks_that_were_compiled_before_keep_their_metrics_to_themselves(way, tmp_path):
    x, y = data()
    teacher, student = dense(8, 1), dense(4, 0)
    for network in (teacher, student):
        network.compile("sgd", crossentropy(), metrics=["accuracy"])
        if way == "fitted" or network is student:
            fit(network, x, y, epochs=1)
    if way == "loaded":
        teacher.save(tmp_path / "teacher.keras")
        teacher = keras.models.load_model(tmp_path / "teacher.keras")
    distiller = kd.Distiller(student=student, teacher=teacher)
    distiller.compile("sgd", crossentropy(), metrics=["accuracy"])
    logs = {name: values[0] for name, values in fit(distiller, x, y, epochs=1).history.items()}
    assert set(logs) == {"loss", "label_loss", "soft_targets", "accuracy"}
    expected = 0.1 * logs["label_loss"] + 0.9 * logs["soft_targets"]
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    assert len([metric for metric in distiller.metrics if metric.name == "loss"]) == 1


def test_a_function_without_a_name_is_a_loss_too():
    far = kd.Transfer(lambda source, student: ops.mean(ops.abs(source - student), axis=-1))
    distiller = kd.Distiller(student=dense(4, 0), teacher=dense(8, 1), transfers=[far])
    distiller.compile("sgd")
    assert set(fit(distiller, data()[0]).history) == {"loss", "function"}
