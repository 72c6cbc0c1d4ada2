"""MGD: the source's features, generated from the student's with a part of them masked."""

import keras
from keras import layers, ops

from kdtoolkit import functional
from kdtoolkit.functional.positions import as_map, map_shape
from kdtoolkit.losses.feature.base import FeatureLoss
from kdtoolkit.losses.feature.projector import convolution, projector_where_needed
from kdtoolkit.registry import expects, public
from kdtoolkit.scalars import Scalar


class _Generator(layers.Layer):
    """Brings the student's features into the source's shape; fills in what was masked there.

    Args:
        align: a built `Projector`, or None where the shapes are equal.
        shape: the source's shape as maps.
    """

    def __init__(self, align, shape):
        super().__init__(dtype="float32", autocast=False)
        self.align = align
        self.first = convolution(shape[-1], shape, activation="relu")
        self.second = convolution(shape[-1], shape)
        for layer in (self.first, self.second):
            layer.build(shape)
        self.built = True

    def aligned(self, student, training):
        """The student's features as maps of the source's shape."""
        if self.align is not None:
            student = self.align(student, training=training)
        return as_map(student)

    def call(self, masked):
        return self.second(self.first(masked))


@public
class MaskedGenerative(FeatureLoss):
    """Masked generative distillation (MGD): the source's features from a part of the student's.

        mean (source - g(mask * r(student)))^2,  over positions and channels

    The mask is drawn anew for each example and step; it drops a position, with all its channels,
    with the probability `ratio`. g is a 3x3 convolution, ReLU and another 3x3 convolution; r is a
    projector as in `Hint`, left out where the shapes are equal. Both are trained, saved with the
    distiller, and never part of the student. Tokens are masked and convolved as a square grid,
    without the class token; those that form none, along their axis.

    Source: Yang et al., 2022, arXiv:2205.01529. The paper sums over positions and channels, which
    is this times `height * width * channels`: its 7e-5 for classification is a weight of 1.8 for
    the mean over 7 x 7 x 512 features. The authors' code for classification masks whole channels
    with ratio 0.15, `MaskedGenerative(0.15, mask="channels")`; for segmentation it masks positions
    with ratio 0.75.

    The random state is part of `variables`, so a distiller tracks and saves it. In plain Keras
    (`model.compile(loss=...)`) on JAX nothing tracks it, and every step repeats one mask.

    Args:
        ratio: probability of being masked, from 0 to 1. Defaults to 0.5.
        mask: "positions" (default) or "channels". Vectors have no positions.
        seed: an integer for a repeatable sequence, or `None` (default) for another in each run.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: a ratio outside 0 to 1, or an unknown mask; when connected, vectors whose
            positions are to be masked, or shapes that no projector can match.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> source, student = np.ones((2, 4, 4, 3)), np.zeros((2, 8, 8, 5))
        >>> float(losses.MaskedGenerative(seed=0)(source, student))
        1.0
    """

    ratio = Scalar(minimum=0.0, maximum=1.0)

    @expects(seed="seed")
    def __init__(
        self,
        ratio=0.5,
        mask="positions",
        seed=None,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        if mask not in ("positions", "channels"):
            raise ValueError(
                "`mask` of MaskedGenerative must be 'positions' or 'channels'. "
                f"Received: mask={mask!r}"
            )
        self.ratio = ratio
        self.mask = mask
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def check_pair(self, source, student):
        super().check_pair(source, student)
        functional.check_arrangement(student, source, "MaskedGenerative")
        if len(source) == 2 and self.mask == "positions":
            raise ValueError(
                "MaskedGenerative masks positions, and a vector has none. Expected tokens or maps. "
                f"Received: source {source} and student {student}. Read a layer before the "
                "pooling, or choose mask='channels'."
            )

    def make_layer(self, source, student):
        return _Generator(projector_where_needed(source, student), map_shape(source))

    def pair_values(self, source, student, layer):
        student = layer.aligned(student, self.training)
        generated = layer(student * self._drawn_mask(student))
        return functional.per_example(ops.square(as_map(source) - generated))

    def _drawn_mask(self, maps):
        """1 where the student's features are kept, 0 where they are masked."""
        batch, height, width, channels = ops.shape(maps)
        shape = (batch, height, width, 1) if self.mask == "positions" else (batch, 1, 1, channels)
        drawn = keras.random.uniform(shape, dtype=maps.dtype, seed=self.seed_generator)
        return ops.cast(drawn >= ops.cast(self.ratio, maps.dtype), maps.dtype)

    def get_config(self):
        return {**super().get_config(), "mask": self.mask, "seed": self.seed}
