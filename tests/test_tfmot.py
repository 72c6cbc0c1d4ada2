"""tensorflow-model-optimization as a neighbour: what crosses, trains, comes back and is refused."""

import copy
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdtoolkit as kd
from kdtoolkit import tfmot
from tests.support import arrays, conv, crossentropy, data, dense, fit

pytestmark = pytest.mark.tensorflow


def run(model, x):
    """All outputs of a model of either package, as float64."""
    outputs = keras.tree.flatten(model(x, training=False))
    return [np.asarray(tensor, "float64") for tensor in outputs]


def assert_same(first, second, x, atol=1e-6):
    for a, b in zip(run(first, x), run(second, x), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def sequential(*parts, shape=(6,)):
    return keras.Sequential([keras.Input(shape), *parts])


@keras.saving.register_keras_serializable("tests")
class PlusOne(layers.Layer):
    def call(self, inputs):
        return inputs + 1


@keras.saving.register_keras_serializable("tests")
def own_activation(x):
    return ops.relu(x)


@keras.saving.register_keras_serializable("tests")
class Inner(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


# The process ----------------------------------------------------------------------------------


def test_loading_leaves_the_process_and_its_children_as_they_were():
    code = """
import os, subprocess, sys
import kdtoolkit as kd
from kdtoolkit import tfmot
assert "tensorflow_model_optimization" not in sys.modules and "tf_keras" not in sys.modules
assert tfmot.load().__name__ == "tensorflow_model_optimization"
import keras, tensorflow as tf
assert tf.keras.Model is keras.Model
assert "TF_USE_LEGACY_KERAS" not in os.environ
child = "import os, sys; sys.exit('TF_USE_LEGACY_KERAS' in os.environ)"
sys.exit(subprocess.run([sys.executable, "-c", child]).returncode)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_variable_that_was_set_keeps_its_value(monkeypatch):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")
    monkeypatch.setattr(tfmot.loading, "require", _setting(monkeypatch, tfmot.loading.require))
    tfmot.load()
    assert __import__("os").environ["TF_USE_LEGACY_KERAS"] == "0"


def _setting(monkeypatch, require):
    def again(module):
        # The package sets the variable at its first import alone.
        monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
        return require(module)

    def first(module):
        return again(module) if module == "tensorflow_model_optimization" else require(module)

    return first


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_model_optimization", None)
    with pytest.raises(ImportError, match=r'pip install "kdtoolkit\[tfmot\]"'):
        tfmot.load()


# To tf_keras ----------------------------------------------------------------------------------


def test_nested_models_shared_layers_operations_and_dicts_cross():
    inner = sequential(layers.Dense(4, "gelu"), name_of := layers.Dense(6), shape=(6,))
    first, second = keras.Input((6,), name="first"), keras.Input((6,), name="second")
    shared = layers.Dense(6, "relu", kernel_regularizer="l2", name="shared")
    h = inner(shared(first)) + shared(second)
    h = ops.reshape(ops.relu(1.0 - 2.0 * h), (-1, 2, 3))
    outputs = {"sum": layers.Flatten()(h) - first, "inner": inner(first)}
    model = keras.Model({"first": first, "second": second}, outputs)
    twin = tfmot.to_tf_keras(model)
    x = {name: data(5, seed)[0] for seed, name in enumerate(("first", "second"))}
    assert set(twin(x)) == {"sum", "inner"}
    assert_same(model, twin, x)
    # Each shared weight is there once.
    assert twin.count_params() == model.count_params()
    assert np.allclose(twin.losses[0], model.losses[0])
    assert name_of.name in [layer.name for layer in twin.get_layer(inner.name).layers]


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.DepthwiseConv2D(3),
        lambda: layers.SeparableConv2D(4, 3),
        lambda: layers.LeakyReLU(0.1),
        lambda: layers.GroupNormalization(2),
        lambda: layers.TimeDistributed(layers.Dense(2)),
        lambda: layers.Normalization(mean=[1.0] * 4, variance=[4.0] * 4),
        lambda: layers.Dense(2, kernel_constraint=keras.constraints.MaxNorm(1.0)),
        lambda: layers.Conv2D(2, 3, dtype="mixed_float16"),
    ],
)
def test_a_layer_has_its_twin(make):
    # Whether they compute the same is checked inside.
    model = sequential(make(), shape=(6, 6, 4))
    assert tfmot.to_tf_keras(model).layers[-1].name == model.layers[-1].name


def test_attention_and_masks_cross():
    tokens = keras.Input((5,), dtype="int32")
    h = layers.Embedding(4, 6, mask_zero=True)(tokens)
    h = layers.LSTM(6, return_sequences=True)(h)
    h = layers.MultiHeadAttention(2, 3)(h, h, use_causal_mask=True)
    model = keras.Model(tokens, layers.LayerNormalization()(h))
    ids = np.random.default_rng(0).integers(0, 4, (8, 5))
    assert_same(model, tfmot.to_tf_keras(model), ids, atol=1e-5)


def test_a_recorded_training_is_not_replayed():
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, layers.RandomFlip()(inputs, training=True))
    twin = tfmot.to_tf_keras(model)
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 1))
    np.testing.assert_allclose(run(twin, x)[0], x, atol=1e-6)


def test_the_original_is_not_touched():
    model = dense()
    before, output = arrays(model), model.get_layer("hidden").output
    twin = tfmot.to_tf_keras(model)
    twin.set_weights([2 * w for w in twin.get_weights()])
    assert all((a == b).all() for a, b in zip(before, arrays(model), strict=True))
    # A layer that had been called again would have several outputs.
    assert model.get_layer("hidden").output is output


def test_all_that_cannot_cross_is_named_at_once():
    inputs = keras.Input((6,))
    inner = Inner(name="inner")
    h = inner(PlusOne(name="custom")(inputs))
    h = layers.RMSNormalization(name="rms")(h)
    h = layers.Activation("hard_silu", name="silu")(h)
    h = layers.Activation("hard_sigmoid", name="sigmoid")(h)
    h = layers.Dense(2, activation=own_activation, name="own")(ops.cumsum(h, axis=-1))
    with pytest.raises(ValueError) as caught:
        tfmot.to_tf_keras(keras.Model(inputs, sequential(PlusOne(name="deep"), shape=(2,))(h)))
    message = str(caught.value)
    for name in ("'custom'", "'inner'", "'rms'", "'silu'", "'sigmoid'", "'own'", "/deep'"):
        assert name in message
    assert "Cumsum" in message and "a subclassed model" in message


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (lambda: 3, TypeError),
        (lambda: keras.Sequential([layers.Dense(2)]), ValueError),
        (lambda: sequential(layers.Lambda(lambda x: x)), ValueError),
    ],
)
def test_what_is_no_built_model_of_layers_is_refused(model, error):
    with pytest.raises(error, match="Received"):
        tfmot.to_tf_keras(model())


def test_a_custom_layer_crosses_by_its_twin_and_a_wrong_twin_is_noticed():
    rescaling = pytest.importorskip("tf_keras").layers.Rescaling
    model = sequential(PlusOne(name="plus"), layers.Dense(2))
    twins = {PlusOne: lambda layer: rescaling(1.0, 1.0, name=layer.name)}
    assert_same(model, tfmot.to_tf_keras(model, twins=twins), data()[0])
    twins = {PlusOne: lambda layer: rescaling(1.0, 1.01, name=layer.name)}
    with pytest.raises(ValueError, match="computes something else"):
        tfmot.to_tf_keras(model, twins=twins)
    tfmot.to_tf_keras(model, twins=twins, tolerance=0.1)


# Students --------------------------------------------------------------------------------------


def distil(tf_keras_model, callbacks=(), epochs=2):
    """Train a tf_keras model with a Keras 3 teacher; `(distiller, what moved)`."""
    student = tfmot.Student(tf_keras_model)
    before = {v.name: v.numpy().copy() for v in tf_keras_model.weights}
    distiller = kd.Distiller(student=student, teacher=dense(16, 1))
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy(), metrics=["accuracy"])
    callbacks = [make(student) for make in callbacks]
    fit(distiller, *data(), epochs=epochs, callbacks=callbacks)
    moved = {v.name for v in tf_keras_model.weights if (v.numpy() != before[v.name]).any()}
    return distiller, moved


def test_one_step_is_that_of_tf_keras():
    tf_keras = tfmot.loading.load_tf_keras()
    model, (x, y) = dense(l2=0.01), data()
    twins = [tfmot.to_tf_keras(model) for _ in range(2)]
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    twins[0].compile(tf_keras.optimizers.SGD(0.1), loss)
    value = twins[0].train_on_batch(x, y)
    student = kd.Distiller(student=tfmot.Student(twins[1]), label_weight=1.0)
    student.compile(keras.optimizers.SGD(0.1), crossentropy())
    assert student.train_on_batch(x, y)[0] == pytest.approx(value, rel=1e-5)
    for a, b in zip(twins[0].weights, twins[1].weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6, err_msg=a.name)


def test_frozen_layers_constraints_and_activity_losses_are_those_of_tf_keras():
    regularizer = keras.regularizers.L2(0.1)
    model = sequential(
        layers.Dense(4, trainable=False, activity_regularizer=regularizer, name="frozen"),
        layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(0.3), name="tight"),
    )
    twin = tfmot.to_tf_keras(model)
    x = data()[0]
    student = tfmot.Student(twin)
    student(x), model(x)
    assert [float(loss) for loss in student.losses] == pytest.approx(
        [float(loss) for loss in model.losses]
    )
    _, moved = distil(twin)
    assert moved == {"tight/kernel:0", "tight/bias:0"}
    norms = np.linalg.norm(twin.get_layer("tight").kernel.numpy(), axis=0)
    assert norms.max() <= 0.3 + 1e-5


def test_a_pruned_student_learns_is_stripped_and_comes_back():
    model = dense(dropout=0.2)
    pruned = tfmot.prune(model, 0.5, end_step=6, frequency=1, skip=["logits"])
    distiller, moved = distil(pruned, [tfmot.PruningStep])
    # The count goes on in another fit: 40 examples in batches of 16, 3 epochs.
    fit(distiller, *data(), epochs=1, callbacks=[tfmot.PruningStep(distiller.student)])
    assert [int(v) for v in pruned.weights if "pruning_step" in v.name] == [9]
    assert {"norm/moving_mean:0", "hidden/kernel:0", "logits/kernel:0"} <= moved
    plain = tfmot.strip(pruned)
    kernel = plain.get_layer("hidden").kernel.numpy()
    assert np.mean(kernel == 0) == 0.5
    assert np.all(plain.get_layer("logits").kernel.numpy() != 0)
    tfmot.copy_weights(plain, model)
    assert (model.get_layer("hidden").kernel.numpy() == kernel).all()
    x = data()[0]
    np.testing.assert_allclose(run(model, x)[0], distiller.predict(x, verbose=0), atol=1e-6)


def test_a_clustered_student_keeps_few_values_and_learns_its_statistics():
    model = dense()
    clustered = tfmot.cluster(model, 4)
    _, moved = distil(clustered)
    assert {"norm/moving_mean:0", "cluster_hidden/cluster_centroids_kernel:0"} <= moved
    plain = tfmot.strip(clustered)
    assert len(np.unique(plain.get_layer("hidden").kernel.numpy())) <= 4
    # What was stripped is still whole.
    x = data()[0]
    assert_same(plain, clustered, x)
    tfmot.copy_weights(plain, model)
    assert_same(plain, model, x)


def test_a_quantised_student_learns_its_ranges_and_stays_in_tf_keras():
    model = sequential(layers.Dense(4), layers.BatchNormalization(), layers.ReLU(), layers.Dense(3))
    quantised = tfmot.quantize(model)
    _, moved = distil(quantised)
    assert any(name.endswith("kernel_max:0") for name in moved)
    assert any(name.endswith("moving_mean:0") for name in moved)
    with pytest.raises(ValueError, match="can't go back"):
        tfmot.copy_weights(quantised, model)
    with pytest.raises(ValueError, match="can't be taken off"):
        tfmot.strip(quantised)


def test_a_model_that_is_not_pruned_has_no_pruning_steps():
    with pytest.raises(ValueError, match="must be pruned"):
        tfmot.PruningStep(tfmot.to_tf_keras(dense()))


def test_a_student_is_exported_but_neither_saved_nor_copied(tmp_path):
    student = tfmot.Student(tfmot.to_tf_keras(dense()))
    before = arrays(student)
    kd.Distiller(student=student, teacher=dense(16)).export(str(tmp_path / "exported"))
    assert (tmp_path / "exported" / "saved_model.pb").exists()
    for use in (copy.deepcopy, lambda s: s.save(tmp_path / "s.keras"), keras.models.clone_model):
        with pytest.raises(ValueError, match="student.model"):
            use(student)
    assert all((a == b).all() for a, b in zip(before, arrays(student), strict=True))


def test_a_variable_that_keras_would_copy_is_an_error(monkeypatch):
    twin = tfmot.to_tf_keras(dense())
    variable = keras.Variable
    monkeypatch.setattr(keras, "Variable", lambda v, **kwargs: variable(v.numpy(), **kwargs))
    with pytest.raises(RuntimeError, match=f"Keras {keras.__version__} makes a copy"):
        tfmot.Student(twin)


def test_another_backend_is_refused(monkeypatch):
    twin = tfmot.to_tf_keras(dense())
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
        tfmot.Student(twin)


def test_a_keras_3_model_is_no_student():
    with pytest.raises(TypeError, match="to_tf_keras"):
        tfmot.Student(dense())


# Copies and refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prune", "cluster", "quantize"])
def test_models_of_both_kinds_are_copied_before_they_are_wrapped(method):
    model = conv()
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    twin = tfmot.to_tf_keras(model)
    expected, weights = run(twin, x)[0], len(twin.weights)
    number = {"prune": [0.5], "cluster": [8], "quantize": []}[method]
    for given in (model, twin):
        wrapped = getattr(tfmot, method)(given, *number)
        assert any(map(tfmot.loading.is_wrapper, wrapped.layers))
        wrapped.set_weights([0 * w for w in wrapped.get_weights()])
    assert (run(twin, x)[0] == expected).all() and len(twin.weights) == weights
    np.testing.assert_allclose(run(model, x)[0], expected, atol=1e-6)


def test_layers_of_nested_models_are_pruned():
    model = sequential(sequential(layers.Dense(4, name="inner")), layers.Dense(2, name="outer"))
    pruned = tfmot.prune(model, 0.5)
    plain = tfmot.strip(pruned)
    tfmot.copy_weights(plain, model)
    assert_same(model, plain, data()[0])
    assert len([v for v in pruned.weights if "mask" in v.name]) == 2


@pytest.mark.parametrize(
    ("use", "match"),
    [
        (lambda m: tfmot.prune(m, 1.0), "sparsity"),
        (lambda m: tfmot.prune(m, 0.5, end_step=15, frequency=10), "last cut"),
        (lambda m: tfmot.prune(m, 0.5, skip=["nothing"]), "nothing"),
        (lambda m: tfmot.prune(m, 0.5, skip=["hidden", "logits"]), "no layer"),
        (lambda m: tfmot.prune(tfmot.prune(m, 0.5), 0.5), "plain one"),
        (lambda m: tfmot.cluster(m, 1), "clusters"),
        (lambda m: tfmot.strip(tfmot.to_tf_keras(m)), "has none"),
        (lambda m: tfmot.copy_weights(tfmot.prune(m, 0.5), m), "kd.tfmot.strip"),
        (lambda m: tfmot.copy_weights(tfmot.to_tf_keras(m), dense(9)), "'hidden'.*'norm'"),
        (lambda m: tfmot.copy_weights(tfmot.to_tf_keras(m), sequential()), "tf_keras alone"),
    ],
)
def test_mistakes_are_refused_by_name(use, match):
    with pytest.raises(ValueError, match=match):
        use(dense())


def test_what_tfmot_would_damage_or_does_not_know_is_refused_before_it_runs():
    active = sequential(layers.Dense(3, activity_regularizer="l2", name="active"))
    for use in (lambda m: tfmot.prune(m, 0.5), lambda m: tfmot.cluster(m, 4), tfmot.quantize):
        with pytest.raises(ValueError, match="'active'.*activity"):
            use(active)
    nested = keras.Sequential([keras.Input((6,)), layers.Dense(2)], name="b")
    unknown = sequential(layers.LayerNormalization(name="a"), nested)
    with pytest.raises(ValueError, match="'a'.*'b'"):
        tfmot.quantize(unknown)
    with pytest.raises(ValueError, match="BatchNormalization.*follows"):
        tfmot.quantize(dense())
    assert "norm" in [layer.name for layer in tfmot.quantize(dense(), skip=["norm"]).layers]
