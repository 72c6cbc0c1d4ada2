"""The record of a data set in three parts, and how its images are normalised."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled image data set in three parts.

    Attributes:
        x_train, x_val, x_test: float32 arrays `(examples, *input_shape)`.
        y_train, y_val, y_test: int32 arrays `(examples,)` of class ids.
        num_classes: int, number of classes.
        input_shape: tuple, the shape of one example.
        name: str.
        mean, std: float32 arrays `(channels,)` of the training part alone, in units of the pixels
            in [0, 1]; 0 and 1 if the images are not normalised.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    input_shape: tuple
    name: str
    mean: np.ndarray
    std: np.ndarray

    def denormalize(self, x):
        """Returns float32 images with pixels in [0, 1]: `x * std + mean`.

        Args:
            x: array `(..., channels)` in the units of `x_train`.

        Example:

        ```python
        data = kdtoolkit.data.load_digits()
        picture = data.denormalize(data.x_test[0])
        ```
        """
        return (np.asarray(x, "float32") * self.std + self.mean).astype("float32")


def build_dataset(name, parts, *, num_classes, scale, normalize):
    """Makes a `Dataset` of raw images, normalised by its training part.

    Args:
        name: str.
        parts: dict with the keys `"train"`, `"val"`, `"test"`, each a pair of raw images
            `(examples, height, width, channels)` and int labels `(examples,)`.
        num_classes: int.
        scale: float, the raw value that means white.
        normalize: bool. True: each channel gets mean 0 and standard deviation 1 over `"train"`.

    Returns:
        A `Dataset`.
    """
    channels = parts["train"][0].shape[-1]
    mean, std = np.zeros(channels, "float32"), np.ones(channels, "float32")
    if normalize:
        mean, std = channel_statistics(parts["train"][0], scale)
    arrays = {}
    for part, (images, labels) in parts.items():
        # In place, because a copy more of CIFAR's training images is 600 MB.
        pixels = images.astype("float32")
        pixels /= scale
        pixels -= mean
        pixels /= std
        arrays[f"x_{part}"] = pixels
        arrays[f"y_{part}"] = labels.astype("int32")
    return Dataset(
        **arrays,
        num_classes=num_classes,
        input_shape=arrays["x_train"].shape[1:],
        name=name,
        mean=mean,
        std=std,
    )


def channel_statistics(images, scale):
    """Returns float32 mean and standard deviation of each channel of `images / scale`.

    A channel that never changes gets the standard deviation 1, so that dividing by it is safe.

    Args:
        images: array `(examples, ..., channels)`, at least one example.
        scale: float, see `build_dataset`.

    Raises:
        ValueError: if there is no example.
    """
    if not len(images):
        raise ValueError("The training part is empty, so it has no mean. Hold out a smaller share.")
    total, squares, count = 0.0, 0.0, 0
    # In pieces, because float64 copies of all images would not fit small machines.
    for start in range(0, len(images), 4096):
        piece = images[start : start + 4096].astype("float64").reshape(-1, images.shape[-1]) / scale
        total, squares = total + piece.sum(0), squares + (piece**2).sum(0)
        count += len(piece)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    std[std < 1e-6] = 1.0
    return mean.astype("float32"), std.astype("float32")
