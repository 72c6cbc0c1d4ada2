"""Compare a .tflite file with the Keras model that it was made from."""

import math
from dataclasses import asdict, dataclass

import numpy as np

from kdtoolkit.export.examples import collect, in_batches
from kdtoolkit.export.graph import describe
from kdtoolkit.export.run import LiteRTModel

MAX_CHECKED = 10_000
_KERAS_BATCH = 64


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of a file is from Keras.

    Attributes:
        name: Name of the output.
        max_difference: Largest `|file - keras|`.
        mean_difference: Mean `|file - keras|`.
        relative_difference: `max_difference` divided by the largest `|keras|`.
        agreement: Fraction of positions with the same argmax over the last axis, 0 to 1.
            `None` if that axis has one entry, or the output one axis.
        sqnr_db: Signal to noise ratio in decibels, `10 log10(var(keras) / mean((file -
            keras)^2))`. Infinite without any difference. The variance is taken over all
            values, so that a constant file scores about 0.
    """

    name: str
    max_difference: float
    mean_difference: float
    relative_difference: float
    agreement: float | None
    sqnr_db: float


@dataclass(frozen=True)
class Comparison:
    """How far a file is from Keras, over all its outputs.

    Attributes:
        examples: Number of examples compared.
        outputs: Tuple with one `OutputDifference` per output.
    """

    examples: int
    outputs: tuple[OutputDifference, ...]

    @property
    def max_difference(self):
        """Largest absolute difference of any output."""
        return max(output.max_difference for output in self.outputs)

    @property
    def mean_difference(self):
        """Mean absolute difference of the output where it is largest."""
        return max(output.mean_difference for output in self.outputs)

    @property
    def agreement(self):
        """Top-1 agreement of the output where it is lowest, or `None`."""
        values = [output.agreement for output in self.outputs if output.agreement is not None]
        return min(values, default=None)

    @property
    def sqnr_db(self):
        """Signal to noise ratio of the output where it is lowest."""
        return min(output.sqnr_db for output in self.outputs)

    def to_dict(self):
        """Return the attributes as a dict that JSON can store, infinite numbers as `None`."""
        return finite(asdict(self))


def compare(model, path, x, *, num_threads=1):
    """Run a `.tflite` file and a Keras model on the same examples.

    Args:
        model: The model, of Keras 3 or tf_keras, run with `training=False`.
        path: The `.tflite` file.
        x: Examples: one array, a dict or list of arrays that matches the model's inputs, or an
            iterable of batches, with or without labels. At most 10,000 are used.
        num_threads: Threads of the interpreter. Defaults to 1.

    Returns:
        A `Comparison`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, has other inputs or outputs than the model, or Keras
            itself returns NaN.

    Example:

    ```python
    difference = kd.export.compare(student, "student.tflite", images)
    print(difference.agreement, difference.sqnr_db)
    ```
    """
    graph, runner = describe(model), LiteRTModel(path, num_threads)
    examples = collect(x, graph.inputs, "x", MAX_CHECKED, by_name=graph.by_name)
    return compare_with(reference(graph, examples), runner, examples)


def reference(graph, examples):
    """Return what Keras computes, after checking that it is a number.

    Args:
        graph: `ModelGraph` of the model.
        examples: Dict from input name to array `[examples, ...]`.

    Returns:
        Dict from output name to array `[examples, ...]`.

    Raises:
        ValueError: If an output holds NaN.
    """
    # A model may have been built for one batch size only.
    size = graph.inputs[0].shape[0] or min(_KERAS_BATCH, len(next(iter(examples.values()))))
    outputs = in_batches(graph.predict, examples, size)
    broken = [name for name, array in outputs.items() if np.isnan(array.astype(float)).any()]
    if broken:
        raise ValueError(
            f"The Keras model itself returns NaN in the output(s) {broken}, so that no file can "
            "be checked against it. Check the weights, or pass other `check_data`."
        )
    return outputs


def compare_with(expected, runner, examples):
    """Compare a file with known outputs.

    Args:
        expected: Dict from output name to array `[examples, ...]`.
        runner: A `LiteRTModel`.
        examples: Dict from input name to array `[examples, ...]`.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: If names or shapes differ.
    """
    for kind, file_names, names in (
        ("inputs", [info.name for info in runner.inputs], list(examples)),
        ("outputs", [info.name for info in runner.outputs], list(expected)),
    ):
        # A single tensor may carry any name: it cannot be mistaken for another.
        if sorted(file_names) != sorted(names) and not len(file_names) == len(names) == 1:
            raise ValueError(
                f"The file has other {kind} than the model. Expected: {sorted(names)}. "
                f"Received: {sorted(file_names)}."
            )
    if len(examples) == 1:
        examples = {runner.inputs[0].name: next(iter(examples.values()))}
    actual = runner.predict_dict(examples)
    if len(actual) == 1:
        actual = {next(iter(expected)): next(iter(actual.values()))}
    outputs = tuple(_difference(name, expected[name], actual[name]) for name in expected)
    return Comparison(len(next(iter(examples.values()))), outputs)


def _difference(name, expected, actual):
    if expected.shape != actual.shape:
        raise ValueError(
            f"Output '{name}' of the file has another shape. Expected: {expected.shape}. "
            f"Received: {actual.shape}."
        )
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    # Equal infinities, as in masked outputs, are no difference.
    with np.errstate(invalid="ignore"):
        gap = np.where(expected == actual, 0.0, np.abs(actual - expected))
    gap = np.where(np.isnan(gap), np.inf, gap)
    known = expected[np.isfinite(expected)]
    scale = float(np.abs(known).max(initial=0.0))
    signal = float(known.var()) if known.size else 0.0
    largest = float(gap.max(initial=0.0))
    agreement = None
    if expected.ndim > 1 and expected.shape[-1] > 1:
        agreement = float((expected.argmax(-1) == actual.argmax(-1)).mean())
    return OutputDifference(
        name=name,
        max_difference=largest,
        mean_difference=float(gap.mean()),
        relative_difference=largest / scale if scale else (math.inf if largest else 0.0),
        agreement=agreement,
        sqnr_db=_decibels(signal, float((gap**2).mean())),
    )


def _decibels(signal, noise):
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf


def finite(value):
    """Replace infinite and undefined floats in nested dicts and lists by `None`.

    Args:
        value: Anything that `dataclasses.asdict` returns.

    Returns:
        The same nesting, as strict JSON can store it.
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
