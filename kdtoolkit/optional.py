"""Packages that only a part of kdtoolkit needs."""

import importlib


def require(module, part, extra):
    """Import an optional module, or say how to install it.

    Args:
        module: dotted name, for example `"scipy.special"`.
        part: the part of kdtoolkit that needs it, for example `"kdtoolkit.evaluation"`.
        extra: the extra of kdtoolkit that brings it, for example `"plot"`.

    Returns:
        The module.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{part} needs the package `{module.partition('.')[0]}`, which could not be imported "
            f'({error}). Install it with: pip install "kdtoolkit[{extra}]"'
        ) from error
