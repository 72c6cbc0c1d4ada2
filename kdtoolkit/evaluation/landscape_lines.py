"""The loss along a direction, over a plane, and between two networks."""

import numpy as np

from kdtoolkit.evaluation import weights
from kdtoolkit.evaluation.measuring import measuring
from kdtoolkit.registry import expects

_DEPTHWISE = ("depthwise", "dwconv", "conv_dw")


@expects(model="model", seed="seed")
def direction(model, *, seed=0, norm="filter", include="kernels"):
    """Draws a random direction in the space of a network's weights.

    Each tensor d of standard normal numbers is brought to the length of the weights w it moves:

        norm="filter":  d_j * ||w_j|| / ||d_j||   for each filter j
        norm="layer":   d * ||w|| / ||d||         for the whole tensor
        norm=None:      d

    With filters, networks that differ by the size of weights alone, because normalisation or ReLU
    takes it out again, have the same landscape. A filter is what makes one output: the last axis
    counts the filters of dense, convolution and recurrent kernels, the last two axes those of
    depthwise kernels and of the query, key and value kernels `(channels, heads, size)`; the last
    but one those of transposed convolutions; and each row of an embedding is one. Layers of these
    kinds are told by the usual words in their names. A vector is one filter.

    Source: Li et al., 2018, arXiv:1712.09913. What counts as a filter in attention, depthwise
    kernels and embeddings is our choice.

    Args:
        model: a built network.
        seed: int >= 0. Networks of one architecture get the same numbers, before their lengths.
        norm: "filter" (default), "layer" or None.
        include: which weights are moved, as in `noise_curve`. The others get zeros. Defaults to
            "kernels": the paper leaves out biases and normalisation too.

    Returns:
        A list of float32 arrays with the shapes of `model.trainable_variables`.

    Raises:
        ValueError: an unknown `norm` or `include`, or a network without such weights.

    Example:
        >>> import keras, numpy as np
        >>> from kdtoolkit import evaluation
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> kernel, bias = evaluation.direction(model, seed=1)
        >>> length = np.linalg.norm(model.trainable_variables[0], axis=0)
        >>> bool(np.allclose(np.linalg.norm(kernel, axis=0), length)), bias.tolist()
        (True, [0.0, 0.0, 0.0])
    """
    return _direction(model, seed, 0, norm, include)


def landscape_line(
    model,
    x,
    y,
    *,
    span=1.0,
    points=51,
    direction=None,
    name=None,
    loss=None,
    output=None,
    batch_size=256,
    seed=0,
    progress=True,
):
    """Measures the loss along a line through a network's weights: `L(w + alpha * d)`.

    Inference mode, with the moving statistics as they are. The weights are put back to the bit.

    Source: Li et al., 2018, arXiv:1712.09913; alpha from -1 to 1 is theirs.

    Args:
        model: a built network.
        x, y, loss, output, batch_size, progress: as in `noise_curve`.
        span: float > 0, the largest alpha.
        points: int >= 2. An odd number includes alpha = 0.
        direction: list of arrays as of `direction`, or None for `direction(model, seed=seed)`.
        name: str, what the rows call the network. Defaults to the network's name.
        seed: int >= 0.

    Returns:
        A list of rows for `plot_line` and `write_csv`: dicts of `model`, `alpha`, `loss` and
        `accuracy`.

    Raises:
        ValueError: as `noise_curve`, or for a direction of other shapes.

    Example:

    ```python
    rows = kdtoolkit.evaluation.landscape_line(model, x, y)
    kdtoolkit.evaluation.plot_line(rows, "line.png")
    ```
    """
    direction = _direction(model, seed, 0) if direction is None else direction
    alphas = _positions(span, points)
    with measuring(points, "Line", progress) as probe:
        measure = probe(model, x, y, loss, output, batch_size)
        results = _measured(measure, model, [direction], [(alpha,) for alpha in alphas])
    places = [{"model": name or model.name, "alpha": alpha} for alpha in alphas]
    return _rows(places, results)


def landscape_surface(
    model,
    x,
    y,
    *,
    span=1.0,
    points=(51, 51),
    directions=None,
    name=None,
    loss=None,
    output=None,
    batch_size=256,
    seed=0,
    progress=True,
):
    """Measures the loss over a plane through a network's weights: `L(w + alpha * d + beta * e)`.

    It takes `points[0] * points[1]` passes over the data; (15, 15) on a part of them shows most.
    The row at beta = 0 is the line of `landscape_line` for the same seed.

    Source: Li et al., 2018, arXiv:1712.09913.

    Args:
        model, x, y, span, name, loss, output, batch_size, seed, progress: as in `landscape_line`.
        points: pair of ints >= 2, along alpha and beta.
        directions: pair of directions, or None for two random ones. Those are nearly orthogonal,
            as random directions in many dimensions are.

    Returns:
        A list of rows for `plot_contours`, `plot_surface` and `write_csv`: dicts of `model`,
        `alpha`, `beta`, `loss` and `accuracy`.

    Raises:
        ValueError: as `landscape_line`.

    Example:

    ```python
    rows = kdtoolkit.evaluation.landscape_surface(model, x, y, points=(15, 15))
    kdtoolkit.evaluation.plot_contours(rows, "contours.png")
    ```
    """
    if directions is None:
        directions = [_direction(model, seed, draw) for draw in (0, 1)]
    alphas, betas = (_positions(span, count) for count in points)
    positions = [(alpha, beta) for beta in betas for alpha in alphas]
    with measuring(len(positions), "Surface", progress) as probe:
        measure = probe(model, x, y, loss, output, batch_size)
        results = _measured(measure, model, directions, positions)
    name = name or model.name
    return _rows([{"model": name, "alpha": a, "beta": b} for a, b in positions], results)


def interpolation(
    first,
    second,
    x,
    y,
    *,
    start=-0.5,
    end=1.5,
    points=41,
    name=None,
    loss=None,
    output=None,
    batch_size=256,
    progress=True,
):
    """Measures the loss between two networks: `L((1 - alpha) * first + alpha * second)`.

    alpha = 0 is the first network, 1 the second. All weights go along, biases, normalisation and
    moving statistics too; the latter stay within the two networks' where alpha leaves [0, 1],
    because a variance must not become negative. The first network's weights are put back to the
    bit, the second is only read.

    Networks trained from different starts are usually divided by a barrier: the order of their
    filters differs. That says nothing about how wide their valleys are.

    Source: Goodfellow et al., 2015, arXiv:1412.6544, mostly between the start and the end of one
    training. What becomes of moving statistics is our choice.

    Args:
        first, second: built networks of one architecture.
        x, y, loss, output, batch_size, progress: as in `noise_curve`.
        start, end: floats, the smallest and the largest alpha.
        points: int >= 2, equally spaced; 41 of them hit both networks with the default ends.
        name: str, what the rows call the pair. Defaults to both names.

    Returns:
        A list of rows as of `landscape_line`.

    Raises:
        ValueError: as `noise_curve`, or for networks whose weights have other shapes.

    Example:

    ```python
    rows = kdtoolkit.evaluation.interpolation(independent, mutual, x, y)
    kdtoolkit.evaluation.plot_line(rows, "between.png")
    ```
    """
    _check_alike(first, second)
    if not start < end or points < 2:
        raise ValueError(
            "`start` must be below `end`, and `points` 2 or more. "
            f"Received: {start=}, {end=}, {points=}"
        )
    alphas = np.linspace(start, end, points).tolist()
    pairs = [p for p in zip(first.weights, second.weights, strict=True) if _is_float(p[0])]
    variables = [variable for variable, _ in pairs]
    goals = [np.array(variable.numpy()) for _, variable in pairs]
    results = []
    with measuring(points, "Interpolation", progress) as probe, weights.kept(variables) as values:
        measure = probe(first, x, y, loss, output, batch_size)
        for alpha in alphas:
            between = map(_between, variables, values, goals, [alpha] * len(goals))
            weights.assign(variables, list(between))
            results.append(measure())
    name = name or f"{first.name} to {second.name}"
    return _rows([{"model": name, "alpha": alpha} for alpha in alphas], results)


def _direction(model, seed, draw, norm="filter", include="kernels"):
    """A direction; the number of the draw tells the directions of one seed apart."""
    if norm not in ("filter", "layer", None):
        raise ValueError(f"`norm` must be 'filter', 'layer' or None. Received: norm={norm!r}")
    steps = [np.zeros(variable.shape, "float32") for variable in model.trainable_variables]
    for index, variable in weights.chosen(model, include):
        step = weights.normal(seed, draw, index, variable.shape)
        if norm is not None:
            axes = _axes_of_a_filter(variable) if norm == "filter" else None
            step *= _length(variable.numpy(), axes) / _length(step, axes)
        steps[index] = step
    return steps


def _length(array, axes):
    squares = np.square(np.asarray(array, "float64"))
    return np.sqrt(np.sum(squares, axis=axes, keepdims=True))


def _axes_of_a_filter(variable):
    """The axes over which one filter extends; the others count filters."""
    rank, name = len(variable.shape), variable.name
    layer = variable.path.split("/")[-2:][0].lower()
    if rank < 2:
        counting = ()
    elif "embed" in name:
        counting = (0,)
    elif rank > 2 and "pointwise" not in name and any(w in layer + name for w in _DEPTHWISE):
        counting = (rank - 2, rank - 1)
    elif rank == 3 and layer in ("query", "key", "value"):
        counting = (1, 2)
    elif rank > 2 and "transpose" in layer:
        counting = (rank - 2,)
    else:
        counting = (rank - 1,)
    return tuple(axis for axis in range(rank) if axis not in counting)


def _measured(measure, model, directions, positions):
    """`(loss, accuracy)` at each position, a tuple with one number per direction."""
    variables = model.trainable_variables
    for steps in directions:
        _check_direction(steps, variables)
    results = []
    with weights.kept(variables) as values:
        for position in positions:
            moved = values
            for size, steps in zip(position, directions, strict=True):
                moved = weights.moved(moved, steps, size)
            weights.assign(variables, moved)
            results.append(measure())
    return results


def _rows(places, results):
    return [
        {**place, "loss": loss, "accuracy": accuracy}
        for place, (loss, accuracy) in zip(places, results, strict=True)
    ]


def _positions(span, points):
    """Equally spaced, symmetric about 0 to the bit."""
    if not 0 < span < np.inf or points < 2:
        raise ValueError(
            "`span` must be above 0 and finite, and there must be 2 points or more. "
            f"Received: {span=}, {points=}"
        )
    return [span * (2 * i - (points - 1)) / (points - 1) for i in range(points)]


def _between(variable, value, goal, alpha):
    if variable.name.startswith("moving_"):
        alpha = min(max(alpha, 0.0), 1.0)
    mixed = (1 - alpha) * value.astype("float64") + alpha * goal.astype("float64")
    return mixed.astype("float32")


def _is_float(variable):
    return "float" in str(variable.dtype)


def _check_alike(first, second):
    shapes = [[tuple(w.shape) for w in model.weights] for model in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "Both networks must be built and have one architecture. Received: "
            f"'{first.name}' with weights of the shapes {shapes[0]} and '{second.name}' with "
            f"{shapes[1]}"
        )


def _check_direction(steps, variables):
    shapes = [np.shape(step) for step in steps]
    expected = [tuple(variable.shape) for variable in variables]
    if shapes != expected:
        raise ValueError(
            "A direction must have one array per trainable weight, as `direction` gives it. "
            f"Expected the shapes {expected}. Received: {shapes}"
        )
