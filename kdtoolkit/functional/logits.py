"""What the losses share: dtype and shape of logits, log-probabilities, labels, statistics."""

import math

import keras
import numpy as np
from keras import ops

from kdtoolkit import scalars
from kdtoolkit.functional.numbers import as_numbers, at_least_float32, largest

#: Beyond these bounds T^2 or the softened logits leave float32.
TEMPERATURES = {"minimum": 1e-9, "maximum": 1e9}

# Stands for log(0). Finite, so that 0 * log(0) is 0 and not NaN; no finite logit comes near it.
_LOG_ZERO = -1e30


def _compatible(shape, other):
    """Whether two static shapes may be the same; `None` stands for any size."""
    return len(shape) == len(other) and all(
        a is None or b is None or a == b for a, b in zip(shape, other, strict=True)
    )


def check_logits(source_shape, student_shape, owner, minimum_classes=2):
    """Refuse shapes that can't be compared class by class.

    Args:
        source_shape, student_shape: tuples of sizes, classes last, `None` where unknown.
        owner: what the message calls the loss.
        minimum_classes: 2, or 1 for losses without a softmax.

    Raises:
        ValueError: the shapes differ, or there are too few classes.

    Example:
        >>> from kdtoolkit import functional
        >>> functional.check_logits((None, 10), (None, 10), "my loss")
    """
    source_shape, student_shape = tuple(source_shape), tuple(student_shape)
    shapes = f"source {source_shape} and student {student_shape}"
    if not _compatible(source_shape, student_shape):
        raise ValueError(
            f"{owner} compares class scores one by one and expects two equal shapes, classes "
            f"last. Received: {shapes}. Give the student as many outputs as the source (the same "
            "classes in the same order), or transfer a feature layer with a feature loss."
        )
    classes = source_shape[-1] if source_shape else 0
    if classes is not None and classes < minimum_classes:
        raise ValueError(
            f"{owner} expects at least {minimum_classes} classes on the last axis. Received: "
            f"{shapes}. A binary classifier with one output z has the two-class logits [0, z]."
        )
    if 0 in source_shape[1:]:
        raise ValueError(
            f"{owner} takes the mean over the axes between batch and classes, and expects a size "
            f"of at least 1. Received: {shapes}."
        )


def check_pairs(shape, owner):
    """Refuse a batch known to hold fewer than two examples, where they are compared with another.

    Args:
        shape: tuple with the batch first, `None` where it isn't known.
        owner: what the message calls the loss.

    Raises:
        ValueError: one example, or none.

    Example:
        >>> from kdtoolkit import functional
        >>> functional.check_pairs((None, 10), "my loss")
    """
    if shape[0] in (0, 1):
        raise ValueError(
            f"{owner} compares the examples of a batch with each other and expects at least 2. "
            f"Received: shape {tuple(shape)}. Use a larger batch, and drop a last batch of one "
            "example (`drop_remainder=True`)."
        )


def paired(source_logits, student_logits, owner, minimum_classes=2):
    """Both tensors in one dtype, at least float32, after `check_logits`."""
    source, student = at_least_float32(source_logits, 1), at_least_float32(student_logits, 1)
    check_logits(source.shape, student.shape, owner, minimum_classes)
    dtype = keras.backend.result_type(source.dtype, student.dtype)
    return ops.cast(source, dtype), ops.cast(student, dtype)


def softened(logits, temperature):
    """`logits / temperature`. What isn't a tensor is checked here: a number in `TEMPERATURES`."""
    if not ops.is_tensor(temperature) and not isinstance(temperature, keras.Variable):
        scalars.checked(temperature, "temperature", "kdtoolkit.functional", above=0)
        scalars.checked(temperature, "temperature", "kdtoolkit.functional", **TEMPERATURES)
    return logits / ops.cast(temperature, logits.dtype)


def squared(temperature, logits):
    """T squared in the dtype of the logits: what keeps gradients from vanishing as T grows."""
    return ops.square(ops.cast(temperature, logits.dtype))


def per_example(values):
    """Mean over every axis but the first.

    Args:
        values: tensor `(batch, ...)`.

    Returns:
        Tensor `(batch,)`.

    Example:
        >>> from kdtoolkit import functional
        >>> float(functional.per_example([[1.0, 3.0]])[0])
        2.0
    """
    values = at_least_float32(values)
    if 0 in values.shape[1:]:
        raise ValueError(
            "`per_example` takes the mean over every axis but the first, and expects sizes of at "
            f"least 1. Received: shape {tuple(values.shape)}"
        )
    axes = tuple(range(1, len(values.shape)))
    return ops.mean(values, axis=axes) if axes else values


def log_probabilities(logits, temperature=1.0):
    """Log of the softened softmax, `log_softmax(logits / T)` over the last axis.

    Args:
        logits: tensor `(..., classes)`.
        temperature: T > 0, a number or scalar tensor. Above 1 flattens the distribution. Defaults
            to 1.

    Returns:
        Tensor of the same shape with entries <= 0; -1e30 for a logit of -inf.

    Raises:
        ValueError: T is a number that isn't > 0 and finite.

    Example:
        >>> from kdtoolkit import functional
        >>> [float(v) for v in functional.log_probabilities([0.0, -200.0])]
        [0.0, -200.0]
    """
    logits = softened(at_least_float32(logits, 1), temperature)
    return ops.maximum(ops.log_softmax(logits, axis=-1), _LOG_ZERO)


def _is_sparse(labels, logits):
    """Whether `labels` are class numbers; refuses what is neither numbers nor distributions."""
    shape, expected = tuple(labels.shape), tuple(logits.shape)
    if _compatible(shape, expected):
        return False
    if _compatible(shape, expected[:-1]) or _compatible(shape, (*expected[:-1], 1)):
        return True
    raise ValueError(
        f"Labels for logits of shape {expected} must be class numbers of shape {expected[:-1]} "
        f"(or with a last axis of 1), or one-hot or soft labels of shape {expected}. Received "
        f"labels of shape {shape}. Check that the number of classes and the batch agree."
    )


def _without_last_axis_of_one(labels, logits):
    return ops.squeeze(labels, -1) if len(labels.shape) == len(logits.shape) else labels


def label_distribution(labels, logits):
    """Labels in any form as a distribution over the classes.

    Args:
        labels: class numbers `(batch, ...)` or `(batch, ..., 1)`, integers or floats that hold
            integers; or one-hot or soft labels `(batch, ..., classes)`. A class number outside
            0 ... classes - 1 becomes all zeros, so a cross-entropy against it is 0.
        logits: tensor `(batch, ..., classes)`: gives the number of classes and the dtype.

    Returns:
        Tensor of the shape and, at least float32, the dtype of `logits`.

    Raises:
        ValueError: labels of another shape.

    Example:
        >>> from kdtoolkit import functional
        >>> [float(v) for v in functional.label_distribution([1], [[0.3, 0.2, 0.1]])[0]]
        [0.0, 1.0, 0.0]
    """
    labels, logits = as_numbers(labels, "labels"), at_least_float32(logits, 1)
    if not _is_sparse(labels, logits):
        return ops.cast(labels, logits.dtype)
    numbers = ops.cast(_without_last_axis_of_one(labels, logits), "int32")
    return ops.one_hot(numbers, logits.shape[-1], dtype=logits.dtype)


def class_numbers(labels, logits):
    """Labels in any form as class numbers; of a soft label the largest entry counts.

    Args and Raises: as in `label_distribution`.

    Returns:
        Integer tensor, the shape of `logits` without its last axis.

    Example:
        >>> from kdtoolkit import functional
        >>> int(functional.class_numbers([[0.1, 0.7, 0.2]], [[0.3, 0.2, 0.1]])[0])
        1
    """
    labels, logits = as_numbers(labels, "labels"), at_least_float32(logits, 1)
    if not _is_sparse(labels, logits):
        return ops.argmax(labels, axis=-1)
    return ops.cast(_without_last_axis_of_one(labels, logits), "int32")


def _centred(tensor, axis):
    """The tensor less its mean along `axis`, and the length of what is left."""
    size = largest(tensor, axis)
    # The shift makes a constant vector exactly zero, whatever the rounding of its mean. It cancels,
    # so it needs no gradient.
    top = ops.max(tensor, axis=axis, keepdims=True, initial=-math.inf)
    tensor = tensor - ops.stop_gradient(top)
    tensor = tensor - ops.mean(tensor, axis=axis, keepdims=True)
    squared = ops.sum(ops.square(tensor), axis=axis, keepdims=True)
    # What is constant up to rounding, such as the output of a head that starts at zero, gets length
    # 1: the quotient stays about zero, and its gradient, else NaN or 1e7, of ordinary size.
    rounding = 4 * np.finfo(keras.backend.standardize_dtype(tensor.dtype)).eps
    spread = largest(tensor, axis)
    constant = ops.logical_or(spread <= rounding * size, squared <= 0)
    return tensor, ops.sqrt(ops.where(constant, 1.0, squared))


def standardise(logits):
    """Logits with mean 0 and standard deviation 1 over the classes.

    `(z - mean(z)) / (std(z) + 1e-7)`, std with ddof = 1, per example: only the shape of the scores
    is left, not their size (Sun et al., 2024, arXiv:2403.01427, with the constants of the authors'
    code). Constant logits give zeros, as the formula does, but with a finite gradient.

    Args:
        logits: tensor `(..., classes)`, at least 2 classes.

    Returns:
        Tensor of the same shape. The same for `a * logits + b`, a > 0.

    Raises:
        ValueError: fewer than 2 classes.

    Example:
        >>> from kdtoolkit import functional
        >>> [round(float(v), 4) for v in functional.standardise([1.0, 2.0, 3.0])]
        [-1.0, 0.0, 1.0]
    """
    logits = at_least_float32(logits, 1)
    check_logits(logits.shape, logits.shape, "standardise")
    centred, length = _centred(logits, -1)
    return centred / (length / (logits.shape[-1] - 1) ** 0.5 + 1e-7)


def pearson_correlation(first, second, axis=-1):
    """Pearson's correlation, `<x, y> / (|x| |y| + 1e-8)` of the centred vectors along `axis`.

    Args:
        first, second: tensors of one shape and dtype.
        axis: axis of the vectors. Defaults to the last.

    Returns:
        Tensor without that axis, in [-1, 1]. A constant vector correlates with nothing: 0.

    Example:
        >>> from kdtoolkit import functional
        >>> round(float(functional.pearson_correlation([1.0, 2.0, 3.0], [9.0, 5.0, 1.0])), 4)
        -1.0
    """
    first, second = at_least_float32(first, 1), at_least_float32(second, 1)
    check_logits(first.shape, second.shape, "pearson_correlation", 1)
    dtype = keras.backend.result_type(first.dtype, second.dtype)
    first, second = ops.cast(first, dtype), ops.cast(second, dtype)
    first, first_length = _centred(first, axis)
    second, second_length = _centred(second, axis)
    return ops.sum(first * second / (first_length * second_length + 1e-8), axis=axis)


def confidence_weights(logits):
    """How sure a network is of each example: its largest probability, divided by the batch's mean.

    Args:
        logits: tensor `(batch, ..., classes)`.

    Returns:
        Tensor `(batch, ...)` of mean 1. Divided by its number of entries it is the weight
        `w_s = max_c p_sc / sum_u max_c p_uc` of born-again networks' CWTM.

    Example:
        >>> from kdtoolkit import functional
        >>> weights = functional.confidence_weights([[0.0, 0.0], [100.0, 0.0]])
        >>> [round(float(w), 4) for w in weights]
        [0.6667, 1.3333]
    """
    logits = at_least_float32(logits, 1)
    check_logits(logits.shape, logits.shape, "confidence_weights")
    confidence = ops.exp(ops.max(log_probabilities(logits), axis=-1, initial=_LOG_ZERO))
    return confidence / ops.mean(confidence)


def permute_non_argmax(logits, seed):
    """Shuffle every class's logit but the largest, which stays where it is.

    Each example (and position) gets a permutation of its own, uniform over the other classes. Of
    equal largest logits the first stays.

    Args:
        logits: tensor `(..., classes)`, at least 2 classes.
        seed: an integer for the same permutation at every call, or a `keras.random.SeedGenerator`
            for a new one at every call.

    Returns:
        Tensor of the same shape and at least float32, the same values in another order.

    Raises:
        ValueError: fewer than 2 classes.

    Example:
        >>> from kdtoolkit import functional
        >>> shuffled = functional.permute_non_argmax([[1.0, 9.0, 3.0, 2.0]], seed=0)
        >>> float(shuffled[0, 1]), sorted(float(v) for v in shuffled[0])
        (9.0, [1.0, 2.0, 3.0, 9.0])
    """
    logits = at_least_float32(logits, 1)
    check_logits(logits.shape, logits.shape, "permute_non_argmax")
    classes = logits.shape[-1]
    first = ops.expand_dims(ops.argmax(logits, axis=-1), -1)
    rank = ops.arange(classes - 1, dtype=first.dtype)
    others = ops.take_along_axis(logits, rank + ops.cast(rank >= first, first.dtype), axis=-1)
    order = ops.argsort(keras.random.uniform(ops.shape(others), seed=seed), axis=-1)
    shuffled = ops.take_along_axis(others, order, axis=-1)
    # Put them back: classes after the largest moved one place to the left above.
    place = ops.arange(classes, dtype=first.dtype)
    index = ops.minimum(place - ops.cast(place > first, first.dtype), classes - 2)
    return ops.where(place == first, logits, ops.take_along_axis(shuffled, index, axis=-1))
