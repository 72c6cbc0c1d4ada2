"""The response losses' numbers: reference, gradient, limits, invariances, half precision."""

import keras
import numpy as np
import pytest
from keras import ops

from kdtoolkit import functional, losses
from kdtoolkit.losses.multi_level import MultiLevelLogits
from kdtoolkit.losses.response import ResponseLoss
from kdtoolkit.registry import PUBLIC_CLASSES
from tests import helpers, reference
from tests.response_cases import (
    BATCH,
    CASES,
    CLASSES,
    DIVERGENCES,
    WITH_REFERENCE,
    arrays,
    call,
    values,
)

pytestmark = pytest.mark.core


@pytest.fixture
def data():
    return arrays()


def test_every_public_response_loss_is_in_the_table():
    ours = [c for c in PUBLIC_CLASSES.values() if c.__module__.startswith("kdtoolkit.")]
    public = {c for c in ours if issubclass(c, ResponseLoss)}
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
    for loss in (losses.DIST(), MultiLevelLogits()):
        with pytest.raises(ValueError, match=r"at least 2.*shape \(1, 5\).*drop_remainder"):
            loss(source[:1], student[:1])


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
