"""The start of the console command `kdtoolkit`, outside the package.

Importing the package imports Keras, which reads its backend once; so what Keras and TensorFlow read
from the environment must be there before. Variables that are set are left alone.
"""

import os
import sys
import tempfile


def main():
    """Prepare the environment, then run the command line.

    Returns:
        The exit code.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        from kdtoolkit.cli import main as run

        return run()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    return _quietly()()


def _quietly():
    """Import the command line without the notes that TensorFlow writes whatever its log level."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            from kdtoolkit.cli import main as run
        finally:
            os.dup2(saved, 2)
            os.close(saved)
    return run


if __name__ == "__main__":
    sys.exit(main())
