"""Compression with a teacher: one student, made smaller in seven ways, each a checked file.

    python examples/compression.py            # about 4 minutes on 2 cores, no download
    python examples/compression.py --seeds 10

For each seed (another split of scikit-learn's digits, other initial weights) a convnet is trained
as the teacher, and a small ResNet is distilled from it. That student is then made smaller:

- int8, rounded when the file is written, or trained as the int8 file computes;
- weights of 4 bits, trained likewise;
- three quarters of the weights zero, little by little;
- half of the filters gone;
- 16 different values in each layer;
- the chain of zeros, 16 values, int8.

All but the first are trained on, with the teacher in `kd.Distiller`. Two controls say what that
does: the student trained on as it is, and half of the filters from labels alone.

It ends in tables and pictures of the `.tflite` files: accuracy on the test part and sizes over all
seeds; `kd.compare` of the first seed's files with the teacher, also as a page, `compression.html`.
Zeros and equal values make no file smaller by themselves; what they save shows after gzip. The file
that one would ship is chosen on the validation part.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

import kdtoolkit as kd  # noqa: E402
from kdtoolkit import compress, evaluation  # noqa: E402

TEACHER, STUDENT, LONGER = "teacher", "student", "trained on"
NARROW, CONTROL = "half the filters", "half, from labels"
FILTERS, WIDTH = (32, 64, 128), 8
BATCH = 50
LOSS_ALLOWED = 1.0  # points on the validation part, of the file to ship


# How a network gets smaller: (network, data, steps of its training) to (next network, callbacks).


def same(network, data, steps):
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    return copy, []


def pruned(network, data, steps):
    network = compress.prune(network, 0)
    end = max(1, 2 * steps // 3)
    return network, [compress.GradualPruning(network, 0.75, end_step=end, every=10)]


def narrower(network, data, steps):
    return compress.prune_filters(network, 0.5), []


def shared(network, data, steps):
    return compress.cluster(network, 16), []


def aware(network, data, steps, bits=8):
    return compress.quantize_aware(network, data.x_train, weights=bits), []


@dataclasses.dataclass(frozen=True)
class Way:
    """Stages, each trained before the next; the form of the file; who teaches."""

    stages: tuple[Callable, ...] = ()
    quantize: str | None = None
    teacher: bool = True


WAYS = {
    STUDENT: Way(),
    LONGER: Way((same,)),
    "int8 afterwards": Way(quantize="int8"),
    "int8, trained": Way((aware,), "int8"),
    "4-bit weights": Way((functools.partial(aware, bits=4),), "int8"),
    "75 % pruned": Way((pruned,)),
    "16 values": Way((shared,)),
    NARROW: Way((narrower,)),
    CONTROL: Way((narrower,), teacher=False),
    "pruned, 16 values, int8": Way((pruned, shared, aware), "int8"),
}


# Training and files -------------------------------------------------------------------------


def train(network, data, seed, epochs, rate, teacher=None, callbacks=()):
    """From labels, or with 0.9 T²KL(T=4) from a teacher and 0.1 labels."""
    batches = kd.data.ArrayPipeline(
        data.x_train, data.y_train, batch_size=BATCH, seed=seed, drop_remainder=True
    )
    model = network if teacher is None else kd.Distiller(student=network, teacher=teacher)
    # Folding leaves gradients of another scale; Adam doesn't mind.
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.Adam(schedule), loss, steps_per_execution=len(batches)
    )
    follow = kd.data.FollowEpochs(batches)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[follow, *callbacks])
    # Running averages don't follow so few steps. Does nothing where they have been folded.
    compress.recalibrate_batchnorm(network, data.x_train)


def smaller(way, student, teacher, data, seed, epochs):
    """The student after all stages of a way, which share the epochs."""
    network, share = student, max(1, epochs // max(1, len(way.stages)))
    for stage in way.stages:
        network, callbacks = stage(network, data, share * (len(data.x_train) // BATCH))
        taught_by = teacher if way.teacher else None
        train(network, data, seed, share, 1e-3, taught_by, callbacks)
    return network


def accuracy(path, x, y):
    return float(np.mean(kd.export.LiteRTModel(path).predict(x).argmax(axis=-1) == y))
