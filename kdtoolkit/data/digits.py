"""The data set that needs no network: scikit-learn's handwritten digits."""

import dataclasses
import math

from kdtoolkit.data.record import build_dataset
from kdtoolkit.data.splits import noisy_labels, split
from kdtoolkit.registry import expects


@expects(seed="seed", image_shape="shape")
def load_digits(
    *,
    seed=0,
    val_fraction=0.15,
    test_fraction=0.55,
    label_noise=0.0,
    normalize=True,
    image_shape=(8, 8, 1),
):
    """Loads scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, 10 classes.

    They come with scikit-learn, so this needs no network. The default shares leave about 540
    training examples: with more of them, every network is nearly perfect and nothing is left for
    a method to gain. Noise on the training labels makes room as well, and it favours distillation;
    say so where you report such numbers.

    Args:
        seed: int >= 0. Decides the split and, separately, the noise: the split is the same at
            every noise level.
        val_fraction: float in [0, 1), the share of all examples for validation.
        test_fraction: float in [0, 1), the share of all examples for the test.
        label_noise: float in [0, 1], the share of *training* labels made wrong, see
            `noisy_labels`. Validation and test labels stay clean.
        normalize: bool. False keeps pixels in [0, 1].
        image_shape: tuple of 64 values in all, for example `(64,)` for a perceptron.

    Returns:
        A `Dataset`.

    Raises:
        ImportError: without scikit-learn.
        ValueError: for shares that leave no training example, or an `image_shape` that does not
            hold 64 values.

    Example:

    ```python
    data = kdtoolkit.data.load_digits(seed=1, label_noise=0.3)
    data.x_train.shape, data.num_classes
    ```
    """
    if math.prod(image_shape) != 64:
        raise ValueError(
            "`image_shape` must hold 64 values, for example (8, 8, 1) or (64,). "
            f"Received: image_shape={image_shape}"
        )
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            "`val_fraction` and `test_fraction` must be 0 or more and leave a share for training. "
            f"Received: {val_fraction} and {test_fraction}"
        )
    images, labels = _digits()
    outer = split(images, labels, test_fraction, seed=[seed, 0])
    inner = split(outer.x_train, outer.y_train, val_fraction / (1 - test_fraction), seed=[seed, 1])
    train_labels = noisy_labels(inner.y_train, label_noise, 10, seed=[seed, 2])
    parts = {
        "train": (inner.x_train, train_labels),
        "val": (inner.x_val, inner.y_val),
        "test": (outer.x_val, outer.y_val),
    }
    # Normalised as images, so that flat digits have one mean too and not one for each pixel.
    data = build_dataset("digits", parts, num_classes=10, scale=16.0, normalize=normalize)
    return _reshaped(data, image_shape)


def _digits():
    try:
        import sklearn.datasets
    except ImportError as error:
        raise ImportError(
            "`load_digits` takes the digits from scikit-learn, which is not installed. "
            'Install it with: pip install "kdtoolkit[data]"'
        ) from error
    bunch = sklearn.datasets.load_digits()
    return bunch.images[..., None], bunch.target


def _reshaped(data, image_shape):
    arrays = {
        part: getattr(data, part).reshape((-1, *image_shape))
        for part in ("x_train", "x_val", "x_test")
    }
    return dataclasses.replace(data, **arrays, input_shape=tuple(image_shape))
