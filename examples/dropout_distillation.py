"""Dropout distillation: what a hundred random passes say, said by one pass of a smaller network.

    python examples/dropout_distillation.py            # about 3 minutes on 2 cores, no download
    python examples/dropout_distillation.py --seeds 10

The data are scikit-learn's handwritten digits, 8x8 pixels. For each seed (another split, other
initial weights) a perceptron of two hidden layers is trained with dropout. It predicts in one pass,
as usual, and with the mean of 100 passes in which dropout is left on. Four networks without dropout
follow, all on images with a fifth of the pixels set to zero:

- the same one, from the trained weights, further from labels (the control);
- the same one, from the trained weights, distilled from random passes, without labels;
- one with an eighth of the units, from labels (the control);
- one with an eighth of the units, distilled in the same way.

It ends in two tables of the test part after the last epoch, a picture of them,
`out/dropout_distillation/dropout_distillation.png`, one of the digits that the random passes
disagree about most, `unsure.png`, and a `.tflite` file of the first seed's small distilled network.

"surest 9 of 10" is the error where the least sure tenth of the digits is left to a person: by the
mutual information of the random passes, and by the entropy of one pass. KL is the divergence from
the mean of 200 other random passes, in nats. Milliseconds are of 1000 digits at once, in Keras.

Settings were chosen on validation images of three other seeds: the first training out of rates of
0.03 and 0.1 with 40 and 80 epochs, by the error of one pass; the students out of rates of 0.01 to
0.1, half and as many epochs for the same network, and once to twice as many for the small one.
There the zeros were worth more than the passes. Without them the controls had an error of 2.5 % and
an NLL of 0.131 (labels again), 3.7 % and 0.213 (small, labels); with them 1.9 % and 0.105, 2.7 %
and 0.112. Distilled it was 2.7 % and 0.123, small 3.0 % and 0.123. What distillation does bring is
the mean of the passes itself, at the price of one pass, from images that need no labels.

Source: Gal and Ghahramani, 2016, arXiv:1506.02142; Bulo, Porzi and Kontschieder, "Dropout
Distillation" (ICML 2016).
"""

import argparse
import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

import kdtoolkit as kd  # noqa: E402
from kdtoolkit import evaluation  # noqa: E402

UNITS = {"whole": (256, 256), "small": (32, 32)}
SAMPLES, REFERENCE_SAMPLES = 100, 200
ONE, MANY, AGAIN, DISTILLED = "one pass", "100 random passes", "labels again", "distilled"
SMALL_LABELS, SMALL = "small, labels", "small, distilled"
# Size, epochs as a multiple of those of the first training, whether from labels.
STUDENTS = {
    AGAIN: ("whole", 0.5, True),
    DISTILLED: ("whole", 0.5, False),
    SMALL_LABELS: ("small", 2, True),
    SMALL: ("small", 2, False),
}
NETWORKS = (ONE, MANY, *STUDENTS)
MEASURES = {"error": "error %", "kept": "surest 9 of 10 %", "nll": "NLL", "ece": "ECE", "kl": "KL"}
PAIRS = (
    (MANY, ONE),
    (DISTILLED, ONE),
    (DISTILLED, AGAIN),
    (SMALL, SMALL_LABELS),
    (SMALL, ONE),
)
COLOURS = {ONE: "#5b6b7b", MANY: "#c98a2b", SMALL_LABELS: "#b0413e", SMALL: "#1d9a6c"}


def load(seed):
    return kd.data.load_digits(seed=seed, image_shape=(64,))


def network(size, seed, dropout=0.0):
    return kd.models.mlp((64,), 10, units=UNITS[size], dropout=dropout, seed=seed)


def batches_of(data, seed, labels=True, augment=None):
    return kd.data.ArrayPipeline(
        data.x_train,
        data.y_train if labels else None,
        batch_size=50,
        augment=augment,
        seed=seed,
        drop_remainder=True,
    )


def train(student, batches, epochs, teacher=None):
    """From labels; or from the random passes of a teacher, one for each batch."""
    model, loss = student, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if teacher is not None:
        agree = kd.Transfer(kd.losses.SoftTargets(temperature=1.0))
        passes = kd.MonteCarloDropout(teacher)
        model, loss = kd.Distiller(student=student, teacher=passes, transfers=[agree]), None
    rate = keras.optimizers.schedules.CosineDecay(0.1, epochs * len(batches))
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    model.compile(optimizer, loss, steps_per_execution=len(batches))
    follow = kd.data.FollowEpochs(batches)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[follow])


def student_of(name, teacher, data, seed, epochs):
    size, share, labels = STUDENTS[name]
    student = network(size, seed + 1)
    if size == "whole":
        student.set_weights(teacher.get_weights())
    batches = batches_of(data, seed, labels, kd.data.ZeroPixels(0.2))
    train(student, batches, max(1, round(share * epochs)), None if labels else teacher)
    return student


# What it measures ---------------------------------------------------------------------------


def entropy(logits):
    p = np.asarray(keras.ops.softmax(logits), "float64")
    return -np.sum(p * np.log(np.maximum(p, 1e-30)), axis=-1)


def errors_of_the_surest(logits, y, unsure):
    """Error in % of the surest k examples, for all k from 1."""
    wrong = (np.argmax(logits, axis=-1) != y)[np.argsort(unsure, kind="stable")]
    return 100 * np.cumsum(wrong) / np.arange(1, len(y) + 1)


def measures(logits, y, unsure, mean):
    found = evaluation.calibration(logits, y)
    curve = errors_of_the_surest(logits, y, unsure)
    return curve, {
        "error": 100 * (1 - found["accuracy"]),
        "kept": curve[round(0.9 * len(y)) - 1],
        "nll": found["nll"],
        "ece": found["ece"],
        "kl": float(kd.losses.SoftTargets(temperature=1.0)(mean, logits)),
    }


def run_seed(seed, epochs, advance):
    """`{name: network}`, `{name: (logits, how unsure)}`, and the logits of the mean prediction."""
    data, teacher = load(seed), network("whole", seed, dropout=0.5)
    train(teacher, batches_of(data, seed), epochs)
    networks = {ONE: teacher}
    for name in STUDENTS:
        networks[name] = student_of(name, teacher, data, seed, epochs)
        advance()
    said = {}
    for name, each in networks.items():
        logits = keras.ops.convert_to_numpy(each(data.x_test, training=False))
        said[name] = logits, entropy(logits)
    # One object for both, which keeps what it compiled.
    passes, x = kd.MonteCarloDropout(teacher), data.x_test
    many = passes.predict(x, len(x), verbose=0, samples=SAMPLES, seed=1)
    said[MANY] = many.logits, many.mutual_information
    mean = passes.predict(x, len(x), verbose=0, samples=REFERENCE_SAMPLES, seed=2)
    return networks, said, mean.logits


def run(seeds, epochs, progress):
    """A row for each network and seed, curves by network, and what the first seed gave."""
    rows, curves, first = [], {name: [] for name in NETWORKS}, None
    bar = progress.add_task("", total=seeds * len(STUDENTS))

    for seed in range(seeds):
        progress.update(bar, description=f"seed {seed + 1} of {seeds}")
        networks, said, mean = run_seed(seed, epochs, lambda: progress.advance(bar))
        first = first or (networks, said)
        for name in NETWORKS:
            curve, found = measures(said[name][0], load(seed).y_test, said[name][1], mean)
            curves[name].append(curve)
            rows.append({"network": name, "seed": seed} | found)
    return rows, curves, first


def milliseconds(networks, rounds=5):
    """Time of 1000 digits at once, median over rounds in turns; one network of each kind."""
    x = np.resize(load(seed=0).x_test, (1000, 64))
    passes = kd.MonteCarloDropout(networks[ONE])
    ways = {
        name: lambda each=networks[name]: each.predict_on_batch(x)
        for name in (ONE, DISTILLED, SMALL)
    }
    ways[MANY] = lambda: passes.predict(x, len(x), verbose=0, samples=SAMPLES)
    times = {name: [] for name in ways}
    for turn in range(-1, rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            # The first round traces.
            if turn >= 0:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(found) for name, found in times.items()}


# Tables and pictures ------------------------------------------------------------------------


def column(rows, name, measure):
    return [row[measure] for row in rows if row["network"] == name]


def table_of(rows, times):
    table = Table("", title="digits, test part: mean ± sd over seeds")
    for heading in (*MEASURES.values(), "ms"):
        table.add_column(heading, justify="right")
    for name in NETWORKS:
        cells = []
        for measure in MEASURES:
            mean, sd = evaluation.summary(column(rows, name, measure))
            digits = 2 if "%" in MEASURES[measure] else 4
            cells.append(f"{mean:.{digits}f} ± {sd:.{digits}f}")
        table.add_row(name, *cells, f"{times[name]:.1f}" if name in times else "")
    return table


def differences(rows):
    """Paired tests, whose p-values are corrected for their number."""
    cases = [(pair, measure) for measure in ("error", "nll") for pair in PAIRS]
    tests = [
        evaluation.compare(column(rows, first, measure), column(rows, second, measure))
        for (first, second), measure in cases
    ]
    corrected = evaluation.holm([test.p for test in tests])
    table = Table("difference within a seed", title="paired t-tests")
    for heading in ("", "mean", "95 % interval", "p (Holm)", "verdict"):
        table.add_column(heading, justify="right")
    for (pair, measure), test, p in zip(cases, tests, corrected, strict=True):
        digits = 2 if measure == "error" else 4
        numbers = (f"{n:+.{digits}f}" for n in (test.mean_difference, test.low, test.high))
        mean, low, high = numbers
        # Less is better.
        verdict = ("better" if test.t < 0 else "worse") if p <= 0.05 else "can't tell"
        interval = f"{low} to {high}"
        table.add_row(" - ".join(pair), MEASURES[measure], mean, interval, f"{p:.3f}", verdict)
    return table


def draw(rows, curves, path):
    """NLL and divergence of all networks, and the error of what isn't left to a person."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    for axes, measure, title in (
        (left, "nll", "NLL (nats)"),
        (middle, "kl", "KL from the mean (nats)"),
    ):
        for place, name in enumerate(reversed(NETWORKS)):
            values = column(rows, name, measure)
            axes.plot(values, [place] * len(values), "o", color="0.75", markersize=3)
            axes.plot(np.mean(values), place, "o", color="#1d9a6c")
        axes.set_xlabel(title)
    left.set_yticks(range(len(NETWORKS)), reversed(NETWORKS))
    middle.set_yticks(range(len(NETWORKS)), [])
    middle.set_xscale("log")
    for name, colour in COLOURS.items():
        error = np.mean(curves[name], axis=0)
        left_over = 100 * (1 - np.arange(1, len(error) + 1) / len(error))
        shown = left_over <= 30
        right.plot(left_over[shown], error[shown], color=colour, label=name)
    right.set(xlabel="% of the digits left to a person", ylabel="test error of the others (%)")
    right.legend(frameon=False)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def draw_unsure(logits, information, path):
    """The ten digits of the first seed that the random passes disagree about most."""
    data, guesses = load(seed=0), np.argmax(logits, axis=-1)
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    most = np.argsort(-information)[:10]
    for axes, row in zip(figure.subplots(2, 5).flat, most, strict=True):
        axes.imshow(data.x_test[row].reshape(8, 8), cmap="gray_r")
        said = f"a {data.y_test[row]}, said {guesses[row]}"
        axes.set_title(f"{said}\n{information[row]:.2f} nats", fontsize=10)
        axes.axis("off")
    figure.savefig(path, dpi=150)


def export(student, path):
    """Write the network; returns a line about the file, which was compared with Keras."""
    data = load(seed=0)
    report = kd.export.litert(student, path, check_data=data.x_test, overwrite=True)
    logits = kd.export.LiteRTModel(path).predict(data.x_test)
    error = 100 * np.mean(np.argmax(logits, axis=-1) != data.y_test)
    return (
        f"{path}: {report.parameters:,} parameters, {report.bytes:,} bytes, test error "
        f"{error:.2f} %; its logits are those of Keras within {report.max_difference:.0e}"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="2 or more, default 5")
    parser.add_argument("--epochs", type=int, default=40, help="of the first training, default 40")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out/dropout_distillation")
    )
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds must be 2 or more, for the tests")
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with Progress(console=console) as progress:
        rows, curves, (networks, said) = run(options.seeds, options.epochs, progress)
    evaluation.write_csv(rows, options.out / "dropout_distillation.csv", overwrite=True)
    console.print(table_of(rows, milliseconds(networks)), differences(rows))
    draw(rows, curves, options.out / "dropout_distillation.png")
    draw_unsure(*said[MANY], options.out / "unsure.png")
    line = export(networks[SMALL], options.out / "student.tflite")
    console.print(line, f"The pictures are in {options.out}.", sep="\n", soft_wrap=True)


if __name__ == "__main__":
    main()
