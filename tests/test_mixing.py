"""Mixing the examples of a batch, and what a teacher sees of it."""

import itertools

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit.data import ArrayPipeline, CutMix, FlipShift, Mixer, Mixup
from tests.support import CLASSES, data, dense

pytestmark = pytest.mark.core


def generator(seed=0):
    return np.random.default_rng(seed)


def rolled(batch):
    return np.stack([batch[i - 1] for i in range(len(batch))])


def random_images(count=5, height=7, width=6, channels=2):
    return generator(1).normal(size=(count, height, width, channels)).astype("float32")


def one_hot(labels, classes):
    return np.array([[float(k == label) for k in range(classes)] for label in labels])


class Watched:
    """A mixer that keeps what it was given, and changes nothing."""

    def __init__(self):
        self.seen = []

    def draw(self, generator, shape):
        return generator.random()

    def apply(self, images, partners, drawn):
        self.seen.append((images, partners, drawn))
        return images, 1.0


class Scripted:
    """Stands for a generator: lambda and the box's centre as chosen."""

    def __init__(self, share, centre):
        self.share, self.centre = share, centre

    def beta(self, a, b):
        return self.share

    def uniform(self, low, high):
        assert (low, list(high)) == (0, [8, 16])
        return np.array(self.centre, "float64")


# --- the mixers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 5, 1])
@pytest.mark.parametrize("shape", [(3,), (4, 4, 2)])
def test_mixup_is_the_weighted_sum_of_two(count, shape):
    x = generator(2).normal(size=(count, *shape)).astype("float32")
    mixer = Mixup(0.7)
    share = mixer.draw(generator(), x.shape)
    before = x.copy()
    mixed, kept = mixer.apply(x, rolled(x), share)
    wide = x.astype("float64")
    np.testing.assert_allclose(mixed, share * wide + (1 - share) * rolled(wide), rtol=0, atol=1e-6)
    assert kept == share and mixed.dtype == "float32"
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_takes_the_box_from_the_partner_and_the_rest_from_the_image(seed):
    x = random_images()
    mixer = CutMix()
    top, bottom, left, right = box = mixer.draw(generator(seed), x.shape)
    before = x.copy()
    mixed, kept = mixer.apply(x, rolled(x), box)
    inside = 0
    for row, column in itertools.product(range(7), range(6)):
        taken = top <= row < bottom and left <= column < right
        inside += taken
        expected = rolled(x) if taken else x
        np.testing.assert_array_equal(mixed[:, row, column], expected[:, row, column])
    assert kept == pytest.approx(1 - inside / 42, abs=1e-12)
    assert mixed.dtype == "float32"
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    "share, centre, box",
    [
        (0.75, (4, 8), (2, 6, 4, 12)),
        (0.75, (0, 16), (0, 2, 12, 16)),
        (0.75, (4.4, 7.6), (2, 6, 4, 12)),
        (0.0, (4, 8), (0, 8, 0, 16)),
        (0.0, (2, 12), (0, 6, 4, 16)),
        (1.0, (3, 3), (3, 3, 3, 3)),
    ],
)
def test_a_box_has_the_sides_of_its_share_and_ends_at_the_border(share, centre, box):
    assert CutMix().draw(Scripted(share, centre), (2, 8, 16, 3)) == box


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_lambda_has_the_mean_and_the_variance_of_its_distribution(alpha):
    random = generator()
    shares = [Mixup(alpha).draw(random, (2, 3)) for _ in range(4000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_boxes_cover_the_share_that_the_border_leaves():
    random, covered = generator(), []
    for _ in range(4000):
        top, bottom, left, right = CutMix().draw(random, (2, 200, 300, 3))
        assert 0 <= top <= bottom <= 200 and 0 <= left <= right <= 300
        covered.append((bottom - top) * (right - left) / 60000)
    # With the area v uniform and sides s = sqrt(v), an axis keeps s - s^2 / 4 on average:
    # E(v - v^1.5 / 2 + v^2 / 16) = 1/2 - 1/5 + 1/48.
    assert np.mean(covered) == pytest.approx(0.3208, abs=0.012)


def test_mixers_say_what_they_are():
    assert repr(Mixup()) == "Mixup(alpha=0.2)" and Mixup(1) == Mixup(1.0) != Mixup(2.0)
    assert repr(CutMix()) == "CutMix(alpha=1.0)"
    assert isinstance(Mixup(), Mixer) and isinstance(CutMix(), Mixer)


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 5, 1])
def test_each_example_is_mixed_with_the_one_before_it(count):
    x = np.eye(count, dtype="float32")
    ((batch,),) = ArrayPipeline(x, batch_size=8, mix=Mixup(1.0), shuffle=False)
    if count == 1:
        np.testing.assert_allclose(batch, x, rtol=1e-6)
        return
    share = batch[0, 0]
    assert 0.01 < share < 0.99
    np.testing.assert_allclose(batch, share * x + (1 - share) * rolled(x), atol=1e-6)


@pytest.mark.parametrize("form", ["numbers", "column", "one-hot", "soft"])
def test_labels_are_mixed_in_the_same_shares_as_images(form):
    numbers = np.arange(10) % 3
    soft = one_hot(numbers, 3) if form != "soft" else generator(3).dirichlet([1, 1, 1], 10)
    y = {"numbers": numbers, "column": numbers[:, None], "one-hot": soft.astype("int64")}
    options = {"num_classes": 3} if form in ("numbers", "column") else {}
    # Mixup of the images is the mixture of the labels when images are labels.
    pipeline = ArrayPipeline(
        soft.astype("float32"), y.get(form, soft), batch_size=4, mix=Mixup(1.0), **options
    )
    for x, labels in pipeline:
        assert labels.dtype == "float32"
        np.testing.assert_allclose(labels, x, atol=1e-6)
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)


def test_labels_of_cut_images_have_the_share_of_their_pixels():
    # Image i is full of i, so that each pixel says whose it is.
    x = np.broadcast_to(np.arange(6, dtype="float32")[:, None, None, None], (6, 9, 5, 1)).copy()
    pipeline = ArrayPipeline(x, np.arange(6), batch_size=6, mix=CutMix(), num_classes=6)
    for epoch in range(5):
        pipeline.epoch = epoch
        images, labels = pipeline[0]
        pixels = np.array([[np.sum(image == k) for k in range(6)] for image in images])
        np.testing.assert_allclose(labels, pixels / 45, atol=1e-7)


def mixed_batches(seed=0, epoch=0, order=range(4), **options):
    pipeline = ArrayPipeline(
        random_images(14),
        np.arange(14) % 3,
        batch_size=4,
        seed=seed,
        num_classes=3,
        **{"mix": [Mixup(1.0), CutMix()], "augment": FlipShift(shift=1), **options},
    )
    pipeline.epoch = epoch
    batches = {index: pipeline[index] for index in order}
    return [part for index in range(4) for part in batches[index]]


def test_a_mixed_batch_is_a_function_of_seed_epoch_and_index():
    expected = mixed_batches(epoch=2)
    again = mixed_batches(epoch=2, order=[3, 0, 2, 1])
    for one, other in zip(expected, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for changed in ({"seed": 1, "epoch": 2}, {"epoch": 3}):
        assert not np.array_equal(mixed_batches(**changed)[0], expected[0])


def test_each_batch_of_each_epoch_and_seed_draws_anew():
    watched = Watched()
    for seed, epoch in itertools.product((0, 1), (0, 1)):
        mixed_batches(seed, epoch, mix=watched)
    assert len({drawn for _, _, drawn in watched.seen}) == 16


def test_mixing_leaves_order_and_augmentation_alone_and_comes_after_them():
    watched = Watched()
    mixed_batches(epoch=3, mix=watched)
    plain = mixed_batches(epoch=3, mix=None)
    for (images, partners, _), before in zip(watched.seen, plain[::2], strict=True):
        np.testing.assert_array_equal(images, before)
        np.testing.assert_array_equal(partners, rolled(before))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_without_mixing_batches_are_what_they_were(dtype):
    x, y = (random_images(10) * 50).astype(dtype), np.arange(10, dtype="int16")
    augment = FlipShift(shift=2)
    weight = np.linspace(0, 1, 10)
    pipeline = ArrayPipeline(
        x, y, batch_size=4, sample_weight=weight, augment=augment, seed=5, mix=None
    )
    pipeline.epoch = 2
    order = np.random.default_rng([5, 2, 0]).permutation(10)
    draws = augment.draw(np.random.default_rng([5, 2, 1]), 10)
    for index, (images, labels, weights) in enumerate(pipeline):
        rows = order[4 * index : 4 * index + 4]
        np.testing.assert_array_equal(images, augment.apply(x[rows], draws[rows]))
        np.testing.assert_array_equal(labels, y[rows])
        np.testing.assert_array_equal(weights, weight[rows])
        assert (images.dtype, labels.dtype) == (dtype, "int16")


def test_a_batch_takes_one_of_several_mixers_with_equal_chances():
    first, second = Watched(), Watched()
    pipeline = ArrayPipeline(np.zeros((400, 1)), batch_size=2, mix=[first, second])
    for index in range(200):
        pipeline[index]
    assert len(first.seen) + len(second.seen) == 200
    assert 70 < len(first.seen) < 130


@pytest.mark.parametrize("mixer", [Mixup(), CutMix(), Watched()])
@pytest.mark.parametrize(
    "given, returned",
    [("uint8", "float32"), ("int16", "float32"), ("float16", "float16"), ("float64", "float64")],
)
def test_integer_images_become_float32_and_floats_stay(mixer, given, returned):
    x = np.broadcast_to(np.arange(200, 204)[:, None, None, None], (4, 5, 5, 1)).astype(given)
    ((batch,),) = ArrayPipeline(x, batch_size=4, mix=mixer)
    assert batch.dtype == returned
    # Nothing wraps round or is cut to whole numbers on the way.
    assert 199.9 <= batch.min() and batch.max() <= 203.1
    if isinstance(mixer, Mixup):
        assert np.any(batch != np.round(batch))


def test_a_number_of_classes_makes_labels_one_hot_without_mixing_too():
    y = np.array([2, 0, 1], "uint8")
    pipeline = ArrayPipeline(np.zeros((3, 1)), y, batch_size=3, num_classes=4, shuffle=False)
    ((_, labels),) = pipeline
    np.testing.assert_array_equal(labels, one_hot(y, 4))
    assert labels.dtype == "float32"


X, Y = np.zeros((4, 3), "float32"), np.arange(4)


@pytest.mark.parametrize(
    "error, message, options",
    [
        (ValueError, "`example_ids=True`.*Teach with a network", {"example_ids": True}),
        (ValueError, "`overlap=True`.*second visit", {"overlap": True, "batch_size": 2}),
        (ValueError, "`sample_weight`", {"sample_weight": np.ones(4)}),
        (ValueError, r"int64 of shape \(4,\).*give `num_classes`", {"num_classes": None}),
        (ValueError, r"int64 of shape \(4, 1\)", {"num_classes": None, "y": Y[:, None]}),
        (ValueError, r"float64 of shape \(4,\)", {"num_classes": None, "y": Y / 4}),
        (ValueError, r"from 0 to 2, for num_classes=3. Received: 0 to 3", {"num_classes": 3}),
        (ValueError, "Received: -1 to 2", {"y": Y - 1}),
        (ValueError, "num_classes=1", {"num_classes": 1}),
        (ValueError, "num_classes='4'", {"num_classes": "4"}),
        (ValueError, "y=None. Leave `num_classes` out", {"y": None}),
        (ValueError, r"one-hot: integers.*float32 of shape \(4, 3\)", {"y": X}),
        (TypeError, "`mix` must be.*<class", {"mix": Mixup}),
        (TypeError, "or a list of them. Received: 0.2", {"mix": [Mixup(), 0.2]}),
    ],
)
def test_mixing_that_makes_no_sense_is_refused(error, message, options):
    given = {"x": X, "y": Y, "batch_size": 4, "mix": Mixup(), "num_classes": 4, **options}
    with pytest.raises(error, match=message):
        ArrayPipeline(**given)


@pytest.mark.parametrize(
    "error, message, x, mix",
    [
        (ValueError, r"height, width, channels.*\(4, 3\).*`Mixup` mixes", X, CutMix()),
        (TypeError, "dtype int64.*tokens", X.astype("int64"), Mixup()),
        (TypeError, "dtype <U1", X.astype("U1"), CutMix()),
    ],
)
def test_batches_that_cannot_be_mixed_are_refused(error, message, x, mix):
    with pytest.raises(error, match=message):
        ArrayPipeline(x, batch_size=4, mix=mix)[0]


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), "1", None])
@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_alpha_is_a_number_above_zero(kind, alpha):
    with pytest.raises(ValueError, match=f"`alpha` of {kind.__name__} must.*alpha={alpha!r}"):
        kind(alpha)


# --- in a distiller ------------------------------------------------------------------------------


def squares(source, student):
    return keras.ops.mean(keras.ops.square(source - student), axis=-1)


def silent_student():
    student = dense(4, norm=False)
    student.layers[-1].set_weights([0 * w for w in student.layers[-1].get_weights()])
    return student


def test_a_teacher_without_labels_sees_the_mixed_images():
    x, _ = data(16)
    teacher, watched = dense(8, 1), Watched()
    distiller = kd.Distiller(
        student=silent_student(), teacher=teacher, transfers=[kd.Transfer(squares)]
    )
    distiller.compile(keras.optimizers.SGD(0.0))
    train = ArrayPipeline(x, None, batch_size=16, mix=Mixup(1.0))
    follow = kd.data.FollowEpochs(train)
    logs = distiller.fit(train, epochs=2, shuffle=False, verbose=0, callbacks=[follow]).history

    # The student says 0, so the loss is the mean square of what the teacher said.
    def said(pipeline, epoch):
        pipeline.epoch = epoch
        return np.mean(np.square(keras.ops.convert_to_numpy(teacher(pipeline[0][0]))))

    expected = [said(train, 0), said(train, 1)]
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
    unmixed = said(ArrayPipeline(x, None, batch_size=16, mix=watched), 0)
    assert min(abs(expected[0] - unmixed), abs(expected[0] - expected[1])) > 0.005 * unmixed


def test_mixed_labels_train_and_one_hot_labels_validate():
    x, y = data(12)
    train = ArrayPipeline(x, y, batch_size=6, mix=Mixup(1.0), num_classes=CLASSES)
    distiller = kd.Distiller(student=silent_student(), teacher=dense(8, 1))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.0), loss, metrics=["accuracy"])
    validation = x, keras.utils.to_categorical(y, CLASSES)
    logs = distiller.fit(train, validation_data=validation, shuffle=False, verbose=0).history
    # Equal scores: the cross-entropy of any distribution is log(classes), and class 0 is the guess.
    assert logs["label_loss"][0] == pytest.approx(np.log(CLASSES), rel=1e-4)
    assert logs["val_accuracy"][0] == pytest.approx(np.mean(y == 0), abs=1e-4)
