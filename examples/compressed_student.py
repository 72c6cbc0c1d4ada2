"""Compression with a teacher: one student, made smaller in seven ways, each a checked file.

    python examples/compressed_student.py            # about 8 minutes on one core, no download
    python examples/compressed_student.py --seeds 10

For each seed (another split of scikit-learn's digits, other initial weights) a convnet is trained
as the teacher, and a small one is distilled from it. That student is then made smaller:

- int8, rounded when the file is written, or trained as the int8 file computes;
- weights of 4 bits, trained likewise;
- three quarters of the weights zero, little by little;
- half of the filters gone;
- 16 different values in each layer;
- the chain of zeros, 16 values, int8.

All but the first are trained on, with the teacher in `kd.Distiller`. Two controls say what that
does: the student trained on as it is, and half of the filters from labels alone.

It ends in tables and pictures of the `.tflite` files: accuracy on the test part and sizes over all
seeds; `kd.compare` of the first seed's files with the teacher, also as a page, `seed0.html`.
Zeros and equal values make no file smaller by themselves; what they save shows after gzip.

The file that one would ship is chosen on the validation part. So were the rates of compressed
networks, on that of another seed.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

import kdtoolkit as kd  # noqa: E402
from kdtoolkit import compress, evaluation  # noqa: E402

TEACHER, STUDENT, LONGER = "teacher", "student", "trained on"
NARROW, CONTROL = "half the filters", "half, from labels"
FILTERS = {TEACHER: (32, 64, 128), STUDENT: (8, 16, 32)}
BATCH = 50
KEYS = ("model", "test_accuracy", "agreement", "bytes", "gzip_bytes", "sparsity")
LOSS_ALLOWED = 1.0  # points on the validation part, of the file to ship


# How a network gets smaller: (network, data, steps of its training) to (next network, callbacks).


def same(network, data, steps):
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    return copy, []


def pruned(network, data, steps):
    network = compress.prune(network, 0)
    end = max(1, 2 * steps // 3)
    return network, [compress.GradualPruning(network, 0.75, end_step=end, every=10)]


def narrower(network, data, steps):
    return compress.prune_filters(network, 0.5), []


def shared(network, data, steps):
    return compress.cluster(network, 16), []


def aware(network, data, steps, bits=8):
    return compress.quantize_aware(network, data.x_train, weights=bits), []


@dataclasses.dataclass(frozen=True)
class Way:
    """Stages, each trained before the next; the form of the file; who teaches."""

    stages: tuple[Callable, ...] = ()
    quantize: str | None = None
    teacher: bool = True


WAYS = {
    STUDENT: Way(),
    LONGER: Way((same,)),
    "int8 afterwards": Way(quantize="int8"),
    "int8, trained": Way((aware,), "int8"),
    "4-bit weights": Way((functools.partial(aware, bits=4),), "int8"),
    "75 % pruned": Way((pruned,)),
    "16 values": Way((shared,)),
    NARROW: Way((narrower,)),
    CONTROL: Way((narrower,), teacher=False),
    "pruned, 16 values, int8": Way((pruned, shared, aware), "int8"),
}


# Training and files -------------------------------------------------------------------------


def train(network, data, seed, epochs, rate, teacher=None, callbacks=()):
    """From labels, or with 0.9 T²KL(T=4) from a teacher and 0.1 labels."""
    batches = kd.data.ArrayPipeline(
        data.x_train, data.y_train, batch_size=BATCH, seed=seed, drop_remainder=True
    )
    model = network if teacher is None else kd.Distiller(student=network, teacher=teacher)
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, steps_per_execution=len(batches))
    follow = kd.data.FollowEpochs(batches)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[follow, *callbacks])
    # Running averages don't follow so few steps. Does nothing where they have been folded.
    compress.recalibrate_batchnorm(network, data.x_train)


def rate_of(network):
    """Folded batch normalisation leaves kernels of another scale, which need smaller steps."""
    kinds = {type(layer) for layer in network.layers}
    return 1e-2 if keras.layers.BatchNormalization in kinds else 1e-3


def smaller(way, student, teacher, data, seed, epochs):
    """The student after all stages of a way, which share the epochs."""
    network, share = student, max(1, epochs // max(1, len(way.stages)))
    for stage in way.stages:
        network, callbacks = stage(network, data, share * (len(data.x_train) // BATCH))
        taught_by = teacher if way.teacher else None
        train(network, data, seed, share, rate_of(network), taught_by, callbacks)
    return network


def accuracy(path, x, y):
    return float(np.mean(kd.export.LiteRTModel(path).predict(x).argmax(axis=-1) == y))


def networks(data, seed, epochs):
    """The teacher, then the student distilled from it."""
    both = {
        name: kd.models.convnet(data.input_shape, data.num_classes, filters=filters, seed=seed)
        for name, filters in FILTERS.items()
    }
    train(both[TEACHER], data, seed, epochs, 3e-3)
    train(both[STUDENT], data, seed, epochs, 1e-2, both[TEACHER])
    return both[TEACHER], both[STUDENT]


def run_seed(seed, options, advance):
    """Rows of the files of one seed, and the table of `kd.compare` that they come from."""
    data, folder = kd.data.load_digits(seed=seed), options.out / f"seed{seed}"
    folder.mkdir(exist_ok=True)
    keras.utils.set_random_seed(seed)
    teacher, student = networks(data, seed, options.epochs)
    files = {}
    for name, way in WAYS.items():
        network = smaller(way, student, teacher, data, seed, options.epochs)
        files[name] = folder / f"{name.replace(' %', '').replace(',', '').replace(' ', '-')}.tflite"
        kd.export.litert(
            network,
            files[name],
            quantize=way.quantize,
            representative_data=data.x_train,
            check_data=data.x_val,
            overwrite=True,
        )
        advance()
    candidates = {TEACHER: teacher, **files}
    # Time and memory are the same for all seeds.
    table = kd.compare(candidates, data.x_test, data.y_test, latency=seed == 0)
    rows = [{"seed": seed} | {key: row[key] for key in KEYS} for row in table.rows]
    for row in rows:
        path = files.get(row["model"])
        row["val_accuracy"] = path and accuracy(path, data.x_val, data.y_val)
    return rows, table


def run(options, progress):
    rows, first = [], None
    bar = progress.add_task("", total=options.seeds * len(WAYS))
    for seed in range(options.seeds):
        progress.update(bar, description=f"seed {seed + 1} of {options.seeds}")
        new, table = run_seed(seed, options, lambda: progress.advance(bar))
        rows, first = rows + new, first or table
    return rows, first


# Tables and pictures ------------------------------------------------------------------------


def column(rows, name, key):
    return [row[key] for row in rows if row["model"] == name]


def points(numbers):
    mean, sd = evaluation.summary([100 * number for number in numbers])
    return f"{mean:.2f}" + (f" ± {sd:.2f}" if len(numbers) > 1 else "")


def table_of(rows, times):
    table = Table("", title="digits, test part, the .tflite files: mean ± sd over seeds")
    for heading in ("accuracy %", "as the teacher %", "bytes", "bytes, gzip", "µs, seed 0"):
        table.add_column(heading, justify="right")
    for name in (TEACHER, *WAYS):
        table.add_row(
            name,
            points(column(rows, name, "test_accuracy")),
            points(column(rows, name, "agreement")),
            *(f"{np.mean(column(rows, name, key)):,.0f}" for key in ("bytes", "gzip_bytes")),
            f"{1000 * times[name]['latency_ms']:.1f}",
        )
    return table


def won_back(rows):
    """What half of the filters cost, from labels and with the teacher."""
    start, labels, taught = (
        100 * np.array(column(rows, name, "test_accuracy")) for name in (LONGER, CONTROL, NARROW)
    )
    text = (
        f"Half of the filters: {np.mean(labels - start):+.2f} points from labels, "
        f"{np.mean(taught - start):+.2f} with the teacher, against '{LONGER}'"
    )
    if len(start) > 1:
        test = evaluation.compare(taught, labels)
        interval = f"{test.low:+.2f} to {test.high:+.2f}"
        text += f"; the teacher's part is {test.mean_difference:+.2f} ({interval})"
    return text + "."


def to_ship(rows):
    """The smallest file after gzip that loses little on the validation part."""

    def mean(name, key):
        return np.mean(column(rows, name, key))

    least = mean(STUDENT, "val_accuracy") - LOSS_ALLOWED / 100
    good = [name for name in WAYS if mean(name, "val_accuracy") >= least]
    name = min(good, key=lambda name: mean(name, "gzip_bytes"))
    return (
        f"The smallest that loses at most {LOSS_ALLOWED:g} point on the validation part: '{name}', "
        f"{mean(name, 'gzip_bytes'):,.0f} bytes after gzip instead of "
        f"{mean(STUDENT, 'gzip_bytes'):,.0f}, test accuracy "
        f"{points(column(rows, name, 'test_accuracy'))} instead of "
        f"{points(column(rows, STUDENT, 'test_accuracy'))} %."
    )


def draw(rows, times, folder):
    """Mean accuracy against size, size after gzip, and time, without teacher and control."""
    averaged = ("test_accuracy", "bytes", "gzip_bytes")
    means = [
        times[name] | {key: float(np.mean(column(rows, name, key))) for key in averaged}
        for name in WAYS
        if name != CONTROL
    ]
    for key in ("bytes", "gzip_bytes", "latency_ms"):
        figure = evaluation.plot_tradeoff(means, x=key)
        figure.axes[0].margins(x=0.45)  # room for the names
        figure.savefig(folder / f"{key}.png", dpi=150)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many times, default 3")
    parser.add_argument("--epochs", type=int, default=40, help="of each training, default 40")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/compressed"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with Progress(console=console) as progress:
        rows, table = run(options, progress)
    evaluation.write_csv(rows, options.out / "compression.csv", overwrite=True)
    table.write_csv(options.out / "seed0.csv", overwrite=True)
    table.write_html(options.out / "seed0.html", overwrite=True, title="Seed 0, test part")
    times = {row["model"]: row for row in table.rows}
    draw(rows, times, options.out)
    console.print(table_of(rows, times))
    console.print(str(table), won_back(rows), to_ship(rows), sep="\n\n", soft_wrap=True)
    console.print(f"The page, the pictures and the files are in {options.out}.")


if __name__ == "__main__":
    main()
