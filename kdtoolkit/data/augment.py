"""The standard augmentation of small images: exact mirror images and whole-pixel shifts.

Keras's own layers do not give it: `RandomTranslation` interpolates, and `RandomCrop` takes the same
window for all images of a batch.
"""

import numbers
from typing import Protocol, runtime_checkable

import keras
import numpy as np

from kdtoolkit.registry import public


@runtime_checkable
class Augmentation(Protocol):
    """What an augmentation needs for an `ArrayPipeline`; `FlipShift` is one.

    Randomness and work are apart, so that a pipeline can give an example the same randomness
    wherever it ends up in the shuffled order.

    Example:

    ```python
    class Negative:
        def draw(self, generator, count):
            return generator.integers(0, 2, (count, 1, 1, 1))

        def apply(self, images, draws):
            return np.where(draws, -images, images)


    train = kdtoolkit.data.ArrayPipeline(x, y, batch_size=128, augment=Negative())
    ```
    """

    def draw(self, generator, count):
        """Returns an array `(count, ...)`: the randomness of `count` examples.

        Args:
            generator: `numpy.random.Generator`, the only source of randomness.
            count: int.
        """

    def apply(self, images, draws):
        """Returns the augmented images.

        Args:
            images: NumPy array `(batch, ...)`. Not to be changed in place.
            draws: NumPy array `(batch, ...)`, rows of what `draw` returned.
        """


class Augmentations:
    """Several augmentations, one after the other, as one.

    Args:
        parts: list of `Augmentation`.
    """

    def __init__(self, parts):
        self.parts = list(parts)

    def draw(self, generator, count):
        """Returns one array `(count,)` with a field for each part."""
        draws = [np.asarray(part.draw(generator, count)) for part in self.parts]
        fields = [(str(i), each.dtype, each.shape[1:]) for i, each in enumerate(draws)]
        together = np.empty(count, fields)
        for index, each in enumerate(draws):
            together[str(index)] = each
        return together

    def apply(self, images, draws):
        """Returns the images after all parts."""
        for index, part in enumerate(self.parts):
            images = part.apply(images, draws[str(index)])
        return images


class ZeroPixels:
    """Sets each pixel to zero with a given probability, all its channels together.

    On normalised images zero is the mean colour. What stays isn't scaled up, unlike in dropout.
    For an `ArrayPipeline`, so that teacher and student see the same image.

    Source: Bulo, Porzi and Kontschieder, "Dropout Distillation" (ICML 2016): training images are
    perturbed with 0.2 for the distillation. That whole pixels are zeroed and not single channels is
    this library's reading.

    Args:
        rate: in [0, 1), the probability. Defaults to 0.2.

    Raises:
        ValueError: for a rate out of range.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import data
        >>> zero, images = data.ZeroPixels(0.5), np.ones((2, 2, 2, 3), "float32")
        >>> drawn = zero.draw(np.random.default_rng(0), 2)
        >>> zero.apply(images, drawn)[0, :, :, 0].tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """

    def __init__(self, rate=0.2):
        if not (isinstance(rate, numbers.Real) and 0 <= rate < 1):
            raise ValueError(
                "`rate` of ZeroPixels must be a probability from 0 to below 1. "
                f"Received: rate={rate!r}"
            )
        self.rate = float(rate)

    def draw(self, generator, count):
        """Returns an int64 array `(count,)`: a seed for each image, whose size isn't known here.

        Args:
            generator: `numpy.random.Generator`.
            count: int, number of images.
        """
        return generator.integers(2**63 - 1, size=count)

    def apply(self, images, draws):
        """Returns the images with zeros in them.

        Args:
            images: array `(batch, ..., channels)`, or `(batch, numbers)`, of any dtype.
            draws: int array `(batch,)` as `draw` returns it.
        """
        shape = images.shape[1:-1] + (1,) if images.ndim > 2 else images.shape[1:]
        kept = [np.random.default_rng(seed).random(shape, "float32") >= self.rate for seed in draws]
        return images * np.stack(kept).astype(images.dtype) if len(images) else images


@public
class FlipShift(keras.layers.Layer):
    """Shifts every image by whole pixels and mirrors half of them.

    Each image moves by its own number of pixels, uniform in `-shift ... shift` in each direction,
    and is then mirrored left to right with probability 1/2. Pixels are moved, never mixed.

    Give it to an `ArrayPipeline`, where NumPy does the work, or put it in front of a model as a
    layer, where the accelerator does. As a layer it is the identity unless `training=True`. It
    also works in `tf.data.Dataset.map` with the TensorFlow backend.

    Args:
        flip: bool. False never mirrors. Defaults to True.
        shift: int >= 0, the largest shift in pixels. Defaults to 4, usual for 32 x 32 pixels.
        fill: what comes in at the border. `"reflect"` mirrors the image there, without repeating
            the border pixel; `"constant"` gives zeros, the mean colour of normalised images.
        seed: int or None, of the layer. A pipeline has its own.
        **kwargs: `name`, `dtype`, ... of `keras.layers.Layer`.

    Raises:
        ValueError: for a negative shift or an unknown fill; later, for `"reflect"` with images not
            larger than the shift.

    Example:

    ```python
    augment = kdtoolkit.data.FlipShift(shift=4)
    train = kdtoolkit.data.ArrayPipeline(x, y, batch_size=128, augment=augment)
    trained = keras.Sequential([augment, student])
    ```
    """

    def __init__(self, flip=True, shift=4, fill="reflect", seed=None, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(shift, int | np.integer) or shift < 0:
            raise ValueError(f"`shift` must be an integer of 0 or more. Received: shift={shift!r}")
        if fill not in ("reflect", "constant"):
            raise ValueError(f'`fill` must be "reflect" or "constant". Received: fill={fill!r}')
        self.flip = bool(flip)
        self.shift = int(shift)
        self.fill = fill
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def draw(self, generator, count):
        """Returns an int32 array `(count, 3)`: pixels down, pixels to the right, mirrored or not.

        Args:
            generator: `numpy.random.Generator`.
            count: int, number of images.
        """
        moves = generator.integers(-self.shift, self.shift + 1, (count, 2))
        mirrored = generator.integers(0, 2, (count, 1)) * self.flip
        return np.concatenate([moves, mirrored], axis=1).astype("int32")

    def apply(self, images, draws):
        """Moves images with NumPy.

        Args:
            images: array `(batch, height, width, channels)` of any dtype.
            draws: int array `(batch, 3)` as `draw` returns it.

        Returns:
            A new array like `images`.
        """
        self._check_images(images.shape)
        pixels, inside = self._sources(np, images.shape, draws)
        flat = images.reshape(-1, images.shape[-1])
        # NumPy takes several times as long when it must raise for an index out of range.
        moved = np.take(flat, pixels.ravel(), axis=0, mode="clip").reshape(images.shape)
        if inside is not None:
            moved[~inside] = 0
        return moved

    def build(self, input_shape):
        self._check_images(input_shape)

    def call(self, inputs, training=False):
        if not training:
            return inputs
        shape = keras.ops.shape(inputs)
        pixels, inside = self._sources(keras.ops, shape, self._random_draws(shape[0]))
        flat = keras.ops.reshape(inputs, (-1, shape[-1]))
        moved = keras.ops.take(flat, pixels, axis=0)
        if inside is not None:
            moved = keras.ops.where(inside[..., None], moved, keras.ops.zeros_like(moved))
        return moved

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {"flip": self.flip, "shift": self.shift, "fill": self.fill, "seed": self.seed}
        return {**super().get_config(), **config}

    def _random_draws(self, count):
        def integers(columns, low, high):
            return keras.random.randint(
                (count, columns), low, high, dtype="int32", seed=self.seed_generator
            )

        mirrored = integers(1, 0, 2) * int(self.flip)
        moves = integers(2, -self.shift, self.shift + 1)
        return keras.ops.concatenate([moves, mirrored], axis=1)

    def _sources(self, numpy, shape, draws):
        """Where each pixel comes from; `numpy` is NumPy or `keras.ops`, which agree here.

        Returns:
            An int array `(batch, height, width)` of rows of the flattened pixels, and with
            `fill="constant"` a bool array of the same shape that is False beyond the border.
        """
        batch, height, width, _ = shape
        rows, rows_inside = self._from(numpy, height, draws[:, 0])
        columns, columns_inside = self._from(numpy, width, draws[:, 1])
        mirrored = draws[:, 2:] == 1
        columns = numpy.where(mirrored, numpy.flip(columns, axis=1), columns)
        first = numpy.arange(batch, dtype="int32")[:, None, None] * (height * width)
        pixels = first + rows[:, :, None] * width + columns[:, None, :]
        if self.fill == "reflect":
            return pixels, None
        columns_inside = numpy.where(mirrored, numpy.flip(columns_inside, axis=1), columns_inside)
        return pixels, numpy.logical_and(rows_inside[:, :, None], columns_inside[:, None, :])

    def _from(self, numpy, size, moves):
        """Source positions `(batch, size)` along one axis, and which of them exist."""
        positions = numpy.arange(size, dtype="int32")[None] - moves[:, None]
        if self.fill == "reflect":
            return (size - 1) - numpy.abs((size - 1) - numpy.abs(positions)), None
        clipped = numpy.clip(positions, 0, size - 1)
        return clipped, clipped == positions

    def _check_images(self, shape):
        if len(shape) != 4:
            raise ValueError(
                "`FlipShift` moves images (batch, height, width, channels). "
                f"Received: shape {tuple(shape)}"
            )
        known = [size for size in shape[1:3] if size is not None]
        if self.fill == "reflect" and any(size <= self.shift for size in known):
            raise ValueError(
                f"Reflecting {self.shift} pixels needs images larger than that. "
                f'Received: shape {tuple(shape)}. Use a smaller `shift` or fill="constant"'
            )
