"""Deep mutual learning: networks that train side by side and learn from what the others say.

    python examples/mutual_learning.py            # 2 to 3 minutes on 2 cores, no download
    python examples/mutual_learning.py --seeds 10

The data are scikit-learn's handwritten digits, 8x8 pixels, and 30 % of the training labels are
wrong on purpose. For each seed (another split, other initial weights) a small and a wide network
are trained four times over, and all see the same batches for the same number of epochs:

- the small one alone, from the labels;
- the wide one alone;
- both together: each learns from the labels and from what the other one says;
- the small one together with a twin, a network of the same size with other initial weights.

A network starts from the same weights each time, so what differs at the end comes from its peer.

It ends in a table of the test part after the last epoch; a picture of the first seed,
`out/mutual_learning/mutual_learning.png`; the accuracies as CSV; and a `.tflite` file in int8 of
the first seed's better student, chosen on the validation part. The picture shows validation and how
the training loss rises when noise is added to the weights: mutual learning is said to end in wider
valleys. It also shows that a network alone is best early on, before it learns the wrong labels by
heart: stopped there, it would be closer to those with a peer than in the table.

Sizes and rate were chosen on the validation part of other seeds: the rate, out of 0.01 and 0.03, by
the networks alone; the sizes such that these learn wrong labels by heart. Networks of two layers,
which hardly do that, changed by -1.4 to +3.8 points there.

Source: Zhang, Xiang, Hospedales and Lu, "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384.
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

SIZES = {"small": (8, 16, 32), "wide": (32, 64, 128)}
SMALL, SMALL_WIDE, SMALL_TWIN = "small, alone", "small, with wide", "small, with its twin"
WIDE, WIDE_SMALL = "wide, alone", "wide, with small"
APART, TOGETHER = "ensemble of small and wide, alone", "ensemble of small and wide, mutual"
TWINS = "ensemble of small and twin, mutual"

# Each with the same network, or the same pair, without a peer.
CONTROLS = {SMALL_WIDE: SMALL, SMALL_TWIN: SMALL, WIDE_SMALL: WIDE, TOGETHER: APART}
LABELS = (
    ("first seed", "epoch", "validation accuracy (%)"),
    ("noise on the weights", "standard deviation σ", "training loss, mean ± sd over draws"),
    ("the same, relative to the weights", "σ / root mean square of each tensor", "training loss"),
)
COLOURS = {SMALL: "#5b6b7b", SMALL_WIDE: "#1d9a6c", SMALL_TWIN: "#c98a2b"}


def load(seed):
    return kd.data.load_digits(seed=seed, label_noise=0.3)


def entrants(seed):
    """What is fitted for one seed: two networks, and two cohorts of two."""

    def network(size, seed=seed):
        return kd.models.convnet((8, 8, 1), 10, filters=SIZES[size], name=size, seed=seed)

    pair = {"small": network("small"), "wide": network("wide")}
    twins = {"small": network("small"), "twin": network("small", seed=1000 + seed)}
    return {
        "small": network("small"),
        "wide": network("wide"),
        "small and wide": kd.MutualDistiller(students=pair),
        "small and twin": kd.MutualDistiller(students=twins),
    }


def train(model, data, seed, epochs):
    """Fit a network or a cohort; both are compiled and fitted alike."""
    batches = kd.data.ArrayPipeline(data.x_train, data.y_train, batch_size=50, seed=seed)
    rate = keras.optimizers.schedules.CosineDecay(0.01, epochs * len(batches))
    model.compile(
        keras.optimizers.Adam(rate),  # a cohort gives each student a copy
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        batches,
        epochs=epochs,
        shuffle=False,
        validation_data=(data.x_val, data.y_val),
        validation_batch_size=len(data.x_val),
        verbose=0,
    )


def lines_of(found):
    """The networks of one seed's trainings, by their lines in the table."""
    pair, twins = found["small and wide"], found["small and twin"]
    return {
        SMALL: found["small"],
        SMALL_WIDE: pair.students["small"],
        SMALL_TWIN: twins.students["small"],
        WIDE: found["wide"],
        WIDE_SMALL: pair.students["wide"],
        APART: kd.Ensemble([found["small"], found["wide"]]),
        TOGETHER: pair.ensemble,
        TWINS: twins.ensemble,
    }


def accuracy(network, data):
    """Share of the test digits that are read right, by a Keras model or a `.tflite` file."""
    if isinstance(network, keras.Model):
        logits = keras.ops.convert_to_numpy(network(data.x_test, training=False))
    else:
        logits = network.predict(data.x_test)
    return float(np.mean(np.argmax(logits, axis=-1) == data.y_test))


def run(seeds, epochs, progress):
    """Train everything; returns a row for each network and seed, and the first seed's models."""
    rows, first = [], None
    bar = progress.add_task("", total=4 * seeds)
    for seed in range(seeds):
        data, found = load(seed), entrants(seed)
        for name, model in found.items():
            progress.update(bar, description=f"seed {seed + 1} of {seeds}: {name}")
            train(model, data, seed, epochs)
            progress.advance(bar)
        rows += [
            {"network": line, "seed": seed, "test_accuracy": accuracy(network, data)}
            for line, network in lines_of(found).items()
        ]
        first = first or found
    return rows, first


def table_of(rows):
    """Means over seeds; the differences are those within a seed."""
    percent = {}
    for row in rows:
        percent.setdefault(row["network"], []).append(100 * row["test_accuracy"])
    several = len(percent[SMALL]) > 1
    tests = {
        line: evaluation.compare(percent[line], percent[control])
        for line, control in CONTROLS.items()
        if several
    }
    corrected = dict(zip(tests, evaluation.holm([test.p for test in tests.values()]), strict=True))
    table = Table("network", title="digits, 30 % wrong labels: mean ± sd over seeds")
    for heading in ("test %", "points to alone", "95 % interval", "p (Holm)", ""):
        table.add_column(heading, justify="right")
    for line, values in percent.items():
        mean, sd = evaluation.summary(values)
        cells = [f"{mean:.2f} ± {sd:.2f}" if several else f"{mean:.2f}"]
        if line in tests:
            test, p = tests[line], corrected[line]
            verdict = ("better" if test.t > 0 else "worse") if p <= 0.05 else "can't tell"
            interval = f"{test.low:+.2f} to {test.high:+.2f}"
            cells += [f"{test.mean_difference:+.2f}", interval, f"{p:.3f}", verdict]
        table.add_row(line, *cells)
    return table


def noise(first, data):
    """Loss of the small networks on the training data while noise is added to their weights."""
    lines = lines_of(first)
    models = {line: lines[line] for line in COLOURS}
    raw, relative = (
        evaluation.noise_curve(models, data.x_train, data.y_train, relative=kind, progress=False)
        for kind in (False, True)
    )
    return raw + relative


def rises_of(rows):
    """The area under the curves; the caption says what it takes to call a valley wider."""
    title = "first seed: training loss and its rise under noise"
    caption = "Wider: both rises smaller, at about the same loss, over many seeds."
    table = Table("network", title=title, caption=caption)
    for heading in ("loss", "rise, raw noise", "rise, relative noise"):
        table.add_column(heading, justify="right")
    lines = {(line["model"], line["relative"]): line for line in evaluation.loss_rise(rows)}
    for name in COLOURS:
        raw, relative = lines[name, False], lines[name, True]
        rises = (f"{line['rise_mean']:.3f} ± {line['rise_sd']:.3f}" for line in (raw, relative))
        table.add_row(name, f"{raw['loss']:.3f}", *rises)
    return table


def draw(first, rows, path):
    """Validation accuracy of the small networks of one seed, and their loss under noise."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    histories = {
        SMALL: first["small"].history.history["val_accuracy"],
        SMALL_WIDE: first["small and wide"].history.history["val_small_accuracy"],
        SMALL_TWIN: first["small and twin"].history.history["val_small_accuracy"],
    }
    for name, values in histories.items():
        epochs = 1 + np.arange(len(values))
        panels[0].plot(epochs, 100 * np.array(values), color=COLOURS[name], label=name)
    panels[0].legend(frameon=False)
    keys, summary = ("scale", "loss_mean", "loss_sd"), evaluation.noise_summary(rows)
    for name, colour in COLOURS.items():
        for relative in (False, True):
            own = [row for row in summary if (row["model"], row["relative"]) == (name, relative)]
            scale, mean, sd = ([row[key] for row in own] for key in keys)
            panels[1 + relative].errorbar(scale, mean, sd, color=colour, capsize=3)
    for panel, (title, x, y) in zip(panels, LABELS, strict=True):
        panel.set(title=title, xlabel=x, ylabel=y)
        panel.locator_params(axis="x", nbins=6)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    with draft_of(path, True) as draft:  # whole or not at all
        figure.savefig(draft, dpi=150)


def export(student, data, path):
    """Write the network as an int8 file; returns a line about it."""
    report = kd.export.litert(
        student,
        path,
        quantize="int8",
        representative_data=data.x_train,
        check_data=data.x_val,
        overwrite=True,
    )
    found = accuracy(kd.export.LiteRTModel(path), data)
    return (
        f"{path}: the {student.name} network in {report.bytes:,} bytes in int8, test accuracy "
        f"{100 * found:.2f} % (in Keras {100 * accuracy(student, data):.2f} %)"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many times, default 5")
    parser.add_argument("--epochs", type=int, default=15, help="of each training, default 15")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/mutual_learning"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with Progress(console=console) as progress:
        rows, first = run(options.seeds, options.epochs, progress)
    data, results = load(seed=0), options.out / "mutual_learning"
    curves = noise(first, data)
    console.print(table_of(rows), rises_of(curves))
    evaluation.write_csv(rows, f"{results}.csv", overwrite=True)
    draw(first, curves, pathlib.Path(f"{results}.png"))
    best = first["small and wide"].best_student("val_accuracy")
    line = export(best, data, options.out / "student.tflite")
    where = f"The picture is in {results}.png, the accuracies are in {results}.csv."
    console.print(line, where, sep="\n", soft_wrap=True)


if __name__ == "__main__":
    main()
