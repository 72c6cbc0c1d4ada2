"""The result of a comparison, in every form in which it is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtoolkit.comparison.columns import columns, shown
from kdtoolkit.comparison.page import page
from kdtoolkit.evaluation import plot_tradeoff, write_csv
from kdtoolkit.export.verify import finite
from kdtoolkit.files import draft_of
from kdtoolkit.optional import require

# Candidates side by side in text, before a further block begins.
_ABREAST = 4
# What does not fit in a cell.
_NESTED = ("class_changes", "worst_classes")


@dataclass(frozen=True)
class ComparisonTable:
    """Candidates side by side, as `kd.compare` gives them.

    Attributes:
        rows: List of dicts, one per candidate in their order. Numbers that were not measured are
            `None`.

            model, source         its name; the path or the Keras model behind it
            measured              on what the costs were measured
            examples              number of examples
            from_logits           whether its outputs were read as logits
            test_accuracy         0 to 1; ends of the 95 % interval in `accuracy_low`,
                                  `accuracy_high`
            nll, ece              nats; 0 to 1
            agreement             share of examples with the answer of the reference
            worst_class, worst_change    class that lost most accuracy, and how much
            worst_classes         list of up to 3 dicts: `class`, `change`, `examples`
            class_changes         accuracy minus that of the reference, class by class
            parameters            weights of the Keras model, or stored in the file given
            macs                  multiply-accumulate operations of one example
            bytes, gzip_bytes     size of the file, and after gzip
            sparsity              share of the weights that are 0
            full_integer          whether no operator computes in floats
            batch_size            examples of one invocation
            latency_ms            median per invocation, 1 thread; `latency_min_ms`,
                                  `latency_p95_ms`
            latency_2_threads_ms  the same with 2 threads
            memory_bytes          growth of the peak resident set

        reference: Name of the reference.
        classes: Names of the classes.
        class_counts: Number of examples of each class, or `None` without labels.
        setting: Dict with the machine, the versions, the date and how it was measured.
    """

    rows: list[dict[str, Any]]
    reference: str
    classes: list[str]
    class_counts: list[int] | None
    setting: dict[str, Any]

    def to_dict(self):
        """Return the attributes as a dict that JSON can store, infinite numbers as `None`."""
        return finite(dict(vars(self)))

    def write_csv(self, path, overwrite=False):
        """Write the rows to a CSV file, without the two lists in them.

        Args:
            path: The file.
            overwrite: If `True`, replace an existing file. Defaults to `False`.

        Raises:
            FileExistsError: If the file exists and `overwrite` is `False`.
        """
        rows = [{k: v for k, v in row.items() if k not in _NESTED} for row in self.rows]
        write_csv(rows, path, overwrite)

    def write_html(self, path, overwrite=False, title="Models compared"):
        """Write one page that opens from disk, without a network or another file.

        It holds the table, which can be sorted, accuracy against size and against latency with
        the Pareto front, the changes class by class, and what was measured on what.

        Args:
            path: The file.
            overwrite: If `True`, replace an existing file. Defaults to `False`.
            title: Head of the page.

        Raises:
            FileExistsError: If the file exists and `overwrite` is `False`.
        """
        content = page(self, title).encode("utf-8", errors="replace")
        with draft_of(path, overwrite) as draft:
            Path(draft).write_bytes(content)

    def figures(self):
        """Draw accuracy against the size of the files and against latency.

        Returns:
            Dict with a `matplotlib.figure.Figure` for each of `"bytes"` and `"latency_ms"` that
            was measured. Candidates without a file are left out.

        Raises:
            ValueError: Without labels, and so without accuracy.
            ImportError: Without matplotlib.
        """
        if self.class_counts is None:
            raise ValueError("The figures show accuracy, which needs labels. Pass `y` to compare.")
        known = {
            key: [row for row in self.rows if row[key] is not None]
            for key in ("bytes", "latency_ms")
        }
        return {key: plot_tradeoff(rows, x=key) for key, rows in known.items() if rows}

    def table(self):
        """Make a table to print, a column per candidate.

        Returns:
            A `rich.table.Table`, for `rich.print`.

        Raises:
            ImportError: Without rich.
        """
        text = require("rich.text", "kdtoolkit.comparison", "plot").Text
        made = require("rich.table", "kdtoolkit.comparison", "plot").Table()
        head, *lines = self._cells()
        # Text, because rich would read brackets in a plain string as styles.
        for number, name in enumerate(head):
            made.add_column(text(name), justify="right" if number else "left", overflow="fold")
        for line in lines:
            made.add_row(*map(text, line))
        return made

    def __str__(self):
        cells = self._cells()
        starts = range(1, len(self.rows) + 1, _ABREAST)
        blocks = [_block([[line[0], *line[k : k + _ABREAST]] for line in cells]) for k in starts]
        examples = f"{self.rows[0]['examples']:,} examples, {len(self.classes)} classes"
        note = f"{examples}; agreement and changes against {self.reference}"
        return "\n\n".join(blocks) + f"\n{note}"

    def _cells(self):
        """The table as lists of text, candidates side by side: terminals are narrow."""
        used = columns(self.rows)
        cells = [[one.title, *(shown(one, row) for row in self.rows)] for one in used]
        cells[0][0] = ""
        # A line break in a name would break the table.
        return [[" ".join(cell.split()) for cell in line] for line in cells]


def _block(cells):
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in cells
    )
