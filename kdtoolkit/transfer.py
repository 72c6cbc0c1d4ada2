"""One edge of the transfer graph: knowledge flows from a source to a student through a loss."""

import keras
from keras import ops

from kdtoolkit.gates import as_gate
from kdtoolkit.losses.base import BoundLoss, FunctionLoss, TransferLoss
from kdtoolkit.registry import public
from kdtoolkit.scalars import Scalar, number

#: What to do where a loss asks for something that the data doesn't hold.
WAYS_OUT = {
    "labels": "labels. Expected data of the form (x, y)",
    "example_id": "example ids. Expected inputs from `kd.data.with_ids(x)`",
}


def _as_loss(loss):
    if isinstance(loss, keras.losses.Loss):
        return loss
    if callable(loss) and not isinstance(loss, type):
        return FunctionLoss(loss)
    raise TypeError(
        "A transfer's `loss` must be a `keras.losses.Loss` object, such as "
        f"`kd.losses.SoftTargets()`, or a function (source, student). Received: loss={loss!r}"
    )


def _as_paths(value, name):
    single = not isinstance(value, list | tuple)
    paths = [value] if single else list(value)
    if not paths or not all(path is None or isinstance(path, str) and path for path in paths):
        raise ValueError(
            f"`{name}` must be a layer's path such as 'stage3', or a list of them. "
            f"Received: {name}={value!r}"
        )
    return paths, single


def _default_name(loss):
    owner = type(loss)
    if isinstance(loss, FunctionLoss):
        # An object that is called has no name of its own.
        owner = loss.function if hasattr(loss.function, "__name__") else type(loss.function)
    name = owner.__name__
    name = "function" if name == "<lambda>" else name
    # "DIST" stays one word, "SoftTargets" becomes two.
    starts = [
        i > 0 and c.isupper() and (not name[i - 1].isupper() or name[i + 1 : i + 2].islower())
        for i, c in enumerate(name)
    ]
    return "".join("_" * s + c.lower() for s, c in zip(starts, name, strict=True))


@public
class Transfer(keras.layers.Layer):
    """One edge of the graph: `weight * loss(source, student)` is added to the student's loss.

    Args:
        loss: a `kd.losses` object, any `keras.losses.Loss` (called as `loss(source, student)`), or
            a function `(source, student, ...)` that returns one value per example and may ask for
            `labels`, `sample_weight`, `example_id`, `epoch`, `progress` by name.
        source: name of the node that teaches: a teacher's, or a student's (its output is then
            held constant). May be left out where there is only one teacher.
        student: name of the student that learns. May be left out where there is only one.
        source_layer, student_layer: where to read: a layer's path (see `kd.tap`), or a list of
            paths, which gives the loss a list of tensors. `None` (default) reads the network's
            output.
        weight: factor of this edge, >= 0, defaults to 1. A variable: `transfer.weight = 0.5` (or
            `.weight.assign(0.5)`) acts on the next batch.
        gate: how much of each example's loss passes: "through" (default), "cutoff", "linear",
            "correct", or a `kd.gates.Gate`.
        name: name in the logs. Defaults to the loss's class in snake case.

    The logs show the loss behind the gate and before the weight.

    Raises:
        ValueError: a negative or non-finite weight, an empty path, or an unknown gate.
        TypeError: something else than a loss or a gate.

    Example:
        >>> import kdtoolkit as kd
        >>> edge = kd.Transfer(kd.losses.SoftTargets(temperature=4.0), weight=0.9)
        >>> edge.name
        'soft_targets'
    """

    weight = Scalar(minimum=0.0)

    def __init__(
        self,
        loss,
        *,
        source=None,
        student=None,
        source_layer=None,
        student_layer=None,
        weight=1.0,
        gate=None,
        name=None,
    ):
        loss = _as_loss(loss)
        super().__init__(name=name or _default_name(loss), dtype="float32", autocast=False)
        self.source = source
        self.student = student
        self.source_layer = source_layer
        self.student_layer = student_layer
        self._source_paths, self._single_source = _as_paths(source_layer, "source_layer")
        self._student_paths, self._single_student = _as_paths(student_layer, "student_layer")
        self.weight = weight
        self.gate = as_gate(gate)
        self.loss = loss
        # Tracked here, so that the step reads them as state and the distiller saves them.
        self._loss_scalars = list(loss.variables) if isinstance(loss, TransferLoss) else []
        self._loss_layers = []
        self._shapes = None

    @property
    def source_paths(self):
        """Layers read from the source; `None` stands for its output."""
        return list(self._source_paths)

    @property
    def student_paths(self):
        """Layers read from the student; `None` stands for its output."""
        return list(self._student_paths)

    @property
    def own_layers(self):
        """Layers of the loss, such as projectors: trained, saved, never exported."""
        return list(self._loss_layers)

    @property
    def metrics(self):
        # Those of a loss's network that was compiled before are no metrics of this training.
        return []

    @property
    def needs_ids(self):
        """Whether the loss compares with what it keeps for each example."""
        return "example_id" in getattr(self.loss, "needs", ())

    @property
    def reads_logits(self):
        """Whether the loss expects class scores from both networks' outputs."""
        return getattr(self.loss, "reads", "any") == "logits"

    def gather(self, source, student):
        """Bring what was read, lists of tensors, into the form that the loss takes."""
        source = source[0] if self._single_source else source
        return source, student[0] if self._single_student else student

    def connect(self, source, student):
        """Check the shapes (lists of tuples) and create the loss's own layers for them."""
        if self._shapes not in (None, (source, student)):
            raise ValueError(
                f"Transfer '{self.name}' is connected to shapes {self._shapes} already. Expected a "
                f"new Transfer, with a new loss, for another pair of networks. Received: "
                f"{(source, student)}"
            )
        self._shapes = source, student
        if self.built:
            return
        source, student = self.gather(source, student)
        if isinstance(self.loss, TransferLoss):
            self.loss.check_shapes(source, student)
            self.loss.build(source, student)
            self._loss_layers = list(self.loss.layers)
        self.built = True

    def value(self, source, student, sample_weight=None, context=None, outputs=(None, None)):
        """The loss of this edge for one batch: a scalar, behind the gate and before `weight`.

        Args:
            source, student: lists of tensors, in the order of the paths.
            sample_weight: optional tensor `(batch,)`.
            context: what the loss and the gate may ask for, by name.
            outputs: the outputs of both networks, for the gate. Of a network with several it sees
                the one that the transfer reads, or None.
        """
        source, student = self.gather(source, student)
        loss = self.loss
        if isinstance(loss, TransferLoss) and loss.needs:
            loss = BoundLoss(loss, self._context_for(loss, context))
        passed = self._passed(outputs, context)
        if passed is None:
            return loss(source, student, sample_weight)
        if not passed.shape:
            value = loss(source, student, sample_weight)
            return value * ops.cast(passed, value.dtype)
        if sample_weight is not None:
            passed = passed * ops.cast(ops.reshape(sample_weight, (-1,)), passed.dtype)
        return loss(source, student, passed)

    def _passed(self, outputs, context):
        """What the gate lets through: None for all, a scalar, or one number per example."""
        paths = self._source_paths, self._student_paths
        heads = [self._head(*end) for end in zip(outputs, paths, strict=True)]
        passed = self.gate.factor(*heads, **self._context_for(self.gate, context))
        if passed is None:
            return None
        passed = ops.stop_gradient(ops.cast(passed, "float32"))
        if len(passed.shape) == 2 and passed.shape[1] == 1:
            passed = ops.squeeze(passed, -1)
        if len(passed.shape) > 1:
            raise ValueError(
                f"The gate of transfer '{self.name}' must return a number, or one per example, "
                f"shape (batch,). Received: shape {tuple(passed.shape)}"
            )
        return passed

    def _head(self, output, paths):
        """A network's output, or the one of several that the transfer reads; None if neither."""
        if isinstance(output, dict) and len(paths) == 1 and paths[0] in output:
            return output[paths[0]]
        return None if isinstance(output, dict | list | tuple) else output

    def _context_for(self, reader, context):
        return {name: self._needed(name, context) for name in reader.needs}

    def _needed(self, name, context):
        value = context[name]
        if value is None and name in WAYS_OUT:
            raise ValueError(
                f"Transfer '{self.name}' needs {WAYS_OUT[name]}. Received: {name}=None"
            )
        if name == "labels" and isinstance(value, dict | list | tuple):
            value = self._head(value, self._student_paths)
            if value is None:
                raise ValueError(
                    f"Transfer '{self.name}' needs one of several labels. Expected `student_layer` "
                    "as the key of an output that `y` has labels for. Received: "
                    f"student_layer={self.student_layer!r}"
                )
        return value

    def get_config(self):
        return {
            "loss": keras.saving.serialize_keras_object(self.loss),
            "source": self.source,
            "student": self.student,
            "source_layer": self.source_layer,
            "student_layer": self.student_layer,
            "weight": number(self.weight),
            "gate": keras.saving.serialize_keras_object(self.gate),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        loss, gate = (keras.saving.deserialize_keras_object(config[k]) for k in ("loss", "gate"))
        return cls(**{**config, "loss": loss, "gate": gate})
