"""What every loss between features or relations must hold, as data: one `Case` per loss."""

import dataclasses
import zlib
from collections.abc import Callable

import keras
import numpy as np

from tests import helpers

BATCH = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """One loss, and what is known of it.

    Args:
        make: `make(**kwargs) -> loss`, kwargs being `reduction`, `name`, `dtype`.
        shapes: `{kind: (source, student)}`: shapes without the batch, or lists of them.
        reference: `reference(loss, source, student, **context) -> (batch,)` in float64 NumPy
            without the package; it may read the weights of `loss.layers`. None for random losses.
        zero_for_equal: whether it is 0 where both networks' features are equal.
        needs_pairs: whether a batch of one must be refused ("at least 2").
        refused: list of `(source, student, match)`: shapes that must raise.
        context: `context(batch) -> dict`, what the loss needs beside the features.
        scale: size of the random features.
        extreme: size of the features in half precision. Smaller than 1e4 where the true gradient
            there is beyond float16.
    """

    make: Callable
    shapes: dict
    reference: Callable | None = None
    zero_for_equal: bool = False
    needs_pairs: bool = False
    refused: tuple = ()
    context: Callable = lambda batch: {}
    scale: float = 1.0
    extreme: float = 1e4


def draw(shape, seed, batch=BATCH, scale=1.0):
    """Random features, float32: an array, or a list of them for a list of shapes."""
    if isinstance(shape, list):
        return [draw(one, seed + 10 * i, batch, scale) for i, one in enumerate(shape)]
    return np.random.default_rng(seed).normal(0, scale, (batch, *shape)).astype("float32")


def features(case, kind, batch=BATCH):
    """The source's features and the student's."""
    seed = zlib.crc32(kind.encode()) % 1000
    source, student = case.shapes[kind]
    return (
        draw(source, seed, batch, case.scale),
        draw(student, seed + 1, batch, case.scale),
        case.context(batch),
    )


def as_list(end):
    return end if isinstance(end, list) else [end]


def like(end, arrays):
    """`arrays` in the form of `end`: a list where it is one."""
    return list(arrays) if isinstance(end, list) else arrays[0]


def built(case, kind, **kwargs):
    """The loss, connected to the shapes of one kind."""
    loss = case.make(**kwargs)
    source, student = case.shapes[kind]
    shapes = [like(end, [(None, *one) for one in as_list(end)]) for end in (source, student)]
    loss.check_shapes(*shapes)
    loss.build(*shapes)
    return loss


def values(loss, source, student, context):
    """One value per example, as float64."""
    return helpers.array(loss.values(source, student, **context))


def gradients(loss, source, student, context):
    """Gradients of the sum over the examples with respect to each of the student's features."""
    found = []
    for index in range(len(as_list(student))):

        def total(x, index=index):
            others = list(as_list(student))
            others[index] = x
            # What layers write, such as moving statistics, must not outlive JAX's trace.
            with keras.StatelessScope():
                return loss.values(source, like(student, others), **context)

        found.append(helpers.gradient(total, as_list(student)[index]))
    return found
