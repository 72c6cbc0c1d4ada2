"""Experiments in generations as a figure and as a table to print."""

import math

from kdtoolkit.evaluation.extras import require
from kdtoolkit.evaluation.files import write_figure
from kdtoolkit.evaluation.generations import generation_table

_MARKERS = "os^Dvp"


def generations_figure(rows, title=None):
    """Draws accuracy and training time over generations.

    Lines show the mean test accuracy of each method; their error bars are one standard deviation
    over trials to each side, and are left out for a single trial. Bars, on a second axis, show the
    mean cumulative training time, in seconds, minutes or hours.

    Args:
        rows: iterable of rows as of `generation_table`.
        title: str or None.

    Returns:
        A `matplotlib.figure.Figure` with two axes, accuracy first. It belongs to no window; Jupyter
        shows it.

    Raises:
        ValueError: as `generation_table`.
        ImportError: without matplotlib.

    Example:

    ```python
    figure = kdtoolkit.evaluation.generations_figure(rows)
    figure.axes[0].set_ylim(60, 75)
    ```
    """
    table = generation_table(rows)
    # Without pyplot there is no global state, no window and nothing to close.
    figure = require("matplotlib.figure").Figure(figsize=(7.0, 4.5), layout="constrained")
    accuracy = figure.add_subplot()
    time = accuracy.twinx()
    unit, seconds = _time_unit(table)
    methods = list(dict.fromkeys(line["method"] for line in table))
    handles = []
    width = 0.8 / len(methods)
    for index, method in enumerate(methods):
        lines = [line for line in table if line["method"] == method]
        offset = (index - (len(methods) - 1) / 2) * width
        marker = _MARKERS[index % len(_MARKERS)]
        # Points stand a little apart, so that error bars don't hide each other.
        handles.append(_draw_accuracy(accuracy, lines, f"C{index}", marker, offset / 4))
        handles.append(_draw_time(time, lines, f"C{index}", offset, width, seconds))
    accuracy.set_xticks(sorted({line["generation"] for line in table}))
    accuracy.set_xlabel("Generation")
    accuracy.set_ylabel("Test accuracy (%), mean ± sd")
    time.set_ylabel(f"Cumulative training time ({unit})")
    # The axes drawn last hide the others: lines belong above bars.
    accuracy.set_zorder(time.get_zorder() + 1)
    accuracy.patch.set_visible(False)
    if title is not None:
        accuracy.set_title(title)
    # More columns than three would be wider than the figure.
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(methods), 3))
    return figure


def plot_generations(rows, path, title=None, overwrite=False):
    """Writes the figure of `generations_figure` to a file.

    Args:
        rows, title: as in `generations_figure`.
        path: the file. Its ending, such as `.png`, `.svg` or `.pdf`, is the format.
        overwrite: bool. True replaces an existing file. Defaults to False.

    Raises:
        FileExistsError: if the file exists and `overwrite` is False.
        ValueError: for an ending that matplotlib does not write, or none, or as
            `generation_table`.
        ImportError: without matplotlib.

    Example:

    ```python
    kdtoolkit.evaluation.plot_generations(rows, "generations.png", title="ResNet-20, CIFAR-100")
    ```
    """
    write_figure(generations_figure(rows, title), path, overwrite)


def print_table(rows, title=None):
    """Makes a table to print: test and validation accuracy, training time, epochs.

    The numbers are means over trials, with one standard deviation after the sign ±. The time is
    cumulative, the epochs are those of the generation.

    Args:
        rows: iterable of rows as of `generation_table`.
        title: str or None.

    Returns:
        A `rich.table.Table`, for `rich.print`. This function prints nothing.

    Raises:
        ValueError: as `generation_table`.
        ImportError: without rich.

    Example:

    ```python
    rich.print(kdtoolkit.evaluation.print_table(rows))
    ```
    """
    lines = generation_table(rows)
    unit, seconds = _time_unit(lines)
    text, table = require("rich.text").Text, require("rich.table").Table(title=title)
    table.add_column("Method", overflow="fold")
    for header in ("Gen.", "Trials", "Test (%)", "Val (%)", f"Time ({unit})", "Epochs"):
        table.add_column(header, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            # Text, because rich would read brackets in a plain string as styles.
            text(str(line["method"])),
            str(line["generation"]),
            str(line["n"]),
            _with_sd(line, "test_accuracy", 100, digits=2),
            _with_sd(line, "val_accuracy", 100, digits=2),
            _with_sd(line, "cumulative_seconds", 1 / seconds, digits=1),
            f"{line['epochs_mean']:.1f}",
        )
    return table


def _draw_accuracy(axis, lines, color, marker, offset):
    return axis.errorbar(
        [line["generation"] + offset for line in lines],
        [100 * line["test_accuracy_mean"] for line in lines],
        yerr=[100 * line["test_accuracy_sd"] for line in lines],
        color=color,
        marker=marker,
        capsize=3,
        label=str(lines[0]["method"]),
    )


def _draw_time(axis, lines, color, offset, width, seconds):
    return axis.bar(
        [line["generation"] + offset for line in lines],
        [line["cumulative_seconds_mean"] / seconds for line in lines],
        width=width,
        color=color,
        alpha=0.25,
        label=f"{lines[0]['method']}, time",
    )


def _time_unit(table):
    """A unit in which the longest time is a number of few digits, and its seconds."""
    longest = max(line["cumulative_seconds_mean"] for line in table)
    if longest < 120:
        return "s", 1
    return ("min", 60) if longest < 7200 else ("h", 3600)


def _with_sd(line, value, factor, digits):
    mean, sd = line[f"{value}_mean"] * factor, line[f"{value}_sd"] * factor
    return f"{mean:.{digits}f}" + ("" if math.isnan(sd) else f" ± {sd:.{digits}f}")
