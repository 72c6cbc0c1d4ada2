"""Born-again networks: generation after generation, each taught by the one before.

    python examples/born_again.py               # about 3 minutes on 2 cores, no download
    python examples/born_again.py --trials 10   # adds to what is there

The data are scikit-learn's handwritten digits, 8x8 pixels, with 30 % of the training labels wrong
on purpose. In each trial (another split) three methods train three generations of the same network:

- independent: from the labels alone. Nothing is inherited; this is the control;
- born_again: from the labels first, and then from what the generation before says;
- self_distillation: from the labels and the network's own outputs of its best epoch, and from the
  second generation on also from what the generation before says.

Generation k of a trial starts from the same weights and sees the same batches in all methods, so
trials are compared in pairs. The networks of a trial together are an ensemble, and three networks
that were trained apart are one as well: only what is better than these comes from inheritance.

Every generation is written to `out/born_again/runs` as soon as it is finished. Interrupted, the
same command goes on where it was. A run with another `--epochs` needs another `--out`.

It ends in tables, one picture and the numbers as CSV, `out/born_again/born_again.png` and `.csv`,
and the ensemble with the best validation accuracy as one `.tflite` file. The tables show the test
part, on which nothing was chosen.

Sources: Furlanello et al., 2018, arXiv:1805.04770 (born-again networks and their ensembles). Takagi
and Hattori, IPSJ 81st National Convention (2019), 4U-02 (self-distillation).
"""

import argparse
import dataclasses
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

import kdtoolkit as kd  # noqa: E402
from kdtoolkit import evaluation  # noqa: E402

CONTROL = "independent"
METHODS = (CONTROL, "born_again", "self_distillation")
PAIRS = (("born_again", CONTROL), ("self_distillation", CONTROL), METHODS[:0:-1])
GENERATIONS = 3

# Chosen by the plain network's validation accuracy on other seeds, out of 0.01, 0.03 and 0.1.
RATE = 0.03


def load(trial):
    return kd.data.load_digits(seed=trial, label_noise=0.3)


def build(seed):
    return kd.models.mlp((8, 8, 1), 10, units=(128, 128), weight_decay=1e-4, seed=seed)


def folder(out, method, trial):
    return out / "runs" / f"{method}-{trial}"


def run(trials, epochs, out, progress):
    """Train what isn't there yet; returns a row for each network."""
    recipe = kd.Recipe.takagi_hattori(
        epochs=epochs,
        batch_size=50,
        learning_rate=RATE,
        augment=kd.data.FlipShift(flip=False, shift=1),
        patience=10,
        stop_patience=20,
        steps_per_execution=10,  # much faster, where steps are as short as here
    )
    rows = []
    bar = progress.add_task("", total=trials * len(METHODS) * GENERATIONS)
    for trial in range(trials):
        data = load(trial)
        for method in METHODS:
            progress.update(bar, description=f"trial {trial + 1} of {trials}: {method}")
            records = kd.train_generations(
                build,
                data,
                recipe=recipe,
                method=method,
                generations=GENERATIONS,
                directory=folder(out, method, trial),
                seed=trial,
                checkpoint_every=None,  # a network takes seconds, so no checkpoints within it
                report=lambda record: progress.advance(bar),
            )
            rows += [{"trial": trial, **dataclasses.asdict(record)} for record in records]
            progress.update(bar, completed=len(rows))
    return rows


# Ensembles ----------------------------------------------------------------------------------


def ensemble_of(out, method, trial):
    """The mean of the probabilities of all networks of a method's trial, as one network."""
    directory = folder(out, method, trial)
    networks = [kd.load_network(directory, 1 + index) for index in range(GENERATIONS)]
    return kd.Ensemble(networks)


def accuracy(network, x, y):
    """Share of the digits that are read right, by a Keras model or a `.tflite` file."""
    if isinstance(network, keras.Model):
        logits = keras.ops.convert_to_numpy(network(x, training=False))
    else:
        logits = network.predict(x)
    return float(np.mean(np.argmax(logits, axis=-1) == y))


def ensemble_rows(trials, out):
    """A row for each ensemble; `generation` is that of its last network."""
    rows = []
    for trial in range(trials):
        data = load(trial)
        for method in METHODS:
            network = ensemble_of(out, method, trial)
            rows.append(
                {
                    "method": method,
                    "trial": trial,
                    "generation": GENERATIONS,
                    "val_accuracy": accuracy(network, data.x_val, data.y_val),
                    "test_accuracy": accuracy(network, data.x_test, data.y_test),
                }
            )
    return rows


def export_best(ensembles, out):
    """Write the ensemble that is best on validation as one file; returns a line about it."""
    best = max(ensembles, key=lambda row: row["val_accuracy"])
    data, path = load(best["trial"]), out / "ensemble.tflite"
    network = ensemble_of(out, best["method"], best["trial"])
    report = kd.export.litert(network, path, check_data=data.x_val, overwrite=True)
    found = accuracy(kd.export.LiteRTModel(path), data.x_test, data.y_test)
    return (
        f"{path}: {best['method']}, trial {best['trial']}, {GENERATIONS} networks in "
        f"{report.bytes:,} bytes, test accuracy {100 * found:.2f} %"
    )


# Tables -------------------------------------------------------------------------------------


def ensemble_table(ensembles):
    table = Table("Ensemble of", title=f"Ensembles of a trial's {GENERATIONS} networks")
    for heading in ("Test (%)", "Val (%)"):
        table.add_column(heading, justify="right")
    for method in METHODS:
        own = [row for row in ensembles if row["method"] == method]
        table.add_row(method, *(shown(own, value) for value in ("test_accuracy", "val_accuracy")))
    return table


def shown(rows, value):
    mean, sd = evaluation.summary([100 * row[value] for row in rows])
    return f"{mean:.2f}" + (f" ± {sd:.2f}" if len(rows) > 1 else "")


def test_table(rows, ensembles):
    """Student's t-test of the differences between two methods, over trials."""
    title = "Differences of test accuracy, paired by trial; Holm over a pair's generations"
    table = Table("Compared", title=title)
    for heading in ("Gen.", "Points", "95 % interval", "p", "p (Holm)"):
        table.add_column(heading, justify="right")
    for first, second in PAIRS:
        compared = [(rows, "{}"), (ensembles, "ensemble of {}")]
        for part, generation in compared:
            for line in evaluation.compare_methods(part, first, second):
                table.add_row(
                    f"{first} - {second}",
                    generation.format(line["first_generation"]),
                    f"{100 * line['mean_difference']:+.2f}",
                    f"{100 * line['low']:+.2f} to {100 * line['high']:+.2f}",
                    f"{line['p']:.3f}",
                    f"{line['p_holm']:.3f}",
                )
    return table


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=3, help="how many times, default 3")
    parser.add_argument("--epochs", type=int, default=100, help="of a network at most, default 100")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/born_again"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with Progress(console=console) as progress:
        rows = run(options.trials, options.epochs, options.out, progress)
    ensembles = ensemble_rows(options.trials, options.out)
    title = f"digits, 30 % wrong labels, trials: {options.trials}"
    console.print(evaluation.print_table(rows, title=title), ensemble_table(ensembles))
    if options.trials > 1:
        console.print(test_table(rows, ensembles))
    else:
        console.print("A test needs two trials or more.")
    results = options.out / "born_again"
    evaluation.write_csv(evaluation.cumulative(rows), f"{results}.csv", overwrite=True)
    evaluation.plot_generations(rows, f"{results}.png", title=title, overwrite=True)
    console.print(export_best(ensembles, options.out))
    console.print(f"The picture is in {results}.png, the numbers are in {results}.csv.")


if __name__ == "__main__":
    main()
