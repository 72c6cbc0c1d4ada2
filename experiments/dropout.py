"""Dropout distillation: one deterministic pass against a hundred random ones, and smaller networks.

    python experiments/dropout.py digits          # a first look, without a download
    python experiments/dropout.py superclasses    # CIFAR-100's 20 groups, 16x16: some hours
    python experiments/dropout.py cifar100        # Quick on 32x32, 300 epochs: days

The study is Bulo, Porzi and Kontschieder, 2016. A network is trained with dropout. Then the same
network without dropout, from the same weights, learns the mean of its random passes, without
labels: from the training images, from training images with a fifth of the pixels zeroed, or from
the test images. "squared" has another Bregman divergence, "more images" has images that the first
network never saw. "labels again" is the control: as many further steps without dropout, from
labels, on the training images or, as augmentation, on those with zeroed pixels.

Compression: networks with a share of the units, taken from the hidden dense layer alone or from all
layers, trained from labels with dropout, without, without but on zeroed pixels, and by distilling
the whole network on zeroed pixels.

A seed decides the split, the first weights and the order; all rows share them, so differences are
compared in pairs. All numbers are of the last epoch. Every number of a preset is an argument.
Interrupted, the same command goes on: each run is a file in `--runs`. `--no-report` only trains.

CIFAR-100 comes from TensorFlow Datasets (`TFDS_DATA_DIR` says where it lies).
"""

import argparse
import dataclasses
import pathlib
import time

import dropout_report
import keras
import losses
import numpy as np

import kdtoolkit as kd
from kdtoolkit import evaluation
from kdtoolkit.files import draft_of

PRESETS = {
    "digits": {
        "seeds": 10,
        "size": 8,
        "filters": [],
        "dense": [256, 256],
        "max_train": 300,
        "unlabelled": 400,
        "epochs": 100,
        "distil_epochs": 30,
        "batch": 50,
        "dropout": 0.5,
        "conv_dropout": 0.0,
        "learning_rate": 0.05,
        "weight_decay": 5e-4,
    },
    "superclasses": {
        "seeds": 3,
        "size": 16,
        "filters": [32, 32, 64],
        "dense": [512],
        "max_train": 4000,
        "unlabelled": 10_000,
        "epochs": 50,
        "distil_epochs": 15,
        "batch": 64,
        "dropout": 0.5,
        "conv_dropout": 0.0,
        "learning_rate": 0.01,
        "weight_decay": 5e-4,
    },
    "cifar100": {
        "seeds": 5,
        "size": 32,
        "filters": [32, 32, 64],
        "dense": [64],
        "max_train": None,
        "unlabelled": None,
        "epochs": 300,
        "distil_epochs": 30,
        "batch": 100,
        "dropout": 0.5,
        "conv_dropout": 0.0,
        "learning_rate": 0.05,
        "weight_decay": 5e-4,
    },
}
#: Random passes of the row "monte carlo", and of the mean that KL is measured to.
SAMPLES, REFERENCE_SAMPLES = 100, 400
#: Shares of the units that the small networks keep.
SHARES = (0.5, 0.25, 0.125)


@dataclasses.dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        inputs: what is distilled from: "train", "perturbed", "test" or "more"; or None.
        loss: the Bregman divergence.
        labels: whether it learns from labels instead, of the inputs "train" or "perturbed".
        share, of: the share of the units that are left, of the "dense" layer or of "all" layers.
        dropout: whether a network that learns from labels has dropout.
    """

    name: str
    inputs: str | None = None
    loss: str = "kl"
    labels: bool = False
    share: float = 1.0
    of: str | None = None
    dropout: bool = False


METHODS = [
    Method("standard"),
    Method(f"monte carlo ({SAMPLES})"),
    Method("labels again", labels=True),
    Method("labels again, perturbed train", inputs="perturbed", labels=True),
    Method("distilled, train", inputs="train"),
    Method("distilled, perturbed train", inputs="perturbed"),
    Method("distilled, test", inputs="test"),
    Method("distilled, perturbed train, squared", inputs="perturbed", loss="squared"),
    Method("distilled, more images", inputs="more"),
    *(
        Method(f"{share:g} of {of}: {name}", share=share, of=of, **options)
        for of in ("dense", "all")
        for share in SHARES
        for name, options in (
            ("labels, dropout", {"labels": True, "dropout": True}),
            ("labels", {"labels": True}),
            ("labels, perturbed train", {"labels": True, "inputs": "perturbed"}),
            ("distilled", {"inputs": "perturbed"}),
        )
    ),
]


# Networks and data --------------------------------------------------------------------------


def network(options, method, data, seed, dropout):
    """Quick, or a perceptron where there are no filters, with the share of units that is kept."""
    filters = [thinned(units, method, method.of == "all") for units in options.filters]
    # Of a perceptron "dense" is the last hidden layer.
    hidden = [thinned(units, method, method.of == "all") for units in options.dense[:-1]]
    last = thinned(options.dense[-1], method, method.of is not None)
    settings = {
        "dropout": options.dropout if dropout else 0.0,
        "weight_decay": options.weight_decay if method.labels else 0.0,
        "seed": seed,
    }
    shape, classes = data.x_train.shape[1:], data.num_classes
    if not filters:
        return kd.models.mlp(shape, classes, units=[*hidden, last], **settings)
    settings["conv_dropout"] = options.conv_dropout if dropout else 0.0
    return kd.models.quick(shape, classes, filters=filters, dense=last, **settings)


def thinned(units, method, smaller):
    return max(1, round(method.share * units)) if smaller else units


def images_of(options, method, data, seed):
    if method.inputs == "test":
        return data.x_test
    if method.inputs == "more" and options.unlabelled:
        # Images of the validation part may be among them, without their labels.
        return losses.load(options, seed, options.max_train + options.unlabelled).x_train
    return data.x_train


def pipeline(options, method, data, seed):
    """Batches without labels for what is distilled."""
    perturbed = method.inputs in ("perturbed", "more")
    return kd.data.ArrayPipeline(
        images_of(options, method, data, seed),
        data.y_train if method.labels else None,
        batch_size=options.batch,
        augment=kd.data.ZeroPixels(0.2) if perturbed else None,
        seed=seed,
        drop_remainder=True,
    )


# One run ------------------------------------------------------------------------------------


def train(options, distiller, batches, epochs, rate, labels):
    """Trains with a cosine from `rate` to 0; returns the processor time."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
    distiller.compile(
        keras.optimizers.SGD(schedule, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True) if labels else None,
        steps_per_execution=min(10, len(batches)),
    )
    started = time.process_time()
    follow = [kd.data.FollowEpochs(batches)]
    distiller.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=follow)
    return time.process_time() - started


def folder_of(options):
    return options.runs / f"dropout-{options.data}"


def teacher_of(options, data, seed):
    """The network with dropout of this seed, trained on its first use."""
    path = folder_of(options) / f"teacher-{seed}.keras"
    if path.exists():
        return keras.models.load_model(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    method = Method("teacher", labels=True)
    keras.utils.set_random_seed(seed)
    teacher = network(options, method, data, seed, dropout=True)
    batches = pipeline(options, method, data, seed)
    alone = kd.Distiller(student=teacher, transfers=[])
    train(options, alone, batches, options.epochs, options.learning_rate, labels=True)
    with draft_of(path, True) as draft:
        teacher.save(draft)
    return teacher


def reference_of(options, data, seed, teacher):
    """The mean over many random passes, of the test images; kept in a file."""
    path = folder_of(options) / f"mean-{seed}.npy"
    if not path.exists():
        said = kd.MonteCarloDropout(teacher).predict(
            data.x_test, batch_size=500, samples=REFERENCE_SAMPLES, seed=2 * seed, verbose=0
        )
        with draft_of(path, True) as draft:
            np.save(draft, said.probabilities)
    return np.load(path)


def trained(options, method, data, seed, teacher):
    """The network of a row, and the processor time of its training."""
    keras.utils.set_random_seed(seed)
    own = network(options, method, data, seed + 1, dropout=method.dropout)
    epochs, rate = options.epochs, options.learning_rate
    if method.of is None:
        # It goes on from where dropout training ended, a tenth as fast.
        own.set_weights(teacher.get_weights())
        epochs, rate = options.distil_epochs, rate / 10
    batches = pipeline(options, method, data, seed)
    # As many steps whatever the number of images.
    epochs = max(1, round(epochs * (len(data.x_train) // options.batch) / len(batches)))
    distiller = kd.Distiller(student=own, transfers=[])
    if not method.labels:
        distiller = kd.Distiller(
            student=own,
            teacher=kd.MonteCarloDropout(teacher),
            transfers=[kd.Transfer(kd.losses.BregmanDivergence(method.loss))],
        )
    return own, train(options, distiller, batches, epochs, rate, method.labels)


def run(options, method, seed):
    data = losses.load(options, seed, options.max_train)
    teacher = teacher_of(options, data, seed)
    seconds = 0.0
    if method.name == METHODS[1].name:
        said = kd.MonteCarloDropout(teacher).predict(
            data.x_test, batch_size=500, samples=SAMPLES, seed=2 * seed + 1, verbose=0
        )
        parts = {"test": said.probabilities}
    else:
        own = teacher
        if method.labels or method.inputs:
            own, seconds = trained(options, method, data, seed, teacher)
        parts = {name: probabilities(own, x) for name, x in images(data).items()}
    mean = reference_of(options, data, seed, teacher)
    row = {"method": method.name, "seed": seed, "cpu_seconds": seconds}
    if "val" in parts:
        row["val_accuracy"] = float(np.mean(np.argmax(parts["val"], axis=-1) == data.y_val))
    return row | measures(parts["test"], mean, data.y_test)


def images(data):
    return {"test": data.x_test, "val": data.x_val}


def probabilities(model, x):
    z = model.predict(x, batch_size=500, verbose=0).astype("float64")
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def measures(p, mean, labels):
    """Accuracy, calibration, and the divergence from the mean over random passes, in nats."""
    found = evaluation.calibration(p, labels, from_logits=False)
    logs = [np.log(np.maximum(each, 1e-30)) for each in (mean, p)]
    return {
        "test_accuracy": float(np.mean(np.argmax(p, axis=-1) == labels)),
        **{name: found[name] for name in ("nll", "brier", "ece")},
        "kl_to_mean": float(np.mean(np.sum(mean * (logs[0] - logs[1]), axis=-1))),
    }


def path_of(options, method, seed):
    name = "".join(c if c.isalnum() or c == "." else "_" for c in method.name)
    return folder_of(options) / f"{name}-{seed}.json"


def main(arguments=None):
    options = parse(arguments)
    losses.train_all(options, path_of, lambda method, seed: run(options, method, seed))
    if options.report:
        dropout_report.write(options, losses.rows_of(options, path_of))


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = {method.name: method for method in METHODS}
    parser.add_argument("data", choices=PRESETS)
    parser.add_argument("--methods", nargs="+", choices=known, metavar="METHOD")
    numbers = ("seeds", "size", "max-train", "unlabelled", "epochs", "distil-epochs")
    for name in (*numbers, "batch"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("dropout", "conv-dropout", "learning-rate", "weight-decay"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--filters", type=int, nargs="*", help="three, or none for a perceptron")
    parser.add_argument("--dense", type=int, nargs="+")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--no-report", dest="report", action="store_false")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results"))
    options = losses.over_preset(parser.parse_args(arguments), PRESETS)
    # Without more images their row would be another one under a second name.
    usual = [m.name for m in METHODS if m.inputs != "more" or options["unlabelled"]]
    options["methods"] = [known[name] for name in options["methods"] or usual]
    return argparse.Namespace(**options)


if __name__ == "__main__":
    main()
