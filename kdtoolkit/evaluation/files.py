"""Results in files: rows as CSV, figures."""

import contextlib
import csv
from pathlib import Path

import numpy as np

from kdtoolkit.evaluation.generations import as_dict
from kdtoolkit.files import draft_of

# Columns of method names, which stay text even where a name looks like a number.
_NAMES = ("method", "first", "second", "model")
_WORDS = {"": None, "True": True, "False": False}


def write_figure(figure, path, overwrite):
    """Writes a matplotlib figure, whole or not at all, in the format that the path ends in."""
    if not Path(path).suffix:
        raise ValueError(f"`path` must end in the format, such as .png. Received: {path}")
    with draft_of(path, overwrite) as draft:
        figure.savefig(draft, dpi=150)


def written(figure, path, overwrite):
    """Writes a figure where a path is given. Returns the figure."""
    if path is not None:
        write_figure(figure, path, overwrite)
    return figure


def write_csv(rows, path, overwrite=False):
    """Writes rows to a CSV file with a header.

    Args:
        rows: iterable of dicts with the same keys, such as results of an experiment or lines of
            `compare_methods`; or objects with the attributes of a row of `generation_table`. Values
            are str, numbers, bool or None.
        path: the file.
        overwrite: bool. True replaces an existing file. Defaults to False.

    Raises:
        FileExistsError: if the file exists and `overwrite` is False.
        ValueError: without rows, or if the keys of two rows differ.
        TypeError: for a value of another type.

    Example:

    ```python
    kdtoolkit.evaluation.write_csv(rows, "results.csv")
    ```
    """
    rows = [as_dict(row) for row in rows]
    if not rows:
        raise ValueError("There must be rows to write. Received: none")
    for number, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise ValueError(
                f"All rows must have the same keys. Received: {list(rows[0])} in row 0 and "
                f"{list(row)} in row {number}"
            )
    cells = [{key: _cell(key, value) for key, value in row.items()} for row in rows]
    with draft_of(path, overwrite) as draft:
        with open(draft, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(cells)


def read_csv(path):
    """Reads rows that `write_csv` wrote, with their types.

    Names of methods (`method`, `first`, `second`) are str. Any other cell becomes what it looks
    like: None (an empty cell), bool, int, float (exactly the one written), or else str.

    Args:
        path: the file.

    Returns:
        A list of dicts.

    Raises:
        ValueError: for a line that hasn't as many cells as the header.
        FileNotFoundError: if there is no such file.

    Example:

    ```python
    rows = kdtoolkit.evaluation.read_csv("results.csv")
    ```
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        rows = []
        for cells in reader:
            if len(cells) != len(header):
                raise ValueError(
                    f"Line {reader.line_num} of {path} must have {len(header)} cells, as the "
                    f"header {header}. Received: {cells}"
                )
            rows.append({k: _value(k, cell) for k, cell in zip(header, cells, strict=True)})
        return rows


def _cell(key, value):
    value = value.item() if isinstance(value, np.generic) else value
    if value is not None and not isinstance(value, str | int | float):
        raise TypeError(
            f"A CSV file holds str, numbers, bool and None. Received: {key}={value!r}. "
            "Turn it into a str, or leave it out"
        )
    return value


def _value(key, cell):
    if key in _NAMES:
        return cell
    if cell in _WORDS:
        return _WORDS[cell]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell)
    return cell
