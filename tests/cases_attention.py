"""Attention, channel-wise, selectivity, variational and boundary losses, in NumPy."""

import math

import numpy as np

from kdtoolkit.losses.feature.attention import AttentionTransfer
from kdtoolkit.losses.feature.boundaries import ActivationBoundaries
from kdtoolkit.losses.feature.channelwise import ChannelWise
from kdtoolkit.losses.feature.selectivity import NeuronSelectivity
from kdtoolkit.losses.feature.variational import VariationalInformation
from tests import feature_reference as numpy_layers
from tests.contract import Case


def _as_grid(x):
    """Maps as they are; tokens without the extra ones in front, as a square map."""
    if x.ndim == 4:
        return x
    side = math.isqrt(x.shape[1])
    return x[:, x.shape[1] - side * side :].reshape(len(x), side, side, -1)


def laid_out(x, shape):
    """Features averaged down to the layout of others: `shape` with the batch and the channels."""
    x = np.asarray(x, "float64")
    if x.shape[1:-1] == shape[1:-1]:
        return x
    if len(shape) == 2:
        return x.reshape(len(x), -1, x.shape[-1]).mean(axis=1)
    if len(shape) == 4:
        return numpy_layers.average_pool(_as_grid(x), *shape[1:3])
    side = math.isqrt(shape[1])
    patches = numpy_layers.average_pool(_as_grid(x), side, side)
    patches = patches.reshape(len(x), side * side, -1)
    extra = [patches.mean(axis=1, keepdims=True)] * (shape[1] - side * side)
    return np.concatenate([*extra, patches], axis=1)


def in_common(source, student):
    """Both with the fewer positions of the two."""
    sizes = [np.prod(x.shape[1:-1], initial=1) for x in (source, student)]
    shape = np.shape(source if sizes[0] <= sizes[1] else student)
    return laid_out(source, shape), laid_out(student, shape)


def attention_transfer(power=2.0, norm=False):
    def reference(loss, source, student):
        maps = [
            np.mean(np.abs(np.asarray(x, "float64")) ** power, axis=-1, keepdims=True)
            for x in (source, student)
        ]
        vectors = [x.reshape(len(x), -1) for x in in_common(*maps)]
        first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in vectors)
        if norm:
            return np.linalg.norm(first - second, axis=1)
        return np.mean((first - second) ** 2, axis=1)

    return reference


def projected(loss, source, student):
    """What a projector to the source's layout makes of the student's features."""
    if not loss.layers:
        return np.asarray(student, "float64")
    weights = numpy_layers.weights_of(loss.layers[0])
    if student.ndim == 4 and student.shape[1] > source.shape[1]:
        stride = student.shape[1] // source.shape[1]
        return numpy_layers.conv2d(student, weights["kernel"], weights.get("bias", 0.0), stride)
    return numpy_layers.dense(laid_out(student, source.shape), weights)


def channel_wise(temperature):
    def reference(loss, source, student):
        student = projected(loss, source, student)
        result = np.zeros(len(source))
        for i in range(len(source)):
            for c in range(source.shape[-1]):
                logs = []
                for x in (source, student):
                    z = np.asarray(x[i, ..., c], "float64").ravel() / temperature
                    logs.append(z - z.max() - np.log(np.sum(np.exp(z - z.max()))))
                result[i] += np.sum(np.exp(logs[0]) * (logs[0] - logs[1]))
        return temperature**2 * result / source.shape[-1]

    return reference


def patterns(x):
    """What each channel shows over the positions, of length 1: `(batch, channels, positions)`."""
    x = np.asarray(x, "float64")
    x = np.swapaxes(x.reshape(len(x), -1, x.shape[-1]), 1, 2)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def discrepancy(kernel, source, student):
    """MMD^2, pair by pair."""
    result = np.zeros(len(source))
    for i, (first, second) in enumerate(zip(patterns(source), patterns(student), strict=True)):
        means = [
            np.mean([kernel(x, y) for x in left for y in right])
            for left, right in ((first, first), (second, second), (first, second))
        ]
        result[i] = means[0] + means[1] - 2 * means[2]
    return result


def selectivity(kernel):
    return lambda loss, source, student: discrepancy(kernel, *in_common(source, student))


def _variational(loss, source, student):
    source, student = in_common(source, student)
    kernels, biases, (spread,) = (
        [np.asarray(w.numpy(), "float64") for w in loss.layers[0].weights if w.name == name]
        for name in ("kernel", "bias", "spread")
    )
    for index, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        student = student @ kernel + bias
        if index < len(kernels) - 1:
            student = np.maximum(student, 0)
    variance = np.log1p(np.exp(spread)) + 1e-5
    values = ((source - student) ** 2 / variance + np.log(variance)) / 2
    return values.reshape(len(values), -1).mean(axis=1)


def boundaries(margin):
    def reference(loss, source, student):
        active = np.asarray(source, "float64") > 0
        student = projected(loss, source, student)
        if loss.layers:
            student = numpy_layers.batch_norm(student)
        missing = active * np.maximum(margin - student, 0)
        excess = (1 - active) * np.maximum(margin + student, 0)
        return np.mean(((missing + excess) ** 2).reshape(len(source), -1), axis=1)

    return reference


GRIDS = {
    "maps": ((3, 3, 5), (3, 3, 2)),
    "larger maps": ((2, 2, 5), (4, 4, 3)),
    "smaller maps": ((5, 4, 3), (2, 3, 4)),
    "tokens": ((5, 4), (5, 3)),
    "map against tokens": ((4, 4, 3), (5, 4)),
    "tokens against map": ((17, 4), (2, 2, 3)),
}


def only(*kinds):
    return {kind: GRIDS[kind] for kind in kinds}


NO_GRIDS = (
    ((None, 8), (None, 8), r"reads tokens .* or maps .*shape \(None, 8\)"),
    ((None, 12, 4), (None, 2, 2, 4), "12 tokens form none"),
)
ONE_POSITION = ((None, 4, 4, 8), (None, 1, 1, 8), r"at least 2.*\(None, 1, 1, 8\).*last pooling")

CASES = {
    "attention transfer": Case(
        make=lambda **k: AttentionTransfer(**k),
        shapes=GRIDS,
        reference=attention_transfer(),
        zero_for_equal=True,
        refused=(*NO_GRIDS, ONE_POSITION),
    ),
    "attention transfer of the paper": Case(
        make=lambda **k: AttentionTransfer(power=1.5, form="paper", **k),
        shapes=only("larger maps", "map against tokens"),
        reference=attention_transfer(1.5, norm=True),
        zero_for_equal=True,
    ),
    "channel-wise": Case(
        make=lambda **k: ChannelWise(**k),
        shapes={
            "maps": ((3, 3, 5), (3, 3, 2)),
            "equal maps": ((3, 2, 4), (3, 2, 4)),
            "larger maps": ((2, 2, 5), (4, 4, 3)),
            "tokens against map": ((5, 4), (4, 4, 3)),
        },
        reference=channel_wise(4.0),
        refused=(
            *NO_GRIDS[:1],
            ((None, 1, 1, 8), (None, 4, 4, 8), r"at least 2.*\(None, 1, 1, 8\)"),
            ((None, 4, 4, 8), (None, 12, 4), "12 tokens form none"),
        ),
    ),
    "channel-wise without a projector": Case(
        make=lambda **k: ChannelWise(temperature=1.5, **k),
        shapes={"maps": ((3, 2, 4), (3, 2, 4)), "tokens": ((5, 4), (5, 4))},
        reference=channel_wise(1.5),
        zero_for_equal=True,
    ),
    "neuron selectivity": Case(
        make=lambda **k: NeuronSelectivity(**k),
        shapes={
            **only("maps", "larger maps", "tokens against map"),
            "more channels than positions": ((2, 2, 6), (2, 2, 5)),
        },
        reference=selectivity(lambda x, y: (x @ y) ** 2),
        zero_for_equal=True,
        refused=(*NO_GRIDS, ONE_POSITION),
    ),
    "linear neuron selectivity": Case(
        make=lambda **k: NeuronSelectivity(kernel="linear", **k),
        shapes=only("maps", "map against tokens"),
        reference=selectivity(lambda x, y: x @ y),
        zero_for_equal=True,
    ),
    # Its bandwidth depends on the features but has no gradient: see test_feature_attention.
    "gaussian neuron selectivity": Case(
        make=lambda **k: NeuronSelectivity(kernel="gaussian", **k),
        shapes=only("maps", "map against tokens"),
        zero_for_equal=True,
    ),
    "variational information": Case(
        make=lambda **k: VariationalInformation(**k),
        shapes={
            "vectors": ((5,), (3,)),
            **only("smaller maps", "tokens", "map against tokens"),
            "map against vector": ((2, 2, 5), (3,)),
            "vector against map": ((4,), (3, 3, 6)),
        },
        reference=_variational,
        refused=NO_GRIDS[1:],
    ),
    "narrow variational information": Case(
        make=lambda **k: VariationalInformation(hidden=7, variance=0.5, **k),
        shapes={"vectors": ((5,), (3,)), "maps": ((3, 3, 5), (3, 3, 2))},
        reference=_variational,
    ),
    "activation boundaries": Case(
        make=lambda **k: ActivationBoundaries(**k),
        shapes={
            "vectors": ((5,), (3,)),
            "tokens": ((4, 5), (4, 3)),
            "maps": ((3, 3, 5), (3, 3, 2)),
            "larger maps": ((2, 2, 5), (4, 4, 3)),
            "tokens against map": ((5, 4), (4, 4, 3)),
        },
        reference=boundaries(1.0),
        refused=(
            ((None, 4, 4, 3), (None, 8), "vector, which has no positions"),
            ((None, 4, 4, 8), (None, 12, 4), "12 tokens form none"),
        ),
    ),
    "activation boundaries without a connector": Case(
        make=lambda **k: ActivationBoundaries(margin=0.5, **k),
        shapes={"maps": ((3, 3, 2), (3, 3, 2)), "vectors": ((5,), (5,))},
        reference=boundaries(0.5),
    ),
}
