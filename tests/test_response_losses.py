"""The response losses: reference, gradient, limits, invariances, and life as Keras losses."""

import keras
import numpy as np
import pytest
from keras import ops

from kdtoolkit import functional, losses
from kdtoolkit.losses.base import BoundLoss
from kdtoolkit.losses.response import ResponseLoss
from kdtoolkit.registry import PUBLIC_CLASSES
from tests import helpers, reference

pytestmark = pytest.mark.core

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
    # Random, so without a fixed reference; its properties are tested further down.
    "permuted": (lambda **k: losses.PermutedDarkKnowledge(seed=0, **k), None),
}
WITH_REFERENCE = [name for name, (_, expected) in CASES.items() if expected]
#: Zero exactly where the student's logits are the source's plus a constant.
DIVERGENCES = ["soft", "standardised", "centred mse", "decoupled", "dist"]


@pytest.fixture
def data():
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


def test_every_public_response_loss_is_in_the_table():
    public = {c for c in PUBLIC_CLASSES.values() if issubclass(c, ResponseLoss)}
    assert public == {type(make()) for make, _ in CASES.values()}


# Numbers.


@pytest.mark.parametrize("name", WITH_REFERENCE)
@pytest.mark.parametrize("gap", [1, 100])
def test_values_equal_the_reference(data, name, gap):
    make, expected = CASES[name]
    source, student, labels = data
    # Gaps of some hundreds between classes: past every clip at 1e-7.
    source, student = gap * source, gap * student
    computed = helpers.array(values(make(), source, student, labels))
    assert computed.shape == (BATCH,)
    np.testing.assert_allclose(computed, expected(source, student, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_gradients_equal_central_differences_of_the_reference(data, name):
    make, expected = CASES[name]
    source, student, labels = data
    loss = make()
    computed = helpers.gradient(
        lambda z: call(loss, source, z, labels, sample_weight=None), student
    )
    np.testing.assert_allclose(
        computed,
        reference.numerical_gradient(lambda z: expected(source, z, labels).mean(), student),
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_gradient_of_soft_targets_is_temperature_times_the_difference(data, temperature):
    source, student, _ = data
    p, q = reference.softmax(source, temperature), reference.softmax(student, temperature)
    for make in (losses.SoftTargets, losses.SoftCrossEntropy):
        computed = helpers.gradient(make(temperature=temperature), source, student, argnum=1)
        np.testing.assert_allclose(computed, temperature * (q - p) / BATCH, atol=3e-6)


def test_gradients_of_cross_entropies_are_probability_minus_target(data):
    source, student, labels = data
    p, q, y = reference.softmax(source), reference.softmax(student), reference.one_hot(labels, 5)
    hard = reference.one_hot(source.argmax(axis=-1), CLASSES)
    confidence = p.max(axis=-1, keepdims=True)
    for loss, expected in (
        (losses.HardTargets(), (q - hard) / BATCH),
        (losses.MixedTargets(label_share=0.25), (q - 0.25 * y - 0.75 * p) / BATCH),
        (losses.CategoryConfidence(), confidence / confidence.sum() * (q - y)),
        (losses.LogitsMSE(), 2 * (student - source) / (BATCH * CLASSES)),
    ):
        computed = helpers.gradient(lambda z, f=loss: call(f, source, z, labels), student)
        np.testing.assert_allclose(computed, expected, atol=1e-6)


def test_high_temperature_tends_to_matching_centred_logits(data):
    source, student, _ = data
    difference = student - source
    difference = difference - difference.mean(axis=-1, keepdims=True)
    loss = losses.SoftTargets(temperature=1000.0)
    gradient = helpers.gradient(loss, source, student, argnum=1)
    np.testing.assert_allclose(gradient, difference / (BATCH * CLASSES), atol=1e-3)
    half = losses.LogitsMSE(centred=True)(source, student) / 2
    assert float(losses.SoftTargets(temperature=100.0)(source, student)) == pytest.approx(
        float(half), rel=0.03
    )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_zero_for_equal_logits_up_to_a_constant_only(data, name):
    source, student, labels = data
    loss = CASES[name][0]()
    shifted = source + np.arange(BATCH, dtype="float32")[:, None]
    equal = helpers.array(values(loss, source, shifted, labels))
    np.testing.assert_allclose(equal, np.zeros(BATCH), atol=2e-5)
    assert np.all(helpers.array(values(loss, source, student, labels)) > 1e-3)


@pytest.mark.parametrize("name", ["standardised", "dist"])
def test_losses_that_ignore_scale_see_shape(data, name):
    source, student, labels = data
    loss = CASES[name][0]()
    if name == "standardised":
        same = 7 * source - 2
    else:
        loss.temperature = 1.0
        loss.intra_weight = 0.0
        same = np.log(0.5 * reference.softmax(source) + 0.5 / CLASSES).astype("float32")
    np.testing.assert_allclose(
        helpers.array(values(loss, source, same, labels)), np.zeros(BATCH), atol=1e-4
    )
    assert np.all(helpers.array(losses.SoftTargets().values(source, same)) > 1e-2)


def test_plain_squared_error_does_see_a_constant(data):
    source, _, _ = data
    assert float(losses.LogitsMSE()(source, source + 2.0)) == pytest.approx(4.0)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_order_of_classes_does_not_matter(data, name):
    source, student, labels = data
    loss = CASES[name][0]()
    order = np.array([3, 0, 4, 1, 2])
    renamed = np.argsort(order)[labels]
    np.testing.assert_allclose(
        helpers.array(values(loss, source[:, order], student[:, order], renamed)),
        helpers.array(values(loss, source, student, labels)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_decoupled_kd_with_the_source_s_own_weights_is_soft_targets(data):
    source, student, labels = data
    for example in range(BATCH):
        one = slice(example, example + 1)
        own = 1 - reference.softmax(source[one], 4.0)[0, labels[example]]
        loss = losses.DecoupledKD(target_weight=1.0, non_target_weight=own)
        value = call(loss, source[one], student[one], labels[one])
        expected = losses.SoftTargets(temperature=4.0)(source[one], student[one])
        assert float(value) == pytest.approx(float(expected), rel=1e-4)


def test_soft_targets_agree_with_keras_where_keras_does_not_clip(data):
    source, student, _ = data
    theirs = keras.distillation.LogitsDistillation(
        temperature=4.0, loss=keras.losses.KLDivergence()
    ).compute_loss(source, student)
    ours = losses.SoftTargets(temperature=4.0)(source, student)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


def test_mixed_targets_at_the_ends_are_labels_and_source(data):
    source, student, labels = data
    label_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, student)
    loss = losses.MixedTargets(label_share=1.0)
    assert float(call(loss, source, student, labels)) == pytest.approx(float(label_loss), rel=1e-5)
    loss.label_share = 0.0
    assert float(call(loss, source, student, labels)) == pytest.approx(
        float(losses.SoftCrossEntropy()(source, student)), rel=1e-5
    )


def test_mixed_targets_of_a_one_hot_source_are_plain_labels(data):
    # A prediction memory starts as the labels: log(one-hot) is 0 and -inf.
    _, student, labels = data
    with np.errstate(divide="ignore"):
        start = np.log(reference.one_hot(labels, CLASSES))
    expected = reference.cross_entropy(reference.one_hot(labels, CLASSES), student).mean()
    value = call(losses.MixedTargets(), start, student, labels)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_equal_confidence_is_the_plain_mean_cross_entropy(data):
    _, student, labels = data
    # The same scores in another order per example: equally sure of different classes.
    source = np.stack([np.roll([3.0, 1.0, 0.0, -1.0, 2.0], i) for i in range(BATCH)])
    label_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, student)
    value = call(losses.CategoryConfidence(), source, student, labels)
    assert float(value) == pytest.approx(float(label_loss), rel=1e-5)


def test_permuted_dark_knowledge_is_cross_entropy_against_shuffled_targets(data):
    source, student, labels = data
    loss = losses.PermutedDarkKnowledge(seed=5)
    state = keras.random.SeedGenerator(5)
    for _ in range(2):
        target = helpers.array(functional.permute_non_argmax(source, state))
        np.testing.assert_allclose(
            helpers.array(loss.values(source, student)),
            reference.soft_cross_entropy(target, student),
            rtol=1e-4,
        )


def test_permuted_dark_knowledge_draws_anew_at_every_call(data):
    source, student, _ = data
    loss = losses.PermutedDarkKnowledge()
    assert float(loss(source, student)) != float(loss(source, student))


def test_a_batch_of_one_is_refused_by_relations_over_the_batch(data):
    source, student, _ = data
    with pytest.raises(ValueError, match=r"at least 2.*shape \(1, 5\).*drop_remainder"):
        losses.DIST()(source[:1], student[:1])


# Half precision.


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_at_ten_thousand_is_finite(data, name, dtype):
    source, student, labels = data
    loss = CASES[name][0]()
    source, student = (
        ops.cast(ops.convert_to_tensor(1e4 * np.sign(z)), dtype) for z in (source, student)
    )

    def function(z):
        return values(loss, source, z, labels)

    result = function(student)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    assert np.all(np.isfinite(helpers.array(result)))
    gradient = helpers.gradient(function, student)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", CASES)
def test_constant_student_logits_have_a_finite_ordinary_gradient(data, name):
    # A head that starts at zero: the first step must not throw the student away.
    source, student, labels = data
    loss = CASES[name][0]()
    gradient = helpers.gradient(lambda z: call(loss, source, z, labels), np.full_like(student, 0.1))
    assert np.all(np.isfinite(gradient)) and np.max(np.abs(gradient)) < 10


# As Keras losses.


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
        (losses.SoftTargets, {"temperature": 0}, "`temperature` of SoftTargets .* > 0. Received"),
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
        (losses.HardTargets, {"reduction": "average"}, "reduction"),
    ],
)
def test_bad_arguments_are_refused_at_construction(make, arguments, message):
    with pytest.raises(ValueError, match=message):
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
