"""Time of a training step with own exits, against the plain step of the same network.

    export TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1  # less noise beside other work
    python benchmarks/exits_time.py --rounds 9 --out benchmarks/results

ResNet-18, 32x32, 100 classes, exits behind its first three stages: plain Keras alone, exits that
learn from labels, exits that the network teaches, and these with a frozen teacher (ResNet-34) at
the last output. All run in turn in one process, in another order each round; the table gives
medians over the rounds of the ratio to the plain step of the same round.
"""

import argparse
import pathlib
import statistics

import step_time

import kdtoolkit as kd
from kdtoolkit import evaluation

SHAPE, STAGES = (32, 32, 3), ["stage1", "stage2", "stage3"]
#: Preset, bottleneck and whether a teacher runs, by name; None is the network alone.
VARIANTS = {
    "alone": None,
    "exits, labels alone": ("deep_supervision", "conv", False),
    "own exits": ("byot", "conv", False),
    "own exits, separable": ("byot", "separable", False),
    "offline": (None, None, True),
    "offline + own exits": ("byot", "conv", True),
}


def runner(variant):
    network = kd.models.resnet18(SHAPE, step_time.CLASSES, seed=0)
    if variant is None:
        network.compile(step_time.optimizer(), step_time.LABEL_LOSS)
        return step_time.fitted(network)
    preset, bottleneck, taught = variant
    teacher = kd.models.resnet34(SHAPE, step_time.CLASSES, seed=1) if taught else None
    edges, weights = None, None
    if preset is not None:
        network = kd.attach_exits(network, STAGES, bottleneck=bottleneck, seed=2)
        names = ["teacher"] if taught else []
        edges, weights = kd.wirings.own_exits(network, preset, teachers=names)
    distiller = kd.Distiller(student=network, teacher=teacher, transfers=edges)
    distiller.compile(step_time.optimizer(), step_time.LABEL_LOSS, loss_weights=weights)
    return step_time.fitted(distiller)


def measure(args):
    """`{name: (wall, processor seconds)}` of each round."""
    runs = {name: runner(VARIANTS[name]) for name in args.variants}
    rounds = []
    for index in range(-1, args.rounds):
        names = list(runs)[:: 1 if index % 2 else -1]
        batches = {name: step_time.batches(args, args.steps) for name in names}
        times = {name: step_time.timed(runs[name], batches[name]) for name in names}
        # The first round traces.
        if index >= 0:
            rounds.append(times)
        print(f"round {index + 1} of {args.rounds}", flush=True)
    return rounds


def summarise(rounds, names, steps):
    for name in names:
        wall, cpu = (
            [times[name][kind] / times["alone"][kind] for times in rounds] for kind in (0, 1)
        )
        milliseconds = [1000 * times[name][1] / steps for times in rounds]
        yield {
            "variant": name,
            "cpu_ratio": round(statistics.median(cpu), 3),
            "cpu_ratio_min": round(min(cpu), 3),
            "cpu_ratio_max": round(max(cpu), 3),
            "wall_ratio": round(statistics.median(wall), 3),
            "cpu_ms_per_step": round(statistics.median(milliseconds), 1),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="steps per round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path, help="folder for exits_time.csv")
    args = parser.parse_args()
    args.size = SHAPE[0]  # which `step_time.batches` reads
    # Everything is compared with it.
    args.variants = list(dict.fromkeys(["alone", *args.variants]))
    table = list(summarise(measure(args), args.variants, args.steps))
    for row in table:
        print(row)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        evaluation.write_csv(table, args.out / "exits_time.csv", overwrite=True)


if __name__ == "__main__":
    main()
