"""A table on the disk while it is written."""

import contextlib
import errno
import json
import os
import reprlib
import shutil
import time
import uuid
from pathlib import Path

import numpy as np

from kdtoolkit.cache.format import (
    FORMAT,
    Layout,
    building_path,
    by_shard,
    check_rows,
    shard_path,
)
from kdtoolkit.cache.table import Table

# Waiting for the disk after each write would cost more than the teacher.
_FLUSH_SECONDS = 5.0
_CHUNK = 2**20


def size_of(rows, columns, about, **sharding):
    """Bytes of a cache.

    Args:
        rows, columns, about, **sharding: as for `Draft`.
    """
    return Layout(rows, columns, about, **sharding).size


class Draft:
    """A cache that is being built, or goes on after an interruption.

    It is built in the directory `path.building`, which has the shards in their final size, a byte
    for each row that says whether it is there, and a description. `finish` gives the shards their
    headers and moves them to `path`: there is a whole cache or nothing.

    Data are synced by the first `write` that is 5 seconds after the last sync, and only then do
    their rows count as there. When the process is killed, or the power fails, the writes since the
    last sync are missing afterwards, and nothing else. `flush` syncs at once.

    A draft is for one thread. Several processes of one machine may build the same cache, each with
    a draft of its own and each writing other rows. Memory: two bytes for each row, one of them a
    mapped file's, and what is written at a time.

    Args:
        path: the directory of the finished cache. It must not exist.
        rows: int >= 1, of the whole table.
        columns: sequence of `Column`.
        about: dict of JSON that is kept in the cache.
        shard_bytes: int >= 1, largest size of a shard's columns, up to one row. Defaults to 64 MiB.
        shard_rows: int >= 1, most rows in a shard. Defaults to 65536.

    Raises:
        FileExistsError: something is at `path`.
        ValueError: another cache is being built for `path`, or what is there is damaged; an
            argument is out of range.
        OSError: the disk hasn't enough space, with errno `ENOSPC`.
    """

    def __init__(self, path, rows, columns, about, **sharding):
        self.path = Path(path).absolute()
        self._layout = Layout(rows, columns, about, **sharding)
        if self.path.exists():
            raise FileExistsError(
                f"{self.path} exists already. Use another path, or delete it to build it again"
            )
        self._building = building_path(self.path)
        if not self._building.exists():
            _begin(self._building, self._layout)
        _check_same(self._building, self._layout)
        self._firsts = np.arange(0, rows, self._layout.shard_rows)
        filled = np.memmap(self._building / "filled", np.uint8, "r+", shape=(rows,))
        #: One byte for each row, shared with all who build: its data are on the disk.
        self._filled = np.asarray(filled)
        #: What this one wrote, on the disk or on its way.
        self._written = np.zeros(rows, bool)
        self._pending, self._touched, self._flushed = [], set(), time.monotonic()

    @property
    def left(self):
        """Number of rows that are still to be written."""
        starts = range(0, self._layout.rows, _CHUNK)
        return sum(int(self._lacks(slice(start, start + _CHUNK)).sum()) for start in starts)

    def missing(self, rows):
        """Which rows are still to be written.

        Args:
            rows: 1-D array of integers.

        Returns:
            bool array, as long.

        Raises:
            ValueError: a row that the table hasn't.
        """
        return self._lacks(check_rows(rows, self._layout.rows))

    def write(self, rows, values):
        """Writes rows. Those that are there already stay as they are.

        Args:
            rows: 1-D array of different integers, in any order.
            values: `{name: array (len(rows), *shape)}` for all columns, of their dtypes.

        Raises:
            ValueError: rows or values of another form.
            OSError: the disk is full or fails.
        """
        rows = check_rows(rows, self._layout.rows)
        values = _checked(values, self._layout.columns, len(rows))
        order = np.argsort(rows)
        if np.any(np.diff(rows[order]) == 0):
            raise ValueError("Rows that are written must differ. Received: some of them twice")
        order = order[self._lacks(rows[order])]
        rows = rows[order]
        for index, part in by_shard(rows, self._firsts):
            self._write_shard(index, rows[part], [value[order[part]] for value in values])
        self._written[rows] = True
        self._pending.append(rows)
        if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
            self.flush()

    def flush(self):
        """Waits until all that was written is on the disk.

        Raises:
            OSError: the disk fails. What wasn't there yet is missing then.
        """
        pending, touched = self._pending, self._touched
        self._pending, self._touched = [], set()
        try:
            with self._unless_published():
                for index in touched:
                    _sync(self._shard_path(index))
        except OSError:
            self._written[:] = False
            raise
        for rows in pending:
            self._filled[rows] = 1
        self._flushed = time.monotonic()

    def finish(self, check=None):
        """Makes the cache: at `path` it is there as a whole.

        It doesn't matter if another process does the same at the same time.

        Args:
            check: function of the whole `Table`, before it is published; or None. What it raises
                leaves the building as it is.

        Raises:
            ValueError: rows are missing.
            OSError: the disk fails.
        """
        self.flush()
        if self.left:
            raise ValueError(
                f"A cache is finished when all its {self._layout.rows} rows are written. "
                f"Received: all but {self.left}"
            )
        with self._unless_published():
            for index in range(self._layout.shards):
                self._seal(index)
            _sync_directory(self._building / "shards")
            if check is not None:
                check(Table(self._building / "shards"))
            os.rename(self._building / "shards", self.path)
            _sync_directory(self.path.parent)
        shutil.rmtree(self._building, ignore_errors=True)

    def _lacks(self, rows):
        return (self._filled[rows] == 0) & ~self._written[rows]

    def _shard_path(self, index):
        return shard_path(self._building / "shards", index)

    def _write_shard(self, index, rows, values):
        shard = self._layout.shard(index)
        places = rows - shard.first
        # Rows that follow one another are written at once.
        cuts = np.flatnonzero(np.diff(places) != 1) + 1
        runs = list(zip([0, *cuts], [*cuts, len(places)], strict=True))
        self._touched.add(index)
        # Not through a map, in which a full disk would kill the process instead of raising.
        with open(self._shard_path(index), "r+b") as file:
            for column, offset, value in zip(shard.columns, shard.offsets, values, strict=False):
                stored = np.ascontiguousarray(value, column.stored)
                for start, stop in runs:
                    file.seek(offset + int(places[start]) * column.row_bytes)
                    file.write(stored[start:stop])

    def _seal(self, index):
        shard = self._layout.shard(index)
        with open(self._shard_path(index), "r+b") as file:
            header = self._layout.header(shard, list(shard.sums(file)))
            file.seek(0)
            file.write(header)
        _sync(self._shard_path(index))

    @contextlib.contextmanager
    def _unless_published(self):
        """Files that have gone are no error once another process has published the cache."""
        try:
            yield
        except (OSError, ValueError):
            if not shard_path(self.path, 0).exists():
                raise


def _begin(building, layout):
    """Makes an empty draft, as a whole: two processes can't mix theirs."""
    _check_space(building.parent, layout.size + layout.rows)
    building.parent.mkdir(parents=True, exist_ok=True)
    own = building.with_name(f".{building.name}-{uuid.uuid4().hex}")
    try:
        (own / "shards").mkdir(parents=True)
        for index in range(layout.shards):
            with open(shard_path(own / "shards", index), "xb") as file:
                file.truncate(layout.shard(index).offsets[-1])
        with open(own / "filled", "xb") as file:
            # Zeros, not a hole: marks are written through a map.
            for start in range(0, layout.rows, _CHUNK):
                file.write(bytes(min(_CHUNK, layout.rows - start)))
        (own / "draft.json").write_text(json.dumps(_described(layout)), encoding="utf-8")
        for name in ("filled", "draft.json"):
            _sync(own / name)
        os.rename(own, building)
    except OSError:
        # Another process may have been first. Its draft is as good.
        if not building.exists():
            raise
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _check_space(directory, needed):
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"The cache needs {needed} bytes, and {directory} has {free} bytes left. Free some "
            "space, or use a path on another disk",
        )


def _described(layout):
    columns = [[column.name, column.dtype, list(column.shape)] for column in layout.columns]
    return {
        "format": FORMAT,
        "rows": layout.rows,
        "columns": columns,
        "shard_rows": layout.shard_rows,
        "about": layout.about,
    }


def _check_same(building, layout):
    way_out = f"Delete {building} to begin anew, or use another path"
    try:
        found = _flat(json.loads((building / "draft.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{building} isn't a cache that is being built. {way_out}") from None
    expected = _flat(_described(layout))
    for key in [*expected, *found]:
        ours, theirs = expected.get(key, "nothing"), found.get(key, "nothing")
        if ours != theirs:
            raise ValueError(
                f"Another cache is being built in {building}. Expected {key}: "
                f"{reprlib.repr(ours)}. Received: {reprlib.repr(theirs)}. {way_out}"
            )
    sizes = {building / "filled": layout.rows}
    for index in range(layout.shards):
        sizes[shard_path(building / "shards", index)] = layout.shard(index).offsets[-1]
    for path, size in sizes.items():
        if not path.exists() or path.stat().st_size != size:
            raise ValueError(f"{path} is damaged: Expected {size} bytes. {way_out}")


def _flat(described):
    """The description with the keys of `about` among its own, so that each has a name."""
    rest = {key: value for key, value in described.items() if key != "about"}
    return rest | {f"about[{key!r}]": value for key, value in described["about"].items()}


def _checked(values, columns, count):
    names = [column.name for column in columns]
    if not isinstance(values, dict) or values.keys() != set(names):
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"Values must be a dict of the columns {sorted(names)}. Received: {found}")
    arrays = [np.asarray(values[name]) for name in names]
    for column, array in zip(columns, arrays, strict=True):
        shape = (count, *column.shape)
        if array.shape != shape or array.dtype.name != column.dtype:
            raise ValueError(
                f"Column '{column.name}' must be {column.dtype} of shape {shape}. Received: "
                f"{array.dtype} of shape {array.shape}"
            )
    return arrays


def _sync(path):
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _sync_directory(path):
    # Windows doesn't open directories.
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
