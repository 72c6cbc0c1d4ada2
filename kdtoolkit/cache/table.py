"""A table on the disk, read at random."""

import mmap
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from kdtoolkit.cache.format import (
    building_path,
    by_shard,
    check_rows,
    damaged,
    read_shard,
    shard_path,
)

# Python keeps a file open for each map, and many systems allow 1024 of them.
_OPEN_SHARDS = 256


class Table:
    """A finished cache, whose rows are read from the disk when they are asked for.

    Its files are mapped into memory, so that the system keeps what is read often and drops what
    it needs room for. All headers are checked at the beginning; the data of a shard against its
    checksums when it is touched for the first time. So the first pass reads the cache once more.

    Threads may share a table. A pickled one opens its files anew.

    Args:
        path: the directory of the cache.

    Attributes:
        path: absolute `pathlib.Path`.
        about: dict, what the cache's maker wrote about it.
        rows: int.
        columns: tuple of `Column`.
        size: int, bytes on the disk.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: it isn't a cache, or is damaged.
    """

    def __init__(self, path):
        self.path = Path(path).absolute()
        _check_there(self.path)
        description, self._shards = _read_shards(self.path)
        self.about = description.about
        self.rows = description.rows
        self.columns = description.columns
        self.size = sum(shard.offsets[-1] for shard in self._shards)
        self._firsts = np.array([shard.first for shard in self._shards])
        self._checked = [False] * len(self._shards)
        self._open = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self):
        return Table, (str(self.path),)

    def read(self, rows):
        """Reads rows, in any order and as often as they are named.

        Args:
            rows: 1-D array of integers of any dtype, from 0 to `rows` - 1.

        Returns:
            `{name: array (len(rows), *shape)}` of all columns, of their dtypes.

        Raises:
            ValueError: a row that the table hasn't, rows of another form, or a damaged shard.
        """
        rows = check_rows(rows, self.rows)
        order = np.argsort(rows)
        ascending = rows[order]
        found = [np.empty((len(rows), *c.shape), c.dtype) for c in self.columns]
        for index, part in by_shard(ascending, self._firsts):
            places = ascending[part] - self._shards[index].first
            for into, array in zip(found, self._arrays(index), strict=True):
                into[part] = array[places]
        back = np.argsort(order)
        return {c.name: array[back] for c, array in zip(self.columns, found, strict=True)}

    def check(self):
        """Compares all data with their checksums.

        Raises:
            ValueError: a shard is damaged.
        """
        for index in range(len(self._shards)):
            self._check(index)

    def _arrays(self, index):
        with self._lock:
            if index in self._open:
                self._open.move_to_end(index)
                return self._open[index]
        # Checksums take their time, in which other threads read on.
        if not self._checked[index]:
            self._check(index)
        arrays = self._map(index)
        with self._lock:
            self._open[index] = arrays
            # A map stays until the last array on it is gone, so that nobody reads a closed one.
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return arrays

    def _check(self, index):
        shard = self._shards[index]
        with self._opened(index) as file:
            sums = shard.sums(file)
            for column, expected, found in zip(shard.columns, shard.checksums, sums, strict=True):
                if found != expected:
                    what = f"column '{column.name}' with the checksum {expected}"
                    raise damaged(file.name, what, found)
        self._checked[index] = True

    def _map(self, index):
        shard = self._shards[index]
        with self._opened(index) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Maps end where files end: beyond it the system would kill the process.
        if len(mapped) != shard.offsets[-1]:
            raise damaged(file.name, f"{shard.offsets[-1]} bytes", f"{len(mapped)} bytes")
        # What is beside a random row is read from the disk for nothing. Not on Windows.
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)
        return [
            np.ndarray((shard.count, *column.shape), column.stored, mapped, offset)
            for column, offset in zip(shard.columns, shard.offsets, strict=False)
        ]

    def _opened(self, index):
        path = shard_path(self.path, index)
        try:
            return open(path, "rb")
        except FileNotFoundError:
            raise damaged(path, "a shard of the cache", "no file any more") from None


def _check_there(path):
    if not path.exists():
        building = building_path(path)
        unfinished = (
            f". Its building isn't finished, see {building}: call `kd.cache_teacher` with the same "
            "arguments as before to go on"
        )
        raise FileNotFoundError(f"There is no cache at {path}{unfinished * building.exists()}")
    if not shard_path(path, 0).exists():
        raise ValueError(
            f"{path} isn't a cache. Expected a directory that `kd.cache_teacher` wrote, with a "
            f"file {shard_path(path, 0).name}"
        )


def _read_shards(path):
    description, shard = read_shard(shard_path(path, 0))
    shards, first = [], 0
    for index in range(description.shards):
        file = shard_path(path, index)
        if index:
            other, shard = read_shard(file)
            if other != description:
                raise damaged(file, "the same table as in the first shard", "another one")
        if shard.first != first:
            raise damaged(file, f"rows from {first} on", f"rows from {shard.first} on")
        shards.append(shard)
        first += shard.count
    if first != description.rows:
        raise damaged(path, f"{description.rows} rows", f"shards of {first} rows")
    return description, shards
