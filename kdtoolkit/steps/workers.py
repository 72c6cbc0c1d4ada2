"""Several processes that train one model: how many there are, who saves, and what Keras lacks."""

import json
import os

import keras
import numpy as np


def strategy_of(model=None):
    """The `tf.distribute` strategy of a model, or the active one; None on other backends."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.distribute.get_strategy() if model is None else model.distribute_strategy


def processes(model=None):
    """Number of processes that train together: of JAX, or of a `MultiWorkerMirroredStrategy`.

    Args:
        model: a model whose strategy counts, None for the strategy that is active here.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.process_count()
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    strategy = strategy_of(model)
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


def rank(model=None):
    """Number of this process, 0 for the chief."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.process_index()
    job, task, jobs = _task(strategy_of(model))
    return task + 1 if job == "worker" and "chief" in jobs else task


def is_chief(model=None):
    """Whether this process is the one of several that writes files and prints; alone it is.

    All processes hold the same weights, so one of them saves:

    ```python
    if kd.is_chief(distiller):
        distiller.student.save("student.keras")
    ```

    The same goes for callbacks that write: give `keras.callbacks.ModelCheckpoint` to the chief
    alone. What processes compute together, such as `fit` and `evaluate`, all of them must call.

    Args:
        model: a model made under a strategy of TensorFlow. Without one the strategy is asked whose
            scope this is, and outside of any scope the variable TF_CONFIG. JAX needs none.

    Returns:
        True for process 0 of JAX; for the task "chief" of a TensorFlow cluster, or for worker 0 of
        a cluster without such a task; and wherever there is one process.

    Example:
        >>> import kdtoolkit as kd
        >>> kd.is_chief()
        True
    """
    return rank(model) == 0


def _task(strategy):
    """`(job, task, jobs of the cluster)` of this process; the task is 0 without a cluster."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is not None and resolver.task_type:
        return resolver.task_type, resolver.task_id, resolver.cluster_spec().jobs
    config = json.loads(os.environ.get("TF_CONFIG") or "{}")
    task = config.get("task", {})
    return task.get("type"), int(task.get("index", 0)), list(config.get("cluster", {}))


def earliest(numbers, model=None):
    """The smallest, compared one by one, of the tuples that the processes call this with.

    All of them must call it, at the same point of their program.

    Args:
        numbers: tuple of ints of 32 bits.
        model: as for `processes`.
    """
    if processes(model) == 1:
        return tuple(numbers)
    if keras.backend.backend() == "jax":
        from jax.experimental import multihost_utils

        of_all = multihost_utils.process_allgather(np.array(numbers, "int32"))
    else:
        import tensorflow as tf

        strategy = strategy_of(model)
        own = strategy.run(lambda: tf.constant([numbers], "int32"))
        of_all = keras.ops.convert_to_numpy(strategy.gather(own, axis=0))
    return min(tuple(int(number) for number in row) for row in of_all)


def as_rows(logs):
    """The logs of a step, in the shape in which Keras can take their mean over processes.

    It does so along axis 0, which scalars don't have (keras issue 20585).
    """
    if keras.backend.backend() == "jax" or processes() == 1:
        return logs
    return keras.tree.map_structure(lambda value: keras.ops.reshape(value, (1,)), logs)


#: The one private name of Keras that is overridden. `placement.check` sees that it is there.
BUILD = "_maybe_symbolic_build"


class AcrossWorkers:
    """Lets `fit` and `evaluate` run under `MultiWorkerMirroredStrategy`; changes nothing without.

    Two things in Keras 3 stop every model there (keras issue 20585). Before the first step it takes
    the mean over the replicas of a batch, which fails for a batch that lies in several processes;
    a symbolic build needs only its shapes, and this process's part has them. After a step it takes
    the mean of the logs along an axis that scalars don't have.
    """

    def train_step(self, *args):
        return as_rows(super().train_step(*args))

    def test_step(self, *args):
        return as_rows(super().test_step(*args))

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and processes(self) > 1:
            data_batch, iterator = self._own_part(iterator), None
        return super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def _own_part(self, iterator):
        """The first batch, as the first replica of this process sees it."""
        first = self.distribute_strategy.experimental_local_results
        for _, _, batches in iterator:
            return keras.tree.map_structure(lambda value: first(value)[0], next(batches))
