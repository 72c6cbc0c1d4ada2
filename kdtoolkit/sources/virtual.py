"""A teacher made from the labels by hand: label smoothing as distillation."""

import keras
from keras import ops

from kdtoolkit import functional, scalars
from kdtoolkit.registry import public
from kdtoolkit.sources.base import NO_LOGIT, Source

#: What a virtual teacher gives out as its scores.
SCORES = ("logits", "probabilities")


@public
class VirtualTeacher(Source):
    """A teacher that is always right: `correct` for the label, the rest shared out equally.

        p_c = correct for the labelled class, (1 - correct) / (classes - 1) for every other

    It teaches log p, so every loss of responses reads it, at any temperature, as the network that
    would say p. No network runs, and nothing is stored. In `evaluate` it takes no part.

    With `SoftCrossEntropy()` of weight a and `label_weight=1 - a` it is label smoothing, in Keras's
    form with `label_smoothing = a * (1 - correct) * classes / (classes - 1)`.

    With `scores="probabilities"` it teaches p itself as if they were logits, so that a loss
    softens them as softmax(p / T): nearly equal for every class, with a little more for the right
    one. This is the form of the authors' code; the student isn't softened there, which
    `MixedTargets(label_share=1 - a, temperature=T)` with `label_weight=0` computes.

    Labels may be class numbers or distributions; of a soft label y, p is
    `correct * y + (1 - correct) / (classes - 1) * (1 - y)`. An example without a label (a class
    number such as -1) gets the student's own output, from which imitating losses get no gradient.

    Source: Yuan et al., 2020, arXiv:1909.11723 (Tf-KD_reg: correct 0.99; the authors' code for
    ResNet-18 on CIFAR-100 has T = 20 and a = 0.1).

    Args:
        correct: probability of the labelled class, above 1 / classes and at most 1. Defaults to
            0.99.
        scores: "logits" (default) or "probabilities".
        follows, name: as in `kd.sources.Source`.

    Raises:
        ValueError: a probability out of range, or unknown scores; when connected, `correct` not
            above 1 / classes, or a student with several outputs; in `fit`, data without labels.

    Example:
        >>> import kdtoolkit as kd
        >>> student = kd.models.mlp((4,), 3, units=(8,))
        >>> edge = kd.Transfer(kd.losses.SoftCrossEntropy(), weight=0.1)
        >>> distiller = kd.Distiller(
        ...     student=student,
        ...     teacher=kd.sources.VirtualTeacher(),
        ...     transfers=[edge],
        ...     label_weight=0.9,
        ... )
    """

    def __init__(self, correct=0.99, scores="logits", follows=None, name=None):
        super().__init__(follows=follows, initial="student", name=name)
        if scores not in SCORES:
            raise ValueError(
                f"`scores` of VirtualTeacher must be one of {SCORES}. Received: scores={scores!r}"
            )
        self.correct = scalars.checked(correct, "correct", "VirtualTeacher", above=0.0, maximum=1.0)
        self.scores = scores

    def connect(self, student, output):
        if not isinstance(output, keras.KerasTensor):
            raise ValueError(
                f"VirtualTeacher '{self.name}' answers for one output of shape (batch, classes). "
                f"Received: {keras.tree.map_structure(lambda t: tuple(t.shape), output)}"
            )
        classes = output.shape[-1]
        if self.correct * classes <= 1:
            raise ValueError(
                f"VirtualTeacher '{self.name}' must give the labelled class more than the others. "
                f"Expected `correct` above 1 / {classes} for {classes} classes. "
                f"Received: correct={self.correct:g}"
            )

    def read(self, forward, student_output, context):
        labels = context["labels"]
        if labels is None:
            raise ValueError(
                f"VirtualTeacher '{self.name}' is made from the labels, but the data has none. "
                "Expected data of the form (x, y). Received: labels=None"
            )
        shares = functional.label_distribution(labels, student_output)
        rest = (1.0 - self.correct) / (shares.shape[-1] - 1)
        p = self.correct * shares + rest * (1.0 - shares)
        if self.scores == "logits":
            p = ops.where(p > 0, ops.log(ops.maximum(p, 1e-30)), NO_LOGIT)
        labelled = ops.sum(shares, axis=-1, keepdims=True) > 0
        return {"output": ops.where(labelled, p, ops.cast(student_output, p.dtype)), "taps": {}}

    def get_config(self):
        config = super().get_config()
        # There is no time at which it holds nothing yet.
        del config["initial"]
        return {**config, "correct": self.correct, "scores": self.scores}
