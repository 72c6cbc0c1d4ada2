"""Cached teachers: they teach what the network would, or say why not.

Networks of whole numbers compute without rounding, so that every batch size and backend gives the
same bits. The references are NumPy in float64.
"""

import collections
import errno
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import kdtoolkit as kd
from kdtoolkit.cache import speaker as speaking
from kdtoolkit.cache.contents import Contents, divergence
from kdtoolkit.cache.draft import Draft
from kdtoolkit.cache.format import Column
from kdtoolkit.cache.lookup import Lookup
from kdtoolkit.data.keys import is_arrays
from kdtoolkit.locks import alone
from tests import reference
from tests.helpers import array, gradient
from tests.support import CLASSES, FEATURES, crossentropy, data, dense, fit
from tests.support import largest_difference as difference

pytestmark = pytest.mark.core
EXAMPLES = 45


def whole(examples=EXAMPLES, seed=0):
    """Inputs of whole numbers, and labels."""
    generator = np.random.default_rng(seed)
    x = generator.integers(-4, 5, (examples, FEATURES)).astype("float32")
    return x, generator.integers(CLASSES, size=examples)


def exact(seed=0, bias=0.0):
    """A network of whole numbers, which rounds nothing."""
    model, generator = dense(4, seed, norm=False), np.random.default_rng(seed)
    weights = [generator.integers(-3, 4, w.shape).astype("float32") for w in model.get_weights()]
    weights[-1] += bias
    model.set_weights(weights)
    return model


def cache(teacher, x, path, **kwargs):
    return kd.cache_teacher(teacher, x, path, **{"verbose": 0, **kwargs})


def taught(cached, x):
    """What a source says of a batch with ids, as arrays: the output and the layers."""
    view = cached.read(None, None, {"stored": cached.attach(x)["stored"]})
    return array(view["output"]), {path: array(tap) for path, tap in view["taps"].items()}


def run(model, x):
    return array(model.predict_on_batch(x))


def student(**kwargs):
    return dense(4, 1, norm=False, **kwargs)


def distill(teacher, learner=None, graph=False, **kwargs):
    """A compiled distiller. TensorFlow runs a few steps sooner than it makes a graph of one."""
    distiller = kd.Distiller(student=learner or student(), teacher=teacher, **kwargs)
    eager = keras.backend.backend() == "tensorflow" and not graph
    distiller.compile(keras.optimizers.SGD(0.2), crossentropy(), run_eagerly=eager)
    return distiller


def files(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


class Batches(keras.utils.PyDataset):
    """Batches of a user's own, of the rows that are named."""

    def __init__(self, x, y, rows, **kwargs):
        super().__init__(**kwargs)
        self.x, self.y, self.rows = x, y, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        rows = np.asarray(self.rows[index])
        return kd.data.with_ids(self.x[rows], rows), self.y[rows]


def some_rows(seed=1):
    """All examples, some of them twice in a batch, and a smaller batch at the end."""
    order = np.random.default_rng(seed).permutation(EXAMPLES)
    return [[*order[:20], *order[:4]], [*order[20:41], order[20], *order[3:5]], order[41:]]


def signs(views=3, **kwargs):
    """A pipeline whose augmentation keeps whole numbers whole."""

    class Signs(kd.data.augment.Augmentation):
        def draw(self, generator, count):
            return generator.choice(np.array([-1.0, 1.0, 2.0], "float32"), (count, FEATURES))

        def apply(self, images, draws):
            return images * draws

    x, y = kwargs.pop("data", whole())
    kwargs = {"batch_size": 16, "augment": Signs(), "seed": 3, **kwargs}
    return kd.data.ArrayPipeline(x, y, views=views, **kwargs)


@pytest.fixture
def asked(monkeypatch):
    """How many examples the teacher was asked about at each call."""
    sizes, original = [], speaking._Pass.predict_on_batch

    def counting(self, x):
        sizes.append(len(keras.tree.flatten(x)[0]))
        return original(self, x)

    monkeypatch.setattr(speaking._Pass, "predict_on_batch", counting)
    return sizes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Caches of `exact()` for `whole()` and for the views of `signs()`, and of another teacher."""
    folder = tmp_path_factory.mktemp("made")
    cache(exact(), whole()[0], folder / "plain")
    cache(exact(bias=3.0), whole()[0], folder / "other")
    cache(exact(), signs(), folder / "views")
    return folder


# --- what is read is what the teacher says -------------------------------------------------------

KINDS = {
    "arrays": lambda: whole(),
    "arrays with ids": lambda: (
        kd.data.with_ids(whole()[0][::-1], np.arange(EXAMPLES)[::-1]),
        whole()[1][::-1],
    ),
    "pipeline": lambda: (signs(None, augment=None, example_ids=True), None),
    "a user's batches": lambda: (Batches(*whole(), some_rows()), None),
    "views": lambda: (signs(), None),
}


def off_by_one(*cached):
    """A distiller whose student says 1 more than `exact()` everywhere, and doesn't learn."""
    teachers = {f"teacher{index}": source for index, source in enumerate(cached)}
    edges = [kd.Transfer(kd.losses.LogitsMSE(), source=n, name=f"gap_{n}") for n in teachers]
    distiller = kd.Distiller(student=exact(bias=1.0), teacher=teachers, transfers=edges)
    distiller.compile(keras.optimizers.SGD(0.0))
    return distiller


def gaps(distiller, x, y=None, **kwargs):
    """What each epoch's mean squared difference is; 1 where each row is the right one."""
    history = fit(distiller, x, y, **{"shuffle": y is not None, **kwargs}).history
    return [history[name] for name in sorted(history) if name.startswith("gap")]


def test_each_example_meets_what_the_teacher_said_about_it(made):
    distiller = off_by_one(kd.CachedTeacher(made / "plain"))
    for kind in list(KINDS)[:-1]:
        assert gaps(distiller, *KINDS[kind]()) == [[1.0, 1.0]], kind


def test_each_view_meets_what_the_teacher_said_about_it(made):
    assert gaps(off_by_one(kd.CachedTeacher(made / "views")), signs(), epochs=4) == [[1.0] * 4]


def test_other_batch_sizes_change_the_last_bits_at_most(tmp_path):
    x, teacher = data(EXAMPLES)[0], dense(64, norm=False)
    same = cache(teacher, x, tmp_path / "same", batch_size=9)
    expected = np.concatenate([run(teacher, x[i : i + 9]) for i in range(0, EXAMPLES, 9)])
    batch = kd.data.with_ids(x)
    np.testing.assert_array_equal(taught(same, batch)[0], expected)
    other = cache(teacher, x, tmp_path / "other", batch_size=EXAMPLES)
    np.testing.assert_allclose(taught(other, batch)[0], expected, atol=1e-6)


def test_layers_come_with_the_output(tmp_path):
    x, teacher = whole()[0], exact()
    cached = cache(teacher, x, tmp_path / "cache", layers=["hidden", "logits"])
    output, layers_read = taught(cached, kd.data.with_ids(x))
    np.testing.assert_array_equal(output, run(teacher, x))
    np.testing.assert_array_equal(layers_read["logits"], output)
    first, bias = teacher.get_weights()[:2]
    np.testing.assert_array_equal(layers_read["hidden"], np.maximum(x @ first + bias, 0))
    assert cached.layers_held == ("hidden", "logits")


def test_half_precision_rounds_each_number_once(tmp_path):
    x, teacher = data(EXAMPLES)[0], dense(64, norm=False)
    half = cache(teacher, x, tmp_path / "half", dtype="float16", layers=["hidden"])
    output, layers_read = taught(half, kd.data.with_ids(x))
    np.testing.assert_array_equal(output, run(teacher, x).astype("float16"))
    assert layers_read["hidden"].any()
    full = cache(teacher, x, tmp_path / "full", layers=["hidden"])
    assert half.size < 0.6 * full.size
    assert half.classes == full.classes == CLASSES


# --- the students learn the same -----------------------------------------------------------------


def learned(teacher, x, y=None, graph=True, **kwargs):
    """A student's weights after three epochs."""
    distiller = distill(teacher, graph=graph)
    kwargs = {"epochs": 3, "shuffle": y is not None, **kwargs}
    history = fit(distiller, x, y, **kwargs).history
    return distiller.student.get_weights(), history


WAYS = {
    "arrays, some for validation": lambda: (*data(48), {"validation_split": 1 / 3}),
    "views": lambda: (signs(2, data=data(32)), None, {"validation_data": data(16, seed=5)}),
    "a user's batches": lambda: (Batches(*data(EXAMPLES), some_rows()), None, {"graph": False}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_student_learns_what_it_learns_from_the_network(way, tmp_path):
    x, y, options = WAYS[way]()
    teacher = dense(16, seed=2, norm=False)

    def callbacks():
        # Each run begins at epoch 0 of the pipeline.
        own = isinstance(x, kd.data.ArrayPipeline)
        return [kd.data.FollowEpochs(x)] if own else []

    counts = is_arrays(x) or isinstance(x, kd.data.ArrayPipeline)
    cached = cache(teacher, x, tmp_path / "cache", examples=None if counts else EXAMPLES)
    live, first = learned(teacher, x, y, callbacks=callbacks(), **options)
    ours, second = learned(cached, x, y, callbacks=callbacks(), **options)
    assert difference(live, ours) < 1e-6
    assert difference(ours, student().get_weights()) > 0.05
    for name, values in first.items():
        np.testing.assert_allclose(second[name], values, rtol=1e-4, err_msg=name)


@pytest.mark.tensorflow
def test_a_student_learns_the_same_beside_other_teachers_and_from_layers(tmp_path):
    x, y = data(32)
    teacher = dense(16, seed=2)
    cached = cache(teacher, x, tmp_path / "cache", layers=["hidden", "norm"])

    def run_with(first):
        edges = [
            kd.Transfer(kd.losses.SoftTargets(2.0), source="first", weight=0.5),
            kd.Transfer(
                kd.losses.Hint(), source="first", source_layer="hidden", student_layer="hidden"
            ),
            kd.Transfer(
                kd.losses.RelationalDistance(),
                source="first",
                source_layer="norm",
                student_layer="hidden",
            ),
            kd.Transfer(kd.losses.SoftTargets(4.0), source="second", weight=0.3),
            kd.Transfer(kd.losses.SoftCrossEntropy(), source="past", weight=0.2, name="past"),
        ]
        teachers = {
            "first": first,
            "second": dense(4, seed=7),
            "past": kd.sources.PredictionMemory(),
        }
        distiller = distill(teachers, transfers=edges, label_weight=0.5)
        fit(distiller, x, y, epochs=3, callbacks=[kd.callbacks.PeriodicTeacher()])
        return distiller.student.get_weights()

    live, ours = run_with(teacher), run_with(cached)
    assert difference(live, ours) < 1e-6
    assert difference(ours, student().get_weights()) > 0.05


def two_headed(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    heads = {"coarse": layers.Dense(2)(inputs), "fine": layers.Dense(CLASSES)(inputs)}
    return keras.Model(inputs, heads)


@pytest.mark.tensorflow
def test_a_teacher_with_several_outputs_teaches_each(tmp_path):
    x, y = data(32)
    teacher = two_headed()
    with pytest.raises(ValueError, match=r"several outputs.*`layers`.*\['coarse', 'fine'\]"):
        cache(teacher, x, tmp_path / "cache")
    cached = cache(teacher, x, tmp_path / "cache", layers=["fine", "coarse"])
    assert cached.classes is None
    for source in (teacher, cached):
        with pytest.raises(ValueError, match="has several outputs.*Expected one of"):
            distill(source, transfers=[kd.Transfer(kd.losses.SoftTargets())])

    def run_with(source):
        keras.utils.set_random_seed(1)
        learner = two_headed(1)
        edges = [
            kd.Transfer(kd.losses.SoftTargets(2.0), source_layer=key, student_layer=key, name=key)
            for key in ("coarse", "fine")
        ]
        distiller = distill(source, learner, transfers=edges)
        distiller.compile(keras.optimizers.SGD(0.1), run_eagerly=distiller.run_eagerly)
        fit(distiller, x, epochs=3)
        return learner.get_weights()

    live, ours = run_with(teacher), run_with(cached)
    assert difference(live, ours) < 1e-6
    assert difference(ours, two_headed(1).get_weights()) > 0.01


# --- the strongest classes -----------------------------------------------------------------------


def speaker(classes):
    """A network whose logits are its inputs."""
    return keras.Sequential([keras.Input((classes,)), layers.Activation("linear", name="same")])


def spread(logits, k):
    """The k largest log-probabilities, and the mean of the other probabilities, by hand."""
    logs = np.array([reference.log_softmax(row) for row in logits])
    for row in logs:
        order = np.argsort(-row, kind="stable")
        others = row[order[k:]]
        top = others.max()
        row[order[k:]] = top + np.log(np.mean(np.exp(others - top)))
    return logs


@pytest.mark.parametrize(
    "k, dtype", [(1, "float32"), (3, "float32"), (3, "float16"), (9, "float16")]
)
def test_the_strongest_classes_stay_and_the_rest_is_spread(k, dtype, tmp_path):
    logits = np.random.default_rng(k).normal(0, 3, (12, 10)).astype("float32")
    cached = cache(speaker(10), logits, tmp_path / "cache", top_k=k, dtype=dtype)
    found, _ = taught(cached, kd.data.with_ids(logits))
    expected = spread(logits, k)
    # Half precision has 11 bits.
    bound = 1e-6 if dtype == "float32" else 2**-11 * np.abs(expected)
    assert np.all(np.abs(found - expected) <= bound + 1e-6)
    sums = np.exp(found).sum(axis=-1)
    np.testing.assert_allclose(sums, 1, atol=1e-5 if dtype == "float32" else 5e-3)
    row = cached.attach(kd.data.with_ids(logits))["stored"][cached.name]
    np.testing.assert_array_equal(row["indices"], np.argsort(-logits, axis=-1)[:, :k])
    assert (row["values"].dtype, row["indices"].dtype) == (dtype, "uint16")
    assert np.all(np.diff(row["values"][:, :-1], axis=-1) <= 0)


def test_what_is_lost_is_the_order_of_the_rest():
    logits = np.random.default_rng(0).normal(0, 3, (12, 10))
    contents = Contents((10,), {}, top_k=3)
    found = array(contents.decode(contents.encode({"output": logits}))["output"])
    lost = divergence(logits, found)
    p = reference.softmax(logits)
    for row, value in zip(p, lost, strict=True):
        others = np.sort(row)[:-3]
        assert abs(np.sum(others * np.log(others / others.mean())) - value) < 1e-6
    assert lost.min() > 1e-4
    # All but one kept: nothing is lost.
    contents = Contents((10,), {}, top_k=9)
    found = array(contents.decode(contents.encode({"output": logits}))["output"])
    np.testing.assert_allclose(reference.softmax(found), p, atol=1e-6)


def test_equal_classes_share_evenly():
    contents = Contents((5,), {}, top_k=2)
    logits = np.array([[1.0, 1, 1, 1, 1], [0, 2, 2, 2, 0], [3, 0, 0, 0, 0]])
    found = array(contents.decode(contents.encode({"output": logits}))["output"])
    np.testing.assert_allclose(found[0], np.log([0.2] * 5), atol=1e-6)
    expected = spread(logits, 2)
    np.testing.assert_allclose(np.sort(found, axis=-1), np.sort(expected, axis=-1), atol=1e-6)
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1, atol=1e-6)
    assert set(np.argsort(-found[1])[:2]) < {1, 2, 3} and np.argmax(found[2]) == 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_probabilities_that_underflow_are_still_logits(dtype):
    logits = np.array([[2000.0, 1000, 800, 700], [0, -1e30, -1e30, -1e30]], "float32")
    contents = Contents((4,), {}, dtype, 2)
    found = array(contents.decode(contents.encode({"output": logits}))["output"])
    # Both others of the first row: log((e^-1200 + e^-1300) / 2).
    rest = -1200 - np.log(2)
    np.testing.assert_allclose(found[0], [0, -1000, rest, rest], rtol=2**-11)
    np.testing.assert_array_equal(found[1], [0, -1e4, -1e4, -1e4])


def test_half_precision_refuses_what_it_cannot_hold(tmp_path):
    x = np.array([[1.0, 70000.0]], "float32")
    with pytest.raises(ValueError, match='up to 65504. Received.*70000.*dtype="float32"'):
        cache(speaker(2), x, tmp_path / "cache", dtype="float16")
    assert not (tmp_path / "cache").exists()
    cached = cache(speaker(2), x, tmp_path / "full")
    np.testing.assert_array_equal(taught(cached, kd.data.with_ids(x))[0], x)


def test_many_classes_have_wide_numbers(tmp_path):
    logits = np.random.default_rng(0).normal(size=(3, 70000)).astype("float32")
    logits[:, -1] = 20
    cached = cache(speaker(70000), logits, tmp_path / "cache", top_k=4, dtype="float16")
    found, _ = taught(cached, kd.data.with_ids(logits))
    assert np.all(found.argmax(axis=-1) == 69999)
    np.testing.assert_allclose(found, spread(logits, 4), rtol=2**-11, atol=2**-11)
    kinds = {c: Contents((c,), {}, top_k=1).columns[1].dtype for c in (65536, 65537)}
    assert kinds == {65536: "uint16", 65537: "uint32"}


def test_the_gradient_of_a_loss_is_that_of_the_spread_logits(tmp_path):
    logits = np.random.default_rng(0).normal(0, 3, (12, 10)).astype("float32")
    learner = np.random.default_rng(1).normal(size=(12, 10)).astype("float32")
    cached = cache(speaker(10), logits, tmp_path / "cache", top_k=3)
    found = taught(cached, kd.data.with_ids(logits))[0].astype("float32")
    for temperature in (1.0, 4.0):
        loss = kd.losses.SoftTargets(temperature)
        slope = gradient(loss.values, found, learner, argnum=1)
        p = reference.softmax(spread(logits, 3), temperature)
        expected = temperature * (reference.softmax(learner, temperature) - p)
        np.testing.assert_allclose(slope, expected, atol=1e-5)


# --- in a distiller ------------------------------------------------------------------------------


def test_evaluation_and_prediction_are_the_students_own(tmp_path):
    x, y = data(32)
    distiller = distill(cache(dense(16, seed=2, norm=False), x, tmp_path / "cache"))
    fit(distiller, x, y, epochs=1)
    other, labels = data(32, seed=4)
    np.testing.assert_array_equal(
        distiller.predict(other, verbose=0), distiller.student.predict(other, verbose=0)
    )
    loss = distiller.evaluate(other, labels, verbose=0, return_dict=True)
    expected = reference.cross_entropy(
        reference.one_hot(labels, CLASSES), run(distiller.student, other)
    )
    np.testing.assert_allclose(loss["loss"], expected.mean(), rtol=1e-5)
    assert not {"soft_targets"} & set(loss)


def test_a_saved_distiller_goes_on_with_its_cache(tmp_path, monkeypatch):
    x, y = data(32)
    monkeypatch.chdir(tmp_path)
    distiller = distill(cache(dense(16, seed=2, norm=False), x, "cache"))
    fit(distiller, x, y)
    distiller.save(tmp_path / "half.keras")
    distiller.student.save(tmp_path / "student.keras")
    monkeypatch.chdir("/")
    alone = keras.models.load_model(tmp_path / "student.keras")
    assert difference(alone.get_weights(), distiller.student.get_weights()) == 0
    loaded = keras.models.load_model(tmp_path / "half.keras")
    assert loaded.sources["teacher"].directory == str(tmp_path / "cache")
    for model in (distiller, loaded):
        fit(model, x, y, epochs=1)
    assert difference(loaded.student.get_weights(), distiller.student.get_weights()) == 0
    assert difference(loaded.student.get_weights(), alone.get_weights()) > 1e-3


def test_a_source_is_made_again_from_its_config(tmp_path):
    cached = cache(exact(), whole()[0], tmp_path / "cache")
    source = kd.CachedTeacher(tmp_path / "cache", check_inputs=False, name="old")
    config = source.get_config()
    again = kd.CachedTeacher.from_config(config)
    assert again.get_config() == config
    assert (again.name, again.check_inputs, again.about) == ("old", False, cached.about)
    other = kd.data.with_ids(-whole()[0])
    np.testing.assert_array_equal(taught(again, other)[0], run(exact(), whole()[0]))
    with pytest.raises(ValueError, match="saw other inputs"):
        cached.attach(other)


@pytest.mark.parametrize("kind", ["arrays", "a user's batches"])
def test_two_caches_teach_at_once_and_have_names_of_their_own(kind, made):
    first = kd.CachedTeacher(made / "plain", name="first")
    second = kd.CachedTeacher(made / "other", name="second")
    assert gaps(off_by_one(first, second), *KINDS[kind](), epochs=1) == [[1.0], [4.0]]
    same = kd.CachedTeacher(made / "other", name="first")
    with pytest.raises(ValueError, match="under the name 'first' already. Give each source a name"):
        gaps(off_by_one(first, same), *KINDS[kind]())


def test_the_network_is_not_needed_and_the_step_is_not_made_anew(tmp_path, monkeypatch):
    x, y = data(32)
    teacher = dense(16, seed=2, norm=False)
    distiller = distill(cache(teacher, x, tmp_path / "cache"), graph=True)
    assert not any(w is v for w in teacher.weights for v in distiller.variables)
    monkeypatch.setattr(teacher, "call", lambda *args, **kwargs: pytest.fail("the teacher ran"))
    traces, original = [], distiller.compute_loss

    def compute_loss(*args, **kwargs):
        traces.append(1)
        return original(*args, **kwargs)

    distiller.compute_loss = compute_loss
    after = []
    count = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: after.append(len(traces)))
    fit(distiller, x, y, epochs=3, callbacks=[count])
    assert 0 < after[0] == after[2]


def test_a_loop_of_ones_own_attaches_the_rows(tmp_path):
    x, y = data(32)
    cached = cache(dense(16, seed=2, norm=False), x, tmp_path / "cache")
    batch = kd.data.with_ids(x[8:16], np.arange(8, 16))
    with pytest.raises(ValueError, match="reads its rows from the batch.*attach"):
        distill(cached).train_on_batch(batch, y[8:16])
    logs = distill(cached).train_on_batch(cached.attach(batch), y[8:16], return_dict=True)
    assert logs["soft_targets"] > 0


# --- building ------------------------------------------------------------------------------------


def test_the_files_do_not_depend_on_the_batch_size_or_the_order(tmp_path):
    x, teacher = whole()[0], exact()
    options = {"layers": ["hidden"], "top_k": 2}
    expected = None
    for index, batch_size in enumerate([1, 7, 45, 1000]):
        cache(teacher, x, tmp_path / str(index), batch_size=batch_size, **options)
        expected = expected or files(tmp_path / "0")
        assert files(tmp_path / str(index)) == expected
    for kind in list(KINDS)[:-1]:
        cached = cache(teacher, KINDS[kind]()[0], tmp_path / kind, examples=EXAMPLES, **options)
        row = cached.attach(kd.data.with_ids(x))["stored"][cached.name]
        again = kd.CachedTeacher(tmp_path / "0")
        expected = again.attach(kd.data.with_ids(x))["stored"][again.name]
        assert all(np.array_equal(row[name], expected[name]) for name in expected)


def test_an_interrupted_building_asks_for_what_is_missing(tmp_path, asked, monkeypatch):
    x, teacher = whole()[0], exact()
    cache(teacher, x, tmp_path / "whole", batch_size=10)
    assert asked == [10, 10, 10, 10, 5, 45]
    interrupted(x, tmp_path / "cache", monkeypatch, batch_size=10)
    with pytest.raises(FileNotFoundError, match="isn't finished.*same arguments.*to go on"):
        kd.CachedTeacher(tmp_path / "cache")
    asked.clear()
    cache(teacher, x, tmp_path / "cache", batch_size=10)
    assert asked == [10, 10, 5, 45]
    assert files(tmp_path / "cache") == files(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "whole"]


def test_a_finished_cache_is_taken_as_it_is(tmp_path, asked):
    x, teacher = whole()[0], exact()
    first = cache(teacher, x, tmp_path / "cache", top_k=1)
    asked.clear()
    again = cache(teacher, x, tmp_path / "cache", top_k=1, part=(1, 3))
    # A sample, in one go.
    assert asked == [EXAMPLES] and again.about == first.about


def test_a_finished_cache_is_compared_with_teacher_and_data(tmp_path):
    x, teacher = whole()[0], exact()
    cache(teacher, x, tmp_path / "cache")
    other = keras.models.clone_model(teacher)
    other.get_layer("hidden").activation = keras.activations.tanh
    other.set_weights(teacher.get_weights())
    with pytest.raises(ValueError, match="says something else when it is asked again"):
        cache(other, x, tmp_path / "cache")
    changed = x.copy()
    changed[1] += 1
    with pytest.raises(ValueError, match="data changed since"):
        cache(teacher, changed, tmp_path / "cache")


def test_processes_that_build_the_same_wait_for_each_other(tmp_path):
    with alone(tmp_path / "cache", (0, 1)):
        code = (
            "import sys; from kdtoolkit.locks import alone\n"
            "with alone(sys.argv[1], (0, 1)): print('in', flush=True)"
        )
        environment = {**os.environ, "KERAS_BACKEND": "numpy"}
        command = [sys.executable, "-c", code, str(tmp_path / "cache")]
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            child.communicate(timeout=6)
    assert child.communicate(timeout=60)[0] == "in\n"


@pytest.mark.parametrize("kind", ["arrays", "views", "a user's batches"])
def test_parts_make_the_same_cache_one_after_the_other(kind, tmp_path, asked):
    x, _ = KINDS[kind]()
    teacher, examples = exact(), {"examples": EXAMPLES}
    expected = cache(teacher, x, tmp_path / "whole", **examples)
    asked.clear()
    assert cache(teacher, x, tmp_path / "cache", part=(1, 2), **examples) is None
    assert cache(teacher, x, tmp_path / "cache", part=(1, 2), **examples) is None
    views = expected.views
    assert 0.4 < sum(asked) / (views * EXAMPLES) < 0.6
    assert cache(teacher, x, tmp_path / "cache", part=(0, 2), **examples).about == expected.about
    assert files(tmp_path / "cache") == files(tmp_path / "whole")


CHILD = """
import sys, time
import numpy as np, keras
import kdtoolkit as kd
from kdtoolkit.cache import draft, speaker as speaking
draft._FLUSH_SECONDS = 0.0
given = np.load(sys.argv[1])
inputs = keras.Input((6,))
hidden = keras.layers.Dense(4, "relu")(inputs)
teacher = keras.Model(inputs, keras.layers.Dense(3)(hidden))
teacher.set_weights([given[str(i)] for i in range(4)])
speak = speaking._Pass.predict_on_batch
def told(self, x):
    print(len(x), flush=True)
    time.sleep(0.02)
    return speak(self, x)
speaking._Pass.predict_on_batch = told
for line in sys.stdin:
    path, *part = line.split()
    part = tuple(map(int, part))
    made = kd.cache_teacher(teacher, given["x"], path, batch_size=3, part=part, verbose=0)
    print(made is not None, flush=True)
"""


@pytest.fixture
def process(tmp_path):
    """A process that caches `exact()` for `whole()`, on NumPy, where Keras starts fastest."""
    weights = {str(index): w for index, w in enumerate(exact().get_weights())}
    np.savez(tmp_path / "given.npz", x=whole()[0], **weights)
    root = str(pathlib.Path(kd.__file__).parent.parent)
    environment = {**os.environ, "KERAS_BACKEND": "numpy", "PYTHONPATH": root}
    command = [sys.executable, "-c", CHILD, str(tmp_path / "given.npz")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as child:
        yield child
        child.kill()


def tell(process, path, part):
    process.stdin.write(f"{path} {part[0]} {part[1]}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "3\n"


def test_another_process_may_build_at_the_same_time_and_may_be_killed(tmp_path, process, asked):
    x, teacher = whole()[0], exact()
    cache(teacher, x, tmp_path / "expected")
    tell(process, tmp_path / "both", (1, 2))
    made = cache(teacher, x, tmp_path / "both", part=(0, 2), batch_size=1)
    while (answer := process.stdout.readline()).strip().isdigit():
        pass
    assert answer == "True\n" or (answer == "False\n" and made is not None)
    tell(process, tmp_path / "killed", (0, 1))
    assert [process.stdout.readline() for _ in range(2)] == ["3\n"] * 2
    process.kill()
    process.wait()
    assert not (tmp_path / "killed").exists()
    asked.clear()
    cache(teacher, x, tmp_path / "killed", batch_size=3)
    # Two of its calls were written at least; the third was on its way.
    assert asked == [3] * (len(asked) - 1) + [45] and 2 < len(asked) <= 14
    for name in ("both", "killed"):
        assert files(tmp_path / name) == files(tmp_path / "expected")


def test_the_size_the_progress_and_the_loss_are_told(tmp_path, capsys):
    logits = np.random.default_rng(0).normal(0, 3, (50, 10)).astype("float32")
    path = tmp_path / "cache"
    cached = kd.cache_teacher(speaker(10), logits, path, top_k=3, part=(0, 2))
    told = capsys.readouterr().out
    assert cached is None and "25 rows of other parts are missing" in told
    size = int(told.split(" takes ")[1].split(" bytes")[0].replace(",", ""))
    cached = kd.cache_teacher(speaker(10), logits, path, top_k=3, part=(1, 2))
    told = capsys.readouterr().out
    assert cached.size == size
    expected = divergence(logits, spread(logits, 3))
    assert f"of 50 examples in nats: mean {expected.mean():.2e}" in told
    assert f"largest {expected.max():.2e}" in told


def test_preprocessing_is_the_live_teachers(tmp_path):
    x, y = data(32)
    teacher, layer = dense(16, seed=2, norm=False), layers.Normalization(name="own")
    layer.adapt(3 * x + 1)
    cached = cache(teacher, x, tmp_path / "cache", preprocess=layer)
    expected = run(teacher, array(layer(x)).astype("float32"))
    np.testing.assert_allclose(taught(cached, kd.data.with_ids(x))[0], expected, atol=1e-6)
    live = distill(teacher, preprocess={"teacher": layer})
    ours = distill(cached)
    for distiller in (live, ours):
        fit(distiller, x, y)
    assert difference(live.student.get_weights(), ours.student.get_weights()) < 1e-6
    with pytest.raises(
        ValueError, match="`preprocess` makes the input of a network.*cache_teacher"
    ):
        distill(cached, preprocess={"teacher": layer})


def test_preprocessing_is_known_again_by_what_it_does(tmp_path):
    x, teacher = data(32)[0], exact()

    def adapted(to, **kwargs):
        layer = layers.Normalization(**kwargs)
        layer.adapt(to)
        return layer

    made = cache(teacher, x, tmp_path / "cache", preprocess=adapted(x))
    used = adapted(x, name="another_name")
    used(x[:5])
    assert cache(teacher, x, tmp_path / "cache", preprocess=used).about == made.about
    for other in (adapted(2 * x), layers.Rescaling(2.0), None):
        with pytest.raises(ValueError, match="holds another cache. Expected preprocess"):
            cache(teacher, x, tmp_path / "cache", preprocess=other)

    def network(scale):
        inputs = keras.Input((FEATURES,))
        return keras.Model(inputs, layers.Rescaling(scale)(layers.Activation("tanh")(inputs)))

    made = cache(teacher, x, tmp_path / "network", preprocess=network(2.0))
    # Keras has other names for the same layers.
    again = cache(teacher, x, tmp_path / "network", preprocess=network(2.0))
    assert again.about == made.about
    with pytest.raises(ValueError, match="holds another cache. Expected preprocess"):
        cache(teacher, x, tmp_path / "network", preprocess=network(3.0))


def test_inner_layers_may_hold_probabilities(tmp_path):
    inputs = keras.Input((FEATURES,))
    gate = layers.Dense(4, "softmax", name="gate")(inputs)
    teacher = keras.Model(inputs, layers.Dense(CLASSES)(gate))
    x = whole()[0]
    cached = cache(teacher, x, tmp_path / "cache", layers=["gate"])
    found = taught(cached, kd.data.with_ids(x))[1]["gate"]
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)


def test_logits_that_happen_to_sum_to_1_are_logits(tmp_path):
    logits = np.array([[3.0, 1.0], [2.0, 5.0], [0.25, 0.75]], "float32")
    cached = cache(speaker(2), logits, tmp_path / "cache", batch_size=2)
    np.testing.assert_array_equal(taught(cached, kd.data.with_ids(logits))[0], logits)


# --- what building refuses -----------------------------------------------------------------------


class Softmax(keras.Model):
    """Probabilities that only its values show."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(CLASSES, "softmax")

    def call(self, inputs):
        return self.inner(inputs)


def broken():
    model = exact()
    model.set_weights([w * np.nan for w in model.get_weights()])
    return model


def seen(model):
    model(np.zeros((1, FEATURES), "float32"))
    return model


TEACHERS = {
    "a function": (TypeError, "must be a keras.Model", lambda: len, {}),
    "not built": (ValueError, "isn't built", lambda: Softmax(), {}),
    "NaN": (ValueError, "returns 135 values of 135 that are NaN", broken, {}),
    "softmax": (
        ValueError,
        "returns probabilities",
        lambda: keras.Sequential([keras.Input((FEATURES,)), layers.Dense(3, "softmax")]),
        {},
    ),
    "softmax in values": (ValueError, "returns probabilities", lambda: seen(Softmax()), {}),
    "no such layer": (ValueError, "has no layer 'x'", exact, {"layers": ["x"]}),
    "dtype": (ValueError, "`dtype` must be one of", exact, {"dtype": "int8"}),
    "no class": (ValueError, "`top_k` must be from 1 to 2", exact, {"top_k": 0}),
    "all classes": (ValueError, "`top_k` must be from 1 to 2", exact, {"top_k": CLASSES}),
    "half a class": (TypeError, "`top_k` must be an integer", exact, {"top_k": 1.5}),
    "top_k of several outputs": (
        ValueError,
        r"Expected a teacher that returns logits \(batch, classes\). Received.*None",
        two_headed,
        {"top_k": 1, "layers": ["fine"]},
    ),
    "batch_size": (ValueError, "`batch_size` must be an integer >= 1", exact, {"batch_size": 0}),
    "part": (ValueError, r"`part` must be \(i, n\) with 0 <= i < n", exact, {"part": (2, 2)}),
}


@pytest.mark.parametrize("case", TEACHERS)
def test_a_teacher_or_option_that_cannot_be_cached_is_refused(case, tmp_path):
    error, message, teacher, options = TEACHERS[case]
    with pytest.raises(error, match=message):
        cache(teacher(), whole()[0], tmp_path / "cache", **options)
    assert not (tmp_path / "cache").exists()


def test_a_layer_that_is_not_as_large_for_all_examples_is_refused(tmp_path):
    inputs = keras.Input((None, 2))
    h = layers.Dense(2, name="tokens")(inputs)
    teacher = keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(h)))

    class Texts(keras.utils.PyDataset):
        num_batches = 2

        def __getitem__(self, index):
            x = np.ones((2, 3 + index, 2), "float32")
            return kd.data.with_ids(x, 2 * index + np.arange(2))

    cache(teacher, Texts(), tmp_path / "outputs", examples=4)
    with pytest.raises(ValueError, match=r"'tokens'.*\(3, 2\) for some.*\(4, 2\) for others.*pool"):
        cache(teacher, Texts(), tmp_path / "cache", examples=4, layers=["tokens"])


def test_a_teacher_that_draws_is_refused(tmp_path):
    teacher = kd.MonteCarloDropout(dense(dropout=0.5))
    with pytest.raises(ValueError, match="something else when it is asked.*Delete .*building"):
        cache(teacher, data(40)[0], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


class Endless(keras.utils.PyDataset):
    num_batches = None


ROWS = [[0, 1, 2], [3, 4]]
DATA = {
    "a list of numbers": (TypeError, "is cached for arrays", lambda x, y: [1, 2], {}),
    "a generator": (TypeError, "Received: generator", lambda x, y: (b for b in [x]), {}),
    "nothing": (ValueError, "same length above 0", lambda x, y: x[:0], {}),
    "lengths": (ValueError, "same length", lambda x, y: {"a": x, "b": x[1:]}, {}),
    "ids with a gap": (
        ValueError,
        "Expected the ids 0 to 44, each once. Received: 1 to 45",
        lambda x, y: kd.data.with_ids(x, np.arange(1, 46)),
        {},
    ),
    "how many": (ValueError, "Expected `examples=`", lambda x, y: Batches(x, y, ROWS), {}),
    "no batch": (ValueError, "no batch", lambda x, y: Batches(x, y, []), {"examples": 5}),
    "no ids": (
        ValueError,
        "written by example id. Expected inputs from `kd.data.with_ids`",
        lambda x, y: Plain(x, y, ROWS),
        {"examples": 5},
    ),
    "an id too large": (
        ValueError,
        r"one example id for each example, from 0 to 3. Received: \[3, 4\]",
        lambda x, y: Batches(x, y, ROWS),
        {"examples": 4},
    ),
    "a missing example": (
        ValueError,
        "lack 1 of 6 examples and views.*all 6 examples in 1 views",
        lambda x, y: Batches(x, y, ROWS),
        {"examples": 6},
    ),
    "a missing view": (
        ValueError,
        "lack 5 of 10 examples and views.*all 5 examples in 2 views",
        lambda x, y: Batches(x, y, ROWS),
        {"examples": 5, "views": 2},
    ),
    "no examples": (
        ValueError,
        "There must be examples and views",
        lambda x, y: Batches(x, y, ROWS),
        {"examples": 5, "views": 0},
    ),
    "without an end": (
        ValueError,
        "repeats for ever. Expected one pass",
        lambda x, y: Endless(),
        {"examples": 5},
    ),
    "anew in each epoch": (
        ValueError,
        r"augments or mixes each example anew.*views=k",
        lambda x, y: signs(None),
        {},
    ),
    "mixed": (
        ValueError,
        r"augments or mixes each example anew.*views=k",
        lambda x, y: kd.data.ArrayPipeline(x, batch_size=8, mix=kd.data.Mixup()),
        {},
    ),
}


class Plain(Batches):
    def __getitem__(self, index):
        return self.x[self.rows[index]], self.y[self.rows[index]]


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_cached_are_refused(case, tmp_path):
    error, message, make, options = DATA[case]
    with pytest.raises(error, match=message):
        cache(exact(), make(*whole()), tmp_path / "cache", **options)
    assert not (tmp_path / "cache").exists()


def test_what_is_at_the_path_is_never_overwritten(tmp_path):
    x, y = whole()
    (tmp_path / "notes").write_text("mine")
    for path in (tmp_path, tmp_path / "notes"):
        with pytest.raises(ValueError, match="isn't a cache"):
            cache(exact(), x, path)
    assert (tmp_path / "notes").read_text() == "mine"
    cache(exact(), x, tmp_path / "cache")
    before = files(tmp_path / "cache")
    others = {
        "teacher": lambda: cache(exact(bias=1.0), x, tmp_path / "cache"),
        "data": lambda: cache(exact(), -x, tmp_path / "cache"),
        "examples": lambda: cache(exact(), x[:9], tmp_path / "cache"),
        "contents": lambda: cache(exact(), x, tmp_path / "cache", top_k=1),
        "views": lambda: cache(exact(), signs(), tmp_path / "cache"),
    }
    for key, other in others.items():
        with pytest.raises(ValueError, match=f"holds another cache. Expected {key}"):
            other()
    # A stream doesn't say what is in it.
    cache(exact(), Batches(x, y, some_rows()), tmp_path / "cache", examples=EXAMPLES)
    assert files(tmp_path / "cache") == before


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100))
    with pytest.raises(OSError, match="needs .* bytes.*has 100 bytes left") as caught:
        cache(exact(), whole()[0], tmp_path / "a" / "cache")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def changed(x, rows):
    x = x.copy()
    x[rows] += 1
    return x


def interrupted(x, path, monkeypatch, **options):
    """Leaves a building of which the first batches are there."""
    calls, spoken = [], speaking.Speaker.__call__

    def failing(self, inputs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return spoken(self, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(speaking.Speaker, "__call__", failing)
        with pytest.raises(KeyboardInterrupt):
            cache(exact(), x, path, **options)


@pytest.mark.parametrize("kind", ["at a glance", "one example", "stream", "teacher"])
def test_what_changed_during_an_interruption_is_refused(kind, tmp_path, monkeypatch):
    x, y = whole()
    rows = np.array_split(np.arange(EXAMPLES), 5)
    path, sample = tmp_path / "cache", {"batch_size": 10}
    number = {"examples": EXAMPLES}
    if kind == "stream":
        interrupted(Batches(x, y, rows), path, monkeypatch, **number)
        other, options, message = Batches(changed(x, [7]), y, rows), number, "The data changed"
    else:
        interrupted(x, path, monkeypatch, **sample)
        other = {"at a glance": changed(x, [0]), "one example": changed(x, [7]), "teacher": x}[kind]
        options = sample
        message = {"one example": "The data changed"}.get(kind, "Another cache is being built")
    with pytest.raises(ValueError, match=f"(?s){message}.*(?i:delete) .*cache.building"):
        cache(exact(bias=float(kind == "teacher")), other, path, **options)
    assert not path.exists()


def test_a_stream_that_says_something_else_each_time_is_refused(tmp_path):
    class Augmented(Batches):
        generator = np.random.default_rng(0)

        def __getitem__(self, index):
            inputs, labels = super().__getitem__(index)
            noise = self.generator.normal(size=inputs["inputs"].shape).astype("float32")
            return {**inputs, "inputs": inputs["inputs"] + noise}, labels

    with pytest.raises(ValueError, match="data changed since.*augment"):
        cache(exact(), Augmented(*whole(), some_rows()), tmp_path / "cache", examples=EXAMPLES)
    assert not (tmp_path / "cache").exists()


# --- what reading refuses ------------------------------------------------------------------------


MISTAKES = {
    "another data set": ("plain", "saw other inputs: example 0 of view 0", lambda: whole(seed=9)),
    "reversed": ("plain", "saw other inputs", lambda: (whole()[0][::-1], whole()[1])),
    "preprocessed": ("plain", "same data set.*preprocessing", lambda: (whole()[0] / 2, whole()[1])),
    "fewer": ("plain", "about 45 examples, and there are 20 training", lambda: whole(20)),
    "more": ("plain", "about 45 examples, and there are 50 training", lambda: whole(50)),
    "ids beyond": (
        "plain",
        "about 45 examples, and there are 50 training",
        lambda: (kd.data.with_ids(whole()[0], np.arange(5, 50)), whole()[1]),
    ),
    "no views": ("views", r"holds 3 views.*ArrayPipeline\(..., views=3\)", lambda: whole()),
    "another seed": ("views", "saw other inputs.*augmentation and seed", lambda: (signs(seed=4),)),
    "augmented": (
        "plain",
        "saw other inputs",
        lambda: (signs(None, example_ids=True),),
    ),
    "no ids": (
        "plain",
        "needs example ids.*without 'example_id'",
        lambda: (signs(None, augment=None),),
    ),
    "batches without ids": ("plain", "needs example ids", lambda: (Plain(*whole(), ROWS),)),
    "a generator": (
        "plain",
        "can be read for arrays",
        lambda: (kd.data.with_ids(x) for x in [whole()[0]]),
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_data_that_the_teacher_did_not_see_are_refused(case, made):
    name, message, make = MISTAKES[case]
    given = make()
    given = given if isinstance(given, tuple) else (given,)
    with pytest.raises((ValueError, TypeError), match=message):
        fit(distill(kd.CachedTeacher(made / name)), *given, batch_size=None, shuffle=False)


def test_an_unknown_view_is_refused_before_the_first_step(made):
    pipeline, distiller = signs(4), off_by_one(kd.CachedTeacher(made / "views"))
    follow = {"shuffle": False, "callbacks": [kd.data.FollowEpochs(pipeline)]}
    with pytest.raises(ValueError, match="holds 3 views of each example.* shows 4"):
        fit(distiller, pipeline, epochs=3, **follow)


def test_a_student_of_other_classes_is_refused(made):
    for classes in (2, 5):
        with pytest.raises(ValueError, match=rf"\(None, 3\).*\(None, {classes}\)"):
            distill(kd.CachedTeacher(made / "plain"), student(classes=classes))


def test_a_layer_that_is_not_stored_is_refused(made):
    edge = kd.Transfer(kd.losses.Hint(), source_layer="hidden", student_layer="hidden")
    with pytest.raises(ValueError, match=r"source_layer=None. Received: .*\['hidden'\]"):
        distill(kd.CachedTeacher(made / "plain"), transfers=[edge])


def test_another_teachers_cache_is_refused(made):
    kd.CachedTeacher(made / "plain", teacher=exact())
    with pytest.raises(ValueError, match="another teacher's cache.*Cache this teacher at another"):
        kd.CachedTeacher(made / "plain", teacher=exact(bias=1.0))
    with pytest.raises(TypeError, match="must be a keras.Model. Received: str"):
        kd.CachedTeacher(made / "plain", teacher="plain")


def test_what_is_no_cache_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no cache at .*nowhere"):
        kd.CachedTeacher(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="isn't a cache"):
        kd.CachedTeacher(tmp_path)
    for index, about in enumerate([{}, {"contents": 3}, {"examples": "a"}]):
        draft = Draft(tmp_path / str(index), 1, [Column("number", "int32")], about)
        draft.write([0], {"number": np.array([1], "int32")})
        draft.finish()
        with pytest.raises(ValueError, match="holds a table, but none of a teacher's outputs"):
            kd.CachedTeacher(tmp_path / str(index))


def test_a_damaged_cache_is_refused(made, tmp_path):
    whole_bytes = (made / "plain" / "00000.kdcache").read_bytes()
    file = tmp_path / "cache" / "00000.kdcache"
    file.parent.mkdir()
    file.write_bytes(whole_bytes[:-64])
    with pytest.raises(ValueError, match="00000.kdcache is damaged"):
        kd.CachedTeacher(tmp_path / "cache")
    flipped = bytearray(whole_bytes)
    start = 16 + int.from_bytes(whole_bytes[8:12], "little")
    flipped[start + 3] ^= 64
    file.write_bytes(flipped)
    cached = kd.CachedTeacher(tmp_path / "cache")
    for use in (cached.check, lambda: fit(distill(cached), *whole())):
        with pytest.raises(ValueError, match="column 'output' with the checksum"):
            use()
    file.write_bytes(whole_bytes)
    kd.CachedTeacher(tmp_path / "cache").check()


# --- the data's side -----------------------------------------------------------------------------


def test_a_pipeline_repeats_its_views_and_not_its_order():
    x, y = whole()
    pipeline = signs(2, batch_size=EXAMPLES)
    orders = []
    for epoch in range(6):
        pipeline.epoch = epoch
        batch, labels = pipeline[0]
        rows = batch["example_id"]
        np.testing.assert_array_equal(batch["example_view"], np.full(EXAMPLES, epoch % 2))
        np.testing.assert_array_equal(labels, y[rows])
        np.testing.assert_array_equal(batch["inputs"], pipeline.view(rows, epoch % 2))
        orders.append(tuple(rows))
    assert len(set(orders)) == 6 and np.all(np.sort(orders[0]) == np.arange(EXAMPLES))
    first, second = (pipeline.view(np.arange(EXAMPLES), view) for view in (0, 1))
    assert np.mean(first != second) > 0.3 and np.mean(first != x) > 0.3
    # The first epochs are those of a pipeline without end.
    free = signs(None, batch_size=EXAMPLES, example_ids=True)
    for epoch in (0, 1):
        free.epoch = pipeline.epoch = epoch
        np.testing.assert_array_equal(free[0][0]["inputs"], pipeline[0][0]["inputs"])
    free.epoch = pipeline.epoch = 2
    assert np.any(free[0][0]["inputs"] != pipeline[0][0]["inputs"])


def test_views_that_cannot_be_replayed_are_refused():
    for views in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match="`views` must be an integer >= 1"):
            signs(views)
    for change in ({"augment": None}, {"overlap": True}, {"mix": kd.data.Mixup()}):
        with pytest.raises(ValueError, match="Expected `augment`, and neither `mix` nor `overlap`"):
            signs(2, **change)
    for pipeline in (signs(2), signs(None, augment=None)):
        views = pipeline.views or 1
        for view in (-1, views):
            with pytest.raises(ValueError, match=f"views from 0 to {views - 1}. Received: {view}"):
                pipeline.view([0], view)


def test_what_belongs_to_ids_is_stripped_and_models_may_read_dicts(tmp_path):
    x, y = data(32)
    batch = {
        **kd.data.with_ids({"a": x[:, :2], "b": x[:, 2:]}),
        "example_view": np.zeros(32, "int32"),
        "augmentation_seed": np.zeros((32, 2), "int32"),
        "stored": {"teacher": {"output": x}},
    }
    inputs, ids = kd.data.strip(batch)
    assert inputs.keys() == {"a", "b"} and np.array_equal(ids, np.arange(32))
    # Without ids these are inputs like any other.
    unnumbered = {key: value for key, value in batch.items() if key != "example_id"}
    assert kd.data.strip(unnumbered)[0] is unnumbered

    def network(units, seed):
        keras.utils.set_random_seed(seed)
        parts = {"b": keras.Input((4,), name="b"), "a": keras.Input((2,), name="a")}
        h = layers.Concatenate()([parts["a"], parts["b"]])
        h = layers.Dense(units, "relu")(h)
        return keras.Model(parts, layers.Dense(CLASSES)(h))

    teacher, inputs = network(8, 0), {"b": x[:, 2:], "a": x[:, :2]}
    cached = cache(teacher, inputs, tmp_path / "cache")
    live, ours = (distill(source, network(4, 1)) for source in (teacher, cached))
    for distiller in (live, ours):
        fit(distiller, inputs, y)
    assert difference(live.student.get_weights(), ours.student.get_weights()) < 1e-6


def test_what_reads_a_cache_travels_to_another_process_and_threads_share_it(made):
    cached = kd.CachedTeacher(made / "plain")
    batches = Batches(*whole(), some_rows(), workers=2)
    joined = cached.attach(batches)
    copy = pickle.loads(pickle.dumps(joined))
    assert (copy.workers, copy.num_batches) == (2, 3)
    for index, rows in enumerate(some_rows()):
        inputs, labels = copy[index]
        found = inputs["stored"][cached.name]["output"]
        np.testing.assert_array_equal(found, run(exact(), whole()[0][rows]))
        np.testing.assert_array_equal(labels, whole()[1][rows])
    assert isinstance(pickle.loads(pickle.dumps(cached._lookup)), Lookup)
    assert gaps(off_by_one(cached), batches, shuffle=True) == [[1.0, 1.0]]


def test_a_softmax_among_several_outputs_is_refused(tmp_path):
    inputs = keras.Input((FEATURES,))
    outputs = {"a": layers.Dense(3, "softmax")(inputs), "b": layers.Dense(3)(inputs)}
    teacher = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match="returns probabilities"):
        cache(teacher, whole()[0], tmp_path / "cache", layers=["a"])
    assert cache(teacher, whole()[0], tmp_path / "cache", layers=["b"]).layers_held == ("b",)


def test_a_preprocessing_that_was_never_used_is_built(tmp_path):
    scale = layers.Normalization(mean=1.0, variance=4.0)
    x, teacher = whole()[0], exact()
    cached = cache(teacher, x, tmp_path / "cache", preprocess=scale)
    said, _ = taught(cached, kd.data.with_ids(x))
    assert difference(said, run(teacher, (x - 1.0) / 2.0)) < 1e-5


@pytest.mark.parametrize("key", ["stored", "example_view", "augmentation_seed"])
def test_inputs_of_the_users_are_not_taken_for_what_belongs_to_the_ids(key):
    with pytest.raises(ValueError, match=f"Expected inputs of other names.*{key}"):
        kd.data.with_ids({"image": np.ones((2, 3)), key: np.ones((2, 3))})
