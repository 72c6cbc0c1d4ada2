"""Time and memory of a training step: the Distiller against a minimal hand-written step.

    python benchmarks/step_time.py                       # ResNet-56 -> ResNet-20, 32x32, batch 64
    python benchmarks/step_time.py --rounds 10 --out benchmarks/results
    python benchmarks/step_time.py --variants "hand-written, logits" "Distiller, logits"

Every variant runs `--steps` steps in turn, round after round, in one process, and the table gives
the median over the rounds of the ratio to the hand-written step of the same round: what else the
machine does hits all of them alike. The ratio of processor time is given beside that of wall time,
since other work on the machine disturbs it less. Memory is measured in processes of their own.

Needs the TensorFlow backend: the hand-written step is a `tf.function`.
"""

import argparse
import csv
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import ops  # noqa: E402

import kdtoolkit as kd  # noqa: E402

TEMPERATURE, CLASSES = 4.0, 100
LABEL_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def networks(args):
    shape = (args.size, args.size, 3)
    teacher = kd.models.resnet(args.teacher, input_shape=shape, num_classes=CLASSES, seed=1)
    student = kd.models.resnet(args.student, input_shape=shape, num_classes=CLASSES, seed=0)
    return student, teacher


def optimizer():
    return keras.optimizers.SGD(0.05, momentum=0.9)


def map_mse(source, student):
    return ops.mean(ops.square(source - student), axis=(1, 2, 3))


def by_hand(args, feature):
    """A minimal `tf.function` that does the same maths, with nothing around it."""
    student, teacher = networks(args)
    sgd = optimizer()
    sgd.build(student.trainable_variables)
    if feature:
        stage = "stage3"
        outputs = [
            keras.Model(m.input, [m.output, m.get_layer(stage).output]) for m in (student, teacher)
        ]
        student_with, teacher_with = outputs
    else:
        student_with, teacher_with = student, teacher

    @tf.function
    def step(x, y):
        source = teacher_with(x, training=False)
        with tf.GradientTape() as tape:
            output = student_with(x, training=True)
            z, v = (output[0], source[0]) if feature else (output, source)
            log_p, log_q = tf.nn.log_softmax(v / TEMPERATURE), tf.nn.log_softmax(z / TEMPERATURE)
            kl = tf.reduce_mean(tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1))
            loss = 0.1 * LABEL_LOSS(y, z) + 0.9 * TEMPERATURE**2 * kl
            if feature:
                loss += tf.reduce_mean(tf.square(source[1] - output[1]))
        gradients = tape.gradient(loss, student.trainable_variables)
        sgd.apply(gradients, student.trainable_variables)
        return loss

    return lambda data: [step(x, y) for x, y in data]


def by_distiller(args, feature, **compile_with):
    student, teacher = networks(args)
    edges = [kd.Transfer(kd.losses.SoftTargets(TEMPERATURE), weight=0.9)]
    if feature:
        edges.append(kd.Transfer(map_mse, source_layer="stage3", student_layer="stage3"))
    distiller = kd.Distiller(student=student, teacher=teacher, transfers=edges, label_weight=0.1)
    distiller.compile(optimizer(), LABEL_LOSS, **compile_with)
    return fitted(distiller)


def by_keras_distillation(args, feature):
    student, teacher = networks(args)
    losses = keras.distillation.LogitsDistillation(TEMPERATURE, loss=keras.losses.KLDivergence())
    weights = 0.9
    if feature:
        features = keras.distillation.FeatureDistillation(
            "mse", teacher_layer_name="stage3", student_layer_name="stage3"
        )
        losses, weights = [losses, features], [0.45, 0.45]
    distiller = keras.distillation.Distiller(
        teacher, student, losses, distillation_loss_weights=weights, student_loss_weight=0.1
    )
    distiller.compile(optimizer(), loss=LABEL_LOSS)
    return fitted(distiller)


def alone(args):
    student, _ = networks(args)
    student.compile(optimizer(), LABEL_LOSS)
    return fitted(student)


def fitted(model):
    """Runs the compiled training function as `fit` does, without what `fit` does once per call."""
    model.make_train_function()

    def run(data):
        batches = iter(data)
        for _ in range(0, len(data), model.steps_per_execution):
            logs = model.train_function(batches)
        return float(logs["loss"])

    return run


def variants(args):
    found = {
        "hand-written, logits": lambda: by_hand(args, False),
        "Distiller, logits": lambda: by_distiller(args, False),
        "hand-written, logits + feature": lambda: by_hand(args, True),
        "Distiller, logits + feature": lambda: by_distiller(args, True),
        "student alone": lambda: alone(args),
    }
    if getattr(keras, "distillation", None):
        found["keras.distillation, logits"] = lambda: by_keras_distillation(args, False)
        found["keras.distillation, logits + feature"] = lambda: by_keras_distillation(args, True)
    for count in (4, 16):
        found[f"Distiller, logits, {count} steps per execution"] = lambda count=count: by_distiller(
            args, False, steps_per_execution=count
        )
    return found


def batches(args, steps):
    random = np.random.default_rng(0)
    x = random.normal(size=(args.batch, args.size, args.size, 3)).astype("float32")
    y = random.integers(CLASSES, size=args.batch)
    return tf.data.Dataset.from_tensors((x, y)).cache().repeat(steps).prefetch(2)


def timed(run, data):
    """Wall and processor seconds of one call."""
    start = time.perf_counter(), time.process_time()
    run(data)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def measure(args):
    runs, rows = {}, {}
    for name, make in variants(args).items():
        if args.variants and name not in args.variants:
            continue
        runs[name] = make()
        first, _ = timed(runs[name], batches(args, 16))
        rows[name] = {"variant": name, "first_s": first, "rounds": []}
        print(f"{name}: first 16 steps {first:.1f} s", flush=True)
    for index in range(args.rounds):
        for name, run in runs.items():
            rows[name]["rounds"].append(timed(run, batches(args, args.steps)))
        print(f"round {index + 1} of {args.rounds}", flush=True)
    return rows


def peak_resident_mb():
    """This process's own peak; `getrusage` would count the parent's before it started this."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def peak_memory(name, args):
    """Peak resident memory in MB of a process that runs this variant alone."""
    command = [sys.executable, __file__, "--only", name, "--steps", "16"]
    for key in ("size", "batch", "teacher", "student"):
        command += [f"--{key}", str(getattr(args, key))]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(output.split()[-1])


def summarise(rows, args):
    table = []
    for name, row in rows.items():
        base = rows["hand-written, logits" + (" + feature" if "feature" in name else "")]["rounds"]
        wall, cpu = (
            [(mine[i], theirs[i]) for mine, theirs in zip(row["rounds"], base, strict=True)]
            for i in (0, 1)
        )
        seconds = [mine / args.steps for mine, _ in wall]
        table.append(
            {
                "variant": name,
                "wall_ratio_to_hand_written": round(statistics.median(a / b for a, b in wall), 3),
                "cpu_ratio_to_hand_written": round(statistics.median(a / b for a, b in cpu), 3),
                "ms_per_step_median": round(1000 * statistics.median(seconds), 1),
                "ms_per_step_min": round(1000 * min(seconds), 1),
                "steps_per_second": round(1 / statistics.median(seconds), 2),
                "first_16_steps_s": round(row["first_s"], 1),
                "peak_memory_mb": round(peak_memory(name, args)) if args.memory else "",
            }
        )
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=int, default=56, help="depth of the teacher")
    parser.add_argument("--student", type=int, default=20, help="depth of the student")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16, help="steps per round")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--variants", nargs="+", default=[], help="only these, by name")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--only", help="run one variant and print the peak memory in MB")
    parser.add_argument("--out", type=pathlib.Path, help="folder for step_time.csv")
    args = parser.parse_args()
    if args.only:
        run = variants(args)[args.only]()
        run(batches(args, args.steps))
        print(peak_resident_mb())
        return
    table = summarise(measure(args), args)
    for row in table:
        print(row)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        with open(args.out / "step_time.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
