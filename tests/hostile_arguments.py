"""Hostile arguments: a call that works, with one or two of its arguments exchanged for junk.

What is accepted must work: each result is used once, so that junk that is taken without a word, and
explodes later, is a failure.
"""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers

import kdtoolkit as kd
from tests import public_classes
from tests.hostile import Call, check_numbers
from tests.support import CLASSES, FEATURES, conv, crossentropy, dense

JUNK = st.sampled_from([
    None, "text", "", b"x", True, False, -1, 0, 1, 2, 3, 7, 0.0, -0.5, 0.5, 1.0, 1.5, 1e-30, 1e4,
    1e30, float("nan"), float("inf"), -float("inf"), 1j, [], (), {}, [1, 2], (2, "a"), {"a": 1},
    {1: 2}, [None], np.float32(0.5), np.int64(2), np.array(0.25), np.array([1.0, 2.0]),
    np.array(["a"]), np.zeros((0, 3)), object, int, len, lambda *a, **k: None,
    layers.Rescaling(2.0),
])  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Template:
    """A call that works.

    Args:
        function: what is called.
        good: `good() -> dict` of its arguments by name.
        use: `use(result)`; returns numbers that must be finite, or None.
    """

    function: Callable
    good: Callable
    use: Callable = lambda result: None


@st.composite
def calls(draw, area):
    name, keys = draw(st.sampled_from(ARGUMENTS[area]))
    template = TEMPLATES[area][name]
    chosen = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2, unique=True))
    junk = {key: draw(JUNK) for key in chosen}

    def run():
        return template.use(template.function(**{**template.good(), **junk}))

    def check(value):
        if value is not None:
            check_numbers(value, ())

    return Call(area, name, run, check, junk)


@functools.cache
def network(index=0):
    return dense(4 + index, index, norm=False, name=f"net{index}")


@functools.cache
def maps():
    return conv(2)


X = np.random.default_rng(0).normal(size=(6, FEATURES)).astype("float32")
Y = np.array([0, 1, 2, 0, 1, 2])
IMAGES = np.random.default_rng(1).normal(size=(6, 8, 8, 1)).astype("float32")
OUTPUTS = np.random.default_rng(2).normal(size=(6, CLASSES))


def on(x):
    """Runs a network once."""

    def use(model):
        assert isinstance(model, keras.Model), f"{model!r} is no model"
        return keras.tree.map_structure(np.asarray, model(x, training=False))

    return use


# Losses, transfers, distillers --------------------------------------------------------------------

LOSSES = {
    name: settings
    for name, settings in public_classes.PUBLIC.items()
    if isinstance(getattr(kd.losses, name, None), type) and name != "TransferLoss"
}


def _loss_template(name):
    cls = getattr(kd.losses, name)
    config = public_classes.PUBLIC[name].make().get_config()
    if name == "FunctionLoss":
        config["function"] = public_classes.squared
    if name == "FactorTransfer":
        config["paraphraser"] = None
    config |= {"name": "loss", "dtype": "float32"}

    def use(loss):
        # As a distiller asks for its config when it is saved.
        loss.get_config()
        logits = [OUTPUTS.astype("float32"), OUTPUTS[::-1].astype("float32").copy()]
        if loss.reads != "logits":
            return None
        y_true = {"source": logits[0], "labels": Y} if loss.needs else logits[0]
        return loss(y_true, logits[1])

    return Template(cls, lambda: dict(config), use)


def train_step(distiller):
    distiller.compile("sgd", crossentropy())
    found = distiller.train_on_batch(X, Y)
    return np.asarray(found, "float64")


def soft():
    return kd.losses.SoftTargets(2.0)


DISTILLERS = {
    "Transfer": Template(
        kd.Transfer,
        lambda: {
            "loss": soft(), "source": None, "student": None, "source_layer": None,
            "student_layer": None, "weight": 0.5, "gate": "linear", "name": "edge",
        },
        lambda edge: train_step(
            kd.Distiller(student=dense(4), teacher=network(), transfers=[edge])
        ),
    ),
    "Distiller": Template(
        kd.Distiller,
        lambda: {
            "student": dense(4), "teacher": network(), "transfers": [kd.Transfer(soft())],
            "label_weight": 0.5, "preprocess": {}, "name": "d",
        },
        train_step,
    ),
    "MutualDistiller": Template(
        kd.MutualDistiller,
        lambda: {
            "students": [dense(4), dense(4, 1)], "teacher": None, "transfers": (),
            "targets": "each", "temperature": 2.0, "weight": 0.5, "label_weight": 1.0,
            "updates": "simultaneous", "deployed": None, "preprocess": {}, "name": "m",
        },
        train_step,
    ),
    "SelfDistiller": Template(
        kd.SelfDistiller,
        lambda: {
            "student": dense(4), "teacher": network(), "source": "memory", "teacher_share": 0.5,
            "previous_weight": 1.0, "normalise": False, "temperature": 2.0, "name": "s",
        },
        lambda distiller: distiller.compile("sgd", crossentropy()),
    ),
    "fit": Template(
        # The other arguments are Keras's.
        lambda x: _distiller().fit(x, Y, verbose=0),
        lambda: {"x": X},
    ),
}  # fmt: skip


@functools.cache
def _distiller():
    distiller = kd.Distiller(student=dense(4), teacher=network())
    distiller.compile("sgd", crossentropy(), run_eagerly=True)
    return distiller


# What a distiller holds ---------------------------------------------------------------------------


def rate(schedule):
    return [float(schedule(step)) for step in (0, 1, 5, 100)]


PARTS = {
    "CosineRestarts": Template(
        kd.schedules.CosineRestarts,
        lambda: {
            "maximum": 0.1, "cycle_steps": 6, "cycles": 2, "warmup_steps": 2, "minimum": 0.0,
            "cycle_factor": 1.5, "maximum_factor": 0.5,
        },
        rate,
    ),
    "Linear": Template(
        kd.gates.Linear,
        lambda: {"first": 0.0, "last": 1.0},
        lambda gate: gate.factor(None, None, progress=0.5),
    ),
    "Correct": Template(
        lambda source, labels: kd.gates.Correct().factor(source, None, labels=labels),
        lambda: {"source": OUTPUTS, "labels": Y},
        lambda passed: np.asarray(passed, "float64"),
    ),
    "PredictionMemory": Template(
        kd.sources.PredictionMemory,
        lambda: {
            "examples": 7, "dtype": "float16", "decay": 0.5, "follows": None, "initial": "labels",
        },
        lambda source: source.get_config() and None,
    ),
    "LastPredictions": Template(
        kd.sources.LastPredictions,
        lambda: {
            "lifetime": 2, "examples": 7, "dtype": "float16", "follows": None, "initial": "labels",
        },
        lambda source: source.get_config() and None,
    ),
    "Snapshot": Template(
        kd.sources.Snapshot,
        lambda: {"network": network(), "decay": 0.5, "follows": None, "initial": "labels"},
        lambda source: source.get_config() and None,
    ),
    "VirtualTeacher": Template(
        kd.sources.VirtualTeacher,
        lambda: {"correct": 0.9, "scores": "logits", "follows": None},
        lambda source: source.get_config() and None,
    ),
    "PeerEnsemble": Template(
        kd.sources.PeerEnsemble,
        lambda: {"follows": ["a", "b"], "combine": "probabilities", "layer": None},
        lambda source: source.get_config() and None,
    ),
    "one": Template(
        kd.wirings.one, lambda: {"count": 2, "temperature": 3.0, "weight": 1.0, "student": "s"}
    ),
    "collaborative": Template(
        kd.wirings.collaborative,
        lambda: {"count": 3, "temperature": 2.0, "weight": 0.5, "student": "s"},
    ),
    "views": Template(
        kd.wirings.views,
        lambda: {"direction": "both", "temperature": 3.0, "weight": 1.0, "student": "s"},
    ),
    "BestWeights": Template(
        kd.callbacks.BestWeights,
        lambda: {"monitor": "val_accuracy", "mode": "auto", "restore": True},
    ),
    "RewindOnPlateau": Template(
        kd.callbacks.RewindOnPlateau,
        lambda: {
            "monitor": "val_accuracy", "mode": "auto", "patience": 2, "factor": 0.1,
            "min_lr": 0.001, "stop_patience": 4, "momentum": "zero",
        },
    ),
    "Schedule": Template(
        kd.callbacks.Schedule,
        lambda: {
            "owner": soft(), "attribute": "temperature", "function": lambda e: 2.0, "name": "t",
        },
        lambda callback: callback.on_epoch_begin(0),
    ),
    "BestTeacher": Template(kd.callbacks.BestTeacher, lambda: {"monitor": "loss", "mode": "auto"}),
    "PeriodicTeacher": Template(kd.callbacks.PeriodicTeacher, lambda: {"epochs": 2}),
    "Ensemble": Template(
        kd.Ensemble,
        lambda: {"models": [network(), network(1)], "output": "logits", "name": "e"},
        on(X),
    ),
    "MonteCarloDropout": Template(
        kd.MonteCarloDropout,
        lambda: {"model": dense(4, dropout=0.5), "samples": 2, "name": "m"},
        on(X),
    ),
    "tap": Template(kd.tap, lambda: {"model": network(), "layers": ["hidden"]}, on(X)),
    "two_views": Template(
        kd.two_views,
        lambda: {
            "model": network(), "first": layers.GaussianNoise(0.1), "second": layers.Identity(),
        },
    ),
    "as_logits": Template(kd.as_logits, lambda: {"model": keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(3, "softmax")])}, on(X)),
}  # fmt: skip


# Data ---------------------------------------------------------------------------------------------


def batches(pipeline):
    found = [pipeline[i] for i in range(min(len(pipeline), 3))]
    assert all(isinstance(batch, tuple) for batch in found)


DATA = {
    "ArrayPipeline": Template(
        kd.data.ArrayPipeline,
        lambda: {
            "x": IMAGES, "y": Y, "batch_size": 2, "sample_weight": None, "augment": None,
            "mix": None, "num_classes": 3, "shuffle": True, "drop_remainder": False,
            "example_ids": True, "overlap": False, "views": None,
        },
        batches,
    ),
    "split": Template(
        kd.data.split,
        lambda: {"x": X, "y": Y, "fraction": 0.5, "seed": 0, "stratify": True},
    ),
    "choose": Template(kd.data.choose, lambda: {"y": Y, "count": 3, "seed": 0, "stratify": True}),
    "noisy_labels": Template(
        kd.data.noisy_labels, lambda: {"y": Y, "fraction": 0.5, "num_classes": 3, "seed": 0}
    ),
    "with_ids": Template(kd.data.with_ids, lambda: {"x": X, "ids": np.arange(6)}),
    "strip": Template(kd.data.strip, lambda: {"x": kd.data.with_ids(X)}),
    "Mixup": Template(
        kd.data.Mixup,
        lambda: {"alpha": 1.0},
        lambda mix: batches(_mixed(mix)),
    ),
    "CutMix": Template(
        kd.data.CutMix, lambda: {"alpha": 1.0}, lambda mix: batches(_mixed(mix))
    ),
    "FlipShift": Template(
        kd.data.FlipShift,
        lambda: {"flip": True, "shift": 1, "fill": "reflect", "seed": 0},
        lambda layer: np.asarray(layer(IMAGES, training=True)),
    ),
    "ZeroPixels": Template(
        kd.data.ZeroPixels,
        lambda: {"rate": 0.2},
        lambda part: part.apply(IMAGES, part.draw(np.random.default_rng(0), 6)),
    ),
    "load_digits": Template(
        kd.data.load_digits,
        lambda: {
            "seed": 0, "val_fraction": 0.2, "test_fraction": 0.2, "label_noise": 0.0,
            "normalize": True, "image_shape": (8, 8, 1),
        },
        lambda data: data.x_train,
    ),
    "cache_teacher": Template(
        lambda **arguments: _cached(arguments),
        lambda: {
            "teacher": network(), "data": X, "dtype": "float32", "top_k": None, "layers": (),
            "preprocess": None, "examples": None, "views": 1, "batch_size": 4, "part": (0, 1),
        },
    ),
}  # fmt: skip


def _mixed(mix):
    return kd.data.ArrayPipeline(IMAGES, Y, batch_size=2, mix=mix, num_classes=3)


def _cached(arguments):
    with tempfile.TemporaryDirectory() as folder:
        kd.cache_teacher(path=pathlib.Path(folder, "cache"), verbose=0, **arguments)


# Models -------------------------------------------------------------------------------------------

COMMON = {"input_shape": (8, 8, 1), "num_classes": 3, "name": "n", "seed": 0}
SMALL = {"weight_decay": 0.0, **COMMON}


def _builder(function, x=IMAGES, **arguments):
    return Template(function, lambda: dict(arguments), on(x))


MODELS = {
    "mlp": _builder(
        kd.models.mlp, X, **{**SMALL, "input_shape": (FEATURES,)}, units=(4,), dropout=0.1
    ),
    "convnet": _builder(
        kd.models.convnet, **SMALL, filters=(2,), dense=(3,), dropout=0.1, batch_norm=True
    ),
    "lenet": _builder(
        kd.models.lenet, None, **{**SMALL, "input_shape": (28, 28, 1)}, filters=(2, 2), dense=3,
        dropout=0.1, conv_dropout=0.1,
    ),
    "quick": _builder(kd.models.quick, **SMALL, filters=(2, 2, 2), dense=3, dropout=0.1),
    "all_conv": _builder(kd.models.all_conv, **SMALL, width=2, dropout=0.1, input_dropout=0.1),
    "resnet": _builder(
        kd.models.resnet, **SMALL, depth=8, width=2, stem_width=2, variant="v1",
        shortcut="projection",
    ),
    "vit": _builder(
        kd.models.vit, **COMMON, size="tiny", width=4, depth=1, heads=2, mlp_ratio=1, patch_size=4,
        pooling="token", stochastic_depth=0.1, dropout=0.1, attention_dropout=0.1,
    ),
    "deit": _builder(
        kd.models.deit, **COMMON, size="tiny", width=4, depth=1, heads=2, mlp_ratio=1,
        patch_size=4, fusion="logits", stochastic_depth=0.1, dropout=0.1, attention_dropout=0.1,
    ),
    "branches": Template(
        kd.models.branches,
        lambda: {
            "model": maps(), "at": "stage1", "count": 2, "ensemble": "gate", "others": False,
            "share_gradient": False, "name": "b", "seed": 0,
        },
        on(IMAGES),
    ),
    "attach_exits": Template(
        kd.attach_exits,
        lambda: {
            "model": maps(), "layers": ["stage1"], "reductions": None, "bottleneck": "conv",
            "features": None, "weight_decay": 0.0, "name": "x", "seed": 0,
        },
        on(IMAGES),
    ),
    "mean_output": Template(
        kd.models.mean_output, lambda: {"model": _two(), "keys": ["a", "b"], "name": "m"}, on(X)
    ),
    "single_output": Template(
        kd.models.single_output, lambda: {"model": _two(), "key": "a", "name": "m"}, on(X)
    ),
}  # fmt: skip
MODELS["lenet"] = dataclasses.replace(MODELS["lenet"], use=lambda model: None)


@functools.cache
def _two():
    inputs = keras.Input((FEATURES,))
    return keras.Model(inputs, {"a": layers.Dense(3)(inputs), "b": layers.Dense(3)(inputs)})


# Compression, export, evaluation ------------------------------------------------------------------

COMPRESS = {
    "prune": Template(
        kd.compress.prune,
        lambda: {
            "model": network(), "sparsity": 0.5, "scope": "layer", "pattern": None, "layers": None,
        },
        on(X),
    ),
    "cluster": Template(
        kd.compress.cluster,
        lambda: {
            "model": network(), "clusters": 2, "gradient": "mean", "layers": None, "fold": True,
        },
        on(X),
    ),
    "prune_filters": Template(
        kd.compress.prune_filters,
        lambda: {"model": maps(), "share": 0.5, "multiple_of": 1, "layers": None},
        on(IMAGES),
    ),
    "fold_batchnorm": Template(kd.compress.fold_batchnorm, lambda: {"model": dense(4)}, on(X)),
    "quantize_aware": Template(
        kd.compress.quantize_aware,
        lambda: {
            "model": network(), "data": X, "weights": 8, "activations": 8, "momentum": 0.9,
            "layers": None,
        },
        on(X),
    ),
    "recalibrate_batchnorm": Template(
        kd.compress.recalibrate_batchnorm,
        lambda: {"model": dense(4), "data": X, "batch_size": 2, "batches": 2},
    ),
    "GradualPruning": Template(
        kd.compress.GradualPruning,
        lambda: {
            "network": kd.compress.prune(network(), 0.0), "sparsity": 0.5, "end_step": 10,
            "begin_step": 0, "initial": 0.0, "power": 3.0, "every": 2,
        },
    ),
    "strip": Template(
        kd.compress.strip, lambda: {"model": kd.compress.prune(network(), 0.5)}, on(X)
    ),
    "summary": Template(
        kd.compress.summary, lambda: {"model": kd.compress.prune(network(), 0.5)},
        lambda rows: None,
    ),
}  # fmt: skip


def _exported(arguments):
    """Refused arguments cost nothing; a conversion takes seconds and is tested elsewhere."""
    from kdtoolkit.export.metadata import check_metadata
    from kdtoolkit.export.plan import plan_for
    from kdtoolkit.export.run import check_threads

    plan_for(arguments["quantize"], arguments["io"])
    if arguments["metadata"] is not None:
        check_metadata(arguments["metadata"])
    check_threads(arguments["num_threads"])


EXPORT = {
    "litert": Template(
        lambda **arguments: _exported(arguments),
        lambda: {"quantize": "int8", "io": "float32", "metadata": {"a": [1]}, "num_threads": 1},
    ),
    "inspect": Template(kd.export.inspect, lambda: {"path": "nowhere.tflite"}),
    "LiteRTModel": Template(
        kd.export.LiteRTModel, lambda: {"path": "nowhere.tflite", "num_threads": 1}
    ),
    "latency": Template(
        kd.export.latency,
        lambda: {"path": "nowhere.tflite", "num_threads": 1, "warmup": 0, "runs": 1},
    ),
    "compare": Template(
        kd.compare,
        lambda: {
            "candidates": {"a": network(), "b": network(1)}, "x": X, "y": Y, "teacher": None,
            "output": None, "from_logits": "auto", "class_names": None, "latency": False,
            "runs": 1,
        },
        lambda table: None,
    ),
    "Recipe": Template(
        kd.Recipe,
        lambda: {
            "optimizer": lambda: keras.optimizers.SGD(0.1), "epochs": 1, "batch_size": 2,
            "augment": None, "callbacks": None, "loss": None, "metrics": ("accuracy",),
            "monitor": "val_accuracy", "select": "best", "steps_per_execution": 1,
        },
        lambda recipe: recipe.describe() and None,
    ),
    "load_generations": Template(kd.load_generations, lambda: {"directory": "nowhere"}),
    "load_network": Template(
        kd.load_network, lambda: {"directory": "nowhere", "generation": 1}
    ),
}  # fmt: skip
ROWS = [
    {"method": m, "generation": g, "trial": t, "test_accuracy": 0.5 + 0.1 * t, "val_accuracy": 0.5,
     "seconds": 1.0, "accuracy": 0.5 + 0.1 * t, "latency_ms": 1.0 + t, "model": m}
    for m in ("a", "b") for g in (1, 2) for t in (0, 1)
]  # fmt: skip
P = np.full((6, 3), 1 / 3)
EVALUATION = {
    "calibration": Template(
        kd.evaluation.calibration,
        lambda: {"outputs": OUTPUTS, "y": Y, "bins": 5, "from_logits": True},
        lambda found: None,
    ),
    "reliability": Template(
        kd.evaluation.reliability,
        lambda: {"outputs": P, "y": Y, "bins": 5, "from_logits": False},
        lambda found: None,
    ),
    "compare": Template(
        kd.evaluation.compare,
        lambda: {"first": [0.1, 0.2, 0.4], "second": [0.2, 0.3, 0.3], "paired": True},
        lambda found: None,
    ),
    "holm": Template(
        kd.evaluation.holm, lambda: {"p_values": [0.1, 0.02]}, lambda p: np.asarray(p, "float64")
    ),
    "summary": Template(kd.evaluation.summary, lambda: {"values": [0.1, 0.2]}, lambda found: None),
    "generation_table": Template(kd.evaluation.generation_table, lambda: {"rows": ROWS}),
    "compare_methods": Template(
        kd.evaluation.compare_methods,
        lambda: {
            "rows": ROWS, "first": "a", "second": "b", "value": "test_accuracy", "paired": True,
        },
    ),
    "by_generation": Template(
        kd.evaluation.by_generation, lambda: {"rows": ROWS, "value": "seconds"}
    ),
    "cumulative": Template(kd.evaluation.cumulative, lambda: {"rows": ROWS, "value": "seconds"}),
    "pareto_front": Template(
        kd.evaluation.pareto_front, lambda: {"rows": ROWS, "x": "latency_ms"}
    ),
    "direction": Template(
        kd.evaluation.direction,
        lambda: {"model": network(), "seed": 0, "norm": "filter", "include": "kernels"},
    ),
    "noise_curve": Template(
        kd.evaluation.noise_curve,
        lambda: {
            "models": {"a": network()}, "x": X, "y": Y, "scales": (0.0, 0.1), "draws": 1,
            "relative": False,
        },
    ),
}  # fmt: skip

TEMPLATES = {
    "loss arguments": {name: _loss_template(name) for name in LOSSES},
    "distillers": DISTILLERS,
    "sources, gates, callbacks": PARTS,
    "data": DATA,
    "models": MODELS,
    "compress": COMPRESS,
    "export, generations, compare": EXPORT,
    "evaluation": EVALUATION,
}
#: Names of the arguments, without making any: strategies must not draw from a random state.
ARGUMENTS = {
    area: [(name, sorted(template.good())) for name, template in sorted(templates.items())]
    for area, templates in TEMPLATES.items()
}
AREAS = {area: calls(area) for area in TEMPLATES}
