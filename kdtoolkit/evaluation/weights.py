"""The weights that a loss landscape moves: which, how far, and back again."""

import contextlib

import numpy as np

# Beside kernels, weights of two or more axes are biases per head, scales, tokens and tables.
_NO_KERNELS = ("bias", "gamma", "beta", "scale", "token", "embed", "position")


def chosen(model, include):
    """The weights of a network to move.

    Args:
        model: a built `keras.Model`.
        include: "kernels", "trainable", or a function `variable -> bool`, which is asked about the
            trainable weights.

    Returns:
        A list of pairs `(index, variable)`, the index being that in `model.trainable_variables`.

    Raises:
        ValueError: an unknown `include`, or no weight is left.
    """
    rules = {"kernels": is_kernel, "trainable": lambda variable: True}
    if not callable(include) and not (isinstance(include, str) and include in rules):
        raise ValueError(
            f"`include` must be one of {list(rules)} or a function of a variable. "
            f"Received: include={include!r}"
        )
    rule = include if callable(include) else rules[include]
    pairs = [pair for pair in enumerate(model.trainable_variables) if rule(pair[1])]
    if not pairs:
        raise ValueError(
            f"'{model.name}' must have weights to move. Received: "
            f"{len(model.trainable_variables)} trainable weights, none of them chosen by "
            f"include={include!r}. Call the network once if it isn't built, set "
            "`model.trainable = True` if it is frozen, or choose with include='trainable'"
        )
    return pairs


def is_kernel(variable):
    """Whether a variable is a kernel: two axes or more, and no bias, scale, token or table.

    Only names tell. Everything named a kernel is one; else the names of layer and weight decide.
    """
    if len(variable.shape) < 2:
        return False
    if variable.name.endswith("kernel"):
        return True
    names = "/".join(variable.path.split("/")[-2:]).lower()
    return not any(word in names for word in _NO_KERNELS)


def normal(seed, draw, index, shape):
    """Standard normal numbers that depend on these arguments alone, float32."""
    return np.random.default_rng([seed, draw, index]).standard_normal(shape, dtype="float32")


@contextlib.contextmanager
def kept(variables):
    """Gives the values of variables, and puts them back to the bit however the block ends.

    Yields:
        A list of arrays, copies.
    """
    values = [np.array(variable.numpy()) for variable in variables]
    try:
        yield values
    finally:
        assign(variables, values)


def assign(variables, values):
    """Gives each variable its value."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def moved(values, steps, size):
    """The arrays `value + size * step`, at least float32. What gets too large is infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return [
            value.astype(np.result_type(value.dtype, np.float32)) + size * step
            for value, step in zip(values, steps, strict=True)
        ]
