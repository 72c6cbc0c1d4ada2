"""Born-again networks: generation after generation, each taught by the one before.

    python examples/born_again.py               # about 5 minutes on 2 cores, no download
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

METHODS = ("independent", "born_again", "self_distillation")
PAIRS = (
    ("born_again", "independent"),
    ("self_distillation", "independent"),
    ("self_distillation", "born_again"),
)

# Chosen by the plain network's validation accuracy on other seeds, out of 0.01, 0.03 and 0.1.
RATE = 0.03


def load(trial):
    return kd.data.load_digits(seed=trial, label_noise=0.3)


def build(seed):
    return kd.models.mlp((8, 8, 1), 10, units=(128, 128), weight_decay=1e-4, seed=seed)


def folder(options, method, trial):
    return options.out / "runs" / f"{method}-{trial}"


def run(options, progress):
    """Train what isn't there yet; returns a row for each network."""
    recipe = kd.Recipe.takagi_hattori(
        epochs=options.epochs,
        batch_size=50,
        learning_rate=RATE,
        augment=kd.data.FlipShift(flip=False, shift=1),
        patience=10,
        stop_patience=20,
        steps_per_execution=10,  # much faster, where steps are as short as here
    )
    rows = []
    bar = progress.add_task("", total=options.trials * len(METHODS) * options.generations)
    for trial in range(options.trials):
        data = load(trial)
        for method in METHODS:
            progress.update(bar, description=f"trial {trial + 1} of {options.trials}: {method}")
            records = kd.train_generations(
                build,
                data,
                recipe=recipe,
                method=method,
                generations=options.generations,
                directory=folder(options, method, trial),
                seed=trial,
                checkpoint_every=None,  # a network takes seconds, so no checkpoints within it
                report=lambda record: progress.advance(bar),
            )
            rows += [{"trial": trial, **dataclasses.asdict(record)} for record in records]
            progress.update(bar, completed=len(rows))
    return rows


# Ensembles ----------------------------------------------------------------------------------


def ensemble_of(options, method, trial):
    """The mean of the probabilities of all networks of a method's trial, as one network."""
    directory, generations = folder(options, method, trial), range(1, options.generations + 1)
    return kd.Ensemble([kd.load_network(directory, generation) for generation in generations])


def accuracy(network, x, y):
    """Share of the digits that are read right, by a Keras model or a `.tflite` file."""
    if isinstance(network, keras.Model):
        logits = keras.ops.convert_to_numpy(network(x, training=False))
    else:
        logits = network.predict(x)
    return float(np.mean(np.argmax(logits, axis=-1) == y))


def ensemble_rows(options):
    """A row for each ensemble; `generation` is that of its last network."""
    rows = []
    for trial in range(options.trials):
        data = load(trial)
        for method in METHODS:
            network = ensemble_of(options, method, trial)
            rows.append(
                {
                    "method": method,
                    "trial": trial,
                    "generation": options.generations,
                    "val_accuracy": accuracy(network, data.x_val, data.y_val),
                    "test_accuracy": accuracy(network, data.x_test, data.y_test),
                }
            )
    return rows


def export_best(ensembles, options):
    """Write the ensemble that is best on validation as one file; returns a line about it."""
    best = max(ensembles, key=lambda row: row["val_accuracy"])
    data, path = load(best["trial"]), options.out / "ensemble.tflite"
    network = ensemble_of(options, best["method"], best["trial"])
    report = kd.export.litert(network, path, check_data=data.x_val, overwrite=True)
    found = accuracy(kd.export.LiteRTModel(path), data.x_test, data.y_test)
    return (
        f"{path}: {best['method']}, trial {best['trial']}, {options.generations} networks in "
        f"{report.bytes:,} bytes, test accuracy {100 * found:.2f} %"
    )


# Tables -------------------------------------------------------------------------------------


def ensemble_table(ensembles):
    table = Table("Ensemble of", title="Ensembles of all generations of a trial")
    for heading in ("Test (%)", "Val (%)"):
        table.add_column(heading, justify="right")
    for method in METHODS:
        own = [row for row in ensembles if row["method"] == method]
        table.add_row(method, *(shown(own, value) for value in ("test_accuracy", "val_accuracy")))
    return table


def shown(rows, value):
    mean, sd = evaluation.summary([100 * row[value] for row in rows])
    return f"{mean:.2f}" + (f" ± {sd:.2f}" if len(rows) > 1 else "")


def comparison_table(rows, ensembles):
    """Student's t-test of the differences between two methods, over trials."""
    title = "Differences of test accuracy, paired by trial; Holm over a pair's generations"
    table = Table("Compared", title=title)
    for heading in ("Gen.", "Points", "95 % interval", "p", "p (Holm)"):
        table.add_column(heading, justify="right")
    for first, second in PAIRS:
        for part, kind in ((rows, ""), (ensembles, "all ")):
            for line in evaluation.compare_methods(part, first, second):
                table.add_row(
                    f"{first} - {second}",
                    f"{kind}{line['first_generation']}",
                    f"{100 * line['mean_difference']:+.2f}",
                    f"{100 * line['low']:+.2f} to {100 * line['high']:+.2f}",
                    f"{line['p']:.3f}",
                    f"{line['p_holm']:.3f}",
                )
    return table


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=3, help="how many times, default 3")
    parser.add_argument("--generations", type=int, default=3, help="of each method, default 3")
    parser.add_argument("--epochs", type=int, default=100, help="of a network at most, default 100")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/born_again"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with Progress(console=console) as progress:
        rows = run(options, progress)
    ensembles = ensemble_rows(options)
    title = f"digits, 30 % wrong labels, trials: {options.trials}"
    console.print(evaluation.print_table(rows, title=title), ensemble_table(ensembles))
    if options.trials > 1:
        console.print(comparison_table(rows, ensembles))
    else:
        console.print("A test needs two trials or more.")
    results = options.out / "born_again"
    evaluation.write_csv(evaluation.cumulative(rows), f"{results}.csv", overwrite=True)
    evaluation.plot_generations(rows, f"{results}.png", title=title, overwrite=True)
    line = export_best(ensembles, options)
    where = f"The picture is in {results}.png, the numbers are in {results}.csv."
    console.print(line, where, sep="\n", soft_wrap=True)


if __name__ == "__main__":
    main()
