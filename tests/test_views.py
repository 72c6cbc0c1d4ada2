"""Two views of each image in one student: the pass, what the views learn, evaluation, saving.

The reference is NumPy in float64: a linear network, and views that only rescale.
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
from tests.support import CLASSES, FEATURES, arrays, crossentropy, data, dense, fit, images
from tests.support import largest_difference as difference

pytestmark = pytest.mark.core
NAMES = ("first", "second")
# A few steps of TensorFlow aren't worth a trace; those of JAX are, which compiles every operation.
EAGER = {"run_eagerly": keras.backend.backend() == "tensorflow"}
ONE_BATCH = {"epochs": 1, "batch_size": 64, "shuffle": False}


def linear(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES)])


def scaled(network, first=0.5, second=-1.5):
    return kd.two_views(network, layers.Rescaling(first), layers.Rescaling(second))


def compiled(model, loss=NAMES, optimizer=None, **kwargs):
    optimizer = keras.optimizers.SGD(0.1) if optimizer is None else optimizer
    losses = {name: crossentropy() for name in loss} or None
    model.compile(optimizer, losses, **{**EAGER, **kwargs})
    return model


def distill(student, transfers=None, **kwargs):
    transfers = wirings.views() if transfers is None else transfers
    return compiled(kd.Distiller(student=student, transfers=transfers), **kwargs)


# What a step computes -------------------------------------------------------------------------


def descend(weights, x, y, factors, edges, labelled, rate, temperature, weight, steps):
    """A linear network that learns from labels and between rescaled views, by hand."""
    (kernel, bias), x = (np.float64(w) for w in weights), np.float64(x)
    for _ in range(steps):
        z = [f * x @ kernel + bias for f in factors]
        slopes = [(reference.softmax(z[k]) - np.eye(CLASSES)[y]) * (k in labelled) for k in (0, 1)]
        for source, student in edges:
            p, q = (reference.softmax(z[k] / temperature) for k in (source, student))
            slopes[student] += weight * temperature * (q - p)
        kernel = kernel - rate * sum(
            f * x.T @ s for f, s in zip(factors, slopes, strict=True)
        ) / len(x)
        bias = bias - rate * sum(s.sum(axis=0) for s in slopes) / len(x)
    return kernel, bias


WAYS = {
    "both": ("both", [(0, 1), (1, 0)], (0, 1)),
    "one way": ("weak_to_strong", [(0, 1)], (0, 1)),
    "one way, one label": ("weak_to_strong", [(0, 1)], (0,)),
    "no label": ("weak_to_strong", [(0, 1)], ()),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_network_descends_both_label_losses_and_what_the_views_teach(way):
    direction, edges, labelled = WAYS[way]
    (x, y), network = data(24), linear()
    start = network.get_weights()
    transfers = wirings.views(direction, temperature=2.0, weight=1.5)
    loss = [NAMES[k] for k in labelled]
    distiller = distill(scaled(network), transfers, loss=loss, optimizer=keras.optimizers.SGD(0.5))
    fit(distiller, x, y, **{**ONE_BATCH, "epochs": 3})
    settings = {"rate": 0.5, "temperature": 2.0, "weight": 1.5, "steps": 3}
    expected = descend(start, x, y, (0.5, -1.5), edges, labelled, **settings)
    for found, value in zip(network.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, value, atol=2e-6)
    if not labelled:
        assert distiller.evaluate(x, verbose=0, return_dict=True)["loss"] < 1e-6


def test_the_ways_differ_so_that_the_test_above_means_something():
    (x, y), start = data(24), linear().get_weights()
    settings = {"rate": 0.5, "temperature": 2.0, "weight": 1.5, "steps": 3}
    ways = [[(0, 1), (1, 0)], [(0, 1)], [(1, 0)], []]
    ends = [descend(start, x, y, (0.5, -1.5), edges, (0, 1), **settings)[0] for edges in ways]
    assert min(np.max(np.abs(a - b)) for a in ends for b in ends if a is not b) > 1e-2


def test_the_logs_name_each_direction_and_hold_its_divergence():
    (x, y), network = data(24), linear()
    z = [f * x @ network.get_weights()[0] for f in (0.5, -1.5)]
    logs = fit(distill(scaled(network), wirings.views(weight=0.5)), x, y, **ONE_BATCH).history
    p = [np.log(reference.softmax(np.float64(z_k) / 3)) for z_k in z]
    for name, a, b in (("first_to_second", *p), ("second_to_first", *p[::-1])):
        expected = 9 * np.mean(np.sum(np.exp(a) * (a - b), axis=-1))
        assert logs[name][0] == pytest.approx(expected, rel=1e-5)
    together = logs["first_to_second"][0] + logs["second_to_first"][0]
    assert logs["loss"][0] == pytest.approx(logs["label_loss"][0] + 0.5 * together, rel=1e-5)


def test_equal_views_teach_nothing_and_leave_plain_training():
    (x, y), plain, network = data(), linear(), linear()
    plain.compile(keras.optimizers.SGD(0.1), crossentropy(), **EAGER)
    steps = {**ONE_BATCH, "epochs": 2, "validation_data": (x, y)}
    alone = fit(plain, x, y, **steps).history
    halves = {"loss_weights": dict.fromkeys(NAMES, 0.5)}
    distiller = distill(kd.two_views(network, None, None), **halves)
    logs = fit(distiller, x, y, **steps).history
    assert max(logs["first_to_second"] + logs["second_to_first"]) < 1e-6
    assert difference(arrays(plain), arrays(network)) < 1e-6
    np.testing.assert_allclose(logs["val_loss"], alone["val_loss"], rtol=1e-5)


@pytest.mark.tensorflow
def test_two_replicas_update_like_one(two_replicas):
    x, y = data(64)

    def run(scope):
        with scope:
            distiller = distill(scaled(dense(8, 0, norm=False, l2=1e-3)), run_eagerly=False)
        return fit(distiller, x, y, shuffle=False).history, arrays(distiller)

    one, two = run(contextlib.nullcontext()), run(two_replicas.scope())
    assert difference(one[1], two[1]) < 1e-6
    for name in one[0]:
        np.testing.assert_allclose(one[0][name], two[0][name], rtol=1e-5, atol=1e-6)


# One pass -------------------------------------------------------------------------------------


class Counting(keras.Model):
    """A network that notes the size of the batch of each pass, and whether it trains."""

    def __init__(self):
        super().__init__()
        self.inner, self.passes = linear(), []

    def call(self, inputs, training=None):
        self.passes.append((inputs.shape[0], training))
        return self.inner(inputs, training=training)


def test_a_step_is_one_pass_over_both_views_and_evaluation_one_over_the_images():
    (x, y), network = data(10), Counting()
    distiller = distill(scaled(network), run_eagerly=True)
    distiller.train_on_batch(x, y)
    network.passes.clear()
    distiller.train_on_batch(x, y)
    distiller.test_on_batch(x, y)
    distiller.predict_on_batch(x)
    assert network.passes == [(20, True), (10, False), (10, False)]


def test_evaluation_is_the_networks_own():
    (x, y), network = data(20), dense(4, 0, dropout=0.5)
    student = kd.two_views(network, *(layers.GaussianNoise(0.1, seed=seed) for seed in (1, 2)))
    distiller = distill(student, metrics={"first": ["accuracy"]})
    fit(distiller, x, y, epochs=1)
    network.compile(loss=crossentropy(), metrics=["accuracy"], **EAGER)
    expected = network.evaluate(x, y, verbose=0, return_dict=True)
    before = arrays(student)
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert logs["first_accuracy"] == expected["accuracy"]
    assert logs["loss"] == pytest.approx(2 * expected["loss"], rel=1e-6)
    for logits in distiller.predict(x, verbose=0).values():
        np.testing.assert_allclose(logits, network.predict(x, verbose=0), rtol=1e-6)
    assert difference(before, arrays(student)) == 0.0


def test_a_layer_inside_is_read_for_both_views_at_once():
    (x, _), network = data(10), dense(4, 0, norm=False)
    read = array(kd.tap(scaled(network), ["model/hidden"])(x, training=True)["model/hidden"])
    both = np.concatenate([0.5 * x, -1.5 * x])
    np.testing.assert_allclose(read, np.maximum(both @ network.get_weights()[0], 0), atol=1e-6)


def test_batch_statistics_are_those_of_both_views():
    x, _ = data(10)
    norm = layers.BatchNormalization(momentum=0.0)
    network = keras.Sequential([keras.Input((FEATURES,)), norm, layers.Dense(CLASSES)])
    scaled(network)(x, training=True)
    both = np.concatenate([0.5 * x, -1.5 * x]).astype("float64")
    np.testing.assert_allclose(array(norm.moving_mean), both.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(array(norm.moving_variance), both.var(axis=0), rtol=1e-5)


def test_activity_regularisers_are_means_over_both_views():
    x, _ = data(10)
    regular = layers.ActivityRegularization(l2=1.0)
    network = keras.Sequential([keras.Input((FEATURES,)), regular, layers.Dense(CLASSES)])
    student = scaled(network)
    student(x, training=True)
    expected = np.mean(np.sum(np.square(np.concatenate([0.5 * x, -1.5 * x])), axis=1))
    assert float(array(student.losses[0])) == pytest.approx(expected, rel=1e-5)


# Views ----------------------------------------------------------------------------------------


def seen(student, x):
    return [array(view) for view in student(x, training=True).values()]


def test_views_differ_from_each_other_and_from_step_to_step():
    (x, _), network = images(6), keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten()])
    student = kd.two_views(network, *[kd.data.FlipShift(shift=2, seed=seed) for seed in (1, 2)])
    views = [*seen(student, x), *seen(student, x), array(network(x))]
    for index, view in enumerate(views):
        assert all(np.mean(np.any(view != other, axis=1)) > 0.5 for other in views[:index])
    # Pixels are moved and never mixed, so these are the images of the batch, in their order.
    for before, after in zip(views[-1], views[1], strict=True):
        assert set(after) <= set(before)
    student = kd.two_views(network, None, kd.data.FlipShift(shift=2))
    np.testing.assert_array_equal(seen(student, x)[0], views[-1])


def test_dropout_alone_makes_two_views():
    x, _ = data(10)
    first, second = seen(kd.two_views(dense(8, dropout=0.5), None, None), x)
    assert np.abs(first - second).max() > 0.1


@keras.saving.register_keras_serializable("tests")
class Louder(layers.Layer):
    """An augmentation that acts only where it is told that it trains."""

    def call(self, x, training=False):
        return x + 5.0 if training else x


@pytest.mark.parametrize("alone", [False, True])
def test_augmentation_and_network_know_that_they_train(alone):
    (x, y), network = data(16), dense(8, 0)
    pipeline = keras.Sequential([layers.Identity(), Louder()])
    student = kd.two_views(network, None, pipeline)
    if alone:
        logs = fit(compiled(student), x, dict.fromkeys(NAMES, y), **ONE_BATCH).history
        assert abs(logs["first_loss"][0] - logs["second_loss"][0]) > 1e-2
    else:
        logs = fit(distill(student), x, y, **ONE_BATCH, validation_data=(x, y)).history
        assert logs["first_to_second"][0] > 1e-2
        assert logs["val_first_loss"] == logs["val_second_loss"]
    assert np.any(array(network.get_layer("norm").moving_mean))


def test_preprocessing_comes_before_the_views():
    (x, y), ends = data(24), []
    for factor in (1.0, 2.0):
        network = linear()
        preprocess = {"student": layers.Rescaling(2.0 / factor)}
        edges = wirings.views()
        distiller = kd.Distiller(student=scaled(network), transfers=edges, preprocess=preprocess)
        compiled(distiller)
        fit(distiller, factor * x, y, **ONE_BATCH)
        ends.append([*arrays(network), distiller.predict(factor * x, verbose=0)["first"]])
    assert difference(*ends) < 1e-6


# Networks -------------------------------------------------------------------------------------


def nested():
    return keras.Sequential([keras.Input((FEATURES,)), layers.Rescaling(2.0), dense(4, 0)])


def late():
    return keras.Sequential([layers.Dense(4), layers.Dense(CLASSES)])


KINDS = {
    "functional": dense,
    "sequential": linear,
    "nested": nested,
    "subclassed": support.Subclassed,
    "without shapes": late,
}


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_every_kind_learn_and_come_back_from_disk(kind, tmp_path):
    (x, y), network = data(), KINDS[kind]()
    distiller = distill(scaled(network))
    logs = fit(distiller, x, y, **{**ONE_BATCH, "epochs": 2}).history
    assert logs["label_loss"][-1] < logs["label_loss"][0]
    assert distiller.student.model is network
    distiller.student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras")
    assert type(again.model) is type(network)
    np.testing.assert_array_equal(array(again.model(x)), array(network(x)))
    np.testing.assert_array_equal(array(again(x)["second"]), array(network(x)))


def test_the_names_of_the_outputs_are_known_before_the_first_batch():
    student, (x, y) = scaled(dense(4, 0)), data(16)
    with pytest.raises(ValueError, match="no layer 'third'"):
        edge = kd.Transfer(squared, source="student", source_layer="third", student_layer="first")
        kd.Distiller(student=student, transfers=[edge])
    edges = wirings.views("weak_to_strong", student="a")
    distiller = kd.Distiller(student={"a": student, "b": dense(4, 1)}, transfers=edges)
    distiller.compile("sgd", crossentropy(), **EAGER)
    logs = fit(distiller, x, y, epochs=1).history
    assert {"a_first_loss", "a_second_loss", "b_loss", "a_first_to_second"} <= set(logs)


def squared(source, student):
    return keras.ops.mean(keras.ops.square(source - student), axis=-1)


def test_in_half_precision_the_loss_is_scaled_and_the_network_learns():
    keras.config.set_dtype_policy("mixed_float16")
    (x, y), network = data(24), linear()
    keras.config.set_dtype_policy("float32")
    student = kd.two_views(network, None, layers.GaussianNoise(0.5, seed=1))
    assert student.dtype_policy.name == "mixed_float16"
    distiller, start = distill(student), arrays(network)
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    logs = fit(distiller, x, y, **ONE_BATCH).history
    assert np.isfinite(logs["loss"][0]) and logs["first_to_second"][0] > 1e-3
    assert difference(start, arrays(network)) > 1e-3
    assert keras.backend.standardize_dtype(network(x).dtype) == "float16"


# Saving ---------------------------------------------------------------------------------------


def augmented():
    network = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dropout(0.3), layers.Dense(CLASSES)]
    )
    augment = [kd.data.FlipShift(shift=2), keras.Sequential([kd.data.FlipShift(shift=1)])]
    return kd.two_views(network, *augment, name="views")


@pytest.mark.parametrize("alone", [False, True])
def test_what_was_saved_goes_on_to_the_bit(alone, tmp_path):
    (x, y), path, student = images(24), tmp_path / "run.keras", augmented()
    adam = {"optimizer": keras.optimizers.Adam(1e-2)}
    model = compiled(student, **adam) if alone else distill(student, **adam, run_eagerly=False)
    # Keras alone takes labels by output; a distiller takes them once.
    y = dict.fromkeys(NAMES, y) if alone else y
    fit(model, x, y, **ONE_BATCH)
    model.save(path)
    again = keras.models.load_model(path)
    ends = [fit(m, x, y, **ONE_BATCH).history for m in (model, again)]
    assert ends[0] == ends[1]
    assert difference(arrays(model), arrays(again)) == 0.0


@pytest.mark.tensorflow
def test_the_network_is_exported_without_a_trace_of_the_views(tmp_path):
    (x, y), student = images(8), augmented()
    fit(distill(student), x, y, epochs=1)
    kd.export.litert(student.model, tmp_path / "network.tflite")
    found = kd.export.LiteRTModel(tmp_path / "network.tflite").predict(x)
    np.testing.assert_allclose(found, array(student.model(x)), rtol=1e-4, atol=1e-5)
    deployed = kd.models.single_output(student, "first")
    assert [type(layer) for layer in deployed.layers[1:]] == [type(p) for p in student.model.layers]


# Refusals -------------------------------------------------------------------------------------


def two_inputs():
    inputs = [keras.Input((FEATURES,)), keras.Input((FEATURES,))]
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Add()(inputs)))


def two_outputs():
    inputs = keras.Input((FEATURES,))
    return keras.Model(inputs, {key: layers.Dense(CLASSES)(inputs) for key in "ab"})


def probabilities():
    return keras.Sequential([keras.Input((FEATURES,)), layers.Dense(CLASSES, "softmax")])


def same():
    layer = layers.GaussianNoise(0.1)
    return layer, layer


def same_inside():
    layer = layers.GaussianNoise(0.1)
    return keras.Sequential([layer]), keras.Sequential([layers.Rescaling(2.0), layer])


def same_seed():
    return layers.GaussianNoise(0.1, seed=7), keras.Sequential([layers.GaussianNoise(0.2, seed=7)])


def nothing():
    return None, None


REFUSED = {
    "no model": (lambda: layers.Dense(2), nothing, TypeError, "must be a keras.Model"),
    "function": (linear, lambda: (np.negative, None), TypeError, "`first` must be a Keras layer"),
    "class": (linear, lambda: (None, layers.Rescaling), TypeError, "`second` must be a Keras"),
    "same object": (linear, same, ValueError, "random numbers of its own"),
    "same object inside": (linear, same_inside, ValueError, "random numbers of its own"),
    "same seed": (linear, same_seed, ValueError, "random numbers of its own"),
    "name": (
        linear,
        lambda: (layers.Rescaling(2.0, name="second"), None),
        ValueError,
        r"a part called \['second'\]",
    ),
    "softmax": (probabilities, nothing, ValueError, "expects logits"),
    "inputs": (two_inputs, nothing, ValueError, "Received as input: a list"),
    "outputs": (two_outputs, nothing, ValueError, r"Received as output: \['a', 'b'\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_have_two_views_is_refused(case):
    make, views, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        kd.two_views(make(), *views())


def test_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="`direction` must be one of .*both.*Received.*'strong'"):
        wirings.views("strong")


def test_the_wiring_names_its_ends_and_its_student():
    edges = wirings.views(temperature=4.0, weight=0.5, student="small")
    ends = [(edge.source_layer, edge.student_layer) for edge in edges]
    assert ends == [("first", "second"), ("second", "first")]
    assert {edge.source for edge in edges} == {edge.student for edge in edges} == {"small"}
    assert {(float(edge.loss.temperature), float(edge.weight)) for edge in edges} == {(4.0, 0.5)}


def test_a_subclassed_network_takes_losses_and_metrics_given_once():
    student = kd.two_views(support.Subclassed(), None, layers.GaussianNoise(0.1))
    distiller = kd.Distiller(student=student, transfers=kd.wirings.views())
    weights = {"first": 0.5, "second": 0.5}
    distiller.compile("sgd", support.crossentropy(), loss_weights=weights, metrics=["accuracy"])
    history = distiller.fit(*support.data(8), verbose=0).history
    assert {"first_accuracy", "second_accuracy", "first_to_second"} <= set(history)


def test_views_of_different_shapes_are_refused():
    network = keras.Sequential([keras.Input((5, 2)), layers.GlobalAveragePooling1D()])
    with pytest.raises(ValueError, match="Both views must have one shape"):
        kd.two_views(network, layers.Cropping1D(1), None)
