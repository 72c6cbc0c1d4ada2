"""The command line: `kdtoolkit export`, `kdtoolkit compare`, `kdtoolkit inspect`.

The console command starts in `kdtoolkit_command`, which sets the backend before Keras is imported.
"""

import os
import sys

from kdtoolkit.cli.parser import parser
from kdtoolkit.export import ExportMismatchError

__all__ = ["main"]

MISMATCH, BAD_INPUT, STOPPED = 1, 2, 130


def main(arguments=None):
    """Run the command line.

    Args:
        arguments: List of str. Defaults to those of the process.

    Returns:
        The exit code: 0; 1 for an export that failed its check; 2 for anything else that went
        wrong, with one line on stderr; 130 when stopped by Ctrl-C.

    Raises:
        SystemExit: After `--help` and `--version` (0), or for wrong options (2).
        Exception: Whatever went wrong, with `--debug`.

    Example:

    ```python
    code = kdtoolkit.cli.main(["inspect", "student.tflite", "--json"])
    ```
    """
    options = parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has seen enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if options.debug:
            raise
        print(f"kdtoolkit: {_one_line(error)}", file=sys.stderr)
        return MISMATCH if isinstance(error, ExportMismatchError) else BAD_INPUT
    return 0


def _one_line(error):
    text = " ".join(str(error).split())
    # Their text is written for people; that of a KeyError, say, is not.
    told = isinstance(error, ValueError | TypeError | ImportError | OSError) and text
    return text if told else f"{type(error).__name__}: {text}"
