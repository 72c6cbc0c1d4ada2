"""Overhaul, knowledge review, factor transfer, masked generation: what the papers say of them."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats

import kdtoolkit as kd
from kdtoolkit.functional.positions import as_map
from kdtoolkit.losses.feature import factor, review
from kdtoolkit.losses.feature.factor import FactorTransfer
from kdtoolkit.losses.feature.generative import MaskedGenerative
from kdtoolkit.losses.feature.overhaul import Overhaul, bn_margin, partial_squares
from kdtoolkit.losses.feature.review import ReviewKD
from kdtoolkit.steps import Stage, during
from tests.helpers import array, gradient

LABEL_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def network(channels, seed):
    return kd.models.convnet((4, 4, 1), 3, filters=(channels, channels), seed=seed)


# Overhaul ----------------------------------------------------------------------------------------


def normalisation(beta, gamma, **kwargs):
    layer = keras.layers.BatchNormalization(**kwargs)
    layer.build((None, len(beta)))
    if layer.center:
        layer.beta.assign(beta)
    if layer.scale:
        layer.gamma.assign(gamma)
    return layer


def test_the_margin_is_the_mean_of_a_normal_variable_below_zero():
    beta, gamma = np.array([0.0, 0.5, -2.0, 3.0, 8.0]), np.array([1.0, 2.0, -0.5, 1.5, 1.0])
    spread = np.abs(gamma)
    expected = stats.truncnorm.mean(-np.inf, -beta / spread, loc=beta, scale=spread)
    np.testing.assert_allclose(bn_margin(normalisation(beta, gamma)), expected, rtol=1e-5)


def test_the_margin_of_a_channel_that_is_never_negative_is_nearly_zero():
    margin = bn_margin(normalisation([29.0, 31.0, 1e6, 2.0, -2.0], [1.0, 1.0, 1.0, 0.0, 0.0]))
    np.testing.assert_allclose(margin, [-1 / 29, -1 / 31, -1e-6, 0, -2], rtol=5e-3)


def test_the_margin_of_a_normalisation_without_weights_is_that_of_a_standard_one():
    plain = normalisation([0.0], [1.0], center=False, scale=False)
    np.testing.assert_allclose(bn_margin(plain), -np.sqrt(2 / np.pi), rtol=1e-6)


def test_the_margin_needs_a_batch_normalisation_with_weights():
    with pytest.raises(TypeError, match="BatchNormalization.*Received: <Dense"):
        bn_margin(keras.layers.Dense(2))
    with pytest.raises(ValueError, match="not built"):
        bn_margin(keras.layers.BatchNormalization())


def test_a_student_as_negative_as_the_margin_costs_nothing():
    source, margin = -5.0 * np.ones((2, 3), "float32"), np.array([-1.0, -0.5, 0.0], "float32")
    assert np.all(array(partial_squares(source, margin - normal(2, 3) ** 2, margin)) == 0)


def test_a_positive_source_costs_the_whole_square():
    source, student = np.abs(normal(4, 3)), normal(4, 3, seed=1)
    squares = array(partial_squares(source, student, -np.ones(3, "float32")))
    np.testing.assert_allclose(squares, (source - student) ** 2, rtol=1e-5)


def test_only_what_is_above_a_negative_source_is_pulled_down():
    source = -0.5 * np.ones((1, 3), "float32")
    student = np.array([[-2.0, -0.5, 0.5]], "float32")
    found = gradient(lambda s: partial_squares(source, s, [-1.0] * 3), student)
    np.testing.assert_allclose(found, [[0, 0, 2]])


def test_the_learned_margin_is_the_mean_over_all_batches():
    loss = Overhaul()
    batches = [normal(6, 2, 2, 3, seed=seed) for seed in range(3)]
    for batch in batches:
        loss.values(batch, normal(6, 2, 2, 4))
    everything = np.concatenate(batches).reshape(-1, 3)
    expected = [channel[channel < 0].mean() for channel in everything.T]
    np.testing.assert_allclose(array(loss.layers[0].mean), expected, rtol=1e-5)


def test_evaluation_leaves_the_learned_margin_alone():
    loss = Overhaul()
    loss.values(normal(4, 3), normal(4, 2))
    before = array(loss.layers[0].mean)
    with during(Stage.EVALUATE):
        loss.values(-10 * np.ones((4, 3), "float32"), normal(4, 2))
    np.testing.assert_array_equal(array(loss.layers[0].mean), before)


def test_features_behind_a_relu_have_no_margin():
    loss = Overhaul()
    loss.values(np.abs(normal(4, 3)), normal(4, 2))
    np.testing.assert_array_equal(array(loss.layers[0].mean), 0)


@pytest.mark.parametrize("margin", ["batch", [0.5], [-1.0, np.nan], [], [[-1.0], [0.1]], -1.0])
def test_margins_above_zero_and_other_things_are_refused(margin):
    with pytest.raises(ValueError, match="`margin` of Overhaul must be None, numbers <= 0"):
        Overhaul(margin=margin)


@pytest.mark.parametrize("margin", [np.array([-1.0, -2.0]), (-1.0, -2.0), [np.array([-1.0, -2.0])]])
def test_margins_may_come_in_any_form(margin):
    assert Overhaul(margin=margin).margin == [[-1.0, -2.0]]


def test_the_margin_isnt_trained():
    loss = Overhaul()
    loss.build((None, 2, 2, 3), (None, 2, 2, 4))
    names = {v.path.split("/")[-1] for v in loss.layers[0].trainable_weights}
    assert names == {"kernel", "gamma", "beta"}


# Knowledge review --------------------------------------------------------------------------------


def test_a_constant_difference_costs_its_square_at_every_size():
    for side in (1, 2, 3, 8):
        maps = normal(2, side, side, 3)
        distance = review.hierarchical_distance(maps, maps + 2.0)
        np.testing.assert_allclose(array(distance), 4.0, rtol=1e-5)


def test_a_difference_that_averages_out_counts_at_full_size_only():
    checkers = np.indices((8, 8)).sum(axis=0)[None, :, :, None] % 2 * 2.0 - 1
    distance = review.hierarchical_distance(checkers, 0 * checkers)
    np.testing.assert_allclose(array(distance), 1 / (1 + 1 / 2 + 1 / 4 + 1 / 8), rtol=1e-6)


def layers_of(loss, source, student):
    loss.build(
        [(None, *x.shape[1:]) for x in source],
        [(None, *x.shape[1:]) for x in student],
    )
    return loss.layers


def clear(weight):
    weight.assign(np.zeros(weight.shape))


def test_a_shallow_layer_of_the_source_teaches_the_deeper_layers_of_the_student():
    source = [normal(3, 2), normal(3, 2)]
    student = [normal(3, 3, seed=1), normal(3, 3, seed=2)]
    loss = ReviewKD()
    shallow, deep = layers_of(loss, source, student)
    # What the deeper layer is compared with no longer depends on it.
    clear(deep.expand.kernel)

    def of_deeper(x):
        with keras.StatelessScope():
            return loss.values(source, [student[0], x])

    assert np.any(gradient(of_deeper, student[1]) != 0)
    # An attention that is closed for the deeper layer lets nothing through.
    clear(shallow.attention.kernel)
    shallow.attention.bias.assign([0.0, -1e4])
    assert np.all(gradient(of_deeper, student[1]) == 0)


def test_a_deep_layer_of_the_source_doesnt_teach_the_shallow_layers_of_the_student():
    source = [normal(3, 2), normal(3, 2)]
    student = [normal(3, 3, seed=1), normal(3, 3, seed=2)]
    loss = ReviewKD()
    shallow, _ = layers_of(loss, source, student)
    clear(shallow.expand.kernel)

    def of_shallow(x):
        with keras.StatelessScope():
            return loss.values(source, [x, student[1]])

    assert np.all(gradient(of_shallow, student[0]) == 0)


@pytest.mark.parametrize(("channels", "width"), [(6, 6), (600, 512)])
def test_layers_are_fused_in_the_width_of_the_deepest_and_512_at_most(channels, width):
    loss = ReviewKD()
    loss.build([(None, 3), (None, 4)], [(None, 3), (None, channels)])
    assert [layer.reduce.filters for layer in loss.layers] == [width, width]


def test_the_deepest_layer_has_nothing_to_be_fused_with():
    loss = ReviewKD()
    loss.build([(None, 2, 2, 3), (None, 4)], [(None, 2, 2, 3), (None, 5)])
    assert [layer.attention is None for layer in loss.layers] == [False, True]


@pytest.mark.parametrize("width", [0, 2.5, "8"])
def test_a_width_that_is_no_whole_number_is_refused(width):
    with pytest.raises(ValueError, match="`width` of ReviewKD must be an integer >= 1"):
        ReviewKD(width=width)


# Factor transfer ---------------------------------------------------------------------------------


def identity():
    return keras.layers.Identity()


def test_factors_are_compared_whatever_their_scale():
    source, student = normal(4, 3, 3, 2), normal(4, 3, 3, 2, seed=1)
    loss = FactorTransfer(paraphraser=identity())
    plain = array(loss.values(source, student))
    np.testing.assert_allclose(array(loss.values(7.0 * source, student)), plain, rtol=1e-5)
    # Leaky ReLU and convolutions whose biases are zero scale as well.
    np.testing.assert_allclose(array(loss.values(source, 0.1 * student)), plain, rtol=1e-4)


def test_a_student_that_says_the_same_in_the_same_words_costs_nothing():
    loss = FactorTransfer(paraphraser=identity())
    student = normal(4, 3, 3, 2)
    loss.build((None, 3, 3, 2), (None, 3, 3, 2))
    source = array(loss.layers[0].translator(student))
    np.testing.assert_allclose(array(loss.values(3.0 * source, student)), 0, atol=1e-6)


def test_squared_factors_that_are_orthogonal_differ_by_two_over_their_number():
    loss = FactorTransfer(paraphraser=identity(), p=2)
    student = normal(1, 2, 2, 2)
    loss.build((None, 2, 2, 2), (None, 2, 2, 2))
    v = array(loss.layers[0].translator(student)).reshape(-1)
    u = normal(8, seed=5)
    u = u - v * (u @ v) / (v @ v)
    value = array(loss.values(u.reshape(1, 2, 2, 2).astype("float32"), student))
    np.testing.assert_allclose(value, 2 / 8, rtol=1e-4)


def test_there_is_at_least_one_factor():
    encoder, decoder = factor.paraphraser((1, 1, 2), rate=0.01)
    assert encoder.output_shape == (None, 1, 1, 1)
    assert decoder.output_shape == (None, 1, 1, 2)


def test_the_paraphraser_of_the_loss_learns_from_the_reconstruction_alone():
    source, student = normal(4, 4), normal(4, 2)
    loss = FactorTransfer(reconstruction_weight=0.0)
    loss.build((None, 4), (None, 2))
    layer = loss.layers[0]
    kernel = layer.paraphraser.layers[0].kernel

    def of_kernel(value):
        with keras.StatelessScope(state_mapping=[(kernel, value)]):
            return loss.values(source, student)

    assert np.all(gradient(of_kernel, array(kernel).astype("float32")) == 0)
    loss.reconstruction_weight = 1.0
    assert np.any(gradient(of_kernel, array(kernel).astype("float32")) != 0)


def test_a_given_paraphraser_is_saved_but_not_trained(tmp_path):
    encoder = keras.Sequential([keras.Input((2, 2, 6)), keras.layers.Dense(3)])
    loss = FactorTransfer(paraphraser=encoder)
    edge = kd.Transfer(loss, source_layer="stage2", student_layer="stage2")
    distiller = kd.Distiller(student=network(4, 2), teacher=network(6, 1), transfers=[edge])
    trained = {id(v) for v in distiller.trainable_weights}
    assert not trained & {id(v) for v in encoder.weights}
    assert trained >= {id(v) for v in loss.layers[0].translator.weights}
    distiller.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras").transfers[0].loss
    for held, own in zip(loaded.paraphraser.weights, encoder.weights, strict=True):
        np.testing.assert_array_equal(array(held), array(own))


def test_a_paraphraser_may_give_smaller_maps():
    layers = keras.layers
    encoder = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(2, 2, strides=2)])
    loss = FactorTransfer(paraphraser=encoder)
    assert loss.values(normal(2, 8, 8, 4), normal(2, 16, 16, 3)).shape == (2,)
    assert loss.layers[0].translator.output_shape == (None, 4, 4, 2)


def test_wrong_settings_of_factor_transfer_are_refused():
    with pytest.raises(
        ValueError, match="`rate` of FactorTransfer must be a finite number and > 0"
    ):
        FactorTransfer(rate=0)
    with pytest.raises(ValueError, match="`p` of FactorTransfer must be 1 or 2. Received: p=3"):
        FactorTransfer(p=3)
    with pytest.raises(TypeError, match="Keras layer or model"):
        FactorTransfer(paraphraser=lambda x: x)
    flat = FactorTransfer(paraphraser=keras.layers.Flatten())
    with pytest.raises(ValueError, match="translator of FactorTransfer reads maps"):
        flat.check_shapes((None, 4, 4, 3), (None, 4, 4, 3))


# Masked generation -------------------------------------------------------------------------------


def test_a_class_token_isnt_part_of_the_map():
    tokens = normal(2, 5, 3)
    np.testing.assert_array_equal(array(as_map(tokens)), tokens[:, 1:].reshape(2, 2, 2, 3))


def kept(loss, shape):
    return array(loss._drawn_mask(ops.ones(shape)))


def test_whole_positions_are_masked_anew_for_each_example_and_call():
    loss = MaskedGenerative(seed=0)
    first, second = kept(loss, (2, 8, 8, 3)), kept(loss, (2, 8, 8, 3))
    assert first.shape == (2, 8, 8, 1) and set(np.unique(first)) == {0.0, 1.0}
    assert np.any(first[0] != first[1]) and np.any(first != second)


def test_whole_channels_are_masked_where_that_is_asked():
    assert kept(MaskedGenerative(mask="channels"), (2, 8, 8, 3)).shape == (2, 1, 1, 3)


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.75, 1.0])
def test_the_ratio_is_the_share_that_is_masked(ratio):
    share = 1 - kept(MaskedGenerative(ratio, seed=1), (16, 16, 16, 2)).mean()
    assert share == pytest.approx(ratio, abs=0.02)


def test_a_ratio_that_is_assigned_acts_on_the_next_call():
    loss = MaskedGenerative(seed=1)
    loss.ratio = 0.0
    assert np.all(kept(loss, (2, 4, 4, 2)) == 1)


def test_the_seed_repeats_the_sequence_of_masks():
    one, same, other = (MaskedGenerative(seed=seed) for seed in (4, 4, 5))
    for _ in range(2):
        mask = kept(one, (2, 8, 8, 3))
        np.testing.assert_array_equal(mask, kept(same, (2, 8, 8, 3)))
        assert np.any(mask != kept(other, (2, 8, 8, 3)))


def test_a_masked_position_gets_no_gradient_but_its_neighbours_are_compared_there():
    loss = MaskedGenerative(ratio=1.0)
    source, student = normal(2, 4, 4, 3), normal(2, 4, 4, 3, seed=1)
    loss.build((None, 4, 4, 3), (None, 4, 4, 3))
    assert loss.layers[0].align is None

    def of_student(x):
        with keras.StatelessScope():
            return loss.values(source, x)

    assert np.all(gradient(of_student, student) == 0)
    np.testing.assert_allclose(array(of_student(student)), np.mean(source**2, axis=(1, 2, 3)), 1e-5)


def test_an_unknown_mask_and_a_ratio_out_of_range_are_refused():
    with pytest.raises(ValueError, match="`mask` of MaskedGenerative.*'rows'"):
        MaskedGenerative(mask="rows")
    with pytest.raises(ValueError, match="`ratio` of MaskedGenerative must be"):
        MaskedGenerative(ratio=1.5)


# In a distiller ----------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Late(keras.Model):
    """A student whose shapes only the first batch tells."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Conv2D(4, 3, padding="same")
        self.out = keras.layers.Dense(3)

    def call(self, inputs):
        return self.out(ops.mean(self.hidden(inputs), axis=(1, 2)))


def test_a_student_without_known_shapes_learns_too():
    losses = [Overhaul(), FactorTransfer()]
    layers = {"source_layer": "stage2:input", "student_layer": "hidden"}
    edges = [kd.Transfer(loss, **layers) for loss in losses]
    distiller = kd.Distiller(student=Late(), teacher=network(6, 1), transfers=edges)
    distiller.compile("adam", LABEL_LOSS)
    history = distiller.fit(normal(8, 4, 4, 1), np.arange(8) % 3, batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    for edge in edges:
        assert edge.own_layers and all(np.all(np.isfinite(array(w))) for w in edge.weights)
    assert np.all(array(losses[0].layers[0].count) > 0)
