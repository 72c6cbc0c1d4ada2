"""Example data for calibration and checks: taken from many forms, validated, cut in batches."""

from dataclasses import dataclass

import keras
import numpy as np


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape and dtype of one input or output.

    Attributes:
        name: The name under which the tensor is passed or returned.
        shape: Its shape with the batch axis first. `None` stands for any size.
        dtype: For example `"float32"` or `"int8"`. `None`, only while a model is being
            described, stands for a dtype that the data decides.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str | None


def collect(data, inputs, what, limit, by_name=False):
    """Bring example data into one array per input.

    Args:
        data: One array, a dict or list of arrays that matches the inputs, or an iterable of
            batches such as a `tf.data.Dataset`. A tuple batch is read as `(x, y)` or
            `(x, y, sample_weight)`, and only `x` is used.
        inputs: Tuple of `TensorInfo`, in the order in which a list is read.
        what: Name of the argument, for error messages.
        limit: The largest number of examples kept. Longer arrays are thinned evenly; an
            iterable is read until the limit is reached.
        by_name: If `True`, several inputs must be given as a dict.

    Returns:
        Dict from input name to array `[examples, ...]`.

    Raises:
        TypeError: If `data` has none of these forms.
        ValueError: If the data is empty, has a wrong shape or dtype, or holds NaN or infinity.
    """
    parts, count = [], 0
    for batch in _batches(data, inputs, what):
        named = _named(batch, inputs, what, by_name)
        part = _validated(named, inputs, what, limit)
        parts.append(part)
        count += _length(part)
        if count >= limit:
            break
    if not count:
        raise ValueError(f"`{what}` holds no examples. Expected at least one.")
    return {
        info.name: _joined([part[info.name] for part in parts], what)[:limit] for info in inputs
    }


class Batches:
    """Batches that can be read several times, with a progress bar if asked.

    Args:
        items: List of batches.
        verbose: If `True`, the first reading is shown on stdout.
    """

    def __init__(self, items, verbose=False):
        self._items = items
        self.verbose = verbose
        self._read = False

    def __len__(self):
        return len(self._items)

    def __iter__(self):
        if self._read or not self.verbose:
            yield from self._items
            return
        self._read = True
        bar = keras.utils.Progbar(len(self._items), unit_name="calibration")
        for count, item in enumerate(self._items, 1):
            yield item
            bar.update(count)


def shows_progress(calibration):
    """Tell whether reading the calibration data writes to stdout, which must then stay open.

    Args:
        calibration: `Batches`, a list, or `None`.

    Returns:
        `True` or `False`.
    """
    return getattr(calibration, "verbose", False)


def random_examples(inputs, count, seed=0):
    """Return seeded random examples that fit the inputs.

    Floats are standard normal. Integers are 0 or 1, which every embedding of two or more
    rows accepts, except `uint8`, which covers 0 to 255 as pixels do.

    Args:
        inputs: Tuple of `TensorInfo` without unknown sizes behind the batch axis.
        count: Number of examples.
        seed: Integer seed. Defaults to 0.

    Returns:
        Dict from input name to array `[count, ...]`.
    """
    generator = np.random.default_rng(seed)
    examples = {}
    for info in inputs:
        shape = (count, *info.shape[1:])
        if np.dtype(info.dtype).kind == "f":
            values = generator.standard_normal(shape)
        else:
            values = generator.integers(0, 256 if info.dtype == "uint8" else 2, shape)
        examples[info.name] = values.astype(info.dtype)
    return examples


def batches(examples, size):
    """Cut examples into batches of exactly `size`, the last one filled with its last example.

    Args:
        examples: Dict from name to array `[examples, ...]`.
        size: Batch size.

    Returns:
        List of dicts from name to array `[size, ...]`.
    """
    count = _length(examples)
    index = np.arange(-(-count // size) * size).clip(max=count - 1)
    return [
        {name: array[rows] for name, array in examples.items()} for rows in index.reshape(-1, size)
    ]


def in_batches(function, examples, size):
    """Apply `function` to batches of exactly `size` examples and join the results.

    Args:
        function: Takes and returns a dict from name to array with a batch axis.
        examples: Dict from input name to array `[examples, ...]`.
        size: Batch size.

    Returns:
        Dict from output name to array `[examples, ...]`.

    Raises:
        ValueError: If an output has no batch axis of that size.
    """
    results = [function(batch) for batch in batches(examples, size)]
    for name, array in results[0].items():
        if array.shape[:1] != (size,):
            raise ValueError(
                f"Output '{name}' must keep the batch axis in front. Expected {size} rows for "
                f"{size} examples. Received: shape {array.shape}. Return one value per example."
            )
    count = _length(examples)
    return {name: np.concatenate([r[name] for r in results])[:count] for name in results[0]}


def _is_array(value):
    return isinstance(value, np.ndarray) or keras.ops.is_tensor(value)


def _length(examples):
    return len(next(iter(examples.values())))


def _batches(data, inputs, what):
    """Yield the inputs of each batch."""
    if _is_array(data) or isinstance(data, dict):
        yield data
        return
    if isinstance(data, (list, tuple)) and all(_is_array(array) for array in data):
        if len(data) == len(inputs):
            yield data if len(inputs) > 1 else data[0]
            return
        if isinstance(data, tuple):
            raise ValueError(
                f"`{what}` is a tuple of {len(data)} arrays, but the model has {len(inputs)} "
                "input(s). Pass the inputs only, without labels."
            )
    try:
        iterator = iter(data)
    except TypeError as error:
        raise TypeError(
            f"`{what}` must be an array, a dict or list of arrays, or an iterable of batches. "
            f"Received: {type(data).__name__}."
        ) from error
    for batch in iterator:
        yield batch[0] if isinstance(batch, tuple) else batch


def _named(batch, inputs, what, by_name):
    """Return the arrays of one batch under their input names."""
    names = [info.name for info in inputs]
    if isinstance(batch, dict):
        missing = [name for name in names if name not in batch]
        if missing:
            raise ValueError(
                f"`{what}` lacks the input(s) {missing}. Expected: {names}. "
                f"Received: {sorted(map(str, batch))}."
            )
        return {name: batch[name] for name in names}
    if _is_array(batch):
        batch = [batch]
    if not isinstance(batch, (list, tuple)) or not all(_is_array(array) for array in batch):
        raise TypeError(
            f"Every batch of `{what}` must be an array, or a dict or list of arrays. "
            f"Received: {type(batch).__name__}."
        )
    if len(batch) != len(names):
        raise ValueError(
            f"`{what}` must give {len(names)} input(s): {names}. Received: {len(batch)}."
        )
    if by_name and len(names) > 1:
        raise ValueError(
            f"`{what}` must be a dict, because several inputs are told apart by name: {names}. "
            "Received: a list."
        )
    return dict(zip(names, batch, strict=True))


def _validated(batch, inputs, what, limit):
    """Check shapes, thin to `limit` examples, then convert the dtypes."""
    arrays = {name: np.asarray(value) for name, value in batch.items()}
    for info in inputs:
        _check_shape(arrays[info.name], info, what)
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The inputs of `{what}` differ in length. Received: {lengths}.")
    length = min(lengths.values())
    keep = slice(None)
    if length > limit:
        keep = np.linspace(0, length - 1, limit).round().astype(int)
    return {info.name: _converted(arrays[info.name][keep], info, what) for info in inputs}


def _check_shape(array, info, what):
    expected = info.shape[1:]
    fits = array.ndim == len(info.shape) and all(
        size in (None, given) for size, given in zip(expected, array.shape[1:], strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(
            f"`{what}` has a wrong shape for input '{info.name}'. "
            f"Expected: (examples, {wanted}). Received: {array.shape}. "
            "A single example needs a batch axis in front: x[None]."
        )


def _converted(array, info, what):
    dtype = np.dtype(info.dtype or ("float32" if array.dtype.kind == "f" else array.dtype))
    allowed = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}.get(dtype.kind, "")
    # The half precision types that NumPy does not know have kind "V".
    if array.dtype.kind not in allowed and not (dtype.kind == "f" and array.dtype.kind == "V"):
        raise ValueError(
            f"`{what}` has a wrong dtype for input '{info.name}'. Expected: {dtype}. "
            f"Received: {array.dtype}."
        )
    converted = array.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(converted).all():
        raise ValueError(
            f"`{what}` holds NaN or infinity in input '{info.name}'. Expected finite numbers. "
            "Clean the data first."
        )
    if dtype.kind != "f" and not np.array_equal(converted, array):
        raise ValueError(
            f"`{what}` holds values in input '{info.name}' that {dtype} cannot express. "
            f"Received: {array.min()} to {array.max()}."
        )
    return converted


def _joined(arrays, what):
    if len({array.shape[1:] for array in arrays}) > 1:
        shapes = sorted({array.shape[1:] for array in arrays})
        raise ValueError(
            f"All examples of `{what}` must have one shape. Received: {shapes}. "
            "Pad or crop them to the size that the file shall have."
        )
    return np.concatenate(arrays)
