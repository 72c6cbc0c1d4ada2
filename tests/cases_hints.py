"""FitNets' hint, in NumPy."""

import numpy as np

from kdtoolkit import losses
from tests import feature_reference as numpy_layers
from tests.contract import Case


def _hint(loss, source, student):
    student = np.asarray(student, "float64")
    if loss.layers:
        weights = numpy_layers.weights_of(loss.layers[0])
        if student.ndim == 4 and student.shape[1] > source.shape[1]:
            stride = student.shape[1] // source.shape[1]
            student = numpy_layers.conv2d(student, weights["kernel"], weights["bias"], stride)
        else:
            student = numpy_layers.dense(student, weights)
        if "gamma" in weights:
            student = numpy_layers.batch_norm(student)
    difference = (np.asarray(source, "float64") - student) ** 2
    return difference.reshape(len(difference), -1).mean(axis=1)


CASES = {
    "hint": Case(
        make=lambda **k: losses.Hint(**k),
        shapes={
            "vectors": ((5,), (3,)),
            "tokens": ((4, 5), (4, 3)),
            "maps": ((3, 3, 5), (3, 3, 2)),
            "smaller maps": ((2, 2, 5), (4, 4, 3)),
            "equal maps": ((3, 3, 2), (3, 3, 2)),
        },
        reference=_hint,
        zero_for_equal=False,
        refused=(
            ((None, 4, 4, 3), (None, 8), "vector, which has no positions"),
            ((None, None, 4, 3), (None, 4, 4, 3), r"known size.*Received: shape \(None, None"),
            ([(None, 4)], [(None, 4), (None, 4)], "pair by pair.*1 layers.*2 layers"),
            ((None, 4, 4, 3), (None, 12, 3), "12 tokens form none"),
        ),
    ),
    "normalised hint": Case(
        make=lambda **k: losses.Hint(project=True, norm=True, **k),
        shapes={"maps": ((3, 3, 5), (3, 3, 5)), "vectors": ((5,), (5,))},
        reference=_hint,
    ),
    "hint without a projector": Case(
        make=lambda **k: losses.Hint(project=False, **k),
        shapes={"maps": ((3, 3, 2), (3, 3, 2)), "several": ([(4,), (2, 3)], [(4,), (2, 3)])},
        reference=lambda loss, source, student: (
            sum(_hint(loss, *pair) for pair in zip(source, student, strict=True))
            if isinstance(source, list)
            else _hint(loss, source, student)
        ),
        zero_for_equal=True,
        refused=(((None, 4), (None, 3), r"one shape. Received: source \(None, 4\)"),),
    ),
}
