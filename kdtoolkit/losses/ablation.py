"""Losses that carry one half of a source's knowledge, to find out which half helps.

Born-again networks' two controls: the source's confidence without its view of the other classes,
and a view of the other classes that is shuffled. Inputs and values: as in `losses.response`.
"""

import keras

from kdtoolkit import functional
from kdtoolkit.losses.response import ResponseLoss
from kdtoolkit.registry import expects, public


@public
class CategoryConfidence(ResponseLoss):
    """Cross-entropy against the labels, weighted by how sure the source is of each example.

    `sum_s w_s * CE(label_s, student_s)` with `w_s = max_c p_sc / sum_u max_c p_uc` over the batch.
    The values per example are `batch * w_s * CE_s`, so that their mean is this sum; equal
    confidence gives the plain mean. It takes the label's place (`label_weight=0`), even where the
    source is sure and wrong.

    An ablation: it shows how much of born-again training comes from weighting examples, without the
    source's opinion on other classes. Weights are normalised in the batch that a replica sees,
    before sample weights.

    Source: Furlanello et al., 2018, arXiv:1805.04770, "confidence-weighted by teacher max" (CWTM).

    Args:
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: when called, labels that fit neither `(batch,)` nor `(batch, classes)`.

    Example:
        >>> from kdtoolkit import losses
        >>> target = {"source": [[4.0, 0.0], [0.0, 0.0]], "labels": [0, 1]}
        >>> round(float(losses.CategoryConfidence()(target, [[0.0, 0.0], [0.0, 0.0]])), 4)
        0.6931
    """

    def values(self, source, student, labels):
        return functional.confidence_weighted_cross_entropy(source, student, labels)


@public
class PermutedDarkKnowledge(ResponseLoss):
    """Cross-entropy against the source's distribution with its small probabilities shuffled.

    The largest probability stays with its class; the others are dealt out to the other classes at
    random, anew for each example and step.

    An ablation: it keeps the confidence and the entropy of each target and destroys which classes
    look alike to the source.

    Source: Furlanello et al., 2018, arXiv:1805.04770, "dark knowledge with permuted predictions"
    (DKPP). The paper doesn't say whether an example's permutation is kept; here it isn't.

    The random state is part of `variables`, so a distiller tracks and saves it. In plain Keras
    (`model.compile(loss=...)`) on JAX nothing tracks it, and every step repeats one permutation.

    Args:
        seed: an integer for a repeatable sequence, or `None` (default) for another in each run.
        reduction, name, dtype: as in `TransferLoss`.

    Example:
        >>> from kdtoolkit import losses
        >>> loss = losses.PermutedDarkKnowledge(seed=0)
        >>> round(float(loss([[2.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]])), 4)
        1.0986
    """

    @expects(seed="seed")
    def __init__(self, seed=None, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def values(self, source, student):
        shuffled = functional.permute_non_argmax(source, self.seed_generator)
        return functional.soft_cross_entropy(shuffled, student)

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}
