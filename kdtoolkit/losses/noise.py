"""Logit matching with a noisy teacher."""

import keras

from kdtoolkit import functional
from kdtoolkit.functional.divergence import noisy
from kdtoolkit.losses.response import ResponseLoss
from kdtoolkit.registry import expects, public
from kdtoolkit.scalars import Scalar


@public
class NoisyLogits(ResponseLoss):
    """Mean squared difference of the logits, with noise on the source's: `mean_c (z'_c - s_c)^2`.

    `z' = (1 + xi) z` for an example with probability `alpha`, else z: xi ~ N(0, sigma^2), drawn
    anew for every logit, example and step. z are the source's logits, s the student's.

    Noise of one teacher stands for several teachers that disagree. On average the loss is
    `LogitsMSE` plus `alpha * sigma^2 * mean_c z_c^2`, which the student can't change: the noise
    leaves the mean of the gradient as it is and makes single steps vary, most where the source's
    scores are large. With sigma = 0 or alpha = 0 it is `LogitsMSE`.

    The random state is part of `variables`, so a distiller tracks and saves it. In plain Keras
    (`model.compile(loss=...)`) on JAX nothing tracks it, and every step repeats the same noise.

    Source: Sau and Balasubramanian, 2016, arXiv:1610.09650. One xi per logit is our reading of the
    paper's vector of noise; the defaults are ours.

    Args:
        sigma: standard deviation of the noise, >= 0. Defaults to 0.3.
        alpha: probability that an example is noisy, from 0 to 1. Defaults to 0.5.
        seed: an integer for a repeatable sequence, or `None` (default) for another in each run.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: a sigma that isn't >= 0 and finite, or an alpha outside 0 to 1.

    Example:
        >>> from kdtoolkit import losses
        >>> float(losses.NoisyLogits(sigma=0.0)([[1.0, 3.0]], [[1.0, 1.0]]))
        2.0
    """

    # A regression's single output can be matched too.
    minimum_classes = 1

    sigma = Scalar(minimum=0.0)
    alpha = Scalar(minimum=0.0, maximum=1.0)

    @expects(seed="seed")
    def __init__(
        self,
        sigma=0.3,
        alpha=0.5,
        seed=None,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.sigma = sigma
        self.alpha = alpha
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def values(self, source, student):
        source = noisy(source, self.sigma, self.alpha, self.seed_generator)
        return functional.logits_mse(source, student)

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}
