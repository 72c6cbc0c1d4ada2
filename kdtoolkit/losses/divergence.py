"""Bregman divergences: what one random sample of a teacher per step may be distilled with."""

from kdtoolkit.functional import kl_divergence
from kdtoolkit.functional.divergence import logistic_divergence, squared_divergence
from kdtoolkit.losses.response import ResponseLoss
from kdtoolkit.registry import public
from kdtoolkit.scalars import Scalar

#: The divergence that each generator phi gives.
GENERATORS = {
    "squared": squared_divergence,
    "logistic": logistic_divergence,
    "kl": kl_divergence,
}


@public
class BregmanDivergence(ResponseLoss):
    """A Bregman divergence of the student's probabilities from the source's: `T^2 * D(p, q)`.

    p = softmax(source / T), q = softmax(student / T), and
    `D(p, q) = phi(p) - phi(q) - <grad phi(q), p - q>` for one of

        squared   sum_c (p_c - q_c)^2
        logistic  sum_c p_c log(p_c / q_c) + (1 - p_c) log((1 - p_c) / (1 - q_c))
        kl        sum_c p_c log(p_c / q_c), the same as `SoftTargets`

    The student's part is linear in p. So for a random source (dropout left on, another
    augmentation, a teacher drawn from several) the mean of D(p, q) is D(mean p, q) plus a term
    without the student: one sample of the source per step gives, on average, the gradient of
    distilling the mean of its probabilities. Reverse KL, KL(q || p), pulls to the mean of log p
    instead, and is refused.

    Everything is computed from log-probabilities, log(1 - p) too, so it holds where p rounds to 1.

    Source: Bulo, Porzi and Kontschieder, "Dropout Distillation", ICML 2016. The factor T^2 is
    Hinton's; it is 1 at the default.

    Args:
        generator: "squared", "logistic" or "kl" (default).
        temperature: T > 0. Defaults to 1.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: another generator, or a temperature that isn't > 0 and finite.

    Example:
        >>> from kdtoolkit import losses
        >>> loss = losses.BregmanDivergence("squared")
        >>> round(float(loss([[2.0, 0.0]], [[0.0, 0.0]])), 4)
        0.29
    """

    temperature = Scalar(above=0.0, maximum=1e9)

    def __init__(
        self,
        generator="kl",
        temperature=1.0,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        if not isinstance(generator, str) or generator not in GENERATORS:
            raise ValueError(
                f"`generator` of BregmanDivergence must be one of {tuple(GENERATORS)}: for these, "
                "one random sample of the source per step has, on average, the gradient of its "
                "mean probabilities. Other divergences don't have that; reverse KL pulls to the "
                f"mean of log p instead. Received: generator={generator!r}. For another loss, give "
                "`kd.Transfer` a function (source, student)."
            )
        self.generator = generator
        self.temperature = temperature

    def values(self, source, student):
        return GENERATORS[self.generator](source, student, self.temperature)

    def get_config(self):
        return {**super().get_config(), "generator": self.generator}
