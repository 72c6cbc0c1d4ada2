"""Run and time .tflite files with the LiteRT interpreter."""

import contextlib
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from kdtoolkit.export.engines import quiet, require
from kdtoolkit.export.examples import TensorInfo, collect, in_batches, random_examples
from kdtoolkit.export.metadata import metadata_of
from kdtoolkit.export.structure import check_computed
from kdtoolkit.export.summary import parse
from kdtoolkit.registry import expects

# Far more than anyone predicts at once: `collect` wants a limit, prediction has none.
_NO_LIMIT = 2**62


class LiteRTModel:
    """A `.tflite` file that predicts on any number of examples, like a Keras model.

    Files with integer inputs or outputs are given and return real numbers: the conversion
    with scale and zero point, `q = round(x / scale) + zero_point`, happens inside.

    Args:
        path: The `.tflite` file.
        num_threads: Threads of the interpreter. Defaults to 1.

    Attributes:
        inputs: Tuple of `TensorInfo`, as stored in the file.
        outputs: Tuple of `TensorInfo`, as stored in the file.
        batch_size: Examples per invocation, the first axis of the inputs.
        metadata: What was passed to `litert` as `metadata`, else an empty dict.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a complete `.tflite` file, or LiteRT cannot run it.

    Example:

    ```python
    model = kd.export.LiteRTModel("student.tflite")
    logits = model.predict(images)
    ```
    """

    @expects(path="path")
    def __init__(self, path, num_threads=1):
        content = Path(path).read_bytes()
        self._interpreter, model = _open(content, path, num_threads)
        self._path = path
        self.metadata = metadata_of(model)
        self._inputs, self._outputs = _details(self._interpreter, path)
        self.inputs = tuple(_info(*item) for item in self._inputs.items())
        self.outputs = tuple(_info(*item) for item in self._outputs.items())
        self.batch_size = self.inputs[0].shape[0] if self.inputs[0].shape else 1

    def predict(self, x):
        """Run the file on examples.

        Args:
            x: Array `[examples, ...]`, or a dict of such arrays by input name. A file with
                several inputs takes a dict only, because files do not keep their order.

        Returns:
            Array `[examples, ...]`, or for several outputs a dict by output name.

        Raises:
            ValueError: If a name, shape or dtype does not fit the file.
        """
        examples = collect(x, self._real_inputs(), "x", _NO_LIMIT, by_name=True)
        outputs = self.predict_dict(examples)
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def predict_dict(self, examples):
        """Run the file on validated examples and return every output by name.

        Args:
            examples: Dict from input name to array `[examples, ...]` of the input's dtype.

        Returns:
            Dict from output name to array `[examples, ...]`.
        """
        return in_batches(self._invoke, examples, self.batch_size)

    def _real_inputs(self):
        quantised = [info.name for info in self.inputs if _scale(self._inputs[info.name])]
        return tuple(
            replace(info, dtype="float32") if info.name in quantised else info
            for info in self.inputs
        )

    def _invoke(self, batch):
        with _running(self._path):
            for name, details in self._inputs.items():
                self._interpreter.set_tensor(details["index"], _to_integers(batch[name], details))
            self._interpreter.invoke()
            return {
                name: _to_reals(self._interpreter.get_tensor(details["index"]), details)
                for name, details in self._outputs.items()
            }


@dataclass(frozen=True)
class Latency:
    """Time per invocation of a `.tflite` file, in milliseconds.

    Attributes:
        median_ms: Median over the runs.
        min_ms: Fastest run, the least disturbed by other work of the machine.
        p95_ms: 95th percentile.
        runs: Number of timed runs.
        num_threads: Threads of the interpreter.
    """

    median_ms: float
    min_ms: float
    p95_ms: float
    runs: int
    num_threads: int

    def to_dict(self):
        """Return the attributes as a dict that JSON can store."""
        return asdict(self)

    def __str__(self):
        return f"{self.median_ms:.3f} ms ({self.num_threads} thread(s))"


@expects(path="path", warmup="whole", runs="whole", seed="seed")
def latency(path, *, num_threads=1, warmup=10, runs=50, seed=0):
    """Time a `.tflite` file on random inputs, one invocation at a time.

    Only the interpreter is timed: inputs are in place before the clock starts. An invocation
    covers the batch size of the file, which is 1 unless it was exported otherwise. The numbers
    hold for this machine.

    Args:
        path: The `.tflite` file.
        num_threads: Threads of the interpreter. Defaults to 1.
        warmup: Invocations before the timed ones. Defaults to 10.
        runs: Timed invocations, at least 1. Defaults to 50.
        seed: Seed of the random inputs. Defaults to 0.

    Returns:
        A `Latency`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an argument is out of range, or LiteRT cannot run the file.

    Example:

    ```python
    print(kd.export.latency("student.tflite", runs=100).median_ms)
    ```
    """
    if runs < 1 or warmup < 0:
        raise ValueError(
            f"`runs` must be at least 1 and `warmup` at least 0. Received: {runs=}, {warmup=}."
        )
    interpreter, _ = _open(Path(path).read_bytes(), path, num_threads)
    inputs, _ = _details(interpreter, path)
    infos = tuple(_info(*item) for item in inputs.items())
    for info in infos:
        values = random_examples((info,), info.shape[0] if info.shape else 1, seed)[info.name]
        with _running(path):
            interpreter.set_tensor(inputs[info.name]["index"], values.reshape(info.shape))
    times = []
    with _running(path):
        for _ in range(warmup + runs):
            start = time.perf_counter()
            interpreter.invoke()
            times.append(1000 * (time.perf_counter() - start))
    times = np.asarray(times[warmup:])
    p95 = float(np.percentile(times, 95))
    return Latency(float(np.median(times)), float(times.min()), p95, runs, num_threads)


def over_rounds(rounds):
    """Sum up timings of one file that were taken in turns with those of others.

    Args:
        rounds: List of `Latency`.

    Returns:
        A tuple: the median of the medians, the fastest run of all, the median of the 95th
        percentiles, in milliseconds.
    """
    return (
        statistics.median(one.median_ms for one in rounds),
        min(one.min_ms for one in rounds),
        statistics.median(one.p95_ms for one in rounds),
    )


def check_threads(num_threads):
    """Refuse a number of threads below 1.

    Args:
        num_threads: The number given.

    Raises:
        ValueError: If it is no positive integer.
    """
    if not isinstance(num_threads, int) or num_threads < 1:
        raise ValueError(f"`num_threads` must be a positive integer. Received: {num_threads!r}.")


def _open(content, path, num_threads):
    """Return an interpreter with its memory allocated, and the parsed file."""
    check_threads(num_threads)
    model = parse(content, path)
    interpreters = require("ai_edge_litert.interpreter")
    try:
        with quiet():
            check_computed(model, content)
            # From memory, not from the path: the interpreter would map the file, which then
            # could not be replaced on every system while the interpreter lives.
            interpreter = interpreters.Interpreter(model_content=content, num_threads=num_threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"LiteRT cannot run '{path}' ({len(content)} bytes): {error}. Expected a complete "
            ".tflite file with built-in operations. Export it again with kdtoolkit.export.litert."
        ) from error
    return interpreter, model


@contextlib.contextmanager
def _running(path):
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"LiteRT could not run '{path}' to its end: {error}. Expected a complete .tflite file. "
            "Export it again with kdtoolkit.export.litert."
        ) from error


def _details(interpreter, path):
    """Return the interpreter's records of inputs and outputs, by signature name."""
    signatures = interpreter.get_signature_list()
    if signatures:
        # The runner must not be kept: it holds a reference that makes `invoke` refuse to work.
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
    else:
        inputs = {details["name"]: details for details in interpreter.get_input_details()}
        outputs = {details["name"]: details for details in interpreter.get_output_details()}
    if not inputs or not outputs:
        raise ValueError(
            f"'{path}' has no inputs or no outputs, so it is no complete .tflite file of a model. "
            "Export it again with kdtoolkit.export.litert."
        )
    return inputs, outputs


def _info(name, details):
    shape = tuple(int(size) for size in details["shape"])
    return TensorInfo(name, shape, np.dtype(details["dtype"]).name)


def _scale(details):
    """Return scale and zero point of a quantised tensor, or `None`."""
    parameters = details["quantization_parameters"]
    if not parameters["scales"].size:
        return None
    return float(parameters["scales"][0]), int(parameters["zero_points"][0])


def _to_integers(array, details):
    if not _scale(details):
        return array.astype(details["dtype"], copy=False)
    scale, zero_point = _scale(details)
    limits = np.iinfo(details["dtype"])
    integers = np.round(array / scale) + zero_point
    return integers.clip(limits.min, limits.max).astype(details["dtype"])


def _to_reals(array, details):
    if not _scale(details):
        return array
    scale, zero_point = _scale(details)
    return ((array.astype(np.float32) - zero_point) * scale).astype(np.float32)
