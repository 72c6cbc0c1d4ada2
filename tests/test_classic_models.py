"""LeNet, Quick and the all-convolutional network: published sizes, names, dropout, training.

What only looks at the graph is not marked `core`, as in `test_models.py`.
"""

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit import models
from kdtoolkit.dropout.split import split

TINY = {
    "lenet": lambda **kwargs: models.lenet((16, 16, 1), 3, filters=(2, 3), dense=4, **kwargs),
    "quick": lambda **kwargs: models.quick((8, 8, 1), 3, filters=(2, 3, 4), dense=5, **kwargs),
    "all_conv": lambda **kwargs: models.all_conv((4, 4, 1), 3, width=2, **kwargs),
}


@pytest.fixture(params=TINY)
def build(request):
    return TINY[request.param]


def dropouts(model):
    return [layer.name for layer in model.layers if isinstance(layer, keras.layers.Dropout)]


def conv(size, channels, filters):
    """Weights of a convolution with its biases; a dense layer is one of size 1."""
    return size**2 * channels * filters + filters


PUBLISHED = {
    "Caffe's LeNet": (
        lambda: models.lenet((28, 28, 1), 10),
        conv(5, 1, 20) + conv(5, 20, 50) + conv(1, 4 * 4 * 50, 500) + conv(1, 500, 10),
        431_080,
    ),
    "Gal's LeNet": (
        lambda: models.lenet((32, 32, 3), 10, filters=(192, 192), dense=1000, conv_dropout=0.5),
        conv(5, 3, 192) + conv(5, 192, 192) + conv(1, 5 * 5 * 192, 1000) + conv(1, 1000, 10),
        5_747_394,
    ),
    "Caffe's Quick": (
        lambda: models.quick((32, 32, 3), 10),
        conv(5, 3, 32)
        + conv(5, 32, 32)
        + conv(5, 32, 64)
        + conv(1, 4 * 4 * 64, 64)
        + conv(1, 64, 10),
        145_578,
    ),
    "All-CNN-C": (
        lambda: models.all_conv((32, 32, 3), 10),
        conv(3, 3, 96)
        + 2 * conv(3, 96, 96)
        + conv(3, 96, 192)
        + 3 * conv(3, 192, 192)
        + conv(1, 192, 192)
        + conv(1, 192, 10),
        1_369_738,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_have_their_number_of_weights(name):
    network, by_layers, expected = PUBLISHED[name]
    assert network().count_params() == by_layers == expected


SHAPES = {
    "lenet": (
        lambda: models.lenet((28, 20, 1), 7, filters=(3, 5), dense=11),
        {"stage1": (12, 8, 3), "stage2": (4, 2, 5), "features": (11,)},
    ),
    "quick": (
        lambda: models.quick((32, 16, 3), 7, filters=(3, 5, 9), dense=11),
        {"stage1": (16, 8, 3), "stage2": (8, 4, 5), "stage3": (4, 2, 9), "features": (11,)},
    ),
    "all_conv": (
        lambda: models.all_conv((16, 8, 3), 7, width=3),
        {"stage1": (8, 4, 3), "stage2": (4, 2, 6), "stage3": (4, 2, 6), "features": (6,)},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_layers_to_tap_have_their_names_and_shapes(name):
    network, expected = SHAPES[name]
    model = network()
    for layer, shape in {**expected, "logits": (7,)}.items():
        assert model.get_layer(layer).output.shape == (None, *shape)


@pytest.mark.parametrize(
    "name, rates, places",
    [
        ("lenet", {}, {"logits_dropout": "features"}),
        (
            "lenet",
            {"conv_dropout": 0.1},
            {"stage1_dropout": "stage1", "stage2_dropout": "stage2", "logits_dropout": "features"},
        ),
        ("quick", {}, {"dense_dropout": "flatten", "logits_dropout": "features"}),
        (
            "quick",
            {"dropout": 0, "conv_dropout": 0.1},
            {"stage1_dropout": "stage1", "stage2_dropout": "stage2"},
        ),
        (
            "all_conv",
            {},
            {"input_dropout": "inputs", "stage1_dropout": "stage1", "stage2_dropout": "stage2"},
        ),
        ("all_conv", {"dropout": 0}, {"input_dropout": "inputs"}),
        ("lenet", {"dropout": 0}, {}),
        ("all_conv", {"dropout": 0, "input_dropout": 0}, {}),
    ],
)
def test_dropout_stands_behind_the_layers_that_the_text_names(name, rates, places):
    model = TINY[name](**rates)
    assert dropouts(model) == list(places)
    for dropout, before in places.items():
        assert model.get_layer(dropout).input is model.get_layer(before).output


@pytest.mark.parametrize("name, rate", [("lenet", 0.5), ("quick", 0.5), ("all_conv", 0.5)])
def test_dropout_has_the_rates_of_the_papers_unless_told(name, rate):
    rates = {each: TINY[name]().get_layer(each).rate for each in dropouts(TINY[name]())}
    assert rates.pop("input_dropout", 0.2) == 0.2
    assert set(rates.values()) == {rate}
    given = TINY[name](dropout=0.25)
    assert {given.get_layer(each).rate for each in rates} == {0.25}


def test_monte_carlo_dropout_finds_all_layers_and_runs_ahead_what_it_can(build):
    network = build()
    teacher = kd.MonteCarloDropout(network)
    assert teacher.random_layers == dropouts(network) != []
    before, _ = split(network, [network.get_layer(name) for name in dropouts(network)])
    # Of dropout on the image nothing runs ahead.
    assert (before is None) == ("input_dropout" in dropouts(network))


@pytest.mark.core
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(build):
    first, again, other = (build(seed=seed).get_weights() for seed in (3, 3, 4))
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.ndim == 1 or not np.array_equal(one, three)


@pytest.mark.core
def test_a_network_without_dropout_starts_from_other_weights_but_takes_those_of_one_with_it():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    trained, student = TINY["quick"](seed=0), TINY["quick"](seed=1, dropout=0)
    student.set_weights(trained.get_weights())
    said = [model.predict(x, verbose=0) for model in (trained, student)]
    np.testing.assert_allclose(*said, rtol=1e-5, atol=1e-6)


@pytest.mark.core
def test_one_step_moves_every_weight_and_stays_finite(build):
    model = build(seed=1)
    x = np.random.default_rng(0).normal(size=(12, *model.input_shape[1:])).astype("float32")
    before = [np.array(weight) for weight in model.trainable_weights]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Without compilation where that is faster for a single step.
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=keras.backend.backend() != "jax")
    history = model.fit(x, np.arange(12) % 3, batch_size=12, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.isfinite(np.array(weight)).all()
        assert not np.array_equal(np.array(weight), old), weight.path


def test_weight_decay_is_half_the_squared_norm_of_the_kernels(build):
    model = build(weight_decay=0.25, seed=0)
    kernels = [weight.astype("float64") for weight in model.get_weights() if weight.ndim > 1]
    expected = 0.25 / 2 * sum(np.sum(kernel**2) for kernel in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: models.lenet((15, 16, 1), 10), r"at least 16.*\(15, 16, 1\)"),
        (lambda: models.quick((8, 7, 1), 10), "at least 8"),
        (lambda: models.all_conv((3, 4, 1), 10), "at least 4"),
        (lambda: models.lenet((28, 28), 10), "height, width, channels"),
        (lambda: models.all_conv((None, 32, 3), 10), "all known"),
        (lambda: models.lenet((28, 28, 1), 10, filters=(2, 2, 2)), r"lenet.*2 conv.*\(2, 2, 2\)"),
        (lambda: models.quick((8, 8, 1), 10, filters=(2, 2)), r"quick.*3 conv.*\(2, 2\)"),
        (lambda: models.quick((8, 8, 1), 0), "num_classes=0"),
        (lambda: models.all_conv((8, 8, 1), 3, seed=-1), "seed=-1"),
        (lambda: models.lenet((28, 28, 1), 3, weight_decay=-0.1), "weight_decay"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
