"""Export a Keras model to a checked .tflite file."""

import contextlib
import os
import uuid
from dataclasses import dataclass, fields, replace
from pathlib import Path

from kdtoolkit.export.convert import to_float, to_quantized
from kdtoolkit.export.engines import require
from kdtoolkit.export.examples import batches, collect, random_examples
from kdtoolkit.export.graph import describe
from kdtoolkit.export.limits import ExportMismatchError, check_limits
from kdtoolkit.export.prepare import check_model, float32_copy, uses_float32
from kdtoolkit.export.report import ExportReport
from kdtoolkit.export.run import LiteRTModel, check_threads, latency
from kdtoolkit.export.summary import inspect
from kdtoolkit.export.verify import MAX_CHECKED, compare_with, reference

MAX_CALIBRATION = 512
_RANDOM_EXAMPLES = 64
# Enough to see that the float file, from which the others are made, is right.
_FLOAT_EXAMPLES = 16


def litert(
    model,
    path,
    *,
    quantize=None,
    representative_data=None,
    check_data=None,
    io="float32",
    batch_size=1,
    tolerance=None,
    measure_latency=False,
    num_threads=1,
    overwrite=False,
):
    """Export a Keras model to a `.tflite` file and check the file against Keras.

    The model is converted once in float32, with built-in LiteRT operations only, then
    quantised. Dropout and random augmentation vanish, BatchNormalization is folded, layers in
    mixed precision are exported in float32. The file is run and compared with
    `model(x, training=False)`: one that disagrees is an error, and nothing is left at `path`.

    Limits without `tolerance`: float32 files may differ by 1e-4 of the largest output. The
    others need a signal to noise ratio of 20 dB (float16, and models in mixed precision) or
    10 dB (dynamic, int8), or a largest difference within 1 % of the largest output.

    Args:
        model: A built `keras.Model` on the TensorFlow backend: functional, sequential, or
            subclassed and called once with all inputs in its first argument.
        path: Where to write, ending in `.tflite`. The directory must exist.
        quantize: `None` (float32), `"float16"` (half the size), `"dynamic"` (int8 weights, a
            quarter of the size) or `"int8"` (int8 weights and activations). Recurrent layers
            cannot be `"int8"`.
        representative_data: Typical inputs, needed for `"int8"`: one array, a dict or list of
            arrays that matches the inputs, or an iterable of batches such as a
            `tf.data.Dataset`, with or without labels. At most 512 examples are used: evenly
            spread over an array, the first ones of an iterable.
        check_data: Inputs for the comparison with Keras, in the same forms, at most 10,000.
            Defaults to `representative_data`, else 64 seeded random examples.
        io: `"float32"`, or with `quantize="int8"` also `"int8"` inputs and outputs.
        batch_size: Batch size of the file. Defaults to 1.
        tolerance: If given, the only limit, for every mode: the largest difference from Keras
            as a fraction of the largest Keras output. Not negative.
        measure_latency: If `True`, time the file with `latency`. Defaults to `False`.
        num_threads: Threads for the comparison and the timing. Defaults to 1.
        overwrite: If `True`, replace an existing file. Defaults to `False`.

    Returns:
        An `ExportReport`.

    Raises:
        ExportMismatchError: If the file disagrees with Keras.
        FileExistsError: If there is a file at `path` and `overwrite` is `False`.
        FileNotFoundError: If the directory of `path` does not exist.
        IsADirectoryError: If `path` is a directory.
        PermissionError: If the directory of `path` cannot be written to.
        ImportError: If LiteRT is not installed.
        TypeError: If `model` is not a Keras model, or data has an unknown form.
        ValueError: If an argument, the data or the model does not allow the export.

    Example:

    ```python
    report = kd.export.litert(student, "student.tflite", quantize="int8", representative_data=x)
    print(report)
    ```
    """
    _check_arguments(quantize, representative_data, io, batch_size, tolerance)
    check_threads(num_threads)
    target = _check_target(path, overwrite)
    check_model(model)
    _check_packages(quantize)
    with _draft(target) as draft:
        graph = describe(float32_copy(model))
        fixed, calibration, checked = _data(graph, batch_size, representative_data, check_data)
        check = _Check(draft, reference(replace(graph, model=model), checked), checked, num_threads)

        precision = "float32" if uses_float32(model) else "float16"
        draft.write_bytes(to_float(fixed))
        if quantize is None:
            difference = check.run(precision, tolerance)
        else:
            check.first(_FLOAT_EXAMPLES).run(precision)
            calibration = calibration and batches(calibration, batch_size)
            _quantize_file(draft, quantize, io, calibration)
            difference = check.run(quantize, tolerance)
        timing = latency(draft, num_threads=num_threads) if measure_latency else None
        report = _report(target, draft, quantize, model, difference, timing)
        os.replace(draft, target)
    return report


@dataclass(frozen=True)
class _Check:
    """The comparison of a draft with what Keras computes."""

    draft: Path
    expected: dict
    examples: dict
    num_threads: int

    def first(self, count):
        """Return the same check on fewer examples."""
        return replace(
            self,
            expected={name: array[:count] for name, array in self.expected.items()},
            examples={name: array[:count] for name, array in self.examples.items()},
        )

    def run(self, precision, tolerance=None):
        """Return the `Comparison`, or raise if the draft cannot run or is too far away."""
        try:
            runner = LiteRTModel(self.draft, self.num_threads)
        except ValueError as error:
            raise ExportMismatchError(
                f"LiteRT cannot run the {precision} file, so no file was written "
                f"({error.__cause__}). Replace the layer behind that operation, or use another "
                "`quantize`."
            ) from error
        difference = compare_with(self.expected, runner, self.examples)
        check_limits(difference, precision, tolerance)
        return difference


def _check_arguments(quantize, representative_data, io, batch_size, tolerance):
    if quantize not in (None, "float16", "dynamic", "int8"):
        raise ValueError(
            f"`quantize` must be None, 'float16', 'dynamic' or 'int8'. Received: {quantize!r}."
        )
    if quantize == "int8" and representative_data is None:
        raise ValueError(
            "quantize='int8' needs `representative_data` to find the range of every activation. "
            "Pass 100 to 500 typical inputs, or use quantize='dynamic', which needs none."
        )
    if io not in ("float32", "int8") or (io == "int8" and quantize != "int8"):
        raise ValueError(
            "`io` must be 'float32', or 'int8' together with quantize='int8'. "
            f"Received: io={io!r}, quantize={quantize!r}."
        )
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a positive integer. Received: {batch_size!r}.")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"`tolerance` must be None or at least 0. Received: {tolerance!r}.")


def _check_packages(quantize):
    """Import now what is needed later, so that a missing package costs no conversion."""
    require("tensorflow")
    require("ai_edge_litert.interpreter")
    if quantize:
        require("ai_edge_quantizer.quantizer")


def _check_target(path, overwrite):
    target = Path(path)
    if target.suffix != ".tflite":
        raise ValueError(f"`path` must end in '.tflite'. Received: '{path}'.")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"The directory '{target.parent}' does not exist. Create it before the export."
        )
    if target.is_dir():
        raise IsADirectoryError(f"`path` is a directory: '{path}'. Pass the name of a file.")
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"'{path}' exists already. Pass overwrite=True to replace it, or another path."
        )
    return target


@contextlib.contextmanager
def _draft(target):
    """Yield a temporary file beside `target`, created at once and gone at the end."""
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        draft.touch(exist_ok=False)
    except OSError as error:
        raise PermissionError(
            f"The directory '{target.parent}' cannot be written to ({error}). "
            "Pass a path in a directory that you own."
        ) from error
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _data(graph, batch_size, representative_data, check_data):
    """Return the graph with all sizes known, the calibration and the check examples."""
    calibration = checked = None
    if representative_data is not None:
        what = "representative_data"
        calibration = collect(
            representative_data, graph.inputs, what, MAX_CALIBRATION, graph.by_name
        )
        # From here on, sizes that the model left open must agree.
        graph = graph.fixed(batch_size, calibration)
    if check_data is not None:
        checked = collect(check_data, graph.inputs, "check_data", MAX_CHECKED, graph.by_name)
    checked = checked or calibration
    graph = graph.fixed(batch_size, checked)
    return graph, calibration, checked or random_examples(graph.inputs, _RANDOM_EXAMPLES)


def _quantize_file(draft, mode, io, calibration):
    """Replace the float file by its quantised version."""
    # The quantiser fails on loops, and a file whose loop body alone is quantised is wrong.
    if mode == "int8" and "WHILE" in inspect(draft).ops:
        raise ValueError(
            "quantize='int8' does not support models with loops, such as recurrent layers. "
            "Use quantize='dynamic', whose weights are int8 too."
        )
    draft.write_bytes(to_quantized(draft.read_bytes(), mode, io, calibration))
    dtype = "float16" if mode == "float16" else "int8"
    if dtype not in inspect(draft).tensor_bytes:
        raise ValueError(
            f"quantize='{mode}' found no weights to store as {dtype}, so the file would stay "
            "float32. Use quantize=None."
        )


def _report(target, draft, quantize, model, difference, timing):
    summary = inspect(draft)
    return ExportReport(
        path=str(target),
        quantize=quantize,
        parameters=model.count_params(),
        examples=difference.examples,
        max_difference=difference.max_difference,
        mean_difference=difference.mean_difference,
        agreement=difference.agreement,
        sqnr_db=difference.sqnr_db,
        latency=timing,
        **{field.name: getattr(summary, field.name) for field in fields(summary)},
    )
