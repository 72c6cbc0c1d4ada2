"""The pure maths against NumPy, its limits and its invariances."""

import doctest
import importlib
import pkgutil

import keras
import numpy as np
import pytest
from keras import ops

import kdtoolkit.functional
import kdtoolkit.losses
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


def _modules():
    yield "kdtoolkit.scalars"
    for package in (kdtoolkit.functional, kdtoolkit.losses):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            yield module.name


@pytest.mark.parametrize("name", _modules())
def test_examples_in_docstrings_run(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_every_function_and_loss_has_an_example():
    public = [
        getattr(package, name)
        for package in (kdtoolkit.functional, kdtoolkit.losses)
        for name in dir(package)
        if not name.startswith("_")
    ]
    documented = [x for x in public if callable(x)]
    without = {
        x.__name__ for x in documented if ">>>" not in x.__doc__ and "```python" not in x.__doc__
    }
    assert len(documented) > 20
    assert without <= {"at_least_float32"}


# Values in detail; the losses' own tests compare each function with the reference.


def test_log_probabilities_do_not_saturate():
    value = helpers.array(functional.log_probabilities(np.array([[0.0, -200.0, 7.0]])))
    np.testing.assert_allclose(
        value, reference.log_softmax([[0.0, -200.0, 7.0]]), rtol=1e-6, atol=1e-6
    )


def test_a_class_far_below_the_others_keeps_its_gradient():
    # Keras's own KL clips at 1e-7: a gradient of 0 for the student's class at -200.
    source, student = np.array([[0.0, 0.0]]), np.array([[0.0, -200.0]])
    gradient = helpers.gradient(functional.kl_divergence, source, student, argnum=1)
    np.testing.assert_allclose(gradient, [[0.5, -0.5]], atol=1e-6)


def test_kl_of_extreme_logits_is_exact():
    value = functional.kl_divergence(np.array([[100.0, -100.0]]), np.array([[-100.0, 100.0]]))
    assert float(value[0]) == pytest.approx(200.0)


def test_a_class_ruled_out_by_both_networks_adds_nothing(pair):
    source, student = pair
    source[:, -1] = student[:, -1] = -np.inf
    np.testing.assert_allclose(
        helpers.array(functional.kl_divergence(source, student)),
        reference.kl_divergence(source[:, :-1], student[:, :-1]),
        rtol=1e-5,
    )
    gradient = helpers.gradient(functional.kl_divergence, source, student, argnum=1)
    assert np.all(np.isfinite(gradient)) and np.all(gradient[:, -1] == 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(pair, dtype):
    source, student = (ops.cast(ops.convert_to_tensor(z), dtype) for z in pair)
    value = functional.kl_divergence(source, student, 4.0)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    rounded = [helpers.array(z) for z in (source, student)]
    np.testing.assert_allclose(
        helpers.array(value), reference.kl_divergence(*rounded, 4.0), rtol=1e-4
    )


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has no float64 by default")
def test_float64_stays_float64(pair):
    source, student = (z.astype("float64") for z in pair)
    value = functional.kl_divergence(source, student, 4.0)
    assert keras.backend.standardize_dtype(value.dtype) == "float64"
    np.testing.assert_allclose(
        helpers.array(value), reference.kl_divergence(source, student, 4.0), rtol=1e-12
    )


def test_integer_logits_are_accepted():
    assert float(functional.logits_mse([[1, 3]], [[1, 1]])[0]) == 2.0


@pytest.mark.parametrize(("temperature", "scale"), [(1e-3, 1e3), (1e6, 1.0)])
def test_extreme_temperatures_stay_finite(pair, labels, temperature, scale):
    source, student = (ops.convert_to_tensor(scale * z) for z in pair)

    def everything(z):
        target, rest = functional.decoupled_kd(source, z, labels, temperature)
        return (
            target
            + rest
            + functional.kl_divergence(source, z, temperature)
            + functional.soft_cross_entropy(source, z, temperature)
            + functional.inter_class_relation(source, z, temperature)
            + functional.intra_class_relation(source, z, temperature)
        )

    assert np.all(np.isfinite(helpers.array(everything(student))))
    assert np.all(np.isfinite(helpers.gradient(everything, student)))


def test_soft_cross_entropy_is_kl_plus_entropy(pair):
    source, student = pair
    entropy = reference.cross_entropy(reference.softmax(source), source)
    np.testing.assert_allclose(
        helpers.array(functional.soft_cross_entropy(source, student)),
        helpers.array(functional.kl_divergence(source, student)) + entropy,
        rtol=1e-5,
    )


def test_cross_entropy_is_linear_in_the_target(pair, labels):
    source, student = pair
    y, p = reference.one_hot(labels, CLASSES), reference.softmax(source)
    mixed = functional.cross_entropy(0.5 * y + 0.5 * p, student)
    parts = [helpers.array(functional.cross_entropy(t, student)) for t in (y, p)]
    np.testing.assert_allclose(helpers.array(mixed), np.mean(parts, axis=0), rtol=1e-5)


def test_hard_targets_take_the_first_of_equal_scores():
    gradient = helpers.gradient(
        functional.hard_target_cross_entropy, np.ones((1, 3)), np.zeros((1, 3)), argnum=1
    )
    np.testing.assert_allclose(gradient, [[1 / 3 - 1, 1 / 3, 1 / 3]], atol=1e-6)


# Decoupled distillation.


def test_decoupled_parts_add_up_to_kl(pair, labels):
    source, student = pair
    target, rest = (
        helpers.array(part) for part in functional.decoupled_kd(source, student, labels, 4.0)
    )
    share_of_others = 1 - reference.softmax(source, 4.0)[np.arange(BATCH), labels]
    np.testing.assert_allclose(
        target + share_of_others * rest, reference.kl_divergence(source, student, 4.0), rtol=1e-4
    )


def test_decoupled_parts_are_exact_where_the_source_is_sure():
    # p_y is 1 in float32, 1 - p_y is e^-60: only its logarithm shows how far the student is off.
    source, student = np.array([[60.0, 0.0, -3.0]]), np.array([[-60.0, 5.0, 1.0]])
    target, rest = functional.decoupled_kd(source, student, [0], 1.0)
    expected = reference.decoupled_kd(source, student, [0], 1.0)
    np.testing.assert_allclose(helpers.array(target), expected[0], rtol=1e-5)
    np.testing.assert_allclose(helpers.array(rest), expected[1], rtol=1e-5)
    # An unlabelled student's certainty in the labelled class: the other direction of sureness.
    target, _ = functional.decoupled_kd(student, source, [0], 1.0)
    np.testing.assert_allclose(
        helpers.array(target), reference.decoupled_kd(student, source, [0], 1.0)[0], rtol=1e-5
    )


def test_non_target_part_ignores_the_labelled_class(pair, labels):
    source, student = pair
    raised = student + 50 * reference.one_hot(labels, CLASSES).astype("float32")
    rest = [functional.decoupled_kd(source, z, labels)[1] for z in (student, raised)]
    np.testing.assert_allclose(helpers.array(rest[0]), helpers.array(rest[1]), rtol=1e-4)


def test_two_classes_have_no_non_target_part():
    target, rest = functional.decoupled_kd(np.array([[2.0, 0.0]]), np.zeros((1, 2)), [0], 1.0)
    expected = reference.kl_divergence(np.array([[2.0, 0.0]]), np.zeros((1, 2)))
    np.testing.assert_allclose(helpers.array(target), expected, rtol=1e-5)
    assert float(rest[0]) == 0.0


# Shapes.


def test_maps_give_the_mean_over_their_positions(pair, labels):
    source, student = (np.stack([z, z[::-1], 2 * z], axis=1) for z in pair)
    numbers = np.stack([labels, labels[::-1], labels], axis=1)
    for function, extra in (
        (functional.kl_divergence, ()),
        (functional.soft_cross_entropy, ()),
        (functional.hard_target_cross_entropy, ()),
        (functional.logits_mse, ()),
        (functional.inter_class_relation, ()),
        (functional.mixed_target_cross_entropy, (numbers,)),
        (lambda *a: functional.decoupled_kd(*a)[0], (numbers,)),
        (lambda *a: functional.decoupled_kd(*a)[1], (numbers,)),
    ):
        whole = helpers.array(function(source, student, *extra))
        each = [
            helpers.array(function(source[:, i], student[:, i], *(e[:, i] for e in extra)))
            for i in range(3)
        ]
        assert whole.shape == (BATCH,)
        np.testing.assert_allclose(whole, np.mean(each, axis=0), rtol=1e-4, atol=1e-5)


def test_relations_over_the_batch_take_every_position_of_a_map(pair):
    rows = [z.reshape(2, 3, CLASSES) for z in pair]
    assert float(functional.intra_class_relation(*rows)) == pytest.approx(
        float(functional.intra_class_relation(*pair)), rel=1e-5
    )
    weights = helpers.array(functional.confidence_weights(rows[0]))
    np.testing.assert_allclose(
        weights.ravel(), helpers.array(functional.confidence_weights(pair[0])), rtol=1e-5
    )


def test_a_vector_without_a_batch_gives_a_scalar(pair):
    value = functional.kl_divergence(pair[0][0], pair[1][0])
    expected = reference.kl_divergence(pair[0][:1], pair[1][:1])[0]
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("source", "student"), [((4, 10), (4, 5)), ((4, 10), (1, 10)), ((4, 10), (4, 1, 10))]
)
def test_shapes_that_would_broadcast_are_refused(source, student):
    with pytest.raises(ValueError, match="two equal shapes.*Received: source .*as many outputs"):
        functional.kl_divergence(np.zeros(source), np.zeros(student))


def test_a_single_class_is_refused_except_for_squared_errors():
    with pytest.raises(ValueError, match=r"at least 2 classes.*two-class logits \[0, z\]"):
        functional.kl_divergence(np.zeros((4, 1)), np.zeros((4, 1)))
    for function in (functional.standardise, lambda z: functional.permute_non_argmax(z, 0)):
        with pytest.raises(ValueError, match="at least 2 classes"):
            function(np.zeros((4, 1)))
    assert float(functional.logits_mse([[3.0]], [[1.0]])[0]) == 4.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(pair, temperature):
    with pytest.raises(ValueError, match="`temperature`.* > 0. Received: temperature="):
        functional.kl_divergence(*pair, temperature)
