"""What a training step needs that isn't `keras.ops`, and nothing else.

The step itself is Keras's own on every backend: `Distiller.call` and `Distiller.compute_loss` hold
the maths. Two things are left: knowing which step is being traced, and the number of replicas that
share a batch.
"""

import contextlib
import contextvars
import enum

import keras


class Stage(enum.Enum):
    """Which of Keras's steps is running."""

    PREDICT = "predict"
    TRAIN = "train"
    EVALUATE = "evaluate"


# A context variable and not an attribute: replicas are traced in threads of their own.
_STAGE = contextvars.ContextVar("kdtoolkit_stage", default=Stage.PREDICT)


def stage():
    """The step that is being traced or run in this thread."""
    return _STAGE.get()


@contextlib.contextmanager
def during(value):
    """Mark the code inside as belonging to a step."""
    token = _STAGE.set(value)
    try:
        yield
    finally:
        _STAGE.reset(token)


def replicas():
    """Number of replicas whose gradients are summed for one update (1 without a strategy)."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def share(value):
    """This replica's share of a term that is the same on all, such as a regulariser.

    Keras's losses divide by the number of replicas themselves; what is added to them must too.
    """
    count = replicas()
    return value if count == 1 else value / count


def whole(value):
    """Undo `share` on a loss, for logging."""
    count = replicas()
    return value if count == 1 else value * count
