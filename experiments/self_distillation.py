"""Self-distillation against born-again networks, generation by generation, over paired trials.

    python experiments/self_distillation.py digits          # 20 trials, 30 % label noise, 6 methods
    python experiments/self_distillation.py superclasses    # CIFAR-100's 20 groups, ResNet-8: hours
    python experiments/self_distillation.py cifar100        # ResNet-20 as in the paper: days of CPU

Every number of a preset is an argument: `--trials 3 --epochs 20 --patience 4 --stop-patience 8`.
A trial is a split with a seed; all methods of a trial share split, first weights and data order.
Interrupted, the same command goes on. Several processes may share the work and `--runs`:
`--first-trial 5 --trials 5 --no-report` runs trials 5 to 9 only. The results are a CSV of all
networks, one of the ensembles, one of the tests between methods, and a picture.

CIFAR-100 comes from TensorFlow Datasets (`TFDS_DATA_DIR` says where it lies).
"""

import argparse
import dataclasses
import itertools
import pathlib
import shutil

import keras
import numpy as np
import rich
from rich.table import Table

import kdtoolkit as kd
from kdtoolkit import evaluation
from kdtoolkit.generations import Recipe, load_network, train_generations

#: Methods that start with plain training: with one trial's seed, the same network to the bit.
PLAIN_START = ("born_again", "born_again_labels", "confidence_weighted", "permuted")
#: Methods and how many generations of each.
THREE = {"independent": 3, "self_distillation": 3, "born_again": 3}
ALL = {**THREE, "born_again_labels": 2, "confidence_weighted": 2, "permuted": 2}
#: What is compared between methods; time also as processor time, which other work disturbs less.
VALUES = (
    "test_accuracy",
    "last_test_accuracy",
    "cumulative_seconds",
    "cumulative_cpu_seconds",
    "epochs",
)
PRESETS = {
    "digits": {
        "network": "mlp",
        "methods": ALL,
        "trials": 20,
        "epochs": 100,
        "patience": 10,
        "stop_patience": 20,
        "batch": 50,
        "learning_rate": 0.03,
        "noise": 0.3,
        "max_train": None,
        "val_fraction": 0.15,
    },
    "superclasses": {
        "network": "resnet8",
        "methods": {"self_distillation": 3, "born_again": 3},
        "trials": 4,
        "epochs": 40,
        "patience": 8,
        "stop_patience": 16,
        "batch": 100,
        "learning_rate": 0.1,
        "noise": 0.0,
        "max_train": 2000,
        "val_fraction": 0.2,
    },
    "cifar100": {
        "network": "resnet20",
        "methods": {"self_distillation": 7, "born_again": 7},
        "trials": 10,
        "epochs": 1000,
        "patience": 20,
        "stop_patience": 40,
        "batch": 100,
        "learning_rate": 0.1,
        "noise": 0.0,
        "max_train": None,
        "val_fraction": 0.1,
    },
}


def load(options, trial):
    if options.data == "digits":
        return kd.data.load_digits(
            seed=trial, label_noise=options.noise, val_fraction=options.val_fraction
        )
    data = kd.data.load_tfds(
        "cifar100",
        seed=trial,
        superclasses=options.data == "superclasses",
        max_train=options.max_train,
        val_fraction=options.val_fraction,
    )
    noisy = kd.data.noisy_labels(data.y_train, options.noise, data.num_classes, seed=[trial, 2])
    return dataclasses.replace(data, y_train=noisy)


def builder(options, data):
    """A function from a seed to a new network; weight decay 1e-4 everywhere."""
    shape, classes = data.input_shape, data.num_classes
    if options.network == "mlp":
        return lambda seed: kd.models.mlp(
            shape, classes, units=(128, 128), weight_decay=1e-4, seed=seed
        )
    depth = int(options.network.removeprefix("resnet"))
    width = 8 if depth == 8 else 16
    return lambda seed: kd.models.resnet(
        depth, shape, classes, width=width, variant="v2", weight_decay=1e-4, seed=seed
    )


def recipe(options):
    shift = kd.data.FlipShift(flip=False, shift=1) if options.data == "digits" else "default"
    return Recipe.takagi_hattori(
        epochs=options.epochs,
        batch_size=options.batch,
        learning_rate=options.learning_rate,
        augment=shift,
        patience=options.patience,
        stop_patience=options.stop_patience,
        steps_per_execution=options.steps_per_execution,
    )


def folder(options, method, trial):
    return options.runs / f"{options.data}-{method}-{trial}"


def share_first_generation(options, method, trial):
    """Take over the first generation of "independent" instead of repeating that training."""
    source = folder(options, "independent", trial) / "generation-1"
    target = folder(options, method, trial) / "generation-1"
    if method in PLAIN_START and (source / "record.json").exists() and not target.exists():
        draft = target.with_name("generation-1-draft")
        shutil.copytree(source, draft, dirs_exist_ok=True)
        draft.rename(target)


def run_trial(options, trial, say):
    data = load(options, trial)
    for method, generations in options.methods.items():
        share_first_generation(options, method, trial)
        train_generations(
            builder(options, data),
            data,
            recipe=recipe(options),
            method=method,
            generations=generations,
            directory=folder(options, method, trial),
            seed=trial,
            checkpoint_every=options.checkpoint_every,
            report=say,
        )


# Results ------------------------------------------------------------------------------------


def rows_of(options):
    """One row per network of all trials that are on disk."""
    for trial, method in itertools.product(trials(options), options.methods):
        for record in kd.load_generations(folder(options, method, trial)):
            row = dataclasses.asdict(record)
            yield {"method": method, "trial": trial, **{k: row[k] for k in row if k != "method"}}


def trials(options):
    return range(options.first_trial, options.first_trial + options.trials)


def ensemble_rows(options):
    """Test accuracy of the mean probabilities of a trial's first 2, 3, ... networks."""
    for trial in trials(options):
        data = load(options, trial)
        for method in options.methods:
            directory = folder(options, method, trial)
            generations = range(1, options.methods[method] + 1)
            networks = [load_network(directory, generation) for generation in generations]
            for count in generations[1:]:
                ensemble = kd.Ensemble(networks[:count])
                # `generation` is the number of networks here.
                row = {"method": method, "trial": trial, "generation": count}
                for part in ("val", "test"):
                    x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
                    logits = keras.ops.convert_to_numpy(
                        ensemble.predict(x, batch_size=500, verbose=0)
                    )
                    row[f"{part}_accuracy"] = float(np.mean(np.argmax(logits, -1) == y))
                yield row


def comparisons(options, rows, ensembles):
    """Paired and Welch tests of each method against the others that the claims speak of."""
    found = []
    first = next(m for m in ("self_distillation", *options.methods) if m in options.methods)
    for paired in (True, False):
        for other in [m for m in options.methods if m != first]:
            for value in VALUES:
                lines = evaluation.compare_methods(rows, first, other, value, paired)
                found += [{"value": value, **line} for line in lines]
            lines = evaluation.compare_matrix(rows, first, other, "test_accuracy", paired)
            found += [
                {"value": "test_accuracy, all pairs of generations", **line} for line in lines
            ]
            lines = evaluation.compare_methods(ensembles, first, other, paired=paired)
            found += [{"value": "ensemble test_accuracy", **line} for line in lines]
        for second in [m for m in PLAIN_START if {m, "independent"} <= options.methods.keys()]:
            # Their first generations are one network.
            later = [row for row in rows if row["generation"] > 1]
            lines = evaluation.compare_methods(later, second, "independent", paired=paired)
            found += [{"value": "test_accuracy", **line} for line in lines]
            lines = evaluation.compare_methods(ensembles, second, "independent", paired=paired)
            found += [{"value": "ensemble test_accuracy", **line} for line in lines]
    return found


def ensemble_table(ensembles):
    table = Table("Ensemble of", "Networks", "Test (%)", title="Mean of probabilities")
    for method, counts in evaluation.by_generation(ensembles, "test_accuracy").items():
        for count, values in counts.items():
            mean, sd = evaluation.summary(100 * values)
            table.add_row(method, str(count), f"{mean:.2f} ± {sd:.2f}")
    return table


def report(options):
    rows = evaluation.cumulative(list(rows_of(options)))
    rows = evaluation.cumulative(rows, "cpu_seconds")
    ensembles = list(ensemble_rows(options))
    tests = comparisons(options, rows, ensembles)
    options.out.mkdir(parents=True, exist_ok=True)
    start = options.out / f"self_distillation_{options.data}"
    evaluation.write_csv(rows, f"{start}.csv", overwrite=True)
    evaluation.write_csv(ensembles, f"{start}_ensembles.csv", overwrite=True)
    evaluation.write_csv(tests, f"{start}_tests.csv", overwrite=True)
    title = f"{options.data}, {options.network}, {options.trials} trials"
    evaluation.plot_generations(rows, f"{start}.png", title=title, overwrite=True)
    rich.print(evaluation.print_table(rows, title=title), ensemble_table(ensembles))


def main(arguments=None):
    options = parse(arguments)
    for trial in trials(options):
        run_trial(
            options,
            trial,
            lambda r: print(
                f"{r.method} trial {r.seed} generation {r.generation}: test "
                f"{100 * r.test_accuracy:.2f} %, {r.epochs} epochs, {r.seconds:.0f} s",
                flush=True,
            ),
        )
    if options.report:
        report(options)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=PRESETS)
    parser.add_argument("--network", choices=["mlp", "resnet8", "resnet14", "resnet20"])
    parser.add_argument("--methods", nargs="+", choices=ALL)
    for name in ("generations", "trials", "epochs", "patience", "stop-patience", "batch"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--max-train", type=int, help="training images; validation comes on top")
    for name in ("learning-rate", "noise", "val-fraction"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--first-trial", type=int, default=0)
    parser.add_argument("--steps-per-execution", type=int, default=10)
    parser.add_argument("--checkpoint-every", type=int, help="epochs; default: generations alone")
    parser.add_argument("--no-report", dest="report", action="store_false")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results"))
    given = parser.parse_args(arguments)
    if given.data == "digits" and given.max_train:
        parser.error("--max-train is for CIFAR-100; digits take their shares from --val-fraction")
    chosen = {key: value for key, value in vars(given).items() if value is not None}
    options = {**dict.fromkeys(vars(given)), **PRESETS[given.data], **chosen}
    known = {**ALL, **PRESETS[given.data]["methods"]}
    options["methods"] = {m: given.generations or known[m] for m in options["methods"]}
    return argparse.Namespace(**options)


if __name__ == "__main__":
    main()
