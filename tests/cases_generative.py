"""Overhaul, knowledge review, factor transfer and masked generation, in NumPy."""

import keras
import numpy as np

from kdtoolkit.losses.feature.factor import FactorTransfer
from kdtoolkit.losses.feature.generative import MaskedGenerative
from kdtoolkit.losses.feature.overhaul import Overhaul
from kdtoolkit.losses.feature.review import ReviewKD
from tests import feature_reference as numpy_layers
from tests.contract import Case


def convolved(x, layer, strides=1):
    """A Keras convolution in NumPy, without its activation."""
    weights = numpy_layers.weights_of(layer)
    return numpy_layers.conv2d(x, weights["kernel"], weights.get("bias", 0.0), strides)


def projected(projector, student, target_side):
    """A projector's linear map; a strided one where the student's maps are larger."""
    weights = numpy_layers.weights_of(projector)
    if student.ndim == 4 and student.shape[1] > target_side:
        stride = student.shape[1] // target_side
        bias = weights.get("bias", 0.0)
        return numpy_layers.conv2d(student, weights["kernel"], bias, stride)
    return numpy_layers.dense(student, {k: weights[k] for k in ("kernel", "bias") if k in weights})


def grown(x, height, width):
    """Maps at a larger size: straight lines between the centres of the cells."""
    x = np.asarray(x, "float64")
    for axis, new in ((1, height), (2, width)):
        old = x.shape[axis]
        places = (np.arange(new) + 0.5) * old / new - 0.5
        columns = np.apply_along_axis(
            lambda line, old=old, places=places: np.interp(places, np.arange(old), line), axis, x
        )
        x = columns
    return x


def resized(x, height, width):
    if x.shape[1] > height:
        return numpy_layers.average_pool(x, height, width)
    return grown(x, height, width)


def as_maps(x):
    """Vectors as one cell, tokens as a square behind extra tokens, or as one column."""
    x = np.asarray(x, "float64")
    if x.ndim == 2:
        return x[:, None, None, :]
    if x.ndim == 3:
        sides = [int(np.sqrt(x.shape[1] - extra)) for extra in range(3)]
        square = [side for extra, side in enumerate(sides) if side**2 == x.shape[1] - extra]
        if not square:
            return x[:, :, None, :]
        return x[:, -(square[0] ** 2) :].reshape(len(x), square[0], square[0], x.shape[-1])
    return x


def pairs_of(source, student):
    return zip(source, student, strict=True) if isinstance(source, list) else [(source, student)]


def mean_per_example(x):
    return x.reshape(len(x), -1).mean(axis=1)


# Overhaul ----------------------------------------------------------------------------------------


def mean_of_negatives(source):
    channels = source.reshape(-1, source.shape[-1]).T
    return np.array([c[c < 0].mean() if np.any(c < 0) else 0.0 for c in channels])


def overhaul(loss, source, student):
    total = 0.0
    for index, (t, s) in enumerate(pairs_of(source, student)):
        t, s = np.asarray(t, "float64"), np.asarray(s, "float64")
        s = projected(loss.layers[index].projector, s, t.shape[1])
        s = numpy_layers.batch_norm(s)
        margin = mean_of_negatives(t) if loss.margin is None else np.array(loss.margin[index])
        values = np.zeros_like(t)
        for place in np.ndindex(t.shape):
            target = max(t[place], margin[place[-1]])
            if not s[place] <= target <= 0:
                values[place] = (target - s[place]) ** 2
        total = total + mean_per_example(values)
    return total


# Knowledge review --------------------------------------------------------------------------------


def hierarchical(difference):
    values, weights, weight = mean_per_example(difference**2), 1.0, 1.0
    for size in (4, 2, 1):
        if size < min(difference.shape[1:3]):
            weight = weight / 2
            pooled = numpy_layers.average_pool(difference, size, size)
            values = values + weight * mean_per_example(pooled**2)
            weights = weights + weight
    return values / weights


def review(loss, source, student):
    total, deeper = 0.0, None
    levels = list(zip(loss.layers, pairs_of(source, student), strict=True))
    for layer, (target, own) in levels[::-1]:
        target, own = as_maps(target), as_maps(own)
        fused = numpy_layers.batch_norm(convolved(own, layer.reduce))
        if deeper is not None:
            deeper = resized(deeper, *own.shape[1:3])
            logits = convolved(np.concatenate([fused, deeper], axis=-1), layer.attention)
            share = 1 / (1 + np.exp(-logits))
            fused = fused * share[..., 0:1] + deeper * share[..., 1:2]
        deeper = fused
        compared = convolved(resized(fused, *target.shape[1:3]), layer.expand)
        total = total + hierarchical(target - numpy_layers.batch_norm(compared))
    return total


# Factor transfer ---------------------------------------------------------------------------------


def leaky_stack(model, x):
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            x = convolved(x, layer)
            x = np.where(x > 0, x, 0.1 * x)
    return x


def unit(x):
    vectors = x.reshape(len(x), -1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def factor(loss, source, student):
    total = 0.0
    for layer, (t, s) in zip(loss.layers, pairs_of(source, student), strict=True):
        s = np.asarray(s, "float64")
        if t.ndim == 4:
            s = resized(s, *t.shape[1:3])
        t, s = as_maps(t), as_maps(s)
        factors = leaky_stack(layer.paraphraser, t)
        difference = np.abs(unit(factors) - unit(leaky_stack(layer.translator, s)))
        total = total + mean_per_example(difference**loss.p)
        if layer.decoder is not None:
            restored = leaky_stack(layer.decoder, factors)
            weight = float(keras.ops.convert_to_numpy(loss.reconstruction_weight))
            total = total + weight * mean_per_example((t - restored) ** 2)
    return total


def encoder():
    """A paraphraser that somebody trained."""
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((4, 4, 6)), layers.Conv2D(3, 3, padding="same"), layers.LeakyReLU(0.1)]
    )


# Masked generation -------------------------------------------------------------------------------


def generated(loss, source, student):
    """Without a mask."""
    (layer,) = loss.layers
    student = np.asarray(student, "float64")
    if layer.align is not None:
        student = projected(layer.align, student, source.shape[1])
    hidden = np.maximum(convolved(as_maps(student), layer.first), 0)
    return mean_per_example((as_maps(source) - convolved(hidden, layer.second)) ** 2)


NO_POSITIONS = ((None, 4, 4, 3), (None, 8), "vector, which has no positions")
UNKNOWN = ((None, None, 4, 3), (None, 4, 4, 3), r"known size.*Received: shape \(None, None")
UNEQUAL_LISTS = ([(None, 4)], [(None, 4), (None, 4)], "pair by pair.*1 layers.*2 layers")

CASES = {
    "overhaul": Case(
        make=lambda **k: Overhaul(**k),
        shapes={
            "maps": ((4, 4, 5), (4, 4, 3)),
            "vectors": ((5,), (3,)),
            "tokens": ((5, 4), (5, 3)),
            "smaller maps": ((2, 2, 5), (4, 4, 3)),
            "several": ([(4, 4, 3), (2, 2, 5)], [(4, 4, 2), (2, 2, 4)]),
        },
        reference=overhaul,
        refused=(NO_POSITIONS, UNKNOWN, UNEQUAL_LISTS),
    ),
    "overhaul with margins": Case(
        make=lambda **k: Overhaul(margin=[[-0.3, -1.0], [-0.5, -0.25, 0.0]], **k),
        shapes={"several": ([(4, 4, 2), (2, 2, 3)], [(4, 4, 2), (2, 2, 4)])},
        reference=overhaul,
        refused=(
            ((None, 4, 4, 2), (None, 4, 4, 3), r"\[2\] numbers. Received: \[2, 3\]"),
            ([(None, 2), (None, 4)], [(None, 3), (None, 3)], r"\[2, 4\] numbers"),
        ),
    ),
    "review": Case(
        make=lambda **k: ReviewKD(**k),
        shapes={
            "one": ((4, 4, 5), (4, 4, 3)),
            "three": (
                [(8, 8, 3), (4, 4, 5), (6,)],
                [(8, 8, 2), (4, 4, 3), (4,)],
            ),
            "other sizes": ([(4, 4, 3), (2, 2, 5)], [(8, 8, 2), (4, 4, 3)]),
            "larger source": ([(6, 6, 3), (6, 6, 5)], [(6, 6, 2), (3, 3, 3)]),
            "tokens": ([(5, 4), (5, 4)], [(4, 4, 3), (2, 2, 5)]),
            "pooled": ((6,), (4, 4, 3)),
        },
        reference=review,
        refused=(
            NO_POSITIONS,
            UNKNOWN,
            UNEQUAL_LISTS,
            ((None, 12, 3), (None, 12, 3), "12 tokens form none"),
        ),
    ),
    "review of a width": Case(
        make=lambda **k: ReviewKD(width=7, **k),
        shapes={"two": ([(4, 4, 3), (2, 2, 5)], [(4, 4, 2), (2, 2, 4)])},
        reference=review,
    ),
    "factor": Case(
        make=lambda **k: FactorTransfer(reconstruction_weight=0.5, **k),
        shapes={
            "maps": ((4, 4, 6), (4, 4, 3)),
            "smaller maps": ((2, 2, 5), (4, 4, 3)),
            "larger maps": ((4, 4, 5), (2, 2, 3)),
            "tokens": ((5, 4), (5, 3)),
            "sequence": ((12, 4), (12, 3)),
            "vectors": ((5,), (3,)),
            "several": ([(4, 4, 3), (2, 2, 5)], [(4, 4, 2), (2, 2, 4)]),
        },
        reference=factor,
        refused=(NO_POSITIONS, UNKNOWN, UNEQUAL_LISTS),
    ),
    "factor squared": Case(
        make=lambda **k: FactorTransfer(rate=0.3, p=2, **k),
        shapes={"maps": ((4, 4, 6), (4, 4, 3))},
        reference=factor,
    ),
    "factor of a paraphraser": Case(
        make=lambda **k: FactorTransfer(paraphraser=encoder(), **k),
        shapes={"maps": ((4, 4, 6), (8, 8, 3))},
        reference=factor,
        refused=(
            ((None, 4, 4, 5), (None, 4, 4, 3), r"for shape \(None, 4, 4, 5\)"),
            ([(None, 4, 4, 6)] * 2, [(None, 4, 4, 3)] * 2, "serves one pair.*2 pairs"),
        ),
    ),
    "generation of all": Case(
        make=lambda **k: MaskedGenerative(ratio=0.0, mask="channels", **k),
        shapes={
            "maps": ((4, 4, 5), (4, 4, 3)),
            "smaller maps": ((2, 2, 5), (4, 4, 3)),
            "equal maps": ((3, 3, 4), (3, 3, 4)),
            "tokens": ((5, 4), (5, 3)),
            "sequence": ((12, 4), (12, 3)),
            "vectors": ((5,), (3,)),
        },
        reference=generated,
        refused=(NO_POSITIONS, UNKNOWN, UNEQUAL_LISTS),
    ),
    "generation": Case(
        make=lambda **k: MaskedGenerative(seed=3, **k),
        shapes={
            "maps": ((4, 4, 5), (4, 4, 3)),
            "tokens": ((10, 4), (4, 4, 3)),
            "several": ([(4, 4, 3), (2, 2, 5)], [(4, 4, 2), (2, 2, 4)]),
        },
        refused=(((None, 8), (None, 8), "a vector has none"),),
    ),
    "generation of channels": Case(
        make=lambda **k: MaskedGenerative(0.15, mask="channels", seed=3, **k),
        shapes={"maps": ((4, 4, 5), (4, 4, 3)), "vectors": ((6,), (6,))},
    ),
}
