"""The results of `experiments/dropout.py`: a table, paired tests and a picture."""

import losses
import rich
from rich.table import Table

from kdtoolkit import evaluation
from kdtoolkit.files import draft_of

#: What every row is compared with: dropout training alone, and with further steps from labels.
BASES = ("standard", "labels again", "labels again, perturbed train")
#: What is averaged over the seeds, beside the test error.
MEASURES = ("nll", "brier", "ece", "kl_to_mean")
TEST = ("difference", "low", "high", "p", "p_holm")
COLOURS = {
    "labels, dropout": "tab:orange",
    "labels": "0.45",
    "labels, perturbed train": "tab:green",
    "distilled": "tab:blue",
}


def write(options, rows):
    """Writes and prints all results of the runs in `rows`."""
    bases = [base for base in BASES if base in {row["method"] for row in rows}]
    if not bases:
        raise SystemExit(
            f"Nothing to compare with in {options.runs}. Run one of {BASES}, or use --no-report."
        )
    start = options.out / f"dropout_{options.data}"
    options.out.mkdir(parents=True, exist_ok=True)
    # Random passes have no validation accuracy.
    columns = dict.fromkeys(key for row in rows for key in row)
    whole = [{key: row.get(key) for key in columns} for row in rows]
    evaluation.write_csv(whole, f"{start}_runs.csv", overwrite=True)
    lines = [line for base in bases for line in lines_of(options, rows, base)]
    evaluation.write_csv(lines, f"{start}.csv", overwrite=True)
    with draft_of(f"{start}.png", True) as draft:
        figure(options, rows).savefig(draft, dpi=110)
    rich.print(table_of(options, lines))


def lines_of(options, rows, base):
    """One line per method: means over the seeds that it shares with `base`, and differences."""
    seeds = {row["seed"] for row in rows if row["method"] == base}
    rows = [row for row in rows if row["seed"] in seeds]
    lines = []
    tests = (compared(options, rows, base, key) for key in ("test_accuracy", "nll"))
    for accuracy, nll in zip(*tests, strict=True):
        own = [row for row in rows if row["method"] == accuracy["method"]]
        lines.append(
            {
                "against": base,
                "method": accuracy["method"],
                "seeds": accuracy["seeds"],
                "error_mean": 1 - accuracy["test_mean"],
                "error_sd": accuracy["test_sd"],
                **{key: evaluation.summary([row[key] for row in own])[0] for key in MEASURES},
                **{key: accuracy[key] for key in TEST},
                **{f"nll_{key}": nll[key] for key in TEST},
            }
        )
    return lines


def compared(options, rows, base, key):
    """The lines of `losses`, which tests accuracies, with what is under `key` in their place."""
    rows = [{**row, "test_accuracy": row[key]} for row in rows]
    return losses.lines_of(options, rows, {}, against=base)


# Table --------------------------------------------------------------------------------------


def table_of(options, lines):
    columns = ("Row", "Seeds", "Error", "NLL", "Brier", "ECE", "KL")
    bases = list(dict.fromkeys(line["against"] for line in lines))
    table = Table(
        *columns,
        *(f"Over {base}" for base in bases),
        f"NLL over {bases[0]}",
        title=f"{options.data}: test error in %, last epoch",
        caption="KL: from the mean of the random passes, in nats. Over: difference in test "
        "accuracy, points, and p after Holm; in the last column, in NLL, nats",
    )
    by_base = {(line["against"], line["method"]): line for line in lines}
    for line in (line for line in lines if line["against"] == lines[0]["against"]):
        error = f"{100 * line['error_mean']:.2f} ± {100 * line['error_sd']:.2f}"
        measured = (line[key] for key in MEASURES)
        name = line["method"]
        tested = [_difference(by_base.get((base, name)), "", 100, ".2f") for base in bases]
        tested.append(_difference(by_base.get((bases[0], name)), "nll_", 1, ".4f"))
        table.add_row(name, f"{line['seeds']}", error, *(f"{m:.4f}" for m in measured), *tested)
    return table


def _difference(line, prefix, unit, digits):
    if line is None or line[f"{prefix}difference"] is None:
        return ""
    return f"{unit * line[f'{prefix}difference']:+{digits}} ({line[f'{prefix}p_holm']:.3f})"


# Picture ------------------------------------------------------------------------------------


def figure(options, rows):
    """Above, what became of the whole network; below, smaller networks against their size."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 7.5), layout="constrained")
    above, below = picture.subfigures(2, 1)
    found = {}
    for row in rows:
        found.setdefault(row["method"], []).append(
            {**row, "error": 100 * (1 - row["test_accuracy"])}
        )
    methods = [method for method in options.methods if method.name in found]
    _draw_whole(above, [m.name for m in methods if m.of is None], found)
    _draw_compression(below, methods, found)
    picture.suptitle(f"{options.data}: test part, last epoch; small points are seeds")
    return picture


def _draw_whole(figure, names, found):
    axes = figure.subplots(1, 3, sharey=True)
    titles = {"error": "error (%)", "nll": "NLL (nats)", "kl_to_mean": "KL to the mean (nats)"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for place, name in enumerate(reversed(names)):
            values = [row[key] for row in found[name]]
            axis.plot(values, [place] * len(values), "o", color="0.7", markersize=3)
            axis.plot(_mean(values), place, "o", color="tab:blue")
        axis.set_xlabel(title)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), reversed(names))


def _draw_compression(figure, methods, found):
    # Smaller dense layers change little beside smaller networks, so each has a scale of its own.
    axes = figure.subplots(1, 2)
    # Each share is half of the next: they stand as far apart as on a scale of logarithms.
    shares = sorted({method.share for method in methods if method.of})
    whole = [m.name for m in methods if not (m.labels or m.inputs)]
    for axis, of in zip(axes, ("dense", "all"), strict=True):
        for kind, colour in COLOURS.items():
            own = [m for m in methods if m.name.endswith(f"of {of}: {kind}")]
            values = {shares.index(m.share): _errors(found, m.name) for m in own}
            for place, errors in values.items():
                places = [place] * len(errors)
                axis.plot(places, errors, "o", color=colour, alpha=0.3, markersize=3)
            means = {place: _mean(values[place]) for place in sorted(values)}
            axis.plot(means.keys(), means.values(), "o-", color=colour, label=kind)
        for name, style in zip(whole, ("-", "--"), strict=False):
            error = _mean(_errors(found, name))
            axis.axhline(error, color="0.2", linewidth=1, linestyle=style, label=f"whole, {name}")
        axis.set_xticks(range(len(shares)), [f"{share:g}" for share in shares])
        layers = "the hidden dense layer" if of == "dense" else "all layers"
        axis.set_xlabel(f"share of the units of {layers} that is kept")
        axis.set_ylabel("test error (%)")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8)


def _errors(found, name):
    return [row["error"] for row in found[name]]


def _mean(values):
    return evaluation.summary(values)[0]
