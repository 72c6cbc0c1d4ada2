"""One set of logits from those of several networks: what a cohort of students teaches together.

All take logits of several networks, a list of tensors `(batch, ..., classes)`, and return one
tensor of that shape.
"""

import math

import keras
from keras import ops

from kdtoolkit.functional.logits import label_distribution, paired

#: Halvings of the interval in which the best mixture of two networks lies.
HALVINGS = 20


def _stacked(logits):
    if not isinstance(logits, list | tuple) or not logits:
        raise ValueError(
            f"Expected a list with the logits of one network or more. Received: {logits!r}"
        )
    # Each with the first, in the dtype that holds all of them.
    pairs = [paired(logits[0], z, "a set of logits") for z in logits]
    dtype = keras.backend.result_type(*(z.dtype for _, z in pairs))
    return ops.stack([ops.cast(z, dtype) for _, z in pairs])


def mean_probabilities(logits):
    """The log of the mean of the networks' probabilities, which is a set of logits.

        log(1/K sum_k softmax(z_k))  =  logsumexp_k(log_softmax(z_k)) - log K

    Args:
        logits: list of K tensors `(batch, ..., classes)`.

    Example:
        >>> from keras import ops
        >>> from kdtoolkit.functional import mean_probabilities
        >>> first, second = ops.log([[0.8, 0.2]]), ops.log([[0.4, 0.6]])
        >>> [round(float(p), 3) for p in ops.exp(mean_probabilities([first, second]))[0]]
        [0.6, 0.4]
    """
    # Not the log of the mean: a class that no network believes in would become log(0).
    return ops.logsumexp(ops.log_softmax(_stacked(logits)), axis=0) - math.log(len(logits))


def mean_logits(logits):
    """The mean of the networks' logits; its softmax is the geometric mean, normalised.

    Args:
        logits: list of tensors `(batch, ..., classes)`.

    Example:
        >>> from kdtoolkit.functional import mean_logits
        >>> [float(z) for z in mean_logits([[[1.0, 0.0]], [[3.0, 4.0]]])[0]]
        [2.0, 2.0]
    """
    return ops.mean(_stacked(logits), axis=0)


def best_logits(logits, labels):
    """For each example the logits of the network whose cross-entropy with the label is least.

    Args:
        logits: list of tensors `(batch, classes)`.
        labels: class numbers `(batch,)`, or distributions `(batch, classes)`.

    Source: Guo et al., CVPR 2020, "Online Knowledge Distillation via Collaborative Learning"
    (KDCL-Naive); for each example, as here read.

    Example:
        >>> from kdtoolkit.functional import best_logits
        >>> [float(z) for z in best_logits([[[1.0, 0.0]], [[3.0, 4.0]]], labels=[1])[0]]
        [3.0, 4.0]
    """
    z = _stacked(logits)
    return _pick(z, _losses(z, _shares(labels, z)))


def best_mixture(logits, labels):
    """For each example the convex combination of the logits with the least cross-entropy.

        sum_k a_k z_k,  a = argmin CE(y, softmax(sum_k a_k z_k)),  a_k >= 0, sum_k a_k = 1

    A convex problem: from the best network on, one network after the other is mixed in to the best
    share, in rounds. Exact for two networks; for more, the loss is at most that of the best one.

    Args:
        logits: list of tensors `(batch, classes)`.
        labels: class numbers `(batch,)`, or distributions `(batch, classes)`.

    Source: Guo et al., CVPR 2020 (KDCL-Linear); for each example, as here read.

    Example:
        >>> from kdtoolkit.functional import best_mixture
        >>> z = [[2.0, 0.0, 2.0]], [[2.0, 2.0, 0.0]]  # each is wrong about one other class
        >>> [round(float(z_c), 3) for z_c in best_mixture(z, labels=[0])[0]]
        [2.0, 1.0, 1.0]
    """
    z = _stacked(logits)
    shares = _shares(labels, z)

    def improve(_, mixed):
        # The network towards which the loss falls most (Frank and Wolfe's choice).
        slopes = ops.sum((ops.softmax(mixed) - shares)[None] * z, axis=-1)
        return _mix(mixed, _pick(z, slopes), shares)

    rounds = 1 if len(logits) == 2 else 4 * len(logits)
    return ops.fori_loop(0, rounds, improve, _pick(z, _losses(z, shares)))


def min_logits(logits, labels):
    """For each class the least of the networks' logits, each counted from that of the label.

        z_c = min_k (z_k,c - z_k,y)

    The label's logit becomes 0, and no class gets more than the most confident network gives it.

    Args:
        logits: list of tensors `(batch, classes)`.
        labels: class numbers `(batch,)`, or distributions `(batch, classes)`; of these the mean
            logit under the label's distribution counts.

    Source: Guo et al., CVPR 2020 (KDCL-MinLogit).

    Example:
        >>> from kdtoolkit.functional import min_logits
        >>> [float(z) for z in min_logits([[[5.0, 1.0, 4.0]], [[2.0, 1.0, 0.0]]], labels=[0])[0]]
        [0.0, -4.0, -2.0]
    """
    z = _stacked(logits)
    shares = _shares(labels, z)
    return ops.min(z - ops.sum(z * shares[None], axis=-1, keepdims=True), axis=0, initial=math.inf)


def _shares(labels, z):
    return label_distribution(labels, z[0])


def _losses(z, shares):
    """Cross-entropies `(networks, batch)`."""
    return -ops.sum(shares * ops.log_softmax(z), axis=-1)


def _pick(z, scores):
    """For each example the logits, of `z` `(networks, batch, classes)`, with the least score."""
    chosen = ops.one_hot(ops.argmin(scores, axis=0), z.shape[0], axis=0, dtype=z.dtype)
    return ops.sum(ops.where(chosen[..., None] > 0, z, 0), axis=0)


def _mix(start, end, shares):
    """The point between two sets of logits with the least cross-entropy, for each example."""
    step = end - start

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        rises = ops.sum((ops.softmax(start + middle * step) - shares) * step, -1, keepdims=True) > 0
        return ops.where(rises, low, middle), ops.where(rises, middle, high)

    low = ops.zeros_like(start[..., :1])
    low, _ = ops.fori_loop(0, HALVINGS, halve, (low, low + 1.0))
    return start + low * step
