"""Cached teachers with `tf.data` and on two replicas.

Networks of whole numbers compute without rounding, so that every batch size gives the same bits.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdtoolkit as kd
from tests.support import CLASSES, FEATURES, data, dense, fit
from tests.support import largest_difference as difference
from tests.test_cache import (
    EXAMPLES,
    cache,
    distill,
    exact,
    files,
    gaps,
    learned,
    off_by_one,
    run,
    signs,
    student,
    taught,
    whole,
)

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tensorflow
VIEWS = 3


def plain(x, y):
    return kd.data.with_ids(tf.data.Dataset.from_tensor_slices((x, y)))


def shuffled(x, y, batch_size=16, repeats=1):
    return plain(x, y).repeat(repeats).shuffle(EXAMPLES, seed=4).batch(batch_size)


def viewed(x, y, seed=0, views=VIEWS):
    """Three views, whose augmentation keeps whole numbers whole."""

    def augmented(x, y):
        shape = tf.shape(x["inputs"])
        sign = tf.random.stateless_uniform(shape, x["augmentation_seed"], -2, 3, tf.int32)
        return {**x, "inputs": x["inputs"] * tf.cast(sign, tf.float32)}, y

    seen = kd.data.with_views(plain(x, y), views, seed)
    return seen.map(augmented).shuffle(EXAMPLES, seed=5).batch(16)


def rounded(x, y):
    """Batches from several threads, prefetched, with sample weights."""
    weighed = shuffled(x, y, 7).map(lambda x, y: (x, y, tf.ones_like(y, tf.float32)), 2)
    return weighed.prefetch(2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Caches of `exact()` for `whole()` and for its views."""
    folder = tmp_path_factory.mktemp("made")
    cache(exact(), whole()[0], folder / "plain")
    cache(exact(), viewed(*whole()), folder / "views", examples=EXAMPLES, views=VIEWS)
    return folder


DATASETS = {
    "shuffled": shuffled,
    "with repeats in a batch": lambda x, y: shuffled(x, y, 32, repeats=2),
    "with sample weights": rounded,
    "without labels": lambda x, y: shuffled(x, y).map(lambda x, y: x),
}


def test_each_example_meets_what_the_teacher_said_about_it(tmp_path):
    expected, distiller = None, None
    for kind, make in DATASETS.items():
        dataset = make(*whole())
        cached = cache(exact(), dataset, tmp_path / kind, examples=EXAMPLES)
        expected = expected or files(tmp_path / kind)
        assert files(tmp_path / kind) == expected, kind
        distiller = distiller or off_by_one(cached)
        assert gaps(distiller, dataset) == [[1.0, 1.0]], kind


def test_each_view_meets_what_the_teacher_said_about_it(tmp_path):
    cached = cache(exact(), viewed(*whole()), tmp_path / "cache", examples=EXAMPLES, views=VIEWS)
    assert cached.views == VIEWS
    assert gaps(off_by_one(cached), viewed(*whole())) == [[1.0, 1.0]]


def test_a_batch_from_a_dataset_has_its_rows(tmp_path):
    x, y = whole()
    cached = cache(exact(), x, tmp_path / "cache", layers=["hidden"], top_k=2, dtype="float16")
    attached = cached.attach(shuffled(x, y))
    spec = attached.element_spec[0]["stored"][cached.name]
    found = {name: (each.dtype.name, tuple(each.shape)) for name, each in spec.items()}
    assert found == {
        "values": ("float16", (None, 3)),
        "indices": ("uint16", (None, 2)),
        "layer_0": ("float16", (None, 4)),
    }
    for batch, _ in attached:
        rows = batch["stored"][cached.name]
        expected = cached.attach(kd.data.with_ids(x))["stored"][cached.name]
        for name, array in expected.items():
            np.testing.assert_array_equal(rows[name], array[batch["example_id"].numpy()])


@pytest.mark.parametrize("make", [shuffled, viewed])
def test_a_student_learns_what_it_learns_from_the_network(make, tmp_path):
    (x, y), teacher = data(EXAMPLES), dense(16, seed=2)
    number = {"examples": EXAMPLES, "views": VIEWS if make is viewed else 1}
    cached = cache(teacher, make(x, y), tmp_path / "cache", batch_size=16, **number)
    validation = tf.data.Dataset.from_tensor_slices(data(20, seed=5)).batch(10)

    def run_with(source):
        # A dataset takes a part of its seed from here, when it is made.
        keras.utils.set_random_seed(3)
        return learned(source, make(x, y), validation_data=validation)

    (live, first), (ours, second) = run_with(teacher), run_with(cached)
    assert difference(live, ours) < 1e-6
    assert difference(ours, student().get_weights()) > 0.05
    for name, values in first.items():
        np.testing.assert_allclose(second[name], values, rtol=1e-4, err_msg=name)


# --- replicas ------------------------------------------------------------------------------------

GIVEN = {
    "arrays": whole,
    "pipeline": lambda: (signs(None, augment=None, example_ids=True), None),
    "dataset": lambda: (shuffled(*whole()), None),
}


@pytest.mark.filterwarnings("ignore:A batch is split evenly")
def test_each_replica_meets_its_own_examples(made, two_replicas):
    with two_replicas.scope():
        distiller = off_by_one(kd.CachedTeacher(made / "plain"))
    for kind, make in GIVEN.items():
        # The last batch has 13 examples, of which the replicas get different shares.
        assert gaps(distiller, *make(), epochs=1) == [[1.0]], kind


def test_a_teacher_on_two_replicas_is_cached_like_any(made, tmp_path, two_replicas):
    x = whole()[0]
    with two_replicas.scope():
        teacher = exact()
        # One example is left for the last batch.
        cache(teacher, x, tmp_path / "inside", batch_size=44)
    cache(teacher, x, tmp_path / "outside", batch_size=44)
    for name in ("inside", "outside"):
        assert files(tmp_path / name) == files(made / "plain"), name


def test_two_replicas_learn_as_from_the_network(tmp_path, two_replicas):
    x, y = data(40)
    with two_replicas.scope():
        teacher = dense(16, seed=2, norm=False)
        cached = cache(teacher, x, tmp_path / "cache")
        distillers = [distill(source, graph=True) for source in (teacher, cached)]
    for distiller in distillers:
        fit(distiller, x, y, epochs=3)
    live, ours = (distiller.student.get_weights() for distiller in distillers)
    assert difference(live, ours) < 1e-6
    assert difference(ours, student().get_weights()) > 0.05


# --- views ---------------------------------------------------------------------------------------


def test_views_have_seeds_of_their_own_and_come_again():
    x, y = whole(7)
    dataset = kd.data.with_views(plain(x, y), 5, seed=11)
    assert int(dataset.cardinality()) == 35
    found = [(batch, int(label)) for batch, label in dataset]
    views = [int(batch["example_view"]) for batch, _ in found]
    assert views == list(np.repeat(np.arange(5), 7))
    seeds = {tuple(batch["augmentation_seed"].numpy()) for batch, _ in found}
    assert len(seeds) == 35
    for batch, label in found:
        row = int(batch["example_id"])
        assert label == y[row]
        np.testing.assert_array_equal(batch["inputs"], x[row])
    for (first, _), (second, _) in zip(found, dataset, strict=True):
        assert all(np.array_equal(first[key], second[key]) for key in first)
    other = {tuple(b["augmentation_seed"].numpy()) for b, _ in kd.data.with_views(plain(x, y), 5)}
    assert not seeds & other
    spec = dataset.element_spec[0]
    assert spec["example_view"].dtype == spec["augmentation_seed"].dtype == tf.int32
    alone = kd.data.with_views(plain(x, y).map(lambda x, y: x), 2)
    assert isinstance(alone.element_spec, dict) and int(alone.cardinality()) == 14


def test_views_are_drawn_anew_and_replayed():
    x, y = data(EXAMPLES)
    passes = []
    for _ in range(2):
        held = {}
        for batch, _ in viewed(x, y):
            keys = zip(batch["example_view"].numpy(), batch["example_id"].numpy(), strict=True)
            held.update(
                zip(map(tuple, np.array(list(keys)).tolist()), batch["inputs"], strict=True)
            )
        passes.append(held)
    first, second = passes
    assert len(first) == VIEWS * EXAMPLES and first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    distinct = {first[key].numpy().tobytes() for key in first}
    assert len(distinct) > 0.95 * VIEWS * EXAMPLES


def test_a_dataset_of_unknown_length_has_views_too():
    dataset = plain(*whole(7)).filter(lambda x, y: x["example_id"] < 4)
    seen = kd.data.with_views(dataset, np.int64(2), seed=2**31 - 1)
    assert int(seen.cardinality()) == tf.data.UNKNOWN_CARDINALITY
    ids = [(int(b["example_view"]), int(b["example_id"])) for b, _ in seen]
    assert ids == [(view, row) for view in range(2) for row in range(4)]


def test_views_of_something_else_are_refused():
    x, y = whole(7)
    with pytest.raises(ValueError, match="needs example ids. Expected a dataset from `with_ids`"):
        kd.data.with_views(tf.data.Dataset.from_tensor_slices((x, y)), 2)
    with pytest.raises(ValueError, match=r"Call it before `.batch\(\)`"):
        kd.data.with_views(plain(x, y).batch(2), 2)
    with pytest.raises(ValueError, match="repeats for ever"):
        kd.data.with_views(plain(x, y).repeat(), 2)
    for views, seed in ((0, 0), (1.0, 0), (True, 0), (2, -1), (2, 2**31), (2, 0.5)):
        with pytest.raises(ValueError, match="`views` must be an integer >= 1 and `seed`"):
            kd.data.with_views(plain(x, y), views, seed)


# --- what is refused -----------------------------------------------------------------------------


class Sizeless(layers.Layer):
    """A layer whose size depends on the values."""

    def call(self, inputs):
        return inputs[:, : ops.cast(ops.max(ops.abs(inputs)), "int32")]

    def compute_output_shape(self, input_shape):
        return (input_shape[0], None)


def test_a_layer_without_a_size_is_refused(tmp_path):
    inputs = keras.Input((FEATURES,))
    some = Sizeless(name="some")(inputs)
    mean = layers.Lambda(lambda h: ops.mean(h, -1, keepdims=True), output_shape=(1,))(some)
    teacher = keras.Model(inputs, layers.Dense(CLASSES)(mean))
    with pytest.raises(ValueError, match=r"'some' of the teacher has no fixed size: \(None, None"):
        cache(teacher, whole()[0], tmp_path / "cache", layers=["some"])


CASES = {
    "no ids": ("by example id", lambda x, y: tf.data.Dataset.from_tensor_slices(x).batch(4), {}),
    "how many": ("Expected `examples=`", shuffled, {"examples": None}),
    "ids beyond": ("from 0 to 19", shuffled, {"examples": 20}),
    "not all": ("lack 5 of 50 examples", shuffled, {"examples": 50}),
    "views beyond": ("one view for each example, from 0 to 1", viewed, {"views": 2}),
    "views missing": ("lack 45 of 90 examples and views", shuffled, {"views": 2}),
    "for ever": ("repeats for ever", lambda x, y: shuffled(x, y).repeat(), {}),
    "nothing": ("have no batch", lambda x, y: shuffled(x, y).take(0), {}),
    "not batched": ("a batch with one example id for each", plain, {}),
    "augmented anew": (
        "data changed since.*random augmentation needs numbered views",
        lambda x, y: shuffled(x, y).map(
            lambda x, y: ({**x, "inputs": x["inputs"] + tf.random.normal([FEATURES])}, y)
        ),
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_dataset_that_cannot_be_cached_is_refused(case, tmp_path):
    message, make, options = CASES[case]
    with pytest.raises(ValueError, match=message):
        options = {"examples": EXAMPLES, **options}
        cache(exact(), make(*whole()), tmp_path / "cache", **options)
    assert not (tmp_path / "cache").exists()


def halved(x, y):
    return shuffled(x, y).map(lambda x, y: ({**x, "inputs": x["inputs"] / 2}, y))


MISTAKES = {
    "another data set": ("plain", "saw other inputs", lambda: shuffled(*whole(seed=9))),
    "reversed": ("plain", "saw other inputs", lambda: shuffled(whole()[0][::-1], whole()[1])),
    "preprocessed": ("plain", "same data set.*preprocessing", lambda: halved(*whole())),
    "more": ("plain", "each example id from 0 to 44", lambda: shuffled(*whole(50))),
    "no views": ("views", "holds 3 views of each.*with_views", lambda: shuffled(*whole())),
    "unknown views": ("views", "each view from 0 to 2", lambda: viewed(*whole(), views=4)),
    "another seed": ("views", "saw other inputs.*seed", lambda: viewed(*whole(), seed=1)),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_data_that_the_teacher_did_not_see_are_refused(case, made):
    name, message, make = MISTAKES[case]
    attached = kd.CachedTeacher(made / name).attach(make())
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"ValueError: .*{message}"):
        for _ in attached:
            pass


def test_the_error_of_a_dataset_ends_training(made):
    distiller = off_by_one(kd.CachedTeacher(made / "plain"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="cached teacher saw other inputs"):
        gaps(distiller, shuffled(*whole(seed=9)))
    with pytest.raises(ValueError, match="needs example ids"):
        gaps(distiller, tf.data.Dataset.from_tensor_slices(whole()).batch(4))


def test_two_sources_of_one_name_are_refused(made):
    twice = kd.CachedTeacher(made / "plain", name="first").attach(shuffled(*whole()))
    with pytest.raises(ValueError, match="under the name 'first' already"):
        kd.CachedTeacher(made / "plain", name="first").attach(twice)
    both = kd.CachedTeacher(made / "plain", name="second").attach(twice)
    assert both.element_spec[0]["stored"].keys() == {"first", "second"}


def test_other_ways_of_running_the_step_read_the_same(made):
    for way in ({"jit_compile": True}, {"steps_per_execution": 2}):
        distiller = off_by_one(kd.CachedTeacher(made / "plain"))
        distiller.compile(keras.optimizers.SGD(0.0), **way)
        assert gaps(distiller, shuffled(*whole())) == [[1.0, 1.0]], way


def test_half_precision_in_the_student_leaves_the_cache_exact(made):
    cached = kd.CachedTeacher(made / "plain")
    batch = kd.data.with_ids(whole()[0])
    expected = taught(cached, batch)[0]
    keras.config.set_dtype_policy("mixed_float16")
    again = kd.CachedTeacher(made / "plain")
    np.testing.assert_array_equal(taught(again, batch)[0], expected)
    np.testing.assert_array_equal(expected, run(exact(), whole()[0]))
