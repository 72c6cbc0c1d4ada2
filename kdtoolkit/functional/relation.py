"""Relations: between the examples of a batch, and between two layers of one network."""

import keras
import numpy as np
from keras import ops

from kdtoolkit.functional.numbers import at_least_float32, largest
from kdtoolkit.functional.positions import as_tokens, in_common


def _matrix(vectors):
    vectors = at_least_float32(vectors, 2)
    if len(vectors.shape) != 2:
        raise ValueError(
            "Relations between examples read one vector per example, (batch, features). Received: "
            f"shape {tuple(vectors.shape)}. Make vectors of it by `functional.as_vectors`"
        )
    return vectors


def unit_vectors(vectors):
    """Vectors of length 1 along the last axis. A vector of zeros stays one, with no gradient.

    Args:
        vectors: tensor `(..., features)`.

    Returns:
        Tensor of the same shape, at least float32.

    Example:
        >>> from kdtoolkit import functional
        >>> [round(float(v), 4) for v in functional.unit_vectors([[3.0, 4.0]])[0]]
        [0.6, 0.8]
    """
    vectors = at_least_float32(vectors, 1)
    # The direction doesn't depend on this factor, so it needs no gradient; it keeps the squares of
    # very large and very small features in range.
    size = ops.stop_gradient(largest(vectors, -1))
    vectors = vectors / ops.where(size == 0, 1.0, size)
    squared = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    directions = vectors / ops.sqrt(ops.where(squared > 0, squared, 1.0))
    # Not `size > 0`: NaN stays NaN.
    return ops.where(size == 0, 0.0, directions)


def gram_matrix(vectors):
    """Inner products of all pairs of vectors, `(batch, batch)`.

    Args:
        vectors: tensor `(batch, features)`.

    Example:
        >>> from kdtoolkit import functional
        >>> [float(v) for v in functional.gram_matrix([[1.0, 2.0], [0.0, 3.0]])[0]]
        [5.0, 6.0]
    """
    vectors = _matrix(vectors)
    return ops.matmul(vectors, ops.transpose(vectors))


def cosine_similarities(vectors):
    """Cosines of all pairs of vectors, `(batch, batch)`; 0 where one of them is all zeros.

    Args:
        vectors: tensor `(batch, features)`.

    Example:
        >>> from kdtoolkit import functional
        >>> round(float(functional.cosine_similarities([[1.0, 0.0], [2.0, 2.0]])[0, 1]), 4)
        0.7071
    """
    return gram_matrix(unit_vectors(vectors))


def _centred_gram(vectors):
    """Gram matrix of the vectors less their mean, whose size would swallow small differences."""
    vectors = _matrix(vectors)
    # Differences don't depend on the mean, so it needs no gradient.
    return gram_matrix(vectors - ops.stop_gradient(ops.mean(vectors, axis=0, keepdims=True)))


def _distances(gram):
    """Distances from a Gram matrix, and 1 / distance; both 0 for equal examples."""
    sizes = ops.diagonal(gram)
    sizes = ops.expand_dims(sizes, 0) + ops.expand_dims(sizes, 1)
    squared = sizes - 2 * gram
    # What is left of equal examples is rounding, and the root's gradient at 0 would be infinite.
    rounding = 4 * np.finfo(keras.backend.standardize_dtype(gram.dtype)).eps
    # Not `>`: NaN must not look like equal examples.
    apart = ops.logical_not(squared <= rounding * sizes)
    lengths = ops.sqrt(ops.where(apart, squared, 1.0))
    return ops.where(apart, lengths, 0.0), ops.where(apart, 1 / lengths, 0.0)


def pairwise_distances(vectors):
    """Euclidean distances of all pairs of vectors, `(batch, batch)`.

    From the Gram matrix of the centred vectors, `|x_i|^2 + |x_j|^2 - 2 <x_i, x_j>`, which needs no
    vector of differences per pair. Examples that agree up to its rounding (in float32 about 1e-3 of
    their distance from the mean) count as equal: distance 0, without a gradient.

    Args:
        vectors: tensor `(batch, features)`.

    Example:
        >>> from kdtoolkit import functional
        >>> round(float(functional.pairwise_distances([[0.0, 0.0], [3.0, 4.0]])[0, 1]), 4)
        5.0
    """
    return _distances(_centred_gram(vectors))[0]


def angle_cosines(vectors):
    """Cosines of the angles in all triangles of examples, `(batch, batch, batch)`.

    Entry (j, i, k) is the cosine of the angle at example j between i and k; 0 where i or k equals
    j, so that there is no angle. That is batch^3 numbers, whatever the width of the vectors.

    Args:
        vectors: tensor `(batch, features)`.

    Example:
        >>> from kdtoolkit import functional
        >>> square = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
        >>> [round(float(v), 4) + 0.0 for v in functional.angle_cosines(square)[0, 1]]
        [0.0, 1.0, 0.0, 0.7071]
    """
    gram = _centred_gram(vectors)
    inverse = _distances(gram)[1]
    to_first, to_second = ops.expand_dims(gram, 2), ops.expand_dims(gram, 1)
    own = ops.reshape(ops.diagonal(gram), (-1, 1, 1))
    # <x_i - x_j, x_k - x_j>, from inner products alone.
    inner = ops.expand_dims(gram, 0) - to_first - to_second + own
    return inner * ops.expand_dims(inverse, 2) * ops.expand_dims(inverse, 1)


def flow_matrix(first, second):
    """How the channels of two layers go together: `G_cd = mean over positions of first_c second_d`.

    Where the layers have different sizes, the one with more positions is averaged to the other's
    (`arrange`). A vector is one position.

    Args:
        first, second: features of one network, of any kind.

    Returns:
        Tensor `(batch, channels of the first, channels of the second)`.

    Raises:
        ValueError: see `check_arrangement`.

    Example:
        >>> from kdtoolkit import functional
        >>> tokens = [[[1.0, 2.0], [3.0, 4.0]]]
        >>> [float(v) for v in functional.flow_matrix(tokens, [[[1.0], [1.0]]])[0, :, 0]]
        [2.0, 3.0]
    """
    first, second = map(as_tokens, in_common(first, second))
    sizes = {first.shape[0], second.shape[0]} - {None}
    if len(sizes) > 1:
        raise ValueError(
            "`flow_matrix` reads two layers of one batch. Received: shapes "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    return ops.einsum("bpc,bpd->bcd", first, second) / first.shape[1]
