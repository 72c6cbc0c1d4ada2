"""Writing files whole or not at all."""

import contextlib
import os
import uuid
from pathlib import Path


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
