"""Identities of the attention, channel-wise, selectivity, variational and boundary losses."""

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit.losses.feature.attention import AttentionTransfer
from kdtoolkit.losses.feature.boundaries import ActivationBoundaries
from kdtoolkit.losses.feature.channelwise import ChannelWise
from kdtoolkit.losses.feature.selectivity import NeuronSelectivity
from kdtoolkit.losses.feature.variational import VariationalInformation
from tests import helpers
from tests.cases_attention import discrepancy, patterns
from tests.contract import draw

KERNELS = ("polynomial", "linear", "gaussian")
PATTERNED = {
    "attention": AttentionTransfer(),
    "attention, paper": AttentionTransfer(power=3.0, form="paper"),
    **{kernel: NeuronSelectivity(kernel) for kernel in KERNELS},
}


def of(loss, source, student):
    return helpers.array(loss.values(source, student))


def maps(seed=0, shape=(3, 4, 6), batch=4):
    return draw(shape, seed, batch)


# Attention transfer and neuron selectivity.


@pytest.mark.parametrize("loss", PATTERNED.values(), ids=PATTERNED)
def test_the_order_of_the_channels_does_not_matter(loss):
    order = np.random.default_rng(0).permutation(6)
    expected = of(loss, maps(0), maps(1))
    np.testing.assert_allclose(of(loss, maps(0), maps(1)[..., order]), expected, rtol=1e-4)
    np.testing.assert_allclose(of(loss, maps(0)[..., order], maps(1)), expected, rtol=1e-4)


@pytest.mark.parametrize("loss", PATTERNED.values(), ids=PATTERNED)
def test_the_size_of_an_example_s_features_does_not_matter(loss):
    sizes = np.array([1e-4, 0.5, 3.0, 1e4]).reshape(-1, 1, 1, 1).astype("float32")
    expected = of(loss, maps(0), maps(1))
    np.testing.assert_allclose(of(loss, maps(0), sizes * maps(1)), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(of(loss, sizes * maps(0), maps(1)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", PATTERNED.values(), ids=PATTERNED)
def test_a_map_and_the_same_map_as_tokens_are_the_same(loss):
    source, student = maps(0, (4, 4, 5)), maps(1, (4, 4, 3))
    as_tokens = student.reshape(4, 16, 3)
    np.testing.assert_allclose(of(loss, source, as_tokens), of(loss, source, student), rtol=1e-4)


def test_attention_does_not_see_rotations_of_the_channels():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0].astype("float32")
    rotated = maps(1) @ rotation
    expected = of(AttentionTransfer(), maps(0), maps(1))
    np.testing.assert_allclose(of(AttentionTransfer(), maps(0), rotated), expected, rtol=1e-4)
    assert not np.allclose(of(AttentionTransfer(power=4.0), maps(1), rotated), 0, atol=1e-4)


def test_the_two_forms_of_attention_transfer_agree():
    norm = of(AttentionTransfer(form="paper"), maps(0), maps(1))
    mean = of(AttentionTransfer(), maps(0), maps(1))
    np.testing.assert_allclose(norm**2, 12 * mean, rtol=1e-5)


def test_a_large_power_stays_finite():
    loss = AttentionTransfer(power=40.0)
    source, student = 1e4 * maps(0), 1e4 * maps(1)
    gradient = helpers.gradient(lambda x: loss.values(source, x), student)
    assert np.all(np.isfinite(of(loss, source, student)))
    assert np.all(np.isfinite(gradient)) and np.any(gradient)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_attention_that_agrees_has_no_gradient(form):
    same = np.ones((2, 2, 2, 3), "float32")
    loss = AttentionTransfer(form=form)
    np.testing.assert_allclose(helpers.gradient(lambda x: loss.values(same, x), same), 0, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_selectivity_does_not_see_how_strong_or_how_many_the_channels_are(kernel):
    loss = NeuronSelectivity(kernel)
    sizes = np.array([0.1, 1.0, 10.0, 2.0, 3.0, 0.5], "float32")
    expected = of(loss, maps(0), maps(1))
    np.testing.assert_allclose(of(loss, maps(0), sizes * maps(1)), expected, rtol=1e-3, atol=1e-6)
    twice = np.concatenate([maps(1), maps(1)], axis=-1)
    np.testing.assert_allclose(of(loss, maps(0), twice), expected, rtol=1e-3, atol=1e-6)


def test_polynomial_selectivity_compares_gram_matrices_over_the_positions():
    grams = [p.swapaxes(1, 2) @ p / 6 for p in (patterns(maps(0)), patterns(maps(1)))]
    expected = np.sum((grams[0] - grams[1]) ** 2, axis=(1, 2))
    np.testing.assert_allclose(of(NeuronSelectivity(), maps(0), maps(1)), expected, rtol=1e-3)


def _gaussian(source, student, widths):
    """MMD^2 with a bandwidth given for each example."""
    values = [
        discrepancy(
            lambda x, y, w=w: np.exp(-np.sum((x - y) ** 2) / (2 * w)), source[[i]], student[[i]]
        )
        for i, w in enumerate(widths)
    ]
    return np.concatenate(values)


def test_gaussian_selectivity_equals_the_reference_and_holds_its_bandwidth():
    source, student = maps(0, batch=2), maps(1, (3, 4, 4), batch=2)
    widths = [
        np.mean([np.sum((x - y) ** 2) for x in first for y in second])
        for first, second in zip(patterns(source), patterns(student), strict=True)
    ]
    loss = NeuronSelectivity("gaussian")
    expected = _gaussian(source, student, widths)
    np.testing.assert_allclose(of(loss, source, student), expected, rtol=1e-4)
    found = helpers.gradient(lambda x: loss.values(source, x), student)
    step = np.random.default_rng(3).normal(size=student.shape)
    ends = [np.sum(_gaussian(source, student + s * 1e-6 * step, widths)) for s in (1, -1)]
    assert np.sum(found * step) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_selectivity_of_constant_channels_is_zero_up_to_rounding(kernel):
    loss = NeuronSelectivity(kernel)
    source, student = (np.full((2, 7, 9, 5), value, "float32") for value in (0.3, 0.7))
    np.testing.assert_allclose(of(loss, source, student), 0, atol=1e-5)
    gradient = helpers.gradient(lambda x: loss.values(source, x), student)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


# Channel-wise distillation.


def test_a_constant_added_to_a_channel_changes_nothing():
    shift = np.array([-5.0, 0.0, 2.0, 9.0, 1.0, -1.0], "float32")
    expected = of(ChannelWise(), maps(0), maps(1))
    np.testing.assert_allclose(of(ChannelWise(), maps(0), maps(1) + shift), expected, rtol=1e-3)


def test_a_hot_channel_wise_loss_is_half_the_variance_of_the_difference():
    difference = (maps(0) - maps(1)).astype("float64").reshape(4, 12, 6)
    expected = difference.var(axis=1).mean(axis=-1) / 2
    found = of(ChannelWise(temperature=100.0), maps(0), maps(1))
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=2e-3)


def test_a_channel_wise_temperature_acts_on_the_next_call():
    loss = ChannelWise(temperature=1.0)
    before = of(loss, maps(0), maps(1))
    loss.temperature = 4.0
    np.testing.assert_allclose(of(loss, maps(0), maps(1)), of(ChannelWise(), maps(0), maps(1)))
    assert not np.allclose(before, of(loss, maps(0), maps(1)))


# Variational information distillation.


@pytest.mark.parametrize("variance", [1e-4, 0.5, 5.0, 1e4])
def test_the_variances_start_where_they_are_told(variance):
    loss = VariationalInformation(variance=variance)
    loss.build((None, 6), (None, 3))
    found = helpers.array(loss.layers[0].variance)
    np.testing.assert_allclose(found, np.full(6, variance), rtol=1e-3)


def test_the_likelihood_is_best_at_the_variance_of_the_residuals():
    source = draw((1,), 0, batch=100, scale=3.0)
    # A student of zeros predicts zeros, so the residuals are the source itself.
    best = float(np.mean(source.astype("float64") ** 2))
    values = [
        of(VariationalInformation(variance=best * factor), source, np.zeros_like(source)).mean()
        for factor in (1.0, 1.2, 1 / 1.2)
    ]
    assert values[0] == pytest.approx((1 + np.log(best)) / 2, rel=1e-5)
    assert min(values) == values[0]


def test_the_variances_train_until_they_are_those_of_the_residuals():
    # What the teacher says is noise to the student, who sees the other inputs.
    inputs = keras.Input((4,))
    teacher = keras.Model(inputs, inputs[:, :2])
    student = keras.Model(inputs, keras.layers.Dense(3)(inputs[:, 2:]))
    loss = VariationalInformation(variance=1.0)
    distiller = kd.Distiller(student=student, teacher=teacher, transfers=[kd.Transfer(loss)])
    distiller.compile(keras.optimizers.SGD(0.3))
    x = draw((4,), 0, batch=12800) * np.array([0.5, 2.0, 1.0, 1.0], "float32")
    distiller.fit(x, batch_size=64, verbose=0)
    found = helpers.array(loss.layers[0].variance)
    np.testing.assert_allclose(found, [0.25, 4.0], rtol=0.25)


# Activation boundaries.


def test_of_the_source_only_the_sides_count():
    loss = ActivationBoundaries()
    expected = of(loss, maps(0), maps(1))
    np.testing.assert_array_equal(of(loss, 7.0 * maps(0), maps(1)), expected)
    np.testing.assert_array_equal(of(loss, np.sign(maps(0)), maps(1)), expected)


def test_beyond_the_margin_on_the_right_side_nothing_is_asked():
    loss = ActivationBoundaries(margin=0.5)
    student = np.sign(maps(0)) * (0.5 + np.abs(maps(1)))
    assert np.all(of(loss, maps(0), student) == 0)
    assert np.all(helpers.gradient(lambda x: loss.values(maps(0), x), student) == 0)
    loss.margin = 2.0
    assert np.all(of(loss, maps(0), student) > 0)


def test_a_source_at_zero_is_not_active():
    zero = np.zeros((1, 1), "float32")
    assert of(ActivationBoundaries(), zero, zero - 1.0) == 0
    assert of(ActivationBoundaries(), zero, zero + 1.0) == 4


def test_the_connector_normalises_and_has_no_bias():
    loss = ActivationBoundaries()
    loss.build((None, 3, 3, 5), (None, 3, 3, 2))
    names = {weight.name for weight in loss.layers[0].weights}
    assert names == {"kernel", "gamma", "beta", "moving_mean", "moving_variance"}


# Arguments.


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: AttentionTransfer(power=0.5), "`power` of AttentionTransfer .* >= 1"),
        (lambda: AttentionTransfer(form="sum"), "`form` .*'code', 'paper'.*'sum'"),
        (lambda: ChannelWise(temperature=0), "`temperature` of ChannelWise .* > 0"),
        (lambda: NeuronSelectivity("rbf"), "`kernel` .*'gaussian'.*'rbf'"),
        (lambda: VariationalInformation(variance=0), "`variance` of VariationalInformation"),
        (lambda: VariationalInformation(hidden=0), "`hidden` of VariationalInformation .* >= 1"),
        (lambda: ActivationBoundaries(margin=0), "`margin` of ActivationBoundaries .* > 0"),
    ],
)
def test_arguments_out_of_range_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
