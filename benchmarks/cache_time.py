"""Time of an epoch with a cached teacher, against the live teacher and the student alone.

    export TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1  # less noise beside other work
    python benchmarks/cache_time.py --rounds 7 --out benchmarks/results

ResNet-20 learns 100 classes of 32x32 images, shifted and mirrored in two views, from teachers of
several depths: live, from a cache of all logits, and from one of the ten strongest in half
precision. All run in turn in one process, in another order each round, and are fitted once before
they are timed; the table gives medians over the rounds of ratios within the same round. What a
teacher costs to cache is compared with its `predict` over the same images.
"""

import argparse
import os
import pathlib
import statistics
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dropout_time  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402

import kdtoolkit as kd  # noqa: E402
from kdtoolkit import evaluation  # noqa: E402
from kdtoolkit.files import draft_of  # noqa: E402

SHAPE, CLASSES, VIEWS = (32, 32, 3), 100, 2
CODINGS = {"cached": {}, "cached, top 10": {"top_k": 10, "dtype": "float16"}}


def pipeline(args, **options):
    random = np.random.default_rng(0)
    x = random.normal(size=(args.examples, *SHAPE)).astype("float32")
    y = random.integers(CLASSES, size=args.examples)
    augment = kd.data.FlipShift()
    return kd.data.ArrayPipeline(x, y, batch_size=args.batch, augment=augment, **options)


def network(depth, seed):
    return kd.models.resnet(depth, input_shape=SHAPE, num_classes=CLASSES, seed=seed)


def runner(args, teacher=None):
    """A function that trains for an epoch."""
    model = network(args.student, seed=0)
    batches = pipeline(args) if teacher is None else pipeline(args, views=VIEWS)
    if teacher is not None:
        model = kd.Distiller(student=model, teacher=teacher)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, 0.9), loss)
    return lambda: model.fit(batches, shuffle=False, verbose=0)


def runners(args, folder):
    """`{name: function}`, and what each teacher's cache cost."""
    runs, rows = {"alone": runner(args)}, []
    for depth in args.teachers:
        teacher = network(depth, seed=1)
        runs[f"live, ResNet-{depth}"] = runner(args, teacher)
        rows.append(building(args, teacher, depth, folder / str(depth)))
    for name, coding in CODINGS.items():
        # Of whichever teacher: what is read has the same size.
        cached = kd.cache_teacher(
            teacher, pipeline(args, views=VIEWS), folder / name, verbose=0, **coding
        )
        runs[name] = runner(args, cached)
    return runs, rows


def building(args, teacher, depth, path):
    """How a teacher compares with the student, and building its cache with its inference."""
    batches = pipeline(args, views=VIEWS)
    inputs = np.concatenate([batches.view(np.arange(args.examples), v) for v in range(VIEWS)])
    # Both trace the teacher once.
    inference = dropout_time.timed(
        lambda: teacher.predict(inputs, batch_size=args.batch, verbose=0)
    )
    build = dropout_time.timed(
        lambda: kd.cache_teacher(teacher, batches, path, batch_size=args.batch, verbose=0)
    )
    costs = [dropout_time.multiplications(m) for m in (teacher, network(args.student, seed=0))]
    return {
        "teacher": f"ResNet-{depth}",
        "multiplications_over_student": round(costs[0] / costs[1], 2),
        "build_over_inference": round(build[1] / inference[1], 2),
    }


def measure(args, runs):
    """`{name: (wall, processor seconds)}` of each round."""
    rounds = []
    for index in range(-1, args.rounds):
        names = list(runs)[:: 1 if index % 2 else -1]
        times = {name: dropout_time.timed(runs[name]) for name in names}
        # The first round traces.
        if index >= 0:
            rounds.append(times)
        print(f"round {index + 1} of {args.rounds}", flush=True)
    return rounds


def summarise(rounds, row):
    """A teacher's row, with processor times of an epoch over that with the live teacher."""
    live = f"live, {row['teacher']}"
    for name in ("alone", *CODINGS):
        ratios = [times[name][1] / times[live][1] for times in rounds]
        key = name.replace(", ", "_").replace(" ", "_")
        row |= {
            f"{key}_over_live": round(statistics.median(ratios), 3),
            f"{key}_over_live_min": round(min(ratios), 3),
            f"{key}_over_live_max": round(max(ratios), 3),
        }
    wall = [times["cached"][0] / times[live][0] for times in rounds]
    over_alone = [times["cached"][1] / times["alone"][1] for times in rounds]
    row["cached_over_live_wall"] = round(statistics.median(wall), 3)
    row["cached_over_alone"] = round(statistics.median(over_alone), 3)
    return row


def figure(rows, path):
    from matplotlib.figure import Figure

    picture = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = picture.subplots()
    rows = sorted(rows, key=lambda row: row["multiplications_over_student"])
    x = [row["multiplications_over_student"] for row in rows]
    for key, label in (("cached_over_live", "cached"), ("alone_over_live", "student alone")):
        axis.plot(x, [row[key] for row in rows], marker="o", label=label)
    axis.set_ylim(0, 1.05)
    axis.set_xlabel("multiplications of the teacher / of the student, forward")
    axis.set_ylabel("processor time of an epoch / with the live teacher")
    axis.legend()
    with draft_of(path, True) as draft:
        picture.savefig(draft, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=int, default=20, help="depth of the ResNet")
    parser.add_argument("--teachers", type=int, nargs="+", default=[8, 20, 56, 110])
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, help="folder for cache_time.csv and .png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs, rows = runners(args, pathlib.Path(folder))
        rounds = measure(args, runs)
    rows = [summarise(rounds, row) for row in rows]
    for row in rows:
        print(row)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        evaluation.write_csv(rows, args.out / "cache_time.csv", overwrite=True)
        figure(rows, args.out / "cache_time.png")


if __name__ == "__main__":
    main()
