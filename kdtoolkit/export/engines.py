"""The optional packages behind the export: how they are imported and kept silent."""

import contextlib
import functools
import os
import sys
import tempfile
from dataclasses import dataclass

from kdtoolkit import optional

require = functools.partial(optional.require, part="kdtoolkit.export", extra="export")


@dataclass
class Captured:
    """What was written while `quiet` was active. `text` is filled when the block ends."""

    text: str = ""


@contextlib.contextmanager
def quiet(stdout=True):
    """Keep converters and interpreters, which write from C++, off stdout and stderr.

    Only the file descriptors 1 and 2 are redirected. `sys.stdout` and `sys.stderr` stay in
    place: a logging handler that is created inside the block would otherwise keep writing to
    the replacement for ever.

    Args:
        stdout: If `False`, only stderr is silenced.

    Yields:
        A `Captured` whose `text` holds, after the block, what was written.
    """
    captured = Captured()
    with tempfile.TemporaryFile() as sink:
        try:
            with contextlib.ExitStack() as stack:
                for descriptor, stream in ((1, sys.stdout), (2, sys.stderr))[not stdout :]:
                    _redirect(descriptor, stream, sink.fileno(), stack)
                yield captured
        finally:
            sink.seek(0)
            captured.text = sink.read().decode(errors="replace")


def _redirect(descriptor, stream, target, stack):
    """Point `descriptor` to `target` until `stack` closes."""
    try:
        saved = os.dup(descriptor)
    except OSError:  # Closed, as in a daemon: nothing to silence.
        return
    stack.callback(os.close, saved)
    stack.callback(os.dup2, saved, descriptor)
    if stream is not None:
        # What was printed before belongs to the user, what is printed inside does not.
        stream.flush()
        stack.callback(stream.flush)
    os.dup2(target, descriptor)
