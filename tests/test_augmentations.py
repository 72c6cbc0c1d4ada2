"""Zeroed pixels, and several augmentations one after the other."""

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit.data import ArrayPipeline, FlipShift, ZeroPixels
from kdtoolkit.data.augment import Augmentations
from tests.support import data, dense

pytestmark = pytest.mark.core


def images(count=20, height=4, width=5, channels=2):
    """Images without zeros, in which no two numbers are equal."""
    shape = (count, height, width, channels)
    return (1 + np.arange(np.prod(shape), dtype="float32")).reshape(shape)


def zeroed(x, rate=0.2, seed=0):
    zero = ZeroPixels(rate)
    return zero.apply(x, zero.draw(np.random.default_rng(seed), len(x)))


def by_id(pipeline):
    found = {}
    for (inputs,) in pipeline:
        for image, row in zip(inputs["inputs"], inputs["example_id"], strict=True):
            found[int(row)] = image
    return [found[row] for row in sorted(found)]


# --- zeroed pixels -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64"])
def test_whole_pixels_are_zero_and_the_others_stay_as_they_were(dtype):
    x = np.random.default_rng(1).integers(1, 256, (20, 4, 5, 3)).astype(dtype)
    before = x.copy()
    found = zeroed(x)
    gone = (found == 0).all(axis=-1)
    assert gone.any() and not gone.all()
    np.testing.assert_array_equal(found, np.where(gone[..., None], 0, before))
    np.testing.assert_array_equal(x, before)
    assert found.dtype == dtype


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_the_share_of_zeros_is_the_rate_and_each_image_has_places_of_its_own(rate):
    gone = (zeroed(images(500), rate) == 0)[..., 0]
    # Five standard errors of 10,000 pixels, and of 500 for each place.
    assert gone.mean() == pytest.approx(rate, abs=0.025)
    np.testing.assert_allclose(gone.mean(axis=0), rate, atol=0.11)
    # At the lower rate about 56 pairs of 500 images agree by chance.
    assert len({pattern.tobytes() for pattern in gone}) > 400


def test_of_vectors_single_numbers_are_zero():
    x = images(300).reshape(300, 40)
    gone = zeroed(x, 0.5) == 0
    np.testing.assert_array_equal(zeroed(x, 0.5), np.where(gone, 0, x))
    assert gone.mean() == pytest.approx(0.5, abs=0.025)
    np.testing.assert_allclose(gone.mean(axis=0), 0.5, atol=0.15)


def test_a_rate_of_zero_and_a_batch_of_none_change_nothing():
    np.testing.assert_array_equal(zeroed(images(), 0), images())
    assert zeroed(images(0)).shape == (0, 4, 5, 2)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan"), "0.2", None, True])
def test_a_rate_that_is_no_probability_below_one_is_refused(rate):
    with pytest.raises(ValueError, match=f"from 0 to below 1. Received: rate={rate!r}"):
        ZeroPixels(rate)


def test_zeros_are_a_function_of_seed_epoch_and_row_whatever_the_order_and_batch_size():
    def pipeline(seed=4, epoch=2, **options):
        made = ArrayPipeline(
            images(), None, augment=ZeroPixels(0.3), seed=seed, example_ids=True, **options
        )
        made.epoch = epoch
        return made

    shuffled, plain = pipeline(batch_size=7), pipeline(batch_size=20, shuffle=False)
    expected = by_id(plain)
    np.testing.assert_array_equal(by_id(shuffled), expected)
    # Asked for backwards, and again.
    again = [inputs["inputs"] for (inputs,) in (shuffled[i] for i in (2, 1, 0))]
    for index, batch in zip((2, 1, 0), again, strict=True):
        np.testing.assert_array_equal(shuffled[index][0]["inputs"], batch)
    for other in ({"epoch": 3}, {"seed": 5}):
        assert not np.array_equal(by_id(pipeline(batch_size=7, **other)), expected)


def squares(source, student):
    return keras.ops.mean(keras.ops.square(source - student), axis=-1)


def test_teacher_and_student_see_the_same_zeros():
    x, _ = data(16)
    teacher, student = dense(8, 1, norm=False), dense(8, 2, norm=False)
    train = ArrayPipeline(x, None, batch_size=16, augment=ZeroPixels(0.5))

    def apart(batch):
        said = [keras.ops.convert_to_numpy(model(batch)) for model in (teacher, student)]
        return np.mean((said[0] - said[1]).astype("float64") ** 2)

    expected = apart(train[0][0])
    assert abs(expected - apart(x)) > 0.01 * expected
    edge = kd.Transfer(squares)
    distiller = kd.Distiller(student=student, teacher=teacher, transfers=[edge])
    distiller.compile(keras.optimizers.SGD(0.0))
    follow = kd.data.FollowEpochs(train)
    logs = distiller.fit(train, shuffle=False, verbose=0, callbacks=[follow]).history
    assert logs["loss"] == [pytest.approx(expected, rel=1e-4)]


# --- several augmentations -----------------------------------------------------------------------


class Plus:
    """Adds a number to all images, and half of them a random one on top."""

    def __init__(self, number):
        self.number = number

    def draw(self, generator, count):
        return generator.integers(0, 2, (count, 1, 1, 1))

    def apply(self, images, draws):
        return images + self.number + draws


class Times(Plus):
    """Multiplies them instead."""

    def apply(self, images, draws):
        return images * (self.number + draws)


PARTS = (FlipShift(shift=1), ZeroPixels(0.3), Plus(2))


def by_hand(parts, x, generator):
    """All draws first, in the order of the list; then each part in turn."""
    draws = [part.draw(generator, len(x)) for part in parts]
    for part, drawn in zip(parts, draws, strict=True):
        x = part.apply(x, drawn)
    return x


def test_several_augmentations_are_one_after_the_other():
    together, x = Augmentations(PARTS), images()
    draws = together.draw(np.random.default_rng(3), len(x))
    expected = by_hand(PARTS, x, np.random.default_rng(3))
    np.testing.assert_array_equal(together.apply(x, draws), expected)
    # A row of the draws is that of its image, wherever the image ends up.
    rows = np.array([7, 0, 19, 7])
    np.testing.assert_array_equal(together.apply(x[rows], draws[rows]), expected[rows])
    np.testing.assert_array_equal(x, images())


def test_the_order_of_the_list_is_the_order_in_which_they_act():
    def first_batch(*parts):
        return ArrayPipeline(images(), batch_size=20, shuffle=False, augment=list(parts))[0][0]

    # The draws of both orders are equal, as numbers of 0 or 1.
    plus = first_batch(Plus(2), Times(3))
    times = first_batch(Times(3), Plus(2))
    drawn = first_batch(Plus(0), Plus(0)) - images()
    assert set(np.unique(drawn)) == {0, 1, 2}
    both = (drawn == 2)[..., 0].all(axis=(1, 2))
    np.testing.assert_array_equal(plus[both], (images()[both] + 3) * 4)
    np.testing.assert_array_equal(times[both], images()[both] * 4 + 3)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_pipeline_takes_several_whatever_the_order_and_batch_size(kind):
    options = {"example_ids": True, "seed": 4, "augment": kind(PARTS)}
    shuffled = by_id(ArrayPipeline(images(), batch_size=7, **options))
    plain = by_id(ArrayPipeline(images(), batch_size=20, shuffle=False, **options))
    np.testing.assert_array_equal(shuffled, plain)
    options["augment"] = PARTS[0]
    assert not np.array_equal(by_id(ArrayPipeline(images(), batch_size=20, **options)), plain)


def test_a_list_of_one_is_that_one_and_an_empty_list_is_none():
    def batches(augment):
        return [batch for (batch,) in ArrayPipeline(images(), batch_size=6, augment=augment)]

    for one, other in (([ZeroPixels()], ZeroPixels()), ([], None)):
        for first, second in zip(batches(one), batches(other), strict=True):
            np.testing.assert_array_equal(first, second)


def test_a_second_visit_of_an_overlapping_batch_has_draws_of_its_own():
    options = {"augment": list(PARTS), "example_ids": True, "batch_size": 10}
    first = by_id(ArrayPipeline(images(40), **options))
    changed = []
    for index, (inputs,) in enumerate(ArrayPipeline(images(40), overlap=True, **options)):
        pairs = zip(inputs["example_id"], inputs["inputs"], strict=True)
        same = [np.array_equal(image, first[row]) for row, image in pairs]
        new = 5 if index else 0
        assert all(same[new:])
        changed += same[:new]
    assert len(changed) == 30 and not any(changed)


@pytest.mark.parametrize(
    "augment",
    [ZeroPixels, [FlipShift(), ZeroPixels], [None], [[ZeroPixels()]], "ZeroPixels", [0.2]],
)
def test_what_does_not_draw_and_apply_is_refused(augment):
    with pytest.raises(TypeError, match="`draw` and `apply`.*Received: "):
        ArrayPipeline(images(), batch_size=5, augment=augment)
