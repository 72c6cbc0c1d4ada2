"""Own exits: their graph on any network, what learns from what, and what is left when they go.

The reference is NumPy in float64. What only looks at the graph is not marked `core`.
"""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers

import kdtoolkit as kd
from kdtoolkit import wirings
from tests import reference, support
from tests.helpers import array

FEATURES, CLASSES = support.FEATURES, support.CLASSES


def mlp(seed=0):
    return kd.models.mlp((FEATURES,), CLASSES, units=(5, 4), seed=seed)


def resnet(seed=0, **kwargs):
    return kd.models.resnet(8, (8, 8, 1), CLASSES, width=2, seed=seed, **kwargs)


def backbone():
    """A convolutional network that ends in maps."""
    inputs = keras.Input((8, 8, 1))
    h = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    h = layers.BatchNormalization(name="norm")(h)
    return keras.Model(inputs, layers.Conv2D(6, 3, 2, padding="same", name="top")(h), name="body")


@keras.saving.register_keras_serializable("tests")
class Encoder(layers.Layer):
    """A composite layer whose blocks return two tensors."""

    def __init__(self, dim=4, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim
        self.block1 = Block(dim, name="block1")
        self.block2 = Block(dim, name="block2")

    def build(self, shape):
        self.block1.build(shape)
        self.block2.build((*shape[:-1], self.dim))
        self.built = True

    def call(self, inputs):
        return self.block2(self.block1(inputs)[0])[0]

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.dim)

    def get_config(self):
        return {**super().get_config(), "dim": self.dim}


class Block(layers.Layer):
    def __init__(self, dim, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(dim)

    def build(self, shape):
        self.inner.build(shape)
        self.built = True

    def call(self, inputs):
        output = self.inner(inputs)
        return output, keras.ops.mean(output)


def encoder_network():
    inputs = keras.Input((5, 3))
    h = layers.GlobalAveragePooling1D()(Encoder(name="encoder")(inputs))
    return keras.Model(inputs, layers.Dense(CLASSES)(h))


def nested(**kwargs):
    """A network whose stages lie in a model in a model; the outer part is sequential."""
    inputs = keras.Input((8, 8, 1))
    middle = keras.Model(inputs, layers.ReLU()(backbone()(layers.Rescaling(2.0)(inputs), **kwargs)))
    middle.name = "middle"
    head = keras.Sequential([keras.Input((6,)), layers.Dense(5, "relu"), layers.Dense(CLASSES)])
    head.name = "head"
    parts = [layers.GlobalAveragePooling2D(name="features"), head]
    return keras.Sequential([keras.Input((8, 8, 1)), middle, *parts])


NETWORKS = {
    "perceptron": (mlp, ["stage1", "stage2"]),
    "resnet": (resnet, ["stage1", "stage2"]),
    "nested": (nested, ["middle/body/stem", "middle/body/norm"]),
    "transformer": (support.transformer, ["block1"]),
    "composite": (encoder_network, ["encoder/block1"]),
}


def made(name, **kwargs):
    make, paths = NETWORKS[name]
    network = make()
    return network, kd.attach_exits(network, paths, seed=1, **kwargs)


def inputs_of(model, examples=6):
    shape = (examples, *model.inputs[0].shape[1:])
    return np.random.default_rng(3).normal(size=shape).astype("float32")


# The graph ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.core] * (n in ("nested", "composite"))) for n in NETWORKS],
)
def test_the_network_is_left_as_it_is_and_shares_its_weights(name):
    make, paths = NETWORKS[name]
    network = make()
    x, before, names = inputs_of(network), None, [v.path for v in network.variables]
    before = array(network(x))
    student = kd.attach_exits(network, paths, seed=1)
    said = student(x)
    assert set(said) == {*(f"exit{k}" for k in range(1, len(paths) + 1)), "last"}
    np.testing.assert_array_equal(array(said["last"]), before)
    assert all(value.shape == (len(x), CLASSES) for value in said.values())
    weights = {id(v) for v in student.variables}
    assert {id(v) for v in network.variables} < weights
    assert [v.path for v in network.variables] == names
    for variable in network.trainable_variables:
        variable.assign(variable + 0.1)
    np.testing.assert_array_equal(array(student(x)["last"]), array(network(x)))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_exits_the_original_is_left(name, tmp_path):
    network, student = made(name)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    alone = kd.models.single_output(loaded, "last")
    assert alone.count_params() == network.count_params()
    x = inputs_of(network)
    np.testing.assert_array_equal(array(alone(x)), array(network(x)))


def test_an_early_exit_is_a_network_that_ends_there():
    network, student = made("resnet")
    early = kd.models.single_output(student, "exit1")
    names = [layer.name for layer in early.layers]
    assert "stage1" in names and not any(name.startswith(("stage2", "exit2")) for name in names)
    x = inputs_of(network)
    np.testing.assert_allclose(array(early(x)), array(student(x)["exit1"]), atol=1e-6)


def test_an_early_exit_of_a_nested_model_leaves_the_rest_of_it_out():
    _, student = made("nested")
    names = [layer.name for layer in kd.models.single_output(student, "exit1").layers]
    assert "stem" in names and not {"norm", "top", "body", "middle"} & set(names)


def test_layers_of_the_network_can_still_be_read_by_name():
    network, _ = made("resnet")
    assert network.get_layer("stage1").output.shape == (None, 8, 8, 2)


@pytest.mark.parametrize("frozen", [False, True])
def test_inner_layers_train_as_they_did_in_the_nested_model(frozen):
    network = nested()
    body = network.layers[0].get_layer("body")
    body.trainable = not frozen
    student = kd.attach_exits(network, ["middle/body/stem"], seed=0)
    x = inputs_of(network)
    expected = array(network(x, training=True))
    np.testing.assert_allclose(array(student(x, training=True)["last"]), expected, atol=1e-6)
    owned = {id(v) for v in body.trainable_variables}
    assert bool(owned) is not frozen
    assert owned <= {id(v) for v in student.trainable_variables}
    assert not frozen or not {id(v) for v in body.variables} & {
        id(v) for v in student.trainable_variables
    }


def test_networks_of_keras_applications_have_exits():
    body = keras.applications.MobileNetV2((32, 32, 1), alpha=0.35, include_top=False, weights=None)
    parts = [layers.GlobalAveragePooling2D(), layers.Dropout(0.1), layers.Dense(CLASSES)]
    network = keras.Sequential([keras.Input((32, 32, 1)), layers.Rescaling(1 / 255), body, *parts])
    paths = [f"{body.name}/block_2_add", f"{body.name}/block_5_add"]
    student = kd.attach_exits(network, paths, bottleneck="separable", seed=0)
    x = inputs_of(network, 2)
    np.testing.assert_array_equal(array(student(x)["last"]), array(network(x)))
    early = kd.models.single_output(student, "exit1")
    assert early.count_params() < network.count_params() / 2
    np.testing.assert_allclose(array(early(x)), array(student(x)["exit1"]), atol=1e-6)
    edges, _ = wirings.own_exits(student)
    assert kd.Distiller(student=student, transfers=edges).graph.built


def test_features_have_the_width_that_the_classifier_reads():
    _, student = made("resnet")
    assert student.get_layer("exit1_features").output.shape == (None, 8)
    _, student = made("nested")
    # The last dense layer of the nested head reads 5 features.
    assert student.get_layer("exit1_features").output.shape == (None, 5)
    _, student = made("transformer")
    assert student.get_layer("exit1_features").output.shape == (None, 8)
    student = kd.attach_exits(nested(), ["middle/body/stem"], features="features")
    assert student.get_layer("exit1_features").output.shape == (None, 6)


@pytest.mark.parametrize("bottleneck", ["conv", "separable"])
def test_maps_are_shrunk_once_for_each_stage_to_come(bottleneck):
    network = resnet()
    student = kd.attach_exits(network, ["stage1", "stage2"], bottleneck=bottleneck, seed=0)
    last = {"conv": "conv3", "separable": "conv2"}[bottleneck]
    assert student.get_layer(f"exit1_{last}").output.shape == (None, 2, 2, 8)
    last = {"conv": "conv3", "separable": "conv1"}[bottleneck]
    assert student.get_layer(f"exit2_{last}").output.shape == (None, 2, 2, 8)
    student = kd.attach_exits(network, ["stage1"], reductions=[8], bottleneck=bottleneck)
    last = "conv3"
    assert student.get_layer(f"exit1_{last}").output.shape == (None, 1, 1, 8)


def test_conv_exits_have_the_weights_of_the_formula():
    network = kd.models.resnet18((32, 32, 3), 100)
    student = kd.attach_exits(network, ["stage1", "stage2", "stage3"])
    expected = 0
    for channels, k in ((64, 8), (128, 4), (256, 2)):
        middle, width = 128, 512
        expected += channels * middle + k * k * middle**2 + middle * width
        expected += 4 * (2 * middle + width) + (width + 1) * 100
    assert student.count_params() - network.count_params() == expected


@pytest.mark.core
def test_the_mean_is_that_of_the_probabilities():
    network, student = made("perceptron")
    x = inputs_of(network)
    said = {key: array(value) for key, value in student(x).items()}
    for keys in (None, ["exit1", "last"]):
        mean = array(kd.models.mean_output(student, keys)(x))
        expected = np.mean([reference.softmax(said[key]) for key in keys or said], axis=0)
        np.testing.assert_allclose(np.exp(mean), expected, rtol=1e-5)


def test_exits_repeat_with_their_seed_and_differ_from_each_other():
    weights = [made("perceptron")[1].get_layer("exit1_dense").get_weights()[0] for _ in range(2)]
    np.testing.assert_array_equal(*weights)
    other = kd.attach_exits(mlp(), ["stage1"], seed=2).get_layer("exit1_dense").get_weights()[0]
    assert np.abs(weights[0] - other).max() > 1e-3


@keras.saving.register_keras_serializable("tests")
class Masked(Encoder):
    """An encoder that takes more than one tensor."""

    def call(self, inputs, weights=None, shift=0.0):
        return super().call(inputs * weights + shift)


def test_composite_layers_may_take_several_tensors(tmp_path):
    inputs, weights = keras.Input((5, 3)), keras.Input((5, 3))

    def network_of(**kwargs):
        h = Masked(name="encoder")(inputs, weights=weights, **kwargs)
        h = layers.GlobalAveragePooling1D()(h)
        return keras.Model([inputs, weights], layers.Dense(CLASSES)(h))

    with pytest.raises(ValueError, match="more than tensors. Name 'encoder' itself"):
        kd.attach_exits(network_of(shift=0.5), ["encoder/block1"])
    network = network_of()
    student = kd.attach_exits(network, ["encoder/block1"], seed=0)
    x = [np.random.default_rng(seed).normal(size=(4, 5, 3)).astype("float32") for seed in (0, 1)]
    np.testing.assert_array_equal(array(student(x)["last"]), array(network(x)))
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(array(loaded(x)["exit1"]), array(student(x)["exit1"]))


def test_masks_go_into_composite_layers_as_before():
    inputs = keras.Input((5,), dtype="int32")
    h = layers.Embedding(4, 6, mask_zero=True, name="embedding")(inputs)
    h = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")(h)
    network = keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(h)))
    student = kd.attach_exits(network, ["both/forward_lstm"], seed=0)
    x = np.array([[1, 2, 3, 0, 0], [3, 0, 0, 0, 0]])
    np.testing.assert_allclose(array(student(x)["last"]), array(network(x)), atol=1e-6)


def test_the_layers_of_a_composite_layer_keep_their_paths():
    network, student = made("composite")
    x = inputs_of(network)
    for path in ("encoder", "encoder/block2/inner"):
        own, other = (array(kd.tap(m, [path])(x)[path]) for m in (network, student))
        np.testing.assert_array_equal(own, other)


def test_a_composite_layer_computes_in_its_own_precision():
    network = encoder_network()
    keras.config.set_dtype_policy("mixed_float16")
    student = kd.attach_exits(network, ["encoder/block1"], seed=0)
    x = inputs_of(network)
    np.testing.assert_array_equal(array(student(x)["last"]), array(network(x)))


# What learns from what ------------------------------------------------------------------------


def linear_network(seed=0):
    """A linear network with one exit, all without biases: `(model, names of its layers)`."""
    options = {"use_bias": False}
    inputs = keras.Input((FEATURES,))
    h = layers.Dense(5, name="trunk", **options)(inputs)
    exit1 = layers.Dense(4, name="exit_bottleneck", **options)(h)
    exit1 = layers.Dense(CLASSES, name="exit_logits", **options)(exit1)
    last = layers.Dense(4, name="body", **options)(h)
    last = layers.Dense(CLASSES, name="logits", **options)(last)
    model = keras.Model(inputs, {"exit1": exit1, "last": last})
    random = np.random.default_rng(seed)
    model.set_weights([random.normal(size=w.shape) / 2 for w in model.get_weights()])
    return model


def step_by_hand(weights, x, y, teacher, use, rate):
    """One step of SGD in float64 by the rules of the chain."""
    names = ("trunk", "exit_bottleneck", "exit_logits", "body", "logits")
    w, a, b, c, d = (weights[name] for name in names)
    size, targets = len(x), reference.one_hot(y, CLASSES)
    h = x @ w
    f1, f = h @ a, h @ c
    z1, z = f1 @ b, f @ d
    t = use.temperature
    dz1 = use.labels * (reference.softmax(z1) - targets)
    dz1 += use.soft * t * (reference.softmax(z1, t) - reference.softmax(z, t))
    dz = (1.0 if teacher is None else 1.0 - use.teacher) * (reference.softmax(z) - targets)
    if teacher is not None:
        t = use.teacher_temperature
        soft = reference.softmax(z, t) - reference.softmax(x @ teacher, t)
        dz += use.teacher * t * soft
    df1 = dz1 @ b.T + use.hint * 2 * (f1 - f) / f.shape[-1]
    # What teaches is constant: nothing of the exit's terms reaches `body` and `logits`.
    df = dz @ d.T
    gradients = {
        "exit_logits": f1.T @ dz1,
        "exit_bottleneck": h.T @ df1,
        "logits": f.T @ dz,
        "body": h.T @ df,
        "trunk": x.T @ (df1 @ a.T + df @ c.T),
    }
    return {name: weights[name] - rate * gradients[name] / size for name in weights}


@pytest.mark.core
@pytest.mark.parametrize("taught", [False, True])
def test_three_steps_are_those_of_the_formula_by_hand(taught):
    model = linear_network()
    teacher, kernel = None, None
    if taught:
        teacher = keras.Sequential(
            [keras.Input((FEATURES,)), layers.Dense(CLASSES, use_bias=False)]
        )
        kernel = array(teacher.get_weights()[0]).astype("float64")
    names = ["teacher"] if taught else []
    edges, weights = wirings.own_exits(model, teachers=names, soft=0.6, hint=2.0)
    use = wirings.ExitWeights(soft=0.6, hint=2.0)
    hand = {layer.name: layer.get_weights()[0].astype("float64") for layer in model.layers[1:]}
    distiller = kd.Distiller(student=model, teacher=teacher, transfers=edges)
    distiller.compile(keras.optimizers.SGD(0.3), support.crossentropy(), loss_weights=weights)
    x, y = support.data(24)
    distiller.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    for start in (0, 8, 16):
        part = slice(start, start + 8)
        hand = step_by_hand(hand, x[part].astype("float64"), y[part], kernel, use, 0.3)
    for name, expected in hand.items():
        np.testing.assert_allclose(model.get_layer(name).get_weights()[0], expected, atol=2e-6)


@pytest.mark.core
def test_what_teaches_the_exits_does_not_learn_from_it():
    network, student = made("resnet")
    edges, weights = wirings.own_exits(student, labels=0.0, last_labels=0.0)
    distiller = kd.Distiller(student=student, transfers=edges)
    distiller.compile(keras.optimizers.SGD(0.1), support.crossentropy(), loss_weights=weights)
    before = {v.path: array(v) for v in student.trainable_variables}
    x, y = support.images(8)
    distiller.fit(x, y, batch_size=4, verbose=0)
    moved = {v.path for v in student.trainable_variables if np.any(before[v.path] != array(v))}
    # The trunk learns from the exits, the last stage and the classifier from nothing.
    assert any("stage2" in path for path in moved) and any("exit2" in path for path in moved)
    assert not any(path.startswith(("stage3", "logits")) for path in moved)


def test_weights_beyond_one_leave_the_labels_alone():
    _, student = made("perceptron")
    edges, weights = wirings.own_exits(student, teachers="teacher", teacher=3.0)
    assert weights == {"exit1": 0.7, "exit2": 0.7, "last": 0.1}
    assert float(array(edges[-1].weight)) == 3.0
    _, weights = wirings.own_exits(student, "luanyunteng", teachers=["a", "b"])
    assert weights["last"] == 0.9


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_snapshot_of_a_network_with_exits_teaches_one_of_them():
    x, y = support.data(16)
    _, student = made("perceptron")
    old = kd.sources.Snapshot(student)
    read = {"source": "old", "source_layer": "last", "student_layer": "exit1"}
    edge = kd.Transfer(kd.losses.SoftTargets(1.0), **read)
    distiller = kd.Distiller(student=student, teacher={"old": old}, transfers=[edge])
    distiller.compile(keras.optimizers.SGD(0.0), None)
    often = kd.callbacks.PeriodicTeacher(1)
    history = distiller.fit(x, y, epochs=2, batch_size=16, callbacks=[often], verbose=0).history
    # In the first epoch it teaches the labels, in the second what the weights at its end say.
    said = {key: array(value) for key, value in student(x, training=True).items()}
    first = -np.mean(reference.log_softmax(said["exit1"])[np.arange(16), y])
    assert history["soft_targets"][0] == pytest.approx(first, rel=1e-4)
    assert 0 < history["soft_targets"][1] != pytest.approx(first, rel=0.1)


@pytest.mark.core
def test_deep_supervision_is_plain_keras_to_the_bit():
    x, y = support.images(12)

    def trained(distil):
        keras.utils.set_random_seed(0)
        _, student = made("resnet")
        edges, weights = wirings.own_exits(student, "deep_supervision", labels=0.5)
        assert not edges
        model = kd.Distiller(student=student, transfers=edges) if distil else student
        label_loss = support.crossentropy()
        losses = label_loss if distil else dict.fromkeys(student.output, label_loss)
        model.compile(keras.optimizers.SGD(0.1, 0.9), losses, loss_weights=weights)
        labels = y if distil else dict.fromkeys(student.output, y)
        support.fit(model, x, labels, batch_size=4)
        return support.arrays(student)

    for ours, plain in zip(trained(True), trained(False), strict=True):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("teachers", [1, 2])
def test_everything_runs_once_in_a_step(teachers):
    passes = []

    @keras.saving.register_keras_serializable("tests")
    class Spy(layers.Layer):
        def call(self, inputs):
            passes.append(self.name)
            return inputs

    def spied(model, name):
        inputs = keras.Input((8, 8, 1))
        return keras.Model(inputs, model(Spy(name=name)(inputs)))

    network = spied(resnet(), "own")
    student = kd.attach_exits(network, [f"{network.layers[-1].name}/stage1"], seed=0)
    found = {f"teacher{k}": spied(resnet(k), f"spy{k}") for k in range(1, teachers + 1)}
    edges, weights = wirings.own_exits(student, teachers=list(found))
    distiller = kd.Distiller(student=student, teacher=found, transfers=edges)
    distiller.compile(
        "sgd", support.crossentropy(), loss_weights=weights, run_eagerly=True, metrics=["accuracy"]
    )
    x, y = support.images(4)
    distiller.train_on_batch(x, y)
    passes.clear()
    distiller.train_on_batch(x, y)
    assert sorted(passes) == ["own", *(f"spy{k}" for k in range(1, teachers + 1))]


@pytest.mark.core
def test_logs_show_each_exit_and_each_transfer():
    _, student = made("perceptron")
    edges, weights = wirings.own_exits(student)
    distiller = kd.Distiller(student=student, transfers=edges)
    distiller.compile(
        "sgd",
        support.crossentropy(),
        loss_weights=weights,
        metrics=[keras.metrics.SparseCategoricalAccuracy("right")],
    )
    x, y = support.data(20)
    history = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    names = ("exit1", "exit2", "last")
    assert {f"val_{name}_right" for name in names} <= set(history)
    assert {"exit1_soft_targets", "exit1_features", "exit2_soft_targets"} <= set(history)
    measured = distiller.evaluate(x, y, return_dict=True, verbose=0)
    total = sum(weights[name] * measured[f"{name}_loss"] for name in names)
    assert measured["loss"] == pytest.approx(total, rel=1e-5)
    said = student.predict(x, verbose=0)
    right = np.mean(np.argmax(said["exit1"], axis=-1) == y)
    assert measured["exit1_right"] == pytest.approx(right)


@pytest.mark.core
def test_a_saved_run_goes_on_to_the_bit(tmp_path):
    x, y = support.data(24)
    _, student = made("perceptron")
    edges, weights = wirings.own_exits(student)
    distiller = kd.Distiller(student=student, transfers=edges)
    distiller.compile("adam", support.crossentropy(), loss_weights=weights, metrics=["accuracy"])
    support.fit(distiller, x, y, shuffle=False)
    distiller.save(tmp_path / "run.keras")
    loaded = keras.models.load_model(tmp_path / "run.keras")
    support.fit(distiller, x, y, shuffle=False)
    support.fit(loaded, x, y, shuffle=False)
    for first, second in zip(support.arrays(distiller), support.arrays(loaded), strict=True):
        np.testing.assert_array_equal(first, second)


def test_two_replicas_update_like_one(two_replicas):
    x, y = support.data(16)

    def trained(scope):
        with scope:
            model = linear_network()
            edges, weights = wirings.own_exits(model, hint=1.0)
            distiller = kd.Distiller(student=model, transfers=edges)
            distiller.compile(
                keras.optimizers.SGD(0.1), support.crossentropy(), loss_weights=weights
            )
        history = distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
        return support.arrays(model), history

    (one, first), (two, second) = trained(contextlib.nullcontext()), trained(two_replicas.scope())
    assert support.largest_difference(one, two) < 1e-6
    for name in ("loss", "exit1_soft_targets", "exit1_features"):
        assert first[name] == pytest.approx(second[name], rel=1e-5)


def test_half_precision_networks_have_exits_in_float32():
    keras.config.set_dtype_policy("mixed_float16")
    network = resnet()
    student = kd.attach_exits(network, ["stage1"], seed=0)
    assert {str(value.dtype) for value in student.output.values()} == {"float32"}
    edges, weights = wirings.own_exits(student)
    distiller = kd.Distiller(student=student, transfers=edges)
    distiller.compile("sgd", support.crossentropy(), loss_weights=weights)
    history = distiller.fit(*support.images(8), verbose=0).history
    assert np.isfinite(history["loss"][0])


@pytest.mark.tensorflow
def test_the_exported_file_has_no_trace_of_exits_or_teachers(tmp_path):
    def exported(model, name):
        kd.export.litert(model, tmp_path / f"{name}.tflite")
        return kd.export.inspect(tmp_path / f"{name}.tflite")

    network = resnet()
    student = kd.attach_exits(network, ["stage1", "stage2"], seed=0)
    edges, weights = wirings.own_exits(student, teachers=["teacher"])
    distiller = kd.Distiller(student=student, teacher=resnet(3), transfers=edges)
    distiller.compile("sgd", support.crossentropy(), loss_weights=weights)
    distiller.fit(*support.images(8), verbose=0)
    never_had_exits = resnet(5)
    never_had_exits.set_weights(network.get_weights())
    plain = exported(never_had_exits, "plain")
    for name, model in (("after", network), ("last", kd.models.single_output(student, "last"))):
        file = exported(model, name)
        assert (file.ops, file.tensor_bytes) == (plain.ops, plain.tensor_bytes)
        assert b"exit1" not in (tmp_path / f"{name}.tflite").read_bytes()
    early = exported(kd.models.single_output(student, "exit1"), "exit1")
    assert early.ops["CONV_2D"] == 6 < plain.ops["CONV_2D"]


# What is refused ------------------------------------------------------------------------------


def with_softmax():
    inputs = keras.Input((FEATURES,))
    h = layers.Dense(4, name="hidden")(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES, "softmax")(h))


REFUSED = {
    "no layer": (mlp, {"layers": []}, "list of different paths"),
    "one string": (mlp, {"layers": "stage1"}, "`layers` of attach_exits must be a list of texts"),
    "a layer twice": (mlp, {"layers": ["stage1", "stage1"]}, "list of different paths"),
    "an unknown layer": (mlp, {"layers": ["stage3"]}, "no layer 'stage3'.*stage"),
    "a bottleneck": (resnet, {"bottleneck": "dense"}, "`bottleneck` must be one of"),
    "too many reductions": (resnet, {"reductions": [2, 2]}, "for each of 1 layers"),
    "a reduction of 0": (resnet, {"reductions": [0]}, "whole number of 1 or more"),
    "a reduction beyond the map": (resnet, {"reductions": [16]}, "to the side of each map"),
    "a third": (resnet, {"reductions": [3], "bottleneck": "separable"}, "power of 2"),
    "maps as features": (resnet, {"features": "stage3"}, "what the last classifier reads"),
    "probabilities": (with_softmax, {"layers": ["hidden"]}, "as_logits"),
    "no graph": (support.Subclassed, {}, "functional or built sequential"),
    "reductions as a number": (resnet, {"reductions": 2}, "`reductions` must be a list"),
    "probabilities with features": (
        with_softmax,
        {"layers": ["hidden"], "features": "hidden"},
        "ends in a softmax",
    ),
    "the input": (mlp, {"layers": ["inputs"]}, "not its input"),
    "a negative seed": (mlp, {"seed": -1}, "`seed` of attach_exits must be an integer >= 0"),
}


def named(inner, last):
    inputs = keras.Input((FEATURES,))
    h = layers.Dense(4, name=inner)(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES, name=last)(h))


@pytest.mark.parametrize(
    "inner, last", [("last", "logits"), ("exit1", "logits"), ("h", "exit1"), ("h", "exit2_dense")]
)
def test_names_that_stand_for_outputs_are_refused(inner, last):
    with pytest.raises(ValueError, match="names of the result's outputs"):
        kd.attach_exits(named(inner, last), [inner])
    assert "exit1" in kd.attach_exits(named("h", "last"), ["h"]).output


def test_names_that_are_taken_in_a_nested_model_are_refused():
    inputs = keras.Input((8, 8, 1))
    h = layers.GlobalAveragePooling2D(name="top")(backbone()(inputs))
    network = keras.Model(inputs, layers.Dense(CLASSES)(h))
    with pytest.raises(ValueError, match="different names.*'top'"):
        kd.attach_exits(network, ["body/stem"])


def test_a_layer_that_returns_a_dict_is_refused():
    inputs = keras.Input((8, 8, 1))
    h = layers.Conv2D(3, 1, name="conv")(inputs)
    pyramid = keras.Model(inputs, {"low": h, "high": layers.MaxPool2D()(h)}, name="pyramid")
    h = layers.GlobalAveragePooling2D()(pyramid(inputs)["high"])
    network = keras.Model(inputs, layers.Dense(CLASSES)(h))
    with pytest.raises(ValueError, match="keys \\['high', 'low'\\]"):
        kd.attach_exits(network, ["pyramid"])
    student = kd.attach_exits(network, ["pyramid/conv"], seed=0)
    x = inputs_of(network)
    np.testing.assert_array_equal(array(student(x)["last"]), array(network(x)))


def test_one_output_that_is_a_softmax_is_refused_where_logits_are_read():
    inputs = keras.Input((FEATURES,))
    outputs = {"a": layers.Dense(CLASSES)(inputs), "b": layers.Dense(CLASSES, "softmax")(inputs)}
    student = keras.Model(inputs, outputs)
    read = {"source": "student", "source_layer": "b", "student_layer": "a"}
    with pytest.raises(ValueError, match="probabilities"):
        kd.Distiller(student=student, transfers=[kd.Transfer(kd.losses.SoftTargets(), **read)])


def test_metrics_by_output_go_to_keras_as_they_are():
    _, student = made("perceptron")
    distiller = kd.Distiller(student=student, transfers=[])
    distiller.compile("sgd", support.crossentropy(), metrics=[["accuracy"], [], []])
    history = distiller.fit(*support.data(8), verbose=0).history
    assert [key for key in history if "accuracy" in key] == ["exit1_accuracy"]


@pytest.mark.parametrize("keys", ["last", [], ["exit3"]])
def test_the_mean_needs_some_known_outputs(keys):
    _, student = made("perceptron")
    with pytest.raises((ValueError, TypeError), match="Received: "):
        kd.models.mean_output(student, keys)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exits_is_refused_with_a_way_out(name):
    make, arguments, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        kd.attach_exits(make(), **{"layers": ["stage1"], **arguments})


def test_a_layer_that_runs_twice_is_refused():
    inputs = keras.Input((FEATURES,))
    twice = layers.Dense(FEATURES, name="twice")
    network = keras.Model(inputs, layers.Dense(CLASSES)(twice(twice(inputs))))
    with pytest.raises(ValueError, match="runs 2 times"):
        kd.attach_exits(network, ["twice"])


def test_exits_are_attached_once():
    _, student = made("perceptron")
    with pytest.raises(ValueError, match="has exits already"):
        kd.attach_exits(kd.models.single_output(student, "exit1"), ["stage1"])


def test_the_wiring_needs_exits_and_known_numbers():
    with pytest.raises(ValueError, match="attach_exits"):
        wirings.own_exits(mlp())
    _, student = made("perceptron")
    with pytest.raises(ValueError, match="`preset` must be one of"):
        wirings.own_exits(student, "paper")
    with pytest.raises(TypeError, match="alpha"):
        wirings.own_exits(student, alpha=0.1)
    for wrong in ({"temperature": 0.0}, {"labels": -1.0}, {"soft": None}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            wirings.own_exits(student, **wrong)
    with pytest.raises(TypeError, match="names of the distiller's teachers"):
        wirings.own_exits(student, teachers=[mlp()])


def test_features_that_cannot_be_found_must_be_named():
    inputs = keras.Input((FEATURES,))
    h = layers.Dense(4, name="hidden")(inputs)
    h = layers.Dense(5, "relu", name="features")(h)
    last = layers.Activation("linear", name="cast")(layers.Dense(CLASSES)(h))
    network = keras.Model(inputs, last)
    with pytest.raises(ValueError, match="Say with `features`"):
        kd.attach_exits(network, ["hidden"])
    student = kd.attach_exits(network, ["hidden"], features="features")
    with pytest.raises(ValueError, match="Say with `features`"):
        wirings.own_exits(student)
    edges, _ = wirings.own_exits(student, features="features")
    kd.Distiller(student=student, transfers=edges)
    assert edges[1].source_layer == "features"


@pytest.mark.core
@pytest.mark.parametrize("preset", wirings.EXIT_PRESETS)
def test_presets_have_the_weights_of_their_sources(preset):
    _, student = made("perceptron")
    edges, weights = wirings.own_exits(student, preset)
    found = {edge.name: float(array(edge.weight)) for edge in edges}
    labels, last, soft, hint = {
        "byot": (0.7, 1.0, 0.3, 0.03),
        # A sum over 128 examples and 512 features, times 1e-6, as a mean.
        "luanyunteng": (0.9, 0.9, 0.1, round(1e-6 * 128 * 512, 3)),
        "self_kd_lib": (1.0, 1.0, 1.0, 0.05),
        "deep_supervision": (1.0, 1.0, None, None),
    }[preset]
    assert weights == {"exit1": labels, "exit2": labels, "last": last}
    assert found.get("exit2_soft_targets") == pytest.approx(soft)
    assert found.get("exit1_features") == pytest.approx(hint)


def test_unknown_outputs_in_loss_weights_are_refused():
    _, student = made("perceptron")
    distiller = kd.Distiller(student=student, transfers=[])
    with pytest.raises(ValueError, match="Received also: \\['exit9'\\]"):
        distiller.compile("sgd", support.crossentropy(), loss_weights={"exit9": 1.0})
