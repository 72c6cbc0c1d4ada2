"""Four small runs that may be killed at any moment, and the fingerprint of all they end with.

    python benchmarks/interrupted_runs.py mutual FOLDER

trains the run in this folder, or goes on with it, and writes `result.json` there: checksums of all
variables (networks, memories, optimizers, seed generators), of what callbacks know, and the
history. It prints `training` when the first batch begins.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib

import keras
import numpy as np

import kdtoolkit as kd

EPOCHS, BATCH = 4, 16
RESULT = "result.json"


class Announcing(keras.callbacks.Callback):
    """Says when the first batch begins."""

    said = False

    def on_train_batch_begin(self, batch, logs=None):
        if not Announcing.said:
            Announcing.said = True
            print("training", flush=True)


def network(seed, units=24):
    """A perceptron with what has state of its own: dropout and batch normalisation."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(units, name="inner", kernel_initializer=keras.initializers.HeNormal(seed)),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.Dropout(0.3),
            layers.Dense(10, kernel_initializer=keras.initializers.HeNormal(seed + 1)),
        ]
    )


def label_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def offline():
    """A frozen teacher by its output and through a projector, Adam with accumulated gradients."""
    transfers = [
        kd.Transfer(kd.losses.SoftTargets(4.0)),
        kd.Transfer(kd.losses.Hint(), source_layer="inner", student_layer="inner", weight=0.1),
    ]
    student, teacher = network(0), network(7, 48)
    distiller = kd.Distiller(student=student, teacher=teacher, transfers=transfers)
    optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=3)
    distiller.compile(optimizer, label_loss(), metrics=["accuracy"])
    schedule = kd.callbacks.Schedule(transfers[0], "weight", lambda epoch: 0.5 + 0.1 * epoch)
    return distiller, [schedule, keras.callbacks.ReduceLROnPlateau("val_loss", patience=0)]


def mutual():
    """Two students with an optimizer each."""
    distiller = kd.MutualDistiller(students=[network(0), network(3, 32)])
    optimizers = {"student1": keras.optimizers.Adam(0.01), "student2": keras.optimizers.SGD(0.1)}
    distiller.compile(optimizers, label_loss(), metrics=["accuracy"])
    return distiller, [keras.callbacks.EarlyStopping("val_loss", patience=9)]


def self_distilled():
    """A memory of the student's own outputs, and a rewind to the best weights."""
    distiller = kd.SelfDistiller(student=network(0))
    distiller.compile(keras.optimizers.SGD(0.2, momentum=0.9), label_loss(), metrics=["accuracy"])
    return distiller, [kd.callbacks.RewindOnPlateau(patience=1, stop_patience=9)]


MAKERS = {"offline": offline, "mutual": mutual, "self_distilled": self_distilled}
KINDS = [*MAKERS, "born_again"]


def digest(arrays):
    found = hashlib.sha256()
    for array in arrays:
        array = np.asarray(array)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def train(kind, folder, data):
    """One `fit` of a distiller; returns what it ended with."""
    keras.utils.set_random_seed(11)
    distiller, callbacks = MAKERS[kind]()
    resume = kd.callbacks.Resume(folder / "checkpoints", every_batches=1)
    history = distiller.fit(
        data.x_train,
        data.y_train,
        batch_size=BATCH,
        epochs=EPOCHS,
        validation_data=(data.x_val, data.y_val),
        callbacks=[Announcing(), *callbacks, resume],
        verbose=0,
    ).history
    known = [c.get_state() for c in callbacks if hasattr(c, "get_state")]
    return {
        "variables": digest(map(keras.ops.convert_to_numpy, distiller.variables)),
        "optimizer": digest(map(keras.ops.convert_to_numpy, distiller.optimizer.variables)),
        "callbacks": [{name: digest([value]) for name, value in state.items()} for state in known],
        "history": {name: [float(value) for value in values] for name, values in history.items()},
    }


def born_again(folder, data):
    """Two generations; returns their weights and records, without what a clock said."""
    recipe = kd.Recipe(
        lambda: keras.optimizers.Adam(0.01), epochs=3, batch_size=BATCH, callbacks=announcing
    )
    records = kd.train_generations(
        lambda seed: network(seed % 1000),
        data,
        recipe=recipe,
        generations=2,
        directory=folder / "generations",
        checkpoint_every_batches=1,
    )
    found = {}
    for record in records:
        weights = kd.load_network(folder / "generations", record.generation).get_weights()
        numbers = {k: v for k, v in vars(record).items() if "seconds" not in k}
        found[f"generation {record.generation}"] = {"weights": digest(weights), **numbers}
    return found


def announcing():
    return [Announcing()]


def small_digits(examples=400):
    data = kd.data.load_digits(image_shape=(64,))
    sizes = {"x_train": examples, "y_train": examples}
    sizes.update((f"{kind}_{part}", 100) for part in ("val", "test") for kind in ("x", "y"))
    parts = {name: getattr(data, name)[:size] for name, size in sizes.items()}
    return dataclasses.replace(data, **parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=pathlib.Path)
    args = parser.parse_args()
    data = small_digits()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.kind == "born_again":
        result = born_again(args.folder, data)
    else:
        result = train(args.kind, args.folder, data)
    (args.folder / RESULT).write_text(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
