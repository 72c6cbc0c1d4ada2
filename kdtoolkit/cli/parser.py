"""What the command line understands."""

import argparse

from kdtoolkit.cli import commands
from kdtoolkit.version import __version__

_CODES = """
exit codes:
  0    done
  1    the exported file disagrees with Keras; nothing was written
  2    bad input: wrong options, a missing or damaged file, data that doesn't fit
"""
_DATA = """
data files:
  .npz  arrays by name: np.savez("data.npz", x=x, y=y). Other names: --x and --y. A model with
        several inputs takes all arrays but the labels, by the names of its inputs.
  .npy  one array, the examples
"""
_MAIN = """
Small, checked models: export a Keras model to a LiteRT file, compare candidates on the same
examples, look into a file. `kdtoolkit COMMAND --help` tells more.

examples:
  kdtoolkit export student.keras --quantize int8 --data train.npz
  kdtoolkit compare teacher.keras student.keras student.tflite --data test.npz --html page.html
  kdtoolkit inspect student.tflite
"""
_EXPORT = """
Write a Keras model as a .tflite file, run the file, and compare it with Keras. A file that
disagrees is an error, and nothing is left at its path.

examples:
  kdtoolkit export student.keras
  kdtoolkit export student.keras small.tflite --quantize dynamic --json
  kdtoolkit export student.keras small.tflite --quantize int8 --data train.npz --io int8
"""
_COMPARE = """
Compare Keras models (.keras) and files (.tflite) on the same examples: accuracy, agreement,
calibration, size, latency, memory. A candidate is named after its file, or as NAME=FILE. Without
labels only agreement and costs are measured.

examples:
  kdtoolkit compare student.keras student.tflite --data test.npz
  kdtoolkit compare A=a.tflite B=b.tflite --data test.npz --teacher teacher.keras --html page.html
  kdtoolkit compare a.tflite b.tflite --data test.npz --no-latency --json > table.json
"""
_INSPECT = """
Say what is inside a .tflite file without running it: sizes, inputs, outputs, operators.

example:
  kdtoolkit inspect student.tflite --json
"""


def parser():
    """Return the `argparse.ArgumentParser` of all commands."""
    main = _Parser("kdtoolkit", _MAIN + _CODES)
    main.add_argument("--version", action="version", version=f"kdtoolkit {__version__}")
    kinds = main.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_export(kinds)
    _add_compare(kinds)
    _add_inspect(kinds)
    return main


class _Parser(argparse.ArgumentParser):
    """A parser that keeps the line breaks of its description."""

    def __init__(self, prog, description):
        super().__init__(
            prog=prog,
            description=description.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )


def _command(kinds, name, run, help, description):
    own = kinds.add_parser(name, help=help, description=description)
    own.set_defaults(run=run)
    own.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")
    own.add_argument("--debug", action="store_true", help="show where an error comes from")
    return own


def _add_export(kinds):
    own = _command(
        kinds, "export", commands.export, "write a checked .tflite file", _EXPORT + _DATA + _CODES
    )
    add = own.add_argument
    add("model", metavar="MODEL.keras", help="file that model.save wrote")
    add("out", metavar="OUT.tflite", nargs="?", help="defaults to MODEL.tflite")
    add("--quantize", metavar="MODE", help="float16, dynamic, int8 or another mode of "
        "kd.export.litert; defaults to none")  # fmt: skip
    add("--data", metavar="FILE", help="typical examples, for int8 and for the check")
    add("--x", metavar="NAME", help="name of the examples in an .npz file")
    add("--labels", metavar="FILE", help="text file with one class name per line, stored in the "
        "file")  # fmt: skip
    add("--io", default="float32", metavar="TYPE", help="inputs and outputs of an int8 file: "
        "float32 (default) or int8")  # fmt: skip
    add("--batch-size", type=int, default=1, metavar="N", help="defaults to 1")
    add("--overwrite", action="store_true", help="replace OUT.tflite if it exists")


def _add_compare(kinds):
    own = _command(
        kinds, "compare", commands.compare, "compare models and files", _COMPARE + _DATA + _CODES
    )
    add = own.add_argument
    add("candidates", metavar="CANDIDATE", nargs="+", help=".keras or .tflite file, or NAME=FILE")
    add("--data", metavar="FILE", required=True, help="examples, in an .npz file with labels")
    add("--x", metavar="NAME", help="name of the examples in an .npz file")
    add("--y", metavar="NAME", help="name of the labels in an .npz file")
    add("--teacher", metavar="FILE", help="compare with this network; defaults to the first one")
    add("--output", metavar="NAME", help="output to compare, of networks with several")
    add("--from-logits", choices=("auto", "yes", "no"), default="auto", help="whether outputs are "
        "logits or probabilities; defaults to auto, which looks at them")  # fmt: skip
    add("--labels", metavar="FILE", help="text file with one class name per line")
    add("--html", metavar="FILE", help="write one page with table and pictures")
    add("--csv", metavar="FILE", help="write the rows")
    add("--overwrite", action="store_true", help="replace these two files if they exist")
    add("--no-latency", action="store_true", help="measure neither time nor memory")
    add("--runs", type=int, default=30, metavar="N", help="timed runs in each of 5 rounds; "
        "defaults to 30")  # fmt: skip


def _add_inspect(kinds):
    own = _command(
        kinds, "inspect", commands.inspect, "look into a .tflite file", _INSPECT + _CODES
    )
    own.add_argument("file", metavar="FILE.tflite")
