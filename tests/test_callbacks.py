"""When a score is better, what happens then, and what changes from epoch to epoch."""

import math

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit.callbacks import (
    BestTeacher,
    BestWeights,
    PeriodicTeacher,
    RewindOnPlateau,
    Schedule,
)
from kdtoolkit.callbacks.monitor import Monitor
from tests.support import arrays, conv, crossentropy, data, dense, fit, largest_difference

NAN = math.nan


class Scores(keras.callbacks.Callback):
    """Writes the scores of a script into the logs, and keeps all weights of each epoch."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores
        self.weights = []

    def on_epoch_end(self, epoch, logs=None):
        logs["val_accuracy"] = self.scores[epoch]
        self.weights.append([np.array(w) for w in self.model.get_weights()])


class Look(keras.callbacks.Callback):
    """Keeps what a function of the model returns at the end of each epoch."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.function(self.model))


def compiled(optimizer=None, **kwargs):
    model = dense(4, **kwargs)
    model.compile(optimizer or keras.optimizers.SGD(0.1, momentum=0.9), crossentropy())
    model.optimizer.build(model.trainable_variables)
    return model


def drive(callback, model, scores):
    """Run a callback through epochs without training; returns the logs of each, up to a stop."""
    callback.set_model(model)
    callback.set_params({"epochs": len(scores)})
    model.stop_training = False
    callback.on_train_begin()
    found = []
    for epoch, score in enumerate(scores):
        logs = {"val_accuracy": score}
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch, logs)
        found.append(logs)
        if model.stop_training:
            break
    return found


def fill(variables, value):
    for variable in variables:
        variable.assign(np.full(variable.shape, value))


def slots(optimizer):
    return [v for v in optimizer.variables if v.name not in ("iteration", "learning_rate")]


# Monitor ---------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "mode", "new", "old", "expected"),
    [
        ("val_accuracy", "auto", 0.6, 0.5, True),
        ("val_accuracy", "auto", 0.5, 0.5, False),
        ("val_accuracy", "auto", 0.4, 0.5, False),
        ("val_accuracy", "auto", NAN, 0.5, False),
        ("val_accuracy", "auto", 0.0, None, True),
        ("val_accuracy", "auto", NAN, None, False),
        ("val_loss", "auto", 0.4, 0.5, True),
        ("val_loss", "auto", 0.5, 0.5, False),
        ("val_loss", "auto", NAN, 0.5, False),
        ("val_mean_squared_error", "auto", 0.4, 0.5, True),
        ("val_loss", "max", 0.6, 0.5, True),
        ("val_accuracy", "min", 0.6, 0.5, False),
        # A variable rounds 0.9 down; the same score again is no improvement.
        ("val_accuracy", "auto", 0.9, float(np.float32(0.9)), False),
    ],
)
def test_only_a_strictly_better_score_is_an_improvement(name, mode, new, old, expected):
    assert Monitor(name, mode).better(new, old) is expected


def test_a_wrong_mode_or_a_missing_value_says_so():
    with pytest.raises(ValueError, match="`mode` must be one of .*'largest'"):
        BestWeights(mode="largest")
    with pytest.raises(ValueError, match=r"\['loss'\].*'val_accuracy'.*validation_data"):
        Monitor("val_accuracy", "auto").score_of({"loss": 1.0})


# Best weights ----------------------------------------------------------------------------------


@pytest.mark.core
def test_the_best_weights_return_and_the_last_are_kept():
    model = compiled()
    scores, best = Scores([0.1, 0.5, 0.5, NAN]), BestWeights()
    fit(model, *data(), epochs=4, callbacks=[scores, best])
    assert (best.best_score, best.best_epoch) == (0.5, 1)
    assert largest_difference(model.get_weights(), scores.weights[1]) == 0
    assert largest_difference(best.last_weights(), scores.weights[3]) == 0
    moving = [np.abs(scores.weights[3][i] - scores.weights[1][i]).max() for i in range(8)]
    assert min(moving) > 0, "all weights and BatchNorm's statistics had moved on"
    best.put(best.last_weights())
    assert largest_difference(model.get_weights(), scores.weights[3]) == 0


def test_without_restore_the_last_weights_stay():
    model = compiled()
    scores, best = Scores([0.5, 0.1]), BestWeights(restore=False)
    fit(model, *data(), callbacks=[scores, best])
    assert largest_difference(model.get_weights(), scores.weights[1]) == 0
    assert largest_difference(best.best_weights(), scores.weights[0]) == 0


def test_of_a_distiller_the_learned_variables_are_kept_and_no_memory():
    student = dense(4)
    memory = kd.sources.PredictionMemory(examples=5)
    distiller = kd.Distiller(
        student=student,
        teacher=memory,
        transfers=[kd.Transfer(kd.losses.SoftCrossEntropy())],
    )
    distiller.compile("sgd", crossentropy())
    best = BestWeights()
    drive(best, distiller, [0.5])
    before = [np.array(w) for w in student.get_weights()]
    fill(distiller.weights, 7.0)
    best.on_train_end()
    assert largest_difference(student.get_weights(), before) == 0
    assert memory.weights
    assert all(np.all(keras.ops.convert_to_numpy(w) == 7) for w in memory.weights)


def test_there_are_no_weights_before_there_was_an_epoch():
    best = BestWeights()
    with pytest.raises(ValueError, match="No epoch had a score"):
        best.best_weights()
    with pytest.raises(ValueError, match="before the end of `fit`"):
        best.last_weights()


def test_each_fit_starts_anew():
    model, best = compiled(), BestWeights()
    drive(best, model, [0.9])
    drive(best, model, [0.1, 0.2])
    assert (best.best_score, best.best_epoch) == (0.2, 1)


# Rewind ----------------------------------------------------------------------------------------

#        epoch   0    1    2    3    4    5    6    7    8    9
TABLE = [0.5, 0.5, 0.4, 0.6, 0.6, NAN, 0.1, 0.1, 0.1, 0.1]
REWOUND = [0, 0, 1, 0, 0, 1, 0, 1, 0, 1]
RATES = [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001, 0.001, 0.001]


@pytest.mark.core
@pytest.mark.parametrize(
    ("options", "epochs"),
    [({}, 8), ({"stop_counts": "at_min_lr"}, 10), ({"stop_patience": None}, 10)],
)
def test_rewinds_rates_and_the_stop_follow_the_table(options, epochs):
    callback = RewindOnPlateau(**{"patience": 2, "stop_patience": 4, **options})
    model = compiled()
    found = drive(callback, model, TABLE)
    assert len(found) == epochs
    assert model.stop_training is (callback.stop_patience is not None)
    stopped = model.stop_training
    assert [logs["rewound"] for logs in found] == REWOUND[: epochs - stopped] + [0] * stopped
    assert [logs["learning_rate"] for logs in found] == RATES[:epochs]
    assert (callback.best_score, callback.best_epoch) == (0.6, 3)


@pytest.mark.parametrize(
    ("scores", "options", "rewinds"),
    [
        # A plateau from the start: one rewind and the end.
        ([0.5] * 99, {}, [20]),
        # Better at epoch 30, ten after a rewind: both counts start again.
        ([0.5] * 30 + [0.6] * 99, {}, [20, 50]),
        # Each rate has its turn.
        ([0.5] * 99, {"stop_counts": "at_min_lr"}, [20, 40, 60]),
    ],
)
def test_the_papers_schedule_rewinds_after_20_epochs_and_ends_after_40(scores, options, rewinds):
    found = drive(RewindOnPlateau(**options), compiled(), scores)
    assert [epoch for epoch, logs in enumerate(found) if logs["rewound"]] == rewinds
    assert len(found) == rewinds[-1] + 20 + 1


@pytest.mark.parametrize("options", [{}, {"stop_patience": None}], ids=["stopped", "ran out"])
def test_the_last_weights_are_those_before_a_rewind_in_the_last_epoch(options):
    model = compiled()
    scores = Scores([0.5, 0.1, 0.1])
    rewind = RewindOnPlateau(**{"patience": 2, "stop_patience": 2, **options})
    fit(model, *data(), epochs=3, callbacks=[scores, rewind])
    assert largest_difference(rewind.last_weights(), scores.weights[2]) == 0
    assert largest_difference(scores.weights[2], scores.weights[0]) > 0.01
    assert largest_difference(model.get_weights(), scores.weights[0]) == 0


def test_the_smaller_the_better_for_a_loss():
    callback = RewindOnPlateau("val_accuracy", mode="min", patience=2)
    found = drive(callback, compiled(), [0.5, 0.4, 0.4, 0.6])
    assert [logs["rewound"] for logs in found] == [0, 0, 0, 1]
    assert callback.best_epoch == 1


@pytest.mark.core
@pytest.mark.parametrize(
    "make", [lambda: keras.optimizers.SGD(0.1, momentum=0.9), lambda: keras.optimizers.Adam(0.1)]
)
def test_a_rewind_restores_all_weights_and_zeroes_what_the_optimizer_remembers(make):
    model = compiled(make())
    scores, rewind = Scores([0.5, 0.1, 0.1, 0.1]), RewindOnPlateau(patience=2)
    weights = Look(lambda m: [np.array(w) for w in m.get_weights()])
    memory = Look(lambda m: [np.array(keras.ops.convert_to_numpy(v)) for v in slots(m.optimizer)])
    steps = Look(lambda m: int(keras.ops.convert_to_numpy(m.optimizer.iterations)))
    fit(model, *data(), epochs=4, callbacks=[scores, rewind, weights, memory, steps])
    assert largest_difference(weights.seen[2], scores.weights[0]) == 0
    assert largest_difference(scores.weights[2], scores.weights[0]) > 0.01
    assert [max(np.abs(m).max() for m in seen) > 0 for seen in memory.seen] == [1, 1, 0, 1]
    assert steps.seen == [3, 6, 9, 12]
    assert largest_difference(scores.weights[3], scores.weights[0]) > 0, "training goes on"


def test_the_momentum_may_stay():
    model = compiled()
    fill(slots(model.optimizer), 2.0)
    drive(RewindOnPlateau(patience=1, momentum="keep"), model, [0.5, 0.5])
    for slot in slots(model.optimizer):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(slot), 2.0)


def test_a_rewind_reaches_through_a_loss_scale():
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)
    model = compiled(scaled)
    fill(slots(inner), 2.0)
    drive(RewindOnPlateau(patience=1), model, [0.5, 0.5])
    assert slots(inner)
    assert all(not np.any(keras.ops.convert_to_numpy(v)) for v in slots(inner))
    assert float(keras.ops.convert_to_numpy(scaled.dynamic_scale)) == 64
    assert kd.scalars.number(inner.learning_rate) == 0.01


def test_a_rewind_treats_all_optimizers_of_several_students_alike():
    optimizers = {
        "a": keras.optimizers.SGD(0.1, momentum=0.9, name="a"),
        "b": keras.optimizers.SGD(0.005, momentum=0.9, name="b"),
    }
    transfers = [kd.Transfer(kd.losses.SoftTargets(), source="a", student="b")]
    distiller = kd.Distiller(student={"a": dense(4), "b": dense(4)}, transfers=transfers)
    distiller.compile(optimizers, crossentropy())
    distiller.optimizer.build(distiller.trainable_variables)
    for optimizer in optimizers.values():
        fill(slots(optimizer), 2.0)
    callback = RewindOnPlateau(patience=1, stop_patience=2, stop_counts="at_min_lr")
    found = drive(callback, distiller, [0.5] * 9)
    assert [logs["learning_rate_a"] for logs in found] == [0.1, 0.1, 0.01, 0.001, 0.001]
    assert [logs["learning_rate_b"] for logs in found] == [0.005, 0.005, 0.001, 0.001, 0.001]
    for optimizer in optimizers.values():
        assert all(not np.any(keras.ops.convert_to_numpy(v)) for v in slots(optimizer))


def test_without_any_score_a_plateau_only_lowers_the_rate():
    model = compiled()
    before = arrays(model)
    found = drive(RewindOnPlateau(patience=1, stop_patience=3), model, [NAN] * 9)
    assert [logs["learning_rate"] for logs in found] == [0.1, 0.01, 0.001]
    assert largest_difference(arrays(model), before) == 0


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        (
            lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9)),
            {},
            "Received: SGD with a schedule",
        ),
        (lambda: keras.optimizers.Adam(1e-4), {}, "0.0001 of Adam.*min_lr=0.001.*smaller"),
        (lambda: keras.optimizers.SGD(0.1, use_ema=True), {}, "use_ema.*momentum='keep'"),
    ],
)
def test_an_optimizer_that_cannot_rewind_is_refused(optimizer, options, message):
    with pytest.raises(ValueError, match=message):
        drive(RewindOnPlateau(**options), compiled(optimizer()), [0.5])


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 0},
        {"patience": 2.5},
        {"stop_patience": 0},
        {"factor": 0.0},
        {"factor": 1.5},
        {"min_lr": -1.0},
        {"momentum": "reset"},
        {"stop_counts": "some"},
    ],
)
def test_wrong_numbers_and_options_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}`"):
        RewindOnPlateau(**options)


# Teachers --------------------------------------------------------------------------------------


def remembering():
    distiller = kd.Distiller(
        student=dense(4),
        teacher=kd.sources.PredictionMemory(examples=40),
        transfers=[kd.Transfer(kd.losses.SoftCrossEntropy())],
    )
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
    return distiller


def test_the_best_epoch_teaches_and_a_loaded_distiller_remembers_its_score(tmp_path):
    distiller = remembering()
    (source,) = distiller.sources.values()
    history = fit(
        distiller,
        *data(40),
        epochs=5,
        callbacks=[Scores([0.5, 0.5, 0.75, NAN, 0.6]), BestTeacher()],
    )
    assert history.history["teacher_updated"] == [1, 0, 1, 0, 0]
    assert source.score == 0.75
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    found = drive(BestTeacher(), loaded, [0.7, 0.75, 0.8])
    assert [logs["teacher_updated"] for logs in found] == [0, 0, 1]


def calls(distiller, monkeypatch, callback, scores):
    """What a callback calls on the distiller's source, as text, in order."""
    found = []
    (source,) = distiller.sources.values()
    begin, commit = type(source).begin_epoch, type(source).commit

    def noted_begin(self):
        found.append("begin")
        begin(self)

    def noted_commit(self, score=None):
        found.append(f"commit {score}")
        commit(self, score)

    monkeypatch.setattr(type(source), "begin_epoch", noted_begin)
    monkeypatch.setattr(type(source), "commit", noted_commit)
    drive(callback, distiller, scores)
    return found


def test_what_was_not_taken_over_is_forgotten_at_the_next_epoch(monkeypatch):
    found = calls(remembering(), monkeypatch, BestTeacher(mode="min"), [0.5, 0.6, 0.4])
    assert found == ["begin", "commit 0.5", "begin", "begin", "commit 0.4"]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, ["begin", "commit None"] * 4),
        (2, ["begin", "begin", "commit None"] * 2),
        (3, ["begin", "begin", "begin", "commit None", "begin"]),
    ],
)
def test_a_periodic_teacher_takes_over_every_n_epochs(epochs, expected, monkeypatch):
    found = calls(remembering(), monkeypatch, PeriodicTeacher(epochs), [0.5] * 4)
    assert found == expected


@pytest.mark.parametrize("callback", [BestTeacher(), PeriodicTeacher()])
def test_a_policy_without_a_source_that_waits_says_so(callback):
    with pytest.raises(ValueError, match="Expected a `kd.Distiller` with a source.*Functional"):
        drive(callback, compiled(), [0.5])
    student = dense(4)
    average = kd.sources.Snapshot(student, decay=0.9)
    edge = kd.Transfer(kd.losses.SoftTargets())
    distiller = kd.Distiller(student=student, teacher=average, transfers=[edge])
    with pytest.raises(ValueError, match=r"Distiller with the sources \['teacher'\]"):
        drive(callback, distiller, [0.5])


@pytest.mark.parametrize("epochs", [0, -1, 1.5, True])
def test_a_period_is_a_whole_number_of_epochs(epochs):
    with pytest.raises(ValueError, match="`epochs` of PeriodicTeacher must be an integer >= 1"):
        PeriodicTeacher(epochs)


# Schedule --------------------------------------------------------------------------------------


@pytest.mark.core
def test_a_schedule_acts_in_each_epoch_without_tracing_again():
    traces = []

    def distance(source, student):
        traces.append(1)
        return keras.ops.mean(keras.ops.square(source - student), axis=-1)

    edge = kd.Transfer(distance, name="edge")
    distiller = kd.Distiller(student=dense(4), teacher=dense(8, 1), transfers=[edge])
    distiller.compile("sgd", crossentropy())
    look = Look(lambda model: len(traces))
    schedule = Schedule(edge, "weight", lambda epoch: 2 * epoch)
    logs = fit(distiller, *data(), epochs=3, callbacks=[schedule, look]).history
    assert logs["edge_weight"] == [0, 2, 4]
    expected = np.array(logs["label_loss"]) + np.array([0, 2, 4]) * logs["edge"]
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
    assert min(logs["edge"]) > 0.01
    assert look.seen == look.seen[:1] * 3


def test_a_schedule_of_keras_counts_in_epochs():
    cosine = keras.optimizers.schedules.CosineDecay(0.1, 4)
    model = compiled()
    found = drive(Schedule(model.optimizer, "learning_rate", cosine, "rate"), model, [0, 0, 0])
    expected = [0.1 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(3)]
    np.testing.assert_allclose([logs["rate"] for logs in found], expected, rtol=1e-6)
    assert kd.scalars.number(model.optimizer.learning_rate) == pytest.approx(expected[-1])


def test_a_schedule_is_named_after_its_owner():
    loss = kd.losses.SoftTargets(name="kd")
    assert Schedule(loss, "temperature", float).name == "kd_temperature"
    assert Schedule(loss, "temperature", float, name="T").name == "T"


def test_a_value_that_the_owner_refuses_says_so():
    loss = kd.losses.SoftTargets()
    with pytest.raises(ValueError, match="`temperature` of SoftTargets"):
        drive(Schedule(loss, "temperature", lambda epoch: -1.0), compiled(), [0.5])


@pytest.mark.parametrize("attribute", ["temprature", "name", "variable"])
def test_what_the_step_would_not_read_again_is_refused(attribute):
    loss = kd.losses.SoftTargets()
    loss.variable = kd.scalars.variable(1.0, "raw")
    with pytest.raises(ValueError, match=f"number of SoftTargets.*attribute='{attribute}'"):
        Schedule(loss, attribute, float)


def test_a_schedule_needs_a_function():
    with pytest.raises(TypeError, match="`function` must be callable.*function=0.5"):
        Schedule(conv().layers[1], "name", 0.5)
