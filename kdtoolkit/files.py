"""Writing files whole or not at all, and folders that belong to one process."""

import contextlib
import os
import uuid
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none.
    fcntl = None

#: The locks that this process holds, by folder. The system lets go of them when it ends.
_HELD = {}


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


def claim(directory):
    """Makes a folder that this process alone writes to, until it ends, however it ends.

    A second claim by the same process succeeds: a run that was interrupted may go on. Where the
    system has no locks of this kind (Windows), every claim succeeds.

    Args:
        directory: the folder. A file `.lock` comes into it.

    Raises:
        ValueError: another process has it.
    """
    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if fcntl is None or directory in _HELD:
        return
    file = open(directory / ".lock", "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"Another process is training in '{directory}' right now. Expected one run for each "
            "folder. Wait for its end, or use another folder"
        ) from None
    _HELD[directory] = file
