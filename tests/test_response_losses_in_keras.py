"""The response losses as Keras losses: reductions, configs, errors, compiled steps."""

import keras
import numpy as np
import pytest

from kdtoolkit import losses
from kdtoolkit.losses.base import BoundLoss
from kdtoolkit.losses.divergence import BregmanDivergence
from kdtoolkit.losses.multi_level import MultiLevelLogits
from kdtoolkit.losses.noise import NoisyLogits
from tests import helpers, reference
from tests.response_cases import (
    BATCH,
    CASES,
    CLASSES,
    WITH_REFERENCE,
    arrays,
    call,
    values,
)

pytestmark = pytest.mark.core


@pytest.fixture
def data():
    return arrays()


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_reductions_and_sample_weights_are_keras_s(data, name):
    source, student, labels = data
    make, expected = CASES[name]
    each = expected(source, student, labels)
    weights = np.array([0.0, 1.0, 2.0, 0.5, 0.0, 3.0])
    for reduction, plain, weighted in (
        (None, each, each * weights),
        ("sum", each.sum(), (each * weights).sum()),
        ("sum_over_batch_size", each.mean(), (each * weights).mean()),
        ("mean_with_sample_weight", each.mean(), (each * weights).sum() / weights.sum()),
    ):
        loss = make(reduction=reduction)
        for sample_weight, value in ((None, plain), (weights, weighted)):
            computed = call(loss, source, student, labels, sample_weight=sample_weight)
            np.testing.assert_allclose(helpers.array(computed), value, rtol=1e-4)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_masked_examples_do_not_count(data, name):
    source, student, labels = data
    make, expected = CASES[name]
    mask = np.array([True, False, True, True, False, True])
    computed = call(make(), source, helpers.WithMask(mask)(student), labels)
    assert float(computed) == pytest.approx(
        expected(source, student, labels)[mask].mean(), rel=1e-4
    )


@pytest.mark.parametrize("positions", [3, BATCH])
def test_weights_and_masks_per_position_are_refused(data, positions):
    # With as many positions as examples, broadcasting would pass and be wrong.
    maps = np.zeros((BATCH, positions, CLASSES), "float32")
    mask = np.ones((BATCH, positions), bool)
    loss = losses.SoftTargets(name="mine")
    with pytest.raises(ValueError, match=r"'mine' .*sample_weight must .*\(batch,\).*positions"):
        loss(maps, maps, sample_weight=mask.astype("float32"))
    with pytest.raises(ValueError, match="mask of the student's output must"):
        loss(maps, helpers.WithMask(mask)(maps))
    assert float(loss(maps, maps, sample_weight=np.ones((BATCH, 1)))) == 0.0


@pytest.mark.parametrize("name", CASES)
def test_a_loss_survives_its_config(data, name):
    loss = CASES[name][0](reduction="sum", name="mine")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(copy) is type(loss)
    assert copy.get_config() == loss.get_config()
    assert copy.name == "mine"
    assert float(call(copy, *data)) == pytest.approx(float(call(loss, *data)))


def test_config_holds_the_arguments_as_they_were_given():
    config = losses.DecoupledKD(0.1, 0.7, 3.3, name="mine").get_config()
    assert config == {
        "name": "mine",
        "reduction": "sum_over_batch_size",
        "dtype": "float32",
        "target_weight": 0.1,
        "non_target_weight": 0.7,
        "temperature": 3.3,
    }


def test_defaults_are_the_documented_ones():
    assert losses.SoftTargets().get_config()["temperature"] == 4.0
    assert losses.SoftTargets().get_config()["standardise"] is False
    assert losses.SoftCrossEntropy().get_config()["temperature"] == 1.0
    assert losses.MixedTargets().get_config()["label_share"] == 0.5
    assert losses.MixedTargets().get_config()["temperature"] == 1.0
    assert losses.LogitsMSE().get_config()["centred"] is False
    decoupled = losses.DecoupledKD().get_config()
    names = "target_weight", "non_target_weight", "temperature"
    assert [decoupled[name] for name in names] == [1.0, 8.0, 4.0]
    dist = losses.DIST().get_config()
    assert [dist[n] for n in ("inter_weight", "intra_weight", "temperature")] == [1.0, 1.0, 1.0]
    bregman = BregmanDivergence().get_config()
    assert (bregman["generator"], bregman["temperature"]) == ("kl", 1.0)
    levels = MultiLevelLogits().get_config()
    assert levels["temperatures"] == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert [levels[f"{n}_weight"] for n in ("instance", "batch", "class")] == [1.0, 1.0, 1.0]
    noise = NoisyLogits().get_config()
    assert [noise[n] for n in ("sigma", "alpha", "seed")] == [0.3, 0.5, None]


def test_a_config_follows_the_current_value():
    loss = losses.SoftTargets(temperature=4.0)
    loss.temperature.assign(2.5)
    assert loss.get_config()["temperature"] == 2.5
    assert float(type(loss).from_config(loss.get_config()).temperature) == 2.5


def test_every_loss_reads_logits_and_those_with_labels_say_so():
    needing = {name for name, (make, _) in CASES.items() if make().needs}
    assert needing == {"mixed", "decoupled", "confidence"}
    for make, _ in CASES.values():
        loss = make()
        assert loss.reads == "logits"
        assert loss.needs in ((), ("labels",))


def test_scalars_and_random_state_are_variables():
    scalars = [v.name for v in losses.DecoupledKD().variables]
    assert scalars == ["target_weight", "non_target_weight", "temperature"]
    permuted = losses.PermutedDarkKnowledge(seed=1)
    assert permuted.variables == [permuted.seed_generator.state]
    assert losses.HardTargets().variables == []
    assert not any(v.trainable for make, _ in CASES.values() for v in make().variables)


@pytest.mark.parametrize("name", ["mixed", "decoupled", "confidence"])
def test_labels_may_be_numbers_or_distributions(data, name):
    source, student, labels = data
    loss = CASES[name][0]()
    forms = (labels, labels[:, None], labels.astype("float32"), reference.one_hot(labels, CLASSES))
    results = [helpers.array(values(loss, source, student, form)) for form in forms]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-6)


def test_a_loss_with_labels_can_be_bound_to_them(data):
    source, student, labels = data
    loss = losses.DecoupledKD(name="mine")
    bound = BoundLoss(loss, {"labels": labels})
    assert float(bound(source, student)) == pytest.approx(float(call(loss, *data)))


# Errors.


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (losses.SoftTargets, {"temperature": 0}, "`temperature` of SoftTargets .* > 0 .*Received"),
        (losses.SoftTargets, {"temperature": -1.0}, "temperature=-1.0"),
        (losses.SoftTargets, {"temperature": float("inf")}, "a finite number"),
        (losses.SoftTargets, {"temperature": "4"}, "temperature='4'"),
        (losses.SoftCrossEntropy, {"temperature": None}, "of SoftCrossEntropy"),
        (losses.MixedTargets, {"label_share": 1.5}, "`label_share` of MixedTargets .*<= 1"),
        (losses.MixedTargets, {"label_share": -0.1}, ">= 0"),
        (losses.MixedTargets, {"temperature": 0.0}, "`temperature` of MixedTargets"),
        (losses.DecoupledKD, {"target_weight": -1.0}, "`target_weight` of DecoupledKD .*>= 0"),
        (losses.DecoupledKD, {"non_target_weight": float("nan")}, "`non_target_weight`"),
        (losses.DecoupledKD, {"temperature": 0.0}, "`temperature` of DecoupledKD"),
        (losses.DIST, {"inter_weight": -1.0}, "`inter_weight` of DIST"),
        (losses.DIST, {"intra_weight": -1.0}, "`intra_weight` of DIST"),
        (losses.DIST, {"temperature": -2.0}, "`temperature` of DIST"),
        (losses.PermutedDarkKnowledge, {"seed": "a"}, "must be an integer"),
        (
            BregmanDivergence,
            {"generator": "reverse_kl"},
            "'squared', 'logistic', 'kl'.*mean of log p",
        ),
        (BregmanDivergence, {"generator": "hinge"}, "generator='hinge'"),
        (BregmanDivergence, {"temperature": 0.0}, "`temperature` of BregmanDivergence"),
        (MultiLevelLogits, {"temperatures": ()}, "at least one number"),
        (MultiLevelLogits, {"temperatures": 4.0}, "a list or tuple"),
        (MultiLevelLogits, {"temperatures": (4.0, 0.0)}, "`temperatures` of MultiLevelLogits"),
        (MultiLevelLogits, {"class_weight": -1.0}, "`class_weight` of MultiLevelLogits"),
        (NoisyLogits, {"sigma": -0.1}, "`sigma` of NoisyLogits"),
        (NoisyLogits, {"alpha": 1.1}, "`alpha` of NoisyLogits"),
        (losses.HardTargets, {"reduction": "average"}, "reduction"),
    ],
)
def test_bad_arguments_are_refused_at_construction(make, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(**arguments)


def test_a_bad_value_is_refused_when_it_is_set_later():
    loss = losses.SoftTargets()
    with pytest.raises(ValueError, match="`temperature` of SoftTargets .*temperature=0"):
        loss.temperature = 0
    assert float(loss.temperature) == 4.0


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_checked_before_training(name):
    loss = CASES[name][0]()
    loss.check_shapes((None, 10), (None, 10))
    loss.check_shapes((None, None, 10), (None, 7, 10))
    with pytest.raises(
        ValueError, match=rf"{type(loss).__name__} .*\(None, 100\).*\(None, 10\).*as many outputs"
    ):
        loss.check_shapes((None, 100), (None, 10))
    with pytest.raises(ValueError, match="one output with one output.*one layer per transfer"):
        loss.check_shapes([(None, 10), (None, 10)], (None, 10))


def test_a_single_output_is_refused_where_there_is_a_softmax():
    with pytest.raises(ValueError, match="SoftTargets expects at least 2 classes"):
        losses.SoftTargets().check_shapes((None, 1), (None, 1))
    losses.LogitsMSE().check_shapes((None, 1), (None, 1))


def test_a_loss_called_without_its_labels_says_what_it_needs(data):
    source, student, _ = data
    with pytest.raises(ValueError, match=r"DecoupledKD needs \('labels',\)"):
        losses.DecoupledKD()(source, student)


# In compiled steps.


class _OnColumns(keras.losses.Loss):
    """Feeds a loss in `fit` from one array: the source's logits and a column of labels."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def call(self, y_true, y_pred):
        labels = [y_true[:, -1]] if self.loss.needs else []
        return self.loss.values(y_true[:, :-1], y_pred, *labels)


@pytest.mark.parametrize("name", CASES)
def test_every_loss_trains_in_a_compiled_step(data, name):
    keras.utils.set_random_seed(0)
    source, _, labels = data
    make, expected = CASES[name]
    columns = np.concatenate([source, labels[:, None]], axis=1).astype("float32")
    x = np.eye(BATCH, dtype="float32")
    model = keras.Sequential([keras.Input((BATCH,)), keras.layers.Dense(CLASSES)])
    before = helpers.array(model(x))
    model.compile(keras.optimizers.SGD(0.01), _OnColumns(make()))
    # Batches of 4 and 2: the size isn't known in the traced step.
    history = model.fit(x, columns, batch_size=4, epochs=2, shuffle=False, verbose=0)
    assert np.all(np.isfinite(history.history["loss"]))
    after = helpers.array(model(x))
    assert not np.array_equal(before, after)
    if expected:
        assert expected(source, after, labels).mean() < expected(source, before, labels).mean()


def test_soft_targets_train_a_plain_keras_model_on_stored_logits(data):
    keras.utils.set_random_seed(0)
    source, _, _ = data
    x = np.eye(BATCH, dtype="float32")
    model = keras.Sequential([keras.Input((BATCH,)), keras.layers.Dense(CLASSES)])
    start = reference.kl_divergence(source, helpers.array(model(x)), 4.0).mean()
    model.compile(keras.optimizers.SGD(5.0), losses.SoftTargets(temperature=4.0))
    assert model.evaluate(x, source, verbose=0) == pytest.approx(start, rel=1e-4)
    model.fit(np.tile(x, (100, 1)), np.tile(source, (100, 1)), BATCH, shuffle=False, verbose=0)
    assert model.evaluate(x, source, verbose=0) < 0.01 * start


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="plain Keras on TensorFlow")
def test_a_temperature_set_between_calls_acts_without_retracing(data):
    import tensorflow as tf

    source, student, _ = data
    loss = losses.SoftTargets(temperature=4.0)
    step = tf.function(lambda s, z: loss(s, z))
    first = float(step(source, student))
    loss.temperature = 1.0
    second = float(step(source, student))
    assert first == pytest.approx(reference.kl_divergence(source, student, 4.0).mean(), rel=1e-4)
    assert second == pytest.approx(reference.kl_divergence(source, student, 1.0).mean(), rel=1e-4)
    assert step.experimental_get_tracing_count() == 1


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX always knows the size")
def test_relations_over_a_batch_of_unknown_size_stay_finite_for_one_example(data):
    import tensorflow as tf

    source, student, _ = data
    loss = losses.DIST()
    shape = tf.TensorSpec((None, CLASSES), "float32")

    @tf.function(input_signature=[shape, shape])
    def step(s, z):
        return helpers.gradient_tensor(lambda x: loss(s, x), z), loss(s, z)

    gradient, value = step(source[:1], student[:1])
    assert np.all(np.isfinite(helpers.array(gradient)))
    inter = reference.dist(source, student, intra_weight=0.0)[0]
    # A class that is constant over the batch counts as uncorrelated: 1.
    assert float(value) == pytest.approx(inter + 1.0, rel=1e-4)
