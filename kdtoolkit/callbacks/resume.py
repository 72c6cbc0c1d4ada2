"""A run that was interrupted goes on as if nothing had happened."""

import warnings

import keras
import numpy as np

from kdtoolkit import scalars
from kdtoolkit.callbacks.capture import RunState, below
from kdtoolkit.callbacks.checkpoints import Checkpoints, Position
from kdtoolkit.callbacks.order import in_order
from kdtoolkit.callbacks.state import stateful, with_state
from kdtoolkit.data.epochs import repeats, set_epoch
from kdtoolkit.locks import claim
from kdtoolkit.progress import LastCallback
from kdtoolkit.steps.skipping import Skipping
from kdtoolkit.steps.workers import earliest, processes, rank

_NO_ORDER = (
    "Resume doesn't know the order of this data, so the run goes on at the start of an epoch, and "
    "ends as an uninterrupted one would only if every epoch has the same batches. Expected arrays, "
    "`kd.data.ArrayPipeline`, `kd.data.ReorderedBatches` or `kd.data.epoch_dataset`, without "
    "`steps_per_epoch`"
)


class Resume(LastCallback):
    """An interrupted `fit` ends with the bits of one that was left alone.

    ```python
    distiller.fit(x, y, epochs=200, callbacks=[rewind, kd.callbacks.Resume("runs/first")])
    ```

    The same line starts a run and goes on with it, however it ended: it writes all that training
    changes to a file after each epoch (`every`) and, if asked, after some batches of it
    (`every_batches`), and starts from the newest file. What came after that is repeated.

    Kept are the weights of students, teachers and losses, what memories hold, optimizers with
    their slots, accumulators and loss scale, seed generators, the state of metrics, numbers that
    schedules set, the counters of callbacks, Python's and NumPy's random states, and the history
    of the epochs so far. The same bits need the same machine, versions and number of devices.

    Put it last in the list of callbacks. In the `fit` of a `kd.Distiller` that is all: it starts
    at the right epoch, the states of the other callbacks are kept, and the order of the data
    repeats itself:

    | data | order |
    |---|---|
    | arrays | shuffled here and not by Keras, by `(seed, epoch)` |
    | arrays with `shuffle=False` | their own |
    | `kd.data.ArrayPipeline`, `ReorderedBatches`, `epoch_dataset` | by `(their seed, epoch)` |
    | any other | unknown: goes on at the start of an epoch, with a warning |

    Another `keras.Model` must be told, since its `fit` doesn't know of this callback:

    ```python
    resume = kd.callbacks.Resume("runs/first", callbacks=[rewind], data=train)
    model.fit(train, shuffle=False, epochs=200, initial_epoch=resume.epoch,
              callbacks=[rewind, resume])
    ```

    To go on in the middle of an epoch, its first batches are drawn and not trained on; other
    callbacks don't see them. Not kept is what only the engine knows, such as the counters of
    `tf.random.normal`: draw from a `keras.random.SeedGenerator` of a layer. TensorBoard and
    `ModelCheckpoint(save_freq=int)` count batches from the start of each `fit`.

    A checkpoint is one file, `epoch-00007.npz` or `epoch-00007-batch-000120.npz`, named after what
    is finished: arrays without pickle, each with a checksum. It is written under a temporary name,
    flushed to the disk and renamed. The folder belongs to one run, and to one process at a time.
    Of several processes that train together each has a folder in it, and they start from the
    newest checkpoint that all of them have.

    A run that has finished runs no epoch more; its callbacks still do what they do at the end,
    such as putting the best weights back. A run that ended by its number of epochs goes on with
    more `epochs`; one that a callback stopped doesn't.

    Args:
        directory: folder of the checkpoints of this run alone. Made if it isn't there.
        callbacks: list of the callbacks of this `fit` whose state is kept: those with `get_state()`
            (returns a dict of arrays and numbers) and `set_state(dict)`, such as `RewindOnPlateau`,
            and Keras's `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint`. None (default):
            in the `fit` of a distiller all that have one; elsewhere none.
        every: int >= 1, epochs from one checkpoint to the next; the last epoch has one too.
            Defaults to 1.
        every_batches: int >= 1, batches between the checkpoints within an epoch, or None (default)
            for none.
        keep: int >= 1, how many checkpoints stay, the newest. Defaults to 2.
        data: the training data, for a model that isn't a distiller.
        seed: int >= 0, for the order of arrays. Defaults to 0.

    Raises:
        TypeError: a callback whose state can't be read.
        ValueError: a number out of range; at the start of `fit`, callbacks in the wrong order, a
            model without weights, a checkpoint that is damaged or of another model, optimizer, list
            of callbacks or number of batches, or a folder that another process uses; at the first
            epoch, one that isn't the next of this run.

    Example:
        >>> import tempfile, kdtoolkit as kd
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     kd.callbacks.Resume(folder).epoch
        0
    """

    def __init__(
        self,
        directory,
        callbacks=None,
        every=1,
        every_batches=None,
        keep=2,
        data=None,
        seed=0,
    ):
        super().__init__()
        self.every = scalars.whole(every, "every", "Resume")
        self.every_batches = every_batches
        if every_batches is not None:
            self.every_batches = scalars.whole(every_batches, "every_batches", "Resume")
        self.seed = scalars.whole(seed, "seed", "Resume", minimum=0)
        self._checkpoints = Checkpoints(directory, scalars.whole(keep, "keep", "Resume"))
        self.callbacks = None if callbacks is None else list(callbacks)
        for callback in self.callbacks or ():
            stateful(callback)
        # What is told the epochs; None if nothing is known of the order of the data.
        self._data = data
        # Those that don't see the batches that are only drawn.
        self._others = self.callbacks or []
        self._state = None
        self._history = {}
        # Where this `fit` starts, and its content; None once it has.
        self._start, self._saved = None, None
        self._skipping = None
        self._epoch = self._saved_batch = 0
        self._alone = True

    @property
    def directory(self):
        """The folder, a `pathlib.Path`."""
        return self._checkpoints.directory

    @property
    def epoch(self):
        """The next epoch of this run, an int, for `fit(initial_epoch=...)`: 0 for a new one.

        The number of epochs of `fit`, if a callback stopped the run.
        """
        return self._next_epoch(None)

    def prepare(self, model, given):
        others = [callback for callback in given["callbacks"] if callback is not self]
        if any(isinstance(c, keras.callbacks.BackupAndRestore) for c in others):
            raise ValueError(
                "BackupAndRestore and Resume would both put a run back. Expected one of them. "
                "Received: both. Leave BackupAndRestore out: Resume keeps more"
            )
        self._others = others
        if self.callbacks is None:
            self.callbacks = with_state(others)
        given, self._data = in_order(given, self.seed)
        return {**given, "initial_epoch": given.get("initial_epoch") or self._next_epoch(model)}

    # What Keras calls -------------------------------------------------------------------------

    def set_model(self, model):
        super().set_model(model)
        # Keras sets the model of the callbacks in their order.
        late = [type(c).__name__ for c in self.callbacks or () if c.model is not model]
        if late:
            raise ValueError(
                "Resume must see what the other callbacks did. Expected "
                "`fit(callbacks=[..., resume])` with all that Resume was given, and Resume as the "
                f"last. Received: a list without {late} before Resume"
            )

    def on_train_begin(self, logs=None):
        model = self.model
        self._settle(model)
        claim(self.directory)
        _check_built(model)
        if self._data is None:
            warnings.warn(_NO_ORDER, stacklevel=2)
        self._state = RunState(model, self.callbacks or [])
        self._start, self._saved, self._history = Position(0), None, {}
        newest = self._newest(model)
        if newest is not None:
            self._start, self._saved = newest, self._checkpoints.read(newest)
            self._state.compare(self._saved, self.directory)
            self._state.give(self._saved, metrics=False)
            self._history = {n: v.tolist() for n, v in below(self._saved, "history/").items()}
            self._history_of_fit.history = {name: list(v) for name, v in self._history.items()}
        self._unmute()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._saved_batch = epoch, 0
        if self._start is not None:
            self._check_first(epoch)
            # Keras starts this list after all callbacks have begun.
            self._history_of_fit.epoch = list(range(epoch))
            if self._start.batch:
                self._skip()
            else:
                self._saved = None
            self._start = None
        if repeats(self._data):
            set_epoch(self._data, epoch)

    def on_train_batch_end(self, batch, logs=None):
        done = batch + 1
        if self._skipping is not None:
            if done >= self._saved_batch:
                self._go_on()
            return
        due = self.every_batches is not None and done - self._saved_batch >= self.every_batches
        if due and self._data is not None and done < self.params["steps"]:
            self._save(Position(self._epoch, done))
            self._saved_batch = done

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            self._history.setdefault(name, []).append(value)
        last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        if (epoch + 1) % self.every == 0 or last:
            self._save(Position(epoch + 1))

    def on_train_end(self, logs=None):
        if self._start is not None:
            self._history_of_fit.epoch = list(range(self._start.epoch))

    # Going on ---------------------------------------------------------------------------------

    @property
    def _history_of_fit(self):
        """What `fit` returns; a list of callbacks that was made by hand may lack it."""
        return getattr(self.model, "history", None) or keras.callbacks.History()

    def _settle(self, model=None):
        """Learn which process of several this is: each has a folder of its own."""
        if self._alone and processes(model) > 1:
            self._alone = False
            own = self.directory / f"process-{rank(model)}-of-{processes(model)}"
            self._checkpoints = Checkpoints(own, self._checkpoints.keep)

    def _next_epoch(self, model):
        self._settle(model)
        position = self._newest(model)
        return 0 if position is None else int(self._checkpoints.read(position)["next_epoch"])

    def _newest(self, model):
        """The position of the newest checkpoint, of those that all processes have, or None."""
        found = self._checkpoints.positions()
        newest = found[-1] if found else None
        if self._alone:
            return newest
        agreed = earliest(newest or (-1, 0), model)
        if agreed == (-1, 0):
            return None
        if agreed not in found:
            raise ValueError(
                f"The processes have no checkpoint in common: '{self.directory}' lacks "
                f"{Position(*agreed).file_name}, the newest of another. Expected the folders of "
                "one run, each with at least 2 (`keep`). Copy it there, or start anew"
            )
        return Position(*agreed)

    def _check_first(self, epoch):
        """Refuse another first epoch than the next one of this run."""
        saved, expected = self._saved, self._start.epoch
        if saved is not None and saved["stopped"]:
            raise ValueError(
                f"The run in '{self.directory}' was stopped by a callback after "
                f"{self._start.file_name}, so it has no next epoch. Expected `epochs` of at most "
                f"{saved['next_epoch']}, as it had. Received: an epoch {epoch}. Use another folder "
                "for a longer run"
            )
        if epoch != expected:
            raise ValueError(
                f"The next epoch of the run in '{self.directory}' is {expected}. Expected "
                "`fit(initial_epoch=resume.epoch)`. Received: a first epoch "
                f"{epoch}. Use another folder for a new run"
            )

    def _skip(self):
        """Have the batches drawn that the checkpoint has seen."""
        steps = int(self._saved["steps"])
        if self._data is None or steps != self.params["steps"]:
            raise ValueError(
                f"The run in '{self.directory}' was interrupted within an epoch of {steps} "
                "batches, whose order was known. Expected the same data and batch size. Received: "
                f"{self.params['steps']} batches{' in an unknown order' * (self._data is None)}. "
                "Use what the run was started with, or another folder"
            )
        self._saved_batch = self._start.batch
        self._skipping = Skipping(self.model)
        for callback in self._others:
            callback.on_train_batch_begin = callback.on_train_batch_end = _nothing

    def _go_on(self):
        """The first batch that wasn't trained on comes next: everything as it was then."""
        self._unmute()
        self._skipping.end(self.model)
        self._skipping = None
        self._state.give(self._saved, metrics=True)
        self._saved = None

    def _unmute(self):
        for callback in self._others:
            for name in ("on_train_batch_begin", "on_train_batch_end"):
                if vars(callback).get(name) is _nothing:
                    delattr(callback, name)

    def _save(self, position):
        stopped = bool(self.model.stop_training)
        arrays = self._state.arrays(metrics=position.batch > 0)
        arrays["stopped"] = np.asarray(stopped)
        arrays["next_epoch"] = np.asarray(self.params["epochs"] if stopped else position.epoch)
        arrays["steps"] = np.asarray(self.params["steps"] or 0)
        arrays.update((f"history/{n}", np.asarray(v)) for n, v in self._history.items())
        self._checkpoints.write(position, arrays)


def _nothing(batch, logs=None):
    """What others do with a batch that is only drawn."""


def _check_built(model):
    if not model.built:
        raise ValueError(
            "Resume needs a model that has its weights before `fit`. Expected one with an "
            "Input, or one that was called on a batch. Received: "
            f"{type(model).__name__} without weights"
        )
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
