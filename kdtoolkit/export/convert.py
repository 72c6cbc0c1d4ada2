"""From a Keras model to the bytes of a .tflite file, with TensorFlow's converter."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import keras

from kdtoolkit.export.engines import quiet, require
from kdtoolkit.export.examples import shows_progress
from kdtoolkit.export.graph import is_tf_keras
from kdtoolkit.export.names import layer_path
from kdtoolkit.export.prepare import quantizable_layer_normalization
from kdtoolkit.export.summary import op_counts, parse

# The name that TensorFlow gives to the only endpoint of a converted model.
SIGNATURE = "serving_default"
_FAKE_QUANT = "FakeQuantWithMinMaxVars"
# What the converter's messages mean, by an expression found in them.
_KNOWN_REASONS = (
    (
        "tensor list",
        "its loop needs dynamic lists, for which LiteRT has no kernels. Build the recurrent layers "
        "with unroll=True, or export the part of the model without the loop.",
    ),
    (
        "not dequantized|not quantized",
        "with io='int8', inputs and outputs need a range, and one of them has no trained range. "
        "Use io='float32', or pass `representative_data`, which gives it one.",
    ),
    (
        "mismatched quantized axes|op requires .*quant.uniform<i8[^,>]*:f32:\\d",
        "LiteRT takes one range per channel only for the kernels of Conv2D and DepthwiseConv2D. "
        "Fake-quantise the other kernels with one range per tensor.",
    ),
)


@dataclass(frozen=True)
class SavedGraph:
    """A model as TensorFlow sees it: traced, and written to a folder.

    Attributes:
        folder: The folder of the SavedModel.
        model_name: Name of the model, for error messages.
        layers: Dict from TensorFlow operation to the paths of the layers that use it.
    """

    folder: str
    model_name: str
    layers: dict[str, list[str]]

    @property
    def fake_quantised(self):
        """`True` if tensors are rounded to trained ranges: quantisation-aware training."""
        return any(op.startswith(_FAKE_QUANT) for op in self.layers)


def save_graph(graph, folder):
    """Trace a model in inference mode and write the trace to a folder.

    Args:
        graph: A `ModelGraph` whose shapes are all known.
        folder: An empty folder.

    Returns:
        A `SavedGraph`.

    Raises:
        ValueError: If the model cannot be traced, or is random.
    """
    tf = require("tensorflow")
    signature = [{i.name: tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in graph.inputs}]
    try:
        with quiet() as log, quantizable_layer_normalization():
            if is_tf_keras(graph.model):
                _write_module(tf, graph, signature, folder)
            else:
                archive = keras.export.ExportArchive()
                archive.track(graph.model)
                archive.add_endpoint("serve", graph.__call__, input_signature=signature)
                archive.write_out(folder, verbose=False)
    # Tracing runs user code, which may raise anything.
    except Exception as error:
        saved = SavedGraph(folder, graph.model.name, {})
        raise ValueError(_conversion_message(saved, error, log.text)) from error
    saved = SavedGraph(folder, graph.model.name, _layers_by_op(folder, graph.model))
    return saved


def to_float(saved):
    """Convert a traced model to a float32 .tflite file.

    Only LiteRT's built-in operations are allowed: files with TensorFlow's own ("Flex")
    operations convert, but the LiteRT interpreter cannot run them.

    Args:
        saved: A `SavedGraph`.

    Returns:
        The file as `bytes`, with the signature `serving_default` and the graph's names.

    Raises:
        ValueError: If the model cannot be expressed in built-in operations.
    """
    try:
        content = _convert(saved, _converter(saved))
    except ValueError:
        _refuse_random(saved)
        raise
    # Dropout that only training runs leaves nothing behind.
    if any("RANDOM" in name or "MULTINOMIAL" in name for name in op_counts(parse(content))):
        _refuse_random(saved)
    return content


def to_trained_int8(saved, io_dtype="float32", calibration=None):
    """Convert a traced model with fake quantisation to an integer .tflite file.

    The trained ranges become the scales of the file. Kernels that were rounded to 4 bits
    become int4.

    Args:
        saved: A `SavedGraph` with `fake_quantised`.
        io_dtype: `"float32"` or `"int8"` inputs and outputs.
        calibration: Iterable of dicts from input name to array, each one batch of the size of
            the file, or `None`. It gives a range to the tensors that have no trained one,
            which otherwise stay in floats.

    Returns:
        The file as `bytes`.

    Raises:
        ValueError: If the converter cannot express the model.
    """
    tf = require("tensorflow")
    converter = _converter(saved)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = getattr(tf, io_dtype)
    if calibration is not None:
        converter.representative_dataset = lambda: iter(calibration)
    return _convert(saved, converter, shows_progress(calibration))


def _write_module(tf, graph, signature, folder):
    """Save a tf_keras model, which the archive of Keras 3 does not know."""
    module = tf.Module()
    # Without this reference the file would lack the weights. The model itself would be saved
    # with all its functions, those of training among them.
    module.weights = list(graph.model.variables)
    module.serve = tf.function(graph.__call__, input_signature=signature)
    tf.saved_model.save(module, folder, signatures={SIGNATURE: module.serve})


def _layers_by_op(folder, model):
    """Return the operations of a SavedModel, each with the layers that use it."""
    content = require("tensorflow.core.protobuf.saved_model_pb2").SavedModel()
    content.ParseFromString(Path(folder, "saved_model.pb").read_bytes())
    graphs = [meta.graph_def for meta in content.meta_graphs]
    nodes = [node for graph in graphs for f in graph.library.function for node in f.node_def]
    found = {}
    for node in nodes:
        path = layer_path(node.name, model)
        layers = found.setdefault(node.op, [])
        if path and path not in layers:
            layers.append(path)
    return found


def _refuse_random(saved):
    """Refuse a model that draws random numbers, whose file could not be checked."""
    random = [op for op in saved.layers if re.match(r"(Stateless)?(Random|Multinomial)", op)]
    if random:
        raise ValueError(
            f"Model '{saved.model_name}' draws random numbers when it predicts: "
            f"{_with_layers(random, saved)}. Expected the same output for the same input. Let "
            "the layer draw only if `training` is true."
        )


def _with_layers(ops, saved):
    texts = []
    for op in sorted(ops):
        layers = saved.layers.get(op)
        texts.append(f"{op} (in {', '.join(map(repr, layers))})" if layers else op)
    return ", ".join(texts)


def _converter(saved):
    tf = require("tensorflow")
    converter = tf.lite.TFLiteConverter.from_saved_model(saved.folder)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return converter


def _convert(saved, converter, verbose=False):
    try:
        with quiet(stdout=not verbose) as log, warnings.catch_warnings():
            # The converter calibrates with the interpreter that TensorFlow still brings.
            warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated")
            return converter.convert()
    # The converter's own exception class is not public.
    except Exception as error:
        raise ValueError(_conversion_message(saved, error, log.text)) from error


def _conversion_message(saved, error, log):
    """Say what stopped the conversion, as far as the converter tells."""
    text = f"{error}\n{log}"
    what = f"Model '{saved.model_name}' could not be converted to LiteRT"
    for pattern, reason in _KNOWN_REASONS:
        if re.search(pattern, text, re.IGNORECASE):
            return f"{what}: {reason}"
    names = set(re.findall(r"'?tf\.(\w+)'? op is neither a custom op nor a flex op", text))
    for line in re.findall(r"TF Select ops: ([\w, ]+)", text):
        names.update(name.strip() for name in line.split(","))
    if names:
        return (
            f"Model '{saved.model_name}' uses operations for which LiteRT has no built-in "
            f"kernels: {_with_layers(names, saved)}. Replace them by keras.ops equivalents that "
            "convert, or move them out of the model, into the preprocessing."
        )
    return (
        f"{what} ({type(error).__name__}: {str(error)[:500]}). Check that the model "
        "runs on a batch of the exported size, and that its layers compute in float32."
    )
