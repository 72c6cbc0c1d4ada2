"""The results of `experiments/exits.py`: a table, paired tests and a picture."""

import losses
import rich
from rich.table import Table

from kdtoolkit import evaluation
from kdtoolkit.files import draft_of

#: What every row is compared with: alone, and alone with the same images.
BASES = ("baseline", "baseline + mixup")
#: And in the CSV: with each teacher, without exits.
AGAINST = (*BASES, "offline, teacher 1", "offline, teacher 2")


def write(options, rows):
    """Writes and prints all results of the runs in `rows`."""
    if not rows:
        raise SystemExit(f"No run in {options.runs} yet.")
    start = options.out / f"exits_{options.data}"
    options.out.mkdir(parents=True, exist_ok=True)
    # All rows get all columns, whichever heads a network has.
    columns = dict.fromkeys([*(key for row in rows for key in row), "ensemble_accuracy"])
    rows = [{key: row.get(key) for key in columns} for row in rows]
    evaluation.write_csv(rows, f"{start}_runs.csv", overwrite=True)
    bases = [base for base in AGAINST if base in {row["method"] for row in rows}]
    if not bases:
        raise SystemExit(f"Nothing to compare with. Run one of {AGAINST}, or use --no-report.")
    lines = [line for base in bases for line in lines_of(options, rows, base)]
    evaluation.write_csv(lines, f"{start}.csv", overwrite=True)
    with draft_of(f"{start}.png", True) as draft:
        figure(rows, lines, options).savefig(draft, dpi=110)
    rich.print(table_of(lines, options))


def heads_of(rows):
    """Names of what was measured of the exits, in order, with the network's own before all."""
    exits = sorted(k for row in rows for k in row if k.startswith("exit"))
    return [*dict.fromkeys(exits), "test_accuracy", "ensemble_accuracy"]


def lines_of(options, rows, base):
    """One line per method: accuracies by head, differences to `base`, time as a ratio."""
    seconds = {(row["method"], row["seed"]): row["cpu_seconds"] for row in rows}
    lines = losses.lines_of(options, rows, {}, against=base)
    for line in lines:
        del line["step_time"]
        own = [row for row in rows if row["method"] == line["method"]]
        for head in (head for head in heads_of(rows) if head != "test_accuracy"):
            values = [row[head] for row in own if row[head] is not None]
            line[head] = sum(values) / len(values) if values else None
        ratios = [
            row["cpu_seconds"] / seconds[(BASES[0], row["seed"])]
            for row in own
            if (BASES[0], row["seed"]) in seconds
        ]
        line["time"] = sorted(ratios)[len(ratios) // 2] if ratios else None
    return [{"against": base, **line} for line in lines]


def table_of(lines, options):
    heads = [key for key in lines[0] if key.startswith("exit")]
    columns = ("Row", *heads, "Own", "All", "Gain", "Over mixup", "Time")
    title = f"{options.data}: test accuracy in % of {options.student}, last epoch"
    caption = f"Gain: over '{BASES[0]}' and over '{BASES[1]}', points and p after Holm"
    table = Table(*[c.removesuffix("_accuracy") for c in columns], title=title, caption=caption)
    by_base = {(line["against"], line["method"]): line for line in lines}
    for line in (line for line in lines if line["against"] == lines[0]["against"]):
        cells = [line["method"], *(_percent(line[head]) for head in heads)]
        cells.append(f"{100 * line['test_mean']:.2f} ± {100 * line['test_sd']:.2f}")
        cells.append(_percent(line["ensemble_accuracy"]))
        cells += [_difference(by_base.get((base, line["method"]))) for base in BASES]
        table.add_row(*cells, "" if line["time"] is None else f"{line['time']:.2f}")
    return table


def _percent(value):
    return "" if value is None else f"{100 * value:.2f}"


def _difference(line):
    if line is None or line["difference"] is None:
        return ""
    return f"{100 * line['difference']:+.2f} ({line['p_holm']:.3f})"


def figure(rows, lines, options):
    """Differences to the baseline with intervals, and accuracy from the first exit to the last."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = picture.subplots(1, 2)
    base = lines[0]["against"]
    lines = [line for line in lines if line["against"] == base]
    drawn = [line for line in lines if line["low"] is not None]
    for place, line in enumerate(reversed(drawn)):
        left.plot([100 * line["low"], 100 * line["high"]], [place, place], color="0.6", zorder=1)
        left.scatter(100 * line["difference"], place, color="tab:blue", zorder=2)
    left.axvline(0, color="0.3", linewidth=1)
    left.set_yticks(range(len(drawn)), [line["method"] for line in reversed(drawn)])
    left.set_xlabel(f"test accuracy minus {base} (points), 95 % interval")
    heads = heads_of(rows)
    names = ["own" if h == "test_accuracy" else h.removesuffix("_accuracy") for h in heads]
    for line in lines:
        if line["ensemble_accuracy"] is not None:
            means = [line["test_mean"] if h == "test_accuracy" else line[h] for h in heads]
            right.plot(names, [100 * mean for mean in means], marker="o", label=line["method"])
    if right.lines:
        right.legend(fontsize=8)
    right.set_xlabel("which classifier")
    right.set_ylabel("test accuracy (%)")
    picture.suptitle(f"{options.data}: {options.student}")
    return picture
