"""Quickstart: a small network learns from a large one and ends as an int8 file for a phone.

    python examples/quickstart.py            # about 3 minutes on 2 cores, no download
    python examples/quickstart.py --seeds 10
    python examples/quickstart.py --views 9   # the large network speaks once about nine views

The data are scikit-learn's handwritten digits: 8x8 pixels, 10 classes. Labels are scarce, as they
often are: only 150 training images have one, the other 570 or so don't. For each seed (another
split, other initial weights) a large convnet learns from the labels. A small one learns from the
labels alone; a copy of it learns from the large one as well; and another copy learns from the large
one what it thinks of all images, with no label at all. The last one is exported four ways; each
file is run, compared with Keras and timed.

It ends in one table and one picture, `out/quickstart/quickstart.png`. The table shows
the test part, after the last step; all networks take the same number of steps. The small network's
rate was chosen on the validation part of other seeds, and so was the setting of few labels, because
it leaves something to gain. The sizes and the large network's rate are first guesses.
"""

import argparse
import dataclasses
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

import kdtoolkit as kd  # noqa: E402

LABELS = 150
FILES = {"float32": None, "float16": "float16", "dynamic int8": "dynamic", "full int8": "int8"}


@dataclasses.dataclass
class Row:
    """One line of the table: a network, or a file made of it, over all seeds."""

    name: str
    parameters: int
    accuracies: list
    bytes: int | None = None
    milliseconds: list = dataclasses.field(default_factory=list)


def large(data, seed):
    return kd.models.convnet(data.input_shape, 10, filters=(32, 64, 128), dropout=0.2, seed=seed)


def small(data, seed):
    return kd.models.convnet(data.input_shape, 10, filters=(4, 8, 16), seed=seed)


def shifted(x, y, seed, views=None):
    """Batches of shifted digits; with `views` each digit is shifted in so many ways and no more."""
    augment = kd.data.FlipShift(flip=False, shift=1, fill="constant")
    return kd.data.ArrayPipeline(x, y, batch_size=64, augment=augment, seed=seed, views=views)


def train(model, batches, *, rate, steps):
    """Fit a network or a distiller with a cosine learning rate."""
    epochs = round(steps / len(batches))
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
    label_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss=None if batches.y is None else label_loss)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0)


def distil(student, teacher, batches, **settings):
    """The same training with the large network beside it: 0.9 T²KL(T=4) + 0.1 labels, if any."""
    with tempfile.TemporaryDirectory() as folder:
        if batches.views is not None:
            teacher = kd.cache_teacher(teacher, batches, f"{folder}/cache", verbose=0)
        distiller = kd.Distiller(student=student, teacher=teacher)
        train(distiller, batches, **settings)
    return distiller.student


def trained(data, seed, steps, views):
    """The networks of one seed, as pairs `(name, model)`, one after the other."""
    rows = kd.data.choose(data.y_train, LABELS, seed)
    labelled = data.x_train[rows], data.y_train[rows], seed
    teacher = large(data, seed=1000 + seed)
    train(teacher, shifted(*labelled), rate=3e-3, steps=steps)
    yield "large network", teacher
    student = small(data, seed)
    train(student, shifted(*labelled), rate=3e-2, steps=steps)
    yield "small, alone", student
    settings = {"rate": 3e-2, "steps": steps}
    student = distil(small(data, seed), teacher, shifted(*labelled, views), **settings)
    yield "small, distilled", student
    unlabelled = data.x_train, None, seed
    student = distil(small(data, seed), teacher, shifted(*unlabelled, views), **settings)
    yield "small, distilled on all images", student


def accuracy(network, data):
    """Share of the test digits that are read right, by a Keras model or a `.tflite` file."""
    if isinstance(network, keras.Model):
        logits = keras.ops.convert_to_numpy(network(data.x_test, training=False))
    else:
        logits = network.predict(data.x_test)
    return float(np.mean(np.argmax(logits, axis=-1) == data.y_test))


def export(student, data, folder, seed):
    """Write the four files; returns `{name: (report, test accuracy)}`."""
    results = {}
    for name, mode in FILES.items():
        path = folder / f"student-{seed}-{name.replace(' ', '-')}.tflite"
        report = kd.export.litert(
            student,
            path,
            quantize=mode,
            representative_data=data.x_train,
            check_data=data.x_val,
            measure_latency=True,
            overwrite=True,
        )
        results[name] = report, accuracy(kd.export.LiteRTModel(path), data)
    return results


def run(seeds, steps, views, folder, progress):
    """Train and export for every seed; returns the rows of the table."""
    rows = {}
    bar = progress.add_task("large network", total=seeds * (4 + len(FILES)))

    def add(name, parameters, found, report=None):
        row = rows.setdefault(name, Row(name, parameters, []))
        row.accuracies.append(found)
        if report is not None:
            row.bytes = report.bytes
            row.milliseconds.append(report.latency.median_ms)
        progress.update(bar, advance=1, description=f"seed {seed + 1} of {seeds}: {name}")

    for seed in range(seeds):
        data = kd.data.load_digits(seed=seed, test_fraction=0.5, val_fraction=0.1)
        for name, model in trained(data, seed, steps, views):
            add(name, model.count_params(), accuracy(model, data))
        for name, (report, found) in export(model, data, folder, seed).items():
            add(f"  {name} file", report.parameters, found, report)
    return list(rows.values())


def table_of(rows):
    table = Table(title=f"scikit-learn digits, {LABELS} labels: test accuracy after the last step")
    for heading in ("network", "accuracy % (mean ± sd)", "parameters", "bytes", "ms per image"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for row in rows:
        percent = 100 * np.array(row.accuracies)
        spread = f" ± {percent.std(ddof=1):.2f}" if len(percent) > 1 else ""
        table.add_row(
            row.name,
            f"{percent.mean():.2f}{spread}",
            f"{row.parameters:,}",
            f"{row.bytes:,}" if row.bytes else "",
            f"{np.median(row.milliseconds):.3f}" if row.milliseconds else "",
        )
    return table


def draw(rows, path):
    """Accuracy of every seed on the left, size of every file on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1.2, 1))
    networks, files = [*rows[:4], rows[-1]], rows[4:]
    colours = ["#5b6b7b", "#c98a2b", "#7a9bc0", "#2b7bba", "#1d9a6c"]
    labels = [
        "large",
        "small,\nalone",
        "small,\ndistilled",
        "distilled on\nall images",
        "as int8\nfile",
    ]
    for place, (row, colour) in enumerate(zip(networks, colours, strict=True)):
        percent = 100 * np.array(row.accuracies)
        spots = place + np.linspace(-0.12, 0.12, len(percent))
        left.scatter(spots, percent, color=colour, alpha=0.6, s=28, zorder=3)
        left.hlines(percent.mean(), place - 0.28, place + 0.28, color=colour, lw=3, zorder=4)
        left.annotate(
            f"{percent.mean():.1f}", (place + 0.31, percent.mean()), va="center", color=colour
        )
    left.set_xticks(range(5), labels)
    left.set_xlim(-0.5, 4.8)
    left.set_ylabel("test accuracy (%), one dot per seed")
    left.set_title(f"{networks[0].parameters:,} → {networks[1].parameters:,} parameters")
    left.grid(axis="y", alpha=0.3)
    sizes = [row.bytes / 1024 for row in files]
    names = [row.name.strip().removesuffix(" file") for row in files]
    bars = right.barh(names[::-1], sizes[::-1], color="#1d9a6c", height=0.55)
    times = [
        f" {s:.1f} kB, {1000 * np.median(r.milliseconds):.0f} µs"
        for s, r in zip(sizes, files, strict=True)
    ]
    right.bar_label(bars, labels=times[::-1])
    right.set_xlim(0, 1.45 * max(sizes))
    right.set_xlabel("file size (kB), and time per image on this processor")
    right.set_title("the same network as a .tflite file")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many times, default 3")
    parser.add_argument("--steps", type=int, default=480, help="steps of each training")
    parser.add_argument("--views", type=int, help="cache the large network for so many views")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/quickstart"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with Progress(console=console) as progress:
        rows = run(options.seeds, options.steps, options.views, options.out, progress)
    console.print(table_of(rows))
    draw(rows, options.out / "quickstart.png")
    console.print(f"The picture is in {options.out / 'quickstart.png'}, the files are beside it.")


if __name__ == "__main__":
    main()
