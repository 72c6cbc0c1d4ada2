"""Standardisation, correlation, confidence, permutations and labels."""

import keras
import numpy as np
import pytest

from kdtoolkit import functional
from tests import helpers, reference

pytestmark = pytest.mark.core

BATCH, CLASSES = 6, 5


@pytest.fixture
def pair():
    """The source's logits and the student's."""
    random = np.random.default_rng(0)
    return tuple(random.normal(0, 3, (BATCH, CLASSES)).astype("float32") for _ in range(2))


@pytest.fixture
def labels():
    return np.array([0, 1, 2, 3, 4, 0])


# Standardisation and correlation.


def test_standardise_matches_the_unbiased_formula(pair):
    np.testing.assert_allclose(
        helpers.array(functional.standardise(pair[0])), reference.standardise(pair[0]), rtol=1e-5
    )


@pytest.mark.parametrize(("a", "b"), [(0.01, 3.0), (50.0, -1000.0)])
def test_standardise_removes_scale_and_offset(pair, a, b):
    scaled = functional.standardise(a * pair[0] + b)
    np.testing.assert_allclose(
        helpers.array(scaled), helpers.array(functional.standardise(pair[0])), atol=2e-4
    )


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e4])
def test_constant_logits_standardise_to_zero_with_an_ordinary_gradient(constant):
    z = np.full((BATCH, CLASSES), constant, "float32")
    assert np.max(np.abs(helpers.array(functional.standardise(z)))) < 1e-6
    weights = np.random.default_rng(0).normal(size=CLASSES).astype("float32")
    gradient = helpers.gradient(lambda x: functional.standardise(x) * weights, z)
    assert np.all(np.isfinite(gradient))
    assert 0.1 < np.max(np.abs(gradient)) < 10


def test_correlation_of_a_constant_vector_is_zero_with_an_ordinary_gradient(pair):
    constant = np.full((BATCH, CLASSES), 0.2, "float32")
    value = functional.pearson_correlation(constant, pair[0])
    np.testing.assert_allclose(helpers.array(value), np.zeros(BATCH), atol=1e-6)
    gradient = helpers.gradient(functional.pearson_correlation, constant, pair[0])
    assert np.all(np.isfinite(gradient)) and np.max(np.abs(gradient)) < 10


def test_correlation_matches_numpy_and_ignores_affine_maps(pair):
    first, second = pair
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(first, second, strict=True)]
    for scale, offset in ((1.0, 0.0), (30.0, 200.0), (0.01, -5.0)):
        value = functional.pearson_correlation(scale * first + offset, second)
        np.testing.assert_allclose(helpers.array(value), expected, atol=1e-4)


def test_inter_class_relation_ignores_affine_maps_of_the_probabilities(pair):
    source, student = pair
    p = reference.softmax(source)
    # 0.3 p + 0.7 / classes is a distribution again, and its logarithm its logits.
    flattened = np.log(0.3 * p + 0.7 / CLASSES)
    for other in (source, student):
        np.testing.assert_allclose(
            helpers.array(functional.inter_class_relation(flattened, other)),
            helpers.array(functional.inter_class_relation(source, other)),
            atol=1e-5,
        )


def test_intra_class_relation_refuses_a_batch_of_one():
    with pytest.raises(ValueError, match=r"at least 2.*shape \(1, 3\).*larger batch"):
        functional.intra_class_relation(np.zeros((1, 3)), np.zeros((1, 3)))


# Confidence weights and permutations.


def test_confidence_weights_have_mean_one(pair):
    weights = helpers.array(functional.confidence_weights(pair[0]))
    confidence = reference.softmax(pair[0]).max(axis=-1)
    np.testing.assert_allclose(weights / BATCH, confidence / confidence.sum(), rtol=1e-5)
    assert np.sum(weights / BATCH) == pytest.approx(1.0, rel=1e-6)


def test_permutation_keeps_the_largest_and_the_set_of_values(pair):
    shuffled = helpers.array(functional.permute_non_argmax(pair[0], seed=3))
    assert not np.array_equal(shuffled, pair[0])
    np.testing.assert_array_equal(shuffled.argmax(axis=-1), pair[0].argmax(axis=-1))
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(pair[0]))


def test_permutation_is_uniform_over_the_other_classes():
    # Largest in the middle: the others must cross it in both directions.
    logits = np.tile(np.array([[0.0, 1.0, 9.0, 2.0]], "float32"), (3000, 1))
    shuffled = helpers.array(functional.permute_non_argmax(logits, seed=1))
    assert np.all(shuffled[:, 2] == 9.0)
    for position in (0, 1, 3):
        for value in (0.0, 1.0, 2.0):
            assert np.mean(shuffled[:, position] == value) == pytest.approx(1 / 3, abs=0.04)


def test_permutation_differs_between_examples_and_steps_and_repeats_with_the_seed():
    logits = np.tile(np.arange(CLASSES, dtype="float32"), (BATCH, 1))

    def two_steps(seed):
        generator = keras.random.SeedGenerator(seed)
        steps = [functional.permute_non_argmax(logits, generator) for _ in range(2)]
        return [helpers.array(step) for step in steps]

    first, second = two_steps(7)
    assert not np.array_equal(first, second)
    assert len(np.unique(first, axis=0)) > 1
    np.testing.assert_array_equal([first, second], two_steps(7))
    assert not np.array_equal(first, two_steps(8)[0])


def test_permutation_of_two_classes_changes_nothing():
    logits = np.array([[1.0, 2.0], [5.0, -1.0]], "float32")
    np.testing.assert_array_equal(helpers.array(functional.permute_non_argmax(logits, 0)), logits)


# Labels.


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y,
        lambda y: y.astype("uint8"),
        lambda y: y.astype("float32"),
        lambda y: y[:, None],
        lambda y: reference.one_hot(y, CLASSES),
        lambda y: reference.one_hot(y, CLASSES).astype("int32"),
    ],
)
def test_every_form_of_labels_is_the_same_distribution(pair, labels, form):
    expected = reference.one_hot(labels, CLASSES)
    given = form(labels)
    np.testing.assert_array_equal(
        helpers.array(functional.label_distribution(given, pair[0])), expected
    )
    np.testing.assert_array_equal(helpers.array(functional.class_numbers(given, pair[0])), labels)


def test_soft_labels_are_kept():
    soft = np.array([[0.2, 0.5, 0.3]], "float32")
    kept = functional.label_distribution(soft, np.zeros((1, 3), "float16"))
    np.testing.assert_array_equal(helpers.array(kept), soft)
    assert int(functional.class_numbers(soft, np.zeros((1, 3)))[0]) == 1


def test_a_class_number_out_of_range_costs_nothing(pair):
    ignored = functional.label_distribution(np.full(BATCH, -1), pair[0])
    assert np.all(helpers.array(functional.cross_entropy(ignored, pair[1])) == 0)


@pytest.mark.parametrize("shape", [(BATCH, CLASSES - 1), (BATCH + 1,), (), (BATCH, 1, 1)])
def test_labels_of_another_shape_are_refused(pair, shape):
    with pytest.raises(ValueError, match="must be class numbers of shape .* Received labels"):
        functional.label_distribution(np.zeros(shape, "int32"), pair[0])


def test_labels_of_maps_are_class_numbers_or_distributions():
    maps, numbers = np.zeros((2, 3, 4, CLASSES)), np.ones((2, 3, 4), "int32")
    for given in (numbers, numbers[..., None], reference.one_hot(numbers, CLASSES)):
        distribution = functional.label_distribution(given, maps)
        np.testing.assert_array_equal(
            helpers.array(distribution), reference.one_hot(numbers, CLASSES)
        )
