"""Learned layers between features: the projector from one shape to another, convolutions."""

from keras import layers

from kdtoolkit import functional


class Projector(layers.Layer):
    """Maps features of one shape to features of another: another width, resolution, kind.

    - maps to maps of the same size, tokens to tokens, vectors to vectors: one linear layer over the
      channels (a 1x1 convolution);
    - maps to maps whose sides are a whole number of times smaller: a strided convolution, 3x3 for a
      stride of 2; larger: a transposed convolution with a kernel of twice its stride;
    - any other pair is first laid out like the target without weights (`functional.arrange`).

    Everything is computed in float32. It belongs to a loss, which trains it; it is saved with the
    distiller and isn't part of the student.

    Args:
        target: shape of the features to look like, `(None, ..., channels)`.
        norm: whether batch normalisation follows. Defaults to False.
        use_bias: whether the linear map has a bias. Defaults to True.
        name: the layer's name.

    Raises:
        ValueError: when built, a shape that can't be laid out like the target.
    """

    def __init__(self, target, norm=False, use_bias=True, name=None):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.target = tuple(target)
        self.use_bias = use_bias
        self.norm = layers.BatchNormalization(dtype="float32") if norm else None

    def build(self, shape):
        functional.check_arrangement(shape, self.target, "A projector")
        self._map = self._make_map(shape)
        laid_out = shape if self._moves else (None, *self.target[1:-1], shape[-1])
        self._map.build(laid_out)
        if self.norm is not None:
            self.norm.build((None, *self.target[1:]))
        self.built = True

    def _make_map(self, shape):
        factors = self._factors(shape)
        self._moves = factors is not None
        channels, options = self.target[-1], {"use_bias": self.use_bias, "dtype": "float32"}
        if factors is None:
            return layers.Dense(channels, **options)
        options.update(padding="same", data_format="channels_last")
        shrink, grow = factors
        if shrink != (1, 1):
            kernel = tuple(3 if factor == 2 else factor for factor in shrink)
            return layers.Conv2D(channels, kernel, strides=shrink, **options)
        kernel = tuple(2 * factor if factor > 1 else 1 for factor in grow)
        return layers.Conv2DTranspose(channels, kernel, strides=grow, **options)

    def _factors(self, shape):
        """Strides that shrink or grow the maps, None where the positions don't move by strides."""
        if len(shape) != 4 or len(self.target) != 4 or shape[1:3] == self.target[1:3]:
            return None
        sides = list(zip(shape[1:3], self.target[1:3], strict=True))
        if all(old % new == 0 for old, new in sides):
            return tuple(old // new for old, new in sides), (1, 1)
        if all(new % old == 0 for old, new in sides):
            return (1, 1), tuple(new // old for old, new in sides)
        return None

    def call(self, features, training=None):
        features = functional.at_least_float32(features)
        if not self._moves:
            features = functional.arrange(features, self.target)
        features = self._map(features)
        return features if self.norm is None else self.norm(features, training=training)

    def compute_output_shape(self, shape):
        return (shape[0], *self.target[1:])


def projector(source, student, **options):
    """A built `Projector` from the student's shape to the source's; options are its own."""
    made = Projector(source, **options)
    made.build(student)
    return made


def projector_where_needed(source, student, **options):
    """As `projector`, None where the shapes are equal."""
    return None if source[1:] == student[1:] else projector(source, student, **options)


def convolution(channels, shape, **kwargs):
    """A 3x3 convolution for maps of this shape; along a side of one cell it is 1 wide."""
    kernel = tuple(3 if side > 1 else 1 for side in shape[1:3])
    options = {"padding": "same", "data_format": "channels_last", "dtype": "float32"}
    return layers.Conv2D(channels, kernel, **options, **kwargs)
