"""What a training step needs that isn't `keras.ops`, and nothing else.

The step itself is Keras's own on every backend: `Distiller.call` and `Distiller.compute_loss` hold
the maths. What is left: knowing which step is being traced, and for whom; the number of replicas
that share a batch; tables that are changed in place. The one step that Keras's can't express,
students updated one after the other, is in `alternating`.
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
def _holding(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def during(value):
    """Mark the code inside a `with` as belonging to a step."""
    return _holding(_STAGE, value)


# The one student that learns in this pass, where students are updated one after the other.
_LEARNER = contextvars.ContextVar("kdtoolkit_learner", default=None)


def learner():
    """Name of the only student that learns in this pass, None if all do."""
    return _LEARNER.get()


def only(student):
    """Mark the code inside a `with` as computing the loss of one student alone."""
    return _holding(_LEARNER, student)


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


# Tables of one row per example. Keras would copy the whole table to change a few rows of it, or to
# read them; TensorFlow changes and reads rows in place, and XLA does so by itself.


def read_rows(table, rows):
    """The rows of a variable `(examples, ...)` that an int tensor `(batch,)` names."""
    if keras.backend.backend() != "tensorflow":
        return keras.ops.take(table, rows, axis=0)
    import tensorflow as tf

    return tf.gather(table.value, rows)


def write_rows(table, rows, values):
    """Change those rows of a variable, on this replica alone."""
    if keras.backend.backend() != "tensorflow":
        table.assign(keras.ops.scatter_update(table, rows[:, None], values))
        return
    import tensorflow as tf

    table.value.scatter_update(tf.IndexedSlices(values, rows))


def check_rows(rows, examples, message):
    """Stop the step if a row isn't in a table of this length.

    On TensorFlow only, and not under XLA: elsewhere a step can't raise. Returns rows that are safe
    to use there.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        inside = tf.reduce_all((rows >= 0) & (rows < examples))
        with tf.control_dependencies([tf.debugging.Assert(inside, [message])]):
            rows = tf.identity(rows)
    return keras.ops.clip(rows, 0, examples - 1)


def copies(variable):
    """A variable's value on each replica, read between steps.

    The replicas of other processes count too, so all processes must ask at the same time.
    """
    own = own_copies(variable)
    strategy = getattr(variable.value, "distribute_strategy", None)
    if strategy is None or strategy.num_replicas_in_sync == len(own):
        return own
    each = strategy.run(lambda: keras.ops.convert_to_tensor(variable.value)[None])
    return keras.ops.unstack(strategy.gather(each, axis=0))


def own_copies(variable):
    """A variable's value on each replica of this process, read between steps."""
    return [keras.ops.convert_to_tensor(copy) for copy in _replicated(variable)]


def assign_copies(variable, values):
    """Give each replica of this process its value of a variable, between steps.

    Args:
        variable: a Keras variable.
        values: list of arrays, one for each replica, or one for all.
    """
    found = _replicated(variable)
    if len(found) == 1:
        variable.assign(values[0])
        return
    values = values * len(found) if len(values) == 1 else values
    # Not by the variable itself, which would share a sum out to its copies.
    for copy, value in zip(found, values, strict=True):
        copy.assign(keras.ops.cast(value, variable.dtype))


def _replicated(variable):
    value = variable.value
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if isinstance(value, tf.distribute.DistributedValues):
            return list(value.values)
    return [value]


def placed(model):
    """The context in which new variables come to lie where the model's are."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()
