"""Mutual learning: each student's own loss, updates at once and in turn, logs, refusals."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers

import kdtoolkit as kd
from tests import reference
from tests.support import CLASSES, FEATURES, arrays, crossentropy, data, dense, fit
from tests.support import largest_difference as difference

pytestmark = pytest.mark.core
UPDATES = ("simultaneous", "alternating")
ONE_BATCH = {"epochs": 1, "batch_size": 64, "shuffle": False}


def linear(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES)])


def cohort(students, optimizer=None, loss=True, **kwargs):
    distiller = kd.MutualDistiller(students=students, **kwargs)
    optimizer = keras.optimizers.SGD(0.1) if optimizer is None else optimizer
    distiller.compile(optimizer, crossentropy() if loss else None, metrics=["accuracy"])
    return distiller


# What a step computes ---------------------------------------------------------------------------


def targets_of(kind, logits, student, y):
    """Logits from which a student learns, with their shares, in float64 NumPy."""
    others = [z for index, z in enumerate(logits) if index != student]
    if kind == "each":
        return [(z, 1.0 / len(others)) for z in others]
    if kind == "others":
        return [(np.log(np.mean([reference.softmax(z) for z in others], axis=0)), 1.0)]
    if kind == "probabilities":
        return [(np.log(np.mean([reference.softmax(z) for z in logits], axis=0)), 1.0)]
    if kind == "logits":
        return [(np.mean(logits, axis=0), 1.0)]
    rows = np.arange(len(y))
    if kind == "naive":
        losses = [-np.log(reference.softmax(z))[rows, y] for z in logits]
        best = np.argmin(losses, axis=0)
        return [(np.array([logits[k][i] for i, k in enumerate(best)]), 1.0)]
    return [(np.min([z - z[rows, y][:, None] for z in logits], axis=0), 1.0)]


def mutual_learning(weights, x, y, kind, alternating, rate, temperature, weight, steps):
    """Linear students that teach each other, by hand: `[(kernel, bias), ...]` after some steps."""
    weights, x = [tuple(np.float64(w) for w in pair) for pair in weights], np.float64(x)
    labels = np.eye(CLASSES)[y]
    for _ in range(steps):
        said = [x @ kernel + bias for kernel, bias in weights]
        for k, (kernel, bias) in enumerate(weights):
            z = x @ kernel + bias
            slope = reference.softmax(z) - labels
            for target, share in targets_of(kind, said, k, y):
                p, q = reference.softmax(target / temperature), reference.softmax(z / temperature)
                slope += weight * share * temperature * (q - p)
            slope /= len(x)
            weights[k] = kernel - rate * x.T @ slope, bias - rate * slope.sum(axis=0)
            if alternating:
                said[k] = x @ weights[k][0] + weights[k][1]
    return weights


KINDS = [("each", 3), ("each", 2), ("others", 3), ("naive", 3), ("min_logit", 3), ("logits", 2)]


@pytest.mark.parametrize("updates", UPDATES)
@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_each_student_descends_its_own_loss_with_the_others_held_constant(kind, size, updates):
    (x, y), students = data(24), [linear(seed) for seed in range(size)]
    start = [student.get_weights() for student in students]
    settings = {"temperature": 2.0, "weight": 1.5}
    distiller = cohort(
        students, keras.optimizers.SGD(0.5), targets=kind, updates=updates, **settings
    )
    fit(distiller, x, y, **{**ONE_BATCH, "epochs": 3})
    alternating = updates == "alternating"
    expected = mutual_learning(start, x, y, kind, alternating, rate=0.5, steps=3, **settings)
    for student, (kernel, bias) in zip(students, expected, strict=True):
        np.testing.assert_allclose(student.get_weights()[0], kernel, atol=2e-6)
        np.testing.assert_allclose(student.get_weights()[1], bias, atol=2e-6)


def test_the_two_orders_of_updates_differ_so_that_the_test_above_means_something():
    (x, y), start = data(24), [linear(seed).get_weights() for seed in (0, 1)]
    settings = {"rate": 0.5, "temperature": 2.0, "weight": 1.5, "steps": 3}
    ends = [mutual_learning(start, x, y, "each", turn, **settings)[1][0] for turn in (False, True)]
    assert np.max(np.abs(ends[0] - ends[1])) > 1e-4


def test_twins_have_nothing_to_teach_each_other():
    (x, y), plain = data(), dense(8, 0, norm=False)
    plain.compile(keras.optimizers.SGD(0.1), crossentropy())
    fit(plain, x, y, shuffle=False)
    distiller = cohort([dense(8, 0, norm=False) for _ in range(2)])
    logs = fit(distiller, x, y, shuffle=False).history
    assert max(logs["student1_from_student2"]) < 1e-7
    for student in distiller.students.values():
        assert difference(arrays(plain), arrays(student)) < 1e-6


@pytest.mark.parametrize("updates", UPDATES)
def test_without_weight_each_trains_as_if_alone_with_its_own_regularisation(updates):
    x, y = data(30)
    weights = np.random.default_rng(2).uniform(size=len(x)).astype("float32")

    def network(seed):
        model = dense(8, seed, norm=False, l2=1e-2)
        h = layers.ActivityRegularization(l2=1e-2)(model.get_layer("hidden").output)
        return keras.Model(model.input, model.get_layer("logits")(h))

    alone = [network(seed) for seed in range(2)]
    for model in alone:
        model.compile(keras.optimizers.Adam(1e-2), crossentropy())
        fit(model, x, y, sample_weight=weights, shuffle=False)
    optimizer = keras.optimizers.Adam(1e-2)
    distiller = cohort([network(0), network(1)], optimizer, weight=0.0, updates=updates)
    logs = fit(distiller, x, y, sample_weight=weights, shuffle=False).history
    for model, student in zip(alone, distiller.students.values(), strict=True):
        assert difference(arrays(model), arrays(student)) < 1e-6
    expected = np.sum([model.history.history["loss"] for model in alone], axis=0)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


RUNS = {
    "eager": {"run_eagerly": True},
    "two steps at once": {"steps_per_execution": 2},
    "xla": {"jit_compile": True},
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("way", RUNS)
def test_every_way_of_running_the_alternating_step_trains_the_same(way):
    x, y = data(64)

    def run(**kwargs):
        distiller = kd.MutualDistiller(students=[dense(8, 0), dense(4, 1)], updates="alternating")
        distiller.compile(keras.optimizers.SGD(0.1), crossentropy(), **kwargs)
        fit(distiller, x, y, shuffle=False)
        return arrays(distiller)

    assert difference(run(jit_compile=False), run(**RUNS[way])) < 1e-6


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("updates", "targets"),
    [("simultaneous", "each"), ("alternating", "each"), ("alternating", "min_logit")],
)
def test_two_replicas_update_like_one(updates, targets, two_replicas):
    x, y = data(64)

    def run(scope):
        keras.utils.set_random_seed(0)
        with scope:
            students = [dense(8, seed, norm=False, l2=1e-3) for seed in range(2)]
            distiller = cohort(students, updates=updates, targets=targets)
        return fit(distiller, x, y, shuffle=False).history, arrays(distiller)

    one, two = run(contextlib.nullcontext()), run(two_replicas.scope())
    assert difference(one[1], two[1]) < 1e-6
    for name in one[0]:
        np.testing.assert_allclose(one[0][name], two[0][name], rtol=1e-5, atol=1e-6)


class Counting(keras.Model):
    """A network that counts its passes."""

    def __init__(self, units, seed):
        super().__init__()
        self.inner, self.passes = dense(units, seed), []

    def call(self, inputs, training=None):
        self.passes.append(training)
        return self.inner(inputs, training=training)


@pytest.mark.parametrize(
    ("updates", "passes"), [("simultaneous", [1, 1, 1]), ("alternating", [2, 2, 1])]
)
def test_a_step_runs_each_student_once_and_recomputes_only_what_has_changed(updates, passes):
    (x, y), students = data(16), [Counting(4, seed) for seed in range(3)]
    teacher = Counting(8, 3)
    teacher(x)
    distiller = kd.MutualDistiller(students=students, teacher=teacher, updates=updates)
    distiller.compile("sgd", crossentropy(), run_eagerly=True)
    distiller.train_on_batch(x, y)
    for network in (*students, teacher):
        network.passes.clear()
    distiller.train_on_batch(x, y)
    assert [len(student.passes) for student in students] == passes
    assert all(all(student.passes) for student in students)
    assert teacher.passes == [False]


class Silent(keras.Model):
    """A network whose `call` has no `training`, of which its layers learn from the context."""

    def __init__(self, units, seed):
        super().__init__()
        keras.utils.set_random_seed(seed)
        self.hidden, self.norm = layers.Dense(units, name="hidden"), layers.BatchNormalization()
        self.out = layers.Dense(CLASSES)

    def build(self, shape):
        self.hidden.build(shape)
        self.norm.build((None, self.hidden.units))
        self.out.build((None, self.hidden.units))
        self.built = True

    def call(self, x):
        return self.out(self.norm(self.hidden(x)))


class Louder(layers.Layer):
    """An augmentation that says nothing of `training` either."""

    def call(self, x, training=False):
        return x + 5.0 if training else x


@pytest.mark.parametrize("updates", UPDATES)
def test_students_and_their_augmentation_know_that_they_train_and_projectors_learn(updates):
    (x, y), layer = data(16), {"source_layer": "hidden", "student_layer": "hidden"}
    hint = kd.Transfer(kd.losses.Hint(), source="student2", student="student1", **layer)
    distiller = cohort(
        [Silent(4, 0), Silent(6, 1)],
        updates=updates,
        transfers=[hint],
        preprocess={"student1": Louder()},
    )
    fit(distiller, x, y, epochs=1)
    # Keras's own step on JAX has no context, also for a network alone.
    if keras.backend.backend() == "tensorflow" or updates == "alternating":
        assert all(np.any(arrays(s.norm)[2]) for s in distiller.students.values())
    projector = hint.own_layers[0]
    before = arrays(projector)
    fit(distiller, x, y, epochs=1)
    assert difference(before, arrays(projector)) > 0


def test_an_augmentation_of_one_student_acts_in_training_alone():
    (x, y), logs = data(16), {}
    for updates in UPDATES:
        twins = [dense(4, 0, norm=False) for _ in range(2)]
        distiller = cohort(
            twins, keras.optimizers.SGD(0.0), updates=updates, preprocess={"student1": Louder()}
        )
        logs = fit(distiller, x, y, epochs=1, validation_data=(x, y)).history
        assert abs(logs["student1_loss"][0] - logs["student2_loss"][0]) > 1e-3
        assert logs["val_student1_loss"] == pytest.approx(logs["val_student2_loss"])


@pytest.mark.parametrize("updates", UPDATES)
def test_students_without_shapes_get_their_weights_with_the_first_batch(updates):
    x, y = data(16)
    students = [keras.Sequential([layers.Dense(4), layers.Dense(CLASSES)]) for _ in range(2)]
    distiller = cohort(students, updates=updates)
    logs = fit(distiller, x, y, epochs=3).history
    assert logs["label_loss"][-1] < logs["label_loss"][0]


# Members ----------------------------------------------------------------------------------------


def test_a_frozen_network_is_one_more_member_of_the_cohort():
    (x, y), teacher = data(), dense(16, 7)
    distiller = cohort([dense(8, 0), dense(4, 1)], teacher={"large": teacher}, weight=0.9)
    before = arrays(teacher)
    logs = fit(distiller, x, y).history
    assert difference(before, arrays(teacher)) == 0.0
    assert {"student1_from_large", "student2_from_large", "student1_from_student2"} <= set(logs)
    weights = {float(keras.ops.convert_to_numpy(t.weight)) for t in distiller.transfers}
    assert weights == {np.float32(0.45)}


def test_a_cohort_learns_from_a_frozen_network_without_labels():
    (x, _), teacher = data(64), dense(16, 7)
    distiller = cohort([dense(8, 0), dense(4, 1)], loss=False, teacher=teacher)
    logs = fit(distiller, x, epochs=5).history
    assert logs["student1_from_teacher"][-1] < logs["student1_from_teacher"][0]
    assert "label_loss" not in logs


def test_other_transfers_join_the_mutual_ones():
    x, y = data()
    layer = {"source_layer": "hidden", "student_layer": "hidden"}
    edge = kd.Transfer(kd.losses.Hint(), source="student2", student="student1", **layer)
    distiller = cohort([dense(8, 0), dense(4, 1)], transfers=[edge], targets="min_logit")
    assert {"student1_hint", "student2_from_everyone"} <= set(fit(distiller, x, y).history)
    again = type(distiller).from_config(distiller.get_config())
    assert [t.name for t in again.transfers] == [t.name for t in distiller.transfers]


def test_each_student_has_an_optimizer_of_its_own_and_they_share_their_rate():
    x, y = data()
    distiller = cohort([dense(8, 0), dense(4, 1)], keras.optimizers.Adam(1e-2, global_clipnorm=0.1))
    optimizers = distiller.optimizer.optimizers
    assert len(optimizers) == 2 and {o.global_clipnorm for o in optimizers} == {0.1}
    # A loss never falls by 10, so the rate falls after every epoch but the first.
    lower = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0)
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    logs = fit(distiller, x, y, callbacks=[lower]).history
    assert [float(keras.ops.convert_to_numpy(o.learning_rate)) for o in optimizers] == [
        pytest.approx(5e-3)
    ] * 2
    logs = fit(distiller, x, y, callbacks=[halve]).history
    for name in ("student1", "student2"):
        np.testing.assert_allclose(logs[f"learning_rate_{name}"], [2.5e-3, 1.25e-3])
    assert [int(keras.ops.convert_to_numpy(o.iterations)) for o in optimizers] == [12, 12]
    optimizers[0].learning_rate = 1.0
    with pytest.raises(AttributeError, match="different learning rates"):
        _ = distiller.optimizer.learning_rate


# Logs and evaluation ----------------------------------------------------------------------------


def test_logs_are_means_over_examples_also_with_a_ragged_last_batch():
    x, y = data(40)
    distiller = cohort([dense(8, 0), dense(4, 1)], keras.optimizers.SGD(0.0))
    logs = {
        k: v[0] for k, v in fit(distiller, x, y, epochs=1, validation_data=(x, y)).history.items()
    }
    logits = [keras.ops.convert_to_numpy(m(x)) for m in distiller.students.values()]
    mean = np.log(np.mean([reference.softmax(z) for z in logits], axis=0))
    for name, z in zip(("student1", "student2", "ensemble"), (*logits, mean), strict=True):
        assert logs[f"val_{name}_accuracy"] == pytest.approx(np.mean(np.argmax(z, -1) == y))
        if name != "ensemble":
            expected = -np.mean(np.log(reference.softmax(z))[np.arange(len(y)), y])
            assert logs[f"val_{name}_loss"] == pytest.approx(expected, rel=1e-5)
    assert logs["val_loss"] == pytest.approx(logs["val_student1_loss"] + logs["val_student2_loss"])
    assert logs["label_loss"] == pytest.approx(logs["student1_loss"] + logs["student2_loss"])
    mutual = logs["student1_from_student2"] + logs["student2_from_student1"]
    assert logs["loss"] == pytest.approx(logs["label_loss"] + mutual)
    ensemble = keras.ops.convert_to_numpy(distiller.ensemble(x))
    np.testing.assert_allclose(ensemble, mean, atol=1e-5)
    np.testing.assert_allclose(distiller.predict(x, verbose=0)["ensemble"], mean, atol=1e-5)


def test_a_metric_object_counts_for_each_student_and_not_for_itself():
    (x, y), distiller = data(), kd.MutualDistiller(students=[dense(4, 0), dense(4, 1)])
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="right")
    distiller.compile("sgd", crossentropy(), metrics=[accuracy])
    logs = fit(distiller, x, y, epochs=1).history
    assert [name for name in logs if "right" in name] == [
        f"{name}_right" for name in ("ensemble", "student1", "student2")
    ]


def squared(y, z):
    return keras.ops.mean(keras.ops.square(keras.ops.cast(y, z.dtype) - z), axis=-1)


def test_a_function_as_label_loss_means_what_it_means_for_one_network():
    x, y = data()
    students = [dense(4, seed, classes=1) for seed in range(2)]
    edge = kd.Transfer(kd.losses.LogitsMSE(), source="a", student="b")
    distiller = kd.Distiller(student=dict(zip("ab", students, strict=True)), transfers=[edge])
    distiller.compile("sgd", squared)
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    for name, student in zip("ab", students, strict=True):
        student.compile("sgd", squared)
        assert logs[f"{name}_loss"] == pytest.approx(student.evaluate(x, y, verbose=0), rel=1e-5)


def test_loss_weights_go_to_the_outputs_that_they_name():
    (x, y), distiller = data(), deits()
    heads, weights = ("class", "distillation"), {"class": 2.0, "distillation": 0.5}
    distiller.compile(keras.optimizers.SGD(0.0), dict.fromkeys(heads, crossentropy()),
                      loss_weights=weights)  # fmt: skip
    logs = {name: values[0] for name, values in fit(distiller, x, y, epochs=1).history.items()}
    expected = sum(weights[h] * logs[f"student{k}_{h}_loss"] for h in heads for k in (1, 2))
    assert logs["label_loss"] == pytest.approx(expected, rel=1e-5)


def test_evaluation_changes_nothing_and_is_one_pass():
    (x, y), students = data(16), [Counting(4, seed) for seed in range(2)]
    distiller = kd.MutualDistiller(students=students)
    distiller.compile("sgd", crossentropy(), metrics=["accuracy"], run_eagerly=True)
    distiller.train_on_batch(x, y)
    for student in students:
        student.passes.clear()
    before = [arrays(student) for student in students]
    distiller.test_on_batch(x, y)
    assert [student.passes for student in students] == [[False], [False]]
    for weights, student in zip(before, students, strict=True):
        assert difference(weights, arrays(student)) == 0.0


def test_the_best_student_is_the_one_with_the_best_value_of_the_logs():
    x, y = data(64)
    distiller = cohort({"slow": dense(8, 0), "fast": dense(8, 1)}, weight=0.0)
    rates = {"slow": keras.optimizers.SGD(0.0), "fast": keras.optimizers.Adam(0.05)}
    with pytest.raises(ValueError, match="must be in the logs"):
        distiller.best_student()
    distiller.compile(rates, crossentropy(), metrics=["accuracy"])
    fit(distiller, x, y, epochs=20, validation_data=(x, y))
    fast = distiller.students["fast"]
    assert distiller.best_student() is fast
    assert distiller.best_student("val_loss") is fast
    assert distiller.best_student("val_loss", mode="max") is distiller.students["slow"]
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert distiller.best_student("accuracy", logs) is fast
    broken = {"slow_accuracy": float("nan"), "fast_accuracy": float("nan")}
    with pytest.raises(ValueError, match="NaN for every student"):
        distiller.best_student("accuracy", broken)


# Students with several outputs ------------------------------------------------------------------


def two_heads(units, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    h = layers.Dense(units, "relu", name="hidden")(inputs)
    heads = {name: layers.Dense(CLASSES, name=name)(h) for name in ("class", "distillation")}
    return keras.Model(
        inputs, {**heads, "fused": layers.Average(name="fused")(list(heads.values()))}
    )


def deits(**kwargs):
    distiller = kd.MutualDistiller(
        students=[two_heads(8, 0), two_heads(4, 1)],
        source_layer="distillation",
        student_layer="distillation",
        deployed="fused",
        **kwargs,
    )
    loss, metrics = {"class": crossentropy()}, {"fused": ["accuracy"]}
    distiller.compile(keras.optimizers.SGD(0.5), loss, metrics=metrics)
    return distiller


@pytest.mark.parametrize("updates", UPDATES)
def test_labels_reach_the_class_head_alone_and_peers_the_distillation_head(updates):
    (x, y), distiller = data(24), deits(updates=updates)
    start = [student.get_weights() for student in distiller.students.values()]
    logs = fit(distiller, x, y, **ONE_BATCH, validation_data=(x, y)).history
    names = ("student1_class_loss", "student2_from_student1", "val_student1_fused_accuracy")
    assert {*names, "val_ensemble_accuracy", "student1_fused_accuracy"} <= set(logs)
    student = distiller.students["student1"]
    # Student 1 is the first in both orders: its step sees both networks as they began.
    hidden = [np.maximum(x @ w[0] + w[1], 0) for w in start]
    z, peer = (hidden[0] @ start[0][4] + start[0][5], hidden[1] @ start[1][4] + start[1][5])
    slope = (reference.softmax(z) - reference.softmax(peer)) / len(x)
    expected = start[0][4] - 0.5 * hidden[0].T @ slope
    np.testing.assert_allclose(
        student.get_layer("distillation").get_weights()[0], expected, atol=1e-6
    )
    label = hidden[0] @ start[0][2] + start[0][3]
    slope = (reference.softmax(label) - np.eye(CLASSES)[y]) / len(x)
    expected = start[0][2] - 0.5 * hidden[0].T @ slope
    np.testing.assert_allclose(student.get_layer("class").get_weights()[0], expected, atol=1e-6)


def test_one_student_with_several_outputs_takes_labels_given_once():
    (x, y), student = data(), two_heads(8, 0)
    edge = kd.Transfer(kd.losses.HardTargets(), student_layer="distillation")
    distiller = kd.Distiller(student=student, teacher=dense(16, 7), transfers=[edge])
    distiller.compile("sgd", {"class": crossentropy()}, metrics={"fused": ["accuracy"]})
    logs = fit(distiller, x, y, validation_data=(x, y)).history
    assert logs["val_fused_accuracy"][-1] == pytest.approx(
        np.mean(np.argmax(keras.ops.convert_to_numpy(student(x)["fused"]), -1) == y)
    )


def test_the_ensemble_of_students_with_several_outputs_is_that_of_the_deployed_ones():
    (x, y), distiller = data(), deits()
    fused = [keras.ops.convert_to_numpy(m(x)["fused"]) for m in distiller.students.values()]
    expected = np.log(np.mean([reference.softmax(z) for z in fused], axis=0))
    got = keras.ops.convert_to_numpy(distiller.ensemble(x))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    accuracy = distiller.evaluate(x, y, verbose=0, return_dict=True)["ensemble_accuracy"]
    assert accuracy == pytest.approx(np.mean(np.argmax(expected, -1) == y))


# Saving and refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize("updates", UPDATES)
def test_a_saved_cohort_goes_on_to_the_bit(updates, tmp_path):
    (x, y), path = data(), tmp_path / "cohort.keras"
    students = [dense(8, seed, dropout=0.3) for seed in range(2)]
    distiller = cohort(students, keras.optimizers.Adam(1e-2), updates=updates, temperature=2.0)
    fit(distiller, x, y, shuffle=False)
    distiller.save(path)
    again = keras.models.load_model(path)
    configs = [{**d.get_config(), "students": None} for d in (again, distiller)]
    assert configs[0] == configs[1]
    ends = [fit(model, x, y, shuffle=False).history for model in (distiller, again)]
    assert ends[0] == ends[1]
    assert difference(arrays(distiller), arrays(again)) == 0.0


def shared_layers():
    layer = layers.Dense(4)

    def network():
        return keras.Sequential([keras.Input((FEATURES,)), layer, layers.Dense(CLASSES)])

    return [network(), network()]


def in_half_precision():
    return [dense(4, 0, dtype="mixed_float16"), dense(4, 1)]


REFUSED = {
    "one": (lambda: [dense()], {}, "two or more"),
    "none": (list, {}, "two or more"),
    "targets": (None, {"targets": "all"}, "`targets` must be one of"),
    "updates": (None, {"updates": "serial"}, "`updates` must be one of"),
    "weight": (None, {"weight": -1.0}, "`weight` of MutualDistiller"),
    "name": (lambda: {"ensemble": dense(4), "b": dense(4)}, {}, "all students together"),
    "deployed": (None, {"deployed": "fused"}, "`deployed` must be the key"),
    "shared": (shared_layers, {"updates": "alternating"}, "without common layers"),
    "idle teacher": (None, {"targets": "others", "teacher": dense}, "nothing reads"),
    "taken": (
        lambda: {"everyone": dense(4), "b": dense(4)},
        {"targets": "naive"},
        "Expected others",
    ),
    "label": (
        lambda: {"label": dense(4), "b": dense(4)},
        {},
        r"The logs would hold \['label_loss'\]",
    ),
    "val": (lambda: {"val": dense(4), "b": dense(4)}, {}, "The logs would hold"),
    "half": (in_half_precision, {"updates": "alternating"}, "in float16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused(case):
    make, kwargs, message = REFUSED[case]
    students = make() if make else [dense(4, 0), dense(4, 1)]
    kwargs = {key: dense(8, 2) if value is dense else value for key, value in kwargs.items()}
    with pytest.raises(ValueError, match=message):
        kd.MutualDistiller(students=students, **kwargs)


def test_alternating_updates_refuse_sources_that_remember():
    memory = {"past": kd.sources.PredictionMemory(follows="student1")}
    edge = kd.Transfer(kd.losses.SoftCrossEntropy(), source="past", student="student1")
    with pytest.raises(ValueError, match="sources that remember"):
        kd.MutualDistiller(
            students=[dense(4, 0), dense(4, 1)],
            teacher=memory,
            transfers=[edge],
            targets="others",
            updates="alternating",
        )


def test_ensembles_chosen_by_labels_say_when_there_are_none():
    (x, _), students = data(16), [dense(4, 0), dense(4, 1)]
    distiller = cohort(students, loss=False, targets="naive")
    with pytest.raises(ValueError, match="chooses by the labels"):
        fit(distiller, x)


def test_several_outputs_without_a_deployed_one_have_no_ensemble():
    distiller = kd.MutualDistiller(
        students=[two_heads(4, 0), two_heads(4, 1)],
        source_layer="class",
        student_layer="class",
    )
    with pytest.raises(ValueError, match="Expected `MutualDistiller"):
        _ = distiller.ensemble


def test_an_optimizer_that_cannot_be_copied_is_refused_with_a_way_out():
    class Rate(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1

    (x, y), distiller = data(16), kd.MutualDistiller(students=[dense(4, 0), dense(4, 1)])
    with pytest.raises(ValueError, match="a function that makes one"):
        distiller.compile(keras.optimizers.SGD(Rate()), crossentropy())
    distiller.compile(lambda: keras.optimizers.SGD(Rate()), crossentropy())
    fit(distiller, x, y, epochs=1)


def test_outputs_of_one_name_are_refused():
    with pytest.raises(ValueError, match="an output called 'a_class'"):
        kd.Distiller(student={"a": two_heads(4, 0), "a_class": dense(4)}, transfers=[])


def test_labels_by_student_are_refused():
    (x, y), distiller = data(16), cohort([dense(4, 0), dense(4, 1)])
    with pytest.raises(ValueError, match="learn from the same labels"):
        fit(distiller, x, {"student1": y, "student2": y})


def test_a_list_of_label_losses_is_refused():
    distiller = kd.MutualDistiller(students=[dense(4, 0), dense(4, 1)])
    with pytest.raises(ValueError, match="Each output takes one label loss"):
        distiller.compile("sgd", [crossentropy(), crossentropy()])
    with pytest.raises(ValueError, match="names no output"):
        distiller.compile("sgd", {"student1": None})


def test_a_dict_that_fits_no_student_is_refused():
    distiller = kd.MutualDistiller(students=[dense(4, 0), dense(4, 1)])
    with pytest.raises(ValueError, match="doesn't fit student 'student1'"):
        distiller.compile("sgd", {"class": crossentropy()})
