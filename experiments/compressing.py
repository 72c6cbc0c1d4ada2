"""Compression with and without a teacher: what is lost, and what the teacher wins back.

    python experiments/compressing.py digits          # a first look, without a download
    python experiments/compressing.py superclasses    # CIFAR-100's 20 groups, 16x16: an hour
    python experiments/compressing.py cifar100        # ResNet-56 to ResNet-20: days

A network is trained from labels, then compressed in one way, and trained on for a few epochs: once
from labels alone ("labels"), once with Hinton's distillation at T = 4 ("teacher"), 0.9 of it to 0.1
of the labels. All ways start from the same network and see the same images in the same order. So
that what further training alone does isn't taken for a merit, "float, trained on" is one of the
ways. Every row ends in a `.tflite` file; accuracy is the file's, on the test part, of the last
epoch. "float" and what is only rounded afterwards ("PTQ") aren't trained on.

    won back = (teacher - labels) / (float - labels)

in accuracy, where compressing with labels alone has lost anything.

Interrupted, the same command goes on: each run is a file in `--runs`. `--no-report` only trains.
CIFAR-100 comes from TensorFlow Datasets (`TFDS_DATA_DIR` says where it lies).
"""

import argparse
import dataclasses
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable

import compressing_report
import keras
import losses

import kdtoolkit as kd
from kdtoolkit.files import draft_of

PRESETS = {
    "digits": {
        **losses.PRESETS["digits"],
        "student": "resnet8-8",
        "max_train": None,
        "tune_epochs": 30,
        "tune_rate": 3e-3,
    },
    "superclasses": {
        **losses.PRESETS["superclasses"],
        "student": "resnet8-16",
        "max_train": 4800,
        "tune_epochs": 5,
        "tune_rate": 1e-3,
    },
    "cifar100": {**losses.PRESETS["cifar100"], "tune_epochs": 40, "tune_rate": 1e-3},
}


# Ways to compress ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Way:
    """How a network is compressed.

    Attributes:
        stages: functions `(network, data)` that give the next network to train on; the epochs are
            shared among them.
        sparsity: what `GradualPruning` goes to in the first stage, None without.
        export: arguments of `kd.export.litert`.
        taught: whether it is trained on, with a teacher and without.
    """

    name: str
    stages: tuple[Callable, ...] = (lambda network, data: network,)
    sparsity: float | None = None
    export: dict = dataclasses.field(default_factory=dict)
    taught: bool = True


def masked(network, data):
    return kd.compress.prune(network, 0)


def shared(network, data):
    return kd.compress.cluster(network, 16)


def aware(network, data, bits=8):
    return kd.compress.quantize_aware(network, data.x_train[:512], weights=bits)


def aware4(network, data):
    return aware(network, data, 4)


def narrower(network, data):
    return kd.compress.prune_filters(network, 0.5)


INT8 = {"quantize": "int8"}
WAYS = [
    Way("float", taught=False),
    Way("PTQ int8", export=INT8, taught=False),
    Way("PTQ 4-bit weights", export={"quantize": "weight_only_int4"}, taught=False),
    Way("float, trained on"),
    Way("QAT int8", (aware,), export=INT8),
    Way("QAT 4-bit weights", (aware4,), export=INT8),
    *(Way(f"pruned {s:.0%}", (masked,), s) for s in (0.5, 0.75, 0.9)),
    Way("16 clusters", (shared,)),
    Way("pruned 75%, 16 clusters, QAT int8", (masked, shared, aware), 0.75, INT8),
    Way("half the filters", (narrower,)),
]


@dataclasses.dataclass(frozen=True)
class Method:
    name: str
    way: Way
    teacher: bool


METHODS = [
    Method(way.name if not way.taught else f"{way.name}: {by}", way, by == "teacher")
    for way in WAYS
    for by in (("labels", "teacher") if way.taught else ("alone",))
]


# One run ------------------------------------------------------------------------------------


def base_of(options, data, seed):
    """The network that all ways start from, trained from labels on its first use."""
    path = options.runs / f"compression-{options.data}" / f"base-{seed}.keras"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.utils.set_random_seed(seed)
        network = losses.network(options.student, data, options, seed)
        fit(options, network, data, seed, options.epochs, functools.partial(sgd, options))
        with draft_of(path, True) as draft:
            network.save(draft)
    return keras.models.load_model(path)


def sgd(options, steps):
    """A network's own training, as in `losses.py`."""
    rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)


def fit(options, network, data, seed, epochs, optimizer, teacher=None, callbacks=()):
    batches = losses.pipeline(data, options, seed, example_ids=False)
    soft = [kd.Transfer(kd.losses.SoftTargets(4.0), weight=0.9)] if teacher else []
    distiller = kd.Distiller(
        student=network, teacher=teacher, transfers=soft, label_weight=0.1 if teacher else 1.0
    )
    distiller.compile(
        optimizer(epochs * len(batches)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=min(10, len(batches)),
    )
    follow = kd.data.FollowEpochs(batches)
    distiller.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[follow, *callbacks])
    return len(batches)


def tuned(options, method, network, data, seed, teacher):
    """The network after all stages of a way."""

    def adam(steps):
        # Networks without batch normalisation have gradients of another scale; Adam doesn't mind.
        return keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(options.tune_rate, steps)
        )

    stages = method.way.stages
    for index, stage in enumerate(stages):
        network = stage(network, data)
        left = options.tune_epochs * (index + 1) // len(stages)
        epochs = left - options.tune_epochs * index // len(stages)
        callbacks = []
        if index == 0 and method.way.sparsity:
            steps = epochs * (len(data.x_train) // options.batch)
            callbacks = [
                kd.compress.GradualPruning(
                    network, method.way.sparsity, end_step=max(2 * steps // 3, 1), every=10
                )
            ]
        fit(options, network, data, seed, epochs, adam, teacher, callbacks)
        # Running averages don't follow so few steps; nothing happens where none are left.
        kd.compress.recalibrate_batchnorm(network, data.x_train, batches=30)
    return network


def run(options, method, seed, teacher):
    data = losses.load(options, seed, options.max_train)
    network = base_of(options, data, seed)
    started = time.process_time()
    if method.way.taught:
        keras.utils.set_random_seed(seed)
        network = tuned(options, method, network, data, seed, teacher if method.teacher else None)
    seconds = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "network.tflite"
        export = dict(method.way.export)
        if export == INT8 and "QAT" not in method.name:
            export["representative_data"] = data.x_train[:512]
        report = kd.export.litert(
            network, path, check_data=data.x_val, tolerance=float("inf"), **export
        )
        file = kd.export.LiteRTModel(path)
        timing = kd.export.latency(path, runs=100)
        return {
            "method": method.name,
            "way": method.way.name,
            "teacher": method.teacher,
            "seed": seed,
            "test_accuracy": float((file.predict(data.x_test).argmax(-1) == data.y_test).mean()),
            "val_accuracy": float((file.predict(data.x_val).argmax(-1) == data.y_val).mean()),
            "agreement": report.agreement,
            "bytes": report.bytes,
            "gzip_bytes": report.gzip_bytes,
            "latency_ms": timing.median_ms,
            "cpu_seconds": seconds,
        }


def path_of(options, method, seed):
    name = method.name.replace(" ", "_").replace(",", "").replace("%", "").replace(":", "")
    return options.runs / f"compression-{options.data}" / f"{name}-{seed}.json"


def main(arguments=None):
    options = parse(arguments)
    teacher = losses.teacher_of(options)
    losses.train_all(options, path_of, lambda method, seed: run(options, method, seed, teacher))
    if options.report:
        compressing_report.write(options, losses.rows_of(options, path_of))


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=PRESETS)
    numbers = ("seeds", "size", "teacher-train", "teacher-epochs", "max-train", "epochs", "batch")
    for name in (*numbers, "tune-epochs"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("learning-rate", "tune-rate"):
        parser.add_argument(f"--{name}", type=float)
    for name in ("teacher", "student"):
        parser.add_argument(f"--{name}", help="resnet<depth>-<width> or convnet-<filters>-...")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="names of rows")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--no-report", dest="report", action="store_false")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results"))
    options = losses.over_preset(parser.parse_args(arguments), PRESETS)
    known = [way.name for way in WAYS]
    unknown = set(options["ways"] or ()) - set(known)
    if unknown:
        parser.error(f"unknown ways {sorted(unknown)}, expected some of {known}")
    wanted = {"float", *(options.pop("ways") or known)}
    options["methods"] = [method for method in METHODS if method.way.name in wanted]
    return argparse.Namespace(**options)


if __name__ == "__main__":
    main()
