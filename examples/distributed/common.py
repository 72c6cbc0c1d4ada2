"""What the examples of this folder share: digits, two networks, and a training in every process."""

import pathlib

import keras

import kdtoolkit as kd

BATCH = 32


def network(units, name):
    return kd.models.mlp((64,), 10, units=(units,), seed=0, name=name)


def pipeline(data, shard):
    """Batches of `BATCH` images; of each this process gets its shard."""
    return kd.data.ArrayPipeline(*data, batch_size=BATCH, seed=0, drop_remainder=True, shard=shard)


def compiled(distiller):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    return distiller


def distil(scope, shard=(0, 1), out="out/distributed", epochs=10):
    """Train a teacher, then a student from it; the chief saves the student and prints.

    Args:
        scope: function that gives the context in which models are made.
        shard: `(index, count)`, the part of each batch that this process feeds. TensorFlow's
            strategies share out the whole data by themselves.
        out: folder for `student.keras`.
        epochs: int.
    """
    digits = kd.data.load_digits(image_shape=(64,))
    train = pipeline((digits.x_train, digits.y_train), shard)
    test = pipeline((digits.x_test, digits.y_test), shard)
    with scope():
        alone = compiled(kd.Distiller(student=network(256, "teacher"), label_weight=1.0))
    alone.fit(train, epochs=epochs, shuffle=False, verbose=0)
    with scope():
        student = network(16, "student")
        distiller = compiled(kd.Distiller(student=student, teacher=alone.student))
    distiller.fit(train, epochs=epochs, shuffle=False, verbose=0)
    # All processes evaluate, since they do it together; one of them writes.
    scores = [each.evaluate(test, return_dict=True, verbose=0) for each in (alone, distiller)]
    if kd.is_chief(distiller):
        pathlib.Path(out).mkdir(parents=True, exist_ok=True)
        distiller.student.save(pathlib.Path(out) / "student.keras")
        print(f"teacher: {scores[0]['accuracy']:.4f}, student: {scores[1]['accuracy']:.4f}")
    return [score["accuracy"] for score in scores]
