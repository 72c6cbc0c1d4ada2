"""Every response loss in one table, with what NumPy says of it."""

import numpy as np

from kdtoolkit import losses
from kdtoolkit.losses.divergence import BregmanDivergence
from kdtoolkit.losses.multi_level import MultiLevelLogits
from kdtoolkit.losses.noise import NoisyLogits
from tests import reference

BATCH, CLASSES = 6, 5


def _decoupled(source, student, labels):
    target, rest = reference.decoupled_kd(source, student, labels, 4.0)
    return target + 8 * rest


def _standardised(source, student, labels):
    z = reference.standardise(source), reference.standardise(student)
    return reference.kl_divergence(*z, 2.0)


# name: how to make the loss, what NumPy says of (source, student, labels).
CASES = {
    "soft": (
        lambda **k: losses.SoftTargets(**k),
        lambda s, z, y: reference.kl_divergence(s, z, 4.0),
    ),
    "standardised": (
        lambda **k: losses.SoftTargets(temperature=2.0, standardise=True, **k),
        _standardised,
    ),
    "soft cross-entropy": (
        lambda **k: losses.SoftCrossEntropy(temperature=2.0, **k),
        lambda s, z, y: reference.soft_cross_entropy(s, z, 2.0),
    ),
    "hard": (
        lambda **k: losses.HardTargets(**k),
        lambda s, z, y: reference.hard_target_cross_entropy(s, z),
    ),
    "mixed": (
        lambda **k: losses.MixedTargets(label_share=0.3, temperature=2.0, **k),
        lambda s, z, y: reference.mixed_target_cross_entropy(s, z, y, 0.3, 2.0),
    ),
    "mse": (
        lambda **k: losses.LogitsMSE(**k),
        lambda s, z, y: reference.logits_mse(s, z),
    ),
    "centred mse": (
        lambda **k: losses.LogitsMSE(centred=True, **k),
        lambda s, z, y: reference.logits_mse(s, z, centred=True),
    ),
    "decoupled": (lambda **k: losses.DecoupledKD(**k), _decoupled),
    "dist": (
        lambda **k: losses.DIST(inter_weight=2.0, intra_weight=3.0, temperature=2.0, **k),
        lambda s, z, y: reference.dist(s, z, 2.0, 3.0, 2.0),
    ),
    "confidence": (
        lambda **k: losses.CategoryConfidence(**k),
        reference.confidence_weighted_cross_entropy,
    ),
    "bregman kl": (
        lambda **k: BregmanDivergence(temperature=2.0, **k),
        lambda s, z, y: reference.kl_divergence(s, z, 2.0),
    ),
    "bregman squared": (
        lambda **k: BregmanDivergence("squared", **k),
        lambda s, z, y: reference.squared_divergence(s, z),
    ),
    "bregman logistic": (
        lambda **k: BregmanDivergence("logistic", temperature=2.0, **k),
        lambda s, z, y: reference.logistic_divergence(s, z, 2.0),
    ),
    "multi-level": (
        lambda **k: MultiLevelLogits((2.0, 4.0), 0.5, 2.0, 3.0, **k),
        lambda s, z, y: reference.multi_level(s, z, (2.0, 4.0), (0.5, 2.0, 3.0)),
    ),
    # Random, so without a fixed reference; their properties are tested elsewhere.
    "permuted": (lambda **k: losses.PermutedDarkKnowledge(seed=0, **k), None),
    "noisy": (lambda **k: NoisyLogits(seed=0, **k), None),
}
WITH_REFERENCE = [name for name, (_, expected) in CASES.items() if expected]
#: Zero exactly where the student's logits are the source's plus a constant.
DIVERGENCES = [
    "soft",
    "standardised",
    "centred mse",
    "decoupled",
    "dist",
    "bregman kl",
    "bregman squared",
    "bregman logistic",
    "multi-level",
]


def arrays():
    """The source's logits, the student's, and labels."""
    random = np.random.default_rng(1)
    source, student = (random.normal(0, 2, (BATCH, CLASSES)).astype("float32") for _ in range(2))
    return source, student, np.array([0, 1, 2, 3, 4, 0])


def values(loss, source, student, labels):
    """One value per example, past Keras's casts."""
    return loss.values(source, student, *([labels] if loss.needs else []))


def call(loss, source, student, labels, **kwargs):
    """As Keras calls it."""
    y_true = {"source": source, "labels": labels} if loss.needs else source
    return loss(y_true, student, **kwargs)
