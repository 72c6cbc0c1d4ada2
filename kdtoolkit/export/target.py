"""Where a file goes: checked before any slow step, and replaced only at the end."""

import contextlib
import os
import uuid
from pathlib import Path


def check_target(path, overwrite):
    """Refuse a path that cannot be written.

    Args:
        path: Where to write.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The path as a `pathlib.Path`.

    Raises:
        FileExistsError, FileNotFoundError, IsADirectoryError, ValueError: As `litert` says.
    """
    target = Path(path)
    if target.suffix != ".tflite":
        raise ValueError(f"`path` must end in '.tflite'. Received: '{path}'.")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"The directory '{target.parent}' does not exist. Create it before the export."
        )
    if target.is_dir():
        raise IsADirectoryError(f"`path` is a directory: '{path}'. Pass the name of a file.")
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"'{path}' exists already. Pass overwrite=True to replace it, or another path."
        )
    return target


@contextlib.contextmanager
def draft_of(target):
    """Create a temporary file beside `target`, which takes its place if the block succeeds.

    Args:
        target: Path of the file to be.

    Yields:
        The path of the temporary file. It is gone at the end in any case.

    Raises:
        PermissionError: If the directory cannot be written to.
    """
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        draft.touch(exist_ok=False)
    except OSError as error:
        raise PermissionError(
            f"The directory '{target.parent}' cannot be written to ({error}). "
            "Pass a path in a directory that you own."
        ) from error
    try:
        yield draft
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
