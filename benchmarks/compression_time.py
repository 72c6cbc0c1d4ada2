"""Time of a training step of compressed networks against that of the plain one.

    export TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1  # less noise beside other work
    python benchmarks/compression_time.py --rounds 5 --out benchmarks/results

A ResNet without a teacher: nothing but its own step counts. All take their epochs in turn in
one process, once before they are timed; the table gives medians over the rounds of ratios of
processor time within a round. "folded" is the network without batch normalisation, which clustering
and rounding start from. "filters" has half of them.
"""

import argparse
import os
import pathlib
import statistics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from dropout_time import timed  # noqa: E402

import kdtoolkit as kd  # noqa: E402
from kdtoolkit import evaluation  # noqa: E402


def networks(args, x):
    plain = kd.models.resnet(args.depth, (args.size, args.size, 3), 10, seed=0)
    pruned = kd.compress.prune(plain, 0.75)
    shared = kd.compress.cluster(plain, 16)
    found = {
        "plain": plain,
        "folded": kd.compress.fold_batchnorm(plain),
        "pruned": pruned,
        "pruned, masks moving": kd.compress.prune(plain, 0),
        "clustered": shared,
        "quantisation-aware": kd.compress.quantize_aware(plain, x),
        "all three": kd.compress.quantize_aware(kd.compress.cluster(pruned, 16), x),
        "filters": kd.compress.prune_filters(plain, 0.5),
    }
    for network in found.values():
        network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return found


def epoch(network, callbacks, x, y, args):
    network.fit(x, y, batch_size=args.batch, verbose=0, callbacks=callbacks)


def measure(args):
    random = np.random.default_rng(0)
    x = random.normal(size=(args.batch * args.steps, args.size, args.size, 3)).astype("float32")
    y = random.integers(10, size=len(x))
    found = networks(args, x[: args.batch])
    moving = found["pruned, masks moving"]
    steps = args.steps * (args.rounds + 1)
    gradual = kd.compress.GradualPruning(moving, 0.75, end_step=steps, every=args.every)
    rounds = []
    for index in range(-1, args.rounds):
        times = {}
        for name in list(found)[:: 1 if index % 2 else -1]:
            callbacks = [gradual] if found[name] is moving else []
            times[name] = timed(epoch, found[name], callbacks, x, y, args)[1]
        # The first round traces.
        if index >= 0:
            rounds.append(times)
        print(f"round {index + 1} of {args.rounds}", flush=True)
    return rounds


def rows_of(rounds):
    for name in rounds[0]:
        ratios = [times[name] / times["plain"] for times in rounds]
        yield {
            "network": name,
            "ratio": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "rounds": len(rounds),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("depth", 20), ("size", 32), ("batch", 64), ("steps", 6), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--every", type=int, default=3, help="steps between updates of masks")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    rows = sorted(rows_of(measure(args)), key=lambda row: row["ratio"])
    for row in rows:
        print(row)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        evaluation.write_csv(rows, args.out / "compression_time.csv", overwrite=True)


if __name__ == "__main__":
    # Fits that end before the masks are done are what this is about.
    import warnings

    warnings.filterwarnings("ignore", message="Training ended at step")
    main()
