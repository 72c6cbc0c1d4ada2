"""A run that was interrupted goes on as if nothing had happened."""

import json
import warnings

import keras
import numpy as np

from kdtoolkit import scalars
from kdtoolkit.callbacks.belonging import about_run, check_beside, check_layout, check_same
from kdtoolkit.callbacks.capture import RunState, below
from kdtoolkit.callbacks.checkpoints import Checkpoints, Position
from kdtoolkit.callbacks.muting import mute, unmute
from kdtoolkit.callbacks.order import in_order
from kdtoolkit.callbacks.state import stateful, with_state
from kdtoolkit.data.epochs import repeats, set_epoch
from kdtoolkit.locks import claim, release
from kdtoolkit.progress import LastCallback
from kdtoolkit.registry import expects
from kdtoolkit.settings import as_plain
from kdtoolkit.steps.skipping import Skipping, stop_skipping
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

    To go on in the middle of an epoch, its first batches are drawn and not trained on. Callbacks
    that Resume knows don't see them; others of a plain model get empty logs. Not kept is what only
    the engine knows, such as the counters of `tf.random.normal`: draw from a
    `keras.random.SeedGenerator` of a layer. TensorBoard and `ModelCheckpoint(save_freq=int)` count
    batches from the start of each `fit`, and `CSVLogger(append=True)` writes what is repeated
    again.

    A folder belongs to one run. What tells two runs apart are the shapes of all variables, the
    optimizer and its numbers, those of the transfers, the callbacks, the number and order of the
    batches, and seeds; not the examples themselves, nor weights. The first checkpoint is written
    before the first batch.

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

    @expects(directory="path", callbacks="several")
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
        self._given = None if callbacks is None else list(callbacks)
        for callback in self._given or ():
            stateful(callback)
        self.callbacks = self._given
        # What is told the epochs; None if nothing is known of the order of the data.
        self._data = data
        # Those that don't see the batches that are only drawn.
        self._others = self.callbacks or []
        self._state = None
        self._history = {}
        # Where this `fit` starts, and its content; None once it has.
        self._start, self._saved = None, None
        self._skipping = None
        self._about = {}
        self._epoch = self._saved_batch = 0
        self._alone = True

    @property
    def async_safe(self):
        """Whether JAX needs not wait for each batch: where this does nothing within an epoch."""
        within = any(position.batch for position in self._checkpoints.positions())
        return self.every_batches is None and not within

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
        self._settle(model)
        claim(self.directory)
        self._others = [callback for callback in given["callbacks"] if callback is not self]
        check_beside(self._others)
        self.callbacks = with_state(self._others) if self._given is None else self._given
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
        stop_skipping(model)
        unmute(self._others)
        self._skipping = None
        self._state = RunState(model, self.callbacks or [])
        self._about = about_run(model, self._data, self.params, self.seed)
        self._history = {}
        self._start = self._newest(model)
        if self._start is None:
            # What comes before the next checkpoint starts from the same weights as well.
            self._start = Position(0)
            self._save(self._start)
        self._saved = self._checkpoints.read(self._start)
        self._state.compare(self._saved, self.directory)
        check_same(self.directory, self._start, self._saved, self._about, self.params["epochs"])
        self._state.give(self._saved, metrics=False)
        self._about = json.loads(str(self._saved["about"]))
        self._history = {n: v.tolist() for n, v in below(self._saved, "history/").items()}
        self._history_of_fit.history = {name: list(v) for name, v in self._history.items()}

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
        known = self._data is not None and self.params["steps"]
        # The end of the epoch has one anyway, and that of a stopped epoch comes now.
        if due and known and done < self.params["steps"] and not self.model.stop_training:
            self._save(Position(self._epoch, done))
            self._saved_batch = done

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            self._history.setdefault(name, []).append(value)
        last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        if (epoch + 1) % self.every == 0 or last:
            self._save(Position(epoch + 1))

    def on_train_end(self, logs=None):
        release(self.directory)
        if self._start is not None:
            self._history_of_fit.epoch = list(range(self._start.epoch))
            self._tell_that_it_had_finished()

    def _tell_that_it_had_finished(self):
        warnings.warn(
            f"The run in '{self.directory}' had finished after {self._start.epoch} epochs, so "
            "nothing was trained. A new run needs a folder of its own",
            stacklevel=3,
        )

    # Going on ---------------------------------------------------------------------------------

    @property
    def _history_of_fit(self):
        """What `fit` returns; a list of callbacks that was made by hand may lack it."""
        return getattr(self.model, "history", None) or keras.callbacks.History()

    def _settle(self, model=None):
        """Learn which process of several this is: each has a folder of its own."""
        if not self._alone:
            return
        count = processes(model)
        check_layout(self.directory, count)
        if count > 1:
            self._alone = False
            own = self.directory / f"process-{rank(model)}-of-{count}"
            # Those that are interrupted together may be one checkpoint apart.
            self._checkpoints = Checkpoints(own, max(2, self._checkpoints.keep))

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
        expected = self._start.epoch
        if epoch != expected:
            raise ValueError(
                f"The next epoch of the run in '{self.directory}' is {expected}. Expected "
                "`fit(initial_epoch=resume.epoch)`. Received: a first epoch "
                f"{epoch}. Use another folder for a new run"
            )

    def _skip(self):
        """Have the batches drawn that the checkpoint has seen."""
        self._saved_batch = self._start.batch
        self._skipping = Skipping(self.model)
        mute(self._others)

    def _go_on(self):
        """The first batch that wasn't trained on comes next: everything as it was then."""
        unmute(self._others)
        stop_skipping(self.model)
        self._skipping = None
        self._state.compare(self._saved, self.directory, metrics=True)
        self._state.give(self._saved, metrics=True)
        self._saved = None

    def _save(self, position):
        stopped = bool(self.model.stop_training)
        arrays = self._state.arrays(metrics=position.batch > 0)
        arrays["stopped"] = np.asarray(stopped)
        arrays["next_epoch"] = np.asarray(self.params["epochs"] if stopped else position.epoch)
        arrays["about"] = np.asarray(json.dumps(self._about, default=as_plain))
        arrays.update((f"history/{n}", np.asarray(v)) for n, v in self._history.items())
        self._checkpoints.write(position, arrays)


def _check_built(model):
    if not model.built:
        raise ValueError(
            "Resume needs a model that has its weights before `fit`. Expected one with an "
            "Input, or one that was called on a batch. Received: "
            f"{type(model).__name__} without weights"
        )
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
