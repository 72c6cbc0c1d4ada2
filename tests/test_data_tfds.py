"""Loading from TensorFlow Datasets, on a tiny data set that is prepared without a network."""

import os
import pathlib

import numpy as np
import pytest

from kdtoolkit import data

pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")


class KdtoolkitTiny(tfds.core.GeneratorBasedBuilder):
    """60 training and 9 test images of one colour each; the labels are `index % 3` and `% 2`."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": 60, "test": 9}
    SHAPE = (4, 4, 3)

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=self.SHAPE),
                    "label": tfds.features.ClassLabel(num_classes=3),
                    "coarse_label": tfds.features.ClassLabel(num_classes=2),
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {part: self._generate_examples(count) for part, count in self.SPLITS.items()}

    def _generate_examples(self, count):
        for index in range(count):
            example = {
                "image": np.full((4, 4, 3), index, "uint8"),
                "label": index % 3,
                "coarse_label": index % 2,
                "id": str(index),
            }
            yield index, example


class KdtoolkitNoTest(KdtoolkitTiny):
    """The same without a test part."""

    SPLITS = {"train": 6}


class KdtoolkitAnySize(KdtoolkitTiny):
    """The same with images of unknown size."""

    SHAPE = (None, None, 3)


@pytest.fixture(scope="module")
def tiny_tfds(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def colours(images):
    """The index each image of the tiny data set was made of."""
    return np.round(images[:, 0, 0, 0] * 255).astype(int)


def test_a_data_set_that_is_not_there_is_an_error_until_a_download_is_allowed(tiny_tfds, tmp_path):
    with pytest.raises(FileNotFoundError, match="`data_dir`.*TFDS_DATA_DIR.*download=True"):
        data.load_tfds("kdtoolkit_tiny", data_dir=tmp_path)
    assert not any(tmp_path.iterdir())
    tiny = data.load_tfds("kdtoolkit_tiny", data_dir=tiny_tfds, download=True, normalize=False)
    assert (tiny.name, tiny.num_classes, tiny.input_shape) == ("kdtoolkit_tiny", 3, (4, 4, 3))
    assert [len(part) for part in (tiny.x_train, tiny.x_val, tiny.x_test)] == [54, 6, 9]


def test_tfds_parts_are_disjoint_and_labelled_right(tiny_tfds):
    options = {"data_dir": tiny_tfds, "normalize": False, "val_fraction": 0.25, "download": True}
    tiny = data.load_tfds("kdtoolkit_tiny", **options)
    train, val, test = (colours(part) for part in (tiny.x_train, tiny.x_val, tiny.x_test))
    assert sorted([*train, *val]) == list(range(60))
    assert sorted(test) == list(range(9))
    for index, labels in ((train, tiny.y_train), (val, tiny.y_val), (test, tiny.y_test)):
        np.testing.assert_array_equal(labels, index % 3)
    np.testing.assert_array_equal(np.bincount(tiny.y_val), [5, 5, 5])
    again = data.load_tfds("kdtoolkit_tiny", **options)
    np.testing.assert_array_equal(again.x_val, tiny.x_val)
    other = data.load_tfds("kdtoolkit_tiny", seed=1, **options)
    assert not np.array_equal(other.x_val, tiny.x_val)


def test_tfds_labels_can_be_superclasses_or_a_subset_in_new_order(tiny_tfds):
    options = {"data_dir": tiny_tfds, "normalize": False, "download": True}
    coarse = data.load_tfds("kdtoolkit_tiny", superclasses=True, **options)
    assert coarse.num_classes == 2
    np.testing.assert_array_equal(coarse.y_test, colours(coarse.x_test) % 2)
    subset = data.load_tfds("kdtoolkit_tiny", classes=[2, 0], **options)
    assert subset.num_classes == 2
    assert len(subset.x_train) + len(subset.x_val) == 40 and len(subset.x_test) == 6
    old = np.array([2, 0])
    for x, y in ((subset.x_train, subset.y_train), (subset.x_test, subset.y_test)):
        np.testing.assert_array_equal(old[y], colours(x) % 3)


@pytest.mark.parametrize("val_fraction, expected_val", [(0.0, 0), (0.1, 3), (0.25, 9)])
def test_max_train_is_met_exactly_and_validation_keeps_its_share(
    tiny_tfds, val_fraction, expected_val
):
    tiny = data.load_tfds(
        "kdtoolkit_tiny",
        data_dir=tiny_tfds,
        max_train=27,
        val_fraction=val_fraction,
        download=True,
    )
    assert len(tiny.x_train) == 27 and len(tiny.x_val) == expected_val
    np.testing.assert_array_equal(np.bincount(tiny.y_train), [9, 9, 9])
    assert len(tiny.x_test) == 9


def test_tfds_images_are_normalised_by_the_training_part_alone(tiny_tfds):
    tiny = data.load_tfds("kdtoolkit_tiny", data_dir=tiny_tfds, download=True)
    train = tiny.denormalize(tiny.x_train).astype("float64")
    np.testing.assert_allclose(tiny.mean, train.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(tiny.std, train.std((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(tiny.x_train.mean((0, 1, 2)), 0, atol=1e-5)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("kdtoolkit_unknown", {}, "no data set of this name.*kdtoolkit_unknown"),
        ("kdtoolkit_no_test", {"download": True}, r"'train' and 'test'.*\['train'\]"),
        ("kdtoolkit_any_size", {"download": True}, "one size"),
        ("kdtoolkit_tiny", {"download": True, "label_key": "id"}, "no class label 'id'"),
        ("kdtoolkit_tiny", {"download": True, "classes": [0, 0]}, "different class ids"),
        ("kdtoolkit_tiny", {"download": True, "classes": [3]}, "0 to 2"),
        ("kdtoolkit_tiny", {"superclasses": True, "label_key": "label"}, "one of the two"),
        ("kdtoolkit_tiny", {"val_fraction": 1.0}, "val_fraction"),
        ("kdtoolkit_tiny", {"max_train": 0}, "max_train"),
    ],
)
def test_unusable_tfds_requests_are_refused(tiny_tfds, name, options, message):
    with pytest.raises(ValueError, match=message):
        data.load_tfds(name, data_dir=tiny_tfds, **options)


@pytest.mark.skipif(
    not (pathlib.Path(os.environ.get("TFDS_DATA_DIR", "")) / "cifar100").is_dir()
    or "TFDS_DATA_DIR" not in os.environ,
    reason="CIFAR-100 is not in TFDS_DATA_DIR",
)
def test_cifar100_superclasses_load_as_documented():
    cifar = data.load_tfds("cifar100", superclasses=True, max_train=4000, val_fraction=0.2)
    assert (cifar.num_classes, cifar.input_shape) == (20, (32, 32, 3))
    assert [len(part) for part in (cifar.x_train, cifar.x_val)] == [4000, 1000]
    assert len(cifar.x_test) == 10_000
    np.testing.assert_array_equal(np.bincount(cifar.y_train), np.full(20, 200))
    # The published statistics of CIFAR-100, which a subset meets only roughly.
    np.testing.assert_allclose(cifar.mean, [0.507, 0.487, 0.441], atol=0.01)
    np.testing.assert_allclose(cifar.std, [0.267, 0.256, 0.276], atol=0.01)
