"""Vision Transformers and the distillation token: sizes, arithmetic, randomness, use, export.

The reference is NumPy in float64. What only looks at the graph is not marked `core`.
"""

import functools
import math

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit import models

IMAGE, CLASSES = (4, 6, 2), 3
# Six patches. Everything is small and of few shapes, because JAX compiles each of them.
SHAPE = {"width": 6, "depth": 2, "heads": 2, "mlp_ratio": 2, "patch_size": 2}
RATES = {"stochastic_depth": 0.4, "dropout": 0.3, "attention_dropout": 0.2}

vit = functools.partial(models.vit, IMAGE, CLASSES, **SHAPE)
deit = functools.partial(models.deit, IMAGE, CLASSES, **SHAPE)


def images(count=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *IMAGE)).astype("float32")


def labels(count=5):
    return np.arange(count) % CLASSES


def weights(model):
    return {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.weights}


def with_random_weights(model):
    """Biases and normalisations too: zeros and ones would hide what is done with them."""
    random = np.random.default_rng(1)
    model.set_weights([random.normal(0, 0.5, size=weight.shape) for weight in model.weights])
    return model


def outputs(model, x):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(x, training=False))


# The reference --------------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


class Reference:
    """The tokens and the outputs of a network with the given weights, in float64."""

    def __init__(self, model):
        self.weights = {path: value.astype("float64") for path, value in weights(model).items()}

    def dense(self, x, name):
        return x @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]

    def norm(self, x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
        return x * self.weights[f"{name}/gamma"] + self.weights[f"{name}/beta"]

    def attention(self, x, name):
        def project(part):
            w = self.weights
            kernel, bias = w[f"{name}/{part}/kernel"], w[f"{name}/{part}/bias"]
            return np.einsum("btw,whd->bhtd", x, kernel) + bias[:, None]

        query, key, value = (project(part) for part in ("query", "key", "value"))
        scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
        kernel = self.weights[f"{name}/attention_output/kernel"]
        heads = np.einsum("bhtd,hdw->btw", softmax(scores) @ value, kernel)
        return heads + self.weights[f"{name}/attention_output/bias"]

    def patches(self, x):
        kernel = self.weights["patch_conv/kernel"]
        height, width = kernel.shape[:2]
        corners = [
            (i, j) for i in range(0, x.shape[1], height) for j in range(0, x.shape[2], width)
        ]
        cut = np.stack([x[:, i : i + height, j : j + width] for i, j in corners], axis=1)
        flat = cut.reshape(*cut.shape[:2], -1) @ kernel.reshape(-1, kernel.shape[-1])
        return flat + self.weights["patch_conv/bias"]

    def encoded(self, x, depth=2):
        x = self.patches(x.astype("float64"))
        learned = self.weights.get("tokens/tokens", np.zeros((0, x.shape[-1])))
        learned = np.broadcast_to(learned, (len(x), *learned.shape))
        x = np.concatenate([learned, x], axis=1) + self.weights["tokens/positions"]
        for block in (f"block{i}" for i in range(1, depth + 1)):
            x = x + self.attention(self.norm(x, f"{block}_norm1"), f"{block}_attention")
            y = self.dense(self.norm(x, f"{block}_norm2"), f"{block}_mlp_hidden")
            x = x + self.dense(gelu(y), f"{block}_mlp")
        return self.norm(x, "norm")


def assert_close(value, expected):
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.core
def test_the_heads_read_their_tokens_as_numpy_does():
    model, x = with_random_weights(deit()), images()
    reference, z = Reference(model), outputs(model, x)
    tokens = reference.encoded(x)
    assert_close(z["class"], reference.dense(tokens[:, 0], "class"))
    assert_close(z["distillation"], reference.dense(tokens[:, 1], "distillation"))
    assert_close(z["fused"], (z["class"] + z["distillation"]) / 2)


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_the_plain_network_computes_what_numpy_does(pooling):
    model, x = with_random_weights(vit(pooling=pooling)), images()
    reference = Reference(model)
    tokens = reference.encoded(x)
    assert tokens.shape[1] == {"token": 7, "mean": 6}[pooling]
    features = tokens[:, 0] if pooling == "token" else tokens.mean(axis=1)
    assert_close(outputs(model, x), reference.dense(features, "logits"))


def test_fused_probabilities_are_the_mean_of_the_heads_probabilities():
    model, x = with_random_weights(deit(fusion="probabilities")), images()
    z = outputs(model, x)
    expected = (softmax(z["class"]) + softmax(z["distillation"])) / 2
    assert_close(np.exp(z["fused"]), expected)
    # Far apart, where the probabilities themselves are 0 in float32.
    model.get_layer("class").bias.assign([0.0, 500.0, 1000.0])
    model.get_layer("distillation").bias.assign([0.0, 500.0, 1000.0])
    assert np.isfinite(outputs(model, x)["fused"]).all()


# Sizes and names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network, size, expected",
    [
        (models.vit, "tiny", 5_717_416),
        (models.vit, "small", 22_050_664),
        (models.deit, "tiny", 5_910_800),
    ],
    ids=["vit_tiny", "vit_small", "deit_tiny"],
)
def test_weights_are_as_many_as_in_the_literature(network, size, expected):
    assert network((224, 224, 3), 1000, size=size).count_params() == expected


def test_the_base_size_has_twelve_heads_of_64():
    model = models.vit((16, 16, 1), 2, size="base", depth=1)
    attention = model.get_layer("block1_attention")
    assert (attention.num_heads, attention.key_dim) == (12, 64)


def test_the_named_layers_can_be_tapped():
    model, x = deit(), images()
    paths = ["patches", "tokens", "block1", "block2", "block1_attention", "block1_mlp", "norm"]
    tapped = kd.tap(model, [*paths, "features", "distillation_features"])(x)
    assert [tapped[path].shape[1:] for path in paths] == [(6, 6), *[(8, 6)] * 6]
    for features, head in (("features", "class"), ("distillation_features", "distillation")):
        read = model.get_layer(head)(tapped[features])
        assert_close(read, outputs(model, x)[head])


# Seeds and dropping ---------------------------------------------------------------------------


def test_a_seed_gives_the_same_weights_whatever_the_rates():
    first, second = weights(deit(seed=3)), weights(deit(seed=3, **RATES))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[path], second[path]) for path in first)
    other = weights(deit(seed=4))
    kernels = [path for path in first if path.endswith(("kernel", "tokens", "positions"))]
    assert not any(np.array_equal(first[path], other[path]) for path in kernels)


@pytest.mark.parametrize("seed", [None, 0])
def test_queries_keys_and_values_start_apart(seed):
    model = vit(seed=seed)
    starts = [
        np.ravel(value)
        for path, value in weights(model).items()
        if "attention/" in path and path.endswith("kernel")
    ]
    assert len(starts) == 8
    assert len({start.tobytes() for start in starts}) == 8
    assert all(np.abs(start).max() < 0.06 for start in starts)


def dropouts(model):
    return {layer.name: layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)}


def test_every_dropout_has_a_seed_of_its_own():
    model = deit(seed=0, **RATES)
    seeds = {name: layer.seed for name, layer in dropouts(model).items()}
    # After the positions; per block: attention, hidden, output. In the second block both branches.
    assert len(seeds) == 1 + 2 * 3 + 2
    assert len(set(seeds.values())) == len(seeds)
    assert seeds == {name: layer.seed for name, layer in dropouts(deit(seed=0, **RATES)).items()}
    attention = {model.get_layer(f"block{i}_attention").seed for i in (1, 2)}
    assert len(attention - set(seeds.values())) == 2


def test_stochastic_depth_rises_linearly_from_zero():
    model = models.vit(IMAGE, CLASSES, **{**SHAPE, "depth": 5}, stochastic_depth=0.4)
    rates = {name: round(layer.rate, 6) for name, layer in dropouts(model).items()}
    expected = {
        f"block{i}_{branch}_depth": round(0.1 * (i - 1), 6)
        for i in range(2, 6)
        for branch in ("attention", "mlp")
    }
    assert rates == expected


@pytest.mark.core
def test_stochastic_depth_drops_branches_of_whole_examples():
    layers = [
        dropouts(vit(seed=seed, stochastic_depth=0.4))["block2_mlp_depth"] for seed in (0, 0, 1)
    ]
    x = np.ones((2000, 2, 3), "float32")
    first, again, other = (np.array(layer(x, training=True)) for layer in layers)
    whole = first.reshape(2000, -1)
    np.testing.assert_allclose(np.unique(whole), [0, 1 / 0.6], rtol=1e-6)
    assert (whole == whole[:, :1]).all()
    # Five standard deviations of the mean of 2000 such numbers.
    assert abs(first.mean() - 1) < 5 * math.sqrt(0.4 / 0.6 / 2000)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(layers[0](x, training=False), x)


# Saving, precision, other backbones -----------------------------------------------------------


@pytest.mark.core
def test_a_saved_network_computes_the_same_bits(tmp_path):
    model, x = deit(seed=0, **RATES), images()
    model.save(tmp_path / "deit.keras")
    loaded = keras.models.load_model(tmp_path / "deit.keras")
    expected = outputs(models.single_output(model, "fused"), x)
    assert np.array_equal(outputs(models.single_output(loaded, "fused"), x), expected)
    assert loaded.get_layer("tokens").get_config() == model.get_layer("tokens").get_config()


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="no float16 attention on processors")
def test_mixed_precision_trains_and_answers_in_float32():
    keras.config.set_dtype_policy("mixed_float16")
    model = models.deit(IMAGE, CLASSES, **{**SHAPE, "depth": 1}, **RATES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", {"class": loss, "distillation": loss}, jit_compile=False)
    history = model.fit(images(), {"class": labels(), "distillation": labels()}, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert model.get_layer("block1").compute_dtype == "float16"
    assert {str(z.dtype) for z in outputs(model, images()).values()} == {"float32"}


def backbone():
    inputs = keras.Input((4, 6), name="cells")
    return keras.Model(inputs, keras.layers.Dense(5, name="embed")(inputs), name="trunk")


def test_any_backbone_that_returns_tokens_gets_both_heads(tmp_path):
    trunk, x = backbone(), np.random.default_rng(0).normal(size=(5, 4, 6)).astype("float32")
    model = models.distillation_heads(trunk, CLASSES, class_token=3, distillation_token=0, seed=0)
    assert trunk.weights[0] is model.weights[0]
    z, tokens, reference = outputs(model, x), outputs(trunk, x), Reference(model)
    assert_close(z["class"], reference.dense(tokens[:, 3], "class"))
    assert_close(z["distillation"], reference.dense(tokens[:, 0], "distillation"))
    assert not np.array_equal(z["class"], z["distillation"])
    assert kd.tap(model, ["trunk/embed"])(x)["trunk/embed"].shape == (5, 4, 5)
    model.save(tmp_path / "two.keras")
    loaded = keras.models.load_model(tmp_path / "two.keras")
    assert np.array_equal(outputs(loaded, x)["fused"], z["fused"])


def test_a_single_output_shares_the_weights_and_leaves_out_the_rest():
    model, x = deit(), images()
    label = models.single_output(model, "class")
    assert label.name == f"{model.name}_class"
    assert {"class", "features"} <= {layer.name for layer in label.layers}
    assert "distillation" not in {layer.name for layer in label.layers}
    with_random_weights(model)
    assert np.array_equal(outputs(label, x), outputs(model, x)["class"])


# Distillation ---------------------------------------------------------------------------------


def changed(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


@pytest.mark.parametrize(
    "label_weight, weight, learns, rests",
    [(1.0, 0.0, "class", "distillation"), (0.0, 1.0, "distillation", "class")],
    ids=["labels", "teacher"],
)
def test_labels_and_teacher_reach_one_head_each(label_weight, weight, learns, rests):
    student, teacher = deit(seed=0), models.convnet(IMAGE, CLASSES, filters=(4,), seed=1)
    edge = kd.Transfer(kd.losses.HardTargets(), student_layer="distillation", weight=weight)
    distiller = kd.Distiller(
        student=student, teacher=teacher, transfers=[edge], label_weight=label_weight
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("sgd", {"class": loss})
    before = weights(student)
    distiller.fit(images(), {"class": labels()}, verbose=0)
    moved = changed(before, weights(student))
    assert {f"{learns}/kernel", f"{learns}/bias", "tokens/tokens", "patch_conv/kernel"} <= moved
    assert not {f"{rests}/kernel", f"{rests}/bias"} & moved


@pytest.mark.export
@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="converts with TensorFlow")
def test_a_tflite_file_gives_the_mean_of_both_heads(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model, x = with_random_weights(models.deit(IMAGE, CLASSES, **{**SHAPE, "depth": 1})), images()
    path = tmp_path / "fused.tflite"
    kd.export.litert(models.single_output(model, "fused"), path, check_data=x)
    z = outputs(model, x)
    mean = (z["class"] + z["distillation"]) / 2
    np.testing.assert_allclose(kd.export.LiteRTModel(path).predict(x), mean, rtol=1e-4, atol=1e-5)


# Refusals -------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: models.vit(IMAGE, 3, size="huge"), "'tiny', 'small', 'base'.*size='huge'"),
        (lambda: vit(width=7), "multiple of `heads`.*width=7, depth=2, heads=2"),
        (lambda: vit(depth=0), "depth=0"),
        (lambda: vit(patch_size=4), "divide.*patch_size=4 and images of 4 x 6"),
        (lambda: vit(patch_size=0), "patch_size=0"),
        (lambda: vit(pooling="max"), "pooling='max'"),
        (lambda: vit(stochastic_depth=1.0), r"`stochastic_depth` must be in \[0, 1\)"),
        (lambda: vit(dropout=-0.1), "dropout=-0.1"),
        (lambda: deit(fusion="sum"), "fusion='sum'"),
        (lambda: models.vit((None, 8, 3), 2), "input_shape"),
        (lambda: models.deit((16, 16, 3), 0, width=3, depth=1), "num_classes=0"),
        (lambda: models.distillation_heads(models.mlp((4,), 2), 3), "one output, .batch, tokens"),
        (lambda: models.distillation_heads(keras.Model(), 3), "output None"),
        (lambda: models.distillation_heads(backbone(), 3, class_token=1), "1 and 1, for 4 tokens"),
        (lambda: models.distillation_heads(backbone(), 3, class_token=4), "4 and 1, for 4 tokens"),
        (lambda: models.single_output(models.mlp((4,), 2), "fused"), "output is a dict"),
        (lambda: models.single_output(deit(), "mean"), "'fused'].*key='mean'"),
        (lambda: models.TokensAndPositions(tokens=-1), "tokens=-1"),
        (lambda: models.TokensAndPositions().build((None, None, 3)), "known length"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
