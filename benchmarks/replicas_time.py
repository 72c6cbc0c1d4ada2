"""Time of a training step on two replicas with a core each, against one replica with one core.

    KERAS_BACKEND=tensorflow python benchmarks/replicas_time.py --out benchmarks/results
    KERAS_BACKEND=jax python benchmarks/replicas_time.py --out benchmarks/results

A convnet learns from a wider one. One replica takes batches of `--batch` images; two take the same
batches, half each, or with `--grow` batches twice as large. TensorFlow splits the processor under
MirroredStrategy, JAX under `keras.distribution.DataParallel`; every replica computes with one
thread. Both run in turn in one process, in another order each round; the table gives medians over
the rounds of the ratio to one replica of the same round, for as many images.
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import time

# Read when the engines start: a thread for each of two devices.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
FLAGS = "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)

import keras  # noqa: E402
import numpy as np  # noqa: E402

import kdtoolkit as kd  # noqa: E402
from kdtoolkit import evaluation  # noqa: E402

BACKEND = keras.backend.backend()
SHAPE, CLASSES = (16, 16, 3), 10


def scope_of_two():
    """The context in which there are two replicas."""
    if BACKEND == "jax":
        return keras.distribution.DataParallel().scope
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    half = tf.config.LogicalDeviceConfiguration()
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [half, half])
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope


def distiller(scope):
    with scope():
        student, teacher = (
            kd.models.convnet(SHAPE, CLASSES, filters=filters, seed=0)
            for filters in ((16, 32), (32, 64))
        )
        made = kd.Distiller(student=student, teacher=teacher)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made.compile(keras.optimizers.SGD(0.01), loss)
    return made


def seconds(made, scope, data, batch):
    """Wall time of one epoch over the data."""
    with scope() if BACKEND == "jax" else contextlib.nullcontext():
        start = time.perf_counter()
        made.fit(*data, batch_size=batch, verbose=0, shuffle=False)
        return time.perf_counter() - start


def measure(args):
    """`(seconds of one replica, of two)` of each round."""
    two = scope_of_two()
    scopes = {"one": contextlib.nullcontext, "two": two}
    batches = {"one": args.batch, "two": args.batch * (2 if args.grow else 1)}
    models = {name: distiller(scope) for name, scope in scopes.items()}
    random = np.random.default_rng(0)
    images = random.normal(size=(args.batch * args.steps, *SHAPE)).astype("float32")
    data = images, random.integers(CLASSES, size=len(images))
    rounds = []
    for index in range(-1, args.rounds):
        names = list(scopes)[:: 1 if index % 2 else -1]
        times = {n: seconds(models[n], scopes[n], data, batches[n]) for n in names}
        # The first round traces.
        if index >= 0:
            rounds.append((times["one"], times["two"]))
        print(f"round {index + 1} of {args.rounds}", flush=True)
    return rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="batches of one replica per round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--grow", action="store_true", help="twice the batch for two replicas")
    parser.add_argument("--out", type=pathlib.Path, help="folder for replicas_time.csv")
    args = parser.parse_args()
    rounds = measure(args)
    ratios = [two / one for one, two in rounds]
    name = f"{BACKEND}, batch {'grows' if args.grow else 'split'}"
    row = {
        "variant": name,
        "batch": args.batch,
        "time_ratio": round(statistics.median(ratios), 3),
        "time_ratio_min": round(min(ratios), 3),
        "time_ratio_max": round(max(ratios), 3),
        "one_ms_per_batch": round(1000 * statistics.median(r[0] for r in rounds) / args.steps, 1),
    }
    print(row)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        file = args.out / "replicas_time.csv"
        # Each backend is a run of its own, and they share the table.
        others = read(file)
        table = [other for other in others if other["variant"] != name] + [row]
        evaluation.write_csv(table, file, overwrite=True)


def read(file):
    import csv

    if not file.exists():
        return []
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


if __name__ == "__main__":
    main()
