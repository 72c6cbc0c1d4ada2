"""Branches that learn together, ONE and CL-ILR, against the network alone, where labels are few.

    python experiments/branches.py digits    # 6 minutes

A seed decides the network's first weights, its images and their order; all methods share them, so
differences are compared in pairs. Deployed is the first branch, the network itself. Every number
of a preset is an argument. The results are a CSV of all runs and one with a line per method.
"""

import argparse
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable

import keras
import losses
import rich

import kdtoolkit as kd
from kdtoolkit import evaluation

PRESETS = {
    "digits": {
        "seeds": 10,
        "student": "convnet-8-16-16",
        "at": "stage1",
        "branches": 3,
        "max_train": 150,
        "epochs": 50,
        "batch": 50,
        "learning_rate": 0.4,
        "weight_decay": 5e-4,
    },
}
#: Share of the epochs in which ONE's weight rises: its authors' 80 of 300.
RISE = 80 / 300


@dataclasses.dataclass(frozen=True)
class Method:
    """A wiring. `trained` says which outputs have a label loss; none of them: the network alone."""

    name: str
    arguments: dict = dataclasses.field(default_factory=dict)
    transfers: Callable = lambda count: []
    label_weight: float = 1.0
    trained: tuple = ()
    rises: bool = False


METHODS = [
    Method("student alone"),
    Method("branches, labels alone", {"ensemble": "mean"}, trained=("branch",)),
    Method("ONE", {}, kd.wirings.one, trained=("branch", "ensemble"), rises=True),
    Method(
        "CL-ILR",
        {"ensemble": "mean", "others": True, "share_gradient": True},
        kd.wirings.collaborative,
        label_weight=0.5,
        trained=("branch",),
    ),
]


def distiller_of(options, method, network, seed):
    """The distiller of a method, its label losses and its callbacks."""
    label_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if not method.trained:
        return kd.Distiller(student=network, transfers=[]), label_loss, []
    count, edges = options.branches, method.transfers(options.branches)
    student = kd.models.branches(network, options.at, count, seed=seed, **method.arguments)
    label_losses = {key: label_loss for key in student.output if key.startswith(method.trained)}
    length = RISE * options.epochs if method.rises else 0
    rises = [kd.callbacks.Schedule(edge, "weight", rise(length)) for edge in edges if length]
    distiller = kd.Distiller(student=student, transfers=edges, label_weight=method.label_weight)
    return distiller, label_losses, rises


def rise(length):
    """From exp(-5) to 1 in `length` epochs."""
    return lambda epoch: math.exp(-5 * (1 - min(1, epoch / length)) ** 2)


def run(options, method, seed):
    data = losses.load(options, seed, options.max_train)
    keras.utils.set_random_seed(seed)
    network = losses.network(options.student, data, options, seed)
    distiller, label_losses, rises = distiller_of(options, method, network, seed)
    batches = losses.pipeline(data, options, seed)
    rate = keras.optimizers.schedules.CosineDecay(
        options.learning_rate, options.epochs * len(batches)
    )
    distiller.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        label_losses,
        steps_per_execution=len(batches),
    )
    started = time.process_time()
    callbacks = [kd.data.FollowEpochs(batches), *rises]
    distiller.fit(batches, epochs=options.epochs, shuffle=False, verbose=0, callbacks=callbacks)
    row = {
        "method": method.name,
        "seed": seed,
        "cpu_seconds": time.process_time() - started,
        "test_accuracy": losses.accuracy(network, data.x_test, data.y_test),
        "ensemble_accuracy": None,
    }
    if method.trained:
        together = kd.models.single_output(distiller.student, "ensemble")
        row["ensemble_accuracy"] = losses.accuracy(together, data.x_test, data.y_test)
    return row


def report(options, rows):
    """Writes both CSV files and prints the table."""
    lines = losses.lines_of(options, rows, {})
    for line in lines:
        found = [row["ensemble_accuracy"] for row in rows if row["method"] == line["method"]]
        line["ensemble_mean"] = None if None in found else sum(found) / len(found)
        del line["step_time"]
    start = options.out / f"branches_{options.data}"
    options.out.mkdir(parents=True, exist_ok=True)
    evaluation.write_csv(rows, f"{start}_runs.csv", overwrite=True)
    evaluation.write_csv(lines, f"{start}.csv", overwrite=True)
    title = f"{options.data}: {options.branches} branches of {options.student} at {options.at}"
    rich.print(losses.table_of([{**line, "step_time": None} for line in lines], title))


def main(arguments=None):
    options = parse(arguments)
    rows = []
    for seed in range(options.seeds):
        for method in options.methods:
            rows.append(run(options, method, seed))
            keras.utils.clear_session()
            print(f"{method.name}, seed {seed}: test {100 * rows[-1]['test_accuracy']:.2f} %")
    report(options, rows)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=PRESETS)
    for name in ("seeds", "branches", "max-train", "epochs", "batch"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("learning-rate", "weight-decay"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--student", help="resnet<depth>-<width> or convnet-<filters>-...")
    parser.add_argument("--at", help="the layer that ends the shared part")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results"))
    given = {key: value for key, value in vars(parser.parse_args(arguments)).items()}
    chosen = {key: value for key, value in given.items() if value is not None}
    return argparse.Namespace(**PRESETS[chosen["data"]] | chosen, methods=METHODS)


if __name__ == "__main__":
    main()
