"""Examples and labels from `.npz` and `.npy` files."""

from pathlib import Path

import numpy as np

from kdtoolkit.files import check_archive


def load(path, x=None, y=None):
    """Read a data file. Nothing in it is run: pickled objects are refused.

    Args:
        path: A `.npy` file with the examples, or an `.npz` file with arrays by name.
        x: Name of the examples in an `.npz` file. Defaults to `"x"`, or without such an array to
            all arrays but the labels, as a dict by input name.
        y: Name of the labels. Defaults to `"y"`, if there is one.

    Returns:
        A pair: array or dict of arrays; array of labels or `None`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read or lacks a name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no data file '{path}'. Check the path of --data.")
    if path.suffix not in (".npz", ".npy"):
        raise ValueError(
            f"A data file must end in .npz or .npy. Received: '{path}'. "
            "NumPy writes one: np.savez('data.npz', x=x, y=y)."
        )
    arrays = _arrays(path)
    if isinstance(arrays, np.ndarray):
        if x or y:
            raise ValueError(f"'{path}' holds one array without names: leave out --x and --y.")
        return arrays, None
    labels = y or ("y" if "y" in arrays else None)
    if x is None and "x" not in arrays:
        inputs = {name: array for name, array in arrays.items() if name != labels}
    else:
        inputs = _named(arrays, x or "x", path)
    return inputs, None if labels is None else _named(arrays, labels, path)


def _arrays(path):
    try:
        if path.suffix == ".npz":
            check_archive(path, "Write it again", "an .npz file as np.savez writes it")
        # NumPy leaves a file open that it opened itself and could not read.
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else dict(found)
    # A damaged archive fails wherever it is damaged.
    except Exception as error:
        raise ValueError(
            f"'{path}' could not be read ({type(error).__name__}: {error}). Expected plain arrays "
            "as np.save or np.savez write them."
        ) from error


def _named(arrays, name, path):
    if name not in arrays:
        raise ValueError(
            f"'{path}' has no array '{name}'. It has: {sorted(arrays)}. Pass --x and --y."
        )
    return arrays[name]
