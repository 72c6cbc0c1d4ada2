"""What `Distiller.compile` gives to Keras: optimizers, losses and metrics for every student."""

import dataclasses

import keras
from keras import ops

from kdtoolkit import steps


@dataclasses.dataclass(frozen=True)
class Given:
    """What `compile` was given. A plain dict Keras would track, and count metrics in it twice."""

    arguments: dict

    def __getitem__(self, name):
        return self.arguments.get(name)

    def config(self):
        """The arguments, serialised."""
        return {k: keras.saving.serialize_keras_object(v) for k, v in self.arguments.items()}


def policy_of(students):
    """The dtype policy under which Keras scales the loss if any student computes in float16.

    Keras wraps the optimizer of a `mixed_float16` model in a `LossScaleOptimizer`, but looks at the
    compiled model's policy alone; here that is the distiller's.
    """
    # `_flatten_layers` is the only walk that also finds the layers of composite layers.
    layers = [layer for student in students for layer in student._flatten_layers()]
    half = any(layer.compute_dtype == "float16" for layer in layers)
    return "mixed_float16" if half else "float32"


def combine(optimizer, graph):
    """Make one Keras optimizer of what `Distiller.compile` was given.

    Args:
        optimizer: anything that Keras takes, or a dict `{student name: optimizer}`.
        graph: the `TransferGraph`.

    Raises:
        ValueError: the dict's names aren't the students', or two students share an object.
    """
    if not isinstance(optimizer, dict) or "class_name" in optimizer:
        return optimizer
    if set(optimizer) != set(graph.student_names):
        raise ValueError(
            f"`optimizer` must have one entry per student: {sorted(graph.student_names)}. "
            f"Received: {sorted(optimizer)}"
        )
    found = {name: keras.optimizers.get(value) for name, value in optimizer.items()}
    if len({id(value) for value in found.values()}) < len(found):
        raise ValueError(
            "Each student needs an optimizer object of its own. Received the same object twice: "
            f"{found}"
        )
    return StudentOptimizers(_Owners(found, graph))


class StudentOptimizers(keras.optimizers.MultiOptimizer):
    """One optimizer per student, with the learning rate that they have in common.

    `keras.optimizers.MultiOptimizer` has none, but callbacks ask for it unless they look at each
    optimizer by itself, which they can't behind a `LossScaleOptimizer`.
    """

    def __init__(self, owners):
        super().__init__(owners)
        self.by_student = owners.optimizers

    @property
    def learning_rate(self):
        rates = [optimizer.learning_rate for optimizer in self.optimizers]
        values = {float(ops.convert_to_numpy(rate)) for rate in rates}
        if len(values) > 1:
            raise AttributeError(
                "The students' optimizers have different learning rates. Expected one rate, or "
                f"`distiller.optimizer.optimizers[i].learning_rate`. Received: {sorted(values)}"
            )
        return rates[0]

    @learning_rate.setter
    def learning_rate(self, value):
        for optimizer in self.optimizers:
            optimizer.learning_rate = value


def label_losses(loss, outputs, trackers, weights=None):
    """The label loss of each output, in the form that Keras takes.

    Args:
        loss: what `compile` was given.
        outputs: the `Outputs` of the students.
        trackers: `{name of an output: metric}`, which follows the output's loss.
        weights: `loss_weights` as `compile` was given them.

    Returns:
        A dict where there are several students, or weights by output; else `loss` itself.
    """
    if loss is None:
        return None
    if not outputs.several:
        # Keras gives one loss to all outputs by itself, but not with weights for each.
        once = isinstance(weights, dict) and outputs.only_keys and not keras.tree.is_nested(loss)
        return dict.fromkeys(outputs.only_keys, loss) if once else loss
    found = outputs.for_each(loss)
    for name, value in found.items():
        if isinstance(value, dict | list | tuple):
            raise ValueError(
                f"Each output takes one label loss. Expected a loss for '{name}'. Received: {value}"
            )
    found = {name: value for name, value in found.items() if value is not None}
    if not found:
        raise ValueError(
            f"`loss` names no output of a student. Expected some of {list(outputs.names)}, or None "
            f"to train without labels. Received: loss={loss}"
        )
    return {n: LabelLoss(v, outputs.names[n], trackers[n]) for n, v in found.items()}


def loss_weights(given, outputs, losses):
    """Keras's `loss_weights` for the outputs that have a loss.

    Raises:
        ValueError: a key that is no output's.
    """
    if given is None or not (outputs.several or isinstance(given, dict)):
        return given
    if not outputs.several:
        unknown = set(given) - set(outputs.only_keys or given)
        if unknown:
            raise ValueError(
                f"`loss_weights` must name outputs of the student, {outputs.only_keys}. "
                f"Received also: {sorted(unknown)}"
            )
        return {key: given.get(key, 1.0) for key in losses} if isinstance(losses, dict) else given
    return {name: v for name, v in outputs.for_each(given).items() if name in (losses or ())}


def copied_metrics(metrics, outputs):
    """Metrics for each output and the ensemble; objects are copied, since each counts alone."""
    if outputs.several:
        found = outputs.for_each(metrics, ensemble=True)
    elif outputs.only_keys and metrics is not None and not _by_output(metrics):
        found = dict.fromkeys(outputs.only_keys, metrics)
    else:
        return metrics
    return keras.tree.map_structure(_copy_of_metric, found)


def _by_output(metrics):
    """Whether metrics are given for each output, as Keras also takes them in a list."""
    parts = metrics if isinstance(metrics, list | tuple) else ()
    return isinstance(metrics, dict) or any(p is None or isinstance(p, list | tuple) for p in parts)


def _copy_of_metric(value):
    return type(value).from_config(value.get_config()) if isinstance(value, keras.Metric) else value


class LabelLoss(keras.losses.Loss):
    """A student's label loss, as one of several: measured, and 0 while only another one learns.

    Keras follows the losses of several outputs too, but on TensorFlow by the mean over batches, in
    which a smaller last batch counts too much.
    """

    def __init__(self, loss, student, tracker):
        if str(loss).lower() in ("crossentropy", "ce"):
            raise ValueError(
                "With several outputs a label loss must be named in full, such as "
                f"keras.losses.SparseCategoricalCrossentropy(from_logits=True). Received: {loss!r}"
            )
        self.inner = keras.losses.get(loss)
        super().__init__(reduction=getattr(self.inner, "reduction", "sum_over_batch_size"))
        self.student = student
        self.tracker = tracker

    def call(self, y_true, y_pred):
        # As Keras does for functions: (batch,) and (batch, 1) would make a square.
        ranks = len(y_true.shape), len(y_pred.shape)
        if ranks == (1, 2) and y_pred.shape[-1] == 1:
            y_true = ops.expand_dims(y_true, -1)
        elif ranks[0] == ranks[1] + 1 and y_true.shape[-1] == 1:
            y_true = ops.squeeze(y_true, -1)
        return self.inner(y_true, y_pred)

    def __call__(self, y_true, y_pred, sample_weight=None):
        if steps.learner() not in (None, self.student):
            return ops.zeros((), self.dtype)
        own = isinstance(self.inner, keras.losses.Loss)
        value = (self.inner if own else super().__call__)(y_true, y_pred, sample_weight)
        self.tracker.update_state(steps.whole(value), ops.shape(y_pred)[0])
        return value


class _Owners:
    """Maps a variable to the optimizer of the student that it trains.

    By identity, since two students' variables may well have equal paths. A transfer's own layers
    go with the student that they serve.
    """

    def __init__(self, optimizers, graph):
        self.optimizers = optimizers
        self._graph = graph
        self._owner = {}

    def __call__(self, variable):
        if id(variable) not in self._owner:
            # Networks may get their weights only with the first batch.
            for name in self._graph.student_names:
                self._owner.update((id(v), name) for v in self._graph.trained_with(name))
        return self.optimizers[self._owner[id(variable)]]

    def values(self):
        return self.optimizers.values()
