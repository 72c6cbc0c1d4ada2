"""From a Keras model to the bytes of a .tflite file, and from a float file to smaller ones."""

import contextlib
import io
import re
import tempfile
import warnings

import keras

from kdtoolkit.export.engines import quiet, require
from kdtoolkit.export.prepare import quantizable_layer_normalization

# The name that TensorFlow gives to the only endpoint of a converted model.
_SIGNATURE = "serving_default"


def to_float(graph):
    """Convert a model to a float32 .tflite file.

    Only LiteRT's built-in operations are allowed: files with TensorFlow's own ("Flex")
    operations convert, but the LiteRT interpreter cannot run them.

    Args:
        graph: A `ModelGraph` whose shapes are all known.

    Returns:
        The file as `bytes`, with the signature `serving_default` and the graph's names.

    Raises:
        ValueError: If the model cannot be expressed in built-in operations.
    """
    tf = require("tensorflow")
    signature = [{i.name: tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in graph.inputs}]
    with tempfile.TemporaryDirectory() as folder:
        try:
            with quiet() as log, quantizable_layer_normalization():
                archive = keras.export.ExportArchive()
                archive.track(graph.model)
                archive.add_endpoint("serve", graph.__call__, input_signature=signature)
                archive.write_out(folder, verbose=False)
                converter = tf.lite.TFLiteConverter.from_saved_model(folder)
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
                return converter.convert()
        # Tracing runs user code, and the converter's own exception class is not public.
        except Exception as error:
            raise ValueError(_conversion_message(graph.model, error, log.text)) from error


def to_quantized(content, mode, io_dtype="float32", calibration=None):
    """Quantise a float32 .tflite file.

    Args:
        content: The float file as `bytes`.
        mode: `"float16"` (weights stored in half precision), `"dynamic"` (int8 weights, float
            activations) or `"int8"` (int8 weights and activations).
        io_dtype: For `"int8"`: `"float32"` or `"int8"` inputs and outputs.
        calibration: For `"int8"`: list of dicts from input name to array, each one batch of
            the size of the file.

    Returns:
        The quantised file as `bytes`.

    Raises:
        ValueError: If the quantiser cannot handle the file.
    """
    quantizer = require("ai_edge_quantizer.quantizer").Quantizer(content, _recipe(mode))
    statistics = None
    try:
        with quiet(), warnings.catch_warnings():
            # LiteRT warns that keeping all tensors, which calibration is about, takes memory.
            warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
            # It divides by the scale of all-zero weights. The comparison judges the outcome.
            warnings.filterwarnings("ignore", category=RuntimeWarning)
            if mode == "int8":
                if io_dtype == "float32":
                    _keep_float_io(quantizer)
                statistics = _calibrate(content, quantizer, calibration)
            result = quantizer.quantize(
                statistics, enable_progress_bar=False, enable_progress_report=False
            )
    # The quantiser raises many types, from KeyError to RuntimeError.
    except Exception as error:
        raise ValueError(
            f"The model could not be quantised to '{mode}' ({type(error).__name__}: {error}). "
            "Use quantize='dynamic' or 'float16', which need no calibration."
        ) from error
    return bytes(result.quantized_model)


def _recipe(mode):
    recipe = require("ai_edge_quantizer.recipe")
    if mode == "int8":
        return recipe.static_wi8_ai8()
    if mode == "dynamic":
        return recipe.dynamic_wi8_afp32()
    qtyping = require("ai_edge_quantizer.qtyping")
    manager = require("ai_edge_quantizer.recipe_manager").RecipeManager()
    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    manager.add_quantization_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=weights,
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
        algorithm_key=require("ai_edge_quantizer.quantizer").AlgorithmName.FLOAT_CASTING,
    )
    return manager.get_quantization_recipe()


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
    # The progress bar cannot be switched off, and in a notebook stderr is no file.
    with contextlib.redirect_stderr(io.StringIO()):
        calibrator.calibrate({_SIGNATURE: calibration}, manager)
    return calibrator.get_model_qsvs()


def _conversion_message(model, error, log):
    """Say which operations stopped the conversion, as far as the converter tells."""
    text = f"{error}\n{log}"
    names = set(re.findall(r"'?tf\.(\w+)'? op is neither a custom op nor a flex op", text))
    for line in re.findall(r"TF Select ops: ([\w, ]+)", text):
        names.update(name.strip() for name in line.split(","))
    if "tensor list" in text.lower():
        return (
            f"Model '{model.name}' could not be converted: its loop needs dynamic lists, for "
            "which LiteRT has no kernels. Build the recurrent layers with unroll=True, or export "
            "the part of the model without the loop."
        )
    if names:
        return (
            f"Model '{model.name}' uses operations for which LiteRT has no built-in kernels: "
            f"{', '.join(sorted(names))}. Replace them by keras.ops equivalents that convert, or "
            "move them out of the model, into the preprocessing."
        )
    return (
        f"Model '{model.name}' could not be converted to LiteRT "
        f"({type(error).__name__}: {str(error)[:500]}). Check that the model runs on a batch of "
        "the exported size, and that its layers compute in float32."
    )
