"""The results of `experiments/compressing.py`: a table, what the teacher won back, a picture."""

import rich
from rich.table import Table

from kdtoolkit import evaluation
from kdtoolkit.files import draft_of

BASE = "float"
#: Below so many points of loss, a share of it means nothing.
LEAST_LOSS = 0.005


def write(options, rows):
    """Writes and prints all results of the runs in `rows`."""
    if not any(row["method"] == BASE for row in rows):
        raise SystemExit(f"Nothing to compare with in {options.runs}: no run of '{BASE}' yet.")
    start = options.out / f"compression_{options.data}"
    options.out.mkdir(parents=True, exist_ok=True)
    evaluation.write_csv(rows, f"{start}_runs.csv", overwrite=True)
    lines, taught = lines_of(rows), taught_of(rows)
    evaluation.write_csv(lines, f"{start}.csv", overwrite=True)
    if taught:
        evaluation.write_csv(taught, f"{start}_teacher.csv", overwrite=True)
    with draft_of(f"{start}.png", True) as draft:
        figure(options, lines).savefig(draft, dpi=110)
    rich.print(table_of(options, lines), taught_table(taught))


def by_seed(rows, method):
    return {row["seed"]: row["test_accuracy"] for row in rows if row["method"] == method}


def lines_of(rows):
    """One line per row: means over seeds, and the paired difference to the float network."""
    base, lines = by_seed(rows, BASE), []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method and row["seed"] in base]
        found = by_seed(own, method)
        mean, sd = evaluation.summary(list(found.values()))
        line = {"method": method, "way": own[0]["way"], "teacher": own[0]["teacher"]}
        line |= {"seeds": len(found), "test_mean": mean, "test_sd": sd}
        line |= tested(found, base, method != BASE)
        for key in ("agreement", "bytes", "gzip_bytes", "latency_ms", "cpu_seconds"):
            line[key] = evaluation.summary([row[key] for row in own])[0]
        lines.append(line)
    return corrected(lines)


def taught_of(rows):
    """One line per way: with the teacher against without, and the share of the loss won back."""
    base, lines = by_seed(rows, BASE), []
    for way in dict.fromkeys(row["way"] for row in rows):
        labels, teacher = (by_seed(rows, f"{way}: {by}") for by in ("labels", "teacher"))
        seeds = sorted(labels.keys() & teacher.keys() & base.keys())
        if not seeds:
            continue
        means = [
            evaluation.summary([found[seed] for seed in seeds])[0]
            for found in (base, labels, teacher)
        ]
        lost = means[0] - means[1]
        line = {"way": way, "seeds": len(seeds), "lost_from_labels": lost}
        line |= tested(teacher, labels, True)
        line["won_back"] = (means[2] - means[1]) / lost if lost > LEAST_LOSS else None
        lines.append(line)
    return corrected(lines)


def tested(found, base, wanted):
    seeds = sorted(found.keys() & base.keys())
    if not wanted or len(seeds) < 2:
        return dict.fromkeys(("difference", "low", "high", "p"))
    test = evaluation.compare([found[seed] for seed in seeds], [base[seed] for seed in seeds])
    return {"difference": test.mean_difference, "low": test.low, "high": test.high, "p": test.p}


def corrected(lines):
    with_p = [line for line in lines if line["p"] is not None]
    values = evaluation.holm([line["p"] for line in with_p]) if with_p else []
    for line in lines:
        line["p_holm"] = None
    for line, value in zip(with_p, values, strict=True):
        line["p_holm"] = float(value)
    return lines


# Tables -------------------------------------------------------------------------------------


def table_of(options, lines):
    columns = ("Row", "Seeds", "Test (%)", "Over float", "Bytes", "gzip", "ms", "Agreement (%)")
    title = f"{options.data}, {options.student}: the .tflite files, last epoch"
    table = Table(*columns, title=title)
    for line in lines:
        table.add_row(
            line["method"],
            str(line["seeds"]),
            f"{100 * line['test_mean']:.2f} ± {100 * line['test_sd']:.2f}",
            _difference(line),
            f"{line['bytes']:,.0f}",
            f"{line['gzip_bytes']:,.0f}",
            f"{line['latency_ms']:.3f}",
            f"{100 * line['agreement']:.2f}",
        )
    return table


def taught_table(lines):
    table = Table(
        "Way", "Seeds", "Lost from labels", "Teacher over labels", "Won back", title="The teacher"
    )
    for line in lines:
        won = "" if line["won_back"] is None else f"{line['won_back']:.0%}"
        lost = f"{100 * line['lost_from_labels']:+.2f}"
        table.add_row(line["way"], str(line["seeds"]), lost, _difference(line), won)
    return table


def _difference(line):
    if line["difference"] is None:
        return ""
    return f"{100 * line['difference']:+.2f} (p {line['p']:.3f}, Holm {line['p_holm']:.3f})"


# Picture ------------------------------------------------------------------------------------


def figure(options, lines):
    """Accuracy against the size that is shipped; a line leads from labels to teacher."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 5.5), layout="constrained")
    axis = picture.subplots()
    ways = list(dict.fromkeys(line["way"] for line in lines))
    for index, way in enumerate(ways):
        own = [line for line in lines if line["way"] == way]
        colour = f"C{index}" if index < 10 else "0.3"
        marker = "os^Dv"[index % 5]
        places = [(line["gzip_bytes"] / 1000, 100 * line["test_mean"]) for line in own]
        axis.plot(*zip(*places, strict=True), "-", color=colour, linewidth=1)
        for line, (x, y) in zip(own, places, strict=True):
            filled = colour if line["teacher"] else "white"
            label = way if line is own[0] else None
            axis.plot(x, y, marker, color=colour, markerfacecolor=filled, label=label)
    axis.set_xscale("log")
    axis.set_xlabel("compressed size of the .tflite file (kB)")
    axis.set_ylabel("test accuracy of the file (%)")
    axis.set_title(f"{options.data}, {options.student}: filled with a teacher, empty without")
    axis.grid(alpha=0.3)
    picture.legend(loc="outside right upper", fontsize=8)
    return picture
