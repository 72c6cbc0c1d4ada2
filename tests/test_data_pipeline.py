"""Augmentation that moves pixels exactly, and batches that can be reproduced."""

import keras
import numpy as np
import pytest

from kdtoolkit import data

pytestmark = pytest.mark.core


def numbered_images(count=12, height=6, width=5, channels=2):
    """Images in which no two pixels of the whole array are equal."""
    size = (count, height, width, channels)
    return (1 + np.arange(np.prod(size), dtype="float32")).reshape(size)


def moved_slowly(image, down, right, mirrored, fill):
    """One image after another with plain NumPy padding and cropping: the reference."""
    reach = max(abs(down), abs(right))
    padded = np.pad(image, [(reach, reach), (reach, reach), (0, 0)], mode=fill)
    height, width, _ = image.shape
    top, left = reach - down, reach - right
    moved = padded[top : top + height, left : left + width]
    return moved[:, ::-1] if mirrored else moved


# --- augmentation --------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["reflect", "constant"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_numpy_augmentation_moves_pixels_exactly(fill, dtype):
    images = numbered_images(80).astype(dtype)
    augment = data.FlipShift(shift=3, fill=fill)
    draws = augment.draw(np.random.default_rng(0), len(images))
    before = images.copy()
    result = augment.apply(images, draws)
    expected = [moved_slowly(image, *draw, fill) for image, draw in zip(images, draws, strict=True)]
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(images, before)
    assert result.dtype == dtype


@pytest.mark.parametrize("fill", ["reflect", "constant"])
def test_the_layer_moves_each_image_by_some_allowed_whole_pixels(fill):
    images = numbered_images(60)
    layer = data.FlipShift(shift=1, fill=fill, seed=0)
    result = keras.ops.convert_to_numpy(layer(images, training=True))
    moves = [(d, r, m) for d in (-1, 0, 1) for r in (-1, 0, 1) for m in (0, 1)]
    found = set()
    for image, moved in zip(images, result, strict=True):
        hits = [move for move in moves if np.array_equal(moved, moved_slowly(image, *move, fill))]
        assert hits
        found.add(hits[0])
    # 60 draws of 18 moves: fewer than 12 different ones would mean they are not independent.
    assert len(found) >= 12


def test_draws_cover_all_shifts_evenly_and_mirror_half():
    draws = data.FlipShift(shift=4).draw(np.random.default_rng(0), 9000)
    assert draws.shape == (9000, 3)
    for column in (0, 1):
        counts = np.bincount(draws[:, column] + 4)
        assert len(counts) == 9 and abs(counts - 1000).max() < 150
    assert abs(draws[:, 2].mean() - 0.5) < 0.03
    assert abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.05


def test_without_flip_and_shift_nothing_changes():
    images = numbered_images()
    off = data.FlipShift(flip=False, shift=0)
    draws = off.draw(np.random.default_rng(0), len(images))
    np.testing.assert_array_equal(off.apply(images, draws), images)
    np.testing.assert_array_equal(off(images, training=True), images)


def test_turning_the_mirror_off_leaves_the_shifts_alone():
    with_flip, without = (
        data.FlipShift(flip=flip).draw(np.random.default_rng(0), 50) for flip in (True, False)
    )
    np.testing.assert_array_equal(with_flip[:, :2], without[:, :2])
    assert not without[:, 2].any() and with_flip[:, 2].any()


def test_the_layer_is_the_identity_outside_training_and_replays_its_seed():
    images = numbered_images()
    first, second = (data.FlipShift(shift=2, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first(images), images)
    once = keras.ops.convert_to_numpy(first(images, training=True))
    np.testing.assert_array_equal(once, second(images, training=True))
    assert not np.array_equal(once, first(images, training=True))


def test_the_layer_comes_back_from_its_config():
    layer = data.FlipShift(flip=False, shift=2, fill="constant", seed=3, name="augment")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert again.get_config() == layer.get_config()
    images = numbered_images()
    np.testing.assert_array_equal(again(images, training=True), layer(images, training=True))


def test_the_layer_trains_inside_a_model():
    inputs = keras.Input((6, 5, 2))
    x = data.FlipShift(shift=2, seed=0)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = numbered_images() / 1000
    model.fit(images, np.arange(12) % 2, batch_size=5, verbose=0)
    assert model.predict(images, verbose=0).shape == (12, 2)


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="runs in tf.data")
def test_the_layer_works_in_tf_data():
    tf = pytest.importorskip("tensorflow")
    images = numbered_images(8)
    layer = data.FlipShift(shift=1, seed=0)
    batches = tf.data.Dataset.from_tensors(images).repeat(2).map(lambda x: layer(x, training=True))
    first, second = batches.as_numpy_iterator()
    assert first.shape == images.shape and not np.array_equal(first, second)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: data.FlipShift(shift=-1), "shift=-1"),
        (lambda: data.FlipShift(shift=0.1), "shift=0.1"),
        (lambda: data.FlipShift(fill="wrap"), "fill='wrap'"),
        (lambda: data.FlipShift(shift=5)(numbered_images(), training=True), "smaller `shift`"),
        (
            lambda: data.FlipShift(shift=5).apply(numbered_images(1), np.zeros((1, 3), "int32")),
            "smaller `shift`",
        ),
        (lambda: data.FlipShift()(np.zeros((4, 8)), training=True), "batch, height, width"),
    ],
)
def test_impossible_augmentations_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- batches -------------------------------------------------------------------------------------


def images_by_id(pipeline):
    images = {}
    for (inputs,) in pipeline:
        for image, row in zip(inputs["inputs"], inputs["example_id"], strict=True):
            images[int(row)] = image
    return [images[row] for row in sorted(images)]


def epoch_order(pipeline):
    return np.concatenate([inputs["example_id"] for inputs, *_ in pipeline])


def test_ids_labels_and_weights_stay_with_their_examples_in_every_batch():
    x, y = numbered_images(23), np.arange(23) + 50
    weights = np.linspace(0, 1, 23)
    pipeline = data.ArrayPipeline(
        x, y, sample_weight=weights, batch_size=5, seed=1, example_ids=True
    )
    seen = []
    for inputs, labels, weight in pipeline:
        images, ids = data.strip(inputs)
        np.testing.assert_array_equal(images, x[ids])
        np.testing.assert_array_equal(labels, y[ids])
        np.testing.assert_array_equal(weight, weights[ids])
        seen += ids.tolist()
    assert len(pipeline) == 5
    assert seen != sorted(seen) == list(range(23))


def test_order_and_augmentation_are_a_function_of_seed_and_epoch():
    x = numbered_images(30)

    def pipeline(seed, epoch):
        made = data.ArrayPipeline(x, batch_size=7, seed=seed, augment=data.FlipShift(shift=2))
        made.epoch = epoch
        return [batch for (batch,) in made]

    for first, again in zip(pipeline(0, 3), pipeline(0, 3), strict=True):
        np.testing.assert_array_equal(first, again)
    for other in (pipeline(0, 4), pipeline(1, 3)):
        assert not np.array_equal(pipeline(0, 3)[0], other[0])


def test_a_batch_can_be_asked_for_in_any_order_and_again():
    pipeline = data.ArrayPipeline(
        numbered_images(30), batch_size=7, augment=data.FlipShift(shift=2)
    )
    forward = [pipeline[index][0] for index in range(5)]
    pipeline.on_epoch_end()
    assert pipeline.epoch == 1
    assert not np.array_equal(pipeline[0][0], forward[0])
    pipeline.epoch = 0
    for index in reversed(range(5)):
        np.testing.assert_array_equal(pipeline[index][0], forward[index])


def test_augmentation_of_an_example_ignores_order_and_batch_size():
    x = numbered_images(30)
    options = {"augment": data.FlipShift(shift=2), "example_ids": True, "seed": 4}
    shuffled = data.ArrayPipeline(x, batch_size=7, **options)
    plain = data.ArrayPipeline(x, batch_size=30, shuffle=False, **options)
    np.testing.assert_array_equal(images_by_id(shuffled), images_by_id(plain))
    np.testing.assert_array_equal(epoch_order(plain), np.arange(30))
    first = images_by_id(plain)
    plain.on_epoch_end()
    assert not np.array_equal(images_by_id(plain), first)


def test_augmentation_does_not_change_the_order():
    options = {"batch_size": 7, "example_ids": True, "seed": 4}
    x = numbered_images(30)
    plain = data.ArrayPipeline(x, **options)
    augmented = data.ArrayPipeline(x, augment=data.FlipShift(shift=2), **options)
    np.testing.assert_array_equal(epoch_order(plain), epoch_order(augmented))


def test_the_last_small_batch_can_be_dropped():
    pipeline = data.ArrayPipeline(numbered_images(23), batch_size=5, drop_remainder=True)
    assert [len(batch) for (batch,) in pipeline] == [5, 5, 5, 5]
    with pytest.raises(IndexError, match="Batch 4 of 4"):
        pipeline[4]


# --- overlapping batches -------------------------------------------------------------------------


def visits(pipeline):
    """What each batch holds: its ids and its images."""
    return [(inputs["example_id"], inputs["inputs"]) for (inputs,) in pipeline]


def test_half_of_each_overlapping_batch_repeats_the_batch_before():
    options = {"batch_size": 6, "seed": 2, "example_ids": True}
    x = numbered_images(18)
    order = epoch_order(data.ArrayPipeline(x, **options))
    pipeline = data.ArrayPipeline(x, overlap=True, **options)
    batches = visits(pipeline)
    assert len(pipeline) == len(batches) == 2 * 18 // 6 - 1
    for (before, _), (after, images) in zip(batches, batches[1:], strict=False):
        np.testing.assert_array_equal(after[:3], before[3:])
        np.testing.assert_array_equal(images, x[after])
    # Without the repeated halves, the batches are the order of an epoch without overlap.
    new = [batches[0][0], *(ids[3:] for ids, _ in batches[1:])]
    np.testing.assert_array_equal(np.concatenate(new), order)
    counts = np.bincount(np.concatenate([ids for ids, _ in batches]), minlength=18)
    once = np.concatenate([order[:3], order[-3:]])
    assert (counts[once] == 1).all() and counts.sum() == 6 + 12 * 2


def test_the_second_visit_of_an_example_has_an_augmentation_of_its_own():
    x = numbered_images(40)
    options = {"batch_size": 10, "augment": data.FlipShift(shift=2), "example_ids": True}
    plain = images_by_id(data.ArrayPipeline(x, **options))
    batches = visits(data.ArrayPipeline(x, overlap=True, **options))
    repeated = []
    for index, (ids, images) in enumerate(batches):
        for position, (row, image) in enumerate(zip(ids, images, strict=True)):
            same = np.array_equal(image, plain[row])
            if index and position < 5:
                repeated.append(same)
            else:
                assert same
    # 50 draws agree by chance for 1 of 30 examples.
    assert len(repeated) == 30 and sum(repeated) < 6


def test_the_augmentation_of_a_second_visit_ignores_order_and_batch_size():
    def second_visits(batch_size, shuffle):
        pipeline = data.ArrayPipeline(
            numbered_images(40),
            batch_size=batch_size,
            shuffle=shuffle,
            augment=data.FlipShift(shift=2),
            example_ids=True,
            overlap=True,
        )
        half = batch_size // 2
        repeated = [zip(ids[:half], images[:half], strict=True) for ids, images in visits(pipeline)]
        return {int(row): image for pairs in repeated[1:] for row, image in pairs}

    one, other = second_visits(8, shuffle=True), second_visits(4, shuffle=False)
    common = one.keys() & other.keys()
    assert len(common) >= 28
    for row in common:
        np.testing.assert_array_equal(one[row], other[row])


def test_overlapping_batches_are_a_function_of_seed_and_epoch_in_any_order():
    def pipeline(seed, epoch):
        made = data.ArrayPipeline(
            numbered_images(20),
            batch_size=4,
            augment=data.FlipShift(shift=2),
            seed=seed,
            overlap=True,
        )
        made.epoch = epoch
        return made

    made = pipeline(0, 3)
    forward = [batch for (batch,) in made]
    for index in reversed(range(9)):
        np.testing.assert_array_equal(made[index][0], forward[index])
        np.testing.assert_array_equal(pipeline(0, 3)[index][0], forward[index])
    for other in (pipeline(0, 4), pipeline(1, 3)):
        assert not np.array_equal(other[1][0], forward[1])


@pytest.mark.parametrize("count, sizes", [(16, [6] * 4 + [4]), (17, [6] * 4 + [5]), (5, [5])])
def test_an_incomplete_overlapping_batch_is_the_last_and_can_be_dropped(count, sizes):
    options = {"batch_size": 6, "overlap": True}
    assert [len(batch) for (batch,) in data.ArrayPipeline(numbered_images(count), **options)] == (
        sizes
    )
    if len(sizes) > 1:
        dropped = data.ArrayPipeline(numbered_images(count), drop_remainder=True, **options)
        assert [len(batch) for (batch,) in dropped] == [6] * 4


def test_labels_and_weights_follow_their_examples_into_the_second_visit():
    x, y, weights = numbered_images(12), np.arange(12) + 50, np.linspace(0, 1, 12)
    pipeline = data.ArrayPipeline(
        x, y, sample_weight=weights, batch_size=4, overlap=True, example_ids=True
    )
    for inputs, labels, weight in pipeline:
        np.testing.assert_array_equal(labels, y[inputs["example_id"]])
        np.testing.assert_array_equal(weight, weights[inputs["example_id"]])


def test_a_pipeline_knows_how_many_examples_its_ids_number():
    for options in ({}, {"overlap": True}, {"drop_remainder": True}):
        assert data.ArrayPipeline(numbered_images(11), batch_size=4, **options).examples == 11


# --- batches in fit ------------------------------------------------------------------------------


def small_model(x):
    layers = [keras.Input(x.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    model.layers[-1].kernel.assign(np.zeros(model.layers[-1].kernel.shape))
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model


@pytest.mark.parametrize("follow", [True, False])
def test_training_that_resumes_at_an_epoch_ends_where_one_run_ends(follow):
    x = np.random.default_rng(0).normal(size=(20, 6, 5, 2)).astype("float32")
    y = np.arange(20) % 3

    def fit(model, initial_epoch, epochs, start):
        train = data.ArrayPipeline(x, y, batch_size=6, augment=data.FlipShift(shift=2))
        train.epoch = start
        callbacks = [data.FollowEpochs(train)] if follow else []
        options = {"shuffle": False, "verbose": 0, "callbacks": callbacks}
        model.fit(train, initial_epoch=initial_epoch, epochs=epochs, **options)

    whole, parts, wrong = small_model(x), small_model(x), small_model(x)
    fit(whole, 0, 3, start=0)
    fit(parts, 0, 1, start=0)
    wrong.set_weights(parts.get_weights())
    # Who follows needs no right start; who counts does.
    fit(parts, 1, 3, start=7 if follow else 1)
    fit(wrong, 0, 2, start=0)
    np.testing.assert_array_equal(parts.get_weights()[0], whole.get_weights()[0])
    assert not np.array_equal(wrong.get_weights()[0], whole.get_weights()[0])


class Negative:
    """An augmentation as a user would write it."""

    def draw(self, generator, count):
        return generator.integers(0, 2, count)

    def apply(self, images, draws):
        return np.where(draws[:, None], -images, images)


def test_an_augmentation_is_anything_that_draws_and_applies():
    x = np.arange(1.0, 41.0)[:, None]
    (batch,) = data.ArrayPipeline(x, batch_size=40, augment=Negative(), shuffle=False)[0]
    np.testing.assert_array_equal(abs(batch), x)
    assert 5 < (batch < 0).sum() < 35


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"x": [1, 2]}, TypeError, "list"),
        ({"y": np.zeros(3)}, ValueError, "3 and 4 examples"),
        ({"sample_weight": np.zeros(4)}, ValueError, "`y` is None"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"batch_size": 5, "drop_remainder": True}, ValueError, "no full batch of 5 in 4"),
        ({"x": numbered_images(0)}, ValueError, "in 0 examples"),
        ({"batch_size": 3, "overlap": True}, ValueError, "even.*batch_size=3"),
        ({"batch_size": 8, "overlap": True}, ValueError, "no full batch of 8 in 4"),
        ({"batch_size": 80, "overlap": True, "drop_remainder": True}, ValueError, "of 80 in 4"),
        ({"augment": lambda x: x}, TypeError, "`draw` and `apply`"),
    ],
)
def test_impossible_pipelines_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        data.ArrayPipeline(**{"x": numbered_images(4), "batch_size": 2, **options})
