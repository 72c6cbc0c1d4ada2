"""All losses between features and relations in one distiller, across kinds of networks."""

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit import losses
from kdtoolkit.losses.feature.base import LayeredLoss
from kdtoolkit.registry import PUBLIC_CLASSES
from tests.support import (
    arrays,
    conv,
    crossentropy,
    dense,
    fit,
    images,
    largest_difference,
    transformer,
)

EXAMPLES = 12
#: Losses that need maps or tokens, and those that read anything.
SPATIAL = {
    "attention": losses.AttentionTransfer,
    "channel-wise": losses.ChannelWise,
    "selectivity": losses.NeuronSelectivity,
    "masked": lambda: losses.MaskedGenerative(seed=0),
    "factor": losses.FactorTransfer,
}
ANY = {
    "hint": losses.Hint,
    "variational": losses.VariationalInformation,
    "boundaries": losses.ActivationBoundaries,
    "overhaul": losses.Overhaul,
    "distance": losses.RelationalDistance,
    "angle": losses.RelationalAngle,
    "similarity": losses.SimilarityPreserving,
    "probabilistic": losses.ProbabilisticTransfer,
    "correlation": losses.CorrelationCongruence,
    "contrastive": lambda: losses.ContrastiveRepresentation(EXAMPLES, negatives=4, dim=4, seed=0),
}
#: Losses that read several layers at once.
LISTS = {"flow": losses.FlowOfSolutions, "review": losses.ReviewKD}

CONV = ["stage1", "stage2"]
TOKENS = ["block1", "block2"]
# name: teacher, student, the teacher's layers, the student's. Another width and depth everywhere.
PAIRS = {
    "maps": (lambda: conv(6, 1), lambda: conv(4, 0), CONV, CONV),
    "tokens": (
        lambda: transformer(8, 1, patch=2),
        lambda: transformer(4, 0, patch=4),
        TOKENS,
        TOKENS,
    ),
    "maps from tokens": (lambda: transformer(8, 1), lambda: conv(4, 0), TOKENS, CONV),
    "tokens from maps": (lambda: conv(6, 1), lambda: transformer(4, 0), CONV, TOKENS),
}


def transfers(source_layers, student_layers):
    last = {"source_layer": source_layers[-1], "student_layer": student_layers[-1]}
    both = {"source_layer": source_layers, "student_layer": student_layers}
    single = {**SPATIAL, **ANY}
    return [
        *(kd.Transfer(make(), weight=0.1, name=name, **last) for name, make in single.items()),
        *(kd.Transfer(make(), weight=0.1, name=name, **both) for name, make in LISTS.items()),
        kd.Transfer(losses.SoftTargets(), weight=0.5),
    ]


def distiller(pair):
    teacher, student, source_layers, student_layers = PAIRS[pair]
    made = kd.Distiller(
        student=student(), teacher=teacher(), transfers=transfers(source_layers, student_layers)
    )
    made.compile(keras.optimizers.SGD(0.01), crossentropy())
    return made


def test_every_public_loss_between_features_is_here():
    ours = [c for c in PUBLIC_CLASSES.values() if c.__module__.startswith("kdtoolkit.")]
    expected = {c for c in ours if issubclass(c, LayeredLoss)}
    assert expected == {
        type(make()) for make in [*SPATIAL.values(), *ANY.values(), *LISTS.values()]
    }


@pytest.mark.parametrize("pair", PAIRS)
def test_all_losses_train_side_by_side_between_networks_of_any_kind(pair):
    made = distiller(pair)
    x, y = images(EXAMPLES)
    weights = len(made.student.weights)
    before = {t.name: [arrays(layer) for layer in t.own_layers] for t in made.transfers}
    history = fit(made, x, y, batch_size=4, epochs=1).history
    for edge in made.transfers:
        assert np.isfinite(history[edge.name][0]), edge.name
        for layer, start in zip(edge.own_layers, before[edge.name], strict=True):
            if layer.trainable_weights:
                assert largest_difference(arrays(layer), start) > 0, edge.name
    # What the losses own is trained, and is no part of the student.
    own = {id(v) for t in made.transfers for v in t.trainable_weights}
    assert own and own <= {id(v) for v in made.trainable_weights}
    assert len(made.student.weights) == weights
    assert not own & {id(v) for v in made.student.weights}


@pytest.mark.core
def test_vectors_are_compared_too():
    edges = [
        kd.Transfer(make(), weight=0.1, name=name, source_layer="hidden", student_layer="hidden")
        for name, make in ANY.items()
    ]
    made = kd.Distiller(student=dense(4, 0), teacher=dense(8, 1), transfers=edges)
    made.compile("sgd", crossentropy())
    random = np.random.default_rng(0)
    x, y = random.normal(size=(EXAMPLES, 6)).astype("float32"), random.integers(3, size=EXAMPLES)
    history = fit(made, x, y, batch_size=4, epochs=1).history
    assert all(np.isfinite(history[name][0]) for name in ANY)


@pytest.mark.core
def test_a_saved_run_goes_on_bit_by_bit_with_projectors_banks_and_random_masks(tmp_path):
    x, y = images(EXAMPLES)
    made = distiller("maps")
    fit(made, x, y, batch_size=4, epochs=1)
    made.save(tmp_path / "run.keras")
    loaded = keras.models.load_model(tmp_path / "run.keras")
    for one in (made, loaded):
        one.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0)
    assert largest_difference(arrays(loaded), arrays(made)) == 0


@pytest.mark.parametrize("make", [losses.FlowOfSolutions, losses.Hint])
def test_a_first_stage_without_labels_prepares_the_student_for_the_second(make):
    # FitNets and FSP: first the features alone, then the labels, with plain Keras.
    x, y = images(EXAMPLES)
    student, teacher = conv(4, 0), conv(6, 1)
    layers = {"source_layer": "stage1", "student_layer": "stage1"}
    if make is losses.FlowOfSolutions:
        layers = {"source_layer": CONV, "student_layer": CONV}
    head = arrays(student.get_layer("logits"))
    student.get_layer("logits").trainable = False
    first = kd.Distiller(
        student=student, teacher=teacher, transfers=[kd.Transfer(make(), name="edge", **layers)]
    )
    if make is losses.Hint:
        student.get_layer("stage2").trainable = False
    first.compile(keras.optimizers.Adam(0.01))
    history = fit(first, x, epochs=20).history["edge"]
    assert history[-1] < 0.9 * history[0]
    assert largest_difference(arrays(student.get_layer("logits")), head) == 0
    for layer in student.layers:
        layer.trainable = True
    second = kd.Distiller(student=student, teacher=teacher)
    second.compile(keras.optimizers.SGD(0.1), crossentropy())
    fit(second, x, y)
    assert largest_difference(arrays(student.get_layer("logits")), head) > 0


@pytest.mark.tensorflow
def test_two_replicas_train_projectors_like_one(two_replicas):
    # Of the losses whose examples don't meet; batch statistics and relations are a replica's own.
    names = ("attention", "channel-wise", "selectivity", "hint", "variational", "flow")
    x, y = images(16)

    def trained():
        edges = [t for t in transfers(CONV, CONV) if t.name in names]
        made = kd.Distiller(student=conv(4, 0), teacher=conv(6, 1), transfers=edges)
        made.compile(keras.optimizers.SGD(0.01), crossentropy())
        for edge in edges:
            for index, weight in enumerate(edge.trainable_weights):
                size = weight.shape
                weight.assign(np.random.default_rng(index).normal(0, 0.1, size))
        return made

    one = trained()
    logs = [fit(one, x, y, batch_size=8, shuffle=False).history]
    with two_replicas.scope():
        two = trained()
    logs.append(fit(two, x, y, batch_size=8, shuffle=False).history)
    assert largest_difference(arrays(two), arrays(one)) < 1e-5
    for name, values in logs[0].items():
        assert logs[1][name] == pytest.approx(values, rel=1e-4), name


def test_a_loss_with_layers_serves_one_transfer_and_one_without_any_number():
    def made(loss, **kwargs):
        both = [
            kd.Transfer(loss, source_layer=layer, student_layer=layer, name=layer, **kwargs)
            for layer in CONV
        ]
        return kd.Distiller(student=conv(4, 0), teacher=conv(6, 1), transfers=both)

    with pytest.raises(ValueError, match="has layers of its own and serves one transfer"):
        made(losses.Hint(name="mine"))
    x, y = images(EXAMPLES)
    shared = made(losses.AttentionTransfer())
    shared.compile("sgd", crossentropy())
    assert np.isfinite(fit(shared, x, y, epochs=1).history["loss"][0])


def test_a_transfer_stays_with_the_shapes_that_it_was_made_for():
    edge = kd.Transfer(losses.Hint(), source_layer="stage1", student_layer="stage1", name="edge")
    kd.Distiller(student=conv(4, 0), teacher=conv(6, 1), transfers=[edge])
    # Another student of the same shapes goes on with the same projector.
    kd.Distiller(student=conv(4, 3), teacher=conv(6, 1), transfers=[edge])
    with pytest.raises(ValueError, match="Transfer 'edge' is connected to shapes"):
        kd.Distiller(student=conv(5, 0), teacher=conv(6, 1), transfers=[edge])


def test_a_paraphraser_is_copied_and_its_maker_may_go_on_training_it():
    encoder, _ = losses.paraphraser((4, 4, 12))
    first, second = (losses.FactorTransfer(encoder) for _ in range(2))
    assert encoder.trainable and not first.paraphraser.trainable
    assert first.paraphraser is not second.paraphraser
    assert largest_difference(arrays(first.paraphraser), arrays(encoder)) == 0


def test_sequences_are_resized_along_their_axis_and_grids_in_the_plane():
    # A student that is the teacher's sequence, four times as long, agrees with it.
    source = np.random.default_rng(0).normal(size=(2, 16, 3)).astype("float32")
    student = np.repeat(source, 4, axis=1)
    assert float(losses.AttentionTransfer()(source, student)) < 1e-9
    assert float(losses.Hint(project=False)(source, source)) == 0


def test_evaluate_leaves_out_what_remembers_training_examples():
    x, _ = images(EXAMPLES)
    crd = losses.ContrastiveRepresentation(EXAMPLES, negatives=2, dim=4)
    layers = {"source_layer": "features", "student_layer": "features"}
    edges = [kd.Transfer(crd, **layers), kd.Transfer(losses.SoftTargets())]
    made = kd.Distiller(student=conv(4, 0), teacher=conv(6, 1), transfers=edges)
    made.compile("sgd")
    history = fit(made, x, epochs=1, validation_data=(x[:4], None)).history
    assert "val_soft_targets" in history and "val_contrastive_representation" not in history
