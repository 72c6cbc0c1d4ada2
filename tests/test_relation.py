"""Identities of the losses between relations. Values and gradients: `test_contract.py`."""

import keras
import numpy as np
import pytest
from keras import ops

from kdtoolkit.functional.relation import angle_cosines, pairwise_distances, unit_vectors
from kdtoolkit.losses.relation.correlation import CorrelationCongruence
from kdtoolkit.losses.relation.distance import RelationalAngle, RelationalDistance
from kdtoolkit.losses.relation.flow import FlowOfSolutions
from kdtoolkit.losses.relation.similarity import ProbabilisticTransfer, SimilarityPreserving
from tests import cases_relation, helpers

RELATIONAL = [RelationalDistance, RelationalAngle]
COSINE = [ProbabilisticTransfer, CorrelationCongruence]
BETWEEN_EXAMPLES = [*RELATIONAL, SimilarityPreserving, *COSINE]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def values(loss, source, student):
    return helpers.array(loss.values(source, student))


def wider(vectors, width):
    """The same points in a space of more dimensions, rotated."""
    return vectors @ np.linalg.qr(draw(width, width, seed=9))[0][: vectors.shape[1]]


def agree(loss, student, source):
    np.testing.assert_allclose(values(loss, source, student), 0, atol=1e-6)


@pytest.mark.parametrize("kind", BETWEEN_EXAMPLES)
def test_a_wider_student_with_the_source_s_geometry_costs_nothing(kind):
    source = draw(6, 4)
    agree(kind(), 3 * wider(source, 9), source)
    assert np.all(values(kind(), source, draw(6, 9, seed=1)) > 1e-5)


@pytest.mark.parametrize("kind", RELATIONAL)
def test_distances_and_angles_ignore_where_the_features_lie(kind):
    source = draw(6, 4)
    agree(kind(), 0.1 * source + 5, source)


@pytest.mark.parametrize("kind", COSINE)
def test_cosine_kernels_ignore_each_example_s_length(kind):
    source = draw(6, 4)
    agree(kind(), source * np.arange(1, 7, dtype="float32")[:, None], source)


def test_similarity_ignores_signs_that_examples_change_in_both_networks():
    source, student = draw(6, 4), draw(6, 3, seed=1)
    signs = np.array([1, -1, -1, 1, 1, -1], "float32")[:, None]
    loss = SimilarityPreserving()
    before, after = (values(loss, s * source, s * student) for s in (abs(signs), signs))
    np.testing.assert_allclose(after, before, rtol=1e-5)
    assert not np.allclose(values(loss, source, signs * student), before)


@pytest.mark.parametrize("kind", BETWEEN_EXAMPLES)
def test_examples_in_another_order_keep_their_values(kind):
    source, student, order = draw(5, 4), draw(5, 3, seed=1), [3, 0, 4, 1, 2]
    loss = kind()
    expected = values(loss, source, student)[order]
    np.testing.assert_allclose(values(loss, source[order], student[order]), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", BETWEEN_EXAMPLES)
def test_pooling_is_reading_the_layer_after_the_pooling(kind):
    maps, student = draw(5, 3, 3, 4), draw(5, 2, 6, seed=1)
    pooled = values(kind(pool=True), maps, student)
    expected = values(kind(), maps.mean(axis=(1, 2)), student.mean(axis=1))
    np.testing.assert_allclose(pooled, expected, rtol=1e-4)
    flat = values(kind(pool=False), maps, student)
    expected = values(kind(pool=False), maps.reshape(5, -1), student.reshape(5, -1))
    np.testing.assert_allclose(flat, expected, rtol=1e-5)
    assert not np.allclose(flat, pooled)


@pytest.mark.parametrize("kind", BETWEEN_EXAMPLES)
def test_one_example_has_no_relations_and_no_gradient(kind):
    # What a batch of unknown size comes to where it holds one.
    source, student = draw(1, 4), draw(1, 3, seed=1)
    result = helpers.array(kind().compare(ops.convert_to_tensor(source), student))
    np.testing.assert_allclose(result, [0], atol=1e-6)
    gradient = helpers.gradient(lambda x: kind().compare(source, x), student)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("kind", BETWEEN_EXAMPLES)
def test_examples_given_twice_have_finite_gradients(kind):
    source, student = draw(4, 4), draw(4, 3, seed=1)
    source[1], student[2] = source[0], student[0]
    gradient = helpers.gradient(lambda x: kind().values(source, x), student)
    assert np.all(np.isfinite(gradient)) and np.max(np.abs(gradient)) < 10


def test_distances_are_exact_far_from_the_origin():
    vectors = draw(4, 3)
    moved = ops.convert_to_numpy(pairwise_distances(vectors + 1000))
    expected = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-6)


def test_equal_examples_are_at_distance_0():
    twice = np.concatenate([draw(3, 50), draw(3, 50)])
    distances = ops.convert_to_numpy(pairwise_distances(twice))
    assert np.all(np.diag(distances) == 0) and np.all(np.diag(distances, 3) == 0)


def test_an_equilateral_triangle_has_angles_of_60_degrees():
    cosines = helpers.array(angle_cosines(np.eye(3, dtype="float32")))
    for j, i, k in [(0, 1, 2), (1, 2, 0), (2, 0, 1)]:
        assert cosines[j, i, k] == pytest.approx(0.5, abs=1e-6)
        assert cosines[j, i, i] == pytest.approx(1, abs=1e-6)
        assert cosines[j, i, j] == cosines[j, j, k] == 0


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_unit_vectors_have_length_1_whatever_their_size(size):
    vectors = size * np.array([[3.0, -4.0], [0.0, 0.0]], "float32")
    found = ops.convert_to_numpy(unit_vectors(vectors.astype("float32")))
    np.testing.assert_allclose(found, [[0.6, -0.8], [0, 0]], rtol=1e-6)


def test_huber_s_loss_is_linear_for_large_errors():
    near = np.array([[0.0], [1.0], [0.0], [1.0], [0.0], [1.0], [0.0], [1.0], [0.0], [100.0]])
    far = np.arange(10.0)[:, None]
    loss = RelationalDistance()
    expected = cases_relation.CASES["relational distance"].reference(loss, far, near)
    np.testing.assert_allclose(values(loss, far, near), expected, rtol=1e-5)
    relative = cases_relation._distances
    assert np.max(np.abs(relative(near) - relative(far))) > 1


def test_with_themselves_examples_have_the_benchmark_s_value_times_the_batch():
    source, student = draw(6, 4), draw(6, 3, seed=1)
    tables = []
    for vectors in (source, student):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        kernel = (unit @ unit.T + 1) / 2
        tables.append(kernel / kernel.sum(axis=1, keepdims=True))
    benchmark = np.mean(tables[0] * np.log((tables[0] + 1e-7) / (tables[1] + 1e-7)))
    loss = ProbabilisticTransfer(include_self=True)
    assert float(loss(source, student)) == pytest.approx(6 * benchmark, rel=1e-4)


def test_two_examples_are_always_each_other_s_neighbours():
    source, student = draw(2, 4), draw(2, 3, seed=1)
    np.testing.assert_allclose(values(ProbabilisticTransfer(), source, student), 0, atol=1e-6)
    assert np.all(values(ProbabilisticTransfer(include_self=True), source, student) > 1e-4)


def test_exact_opposites_cost_finitely_much():
    source = np.array([[1.0], [2.0], [-1.0]], "float32")
    found = values(ProbabilisticTransfer(), -source[[0, 2, 1]], source)
    assert np.all(np.isfinite(found)) and np.max(found) > 10


def test_the_gaussian_series_tends_to_the_gaussian():
    source, student = draw(5, 4), draw(5, 3, seed=1)

    def gaussian(vectors):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.exp(-0.4 * np.sum((unit[:, None] - unit[None]) ** 2, axis=-1))

    expected = np.mean((gaussian(student) - gaussian(source)) ** 2, axis=1)
    found = values(CorrelationCongruence(order=12), source, student)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_gaussian_of_order_1_is_the_bilinear_kernel_scaled():
    source, student = draw(5, 4), draw(5, 3, seed=1)
    first = values(CorrelationCongruence(order=1), source, student)
    bilinear = values(CorrelationCongruence(kernel="bilinear"), source, student)
    np.testing.assert_allclose(first, (0.8 * np.exp(-0.8)) ** 2 * bilinear, rtol=1e-4)


def test_gamma_may_change_between_two_batches():
    source, student = draw(5, 4), draw(5, 3, seed=1)
    loss = CorrelationCongruence(gamma=0.7)
    before = values(loss, source, student)
    loss.gamma = 0.4
    expected = values(CorrelationCongruence(), source, student)
    np.testing.assert_allclose(values(loss, source, student), expected)
    assert not np.allclose(before, expected)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kernel": "rbf"}, "must be 'gaussian' or 'bilinear'. Received: kernel='rbf'"),
        ({"gamma": 0}, "`gamma` of CorrelationCongruence must be a finite number and > 0"),
        ({"order": 0}, "`order` of CorrelationCongruence must be an integer >= 1"),
    ],
)
def test_a_kernel_that_does_not_exist_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        CorrelationCongruence(**arguments)


def test_flow_forgets_where_in_the_maps_it_was():
    first, second, order = draw(2, 4, 3), draw(2, 4, 5, seed=1), [2, 0, 3, 1]
    loss = FlowOfSolutions()
    agreeing = values(loss, [first, second], [first[:, order], second[:, order]])
    np.testing.assert_allclose(agreeing, 0, atol=1e-6)
    assert np.all(values(loss, [first, second], [first, second[:, order]]) > 1e-3)


def test_flow_summed_is_the_mean_times_the_entries():
    source, student = [draw(2, 4, 3), draw(2, 4, 5)], [draw(2, 4, 3, seed=1), draw(2, 4, 5, seed=2)]
    mean, total = (values(FlowOfSolutions(average=a), source, student) for a in (True, False))
    np.testing.assert_allclose(total, 15 * mean, rtol=1e-5)


def test_flow_needs_no_other_examples():
    source, student = [draw(3, 4, 3), draw(3, 2, 5)], [draw(3, 4, 2), draw(3, 2, 5, seed=1)]
    loss = FlowOfSolutions()
    together = values(loss, source, student)
    for i in range(3):
        alone = values(loss, [x[i : i + 1] for x in source], [x[i : i + 1] for x in student])
        np.testing.assert_allclose(alone, together[i : i + 1], rtol=1e-5)


def test_flow_projects_only_where_the_channels_differ():
    loss = FlowOfSolutions()
    loss.build([(None, 4, 4, 3), (None, 2, 2, 5)], [(None, 4, 4, 3), (None, 2, 2, 8)])
    (projector,) = loss.layers
    assert [tuple(weight.shape) for weight in projector.trainable_weights] == [(8, 5), (5,)]


def test_flow_of_huge_features_is_finite_in_float32():
    # The gradient is of third degree: at 1e4 it is beyond what float16 can hold.
    source = [1e4 * np.sign(draw(2, 4, 3, seed=s)) for s in (0, 1)]
    student = [-source[0], source[1]]
    half = [ops.cast(x, "float16") for x in student]
    result = FlowOfSolutions().values(source, half)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    assert np.all(np.isfinite(helpers.array(result)))
    gradient = helpers.gradient(
        lambda x: FlowOfSolutions().values(source, [x, student[1]]), student[0]
    )
    assert np.all(np.isfinite(gradient)) and np.max(np.abs(gradient)) > 65504
