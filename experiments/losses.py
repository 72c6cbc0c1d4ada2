"""Every loss in turn on one small task: accuracy against the student alone, and time of a step.

    python experiments/losses.py digits          # a first look, without a download
    python experiments/losses.py superclasses    # CIFAR-100's 20 groups, 16x16: 1 to 2 hours
    python experiments/losses.py cifar100        # ResNet-56 to ResNet-20, the usual benchmark: days

A seed decides the student's first weights, its images and their order; all methods share them, so
differences are compared in pairs. The teacher is one network for all, trained once on more images.
Every number of a preset is an argument. Interrupted, the same command goes on: each run is a file
in `--runs`. `--no-report` only trains; `--times` only measures steps and writes their table.

The results are a CSV of all runs, one with a line per method, and a picture. Weights are those of
the papers and of their benchmarks, taken over without a search: another task may want others.

CIFAR-100 comes from TensorFlow Datasets (`TFDS_DATA_DIR` says where it lies).
"""

import argparse
import dataclasses
import json
import pathlib
import time

import keras
import numpy as np
import rich
from loss_methods import METHODS
from rich.table import Table

import kdtoolkit as kd
from kdtoolkit import evaluation
from kdtoolkit.files import draft_of

PRESETS = {
    "digits": {
        "seeds": 3,
        "size": 8,
        "teacher": "convnet-16-32-64",
        "student": "convnet-4-8-8",
        "teacher_train": None,
        "teacher_epochs": 30,
        "max_train": 200,
        "epochs": 60,
        "batch": 50,
        "learning_rate": 0.05,
        "weight_decay": 5e-4,
    },
    "superclasses": {
        "seeds": 3,
        "size": 16,
        "teacher": "resnet14-16",
        "student": "resnet8-8",
        "teacher_train": 20_000,
        "teacher_epochs": 20,
        "max_train": 3200,
        "epochs": 15,
        "batch": 64,
        "learning_rate": 0.05,
        "weight_decay": 5e-4,
    },
    "cifar100": {
        "seeds": 3,
        "size": 32,
        "teacher": "resnet56-16",
        "student": "resnet20-16",
        "teacher_train": None,
        "teacher_epochs": 240,
        "max_train": None,
        "epochs": 240,
        "batch": 64,
        "learning_rate": 0.05,
        "weight_decay": 5e-4,
    },
}
#: Share of the training images that is held out for validation.
HELD_OUT = 0.2


# Data and networks --------------------------------------------------------------------------


def load(options, seed, max_train):
    """A data set whose images have the size of the preset."""
    if options.data == "digits":
        data = kd.data.load_digits(seed=seed, val_fraction=HELD_OUT)
        keep = slice(None, max_train)
        return dataclasses.replace(data, x_train=data.x_train[keep], y_train=data.y_train[keep])
    data = kd.data.load_tfds(
        "cifar100",
        seed=seed,
        superclasses=options.data == "superclasses",
        max_train=max_train,
        val_fraction=HELD_OUT if max_train else 0.1,
    )
    parts = ("x_train", "x_val", "x_test")
    return dataclasses.replace(data, **{p: shrunk(getattr(data, p), options.size) for p in parts})


def shrunk(images, size):
    """Images whose side is averaged down to `size`."""
    factor = images.shape[1] // size
    if factor == 1:
        return images
    cells = images.reshape(len(images), size, factor, size, factor, images.shape[-1])
    return np.ascontiguousarray(cells.mean(axis=(2, 4), dtype="float32"))


def network(name, data, options, seed):
    """`resnet<depth>-<width>`, `convnet-<filters>-...` or a name in `kd.models` like `resnet18`.

    All have the stages `stage1`, ...
    """
    kind, *numbers = name.split("-")
    numbers = [int(number) for number in numbers]
    arguments = {"weight_decay": options.weight_decay, "seed": seed}
    shape, classes = data.x_train.shape[1:], data.num_classes
    if not numbers:
        return getattr(kd.models, kind)(shape, classes, **arguments)
    if kind == "convnet":
        return kd.models.convnet(shape, classes, filters=numbers, **arguments)
    depth = int(kind.removeprefix("resnet"))
    return kd.models.resnet(depth, shape, classes, width=numbers[0], **arguments)


def pipeline(data, options, seed, **settings):
    """Shifted batches with example ids, if nothing else is said."""
    shift = (
        {"flip": False, "shift": 1} if options.data == "digits" else {"shift": options.size // 8}
    )
    return kd.data.ArrayPipeline(
        data.x_train,
        data.y_train,
        batch_size=options.batch,
        augment=kd.data.FlipShift(**shift),
        seed=seed,
        drop_remainder=True,
        **{"example_ids": True, **settings},
    )


class WithoutIds(keras.utils.PyDataset):
    """The same batches for a model that doesn't know what example ids are."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        (inputs, *rest) = self.batches[index]
        return (inputs["inputs"], *rest)


def compiled(model, options, epochs, steps, label_loss=True):
    """SGD with Nesterov momentum, a cosine from the learning rate to 0."""
    rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, epochs * steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if label_loss else None
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        loss,
        metrics=["accuracy"],
        steps_per_execution=min(10, steps),
    )
    return model


def accuracy(model, x, y):
    return float(np.mean(np.argmax(model.predict(x, batch_size=500, verbose=0), axis=-1) == y))


def teacher_of(options, path=None):
    """The teacher in a file, by default the one of all methods; trained on its first use."""
    path = path or options.runs / f"losses-{options.data}" / "teacher.keras"
    if path.exists():
        return keras.models.load_model(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Seed 1000: another split and order than any student's.
    data = load(options, 1000, options.teacher_train)
    keras.utils.set_random_seed(1000)
    teacher = network(options.teacher, data, options, 1000)
    batches = pipeline(data, options, 1000)
    compiled(teacher, options, options.teacher_epochs, len(batches))
    teacher.fit(
        WithoutIds(batches),
        epochs=options.teacher_epochs,
        shuffle=False,
        verbose=2,
        callbacks=[kd.data.FollowEpochs(batches)],
    )
    print(f"teacher: test {100 * accuracy(teacher, data.x_test, data.y_test):.2f} %", flush=True)
    with draft_of(path, True) as draft:
        teacher.save(draft)
    return teacher


# One run ------------------------------------------------------------------------------------


def stages_of(method, data, options, teacher, student):
    """`(distiller, epochs, callbacks, labels)` of each stage; one, unless there is a first one."""
    first = round(method.first_stage * options.epochs)
    parts = [(method.prepare, first, False)] if first else []
    for make, epochs, labels in [*parts, (method.transfers, options.epochs - first, True)]:
        setting = make(data, teacher, epochs)
        distiller = kd.Distiller(
            student=student,
            teacher=setting.teachers,
            transfers=setting.transfers,
            label_weight=setting.label_weight,
        )
        yield distiller, epochs, setting.callbacks, labels


def run(options, method, seed, teacher):
    data = load(options, seed, options.max_train)
    keras.utils.set_random_seed(seed)
    student = network(options.student, data, options, seed)
    batches = pipeline(data, options, seed)
    started, history = time.process_time(), {}
    for distiller, epochs, callbacks, labels in stages_of(method, data, options, teacher, student):
        compiled(distiller, options, epochs, len(batches), labels)
        follow = kd.data.FollowEpochs(batches)
        history = distiller.fit(
            batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[follow, *callbacks]
        ).history
    seconds = time.process_time() - started
    return {
        "method": method.name,
        "seed": seed,
        "test_accuracy": accuracy(student, data.x_test, data.y_test),
        "val_accuracy": accuracy(student, data.x_val, data.y_val),
        "train_accuracy": history["accuracy"][-1],
        "finite": bool(np.all([np.all(np.isfinite(w)) for w in student.get_weights()])),
        "cpu_seconds": seconds,
    }


def path_of(options, method, seed):
    return options.runs / f"losses-{options.data}" / f"{method.name}-{seed}.json"


def train_all(options, path_of, run):
    """Runs `run(method, seed)` for all that `path_of(options, method, seed)` doesn't hold yet."""
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for method in options.methods:
            path = path_of(options, method, seed)
            if path.exists():
                continue
            row = run(method, seed)
            keras.utils.clear_session()
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft_of(path, True) as draft:
                pathlib.Path(draft).write_text(json.dumps(row))
            print(
                f"{method.name}, seed {seed}: test {100 * row['test_accuracy']:.2f} %, "
                f"{row['cpu_seconds']:.0f} s",
                flush=True,
            )


# Time of a step -----------------------------------------------------------------------------


def step_times(options):
    """Processor time of a step as a ratio to the student alone: medians over rounds."""
    teacher, data = teacher_of(options), load(options, 0, options.max_train)
    batches = pipeline(data, options, 0)
    # Of two stages neither is the method's step.
    methods = [method for method in options.methods if not method.first_stage]
    parts = {}
    for method in methods:
        student = network(options.student, data, options, 0)
        *_, (distiller, _, _, labels) = stages_of(method, data, options, teacher, student)
        parts[method.name] = compiled(distiller, options, 1, len(batches), labels)
    rounds = {name: [] for name in parts}
    for turn in range(-1, options.rounds):
        for name, distiller in parts.items():
            started = time.process_time()
            distiller.fit(batches, epochs=1, shuffle=False, verbose=0)
            # The first round traces.
            if turn >= 0:
                rounds[name].append(time.process_time() - started)
        print(f"round {turn + 1} of {options.rounds}", flush=True)
    plain = np.array(rounds["student alone"])
    return {name: float(np.median(np.array(times) / plain)) for name, times in rounds.items()}


# Results ------------------------------------------------------------------------------------


def rows_of(options, path_of=path_of):
    """The rows of all runs that are there."""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    paths = [path_of(options, method, seed) for method in options.methods for seed in seeds]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def lines_of(options, rows, times, against="student alone"):
    """One line per method: mean, deviation, the paired difference to one of the methods."""
    each = {}
    for row in rows:
        each.setdefault(row["method"], {})[row["seed"]] = row["test_accuracy"]
    base, lines = each.get(against, {}), []
    for method in (method for method in options.methods if method.name in each):
        found = each[method.name]
        seeds = sorted(found.keys() & base.keys())
        mean, sd = evaluation.summary([found[seed] for seed in seeds])
        line = {"method": method.name, "seeds": len(seeds), "test_mean": mean, "test_sd": sd}
        difference = {"difference": None, "low": None, "high": None, "p": None}
        if method.name != against and len(seeds) > 1:
            test = evaluation.compare([found[s] for s in seeds], [base[s] for s in seeds])
            difference = {
                "difference": test.mean_difference,
                "low": test.low,
                "high": test.high,
                "p": test.p,
            }
        lines.append({**line, **difference, "p_holm": None, "step_time": times.get(method.name)})
    tested = [line for line in lines if line["p"] is not None]
    corrected = evaluation.holm([line["p"] for line in tested]) if tested else []
    for line, p in zip(tested, corrected, strict=True):
        line["p_holm"] = float(p)
    return lines


def table_of(lines, title):
    table = Table("Method", "Test (%)", "Difference, 95 %", "p (Holm)", "Step", title=title)
    for line in lines:
        cells = [line["method"], f"{100 * line['test_mean']:.2f} ± {100 * line['test_sd']:.2f}"]
        if line["difference"] is None:
            cells += ["", ""]
        else:
            low, high = 100 * line["low"], 100 * line["high"]
            cells += [f"{100 * line['difference']:+.2f} ({low:+.2f} to {high:+.2f})"]
            cells += [f"{line['p']:.3f} ({line['p_holm']:.3f})"]
        table.add_row(*cells, "" if line["step_time"] is None else f"{line['step_time']:.2f}")
    return table


def figure(lines, path, title, against="the student alone"):
    from matplotlib.figure import Figure

    drawn = [line for line in lines if line["difference"] is not None]
    drawn.sort(key=lambda line: line["difference"])
    picture = Figure(figsize=(7, 0.6 + 0.26 * len(drawn)), layout="constrained")
    axis = picture.subplots()
    for place, line in enumerate(drawn):
        axis.plot([100 * line["low"], 100 * line["high"]], [place, place], color="0.6", zorder=1)
        axis.scatter(100 * line["difference"], place, color="tab:blue", zorder=2)
    axis.axvline(0, color="0.3", linewidth=1)
    axis.set_yticks(range(len(drawn)), [line["method"] for line in drawn])
    axis.set_xlabel(f"test accuracy minus {against} (points), 95 % interval")
    axis.set_title(title)
    with draft_of(path, True) as draft:
        picture.savefig(draft, dpi=110)


def report(options):
    start = options.out / f"losses_{options.data}"
    times_file = options.runs / f"losses-{options.data}" / "step-times.json"
    times = json.loads(times_file.read_text()) if times_file.exists() else {}
    rows = rows_of(options)
    if not rows:
        raise SystemExit(f"No run in {options.runs} yet: run it without --times first.")
    lines = lines_of(options, rows, times)
    options.out.mkdir(parents=True, exist_ok=True)
    evaluation.write_csv(rows, f"{start}_runs.csv", overwrite=True)
    evaluation.write_csv(lines, f"{start}.csv", overwrite=True)
    title = f"{options.data}: {options.teacher} teaches {options.student}, {options.seeds} seeds"
    figure(lines, f"{start}.png", title)
    rich.print(table_of(lines, title))


def main(arguments=None):
    options = parse(arguments)
    if options.times:
        path = options.runs / f"losses-{options.data}" / "step-times.json"
        times = step_times(options)
        with draft_of(path, True) as draft:
            pathlib.Path(draft).write_text(json.dumps(times))
    else:
        teacher = teacher_of(options)
        train_all(options, path_of, lambda method, seed: run(options, method, seed, teacher))
    if options.report:
        report(options)


def over_preset(given, presets):
    """A dict of all options: those of the preset, but for what was given."""
    chosen = {key: value for key, value in vars(given).items() if value is not None}
    return {**dict.fromkeys(vars(given)), **presets[given.data], **chosen}


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = {method.name: method for method in METHODS}
    parser.add_argument("data", choices=PRESETS)
    parser.add_argument("--methods", nargs="+", choices=known, metavar="METHOD")
    for name in ("seeds", "size", "teacher-train", "teacher-epochs", "max-train", "epochs"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--batch", type=int)
    for name in ("teacher", "student"):
        parser.add_argument(f"--{name}", help="resnet<depth>-<width> or convnet-<filters>-...")
    for name in ("learning-rate", "weight-decay"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--times", action="store_true", help="measure steps instead of training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-report", dest="report", action="store_false")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results"))
    options = over_preset(parser.parse_args(arguments), PRESETS)
    # Everything is compared with the student alone.
    names = dict.fromkeys(["student alone", *(options["methods"] or known)])
    options["methods"] = [known[name] for name in names]
    return argparse.Namespace(**options)


if __name__ == "__main__":
    main()
