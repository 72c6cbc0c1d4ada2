"""Time of a training step with a memory or a snapshot, against plain training of the same network.

    python benchmarks/self_distillation_time.py --rounds 8 --out benchmarks/results

ResNet-20, 32x32, 100 classes, batch 100, a memory of 45,000 examples. The variants run in turn in
one process; the table gives medians over the rounds of the ratio to plain training in the same one.
"""

import argparse
import csv
import pathlib
import statistics

import step_time
import tensorflow as tf

import kdtoolkit as kd

EXAMPLES = 45_000


def self_distiller(args, source):
    student, _ = step_time.networks(args)
    distiller = kd.SelfDistiller(student=student, source=source(student))
    if distiller.source.needs_ids:
        distiller.source.prepare(EXAMPLES)
    distiller.compile(step_time.optimizer(), step_time.LABEL_LOSS)
    run = step_time.fitted(distiller)
    return lambda data: run(data.map(with_ids))


def with_ids(x, y):
    """Other rows of the table at every step."""
    count = tf.shape(y)[0]
    ids = tf.random.uniform((count,), 0, EXAMPLES, tf.int32)
    return {"inputs": x, "example_id": ids}, y


SOURCES = {
    "memory": lambda student: kd.sources.PredictionMemory(),
    "memory, float16": lambda student: kd.sources.PredictionMemory(dtype="float16"),
    "last predictions": lambda student: kd.sources.LastPredictions(),
    "snapshot": kd.sources.Snapshot,
    "average": lambda student: kd.sources.Snapshot(student, decay=0.999),
}


def measure(args):
    runs = {"plain training": step_time.alone(args)}
    runs.update({name: self_distiller(args, source) for name, source in SOURCES.items()})
    rounds = {name: [] for name in runs}
    for index in range(-1, args.rounds):
        for name, run in runs.items():
            times = step_time.timed(run, step_time.batches(args, args.steps))
            # The first round traces.
            if index >= 0:
                rounds[name].append(times)
        print(f"round {index + 1} of {args.rounds}", flush=True)
    return rounds


def summarise(rounds, steps):
    base = rounds["plain training"]
    for name, times in rounds.items():
        wall, cpu = (
            [mine[i] / plain[i] for mine, plain in zip(times, base, strict=True)] for i in (0, 1)
        )
        yield {
            "variant": name,
            "cpu_ratio_to_plain": round(statistics.median(cpu), 3),
            "cpu_ratio_min": round(min(cpu), 3),
            "cpu_ratio_max": round(max(cpu), 3),
            "wall_ratio_to_plain": round(statistics.median(wall), 3),
            "ms_per_step_median": round(1000 * statistics.median(t[0] for t in times) / steps, 1),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("teacher", 8), ("student", 20), ("size", 32), ("batch", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=16, help="steps per round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=pathlib.Path, help="folder for self_distillation_time.csv")
    args = parser.parse_args()
    table = list(summarise(measure(args), args.steps))
    for row in table:
        print(row)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        with open(args.out / "self_distillation_time.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
