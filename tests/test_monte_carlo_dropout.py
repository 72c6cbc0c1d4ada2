"""Dropout that stays on: what is random, what the passes say together, and distilling them.

The references are NumPy in float64; small networks are enumerated over all of their masks.
"""

import itertools
import threading

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdtoolkit as kd
from kdtoolkit import taps
from kdtoolkit.dropout import sampler
from kdtoolkit.dropout.split import split
from tests import reference
from tests.helpers import array, gradient
from tests.support import CLASSES, FEATURES, arrays, data, dense, fit, images
from tests.support import largest_difference as difference

pytestmark = pytest.mark.core
UNITS = 4
QUIET = {"verbose": 0}


def run(model, x):
    """The output of a model. JAX compiles every operation of a plain call, so it predicts there."""
    eager = keras.backend.backend() == "tensorflow"
    return array(model(x) if eager else model.predict_on_batch(x))


def network(seed=0, scale=3.0, rate=0.5):
    """Four units that drop out before a linear classifier: 16 masks, which is all there is."""
    keras.utils.set_random_seed(seed)
    hidden = layers.Dense(UNITS, "tanh", name="hidden")
    last = layers.Dense(CLASSES, name="logits")
    dropout = layers.Dropout(rate, name="dropout")
    model = keras.Sequential([keras.Input((FEATURES,)), hidden, dropout, last])
    last.kernel.assign(scale * last.kernel)
    return model


def enumerated(model, x):
    """The logits under each mask, float64 `(16, examples, classes)`."""
    first, bias, kernel, offset = (w.astype("float64") for w in model.get_weights())
    h = np.tanh(x @ first + bias)
    masks = np.array(list(itertools.product([0.0, 2.0], repeat=UNITS)))
    return np.stack([(h * mask) @ kernel + offset for mask in masks])


def statistics(logits):
    """What passes `(passes, examples, classes)` say, by the definitions."""
    p = np.stack([reference.softmax(z.astype("float64")) for z in logits])
    mean, entropy = p.mean(axis=0), lambda q: -np.sum(q * np.log(q), axis=-1)
    votes = np.stack([np.mean(p.argmax(axis=-1) == c, axis=0) for c in range(p.shape[-1])])
    return {
        "probabilities": mean,
        "deviation": p.std(axis=0),
        "entropy": entropy(mean),
        "mutual_information": entropy(mean) - entropy(p).mean(axis=0),
        "variation_ratio": 1 - votes.max(axis=0),
    }


# One sample per step --------------------------------------------------------------------------


def reverse(source, student):
    q, p = ops.log_softmax(student), ops.log_softmax(source)
    return ops.sum(ops.exp(q) * (q - p), axis=-1)


@pytest.mark.parametrize("generator", ["squared", "logistic", "kl", "reverse"])
def test_the_mean_gradient_over_all_masks_is_that_of_the_mean_prediction(generator):
    loss = reverse if generator == "reverse" else kd.losses.BregmanDivergence(generator).values
    x, _ = data(3)
    logits = enumerated(network(), x)
    student = np.random.default_rng(1).normal(size=(len(x), CLASSES)).astype("float32")
    mean = np.log(statistics(logits)["probabilities"])

    def slopes(source):
        both = np.concatenate(source).astype("float32"), np.tile(student, (len(logits), 1))
        return gradient(loss, *both, argnum=1).reshape(logits.shape)

    exact = slopes([mean] * len(logits))[0]
    gap = np.abs(slopes(logits).mean(axis=0) - exact).max()
    assert gap > 1e-2 if generator == "reverse" else gap < 1e-6


# Many passes ----------------------------------------------------------------------------------


def test_the_mean_of_many_passes_tends_to_the_mean_over_all_masks():
    model, (x, _) = network(), data(5)
    expected, samples = statistics(enumerated(model, x)), 4000
    found = kd.MonteCarloDropout(model).predict(x, samples=samples, seed=0, **QUIET)
    errors = np.abs(found.probabilities - expected["probabilities"])
    assert np.all(errors <= 4 * expected["deviation"] / np.sqrt(samples))
    assert expected["deviation"].min() > 0.02
    for name in ("deviation", "entropy", "mutual_information", "variation_ratio"):
        np.testing.assert_allclose(getattr(found, name), expected[name], atol=0.03)
    assert expected["mutual_information"].min() > 0.06
    assert found.samples == samples


def test_what_the_passes_say_follows_from_their_logits():
    model, (x, _), samples = network(), data(5), 12
    teacher = kd.MonteCarloDropout(model)
    found = teacher.predict(x, samples=samples, seed=3, **QUIET)
    copies = np.concatenate([x] * samples)
    logits = teacher.predict(copies, batch_size=len(copies), seed=3, **QUIET)
    logits = logits.reshape(samples, len(x), CLASSES)
    for name, expected in statistics(logits).items():
        assert getattr(found, name).dtype == "float64"
        np.testing.assert_allclose(getattr(found, name), expected, atol=1e-6)
    np.testing.assert_allclose(reference.softmax(found.logits), found.probabilities, atol=1e-12)


def test_the_logits_of_a_linear_network_are_on_average_those_without_dropout():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((FEATURES,)), layers.Dropout(0.3), layers.Dense(CLASSES)])
    x, draws = data(2)[0], 2000
    logits = kd.MonteCarloDropout(model).predict(np.tile(x, (draws, 1)), 4000, seed=0, **QUIET)
    logits = logits.reshape(draws, len(x), CLASSES).astype("float64")
    bound = 4 * logits.std(axis=0) / np.sqrt(draws)
    assert np.all(np.abs(logits.mean(axis=0) - array(model(x))) < bound)
    assert bound.min() > 1e-3


def test_samples_of_the_teacher_are_averaged_as_probabilities():
    model, (x, _) = network(), data(4)
    three = kd.MonteCarloDropout(model, samples=3).predict(x, seed=5, **QUIET)
    each = kd.MonteCarloDropout(model).predict(np.concatenate([x] * 3), seed=5, **QUIET)
    mean = statistics(each.reshape(3, len(x), CLASSES))["probabilities"]
    np.testing.assert_allclose(three, np.log(mean), atol=1e-5)


def test_calls_differ_and_seeded_ones_repeat_and_leave_no_trace():
    (x, _), model = data(6), dense(dropout=0.5)
    teacher = kd.MonteCarloDropout(model)

    def predict(seed=None, samples=None):
        said = teacher.predict(x, samples=samples, seed=seed, **QUIET)
        return said if samples is None else said.probabilities

    for samples in (None, 5):
        before = arrays(model)
        first, second, other = (predict(seed, samples) for seed in (7, 7, 8))
        assert difference(before, arrays(model)) == 0.0
        np.testing.assert_array_equal(first, second)
        assert np.abs(first - other).max() > 1e-2
        assert np.abs(predict(samples=samples) - predict(samples=samples)).max() > 1e-2
    assert "call" not in vars(model.get_layer("dropout"))


def test_a_seed_holds_from_the_first_call_of_a_network_that_a_batch_builds():
    teacher, (x, _) = kd.MonteCarloDropout(Silent(dense(dropout=0.5))), data(4)
    first, second = (teacher.predict(x, seed=1, **QUIET) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_chunks_and_a_ragged_last_batch_change_nothing_but_the_masks(monkeypatch):
    model, (x, _) = network(), data(10)
    expected = statistics(enumerated(model, x))
    monkeypatch.setattr(sampler, "NUMBERS", 4 * UNITS * 300)
    # Four passes over 251 copies each, three more than were asked for.
    found = kd.MonteCarloDropout(model).predict(x, 4, samples=1001, seed=0, **QUIET)
    assert found.samples == 1001 and found.entropy.shape == (10,)
    errors = np.abs(found.probabilities - expected["probabilities"])
    assert np.all(errors <= 4 * expected["deviation"] / np.sqrt(1001))


def test_progress_is_shown_where_it_is_asked_for(capsys):
    teacher, (x, _) = kd.MonteCarloDropout(network()), data(8)
    teacher.predict(x, 4, verbose=0, samples=2)
    assert capsys.readouterr().out == ""
    teacher.predict(x, 4, verbose=1, samples=2)
    assert "2/2" in capsys.readouterr().out


# Nothing else is random -----------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Silent(keras.Model):
    """A network that doesn't ask whether it trains."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)

    def get_config(self):
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("inner")), **config)


def noisy(rate):
    parts = [layers.GaussianNoise(1.0, name="noise"), layers.BatchNormalization(name="norm")]
    last = [layers.Dropout(rate, name="dropout"), layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input((FEATURES,)), *parts, *last])


@pytest.mark.parametrize("wrap", [lambda model: model, Silent])
def test_all_but_dropout_is_in_inference_mode_whatever_training_says(wrap):
    # So rare a dropout that it leaves these units alone.
    model, (x, _) = wrap(noisy(1e-9)), data(16)
    model(x)
    teacher, before = kd.MonteCarloDropout(model), [w.copy() for w in model.get_weights()]
    expected = array(model(x, training=False) if wrap is not Silent else model(x))
    for training in (None, False, True):
        np.testing.assert_allclose(array(teacher(x, training=training)), expected, atol=1e-6)
    inside = keras.Sequential([layers.Identity(), teacher])
    np.testing.assert_allclose(array(inside(x, training=True)), expected, atol=1e-6)
    assert difference(before, model.get_weights()) == 0.0


def test_taps_read_what_is_on_and_what_is_off():
    model, (x, _) = noisy(0.5), data(16)
    read = kd.tap(kd.MonteCarloDropout(model), ["model/noise", "model/norm", "model/dropout"])(x)
    np.testing.assert_array_equal(array(read["model/noise"]), x)
    norm, dropped = array(read["model/norm"]), array(read["model/dropout"])
    assert 0.3 < np.mean(dropped == 0) < 0.7
    np.testing.assert_allclose(dropped[dropped != 0], 2 * norm[dropped != 0], rtol=1e-6)
    assert "call" not in vars(model.get_layer("dropout"))


def test_other_threads_run_the_layers_as_they_are():
    model, (x, _), found = dense(dropout=0.5, norm=False), data(4), []
    layer = model.get_layer("dropout")
    with taps.around_calls([layer], lambda layer, call, x, **_: call(x) * 0):
        thread = threading.Thread(target=lambda: found.append(array(layer(x))))
        thread.start()
        thread.join()
        assert not array(layer(x)).any()
    np.testing.assert_array_equal(found[0], x)


# What is on -----------------------------------------------------------------------------------


def wrapped(*inner, shape=(2, 6), dtype=None):
    end = [layers.Flatten(), layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input(shape, dtype=dtype), *inner, *end])


def attention():
    inputs = keras.Input((2, 6))
    h = layers.MultiHeadAttention(2, 3, dropout=0.5, name="attention")(inputs, value=inputs)
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(h)))


class Blocks(keras.Model):
    """A subclassed network with layers in a list, built by its first batch."""

    def __init__(self):
        super().__init__()
        self.blocks = [layers.MultiHeadAttention(2, 3, dropout=0.5, name="attention")]
        self.head = keras.Sequential([layers.Flatten(), layers.Dense(CLASSES)], name="end")

    def call(self, inputs):
        return self.head(self.blocks[0](inputs, inputs))


def nested():
    inner = wrapped(layers.Dense(5), layers.SpatialDropout1D(0.5, name="drop"))
    inner.name = "inner"
    inputs = keras.Input((2, 6))
    return keras.Model(inputs, layers.Dense(CLASSES)(inner(inputs)))


KINDS = {
    "attention": (attention, ["attention/dropout"]),
    "subclassed": (Blocks, ["attention/dropout"]),
    "nested": (nested, ["inner/drop"]),
    "lstm": (lambda: wrapped(layers.LSTM(4, dropout=0.5, name="lstm")), ["lstm"]),
    "gru": (lambda: wrapped(layers.GRU(4, recurrent_dropout=0.5, name="gru")), ["gru"]),
    "cell": (
        lambda: wrapped(layers.RNN(layers.SimpleRNNCell(4, dropout=0.5, name="c"), name="rnn")),
        ["rnn/cell"],
    ),
    "both ways": (
        lambda: wrapped(layers.Bidirectional(layers.SimpleRNN(4, dropout=0.5), name="two")),
        ["two/forward_layer", "two/backward_layer"],
    ),
    "alpha": (lambda: wrapped(layers.AlphaDropout(0.5, name="alpha")), ["alpha"]),
    "gaussian": (lambda: wrapped(layers.GaussianDropout(0.5, name="gauss")), ["gauss"]),
    "depth": (lambda: wrapped(layers.Dropout(0.5, (None, 1, 1), name="depth")), ["depth"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_dropout_is_found_and_on(kind):
    make, paths = KINDS[kind]
    x = np.tile(np.random.default_rng(0).normal(size=(1, 2, 6)), (8, 1, 1)).astype("float32")
    model = make()
    teacher = kd.MonteCarloDropout(model)
    found = run(teacher, x)
    assert teacher.random_layers == paths
    # One mask per example, so equal examples differ.
    assert np.mean(found.std(axis=0)) > 1e-3
    assert np.ptp(run(model, x), axis=0).max() < 1e-5


def test_a_rate_of_zero_does_not_count_and_a_shared_layer_counts_once():
    drop = layers.Dropout(0.5, name="drop")
    model = wrapped(drop, layers.Dropout(0.0), layers.Dense(5), layers.LSTM(3), layers.Flatten())
    assert kd.MonteCarloDropout(model).random_layers == ["drop"]
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, layers.Dense(CLASSES)(drop(layers.Dense(5)(drop(inputs)))))
    assert kd.MonteCarloDropout(model).random_layers == ["drop"]


# The first part runs once ---------------------------------------------------------------------


class Spy(layers.Layer):
    """Counts the examples that pass, and how often it is traced."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.traces = []

    def call(self, inputs):
        self.traces.append(tuple(inputs.shape))
        self.seen.assign_add(ops.cast(ops.shape(inputs)[0], "float32"))
        return inputs


def plain(first, last):
    inputs = keras.Input((FEATURES,))
    h = layers.Dropout(0.5)(layers.Dense(4)(first(inputs)))
    return keras.Model(inputs, last(layers.Dense(CLASSES)(h)))


def opened(first, last):
    inputs = keras.Input((FEATURES,))
    inner = keras.Model(inputs, layers.Dropout(0.5)(first(inputs)))
    outer = keras.Sequential([keras.Input((FEATURES,)), layers.Dense(FEATURES), inner])
    return keras.Sequential([keras.Input((FEATURES,)), outer, layers.Dense(CLASSES), last])


def forked(first, last):
    inputs = keras.Input((FEATURES,))
    h = layers.Dense(4)(first(inputs))
    aside = ops.tanh(layers.Dense(4)(h))
    mixed = layers.Add()([layers.Dropout(0.5)(h), h, aside])
    mixed = layers.Concatenate()([layers.Dense(3)(mixed) * 2.0, inputs])
    return keras.Model(inputs, last(layers.Dense(CLASSES)(mixed)))


GRAPHS = {"plain": (plain, 1), "opened": (opened, 1), "forked": (forked, 3)}


@pytest.mark.parametrize("kind", GRAPHS)
def test_what_comes_before_dropout_runs_once_for_each_batch(kind, monkeypatch):
    make, tensors = GRAPHS[kind]
    first, last = Spy(name="first"), Spy(name="last")
    model, (x, _) = make(first, last), data(8)
    teacher = kd.MonteCarloDropout(model)
    dropout = [layer for _, layer in taps.walk(model) if isinstance(layer, layers.Dropout)]
    before, behind = split(model, dropout)
    assert len(before.outputs) == tensors
    np.testing.assert_allclose(array(behind(before(x))), array(model(x)), atol=1e-6)
    inside = sum(tensor.shape[-1] for tensor in before.outputs)
    # Ten copies of a batch of 4 at once, so five passes for 50 samples.
    monkeypatch.setattr(sampler, "NUMBERS", 10 * 4 * inside)
    for spy in (first, last):
        spy.seen.assign(0.0)
    teacher.predict(x, 4, samples=50, **QUIET)
    assert (float(first.seen), float(last.seen)) == (8, 50 * 8)
    traces = len(first.traces), len(last.traces)
    found = teacher.predict(x, 4, samples=50, **QUIET)
    assert (len(first.traces), len(last.traces)) == traces
    assert found.deviation.min() > 0


def test_without_a_first_part_the_whole_network_runs_for_each_sample():
    first, last = Spy(), Spy()
    inner = plain(first, last)
    for model in (Silent(inner), keras.Sequential([layers.Dropout(0.5), inner])):
        model(data(1)[0])
        teacher = kd.MonteCarloDropout(model)
        first.seen.assign(0.0)
        teacher.predict(data(4)[0], samples=5, **QUIET)
        assert float(first.seen) == 20


def test_a_mask_crosses_from_one_part_to_the_other():
    keras.utils.set_random_seed(0)
    drop = layers.Dropout(1e-9)
    parts = [layers.Embedding(9, 6, mask_zero=True), drop, layers.SimpleRNN(4)]
    model = wrapped(*parts, shape=(5,), dtype="int32")
    x = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]])
    assert len(split(model, [drop])[0].outputs) == 2
    found = kd.MonteCarloDropout(model).predict(x, samples=2, **QUIET)
    expected = reference.softmax(array(model(x)))
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)


def test_a_network_with_several_inputs_is_sampled():
    inputs = {name: keras.Input((FEATURES,), name=name) for name in ("a", "b")}
    h = layers.Concatenate()([layers.Dropout(0.5)(layers.Dense(4)(inputs["a"])), inputs["b"]])
    model, (x, _) = keras.Model(inputs, layers.Dense(CLASSES)(h)), data(6)
    teacher = kd.MonteCarloDropout(model, samples=2)
    found = teacher.predict({"a": x, "b": -x}, 4, samples=5, **QUIET)
    assert found.probabilities.shape == (6, CLASSES) and found.deviation.min() > 0
    assert teacher.predict({"a": x, "b": -x}, **QUIET).shape == (6, CLASSES)


# As a teacher ---------------------------------------------------------------------------------


def spread(source, student):
    return ops.mean(ops.square(source - ops.mean(source, axis=0)), axis=-1) + 0 * student[:, 0]


def test_masks_differ_from_example_to_example_and_from_step_to_step():
    x = np.ones((8, FEATURES), "float32")
    teacher = kd.MonteCarloDropout(dense(dropout=0.5))
    weights = [w.copy() for w in teacher.get_weights()]
    edge = kd.Transfer(spread)
    distiller = kd.Distiller(student=dense(4), teacher=teacher, transfers=[edge])
    distiller.compile(keras.optimizers.SGD(0.0))
    found = [distiller.train_on_batch(x, return_dict=True)["spread"] for _ in range(4)]
    assert min(found) > 1e-4
    assert len({float(value) for value in found}) == 4
    assert difference(weights, teacher.get_weights()) == 0.0


def test_distillation_without_labels_comes_nearer_to_the_mean_of_many_passes():
    model, (x, _) = network(scale=6.0), data(64)
    student = network(scale=1.0, rate=0.0)
    student.set_weights(model.get_weights())
    mean = statistics(enumerated(model, x))["probabilities"]

    def distance():
        return np.mean(reference.kl_divergence(np.log(mean), array(student(x)), 1.0))

    start, edge = distance(), kd.Transfer(kd.losses.SoftTargets(1.0))
    distiller = kd.Distiller(student=student, teacher=kd.MonteCarloDropout(model), transfers=[edge])
    distiller.compile(keras.optimizers.SGD(0.2))
    fit(distiller, np.tile(x, (20, 1)), batch_size=32, epochs=3)
    assert start > 0.02
    assert distance() < 0.3 * start


@pytest.mark.parametrize("wrap", [lambda model: model, Silent])
def test_a_saved_teacher_goes_on_to_the_bit(wrap, tmp_path):
    x, _ = data(6)
    teacher = kd.MonteCarloDropout(wrap(dense(dropout=0.5)), samples=2)
    teacher.predict(x, **QUIET)
    teacher.save(tmp_path / "teacher.keras")
    again = keras.models.load_model(tmp_path / "teacher.keras")
    assert again.samples == 2
    np.testing.assert_array_equal(teacher.predict(x, **QUIET), again.predict(x, **QUIET))
    assert again.random_layers == teacher.random_layers


# Refused --------------------------------------------------------------------------------------


def two_outputs():
    inputs = keras.Input((FEATURES,))
    h = layers.Dropout(0.5)(inputs)
    return keras.Model(inputs, {"a": layers.Dense(2)(h), "b": layers.Dense(2)(h)})


def ending(*last, shape=(2, 6)):
    return keras.Sequential([keras.Input(shape), layers.Dropout(0.5), *last])


REFUSED = {
    "no dropout": (lambda: dense(), "needs a network with dropout"),
    "softmax": (lambda: ending(layers.Dense(3, "softmax")), "kd.as_logits"),
    "two outputs": (two_outputs, "takes a network with one output.*'a', 'b'.*single_output"),
    "one class": (lambda: ending(layers.Dense(1)), "2 or more classes.*None, 2, 1"),
    "one mask": (lambda: wrapped(layers.Dropout(0.5, (1, None, None))), "shares a mask"),
    "short mask": (lambda: wrapped(layers.Dropout(0.5, (None, 6))), "one fresh mask per example"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_networks_that_do_not_fit_are_refused(kind):
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        kd.MonteCarloDropout(make())


def test_a_network_that_its_first_batch_builds_is_refused_there():
    teacher = kd.MonteCarloDropout(keras.Sequential([layers.Dense(CLASSES)]))
    assert teacher.random_layers == []
    with pytest.raises(ValueError, match="needs a network with dropout"):
        teacher.predict(data(4)[0], samples=2, **QUIET)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(TypeError, match=r"keras.Model"):
        kd.MonteCarloDropout(layers.Dropout(0.5))
    with pytest.raises(ValueError, match="`samples` of MonteCarloDropout must be an integer >= 1"):
        kd.MonteCarloDropout(network(), samples=0)
    teacher, (x, _) = kd.MonteCarloDropout(network()), data(4)
    for bad in ({"samples": 0}, {"samples": 2, "batch_size": 0}, {"samples": 2, "seed": -1}):
        with pytest.raises(ValueError, match=r"must be an integer >= [01]"):
            teacher.predict(x, **bad, **QUIET)
    with pytest.raises(TypeError, match=r"doesn't take \['steps'\]"):
        teacher.predict(x, samples=2, steps=1, **QUIET)
    with pytest.raises(TypeError, match="batch by batch"):
        teacher.predict(iter([x]), samples=2, **QUIET)
    with pytest.raises(ValueError, match="one or more examples"):
        teacher.predict(x[:0], samples=2, **QUIET)


def test_a_subclassed_network_that_returns_probabilities_is_refused_by_its_values():
    teacher = kd.MonteCarloDropout(Silent(ending(layers.Dense(3, "softmax"), shape=(FEATURES,))))
    with pytest.raises(ValueError, match="kd.as_logits"):
        teacher.predict(data(4)[0], samples=2, **QUIET)


def test_images_are_sampled_pixel_by_pixel():
    keras.utils.set_random_seed(0)
    parts = [layers.Conv2D(4, 3, padding="same"), layers.SpatialDropout2D(0.5)]
    model = keras.Sequential([keras.Input((4, 4, 1)), *parts, layers.Conv2D(CLASSES, 1)])
    found = kd.MonteCarloDropout(model).predict(images(3, 4)[0], samples=4, **QUIET)
    assert found.probabilities.shape == (3, 4, 4, CLASSES)
    assert found.entropy.shape == found.variation_ratio.shape == (3, 4, 4)


def test_models_inside_whose_layers_share_a_name_stay_whole():
    def part(units):
        inner = [layers.Dropout(0.5, name="drop"), layers.Dense(units, name="dense")]
        return keras.Sequential([keras.Input((4,)), *inner])

    network = keras.Sequential([keras.Input((4,)), layers.Dense(4), part(4), part(3)])
    said = kd.MonteCarloDropout(network).predict(np.ones((2, 4)), samples=3, verbose=0)
    assert said.probabilities.shape == (2, 3)
