"""Writing files whole or not at all, and reading them as they were written or not at all."""

import contextlib
import json
import math
import os
import uuid
import zipfile
import zlib
from pathlib import Path, PurePosixPath

_CRC = "crc32"
_CHUNK = 2**20


@contextlib.contextmanager
def draft_of(path, overwrite):
    """Gives a temporary path beside `path`, which takes its place if the block ends well.

    Args:
        path: the file to write.
        overwrite: bool, whether it may replace an existing file.

    Yields:
        The temporary `pathlib.Path`, with the same ending.

    Raises:
        FileExistsError: if the file exists and `overwrite` is False.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already. Use another path or `overwrite=True`")
    draft = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def damaged(path, expected, received, way_out):
    """The `ValueError` of a file that isn't as it was written."""
    expected, received = f"{expected}"[:200], f"{received}"[:200]
    return ValueError(f"{path} is damaged: Expected {expected}. Received: {received}. {way_out}")


# JSON -------------------------------------------------------------------------------------------


def write_json(path, content, default=None):
    """Write a dict as JSON, with a checksum of what it says, whole or not at all.

    Args:
        path: the file. One that exists is replaced.
        content: dict of JSON, with text keys.
        default: as in `json.dumps`.
    """
    content = json.loads(json.dumps(content, default=default))
    text = json.dumps({**content, _CRC: _crc(content)}, indent=2)
    with draft_of(path, overwrite=True) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path, way_out):
    """Read what `write_json` wrote. A file without a checksum, of an older version, is read as is.

    Args:
        path: the file.
        way_out: what the message advises, a sentence.

    Returns:
        The dict.

    Raises:
        ValueError: it is no JSON, no dict, or not what was written.
    """
    try:
        content = json.loads(Path(path).read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, "JSON", error, way_out) from None
    if not isinstance(content, dict):
        raise damaged(path, "a dict", type(content).__name__, way_out)
    expected, found = content.pop(_CRC, None), _crc(content)
    if expected not in (None, found):
        raise damaged(path, f"content with the checksum {expected}", found, way_out)
    return content


def _crc(content):
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def is_number(value, maximum=math.inf):
    """Whether a value of a JSON file is a finite number from 0 to `maximum`."""
    # A bool is an int to Python.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= maximum and value != math.inf


# Archives ---------------------------------------------------------------------------------------


def check_archive(
    path,
    way_out="Save the model again, or take it from a copy",
    what="a .keras file as model.save writes it",
):
    """Refuse a `.keras` or `.npz` file that isn't as it was saved, before anything of it is used.

    Every part is compared with its checksum. Keras itself reads weights past it where it can't
    make sense of them at once, and then takes damaged numbers for good ones; NumPy doesn't read a
    part to its end where an array seems to end before.

    Args:
        path: the file.
        way_out: what the message advises, a sentence.
        what: what the message calls such a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no complete archive, a part is damaged, or a part's name leads out of it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file '{path}'. Check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            flaw = _flaw(archive)
    # What zipfile meets in a damaged file may be anything, such as a compression of the future.
    except Exception as error:
        flaw = f"{type(error).__name__}: {error}"
    if flaw:
        raise damaged(f"'{path}'", what, flaw, way_out)


def _flaw(archive):
    names = archive.namelist()
    for part in archive.infolist():
        # A wrong length in the list of parts makes one part swallow the entry of the next.
        if b"PK\x01\x02" in part.comment + part.extra:
            return f"a list of parts that is broken at {part.filename!r}"
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in name or names.count(name) > 1:
            return f"a part with the name {name!r}"
    for name in names:
        with archive.open(name) as part:
            # To its end, where its checksum is compared.
            while part.read(_CHUNK):
                pass
    return None
