"""Replicas and processes: teachers put where the students are, and what can't train is refused."""

import math
import warnings

import keras

from kdtoolkit.data.keys import has_ids, is_arrays, is_tf_dataset
from kdtoolkit.steps import devices, workers

INSIDE = (
    "Expected all of it made under `with strategy.scope():` on TensorFlow, or after "
    "`keras.distribution.set_distribution(...)` on JAX."
)
NO_ACCUMULATION = "a larger batch, or JAX, which can accumulate gradients over devices"


def placed_teachers(teachers, students):
    """Teachers that lie where the students are: copies of those that were made elsewhere.

    Args:
        teachers: `{name: keras.Model or source}`.
        students: `{name: keras.Model}`.

    Raises:
        ValueError: a teacher that was made elsewhere and can't be copied.
    """
    known = {id(v) for model in students.values() for v in model.weights}
    return {name: _placed(name, model, known) for name, model in teachers.items()}


def _placed(name, model, known):
    if not isinstance(model, keras.Model) or not any(map(devices.is_away, model.variables)):
        return model
    if any(id(v) in known for v in model.weights):
        return model
    try:
        copy = keras.models.clone_model(model)
        if not copy.built:
            copy.build_from_config(model.get_build_config())
        copy.set_weights(model.get_weights())
    except Exception as error:
        raise ValueError(
            f"'{name}' ({model.name}) was made outside of the strategy or distribution, and can't "
            "be copied into it by its configuration. Expected a model with `get_config`, or one "
            "made or loaded inside: under `with strategy.scope():`, or after "
            f"`keras.distribution.set_distribution(...)`. Received: a {type(model).__name__}"
        ) from error
    return copy


def check(distiller, given):
    """Refuse what can't train on these devices, and warn of what trains otherwise than it seems.

    Args:
        distiller: a compiled `Distiller`.
        given: dict of the arguments of `fit` by their names; `callbacks` is a list.

    Raises:
        ValueError, NotImplementedError: see the messages.
    """
    _check_engine(distiller)
    if devices.engine(distiller) is None:
        return
    _check_places(distiller)
    count = workers.processes(distiller)
    if count > 1:
        _check_processes(distiller, given)
    if devices.shares(distiller) > 1:
        _check_options(distiller)
        _check_batches(distiller, given)


def check_predict():
    """Refuse `predict` of several processes where each could fetch only a part of the result."""
    if keras.backend.backend() == "jax" and workers.processes() > 1:
        raise NotImplementedError(
            "On JAX no process can fetch what the others predicted. Expected one process: save the "
            "student (`if kd.is_chief(): distiller.student.save(...)`) and predict with it there; "
            f"`evaluate` works here. Received: {workers.processes()} processes"
        )


# Which strategies and distributions -----------------------------------------------------------


def _check_engine(distiller):
    found = devices.engine(distiller)
    kinds = [kind.__name__ for kind in type(found).__mro__]
    if any(kind.startswith("ParameterServerStrategy") for kind in kinds):
        raise NotImplementedError(
            "ParameterServerStrategy trains asynchronously, and Keras 3 loses updates under it. "
            "Expected MultiWorkerMirroredStrategy, or JAX with keras.distribution. Received: "
            f"{kinds[0]}"
        )
    untested = ("TPUStrategy", "ModelParallel")
    if any(kind.startswith(untested) for kind in kinds):
        warnings.warn(
            f"kdtoolkit was never run with {kinds[0]}. Compare a short training with one device.",
            stacklevel=4,
        )
    if keras.backend.backend() == "jax" and found is None and workers.processes() > 1:
        raise ValueError(
            f"{workers.processes()} processes would each train alone. Expected "
            "`keras.distribution.set_distribution(keras.distribution.DataParallel(...))` before "
            "any model is made. Received: no distribution"
        )


# Where the parts lie ---------------------------------------------------------------------------


def _check_places(distiller):
    graph = distiller.graph
    parts = {f"the student '{n}'": m.weights for n, m in distiller.students.items()}
    parts |= {f"the teacher '{n}'": m.variables for n, m in distiller.sources.items()}
    # TensorFlow reads what lies elsewhere, but can't train it.
    jax = keras.backend.backend() == "jax"
    for transfer in graph.transfers:
        used = transfer.variables if jax else transfer.trainable_variables
        parts[f"the transfer '{transfer.name}'"] = used
    parts["the optimizer"] = distiller.optimizer.variables
    parts["the distiller"] = distiller.variables if jax else [distiller.epoch]
    for name, variables in parts.items():
        away = [v for v in variables if devices.is_away(v, distiller)]
        if away:
            raise ValueError(
                f"{name[0].upper()}{name[1:]} was made outside of the strategy or distribution "
                f"that trains it. {INSIDE} Received: '{away[0].path}' elsewhere. "
                "Plain networks as teachers may come from anywhere"
            )


# Options of compile ----------------------------------------------------------------------------


def _check_options(distiller):
    """What fails under a TensorFlow strategy; on GPUs alone it may not, so Keras decides there."""
    if keras.backend.backend() != "tensorflow" or devices.all_gpus(distiller):
        return
    refused = {
        "steps_per_execution": (distiller.steps_per_execution > 1, "steps_per_execution=1"),
        "jit_compile": (bool(distiller.jit_compile), "jit_compile='auto'"),
        "gradient_accumulation_steps": (_accumulates(distiller.optimizer), NO_ACCUMULATION),
    }
    for option, (given, expected) in refused.items():
        if given:
            raise ValueError(
                f"`{option}` doesn't work with several replicas of TensorFlow, in Keras itself. "
                f"Expected {expected}. Received: {type(distiller.distribute_strategy).__name__} "
                f"with {option}"
            )


def _accumulates(optimizer):
    if getattr(optimizer, "gradient_accumulation_steps", None):
        return True
    inner = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", [])]
    return any(_accumulates(one) for one in inner if one is not None)


# Batches ---------------------------------------------------------------------------------------


def _check_batches(distiller, given):
    """Refuse batches that can't be split evenly, as far as the data tells."""
    sizes = _sizes(given.get("x"), given)
    _check_even(distiller, given.get("x"), sizes, "training")
    if keras.backend.backend() == "jax" and given.get("validation_data") is not None:
        x = keras.utils.unpack_x_y_sample_weight(given["validation_data"])[0]
        batch_size = given.get("validation_batch_size") or given.get("batch_size")
        _check_even(distiller, x, _sizes(x, {"batch_size": batch_size}), "validation")


def _check_even(distiller, x, sizes, what):
    shares = devices.shares(distiller)
    jax = keras.backend.backend() == "jax"
    if jax and not _shared_out(x):
        shares //= workers.processes()
    for size, last in zip(sizes, (False, True), strict=False):
        if size is None or size % shares == 0:
            continue
        message = (
            f"A batch is split evenly over {shares} devices. Expected {what} batches of a multiple "
            f"of {shares} examples. Received: {'a last' if last else 'a'} batch of {size}. "
            "Leave out what is left over (`drop_remainder=True`), or choose another batch size"
        )
        if jax or not last:
            raise ValueError(message)
        warnings.warn(f"{message}. Its examples won't all count the same.", stacklevel=6)


def _sizes(x, given):
    """Sizes of the first batch and of the last, None where the data doesn't tell."""
    if is_tf_dataset(x):
        return [_length(x.element_spec)]
    if isinstance(x, keras.utils.PyDataset):
        count = x.num_batches
        return [_length(x[0]), _length(x[count - 1])] if count else []
    if x is None or not is_arrays(x):
        return []
    examples, batch = len(keras.tree.flatten(x)[0]), given.get("batch_size") or 32
    if given.get("validation_split") and given.get("validation_data") is None:
        examples = math.floor(examples * (1 - given["validation_split"]))
    return [min(batch, examples), examples % batch]


def _length(batch):
    return keras.tree.flatten(batch)[0].shape[0]


def check_length(distiller, given):
    """Warn of data that doesn't say how long it is, over which TensorFlow takes a step too many."""
    x = given.get("x")
    if keras.backend.backend() != "tensorflow" or given.get("steps_per_epoch"):
        return
    if distiller.jit_compile or distiller.steps_per_execution > 1 or _tells_length(x):
        return
    warnings.warn(
        f"A {type(x).__name__} doesn't say how many batches it has. On TensorFlow Keras then runs "
        "one step too many at the end of each epoch, which counts for the optimizer and moves "
        "random layers on. Expected `fit(steps_per_epoch=...)`, or "
        "`dataset.apply(tf.data.experimental.assert_cardinality(...))`",
        stacklevel=4,
    )


def _tells_length(x):
    if is_tf_dataset(x):
        return int(x.cardinality()) != -2
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches is not None
    return x is None or is_arrays(x)


# Several processes -----------------------------------------------------------------------------


def _check_processes(distiller, given):
    if keras.backend.backend() == "tensorflow" and not hasattr(keras.Model, workers.BUILD):
        raise NotImplementedError(
            f"Keras {keras.__version__} no longer has `{workers.BUILD}`, which must be changed for "
            "MultiWorkerMirroredStrategy. Expected an older Keras 3, or JAX with "
            "keras.distribution"
        )
    _check_folders(distiller, given.get("callbacks") or [])
    if keras.backend.backend() == "jax":
        for data in (given.get("x"), given.get("validation_data")):
            _check_own_part(data)
        _check_global_ids(distiller, given.get("x"))


def _shared_out(x):
    """Whether Keras gives each JAX process its part of the data."""
    return is_tf_dataset(x) and devices.distribution().auto_shard_dataset


def _check_own_part(x):
    whole = getattr(x, "shard", None) == (0, 1)
    if x is None or is_tf_dataset(x) or not (devices.distribution().auto_shard_dataset or whole):
        return
    raise ValueError(
        "Of several JAX processes each feeds its own part of every batch; only a tf.data.Dataset "
        "is shared out by Keras. Expected `keras.distribution.DataParallel(auto_shard_dataset="
        "False)` and data of this process alone, such as `kd.data.ArrayPipeline(..., "
        "shard=(jax.process_index(), jax.process_count()))`. Received: a "
        f"{type(x).__name__}{' without a shard' if whole else ''}"
    )


def _check_global_ids(distiller, x):
    """Numbers that each process gives to its own examples would name different ones."""
    readers = [*distiller.sources.values(), *(t.loss for t in distiller.transfers)]
    reader = next((r for r in readers if getattr(r, "needs_ids", False)), None)
    if reader is None or not is_arrays(x):
        return
    if not has_ids(x) or getattr(reader, "examples", 0) is None:
        raise ValueError(
            f"{type(reader).__name__} '{reader.name}' needs ids that name an example in all "
            "processes, and the number of all examples. Expected inputs from `kd.data.with_ids(x, "
            f"ids)` and `{type(reader).__name__}(examples=...)`, or a `kd.data.ArrayPipeline`. "
            "Received: arrays of this process alone"
        )


def _check_folders(distiller, callbacks):
    """Warn of a backup in every process, unless the folder's name has its number.

    `kd.callbacks.Resume` makes a folder for each by itself.
    """
    number = str(workers.rank(distiller))
    for callback in callbacks:
        folder = getattr(callback, "backup_dir", None)
        if folder is not None and number not in str(folder):
            warnings.warn(
                f"Each of {workers.processes(distiller)} processes writes the checkpoints of "
                f"{type(callback).__name__}, and they must not share a folder. Expected one for "
                f"each, with its number: '{folder}{number}'. Received: '{folder}'",
                stacklevel=5,
            )
