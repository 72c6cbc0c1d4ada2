"""One process at a time, of those on one machine."""

import contextlib
import hashlib
import tempfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none.
    fcntl = None


@contextlib.contextmanager
def alone(path, part):
    """Waits until no other process builds the same part of the same cache.

    The system ends the lock with the process, however that ends. Its file stays, empty, among the
    temporary ones.

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
