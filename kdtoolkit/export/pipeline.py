"""Export a Keras model to a checked .tflite file."""

import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

from kdtoolkit.export.convert import save_graph, to_float, to_trained_int8
from kdtoolkit.export.engines import require
from kdtoolkit.export.examples import Batches, batches, collect, random_examples
from kdtoolkit.export.graph import describe, parameters_of
from kdtoolkit.export.limits import ExportMismatchError, check_limits
from kdtoolkit.export.metadata import check_metadata, with_metadata
from kdtoolkit.export.plan import plan_for
from kdtoolkit.export.prepare import check_layers, check_model, float32_copy, uses_float32
from kdtoolkit.export.quantize import recipe_for, to_quantized
from kdtoolkit.export.report import ExportReport
from kdtoolkit.export.rules import recipe_by_layer
from kdtoolkit.export.run import LiteRTModel, check_threads, latency
from kdtoolkit.export.summary import constant_bytes, inspect, op_counts, parse
from kdtoolkit.export.target import check_target, draft_of
from kdtoolkit.export.verify import MAX_CHECKED, compare_with, reference

MAX_CALIBRATION = 512
_RANDOM_EXAMPLES = 64
_INTEGER_MODES = ("int8", "int16")
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
    metadata=None,
    measure_latency=False,
    num_threads=1,
    verbose=False,
    overwrite=False,
):
    """Export a Keras model to a `.tflite` file and check the file against Keras.

    The model is converted once in float32, with built-in LiteRT operations only, then
    quantised. Dropout and random augmentation vanish, BatchNormalization is folded, layers in
    mixed precision are exported in float32. A model that was trained with fake quantisation
    (`fake_quant_with_min_max_vars`, as `kd.compress` and tensorflow-model-optimization add it)
    becomes an integer file at once, with the trained ranges. The file is run and compared with
    `model(x, training=False)`: one that disagrees is an error, and nothing is left at `path`.

    Limits without `tolerance`: float32 files may differ by 1e-4 of the largest output. The
    others need a signal to noise ratio of 20 dB (float16, int16, and models in mixed
    precision), 10 dB (int8 weights) or 5 dB (int4 weights, rules, recipes), or a largest
    difference within 1 % of the largest output.

    Args:
        model: A built `keras.Model` on the TensorFlow backend: functional, sequential, or
            subclassed and called once with all inputs in its first argument. Or a functional
            or sequential model of tf_keras.
        path: Where to write, ending in `.tflite`. The directory must exist.
        quantize: `None` (float32), or how the weights and the arithmetic change:

                "float16"            weights float16, arithmetic float32
                "weight_only_int8"   weights int8, arithmetic float32
                "weight_only_int4"   weights int4, arithmetic float32
                "dynamic"            weights int8, activations rounded while the file runs
                "dynamic_int4"       the same with int4 weights
                "int8"               weights and activations int8
                "int16"              weights int8, activations int16
                [(regex, mode), ...] by layer, later rules win; "float32" is a mode too
                a recipe             of ai-edge-quantizer, as list of dicts or path to its JSON

            A regex must match the full name or the full path (`"block/conv"`) of a layer that
            has an operator in the file. Layers without a rule stay float32. Recurrent layers
            cannot be `"int8"` or `"int16"`.
        representative_data: Typical inputs, needed where activations become integers: one
            array, a dict or list of arrays that matches the inputs, or an iterable of batches
            such as a `tf.data.Dataset` or a `keras.utils.PyDataset`, with or without labels.
            At most 512 examples are used: evenly spread over an array, the first ones of an
            iterable. Trained ranges need none, and data only fills their gaps.
        check_data: Inputs for the comparison with Keras, in the same forms, at most 10,000.
            Defaults to `representative_data`, else 64 seeded random examples.
        io: `"float32"`, or the integer type of `quantize`, `"int8"` or `"int16"`.
        batch_size: Batch size of the file. Defaults to 1.
        tolerance: If given, the only limit, for every mode: the largest difference from Keras
            as a fraction of the largest Keras output. Not negative.
        metadata: Dict that JSON can store, such as `{"labels": [...]}`. It is kept in the file,
            for `LiteRTModel.metadata` and `inspect`.
        measure_latency: If `True`, time the file with `latency`. Defaults to `False`.
        num_threads: Threads for the comparison and the timing. Defaults to 1.
        verbose: If `True`, show the progress of the calibration. Defaults to `False`.
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
        TypeError: If `model` is not a Keras model, or data or metadata has an unknown form.
        ValueError: If an argument, the data or the model does not allow the export.

    Example:

    ```python
    report = kd.export.litert(student, "student.tflite", quantize="int8", representative_data=x)
    print(report)
    ```
    """
    plan = plan_for(quantize, io)
    _check_arguments(plan, representative_data, batch_size, tolerance)
    check_threads(num_threads)
    text = None if metadata is None else check_metadata(metadata)
    target = check_target(path, overwrite)
    check_model(model)
    check_layers(model, plan.name if plan.name in _INTEGER_MODES else None)
    _check_packages(plan)
    with draft_of(target) as draft:
        graph = describe(float32_copy(model))
        fixed, calibration, checked = _data(graph, batch_size, representative_data, check_data)
        check = _Check(draft, reference(replace(graph, model=model), checked), checked, num_threads)
        if calibration is not None:
            calibration = Batches(batches(calibration, batch_size), verbose)
        precision = "float32" if uses_float32(model) else "float16"
        content = _content(fixed, plan, calibration, check.first(_FLOAT_EXAMPLES), precision)
        content = content if text is None else with_metadata(content, text)
        difference = check.run(content, plan.name or precision, tolerance)
        timing = latency(draft, num_threads=num_threads) if measure_latency else None
        return _report(target, draft, plan.name, model, difference, timing)


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

    def run(self, content, precision, tolerance=None):
        """Return the `Comparison`, or raise if the file cannot run or is too far away."""
        self.draft.write_bytes(content)
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


def _content(graph, plan, calibration, float_check, precision):
    """Return the bytes of the file. The float file that others are made from is checked."""
    with tempfile.TemporaryDirectory() as folder:
        saved = save_graph(graph, folder)
        if saved.fake_quantised:
            return _trained(saved, plan, calibration)
        if plan.static and calibration is None:
            raise ValueError(_needs_data(plan.name))
        content = to_float(saved)
    if plan.name is None:
        return content
    float_check.run(content, precision)
    return _quantized(content, graph, plan, calibration)


def _trained(saved, plan, calibration):
    """Convert a model with fake quantisation, whose ranges only "int8" can use."""
    if plan.name != "int8":
        raise ValueError(
            f"Model '{saved.model_name}' was trained with fake quantisation, so its file is "
            f"quantize='int8'. Received: {plan.name!r}. Pass quantize='int8', or export "
            "kd.compress.strip(model), the model without it."
        )
    content = to_trained_int8(saved, "int8" if plan.integer_io else "float32", calibration)
    if not {"int8", "int4"} & set(constant_bytes(parse(content))):
        raise ValueError(
            f"Only the kernels of model '{saved.model_name}' have trained ranges, so that every "
            "operator would stay float32. Pass `representative_data`, which gives a range to "
            "the activations, or export kd.compress.strip(model) with quantize='dynamic'."
        )
    return content


def _quantized(content, graph, plan, calibration):
    """Return the quantised version of a float file."""
    # The quantiser fails on loops, and a file whose loop body alone is quantised is wrong.
    if plan.name in _INTEGER_MODES and "WHILE" in op_counts(parse(content)):
        raise ValueError(
            f"quantize='{plan.name}' does not support models with loops, such as recurrent "
            "layers. Use quantize='dynamic', whose weights are int8 too."
        )
    recipe = plan.recipe
    if plan.name == "mixed":
        recipe = recipe_by_layer(content, plan.rules, graph)
    elif recipe is None:
        recipe = recipe_for(plan.rules)
    content = to_quantized(content, recipe, not plan.integer_io, calibration, plan.name)
    if plan.weight_dtypes and not plan.weight_dtypes & set(constant_bytes(parse(content))):
        raise ValueError(
            f"quantize='{plan.name}' found no weights to store as "
            f"{' or '.join(sorted(plan.weight_dtypes))}, so the file would stay float32. "
            "Use quantize=None."
        )
    return content


def _check_arguments(plan, representative_data, batch_size, tolerance):
    # Only a trace tells whether a model brings trained ranges, which "int8" alone can use.
    if plan.static and plan.name != "int8" and representative_data is None:
        raise ValueError(_needs_data(plan.name))
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a positive integer. Received: {batch_size!r}.")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"`tolerance` must be None or at least 0. Received: {tolerance!r}.")


def _needs_data(mode):
    return (
        f"quantize='{mode}' needs `representative_data` to find the range of every "
        "activation. Pass 100 to 500 typical inputs, or use quantize='dynamic', which needs none."
    )


def _check_packages(plan):
    """Import now what is needed later, so that a missing package costs no conversion."""
    require("tensorflow")
    require("ai_edge_litert.interpreter")
    if plan.name:
        require("ai_edge_quantizer.quantizer")


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


def _report(target, draft, quantize, model, difference, timing):
    summary = inspect(draft)
    shared = {field.name for field in fields(summary)} & {f.name for f in fields(ExportReport)}
    return ExportReport(
        path=str(target),
        quantize=quantize,
        parameters=parameters_of(model),
        examples=difference.examples,
        max_difference=difference.max_difference,
        mean_difference=difference.mean_difference,
        agreement=difference.agreement,
        sqnr_db=difference.sqnr_db,
        latency=timing,
        **{name: getattr(summary, name) for name in shared},
    )
