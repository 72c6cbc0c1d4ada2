"""A teacher that is made of the students themselves: what they say together about this batch."""

from keras import ops

from kdtoolkit import functional
from kdtoolkit.registry import public
from kdtoolkit.sources.base import Source

#: How several networks' logits become one, by name; and whether that takes labels.
COMBINATIONS = {
    "probabilities": (functional.mean_probabilities, False),
    "logits": (functional.mean_logits, False),
    "naive": (functional.best_logits, True),
    "linear": (functional.best_mixture, True),
    "min_logit": (functional.min_logits, True),
}


@public
class PeerEnsemble(Source):
    """What several students say together about a batch, as a teacher.

    It costs no forward pass: it reads the students' outputs of this very step, without gradient.

    | `combine` | what is taught | method |
    |---|---|---|
    | "probabilities" | the mean of their probabilities | DML_e |
    | "logits" | the mean of their logits | CL-ILR |
    | "naive" | for each example the logits with the least loss | KDCL-Naive |
    | "linear" | for each example the convex combination with the least loss | KDCL-Linear |
    | "min_logit" | for each class the least logit, counted from the label's | KDCL-MinLogit |

    The last three look at the labels; an example without one (a class number such as -1) gets the
    mean of the logits.

    Source: Zhang et al., 2018, arXiv:1706.00384 (DML_e); Song and Chai, 2018, arXiv:1805.11761
    (CL-ILR); Guo et al., CVPR 2020, "Online Knowledge Distillation via Collaborative Learning"
    (KDCL). That KDCL chooses for each example and not for a batch is this library's reading.

    Args:
        follows: list of the students' names, `None` (default) for all. DML_e teaches each student
            with the others.
        combine: see above. Defaults to "probabilities".
        layer: key of the output to read where students return a dict.
        name: the layer's name.

    Raises:
        ValueError: an unknown `combine`; when connected, outputs of different shapes, or a key that
            no output has; in `fit`, data without labels where they are needed.

    Example:
        >>> import kdtoolkit as kd
        >>> student = {n: kd.models.mlp((4,), 3, units=(8,), seed=i) for i, n in enumerate("ab")}
        >>> everyone = kd.sources.PeerEnsemble(combine="min_logit")
        >>> distiller = kd.Distiller(
        ...     student=student,
        ...     teacher={"everyone": everyone},
        ...     transfers=[kd.Transfer(kd.losses.SoftTargets(2.0), student=n) for n in "ab"],
        ... )
    """

    follows_several = True
    remembers = False

    def __init__(self, follows=None, combine="probabilities", layer=None, name=None):
        follows = [follows] if isinstance(follows, str) else follows
        if follows is not None and not isinstance(follows, list | tuple):
            raise TypeError(
                "`follows` of PeerEnsemble must be a list of names of students. "
                f"Received: follows={follows!r}"
            )
        super().__init__(follows=None if follows is None else list(follows), name=name)
        if not isinstance(combine, str) or combine not in COMBINATIONS:
            raise ValueError(
                f"`combine` of PeerEnsemble must be one of {sorted(COMBINATIONS)}. "
                f"Received: combine={combine!r}"
            )
        self.combine = combine
        self.layer = layer

    def connect(self, student, output):
        shapes = [tuple(self._head(each).shape) for each in output]
        if len({shape[1:] for shape in shapes}) > 1:
            raise ValueError(
                f"PeerEnsemble '{self.name}' expected logits over the same classes from all. "
                f"Received: outputs of the shapes {shapes}"
            )

    def form(self, student_output):
        return super().form(self._head(student_output[0]))

    def _head(self, output):
        if not isinstance(output, dict | list | tuple) and self.layer is None:
            return output
        if not isinstance(output, dict) or self.layer not in output:
            known = list(output) if isinstance(output, dict) else "None, since there is only one"
            raise ValueError(
                f"PeerEnsemble '{self.name}' must know which output to read. Expected `layer` as "
                f"a key of the students' outputs: {known}. Received: layer={self.layer!r}"
            )
        return output[self.layer]

    def read(self, forward, student_output, context):
        logits = [self._head(output) for output in student_output]
        together, needs_labels = COMBINATIONS[self.combine]
        if not needs_labels:
            return {"output": together(logits), "taps": {}}
        labels = self._labels(context["labels"])
        shares = functional.label_distribution(labels, logits[0])
        labelled = ops.sum(shares, axis=-1, keepdims=True) > 0
        said = together(logits, shares)
        return {"output": ops.where(labelled, said, functional.mean_logits(logits)), "taps": {}}

    def _labels(self, labels):
        if isinstance(labels, dict):
            raise ValueError(
                f"PeerEnsemble '{self.name}' chooses by one label for each example. Expected `y` "
                f"as one array. Received: a dict with the keys {sorted(labels)}"
            )
        if labels is None:
            raise ValueError(
                f"PeerEnsemble '{self.name}' chooses by the labels, but the data has none. "
                "Expected data of the form (x, y), or another `combine`. Received: labels=None"
            )
        return labels

    def get_config(self):
        config = super().get_config()
        # There is no time at which it holds nothing yet.
        del config["initial"]
        return {**config, "combine": self.combine, "layer": self.layer}
