"""Networks with several branches: their graph, their arithmetic, and the methods wired on them.

The reference is NumPy in float64. What only looks at the graph is not marked `core`.
"""

import itertools

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdtoolkit as kd
from kdtoolkit import wirings
from kdtoolkit.models.branches import ScaleGradient, branches
from tests import support
from tests.helpers import array, gradient

FEATURES, CLASSES = support.FEATURES, support.CLASSES


def mlp(seed=0, **kwargs):
    return kd.models.mlp((FEATURES,), CLASSES, units=(5, 4), seed=seed, **kwargs)


def resnet(seed=0, **kwargs):
    return kd.models.resnet(8, (8, 8, 1), CLASSES, width=2, seed=seed, **kwargs)


def outputs(model, x, training=False):
    return {key: array(value) for key, value in model(x, training=training).items()}


def assert_close(value, expected):
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


# The reference --------------------------------------------------------------------------------


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def cross_entropy(z, y):
    return -np.mean(log_softmax(z)[np.arange(len(y)), y])


def divergence(source, student, temperature):
    log_p, log_q = log_softmax(source / temperature), log_softmax(student / temperature)
    return temperature**2 * np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1))


def gate(model, x):
    """The weights of the branches in inference mode, from the gate's own weights."""
    dense, norm = model.get_layer("gate_dense"), model.get_layer("gate_norm")
    kernel, bias = map(array, dense.get_weights())
    gamma, beta, mean, variance = map(array, norm.get_weights())
    pooled = x.reshape(len(x), -1, x.shape[-1]).mean(axis=1)
    z = (pooled @ kernel + bias - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    return np.exp(log_softmax(np.maximum(z, 0)))


# The graph ------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("share_gradient", [False, True])
def test_the_network_itself_is_the_first_branch(share_gradient):
    network, (x, _) = mlp(), support.data(4)
    before = np.array(network(x))
    student = branches(network, "stage1", 2, ensemble=None, share_gradient=share_gradient)
    for layer in network.layers[1:]:
        assert student.get_layer(layer.name) is layer
    np.testing.assert_array_equal(network(x), before)
    np.testing.assert_array_equal(student(x)["branch1"], before)
    assert (
        student.count_params()
        == network.count_params() + student.get_layer("branch2").count_params()
    )


def test_the_network_can_still_be_saved_and_built_upon(tmp_path):
    network, (x, _) = resnet(), support.images(3)
    for _ in range(2):
        branches(network, "stage2", share_gradient=True)
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded(x), network(x))
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in resnet().layers]


@pytest.mark.core
def test_no_two_branches_start_alike_and_a_seed_repeats_them():
    def kernels(seed):
        student = branches(mlp(dropout=0.5), "stage1", 3, ensemble=None, seed=seed)
        ends = [student, student.get_layer("branch2"), student.get_layer("branch3")]
        names = ["stage2_dense", "logits"]
        rates = [end.get_layer("stage2_dropout").get_config()["seed"] for end in ends]
        return [[array(end.get_layer(n).kernel) for n in names] for end in ends], rates

    first, seeds = kernels(1)
    for one, other in itertools.combinations(first, 2):
        assert all(np.abs(a - b).max() > 0.1 for a, b in zip(one, other, strict=True))
    assert len(set(seeds)) == 3
    again, other = kernels(1)[0], kernels(2)[0]
    np.testing.assert_array_equal(first[2][0], again[2][0])
    np.testing.assert_array_equal(first[0][0], other[0][0])
    assert np.abs(first[1][0] - other[1][0]).max() > 0.1


def test_the_seed_of_the_network_makes_other_branches():
    student = branches(mlp(seed=4), "flatten", 2, ensemble=None, seed=4)
    pairs = zip(student.weights, student.get_layer("branch2").weights, strict=False)
    kernels = [(array(a), array(b)) for a, b in pairs if a.name == "kernel"]
    assert len(kernels) == 3
    assert all(np.abs(a - b).max() > 0.1 for a, b in kernels)


def test_without_a_seed_branches_follow_the_seed_of_keras():
    kernels = []
    for _ in range(2):
        network = support.dense(norm=False)
        keras.utils.set_random_seed(3)
        student = branches(network, "hidden", 3, ensemble=None)
        kernels.append([student.get_layer(f"branch{k}").get_weights()[0] for k in (2, 3)])
    np.testing.assert_array_equal(*kernels)
    assert np.abs(kernels[0][0] - kernels[0][1]).max() > 0.1


def test_heads_of_one_attention_layer_start_apart_in_every_branch():
    shape = {"width": 4, "depth": 1, "heads": 1, "patch_size": 4}
    network = kd.models.vit((8, 8, 1), CLASSES, **shape, seed=0)
    student = branches(network, "tokens", 2, seed=1)
    attention = student.get_layer("branch2").get_layer("block1_attention")
    query, key = attention.query_dense.kernel, attention.key_dense.kernel
    assert np.abs(array(query) - array(key)).max() > 1e-3
    assert student(np.ones((2, 8, 8, 1)))["ensemble"].shape == (2, CLASSES)


def test_sequential_and_nested_networks_can_be_branched():
    parts = [layers.Dense(5, "relu", name="first"), layers.Dense(CLASSES, name="last")]
    network = keras.Sequential([keras.Input((FEATURES,)), *parts])
    student, (x, _) = branches(network, "first", 2), support.data(4)
    np.testing.assert_array_equal(student(x)["branch1"], network(x))

    inputs = keras.Input((FEATURES,))
    h = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(5)], name="trunk")(inputs)
    head = keras.Sequential([keras.Input((5,)), layers.Dense(CLASSES)], name="head")
    nested = keras.Model(inputs, head(h))
    student = branches(nested, "trunk", 2)
    np.testing.assert_array_equal(student(x)["branch1"], nested(x))
    assert np.abs(array(student(x)["branch2"]) - array(nested(x))).max() > 0.01


def skipping():
    inputs = keras.Input((5,))
    h = layers.Dense(5, name="inner")(inputs)
    h = layers.Add(name="sum")([h, inputs])
    return keras.Model(inputs, layers.Dense(CLASSES)(h))


def twice():
    inputs, layer = keras.Input((5,)), layers.Dense(5, name="shared")
    return keras.Model(inputs, layers.Dense(CLASSES)(layer(layer(inputs))))


def constant():
    inputs = keras.Input((5,))
    h = layers.Dense(5, name="inner")(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES, kernel_initializer="zeros")(h))


def two_outputs():
    inputs = keras.Input((5,))
    heads = {key: layers.Dense(CLASSES, name=key)(inputs) for key in "ab"}
    return keras.Model(inputs, heads)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (mlp, {"at": "stage3"}, r"'stage3'. Near names: stage1|stage2"),
        (mlp, {"at": "inputs"}, r"not its input"),
        (mlp, {"at": "logits"}, r"has layers behind it"),
        (mlp, {"at": "stage1", "count": 1}, r"`count` must be 2 or more.*Received: 1"),
        (mlp, {"at": "stage1", "ensemble": "sum"}, r"`ensemble` must be one of .*'sum'"),
        (skipping, {"at": "inner"}, r"'sum' behind it also reads \['.*'\] from before"),
        (
            resnet,
            {"at": "stage3_block1_conv1"},
            r"'stage3_block1_add'.*_shortcut_norm",
        ),
        (twice, {"at": "shared"}, r"which runs twice"),
        (constant, {"at": "inner"}, r"equal weights in branch1 and branch2"),
        (two_outputs, {"at": "a"}, r"one output, \(batch, classes\).*single_output"),
        (support.Subclassed, {"at": "trunk"}, r"must be a functional model"),
        (keras.Sequential, {"at": "trunk"}, r"must be a functional model"),
    ],
)
def test_what_cannot_be_branched_is_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        branches(make(), **arguments)


# The arithmetic -------------------------------------------------------------------------------


@pytest.mark.core
def test_the_gate_weighs_the_branches_as_numpy_does():
    network, (x, _) = mlp(), support.data(6)
    student = branches(network, "stage1", 3, seed=1)
    random = np.random.default_rng(0)
    for name in ("gate_dense", "gate_norm"):
        layer = student.get_layer(name)
        layer.set_weights([random.uniform(0.5, 2.0, size=w.shape) for w in layer.weights])
    inner = keras.Model(student.input, [student.get_layer(n).output for n in ("stage1", "gate")])
    features, weights = map(array, inner(x))
    assert_close(weights, gate(student, features))
    assert_close(weights.sum(axis=1), 1.0)
    assert weights.std(axis=0).min() > 1e-3
    z = outputs(student, x)
    expected = sum(weights[:, k - 1, None] * z[f"branch{k}"] for k in (1, 2, 3))
    assert_close(z["ensemble"], expected)


def test_the_gate_reads_the_mean_of_a_map():
    student, (x, _) = branches(resnet(shortcut="pad"), "stage2", 2, seed=1), support.images(3)
    layer = student.get_layer("gate_norm")
    layer.set_weights([w + 0.5 for w in layer.get_weights()])
    inner = keras.Model(student.input, [student.get_layer(n).output for n in ("stage2", "gate")])
    features, weights = map(array, inner(x))
    assert features.ndim == 4
    assert_close(weights, gate(student, features))


@pytest.mark.core
def test_means_of_all_and_of_the_others():
    student, (x, _) = branches(mlp(), "stage1", ensemble="mean", others=True), support.data(4)
    z = outputs(student, x)
    a, b, c = (z[f"branch{k}"] for k in (1, 2, 3))
    assert_close(z["ensemble"], (a + b + c) / 3)
    assert_close(z["others1"], (b + c) / 2)
    assert_close(z["others2"], (a + c) / 2)
    assert_close(z["others3"], (a + b) / 2)


def test_of_two_branches_each_is_the_others_mean_of_the_other():
    student, (x, _) = branches(mlp(), "stage1", 2, others=True), support.data(4)
    z = outputs(student, x)
    np.testing.assert_array_equal(z["others1"], z["branch2"])
    np.testing.assert_array_equal(z["others2"], z["branch1"])


@pytest.mark.core
def test_shared_gradients_are_the_mean_over_the_branches():
    x, _ = support.data(4)

    def slope(share_gradient, keys):
        student = branches(mlp(), "stage1", 3, ensemble=None, share_gradient=share_gradient, seed=1)
        return gradient(lambda x: sum(ops.sum(student(x, training=True)[k]) for k in keys), x)

    names = ["branch1", "branch2", "branch3"]
    each = [slope(False, [name]) for name in names]
    assert np.abs(each[0] - each[1]).max() > 0.01
    assert_close(slope(False, names), sum(each))
    assert_close(slope(True, names), sum(each) / 3)


@pytest.mark.core
def test_scaling_a_gradient_leaves_values_exactly_as_they_are():
    x = np.array([[1e-30, 0.1, -3e38]], "float32")
    layer = ScaleGradient(0.25)
    np.testing.assert_array_equal(layer(x, training=True), x)
    np.testing.assert_array_equal(layer(x, training=False), x)
    assert_close(gradient(lambda x: layer(x, training=True) * 8.0, x), 2.0)
    again = ScaleGradient.from_config(layer.get_config())
    assert again.factor == 0.25
    for factor in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="`factor` must be 0 or more and finite"):
            ScaleGradient(factor)


# The methods ----------------------------------------------------------------------------------


def one_step(student, transfers, trained, rate=0.0, label_weight=1.0):
    """The logs of one step and the outputs that it saw."""
    x, y = support.data(8)
    z = outputs(student, x, training=True)
    distiller = kd.Distiller(student=student, transfers=transfers, label_weight=label_weight)
    losses = {key: support.crossentropy() for key in trained} or None
    # One step of TensorFlow isn't worth a trace; one of JAX is, which compiles every operation.
    eager = keras.backend.backend() == "tensorflow"
    distiller.compile(keras.optimizers.SGD(rate), losses, run_eagerly=eager)
    history = distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
    return {key: values[0] for key, values in history.items()}, z, y


@pytest.mark.core
def test_the_loss_of_one_is_the_papers():
    student = branches(mlp(), "stage1", 3, seed=1)
    logs, z, y = one_step(student, wirings.one(3, weight=0.7), student.output)
    labels = sum(cross_entropy(z[key], y) for key in z)
    parts = [divergence(z["ensemble"], z[f"branch{k}"], 3.0) for k in (1, 2, 3)]
    assert min(parts) > 1e-3
    for k, part in enumerate(parts, start=1):
        assert_close(logs[f"ensemble_to_branch{k}"], part)
    assert_close(logs["loss"], labels + 0.7 * sum(parts))


def test_the_loss_of_collaborative_learning_is_the_papers():
    student = branches(mlp(), "stage1", 3, ensemble=None, others=True, seed=1)
    trained = ["branch1", "branch2", "branch3"]
    logs, z, y = one_step(student, wirings.collaborative(3), trained, label_weight=0.5)
    labels = sum(cross_entropy(z[key], y) for key in trained)
    parts = []
    for k in (0, 1, 2):
        rest = [z[name] for name in trained if name != trained[k]]
        parts.append(divergence(sum(rest) / 2, z[trained[k]], 2.0))
    assert min(parts) > 1e-3
    assert_close(logs["loss"], 0.5 * (labels + sum(parts)))


# TensorFlow says of the gate that the transfers' gradient doesn't reach it.
@pytest.mark.core
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("label", [False, True])
def test_the_gate_learns_from_its_label_loss_and_from_no_transfer(label):
    student = branches(mlp(), "stage1", 3, seed=1)
    watched = [student.get_layer(name) for name in ("gate_dense", "logits", "branch3")]
    before = [support.arrays(part) for part in watched]
    transfers, trained = ([], ["ensemble"]) if label else (wirings.one(3), [])
    one_step(student, transfers, trained, rate=0.5)
    moved = [
        support.largest_difference(old, support.arrays(part))
        for old, part in zip(before, watched, strict=True)
    ]
    assert min(moved[1:]) > 1e-3
    assert moved[0] > 1e-5 if label else moved[0] == 0


def test_a_trained_student_is_saved_whole_and_deployed_alone(tmp_path):
    network, (x, y) = mlp(), support.data(8)
    student = branches(network, "stage1", 2, others=True, share_gradient=True, seed=1)
    distiller = kd.Distiller(student=student, transfers=wirings.one(2))
    losses = {key: support.crossentropy() for key in ("branch1", "branch2", "ensemble")}
    distiller.compile(keras.optimizers.SGD(0.1), losses, metrics={"branch1": ["accuracy"]})
    start = np.array(network(x))
    logs = support.fit(distiller, x, y, batch_size=8, epochs=2).history
    assert {"branch1_accuracy", "ensemble_to_branch2"} <= set(logs)
    distiller.save(tmp_path / "run.keras")
    loaded = keras.models.load_model(tmp_path / "run.keras").student
    expected, found = outputs(student, x), outputs(loaded, x)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
    deployed = kd.models.single_output(loaded, "branch1")
    np.testing.assert_array_equal(deployed(x), network(x))
    assert deployed.count_params() == network.count_params()
    assert np.abs(np.array(network(x)) - start).max() > 1e-3


@pytest.mark.tensorflow
def test_the_branches_can_be_exported_together(tmp_path):
    student = branches(mlp(), "stage1", 2, share_gradient=True, seed=1)
    kd.export.litert(student, tmp_path / "student.tflite")
    x, _ = support.data(3)
    found = kd.export.LiteRTModel(tmp_path / "student.tflite").predict(x)
    for key, value in outputs(student, x).items():
        assert_close(found[key], value)


def test_the_wirings_name_their_ends_and_refuse_a_single_branch():
    edges = [*wirings.one(2, student="small"), *wirings.collaborative(2, student="small")]
    ends = [(edge.name, edge.source_layer, edge.student_layer) for edge in edges]
    assert ends == [
        ("ensemble_to_branch1", "ensemble", "branch1"),
        ("ensemble_to_branch2", "ensemble", "branch2"),
        ("others_to_branch1", "others1", "branch1"),
        ("others_to_branch2", "others2", "branch2"),
    ]
    assert {edge.source for edge in edges} == {edge.student for edge in edges} == {"small"}
    assert [float(edge.loss.temperature) for edge in edges] == [3, 3, 2, 2]
    assert [float(edge.weight) for edge in edges] == [1, 1, 0.5, 0.5]
    for wiring in (wirings.one, wirings.collaborative):
        with pytest.raises(ValueError, match="`count` must be 2 or more branches. Received"):
            wiring(1)
