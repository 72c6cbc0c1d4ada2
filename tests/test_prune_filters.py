"""Structured pruning: smaller networks that compute what is left."""

import keras
import numpy as np
import pytest
from keras import layers

import kdtoolkit as kd
from tests.helpers import array
from tests.support import dense, images
from tests.test_shared_weights import trained_statistics

pytestmark = pytest.mark.core


def branched():
    """Ties of all kinds: a sum, a gate, a concatenation, a depthwise and a transposed layer."""
    inputs = keras.Input((8, 8, 1))
    a = layers.Conv2D(6, 3, padding="same", name="a")(inputs)
    a = layers.ReLU()(layers.BatchNormalization(name="a_norm")(a))
    b = layers.DepthwiseConv2D(3, padding="same", name="depthwise", depth_multiplier=2)(a)
    c = layers.Conv2D(12, 1, name="c")(a)
    d = layers.Add(name="sum")([b, c])
    gate = layers.GlobalAveragePooling2D(keepdims=True)(d)
    gate = layers.Dense(12, "sigmoid", name="gate")(layers.Dense(4, "relu", name="squeeze")(gate))
    d = layers.Multiply()([d, gate])
    e = layers.Concatenate()([d, layers.Conv2D(4, 3, padding="same", name="e")(a)])
    f = layers.Conv2DTranspose(4, 2, name="f")(layers.MaxPooling2D()(e))
    h = layers.Dense(5, "relu", name="hidden")(layers.Flatten()(f))
    return trained_statistics(keras.Model(inputs, layers.Dense(3, name="head")(h)))


def widths(network):
    return {layer.name: layer.output.shape[-1] for layer in network.layers if layer.weights}


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (branched, (8, 8, 1)),
        (lambda: trained_statistics(kd.models.resnet(8, (8, 8, 1), 3, width=4, seed=0)), (8, 8, 1)),
        (lambda: trained_statistics(dense(9)), (6,)),
    ],
)
def test_what_is_removed_was_all_that_changed(make, shape):
    """Where the weakest filters give nothing, the smaller network gives what the whole one did."""
    network = make()
    # Tied channels go together, so the k-th channel of every producer is silenced alike.
    for layer in network.layers:
        values = layer.get_weights()
        if layer.name in ("head", "logits") or not values:
            continue
        if isinstance(layer, layers.BatchNormalization):
            # Without gamma and beta, silence stays silent.
            values[0][::2], values[1][::2] = 0, 0
        elif isinstance(layer, layers.DepthwiseConv2D):
            values[1][:] = 0
        elif isinstance(layer, layers.Conv2DTranspose):
            values[0][:, :, ::2], values[1][::2] = 0, 0
        else:
            silent = slice(None, None, 2)
            if layer.name in ("c", "gate"):
                # Behind the depthwise layer, channels come in pairs.
                silent = [0, 1, 4, 5, 8, 9]
            values[0][..., silent] = 0
            for bias in values[1:]:
                bias[silent] = 0
        layer.set_weights(values)
    smaller = kd.compress.prune_filters(network, 0.5)
    assert smaller.count_params() < 0.7 * network.count_params()
    x = np.random.default_rng(0).normal(size=(5, *shape)).astype("float32")
    expected = network.predict(x, verbose=0)
    np.testing.assert_allclose(smaller.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)


def test_the_filters_of_smallest_norm_go():
    inputs = keras.Input((6, 6, 1))
    h = layers.Conv2D(5, 3, name="conv")(inputs)
    network = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(h)))
    norms = np.abs(array(network.get_layer("conv").kernel)).sum((0, 1, 2))
    stay = np.sort(np.argsort(norms)[2:])
    smaller = kd.compress.prune_filters(network, 0.4)
    expected = array(network.get_layer("conv").kernel)[..., stay]
    np.testing.assert_array_equal(array(smaller.get_layer("conv").kernel), expected)
    head = array(network.get_layer("head").kernel).reshape(16, 5, 2)[:, stay].reshape(48, 2)
    np.testing.assert_array_equal(array(smaller.get_layer("head").kernel), head)


def test_tied_channels_go_together_and_inputs_and_outputs_stay():
    network = branched()
    smaller = kd.compress.prune_filters(network, 0.5)
    found = widths(smaller)
    assert found["a"] == found["a_norm"] == 3
    assert found["depthwise"] == found["c"] == found["gate"] == 6
    assert (found["squeeze"], found["e"], found["f"], found["hidden"]) == (2, 2, 2, 2)
    assert found["head"] == 3 and smaller.input_shape == network.input_shape


def test_multiples_are_kept():
    network = kd.models.resnet(8, (8, 8, 1), 3, width=12, seed=0)
    found = widths(kd.compress.prune_filters(network, 0.5, multiple_of=8))
    assert {name: found[name] for name in ("stem_conv", "stage2_block1_conv1")} == {
        "stem_conv": 8,
        "stage2_block1_conv1": 16,
    }


def test_layers_that_are_not_named_stay():
    network = branched()
    smaller = kd.compress.prune_filters(network, 0.5, layers=["f", "c"])
    before, after = widths(network), widths(smaller)
    # "c" is tied to others, which weren't named.
    assert {name for name in before if before[name] != after[name]} == {"f"}


def test_attention_and_shared_layers_stay_whole():
    network = kd.models.vit((8, 8, 1), 3, width=12, depth=1, heads=2, patch_size=4, seed=0)
    before, after = widths(network), widths(kd.compress.prune_filters(network, 0.5))
    assert {name for name in before if before[name] != after[name]} == {"block1_mlp_hidden"}
    twice = layers.Dense(4, name="twice")
    inputs = keras.Input((4,))
    h = twice(twice(inputs))
    shared = keras.Model(inputs, layers.Dense(2)(layers.Dense(6, name="free")(h)))
    found = widths(kd.compress.prune_filters(shared, 0.5))
    assert (found["twice"], found["free"]) == (4, 3)


def test_the_smaller_network_trains_with_a_teacher_and_is_saved(tmp_path):
    network = branched()
    smaller = kd.compress.prune_filters(network, 0.5)
    x, y = images(16)
    distiller = kd.Distiller(
        student=smaller, teacher=network, transfers=[kd.Transfer(kd.losses.SoftTargets(2.0))]
    )
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(x, y, verbose=0)
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.models.load_model(tmp_path / "smaller.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), smaller.predict(x, verbose=0))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1. Received: 1.0"):
        kd.compress.prune_filters(dense(8), 1.0)
    with pytest.raises(ValueError, match="`multiple_of`"):
        kd.compress.prune_filters(dense(8), 0.5, multiple_of=0)
    with pytest.raises(ValueError, match="Remove filters first"):
        kd.compress.prune_filters(kd.compress.prune(dense(8), 0.5), 0.5)
    alone = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="No filter of"):
        kd.compress.prune_filters(alone, 0.5)


def crossed(kind):
    inputs = keras.Input((6, 6, 2))
    a, b = (layers.Conv2D(4, 1, name=name)(inputs) for name in "ab")
    if kind == "twice":
        h = layers.Add()([layers.Conv2D(8, 1, name="c")(inputs), layers.Concatenate()([a, a])])
    else:
        h = layers.Add()([layers.Concatenate()([a, b]), layers.Concatenate()([b, a])])
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h)))


@pytest.mark.parametrize("kind", ["twice", "exchanged"])
def test_channels_that_stand_in_several_places_are_tied_there_too(kind):
    network = crossed(kind)
    smaller = kd.compress.prune_filters(network, 0.5)
    assert widths(smaller)["a"] == 2
    assert smaller(np.ones((1, 6, 6, 2), "float32")).shape == (1, 2)


def test_one_filter_of_each_layer_stays():
    inputs = keras.Input((6, 6, 2))
    a, b = (layers.Conv2D(2, 1, name=name)(inputs) for name in "ab")
    h = layers.Add()([layers.Concatenate()([a, b]), layers.Conv2D(4, 1, name="c")(inputs)])
    network = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h)))
    for name in ("a", "c"):
        kernel = array(network.get_layer(name).kernel)
        kernel[..., :2] *= 1e-3
        network.get_layer(name).kernel.assign(kernel)
    found = widths(kd.compress.prune_filters(network, 0.5))
    assert (found["a"], found["b"], found["c"]) == (1, 1, 2)


def test_operations_with_arrays_and_custom_layers_keep_their_channels():
    class DropoutMix(layers.Layer):
        def build(self, shape):
            self.mix = self.add_weight(shape=(shape[-1], shape[-1]))

        def call(self, inputs):
            return inputs @ self.mix

    inputs = keras.Input((6, 6, 2))
    a = layers.Conv2D(4, 1, name="a")(inputs) * np.arange(4.0, dtype="float32")
    b = DropoutMix()(layers.Conv2D(4, 1, name="b")(inputs))
    c = layers.Conv2D(4, 1, activation=layers.Softmax(), name="c")(inputs)
    free = layers.Conv2D(4, 1, name="free")(inputs)
    h = layers.Concatenate()([a, b, c, free])
    network = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h)))
    found = widths(kd.compress.prune_filters(network, 0.5))
    assert (found["a"], found["b"], found["c"], found["free"]) == (4, 4, 4, 2)
