"""ReviewKD: the source's layers, compared with all of the student's from there to the deepest."""

from keras import layers, ops

from kdtoolkit import functional, scalars
from kdtoolkit.functional.positions import as_map, grid_of, map_shape
from kdtoolkit.losses.feature.base import LayeredLoss, as_pairs
from kdtoolkit.losses.feature.projector import convolution
from kdtoolkit.registry import public


def hierarchical_distance(source, student):
    """Mean squared error of maps at several sizes (HCL), one value per example.

    At the full size with weight 1, then averaged to 4 x 4, 2 x 2 and 1 x 1 cells, where that is
    smaller, with half the weight each time; divided by the sum of the weights.

    Args:
        source, student: tensors `(batch, height, width, channels)` of one shape.

    Returns:
        Tensor `(batch,)`.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit.losses.feature.review import hierarchical_distance
        >>> maps = np.array([[[[1.0], [-1.0]], [[-1.0], [1.0]]]])
        >>> round(float(hierarchical_distance(maps, 0.0 * maps)[0]), 4)
        0.6667
    """
    source, student = map(functional.at_least_float32, (source, student))
    difference = source - student
    smaller = [size for size in (4, 2, 1) if size < min(difference.shape[1:3])]
    total, weights = functional.per_example(ops.square(difference)), 1.0
    for step, size in enumerate(smaller, start=1):
        # Averaging is linear, so it is the difference that is averaged.
        averaged = functional.resize_maps(difference, size, size)
        total = total + 0.5**step * functional.per_example(ops.square(averaged))
        weights += 0.5**step
    return total / weights


class _Fusion(layers.Layer):
    """Attention-based fusion (ABF) of one layer of the student with what is deeper.

    Args:
        width: int, channels in which layers are fused.
        target: the source's shape as maps.
        deepest: whether there is nothing to fuse with.
    """

    def __init__(self, width, target, deepest):
        super().__init__(dtype="float32", autocast=False)
        self.sides = target[1:3]
        plain = {"use_bias": False, "kernel_initializer": "lecun_uniform"}
        pointwise = {"data_format": "channels_last", "dtype": "float32"}
        self.reduce = layers.Conv2D(width, 1, **plain, **pointwise)
        self.reduce_norm = layers.BatchNormalization(dtype="float32")
        self.expand = convolution(target[-1], target, **plain)
        self.expand_norm = layers.BatchNormalization(dtype="float32")
        self.attention = None
        if not deepest:
            self.attention = layers.Conv2D(2, 1, activation="sigmoid", **pointwise)

    def build(self, shape):
        width = self.reduce.filters
        self.reduce.build(shape)
        self.reduce_norm.build((*shape[:3], width))
        self.expand.build((None, *self.sides, width))
        self.expand_norm.build((None, *self.sides, self.expand.filters))
        if self.attention is not None:
            self.attention.build((*shape[:3], 2 * width))
        self.built = True

    def call(self, maps, deeper=None, training=None):
        """What to compare with the source, and what to hand on to the layer before."""
        fused = self.reduce_norm(self.reduce(maps), training=training)
        if deeper is not None:
            deeper = functional.resize_maps(deeper, *maps.shape[1:3])
            share = self.attention(ops.concatenate([fused, deeper], axis=-1))
            fused = fused * share[..., :1] + deeper * share[..., 1:]
        expanded = self.expand(functional.resize_maps(fused, *self.sides))
        return self.expand_norm(expanded, training=training), fused


@public
class ReviewKD(LayeredLoss):
    """Knowledge review: each layer of the source teaches the student's from there to the deepest.

        f_n = c_n(student_n),  f_k = a_1 * c_k(student_k) + a_2 * up(f_(k+1))
        sum over the layers k of  HCL(source_k, e_k(f_k))

    From the deepest layer n up, the student's layers are brought to `width` channels (c: 1x1
    convolution and batch normalisation) and added with two attention maps a, the sigmoid of a 1x1
    convolution of both; e is a 3x3 convolution with batch normalisation, to the source's channels
    and resolution. HCL is `hierarchical_distance`: mean squared error at the full size and of
    4 x 4, 2 x 2 and 1 x 1 averages, with weights 1, 1/2, 1/4, 1/8, divided by their sum. The
    convolutions are trained, saved with the distiller, and never part of the student.

    List the layers from shallow to deep on both sides; one layer works too. Resolutions and widths
    may differ. Tokens are read as a square grid without the class token. A vector, such as the
    pooled features that the authors add as the deepest layer, is a map of one cell.

    Source: Chen et al., 2021, arXiv:2104.09044. Where sizes differ, the authors' code copies the
    nearest cell; here maps grow by linear interpolation and shrink by averages. Its weight grows in
    a straight line for 20 epochs to 0.6 to 8, by pair of networks: see the method's card.

    Args:
        width: channels in which layers are fused, an integer >= 1, or `None` (default) for those of
            the student's deepest layer, 512 at most.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: a width that is no integer >= 1; when connected, different numbers of layers, a
            vector for maps or tokens, or tokens that form no grid.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> source, student = np.ones((2, 4, 4, 3)), np.zeros((2, 8, 8, 5))
        >>> round(float(losses.ReviewKD()([source], [student])), 4)
        1.0
    """

    def __init__(self, width=None, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.width = None if width is None else scalars.whole(width, "width", "ReviewKD")

    def check_shapes(self, source, student):
        for pair in as_pairs(source, student, "ReviewKD"):
            functional.check_arrangement(*reversed(pair), "ReviewKD")
            for shape in pair:
                if len(shape) == 3 and grid_of(shape[1]) is None:
                    raise ValueError(
                        "ReviewKD reads tokens as a square grid behind at most two extra tokens. "
                        f"Received: shape {shape}, but {shape[1]} tokens form none. Pool them into "
                        "a vector."
                    )

    def make_layers(self, source, student):
        pairs = as_pairs(source, student, "ReviewKD")
        width = self.width or min(512, pairs[-1][1][-1])
        made = []
        for depth, (target, own) in enumerate(pairs, start=1):
            layer = _Fusion(width, map_shape(target, square=True), deepest=depth == len(pairs))
            layer.build(map_shape(own, square=True))
            made.append(layer)
        return made

    def values(self, source, student):
        self.prepare(source, student)
        pairs = as_pairs(source, student, "ReviewKD")
        total, deeper = 0.0, None
        for layer, (target, own) in reversed(list(zip(self._layers, pairs, strict=True))):
            compared, deeper = layer(as_map(own, square=True), deeper, training=self.training)
            total = total + hierarchical_distance(as_map(target, square=True), compared)
        return total

    def get_config(self):
        return {**super().get_config(), "width": self.width}
