"""What every source is: a node of the graph that follows a student and teaches its past."""

import math

import keras
import numpy as np
from keras import ops

from kdtoolkit import functional, scalars

#: What a source teaches while it holds nothing yet.
INITIAL = ("labels", "student")

# What stands for no score. Not NaN, on which processes could never agree: it equals nothing.
NO_SCORE = float(np.finfo("float32").max)

# The logit of a class of probability 0: softmax makes it exactly 0, at any temperature up to 100.
NO_LOGIT = -1e4


class Source(keras.layers.Layer):
    """Base class of the teachers that a distiller fills by itself while it trains.

    A source follows one student. For each training batch the graph calls, in this order,

    1. `update()`, before anything is read;
    2. `read(...)`, where a transfer reads the source;
    3. `observe(...)`, with the student's output of this batch, from the pass that is trained.

    All three run inside the traced step, so they change state through variables only. Between
    epochs a callback (`kd.callbacks.BestTeacher`, `kd.callbacks.PeriodicTeacher`) calls
    `begin_epoch` and `commit`.

    Args:
        follows: name of the student; may be left out where there is only one.
        initial: "labels" or "student", what is taught while there is nothing to teach: the labels,
            or the student's own output, from which imitating losses get no gradient.
        name: the layer's name.
    """

    #: Whether the source waits for a callback to call `commit`.
    commits = False
    #: Whether batches must carry example ids.
    needs_ids = False
    #: Whether it speaks of training examples alone, so that `evaluate` leaves it out.
    remembers = True
    #: Whether `follows` is a list of students; then a list is what `student_output` is, too.
    follows_several = False

    def __init__(self, follows=None, initial="labels", name=None):
        super().__init__(name=name, dtype="float32", autocast=False)
        if initial not in INITIAL:
            raise ValueError(f"`initial` must be one of {INITIAL}. Received: initial={initial!r}")
        self.follows = follows
        self.initial = initial
        self._score = scalars.variable(NO_SCORE, "score")

    # What subclasses fill in ------------------------------------------------------------------

    @property
    def metrics(self):
        # Those of a network that was compiled before are no metrics of this training.
        return []

    @property
    def network(self):
        """The network whose layers transfers may read, or None."""
        return None

    def connect(self, student, output):
        """Learn whom to follow: the student's model, and the symbolic tensor that it returns."""

    @property
    def layers_held(self):
        """Paths of layers that transfers may read although there is no `network`."""
        return ()

    def attach(self, x):
        """The input given to `fit`, with what `read` will find in its context under "stored"."""
        return x

    def form(self, student_output):
        """What the source teaches as a symbolic view, given the student's output."""
        return {"output": student_output, "taps": {}}

    def update(self):
        """Before a training batch is read."""

    def read(self, forward, student_output, context):
        """What the source teaches for this batch, in the form of the student's output.

        Args:
            forward: function without arguments, the view of `network` for this batch.
            student_output: the followed student's output for this batch, without gradient.
            context: dict with `labels` and `example_id`, each may be None, and `stored`.

        Returns:
            A view, `{"output": tensor, "taps": {path: tensor}}`.
        """
        raise NotImplementedError

    def observe(self, student_output, context):
        """After a training batch was read; arguments as in `read`."""

    def begin_epoch(self):
        """Forget what waits for `commit`."""

    def commit(self, score=None):
        """Teach from now on what was seen since `begin_epoch`.

        Args:
            score: the monitored value of these weights, kept in `score`; or None.
        """
        self._score.assign(NO_SCORE if score is None else score)

    def reset(self):
        """Forget everything, as before the first batch."""
        self._score.assign(NO_SCORE)

    # What they share --------------------------------------------------------------------------

    @property
    def score(self):
        """The monitored value at the last `commit`, None if there was none. It is saved."""
        value = float(ops.convert_to_numpy(self._score))
        return None if value == NO_SCORE or math.isnan(value) else value

    def in_place_of_nothing(self, student_output, labels):
        """Logits to teach before the first commit, see `initial`.

        Examples without a label (a class number such as -1) get the student's own output.
        """
        if self.initial == "student":
            return student_output
        if labels is None:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' teaches the labels until it holds something "
                "else, but the data has none. Expected data of the form (x, y), or "
                f"`{type(self).__name__}(..., initial='student')`. Received: labels=None"
            )
        shares = functional.label_distribution(labels, student_output)
        logits = ops.where(shares > 0, ops.log(ops.maximum(shares, 1e-30)), NO_LOGIT)
        labelled = ops.sum(shares, axis=-1, keepdims=True) > 0
        return ops.where(labelled, logits, ops.cast(student_output, logits.dtype))

    def get_config(self):
        return {"follows": self.follows, "initial": self.initial, "name": self.name}
