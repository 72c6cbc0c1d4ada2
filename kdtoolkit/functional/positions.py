"""Where features lie: vectors, tokens and maps, and how one is laid out like another.

Features are `(batch, channels)` (a vector), `(batch, tokens, channels)` or `(batch, height, width,
channels)` (a map); channels come last.

Tokens are a vision transformer's square grid or a sequence, and only their number can tell. Where
they meet a map they are a grid, behind at most two extra tokens (class and distillation token).
Among themselves they are one if there are extra tokens, n^2 + 1 or n^2 + 2 in all; else a sequence,
also where they are n^2. A sequence of such a length is best given as a map one cell wide, by a
`Reshape` layer.
"""

import math

import keras
import numpy as np
from keras import ops

from kdtoolkit.functional.numbers import at_least_float32

#: Name of a kind of features by the rank of its tensor.
KINDS = {2: "vectors", 3: "tokens", 4: "maps"}


def check_features(shape, owner, kinds=("vectors", "tokens", "maps")):
    """Refuse what isn't a feature tensor of a known size.

    Args:
        shape: tuple with the batch first (`None`), channels last.
        owner: what the message calls the loss.
        kinds: which kinds the loss can read.

    Raises:
        ValueError: another rank, a size that isn't known, or channels first.

    Example:
        >>> from kdtoolkit import functional
        >>> functional.check_features((None, 8, 8, 16), "my loss")
    """
    if KINDS.get(len(shape)) not in kinds or None in shape[1:]:
        forms = {
            "vectors": "(batch, channels)",
            "tokens": "(batch, tokens, channels)",
            "maps": "(batch, height, width, channels)",
        }
        raise ValueError(
            f"{owner} reads {' or '.join(f'{kind} {forms[kind]}' for kind in kinds)} of known "
            f"size. Received: shape {tuple(shape)}. Read another layer, or give the network an "
            "input of fixed size."
        )
    if len(shape) == 4 and keras.config.image_data_format() == "channels_first":
        raise ValueError(
            f"{owner} reads maps with the channels last. Received: shape {tuple(shape)} under "
            "`image_data_format='channels_first'`. Expected networks with "
            "`data_format='channels_last'` and `keras.config.set_image_data_format`."
        )


def _sized(features):
    features = at_least_float32(features, 2)
    if 0 in features.shape[1:]:
        raise ValueError(f"Features have sizes of 1 or more. Received: shape {features.shape}")
    return features


def grid_of(tokens):
    """`(extra tokens, side)` of a square grid behind 0 to 2 extra tokens, None if there is none.

    Example:
        >>> from kdtoolkit.functional.positions import grid_of
        >>> grid_of(196), grid_of(197), grid_of(198), grid_of(12)
        ((0, 14), (1, 14), (2, 14), None)
    """
    for extra in range(3):
        side = math.isqrt(max(tokens - extra, 0))
        if side and side * side == tokens - extra:
            return extra, side
    return None


def _averaging(size, new_size):
    """Rows that average the cells of an axis: cell i covers size / new_size of the old ones."""
    matrix = np.zeros((new_size, size), "float32")
    for row in range(new_size):
        start, stop = row * size // new_size, -(-(row + 1) * size // new_size)
        matrix[row, start:stop] = 1 / (stop - start)
    return matrix


def _interpolating(size, new_size):
    """Rows that interpolate linearly between the centres of the cells of an axis."""
    centres = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
    low = np.minimum(centres.astype(int), max(size - 2, 0))
    matrix = np.zeros((new_size, size), "float32")
    rows = np.arange(new_size)
    matrix[rows, low] = 1 - (centres - low)
    matrix[rows, np.minimum(low + 1, size - 1)] += centres - low
    return matrix


def _resize_axis(tensor, axis, new_size):
    size = tensor.shape[axis]
    if size == new_size:
        return tensor
    matrix = (_averaging if new_size < size else _interpolating)(size, new_size)
    matrix = ops.convert_to_tensor(matrix.T, dtype=tensor.dtype)
    moved = ops.moveaxis(tensor, axis, -1)
    # One plain product: TensorFlow's batched one with oneDNN writes out of bounds for (b, 1, n, m).
    rows = ops.matmul(ops.reshape(moved, (-1, size)), matrix)
    return ops.moveaxis(ops.reshape(rows, (-1, *moved.shape[1:-1], new_size)), -1, axis)


def resize_maps(maps, height, width):
    """Maps of another size, without weights.

    A smaller side averages (adaptive average pooling: cell i covers the old rows from
    `floor(i * n / m)` to `ceil((i + 1) * n / m)`), a larger one interpolates linearly between the
    centres of the cells.

    Args:
        maps: tensor `(batch, height, width, channels)`.
        height, width: ints >= 1, the new size.

    Returns:
        Tensor `(batch, height, width, channels)`, at least float32.

    Example:
        >>> from kdtoolkit import functional
        >>> [float(v) for v in functional.resize_maps([[[[1.0], [3.0]]]], 1, 1)[0, 0, 0]]
        [2.0]
    """
    maps = at_least_float32(maps, 4)
    return _resize_axis(_resize_axis(maps, 1, height), 2, width)


def as_tokens(features):
    """Features of any kind as `(batch, positions, channels)`; a vector is one position.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import functional
        >>> tuple(functional.as_tokens(np.ones((2, 4, 4, 3))).shape)
        (2, 16, 3)
    """
    features = _sized(features)
    shape = features.shape
    return ops.reshape(features, (-1, math.prod(shape[1:-1]), shape[-1]))


def as_vectors(features):
    """Features of any kind as one vector per example, `(batch, positions * channels)`.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import functional
        >>> tuple(functional.as_vectors(np.ones((2, 4, 4, 3))).shape)
        (2, 48)
    """
    features = _sized(features)
    return ops.reshape(features, (-1, math.prod(features.shape[1:])))


def map_shape(shape, square=False):
    """Shape of features of any kind when they are read as maps, see `as_map`.

    Args:
        shape: shape of the features.
        square: whether n^2 tokens are a grid, too, and not a sequence.

    Example:
        >>> from kdtoolkit.functional.positions import map_shape
        >>> map_shape((None, 8)), map_shape((None, 17, 8)), map_shape((None, 12, 8))
        ((None, 1, 1, 8), (None, 4, 4, 8), (None, 12, 1, 8))
    """
    sides = tuple(shape[1:-1])
    if len(shape) == 2:
        sides = (1, 1)
    elif len(shape) == 3:
        grid = grid_of(shape[1])
        flat = grid is None or not (grid[0] or square)
        sides = (shape[1], 1) if flat else (grid[1], grid[1])
    return (None, *sides, shape[-1])


def as_map(features, square=False):
    """Features of any kind as maps, so that one convolution serves them all.

    A vector is a map of one cell. Tokens are a square grid, without the extra tokens before it; a
    sequence is a map one cell wide (see `map_shape` for `square`).

    Returns:
        Tensor `(batch, height, width, channels)`, at least float32.
    """
    features = _sized(features)
    shape = map_shape(features.shape, square)
    if len(features.shape) == 3:
        features = features[:, features.shape[1] - shape[1] * shape[2] :]
    return ops.reshape(features, (-1, *shape[1:]))


def pooled(features):
    """Features of any kind as the mean over their positions, `(batch, channels)`.

    Example:
        >>> from kdtoolkit import functional
        >>> [float(v) for v in functional.pooled([[[1.0, 2.0], [3.0, 4.0]]])[0]]
        [2.0, 3.0]
    """
    return ops.mean(as_tokens(features), axis=1)


def check_arrangement(shape, target, owner):
    """Refuse to lay out features where they have no positions, or tokens without a grid as a map.

    Args:
        shape, target: shapes of the features as they are, and of those that they shall lie like.
        owner: what the message calls the loss.

    Raises:
        ValueError: see `check_features`; a vector for tokens or maps; tokens that form no square.

    Example:
        >>> from kdtoolkit import functional
        >>> functional.check_arrangement((None, 4, 4, 8), (None, 17, 32), "my loss")
    """
    check_features(shape, owner)
    check_features(target, owner)
    shapes = f"Received: {tuple(shape)}, to be compared with {tuple(target)}"
    if len(shape) == 2 < len(target):
        raise ValueError(
            f"{owner} can't compare a vector, which has no positions, with {KINDS[len(target)]}. "
            f"{shapes}. Read a layer before the pooling, or vectors from both networks."
        )
    if len(shape) == 3 and len(target) == 4 and grid_of(shape[1]) is None:
        raise ValueError(
            f"{owner} reads tokens as a square grid behind at most two extra tokens. {shapes}, "
            f"but {shape[1]} tokens form none. Compare tokens with tokens, or pool both."
        )


def arrange(features, target):
    """Lay out features like others, without weights; the channels stay what they are.

    Maps and grids of tokens are resized (`resize_maps`). Extra tokens go to extra tokens, the
    first to the first; what a map doesn't have, the mean over its positions stands for. Sequences
    (see the module's first lines) are resized along their axis. Anything becomes a vector by its
    mean.

    Args:
        features: tensor of any kind.
        target: shape of the features to lie like, with any batch and channels.

    Returns:
        Tensor `(batch, *target[1:-1], channels)`, at least float32.

    Raises:
        ValueError: see `check_arrangement`.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import functional
        >>> tuple(functional.arrange(np.ones((2, 8, 8, 3)), (None, 17, 5)).shape)
        (2, 17, 3)
    """
    features = _sized(features)
    check_arrangement(features.shape, target, "arrange")
    if tuple(features.shape[1:-1]) == tuple(target[1:-1]):
        return features
    if len(target) == 2:
        return pooled(features)
    extras, maps = _as_grid(features)
    if len(target) == 4:
        return resize_maps(maps, *target[1:3])
    goal = grid_of(target[1])
    grids = maps is not None and goal is not None
    # Two lengths without extra tokens may as well be two sequences.
    if not grids or (len(features.shape) == 3 and not (extras.shape[1] and goal[0])):
        return _resize_axis(as_tokens(features), 1, target[1])
    patches = as_tokens(resize_maps(maps, goal[1], goal[1]))
    mean = ops.mean(patches, axis=1, keepdims=True)
    kept = [extras[:, i : i + 1] if i < extras.shape[1] else mean for i in range(goal[0])]
    return ops.concatenate([*kept, patches], axis=1)


def _as_grid(features):
    """The extra tokens, and the others as a map (None where they form none)."""
    if len(features.shape) == 4:
        return as_tokens(features)[:, :0], features
    grid = grid_of(features.shape[1])
    if grid is None:
        return None, None
    return features[:, : grid[0]], as_map(features, square=True)


def smaller_layout(source, student):
    """The shape with the fewer positions, to which both may be arranged without inventing any.

    Example:
        >>> from kdtoolkit.functional.positions import smaller_layout
        >>> smaller_layout((None, 8, 8, 16), (None, 4, 4, 64))
        (None, 4, 4, 64)
    """
    positions = [math.prod(shape[1:-1]) for shape in (source, student)]
    # Tokens can be laid out as a map only where they form a grid; a map always as tokens.
    if positions[0] == positions[1]:
        return source if len(source) <= len(student) else student
    return source if positions[0] < positions[1] else student


def check_positions(shape, owner):
    """Refuse features of one position, where a pattern over the positions says nothing.

    Args:
        shape: tuple with the batch first, channels last.
        owner: what the message calls the loss.

    Raises:
        ValueError: fewer than 2 positions.

    Example:
        >>> from kdtoolkit.functional.positions import check_positions
        >>> check_positions((None, 2, 2, 8), "my loss")
    """
    positions = math.prod(shape[1:-1])
    if positions < 2:
        raise ValueError(
            f"{owner} compares patterns over positions and expects at least 2 of them. Received: "
            f"shape {tuple(shape)}, which has {positions}. Read a layer before the last pooling."
        )


def check_common_layout(source, student, owner):
    """Refuse shapes that `in_common` can't bring to one layout; otherwise return that layout.

    Args:
        source, student: shapes, tuples with the batch first.
        owner: what the message calls the loss.

    Raises:
        ValueError: see `check_arrangement`.

    Example:
        >>> from kdtoolkit.functional.positions import check_common_layout
        >>> check_common_layout((None, 8, 8, 16), (None, 4, 4, 64), "my loss")
        (None, 4, 4, 64)
    """
    layout = smaller_layout(source, student)
    for shape in (source, student):
        check_arrangement(shape, layout, owner)
    return layout


def in_common(source, student):
    """Both networks' features, laid out like those with the fewer positions.

    Args:
        source, student: tensors of any kind.

    Returns:
        Two tensors of the same layout, each with its own channels.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit.functional.positions import in_common
        >>> [tuple(x.shape) for x in in_common(np.ones((2, 4, 4, 3)), np.ones((2, 2, 2, 5)))]
        [(2, 2, 2, 3), (2, 2, 2, 5)]
    """
    source, student = at_least_float32(source, 2), at_least_float32(student, 2)
    layout = smaller_layout(source.shape, student.shape)
    return arrange(source, layout), arrange(student, layout)
