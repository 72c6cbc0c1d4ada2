"""What a run leaves on disk, and how it is read again.

directory/
├── settings.json               what the run was started with
└── generation-1/
    ├── network.keras           the generation's network
    ├── record.json             its numbers; written last: the generation is finished
    └── checkpoint/             while it trains
"""

import dataclasses
import math
import os
import shutil
import zlib
from pathlib import Path

import keras
import numpy as np

from kdtoolkit.files import check_archive, damaged, draft_of, is_number, read_json, write_json
from kdtoolkit.registry import expects
from kdtoolkit.settings import as_plain, differences

_WAY_OUT = (
    "Nothing was changed. Take the file from a copy; or delete the folders of this generation and "
    "of later ones to train them again; or give a new run another `directory`"
)


@dataclasses.dataclass(frozen=True)
class GenerationRecord:
    """The numbers of one generation.

    Attributes:
        method: name of the method.
        seed: the trial's seed, as given to `kd.train_generations`.
        generation: 1, 2, ...
        val_accuracy, test_accuracy: of the generation's network (the selected weights), computed
            from its logits, from 0 to 1. `test_accuracy` is None without test data.
        last_val_accuracy, last_test_accuracy: the same of the weights after the last epoch.
        epochs: epochs trained.
        best_epoch: the epoch, from 1, of the best monitored value; None if it was always NaN.
        steps: updates of the weights.
        student_passes, teacher_passes: examples that ran forward through the student and through
            other networks (previous generation, snapshots) in training. Validation isn't counted.
        seconds: wall clock of the training, with tracing, validation after each epoch and
            checkpoints, without the test. Of an interrupted epoch only the repetition counts.
        cpu_seconds: processor time of this process over the same stretch, all cores added up.
        network: file name of the network, relative to the run's directory.
    """

    method: str
    seed: int
    generation: int
    val_accuracy: float
    test_accuracy: float | None
    last_val_accuracy: float
    last_test_accuracy: float | None
    epochs: int
    best_epoch: int | None
    steps: int
    student_passes: int
    teacher_passes: int
    seconds: float
    cpu_seconds: float
    network: str


@dataclasses.dataclass(frozen=True)
class GenerationFolder:
    """The files of one generation in a run's directory."""

    directory: Path
    generation: int

    @property
    def path(self):
        return self.directory / f"generation-{self.generation}"

    @property
    def network(self):
        return self.path / "network.keras"

    @property
    def checkpoint(self):
        return self.path / "checkpoint"

    def record(self):
        """The finished generation's `GenerationRecord`, None while there is none."""
        file = self.path / "record.json"
        # A link to nowhere is a lost record, and no reason to train the generation again.
        if not os.path.lexists(file):
            return None
        return _checked_record(read_json(file, _WAY_OUT), file, self)

    def check_network(self):
        """Raise a ValueError if the file of the network isn't as it was saved."""
        check_archive(self.network, _WAY_OUT)

    def finish(self, model, record):
        """Write the network, then the record, then remove what only an unfinished run needs."""
        with draft_of(self.network, overwrite=True) as draft:
            model.save(draft)
        write_json(self.path / "record.json", dataclasses.asdict(record), default=as_plain)
        self.clean()

    def clean(self):
        """Remove the checkpoint. A run killed in between has left it behind a record."""
        shutil.rmtree(self.checkpoint, ignore_errors=True)


@expects(directory="path")
def load_generations(directory):
    """The records of a run, finished or not.

    Args:
        directory: as given to `kd.train_generations`.

    Returns:
        A list of `GenerationRecord`, the finished generations from the first on.

    Raises:
        FileNotFoundError: there is no run in this directory.
        ValueError: a record is damaged.

    Example:

    ```python
    for record in kd.load_generations("runs/trial-0"):
        print(record.generation, record.test_accuracy, record.seconds)
    ```
    """
    directory = _run(directory)
    records, generation = [], 1
    while (record := GenerationFolder(directory, generation).record()) is not None:
        records.append(record)
        generation += 1
    return records


@expects(directory="path", generation="count")
def load_network(directory, generation):
    """The network of one finished generation.

    Args:
        directory: as given to `kd.train_generations`.
        generation: int from 1.

    Returns:
        A `keras.Model` that returns logits. Custom layers must be registered with Keras.

    Raises:
        FileNotFoundError: there is no run in this directory, or the generation isn't finished.
        ValueError: its record or its network is damaged.

    Example:

    ```python
    networks = [kd.load_network("runs/trial-0", generation) for generation in (1, 2, 3)]
    ensemble = kd.Ensemble(networks)
    ```
    """
    folder = GenerationFolder(_run(directory), generation)
    if folder.record() is None:
        finished = [record.generation for record in load_generations(directory)]
        raise FileNotFoundError(
            f"Generation {generation} isn't finished in '{directory}'. Finished are {finished}. "
            "Call `kd.train_generations` again to go on."
        )
    folder.check_network()
    return keras.models.load_model(folder.network)


def describe_data(data):
    """What tells two data sets or splits apart: shapes and checksums."""
    names = [f"{kind}_{part}" for part in ("train", "val", "test") for kind in ("x", "y")]
    arrays = {name: np.ascontiguousarray(getattr(data, name)) for name in names}
    return {
        "name": data.name,
        **{name: [*array.shape, zlib.crc32(array)] for name, array in arrays.items()},
    }


def check_settings(directory, settings):
    """Write the settings of a new run, or compare them with those of the run in `directory`.

    Args:
        directory: `Path`.
        settings: nested dict of numbers and texts.

    Raises:
        ValueError: the run in this directory was started with other settings, or the file is
            damaged.
    """
    file = directory / "settings.json"
    if not os.path.lexists(file):
        directory.mkdir(parents=True, exist_ok=True)
        write_json(file, settings, default=as_plain)
        return
    stored = read_json(file, _WAY_OUT)
    if stored.keys() - settings.keys():
        raise damaged(file, f"the settings {list(settings)}", list(stored), _WAY_OUT)
    changed = differences(stored, settings)
    if changed:
        raise ValueError(
            f"The run in '{directory}' was started with other settings. To continue it, expected "
            f"the same. Received: {changed}. Give this run another `directory`, or "
            "delete that one to start over."
        )


def _checked_record(content, file, folder):
    """A `GenerationRecord`, refused unless every number is one that training writes."""
    fields = {field.name: field.type for field in dataclasses.fields(GenerationRecord)}
    if content.keys() != fields.keys():
        raise damaged(file, f"the fields {list(fields)}", list(content), _WAY_OUT)
    own = {
        "generation": folder.generation,
        # The one file that is ever read: a record can't lead out of its run.
        "network": folder.network.relative_to(folder.directory).as_posix(),
    }
    for name, kind in fields.items():
        value = content[name]
        # JSON may say 1 for 1.0.
        if not isinstance(value, kind if kind is str else kind | int):
            raise damaged(file, f"`{name}` of the type {kind}", repr(value), _WAY_OUT)
        maximum = 1 if name.endswith("accuracy") else math.inf
        number = not isinstance(value, str | None)
        if (number and not is_number(value, maximum)) or value != own.get(name, value):
            expected = own.get(name, f"a number from 0 to {maximum}")
            raise damaged(file, f"`{name}`: {expected}", repr(value), _WAY_OUT)
    return GenerationRecord(**content)


def _run(directory):
    directory = Path(directory)
    if not (directory / "settings.json").exists():
        raise FileNotFoundError(
            f"There is no run of `kd.train_generations` in '{directory}': it has no settings.json."
        )
    return directory
