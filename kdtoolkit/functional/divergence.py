"""Bregman divergences, relations within a batch of predictions, and noise on logits."""

import math

import keras
from keras import ops

from kdtoolkit.functional.logits import (
    check_pairs,
    log_probabilities,
    paired,
    per_example,
    squared,
)
from kdtoolkit.functional.numbers import at_least_float32


def log_complement(log_p):
    """`log(1 - p)` of every class, from the log-probabilities of one distribution.

    For the largest p it is the logsumexp over the other classes, which stays exact where p rounds
    to 1; the others are at most 1/2.

    Args:
        log_p: tensor `(..., classes)`, a `log_probabilities`, at least 2 classes.

    Returns:
        Tensor of the same shape, entries <= 0.

    Example:
        >>> from kdtoolkit.functional.divergence import log_complement
        >>> float(log_complement([0.0, -200.0])[0])
        -200.0
    """
    log_p = at_least_float32(log_p)
    largest = ops.one_hot(ops.argmax(log_p, axis=-1), log_p.shape[-1], dtype="bool")
    others = ops.where(largest, -math.inf, log_p)
    together = ops.logsumexp(others, axis=-1, keepdims=True)
    return ops.where(largest, together, ops.log1p(-ops.exp(others)))


def squared_divergence(source_logits, student_logits, temperature=1.0):
    """Squared distance of the softened probabilities, `T^2 * sum_c (p_c - q_c)^2`.

    The Bregman divergence of `phi(p) = sum_c p_c^2`.

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`.
        temperature: T > 0, a number or scalar tensor. Defaults to 1.

    Returns:
        Tensor `(batch,)`, from 0 to 2 T^2.

    Raises:
        ValueError: shapes that differ, fewer than 2 classes, or T <= 0.

    Example:
        >>> from kdtoolkit.functional.divergence import squared_divergence
        >>> round(float(squared_divergence([[2.0, 0.0]], [[0.0, 0.0]])[0]), 4)
        0.29
    """
    source, student = paired(source_logits, student_logits, "squared_divergence")
    p, q = (ops.exp(log_probabilities(z, temperature)) for z in (source, student))
    difference = ops.sum(ops.square(p - q), axis=-1)
    return squared(temperature, student) * per_example(difference)


def logistic_divergence(source_logits, student_logits, temperature=1.0):
    """Each class against all others: T^2 times the sum of the binary relative entropies.

        T^2 * sum_c ( p_c log(p_c / q_c) + (1 - p_c) log((1 - p_c) / (1 - q_c)) )

    The Bregman divergence of `phi(p) = sum_c p_c log p_c + (1 - p_c) log(1 - p_c)`.

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`.
        temperature: T > 0, a number or scalar tensor. Defaults to 1.

    Returns:
        Tensor `(batch,)`, >= 0 up to rounding.

    Raises:
        ValueError: shapes that differ, fewer than 2 classes, or T <= 0.

    Example:
        >>> from kdtoolkit.functional.divergence import logistic_divergence
        >>> round(float(logistic_divergence([[2.0, 0.0]], [[0.0, 0.0]])[0]), 4)
        0.6556
    """
    source, student = paired(source_logits, student_logits, "logistic_divergence")
    log_p, log_q = (log_probabilities(z, temperature) for z in (source, student))
    log_not_p, log_not_q = log_complement(log_p), log_complement(log_q)
    each = ops.exp(log_p) * (log_p - log_q) + ops.exp(log_not_p) * (log_not_p - log_not_q)
    return squared(temperature, student) * per_example(ops.sum(each, axis=-1))


def _predictions(logits, temperature):
    """Softened probabilities as `(positions, batch, classes)`."""
    p = ops.exp(log_probabilities(logits, temperature))
    return ops.moveaxis(ops.reshape(p, (ops.shape(p)[0], -1, p.shape[-1])), 1, 0)


def batch_relation(source_logits, student_logits, temperature=1.0):
    """How alike each example's prediction is to those of the batch, compared with the source.

    `sum_j (p_i . p_j - q_i . q_j)^2` for example i, the squared row i of the difference of both
    Gram matrices `P P'` (batch x batch). The mean over the examples is `|P P' - Q Q'|^2 / batch`
    (Jin et al., 2023, "Multi-Level Logit Distillation", CVPR).

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`; positions have matrices of
            their own, over which the mean is taken.
        temperature: T > 0, a number or scalar tensor. Defaults to 1.

    Returns:
        Tensor `(batch,)`.

    Raises:
        ValueError: shapes that differ, fewer than 2 classes, T <= 0, or a batch known to hold one
            example.

    Example:
        >>> from kdtoolkit.functional.divergence import batch_relation
        >>> value = batch_relation([[9.0, 0.0], [0.0, 9.0]], [[0.0, 0.0], [0.0, 0.0]])
        >>> round(float(value[0]), 3)
        0.5
    """
    source, student = paired(source_logits, student_logits, "batch_relation")
    check_pairs(student.shape, "batch_relation")
    p, q = (_predictions(z, temperature) for z in (source, student))
    gram_p, gram_q = (ops.matmul(x, ops.moveaxis(x, -1, -2)) for x in (p, q))
    return ops.mean(ops.sum(ops.square(gram_p - gram_q), axis=-1), axis=0)


def class_relation(source_logits, student_logits, temperature=1.0):
    """How alike two classes' probabilities are over the batch, compared with the source.

    `|P' P - Q' Q|^2 / classes` with the class x class matrices of probabilities multiplied and
    summed over the batch (Jin et al., 2023, "Multi-Level Logit Distillation", CVPR). It grows with
    the square of the batch size.

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`; positions have matrices of
            their own, over which the mean is taken.
        temperature: T > 0, a number or scalar tensor. Defaults to 1.

    Returns:
        A scalar tensor: a batch has one such value.

    Raises:
        ValueError: as `batch_relation`.

    Example:
        >>> from kdtoolkit.functional.divergence import class_relation
        >>> value = class_relation([[9.0, 0.0], [0.0, 9.0]], [[0.0, 0.0], [0.0, 0.0]])
        >>> round(float(value), 3)
        0.5
    """
    source, student = paired(source_logits, student_logits, "class_relation")
    check_pairs(student.shape, "class_relation")
    p, q = (_predictions(z, temperature) for z in (source, student))
    gram_p, gram_q = (ops.matmul(ops.moveaxis(x, -1, -2), x) for x in (p, q))
    total = ops.sum(ops.square(gram_p - gram_q), axis=(-1, -2)) / student.shape[-1]
    return ops.mean(total)


def noisy(logits, sigma, alpha, seed):
    """Logits with multiplicative noise on some examples: `(1 + xi) z`, xi ~ N(0, sigma^2).

    Every logit draws a xi of its own; an example is left as it is with probability `1 - alpha`.
    The mean over the noise is z.

    Args:
        logits: tensor `(batch, ..., classes)`.
        sigma: standard deviation >= 0, a number or scalar tensor.
        alpha: probability from 0 to 1, a number or scalar tensor.
        seed: a `keras.random.SeedGenerator`: both draws need numbers of their own.

    Returns:
        Tensor of the same shape, at least float32.

    Example:
        >>> import keras
        >>> from kdtoolkit.functional.divergence import noisy
        >>> seed = keras.random.SeedGenerator(0)
        >>> [float(v) for v in noisy([[1.0, 2.0]], sigma=0.0, alpha=1.0, seed=seed)[0]]
        [1.0, 2.0]
    """
    logits = at_least_float32(logits)
    shape = ops.shape(logits)
    noise = keras.random.normal(shape, dtype=logits.dtype, seed=seed)
    one_each = (shape[0], *[1] * (len(shape) - 1))
    chosen = keras.random.uniform(one_each, dtype="float32", seed=seed) < ops.cast(alpha, "float32")
    noise = ops.where(chosen, ops.cast(sigma, logits.dtype) * noise, 0.0)
    return logits * (1.0 + noise)
