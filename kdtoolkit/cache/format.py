"""The bytes of a cache's shard: what its header says, and where its columns are.

A cache is a directory of shards, `00000.kdcache` and so on. Each is whole in itself and holds some
rows of one table. `docs/cache-format.md` gives the format byte by byte.
"""

import json
import math
import struct
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from kdtoolkit import files

MAGIC = b"KDCACHE1"
FORMAT = 1
DTYPES = ("float32", "float16", "uint8", "uint16", "uint32", "int32")

_START = struct.Struct("<8sII")
_ALIGNMENT = 64
# What a damaged length may claim, before any memory is asked for.
_LARGEST_HEADER = 2**24
_LARGEST_CHECKSUM = 2**32 - 1
# NumPy 1 has arrays of 32 axes, of which rows are one.
_MOST_AXES = 31
_FIELDS = {"format", "about", "rows", "shards", "first", "count", "columns"}
_COLUMN_FIELDS = {"name", "dtype", "shape", "crc32"}
_CHUNK = 2**20


@dataclass(frozen=True)
class Column:
    """One array of a table, with a value for each row.

    Args:
        name: str that isn't empty.
        dtype: one of `DTYPES`.
        shape: of one value, sizes of at least 1. Defaults to (), one number for each row.

    Raises:
        ValueError: for another name, dtype or shape.
    """

    name: str
    dtype: str
    shape: tuple = ()

    def __post_init__(self):
        object.__setattr__(self, "dtype", str(self.dtype))
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"A column's name must be a text. Received: {self.name!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"A column's dtype must be one of {DTYPES}. Received: {self.dtype!r}")
        sizes = isinstance(self.shape, list | tuple) and all(_is_whole(n, 1) for n in self.shape)
        if not sizes or len(self.shape) > _MOST_AXES:
            raise ValueError(
                f"A column's shape must be a tuple of up to {_MOST_AXES} sizes >= 1. Received: "
                f"{self.shape!r}"
            )
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def stored(self):
        """The `numpy.dtype` in the file: little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def row_bytes(self):
        """Bytes of one row's value."""
        return self.stored.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Description:
    """What all shards of a table say alike.

    Args:
        about: dict of JSON.
        rows: int >= 1, of the table.
        shards: int >= 1.
        columns: tuple of `Column`, one or more.
    """

    about: dict
    rows: int
    shards: int
    columns: tuple


@dataclass(frozen=True)
class Shard:
    """Where one shard's rows and columns are.

    Args:
        first, count: it holds the rows [first, first + count).
        start: byte at which its columns begin.
        columns: tuple of `Column`.
        checksums: tuple of the columns' CRC-32, where they are known.
    """

    first: int
    count: int
    start: int
    columns: tuple = field(repr=False)
    checksums: tuple = ()

    @property
    def offsets(self):
        """List of the byte at which each column begins, and of the file's size."""
        places = [self.start]
        for column in self.columns:
            places.append(places[-1] + _aligned(column.row_bytes * self.count))
        return places

    def sums(self, file):
        """CRC-32 of each column, read from an open binary file in small pieces."""
        for column, offset in zip(self.columns, self.offsets, strict=False):
            file.seek(offset)
            crc, left = 0, column.row_bytes * self.count
            while left:
                piece = file.read(min(left, _CHUNK))
                if not piece:
                    raise damaged(file.name, f"{left} more bytes of '{column.name}'", "its end")
                crc, left = zlib.crc32(piece, crc), left - len(piece)
            yield crc


@dataclass(frozen=True)
class Layout:
    """How a table that is to be written is cut into shards.

    Each shard but the last holds `shard_rows` rows, or fewer if so many need more than
    `shard_bytes` bytes, and one at least.

    Args:
        rows: int >= 1.
        columns: sequence of `Column`, with different names.
        about: dict of JSON, up to 16 MiB as text.
        shard_bytes, shard_rows: int >= 1.

    Raises:
        ValueError: an argument is out of range.
        TypeError: `about` isn't JSON.
    """

    rows: int
    columns: tuple
    about: dict
    shard_bytes: int = 64 * 2**20
    shard_rows: int = 2**16

    def __post_init__(self):
        for name in ("rows", "shard_bytes", "shard_rows"):
            number = getattr(self, name)
            if not _is_whole(number, 1):
                raise ValueError(f"`{name}` must be an integer >= 1. Received: {number!r}")
        columns = tuple(self.columns)
        names = [column.name for column in columns]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"Columns need different names, one or more. Received: {names}")
        if not isinstance(self.about, dict):
            raise TypeError(f"`about` must be a dict of JSON. Received: {self.about!r}")
        row_bytes = sum(column.row_bytes for column in columns)
        fitting = max(1, min(self.shard_rows, self.shard_bytes // row_bytes))
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "shard_rows", fitting)
        # What JSON makes of it: lists for tuples, texts as keys.
        object.__setattr__(self, "about", json.loads(json.dumps(self.about, allow_nan=False)))
        if self._header_bytes > _LARGEST_HEADER:
            raise ValueError(
                f"`about` must fit into {_LARGEST_HEADER} bytes of JSON. Received: "
                f"{self._header_bytes} bytes of header"
            )

    @property
    def shards(self):
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    @property
    def size(self):
        """Bytes of the whole cache."""
        full, last = self.shard(0), self.shard(self.shards - 1)
        return full.offsets[-1] * (self.shards - 1) + last.offsets[-1]

    def shard(self, index):
        """The `Shard` of a number."""
        first = index * self.shard_rows
        count = min(self.shard_rows, self.rows - first)
        return Shard(first, count, _START.size + self._header_bytes, self.columns)

    def header(self, shard, checksums):
        """All that is in front of a shard's columns, as bytes."""
        text = self._text(shard.first, shard.count, checksums).ljust(self._header_bytes)
        return _START.pack(MAGIC, len(text), zlib.crc32(text)) + text

    @cached_property
    def _header_bytes(self):
        # Of the longest numbers there may be: a shard's size is known before its checksums are.
        text = self._text(self.rows, self.rows, [_LARGEST_CHECKSUM] * len(self.columns))
        return _aligned(_START.size + len(text)) - _START.size

    def _text(self, first, count, checksums):
        columns = [
            {"name": c.name, "dtype": c.dtype, "shape": list(c.shape), "crc32": crc}
            for c, crc in zip(self.columns, checksums, strict=True)
        ]
        header = {"format": FORMAT, "about": self.about, "rows": self.rows, "shards": self.shards}
        return json.dumps({**header, "first": first, "count": count, "columns": columns}).encode()


def shard_path(directory, index):
    """The path of a shard of the cache in `directory`."""
    return Path(directory) / f"{index:05d}.kdcache"


def building_path(path):
    """The directory in which the cache `path` is built."""
    return path.with_name(f"{path.name}.building")


def damaged(path, expected, received):
    """The `ValueError` of a file that isn't as it was written."""
    return files.damaged(path, expected, received, "Build the cache again")


def read_shard(path):
    """Reads and checks a shard's header and the file's size, but no data.

    Args:
        path: of the file.

    Returns:
        Its `Description` and its `Shard`.

    Raises:
        ValueError: it is missing, damaged or of another format.
    """
    try:
        size = Path(path).stat().st_size
        with open(path, "rb") as file:
            text = _header_text(path, file, size)
    except FileNotFoundError:
        raise damaged(path, "a shard of the cache", "no file") from None
    try:
        fields = json.loads(text.decode(), parse_constant=_refuse)
        description, shard = _parsed(fields, len(text))
    except (ValueError, RecursionError) as error:
        raise damaged(path, "a header as in docs/cache-format.md", error) from None
    if shard.offsets[-1] != size:
        # The number may be too long to be printed.
        raise damaged(path, "a file as long as its header says", f"{size} bytes")
    return description, shard


def check_rows(rows, total):
    """Row numbers as an int64 array.

    Args:
        rows: 1-D array or list of integers of any dtype.
        total: int, number of rows of the table.

    Raises:
        ValueError: another shape or dtype, or a row that the table hasn't.
    """
    rows = np.asarray(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(
            "Rows must be a 1-D array of integers. Received: an array of dtype "
            f"{rows.dtype} and shape {rows.shape}"
        )
    if len(rows) and (rows.min() < 0 or rows.max() >= total):
        raise ValueError(
            f"Rows of this table are from 0 to {total - 1}. Received: {rows.min()} to {rows.max()}"
        )
    return rows.astype(np.int64)


def by_shard(rows, firsts):
    """Which of some rows are in which shard.

    Args:
        rows: sorted array.
        firsts: sorted array of the shards' first rows.

    Yields:
        The number of a shard, and the slice of `rows` that is in it, where there are any.
    """
    edges = np.append(np.searchsorted(rows, firsts), len(rows)).tolist()
    for index in np.flatnonzero(np.diff(edges)).tolist():
        yield index, slice(edges[index], edges[index + 1])


def _header_text(path, file, size):
    start = file.read(_START.size)
    if len(start) < _START.size or not start.startswith(MAGIC):
        raise damaged(path, f"a file that begins with {MAGIC}", f"{start[:8]}")
    _, length, crc = _START.unpack(start)
    longest = min(size - _START.size, _LARGEST_HEADER)
    if length > longest or _aligned(_START.size + length) != _START.size + length:
        raise damaged(path, f"a header of up to {longest} bytes", f"a length of {length}")
    text = file.read(length)
    if zlib.crc32(text) != crc:
        raise damaged(path, f"a header with the checksum {crc}", f"{zlib.crc32(text)}")
    return text


def _parsed(fields, length):
    if not isinstance(fields, dict) or not _is_whole(fields.get("format"), 1):
        raise ValueError("no format number")
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']}, where this kdtoolkit reads {FORMAT}")
    if fields.keys() != _FIELDS or not isinstance(fields["about"], dict):
        raise ValueError(f"the fields {sorted(fields)}")
    numbers = {name: fields[name] for name in ("rows", "shards", "first", "count")}
    if not all(_is_whole(number, name != "first") for name, number in numbers.items()):
        raise ValueError(f"the numbers {numbers}")
    columns, checksums = _parsed_columns(fields["columns"])
    description = Description(fields["about"], numbers["rows"], numbers["shards"], columns)
    start = _START.size + length
    return description, Shard(numbers["first"], numbers["count"], start, columns, checksums)


def _parsed_columns(listed):
    if not isinstance(listed, list) or not listed:
        raise ValueError("no columns")
    for fields in listed:
        if not isinstance(fields, dict) or fields.keys() != _COLUMN_FIELDS:
            raise ValueError(f"a column {fields!r}")
        if not _is_whole(fields["crc32"], 0) or fields["crc32"] > _LARGEST_CHECKSUM:
            raise ValueError(f"a checksum {fields['crc32']!r}")
    columns = tuple(Column(fields["name"], fields["dtype"], fields["shape"]) for fields in listed)
    if len({column.name for column in columns}) < len(columns):
        raise ValueError("columns with equal names")
    return columns, tuple(fields["crc32"] for fields in listed)


def _is_whole(number, minimum):
    # A bool is an int to Python.
    return type(number) is int and number >= minimum


def _aligned(size):
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _refuse(constant):
    raise ValueError(f"the number {constant}")
