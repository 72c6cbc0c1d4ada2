"""A run that was interrupted ends like one that wasn't, to the bit."""

import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit.callbacks import BestTeacher, BestWeights, Resume, RewindOnPlateau
from tests.support import Subclassed, arrays, crossentropy, data, dense, fit, largest_difference

EPOCHS = 5
# Interrupted after epoch 2, in the middle of a plateau; the rewind to epoch 1 comes after 3.
SCORES = [0.2, 0.5, 0.4, 0.3, 0.5]


class Interruption(Exception):
    """What a test raises in the middle of a run."""


class Scores(keras.callbacks.Callback):
    """Writes the scores of a script into the logs, and counts the epochs that ran."""

    def __init__(self, scores=SCORES):
        super().__init__()
        self.scores = scores
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        logs["val_accuracy"] = self.scores[epoch]
        self.epochs.append(epoch)


class InEpoch(keras.callbacks.Callback):
    """Calls a function before the second batch of an epoch."""

    def __init__(self, epoch, function):
        super().__init__()
        self.epoch, self.function = epoch, function
        self.now = None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, 1):
            self.function()


def interrupt():
    raise Interruption


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def plain():
    model = dense(4, dropout=0.5)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), crossentropy())
    return model


def distilling():
    distiller = kd.Distiller(
        student=dense(4, dropout=0.5),
        teacher={"past": kd.sources.PredictionMemory(), "large": dense(8, 1)},
        transfers=[
            kd.Transfer(kd.losses.SoftCrossEntropy(), source="past"),
            kd.Transfer(kd.losses.SoftTargets(), source="large"),
        ],
    )
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), crossentropy())
    return distiller


def train(model, directory, *, epochs=EPOCHS, extra=()):
    """Train one model in this folder, or go on with it; returns the callbacks."""
    x, y = data()
    distils = isinstance(model, kd.Distiller)
    pipeline = kd.data.ArrayPipeline(x, y, batch_size=16, seed=3, example_ids=distils)
    scores, rewind = Scores(), RewindOnPlateau(patience=2, stop_patience=4)
    teacher = [BestTeacher()] if distils else []
    resume = Resume(directory, callbacks=[rewind], data=pipeline)
    model.fit(
        pipeline,
        shuffle=False,
        epochs=epochs,
        initial_epoch=resume.epoch,
        callbacks=[kd.data.FollowEpochs(pipeline), *extra, scores, *teacher, rewind, resume],
        verbose=0,
    )
    return scores, rewind


def all_state(model, rewind):
    optimizer = [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
    counters = [np.asarray(value) for value in rewind.get_state().values()]
    return [*arrays(model), *optimizer, *rewind.last_weights(), *counters]


def assert_same_state(first, second):
    for a, b in zip(all_state(*first), all_state(*second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.core
def test_a_run_interrupted_in_an_epoch_ends_with_the_bits_of_one_that_was_not(tmp_path):
    whole = distilling()
    _, rewind = train(whole, tmp_path / "whole")
    assert kd.scalars.number(whole.optimizer.learning_rate) == 0.01, "there was a rewind"

    first = distilling()
    with pytest.raises(Interruption):
        train(first, tmp_path / "parts", extra=[InEpoch(3, interrupt)])
    # Another run of the program: nothing of the first one is left but the folder.
    second = distilling()
    scores, again = train(second, tmp_path / "parts")
    assert scores.epochs == [3, 4]
    assert_same_state((second, again), (whole, rewind))
    assert largest_difference(again.best_weights(), again.last_weights()) > 0


def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(tmp_path):
    whole = plain()
    _, rewind = train(whole, tmp_path / "whole")
    assert kd.scalars.number(whole.optimizer.learning_rate) == 0.01, "there was a rewind"
    folder = str(tmp_path / "parts")
    code = (
        "import sys; from tests.test_resume import *; "
        "train(plain(), sys.argv[1], extra=[InEpoch(3, kill)])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", code, folder], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    second = plain()
    scores, again = train(second, folder)
    assert scores.epochs == [3, 4]
    assert_same_state((second, again), (whole, rewind))
    assert largest_difference(again.best_weights(), again.last_weights()) > 0


# Folders ---------------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run(directory, callbacks=(), *, model=None, epochs=2, initial_epoch=None, kept=None, **options):
    """A short run with scores; returns the epochs that ran."""
    scores = Scores()
    model = plain() if model is None else model
    kept = [c for c in callbacks if c is not scores] if kept is None else kept
    resume = Resume(directory, callbacks=kept, data=data()[0], **options)
    first = resume.epoch if initial_epoch is None else initial_epoch
    callbacks = [scores, *callbacks, resume]
    fit(model, *data(), epochs=epochs, initial_epoch=first, callbacks=callbacks, shuffle=False)
    return scores.epochs


def test_the_newest_checkpoints_stay_and_leftovers_go(tmp_path):
    folder = tmp_path / "deep" / "run"
    assert Resume(folder).epoch == 0
    assert not folder.exists()
    run(folder, epochs=3)
    assert names(folder) == [".lock", "epoch-00002.npz", "epoch-00003.npz"]
    # What a killed process leaves: half of a checkpoint under a temporary name.
    (folder / ".epoch-00004-a1b2.npz").write_bytes(b"half")
    assert Resume(folder).epoch == 3
    assert run(folder, epochs=5, keep=1) == [3, 4]
    assert names(folder) == [".lock", "epoch-00005.npz"]


def test_checkpoints_may_come_every_few_epochs_and_the_last_epoch_has_one(tmp_path):
    run(tmp_path, epochs=5, every=2, keep=9)
    found = [f"epoch-0000{epoch}.npz" for epoch in (0, 2, 4, 5)]
    assert names(tmp_path) == [".lock", *found]
    assert Resume(tmp_path).epoch == 5


def test_a_finished_run_runs_no_epoch_more_but_puts_the_best_weights_back(tmp_path):
    first = plain()
    train(first, tmp_path)
    again = plain()
    with pytest.warns(UserWarning, match="had finished after 5 epochs.*a folder of its own"):
        scores, rewind = train(again, tmp_path)
    assert scores.epochs == []
    assert rewind.best_epoch == 1
    assert largest_difference(again.get_weights(), first.get_weights()) == 0


class Stop(keras.callbacks.Callback):
    """Stops training after the first epoch."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


def test_the_last_weights_of_a_run_that_ended_in_a_rewind_are_kept(tmp_path):
    model = plain()
    _, rewind = train(model, tmp_path, epochs=4)
    assert largest_difference(rewind.last_weights(), rewind.best_weights()) > 1e-4
    with pytest.warns(UserWarning, match="had finished"):
        _, again = train(plain(), tmp_path, epochs=4)
    assert largest_difference(again.last_weights(), rewind.last_weights()) == 0


def test_a_run_that_a_callback_stopped_has_finished(tmp_path):
    assert run(tmp_path, [Stop()], epochs=4, kept=[]) == [0]
    assert Resume(tmp_path).epoch == 4
    with pytest.warns(UserWarning, match="had finished"):
        assert run(tmp_path, [Stop()], epochs=4, kept=[]) == []
    with pytest.raises(ValueError, match="stopped by a callback after epoch-00001.*another folder"):
        run(tmp_path, [Stop()], epochs=5, kept=[])


# What other callbacks know ---------------------------------------------------------------------


def keras_callbacks(tmp_path):
    return [
        keras.callbacks.EarlyStopping("val_accuracy", mode="max", restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("val_accuracy", mode="max", patience=9, cooldown=2),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "best.keras", "val_accuracy", mode="max", save_best_only=True
        ),
    ]


def test_the_counters_of_keras_callbacks_go_on(tmp_path):
    early, reduce, checkpoint = keras_callbacks(tmp_path)
    early.patience = 9
    run(tmp_path / "run", [early, reduce, checkpoint], epochs=3)
    assert (early.best, early.best_epoch, early.wait) == (0.5, 1, 1)
    again = keras_callbacks(tmp_path)
    # No epoch runs, so what they know comes from the folder alone.
    with pytest.warns(UserWarning, match="had finished"):
        assert run(tmp_path / "run", again, epochs=3) == []
    early_again, reduce_again, checkpoint_again = again
    assert (early_again.best, early_again.best_epoch, early_again.wait) == (0.5, 1, 1)
    assert largest_difference(early_again.best_weights, early.best_weights) == 0
    assert (reduce_again.best, reduce_again.wait, reduce_again.cooldown_counter) == (0.5, 1, 0)
    assert checkpoint_again.best == checkpoint.best == 0.5


def test_a_callback_without_state_is_refused_with_the_protocol():
    with pytest.raises(TypeError, match=r"get_state\(\).*set_state.*Received: CSVLogger.*leave"):
        Resume("anywhere", callbacks=[keras.callbacks.CSVLogger("log.csv")])


class Strange(BestWeights):
    """A state that isn't arrays."""

    def get_state(self):
        return {"what": {"not": "an array"}}


def test_a_state_that_is_no_array_is_refused(tmp_path):
    with pytest.raises(TypeError, match="arrays and numbers.*not.*an array"):
        run(tmp_path, [Strange()])


# Mistakes --------------------------------------------------------------------------------------


def test_a_forgotten_first_epoch_says_what_to_write(tmp_path):
    run(tmp_path, epochs=2)
    with pytest.raises(ValueError, match=r"is 2.*`fit\(initial_epoch=resume.epoch\)`.*epoch 0"):
        run(tmp_path, epochs=3, initial_epoch=0)


def test_callbacks_that_come_after_resume_or_not_at_all_are_refused(tmp_path):
    best = BestWeights()
    with pytest.raises(ValueError, match=r"as the last.*\['BestWeights'\] before Resume"):
        run(tmp_path, [Resume(tmp_path / "other", callbacks=[best]), best], kept=[])
    with pytest.raises(ValueError, match=r"\['BestWeights'\]"):
        run(tmp_path, [], kept=[best])


def test_another_model_optimizer_or_list_of_callbacks_is_refused(tmp_path):
    run(tmp_path)
    larger = dense(5, dropout=0.5)
    larger.compile(keras.optimizers.SGD(0.1, momentum=0.9), crossentropy())
    with pytest.raises(ValueError, match=r"model of shape \(6, 4\).*model of shape \(6, 5\)"):
        run(tmp_path, model=larger)
    other = dense(4, dropout=0.5)
    other.compile("adam", crossentropy())
    with pytest.raises(ValueError, match="Expected the optimizer SGD. Received: .* Adam"):
        run(tmp_path, model=other)
    with pytest.raises(ValueError, match="Expected nothing. Received: the callback BestWeights"):
        run(tmp_path, [BestWeights()])


@pytest.mark.tensorflow
def test_a_model_without_weights_is_refused(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("other engines build the model before the callbacks start")
    model = Subclassed()
    model.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match="called on a batch. Received: Subclassed without"):
        run(tmp_path, model=model)


@pytest.mark.parametrize("name", ["keep", "every"])
@pytest.mark.parametrize("value", [0, 1.5, True])
def test_numbers_of_epochs_are_whole_and_positive(name, value):
    with pytest.raises(ValueError, match=f"`{name}` of Resume must be an integer >= 1"):
        Resume("anywhere", **{name: value})
