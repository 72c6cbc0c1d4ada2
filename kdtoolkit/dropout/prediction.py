"""What many random passes say together."""

import dataclasses

import numpy as np

from kdtoolkit.logits import log_probabilities

# Stands in for a probability of 0 in a logarithm.
_TINY = np.finfo("float64").tiny


@dataclasses.dataclass(frozen=True)
class MonteCarloPrediction:
    """What S passes with different dropout masks say of some examples.

    With p_s the probabilities of pass s, p their mean over the passes, C classes, and
    H(p) = -sum_c p_c log p_c in nats:

        probabilities        p = 1/S sum_s p_s              the prediction
        deviation            sqrt(1/S sum_s (p_s - p)^2)    its spread, for each class
        entropy              H(p)                           0 to log C, all uncertainty
        mutual_information   H(p) - 1/S sum_s H(p_s)        0 to log C, "BALD": their disagreement
        variation_ratio      1 - m / S                      0 to 1 - 1 / C, where m passes of S name
                                                            the class that most of them name

    The first two are `(examples, ..., classes)`, the others `(examples, ...)`, all float64.

    An entropy of noise in the data stays however many passes there are; the mutual information is
    the part that comes from the weights. The standard error of `probabilities` is
    `deviation / sqrt(samples)`.

    Source: Gal and Ghahramani, 2016, arXiv:1506.02142 (the mean over passes); Houlsby et al., 2011,
    arXiv:1112.5745 (BALD).

    Attributes:
        samples: int, S.
    """

    probabilities: np.ndarray
    deviation: np.ndarray
    entropy: np.ndarray
    mutual_information: np.ndarray
    variation_ratio: np.ndarray
    samples: int

    @property
    def logits(self):
        """The log of `probabilities`, a valid set of logits; -708 for a probability of 0."""
        return np.log(np.maximum(self.probabilities, _TINY))


class Tally:
    """Sums over passes, in float64. Memory doesn't grow with their number."""

    def __init__(self):
        self.samples = 0
        self._sums = [0.0, 0.0, 0.0, 0.0]

    def add(self, logits):
        """Count some passes: an array `(passes, examples, ..., classes)`."""
        logs = log_probabilities(logits)
        p = np.exp(logs)
        votes = logs.argmax(axis=-1)[..., None] == np.arange(logs.shape[-1])
        terms = p, np.square(p), _entropy(p, logs), votes
        self._sums = [s + term.sum(axis=0) for s, term in zip(self._sums, terms, strict=True)]
        self.samples += len(logits)

    def result(self):
        """The `MonteCarloPrediction` of all passes so far."""
        p, squares, entropies, votes = (total / self.samples for total in self._sums)
        entropy = _entropy(p, np.log(np.maximum(p, _TINY)))
        # Rounding may take what is 0 a little below.
        return MonteCarloPrediction(
            probabilities=p,
            deviation=np.sqrt(np.maximum(squares - np.square(p), 0.0)),
            entropy=entropy,
            mutual_information=np.maximum(entropy - entropies, 0.0),
            variation_ratio=1.0 - votes.max(axis=-1),
            samples=self.samples,
        )


def joined(predictions, examples):
    """The predictions of several batches as one, of the first `examples` examples."""
    parts = [dataclasses.asdict(prediction) for prediction in predictions]
    samples = {part.pop("samples") for part in parts}
    arrays = {name: np.concatenate([part[name] for part in parts])[:examples] for name in parts[0]}
    return MonteCarloPrediction(**arrays, samples=samples.pop())


def _entropy(p, logs):
    return -np.sum(p * logs, axis=-1)
