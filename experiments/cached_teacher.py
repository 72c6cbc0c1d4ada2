"""What a cached teacher costs in accuracy: live, dense, half precision, its strongest logits.

    python experiments/cached_teacher.py digits          # a first look, without a download
    python experiments/cached_teacher.py superclasses    # CIFAR-100's 20 groups, 16x16: an hour

The networks, data and training are those of `experiments/losses.py`, with Hinton's distillation at
T = 4 in every row that says nothing else. "live" augments each image anew in every epoch, so that
it can't be cached; "live, k views" comes back to the same k views, and what is cached of it says
the same, so "dense" differs by rounding alone. The question is what few views cost, and few logits.

A seed decides the student's first weights, its images and their order; all rows share them, so
differences are compared in pairs. All numbers are of the last epoch. Interrupted, the same command
goes on: each run is a file in `--runs`. `--no-report` only trains.

CIFAR-100 comes from TensorFlow Datasets (`TFDS_DATA_DIR` says where it lies).
"""

import argparse
import dataclasses
import pathlib
import tempfile
import time

import keras
import losses
import rich

import kdtoolkit as kd
from kdtoolkit import evaluation

#: Views of each image, by data set: one per epoch comes last.
VIEWS = {"digits": (1, 4, 60), "superclasses": (1, 4, 15), "cifar100": (1, 10, 240)}
BASE = "live"


@dataclasses.dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        views: how many of each image, None for new ones in each epoch.
        coding: arguments of `kd.cache_teacher`, None for the live teacher.
        taught: whether there is a teacher at all.
        temperature: of the soft targets; what isn't among the strongest logits weighs more at a
            high one.
    """

    name: str
    views: int | None = None
    coding: dict | None = None
    taught: bool = True
    temperature: float = 4.0


def methods_of(data):
    few, some, many = VIEWS[data]
    half = {"dtype": "float16"}
    return [
        Method("student alone", taught=False),
        Method(BASE),
        Method(f"live, {some} views", some),
        *(Method(f"dense, {k} view{'s' * (k > 1)}", k, {}) for k in (few, some, many)),
        Method(f"dense half precision, {many} views", many, half),
        *(
            Method(f"top {k} half precision, {many} views", many, {"top_k": k, **half})
            for k in (1, 3, 5)
        ),
        Method(f"{BASE}, T = 1", temperature=1.0),
        *(
            Method(
                f"top {k} half precision, {many} views, T = 1",
                many,
                {"top_k": k, **half},
                temperature=1.0,
            )
            for k in (3, 5)
        ),
    ]


def run(options, method, seed, teacher):
    with tempfile.TemporaryDirectory() as folder:
        return trained(options, method, seed, teacher, pathlib.Path(folder) / "cache")


def trained(options, method, seed, teacher, path):
    data = losses.load(options, seed, options.max_train)
    batches = losses.pipeline(data, options, seed, views=method.views, example_ids=False)
    keras.utils.set_random_seed(seed)
    student = losses.network(options.student, data, options, seed)
    started, source = time.process_time(), teacher
    if method.coding is not None:
        source = kd.cache_teacher(teacher, batches, path, verbose=0, **method.coding)
    distiller = kd.Distiller(student=student, transfers=[])
    if method.taught:
        soft = kd.Transfer(kd.losses.SoftTargets(method.temperature), weight=0.9)
        distiller = kd.Distiller(
            student=student, teacher=source, transfers=[soft], label_weight=0.1
        )
    losses.compiled(distiller, options, options.epochs, len(batches))
    follow = [kd.data.FollowEpochs(batches)]
    distiller.fit(batches, epochs=options.epochs, shuffle=False, verbose=0, callbacks=follow)
    rows = len(data.x_train) * (method.views or 1)
    return {
        "method": method.name,
        "seed": seed,
        "test_accuracy": losses.accuracy(student, data.x_test, data.y_test),
        "val_accuracy": losses.accuracy(student, data.x_val, data.y_val),
        "bytes_per_view": None if method.coding is None else source.size / rows,
        "cpu_seconds": time.process_time() - started,
    }


def path_of(options, method, seed):
    name = method.name.replace(" ", "_").replace(",", "")
    return options.runs / f"cached-{options.data}" / f"{name}-{seed}.json"


def report(options):
    rows = losses.rows_of(options, path_of)
    if not rows:
        raise SystemExit(f"No run in {options.runs} yet.")
    lines = losses.lines_of(options, rows, {}, against=BASE)
    for line in lines:
        del line["step_time"]
        own = [row for row in rows if row["method"] == line["method"]]
        line["bytes_per_view"] = own[0]["bytes_per_view"]
        line["cpu_seconds"] = evaluation.summary([row["cpu_seconds"] for row in own])[0]
    start = options.out / f"cached_{options.data}"
    options.out.mkdir(parents=True, exist_ok=True)
    evaluation.write_csv(rows, f"{start}_runs.csv", overwrite=True)
    evaluation.write_csv(lines, f"{start}.csv", overwrite=True)
    title = f"{options.data}: {options.teacher} teaches {options.student}, {options.seeds} seeds"
    losses.figure(lines, f"{start}.png", title, BASE)
    table = losses.table_of([{**line, "step_time": None} for line in lines], title)
    rich.print(table)


def main(arguments=None):
    options = parse(arguments)
    teacher = losses.teacher_of(options)
    losses.train_all(options, path_of, lambda method, seed: run(options, method, seed, teacher))
    if options.report:
        report(options)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=VIEWS)
    numbers = ("seeds", "size", "teacher-train", "teacher-epochs", "max-train", "epochs", "batch")
    for name in numbers:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="names of rows")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--no-report", dest="report", action="store_false")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results"))
    options = losses.over_preset(parser.parse_args(arguments), losses.PRESETS)
    known = {method.name: method for method in methods_of(options["data"])}
    unknown = set(options["methods"] or ()) - set(known)
    if unknown:
        parser.error(f"unknown rows {sorted(unknown)}, expected some of {list(known)}")
    options["methods"] = [known[name] for name in options["methods"] or known]
    return argparse.Namespace(**options)


if __name__ == "__main__":
    main()
