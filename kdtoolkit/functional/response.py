"""Losses between two networks' logits. Conventions: see `kdtoolkit.functional`."""

import math

import keras
from keras import ops

from kdtoolkit import scalars
from kdtoolkit.functional.logits import (
    check_pairs,
    class_numbers,
    confidence_weights,
    label_distribution,
    log_probabilities,
    paired,
    pearson_correlation,
    per_example,
    softened,
    squared,
)


def _relative_entropy(log_p, log_q):
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def _cross_entropy(targets, student):
    return -ops.sum(targets * log_probabilities(student), axis=-1)


def kl_divergence(source_logits, student_logits, temperature=1.0):
    """Divergence of the student's softened distribution from the source's, times T squared.

    `T^2 * sum_c p_c (log p_c - log q_c)`, p = softmax(source / T), q = softmax(student / T). The
    gradient with respect to the student's logits is `T (q - p)`: the factor T^2 keeps it from
    vanishing as T grows (Hinton et al., 2015, arXiv:1503.02531, section 2).

    The rounding error of the value is about T^2 * 1e-7 in float32.

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`.
        temperature: T > 0, a number or scalar tensor. Defaults to 1.

    Returns:
        Tensor `(batch,)`, >= 0 up to rounding; 0 if the logits differ only by a constant.

    Raises:
        ValueError: shapes that differ, fewer than 2 classes, or T <= 0.

    Example:
        >>> from kdtoolkit import functional
        >>> value = functional.kl_divergence([[2.0, 0.0]], [[0.0, 0.0]])
        >>> round(float(value[0]), 4)
        0.3278
    """
    source, student = paired(source_logits, student_logits, "kl_divergence")
    log_p = log_probabilities(source, temperature)
    log_q = log_probabilities(student, temperature)
    return squared(temperature, student) * per_example(_relative_entropy(log_p, log_q))


def cross_entropy(target_probabilities, student_logits):
    """`-sum_c target_c log softmax(student)_c`, linear in the target.

    Args:
        target_probabilities: tensor `(batch, ..., classes)`, entries >= 0, usually of sum 1.
        student_logits: tensor of the same shape.

    Returns:
        Tensor `(batch,)`. The gradient with respect to the student's logits is
        `q * sum(target) - target`.

    Raises:
        ValueError: shapes that differ, or fewer than 2 classes.

    Example:
        >>> from kdtoolkit import functional
        >>> value = functional.cross_entropy([[0.5, 0.5]], [[0.0, 0.0]])
        >>> round(float(value[0]), 4)
        0.6931
    """
    targets, student = paired(target_probabilities, student_logits, "cross_entropy")
    return per_example(_cross_entropy(targets, student))


def soft_cross_entropy(source_logits, student_logits, temperature=1.0):
    """Cross-entropy against the source's softened distribution, times T squared.

    `-T^2 * sum_c p_c log q_c`: `kl_divergence` plus T^2 times the source's entropy. The student's
    gradient is the same; the least value is that entropy and not 0.

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`.
        temperature: T > 0, a number or scalar tensor. Defaults to 1.

    Returns:
        Tensor `(batch,)`.

    Raises:
        ValueError: shapes that differ, fewer than 2 classes, or T <= 0.

    Example:
        >>> from kdtoolkit import functional
        >>> value = functional.soft_cross_entropy([[0.0, 0.0]], [[0.0, 0.0]], temperature=2.0)
        >>> round(float(value[0]), 4)
        2.7726
    """
    source, student = paired(source_logits, student_logits, "soft_cross_entropy")
    p = ops.exp(log_probabilities(source, temperature))
    value = per_example(_cross_entropy(p, softened(student, temperature)))
    return squared(temperature, student) * value


def hard_target_cross_entropy(source_logits, student_logits):
    """Cross-entropy of the student against the class that the source ranks first.

    Of equal scores the first class counts. Hard distillation of DeiT (Touvron et al., 2021,
    arXiv:2012.12877).

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`.

    Returns:
        Tensor `(batch,)`.

    Raises:
        ValueError: shapes that differ, or fewer than 2 classes.

    Example:
        >>> from kdtoolkit import functional
        >>> value = functional.hard_target_cross_entropy([[9.0, 1.0]], [[0.0, 0.0]])
        >>> round(float(value[0]), 4)
        0.6931
    """
    source, student = paired(source_logits, student_logits, "hard_target_cross_entropy")
    labels = label_distribution(ops.argmax(source, axis=-1), student)
    # NaN has no rank: without this, the class that a broken source ranks first would be taught.
    broken = ops.any(ops.isnan(source), axis=-1)
    return per_example(ops.where(broken, math.nan, _cross_entropy(labels, student)))


def mixed_target_cross_entropy(
    source_logits, student_logits, labels, label_share=0.5, temperature=1.0
):
    """Cross-entropy of the student against a mixture of the labels and the source.

    The target is `s * label + (1 - s) * softmax(source / T)`. Only the source is softened, and no
    T^2 appears: label and source share one student distribution, whose gradient `q - target`
    doesn't shrink with T.

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`.
        labels: class numbers or distributions, see `label_distribution`.
        label_share: s from 0 to 1, a number or scalar tensor. Defaults to 0.5.
        temperature: T > 0, a number or scalar tensor. Defaults to 1.

    Returns:
        Tensor `(batch,)`.

    Raises:
        ValueError: shapes that differ, fewer than 2 classes, or T <= 0.

    Example:
        >>> from kdtoolkit import functional
        >>> value = functional.mixed_target_cross_entropy([[0.0, 0.0]], [[0.0, 0.0]], [1])
        >>> round(float(value[0]), 4)
        0.6931
    """
    source, student = paired(source_logits, student_logits, "mixed_target_cross_entropy")
    if not ops.is_tensor(label_share) and not isinstance(label_share, keras.Variable):
        bounds = {"minimum": 0.0, "maximum": 1.0}
        scalars.checked(label_share, "label_share", "kdtoolkit.functional", **bounds)
    share = ops.cast(label_share, student.dtype)
    p = ops.exp(log_probabilities(source, temperature))
    targets = share * label_distribution(labels, student) + (1 - share) * p
    return per_example(_cross_entropy(targets, student))


def confidence_weighted_cross_entropy(source_logits, student_logits, labels):
    """Cross-entropy against the labels, weighted by how sure the source is of each example.

    `w_s * CE(label_s, student_s)` with the `confidence_weights` w of mean 1 over the batch, so the
    mean over the batch is the weighted mean of the cross-entropies.

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`.
        labels: class numbers or distributions, see `label_distribution`.

    Returns:
        Tensor `(batch,)`.

    Raises:
        ValueError: shapes that differ, or fewer than 2 classes.

    Example:
        >>> from kdtoolkit import functional
        >>> value = functional.confidence_weighted_cross_entropy([[4.0, 0.0]], [[0.0, 0.0]], [1])
        >>> round(float(value[0]), 4)
        0.6931
    """
    source, student = paired(source_logits, student_logits, "confidence_weighted_cross_entropy")
    values = _cross_entropy(label_distribution(labels, student), student)
    return per_example(confidence_weights(source) * values)


def logits_mse(source_logits, student_logits, centred=False):
    """Mean over the classes of the squared difference of the logits.

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`; one class is allowed.
        centred: whether each network's mean over the classes is subtracted first, so that a
            constant offset, which a softmax doesn't see, costs nothing. Defaults to False.

    Returns:
        Tensor `(batch,)`. The gradient with respect to the student's logits is
        `2 (student - source) / classes`, of the centred logits where `centred`.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> from kdtoolkit import functional
        >>> float(functional.logits_mse([[1.0, 3.0]], [[1.0, 1.0]])[0])
        2.0
        >>> float(functional.logits_mse([[1.0, 3.0]], [[1.0, 1.0]], centred=True)[0])
        1.0
    """
    source, student = paired(source_logits, student_logits, "logits_mse", minimum_classes=1)
    difference = student - source
    if centred:
        difference = difference - ops.mean(difference, axis=-1, keepdims=True)
    return per_example(ops.mean(ops.square(difference), axis=-1))


def decoupled_kd(source_logits, student_logits, labels, temperature=4.0):
    """The two parts of T^2 * KL: the labelled class against the rest, and the rest on its own.

    With p_y the source's probability of the labelled class, p' its distribution over the other
    classes alone, and q_y, q' the student's (all softened by T):

        target part      TCKD = T^2 * KL([p_y, 1 - p_y] || [q_y, 1 - q_y])
        non-target part  NCKD = T^2 * KL(p' || q')

    and `T^2 * KL(p || q) = TCKD + (1 - p_y) * NCKD` (Zhao et al., 2022, arXiv:2203.08679).

    log(1 - p_y) is a logsumexp over the other classes, so it is exact where p_y rounds to 1. The
    labelled class is left out of p' altogether, where the authors' code lowers its logit by 1000.

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`.
        labels: class numbers or distributions, see `label_distribution`; of a soft label the
            largest entry counts.
        temperature: T > 0, a number or scalar tensor. Defaults to 4.

    Returns:
        Two tensors `(batch,)`: the target part and the non-target part.

    Raises:
        ValueError: shapes that differ, fewer than 2 classes, or T <= 0.

    Example:
        >>> from kdtoolkit import functional
        >>> target, rest = functional.decoupled_kd([[5.0, 2.0, 2.0]], [[5.0, 1.0, 3.0]], [0])
        >>> round(float(target[0]), 4), round(float(rest[0]), 4)
        (0.0019, 0.4949)
    """
    source, student = paired(source_logits, student_logits, "decoupled_kd")
    labelled = ops.one_hot(class_numbers(labels, source), source.shape[-1], dtype="bool")
    p_binary, p_rest = _target_and_rest(softened(source, temperature), labelled)
    q_binary, q_rest = _target_and_rest(softened(student, temperature), labelled)
    factor = squared(temperature, student)
    return (
        factor * per_example(_relative_entropy(p_binary, q_binary)),
        factor * per_example(_relative_entropy(p_rest, q_rest)),
    )


def _target_and_rest(logits, labelled):
    """Log-probabilities of [the labelled class, all others], and of the others among themselves."""
    target = ops.sum(ops.where(labelled, logits, 0.0), axis=-1, keepdims=True)
    others = ops.where(labelled, -math.inf, logits)
    together = ops.logsumexp(others, axis=-1, keepdims=True)
    binary = ops.concatenate([target, together], axis=-1)
    return log_probabilities(binary), log_probabilities(others)


def inter_class_relation(source_logits, student_logits, temperature=1.0):
    """How far each example's probabilities are from being correlated with the source's.

    `T^2 * (1 - rho(p_i, q_i))`, rho being Pearson's correlation over the classes of example i
    (Huang et al., 2022, arXiv:2205.10536).

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`.
        temperature: T > 0, a number or scalar tensor. Defaults to 1.

    Returns:
        Tensor `(batch,)`, from 0 to 2 T^2.

    Raises:
        ValueError: shapes that differ, fewer than 2 classes, or T <= 0.

    Example:
        >>> from kdtoolkit import functional
        >>> value = functional.inter_class_relation([[2.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]])
        >>> round(float(value[0]), 4)
        0.0
    """
    source, student = paired(source_logits, student_logits, "inter_class_relation")
    p, q = (ops.exp(log_probabilities(z, temperature)) for z in (source, student))
    return squared(temperature, student) * per_example(1 - pearson_correlation(p, q))


def intra_class_relation(source_logits, student_logits, temperature=1.0):
    """How far each class's probabilities, over the batch, are from those of the source.

    `T^2 * mean_c (1 - rho(p_:c, q_:c))`, rho being Pearson's correlation over all examples (and
    positions) of the batch (Huang et al., 2022, arXiv:2205.10536).

    Args:
        source_logits, student_logits: tensors `(batch, ..., classes)`.
        temperature: T > 0, a number or scalar tensor. Defaults to 1.

    Returns:
        A scalar tensor, from 0 to 2 T^2: a batch has one such value. A class whose probability is
        the same in all examples counts as uncorrelated, 1.

    Raises:
        ValueError: shapes that differ, fewer than 2 classes, T <= 0, or a batch known to hold one
            example.

    Example:
        >>> from kdtoolkit import functional
        >>> source = [[2.0, 0.0], [0.0, 2.0]]
        >>> round(float(functional.intra_class_relation(source, source)), 4)
        0.0
    """
    source, student = paired(source_logits, student_logits, "intra_class_relation")
    p, q = (
        ops.reshape(ops.exp(log_probabilities(z, temperature)), (-1, z.shape[-1]))
        for z in (source, student)
    )
    check_pairs(p.shape, "intra_class_relation")
    return squared(temperature, student) * ops.mean(1 - pearson_correlation(p, q, axis=0))
