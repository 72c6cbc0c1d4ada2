"""What belongs to one run: its settings, its folder, and the callbacks beside `Resume`."""

import json
import re

import keras

from kdtoolkit.callbacks.rewind import optimizers_of
from kdtoolkit.settings import described, differences


def about_run(model, data, params, seed):
    """What a run is started with, as a dict for JSON.

    Numbers that training changes, such as the learning rate, tell something only before the first
    step of a model.

    Args:
        model: a compiled `keras.Model`.
        data: what repeats itself, or None.
        params: `params` of a callback.
        seed: of the order of arrays.
    """
    about = {
        "batches": params["steps"],
        "steps_per_execution": model.steps_per_execution,
        "seed": seed,
        "data": {name: getattr(data, name, None) for name in ("seed", "batch_size", "examples")},
        "order": "known" if data is not None else "unknown",
    }
    if not int(keras.ops.convert_to_numpy(model.optimizer.iterations)):
        scalars = [v for v in model.variables if len(v.shape) == 0 and "float" in v.dtype]
        about["optimizer"] = [described(part) for part in optimizers_of(model.optimizer)]
        about["numbers"] = [float(keras.ops.convert_to_numpy(number)) for number in scalars]
    return about


def check_same(directory, position, saved, about, epochs):
    """Refuse to go on with a run that was started in another way, or that has ended.

    Args:
        directory: the run's folder, for the messages.
        position: where it would go on.
        saved: the checkpoint, `{name: array}`.
        about: what `about_run` says now.
        epochs: of this `fit`.

    Raises:
        ValueError: other settings, or an epoch behind the last one.
    """
    before = json.loads(str(saved["about"]))
    known = before.keys() & about.keys()
    changed = differences(*({name: run[name] for name in known} for run in (before, about)))
    if changed:
        raise ValueError(
            f"The run in '{directory}' was started with other settings. Expected the same. "
            f"Received: {changed}. Use what it was started with, or another folder"
        )
    if saved["stopped"] and epochs > saved["next_epoch"]:
        raise ValueError(
            f"The run in '{directory}' was stopped by a callback after {position.file_name}, so it "
            f"has no next epoch. Expected `epochs` of at most {saved['next_epoch']}, as it had. "
            f"Received: epochs={epochs}. Use another folder for a longer run"
        )


def check_beside(callbacks):
    """Refuse callbacks that can't go on beside `Resume`.

    Raises:
        ValueError: one that puts a run back itself, or whose state nobody can read.
    """
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise ValueError(
                "BackupAndRestore and Resume would both put a run back. Expected one of them. "
                "Received: both. Leave BackupAndRestore out: Resume keeps more"
            )
        if isinstance(callback, keras.callbacks.SwapEMAWeights) and callback.swap_on_epoch:
            raise ValueError(
                "SwapEMAWeights(swap_on_epoch=True) doesn't say which weights are in the model, so "
                "no run could go on with the right ones. Expected `swap_on_epoch=False`, or "
                "`kd.sources.Snapshot(student, decay=...)` for an average. Received: "
                "swap_on_epoch=True"
            )


def check_layout(directory, processes):
    """Refuse the folder of a run with another number of processes.

    Raises:
        ValueError: it holds checkpoints of so many others.
    """
    if not directory.is_dir():
        return
    names = [path.name for path in directory.iterdir()]
    folders = (re.fullmatch(r"process-\d+-of-(\d+)", name) for name in names)
    counts = {int(found[1]) for found in folders if found}
    counts |= {1 for name in names if re.fullmatch(r"epoch-.*\.npz", name)}
    if counts - {processes}:
        raise ValueError(
            f"The run in '{directory}' was trained by {min(counts - {processes})} processes. "
            f"Expected the same number. Received: {processes}. Start as many, or use another folder"
        )
