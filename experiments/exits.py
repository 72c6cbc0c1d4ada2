"""A network that teaches its own exits, a teacher, and both: five rows and their controls.

    python experiments/exits.py digits          # a first look, without a download
    python experiments/exits.py superclasses    # CIFAR-100's 20 groups, 16x16: about an hour
    python experiments/exits.py cifar100        # ResNet-18, 200 epochs, the study's own size: days

The study is Han Beomseok, 2022: a ResNet-18 on CIFAR-100 alone, taught by one of two teachers, by
itself, and by both. Its taught rows had mixup and its baseline did not, so "baseline + mixup" is a
row here; and exits that learn from labels alone (deep supervision) are one, since most of what own
exits bring may come from there. "function matching" has no labels, and more images without them
where the preset has some. "two views" are two augmentations of each image that teach each other,
for twice the work in a step.

A seed decides the first weights, the images and their order; all methods share them, so differences
are compared in pairs. All numbers are of the last epoch. Every number of a preset is an argument.
Interrupted, the same command goes on: each run is a file in `--runs`. `--no-report` only trains.

CIFAR-100 comes from TensorFlow Datasets (`TFDS_DATA_DIR` says where it lies).
"""

import argparse
import dataclasses
import pathlib
import time

import exits_report
import keras
import losses
import numpy as np

import kdtoolkit as kd

PRESETS = {
    "digits": {
        "seeds": 3,
        "size": 8,
        "teachers": ["convnet-8-16-16", "convnet-16-32-64"],
        "student": "convnet-8-16-16",
        "exits": ["stage1", "stage2"],
        "teacher_train": None,
        "teacher_epochs": 30,
        "max_train": 200,
        "unlabelled": 400,
        "epochs": 60,
        "warmup": 2,
        "batch": 50,
        "mixup": 0.2,
        "learning_rate": 0.1,
        "weight_decay": 5e-4,
    },
    "superclasses": {
        "seeds": 4,
        "size": 16,
        "teachers": ["resnet8-16", "resnet14-16"],
        "student": "resnet8-16",
        "exits": ["stage1", "stage2"],
        "teacher_train": 20_000,
        "teacher_epochs": 20,
        "max_train": 3200,
        "unlabelled": 12_800,
        "epochs": 30,
        "warmup": 2,
        "batch": 64,
        "mixup": 0.2,
        "learning_rate": 0.05,
        "weight_decay": 5e-4,
    },
    "cifar100": {
        "seeds": 3,
        "size": 32,
        "teachers": ["resnet34", "resnet50"],
        "student": "resnet18",
        "exits": ["stage1", "stage2", "stage3"],
        "teacher_train": None,
        "teacher_epochs": 200,
        "max_train": None,
        "unlabelled": None,
        "epochs": 200,
        "warmup": 5,
        "batch": 128,
        "mixup": 0.2,
        "learning_rate": 0.1,
        "weight_decay": 5e-4,
    },
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A row: what teaches the network, and what it sees.

    Attributes:
        exits: a preset of `kd.wirings.own_exits`, or None for a network without exits.
        teacher: which of the two teachers, from 0, or None.
        labels: whether it learns from labels; without, from more images.
        views: whether it reads two augmented views of each image, and whether they teach each
            other: "both" or "labels alone", or None for one view.
    """

    name: str
    mixup: bool = True
    exits: str | None = None
    teacher: int | None = None
    labels: bool = True
    views: str | None = None


METHODS = [
    Method("baseline", mixup=False),
    Method("baseline + mixup"),
    Method("offline, teacher 1", teacher=0),
    Method("offline, teacher 2", teacher=1),
    Method("deep supervision", exits="deep_supervision"),
    Method("self", exits="byot"),
    Method("self, no mixup", mixup=False, exits="byot"),
    Method("offline + self, teacher 1", exits="byot", teacher=0),
    Method("offline + self, teacher 2", exits="byot", teacher=1),
    Method("function matching, teacher 2", teacher=1, labels=False),
    Method("two views, labels alone", mixup=False, views="labels alone"),
    Method("two views", mixup=False, views="both"),
]


# Data ---------------------------------------------------------------------------------------


def load(options, method, seed):
    """The data set, and the images to train on: more where no labels are needed."""
    data = losses.load(options, seed, options.max_train)
    if method.labels or not options.unlabelled:
        return data, data.x_train
    # Images of the validation part may be among them, without their labels.
    more = losses.load(options, seed, options.max_train + options.unlabelled)
    return data, more.x_train


def augmentation(options, seed=None):
    shift = max(1, options.size // 8)
    return kd.data.FlipShift(flip=options.data != "digits", shift=shift, seed=seed)


def pipeline(options, method, data, images, seed):
    return kd.data.ArrayPipeline(
        images,
        data.y_train if method.labels else None,
        batch_size=options.batch,
        num_classes=data.num_classes if method.labels else None,
        # Two views are made in front of the network.
        augment=None if method.views else augmentation(options),
        # Function matching mixes harder, as its authors do.
        mix=kd.data.Mixup(options.mixup if method.labels else 1.0) if method.mixup else None,
        seed=seed,
        drop_remainder=True,
    )


# One run ------------------------------------------------------------------------------------


def teacher_of(options, number):
    name = options.teachers[number]
    path = options.runs / f"exits-{options.data}" / f"teacher-{name}.keras"
    return losses.teacher_of(argparse.Namespace(**{**vars(options), "teacher": name}), path)


def distiller_of(options, method, network, seed):
    """The distiller of a row and the weights of its label losses."""
    if method.views:
        # Half of everything, so that the learning rate means what it does for one view.
        edges = kd.wirings.views(weight=0.5) if method.views == "both" else []
        layers = [augmentation(options, 2 * seed + number) for number in (0, 1)]
        student = kd.two_views(network, *layers)
        return kd.Distiller(student=student, transfers=edges), {"first": 0.5, "second": 0.5}
    teacher = None if method.teacher is None else teacher_of(options, method.teacher)
    if method.exits:
        student = kd.attach_exits(
            network, options.exits, weight_decay=options.weight_decay, seed=seed
        )
        names = [] if teacher is None else ["teacher"]
        edges, weights = kd.wirings.own_exits(student, method.exits, teachers=names)
        return kd.Distiller(student=student, teacher=teacher, transfers=edges), weights
    if teacher is None:
        return kd.Distiller(student=network, transfers=[]), None
    if method.labels:
        return kd.Distiller(student=network, teacher=teacher), None
    edges = [kd.Transfer(kd.losses.SoftTargets(temperature=1.0))]
    return kd.Distiller(student=network, teacher=teacher, transfers=edges), None


def schedule_of(options, steps, epochs):
    """A line up to the learning rate, then a cosine to 0."""
    warmup = round(min(options.warmup / options.epochs, 0.5) * epochs * steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, epochs * steps - warmup, warmup_target=options.learning_rate, warmup_steps=warmup
    )


def run(options, method, seed):
    data, images = load(options, method, seed)
    keras.utils.set_random_seed(seed)
    network = losses.network(options.student, data, options, seed)
    distiller, weights = distiller_of(options, method, network, seed)
    batches = pipeline(options, method, data, images, seed)
    # As many steps whatever the number of images.
    epochs = max(1, round(options.epochs * (len(data.x_train) // options.batch) / len(batches)))
    distiller.compile(
        keras.optimizers.SGD(schedule_of(options, len(batches), epochs), momentum=0.9),
        keras.losses.CategoricalCrossentropy(from_logits=True) if method.labels else None,
        loss_weights=weights,
        steps_per_execution=min(10, len(batches)),
    )
    started = time.process_time()
    follow = [kd.data.FollowEpochs(batches)]
    distiller.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=follow)
    seconds = time.process_time() - started
    row = {"method": method.name, "seed": seed, "cpu_seconds": seconds}
    return row | measures(distiller.student if method.exits else None, network, data)


def measures(student, network, data):
    """Accuracies of the network, of each exit of the student, and of all together."""
    found = {
        "test_accuracy": losses.accuracy(network, data.x_test, data.y_test),
        "val_accuracy": losses.accuracy(network, data.x_val, data.y_val),
    }
    if student is None:
        return found
    said = student.predict(data.x_test, batch_size=500, verbose=0)
    heads = {key: np.mean(np.argmax(z, axis=-1) == data.y_test) for key, z in said.items()}
    found |= {f"{key}_accuracy": float(value) for key, value in heads.items() if key != "last"}
    together = kd.models.mean_output(student)
    return found | {"ensemble_accuracy": losses.accuracy(together, data.x_test, data.y_test)}


def path_of(options, method, seed):
    name = method.name.replace(" ", "_").replace(",", "")
    return options.runs / f"exits-{options.data}" / f"{name}-{seed}.json"


def main(arguments=None):
    options = parse(arguments)
    losses.train_all(options, path_of, lambda method, seed: run(options, method, seed))
    if options.report:
        exits_report.write(options, losses.rows_of(options, path_of))


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = {method.name: method for method in METHODS}
    parser.add_argument("data", choices=PRESETS)
    parser.add_argument("--methods", nargs="+", choices=known, metavar="METHOD")
    numbers = ("seeds", "size", "teacher-train", "teacher-epochs", "max-train", "unlabelled")
    for name in (*numbers, "epochs", "warmup", "batch"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("mixup", "learning-rate", "weight-decay"):
        parser.add_argument(f"--{name}", type=float)
    help_network = "resnet<depth>-<width>, convnet-<filters>-..., or a name in kd.models"
    parser.add_argument("--student", help=help_network)
    parser.add_argument("--teachers", nargs=2, help=help_network)
    parser.add_argument("--exits", nargs="+", help="layers with an exit behind them")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--no-report", dest="report", action="store_false")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results"))
    options = losses.over_preset(parser.parse_args(arguments), PRESETS)
    options["methods"] = [known[name] for name in options["methods"] or known]
    return argparse.Namespace(**options)


if __name__ == "__main__":
    main()
