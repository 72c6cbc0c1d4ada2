"""When a .tflite file counts as the same model as the Keras one."""

import math

from kdtoolkit.export.verify import Comparison, OutputDifference

FLOAT_TOLERANCE = 1e-4
SMALL_DIFFERENCE = 0.01
MIN_SQNR_DB = {
    "float16": 20.0,
    "int16": 20.0,
    "dynamic": 10.0,
    "weight_only_int8": 10.0,
    "int8": 10.0,
    # Four bits leave 15 steps for the weights of a channel.
    "dynamic_int4": 5.0,
    "weight_only_int4": 5.0,
    "mixed": 5.0,
    "recipe": 5.0,
}
_ABSOLUTE_FLOOR = 1e-6

_WEIGHTS = "Use quantize='float16', or look for layers with a few very large weights."
_FOUR_BITS = (
    "Four bits are few: train with them (kd.compress), or leave the first and the last layer in "
    "more, with rules by layer."
)
_WAYS_OUT = {
    "float32": "A layer behaves differently after conversion: look for stateful "
    "operations, and compare the outputs of inner layers.",
    "float16": "Look for values beyond 65504, the largest in half precision, or use quantize=None.",
    "dynamic": _WEIGHTS,
    "weight_only_int8": _WEIGHTS,
    "dynamic_int4": _FOUR_BITS,
    "weight_only_int4": _FOUR_BITS,
    "int16": "Pass representative data of the kind that the model was trained on, or use "
    "quantize='float16'.",
    "mixed": "Give the layers that lose most the mode 'float32'.",
    "recipe": "Leave the layers that lose most in floats.",
    "int8": "Pass representative data of the kind that the model was trained on, export logits "
    "instead of a softmax, or use quantize='dynamic' or 'float16'.",
}


class ExportMismatchError(ValueError):
    """A converted file does not compute what the Keras model computes."""


def check_limits(comparison, precision, tolerance=None):
    """Raise unless every output of a file is close enough to Keras.

    `"float32"` needs `max|file - keras| <= max(1e-4 max|keras|, 1e-6)`. The others need a signal
    to noise ratio of 20 dB (`"float16"`, `"int16"`), 10 dB (int8 weights) or 5 dB (int4 weights,
    rules and recipes), or a largest difference within 1 % of the largest output, which is all
    that can be asked of outputs that hardly vary. A file with other weights scores about 0 dB.
    An infinite or undefined difference never passes.

    Args:
        comparison: A `Comparison`.
        precision: `"float32"`, or a key of `MIN_SQNR_DB`.
        tolerance: If given, the only limit: the largest `max|file - keras| / max|keras|`.

    Raises:
        ExportMismatchError: If an output is further away.
    """
    for output in comparison.outputs:
        if not _close(output, precision, tolerance):
            raise ExportMismatchError(_message(comparison, output, precision, tolerance))


def _close(output: OutputDifference, precision, tolerance):
    if not math.isfinite(output.max_difference):
        return False
    if tolerance is not None:
        return output.relative_difference <= tolerance
    if precision == "float32":
        return (
            output.relative_difference <= FLOAT_TOLERANCE
            or output.max_difference <= _ABSOLUTE_FLOOR
        )
    return (
        output.sqnr_db >= MIN_SQNR_DB[precision] or output.relative_difference <= SMALL_DIFFERENCE
    )


def _message(comparison: Comparison, output, precision, tolerance):
    if tolerance is not None:
        limit = f"a relative difference of at most {tolerance:g}"
    elif precision == "float32":
        limit = f"a relative difference of at most {FLOAT_TOLERANCE:g}"
    else:
        limit = f"a signal to noise ratio of at least {MIN_SQNR_DB[precision]:g} dB"
    agreement = "" if output.agreement is None else f", top-1 agreement {output.agreement:.1%}"
    return (
        f"The {precision} file disagrees with Keras in output '{output.name}' on "
        f"{comparison.examples} examples, so no file was written. Expected {limit}. "
        f"Received: largest difference {output.max_difference:.3g} (relative "
        f"{output.relative_difference:.3g}), mean difference {output.mean_difference:.3g}, "
        f"{output.sqnr_db:.1f} dB{agreement}. {_WAYS_OUT[precision]} To accept such a file, pass "
        "a larger `tolerance`."
    )
