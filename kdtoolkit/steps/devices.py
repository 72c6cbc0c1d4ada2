"""Where variables lie, and over how many devices a batch is split."""

import keras

from kdtoolkit.steps.workers import strategy_of


def engine(model):
    """What spreads a model's step over devices: a strategy, a `keras.distribution`, or None."""
    return strategy_of(model) or distribution()


def distribution():
    """Keras's distribution, which is for JAX alone."""
    return keras.distribution.distribution() if keras.backend.backend() == "jax" else None


def is_away(variable, model=None):
    """Whether a variable lies elsewhere than where a model's step runs.

    Args:
        variable: a `keras.Variable`.
        model: the model, None for the strategy or distribution that is active here.
    """
    if keras.backend.backend() == "tensorflow":
        return not strategy_of(model).extended.variable_created_in_scope(variable.value)
    spread = distribution()
    if spread is None:
        return False
    devices = {f"{device.platform}:{device.id}" for device in variable.value.sharding.device_set}
    return devices != set(spread.device_mesh.devices.flatten().tolist())


def shares(model):
    """Over how many devices the batch of a step is split, those of other processes too."""
    if keras.backend.backend() == "tensorflow":
        return strategy_of(model).num_replicas_in_sync
    spread = distribution()
    if spread is None:
        return 1
    mesh = spread.device_mesh
    return mesh.shape[mesh.axis_names.index(spread.batch_dim_name)]


def all_gpus(model):
    """Whether every device of a TensorFlow strategy that splits batches is a GPU."""
    return all("GPU" in device for device in strategy_of(model).extended.worker_devices)
