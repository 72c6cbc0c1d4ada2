"""Noise-contrastive estimation: which of many stored vectors belongs to this example?"""

import math

from keras import ops


def scores(anchors, rows, temperature):
    """Inner products of each anchor with candidates of its own, divided by the temperature.

    Args:
        anchors: tensor `(batch, features)`.
        rows: tensor `(batch, candidates, features)`.
        temperature: number > 0.

    Returns:
        Tensor `(batch, candidates)`.

    Example:
        >>> from keras import ops
        >>> from kdtoolkit.functional.contrastive import scores
        >>> anchors, rows = ops.array([[1.0, 2.0]]), ops.array([[[1.0, 0.0], [0.0, 1.0]]])
        >>> [float(v) for v in scores(anchors, rows, temperature=0.5)[0]]
        [2.0, 4.0]
    """
    return ops.squeeze(ops.matmul(rows, ops.expand_dims(anchors, -1)), -1) / temperature


def log_normaliser(batch_scores, examples):
    """log Z, where `Z = examples * mean exp(score)` makes `exp(score) / Z` sum to about 1.

    Args:
        batch_scores: tensor `(batch, candidates)`, of candidates drawn uniformly.
        examples: number of vectors that candidates are drawn from.

    Returns:
        A scalar tensor.

    Example:
        >>> import math
        >>> from kdtoolkit.functional.contrastive import log_normaliser
        >>> math.isclose(float(log_normaliser([[0.0, 0.0]], 10)), math.log(10), rel_tol=1e-6)
        True
    """
    batch_scores = ops.convert_to_tensor(batch_scores)
    count = ops.cast(ops.size(batch_scores), batch_scores.dtype)
    return ops.logsumexp(batch_scores) - ops.log(count) + math.log(examples)


def noise_contrastive(batch_scores, log_z, examples):
    """Cross-entropy of telling an example's own vector from K that are drawn as noise.

        -log h(s_0) - sum_k log(1 - h(s_k)),   h(s) = (e^s / Z) / (e^s / Z + K / examples)

    s_0 is the score of the example's own vector, s_1 ... s_K those of the noise (Tian et al., 2020,
    arXiv:1910.10699, appendix, after Gutmann and Hyvarinen, 2010). Computed in log space.

    Args:
        batch_scores: tensor `(batch, 1 + K)`, the own vector's score first.
        log_z: log Z, a scalar tensor or number.
        examples: number of vectors that the noise is drawn from, uniformly.

    Returns:
        Tensor `(batch,)`.

    Example:
        >>> import math
        >>> from kdtoolkit.functional.contrastive import noise_contrastive
        >>> value = noise_contrastive([[0.0, 0.0]], log_z=math.log(10), examples=10)
        >>> round(float(value[0]), 4)
        1.3863
    """
    batch_scores = ops.convert_to_tensor(batch_scores)
    negatives = batch_scores.shape[-1] - 1
    odds = batch_scores - log_z - math.log(negatives / examples)
    own, noise = odds[:, :1], odds[:, 1:]
    return ops.sum(ops.softplus(-own), axis=-1) + ops.sum(ops.softplus(noise), axis=-1)
