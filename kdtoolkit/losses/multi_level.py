"""MLKD: predictions compared example by example, between examples, and between classes."""

from keras import ops

from kdtoolkit import scalars
from kdtoolkit.functional import kl_divergence
from kdtoolkit.functional.divergence import batch_relation, class_relation
from kdtoolkit.losses.response import ResponseLoss
from kdtoolkit.registry import public
from kdtoolkit.scalars import Scalar


@public
class MultiLevelLogits(ResponseLoss):
    """Multi-level logit distillation: three comparisons at several temperatures, summed.

        sum_T  a * mean_i T^2 KL(p_i || q_i)  +  b * |P P' - Q Q'|^2 / batch
               + c * |P' P - Q' Q|^2 / classes

    Row i of P is p_i = softmax(source_i / T), row i of Q the student's. The first term compares
    examples one by one; the second, which examples of the batch look alike (batch x batch); the
    third, which classes do (class x class).

    Example i has its own KL and its own row of the batch x batch matrix. The third term belongs to
    the batch as a whole: it is added to every example, so the mean is the formula. Sample weights
    act on it by their mean. The second and third sums grow with the batch: the third with the
    square of its size.

    The authors' code runs both networks on a weakly and on a strongly augmented view, counts labels
    and KL for both, and lets the more confident half of the weak view out of the three terms; as it
    is written, that mask meets sums and not single examples, and halves them. Here the loss is the
    formula alone: views are a matter of the data or of a node's `preprocess`, a choice of examples
    one of sample weights.

    Source: Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023, with the temperatures,
    the factor T^2 and the equal weights of the authors' code.

    Args:
        temperatures: numbers > 0. Defaults to (2, 3, 4, 5, 6).
        instance_weight: a >= 0. Defaults to 1.
        batch_weight: b >= 0. Defaults to 1.
        class_weight: c >= 0. Defaults to 1.
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: no temperature, one that isn't > 0 and finite, or a negative or non-finite
            weight; when called, a batch known to hold one example.

    Example:
        >>> from kdtoolkit import losses
        >>> loss = losses.MultiLevelLogits(temperatures=(1.0,))
        >>> round(float(loss([[9.0, 0.0], [0.0, 9.0]], [[0.0, 0.0], [0.0, 0.0]])), 3)
        1.691
    """

    instance_weight = Scalar(minimum=0.0)
    batch_weight = Scalar(minimum=0.0)
    class_weight = Scalar(minimum=0.0)

    def __init__(
        self,
        temperatures=(2.0, 3.0, 4.0, 5.0, 6.0),
        instance_weight=1.0,
        batch_weight=1.0,
        class_weight=1.0,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        if not isinstance(temperatures, list | tuple) or not temperatures:
            raise ValueError(
                "`temperatures` of MultiLevelLogits must be a list or tuple of at least one "
                f"number. Received: temperatures={temperatures!r}"
            )
        self.temperatures = [
            scalars.checked(t, "temperatures", "MultiLevelLogits", above=0.0) for t in temperatures
        ]
        self.instance_weight = instance_weight
        self.batch_weight = batch_weight
        self.class_weight = class_weight

    def values(self, source, student):
        levels = [
            (self.instance_weight, kl_divergence),
            (self.batch_weight, batch_relation),
            (self.class_weight, class_relation),
        ]
        total = 0.0
        for weight, level in levels:
            value = sum(level(source, student, t) for t in self.temperatures)
            total = total + ops.cast(weight, value.dtype) * value
        return total

    def get_config(self):
        return {**super().get_config(), "temperatures": list(self.temperatures)}
