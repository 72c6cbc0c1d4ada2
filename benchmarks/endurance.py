"""Long runs of each kind of distiller: traces, memory and speed over thousands of steps.

    export KERAS_BACKEND=tensorflow  # and again with jax
    python benchmarks/endurance.py --steps 10000 --out benchmarks/results

Small perceptrons on the digits, batches of 16, epochs of 500 steps with a validation, each kind in
a process of its own, and plain Keras as what to compare with. Traces are counted by a label loss
that counts how often its Python code runs: the compiled step runs it only while it is traced. The
validation's traces count too. Memory is the resident memory of the process.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import interrupted_runs
import keras
import numpy as np

import kdtoolkit as kd
from kdtoolkit import evaluation

BATCH = 16


class CountedLoss(keras.losses.SparseCategoricalCrossentropy):
    """The label loss, which counts how often Python runs it."""

    runs = 0

    def call(self, y_true, y_pred):
        CountedLoss.runs += 1
        return super().call(y_true, y_pred)


class Watch(keras.callbacks.Callback):
    """Traces so far, resident memory in MB and the clock, at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        # The validation of this epoch is over.
        self.seen.append((CountedLoss.runs, resident_mb(), time.perf_counter()))


def resident_mb():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def plain():
    return interrupted_runs.network(0), None, []


def offline():
    edges = [
        kd.Transfer(kd.losses.SoftTargets(4.0)),
        kd.Transfer(kd.losses.Hint(), source_layer="inner", student_layer="inner", weight=0.1),
    ]
    student, teacher = interrupted_runs.network(0), interrupted_runs.network(7, 48)
    return kd.Distiller(student=student, teacher=teacher, transfers=edges), None, []


def mutual(updates="simultaneous"):
    students = [interrupted_runs.network(0), interrupted_runs.network(3, 32)]
    return kd.MutualDistiller(students=students, updates=updates), None, []


def alternating():
    return mutual("alternating")


def memory():
    distiller = kd.SelfDistiller(student=interrupted_runs.network(0))
    return distiller, None, [kd.callbacks.PeriodicTeacher()]


def average():
    student = interrupted_runs.network(0)
    source = kd.sources.Snapshot(student, decay=0.99)
    edge = kd.Transfer(kd.losses.SoftTargets(4.0))
    return kd.Distiller(student=student, teacher=source, transfers=[edge]), None, []


def exits():
    student = kd.attach_exits(interrupted_runs.network(0), ["inner"], seed=2)
    edges, weights = kd.wirings.own_exits(student)
    return kd.Distiller(student=student, transfers=edges), weights, []


KINDS = {
    "plain Keras": plain,
    "offline": offline,
    "mutual": mutual,
    "mutual, alternating": alternating,
    "prediction memory": memory,
    "snapshot average": average,
    "own exits": exits,
}


def train(kind, args):
    """One row of the table."""
    keras.utils.set_random_seed(0)
    data = interrupted_runs.small_digits()
    rows = np.arange(BATCH * args.epoch_steps) % len(data.y_train)
    model, weights, callbacks = KINDS[kind]()
    train = kd.data.ArrayPipeline(
        data.x_train[rows],
        data.y_train[rows],
        batch_size=BATCH,
        example_ids=KINDS[kind] is memory,
    )
    loss = CountedLoss(from_logits=True)
    model.compile(keras.optimizers.Adam(0.001), loss, loss_weights=weights)
    watch = Watch()
    model.fit(
        train,
        shuffle=False,
        epochs=args.steps // args.epoch_steps,
        validation_data=(data.x_val, data.y_val),
        callbacks=[*callbacks, kd.data.FollowEpochs(train), watch],
        verbose=0,
    )
    return {"kind": kind, **summary(watch.seen, args)}


def summary(seen, args):
    traces, megabytes, clock = zip(*seen, strict=True)
    steps = (len(seen) - 2) * args.epoch_steps
    return {
        "backend": keras.backend.backend(),
        "steps": len(seen) * args.epoch_steps,
        "traces_in_epoch_1": traces[0],
        "traces_later": traces[-1] - traces[0],
        "mb_after_epoch_2": round(megabytes[1], 1),
        "mb_at_half": round(megabytes[len(seen) // 2 - 1], 1),
        "mb_at_end": round(megabytes[-1], 1),
        "growth_mb": round(megabytes[-1] - megabytes[1], 1),
        "steps_per_second": round(steps / (clock[-1] - clock[1])),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--epoch-steps", type=int, default=500)
    parser.add_argument("--only", choices=KINDS, help="train one kind here and print its row")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the table")
    args = parser.parse_args()
    if args.steps < 3 * args.epoch_steps:
        parser.error("three epochs at least, of which the first two are not measured")
    if args.only:
        print(json.dumps(train(args.only, args)))
        return
    numbers = ["--steps", str(args.steps), "--epoch-steps", str(args.epoch_steps)]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    table = []
    for kind in args.kinds:
        command = [sys.executable, __file__, "--only", kind, *numbers]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        table.append(json.loads(output.splitlines()[-1]))
        print(table[-1], flush=True)
        if args.out:
            name = f"endurance_{keras.backend.backend()}.csv"
            evaluation.write_csv(table, args.out / name, overwrite=True)


if __name__ == "__main__":
    main()
