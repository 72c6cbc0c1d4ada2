"""Own exits: a network teaches classifiers behind its inner layers, and can stop at each of them.

    python examples/own_exits.py            # about 3 minutes on 2 cores, no download
    python examples/own_exits.py --seeds 10

The data are scikit-learn's handwritten digits, 8x8 pixels, and 30 % of the training labels are
wrong on purpose. For each seed (another split, other initial weights) a convnet of three stages is
trained five times from the same weights, with the same batches for the same number of epochs:

- alone, from the labels;
- with an exit behind each of the first two stages that learns from the labels too (deep
  supervision, the control: what exits bring without any distillation);
- with exits that learn from the network's own output and features as well;
- with a larger teacher, which was trained alone before;
- with that teacher and its own exits.

"last" is the network's own output, "mean" the mean probabilities of all three. A network can be
deployed as if it never had exits; or it ends at one, which is faster, or gives the mean.

It ends in two tables of the test part after the last epoch, with a picture of them,
`out/own_exits/own_exits.png`; and in `.tflite` files of the first seed's network with own exits:
one for each way to use it, with accuracy and latency in a table and in `out/own_exits/anytime.png`,
and one in int8, without exits.

Networks, rate and epochs are those of `mutual_learning.py`. Out of several settings, own exits
brought most for "last" in this one, on validation images of other seeds: +1.4 points, and +5 for
"mean". It was -0.6 to +0.1 and about +7 with twice as many channels; and with right labels, for 90
or 180 images, -1.0 to +0.2 and -0.7 to 0.0. Wrong labels favour distillation.

Source: Zhang et al., "Be Your Own Teacher" (ICCV 2019), arXiv:1905.08094.
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

FILTERS = {"student": (8, 16, 32), "teacher": (32, 64, 128)}
TEACHER, ALONE, DEEP, OWN = "the teacher", "alone", "exits, labels only", "own exits"
TAUGHT, BOTH = "with the teacher", "with both"
METHODS = (TEACHER, ALONE, DEEP, OWN, TAUGHT, BOTH)
HEADS = ("exit1", "exit2", "last", "mean")
PAIRS = (
    ((DEEP, "last"), (ALONE, "last")),
    ((OWN, "last"), (ALONE, "last")),
    ((OWN, "last"), (DEEP, "last")),
    ((TAUGHT, "last"), (ALONE, "last")),
    ((BOTH, "last"), (TAUGHT, "last")),
    ((OWN, "exit1"), (DEEP, "exit1")),
    ((OWN, "mean"), (ALONE, "last")),
)
COLOURS = {DEEP: "#c98a2b", OWN: "#1d9a6c", TAUGHT: "#b0413e", BOTH: "#7a4fa3"}


def load(seed):
    return kd.data.load_digits(seed=seed, label_noise=0.3)


def network(name, seed):
    return kd.models.convnet((8, 8, 1), 10, filters=FILTERS[name], name=name, seed=seed)


def entrant(method, teacher, seed):
    """What is fitted, the network in it, and the weights of its label losses."""
    if method == TEACHER:
        return teacher, teacher, None
    student = network("student", seed)
    if method == ALONE:
        return student, student, None
    if method == TAUGHT:
        return kd.Distiller(student=student, teacher=teacher), student, None
    student = kd.attach_exits(student, ["stage1", "stage2"], seed=seed)
    preset = "deep_supervision" if method == DEEP else "byot"
    taught_by = {"teacher": teacher} if method == BOTH else {}
    transfers, loss_weights = kd.wirings.own_exits(student, preset, teachers=list(taught_by))
    model = kd.Distiller(student=student, transfers=transfers, **taught_by)
    return model, student, loss_weights


def train(model, data, seed, epochs, loss_weights):
    batches = kd.data.ArrayPipeline(data.x_train, data.y_train, batch_size=50, seed=seed)
    rate = keras.optimizers.schedules.CosineDecay(0.01, epochs * len(batches))
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        loss_weights=loss_weights,
    )
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0)


def heads_of(student):
    """All ways to use a student: networks with its weights that end at an exit, or in the mean."""
    if not isinstance(student.output, dict):
        return {"last": student}
    heads = {key: kd.models.single_output(student, key) for key in HEADS[:-1]}
    return heads | {"mean": kd.models.mean_output(student)}


def accuracy(model, data):
    logits = keras.ops.convert_to_numpy(model(data.x_test, training=False))
    return float(np.mean(np.argmax(logits, axis=-1) == data.y_test))


def run(seeds, epochs, progress):
    """Train everything; returns a row for each method and seed, and the first seed's networks."""
    rows, first = [], {}
    bar = progress.add_task("", total=seeds * len(METHODS))
    for seed in range(seeds):
        data, teacher = load(seed), network("teacher", seed)
        for method in METHODS:
            progress.update(bar, description=f"seed {seed + 1} of {seeds}: {method}")
            model, student, loss_weights = entrant(method, teacher, seed)
            train(model, data, seed, epochs, loss_weights)
            found = {name: accuracy(head, data) for name, head in heads_of(student).items()}
            rows.append({"method": method, "seed": seed} | {h: found.get(h) for h in HEADS})
            if seed == 0:
                first[method] = student
            progress.advance(bar)
    return rows, first


def percent(rows, method, head):
    """Accuracies in the order of the seeds; none if the method has no such head."""
    values = (row[head] for row in rows if row["method"] == method)
    return [100 * value for value in values if value is not None]


def accuracies(rows):
    table = Table("", title="digits, 30 % wrong labels: test %, mean ± sd over seeds")
    for head in HEADS:
        table.add_column(head, justify="right")
    for method in METHODS:
        found = [percent(rows, method, head) for head in HEADS]
        pairs = [evaluation.summary(values) if values else () for values in found]
        table.add_row(method, *(" ± ".join(f"{number:.2f}" for number in pair) for pair in pairs))
    return table


def differences(rows):
    """Paired tests, whose p-values are corrected for their number."""
    tests = [evaluation.compare(percent(rows, *a), percent(rows, *b)) for a, b in PAIRS]
    corrected = evaluation.holm([test.p for test in tests])
    table = Table("difference within a seed", title="paired t-tests")
    for heading in ("points", "95 % interval", "p (Holm)", ""):
        table.add_column(heading, justify="right")
    for pair, test, p in zip(PAIRS, tests, corrected, strict=True):
        name = " - ".join(f"{method} ({head})" for method, head in pair)
        verdict = ("better" if test.t > 0 else "worse") if p <= 0.05 else "can't tell"
        interval = f"{test.low:+.2f} to {test.high:+.2f}"
        table.add_row(name, f"{test.mean_difference:+.2f}", interval, f"{p:.3f}", verdict)
    return table


def draw(rows, path):
    """What each head has more than the network alone, within a seed, with 95 % intervals."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    alone = percent(rows, ALONE, "last")
    axes.axhline(0, color="#5b6b7b", label=f"{ALONE}: {np.mean(alone):.1f} %")
    for number, (method, colour) in enumerate(COLOURS.items()):
        found = {i: percent(rows, method, head) for i, head in enumerate(HEADS)}
        tests = {i: evaluation.compare(values, alone) for i, values in found.items() if values}
        places = [i + 0.08 * (number - 1.5) for i in tests]
        means = [test.mean_difference for test in tests.values()]
        halves = [test.high - test.mean_difference for test in tests.values()]
        axes.errorbar(places, means, halves, fmt="o", color=colour, capsize=3, label=method)
    axes.set_xticks(range(len(HEADS)), HEADS)
    axes.set(title="test accuracy, 95 % intervals", ylabel="points more than the network alone")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def export(first, out):
    """Write and measure all uses of the first network with own exits: a table, and a line."""
    data, heads = load(seed=0), heads_of(first[OWN])
    test = {"x": data.x_test, "y": data.y_test, "overwrite": True}
    rows = kd.export.measure(heads, out, **test, runs=1000)
    evaluation.write_csv(rows, out / "anytime.csv", overwrite=True)
    title = f"first seed, {OWN}: a file for each head"
    evaluation.plot_tradeoff(rows, out / "anytime.png", title=title, overwrite=True)
    table = Table("file", title=title)
    for heading in ("parameters", "bytes", "test %", "latency in µs"):
        table.add_column(heading, justify="right")
    for row in rows:
        sizes = f"{row['parameters']:,}", f"{row['bytes']:,}"
        measured = f"{100 * row['test_accuracy']:.2f}", f"{1000 * row['latency_ms']:.1f}"
        table.add_row(row["model"], *sizes, *measured)
    int8 = {"quantize": "int8", "representative_data": data.x_train}
    (row,) = kd.export.measure({"last-int8": heads["last"]}, out, **test, **int8)
    return table, (
        f"{row['path']}: {row['bytes']:,} bytes, test accuracy {100 * row['test_accuracy']:.2f} %, "
        f"and no trace of the exits: {row['parameters']:,} parameters, as the network that was "
        f"trained alone ({first[ALONE].count_params():,})"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="2 or more, default 5")
    parser.add_argument("--epochs", type=int, default=15, help="of each training, default 15")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/own_exits"))
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds must be 2 or more, for the tests")
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with Progress(console=console) as progress:
        rows, first = run(options.seeds, options.epochs, progress)
    evaluation.write_csv(rows, options.out / "own_exits.csv", overwrite=True)
    draw(rows, options.out / "own_exits.png")
    console.print(accuracies(rows), differences(rows))
    console.print(*export(first, options.out), sep="\n", soft_wrap=True)


if __name__ == "__main__":
    main()
