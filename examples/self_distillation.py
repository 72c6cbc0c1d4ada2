"""Self-distillation: a network learns from what it said itself in its best epoch so far.

    python examples/self_distillation.py           # about 2 minutes on 2 cores, no download
    python examples/self_distillation.py --seeds 10

The data are scikit-learn's handwritten digits, 8x8 pixels, and 30 % of the training labels are
wrong on purpose: a network that only imitates its labels learns the mistakes too. For each seed
(another split, other initial weights) three networks start from the same weights and see the same
batches:

- the plain one learns from the labels;
- the self-distilled one learns from the labels and, half and half, from its own outputs of the
  epoch with the best validation accuracy so far. They cost no forward pass of their own, because
  they were collected while that epoch trained;
- a relative of it, PS-KD, learns from its outputs of the epoch before, whatever its score, and the
  share of these outputs rises from epoch to epoch.

All three go back to their best weights with a lower learning rate where validation doesn't improve,
and end where that doesn't help. The share of PS-KD is laid out for `--epochs`, so it doesn't rise
to its end where training ends early.

It ends in one table, one picture, `out/self_distillation/self_distillation.png`, which shows when
the past self took over as the teacher, and a `.tflite` file in int8 of the first seed's
self-distilled network. The table shows the test part; its seconds are those of `fit`, with tracing
and validation.

Sources: Takagi and Hattori, IPSJ 81st National Convention (2019), 4U-02. PS-KD: Kim et al., ICCV
2021, arXiv:2006.12000.
"""

import argparse
import dataclasses
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

import kdtoolkit as kd  # noqa: E402

PLAIN, SELF, RELATIVE = "plain", "self-distilled", "PS-KD"
COLOURS = {PLAIN: "#5b6b7b", SELF: "#1d9a6c"}

# Chosen by the plain network's validation accuracy on other seeds, out of 0.01, 0.03 and 0.1.
RATE = 0.03


@dataclasses.dataclass
class Training:
    """What became of one network. It has the weights of its best validation epoch."""

    student: keras.Model
    history: dict
    best: float
    last: float
    seconds: float


def entrants(data, seed, epochs):
    """For each network of one seed: name, what is fitted, and the callbacks that make it learn."""

    def student():
        shape, classes = data.input_shape, data.num_classes
        return kd.models.mlp(shape, classes, units=(128, 128), weight_decay=1e-4, seed=seed)

    yield PLAIN, student(), []
    yield SELF, kd.SelfDistiller(student=student()), [kd.callbacks.BestTeacher()]
    relative = kd.SelfDistiller(student=student(), teacher_share=0.0)
    rise = kd.callbacks.Schedule(
        relative, "teacher_share", lambda epoch: 0.8 * (epoch + 1) / epochs
    )
    yield RELATIVE, relative, [kd.callbacks.PeriodicTeacher(), rise]


def train(model, data, callbacks, seed, epochs):
    """Fit a network or a distiller; both are compiled and fitted alike."""
    distils = isinstance(model, kd.Distiller)
    batches = kd.data.ArrayPipeline(
        data.x_train,
        data.y_train,
        batch_size=50,
        augment=kd.data.FlipShift(flip=False, shift=1),
        seed=seed,
        example_ids=distils,  # by which a memory finds what it holds of each example
    )
    student = model.student if distils else model
    rewind = kd.callbacks.RewindOnPlateau(patience=10, min_lr=0.001, stop_patience=20)
    model.compile(
        keras.optimizers.SGD(RATE, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=10,  # much faster, where steps are as short as here
    )
    started = time.perf_counter()
    history = model.fit(
        batches,
        epochs=epochs,
        shuffle=False,
        validation_data=(data.x_val, data.y_val),
        validation_batch_size=len(data.x_val),
        callbacks=[kd.data.FollowEpochs(batches), *callbacks, rewind],
        verbose=0,
    )
    seconds = time.perf_counter() - started
    rewind.put(rewind.last_weights())
    last = accuracy(student, data)
    rewind.put(rewind.best_weights())
    return Training(student, history.history, accuracy(student, data), last, seconds)


def accuracy(network, data):
    """Share of the test digits that are read right, by a Keras model or a `.tflite` file."""
    if isinstance(network, keras.Model):
        logits = keras.ops.convert_to_numpy(network(data.x_test, training=False))
    else:
        logits = network.predict(data.x_test)
    return float(np.mean(np.argmax(logits, axis=-1) == data.y_test))


def load(seed):
    return kd.data.load_digits(seed=seed, label_noise=0.3)


def run(seeds, epochs, progress):
    """Train all networks of all seeds; returns `{name: [Training of each seed]}`."""
    trainings = {PLAIN: [], SELF: [], RELATIVE: []}
    bar = progress.add_task("", total=seeds * len(trainings))
    for seed in range(seeds):
        data = load(seed)
        for name, model, callbacks in entrants(data, seed, epochs):
            progress.update(bar, description=f"seed {seed + 1} of {seeds}: {name}")
            trainings[name].append(train(model, data, callbacks, seed, epochs))
            progress.advance(bar)
    return trainings


def table_of(trainings):
    table = Table("network", title="digits, 30 % wrong labels: mean ± sd over seeds")
    for heading in ("test %, best epoch", "test %, last epoch", "epochs", "seconds"):
        table.add_column(heading, justify="right")
    for name, found in trainings.items():
        table.add_row(
            name,
            shown([100 * training.best for training in found], 2),
            shown([100 * training.last for training in found], 2),
            shown([len(training.history["val_accuracy"]) for training in found], 1),
            shown([training.seconds for training in found], 1),
        )
    return table


def shown(values, digits):
    mean, sd = kd.evaluation.summary(values)
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if len(values) > 1 else "")


def draw(trainings, path):
    """Validation accuracy and learning rate of the first seed, with what happened when."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for name, colour in COLOURS.items():
        history = trainings[name][0].history
        epochs = 1 + np.arange(len(history["val_accuracy"]))
        percent = 100 * np.array(history["val_accuracy"])
        top.plot(epochs, percent, color=colour, label=name)
        rewound = np.array(history["rewound"]) > 0
        label = f"{name}: back to its best weights"
        top.scatter(
            epochs[rewound], percent[rewound], marker="v", s=60, color=colour, label=label, zorder=3
        )
        bottom.step(epochs, history["learning_rate"], where="mid", color=colour)
        if name == SELF:
            taught = np.array(history["teacher_updated"]) > 0
            label = f"{name}: this epoch becomes the teacher"
            style = {"marker": "o", "s": 40, "facecolor": "white", "edgecolor": colour}
            top.scatter(epochs[taught], percent[taught], **style, label=label, zorder=3)
    top.set_ylabel("validation accuracy (%)")
    top.set_title("digits with 30 % wrong labels, first seed")
    top.legend(frameon=False, loc="lower right")
    bottom.set_yscale("log")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("epoch")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    for axis in (top, bottom):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def export(training, data, path):
    """Write the network as an int8 file; returns a line about it."""
    report = kd.export.litert(
        training.student,
        path,
        quantize="int8",
        representative_data=data.x_train,
        check_data=data.x_val,
        overwrite=True,
    )
    found = accuracy(kd.export.LiteRTModel(path), data)
    return (
        f"{path}: {report.bytes:,} bytes in int8, test accuracy {100 * found:.2f} % "
        f"(in Keras {100 * training.best:.2f} %)"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many times, default 3")
    parser.add_argument("--epochs", type=int, default=100, help="at most, default 100")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/self_distillation"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with Progress(console=console) as progress:
        trainings = run(options.seeds, options.epochs, progress)
    console.print(table_of(trainings))
    picture = options.out / "self_distillation.png"
    draw(trainings, picture)
    line = export(trainings[SELF][0], load(seed=0), options.out / "student.tflite")
    console.print(line, f"The picture is in {picture}.", sep="\n", soft_wrap=True)


if __name__ == "__main__":
    main()
