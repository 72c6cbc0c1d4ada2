"""The small networks: sizes known from the literature, names to tap, seeds, training, export.

What only looks at the graph is not marked `core`: it is the same on every backend, and JAX takes
long to compile the initial weights.
"""

import keras
import numpy as np
import pytest

from kdtoolkit import models

CIFAR = ((32, 32, 3), 100)
TINY = ((8, 8, 3), 5)

# Small enough to run in a moment, one for each kind of block and each constructor. They share the
# shapes of kernels, because JAX compiles the initialisation of every new shape for seconds.
TINY_NETWORKS = {
    "v1": lambda **kwargs: models.resnet(8, *TINY, width=4, shortcut="pad", **kwargs),
    "v2": lambda **kwargs: models.resnet(8, *TINY, width=4, variant="v2", **kwargs),
    "convnet": lambda **kwargs: models.convnet(
        *TINY, filters=(4, 8), dense=(16,), dropout=0.2, **kwargs
    ),
    "mlp": lambda **kwargs: models.mlp(*TINY, units=(16, 16), dropout=0.2, **kwargs),
}


@pytest.fixture(params=TINY_NETWORKS)
def build(request):
    return TINY_NETWORKS[request.param]


def images(count=6, shape=TINY[0], seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def trainable_count(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def tapped(model, names, x):
    outputs = [model.get_layer(name).output for name in names]
    return keras.Model(model.input, outputs).predict(x, verbose=0)


def test_preactivation_resnet20_has_exactly_279508_weights():
    model = models.resnet(20, *CIFAR, variant="v2")
    assert model.count_params() == 279_508
    # One normalisation before every convolution but the stem's, and the final one: 6 * 16,
    # 16 + 5 * 32, 32 + 5 * 64 and 64 channels, each with two moving statistics.
    assert trainable_count(model) == 279_508 - 2 * (96 + 176 + 352 + 64)


@pytest.mark.parametrize(
    "network, expected",
    [
        (lambda: models.resnet(20, *CIFAR), 278_324),
        (lambda: models.resnet8x4(*CIFAR), 1_233_540),
        (lambda: models.resnet32x4(*CIFAR), 7_433_860),
        (lambda: models.resnet18(*CIFAR), 11_220_132),
    ],
    ids=["resnet20", "resnet8x4", "resnet32x4", "resnet18"],
)
def test_trainable_weights_are_as_many_as_in_the_literature(network, expected):
    assert trainable_count(network()) == expected


def test_resnet34_differs_from_resnet18_by_its_extra_identity_blocks():
    # 1, 2, 4 and 1 blocks more, of two 3x3 convolutions with normalisation each.
    extra = sum(
        count * 2 * (9 * width**2 + 2 * width)
        for count, width in ((1, 64), (2, 128), (4, 256), (1, 512))
    )
    assert trainable_count(models.resnet34(*CIFAR)) == 11_220_132 + extra


def test_padded_shortcuts_have_no_weights():
    projected, padded = (
        trainable_count(models.resnet(20, *CIFAR, shortcut=kind)) for kind in ("projection", "pad")
    )
    assert projected - padded == 16 * 32 + 32 * 64 + 2 * (32 + 64)


SHAPES = {
    "resnet v1": (
        lambda: models.resnet(14, (16, 24, 1), 7, width=4),
        {"stage1": (16, 24, 4), "stage2": (8, 12, 8), "stage3": (4, 6, 16), "features": (16,)},
    ),
    "resnet v2": (
        lambda: models.resnet(8, (32, 32, 3), 7, width=8, stem_width=4, variant="v2"),
        {"stage1": (32, 32, 8), "stage2": (16, 16, 16), "stage3": (8, 8, 32), "features": (32,)},
    ),
    "resnet8x4": (
        lambda: models.resnet8x4((32, 32, 3), 7),
        {"stage1": (32, 32, 64), "stage2": (16, 16, 128), "stage3": (8, 8, 256)},
    ),
    "resnet18 v2": (
        lambda: models.resnet18((32, 32, 3), 7, variant="v2"),
        {"stage1": (32, 32, 64), "stage4": (4, 4, 512), "features": (512,)},
    ),
    "convnet": (
        lambda: models.convnet((8, 8, 1), 7, filters=(3, 5, 9), dense=(11,)),
        {"stage1": (8, 8, 3), "stage2": (4, 4, 5), "stage3": (2, 2, 9), "features": (11,)},
    ),
    "convnet without dense layers": (
        lambda: models.convnet((8, 8, 1), 7, filters=(3, 5), batch_norm=False),
        {"stage1": (8, 8, 3), "stage2": (4, 4, 5), "features": (5,)},
    ),
    "mlp": (
        lambda: models.mlp((8, 8, 1), 7, units=(6, 4)),
        {"stage1": (6,), "stage2": (4,), "features": (4,)},
    ),
}


@pytest.mark.parametrize("network", SHAPES)
def test_layers_to_tap_have_their_names_and_shapes(network):
    build, expected = SHAPES[network]
    model = build()
    for name, shape in {**expected, "logits": (7,)}.items():
        assert model.get_layer(name).output.shape == (None, *shape)


def test_resnet50_has_bottlenecks_of_four_times_the_width():
    model = models.resnet50((32, 32, 3), 100)
    assert trainable_count(model) == 23_705_252
    assert model.get_layer("stage1").output.shape == (None, 32, 32, 256)
    assert model.get_layer("features").output.shape == (None, 2048)


@pytest.mark.core
def test_outputs_are_logits_computed_from_the_features(build):
    model = build(seed=0)
    kernel, bias = model.get_layer("logits").get_weights()
    features, logits = tapped(model, ["features", "logits"], images())
    np.testing.assert_allclose(logits, features @ kernel + bias, rtol=1e-4, atol=1e-4)
    assert (logits < 0).any()


@pytest.mark.parametrize("variant, has_negatives", [("v1", False), ("v2", True)])
def test_a_stage_ends_in_an_activation_in_v1_and_in_a_sum_in_v2(variant, has_negatives):
    model = models.resnet(8, *TINY, width=4, variant=variant, seed=0)
    stages = tapped(model, ["stage1", "stage2", "stage3"], images())
    assert [bool((stage < 0).any()) for stage in stages] == [has_negatives] * 3


def test_features_are_the_mean_over_the_pixels_of_the_last_activation():
    model = models.resnet(8, *TINY, width=4, seed=0)
    stage, features = tapped(model, ["stage3", "features"], images())
    np.testing.assert_allclose(features, stage.mean((1, 2)), rtol=1e-5)


def test_a_padded_shortcut_drops_pixels_and_adds_zero_channels():
    model = models.resnet(8, *TINY, width=4, shortcut="pad", seed=0)
    # With its last normalisation silenced, the block is its shortcut alone.
    norm = model.get_layer("stage2_block1_norm2")
    norm.gamma.assign(np.zeros(8))
    before, after = tapped(model, ["stage1", "stage2"], images())
    expected = np.pad(before[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (2, 2)])
    np.testing.assert_allclose(after, expected, atol=1e-6)


@pytest.mark.core
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(build):
    first, again, other = (build(seed=seed).get_weights() for seed in (3, 3, 4))
    kernels = [index for index, weight in enumerate(first) if weight.ndim > 1]
    for index, weight in enumerate(first):
        np.testing.assert_array_equal(weight, again[index])
    assert not any(np.array_equal(first[index], other[index]) for index in kernels)


def test_layers_of_one_seed_start_from_different_weights():
    model = models.resnet(20, *TINY, width=4, seed=0)
    kernels = model.get_weights()
    same_shape = [kernel for kernel in kernels if kernel.shape == (3, 3, 4, 4)]
    assert len(same_shape) == 6
    assert len({kernel.tobytes() for kernel in same_shape}) == 6


@pytest.mark.core
def test_without_a_seed_every_network_is_fresh():
    first, second = (TINY_NETWORKS["mlp"]().get_weights()[0] for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.core
def test_a_seed_repeats_dropout_masks_too():
    x = images()
    networks = [TINY_NETWORKS["mlp"](seed=seed) for seed in (0, 0, 1)]
    networks[2].set_weights(networks[0].get_weights())
    outputs = [keras.ops.convert_to_numpy(model(x, training=True)) for model in networks]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.allclose(outputs[0], outputs[2])


def test_kernels_start_he_normal():
    model = models.resnet(8, *CIFAR, width=64, seed=0)
    kernel = np.array(model.get_layer("stage3_block1_conv2").get_weights()[0])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)


@pytest.mark.core
def test_weight_decay_is_half_the_squared_norm_of_the_kernels_only(build):
    model = build(weight_decay=0.25, seed=0)
    kernels = [weight for weight in model.get_weights() if weight.ndim > 1]
    expected = 0.25 / 2 * sum(np.sum(kernel.astype("float64") ** 2) for kernel in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)
    assert not build().losses


@pytest.mark.core
def test_one_step_moves_every_weight_and_stays_finite(build):
    model = build(seed=0)
    before = [np.array(weight) for weight in model.trainable_weights]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Without compilation where that is faster for a single step.
    eager = keras.backend.backend() != "jax"
    model.compile(keras.optimizers.SGD(0.1), loss=loss, run_eagerly=eager)
    history = model.fit(images(16), np.arange(16) % 5, batch_size=16, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.isfinite(np.array(weight)).all()
        assert not np.array_equal(np.array(weight), old), weight.path


@pytest.mark.core
def test_logits_stay_float32_in_mixed_precision(build):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build(seed=0)
        assert model.get_layer("stage1").compute_dtype == "bfloat16"
    finally:
        keras.config.set_dtype_policy(policy)
    assert model.output.dtype == "float32"
    assert model.predict(images(2), verbose=0).dtype == "float32"


def test_saving_and_loading_keeps_the_outputs(build, tmp_path):
    model = build(seed=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = images(2)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_unnamed_networks_of_one_kind_can_stand_in_one_model():
    inputs = keras.Input((4,))
    members = [models.mlp((4,), 2) for _ in range(2)]
    ensemble = keras.Model(inputs, keras.layers.Average()([member(inputs) for member in members]))
    assert ensemble.output_shape == (None, 2)
    assert models.mlp((4,), 2, name="student").name == "student"


def test_dropout_stands_only_where_it_was_asked_for():
    def dropouts(model):
        return [layer.name for layer in model.layers if isinstance(layer, keras.layers.Dropout)]

    assert dropouts(models.convnet(*TINY)) == dropouts(models.mlp(*TINY)) == []
    assert dropouts(models.convnet(*TINY, dense=(3,), dropout=0.5)) == [
        "dense1_dropout",
        "logits_dropout",
    ]
    assert dropouts(models.mlp(*TINY, dropout=0.5)) == ["stage1_dropout", "stage2_dropout"]


@pytest.mark.core
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: models.resnet(18, *CIFAR), r"6 \* n \+ 2.*depth=18"),
        (lambda: models.resnet(2, *CIFAR), "depth=2"),
        (lambda: models.resnet(8, *CIFAR, variant="v3"), "variant='v3'"),
        (lambda: models.resnet(8, *CIFAR, shortcut="none"), "shortcut='none'"),
        (lambda: models.resnet(8, *CIFAR, width=4, stem_width=8, shortcut="pad"), "only add"),
        (lambda: models.resnet(8, (32, 32), 10), "height, width, channels"),
        (lambda: models.resnet18((None, None, 3), 10), "all known"),
        (lambda: models.resnet(8, (32, 32, 3), 0), "num_classes=0"),
        (lambda: models.resnet(8, *CIFAR, seed=-1), "seed=-1"),
        (lambda: models.resnet(8, *CIFAR, weight_decay=-0.1), "weight_decay"),
        (lambda: models.convnet((8, 8, 1), 10, filters=()), "filters"),
        (lambda: models.convnet((4, 8, 1), 10, filters=(2, 2, 2, 2)), "at least 8"),
        (lambda: models.mlp((8,), 10, units=()), "units"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.core
def test_a_seed_that_is_no_integer_is_refused():
    with pytest.raises(TypeError, match="seed=0.5"):
        models.mlp((4,), 2, seed=0.5)


@pytest.mark.export
@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="converts with TensorFlow")
def test_a_tflite_file_of_static_shape_computes_the_same(build):
    tf = pytest.importorskip("tensorflow")
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    model = build(seed=0)
    signature = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(signature)
    content = tf.lite.TFLiteConverter.from_concrete_functions([function]).convert()
    interpreter = litert.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    x = images(1)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(output, np.array(model(x, training=False)), rtol=1e-4, atol=1e-5)
