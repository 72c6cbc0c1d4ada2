"""Data: example ids, splits without leaks, and noise where it belongs."""

import sys

import numpy as np
import pytest

from kdtoolkit import data
from kdtoolkit.data import keys

pytestmark = pytest.mark.core


def numbered_images(count=12, height=6, width=5, channels=2):
    """Images in which no two pixels of the whole array are equal."""
    size = (count, height, width, channels)
    return (1 + np.arange(np.prod(size), dtype="float32")).reshape(size)


# --- example ids ---------------------------------------------------------------------------------


def test_arrays_get_ids_under_the_documented_keys():
    x = numbered_images(3)
    batch = data.with_ids(x)
    assert batch.keys() == {keys.INPUTS, keys.EXAMPLE_ID} == {"inputs", "example_id"}
    assert batch["inputs"] is x
    assert batch["example_id"].dtype == "int32"
    np.testing.assert_array_equal(batch["example_id"], [0, 1, 2])


def test_dicts_of_inputs_keep_their_keys_and_gain_the_ids_given():
    x = {"left": np.zeros(2), "right": np.ones(2)}
    batch = data.with_ids(x, ids=[7, 5])
    assert batch.keys() == {"left", "right", "example_id"}
    assert "example_id" not in x
    np.testing.assert_array_equal(batch["example_id"], [7, 5])


@pytest.mark.parametrize("x", [np.zeros((2, 3)), {"a": np.zeros(2), "b": np.ones(2)}])
def test_strip_undoes_with_ids(x):
    stripped, ids = data.strip(data.with_ids(x, ids=[4, 9]))
    np.testing.assert_array_equal(ids, [4, 9])
    if isinstance(x, dict):
        assert stripped.keys() == x.keys() and all(stripped[key] is x[key] for key in x)
    else:
        assert stripped is x


@pytest.mark.parametrize("x", [np.zeros(2), {"inputs": np.zeros(2)}, [np.zeros(2)], None])
def test_strip_leaves_inputs_without_ids_alone(x):
    stripped, ids = data.strip(x)
    assert stripped is x and ids is None


@pytest.mark.parametrize(
    "x, ids, error, message",
    [
        (np.zeros(3), [0, 1], ValueError, "each of the 3 examples"),
        (np.zeros(2), [0, -1], ValueError, "-1 to 0"),
        (np.zeros(2), [0, 2**31], ValueError, "2147483648"),
        (np.zeros(2), [0.0, 1.0], TypeError, "float64"),
        ([np.zeros(2)], None, TypeError, "list"),
        ({"a": np.zeros(2), "b": np.zeros(3)}, None, ValueError, "same length"),
        ({"a": np.zeros(2), "example_id": np.zeros(2)}, None, ValueError, "already"),
    ],
)
def test_unusable_ids_are_refused(x, ids, error, message):
    with pytest.raises(error, match=message):
        data.with_ids(x, ids)


def test_ids_of_a_tf_dataset_survive_shuffling_and_batching():
    tf = pytest.importorskip("tensorflow")
    x, y = numbered_images(10), np.arange(10) + 100
    weights = np.linspace(0, 1, 10)
    dataset = data.with_ids(tf.data.Dataset.from_tensor_slices((x, y, weights)))
    seen = []
    for inputs, labels, weight in dataset.shuffle(10, seed=0).batch(4):
        images, ids = data.strip(inputs)
        assert ids.dtype == tf.int32
        np.testing.assert_array_equal(images, x[ids])
        np.testing.assert_array_equal(labels, y[ids])
        np.testing.assert_array_equal(weight, weights[ids])
        seen += ids.numpy().tolist()
    assert seen != sorted(seen) == list(range(10))


def test_ids_of_a_tf_dataset_follow_their_examples_into_every_repetition():
    tf = pytest.importorskip("tensorflow")
    x, y = numbered_images(10), np.arange(10) + 100
    dataset = data.with_ids(tf.data.Dataset.from_tensor_slices((x, y)))
    dataset = dataset.shuffle(10, seed=0).repeat(3).batch(4, drop_remainder=True)
    seen = []
    for inputs, labels in dataset:
        images, ids = data.strip(inputs)
        np.testing.assert_array_equal(images, x[ids])
        np.testing.assert_array_equal(labels, y[ids])
        seen += ids.numpy().tolist()
    # 30 examples in 7 whole batches: two passes, of different orders, and 8 of the third.
    first, second, third = seen[:10], seen[10:20], seen[20:]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert len(third) == len(set(third)) == 8


def test_unlabelled_and_dict_tf_datasets_get_ids_too():
    tf = pytest.importorskip("tensorflow")
    plain = next(iter(data.with_ids(tf.data.Dataset.range(3))))[0]
    assert plain.keys() == {"inputs", "example_id"}
    named = tf.data.Dataset.from_tensor_slices(({"a": [1, 2]}, [3, 4]))
    assert next(iter(data.with_ids(named)))[0].keys() == {"a", "example_id"}


def test_a_tf_dataset_of_batches_is_refused():
    tf = pytest.importorskip("tensorflow")
    examples = tf.data.Dataset.from_tensor_slices((np.zeros((4, 2)), np.zeros(4)))
    with pytest.raises(ValueError, match="before `.batch"):
        data.with_ids(examples.batch(2))
    with pytest.raises(ValueError, match="Leave `ids` out"):
        data.with_ids(examples, ids=[0, 1, 2, 3])


# --- splits and label noise ----------------------------------------------------------------------

LABELS = np.repeat([0, 1, 2, 3], [50, 31, 17, 3])
ROWS = np.arange(len(LABELS))


@pytest.mark.parametrize("stratify", [True, False])
def test_a_split_puts_every_example_in_exactly_one_part(stratify):
    parts = data.split(ROWS, LABELS, 0.2, seed=0, stratify=stratify)
    assert sorted([*parts.train_index, *parts.val_index]) == ROWS.tolist()
    assert len(parts.val_index) == round(0.2 * len(ROWS))
    np.testing.assert_array_equal(parts.x_train, parts.train_index)
    np.testing.assert_array_equal(parts.x_val, parts.val_index)
    np.testing.assert_array_equal(parts.y_train, LABELS[parts.train_index])
    np.testing.assert_array_equal(parts.y_val, LABELS[parts.val_index])


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.77])
def test_a_stratified_split_takes_each_class_its_share_to_within_one(fraction):
    parts = data.split(ROWS, LABELS, fraction, seed=1)
    shares = np.bincount(LABELS) * fraction
    assert (abs(np.bincount(parts.y_val, minlength=4) - shares) < 1).all()


def test_a_split_depends_on_the_seed_and_nothing_else():
    np.random.seed(0)
    first = data.split(ROWS, LABELS, 0.2, seed=0).val_index
    np.random.seed(1)
    np.testing.assert_array_equal(first, data.split(-ROWS, LABELS, 0.2, seed=0).val_index)
    assert not np.array_equal(first, data.split(ROWS, LABELS, 0.2, seed=1).val_index)


def test_every_example_has_the_same_chance_to_be_held_out():
    held_out = np.zeros(len(ROWS))
    for seed in range(400):
        held_out[data.split(ROWS, LABELS, 0.5, seed=seed).val_index] += 1
    # Within a class of 50, 200 of 400 draws with a standard deviation of 10.
    assert abs(held_out[:50] - 200).max() < 45


def test_a_split_of_nothing_is_empty():
    parts = data.split(ROWS, LABELS, 0.0, seed=0)
    assert len(parts.x_val) == 0 and len(parts.x_train) == len(ROWS)


def test_soft_labels_can_be_split_without_strata():
    parts = data.split(ROWS, np.eye(4)[LABELS], 0.2, seed=0, stratify=False)
    np.testing.assert_array_equal(parts.y_val.argmax(1), LABELS[parts.x_val])


def test_choose_is_exact_and_sorted_and_stratified():
    rows = data.choose(LABELS, 20, seed=0)
    assert len(set(rows)) == 20 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(np.bincount(LABELS[rows]), [10, 6, 3, 1])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: data.split(ROWS, LABELS, 1.0, seed=0), "fraction=1.0"),
        (lambda: data.split(ROWS, LABELS, -0.1, seed=0), "fraction=-0.1"),
        (lambda: data.split(ROWS[:-1], LABELS, 0.1, seed=0), "100 and 101 examples"),
        (lambda: data.choose(LABELS, 102, seed=0), "count=102"),
        (lambda: data.noisy_labels(LABELS, 1.1, 4, seed=0), "fraction=1.1"),
        (lambda: data.noisy_labels(LABELS, 0.1, 1, seed=0), "num_classes=1"),
    ],
)
def test_impossible_splits_and_noise_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_noise_changes_exactly_the_share_asked_for_to_any_other_class():
    labels = np.repeat([0, 1, 2, 3], 3000)
    noisy = data.noisy_labels(labels, 0.3, 4, seed=0)
    assert (noisy != labels).sum() == 3600
    steps = np.bincount((noisy - labels) % 4, minlength=4)[1:]
    # 1200 of each, with a standard deviation of 28.
    assert abs(steps - 1200).max() < 120
    assert noisy.min() >= 0 and noisy.max() <= 3


def test_noise_is_seeded_and_grows_without_changing_what_was_noisy():
    low, again, high = (data.noisy_labels(LABELS, rate, 4, seed=0) for rate in (0.2, 0.2, 0.6))
    np.testing.assert_array_equal(low, again)
    np.testing.assert_array_equal(high[low != LABELS], low[low != LABELS])
    assert not np.array_equal(low, data.noisy_labels(LABELS, 0.2, 4, seed=1))
    np.testing.assert_array_equal(data.noisy_labels(LABELS, 0.0, 4, seed=0), LABELS)


# --- digits --------------------------------------------------------------------------------------


def test_digits_have_three_disjoint_stratified_parts_of_the_whole():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    digits = data.load_digits(seed=0, normalize=False)
    parts = [digits.x_train, digits.x_val, digits.x_test]
    assert [len(part) for part in parts] == [539, 270, 988]
    everything = np.concatenate(parts).reshape(-1, 64)
    expected = sklearn_datasets.load_digits().data / 16
    # Equal as multisets, so no example is lost or in two parts.
    for rows in (everything, expected):
        rows[:] = rows[np.lexsort(rows.T)]
    np.testing.assert_allclose(everything, expected, atol=1e-6)
    for labels in (digits.y_train, digits.y_val, digits.y_test):
        counts = np.bincount(labels, minlength=10) / len(labels)
        assert labels.dtype == "int32" and abs(counts - 0.1).max() < 0.01


def test_digits_are_normalised_by_the_training_part_alone():
    pytest.importorskip("sklearn")
    raw, normal = (data.load_digits(seed=3, normalize=flag) for flag in (False, True))
    train = raw.x_train.astype("float64")
    np.testing.assert_allclose(normal.mean, [train.mean()], rtol=1e-6)
    np.testing.assert_allclose(normal.std, [train.std()], rtol=1e-6)
    everything = np.concatenate([raw.x_train, raw.x_val, raw.x_test]).astype("float64")
    assert abs(everything.mean() - normal.mean) > 1e-5
    for part in ("x_train", "x_val", "x_test"):
        expected = (getattr(raw, part) - train.mean()) / train.std()
        np.testing.assert_allclose(getattr(normal, part), expected, atol=1e-5)
        np.testing.assert_allclose(
            normal.denormalize(getattr(normal, part)), getattr(raw, part), atol=1e-6
        )
    assert normal.x_val.dtype == normal.denormalize(normal.x_val).dtype == "float32"
    np.testing.assert_array_equal(raw.denormalize(raw.x_val), raw.x_val)


def test_digit_noise_reaches_only_the_training_labels_and_moves_no_example():
    pytest.importorskip("sklearn")
    clean, noisy = (data.load_digits(seed=0, label_noise=rate) for rate in (0.0, 0.3))
    for part in ("x_train", "x_val", "x_test", "y_val", "y_test"):
        np.testing.assert_array_equal(getattr(clean, part), getattr(noisy, part))
    assert (clean.y_train != noisy.y_train).sum() == round(0.3 * len(clean.y_train))


def test_digits_come_in_the_shape_and_shares_asked_for():
    pytest.importorskip("sklearn")
    flat = data.load_digits(image_shape=(64,), val_fraction=0.0, test_fraction=0.5)
    square = data.load_digits(val_fraction=0.0, test_fraction=0.5)
    assert flat.input_shape == (64,) and flat.x_val.shape == (0, 64)
    assert square.input_shape == (8, 8, 1) and square.num_classes == 10
    np.testing.assert_array_equal(flat.x_train.reshape(-1, 8, 8, 1), square.x_train)
    other = data.load_digits(seed=1, val_fraction=0.0, test_fraction=0.5)
    assert not np.array_equal(other.y_test, square.y_test)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_shape": (8, 9)}, "64 values"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave a share"),
        ({"test_fraction": -0.5}, "-0.5"),
        ({"label_noise": 2}, "fraction=2"),
    ],
)
def test_impossible_digits_are_refused(options, message):
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=message):
        data.load_digits(**options)


@pytest.mark.parametrize(
    "module, call",
    [
        ("sklearn.datasets", data.load_digits),
        ("tensorflow_datasets", lambda: data.load_tfds("cifar100")),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(module, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "kdtoolkit\[data'):
        call()


def test_a_constant_channel_is_not_divided_by_zero():
    from kdtoolkit.data.record import channel_statistics

    images = numbered_images(20, channels=2)
    images[..., 1] = 3
    mean, std = channel_statistics(images, 2.0)
    pixels = images.astype("float64")[..., 0] / 2
    np.testing.assert_allclose(mean, [pixels.mean(), 1.5], rtol=1e-6)
    np.testing.assert_allclose(std, [pixels.std(), 1.0], rtol=1e-6)
    with pytest.raises(ValueError, match="empty"):
        channel_statistics(images[:0], 1.0)
