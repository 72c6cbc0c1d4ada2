"""Losses between two networks' outputs. The maths is in `kdtoolkit.functional`.

All read logits, the source's first: `loss(source_logits, student_logits)`, shapes
`(batch, classes)` or `(batch, ..., classes)`. Each returns one value per example, which Keras
weights and averages over the batch.

Temperatures, shares and weights are variables: assign them, for instance `loss.temperature = 2.0`,
and a distiller's next batch uses the new value. (In plain Keras, `model.compile(loss=...)`, JAX
reads them once: compile again.)
"""

from keras import ops

from kdtoolkit import functional
from kdtoolkit.losses.base import TransferLoss
from kdtoolkit.registry import public
from kdtoolkit.scalars import Scalar


class ResponseLoss(TransferLoss):
    """What the losses of this file have in common: logits of one shape from both networks."""

    reads = "logits"
    minimum_classes = 2

    def check_shapes(self, source, student):
        owner = type(self).__name__
        if isinstance(source, list) or isinstance(student, list):
            raise ValueError(
                f"{owner} compares one output with one output. Expected one shape from each. "
                f"Received: source {source} and student {student}. Read one layer per transfer."
            )
        functional.check_logits(source, student, owner, self.minimum_classes)


@public
class SoftTargets(ResponseLoss):
    """Knowledge distillation: `T^2 * KL(softmax(source / T) || softmax(student / T))`.

    Summed over the classes, averaged over the batch. The gradient with respect to the student's
    logits is `T (q - p) / batch`; for large T it tends to the one of matching centred logits,
    `(student - source) / (classes * batch)`. 0 means that both distributions agree.

    With `standardise=True` both networks' logits are first brought to mean 0 and standard
    deviation 1 per example, so that the student needn't copy the size of the source's scores.

    Source: Hinton et al., 2015, arXiv:1503.02531; standardised: Sun et al., 2024, arXiv:2403.01427
    (T = 2, weight 9, label weight 0.1). Elsewhere: DeiT and NVIDIA Model-Optimizer divide by the
    number of classes as well; torchdistill leaves T^2 out where there are no labels;
    `keras.distillation.LogitsDistillation()` with its default `loss` compares raw logits.

    Args:
        temperature: T > 0. Above 1 it shows the student more of the source's small
            probabilities. Defaults to 4, the choice of most CIFAR-100 comparisons.
        standardise: whether logits are standardised first. Defaults to False.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: a temperature that isn't > 0 and finite.

    Example:
        >>> from kdtoolkit import losses
        >>> loss = losses.SoftTargets(temperature=2.0)
        >>> round(float(loss([[2.0, 0.0]], [[0.0, 0.0]])), 4)
        0.4438
    """

    temperature = Scalar(above=0.0, maximum=1e9)

    def __init__(
        self,
        temperature=4.0,
        standardise=False,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.temperature = temperature
        self.standardise = standardise

    def values(self, source, student):
        if self.standardise:
            source, student = functional.standardise(source), functional.standardise(student)
        return functional.kl_divergence(source, student, self.temperature)

    def get_config(self):
        return {**super().get_config(), "standardise": self.standardise}


@public
class SoftCrossEntropy(ResponseLoss):
    """Cross-entropy against the source's distribution: `-T^2 * sum_c p_c log q_c`.

    p = softmax(source / T), q = softmax(student / T). The form in which born-again networks are
    stated, with T = 1. It is `SoftTargets` plus T^2 times the source's entropy: the same training,
    another logged value, whose least is that entropy.

    Source: Furlanello et al., 2018, arXiv:1805.04770 (BAN: this alone; BAN+L: with the labels). The
    factor T^2 is Hinton's; it is 1 at the default.

    Args:
        temperature: T > 0. Defaults to 1, the paper's ("without softening").
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: a temperature that isn't > 0 and finite.

    Example:
        >>> from kdtoolkit import losses
        >>> round(float(losses.SoftCrossEntropy()([[2.0, 0.0]], [[0.0, 0.0]])), 4)
        0.6931
    """

    temperature = Scalar(above=0.0, maximum=1e9)

    def __init__(self, temperature=1.0, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.temperature = temperature

    def values(self, source, student):
        return functional.soft_cross_entropy(source, student, self.temperature)


@public
class HardTargets(ResponseLoss):
    """Cross-entropy against the class that the source ranks first: `CE(argmax source, student)`.

    DeiT's hard distillation: no temperature, the source's decision replaces the label. The
    pseudo-labels aren't smoothed; the paper smooths true labels only.

    Source: Touvron et al., 2021, arXiv:2012.12877, there with weight 0.5 beside 0.5 for the labels,
    and read from a distillation head of its own.

    Args:
        reduction, name, dtype: as in `TransferLoss`.

    Example:
        >>> from kdtoolkit import losses
        >>> round(float(losses.HardTargets()([[2.0, 0.0]], [[0.0, 0.0]])), 4)
        0.6931
    """

    def values(self, source, student):
        return functional.hard_target_cross_entropy(source, student)


@public
class MixedTargets(ResponseLoss):
    """Cross-entropy against labels and source mixed: `CE(s * label + (1 - s) * p, student)`.

    p = softmax(source / T). By linearity this is s times the label loss plus 1 - s times
    `SoftCrossEntropy`: give the distiller `label_weight=0` beside it, or labels count twice.

    Only the source is softened, and there is no T^2: label and source share one student
    distribution, whose gradient `q - target` doesn't shrink with T.

    Source: Takagi and Hattori, 2019 (IPSJ 81st national convention, 4U-02), eq. 1, s = 0.5, T = 1.
    PS-KD (Kim et al., 2021, arXiv:2006.12000) is the same with s falling from 1 to 0.2 in a
    straight line: assign `label_share` each epoch.

    Args:
        label_share: s from 0 to 1. Defaults to 0.5.
        temperature: T > 0. Defaults to 1.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: a share outside 0 to 1, or a temperature that isn't > 0 and finite; when
            called, labels that fit neither `(batch,)` nor `(batch, classes)`.

    Example:
        >>> from kdtoolkit import losses
        >>> loss = losses.MixedTargets(label_share=0.5)
        >>> target = {"source": [[2.0, 0.0]], "labels": [1]}
        >>> round(float(loss(target, [[0.0, 0.0]])), 4)
        0.6931
    """

    label_share = Scalar(minimum=0.0, maximum=1.0)
    temperature = Scalar(above=0.0, maximum=1e9)

    def __init__(
        self,
        label_share=0.5,
        temperature=1.0,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.label_share = label_share
        self.temperature = temperature

    def values(self, source, student, labels):
        return functional.mixed_target_cross_entropy(
            source, student, labels, self.label_share, self.temperature
        )


@public
class LogitsMSE(ResponseLoss):
    """Mean squared difference of the logits, over classes and batch.

    With `centred=True` each network's mean over the classes is subtracted first. Half of that,
    `sum_c (difference_c)^2 / (2 classes)`, is the limit of `SoftTargets` for T to infinity.

    Source: Ba and Caruana, 2014, arXiv:1312.6184, which sums over the classes and divides by 2: the
    same with weight `classes / 2`.

    Args:
        centred: whether a constant offset between the networks is ignored. Defaults to False.
        reduction, name, dtype: as in `TransferLoss`.

    Example:
        >>> from kdtoolkit import losses
        >>> float(losses.LogitsMSE()([[1.0, 3.0]], [[1.0, 1.0]]))
        2.0
    """

    # A regression's single output can be matched too.
    minimum_classes = 1

    def __init__(self, centred=False, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.centred = centred

    def values(self, source, student):
        return functional.logits_mse(source, student, self.centred)

    def get_config(self):
        return {**super().get_config(), "centred": self.centred}


@public
class DecoupledKD(ResponseLoss):
    """Decoupled distillation: `alpha * TCKD + beta * NCKD`, both with T^2.

    TCKD compares the probability of the labelled class against all others together; NCKD compares
    the distributions over the others alone. `SoftTargets` is the case alpha = 1 and beta = 1 - p_y,
    which silences NCKD exactly where the source is sure; here beta is free.

    Source: Zhao et al., 2022, arXiv:2203.08679. Beside it, the authors' code has label weight 1 and
    raises the weight of the whole linearly over the first 20 epochs; beta is 8 for most CIFAR-100
    pairs, 6 for wide ResNets and VGG, 2 for ResNet-56 to 20 and 110 to 32.

    Args:
        target_weight: alpha >= 0, the weight of TCKD. Defaults to 1.
        non_target_weight: beta >= 0, the weight of NCKD. Defaults to 8.
        temperature: T > 0. Defaults to 4.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: a negative or non-finite weight, or a temperature that isn't > 0 and finite;
            when called, labels that fit neither `(batch,)` nor `(batch, classes)`.

    Example:
        >>> from kdtoolkit import losses
        >>> loss = losses.DecoupledKD(temperature=1.0)
        >>> target = {"source": [[0.0, 0.0, 0.0]], "labels": [0]}
        >>> round(float(loss(target, [[0.0, 2.0, 0.0]])), 4)
        3.6553
    """

    target_weight = Scalar(minimum=0.0)
    non_target_weight = Scalar(minimum=0.0)
    temperature = Scalar(above=0.0, maximum=1e9)

    def __init__(
        self,
        target_weight=1.0,
        non_target_weight=8.0,
        temperature=4.0,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.target_weight = target_weight
        self.non_target_weight = non_target_weight
        self.temperature = temperature

    def values(self, source, student, labels):
        target, rest = functional.decoupled_kd(source, student, labels, self.temperature)
        return (
            ops.cast(self.target_weight, target.dtype) * target
            + ops.cast(self.non_target_weight, rest.dtype) * rest
        )


@public
class DIST(ResponseLoss):
    """Correlation instead of equality: the student keeps the source's order of preferences.

    `T^2 * (beta * (1 - mean_i rho(p_i, q_i)) + gamma * (1 - mean_c rho(p_:c, q_:c)))`, rho being
    Pearson's correlation of softened probabilities: along the classes of each example (inter), and
    along the batch for each class (intra).

    The inter term has a value per example. The intra term belongs to the batch as a whole: it is
    added to every example, so the mean is the formula. Sample weights therefore act on the inter
    term per example and on the intra term by their mean; an example of weight 0 still takes part in
    the correlation along the batch, which is the one that a replica sees.

    Source: Huang et al., 2022, arXiv:2205.10536, constants of the authors' code (CIFAR-100: T = 4
    and both weights 2; ImageNet: T = 1, both weights 2 against label weight 1).

    Args:
        inter_weight: beta >= 0. Defaults to 1.
        intra_weight: gamma >= 0. Defaults to 1.
        temperature: T > 0. Defaults to 1.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: a negative or non-finite weight, or a temperature that isn't > 0 and finite;
            when called, a batch known to hold one example. Where the size isn't known in
            advance, such a batch counts as uncorrelated and gives no intra gradient.

    Example:
        >>> from kdtoolkit import losses
        >>> logits = [[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]]
        >>> round(float(losses.DIST()(logits, logits)), 4)
        0.0
    """

    inter_weight = Scalar(minimum=0.0)
    intra_weight = Scalar(minimum=0.0)
    temperature = Scalar(above=0.0, maximum=1e9)

    def __init__(
        self,
        inter_weight=1.0,
        intra_weight=1.0,
        temperature=1.0,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.inter_weight = inter_weight
        self.intra_weight = intra_weight
        self.temperature = temperature

    def values(self, source, student):
        inter = functional.inter_class_relation(source, student, self.temperature)
        intra = functional.intra_class_relation(source, student, self.temperature)
        return (
            ops.cast(self.inter_weight, inter.dtype) * inter
            + ops.cast(self.intra_weight, intra.dtype) * intra
        )
