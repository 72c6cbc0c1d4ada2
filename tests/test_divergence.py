"""What the papers prove of Bregman divergences, multi-level logits and noisy logits."""

import keras
import numpy as np
import pytest

from kdtoolkit import losses
from kdtoolkit.functional import divergence
from kdtoolkit.losses.divergence import GENERATORS, BregmanDivergence
from kdtoolkit.losses.multi_level import MultiLevelLogits
from kdtoolkit.losses.noise import NoisyLogits
from tests import helpers, reference

BATCH, CLASSES, TEACHERS = 3, 4, 5


@pytest.fixture
def logits():
    """Logits of several teachers and of one student."""
    random = np.random.default_rng(2)
    teachers = random.normal(0, 2, (TEACHERS, BATCH, CLASSES)).astype("float32")
    return teachers, random.normal(0, 2, (BATCH, CLASSES)).astype("float32")


# Bregman divergences.

PHI = {
    "squared": lambda p: np.sum(p**2),
    "logistic": lambda p: np.sum(p * np.log(p) + (1 - p) * np.log(1 - p)),
    "kl": lambda p: np.sum(p * np.log(p)),
}


@pytest.mark.parametrize("generator", PHI)
def test_the_divergence_is_the_one_of_its_generator(logits, generator):
    source, student = logits[0][0], logits[1]
    phi, p, q = PHI[generator], reference.softmax(source), reference.softmax(student)
    expected = [
        phi(a) - phi(b) - reference.numerical_gradient(phi, b) @ (a - b)
        for a, b in zip(p, q, strict=True)
    ]
    computed = helpers.array(BregmanDivergence(generator).values(source, student))
    np.testing.assert_allclose(computed, expected, rtol=1e-4)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_one_sample_of_the_teacher_has_on_average_the_gradient_of_its_mean(
    logits, generator, temperature
):
    teachers, student = logits
    loss = BregmanDivergence(generator, temperature)
    each = [helpers.gradient(loss, one, student, argnum=1) for one in teachers]
    mean = np.mean([reference.softmax(one, temperature) for one in teachers], axis=0)
    of_mean = helpers.gradient(
        loss, (temperature * np.log(mean)).astype("float32"), student, argnum=1
    )
    np.testing.assert_allclose(np.mean(each, axis=0), of_mean, atol=2e-6)
    assert np.max(np.abs(of_mean)) > 1e-2


def _reverse_kl(source, student):
    return np.sum(reference.kl_divergence(student, source))


def test_reverse_kl_follows_the_mean_of_log_p_and_not_the_mean_of_p(logits):
    teachers, student = logits

    def gradient(source):
        return reference.numerical_gradient(lambda z: _reverse_kl(source, z), student)

    mean_of_each = np.mean([gradient(one) for one in teachers], axis=0)
    of_mean = gradient(np.log(np.mean([reference.softmax(one) for one in teachers], axis=0)))
    of_mean_log = gradient(np.mean([reference.log_softmax(one) for one in teachers], axis=0))
    np.testing.assert_allclose(mean_of_each, of_mean_log, atol=1e-6)
    assert np.max(np.abs(mean_of_each - of_mean)) > 0.1


def test_kl_is_soft_targets(logits):
    (source, *_), student = logits
    ours = helpers.array(BregmanDivergence("kl", 4.0).values(source, student))
    theirs = helpers.array(losses.SoftTargets(4.0).values(source, student))
    np.testing.assert_array_equal(ours, theirs)


def test_two_classes_count_twice_in_the_logistic_divergence(logits):
    (source, *_), student = logits
    source, student = source[:, :2], student[:, :2]
    logistic = helpers.array(BregmanDivergence("logistic").values(source, student))
    kl = helpers.array(BregmanDivergence("kl").values(source, student))
    np.testing.assert_allclose(logistic, 2 * kl, rtol=1e-5)


def test_the_rest_is_exact_where_a_probability_rounds_to_one():
    # A float32 has nothing between 1 - 6e-8 and 1: log(1 - p) of p itself would be -inf.
    student = np.array([[60.0, 0.0, 0.0]], "float32")
    rest = helpers.array(divergence.log_complement(reference.log_softmax(student)))
    np.testing.assert_allclose(rest, [[np.log(2) - 60, 0, 0]], rtol=1e-6, atol=1e-20)
    source = np.array([[0.0, 0.0, 0.0]], "float32")
    gradient = helpers.gradient(BregmanDivergence("logistic"), source, student, argnum=1)
    expected = reference.numerical_gradient(
        lambda z: reference.logistic_divergence(source, z).mean(), student
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    assert np.max(gradient) > 0.5


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_class_that_both_rule_out_adds_nothing(logits, generator):
    (source, *_), student = logits
    none = np.full((BATCH, 1), -np.inf, "float32")
    loss = BregmanDivergence(generator)
    wider = helpers.array(loss.values(np.c_[source, none], np.c_[student, none]))
    np.testing.assert_allclose(wider, helpers.array(loss.values(source, student)), rtol=1e-5)


# Multi-level logits.


def test_one_temperature_and_the_instance_level_alone_are_soft_targets(logits):
    (source, *_), student = logits
    loss = MultiLevelLogits((4.0,), batch_weight=0.0, class_weight=0.0)
    expected = helpers.array(losses.SoftTargets(4.0).values(source, student))
    np.testing.assert_allclose(helpers.array(loss.values(source, student)), expected, rtol=1e-6)


def test_the_batch_level_is_the_distance_of_gram_matrices_over_the_batch(logits):
    (source, *_), student = logits
    p, q = reference.softmax(source, 2.0), reference.softmax(student, 2.0)
    values = helpers.array(divergence.batch_relation(source, student, 2.0))
    assert values.mean() == pytest.approx(np.sum((p @ p.T - q @ q.T) ** 2) / BATCH, rel=1e-4)


def test_the_batch_level_does_not_see_which_class_is_which(logits):
    (source, *_), student = logits
    values = helpers.array(divergence.batch_relation(source, student))
    renamed = helpers.array(divergence.batch_relation(source, student[:, [2, 0, 3, 1]]))
    np.testing.assert_allclose(renamed, values, rtol=1e-5)


def test_the_class_level_does_not_see_which_example_is_which(logits):
    (source, *_), student = logits
    value = float(divergence.class_relation(source, student))
    assert float(divergence.class_relation(source, student[[2, 0, 1]])) == pytest.approx(value)


def test_levels_of_maps_are_the_mean_over_their_positions(logits):
    teachers, _ = logits
    source, student = np.moveaxis(teachers[:2], 0, 1), np.moveaxis(teachers[2:4], 0, 1)
    loss = MultiLevelLogits()
    maps = helpers.array(loss.values(source, student))
    each = [helpers.array(loss.values(source[:, i], student[:, i])) for i in range(2)]
    np.testing.assert_allclose(maps, np.mean(each, axis=0), rtol=1e-5)


# Noisy logits.


@pytest.mark.parametrize("quiet", [{"sigma": 0.0}, {"alpha": 0.0}])
def test_without_noise_it_is_plain_logit_matching(logits, quiet):
    (source, *_), student = logits
    computed = helpers.array(NoisyLogits(**quiet, seed=0).values(source, student))
    expected = helpers.array(losses.LogitsMSE().values(source, student))
    np.testing.assert_array_equal(computed, expected)


def test_noise_is_drawn_per_logit_on_the_chosen_share_of_the_examples():
    seed = keras.random.SeedGenerator(3)
    ones = np.full((4000, 3), 2.0, "float32")
    xi = helpers.array(divergence.noisy(ones, 0.5, 0.25, seed)) / 2 - 1
    chosen = np.any(xi != 0, axis=1)
    assert np.all(xi[chosen] != 0)
    assert np.mean(chosen) == pytest.approx(0.25, abs=0.03)
    assert np.mean(xi[chosen]) == pytest.approx(0, abs=0.03)
    assert np.std(xi[chosen]) == pytest.approx(0.5, abs=0.03)
    assert abs(np.corrcoef(xi[chosen].T)[0, 1]) < 0.1


def test_noise_leaves_the_mean_gradient_and_adds_a_constant_to_the_mean_loss():
    source = np.tile(np.array([[3.0, -1.0]], "float32"), (20000, 1))
    student = np.tile(np.array([[1.0, 2.0]], "float32"), (20000, 1))
    loss = NoisyLogits(sigma=0.4, alpha=0.5, seed=1)
    added = float(loss(source, student)) - float(losses.LogitsMSE()(source, student))
    assert added == pytest.approx(0.5 * 0.4**2 * np.mean(source[0] ** 2), abs=0.05)
    mean = helpers.gradient(loss, source, student, argnum=1).sum(axis=0)
    np.testing.assert_allclose(mean, student[0] - source[0], atol=0.05)


def test_noise_is_new_at_every_call_and_repeats_with_its_seed(logits):
    (source, *_), student = logits
    first, second = (NoisyLogits(seed=7, alpha=1.0) for _ in range(2))
    draws = [float(loss(source, student)) for loss in (first, first, second, second)]
    assert draws[:2] == draws[2:] and draws[0] != draws[1]
    assert first.variables[-1] is first.seed_generator.state
