"""Loads data sets of TensorFlow Datasets that are on this machine."""

import dataclasses
from typing import Any

import numpy as np

from kdtoolkit.data.record import build_dataset
from kdtoolkit.data.splits import choose, split


def load_tfds(
    name,
    *,
    data_dir=None,
    val_fraction=0.1,
    seed=0,
    classes=None,
    superclasses=False,
    label_key=None,
    max_train=None,
    normalize=True,
    download=False,
):
    """Loads an image classification data set of TensorFlow Datasets into memory.

    The validation part is held out of the official training part, class by class; the official
    test part is the test part.

    Args:
        name: str, such as `"cifar100"`. All images must have one size.
        data_dir: path where the prepared data set is, or None for the default of TensorFlow
            Datasets (the environment variable `TFDS_DATA_DIR`, or else `~/tensorflow_datasets`).
        val_fraction: float in [0, 1), the share of the training examples held out.
        seed: int >= 0, decides what is held out and what `max_train` keeps.
        classes: sequence of class ids to keep, or None for all. They are relabelled 0, 1, 2, ...
            in the order given.
        superclasses: bool. True takes the 20 groups of CIFAR-100 (`"coarse_label"`) as labels.
        label_key: str, the feature to take as label, or None for the usual one.
        max_train: int >= 1, or None. At most this many training examples, in equal shares of
            every class; the validation part shrinks alike, so `val_fraction` remains its share.
        normalize: bool. False keeps pixels in [0, 1].
        download: bool. True downloads and prepares a data set that is missing.

    Returns:
        A `Dataset`.

    Raises:
        ImportError: without tensorflow_datasets or TensorFlow, which reads the files.
        FileNotFoundError: if the data set is not in `data_dir`.
        ValueError: for an unknown name or label, or images that differ in size.

    Example:

    ```python
    data = kdtoolkit.data.load_tfds("cifar100", superclasses=True, max_train=4000)
    data.num_classes  # 20
    ```
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"`val_fraction` must be in [0, 1). Received: {val_fraction}")
    if max_train is not None and max_train < 1:
        raise ValueError(f"`max_train` must be 1 or more, or None. Received: {max_train}")
    if superclasses and label_key is not None:
        raise ValueError(
            '`superclasses=True` stands for label_key="coarse_label"; give one of the two. '
            f"Received: label_key={label_key!r} as well"
        )
    builder = _prepared_builder(name, data_dir, download)
    source = _open(builder, "coarse_label" if superclasses else label_key, classes)
    images, labels = source.read("train")
    if max_train is not None:
        # With the validation part on top, this leaves exactly `max_train` for training.
        wanted = min(round(max_train / (1 - val_fraction)), len(labels))
        kept = choose(labels, wanted, seed=[seed, 0])
        images, labels = images[kept], labels[kept]
    parts = split(images, labels, val_fraction, seed=[seed, 1])
    return build_dataset(
        name,
        {
            "train": (parts.x_train, parts.y_train),
            "val": (parts.x_val, parts.y_val),
            "test": source.read("test"),
        },
        num_classes=source.num_classes,
        scale=255.0,
        normalize=normalize,
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """What to read of a prepared data set; `classes` are the label ids to keep, in new order."""

    builder: Any
    image_key: str
    label_key: str
    classes: tuple

    @property
    def num_classes(self):
        return len(self.classes)

    def read(self, part):
        """Returns uint8 images and the new labels of one official part."""
        import tensorflow_datasets as tfds

        wanted = tfds.decode.PartialDecoding({self.image_key: True, self.label_key: True})
        # A batch size of -1 is everything; without shuffling, the order is always the same.
        batch = self.builder.as_dataset(
            split=part, batch_size=-1, shuffle_files=False, decoders=wanted
        )
        images, labels = batch[self.image_key].numpy(), batch[self.label_key].numpy()
        # One place more than there are labels: that is where an unlabelled example (-1) looks.
        new_label = np.full(max(*self.classes, labels.max()) + 2, -1)
        new_label[list(self.classes)] = np.arange(self.num_classes)
        labels = new_label[labels]
        kept = labels >= 0
        return (images, labels) if kept.all() else (images[kept], labels[kept])


def _prepared_builder(name, data_dir, download):
    try:
        import tensorflow  # noqa: F401 (tensorflow_datasets reads its files with it)
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "`load_tfds` needs tensorflow_datasets and TensorFlow. "
            'Install them with: pip install "kdtoolkit[data,tensorflow]"'
        ) from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"TensorFlow Datasets has no data set of this name. Received: name={name!r}. "
            "`tensorflow_datasets.list_builders()` lists them"
        ) from error
    if download:
        builder.download_and_prepare()
    elif not builder.is_prepared():
        raise FileNotFoundError(
            f"The data set {name!r} is not prepared on this machine. Expected it in "
            f"{builder.data_path}. Give its folder as `data_dir` or in the environment variable "
            "TFDS_DATA_DIR, or allow the download with `download=True`"
        )
    return builder


def _open(builder, label_key, classes):
    """Checks what will be read before anything is read."""
    info = builder.info
    missing = {"train", "test"} - set(info.splits)
    if missing:
        raise ValueError(
            f"{info.name!r} must have the splits 'train' and 'test'. "
            f"Received: {sorted(info.splits)}"
        )
    image_key, usual_label = info.supervised_keys or ("image", "label")
    label_key = label_key or usual_label
    features = dict(info.features.items())
    image = features.get(image_key)
    if image is None or image.np_dtype != np.uint8 or None in image.shape:
        raise ValueError(
            f"{info.name!r} must have uint8 images of one size, so that they fit one array. "
            f"Received: {features}"
        )
    num_classes = getattr(features.get(label_key), "num_classes", None)
    if num_classes is None:
        raise ValueError(
            f"{info.name!r} has no class label {label_key!r}. Received features: {features}"
        )
    return _Source(builder, image_key, label_key, _checked_classes(classes, num_classes))


def _checked_classes(classes, num_classes):
    if classes is None:
        return tuple(range(num_classes))
    classes = tuple(int(label) for label in classes)
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"`classes` must be different class ids. Received: classes={classes}")
    if min(classes) < 0 or max(classes) >= num_classes:
        raise ValueError(
            f"`classes` must be from 0 to {num_classes - 1}. Received: classes={classes}"
        )
    return classes
