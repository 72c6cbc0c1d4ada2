"""The optional packages of the evaluation: SciPy, matplotlib and rich."""

import importlib


def require(module):
    """Import an optional module, or say how to install it.

    Args:
        module: dotted name, for example `"scipy.special"`.

    Returns:
        The module.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"kdtoolkit.evaluation needs the package `{module.partition('.')[0]}`, which could not "
            f'be imported ({error}). Install it with: pip install "kdtoolkit[plot]"'
        ) from error
