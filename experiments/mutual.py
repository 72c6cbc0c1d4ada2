"""Vision Transformers alone, teaching each other, and teaching each other's distillation token.

    python experiments/mutual.py digits          # a first look, without a download
    python experiments/mutual.py superclasses    # CIFAR-100's 20 groups at 16x16: an hour or two
    python experiments/mutual.py imagenet        # ViT-Ti and ViT-S, 300 epochs: accelerators, days

Three methods, in pairs of networks of one or two sizes: `independent` (labels alone), `dml` (deep
mutual learning of ViTs), `dml-deit` (of DeiTs: labels teach the class head, the other network's
distillation head teaches the distillation head, and the mean of both heads is what counts). A seed
decides first weights, images and their order; all methods share them. After the last epoch: test
accuracy of each network and of the pair, and the training loss under noise on the weights.

`imagenet` has the learning rate of DeiT's rule, 5e-4 for a batch of 512; `--learning-rate 0.005` is
the literal one of the study that this repeats, ten times larger. Every number of a preset is an
argument, so `imagenet --epochs 2 --max-train 5000 --size 64` is a small one. Interrupted, the same
command goes on: each run is a file in `--runs`. `--no-report` only trains.

Data sets come from TensorFlow Datasets (`TFDS_DATA_DIR` says where they lie).
"""

import argparse
import json
import pathlib
import time

import keras
import mutual_data
import mutual_report

import kdtoolkit as kd
from kdtoolkit.files import draft_of

#: Width and heads of the miniatures; "imagenet" has those of the papers.
MINIATURES = {"tiny": {"width": 32, "heads": 2}, "small": {"width": 64, "heads": 4}}
SMALL = {
    "patch": 4,
    "depth": 4,
    "batch": 64,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "warmup": 5,
    "stochastic_depth": 0.0,
    "recipe": "light",
    "jit": True,
}
PRESETS = {
    "digits": {**SMALL, "seeds": 3, "size": 8, "patch": 2, "epochs": 60, "max_train": 400},
    "superclasses": {
        **SMALL,
        "seeds": 4,
        "size": 16,
        "epochs": 40,
        "max_train": 3200,
        "learning_rate": 4e-3,
    },
    "cifar100": {**SMALL, "seeds": 3, "size": 32, "epochs": 300, "max_train": None, "depth": 12},
    "imagenet": {
        **SMALL,
        "seeds": 1,
        "size": 224,
        "patch": 16,
        "depth": 12,
        "epochs": 300,
        "batch": 512,
        "max_train": None,
        "learning_rate": 5e-4,
        "stochastic_depth": 0.1,
        "recipe": "deit",
    },
}
METHODS = ("independent", "dml", "dml-deit")
COHORTS = ("tiny+tiny", "tiny+small", "small+small")
#: Noise is added in units of the weights, and in parts of each layer's root mean square.
SCALES = {False: (0.0, 0.005, 0.01, 0.02, 0.03, 0.05), True: (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)}


def members(cohort):
    """`{name: size}` of a cohort's networks; the same name starts with the same weights."""
    return {f"{size}{place}": size for place, size in enumerate(cohort.split("+"), start=1)}


def network(options, data, name, size, method, seed):
    build = kd.models.deit if method == "dml-deit" else kd.models.vit
    shape = {"size": size} if options.data == "imagenet" else MINIATURES[size]
    return build(
        data.input_shape,
        data.classes,
        **shape,
        depth=options.depth,
        patch_size=options.patch,
        stochastic_depth=options.stochastic_depth,
        # The place in the cohort counts, not the size: two of a size start differently.
        seed=1000 * seed + int(name[-1]),
        name=name,
    )


def cohort_of(options, data, method, sizes, seed):
    """A compiled distiller of the networks `{name: size}`."""
    students = {n: network(options, data, n, size, method, seed) for n, size in sizes.items()}
    heads = {}
    if method == "dml-deit":
        heads = {
            "source_layer": "distillation",
            "student_layer": "distillation",
            "deployed": "fused",
        }
    weight = 0.0 if method == "independent" else 1.0
    distiller = kd.MutualDistiller(students=students, weight=weight, **heads)
    loss = data.label_loss()
    distiller.compile(
        data.optimizer,
        {"class": loss} if heads else loss,
        metrics={"fused": ["accuracy"]} if heads else ["accuracy"],
        steps_per_execution=min(10, data.steps),
        # Many small operations: XLA saves a quarter of the time.
        jit_compile=options.jit,
    )
    return distiller


def deployed(distiller):
    """`{name: the network that is deployed}`."""
    return {
        name: kd.models.single_output(model, "fused") if isinstance(model.output, dict) else model
        for name, model in distiller.students.items()
    }


def run(options, method, sizes, cohorts, seed):
    """Trains the networks `{name: size}` together; rows for each cohort of them, and of noise."""
    data = mutual_data.load(options, seed)
    keras.utils.set_random_seed(seed)
    distiller = cohort_of(options, data, method, sizes, seed)
    started = time.process_time()
    history = distiller.fit(
        data.train,
        epochs=options.epochs,
        steps_per_epoch=data.steps_per_epoch,
        shuffle=False,
        verbose=0,
        callbacks=data.callbacks,
    ).history
    seconds, networks = time.process_time() - started, deployed(distiller)
    end = {part: {n: data.logits(m, part) for n, m in networks.items()} for part in ("val", "test")}
    rows = []
    for cohort in cohorts:
        names = list(members(cohort))
        shared = {"method": method, "cohort": cohort, "seed": seed, "cpu_seconds": seconds}
        shared["ensemble_test_accuracy"] = data.accuracy([end["test"][n] for n in names], "test")
        for name in names:
            found = {f"{p}_accuracy": data.accuracy([end[p][name]], p) for p in end}
            kind = "fused_accuracy" if method == "dml-deit" else "accuracy"
            found["train_accuracy"] = history[f"{name}_{kind}"][-1]
            rows.append({**shared, "student": name, **found})
    return {"rows": rows, "noise": noise(options, data, networks, method, cohorts, seed)}


def noise(options, data, networks, method, cohorts, seed):
    x, y = data.sample
    rows = []
    for relative, scales in SCALES.items():
        rows += kd.evaluation.noise_curve(
            networks, x, y, scales=scales, draws=options.draws, relative=relative, progress=False
        )
    shared = {"method": method, "seed": seed}
    return [
        {**shared, "cohort": cohort, **row}
        for cohort in cohorts
        for row in rows
        if row["model"] in members(cohort)
    ]


def jobs(options):
    """`(name, method, {name: size}, cohorts)` of all that is trained with one seed."""
    for method in options.methods:
        if method == "independent":
            # Networks that don't meet: each is trained once, for all cohorts that it is in.
            sizes = {n: s for cohort in options.cohorts for n, s in members(cohort).items()}
            yield method, method, sizes, options.cohorts
        else:
            for cohort in options.cohorts:
                yield f"{method}-{cohort}", method, members(cohort), [cohort]


def path_of(options, name, seed):
    return options.runs / f"mutual-{options.data}" / f"{name}-{seed}.json"


def train_all(options):
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name, method, sizes, cohorts in jobs(options):
            path = path_of(options, name, seed)
            if path.exists():
                continue
            found = run(options, method, sizes, cohorts, seed)
            keras.utils.clear_session()
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft_of(path, True) as draft:
                pathlib.Path(draft).write_text(json.dumps(found))
            tests = [f"{r['student']} {100 * r['test_accuracy']:.2f} %" for r in found["rows"]]
            print(f"{name}, seed {seed}: {', '.join(tests)}", flush=True)


def report(options):
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    paths = [path_of(options, name, seed) for seed in seeds for name, *_ in jobs(options)]
    found = [json.loads(path.read_text()) for path in paths if path.exists()]
    if not found:
        raise SystemExit(f"No run in {options.runs} yet.")
    mutual_report.write(options, found)


def main(arguments=None):
    options = parse(arguments)
    train_all(options)
    if options.report:
        report(options)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=PRESETS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--cohorts", nargs="+", choices=COHORTS, default=list(COHORTS[:2]))
    for name in ("seeds", "size", "patch", "depth", "epochs", "batch", "max-train", "warmup"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("learning-rate", "weight-decay", "stochastic-depth"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--recipe", choices=("light", "deit"))
    parser.add_argument("--jit", action=argparse.BooleanOptionalAction, help="compile with XLA")
    parser.add_argument("--draws", type=int, default=5, help="draws of noise on the weights")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--no-report", dest="report", action="store_false")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/results"))
    given = parser.parse_args(arguments)
    chosen = {key: value for key, value in vars(given).items() if value is not None}
    return argparse.Namespace(**{**PRESETS[given.data], **chosen})


if __name__ == "__main__":
    main()
