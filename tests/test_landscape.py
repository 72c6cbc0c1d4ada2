"""Loss landscapes, against formulas written out here in float64."""

import math

import keras
import numpy as np
import pytest
from keras import layers

from kdtoolkit import evaluation
from kdtoolkit.evaluation import measuring, probe
from tests.support import arrays, conv, crossentropy, data, dense, images, transformer

QUIET = {"progress": False}
CURVE = {"scales": (0.0, 0.1, 0.3), "draws": 2, **QUIET}
X, Y = data(24)


def linear(features=6, seed=0, name=None):
    """A kernel and nothing else, and data it fits but for a residual of 0.5."""
    random = np.random.default_rng(seed)
    model = keras.Sequential([keras.Input((features,)), layers.Dense(1, use_bias=False)], name=name)
    kernel = random.normal(size=(features, 1)).astype("float32")
    model.set_weights([kernel])
    x = random.normal(size=(20, features)).astype("float32")
    return model, x, (x @ kernel + 0.5).astype("float32"), kernel


def relu_net(factor=1.0, name=None):
    """The same function for every power of two: what the first layer gains, the second loses."""
    model = dense(norm=False, name=name)
    w, b, v, c = model.get_weights()
    random = np.random.default_rng(3)
    b, c = random.normal(size=b.shape), random.normal(size=c.shape)
    model.set_weights([w * factor, b * factor, v / factor, c])
    return model


def normalised_net(seed, name=None):
    """A network with moving statistics that are not those it starts with."""
    model = dense(seed=seed, name=name)
    random = np.random.default_rng(seed)
    model.set_weights([random.uniform(0.2, 1.0, w.shape) for w in model.get_weights()])
    return model


def cross_entropy(model, x=X, y=Y):
    """From the network's own predictions, in float64."""
    logits = np.array(model(x, training=False), "float64")
    logits -= logits.max(axis=-1, keepdims=True)
    log = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -log[np.arange(len(y)), y].mean()


def losses(rows):
    return [row["loss"] for row in rows]


def at(rows, scale):
    return [row["loss"] for row in rows if row["scale"] == scale]


# --- noise ---------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("relative", [False, True])
def test_noise_moves_a_linear_network_as_the_formula_says(relative):
    model, x, y, kernel = linear()
    rows = evaluation.noise_curve(
        model, x, y, loss="mse", scales=[0.1, 0.5], draws=3, relative=relative, seed=7, **QUIET
    )
    x, y, kernel = (a.astype("float64") for a in (x, y, kernel))
    size = np.sqrt(np.mean(kernel**2)) if relative else 1.0
    expected = []
    for draw in range(3):
        step = np.random.default_rng([7, draw, 0]).standard_normal(kernel.shape, dtype="float32")
        for scale in (0.0, 0.1, 0.5):
            expected.append(np.mean((x @ (kernel + scale * size * step) - y) ** 2))
    np.testing.assert_allclose(losses(rows), expected, rtol=1e-5)
    assert [row["scale"] for row in rows] == [0.0, 0.1, 0.5] * 3
    assert [row["draw"] for row in rows] == [0] * 3 + [1] * 3 + [2] * 3
    assert {row["relative"] for row in rows} == {relative}


@pytest.mark.core
def test_the_mean_rise_is_the_expected_one():
    model, x, y, _ = linear()
    draws, scale = 300, 0.2
    rows = evaluation.noise_curve(model, x, y, loss="mse", scales=[scale], draws=draws, **QUIET)
    # The residual is no part of it: noise has mean 0. A triangle has half the height on average.
    expected = scale**2 * np.mean(np.sum(x.astype("float64") ** 2, axis=1)) / 2
    line = evaluation.loss_rise(rows)[0]
    assert line["loss"] == pytest.approx(0.25, rel=1e-4)
    assert abs(line["rise_mean"] - expected) < 4 * line["rise_sd"] / math.sqrt(draws)
    assert line["rise_sd"] < expected * 2


@pytest.mark.core
def test_networks_share_their_draws_whatever_else_is_measured():
    first, second = relu_net(name="first"), relu_net(name="second")
    rows = evaluation.noise_curve([first, second], X, Y, **CURVE)
    one, other = (losses(r for r in rows if r["model"] == name) for name in ("first", "second"))
    assert one == other
    assert one[1] != one[4]
    fewer = evaluation.noise_curve({"a": second}, X, Y, **{**CURVE, "scales": [0.3], "draws": 1})
    assert at(fewer, 0.3) == at(rows, 0.3)[:1]
    seeded = evaluation.noise_curve(first, X, Y, **CURVE, seed=1)
    assert seeded[0]["loss"] == one[0] and seeded[1]["loss"] != one[1]


@pytest.mark.core
def test_relative_noise_ignores_the_size_of_weights_and_raw_noise_does_not():
    models = {"small": relu_net(), "large": relu_net(8.0)}
    relative = evaluation.loss_rise(evaluation.noise_curve(models, X, Y, **CURVE, relative=True))
    raw = evaluation.loss_rise(evaluation.noise_curve(models, X, Y, **CURVE))
    assert relative[0]["rise_mean"] == pytest.approx(relative[1]["rise_mean"], rel=1e-5)
    assert abs(raw[0]["rise_mean"] / raw[1]["rise_mean"] - 1) > 0.5


def test_the_batch_size_changes_nothing_and_dropout_and_statistics_stay_out():
    model = dense(dropout=0.5)
    whole = evaluation.noise_curve(model, X, Y, **CURVE)
    np.testing.assert_allclose(
        losses(evaluation.noise_curve(model, X, Y, **CURVE, batch_size=10)), losses(whole), 1e-5
    )
    assert whole[0]["loss"] == pytest.approx(cross_entropy(model), rel=1e-5)
    best = np.argmax(model(X), axis=-1)
    assert whole[0]["accuracy"] == pytest.approx(np.mean(best == Y))


def test_infinite_losses_are_rows_like_others(tmp_path):
    model, x, y, _ = linear()
    rows = evaluation.noise_curve(model, x, y, loss="mse", scales=[0.1, 1e30, 1e39], **QUIET)
    assert all(math.isinf(loss) for loss in at(rows, 1e30))
    assert not any(math.isfinite(loss) for loss in at(rows, 1e39))
    lines = evaluation.noise_summary(rows)
    assert math.isfinite(lines[1]["loss_sd"]) and math.isnan(lines[2]["loss_sd"])
    assert lines[2]["loss_mean"] == math.inf
    assert not math.isfinite(evaluation.loss_rise(rows)[0]["rise_mean"])
    evaluation.plot_noise_curves(rows, tmp_path / "noise.png")
    evaluation.write_csv(rows, tmp_path / "rows.csv")
    assert losses(evaluation.read_csv(tmp_path / "rows.csv"))[2] == math.inf


ROWS = [
    {"model": "a", "relative": False, "draw": draw, "scale": scale, "loss": loss, "accuracy": acc}
    for draw, scale, loss, acc in [
        (0, 0.0, 1.0, 0.8),
        (0, 0.1, 2.0, 0.6),
        (0, 0.3, 4.0, 0.5),
        (1, 0.0, 1.0, 0.8),
        (1, 0.1, 1.0, 0.8),
        (1, 0.3, 2.0, 0.7),
    ]
]


def test_the_summaries_are_what_a_hand_computes():
    lines = evaluation.noise_summary(ROWS)
    assert [line["scale"] for line in lines] == [0.0, 0.1, 0.3]
    assert lines[2]["loss_mean"] == 3.0 and lines[2]["loss_sd"] == pytest.approx(math.sqrt(2))
    assert lines[1]["accuracy_mean"] == pytest.approx(0.7) and lines[1]["draws"] == 2
    line = evaluation.loss_rise(ROWS)[0]
    # (0.1 * 0.5 + 0.2 * 2) / 0.3 and (0 + 0.2 * 0.5) / 0.3.
    rises = [1.5, 1 / 3]
    assert line["rise_mean"] == pytest.approx(np.mean(rises))
    assert line["rise_sd"] == pytest.approx(np.std(rises, ddof=1))
    assert math.isnan(evaluation.loss_rise(ROWS[:3])[0]["rise_sd"])


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "Received: none"),
        (ROWS + ROWS[:1], "second one"),
        (ROWS[:5], "the same scales"),
        (ROWS[1:3], "the same scales: 0 and others"),
    ],
)
def test_rows_that_are_no_curves_are_refused(rows, message):
    for function in (evaluation.noise_summary, evaluation.loss_rise, evaluation.plot_noise_curves):
        with pytest.raises(ValueError, match=message):
            function(rows)


# --- which weights -------------------------------------------------------------------------------


class Tokens(layers.Layer):
    """What a transformer learns beside its kernels."""

    def build(self, shape):
        self.first = self.add_weight(shape=(1, 1, shape[-1]), name="cls_token")
        self.places = self.add_weight(shape=(1, 17, shape[-1]), name="pos_embed")

    def call(self, x):
        return x + self.places[:, 1:] + self.first


class Mixer(layers.Layer):
    """A weight that no name explains."""

    def build(self, shape):
        self.mixing = self.add_weight(shape=(shape[-1], shape[-1]), name="w")

    def call(self, x):
        return x @ self.mixing


def moved_names(model, **kwargs):
    steps = evaluation.direction(model, **kwargs)
    pairs = zip(model.trainable_variables, steps, strict=True)
    return {"/".join(v.path.split("/")[-2:]) for v, step in pairs if np.any(step)}


def test_kernels_are_moved_and_biases_tokens_tables_and_norms_are_not():
    ids = keras.Input((16,), dtype="int32")
    h = Tokens()(layers.Embedding(5, 8)(ids))
    h = Mixer(name="position_mixer")(Mixer(name="mixer")(h))
    h = layers.MultiHeadAttention(2, 4)(h, h)
    h = layers.LayerNormalization(axis=[1, 2])(h)
    h = layers.SimpleRNN(3, name="embedding_reader")(h)
    model = keras.Model(ids, layers.Dense(2, name="token_head")(h))
    attention = {f"{part}/kernel" for part in ("query", "key", "value", "attention_output")}
    # What is named a kernel is one, whatever its layer is named. Else both names must be harmless.
    expected = attention | {
        "mixer/w", "token_head/kernel", "simple_rnn_cell/kernel", "simple_rnn_cell/recurrent_kernel"
    }  # fmt: skip
    assert moved_names(model) == expected
    assert len(moved_names(model, include="trainable")) > len(expected) + 4
    assert moved_names(model, include=lambda v: v.name == "cls_token") == {"tokens/cls_token"}


def test_including_all_trainable_weights_keeps_the_draws_of_the_kernels():
    model = dense()
    kernels = evaluation.direction(model, norm=None, seed=2)
    everything = evaluation.direction(model, norm=None, seed=2, include="trainable")
    for kernel, step in zip(kernels, everything, strict=True):
        assert np.all(kernel == (step if kernel.ndim > 1 else 0)) and np.any(step)


# --- directions ----------------------------------------------------------------------------------


def filters(name, kernel):
    """Each filter of a kernel as one row, by the layer's name."""
    if name == "depthwise":
        return kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1]).T
    if name in ("query", "key", "value"):
        return kernel.reshape(kernel.shape[0], -1).T
    if name == "up_transpose":
        return np.moveaxis(kernel, -2, 0).reshape(kernel.shape[-2], -1)
    return kernel.reshape(-1, kernel.shape[-1]).T


def test_every_filter_of_a_direction_is_as_long_as_the_networks():
    inputs = keras.Input((4, 4, 2))
    h = layers.Conv2D(3, 3, padding="same", name="conv")(inputs)
    h = layers.DepthwiseConv2D(2, depth_multiplier=2, name="depthwise")(h)
    h = layers.Conv2DTranspose(5, 2, name="up_transpose")(h)
    h = layers.Conv1D(4, 2, name="conv1d")(layers.Reshape((-1, 5))(h))
    h = layers.MultiHeadAttention(2, 3)(h, h)
    model = keras.Model(inputs, layers.Dense(3, name="dense")(h))
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=w.shape) for w in model.get_weights()])
    seen = []
    for variable, step in zip(model.trainable_variables, evaluation.direction(model), strict=True):
        layer, name = variable.path.split("/")[-2:]
        if name == "bias":
            assert not step.any()
            continue
        seen.append(layer)
        lengths = [np.linalg.norm(filters(layer, w), axis=1) for w in (variable.numpy(), step)]
        np.testing.assert_allclose(*lengths, rtol=1e-5)
        assert len(lengths[0]) > 1 and np.ptp(lengths[0]) > 0.01
        assert not np.allclose(np.abs(step), np.abs(variable.numpy()))
    assert len(seen) == 9


def test_the_parts_of_a_separable_convolution_and_tables_have_filters_of_their_own():
    separable = layers.SeparableConv1D(4, 3, depth_multiplier=2, name="depthwise_separable")
    inputs = keras.Input((6,), dtype="int32")
    model = keras.Model(inputs, separable(layers.Embedding(5, 3)(inputs)))
    steps = evaluation.direction(model, include="trainable")
    table, depth, point, bias = (v.numpy() for v in model.trainable_variables)
    axes = {0: (table, 1), 1: (depth, 0), 2: (point, (0, 1))}
    for index, (weight, axis) in axes.items():
        lengths = [np.sqrt(np.sum(np.square(w), axis)) for w in (weight, steps[index])]
        np.testing.assert_allclose(*lengths, rtol=1e-5)
        assert not np.allclose(np.abs(steps[index]), np.abs(weight))
    assert not steps[3].any() and not bias.any()


def test_other_lengths_of_a_direction():
    model = dense(norm=False)
    kernel = model.trainable_variables[0].numpy()
    plain = evaluation.direction(model, norm=None, seed=5)[0]
    layer = evaluation.direction(model, norm="layer", seed=5)[0]
    assert np.linalg.norm(layer) == pytest.approx(np.linalg.norm(kernel), rel=1e-5)
    np.testing.assert_allclose(layer / plain, (layer / plain)[0, 0], rtol=1e-4)
    assert not np.array_equal(plain, evaluation.direction(model, norm=None, seed=6)[0])


def test_weights_of_one_shape_get_different_draws():
    square = [layers.Dense(6, use_bias=False) for _ in range(2)]
    first, second = evaluation.direction(keras.Sequential([keras.Input((6,)), *square]), norm=None)
    assert not np.array_equal(first, second)


# --- lines and planes ----------------------------------------------------------------------------


@pytest.mark.core
def test_the_centre_of_a_line_is_the_network_and_its_points_are_where_they_should_be():
    model = dense()
    direction = evaluation.direction(model, seed=4)
    rows = evaluation.landscape_line(model, X, Y, span=0.7, points=3, seed=4, **QUIET)
    assert [row["alpha"] for row in rows] == [-0.7, 0.0, 0.7]
    assert {row["model"] for row in rows} == {model.name}
    assert rows[1]["loss"] == pytest.approx(cross_entropy(model), rel=1e-5)
    for variable, step in zip(model.trainable_variables, direction, strict=True):
        variable.assign(variable.numpy() + 0.7 * step)
    assert rows[2]["loss"] == pytest.approx(cross_entropy(model), rel=1e-5)


@pytest.mark.core
def test_filter_normalised_lines_ignore_the_size_of_weights_and_plain_lines_do_not():
    small, large = relu_net(), relu_net(8.0)
    lines = [losses(evaluation.landscape_line(m, X, Y, points=3, **QUIET)) for m in (small, large)]
    np.testing.assert_allclose(*lines, rtol=1e-5)
    plain = [
        losses(
            evaluation.landscape_line(
                m, X, Y, points=2, direction=evaluation.direction(m, norm=None), **QUIET
            )
        )
        for m in (small, large)
    ]
    assert np.max(np.abs(np.subtract(*plain))) > 0.1 * np.max(plain)


@pytest.mark.core
def test_the_middle_of_a_plane_is_the_line():
    model = relu_net()
    rows = evaluation.landscape_surface(model, X, Y, points=(4, 3), name="net", **QUIET)
    line = evaluation.landscape_line(model, X, Y, points=4, **QUIET)
    middle = [row for row in rows if row["beta"] == 0]
    assert [row["alpha"] for row in middle] == [row["alpha"] for row in line]
    assert losses(middle) == losses(line)
    assert len(rows) == 12 and rows[0]["model"] == "net"
    assert len({round(loss, 4) for loss in losses(rows)}) == 12


@pytest.mark.core
def test_an_interpolation_has_both_networks_at_its_ends_and_their_mean_between():
    first, second, between = (normalised_net(seed, name=f"net{seed}") for seed in (0, 1, 2))
    rows = evaluation.interpolation(first, second, X, Y, start=0, end=1, points=3, **QUIET)
    assert [row["alpha"] for row in rows] == [0, 0.5, 1] and rows[0]["model"] == "net0 to net1"
    weights = [[w.astype("float64") for w in m.get_weights()] for m in (first, second)]
    between.set_weights([(a + b) / 2 for a, b in zip(*weights, strict=True)])
    expected = [cross_entropy(model) for model in (first, between, second)]
    np.testing.assert_allclose(losses(rows), expected, rtol=1e-5)


def test_beyond_the_ends_the_moving_statistics_stay():
    first, second, beyond = (normalised_net(seed) for seed in (0, 1, 2))
    rows = evaluation.interpolation(first, second, X, Y, points=2, **QUIET)
    pairs = zip(beyond.weights, first.get_weights(), second.get_weights(), strict=True)
    for variable, a, b in pairs:
        variable.assign(b if "moving" in variable.name else 1.5 * b - 0.5 * a)
    assert rows[1]["alpha"] == 1.5
    assert rows[1]["loss"] == pytest.approx(cross_entropy(beyond), rel=1e-5)


# --- the network is left alone -------------------------------------------------------------------


def same_bits(first, second):
    return [a.tobytes() for a in first] == [b.tobytes() for b in second]


EVERY_WALK = [
    lambda model, **kw: evaluation.noise_curve(model, X, Y, scales=[0.3], draws=1, **kw),
    lambda model, **kw: evaluation.landscape_line(model, X, Y, points=4, **kw),
    lambda model, **kw: evaluation.landscape_surface(model, X, Y, points=(2, 2), **kw),
    lambda model, **kw: evaluation.interpolation(model, dense(seed=9), X, Y, points=3, **kw),
]


@pytest.mark.core
@pytest.mark.parametrize("walk", EVERY_WALK)
def test_the_weights_are_put_back_to_the_bit(walk, monkeypatch):
    model = dense()
    before, calls = arrays(model), []

    def interrupted(self):
        calls.append(same_bits(before, arrays(model)))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 0.0, 0.0

    with monkeypatch.context() as patch:
        patch.setattr(probe.Probe, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            walk(model, **QUIET)
    # It was interrupted while the weights were others.
    assert calls[1] is False
    assert same_bits(before, arrays(model))


@pytest.mark.core
def test_weights_and_optimizer_survive_a_walk_and_a_loss_that_raises():
    model = dense()
    model.compile("adam", crossentropy())
    model.optimizer.build(model.trainable_variables)
    before, optimizer = arrays(model), arrays(model.optimizer)

    def failing(y, prediction):
        raise RuntimeError("no such loss")

    with pytest.raises(RuntimeError, match="no such loss"):
        evaluation.landscape_line(model, X, Y, points=2, loss=failing, **QUIET)
    assert same_bits(before, arrays(model))
    evaluation.landscape_line(model, X, Y, points=2, **QUIET)
    assert same_bits(before, arrays(model))
    assert same_bits(optimizer, arrays(model.optimizer))
    assert model.predict_function is None and model.trainable


@pytest.mark.core
def test_half_precision_weights_are_put_back_too():
    model = dense(norm=False, dtype="mixed_bfloat16")
    pure = keras.Sequential([keras.Input((6,)), layers.Dense(3, dtype="bfloat16")])
    for network in (model, pure):
        before = arrays(network)
        rows = evaluation.noise_curve(network, X, Y, scales=[0.5], draws=1, **QUIET)
        assert same_bits(before, arrays(network))
        assert network.weights[0].dtype == ("bfloat16" if network is pure else "float32")
        assert rows[0]["loss"] != rows[1]["loss"]


class Counting(keras.Model):
    """Counts how often Python runs through it."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)
        self.calls = 0

    def call(self, inputs):
        self.calls += 1
        return self.dense(inputs)


@pytest.mark.core
def test_the_network_is_traced_once_per_batch_shape_and_not_per_point():
    model = Counting()
    model(X[:1])
    traces = []
    for points in (2, 9):
        model.calls = 0
        evaluation.landscape_line(model, X, Y, points=points, batch_size=10, **QUIET)
        traces.append(model.calls)
    assert traces[0] == traces[1] <= 4


# --- data, outputs, losses -----------------------------------------------------------------------


def with_heads():
    inputs = {"x": keras.Input((6,), name="x"), "unused": keras.Input((1,), name="unused")}
    h = layers.Dense(4, "relu")(inputs["x"])
    heads = {"fused": layers.Dense(3, name="fused")(h), "side": layers.Dense(3, name="side")(h)}
    return keras.Model(inputs, heads), keras.Model(inputs, heads["fused"])


@pytest.mark.core
def test_one_of_several_outputs_is_measured_from_inputs_by_name():
    model, head = with_heads()
    x = {"x": X, "unused": X[:, :1]}
    rows = evaluation.landscape_line(model, x, Y, points=3, output="fused", **QUIET)
    assert rows[1]["loss"] == pytest.approx(cross_entropy(head, x), rel=1e-5)
    for output in (None, "other"):
        with pytest.raises(ValueError, match=r"Expected one of \['fused', 'side'\]"):
            evaluation.landscape_line(model, x, Y, output=output, **QUIET)
    with pytest.raises(ValueError, match="only one"):
        evaluation.landscape_line(head, x, Y, output="fused", **QUIET)


def test_losses_per_example_and_labels_of_other_shapes_give_the_same():
    model = dense()
    expected = evaluation.landscape_line(model, X, Y, points=2, **QUIET)
    hot = np.eye(3, dtype="float32")[Y]
    kinds = [
        (Y[:, None], keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)),
        (hot, lambda y, z: keras.losses.categorical_crossentropy(y, z, from_logits=True)),
    ]
    for y, loss in kinds:
        rows = evaluation.landscape_line(model, X, y, points=2, loss=loss, batch_size=10, **QUIET)
        for row, other in zip(rows, expected, strict=True):
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert row["accuracy"] == pytest.approx(other["accuracy"])


def test_without_classes_there_is_no_accuracy():
    model, x, y, _ = linear()
    rows = evaluation.landscape_line(model, x, y, points=2, loss="mse", **QUIET)
    assert all(math.isnan(row["accuracy"]) for row in rows)


def test_convolutions_and_attention_can_be_walked_over():
    x, y = images()
    models = {"conv": conv(), "transformer": transformer()}
    rows = evaluation.noise_curve(models, x, y, scales=[0.5], draws=1, **QUIET)
    assert [row["model"] for row in rows] == ["conv"] * 2 + ["transformer"] * 2
    assert all(math.isfinite(loss) for loss in losses(rows))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scales": []}, "`scales` must be .*Received: scales="),
        ({"scales": [0.0]}, "one of them above 0"),
        ({"scales": [-0.1, 0.1]}, "0 or more"),
        ({"scales": [math.inf]}, "finite"),
        ({"draws": 0}, "`draws` must be 1 or more.*draws=0"),
        ({"seed": -1}, "seed=-1"),
        ({"include": "biases"}, "`include` must be one of"),
        ({"include": lambda variable: False}, "must have weights to move"),
        ({"batch_size": 0}, "`batch_size` must be 1 or more"),
        ({"models": []}, "one network or more"),
        ({"models": ["two of one name"]}, "different names.*net"),
        ({"y": Y[:-1]}, r"the same examples.*\[24, 23\]"),
        ({"x": X[:0], "y": Y[:0]}, "one or more"),
        ({"loss": keras.losses.MeanSquaredError(reduction="sum")}, "reduction='sum'"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, message):
    arguments = {"models": dense(name="net"), "x": X, "y": Y, **QUIET, **change}
    if isinstance(change.get("models"), list) and change["models"]:
        arguments["models"] = [dense(name="net"), dense(name="net")]
    with pytest.raises(ValueError, match=message):
        evaluation.noise_curve(**arguments)


def test_networks_without_kernels_and_of_two_architectures_are_refused():
    frozen = dense()
    frozen.trainable = False
    unbuilt = keras.Sequential([layers.Dense(2)])
    norm = keras.Sequential([keras.Input((6,)), layers.BatchNormalization()])
    for model in (frozen, unbuilt, norm):
        for function in (evaluation.noise_curve, evaluation.landscape_line):
            with pytest.raises(ValueError, match="must have weights to move"):
                function(model, X, Y)
    with pytest.raises(ValueError, match="one architecture"):
        evaluation.interpolation(dense(4), dense(8), X, Y)
    for change in ({"start": 1, "end": 1}, {"points": 1}):
        with pytest.raises(ValueError, match="`start` must be below `end`"):
            evaluation.interpolation(dense(), dense(), X, Y, **change)
    for change in ({"span": 0.0}, {"points": 1}):
        with pytest.raises(ValueError, match="`span` must be above 0"):
            evaluation.landscape_line(dense(), X, Y, **change)
    with pytest.raises(ValueError, match="one array per trainable weight"):
        evaluation.landscape_line(dense(4), X, Y, direction=evaluation.direction(dense(8)))
    with pytest.raises(ValueError, match="`norm` must be"):
        evaluation.direction(dense(), norm="weight")


# --- progress and pictures -----------------------------------------------------------------------


@pytest.mark.parametrize("rich", [True, False])
def test_progress_is_silent_outside_a_terminal_and_without_rich(rich, monkeypatch, capfd):
    if not rich:

        def missing(module):
            raise ImportError(module)

        monkeypatch.setattr(measuring, "require", missing)
    evaluation.landscape_line(dense(), X, Y, points=2, progress=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("walk", EVERY_WALK)
def test_the_bar_ends_when_the_walk_does(walk, monkeypatch):
    rich = pytest.importorskip("rich.progress")
    tasks = []

    class Seen(rich.Progress):
        def __exit__(self, *args):
            tasks.extend(self.tasks)
            super().__exit__(*args)

    monkeypatch.setattr(rich, "Progress", Seen)
    walk(dense())
    assert tasks[0].completed == tasks[0].total > 1


def test_noise_curves_are_drawn_in_a_panel_per_kind_of_scale(tmp_path):
    pytest.importorskip("matplotlib")
    rows = ROWS + [{**row, "model": "b", "relative": True} for row in ROWS]
    rows += [{**row, "relative": True, "loss": 2 * row["loss"]} for row in ROWS]
    figure = evaluation.plot_noise_curves(rows, tmp_path / "noise.png", title="Digits", log=True)
    raw, relative = figure.axes
    assert [line.get_label() for line in raw.get_lines()] == ["a"]
    np.testing.assert_allclose(raw.get_lines()[0].get_xydata(), [[0, 1], [0.1, 1.5], [0.3, 3]])
    assert [line.get_label() for line in relative.get_lines()] == ["a", "b"]
    np.testing.assert_allclose(relative.get_lines()[0].get_ydata(), [2, 3, 6])
    colors = [line.get_color() for line in relative.get_lines()]
    assert colors[0] == raw.get_lines()[0].get_color() != colors[1]
    band = raw.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(3 + math.sqrt(2))
    assert band.min() == pytest.approx(1.5 - math.sqrt(0.5))
    assert raw.get_yscale() == "log" and "raw" in raw.get_xlabel()
    assert (tmp_path / "noise.png").stat().st_size > 1000
    with pytest.raises(FileExistsError):
        evaluation.plot_noise_curves(rows, tmp_path / "noise.png")
    with pytest.raises(ValueError, match="must end in the format"):
        evaluation.plot_noise_curves(rows, tmp_path / "noise", overwrite=True)


PLANE = [
    {"model": "a", "alpha": a, "beta": b, "loss": 1 + a * a + 2 * b * b, "accuracy": 1.0}
    for a in (-1.0, 0.0, 1.0)
    for b in (-0.5, 0.5)
]


def test_lines_and_planes_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    line = [{**row, "model": str(row["beta"])} for row in reversed(PLANE)]
    curves = evaluation.plot_line(line, tmp_path / "line.png").axes[0].get_lines()
    assert [curve.get_label() for curve in curves] == ["0.5", "-0.5"]
    np.testing.assert_allclose(curves[0].get_xydata(), [[-1, 2.5], [0, 1.5], [1, 2.5]])
    contours = evaluation.plot_contours(PLANE, tmp_path / "c.png", levels=[2.0], title="Plane")
    # The line of the loss 2 crosses beta = +-0.5 halfway between losses 1.5 and 2.5.
    vertices = np.vstack([path.vertices for path in contours.axes[0].collections[0].get_paths()])
    np.testing.assert_allclose(np.abs(vertices[:, 0]), 0.5)
    surface = evaluation.plot_surface(PLANE, tmp_path / "s.png", log=True).axes[0]
    assert surface.get_zlabel() == "log10 of the loss"
    assert 0.1 < surface.get_zlim()[0] < surface.get_zlim()[1] < 0.5
    assert len(list(tmp_path.iterdir())) == 3


def test_planes_with_infinite_or_negative_losses_are_drawn_with_gaps():
    pytest.importorskip("matplotlib")
    rows = [{**row, "loss": math.inf if row["alpha"] > 0 else row["loss"]} for row in PLANE]
    rows[0]["loss"] = -1.0
    for plot in (evaluation.plot_contours, evaluation.plot_surface):
        for log in (False, True):
            assert plot(rows, log=log).axes


@pytest.mark.parametrize("rows", [[], PLANE[:-1], PLANE + PLANE[:1]])
def test_rows_that_are_no_plane_are_refused(rows):
    pytest.importorskip("matplotlib")
    for plot in (evaluation.plot_contours, evaluation.plot_surface):
        with pytest.raises(ValueError, match="rows"):
            plot(rows)
    with pytest.raises(ValueError, match="Received: none"):
        evaluation.plot_line([])
