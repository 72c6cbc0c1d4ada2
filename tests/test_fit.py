"""Every way to feed and compile a Keras model works, and gives the same weights."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdtoolkit as kd
from tests.support import (
    CLASSES,
    FEATURES,
    arrays,
    crossentropy,
    data,
    dense,
    fit,
    largest_difference,
)

on_tensorflow = keras.backend.backend() == "tensorflow"
EXAMPLES, BATCH = 40, 16


def trained(*args, compile_with=None, optimizer=None, **kwargs):
    """Weights after two epochs with the examples in order; the last batch is ragged (16, 16, 8)."""
    distiller = kd.Distiller(student=dense(8, 0), teacher=dense(32, 1))
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    distiller.compile(optimizer, crossentropy(), **(compile_with or {}))
    logs = fit(distiller, *args, shuffle=False, **kwargs).history
    return arrays(distiller.student), logs


@pytest.fixture(scope="module")
def from_arrays():
    return trained(*data(EXAMPLES))


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.x) // BATCH)

    def __getitem__(self, index):
        part = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[part], self.y[part]


def as_dataset(x, y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)


def as_generator(x, y):
    batches = Batches(x, y)
    while True:
        yield from (batches[i] for i in range(len(batches)))


SOURCES = {
    "tf.data": lambda x, y: ({"x": as_dataset(x, y)}),
    "PyDataset": lambda x, y: ({"x": Batches(x, y)}),
    "generator": lambda x, y: ({"x": as_generator(x, y), "steps_per_epoch": 3}),
}


@pytest.mark.core
@pytest.mark.parametrize("source", SOURCES)
def test_any_source_of_batches_trains_the_same_weights(source, from_arrays):
    given = SOURCES[source](*data(EXAMPLES))
    weights, logs = trained(given.pop("x"), batch_size=None, **given)
    assert largest_difference(weights, from_arrays[0]) < 1e-6
    assert logs["loss"] == pytest.approx(from_arrays[1]["loss"], rel=1e-5)


COMPILED = {
    "jit": {"jit_compile": True},
    "no jit": {"jit_compile": False},
    "eager": {"run_eagerly": True},
    "4 steps per execution": {"steps_per_execution": 4},
    "2 steps per execution": {"steps_per_execution": 2},
}


@pytest.mark.parametrize("how", COMPILED)
def test_any_way_to_compile_trains_the_same_weights(how, from_arrays):
    weights, logs = trained(*data(EXAMPLES), compile_with=COMPILED[how])
    assert largest_difference(weights, from_arrays[0]) < 3e-6
    assert logs["loss"] == pytest.approx(from_arrays[1]["loss"], rel=1e-4)


@pytest.mark.core
def test_gradient_accumulation_of_two_halves_equals_one_whole():
    x, y = data(64)
    found = []
    for batch_size, steps in ((32, None), (16, 2)):
        student = dense(8, 0, norm=False)
        distiller = kd.Distiller(student=student, teacher=dense(32, 1))
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)
        distiller.compile(optimizer, crossentropy())
        fit(distiller, x, y, shuffle=False, batch_size=batch_size)
        found.append(arrays(student))
    assert largest_difference(*found) < 1e-6


@pytest.mark.core
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_stays_near_float32(policy, from_arrays):
    keras.config.set_dtype_policy(policy)
    weights, logs = trained(*data(EXAMPLES))
    assert largest_difference(weights, from_arrays[0]) < 0.02
    assert np.isfinite(logs["loss"]).all()


@pytest.mark.core
def test_class_weights_equal_the_sample_weights_they_stand_for():
    x, y = data(EXAMPLES)
    shares = {0: 0.2, 1: 1.0, 2: 3.0}
    by_class, _ = trained(x, y, class_weight=shares)
    weights = np.array([shares[label] for label in y], "float32")
    by_example, _ = trained(x, y, sample_weight=weights)
    assert largest_difference(by_class, by_example) < 1e-6


@pytest.mark.core
def test_train_and_test_on_batch_return_the_logs_of_fit():
    x, y = data(16)
    distiller = kd.Distiller(student=dense(8), teacher=dense(32, 1))
    distiller.compile("sgd", crossentropy(), metrics=["accuracy"])
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert set(logs) == {"loss", "label_loss", "soft_targets", "accuracy"}
    assert set(distiller.test_on_batch(x, y, return_dict=True)) == {"loss", "accuracy"}


def two_inputs_two_outputs(units, seed):
    keras.utils.set_random_seed(seed)
    left, right = keras.Input((FEATURES,), name="left"), keras.Input((FEATURES,), name="right")
    h = layers.Dense(units, "relu")(layers.Concatenate()([left, right]))
    outputs = {"kind": layers.Dense(CLASSES)(h), "size": layers.Dense(1)(h)}
    return keras.Model({"left": left, "right": right}, outputs)


def test_several_inputs_and_outputs_train_and_each_output_has_its_own_transfer():
    (x, kind), size = data(EXAMPLES), np.linspace(-1, 1, EXAMPLES, dtype="float32")[:, None]
    edges = [
        kd.Transfer(kd.losses.SoftTargets(), source_layer="kind", student_layer="kind"),
        kd.Transfer(keras.losses.MeanSquaredError(), source_layer="size", student_layer="size"),
    ]
    distiller = kd.Distiller(
        student=two_inputs_two_outputs(8, 0),
        teacher=two_inputs_two_outputs(16, 1),
        transfers=edges,
    )
    distiller.compile("adam", loss={"kind": crossentropy(), "size": "mse"})
    inputs = {"left": x, "right": x[:, ::-1]}
    logs = fit(distiller, inputs, {"kind": kind, "size": size}, epochs=3).history
    total = logs["label_loss"][0] + logs["soft_targets"][0] + logs["mean_squared_error"][0]
    assert logs["loss"][0] == pytest.approx(total, rel=1e-5)
    assert logs["loss"][-1] < logs["loss"][0]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_ids_beside_several_inputs_are_taken_out():
    x, kind = data(EXAMPLES)
    edge = kd.Transfer(kd.losses.SoftTargets(), source_layer="kind", student_layer="kind")
    distiller = kd.Distiller(
        student=two_inputs_two_outputs(8, 0),
        teacher=two_inputs_two_outputs(16, 1),
        transfers=[edge],
    )
    distiller.compile("sgd")
    logs = fit(distiller, kd.data.with_ids({"left": x, "right": x})).history
    assert np.isfinite(logs["soft_targets"]).all()


def test_a_network_of_sequences_trains():
    def network(units, seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((None,), dtype="int32")
        h = layers.Embedding(20, 4, mask_zero=True)(inputs)
        return keras.Model(inputs, layers.Dense(CLASSES)(layers.GRU(units)(h)))

    x = np.random.default_rng(0).integers(1, 20, size=(EXAMPLES, 5)).astype("int32")
    distiller = kd.Distiller(student=network(4, 0), teacher=network(8, 1))
    distiller.compile("adam", crossentropy())
    logs = fit(distiller, x, data(EXAMPLES)[1], epochs=4).history
    assert logs["loss"][-1] < logs["loss"][0]


@pytest.mark.core
def test_keras_callbacks_see_the_students_metrics(tmp_path):
    x, y = data(EXAMPLES)
    distiller = kd.Distiller(student=dense(8), teacher=dense(32, 1))
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy(), metrics=["accuracy"])
    callbacks = [
        keras.callbacks.EarlyStopping("val_accuracy", patience=50, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("val_loss", patience=0, min_delta=100.0),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", save_weights_only=True),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]
    fit(distiller, x, y, epochs=3, validation_data=(x, y), callbacks=callbacks)
    assert float(ops.convert_to_numpy(distiller.optimizer.learning_rate)) < 0.1
    weights = arrays(distiller.student)
    distiller.load_weights(tmp_path / "best.weights.h5")
    header = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert (
        header == "epoch,accuracy,label_loss,learning_rate,loss,soft_targets,val_accuracy,val_loss"
    )
    assert len(weights) == len(arrays(distiller.student))


@pytest.mark.tensorflow
@pytest.mark.parametrize("several", [False, True], ids=["one student", "two students"])
def test_the_first_step_is_traced_once(several):
    traces = []

    class Counted(keras.layers.Layer):
        def call(self, inputs):
            traces.append(1)
            return inputs

    def network():
        inputs = keras.Input((FEATURES,))
        return keras.Model(inputs, keras.layers.Dense(CLASSES)(Counted()(inputs)))

    student = {"a": network(), "b": dense(4)} if several else network()
    teacher = dense(8, 1)
    edge = kd.Transfer(kd.losses.SoftTargets(), student="a" if several else None)
    distiller = kd.Distiller(student=student, teacher=teacher, transfers=[edge])
    distiller.compile("adam", crossentropy(), metrics=["accuracy"])
    x, y = data(32)
    traces.clear()
    fit(distiller, x, y, epochs=2)
    # The look at the first examples runs the student eagerly twice: for its values, for metrics.
    assert len(traces) <= 1 + 2
    assert distiller.evaluate(x, y, verbose=0)[1] >= 0
