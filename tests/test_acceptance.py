"""T1 to T16: what a distiller must do and `keras.distillation` (3.15.1) doesn't.

Where it is cheap, a test also shows that `keras.distillation` still fails, so that we notice when
it is mended.
"""

import os

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdtoolkit as kd
from tests import reference
from tests.helpers import gradient
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

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="needs the TensorFlow backend"
)
# keras.distillation came with Keras 3.12; its defects are those of the version that was measured.
theirs = getattr(keras, "distillation", None)


def logits(classes=10, examples=64, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(scale=3.0, size=(examples, classes)).astype("float32") for _ in "st")


@pytest.mark.core
def test_t1_the_default_loss_is_hintons():
    student, teacher = logits()
    expected = reference.kl_divergence(teacher, student, 3.0).mean()
    ours = float(kd.losses.SoftTargets(temperature=3.0)(teacher, student))
    assert ours == pytest.approx(expected, rel=1e-6)
    if theirs:
        default = theirs.LogitsDistillation(temperature=3.0).compute_loss(teacher, student)
        assert abs(float(default) - expected) / expected > 0.5


@pytest.mark.core
def test_t2_the_gradient_is_hintons():
    student, teacher = logits()
    loss = kd.losses.SoftTargets(temperature=3.0)
    found = gradient(lambda s: loss(teacher, s), student)
    soft = [reference.softmax(z.astype("float64") / 3.0) for z in (student, teacher)]
    expected = 3.0 * (soft[0] - soft[1]) / len(student)
    cosine = np.sum(found * expected) / (np.linalg.norm(found) * np.linalg.norm(expected))
    assert cosine > 0.999999
    np.testing.assert_allclose(found, expected, atol=1e-6)


IMITATING = [
    kd.losses.SoftTargets(),
    kd.losses.SoftTargets(standardise=True),
    kd.losses.SoftCrossEntropy(),
    kd.losses.LogitsMSE(),
    kd.losses.DecoupledKD(),
    kd.losses.DIST(),
    kd.losses.MixedTargets(label_share=0.0),
]


@pytest.mark.core
@pytest.mark.parametrize("loss", IMITATING, ids=lambda loss: type(loss).__name__)
def test_t3_the_minimum_is_where_the_student_equals_the_teacher(loss):
    student, teacher = logits()
    labels = np.random.default_rng(1).integers(10, size=len(student))

    def value(z):
        return loss({"source": teacher, "labels": labels} if loss.needs else teacher, z)

    least = float(value(teacher))
    assert np.max(np.abs(gradient(value, teacher))) < 1e-6
    for step in (0.1, 1.0, 10.0):
        moved = teacher + step * np.random.default_rng(2).normal(size=teacher.shape)
        assert float(value(moved.astype("float32"))) > least
    assert float(value(student)) > least


@pytest.mark.core
def test_t4_evaluate_changes_nothing_and_repeats():
    student, teacher, (x, y) = conv(4, 0), conv(4, 1), images()
    h = layers.BatchNormalization()(student.get_layer("stage2").output)
    h = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(h))
    student = keras.Model(student.input, layers.Dense(CLASSES)(h))

    def squared(source, student):
        return ops.mean(ops.square(source - student), axis=(1, 2, 3))

    edge = kd.Transfer(squared, source_layer="stage2", student_layer="stage2")
    distiller = kd.Distiller(student=student, teacher=teacher, transfers=[edge])
    distiller.compile("sgd", crossentropy(), metrics=["accuracy"])
    fit(distiller, x, y, epochs=1)
    before = arrays(distiller)
    scores = [distiller.evaluate(x, y, verbose=0, return_dict=True) for _ in range(3)]
    assert largest_difference(before, arrays(distiller)) == 0.0
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.core
def test_t5_one_student_forward_serves_any_number_of_feature_losses():
    runs = []

    class Counting(layers.Layer):
        def call(self, inputs):
            runs.append(1)
            return inputs

    teacher, backbone, (x, y) = conv(4, 1), conv(4, 0, name="backbone"), images()
    inputs = keras.Input((8, 8, 1))
    student = keras.Model(inputs, backbone(Counting()(inputs)))

    def squared(source, student):
        return ops.mean(ops.square(source - student), axis=(1, 2, 3))

    edges = [
        kd.Transfer(squared, source_layer=stage, student_layer=f"backbone/{stage}", name=stage)
        for stage in ("stage1", "stage2")
    ]
    distiller = kd.Distiller(student=student, teacher=teacher, transfers=edges)
    distiller.compile("sgd", crossentropy(), run_eagerly=True, jit_compile=False)
    distiller.train_on_batch(x, y)
    runs.clear()
    distiller.train_on_batch(x, y)
    distiller.train_on_batch(x, y)
    assert len(runs) == 2


@pytest.mark.core
def test_t6_the_students_regularisers_count_exactly():
    (x, y) = data(32)
    losses = {}
    for l2 in (0.0, 100.0):
        student = dense(8, 0, l2=l2)
        distiller = kd.Distiller(student=student, teacher=dense(16, 1, l2=7.0))
        kernel = student.get_layer("hidden").get_weights()[0]
        distiller.compile(keras.optimizers.SGD(0.0), crossentropy())
        losses[l2] = fit(distiller, x, y, epochs=1, batch_size=32).history["loss"][0]
    assert losses[100.0] - losses[0.0] == pytest.approx(100.0 * np.sum(kernel**2), rel=1e-5)


@pytest.mark.core
@pytest.mark.parametrize("kind", ["sample_weight", "class_weight"])
def test_t7_zero_weights_zero_the_losses(kind):
    (x, y), distiller = data(32), kd.Distiller(student=dense(8), teacher=dense(16, 1))
    distiller.compile("sgd", crossentropy())
    weights = np.zeros(32, "float32") if kind == "sample_weight" else dict.fromkeys(range(3), 0.0)
    before = distiller.student.get_layer("logits").get_weights()
    logs = fit(distiller, x, y, epochs=1, **{kind: weights}).history
    assert logs["loss"][0] == logs["label_loss"][0] == logs["soft_targets"][0] == 0.0
    assert largest_difference(before, distiller.student.get_layer("logits").get_weights()) == 0.0


@pytest.mark.core
def test_t7_weights_scale_each_example():
    (x, y), student, teacher = data(32), dense(8, 0, norm=False), dense(16, 1)
    weights = np.random.default_rng(3).uniform(size=32).astype("float32")
    distiller = kd.Distiller(student=student, teacher=teacher)
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy())
    logs = fit(distiller, x, y, epochs=1, batch_size=32, sample_weight=weights).history
    z, v = ops.convert_to_numpy(student(x)), ops.convert_to_numpy(teacher(x))
    expected = np.mean(weights * reference.kl_divergence(v, z, 4.0))
    assert logs["soft_targets"][0] == pytest.approx(expected, rel=1e-4)


def function_crossentropy(y_true, y_pred):
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


LABEL_LOSSES = {
    "instance": crossentropy,
    "function": lambda: function_crossentropy,
    "string": lambda: "mse",
}


@on_tensorflow
@pytest.mark.tensorflow
@pytest.mark.parametrize("label_loss", LABEL_LOSSES)
def test_t8_two_replicas_update_like_one(label_loss, two_replicas):
    x, y = data(32)
    if label_loss == "string":
        y = np.eye(CLASSES, dtype="float32")[y]

    def squared(source, student):
        return ops.mean(ops.square(source - student), axis=-1)

    def trained():
        distiller = kd.Distiller(
            student=dense(8, 0, norm=False, l2=0.01),
            teacher=dense(16, 1, norm=False),
            transfers=[kd.Transfer(kd.losses.SoftTargets()), kd.Transfer(squared)],
        )
        distiller.compile(keras.optimizers.SGD(0.1), LABEL_LOSSES[label_loss]())
        start = arrays(distiller.student)
        return distiller, start

    one, start = trained()
    logs = [fit(one, x, y, shuffle=False).history]
    with two_replicas.scope():
        two, _ = trained()
    logs.append(fit(two, x, y, shuffle=False).history)
    moved = [
        np.concatenate([(a - b).ravel() for a, b in zip(arrays(m.student), start, strict=True)])
        for m in (one, two)
    ]
    ratio = np.sum(moved[0] * moved[1]) / np.sum(moved[0] ** 2)
    assert ratio == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(moved[1], moved[0], atol=1e-6)
    for name, values in logs[0].items():
        assert logs[1][name] == pytest.approx(values, rel=1e-5), name


@pytest.mark.core
def test_t9_a_float32_teacher_teaches_a_half_precision_student():
    student, teacher = dense(8, 0, dtype="mixed_float16"), dense(16, 1)
    distiller, (x, y) = kd.Distiller(student=student, teacher=teacher), data()
    distiller.compile(keras.optimizers.Adam(1e-2), crossentropy())
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    logs = fit(distiller, x, y, epochs=15).history
    assert logs["loss"][-1] < logs["loss"][0]
    assert teacher.get_layer("hidden").compute_dtype == "float32"


@pytest.mark.core
def test_t9_networks_may_see_different_sizes():
    distiller = kd.Distiller(
        student=conv(4, 0, size=8),
        teacher=conv(4, 1, size=16),
        preprocess={"teacher": layers.Resizing(16, 16)},
    )
    distiller.compile("adam", crossentropy())
    x, y = images(size=8)
    logs = fit(distiller, x, y, epochs=4).history
    assert logs["loss"][-1] < logs["loss"][0]


@pytest.mark.core
def test_t10_features_of_nested_and_subclassed_models_are_read():
    nested = keras.Sequential([keras.Input((FEATURES,)), dense(8, 1, name="backbone")])

    def squared(source, student):
        return ops.mean(ops.square(source - student), axis=-1)

    edge = kd.Transfer(squared, source_layer="backbone/hidden", student_layer="trunk")
    distiller = kd.Distiller(student=Subclassed(8), teacher=nested, transfers=[edge])
    distiller.compile("adam", crossentropy())
    x, y = data()
    logs = fit(distiller, x, y, epochs=4).history
    assert logs["squared"][-1] < logs["squared"][0]


@pytest.mark.core
def test_t11_saving_loading_and_fitting_on_is_bit_equal(tmp_path):
    (x, y), rate = data(), keras.optimizers.schedules.CosineDecay(1e-2, 20)
    distiller = kd.Distiller(student=dense(8, 0), teacher=dense(32, 1))
    distiller.compile(keras.optimizers.Adam(rate), crossentropy(), metrics=["accuracy"])
    fit(distiller, x, y)
    distiller.save(tmp_path / "run.keras")
    loaded = keras.models.load_model(tmp_path / "run.keras")
    logs = [fit(model, x, y, shuffle=False).history for model in (distiller, loaded)]
    assert logs[0] == logs[1]
    assert largest_difference(arrays(distiller), arrays(loaded)) == 0.0
    pairs = zip(distiller.optimizer.variables, loaded.optimizer.variables, strict=True)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


@on_tensorflow
@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_t12_export_holds_the_student_alone(tmp_path):
    distiller = kd.Distiller(student=dense(8, 0), teacher=dense(512, 1))
    distiller.compile("sgd", crossentropy())
    distiller.export(tmp_path / "ours", format="tf_saved_model", verbose=False)
    distiller.student.export(tmp_path / "student", format="tf_saved_model", verbose=False)

    def size(folder):
        return sum(os.path.getsize(f) for f in (tmp_path / folder).rglob("*") if f.is_file())

    assert size("ours") == pytest.approx(size("student"), rel=0.02)


@pytest.mark.core
def test_t13_a_shared_trunk_trains_and_flags_stay_as_they_were():
    inputs = keras.Input((FEATURES,))
    trunk = layers.Dense(8, "relu", name="trunk")
    student = keras.Model(inputs, layers.Dense(CLASSES)(trunk(inputs)))
    teacher = keras.Model(inputs, layers.Dense(CLASSES, name="theirs")(trunk(inputs)))
    distiller, (x, y) = kd.Distiller(student=student, teacher=teacher), data()
    distiller.compile("sgd", crossentropy())
    before, theirs = trunk.get_weights(), teacher.get_layer("theirs").get_weights()
    fit(distiller, x, y)
    assert len(distiller.trainable_weights) == 4
    assert largest_difference(before, trunk.get_weights()) > 0
    assert largest_difference(theirs, teacher.get_layer("theirs").get_weights()) == 0.0
    assert teacher.trainable and all(layer.trainable for layer in teacher.layers)


@pytest.mark.core
def test_t14_a_callback_changes_temperature_and_weights_without_retracing():
    traces = []

    def watched(source, student):
        traces.append(1)
        return ops.mean(ops.square(source - student), axis=-1)

    edges = [kd.Transfer(kd.losses.SoftTargets(2.0)), kd.Transfer(watched, weight=0.0)]
    student, teacher, (x, y) = dense(8, 0, norm=False), dense(32, 1), data()
    distiller = kd.Distiller(student=student, teacher=teacher, transfers=edges, label_weight=1.0)
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy())

    class Change(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                traces.clear()
                self.model.transfers[0].loss.temperature.assign(8.0)
                self.model.transfers[1].weight.assign(3.0)
                self.model.label_weight.assign(0.0)

    logs = fit(distiller, x, y, epochs=2, callbacks=[Change()]).history
    z, v = ops.convert_to_numpy(student(x)), ops.convert_to_numpy(teacher(x))
    soft = [reference.kl_divergence(v, z, t).mean() for t in (2.0, 8.0)]
    assert logs["soft_targets"] == pytest.approx(soft, rel=1e-4)
    expected = [logs["label_loss"][0] + soft[0], soft[1] + 3.0 * logs["watched"][1]]
    assert logs["loss"] == pytest.approx(expected, rel=1e-4)
    assert not traces


@pytest.mark.core
def test_t15_without_a_label_loss_fit_needs_no_labels():
    distiller, (x, _) = kd.Distiller(student=dense(8), teacher=dense(32, 1)), data()
    distiller.compile(keras.optimizers.Adam(1e-2))
    logs = fit(distiller, x, epochs=10).history
    assert logs["soft_targets"][-1] < logs["soft_targets"][0]


@keras.saving.register_keras_serializable("tests")
class Everything(kd.losses.TransferLoss):
    """A third party's loss: labels, epoch, two layers at each end, a layer of its own."""

    def __init__(self, power=2.0, **kwargs):
        super().__init__(**kwargs)
        self.power = power
        self.projector = layers.Dense(1, name="projector")

    def build(self, source, student):
        self.projector.build(student[0])

    @property
    def layers(self):
        return [self.projector]

    def values(self, source, student, labels, epoch):
        first = ops.abs(source[0] - self.projector(student[0]))
        second = ops.abs(source[1] - student[1]) * (1.0 + ops.cast(labels[:, None], "float32"))
        return ops.mean(first**self.power, axis=-1) + epoch * ops.mean(second, axis=-1)

    def get_config(self):
        return {**super().get_config(), "power": self.power}


@pytest.mark.core
def test_t16_a_custom_loss_sees_everything_trains_its_own_weights_and_saves(tmp_path):
    edge = kd.Transfer(
        Everything(power=1.5),
        source_layer=["hidden", "logits"],
        student_layer=["hidden", "logits"],
    )
    distiller = kd.Distiller(student=dense(4), teacher=dense(16, 1), transfers=[edge])
    distiller.compile(keras.optimizers.Adam(1e-2), crossentropy())
    projector, (x, y) = edge.loss.projector, data()
    before = projector.get_weights()
    fit(distiller, x, y, epochs=3)
    assert largest_difference(before, projector.get_weights()) > 0
    assert distiller.student.count_params() == dense(4).count_params()
    distiller.save(tmp_path / "run.keras")
    loaded = keras.models.load_model(tmp_path / "run.keras")
    for model in (distiller, loaded):
        fit(model, x, y, shuffle=False)
    assert loaded.transfers[0].loss.power == 1.5
    assert largest_difference(arrays(distiller), arrays(loaded)) == 0.0
