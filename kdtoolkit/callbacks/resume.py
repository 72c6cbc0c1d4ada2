"""A run that was interrupted goes on as if nothing had happened."""

import itertools
import pathlib
import shutil

import keras
import numpy as np

from kdtoolkit import scalars
from kdtoolkit.callbacks.state import as_array, stateful
from kdtoolkit.progress import LastCallback
from kdtoolkit.saving import random_states

WEIGHTS = "model.weights.h5"
STATE = "state.npz"
FINISHED = "epoch-"
TEMPORARY = "tmp-"


class Resume(LastCallback):
    """Writes all state of a run after epochs, and goes on from the newest that was written.

    ```python
    resume = kd.callbacks.Resume("runs/first", callbacks=[rewind])
    model.fit(x, y, epochs=200, initial_epoch=resume.epoch, callbacks=[rewind, resume])
    ```

    The same lines start a run and go on with it. A run that was interrupted, even killed in the
    middle of an epoch, repeats what came after the newest checkpoint and ends with the bits of a
    run that wasn't, on the same machine, if its data depends on the epoch alone: arrays with
    `shuffle=False`, or `kd.data.ArrayPipeline` with `kd.data.FollowEpochs`. Keras's own shuffling
    isn't repeated.

    Kept are the model's weights, the optimizer, the states of random layers such as dropout, what
    the sources of a distiller remember, and the state of the given callbacks. The history that
    `fit` returns has the epochs of its own call alone.

    Each checkpoint is a folder `epoch-00007`, named after the number of finished epochs, with
    `model.weights.h5` and `state.npz`. It is written under a temporary name and then renamed, so
    that no half of one is ever read. One run per folder at a time.

    A run that has finished runs no epoch more; its callbacks still do what they do at the end,
    such as putting the best weights back. A run that ended by its number of epochs goes on with
    more `epochs`; one that a callback stopped doesn't.

    Args:
        directory: folder of the checkpoints of this run alone. Made if it isn't there.
        callbacks: list of the callbacks of this `fit` whose state is kept: those with `get_state()`
            (returns a dict of arrays and numbers) and `set_state(dict)`, such as `RewindOnPlateau`,
            and Keras's `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint`. In the list of
            `fit` they come before this one, which is the last.
        every: int >= 1, epochs from one checkpoint to the next; the last epoch has one too. What
            came after the newest is repeated. Defaults to 1.
        keep: int >= 1, how many checkpoints stay, the newest. Defaults to 2.

    Raises:
        TypeError: a callback whose state can't be read.
        ValueError: `every` or `keep` below 1; at the start of `fit`, callbacks in the wrong order,
            a model without weights, or a checkpoint of another model, optimizer or list of
            callbacks; at the first epoch, one that isn't the next of this run.

    Example:
        >>> import tempfile, kdtoolkit as kd
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     kd.callbacks.Resume(folder).epoch
        0
    """

    def __init__(self, directory, callbacks=(), every=1, keep=2):
        super().__init__()
        self.every = scalars.whole(every, "every", "Resume")
        self.keep = scalars.whole(keep, "keep", "Resume")
        self.directory = pathlib.Path(directory)
        self.callbacks = list(callbacks)
        self._states = [stateful(callback) for callback in self.callbacks]
        # What the first epoch of this `fit` must be; None once it was.
        self._expected = None

    @property
    def epoch(self):
        """The next epoch of this run, an int, for `fit(initial_epoch=...)`: 0 for a new one.

        The number of epochs of `fit`, if a callback stopped the run.
        """
        newest = self._newest()
        return 0 if newest is None else int(_read(newest)["epoch"])

    # What Keras calls -------------------------------------------------------------------------

    def set_model(self, model):
        super().set_model(model)
        # Keras sets the model of the callbacks in their order.
        late = [type(c).__name__ for c in self.callbacks if c.model is not model]
        if late:
            raise ValueError(
                "Resume must see what the other callbacks did. Expected "
                "`fit(callbacks=[..., resume])` with all that Resume was given, and Resume as the "
                f"last. Received: a list without {late} before Resume"
            )

    def on_train_begin(self, logs=None):
        self._expected = self.epoch
        model = self.model
        if not model.built:
            raise ValueError(
                "Resume needs a model that has its weights before `fit`. Expected one with an "
                "Input, or one that was called on a batch. Received: "
                f"{type(model).__name__} without weights"
            )
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        newest = self._newest()
        if newest is not None:
            self._load(newest)

    def on_epoch_begin(self, epoch, logs=None):
        expected, self._expected = self._expected, None
        if expected is None:
            return
        newest = self._newest()
        if newest is not None and _read(newest)["stopped"]:
            raise ValueError(
                f"The run in '{self.directory}' was stopped by a callback after {newest.name}, so "
                f"it has no next epoch. Expected `epochs` of at most {expected}, as it had. "
                f"Received: an epoch {epoch}. Use another folder for a longer run"
            )
        if epoch != expected:
            raise ValueError(
                f"The next epoch of the run in '{self.directory}' is {expected}. Expected "
                "`fit(initial_epoch=resume.epoch)`. Received: a first epoch "
                f"{epoch}. Use another folder for a new run"
            )

    def on_epoch_end(self, epoch, logs=None):
        last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        if (epoch + 1) % self.every and not last:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        name = f"{FINISHED}{epoch + 1:05d}"
        temporary = self.directory / f"{TEMPORARY}{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        self._save(temporary, epoch)
        temporary.rename(self.directory / name)
        self._clean()

    # Checkpoints ------------------------------------------------------------------------------

    def _newest(self):
        found = self._checkpoints()
        return found[-1] if found else None

    def _checkpoints(self):
        """The folders of the finished epochs, the oldest first."""
        found = self.directory.glob(f"{FINISHED}*")
        return sorted(found, key=lambda folder: int(folder.name.removeprefix(FINISHED)))

    def _clean(self):
        leftovers = self.directory.glob(f"{TEMPORARY}{FINISHED}*")
        for folder in [*self._checkpoints()[: -self.keep], *leftovers]:
            shutil.rmtree(folder)

    def _save(self, folder, epoch):
        model = self.model
        stopped = bool(model.stop_training)
        model.save_weights(folder / WEIGHTS)
        arrays = {
            "epoch": self.params["epochs"] if stopped else epoch + 1,
            "stopped": stopped,
            "made_of": self._made_of(),
        }
        for index, variable in enumerate(random_states(model)):
            arrays[f"random/{index}"] = keras.ops.convert_to_numpy(variable)
        for index, state in enumerate(self._states):
            saved = state.get_state()
            arrays.update((f"callback/{index}/{name}", value) for name, value in saved.items())
        np.savez(folder / STATE, **{name: as_array(value) for name, value in arrays.items()})

    def _load(self, folder):
        model, saved = self.model, _read(folder)
        _compare(self.directory, list(saved["made_of"]), self._made_of())
        model.load_weights(folder / WEIGHTS)
        for index, variable in enumerate(random_states(model)):
            variable.assign(saved[f"random/{index}"])
        for index, state in enumerate(self._states):
            state.set_state(_below(saved, f"callback/{index}/"))

    def _made_of(self):
        """What must be the same to go on: shapes of variables, optimizer and callbacks by class."""
        model = self.model
        parts = [f"a variable of the model of shape {tuple(v.shape)}" for v in model.variables]
        parts.append(f"the optimizer {type(model.optimizer).__name__}")
        parts += [
            f"a variable of the optimizer of shape {tuple(v.shape)}"
            for v in model.optimizer.variables
        ]
        return parts + [f"the callback {type(callback).__name__}" for callback in self.callbacks]


def _read(folder):
    with np.load(folder / STATE, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _below(arrays, prefix):
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _compare(directory, saved, now):
    if saved == now:
        return
    pairs = itertools.zip_longest(saved, now, fillvalue="nothing")
    before, after = next((a, b) for a, b in pairs if a != b)
    raise ValueError(
        f"The run in '{directory}' was of another model, optimizer or list of callbacks. Expected "
        f"{before}. Received: {after}. Use what it was started with, or another folder"
    )
