"""One table of every public class: how to make one, from which the generic tests are generated."""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

import kdtoolkit as kd
from tests.support import FEATURES, dense


@keras.saving.register_keras_serializable("tests")
def squared(source, student):
    return ops.mean(ops.square(source - student), axis=-1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """`make` builds one with other values than the defaults."""

    make: Callable


def _loss(cls, **kwargs):
    return Settings(lambda: cls(name="loss", reduction="sum", **kwargs))


@functools.cache
def a_cache():
    """A directory with a cached teacher."""
    path = pathlib.Path(tempfile.mkdtemp()) / "cache"
    kd.cache_teacher(dense(8, 1), np.zeros((3, FEATURES), "float32"), path, verbose=0)
    return path


PUBLIC = {
    "Distiller": Settings(
        lambda: kd.Distiller(
            student={"small": dense(4, 0), "other": dense(4, 2)},
            teacher=dense(8, 1),
            transfers=[
                kd.Transfer(kd.losses.SoftTargets(2.0), student="small", weight=0.5),
                kd.Transfer(squared, source="small", student="other", weight=2.0),
            ],
            label_weight=0.25,
            preprocess={"teacher": layers.Rescaling(2.0)},
            name="graph_of_three",
        )
    ),
    "SelfDistiller": Settings(
        lambda: kd.SelfDistiller(
            student=dense(4, 0),
            teacher=dense(8, 1),
            source=kd.sources.PredictionMemory(examples=7, dtype="float16", name="memory"),
            teacher_share=0.25,
            previous_weight=3.0,
            normalise=True,
            temperature=2.5,
            name="self",
        )
    ),
    "MutualDistiller": Settings(
        lambda: kd.MutualDistiller(
            students={"small": dense(4, 0), "large": dense(8, 1)},
            teacher={"frozen": dense(8, 2)},
            transfers=[kd.Transfer(squared, source="frozen", student="small", weight=2.0)],
            temperature=2.5,
            weight=0.5,
            label_weight=0.25,
            updates="alternating",
            preprocess={"small": layers.Rescaling(2.0)},
            name="cohort",
        )
    ),
    "PeerEnsemble": Settings(
        lambda: kd.sources.PeerEnsemble(["a", "b"], "min_logit", "class", name="everyone")
    ),
    "ScaleGradient": Settings(lambda: kd.models.ScaleGradient(0.25, name="shared")),
    "TokensAndPositions": Settings(
        lambda: kd.models.TokensAndPositions(2, "zeros", "ones", name="tokens")
    ),
    "Ensemble": Settings(
        lambda: kd.Ensemble([dense(4), dense(8, 1)], output="probabilities", name="both")
    ),
    "MonteCarloDropout": Settings(
        lambda: kd.MonteCarloDropout(dense(4, dropout=0.5), samples=3, name="sampled")
    ),
    "TwoViews": Settings(
        lambda: kd.two_views(
            dense(4), layers.GaussianNoise(0.1, seed=1), layers.GaussianNoise(0.2, seed=2), "views"
        )
    ),
    "CachedTeacher": Settings(
        lambda: kd.CachedTeacher(a_cache(), check_inputs=False, name="cached")
    ),
    "PredictionMemory": Settings(
        lambda: kd.sources.PredictionMemory(9, "float16", 0.6, "a", "student", name="memory")
    ),
    "LastPredictions": Settings(
        lambda: kd.sources.LastPredictions(3, 9, "float16", "a", "labels", name="last")
    ),
    "Snapshot": Settings(
        lambda: kd.sources.Snapshot(dense(4), 0.5, "a", "student", name="snapshot")
    ),
    "VirtualTeacher": Settings(
        lambda: kd.sources.VirtualTeacher(0.6, "probabilities", "a", name="virtual")
    ),
    "Transfer": Settings(
        lambda: kd.Transfer(
            kd.losses.SoftTargets(temperature=2.5),
            source="a",
            student="b",
            source_layer=["x", "y"],
            student_layer="z:input",
            weight=0.3,
            gate=kd.gates.Linear(1.0, 0.5),
            name="edge",
        )
    ),
    "Gate": Settings(kd.gates.Gate),
    "Through": Settings(kd.gates.Through),
    "Cutoff": Settings(kd.gates.Cutoff),
    "Linear": Settings(lambda: kd.gates.Linear(0.75, 0.25)),
    "Correct": Settings(kd.gates.Correct),
    "Tapped": Settings(lambda: kd.tap(dense(4), ["hidden", "logits:input"])),
    "LogProbabilities": Settings(lambda: kd.logits.LogProbabilities(name="log")),
    "FlipShift": Settings(lambda: kd.data.FlipShift(flip=False, shift=2, fill="constant", seed=3)),
    "CosineRestarts": Settings(
        lambda: kd.schedules.CosineRestarts(0.2, 9, 3, 2, 0.01, 1.5, 0.5, name="cycles")
    ),
    "Compressed": Settings(lambda: kd.compress.prune(dense(4), 0.5).get_layer("hidden")),
    "Mask": Settings(lambda: kd.compress.Mask(1, "global", (2, 4), -2, name="mask")),
    "Clusters": Settings(lambda: kd.compress.Clusters(1, 7, True, "sum", name="shared")),
    "RoundedWeight": Settings(lambda: kd.compress.RoundedWeight(1, 4, 2, name="rounded")),
    "ActivationRange": Settings(
        lambda: kd.compress.ActivationRange(8, 0.9, (0.0, 1.0), name="range")
    ),
    "TransferLoss": _loss(kd.losses.TransferLoss),
    "FunctionLoss": _loss(kd.losses.FunctionLoss, function=squared),
    "SoftTargets": _loss(kd.losses.SoftTargets, temperature=2.5, standardise=True),
    "SoftCrossEntropy": _loss(kd.losses.SoftCrossEntropy, temperature=2.5),
    "HardTargets": _loss(kd.losses.HardTargets),
    "MixedTargets": _loss(kd.losses.MixedTargets, label_share=0.3, temperature=2.5),
    "LogitsMSE": _loss(kd.losses.LogitsMSE),
    "DecoupledKD": _loss(kd.losses.DecoupledKD, temperature=2.5),
    "DIST": _loss(kd.losses.DIST, inter_weight=2.0, intra_weight=0.5, temperature=2.5),
    "BregmanDivergence": _loss(kd.losses.BregmanDivergence, generator="logistic", temperature=2.5),
    "MultiLevelLogits": _loss(
        kd.losses.MultiLevelLogits,
        temperatures=[1.5, 3.0],
        instance_weight=0.5,
        batch_weight=2.0,
        class_weight=0.25,
    ),
    "NoisyLogits": _loss(kd.losses.NoisyLogits, sigma=0.2, alpha=0.7, seed=3),
    "Hint": _loss(kd.losses.Hint, project=True, norm=True),
    "AttentionTransfer": _loss(kd.losses.AttentionTransfer, power=1.5, form="paper"),
    "ChannelWise": _loss(kd.losses.ChannelWise, temperature=2.5),
    "NeuronSelectivity": _loss(kd.losses.NeuronSelectivity, kernel="gaussian"),
    "VariationalInformation": _loss(kd.losses.VariationalInformation, hidden=7, variance=0.5),
    "ActivationBoundaries": _loss(kd.losses.ActivationBoundaries, margin=0.5),
    "Overhaul": _loss(kd.losses.Overhaul, margin=[[-1.0, -0.5], [0.0]]),
    "ReviewKD": _loss(kd.losses.ReviewKD, width=7),
    "FactorTransfer": Settings(
        lambda: kd.losses.FactorTransfer(dense(4), 0.25, 2, 0.5, reduction="sum", name="loss")
    ),
    "MaskedGenerative": _loss(kd.losses.MaskedGenerative, ratio=0.25, mask="channels", seed=3),
    "RelationalDistance": _loss(kd.losses.RelationalDistance, pool=False),
    "RelationalAngle": _loss(kd.losses.RelationalAngle, pool=False),
    "SimilarityPreserving": _loss(kd.losses.SimilarityPreserving, pool=True),
    "ProbabilisticTransfer": _loss(kd.losses.ProbabilisticTransfer, include_self=True, pool=False),
    "CorrelationCongruence": _loss(
        kd.losses.CorrelationCongruence, kernel="bilinear", gamma=0.7, order=3, pool=False
    ),
    "FlowOfSolutions": _loss(kd.losses.FlowOfSolutions, average=False),
    "ContrastiveRepresentation": _loss(
        kd.losses.ContrastiveRepresentation,
        examples=9,
        negatives=5,
        dim=4,
        temperature=0.2,
        momentum=0.25,
        seed=3,
    ),
    "CategoryConfidence": _loss(kd.losses.CategoryConfidence),
    "PermutedDarkKnowledge": _loss(kd.losses.PermutedDarkKnowledge, seed=3),
}
