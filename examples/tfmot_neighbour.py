"""TensorFlow Model Optimization as a neighbour: it compresses what a Keras 3 model teaches.

    python examples/tfmot_neighbour.py           # about 5 minutes on 2 cores, no download
    python examples/tfmot_neighbour.py --seeds 10

tensorflow-model-optimization knows tf_keras alone. Here its wrappers go around the tf_keras twin of
a student, which then trains in `kd.Distiller` with a Keras 3 teacher, as any other student.

For each seed (another split of scikit-learn's digits, other initial weights) a large teacher is
trained, and a small student is distilled from it. Then the student is distilled a second time, from
the same weights, in four ways:

- as it is: the control, since the others learn longer too;
- with pruning: three quarters of each kernel become zero;
- with clustering: each kernel keeps 16 different values;
- with quantisation-aware training: it feels the rounding to 8 bits.

The pruned and the clustered student come back to Keras 3, the quantised one is exported from
tf_keras. All files are in int8, beside the student's own in float32. It ends in one table: accuracy
and size are those of the `.tflite` files. Zeros and values don't make a file smaller by themselves;
what they save shows after gzip.

Needs: pip install "kdtoolkit[tensorflow,export,data,plot,tfmot]"
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

import kdtoolkit as kd  # noqa: E402
from kdtoolkit import tfmot  # noqa: E402

FLOAT, INT8 = "distilled, float32", "distilled, int8"
LONGER, PRUNED, CLUSTERED, AWARE = "control", "75 % pruned", "16 values", "quantisation-aware"
FILES = {
    FLOAT: "float32", INT8: "int8", LONGER: "control", PRUNED: "pruned", CLUSTERED: "clustered",
    AWARE: "aware",
}  # fmt: skip
# The gradient of a centroid is the sum of those of its weights, so it learns with smaller steps.
RATES = {LONGER: 0.01, PRUNED: 0.01, CLUSTERED: 0.001, AWARE: 0.01}
BATCH = 50
FILTERS = {"student": (12, 24), "teacher": (32, 64)}


def network(kind, data, seed):
    return kd.models.convnet(
        data.input_shape, data.num_classes, filters=FILTERS[kind], name=kind, seed=seed
    )


def fit(model, data, epochs, rate, callbacks=()):
    """Train a network or a distiller on the labels that are there."""
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=10,  # much faster, where steps are as short as here
    )
    model.fit(
        data.x_train,
        data.y_train,
        batch_size=BATCH,
        epochs=epochs,
        callbacks=list(callbacks),
        verbose=0,
    )


def compressed(method, student, data, epochs):
    """What of a Keras 3 student tfmot makes, before it trains."""
    if method == PRUNED:
        steps = epochs * -(-len(data.x_train) // BATCH)
        return tfmot.prune(student, 0.75, end_step=max(steps // 20, 1) * 10, frequency=10)
    return tfmot.cluster(student, 16) if method == CLUSTERED else tfmot.quantize(student)


def distil_again(method, student, teacher, data, seed, epochs):
    """Distil a copy of the student once more; returns what is exported."""
    model = keras.models.clone_model(student)
    model.set_weights(student.get_weights())
    learner, callbacks = model, []
    if method != LONGER:
        wrapped = compressed(method, student, data, epochs)
        learner = tfmot.Student(wrapped)
        callbacks = [tfmot.PruningStep(learner)] if method == PRUNED else []
    keras.utils.set_random_seed(seed)
    distiller = kd.Distiller(student=learner, teacher=teacher)
    fit(distiller, data, epochs, RATES[method], callbacks)
    if method in (PRUNED, CLUSTERED):
        tfmot.copy_weights(tfmot.strip(wrapped), model)
    return wrapped if method == AWARE else model


def measured(model, data, path, quantize):
    """Write the file; returns its accuracy and sizes."""
    report = kd.export.litert(
        model,
        path,
        quantize=quantize,
        representative_data=data.x_train,
        check_data=data.x_val,
        overwrite=True,
    )
    predicted = kd.export.LiteRTModel(path).predict(data.x_test).argmax(axis=-1)
    return {
        "accuracy": 100 * float(np.mean(predicted == data.y_test)),
        "bytes": report.bytes,
        "gzip": report.gzip_bytes,
    }


def run(options, progress):
    """Train and export everything; returns one dict per network and seed."""
    bar = progress.add_task("", total=options.seeds * (2 + len(RATES)))
    rows = []

    def keep(name, model, quantize="int8"):
        path = options.out / f"{FILES[name]}-{seed}.tflite"
        rows.append({"network": name, "seed": seed} | measured(model, data, path, quantize))

    for seed in range(options.seeds):
        data = kd.data.load_digits(seed=seed)
        keras.utils.set_random_seed(seed)
        teacher, student = (network(kind, data, seed) for kind in ("teacher", "student"))
        progress.update(bar, description=f"seed {seed + 1} of {options.seeds}: teacher")
        fit(teacher, data, options.epochs, 0.05)
        progress.update(bar, advance=1, description=f"seed {seed + 1}: student")
        fit(kd.Distiller(student=student, teacher=teacher), data, options.epochs, 0.05)
        keep(FLOAT, student, quantize=None)
        keep(INT8, student)
        progress.advance(bar)
        for method in RATES:
            progress.update(bar, description=f"seed {seed + 1}: {method}")
            keep(method, distil_again(method, student, teacher, data, seed, options.epochs))
            progress.advance(bar)
    return rows


def table_of(rows):
    table = Table("student", title="digits: the .tflite files, mean ± sd over seeds")
    for heading in ("test %", "bytes", "bytes, gzip"):
        table.add_column(heading, justify="right")
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        mean, sd = kd.evaluation.summary([row["accuracy"] for row in own])
        table.add_row(
            name,
            f"{mean:.2f}" + (f" ± {sd:.2f}" if len(own) > 1 else ""),
            *(f"{np.mean([row[key] for row in own]):,.0f}" for key in ("bytes", "gzip")),
        )
    return table


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many times, default 3")
    parser.add_argument("--epochs", type=int, default=30, help="of each training, default 30")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/tfmot_neighbour"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with Progress(console=console) as progress:
        rows = run(options, progress)
    kd.evaluation.write_csv(rows, options.out / "tfmot_neighbour.csv", overwrite=True)
    console.print(table_of(rows))


if __name__ == "__main__":
    main()
