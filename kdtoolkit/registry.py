"""What public classes and functions have in common: registration, and kinds of arguments."""

import functools
import inspect
import math
import numbers
import os
from collections.abc import Iterable

import keras
import numpy as np

PACKAGE = "kdtoolkit"

#: Every registered public class, by name. The generic tests are generated from it.
PUBLIC_CLASSES = {}


def public(cls):
    """Register `cls` so that Keras saves and loads it as `kdtoolkit>ClassName`."""
    PUBLIC_CLASSES[cls.__name__] = cls
    return keras.saving.register_keras_serializable(package=PACKAGE)(cls)


def expects(**kinds):
    """Checks that a function's arguments are of the right kind, with one message for all.

    A decorator: `@expects(model="model", layers="several")`. An argument that is None by default
    may be None. Ranges are the function's own affair.

    Args:
        kinds: a name in `KINDS` by the name of an argument.

    Returns:
        A decorator. What it decorates raises a TypeError for an argument of another kind, and a
        ValueError for an integer out of range.

    Example:
        >>> from kdtoolkit.registry import expects
        >>> @expects(model="model")
        ... def names(model):
        ...     return [layer.name for layer in model.layers]
        >>> names(3)
        Traceback (most recent call last):
        TypeError: `model` of names must be a keras.Model. Received: model=3
    """

    def decorated(function):
        signature = inspect.signature(function)
        owner = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args, **kwargs):
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:
                # Python says which argument is missing or unknown.
                return function(*args, **kwargs)
            for name, kind in kinds.items():
                value = given.get(name, signature.parameters[name].default)
                words, fits = KINDS[kind]
                optional = signature.parameters[name].default is None and value is None
                if not optional and name in given and not fits(value):
                    # An integer of the wrong size is of the right type.
                    ranged = kind in ("count", "seed") and _is_whole(value)
                    error = ValueError if ranged else TypeError
                    raise error(
                        f"`{name}` of {owner} must be {words}. Received: {name}={value!r:.100}"
                    )
            return function(*args, **kwargs)

        return checked

    return decorated


def _is_model(value):
    # Those of tf_keras, too.
    return callable(value) and hasattr(value, "get_weights") and hasattr(value, "trainable_weights")


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_seeds(value):
    several = value if isinstance(value, list | tuple) and value else [value]
    return all(_is_whole(one) and one >= 0 for one in several)


def _is_number(value):
    number = isinstance(value, numbers.Real | np.floating) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _is_dtype(value):
    floats = ("float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16")
    return isinstance(value, keras.DTypePolicy) or (isinstance(value, str) and value in floats)


def _is_several(value):
    listed = isinstance(value, Iterable) and not isinstance(value, str | bytes | type)
    return listed and np.ndim(value if isinstance(value, np.ndarray) else []) == 1


def _is_shape(value):
    # Sizes that aren't known are refused where the reason can be said.
    listed = isinstance(value, tuple | list) and len(value) > 0
    return listed and all(size is None or _is_whole(size) for size in value)


def _has_rows(value):
    return (
        hasattr(value, "__len__")
        and not isinstance(value, str | bytes | dict | type)
        and (not hasattr(value, "shape") or len(value.shape) > 0)
    )


def _are(fits):
    return lambda value: _is_several(value) and all(map(fits, value))


#: What an argument may be asked to be: how the message says it, and whether a value is it.
KINDS = {
    "model": ("a keras.Model", lambda v: _is_model(v) and not isinstance(v, type)),
    "path": ("a path, a str or pathlib.Path", lambda v: isinstance(v, str | os.PathLike)),
    "text": ("a text, a str", lambda v: isinstance(v, str)),
    "function": ("a function", callable),
    "whole": ("an integer", _is_whole),
    "count": ("an integer >= 1", lambda v: _is_whole(v) and v >= 1),
    "seed": ("an integer >= 0", lambda v: _is_whole(v) and v >= 0),
    "seeds": ("an integer >= 0, or a list of those", _is_seeds),
    "number": ("a finite number", _is_number),
    "several": ("a list", _is_several),
    "array": ("an array with the examples on its first axis", _has_rows),
    "texts": ("a list of texts", _are(lambda v: isinstance(v, str))),
    "sizes": ("a list of integers >= 1", _are(lambda v: _is_whole(v) and v >= 1)),
    "shape": ("a shape without the batch, a tuple of integers", _is_shape),
    "optional text": ("a text, a str, or None", lambda v: v is None or isinstance(v, str)),
    "dtype": ("the name of a float dtype", _is_dtype),
}
