"""Weight sharing: few values per kernel, which train."""

import keras
import numpy as np
import pytest
from keras import layers

import kdtoolkit as kd
from tests.helpers import array
from tests.support import FEATURES, data, dense

pytestmark = pytest.mark.core


def used(network, name):
    return network.get_layer(name).used()["kernel"]


def lloyd(values, first, rounds=200):
    """One-dimensional k-means, slowly."""
    means = first.copy()
    for _ in range(rounds):
        labels = np.abs(values[:, None] - means).argmin(1)
        means = np.array(
            [
                values[labels == k].mean() if (labels == k).any() else means[k]
                for k in range(len(means))
            ]
        )
    return means[labels], labels


def test_a_kernel_becomes_the_means_of_its_groups():
    network = dense(16, norm=False)
    shared = kd.compress.cluster(network, 4)
    kernel = array(network.get_layer("hidden").kernel).ravel()
    expected, _ = lloyd(kernel, np.linspace(kernel.min(), kernel.max(), 4))
    np.testing.assert_allclose(used(shared, "hidden").ravel(), expected, atol=1e-5)


@pytest.mark.parametrize("gradient", ["mean", "sum"])
def test_a_shared_value_moves_by_the_gradients_of_its_weights(gradient):
    network = dense(8, norm=False)
    shared = kd.compress.cluster(network, 4, gradient=gradient)
    plain = kd.compress.strip(shared)
    assignment = array(shared.get_layer("hidden").changes[0].assignment).astype(int)
    for model in (shared, plain):
        model.compile(
            keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
    before = used(shared, "hidden")
    x, y = data()
    for model in (shared, plain):
        model.fit(x, y, batch_size=40, shuffle=False, verbose=0)
    step = array(plain.get_layer("hidden").kernel) - before
    for group in range(4):
        own = step[assignment == group]
        expected = own.mean() if gradient == "mean" else own.sum()
        moved = (used(shared, "hidden") - before)[assignment == group]
        np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_there_are_never_more_values_than_asked_and_zeros_stay(tmp_path):
    shared = kd.compress.cluster(kd.compress.prune(dense(16), 0.5), 5)
    shared.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = used(shared, "hidden")
    shared.fit(*data(), batch_size=8, epochs=2, verbose=0)
    shared.save(tmp_path / "shared.keras")
    loaded = keras.models.load_model(tmp_path / "shared.keras")
    for network in (shared, loaded, kd.compress.strip(loaded)):
        for row in kd.compress.summary(network):
            assert row["sparsity"] == 0.5
            assert row["distinct"] <= 5
    after = used(shared, "hidden")
    np.testing.assert_array_equal(before == 0, after == 0)
    assert np.abs(before - after).max() > 1e-3
    # What isn't read doesn't train after loading either.
    assert len(loaded.trainable_variables) == len(shared.trainable_variables) == 6


def test_kernels_of_few_values_keep_them():
    network = keras.Sequential([keras.Input((4,)), layers.Dense(2, kernel_initializer="ones")])
    shared = kd.compress.cluster(network, 16)
    assert kd.compress.summary(shared)[0]["distinct"] == 1
    np.testing.assert_allclose(shared(np.ones((1, 4), "float32")), [[4.0, 4.0]])


def test_embeddings_and_attention_share_values_too():
    inputs = keras.Input((5,), dtype="int32")
    h = layers.Embedding(20, 8)(inputs)
    h = layers.MultiHeadAttention(2, 4)(h, h)
    network = keras.Model(inputs, layers.GRU(3)(h))
    shared = kd.compress.cluster(network, 8)
    assert [row["distinct"] <= 8 for row in kd.compress.summary(shared)] == [True] * 7
    shared.compile("adam", "mse")
    shared.fit(np.arange(10).reshape(2, 5), np.ones((2, 3)), verbose=0)
    assert [row["distinct"] <= 8 for row in kd.compress.summary(shared)] == [True] * 7


def test_a_student_with_shared_weights_learns_from_a_teacher():
    shared = kd.compress.cluster(dense(8), 4)
    distiller = kd.Distiller(
        student=shared, teacher=dense(8, 1), transfers=[kd.Transfer(kd.losses.SoftTargets(2.0))]
    )
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = distiller.fit(*data(), epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="at least 2. Received: 1"):
        kd.compress.cluster(dense(8), 1)
    with pytest.raises(ValueError, match="`gradient` must be one of"):
        kd.compress.cluster(dense(8), 4, gradient="max")
    broken = dense(8)
    broken.get_layer("hidden").kernel.assign(np.full((FEATURES, 8), np.nan))
    with pytest.raises(ValueError, match="NaN in hidden/kernel"):
        kd.compress.cluster(broken, 4)
    shared = kd.compress.cluster(dense(8), 4)
    with pytest.raises(ValueError, match="prune, cluster, quantize_aware"):
        kd.compress.prune(shared, 0.5)
    with pytest.raises(ValueError, match="Clusters already"):
        kd.compress.cluster(shared, 4)


# Batch normalisation ------------------------------------------------------------------------


def trained_statistics(network, seed=0):
    """Normalisations whose every number matters."""
    random = np.random.default_rng(seed)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape
            layer.set_weights([random.uniform(0.5, 2.0, size) for _ in layer.get_weights()])
    return network


def normalised(make, shape, **norm):
    inputs = keras.Input(shape)
    return trained_statistics(
        keras.Model(inputs, layers.ReLU()(layers.BatchNormalization(**norm)(make(inputs))))
    )


@pytest.mark.parametrize(
    ("make", "shape", "norm"),
    [
        (lambda x: layers.Dense(3, use_bias=False)(x), (4,), {}),
        (lambda x: layers.Dense(3)(x), (2, 4), {"scale": False}),
        (lambda x: layers.Conv1D(3, 2)(x), (5, 2), {"center": False}),
        (lambda x: layers.Conv2D(4, 2, groups=2)(x), (4, 4, 2), {}),
        (lambda x: layers.DepthwiseConv2D(2, depth_multiplier=3)(x), (4, 4, 2), {}),
        (lambda x: layers.Conv2DTranspose(3, 2)(x), (3, 3, 2), {}),
    ],
)
def test_a_folded_network_computes_the_same_with_one_layer_less(make, shape, norm):
    network = normalised(make, shape, **norm)
    folded = kd.compress.fold_batchnorm(network)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in folded.layers)
    x = np.random.default_rng(1).normal(size=(6, *shape)).astype("float32")
    expected = network.predict(x, verbose=0)
    np.testing.assert_allclose(folded.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)


def test_normalisations_that_cannot_be_folded_stay():
    inputs = keras.Input((4,))
    h = layers.Dense(3, "relu")(inputs)
    h = layers.BatchNormalization(name="behind_activation")(h)
    g = layers.Dense(3)(h)
    h = layers.Add()([g, layers.BatchNormalization(name="read_twice")(g)])
    h = layers.BatchNormalization(name="behind_add")(h)
    network = trained_statistics(keras.Model(inputs, h))
    folded = kd.compress.fold_batchnorm(network)
    names = {layer.name for layer in folded.layers}
    assert names >= {"behind_activation", "read_twice", "behind_add"}
    x = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")
    np.testing.assert_allclose(folded(x), network(x), rtol=1e-5, atol=1e-5)


def test_nested_networks_are_folded_and_masks_stay():
    inner = trained_statistics(
        keras.Sequential(
            [keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()], name="inner"
        )
    )
    network = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2, name="head")])
    pruned = kd.compress.prune(network, 0.5)
    folded = kd.compress.fold_batchnorm(pruned)
    assert [type(layer).__name__ for layer in folded.get_layer("inner").layers] == [
        "InputLayer",
        "Compressed",
    ]
    assert [row["sparsity"] for row in kd.compress.summary(folded)] == [0.5, 0.5]
    x = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")
    np.testing.assert_allclose(folded(x), pruned(x), rtol=1e-5, atol=1e-5)


def test_statistics_are_measured_anew_and_nothing_else_changes():
    network = dense(8, dropout=0.5)
    before = network.get_weights()
    x, _ = data(50)
    assert kd.compress.recalibrate_batchnorm(network, x, batch_size=10) == 5
    hidden = np.maximum(x @ array(network.get_layer("hidden").kernel), 0).astype("float64")
    batches = hidden.reshape(5, 10, 8)
    norm = network.get_layer("norm")
    np.testing.assert_allclose(array(norm.moving_mean), batches.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(array(norm.moving_variance), batches.var(1).mean(0), atol=1e-5)
    assert norm.momentum == 0.99
    after = {id(v): v for v in (norm.moving_mean, norm.moving_variance)}
    for variable, value in zip(network.weights, before, strict=True):
        if id(variable) not in after:
            np.testing.assert_array_equal(array(variable), value)


def test_statistics_are_measured_on_any_kind_of_data_and_refuse_bad_ones():
    network = dense(4)
    x, y = data(20)
    recalibrate = kd.compress.recalibrate_batchnorm
    assert recalibrate(network, ((x[i : i + 5], y[i : i + 5]) for i in range(0, 20, 5))) == 4
    assert recalibrate(network, iter([x[:5]] * 3)) == 3
    assert recalibrate(network, x, batch_size=4, batches=2) == 2
    assert recalibrate(keras.Sequential([keras.Input((2,)), layers.Dense(1)]), None) == 0
    with pytest.raises(ValueError, match="holds no examples"):
        recalibrate(network, iter([]))
    with pytest.raises(ValueError, match="finite"):
        recalibrate(network, np.full((4, FEATURES), np.nan, "float32"))
    with pytest.raises(TypeError, match="Received: int"):
        recalibrate(network, 3)


def test_layers_of_one_name_in_two_nested_networks_share_nothing():
    parts = [
        keras.Sequential([keras.Input((4,)), layers.Dense(4, name="dense")], name=name)
        for name in ("first", "second")
    ]
    network = keras.Sequential([keras.Input((4,)), *parts])
    shared = kd.compress.cluster(kd.compress.prune(network, 0.5), 3)
    for part in parts:
        before = array(part.get_layer("dense").kernel)
        after = used(shared.get_layer(part.name), "dense")
        kept = np.abs(before) >= np.sort(np.abs(before).ravel())[8]
        np.testing.assert_array_equal(after != 0, kept)
        assert np.abs(after - before)[kept].max() < np.ptp(before)


def test_kernels_of_zeros_are_left_alone():
    network = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3), layers.Dense(2, kernel_initializer="zeros")]
    )
    rows = kd.compress.summary(kd.compress.cluster(network, 4))
    assert [row["changes"] for row in rows] == [["Clusters"], []]


def test_statistics_of_a_shared_normalisation_are_those_of_all_its_calls():
    inputs = [keras.Input((2,)), keras.Input((2,))]
    norm = layers.BatchNormalization()
    network = keras.Model(inputs, layers.Add()([norm(each) for each in inputs]))
    kd.compress.recalibrate_batchnorm(network, [np.zeros((4, 2)), np.full((4, 2), 10.0)])
    np.testing.assert_allclose(array(norm.moving_mean), 5.0)
