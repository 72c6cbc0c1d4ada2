"""The columns of the table: what they are called and how their values are written."""

from collections.abc import Callable
from dataclasses import dataclass

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: Key of the rows.
        title: Its head.
        hint: What it means, in a sentence.
        text: Function from a row whose value is there to what is shown.
    """

    key: str
    title: str
    hint: str
    text: Callable


def columns(rows):
    """Return those of `COLUMNS` in which at least one row has a value.

    Args:
        rows: List of dicts.

    Returns:
        A list of `Column`.
    """
    return [one for one in COLUMNS if any(row[one.key] is not None for row in rows)]


def shown(column, row):
    """Return what a row shows in a column."""
    return NOTHING if row[column.key] is None else column.text(row)


def percent(share):
    """Write a share.

    Example:
        >>> percent(0.9123)
        '91.2 %'
    """
    return f"{100 * share:.1f} %"


def points(change):
    """Write a change of accuracy in percentage points, with its sign.

    Example:
        >>> points(-0.025), points(0.0)
        ('−2.5', '0.0')
    """
    text = f"{100 * change:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def size(count):
    """Write a number of bytes, in units of 1000.

    Example:
        >>> size(950), size(12_345), size(3_400_000)
        ('950 B', '12.3 kB', '3.40 MB')
    """
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.2f} MB"


def time(value, *more):
    """Write a time in a unit in which it is no small fraction, and others in the same unit.

    Args:
        value: Milliseconds.
        more: A shorter and a longer time, shown in brackets.

    Example:
        >>> time(0.01234), time(1.234), time(123.4, 99.6, 150)
        ('12.3 µs', '1.23 ms', '123 ms (99.6–150)')
    """
    factor, unit = (1000, "µs") if value < 0.1 else (1, "ms")
    first, *ends = (_three_digits(factor * one) for one in (value, *more))
    return f"{first} {unit}" + (f" ({'–'.join(ends)})" if ends else "")


def _three_digits(value):
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _accuracy(row):
    low, high = (f"{100 * row[key]:.1f}" for key in ("accuracy_low", "accuracy_high"))
    return f"{percent(row['test_accuracy'])} ({low}–{high})"


def _worst(row):
    return f"{row['worst_class']}: {points(row['worst_change'])}" if row["worst_class"] else "none"


def _time(row, start):
    return time(*(row[f"{start}_{end}"] for end in ("ms", "min_ms", "p95_ms")))


COLUMNS = (
    Column("model", "Model", "The name given.", lambda row: row["model"]),
    Column("test_accuracy", "Accuracy", "Share of right answers, with its 95 % confidence "
           "interval (Wilson).", _accuracy),
    Column("agreement", "Agreement", "Share of examples with the same answer as the reference.",
           lambda row: percent(row["agreement"])),
    Column("nll", "NLL", "Mean of -log p of the right class, in nats; less is better.",
           lambda row: f"{row['nll']:.3f}"),
    Column("ece", "ECE", "Expected calibration error in 15 bins; less is better.",
           lambda row: percent(row["ece"])),
    Column("worst_change", "Most lost", "The class that lost most accuracy against "
           "the reference, in points.", _worst),
    Column("parameters", "Weights", "Weights of the Keras model, or stored in the file.",
           lambda row: f"{row['parameters']:,}"),
    Column("macs", "MACs", "Multiplications with addition for one example, of convolutions, "
           "dense layers and products of matrices.", lambda row: f"{row['macs']:,}"),
    Column("bytes", "File", "Size of the .tflite file.", lambda row: size(row["bytes"])),
    Column("gzip_bytes", "gzip", "Size of the file after gzip.",
           lambda row: size(row["gzip_bytes"])),
    Column("sparsity", "Zeros", "Share of the weights that are 0.",
           lambda row: percent(row["sparsity"])),
    Column("latency_ms", "1 thread", "Latency of one invocation: median; fastest run to 95th "
           "percentile.", lambda row: _time(row, "latency")),
    Column("latency_2_threads_ms", "2 threads", "The same with 2 threads.",
           lambda row: _time(row, "latency_2_threads")),
    Column("memory_bytes", "Memory", "Growth of the peak resident set of a fresh process that "
           "opens and runs the file.", lambda row: size(row["memory_bytes"])),
)  # fmt: skip
