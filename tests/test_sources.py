"""Sources: what the graph's memories and snapshots hold, and when they teach it."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdtoolkit as kd
from tests.support import (
    CLASSES,
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


def holding(source, *, student=None, loss=None, label_weight=0.5, **kwargs):
    """A compiled distiller in which `source` teaches the student by cross-entropy."""
    student = student or dense(norm=False)
    edge = kd.Transfer(loss or kd.losses.SoftCrossEntropy(), weight=0.5, name="past", **kwargs)
    distiller = kd.Distiller(
        student=student, teacher=source, transfers=[edge], label_weight=label_weight
    )
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy(), metrics=["accuracy"])
    return distiller


def train(distiller, x, y, epochs=1, callbacks=None, **kwargs):
    callbacks = [kd.callbacks.PeriodicTeacher()] if callbacks is None else callbacks
    return fit(distiller, x, y, epochs=epochs, callbacks=callbacks, **kwargs)


def table(source):
    return ops.convert_to_numpy(source.table)


@pytest.mark.core
def test_a_frozen_student_without_augmentation_finds_its_own_predictions_in_the_table():
    x, y = data(45)
    source = kd.sources.PredictionMemory()
    distiller = holding(source)
    train(distiller, x, y)
    assert source.examples == 45
    expected = ops.convert_to_numpy(distiller.student(x))
    np.testing.assert_allclose(table(source), expected, atol=1e-5)


def shuffled_dataset(x, y, **kwargs):
    import tensorflow as tf

    dataset = kd.data.with_ids(tf.data.Dataset.from_tensor_slices((x, y)))
    repeats = kwargs.get("repeats", 1)
    return dataset.repeat(repeats).shuffle(200, seed=4).batch(16, drop_remainder=False)


PIPELINES = {
    "arrays": lambda x, y: (x, y),
    "pipeline": lambda x, y: (
        kd.data.ArrayPipeline(x, y, batch_size=16, example_ids=True, seed=2),
        None,
    ),
    "tf.data": lambda x, y: (shuffled_dataset(x, y), None),
    "repeated": lambda x, y: (shuffled_dataset(x, y, repeats=3), None),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", PIPELINES)
def test_each_example_meets_its_own_stored_output(kind):
    x, y = data(45)
    source = kd.sources.PredictionMemory(examples=45)
    distiller = holding(source)
    given = PIPELINES[kind](x, y)
    shuffle = {"shuffle": kind == "arrays"}
    train(distiller, *given, **shuffle)
    np.testing.assert_allclose(table(source), distiller.student.predict(x, verbose=0), atol=1e-5)
    # From now on each target is the student's own output: the loss is its entropy.
    history = train(distiller, *given, **shuffle).history
    p = ops.convert_to_numpy(ops.softmax(distiller.student(x)))
    np.testing.assert_allclose(history["past"][0], -np.mean(np.sum(p * np.log(p), -1)), atol=1e-5)


def test_examples_that_an_epoch_left_out_keep_what_they_had():
    x, y = data(20)
    source = kd.sources.PredictionMemory(examples=20)
    distiller = holding(source)
    first = kd.data.with_ids(x[:8], np.arange(8))
    train(distiller, first, y[:8], batch_size=4)
    assert np.all(table(source)[8:] == 0)
    kept = table(source)[:8].copy()
    train(distiller, kd.data.with_ids(x[4:], np.arange(4, 20)), y[4:], batch_size=4)
    np.testing.assert_array_equal(table(source)[:4], kept[:4])
    assert np.all(ops.convert_to_numpy(source.counts) == [1] * 4 + [2] * 4 + [1] * 12)


def read(source, labels, ids, output):
    context = {"labels": labels, "example_id": np.asarray(ids, "int32")}
    view = source.read(
        lambda: {"output": output, "taps": {}}, ops.convert_to_tensor(output), context
    )
    return ops.convert_to_numpy(view["output"])


def ready(source, examples=4, classes=3):
    source.connect(None, keras.KerasTensor((None, classes)))
    source.prepare(examples)
    return source


def softmax(logits):
    return ops.convert_to_numpy(ops.softmax(ops.convert_to_tensor(logits)))


@pytest.mark.core
def test_before_the_first_commit_the_labels_teach():
    source = ready(kd.sources.PredictionMemory())
    output = np.zeros((3, 3), "float32")
    one_hot = np.eye(3)[[2, 0, 1]]
    np.testing.assert_array_equal(softmax(read(source, [2, 0, 1], [0, 1, 2], output)), one_hot)
    soft = np.array([[0.5, 0.25, 0.25]] * 3, "float32")
    np.testing.assert_allclose(softmax(read(source, soft, [0, 1, 2], output)), soft, atol=1e-6)
    # At any temperature: a label has no small probabilities to show.
    hot = softmax(read(source, [2, 0, 1], [0, 1, 2], output) / 50.0)
    np.testing.assert_array_equal(hot, one_hot)


@pytest.mark.core
def test_without_a_label_or_on_request_the_student_stands_for_itself():
    output = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], "float32")
    source = ready(kd.sources.PredictionMemory(initial="student"))
    np.testing.assert_array_equal(read(source, None, [0, 1], output), output)
    source = ready(kd.sources.PredictionMemory())
    found = read(source, np.array([-1, 2]), [0, 1], output)
    np.testing.assert_array_equal(found[0], output[0])
    np.testing.assert_array_equal(softmax(found[1]), [0, 0, 1])


def observe(source, ids, output):
    context = {"labels": None, "example_id": np.asarray(ids, "int32")}
    source.observe(ops.convert_to_tensor(np.asarray(output, "float32")), context)


@pytest.mark.core
def test_the_average_over_commits_is_temporal_ensembling():
    decay, source = 0.6, ready(kd.sources.PredictionMemory(decay=0.6, initial="student"))
    random = np.random.default_rng(0)
    total = np.zeros((4, 3))
    for count in range(1, 4):
        output = random.normal(size=(4, 3))
        source.begin_epoch()
        observe(source, range(4), output)
        source.commit()
        p = np.exp(output) / np.exp(output).sum(-1, keepdims=True)
        total = decay * total + (1 - decay) * p
        expected = total / (1 - decay**count)
        found = softmax(read(source, None, range(4), output))
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.core
def test_half_precision_holds_large_logits_up_to_a_constant():
    source = ready(kd.sources.PredictionMemory(dtype="float16"))
    output = np.array([[1e5, 1e5 - 2.0, -1e5], [0.1, 0.2, 0.3]])
    observe(source, [0, 1], output)
    source.commit(0.5)
    found = read(source, [0, 0], [0, 1], np.zeros((2, 3), "float32"))
    assert np.all(np.isfinite(found)) and source.table.dtype == "float16"
    np.testing.assert_allclose(softmax(found), softmax(output.astype("float32")), atol=2e-3)


@pytest.mark.core
def test_what_was_seen_before_begin_epoch_is_not_committed():
    source = ready(kd.sources.PredictionMemory())
    observe(source, [0, 1], [[1, 2, 3], [4, 5, 6]])
    source.begin_epoch()
    observe(source, [1], [[7, 8, 9]])
    source.commit()
    np.testing.assert_array_equal(table(source), [[0, 0, 0], [7, 8, 9], [0, 0, 0], [0, 0, 0]])
    source.reset()
    assert source.score is None and not table(source).any()


@pytest.mark.core
def test_last_predictions_count_for_their_lifetime():
    source = ready(kd.sources.LastPredictions(lifetime=1))
    output = np.array([[1.0, 2.0, 3.0]], "float32")
    source.update()
    np.testing.assert_array_equal(read(source, None, [2], output), output)
    observe(source, [2], [[5.0, 5.0, 6.0]])
    source.update()
    np.testing.assert_array_equal(read(source, None, [2], output), [[5, 5, 6]])
    observe(source, [0], [[0.0, 0.0, 0.0]])
    source.update()
    np.testing.assert_array_equal(read(source, None, [2], output), output)


def test_the_last_mini_batch_teaches_the_repeated_half():
    x, y = data(8)
    source = kd.sources.LastPredictions(lifetime=1)
    distiller = holding(source, loss=kd.losses.SoftTargets(3.0), label_weight=1.0)
    distiller.compile(keras.optimizers.SGD(0.5), crossentropy())
    order = np.array([0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7])
    weights = distiller.student.get_weights()
    inputs = kd.data.with_ids(x[order], order)
    history = fit(distiller, inputs, y[order], batch_size=4, epochs=1, shuffle=False).history
    # By hand: three steps of plain SGD, in which rows seen a step ago also imitate.
    distiller.student.set_weights(weights)
    network, losses, last = distiller.student, [], None
    optimizer = keras.optimizers.SGD(0.5)
    import tensorflow as tf

    for rows in order.reshape(3, 4):
        with tf.GradientTape() as tape:
            logits = network(x[rows], training=True)
            imitation = 0.0
            if last is not None:
                imitation = kd.losses.SoftTargets(3.0)(last[2:], logits[:2]) / 2
            loss = crossentropy()(y[rows], logits) + 0.5 * imitation
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply(gradients, network.trainable_variables)
        losses.append(float(imitation))
        last = logits
    np.testing.assert_allclose(history["past"][0], np.mean(losses), rtol=1e-5)
    assert np.mean(losses) > 1e-5


# Snapshots ----------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("make", [lambda: dense(), lambda: Subclassed()], ids=["graph", "class"])
def test_a_snapshot_teaches_labels_and_then_exactly_the_committed_weights(make):
    x, y = data(32)
    student = make()
    student(x[:1])
    source = kd.sources.Snapshot(student)
    distiller = holding(source, student=student)
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
    history = train(distiller, x, y, epochs=1, shuffle=False).history
    np.testing.assert_allclose(history["past"], history["label_loss"], rtol=1e-5)
    committed = student.get_weights()
    assert largest_difference(source.network.get_weights(), committed) == 0
    train(distiller, x, y, callbacks=[kd.callbacks.PeriodicTeacher(100)])
    assert largest_difference(source.network.get_weights(), committed) == 0
    assert largest_difference(student.get_weights(), committed) > 1e-4


class KeepWeights(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.kept = []

    def on_train_batch_begin(self, batch, logs=None):
        weights = self.model.student.trainable_weights
        self.kept.append([ops.convert_to_numpy(w).copy() for w in weights])


@pytest.mark.core
def test_the_running_average_follows_the_formula():
    x, y = data(48)
    student = dense()
    source = kd.sources.Snapshot(student, decay=0.5)
    distiller = holding(source, student=student)
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
    keep = KeepWeights()
    fit(distiller, x, y, epochs=1, callbacks=[keep])
    expected = keep.kept[0]
    for t, weights in enumerate(keep.kept):
        share = min(0.5, 1 - 1 / (t + 1))
        expected = [share * a + (1 - share) * b for a, b in zip(expected, weights, strict=True)]
    found = [ops.convert_to_numpy(w) for w in source.network.trainable_weights]
    assert largest_difference(found, expected) < 1e-6
    assert largest_difference(keep.kept[0], expected) > 1e-4


def test_a_snapshots_layers_can_be_read():
    x, y = images(12)
    student = conv()
    source = kd.sources.Snapshot(student, decay=0.9)

    def squared(source, student):
        return ops.mean(ops.square(source - student), axis=(1, 2, 3))

    distiller = holding(
        source, student=student, loss=squared, source_layer="stage1", student_layer="stage1"
    )
    distiller.compile("sgd", crossentropy())
    assert fit(distiller, x, y, epochs=2, batch_size=4).history["past"][1] > 0


@pytest.mark.core
def test_a_snapshot_sees_what_its_student_sees():
    x, y = data(16)
    student = dense(norm=False)
    source = kd.sources.Snapshot(student)
    distiller = kd.Distiller(
        student=student,
        teacher=source,
        transfers=[kd.Transfer(kd.losses.SoftTargets(1.0), name="past")],
        preprocess={"student": layers.Rescaling(0.1)},
    )
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy())
    history = train(distiller, x, y, epochs=2).history
    assert history["past"][0] > 0.1
    assert history["past"][1] < 1e-6


def test_a_snapshot_of_a_network_that_builds_at_its_first_batch(tmp_path):
    x, y = data(32)
    student = Subclassed()
    distiller = holding(kd.sources.Snapshot(student), student=student)
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
    train(distiller, x, y, epochs=2)
    snapshot = distiller.sources["teacher"].network
    assert largest_difference(snapshot.get_weights(), student.get_weights()) == 0
    distiller.save(tmp_path / "saved.keras")
    loaded = keras.models.load_model(tmp_path / "saved.keras")
    assert largest_difference(loaded.get_weights(), distiller.get_weights()) == 0


def test_sample_weights_reach_what_a_source_teaches():
    x, y = data(32)
    distiller = holding(kd.sources.PredictionMemory())
    train(distiller, x, y)
    weights = np.linspace(0.0, 2.0, 32).astype("float32")
    past = train(distiller, x, y, sample_weight=weights, batch_size=32).history["past"][0]
    p = softmax(distiller.student(x)).astype("float64")
    entropy = -np.sum(p * np.log(p), axis=-1)
    np.testing.assert_allclose(past, np.sum(weights * entropy) / 32, rtol=1e-5)


def test_examples_without_a_label_take_part():
    x, y = data(32)
    y[::2] = -1
    distiller = holding(kd.sources.PredictionMemory(initial="student"), label_weight=1.0)
    labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    distiller.compile(keras.optimizers.SGD(0.1), labels)
    history = train(distiller, x, y, epochs=3).history
    assert np.all(np.isfinite(history["loss"]))
    assert history["label_loss"][-1] < history["label_loss"][0]


# In a distiller -----------------------------------------------------------------------------


@pytest.mark.tensorflow
def test_sources_cost_no_pass_of_the_student_and_no_retracing():
    calls, traces = [], []

    class Counting(layers.Dense):
        def call(self, inputs):
            calls.append(1)
            return super().call(inputs)

    inputs = keras.Input((6,))
    student = keras.Model(inputs, Counting(CLASSES)(inputs))
    distiller = holding(kd.sources.PredictionMemory(), student=student)
    x, y = data(32)
    original = distiller.compute_loss

    def compute_loss(*args, **kwargs):
        traces.append(1)
        return original(*args, **kwargs)

    distiller.compute_loss = compute_loss
    train(distiller, x, y, epochs=1)
    per_trace = len(calls), len(traces)
    train(distiller, x, y, epochs=3)
    assert (len(calls), len(traces)) == per_trace
    # One call where Keras builds the model, one where it traces the step.
    calls.clear()
    distiller.make_train_function(force=True)
    distiller.train_on_batch(kd.data.with_ids(x), y)
    assert len(calls) == 1


def test_evaluate_leaves_sources_alone_and_needs_no_ids():
    x, y = data(32)
    for source in (kd.sources.PredictionMemory(), kd.sources.Snapshot(dense(norm=False), 0.9)):
        distiller = holding(source)
        train(distiller, x, y, callbacks=[kd.callbacks.PeriodicTeacher()] * source.commits)
        before = arrays(distiller)
        distiller.evaluate(x, y, verbose=0)
        distiller.predict(x, verbose=0)
        names = [v.path for v in distiller.variables]
        pairs = zip(names, before, arrays(distiller), strict=True)
        changed = [n for n, a, b in pairs if not np.array_equal(a, b, equal_nan=True)]
        assert not [name for name in changed if "accuracy" not in name and "loss" not in name]


@pytest.mark.core
def test_a_saved_distiller_goes_on_with_its_memory(tmp_path):
    x, y = data(40)
    validation = data(20, seed=9)

    def further(distiller, start):
        best = kd.callbacks.BestTeacher()
        keras.utils.set_random_seed(3)
        return fit(
            distiller,
            x,
            y,
            epochs=start + 2,
            initial_epoch=start,
            shuffle=False,
            validation_data=validation,
            callbacks=[best],
        )

    distiller = holding(kd.sources.PredictionMemory(dtype="float16"), student=dense(dropout=0.3))
    distiller.compile(keras.optimizers.Adam(0.05), crossentropy(), metrics=["accuracy"])
    further(distiller, 0)
    distiller.save(tmp_path / "half.keras")
    further(distiller, 2)
    loaded = keras.models.load_model(tmp_path / "half.keras")
    source = loaded.sources["teacher"]
    assert source.score is not None and source.examples == 40
    further(loaded, 2)
    assert largest_difference(distiller.get_weights(), loaded.get_weights()) == 0
    assert source.score == distiller.sources["teacher"].score


@pytest.mark.tensorflow
def test_two_replicas_fill_the_memory_like_one(two_replicas):
    x, y = data(64)

    def run(scope):
        keras.utils.set_random_seed(0)
        with scope:
            distiller = holding(kd.sources.PredictionMemory())
            distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
        history = train(distiller, x, y, epochs=3, shuffle=False)
        return distiller, history

    one, history_one = run(contextlib.nullcontext())
    two, history_two = run(two_replicas.scope())
    source = one.sources["teacher"], two.sources["teacher"]
    np.testing.assert_allclose(table(source[0]), table(source[1]), atol=1e-6)
    assert np.all(table(source[1]).any(axis=1))
    assert largest_difference(one.student.get_weights(), two.student.get_weights()) < 1e-6
    for name in ("loss", "past"):
        np.testing.assert_allclose(history_one.history[name], history_two.history[name], rtol=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("decay", [None, 0.5])
def test_two_replicas_keep_a_snapshot_like_one(decay, two_replicas):
    x, y = data(64)

    def run(scope):
        keras.utils.set_random_seed(0)
        with scope:
            student = dense(norm=False)
            distiller = holding(kd.sources.Snapshot(student, decay), student=student)
            distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
        policy = [kd.callbacks.PeriodicTeacher()] if decay is None else []
        train(distiller, x, y, epochs=3, shuffle=False, callbacks=policy)
        snapshot = distiller.sources["teacher"].network
        return [*student.get_weights(), *snapshot.get_weights()]

    difference = largest_difference(run(contextlib.nullcontext()), run(two_replicas.scope()))
    assert difference < 1e-6


def test_training_without_labels_starts_with_the_student_itself():
    x, _ = data(32)
    source = kd.sources.PredictionMemory(initial="student")
    distiller = holding(source, loss=kd.losses.SoftTargets(2.0))
    distiller.compile(keras.optimizers.SGD(0.1))
    start = distiller.student.get_weights()
    history = train(distiller, x, None, epochs=1).history
    assert history["past"][0] < 1e-6
    assert largest_difference(start, distiller.student.get_weights()) < 1e-6
    assert "past" not in distiller.evaluate(x, return_dict=True, verbose=0)


# Errors -------------------------------------------------------------------------------------


def test_data_without_ids_or_of_another_length_is_refused():
    import tensorflow as tf

    x, y = data(32)
    distiller = holding(kd.sources.PredictionMemory(examples=32))
    with pytest.raises(ValueError, match="32 rows, but there are 20 training examples"):
        train(distiller, x[:20], y[:20])
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    with pytest.raises(ValueError, match="needs example ids.*with_ids.*TensorSlice|_Batch"):
        train(distiller, dataset, None, shuffle=False)
    with pytest.raises(ValueError, match="without 'example_id'"):
        train(distiller, kd.data.ArrayPipeline(x, y, batch_size=8), None)
    generator = ((x[:8], y[:8]) for _ in range(2))
    with pytest.raises(ValueError, match="needs example ids.*example_ids=True"):
        train(distiller, generator, None, batch_size=None, shuffle=False, steps_per_epoch=2)
    with pytest.raises(ValueError, match=r"must know how many.*PredictionMemory\(examples=...\)"):
        train(holding(kd.sources.PredictionMemory()), shuffled_dataset(x, y), None, shuffle=False)


def test_an_id_beyond_the_table_stops_the_step():
    x, y = data(32)
    distiller = holding(kd.sources.PredictionMemory(examples=20))
    with pytest.raises(Exception, match="ids in 0 ... 19, the rows of PredictionMemory"):
        train(distiller, shuffled_dataset(x, y), None, shuffle=False)


def test_where_a_step_cannot_stop_the_epoch_ends_with_the_error():
    x, y = data(32)
    distiller = holding(kd.sources.PredictionMemory(examples=20))
    distiller.compile("sgd", crossentropy(), jit_compile=True)
    with pytest.raises(ValueError, match="has 20 rows, but 12 example ids weren't among them"):
        train(distiller, shuffled_dataset(x, y), None, shuffle=False)


def test_a_memory_of_another_class_count_is_refused():
    x, y = data(16)
    memory = kd.sources.PredictionMemory()
    train(holding(memory), x, y)
    with pytest.raises(ValueError, match="holds outputs of 3 classes, but the student.*has 5"):
        holding(memory, student=dense(classes=5))


def test_a_loop_without_fit_must_say_how_many_examples_there_are():
    x, y = data(16)
    distiller = holding(kd.sources.PredictionMemory())
    with pytest.raises(ValueError, match="must know how many training examples"):
        distiller.train_on_batch(kd.data.with_ids(x), y)


def test_callbacks_that_defeat_a_source_are_refused(tmp_path):
    x, y = data(16)
    distiller = holding(kd.sources.PredictionMemory())
    best, each = kd.callbacks.BestTeacher(), kd.callbacks.PeriodicTeacher()
    with pytest.raises(ValueError, match="Expected one of"):
        train(distiller, x, y, callbacks=[best, each], validation_split=0.25)
    resume = kd.callbacks.Resume(tmp_path)
    with pytest.raises(ValueError, match="Resume must see what the other callbacks did"):
        train(distiller, x, y, callbacks=[resume, each])
    free = holding(kd.sources.PredictionMemory(initial="student"))
    free.compile("sgd")
    with pytest.raises(ValueError, match="memories say nothing of validation data"):
        train(free, x, None, callbacks=[kd.callbacks.BestTeacher("val_loss")], validation_split=0.5)


def test_a_source_nobody_commits_is_refused():
    x, y = data(16)
    distiller = holding(kd.sources.PredictionMemory())
    with pytest.raises(ValueError, match=r"\['teacher'\] wait for a callback.*BestTeacher"):
        fit(distiller, x, y)


def test_sources_say_what_is_wrong_with_their_arguments():
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        kd.sources.PredictionMemory(dtype="int8")
    with pytest.raises(ValueError, match="`examples` of PredictionMemory must be an integer >= 1"):
        kd.sources.PredictionMemory(examples=0)
    with pytest.raises(ValueError, match="`decay` must be below 1"):
        kd.sources.PredictionMemory(decay=1.0)
    with pytest.raises(ValueError, match="`initial` must be one of"):
        kd.sources.PredictionMemory(initial="zeros")
    with pytest.raises(ValueError, match="`lifetime` of LastPredictions must be an integer >= 1"):
        kd.sources.LastPredictions(lifetime=0)
    with pytest.raises(TypeError, match="expected the student, a keras.Model"):
        kd.sources.Snapshot("student")
    with pytest.raises(ValueError, match="teaches the labels until.*initial='student'"):
        read(ready(kd.sources.PredictionMemory()), None, [0], np.zeros((1, 3), "float32"))


def test_a_source_must_fit_its_student():
    with pytest.raises(ValueError, match="don't match those of the student"):
        holding(kd.sources.Snapshot(dense(16)))
    with pytest.raises(ValueError, match="holds outputs and has no layers"):
        holding(kd.sources.PredictionMemory(), source_layer="hidden", student_layer="hidden")
    with pytest.raises(ValueError, match="must say which student it follows"):
        kd.Distiller(
            student={"a": dense(seed=1), "b": dense(seed=2)},
            teacher={"past": kd.sources.PredictionMemory()},
            transfers=[],
        )
    tokens = keras.Sequential([keras.Input((5, 4)), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"holds one output of shape \(batch, classes\)"):
        holding(kd.sources.PredictionMemory(), student=tokens)


@pytest.mark.tensorflow
def test_last_predictions_refuse_replicas(two_replicas):
    x, y = data(16)
    with two_replicas.scope():
        distiller = holding(kd.sources.LastPredictions())
    with pytest.raises(ValueError, match="can't follow examples from replica to replica"):
        fit(distiller, x, y)


ENGINES = {
    "eager": {"run_eagerly": True},
    "compiled by XLA": {"jit_compile": True},
    "several steps at once": {"steps_per_execution": 3},
}


@pytest.mark.tensorflow
def test_every_way_of_running_the_step_fills_the_same_memory():
    x, y = data(48)

    def run(**kwargs):
        distiller = holding(kd.sources.PredictionMemory(), student=dense())
        distiller.compile(keras.optimizers.SGD(0.1), crossentropy(), **kwargs)
        train(distiller, x, y, epochs=2, shuffle=False)
        return [table(distiller.sources["teacher"]), *distiller.student.get_weights()]

    expected = run()
    for name, kwargs in ENGINES.items():
        assert largest_difference(expected, run(**kwargs)) < 1e-5, name


@pytest.mark.tensorflow
def test_two_students_have_a_memory_each():
    x, y = data(32)
    follows = {name: kd.sources.PredictionMemory(follows=name) for name in ("a", "b")}
    edges = [
        kd.Transfer(kd.losses.SoftCrossEntropy(), source=f"past_{name}", student=name)
        for name in follows
    ]
    distiller = kd.Distiller(
        student={"a": dense(4, 1, norm=False), "b": dense(8, 2, norm=False, dtype="mixed_float16")},
        teacher={f"past_{name}": source for name, source in follows.items()},
        transfers=edges,
    )
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy())
    train(distiller, x, y)
    for name, source in follows.items():
        expected = ops.convert_to_numpy(distiller.students[name](x))
        np.testing.assert_allclose(table(source), expected, atol=1e-5)
