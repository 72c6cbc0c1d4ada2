"""Time of Monte-Carlo dropout: `predict(samples=...)` against as many passes over all examples.

    export TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1  # less noise beside other work
    python benchmarks/dropout_time.py --rounds 5 --out benchmarks/results

A convnet whose dropout is behind its convolutions, as in most. Both run in turn in one process,
once before they are timed; the table gives medians over the rounds of their ratio in the same
round. The limit is what multiplications alone would allow, with the convolutions run once.
"""

import argparse
import math
import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402

import kdtoolkit as kd  # noqa: E402
from kdtoolkit import evaluation  # noqa: E402
from kdtoolkit.dropout.split import split  # noqa: E402

CLASSES, DROPOUT = 10, 0.5


def make_network(args):
    return kd.models.convnet(
        (args.size, args.size, 3),
        CLASSES,
        filters=args.filters,
        dense=args.dense,
        dropout=DROPOUT,
        seed=0,
    )


def multiplications(model):
    """Of convolutions and dense layers, for one example."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            positions = math.prod(layer.output.shape[1:-1])
            total += positions * math.prod(layer.kernel.shape)
    return total


def limit(network, samples):
    """How many times fewer multiplications there are when the first part runs once."""
    dropout = [layer for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    first, rest = (multiplications(part) for part in split(network, dropout))
    return samples * (first + rest) / (first + samples * rest)


def naive(teacher, x, args):
    # Compiled passes batch by batch, without what `predict` adds around each call.
    means = []
    for start in range(0, len(x), args.batch):
        batch, mean = x[start : start + args.batch], 0.0
        for _ in range(args.samples):
            z = np.exp(teacher.predict_on_batch(batch))
            mean = mean + z / z.sum(axis=-1, keepdims=True)
        means.append(mean / args.samples)
    return np.concatenate(means)


def sampled(teacher, x, args):
    return teacher.predict(x, args.batch, verbose=0, samples=args.samples).probabilities


def timed(function, *arguments):
    wall, processor = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - wall, time.process_time() - processor


def measure(teacher, x, args):
    """`{name: (wall, processor seconds)}` of each round."""
    ways, rounds = {"naive": naive, "sampled": sampled}, []
    for index in range(-1, args.rounds):
        names = list(ways)[:: 1 if index % 2 else -1]
        times = {name: timed(ways[name], teacher, x, args) for name in names}
        # The first round traces.
        if index >= 0:
            rounds.append(times)
        print(f"round {index + 1} of {args.rounds}", flush=True)
    return rounds


def summarise(rounds, network, args):
    wall, cpu = (
        [times["naive"][kind] / times["sampled"][kind] for times in rounds] for kind in (0, 1)
    )
    return {
        "samples": args.samples,
        "examples": args.examples,
        "times_faster": round(statistics.median(wall), 1),
        "times_faster_min": round(min(wall), 1),
        "times_faster_max": round(max(wall), 1),
        "times_less_cpu": round(statistics.median(cpu), 1),
        "limit_by_multiplications": round(limit(network, args.samples), 1),
        "naive_seconds": round(statistics.median(times["naive"][0] for times in rounds), 2),
        "sampled_seconds": round(statistics.median(times["sampled"][0] for times in rounds), 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--filters", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--dense", type=int, nargs="*", default=[128])
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help="folder for dropout_time.csv")
    args = parser.parse_args()
    network = make_network(args)
    random = np.random.default_rng(0)
    x = random.normal(size=(args.examples, args.size, args.size, 3)).astype("float32")
    row = summarise(measure(kd.MonteCarloDropout(network), x, args), network, args)
    print(row)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        evaluation.write_csv([row], args.out / "dropout_time.csv", overwrite=True)


if __name__ == "__main__":
    main()
