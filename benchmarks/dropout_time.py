"""Time of Monte-Carlo dropout: `predict(samples=...)` against as many passes over all examples.

    export TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1  # less noise beside other work
    python benchmarks/dropout_time.py --rounds 5 --out benchmarks/results

A convnet whose dropout is behind its convolutions, as in most. All run in turn in one process, once
before they are timed; the table gives medians over the rounds of ratios within a round. The limit
is what multiplications alone would allow, with the convolutions run once.

"standard" is one pass in inference mode, "distilled" one of the same network made without dropout,
as a student is: both the mean of as many passes as there are samples. Ratios to "standard" are of
processor time.
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


def make_network(args, dropout):
    return kd.models.convnet(
        (args.size, args.size, 3),
        CLASSES,
        filters=args.filters,
        dense=args.dense,
        dropout=dropout,
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


def plain(network, x, args):
    for _ in range(args.samples):
        for start in range(0, len(x), args.batch):
            network.predict_on_batch(x[start : start + args.batch])


def timed(function, *arguments):
    wall, processor = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - wall, time.process_time() - processor


def measure(network, student, x, args):
    """`{name: (wall, processor seconds)}` of each round."""
    teacher = kd.MonteCarloDropout(network)
    ways = {"naive": (naive, teacher), "sampled": (sampled, teacher)}
    ways |= {"standard": (plain, network), "distilled": (plain, student)}
    rounds = []
    for index in range(-1, args.rounds):
        names = list(ways)[:: 1 if index % 2 else -1]
        times = {name: timed(*ways[name], x, args) for name in names}
        # The first round traces.
        if index >= 0:
            rounds.append(times)
        print(f"round {index + 1} of {args.rounds}", flush=True)
    return rounds


def ratios(name, rounds, way, other, kind, factor=1):
    """Median, least and most of a ratio over the rounds; `kind` 0 is wall, 1 processor time."""
    found = [factor * times[way][kind] / times[other][kind] for times in rounds]
    numbers = statistics.median(found), min(found), max(found)
    names = name, f"{name}_min", f"{name}_max"
    return {key: round(number, 2) for key, number in zip(names, numbers, strict=True)}


def seconds(rounds, way):
    return statistics.median(times[way][0] for times in rounds)


def summarise(rounds, network, args):
    samples = args.samples
    return {
        "samples": samples,
        "examples": args.examples,
        **ratios("times_faster", rounds, "naive", "sampled", 0),
        **ratios("times_less_cpu", rounds, "naive", "sampled", 1),
        "limit_by_multiplications": round(limit(network, samples), 1),
        **ratios("monte_carlo_over_standard", rounds, "sampled", "standard", 1, samples),
        **ratios("naive_over_standard", rounds, "naive", "standard", 1, samples),
        **ratios("distilled_over_standard", rounds, "distilled", "standard", 1),
        "naive_seconds": round(seconds(rounds, "naive"), 2),
        "sampled_seconds": round(seconds(rounds, "sampled"), 2),
        "standard_seconds": round(seconds(rounds, "standard") / samples, 4),
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
    network, student = make_network(args, DROPOUT), make_network(args, 0.0)
    random = np.random.default_rng(0)
    x = random.normal(size=(args.examples, args.size, args.size, 3)).astype("float32")
    row = summarise(measure(network, student, x, args), network, args)
    print(row)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        evaluation.write_csv([row], args.out / "dropout_time.csv", overwrite=True)


if __name__ == "__main__":
    main()
