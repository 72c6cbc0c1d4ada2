"""The results of `experiments/mutual.py`: tables, tests and pictures."""

import rich
from rich.table import Table

from kdtoolkit import evaluation
from kdtoolkit.files import draft_of

#: What is compared: (method, with which other one).
PAIRS = (("dml", "independent"), ("dml-deit", "independent"), ("dml", "dml-deit"))
COLOURS = {"independent": "0.5", "dml": "tab:blue", "dml-deit": "tab:orange"}


def write(options, found):
    """Writes and prints all results of the runs `found`."""
    rows = [row for each in found for row in each["rows"]]
    noise = [row for each in found for row in each["noise"]]
    start = options.out / f"mutual_{options.data}"
    options.out.mkdir(parents=True, exist_ok=True)
    evaluation.write_csv(rows, f"{start}_runs.csv", overwrite=True)
    rises = rises_of(noise)
    lines, curves, tests = lines_of(rows, rises), curves_of(noise), tests_of(rows, rises)
    evaluation.write_csv(lines, f"{start}.csv", overwrite=True)
    evaluation.write_csv(curves, f"{start}_noise.csv", overwrite=True)
    if tests:
        evaluation.write_csv(tests, f"{start}_tests.csv", overwrite=True)
    with draft_of(f"{start}.png", True) as draft:
        figure(lines, curves, options.data).savefig(draft, dpi=110)
    rich.print(table_of(lines, options), tests_table(tests))


def rises_of(noise):
    """`{(method, cohort, student, seed, relative): mean rise of the loss}`."""
    each = {}
    for row in noise:
        key = tuple(row[name] for name in ("method", "cohort", "model", "seed", "relative"))
        each.setdefault(key, []).append(row)
    return {key: evaluation.loss_rise(rows)[0]["rise_mean"] for key, rows in each.items()}


def lines_of(rows, rises):
    """One line per method, cohort and student, means over the seeds."""
    each = {}
    for row in rows:
        each.setdefault((row["method"], row["cohort"], row["student"]), []).append(row)
    lines = []
    for key, found in each.items():
        line = dict(zip(("method", "cohort", "student"), key, strict=True), seeds=len(found))
        for name in ("test_accuracy", "val_accuracy", "train_accuracy", "ensemble_test_accuracy"):
            values = [row[name] for row in found if row[name] is not None]
            line |= dict(zip((f"{name}_mean", f"{name}_sd"), _summary(values), strict=True))
        for relative, name in ((False, "rise"), (True, "relative_rise")):
            values = [rises[(*key, row["seed"], relative)] for row in found]
            line |= dict(zip((f"{name}_mean", f"{name}_sd"), _summary(values), strict=True))
        lines.append(line)
    return lines


def _summary(values):
    return evaluation.summary(values) if values else (None, None)


def curves_of(noise):
    """Mean loss by method, cohort, student, kind of scale and scale: over draws and seeds."""
    each = {}
    names = ("method", "cohort", "model", "relative", "scale")
    for row in noise:
        each.setdefault(tuple(row[name] for name in names), []).append(row)
    return [
        {
            **dict(zip(names, key, strict=True)),
            "loss": sum(row["loss"] for row in rows) / len(rows),
            "accuracy": sum(row["accuracy"] for row in rows) / len(rows),
        }
        for key, rows in each.items()
    ]


def tests_of(rows, rises):
    """Paired tests over seeds between the methods, of a pair's mean, with Holm's correction."""
    values = {}

    def note(value, method, cohort, seed, number):
        values.setdefault((value, method, cohort), {}).setdefault(seed, []).append(number)

    for row in rows:
        for value in ("test_accuracy", "ensemble_test_accuracy"):
            note(value, row["method"], row["cohort"], row["seed"], row[value])
    for (method, cohort, _, seed, relative), rise in rises.items():
        note("relative_rise" if relative else "rise", method, cohort, seed, rise)
    means = {k: {s: sum(v) / len(v) for s, v in found.items()} for k, found in values.items()}
    tests = []
    for (value, method, cohort), found in means.items():
        for other in [b for a, b in PAIRS if a == method]:
            base = means.get((value, other, cohort), {})
            seeds = sorted(found.keys() & base.keys())
            if len(seeds) < 2:
                continue
            test = evaluation.compare([found[s] for s in seeds], [base[s] for s in seeds])
            named = {"value": value, "cohort": cohort, "method": method, "against": other}
            numbers = {"difference": test.mean_difference, "low": test.low, "high": test.high}
            tests.append({**named, "seeds": len(seeds), **numbers, "p": test.p})
    corrected = evaluation.holm([test["p"] for test in tests]) if tests else []
    for test, p in zip(tests, corrected, strict=True):
        test["p_holm"] = float(p)
    return tests


def table_of(lines, options):
    title = f"{options.data}: test accuracy in %, mean ± sd over the seeds"
    columns = ("Method", "Pair", "Network", "Test", "Both", "Train", "Rise", "Relative rise")
    table = Table(*columns, title=title)
    for line in lines:
        cells = [line["method"], line["cohort"], line["student"]]
        for name in ("test_accuracy", "ensemble_test_accuracy", "train_accuracy"):
            cells.append(f"{100 * line[f'{name}_mean']:.2f} ± {100 * line[f'{name}_sd']:.2f}")
        for name in ("rise", "relative_rise"):
            cells.append(f"{line[f'{name}_mean']:.3f} ± {line[f'{name}_sd']:.3f}")
        table.add_row(*cells)
    return table


def tests_table(tests):
    columns = ("Value", "Pair", "Method", "Against", "Difference, 95 %", "p (Holm)")
    title = "Mean of both networks, paired over the seeds; accuracies in points, rises in nats"
    table = Table(*columns, title=title)
    for test in tests:
        factor = 100 if test["value"].endswith("accuracy") else 1
        low, mean, high = (factor * test[name] for name in ("low", "difference", "high"))
        names = [test[name] for name in ("value", "cohort", "method", "against")]
        p = f"{test['p']:.3f} ({test['p_holm']:.3f})"
        table.add_row(*names, f"{mean:+.3f} ({low:+.3f} to {high:+.3f})", p)
    return table


def figure(lines, curves, title):
    """Accuracy of every network, and its training loss under noise of both kinds."""
    from matplotlib.figure import Figure

    cohorts = list(dict.fromkeys(line["cohort"] for line in lines))
    picture = Figure(figsize=(13, 3.6 * len(cohorts)), layout="constrained")
    axes = picture.subplots(len(cohorts), 3, squeeze=False)
    for cohort, (bars, *plots) in zip(cohorts, axes, strict=True):
        _bars(bars, [line for line in lines if line["cohort"] == cohort])
        bars.set_title(f"{title}, {cohort}")
        for axis, relative in zip(plots, (False, True), strict=True):
            _curves(axis, [c for c in curves if (c["cohort"], c["relative"]) == (cohort, relative)])
            unit = "parts of each weight's RMS" if relative else "units of the weights"
            axis.set_xlabel(f"noise ({unit})")
            axis.set_ylabel("loss on training images")
        plots[0].legend(fontsize=7, framealpha=0.5)
    return picture


def _bars(axis, lines):
    for place, line in enumerate(lines):
        height, sd = 100 * line["test_accuracy_mean"], 100 * line["test_accuracy_sd"]
        axis.bar(place, height, yerr=sd, color=COLOURS[line["method"]], capsize=3)
    names = [f"{line['method']}, {line['student']}" for line in lines]
    axis.set_xticks(range(len(lines)), names, rotation=20, ha="right", fontsize=8)
    lowest = min(line["test_accuracy_mean"] - line["test_accuracy_sd"] for line in lines)
    axis.set_ylim(bottom=max(0.0, 100 * lowest - 3))
    axis.set_ylabel("test accuracy (%), mean and sd")


def _curves(axis, curves):
    each = {}
    for point in curves:
        each.setdefault((point["method"], point["model"]), []).append(point)
    for (method, student), points in each.items():
        style = "-" if student.endswith("1") else "--"
        x, y = [p["scale"] for p in points], [p["loss"] for p in points]
        axis.plot(x, y, style, color=COLOURS[method], label=f"{method}, {student}")
