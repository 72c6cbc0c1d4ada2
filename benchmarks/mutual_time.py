"""Time of a mutual training step, against the sum of the plain steps of its students.

    export TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1  # less noise beside other work
    python benchmarks/mutual_time.py --rounds 9 --out benchmarks/results

32x32, 100 classes, batch 64: residual networks and vision transformers, `kd.MutualDistiller` with
two students, three, and two that are updated one after the other. The sum is that of each student
trained by plain Keras with the same optimizer, loss and metrics. All run in turn in one process,
in another order each round; the table gives medians over the rounds of the ratio to the sum of the
same round.
"""

import argparse
import csv
import pathlib
import statistics

import step_time

import kdtoolkit as kd

SHAPE = (32, 32, 3)
NETWORKS = {
    "resnet8": lambda seed: kd.models.resnet(8, SHAPE, step_time.CLASSES, width=16, seed=seed),
    "vit": lambda seed: kd.models.vit(
        SHAPE, step_time.CLASSES, width=96, depth=4, heads=6, patch_size=4, seed=seed
    ),
}
STUDENTS = 3
VARIANTS = {
    "2 students": (2, "simultaneous"),
    "3 students": (3, "simultaneous"),
    "2 students, alternating": (2, "alternating"),
}


def compiled(model):
    model.compile(step_time.optimizer(), step_time.LABEL_LOSS, metrics=["accuracy"])
    return step_time.fitted(model)


def runs_of(network):
    """What is timed, by name: the plain students by their number, then the cohorts."""
    runs = {seed: compiled(network(seed)) for seed in range(STUDENTS)}
    for name, (count, updates) in VARIANTS.items():
        students = [network(seed) for seed in range(count)]
        runs[name] = compiled(kd.MutualDistiller(students=students, updates=updates))
    return runs


def measure(args, kind):
    runs = runs_of(NETWORKS[kind])
    rounds = []
    for index in range(-1, args.rounds):
        names = list(runs)[:: 1 if index % 2 else -1]
        times = {
            name: step_time.timed(runs[name], step_time.batches(args, args.steps)) for name in names
        }
        # The first round traces.
        if index >= 0:
            rounds.append(times)
        print(f"{kind}: round {index + 1} of {args.rounds}", flush=True)
    return rounds


def summarise(kind, rounds, steps):
    for name, (count, _) in VARIANTS.items():
        wall, cpu = (
            [times[name][i] / sum(times[seed][i] for seed in range(count)) for times in rounds]
            for i in (0, 1)
        )
        plain = [sum(times[seed][1] for seed in range(count)) for times in rounds]
        yield {
            "networks": kind,
            "variant": name,
            "cpu_ratio_to_sum": round(statistics.median(cpu), 3),
            "cpu_ratio_min": round(min(cpu), 3),
            "cpu_ratio_max": round(max(cpu), 3),
            "wall_ratio_to_sum": round(statistics.median(wall), 3),
            "cpu_ms_per_step": round(
                1000 * statistics.median(times[name][1] for times in rounds) / steps, 1
            ),
            "cpu_ms_per_step_sum": round(1000 * statistics.median(plain) / steps, 1),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="steps per round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path, help="folder for mutual_time.csv")
    args = parser.parse_args()
    args.size = SHAPE[0]  # which `step_time.batches` reads
    table = [
        row for kind in args.networks for row in summarise(kind, measure(args, kind), args.steps)
    ]
    for row in table:
        print(row)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        with open(args.out / "mutual_time.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
