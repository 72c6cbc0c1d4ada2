"""Mixup and CutMix: batches whose examples are mixtures of two."""

import dataclasses
import math
import numbers
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Mixer(Protocol):
    """What mixing needs for an `ArrayPipeline`; `Mixup` and `CutMix` are two.

    The pipeline pairs the examples, and mixes the labels by the share that the mixer returns.

    Example: a mixer that does nothing, so that half of the batches stay as they are.

    ```python
    class Unmixed:
        def draw(self, generator, shape):
            return None

        def apply(self, images, partners, drawn):
            return images, 1.0


    mix = [kdtoolkit.data.Mixup(), Unmixed()]
    train = kdtoolkit.data.ArrayPipeline(x, y, batch_size=128, mix=mix, num_classes=10)
    ```
    """

    def draw(self, generator, shape):
        """Returns the randomness of one batch, of any kind.

        Args:
            generator: `numpy.random.Generator`, the only source of randomness.
            shape: of the batch, `(batch, ...)`.
        """

    def apply(self, images, partners, drawn):
        """Returns the mixed batch, and the share of each label that its own example keeps.

        Args:
            images: floating NumPy array `(batch, ...)`. Not to be changed in place.
            partners: array of the same shape; row i is mixed into `images[i]`.
            drawn: what `draw` returned.
        """


@dataclasses.dataclass(frozen=True)
class _BetaMixer:
    """A mixer with one lambda ~ Beta(alpha, alpha) per batch."""

    alpha: float

    def __post_init__(self):
        if not (isinstance(self.alpha, numbers.Real) and 0 < self.alpha < math.inf):
            raise ValueError(
                f"`alpha` of {type(self).__name__} must be a finite number > 0. "
                f"Received: alpha={self.alpha!r}. Leave `mix` out to mix nothing"
            )


@dataclasses.dataclass(frozen=True)
class Mixup(_BetaMixer):
    """Blends each example with the one before it in the batch.

        x = lambda * x_i + (1 - lambda) * x_(i-1),    lambda ~ Beta(alpha, alpha)

    and labels likewise. There is one lambda per batch. It works on arrays of any shape.

    For an `ArrayPipeline`. Elsewhere partners are shuffled (the authors' code,
    `keras.layers.MixUp`, which also draws lambda per example), or the batch is reversed (timm),
    which makes each pair twice. The code of function matching takes the larger of lambda and
    1 - lambda, which in a shuffled order makes no difference.

    Source: Zhang et al., 2018, arXiv:1710.09412.

    Args:
        alpha: > 0. Near 0 lambda is near 0 or 1 and most images are nearly whole; at 1 it is
            uniform from 0 to 1, as in function matching (Beyer et al., 2022, arXiv:2106.05237);
            above 1 most images are halves. Defaults to 0.2, as in Keras. DeiT has 0.8.

    Raises:
        ValueError: an `alpha` that isn't a finite number > 0.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import data
        >>> x = np.array([[0.0], [4.0], [8.0]])
        >>> mixed, share = data.Mixup().apply(x, np.roll(x, 1, axis=0), 0.75)
        >>> mixed.ravel().tolist(), share
        ([2.0, 3.0, 7.0], 0.75)
    """

    alpha: float = 0.2

    def draw(self, generator, shape):
        """Returns lambda, a float from 0 to 1.

        Args:
            generator: `numpy.random.Generator`.
            shape: of the batch; not used.
        """
        return generator.beta(self.alpha, self.alpha)

    def apply(self, images, partners, drawn):
        """Returns the blended images, and lambda.

        Args:
            images, partners: floating arrays `(batch, ...)`; the result has their dtype.
            drawn: lambda.
        """
        # A Python float, since a float64 of NumPy would make float32 images float64.
        share = float(drawn)
        return share * images + (1 - share) * partners, share


@dataclasses.dataclass(frozen=True)
class CutMix(_BetaMixer):
    """Replaces a box of each image by the same box of the one before it in the batch.

    With lambda ~ Beta(alpha, alpha) the box has the sides `sqrt(1 - lambda)` of the image, so that
    1 - lambda is its share of the area. Its centre is uniform in the image, its edges are rounded
    to whole pixels, and what reaches beyond the border is cut off. The labels are mixed by the
    share of pixels that each image really has, which makes up for both. There is one box per
    batch. With `alpha=1` a box covers 32 % of the image on average, and not 50 %, because of what
    is cut off.

    For an `ArrayPipeline`. The authors' code rounds the sides down to an even number of pixels and
    the centre to a pixel; `keras.layers.CutMix` draws a box per example, which is never cut off.

    Source: Yun et al., 2019, arXiv:1905.04899.

    Args:
        alpha: > 0. Near 0 a box is next to nothing or nearly all; at 1 its area, before the cut, is
            uniform. Defaults to 1, as in the paper and in DeiT.

    Raises:
        ValueError: an `alpha` that isn't a finite number > 0; later, a batch that isn't
            `(batch, height, width, channels)`.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import data
        >>> x = np.stack([np.zeros((2, 4, 1)), np.ones((2, 4, 1))])
        >>> mixed, share = data.CutMix().apply(x, np.roll(x, 1, axis=0), (0, 2, 3, 4))
        >>> mixed[0, :, :, 0].tolist(), share
        ([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]], 0.75)
    """

    alpha: float = 1.0

    def draw(self, generator, shape):
        """Returns the box: its first row, the row behind its last, and its columns likewise.

        Args:
            generator: `numpy.random.Generator`.
            shape: `(batch, height, width, channels)`.
        """
        if len(shape) != 4:
            raise ValueError(
                "`CutMix` cuts boxes out of images (batch, height, width, channels). "
                f"Received: shape {tuple(shape)}. `Mixup` mixes arrays of any shape"
            )
        sizes = np.array(shape[1:3])
        half = sizes * math.sqrt(1 - generator.beta(self.alpha, self.alpha)) / 2
        centre = generator.uniform(0, sizes)
        edges = np.clip(np.rint([centre - half, centre + half]), 0, sizes)
        return tuple(int(edge) for edge in edges.T.ravel())

    def apply(self, images, partners, drawn):
        """Returns the images with the box, and the share of pixels outside the box.

        Args:
            images, partners: arrays `(batch, height, width, channels)`.
            drawn: the box, as `draw` returns it.
        """
        top, bottom, left, right = drawn
        mixed = images.copy()
        mixed[:, top:bottom, left:right] = partners[:, top:bottom, left:right]
        height, width = images.shape[1:3]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def mix_batch(mixers, generator, x, y=None):
    """Mixes a batch by one of the mixers, each with the same chance.

    Rolling by one pairs each example with the one before it. (Reversing the batch would make each
    pair twice, and pair the middle one of an odd number with itself.)

    Args:
        mixers: non-empty sequence of `Mixer`.
        generator: `numpy.random.Generator` of this batch.
        x: array `(batch, ...)`.
        y: array `(batch, classes)`, or None.

    Returns:
        `(x,)` or `(x, y)`, with x floating and y float32.

    Raises:
        TypeError: for images of another kind than floats, bools and integers of at most 16 bits.
    """
    mixer = mixers[generator.integers(len(mixers))]
    x = _floating(x)
    x, share = mixer.apply(x, np.roll(x, 1, axis=0), mixer.draw(generator, x.shape))
    if y is None:
        return (x,)
    share, y = float(share), y.astype("float32")
    return x, share * y + (1 - share) * np.roll(y, 1, axis=0)


def one_hot(y, num_classes):
    """Class numbers `(batch,)` or `(batch, 1)` as float32 `(batch, num_classes)`."""
    return (y.reshape(-1, 1) == np.arange(num_classes)).astype("float32")


def checked_mixers(mix, sample_weight, example_ids, overlap):
    """What is given as `mix` as a tuple of mixers, empty for None.

    Args:
        mix: a `Mixer`, a list of them, or None.
        sample_weight, example_ids, overlap: as given to the pipeline.

    Raises:
        TypeError: something that is no mixer.
        ValueError: an option that goes with single examples only.
    """
    mixers = () if mix is None else tuple(mix) if isinstance(mix, list | tuple) else (mix,)
    for mixer in mixers:
        # A class has the methods too: `Mixup` for `Mixup()`.
        if isinstance(mixer, type) or not isinstance(mixer, Mixer):
            raise TypeError(
                "`mix` must be a `kdtoolkit.data.Mixer` such as `kdtoolkit.data.Mixup()`, or a "
                f"list of them. Received: {mixer!r}"
            )
    if mixers:
        _check_examples_may_mix(sample_weight, example_ids, overlap)
    return mixers


def check_labels(y, num_classes, mixed):
    """Refuses labels that can't become one-hot over `num_classes`, or can't be mixed.

    Args:
        y: NumPy array, or None; with neither of the other two also a structure of arrays.
        num_classes: as given to the pipeline, or None.
        mixed: bool, whether they will be mixed.

    Raises:
        ValueError: see above.
    """
    if num_classes is None and (not mixed or y is None):
        return
    received = "None" if y is None else f"{y.dtype} of shape {y.shape}"
    if num_classes is not None:
        _check_class_numbers(y, num_classes, received)
    elif not (y.ndim == 2 and (y.shape[1] > 1 or y.dtype.kind == "f")):
        raise ValueError(
            "`mix` mixes labels (examples, classes): one-hot or other distributions. "
            f"Received: y={received}. For class numbers give `num_classes` as well"
        )


def _check_class_numbers(y, num_classes, received):
    if not isinstance(num_classes, int | np.integer) or num_classes < 2:
        raise ValueError(
            f"`num_classes` must be an integer >= 2. Received: num_classes={num_classes!r}"
        )
    if y is None or y.dtype.kind not in "iu" or y.shape not in ((len(y),), (len(y), 1)):
        raise ValueError(
            "`num_classes` makes class numbers one-hot: integers (examples,) or (examples, 1). "
            f"Received: y={received}. Leave `num_classes` out"
        )
    if y.size and not 0 <= y.min() <= y.max() < num_classes:
        raise ValueError(
            f"Labels must be class numbers from 0 to {num_classes - 1}, for "
            f"num_classes={num_classes}. Received: {y.min()} to {y.max()}"
        )


def _check_examples_may_mix(sample_weight, example_ids, overlap):
    if example_ids:
        raise ValueError(
            "`mix` doesn't go with `example_ids=True`: what is stored under an id belongs to one "
            "example, and a mixed image is two. Teach with a network, which sees the mixed image "
            "(`kd.Distiller(teacher=model)`, `kd.sources.Snapshot`), or leave `mix` out"
        )
    if overlap:
        raise ValueError(
            "`mix` doesn't go with `overlap=True`: an example would be mixed with another one on "
            "its second visit, and what was said about it before isn't its target. Leave one out"
        )
    if sample_weight is not None:
        raise ValueError(
            "`mix` doesn't go with `sample_weight`: a mixed image is two examples, and has one "
            "weight. Leave one of them out"
        )


def _floating(x):
    if x.dtype.kind == "f":
        return x
    if not np.can_cast(x.dtype, "float32"):
        raise TypeError(
            "`mix` mixes floats, or integers of at most 16 bits, which float32 holds exactly. "
            f"Received: images of dtype {x.dtype}. Use `x.astype('float32')` if they are "
            "quantities; numbers of tokens or categories can't be mixed"
        )
    return x.astype("float32")
