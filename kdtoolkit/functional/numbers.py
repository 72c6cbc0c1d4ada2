"""What counts as a tensor of numbers."""

import keras
from keras import ops


def as_numbers(value, what="a tensor of numbers", minimum_rank=0):
    """A tensor of what was given, refused unless it holds real numbers.

    Args:
        value: a tensor, an array, a number, or nested lists of numbers.
        what: what the message expects.
        minimum_rank: how many axes it must have.

    Raises:
        TypeError: it is none of these, or holds texts or complex numbers.
        ValueError: it has fewer axes.

    Example:
        >>> from kdtoolkit import functional
        >>> tuple(functional.as_numbers([[1, 2]]).shape)
        (1, 2)
    """
    try:
        tensor = ops.convert_to_tensor(value)
    # Every backend has errors of its own for what isn't a tensor.
    except Exception as error:
        text = f"{type(value).__name__} {value}"[:100]
        raise TypeError(f"kdtoolkit expected {what}. Received: {text} ({error})") from error
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if not dtype.startswith(("float", "bfloat", "int", "uint", "bool")):
        raise TypeError(f"kdtoolkit expected {what}. Received: dtype {dtype}. Give it real numbers")
    if len(tensor.shape) < minimum_rank:
        raise ValueError(
            f"kdtoolkit expected {what} with {minimum_rank} axes or more, the batch first. "
            f"Received: shape {tuple(tensor.shape)}"
        )
    return tensor


def at_least_float32(tensor, minimum_rank=0):
    """Cast half precision and integers to float32; leave float32 and float64 as they are."""
    tensor = as_numbers(tensor, minimum_rank=minimum_rank)
    return ops.cast(tensor, keras.backend.result_type(tensor.dtype, "float32"))


def largest(tensor, axis):
    """The largest absolute value along `axis`, which stays as an axis of 1; 0 of an empty batch."""
    return ops.max(ops.abs(tensor), axis=axis, keepdims=True, initial=0.0)
