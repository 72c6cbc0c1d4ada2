"""One process at a time, of those on one machine. The system ends a lock with its process."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: there every lock is free.
    fcntl = None

#: The open files with the locks that this process holds, by folder.
_HELD = {}


@contextlib.contextmanager
def alone(path, part):
    """Waits until no other process builds the same part of the same cache.

    Its file stays, empty, among the temporary ones.

    Args:
        path: the cache.
        part: `(i, n)`.
    """
    if fcntl is None:
        yield
        return
    key = hashlib.sha256(f"{Path(path).absolute()} {part}".encode()).hexdigest()[:32]
    with open(Path(tempfile.gettempdir()) / f"kdtoolkit-{key}.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim(directory):
    """Makes a folder that this process alone writes to, until `release` or its own end.

    A second claim by the same process succeeds: a run that was interrupted may go on.

    Args:
        directory: the folder. A file `.lock` comes into it.

    Raises:
        ValueError: another process has it.
    """
    directory = Path(directory).resolve()
    if directory.exists() and not directory.is_dir():
        raise ValueError(
            f"A run needs a folder. Expected a new path, or that of a folder. Received: the file "
            f"'{directory}'"
        )
    directory.mkdir(parents=True, exist_ok=True)
    if fcntl is None or directory in _HELD:
        return
    file = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise ValueError(
            f"Another process is training in '{directory}' right now. Expected one run for each "
            "folder. Wait for its end, or use another folder"
        ) from None
    except OSError:
        # A file system without locks: as on a system without them.
        os.close(file)
        return
    _HELD[directory] = file


def release(directory):
    """Lets other processes write to a folder that was claimed, or does nothing."""
    file = _HELD.pop(Path(directory).resolve(), None)
    if file is not None:
        os.close(file)
