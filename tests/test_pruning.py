"""Masks: exactly what was asked is zero, and stays so."""

import keras
import numpy as np
import pytest
from keras import layers

import kdtoolkit as kd
from tests.helpers import array
from tests.support import CLASSES, FEATURES, conv, data, dense, images

pytestmark = pytest.mark.core


def kernels(network):
    return {
        layer.name: layer.used()
        for layer in network.layers
        if isinstance(layer, kd.compress.Compressed)
    }


def zeros(network):
    return {row["layer"]: row["sparsity"] * row["size"] for row in kd.compress.summary(network)}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_each_kernel_loses_its_smallest_weights_and_exactly_as_many_as_asked(sparsity):
    network = dense(7)
    pruned = kd.compress.prune(network, sparsity)
    for name in ("hidden", "logits"):
        before, after = (
            array(network.get_layer(name).kernel),
            pruned.get_layer(name).used()["kernel"],
        )
        count = int(np.floor(sparsity * before.size + 0.5))
        order = np.argsort(np.abs(before).ravel())
        expected = before.ravel().copy()
        expected[order[:count]] = 0
        np.testing.assert_array_equal(after.ravel(), expected.astype("float32"))


def test_of_equal_weights_the_first_ones_go():
    network = keras.Sequential([keras.Input((4,)), layers.Dense(2, kernel_initializer="ones")])
    after = next(iter(kernels(kd.compress.prune(network, 0.5)).values()))["kernel"]
    np.testing.assert_array_equal(after.ravel(), [0, 0, 0, 0, 1, 1, 1, 1])


def test_all_kernels_compete_where_the_scope_is_global():
    network = dense(7)
    together = np.concatenate(
        [array(network.get_layer(n).kernel).ravel() for n in ("hidden", "logits")]
    )
    pruned = kd.compress.prune(network, 0.4, scope="global")
    after = np.concatenate([k["kernel"].ravel() for k in kernels(pruned).values()])
    limit = np.sort(np.abs(together))[int(np.floor(0.4 * together.size + 0.5)) - 1]
    np.testing.assert_array_equal(after != 0, np.abs(together) > limit)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 2), (1, 4)])
def test_of_m_weights_along_the_input_channels_the_n_largest_stay(pattern):
    n, m = pattern
    network = keras.Sequential(
        [
            keras.Input((5, 5, 8)),
            layers.Conv2D(3, 3),
            layers.Flatten(),
            layers.Dense(2, name="head"),
        ]
    )
    pruned = kd.compress.prune(
        network, (m - n) / m, pattern=pattern, layers=lambda layer: layer.name != "head"
    )
    before, after = array(network.layers[0].kernel), pruned.layers[1].used()["kernel"]
    for place in np.ndindex(3, 3, 8 // m, 3):
        y, x, group, channel = place
        rows = slice(group * m, (group + 1) * m)
        was, now = before[y, x, rows, channel], after[y, x, rows, channel]
        assert (now != 0).sum() == n
        np.testing.assert_array_equal(now != 0, np.abs(was) >= np.sort(np.abs(was))[-n])


def test_a_pattern_that_does_not_fit_names_the_kernels():
    with pytest.raises(ValueError, match=r"multiple of 4. Received: hidden/kernel \(6, 8\)"):
        kd.compress.prune(dense(8), 0.5, pattern=(2, 4))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_pruned_weights_stay_zero_whatever_the_optimizer_does(optimizer):
    rate = {"sgd": keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1)}
    pruned = kd.compress.prune(dense(8, l2=0.1), 0.5)
    before = kernels(pruned)
    pruned.compile(
        rate.get(optimizer, optimizer), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    pruned.fit(*data(), epochs=2, verbose=0)
    for name, after in kernels(pruned).items():
        was, now = before[name]["kernel"], after["kernel"]
        np.testing.assert_array_equal(was == 0, now == 0)
        assert np.abs(was - now).max() > 1e-3


def test_a_pruned_student_learns_from_a_teacher_as_the_masked_weights_would():
    """One step by hand: the gradient of the plain network at the masked weights, masked."""
    network, teacher = dense(4, norm=False), dense(8, 1)
    pruned = kd.compress.prune(network, 0.5)
    plain = kd.compress.strip(pruned)
    x, y = data()
    for student in (pruned, plain):
        distiller = kd.Distiller(
            student=student, teacher=teacher, transfers=[kd.Transfer(kd.losses.SoftTargets(2.0))]
        )
        distiller.compile(
            keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        distiller.fit(x, y, batch_size=40, epochs=1, shuffle=False, verbose=0)
    for name, used in kernels(pruned).items():
        mask = array(pruned.get_layer(name).changes[0].mask).astype(bool)
        free = array(plain.get_layer(name).kernel)
        np.testing.assert_allclose(used["kernel"], np.where(mask, free, 0), atol=1e-6)
        np.testing.assert_allclose(
            array(pruned.get_layer(name).layer.bias), array(plain.get_layer(name).bias), atol=1e-6
        )


def test_masks_are_saved_and_the_rest_of_training_goes_on_from_there(tmp_path):
    pruned = kd.compress.prune(dense(8), 0.5)
    pruned.save(tmp_path / "pruned.keras")
    loaded = keras.models.load_model(tmp_path / "pruned.keras")
    x, y = data()
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), pruned.predict(x, verbose=0))
    loaded.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    loaded.fit(x, y, verbose=0)
    assert zeros(loaded) == zeros(pruned)


def test_pruning_leaves_the_network_that_it_was_given_alone():
    network = dense(8)
    before = network.get_weights()
    outputs = network.get_layer("hidden").output
    pruned = kd.compress.prune(network, 0.5)
    pruned.compile("sgd", "mse")
    pruned.fit(np.ones((4, FEATURES)), np.ones((4, CLASSES)), verbose=0)
    for was, now in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    assert network.get_layer("hidden").output is outputs


def test_what_was_pruned_before_stays_pruned_and_counts():
    network = dense(8)
    first = kd.compress.prune(network, 0.25)
    second = kd.compress.prune(first, 0.5)
    for name, used in kernels(second).items():
        assert (used["kernel"] == 0).mean() == 0.5
        assert np.all(used["kernel"][kernels(first)[name]["kernel"] == 0] == 0)


def test_layers_are_chosen_by_name_or_function():
    network = conv()
    by_name = kd.compress.prune(network, 0.5, layers=["stage2"])
    by_function = kd.compress.prune(network, 0.5, layers=lambda layer: layer.name == "stage2")
    assert list(kernels(by_name)) == list(kernels(by_function)) == ["stage2"]


def test_weights_inside_attention_and_recurrent_layers_are_pruned():
    inputs = keras.Input((5, 8))
    h = layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    h = layers.Bidirectional(layers.LSTM(3), name="recurrent")(h)
    network = keras.Model(inputs, layers.Dense(2, name="head")(h))
    pruned = kd.compress.prune(network, 0.5)
    assert [len(used) for used in kernels(pruned).values()] == [4, 4, 1]
    assert all(row["sparsity"] == 0.5 for row in kd.compress.summary(pruned))
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
    plain = kd.compress.strip(pruned)
    np.testing.assert_allclose(pruned.predict(x, verbose=0), plain.predict(x, verbose=0), atol=1e-6)
    pruned.compile("adam", "mse")
    pruned.fit(x, np.ones((3, 2)), verbose=0)
    assert all(row["sparsity"] == 0.5 for row in kd.compress.summary(pruned))


def test_paths_inside_a_pruned_layer_are_read_as_before():
    inputs = keras.Input((5, 8))
    h = layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    network = keras.Model(inputs, layers.GlobalAveragePooling1D()(h))
    pruned = kd.compress.prune(network, 0.5)
    x = np.ones((2, 5, 8), "float32")
    paths = ["attention", "attention/query"]
    read = kd.tap(pruned, paths)(x)
    plain = kd.tap(kd.compress.strip(pruned), paths)(x)
    for path in paths:
        np.testing.assert_allclose(array(read[path]), array(plain[path]), atol=1e-6)


def test_statistics_inside_a_pruned_layer_follow_training():
    @keras.saving.register_keras_serializable("tests")
    class Block(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense, self.norm = layers.Dense(3), layers.BatchNormalization()

        def build(self, shape):
            self.dense.build(shape)
            self.norm.build((None, 3))

        def call(self, inputs, training=None):
            return self.norm(self.dense(inputs), training=training)

    network = keras.Sequential([keras.Input((4,)), Block(name="block")])
    pruned = kd.compress.prune(network, 0.5)
    pruned.compile("sgd", "mse")
    pruned.fit(np.random.default_rng(0).normal(size=(32, 4)) + 3, np.ones((32, 3)), verbose=0)
    assert np.abs(array(pruned.get_layer("block").layer.norm.moving_mean)).max() > 1e-3


# Little by little ---------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_the_schedule_is_the_formula(power):
    network = kd.compress.prune(dense(8), 0)
    gradual = kd.compress.GradualPruning(
        network, 0.8, begin_step=10, end_step=50, initial=0.2, power=power
    )
    expected = [0.8 + (0.2 - 0.8) * (1 - (t - 10) / 40) ** power for t in range(10, 51)]
    np.testing.assert_allclose([gradual.sparsity_at(t) for t in range(10, 51)], expected)
    assert (gradual.sparsity_at(9), gradual.sparsity_at(51)) == (0.0, 0.8)


class Watch(keras.callbacks.Callback):
    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, {}

    def on_train_batch_end(self, batch, logs=None):
        _ = self.model
        self.seen[int(self.model.optimizer.iterations)] = zeros(self.network)["hidden"]


@pytest.mark.parametrize("execution", [1, 3])
def test_a_network_is_pruned_at_the_steps_of_the_schedule(execution):
    network = kd.compress.prune(dense(8), 0)
    gradual = kd.compress.GradualPruning(network, 0.75, begin_step=2, end_step=8, every=2)
    watch = Watch(network)
    network.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=execution,
    )
    network.fit(*data(36), batch_size=6, epochs=2, verbose=0, callbacks=[gradual, watch])
    size = FEATURES * 8
    steps = {2: 2, 3: 2, 4: 4, 5: 4, 6: 6, 7: 6} if execution == 1 else {3: 3, 6: 6}
    for at, since in steps.items():
        assert watch.seen[at] == np.floor(gradual.sparsity_at(since) * size + 0.5), at
    assert all(watch.seen[at] == 0.75 * size for at in watch.seen if at >= 8)


def test_gradual_patterns_end_in_the_pattern():
    network = keras.Sequential([keras.Input((8,)), layers.Dense(6, name="hidden")])
    network = kd.compress.prune(network, 0, pattern=(2, 4))
    gradual = kd.compress.GradualPruning(network, 0.5, end_step=4, every=1)
    network.compile("sgd", "mse")
    network.fit(np.ones((20, 8)), np.ones((20, 6)), batch_size=4, verbose=0, callbacks=[gradual])
    kernel = network.get_layer("hidden").used()["kernel"].reshape(2, 4, 6)
    assert np.all((kernel != 0).sum(1) == 2)


def test_a_student_is_pruned_while_its_teacher_teaches():
    student = kd.compress.prune(dense(8), 0)
    distiller = kd.Distiller(
        student=student, teacher=dense(8, 1), transfers=[kd.Transfer(kd.losses.SoftTargets(2.0))]
    )
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    gradual = kd.compress.GradualPruning(student, 0.5, end_step=4, every=2)
    distiller.fit(*data(), batch_size=8, verbose=0, callbacks=[gradual])
    assert zeros(student) == {"hidden": 24, "logits": 12}


def test_a_fit_that_ends_too_early_says_so():
    network = kd.compress.prune(dense(8), 0)
    gradual = kd.compress.GradualPruning(network, 0.5, end_step=100)
    network.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"pruned to 0.01. and not to 0.5: training ended"):
        network.fit(np.ones((4, FEATURES)), np.ones((4, CLASSES)), verbose=0, callbacks=[gradual])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "below 1. Received: 1.0"),
        ({"sparsity": "half"}, "Received: 'half'"),
        ({"sparsity": 0.5, "scope": "model"}, "`scope` must be one of"),
        ({"sparsity": 0.4, "pattern": (2, 4)}, "2:4 has a sparsity of 0.5. Received: 0.4"),
        ({"sparsity": 0.5, "pattern": (4, 2)}, "0 < n < m"),
        ({"sparsity": 0.5, "layers": ["norm"]}, r"Received: \['norm'\]. Expected some of: hidden"),
        ({"sparsity": 0.5, "layers": lambda layer: False}, "No weight of"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kd.compress.prune(dense(8), **arguments)


def test_models_without_a_graph_are_refused_with_the_way_out():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = layers.Dense(2)

        def call(self, inputs):
            return self.inner(inputs)

    model = Own()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(ValueError, match=r"keras.Model\(inputs, model\(inputs\)\)"):
        kd.compress.prune(model, 0.5)
    with pytest.raises(ValueError, match="has no masks"):
        kd.compress.GradualPruning(dense(8), 0.5, end_step=10)


def test_each_call_prunes_its_own_layers():
    first = kd.compress.prune(dense(8), 0.5, layers=["hidden"])
    both = kd.compress.prune(first, 0.75, layers=["logits"])
    assert zeros(both) == {"hidden": 24, "logits": 18}


def test_statistics_of_adapted_layers_are_copied():
    scaled = layers.Normalization()
    x = np.random.default_rng(0).normal(3.0, 2.0, (50, 4)).astype("float32")
    scaled.adapt(x)
    network = keras.Sequential([keras.Input((4,)), scaled, layers.Dense(2)])
    pruned = kd.compress.prune(network, 0)
    np.testing.assert_allclose(pruned.predict(x), network.predict(x), atol=1e-5)


def test_graphs_with_arithmetic_of_numbers_are_pruned():
    inputs = keras.Input((6, 6, 1))
    network = keras.Model(inputs, layers.Conv2D(2, 3)(2.0 * inputs))
    x, _ = images(3, 6)
    pruned = kd.compress.prune(network, 0)
    np.testing.assert_allclose(pruned.predict(x), network.predict(x), atol=1e-6)


class PutsBack(keras.callbacks.Callback):
    """What a callback that resumes does: the optimizer's counter, behind all `on_train_begin`."""

    def on_train_begin(self, logs=None):
        self.model.optimizer.iterations.assign(8)


def test_a_resumed_run_goes_on_where_it_was():
    network = kd.compress.prune(dense(8), 0)
    gradual = kd.compress.GradualPruning(network, 0.75, end_step=12, every=2)
    network.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.fit(*data(16), batch_size=4, verbose=0, callbacks=[gradual, PutsBack()])
    assert zeros(network) == {"hidden": 36, "logits": 18}


def test_accumulated_gradients_are_one_step():
    network = kd.compress.prune(dense(8), 0)
    gradual = kd.compress.GradualPruning(network, 0.5, end_step=2, every=1)
    network.compile(
        keras.optimizers.SGD(0.01, gradient_accumulation_steps=4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    watch = Watch(network)
    network.fit(*data(32), batch_size=4, verbose=0, callbacks=[gradual, watch])
    assert zeros(network) == {"hidden": 24, "logits": 12}


def test_weights_that_are_put_back_are_pruned_again_or_named():
    network = kd.compress.prune(dense(8), 0)
    dense_masks = network.get_weights()
    gradual = kd.compress.GradualPruning(network, 0.5, end_step=4, every=2)
    network.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    class Back(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            _ = self.model
            if epoch == 1:
                network.set_weights(dense_masks)

    network.fit(*data(16), batch_size=4, epochs=3, verbose=0, callbacks=[gradual, Back()])
    assert zeros(network) == {"hidden": 24, "logits": 12}
    with pytest.warns(UserWarning, match="pruned to 0.000 and not to 0.5"):
        network.fit(*data(16), batch_size=4, epochs=2, verbose=0, callbacks=[Back(), gradual])


def test_shared_weights_are_out_of_reach_of_masks():
    shared = kd.compress.cluster(kd.compress.prune(dense(8), 0), 4)
    with pytest.raises(ValueError, match="Prune before kd.compress.cluster"):
        kd.compress.GradualPruning(shared, 0.5, end_step=4)
