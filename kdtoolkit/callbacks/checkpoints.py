"""The files of a run's checkpoints: whole or not there, the newest few, damage told by name."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdtoolkit.files import check_archive, damaged, draft_of

#: What every checkpoint says beside the state.
NEEDED = ("made_of", "about", "next_epoch", "stopped")
_NAME = re.compile(r"epoch-(\d{5,})(?:-batch-(\d{6,}))?\.npz")


class Position(NamedTuple):
    """How far a run is: finished epochs, and trained batches of the next one."""

    epoch: int
    batch: int = 0

    @property
    def file_name(self):
        batch = f"-batch-{self.batch:06d}" if self.batch else ""
        return f"epoch-{self.epoch:05d}{batch}.npz"


class Checkpoints:
    """The checkpoints of one run in one folder.

    Each is a file of NumPy's `.npz` format without pickle, which has a checksum for each array. It
    is written beside its place, flushed to the disk, and renamed.

    Args:
        directory: `pathlib.Path` of this run alone; made by the first `write`.
        keep: int >= 1, how many stay, the newest.
    """

    def __init__(self, directory, keep):
        self.directory = Path(directory)
        self.keep = keep

    def path(self, position):
        return self.directory / position.file_name

    def positions(self):
        """What is there, the oldest first."""
        if not self.directory.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(Position(int(m[1]), int(m[2] or 0)) for m in found if m)

    def write(self, position, arrays):
        """Write one checkpoint, `{name: array}`, and remove those that are too old."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with draft_of(self.path(position), overwrite=True) as draft, open(draft, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        _sync(self.directory)
        for old in self.positions()[: -self.keep]:
            self.path(old).unlink()
        # What a process leaves that is killed while it writes.
        for leftover in self.directory.glob(".epoch-*.npz"):
            leftover.unlink()

    def read(self, position):
        """One checkpoint, `{name: array}`.

        Raises:
            ValueError: the file is damaged.
        """
        older = [self.path(found).name for found in self.positions() if found < position]
        way_out = f"move it away: '{older[-1]}' is the one before" if older else "start anew"
        path, way_out = self.path(position), f"Copy it again from where it is whole, or {way_out}"
        check_archive(path, way_out, "a checkpoint of Resume")
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        if missing := [name for name in NEEDED if name not in found]:
            raise damaged(f"'{path}'", "a checkpoint of Resume", f"one without {missing}", way_out)
        return found


def _sync(directory):
    """Have the names in a folder on the disk too."""
    if os.name == "nt":  # Windows can't open folders.
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
