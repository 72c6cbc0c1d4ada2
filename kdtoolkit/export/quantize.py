"""From a float32 .tflite file to a smaller one, with ai-edge-quantizer."""

import contextlib
import io
import warnings
from dataclasses import dataclass

from kdtoolkit.export.convert import SIGNATURE
from kdtoolkit.export.engines import quiet, require
from kdtoolkit.export.examples import shows_progress


@dataclass(frozen=True)
class Mode:
    """How the weights and activations of an operator are stored and computed.

    Attributes:
        weights: Type of the constants in the file.
        activations: Type in which the operator computes.
        kind: `"cast"` (weights in half precision), `"weight_only"` (weights are made floats
            again before they are used), `"dynamic"` (activations are rounded while the file
            runs) or `"static"` (activations have fixed ranges, found by calibration).
    """

    weights: str
    activations: str
    kind: str


MODES = {
    "float16": Mode("float16", "float32", "cast"),
    "dynamic": Mode("int8", "float32", "dynamic"),
    "dynamic_int4": Mode("int4", "float32", "dynamic"),
    "weight_only_int8": Mode("int8", "float32", "weight_only"),
    "weight_only_int4": Mode("int4", "float32", "weight_only"),
    "int8": Mode("int8", "int8", "static"),
    "int16": Mode("int8", "int16", "static"),
}


def to_quantized(content, recipe, float_io=True, calibration=None, name="mixed"):
    """Quantise a float32 .tflite file.

    Args:
        content: The float file as `bytes`.
        recipe: What `recipe_for` returns, or any recipe of ai-edge-quantizer: a list of dicts.
        float_io: If `True`, inputs and outputs stay float32 where operators become integer.
        calibration: List of dicts from input name to array, each one batch of the size of the
            file. Needed if `needs_ranges(recipe)`.
        name: What to call the recipe in messages.

    Returns:
        The quantised file as `bytes`.

    Raises:
        ValueError: If the quantiser cannot handle the file or the recipe.
    """
    statistics = None
    try:
        with quiet(stdout=not shows_progress(calibration)), warnings.catch_warnings():
            # LiteRT warns that keeping all tensors, which calibration is about, takes memory.
            warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
            # It divides by the scale of all-zero weights. The comparison judges the outcome.
            warnings.filterwarnings("ignore", category=RuntimeWarning)
            quantizer = require("ai_edge_quantizer.quantizer").Quantizer(content, recipe)
            if needs_ranges(recipe):
                if float_io:
                    _keep_float_io(quantizer)
                statistics = _calibrate(content, quantizer, calibration)
            result = quantizer.quantize(
                statistics, enable_progress_bar=False, enable_progress_report=False
            )
    # The quantiser raises many types, from KeyError to RuntimeError.
    except Exception as error:
        raise ValueError(
            f"The model could not be quantised to '{name}' ({type(error).__name__}: {error}). "
            "Use quantize='dynamic' or 'float16', which need no calibration."
        ) from error
    return bytes(result.quantized_model)


def recipe_for(rules):
    """Return the quantiser's recipe for modes by operator.

    Args:
        rules: List of `(regex, mode)`: the regex is searched in the names of an operator's
            output tensors, each followed by a semicolon, and the mode is a key of `MODES` or
            `"float32"`. Later rules win.

    Returns:
        A list of dicts.
    """
    everything = require("ai_edge_quantizer.qtyping").TFLOperationName.ALL_SUPPORTED
    keys = require("ai_edge_quantizer.quantizer").AlgorithmName
    manager = require("ai_edge_quantizer.recipe_manager").RecipeManager()
    for regex, name in rules:
        if name == "float32":
            manager.add_quantization_config(regex, everything, algorithm_key=keys.NO_QUANTIZE)
            continue
        mode = MODES[name]
        if mode.kind == "cast":
            manager.add_quantization_config(regex, everything, _half(), keys.FLOAT_CASTING)
            continue
        bits = int(mode.weights[3:])
        if mode.kind == "static":
            manager.add_static_config(regex, everything, int(mode.activations[3:]), bits)
        elif mode.kind == "dynamic":
            manager.add_dynamic_config(regex, everything, bits)
        else:
            manager.add_weight_only_config(regex, everything, bits)
    return manager.get_quantization_recipe()


def _half():
    types = require("ai_edge_quantizer.qtyping")
    return types.OpQuantizationConfig(
        weight_tensor_config=types.TensorQuantizationConfig(
            num_bits=16, dtype=types.TensorDataType.FLOAT
        ),
        compute_precision=types.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )


def needs_ranges(recipe):
    """Tell whether a recipe needs calibration.

    Args:
        recipe: List of dicts.

    Returns:
        `True` if a rule gives activations a fixed range.
    """
    return any((rule.get("op_config") or {}).get("activation_tensor_config") for rule in recipe)


def _keep_float_io(quantizer):
    names = require("ai_edge_quantizer.qtyping").TFLOperationName
    no_quantize = require("ai_edge_quantizer.quantizer").AlgorithmName.NO_QUANTIZE
    for operation in (names.INPUT, names.OUTPUT):
        quantizer.update_quantization_recipe(".*", operation, algorithm_key=no_quantize)


def _calibrate(content, quantizer, calibration):
    """Run the examples through the float file and keep the extremes of every tensor.

    The extremes follow the float model more closely than the quantiser's default, a moving
    average, which cuts off rare large values.
    """
    calibrators = require("ai_edge_quantizer.calibrator")
    managers = require("ai_edge_quantizer.recipe_manager")
    update = require("ai_edge_quantizer.utils.qsv_utils").min_max_update
    manager = managers.RecipeManager()
    manager.load_quantization_recipe(quantizer.get_quantization_recipe())
    calibrator = calibrators.Calibrator(content, num_threads=1, qsv_update_func=update)
    # The quantiser's own progress bar cannot be switched off, and in a notebook stderr is no file.
    with contextlib.redirect_stderr(io.StringIO()):
        calibrator.calibrate({SIGNATURE: calibration}, manager)
    return calibrator.get_model_qsvs()
