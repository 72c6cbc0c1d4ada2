"""Data whose batches are a function of seed and epoch, and shards and structures of them."""

import types

import keras
import numpy as np
import pytest
from keras import layers

import kdtoolkit as kd
from kdtoolkit.data import epochs
from kdtoolkit.data.joining import join

pytestmark = pytest.mark.core

COUNT = 12
X = np.random.default_rng(0).normal(size=(COUNT, 3)).astype("float32")
# The label of an example is its row.
Y = np.arange(COUNT, dtype="float32")


class Slices(keras.utils.PyDataset):
    """Batches in a fixed order, as a user would write them."""

    examples = COUNT

    def __len__(self):
        return 6

    def __getitem__(self, index):
        rows = slice(2 * index, 2 * index + 2)
        return X[rows], Y[rows]

    def on_epoch_end(self):
        raise AssertionError("nobody asked for another epoch")


class Rotated(keras.utils.PyDataset):
    """A data set of a user that can be told the epoch."""

    def __init__(self, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.seed, self.epoch = seed, 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = np.roll(np.arange(COUNT), 3 * self.seed + self.epoch)[4 * index : 4 * index + 4]
        return X[rows], Y[rows]

    def set_epoch(self, epoch):
        self.epoch = epoch


def from_arrays(seed=0):
    return kd.data.ArrayPipeline(X, Y, batch_size=5, seed=seed, augment=kd.data.ZeroPixels(0.5))


def from_structures(seed=0):
    x = {"left": X, "right": [2 * X, 3 * X]}
    return kd.data.ArrayPipeline(x, {"row": Y}, batch_size=4, seed=seed)


def from_batches(seed=0):
    return kd.data.ReorderedBatches(Slices(), seed=seed)


def from_workers(seed=0):
    # Keras would mix epochs up on JAX if it saw these two.
    return kd.data.ReorderedBatches(Slices(workers=2), seed=seed)


def from_tf(seed=0):
    tf = pytest.importorskip("tensorflow")
    source = tf.data.Dataset.from_tensor_slices((X, Y))

    def build(number):
        def augmented(x, y):
            pair = tf.stack([number, tf.cast(y, tf.int64)])
            return x + tf.random.stateless_uniform([3], pair), y

        shuffled = source.shuffle(COUNT, seed=number, reshuffle_each_iteration=False)
        return shuffled.map(augmented, num_parallel_calls=2).batch(4).prefetch(1)

    return kd.data.epoch_dataset(build, seed=seed)


KINDS = {
    "arrays": from_arrays,
    "structures": from_structures,
    "batches": from_batches,
    "batches of two workers": from_workers,
    "tf.data": from_tf,
    "a user's own": Rotated,
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def one_pass(data, epoch):
    epochs.set_epoch(data, epoch)
    return [[np.asarray(leaf) for leaf in keras.tree.flatten(batch)] for batch in data]


def rows_of(batches):
    return np.concatenate([batch[-1] for batch in batches]).astype(int).tolist()


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


# --- the protocol --------------------------------------------------------------------------------


@every_kind
def test_an_epoch_is_a_function_of_seed_and_number(make):
    data = make(0)
    assert epochs.repeats(data)
    first = {epoch: one_pass(data, epoch) for epoch in (0, 1, 2)}
    for epoch in (2, 0, 1):
        assert_same(one_pass(data, epoch), first[epoch])
    others = [*first.values(), one_pass(make(1), 0), one_pass(make(1), 1)]
    assert all(sorted(rows_of(each)) == list(range(COUNT)) for each in others)
    assert len({tuple(rows_of(each)) for each in others}) == 5


@every_kind
def test_another_process_sees_what_this_one_would_have_seen(make):
    data = make(3)
    for epoch in (0, 1):
        one_pass(data, epoch)
    # An epoch that was interrupted.
    epochs.set_epoch(data, 2)
    next(iter(data))
    keras.utils.set_random_seed(99)
    assert_same(one_pass(make(3), 2), one_pass(data, 2))


def network(make):
    """A small network; on structures it has two inputs."""
    dense = layers.Dense(1, kernel_initializer="ones")
    inputs = {"left": keras.Input((3,), name="left")}
    outputs = dense(inputs["left"])
    if make is from_structures:
        inputs["right"] = tuple(keras.Input((3,), name=name) for name in ("near", "far"))
        outputs = {"row": layers.Add(name="row")([outputs, *map(dense, inputs["right"])])}
    model = keras.Model(inputs if make is from_structures else inputs["left"], outputs)
    model.compile(keras.optimizers.SGD(0.001), "mse")
    return model


def train(model, data, first, last, *callbacks):
    options = {"shuffle": False, "callbacks": callbacks, "verbose": 0}
    model.fit(data, initial_epoch=first, epochs=last, **options)
    return model.get_weights()


def check_training_in_parts(model, make):
    """Trains three epochs, then the last alone, with and without following the epochs."""
    before = {}

    def keep(epoch, logs=None):
        before[epoch] = model.get_weights()

    data = make()
    follow = kd.data.FollowEpochs(data)
    keeps = keras.callbacks.LambdaCallback(on_epoch_begin=keep)
    whole = train(model, data, 0, 3, follow, keeps)
    model.set_weights(before[2])
    data = make()
    again = train(model, data, 2, 3, kd.data.FollowEpochs(data))
    assert_same([again], [whole])
    model.set_weights(before[2])
    assert not np.array_equal(train(model, make(), 2, 3)[0], whole[0])


@every_kind
def test_training_in_parts_ends_with_the_bits_of_one_run(make):
    check_training_in_parts(network(make), make)


@pytest.mark.tensorflow
def test_two_replicas_train_in_parts_like_in_one_run(two_replicas):
    with two_replicas.scope():
        check_training_in_parts(network(from_tf), from_tf)


@pytest.mark.parametrize(
    "data", [X, {"a": X}, Slices(), [1], None], ids=["array", "dict", "PyDataset", "list", "None"]
)
def test_data_that_cannot_be_told_the_epoch_are_refused(data):
    assert not epochs.repeats(data)
    for call in (lambda: kd.data.FollowEpochs(data), lambda: epochs.set_epoch(data, 1)):
        with pytest.raises(TypeError, match=f"`kd.data.ReorderedBatches`.*{type(data).__name__}"):
            call()


@pytest.mark.parametrize("options", [{"workers": 2}, {"use_multiprocessing": True}])
def test_data_that_several_workers_read_are_refused(options):
    data = Rotated(**options)
    for call in (lambda: kd.data.FollowEpochs(data), lambda: epochs.set_epoch(data, 1)):
        with pytest.raises(ValueError, match="for another one.*Received: workers="):
            call()


def test_a_data_set_made_out_of_tf_data_cannot_be_told_the_epoch():
    assert not epochs.repeats(from_tf().map(lambda x, y: (x, y)))


@pytest.mark.parametrize("kind", ["arrays", "tf.data"])
def test_data_with_stored_rows_are_told_the_epoch_too(kind):
    table = np.arange(COUNT, dtype="float32") * 10

    def function(inputs, ids, views):
        return {"value": table[ids]}

    data = kd.data.ArrayPipeline(X, Y, batch_size=4, example_ids=True)
    if kind == "tf.data":
        tf = pytest.importorskip("tensorflow")
        source = kd.data.with_ids(tf.data.Dataset.from_tensor_slices((X, Y)))
        data = kd.data.epoch_dataset(lambda n: source.shuffle(COUNT, seed=n).batch(4))
    column = types.SimpleNamespace(name="value", dtype="float32", shape=())
    joined = join(data, "teacher", function, [column], 1)
    plain, more = one_pass(data, 4), one_pass(joined, 4)
    assert rows_of(plain) == rows_of(more) != rows_of(one_pass(joined, 5))
    for inputs, y in joined:
        np.testing.assert_array_equal(np.asarray(inputs["stored"]["teacher"]["value"]), 10 * y)
    fixed = join(Slices(), "teacher", function, [column], 1)
    assert not epochs.repeats(fixed)


# --- batches of a PyDataset ----------------------------------------------------------------------


def test_reordered_batches_are_those_of_the_data_set():
    data = kd.data.ReorderedBatches(Slices(workers=3), shuffle=False)
    for index in range(6):
        assert_same([data[index]], [Slices()[index]])
    assert (data.workers, data.examples, data.num_batches) == (1, COUNT, 6)
    assert not hasattr(kd.data.ReorderedBatches(keras_data(2)), "examples")
    with pytest.raises(IndexError, match="Batch 6 of 6"):
        data[6]


def test_reordered_batches_count_the_passes_that_keras_makes():
    data = from_batches()
    first = [batch[1][0] for batch in data]
    data.on_epoch_end()
    assert data.epoch == 1 and [batch[1][0] for batch in data] != first


def keras_data(number):
    """A PyDataset with this number of batches; None for one without an end."""

    class Data(keras.utils.PyDataset):
        num_batches = number

    return Data()


@pytest.mark.parametrize(
    "dataset, error, message, options",
    [
        ([X], TypeError, "Received: list", {}),
        (Rotated(0), ValueError, "`set_epoch`.*as it is. Received: Rotated", {}),
        (keras_data(None), ValueError, "`__len__`.*Data with no end", {}),
        (keras_data(0), ValueError, "Data with no batch", {}),
        (Slices(), ValueError, "seed=-1", {"seed": -1}),
        (Slices(), ValueError, "seed=True", {"seed": True}),
    ],
)
def test_batches_without_an_order_are_refused(dataset, error, message, options):
    with pytest.raises(error, match=message):
        kd.data.ReorderedBatches(dataset, **options)


# --- tf.data -------------------------------------------------------------------------------------


def tf_range(count):
    return pytest.importorskip("tensorflow").data.Dataset.range(count)


def values(dataset):
    return [np.asarray(batch).tolist() for batch in dataset]


def test_build_gets_one_number_for_seed_and_epoch():
    tf = pytest.importorskip("tensorflow")
    found = []
    for seed in range(2):
        data = kd.data.epoch_dataset(lambda n: tf.data.Dataset.from_tensors(n), seed=seed)
        assert data.element_spec.shape == () and data.element_spec.dtype == "int64"
        for epoch in range(6):
            data.set_epoch(epoch)
            found += values(data)
    assert min(found) >= 0 and max(found) > 2**60
    # `shuffle` knows seeds by their remainder.
    assert len({number % (2**31 - 1) for number in found}) == 12
    # A resumed run may be on another machine.
    assert found[0] == np.random.SeedSequence([0, 0]).generate_state(1, "uint64")[0] // 2


@pytest.mark.parametrize("kwargs", [{}, {"reshuffle_each_iteration": False}])
def test_the_seed_of_the_program_changes_nothing(kwargs):
    source, found = tf_range(8), []
    for seed in (None, 1, 2):
        if seed is not None:
            keras.utils.set_random_seed(seed)
        data = kd.data.epoch_dataset(lambda n: source.shuffle(8, seed=n, **kwargs).batch(8))
        found += [values(data), values(data)]
    assert all(each == found[0] for each in found)


def test_the_randomness_of_the_program_stays_what_it_was():
    tf = pytest.importorskip("tensorflow")
    source, found = tf_range(8), []
    for passes in (0, 1):
        keras.utils.set_random_seed(5)
        if passes:
            values(kd.data.epoch_dataset(lambda n: source.shuffle(8, seed=n).batch(8)))
        found.append([float(tf.random.uniform([])), float(keras.random.uniform([]))])
        found[-1].append(float(np.random.random()))
    assert found[0] == found[1]


def test_what_is_not_seeded_is_the_same_in_each_epoch():
    source = tf_range(8)
    data = kd.data.epoch_dataset(lambda n: source.shuffle(8).batch(8))
    first = values(data)
    data.set_epoch(1)
    assert values(data) == first != [list(range(8))]


def test_the_number_of_batches_is_known():
    source = tf_range(7)
    assert int(kd.data.epoch_dataset(lambda n: source.batch(2)).cardinality()) == 4
    assert int(kd.data.epoch_dataset(lambda n: source.batch(2), batches=4).cardinality()) == 4
    odd = kd.data.epoch_dataset(lambda n: source.filter(lambda i: i % 2 == 1).batch(2), batches=2)
    assert int(odd.cardinality()) == 2 and values(odd) == [[1, 3], [5]]


def test_an_epoch_with_another_number_of_batches_is_an_error():
    tf = pytest.importorskip("tensorflow")
    source = tf_range(7)
    data = kd.data.epoch_dataset(lambda n: source.take(3 + n % 3).batch(1))
    with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain"):
        for epoch in range(9):
            data.set_epoch(epoch)
            values(data)


@pytest.mark.parametrize(
    "build, error, message, options",
    [
        (lambda n: X, TypeError, "return a tf.data.Dataset. Received: ndarray", {}),
        (lambda n: tf_range(0), ValueError, "has 0 batches", {}),
        (lambda n: tf_range(3).repeat(), ValueError, "no end.*`.repeat", {}),
        (lambda n: tf_range(3).filter(lambda i: i > 0), ValueError, "Expected `batches=`", {}),
        (lambda n: tf_range(3), ValueError, "has 3 batches.*batches=2", {"batches": 2}),
        (lambda n: tf_range(3), ValueError, ">= 1, or None. Received: 0", {"batches": 0}),
        (lambda n: tf_range(3), ValueError, "seed=-1", {"seed": -1}),
        (lambda n: tf_range(3), ValueError, "seed=0.5", {"seed": 0.5}),
    ],
)
def test_builds_that_make_no_epoch_are_refused(build, error, message, options):
    pytest.importorskip("tensorflow")
    with pytest.raises(error, match=message):
        kd.data.epoch_dataset(build, **options)


def test_a_data_set_in_place_of_its_build_is_refused():
    with pytest.raises(TypeError, match="must be a function.*Received: .*lambda number"):
        kd.data.epoch_dataset(tf_range(3))


# --- structures and shards -----------------------------------------------------------------------


def test_several_inputs_and_outputs_stay_together():
    x = {"a": X, "b": [2 * X, Y]}
    data = kd.data.ArrayPipeline(
        x, [Y, {"far": Y + 50}], batch_size=5, sample_weight=[Y / 2, {"far": Y}], seed=1
    )
    assert data.examples == COUNT and len(data) == 3
    seen = []
    for inputs, labels, weights in data:
        rows = labels[0].astype(int)
        np.testing.assert_array_equal(inputs["a"], X[rows])
        # A list is a tuple now, as Keras needs it on TensorFlow.
        assert isinstance(inputs["b"], tuple) and isinstance(labels, tuple)
        assert_same([inputs["b"]], [(2 * X[rows], Y[rows])])
        np.testing.assert_array_equal(labels[1]["far"], Y[rows] + 50)
        assert_same([keras.tree.flatten(weights)], [[Y[rows] / 2, Y[rows]]])
        seen += rows.tolist()
    assert seen != sorted(seen) == list(range(COUNT))


def test_named_inputs_get_ids_and_rows_of_them_can_be_viewed():
    data = kd.data.ArrayPipeline({"a": X, "b": Y}, batch_size=5, example_ids=True)
    for (inputs,) in data:
        np.testing.assert_array_equal(inputs["b"], inputs["example_id"])
        np.testing.assert_array_equal(inputs["a"], X[inputs["example_id"]])
    viewed = data.view(np.array([3, 1]))
    assert_same([[viewed["a"], viewed["b"]]], [[X[[3, 1]], Y[[3, 1]]]])


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [[0, 1]] * 4, (0.5, 1.0, 2.0, 4.0)])
def test_labels_in_a_list_are_one_array(labels):
    (batch,) = kd.data.ArrayPipeline(X[:4], labels, batch_size=4, shuffle=False)
    np.testing.assert_array_equal(batch[1], np.asarray(labels))


SHARDED = {
    "plain": {"y": Y, "sample_weight": Y},
    "augmented": {"augment": kd.data.ZeroPixels(0.5), "example_ids": True},
    "views": {"augment": kd.data.ZeroPixels(0.5), "views": 2},
    "mixed": {"y": Y.astype(int), "mix": kd.data.Mixup(1.0), "num_classes": COUNT},
    "structure": {"x": {"a": X[:11], "b": Y[:11]}, "drop_remainder": True},
    "a last batch of four": {"batch_size": 8},
}


@pytest.mark.parametrize("options", SHARDED.values(), ids=SHARDED)
def test_the_parts_of_all_processes_are_the_batch_of_one(options):
    options = {"x": X, "batch_size": 4, "seed": 2, **options}
    whole = one_pass(kd.data.ArrayPipeline(**options), 3)
    shards = [one_pass(kd.data.ArrayPipeline(shard=(index, 2), **options), 3) for index in range(2)]
    together = [
        [np.concatenate(leaves) for leaves in zip(*batches, strict=True)]
        for batches in zip(*shards, strict=True)
    ]
    assert_same(together, whole)
    for one, other in zip(*shards, strict=True):
        assert [leaf.shape for leaf in one] == [leaf.shape for leaf in other]


FLIP = kd.data.FlipShift()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"x": {"a": [1]}}, TypeError, r"a dict of \['int'\]"),
        ({"x": {}}, TypeError, "a dict of"),
        ({"x": np.float32(1)}, TypeError, "a float32"),
        ({"x": {"a": X, "b": X[:3]}}, ValueError, "`x`.*first array. Received: 3 and 12"),
        ({"y": {"a": Y, "b": Y[:3]}}, ValueError, "`y` must be as long as `x`.*3 and 12"),
        ({"y": {"a": [1, 2]}}, TypeError, r"Several y.*a dict of \['int'\]"),
        ({"sample_weight": (Y, Y[:5])}, ValueError, "`sample_weight`.*5 and 12"),
        ({"x": {"a": X}, "augment": FLIP}, ValueError, "`augment` works.*`x`.*a dict of"),
        ({"x": [X], "augment": [FLIP]}, ValueError, "`augment` works.*`x`.*a tuple of"),
        ({"x": [X], "mix": kd.data.Mixup()}, ValueError, "`mix` works.*`x`"),
        ({"y": [Y], "mix": kd.data.Mixup()}, ValueError, "`mix` works.*`y`"),
        ({"y": {"a": Y}, "num_classes": 12}, ValueError, "`num_classes` works.*`y`"),
        ({"x": [X, X], "example_ids": True}, TypeError, "Name several inputs in a dict"),
        ({"x": {"stored": X}, "example_ids": True}, ValueError, "other names"),
        ({"shard": 2}, ValueError, "shard=2"),
        ({"shard": (2, 2)}, ValueError, r"shard=\(2, 2\)"),
        ({"shard": (-1, 2)}, ValueError, r"shard=\(-1, 2\)"),
        ({"shard": (0.0, 2)}, ValueError, r"shard=\(0.0, 2\)"),
        ({"shard": (0, 1, 2)}, ValueError, "shard="),
        ({"shard": (0, 3)}, ValueError, "multiple of 3. Received: batch_size=4"),
        ({"shard": (0, 2), "overlap": True}, ValueError, "another process"),
        (
            {"x": X[:11], "y": Y[:11], "shard": (0, 2)},
            ValueError,
            "last batch has 3 examples.*2 equal parts.*`drop_remainder=True`",
        ),
    ],
)
def test_impossible_structures_and_shards_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        kd.data.ArrayPipeline(**{"x": X, "y": Y, "batch_size": 4, **options})
