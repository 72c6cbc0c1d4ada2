"""The processes that train one model together, as a step's backend knows them."""

import keras
import numpy as np


def _strategy(model):
    import tensorflow as tf

    return getattr(model, "distribute_strategy", None) or tf.distribute.get_strategy()


def processes(model=None):
    """`(index, count)`: which of how many processes this one is; (0, 1) if it is alone.

    Args:
        model: the model that they train. On TensorFlow its strategy tells; without a model, that
            of the scope in which this is called.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.process_index(), jax.process_count()
    if keras.backend.backend() == "tensorflow":
        resolver = _strategy(model).cluster_resolver
        workers = resolver.cluster_spec().as_dict().get("worker", []) if resolver else []
        if len(workers) > 1:
            return resolver.task_id, len(workers)
    return 0, 1


def earliest(numbers, model=None):
    """The smallest, compared one by one, of the tuples that the processes call this with.

    All of them must call it, at the same point of their program.

    Args:
        numbers: tuple of ints of 32 bits.
        model: see `processes`.
    """
    if processes(model)[1] == 1:
        return tuple(numbers)
    if keras.backend.backend() == "jax":
        from jax.experimental import multihost_utils

        of_all = multihost_utils.process_allgather(np.array(numbers, "int32"))
    else:
        import tensorflow as tf

        strategy = _strategy(model)
        own = strategy.run(lambda: tf.constant([numbers], "int32"))
        of_all = keras.ops.convert_to_numpy(strategy.gather(own, axis=0))
    return min(tuple(int(n) for n in row) for row in of_all)
