"""What a run was started with, as plain numbers and texts, and how that differs from another's."""

import json

import keras
import numpy as np


def described(part):
    """What tells two settings apart: class and config, or the public numbers of a callback."""
    if part is None or isinstance(part, str):
        return part
    if isinstance(part, keras.Layer | keras.Loss | keras.Optimizer):
        # Keras numbers names: the second object of a class has another one.
        numbers = {key: value for key, value in part.get_config().items() if key != "name"}
    elif isinstance(part, keras.callbacks.Callback):
        plain = (bool, int, float, str)
        numbers = {k: v for k, v in vars(part).items() if k[0] != "_" and isinstance(v, plain)}
    else:
        numbers = {}
    return {"class": getattr(part, "__name__", type(part).__name__), **numbers}


def differences(old, new):
    """The settings that differ, as text, empty if none does.

    Args:
        old, new: nested dicts and lists of numbers and texts.
    """
    old, new = dict(_leaves(old)), dict(_leaves(new))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {old.get(key)} before, {new.get(key)} now" for key in changed)


def as_plain(value):
    """What JSON doesn't know, for `json.dumps(default=...)`."""
    # NumPy's numbers are numbers; of anything else the kind has to do.
    return value.item() if isinstance(value, np.generic) else type(value).__name__


def _leaves(settings, prefix=""):
    """`(path, value as JSON)` of every value in nested dicts and lists."""
    if isinstance(settings, dict | list | tuple):
        items = settings.items() if isinstance(settings, dict) else enumerate(settings)
        for key, value in items:
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(settings, default=as_plain)
