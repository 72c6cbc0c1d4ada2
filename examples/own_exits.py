"""Own exits: a network teaches early classifiers inside itself, and gets an anytime network by it.

    python examples/own_exits.py            # 2 to 3 minutes on 2 cores, no download
    python examples/own_exits.py --seeds 10
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

import kdtoolkit as kd  # noqa: E402
from kdtoolkit import evaluation  # noqa: E402
from kdtoolkit.files import draft_of  # noqa: E402

FILTERS = {"network": (16, 32, 64), "teacher": (64, 128, 256)}
ALONE, DEEP, OWN = "alone", "exits from labels", "exits taught by itself"
OFFLINE, BOTH = "with a teacher", "with a teacher, exits taught by itself"
METHODS = (ALONE, DEEP, OWN, OFFLINE, BOTH)

# What is compared with what: each with the network that lacks one thing.
PAIRS = ((DEEP, ALONE), (OWN, ALONE), (OWN, DEEP), (OFFLINE, ALONE), (BOTH, OFFLINE))
HEADS = ("exit1", "exit2", "last", "mean")
COLOURS = {DEEP: "#c98a2b", OWN: "#1d9a6c", BOTH: "#7a4fa3", ALONE: "#5b6b7b", OFFLINE: "#b0413e"}


def load(seed):
    return kd.data.load_digits(seed=seed, val_fraction=0.3, test_fraction=0.6)


def network(name, seed):
    return kd.models.convnet((8, 8, 1), 10, filters=FILTERS[name], name=name, seed=seed)


def entrant(method, teacher, seed):
    """Of one method: what is fitted, its student, and the weights of its label losses."""
    student = network("network", seed)
    if method == ALONE:
        return student, student, None
    if method == OFFLINE:
        return kd.Distiller(student=student, teacher=teacher), student, None
    student = kd.attach_exits(student, ["stage1", "stage2"], seed=seed)
    preset = "deep_supervision" if method == DEEP else "byot"
    teacher = teacher if method == BOTH else None
    names = [] if teacher is None else ["teacher"]
    transfers, loss_weights = kd.wirings.own_exits(student, preset, teachers=names)
    model = kd.Distiller(student=student, teacher=teacher, transfers=transfers)
    return model, student, loss_weights


def train(model, data, seed, epochs, loss_weights=None):
    """Fit a network or a distiller; both are compiled and fitted alike."""
    batches = kd.data.ArrayPipeline(data.x_train, data.y_train, batch_size=30, seed=seed)
    rate = keras.optimizers.schedules.CosineDecay(0.01, epochs * len(batches))
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        loss_weights=loss_weights,
        jit_compile=False,  # XLA would compile longer than these networks train
    )
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0)


def heads_of(student):
    """A network for each output, with the weights of the student, and the mean of all."""
    if not isinstance(student.output, dict):
        return {"last": student}
    heads = {key: kd.models.single_output(student, key) for key in HEADS[:-1]}
    return heads | {"mean": kd.models.mean_output(student)}


def accuracy(model, data):
    """Share of the test digits that are read right, by a Keras model or a `.tflite` file."""
    if isinstance(model, keras.Model):
        logits = keras.ops.convert_to_numpy(model(data.x_test, training=False))
    else:
        logits = model.predict(data.x_test)
    return float(np.mean(np.argmax(logits, axis=-1) == data.y_test))


def run(seeds, epochs, progress):
    """Train everything; returns a row for each method and seed, and the first seed's students."""
    rows, first = [], {}
    bar = progress.add_task("", total=seeds * len(METHODS))
    for seed in range(seeds):
        data, teacher = load(seed), network("teacher", seed)
        for method in METHODS:
            progress.update(bar, description=f"seed {seed + 1} of {seeds}: {method}")
            entry = (teacher, teacher, None) if method == TEACHER else entrant(method, teacher, seed)
            model, student, loss_weights = entry
            train(model, data, seed, epochs, loss_weights)
            found = {name: accuracy(head, data) for name, head in heads_of(student).items()}
            rows.append({"method": method, "seed": seed} | {h: found.get(h) for h in HEADS})
            if seed == 0:
                first[method] = student
            progress.advance(bar)
    return rows, first


def percent(rows, method, head):
    """Accuracies in the order of the seeds, none where the method has no such head."""
    values = (row[head] for row in rows if row["method"] == method)
    return [100 * value for value in values if value is not None]


def table_of(rows):
    table = Table("trained", title="digits, 180 training images: test %, mean ± sd over seeds")
    for head in HEADS:
        table.add_column(head, justify="right")
    for method in METHODS:
        table.add_row(method, *(shown(percent(rows, method, head)) for head in HEADS))
    return table


def shown(values):
    if not values:
        return ""
    mean, sd = evaluation.summary(values)
    return f"{mean:.2f} ± {sd:.2f}" if len(values) > 1 else f"{mean:.2f}"


def tests_of(rows):
    """Paired tests of `PAIRS`, by name, and their p-values corrected together."""
    tests = {
        f"{head}: {first} - {second}": evaluation.compare(
            percent(rows, first, head), percent(rows, second, head)
        )
        for head, first, second in PAIRS
    }
    corrected = evaluation.holm([test.p for test in tests.values()])
    return {name: (test, p) for (name, test), p in zip(tests.items(), corrected, strict=True)}


def differences(tests):
    table = Table("difference of two within a seed", title="paired t-tests")
    for heading in ("points", "95 % interval", "p (Holm)", ""):
        table.add_column(heading, justify="right")
    for name, (test, p) in tests.items():
        verdict = ("better" if test.t > 0 else "worse") if p <= 0.05 else "can't tell"
        interval = f"{test.low:+.2f} to {test.high:+.2f}"
        table.add_row(name, f"{test.mean_difference:+.2f}", interval, f"{p:.3f}", verdict)
    return table


def draw(rows, tests, path):
    """Accuracy at each head, and the differences with their intervals."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method in METHODS:
        values = {h: percent(rows, method, h) for h in HEADS}
        means = [np.mean(v) if v else np.nan for v in values.values()]
        left.plot(HEADS, means, "o-", label=method)
    left.set(title="mean over seeds", ylabel="test accuracy (%)")
    left.legend(frameon=False)
    for place, (name, (test, _)) in enumerate(tests.items()):
        right.plot([test.low, test.high], [place, place], color="0.5")
        right.plot(test.mean_difference, place, "o", color="#1d9a6c")
    right.axvline(0, color="0.3", linewidth=0.8)
    right.set_yticks(range(len(tests)), list(tests))
    right.invert_yaxis()
    right.set(title="differences and their 95 % intervals", xlabel="points of test accuracy")
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    with draft_of(path, True) as draft:  # whole or not at all
        figure.savefig(draft, dpi=150)


def anytime(student, data, out):
    """Each head as a file of its own: a table, and a picture of accuracy against latency."""
    rows = kd.export.measure(
        heads_of(student), out, data.x_test, data.y_test, runs=500, overwrite=True
    )
    evaluation.plot_tradeoff(
        rows, out / "anytime.png", title="first seed: a file for each exit", overwrite=True
    )
    evaluation.write_csv(rows, out / "anytime.csv", overwrite=True)
    table = Table("file", title=f"first seed, {OWN}: what stopping early saves")
    for heading in ("parameters", "bytes", "test %", "latency in ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        size = (f"{row['parameters']:,}", f"{row['bytes']:,}")
        measured = (f"{100 * row['test_accuracy']:.2f}", f"{row['latency_ms']:.4f}")
        table.add_row(pathlib.Path(row["path"]).name, *size, *measured)
    return table


def export(student, plain, data, path):
    """Write the network without its exits as an int8 file; returns a line about it."""
    deployed = kd.models.single_output(student, "last")
    report = kd.export.litert(
        deployed,
        path,
        quantize="int8",
        representative_data=data.x_train,
        check_data=data.x_val,
        overwrite=True,
    )
    found = accuracy(kd.export.LiteRTModel(path), data)
    return (
        f"{path}: {report.bytes:,} bytes in int8, test accuracy {100 * found:.2f} % (in Keras "
        f"{100 * accuracy(deployed, data):.2f} %). It has no trace of the exits: "
        f"{deployed.count_params():,} parameters, as the network alone "
        f"({plain.count_params():,})."
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many times, default 5")
    parser.add_argument("--epochs", type=int, default=20, help="of each training, default 20")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/own_exits"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with Progress(console=console) as progress:
        rows, first = run(options.seeds, options.epochs, progress)
    data, results = load(seed=0), options.out / "own_exits"
    console.print(table_of(rows))
    evaluation.write_csv(rows, f"{results}.csv", overwrite=True)
    if options.seeds > 1:
        tests = tests_of(rows)
        console.print(differences(tests))
        draw(rows, tests, pathlib.Path(f"{results}.png"))
    console.print(anytime(first[OWN], data, options.out))
    line = export(first[OWN], first[ALONE], data, options.out / "student.tflite")
    where = f"Pictures and numbers are in {options.out}."
    console.print(line, where, sep="\n", soft_wrap=True)


if __name__ == "__main__":
    main()
