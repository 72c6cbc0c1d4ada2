"""What every transfer loss is: a Keras loss that returns one value per example."""

import inspect

import keras

from kdtoolkit.functional import as_numbers
from kdtoolkit.registry import expects, public
from kdtoolkit.scalars import Scalar, number

#: What a loss may ask for beside the two networks' outputs.
CONTEXT = ("labels", "sample_weight", "example_id", "epoch", "progress")


def needs_of(function):
    """Names from `CONTEXT` that `function` takes after its two first arguments.

    Raises:
        TypeError: it takes another required argument, which nothing could fill.
    """
    parameters = list(inspect.signature(function).parameters.values())
    extra = [p for p in parameters[2:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    unknown = [p.name for p in extra if p.name not in CONTEXT and p.default is p.empty]
    if len(parameters) < 2 or unknown:
        raise TypeError(
            "A transfer loss takes (source, student) and any of "
            f"{CONTEXT}. Received the signature {function.__name__}{inspect.signature(function)}"
        )
    return tuple(p.name for p in extra if p.name in CONTEXT)


class PerExampleLoss(keras.losses.Loss):
    """Refuses masks and weights per position, which Keras would broadcast against the examples."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_true, y_pred = _numbers(y_true, "source"), _numbers(y_pred, "student")
        # Keras has no public reader of a tensor's mask.
        masks = [getattr(leaf, "_keras_mask", None) for leaf in keras.tree.flatten(y_pred)]
        for what, given in (
            *(("the mask of the student's output", mask) for mask in masks),
            ("sample_weight", sample_weight),
        ):
            shape = tuple(getattr(given, "shape", ()))
            if shape[1:] not in ((), (1,), (None,)):
                raise ValueError(
                    f"'{self.name}' has one value per example, so {what} must have the shape "
                    f"(batch,). Received: shape {shape}. Weight whole examples; reshape both "
                    "outputs to (batch * positions, classes), so that a position is an example; or "
                    "read a layer behind the pooling, where padding no longer counts."
                )
        return super().__call__(y_true, y_pred, sample_weight)


def shapes_of(end):
    """Shapes of a tensor or of a list of them, with an unknown batch."""
    if isinstance(end, dict):
        raise TypeError(
            f"A transfer loss compares tensors, or lists of them. Received: a dict of {list(end)}"
        )
    if isinstance(end, list | tuple):
        return [shapes_of(tensor) for tensor in end]
    return (None, *tuple(end.shape)[1:]) if len(end.shape) else ()


def _numbers(end, name):
    """The tensors of one end of a loss; nested lists of plain numbers are one tensor."""
    if isinstance(end, dict) and end and name == "source":
        return {key: _numbers(value, key) for key, value in end.items()}
    tensors = [leaf for leaf in keras.tree.flatten(end) if tuple(getattr(leaf, "shape", ()))]
    if tensors and isinstance(end, list | tuple):
        return [_numbers(each, name) for each in end]
    return as_numbers(end, f"a tensor of the {name}, or a list of them")


@public
class TransferLoss(PerExampleLoss):
    """Base class of the losses that carry knowledge from a source to a student.

    A subclass writes one method, `values`, and inherits reduction, sample weights, masks and the
    scaling under a distribution strategy from `keras.losses.Loss`. It is the gradient with respect
    to `student` that trains; `source` arrives with its gradient stopped.

    ```python
    @keras.saving.register_keras_serializable("mine")
    class Cosine(kd.losses.TransferLoss):
        def values(self, source, student):
            return 1.0 - keras.ops.sum(normalise(source) * normalise(student), axis=-1)
    ```

    Arguments of `values` after the first two are filled by name, where the loss asks for them:
    `labels` (as given to `fit`), `sample_weight`, `example_id`, `epoch` (a scalar tensor, from 0)
    and `progress` (epoch / epochs, a scalar tensor from 0 to 1).

    In plain Keras (`model.compile(loss=SoftTargets())`) `y_true` is the source's output, computed
    before. A loss that needs labels takes `y_true={"source": ..., "labels": ...}` when called
    directly.

    Args:
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`, the mean over
            the batch.
        name: the loss's name. Defaults to the class name in snake case, numbered by Keras where
            several are made.
        dtype: dtype of the computation. Defaults to Keras's float type.
    """

    #: What the loss compares: "logits" (unnormalised class scores; probabilities are refused) or
    #: "any".
    reads = "any"

    @expects(reduction="optional text", name="text", dtype="dtype")
    def __init__(self, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.needs = needs_of(self.values)

    def values(self, source, student):
        """One value per example, shape `(batch,)`, before weights and reduction.

        Args:
            source: what the transfer reads from its source: a tensor, or a list of tensors where
                the transfer names several layers.
            student: the same from the student.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `values(source, student)`.")

    def check_shapes(self, source, student):
        """Raise a ValueError if these shapes can never be compared. Batch size is `None`.

        Called once, with shapes as tuples (or lists of tuples), before training.
        """

    def build(self, source, student):
        """Create the loss's own layers for these shapes. Called once, after `check_shapes`."""

    @property
    def layers(self):
        """Layers the loss owns (projectors): trained with the student, never exported."""
        return []

    @property
    def variables(self):
        """State of the loss that may change during training: temperatures, random seeds."""
        seeds = keras.random.SeedGenerator
        held = [v.state if isinstance(v, seeds) else v for v in vars(self).values()]
        return [v for v in held if isinstance(v, keras.Variable)]

    #: Whether both networks must show it the same number of examples.
    one_batch = True

    def checked_values(self, source, student, **context):
        """`values`, of shapes that can be compared, refused unless they are one per example."""
        self.check_shapes(shapes_of(source), shapes_of(student))
        batches = [tuple(x.shape)[:1] for x in keras.tree.flatten([source, student])]
        sizes = {batch[0] for batch in batches if batch} - {None}
        if (len(sizes) > 1 and self.one_batch) or 0 in sizes:
            raise ValueError(
                f"'{self.name}' compares the same examples and expects one batch from both "
                f"networks, of 1 or more. Received: batches of {sorted(sizes)} examples"
            )
        values = self.values(source, student, **context)
        if len(values.shape) != 1:
            raise ValueError(
                f"'{self.name}' must return one value per example, shape (batch,). "
                f"Received: shape {tuple(values.shape)}. Take the mean over the other axes."
            )
        return values

    def call(self, y_true, y_pred):
        if not self.needs:
            return self.checked_values(y_true, y_pred)
        if not isinstance(y_true, dict) or "source" not in y_true:
            raise ValueError(
                f"{type(self).__name__} needs {self.needs} beside the source. Expected "
                "`y_true` as a dict with 'source' and those names. "
                f"Received: {type(y_true).__name__}"
            )
        context = {name: y_true[name] for name in self.needs if name in y_true}
        return self.checked_values(y_true["source"], y_pred, **context)

    def get_config(self):
        scalars = inspect.getmembers(type(self), lambda member: isinstance(member, Scalar))
        return {
            **super().get_config(),
            "dtype": self.dtype,
            **{name: number(getattr(self, name)) for name, _ in scalars},
        }


class BoundLoss(PerExampleLoss):
    """A loss with its context filled in: lets Keras reduce and weight what `values` returns.

    Context doesn't go through `Loss.__call__`, because that casts everything to the loss's dtype,
    and example ids don't survive a cast to float32 beyond 2**24.
    """

    def __init__(self, loss, context):
        super().__init__(name=loss.name, reduction=loss.reduction, dtype=loss.dtype)
        self._values = loss.checked_values
        self._context = context

    def call(self, y_true, y_pred):
        return self._values(y_true, y_pred, **self._context)


@public
class FunctionLoss(TransferLoss):
    """A transfer loss from one function: `kd.Transfer(my_function)` makes one by itself.

    Args:
        function: `function(source, student, ...)` returning one value per example, shape
            `(batch,)`. It may take any of `labels`, `sample_weight`, `example_id`, `epoch`,
            `progress` by name. Register it with `keras.saving.register_keras_serializable` if the
            distiller is to be saved.
        reduction, name, dtype: as in `TransferLoss`. The name defaults to the function's.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> def squared(source, student):
        ...     return keras.ops.mean(keras.ops.square(source - student), axis=-1)
        >>> source, student = keras.ops.array([[1.0, 2.0]]), keras.ops.array([[1.0, 4.0]])
        >>> float(kd.losses.FunctionLoss(squared)(source, student))
        2.0
    """

    # A function may well compare parts of a batch, such as two views.
    one_batch = False

    def __init__(self, function, reduction="sum_over_batch_size", name=None, dtype=None):
        if not callable(function):
            raise TypeError(
                "FunctionLoss expected a function (source, student) -> values. "
                f"Received: {function!r}"
            )
        self.function = function
        # TensorFlow takes no "<lambda>" for a name, and an object that is called has none.
        given = getattr(function, "__name__", type(function).__name__)
        name = name or given.replace("<lambda>", "function")
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.needs = needs_of(function)

    def values(self, source, student, **context):
        return self.function(source, student, **context)

    def get_config(self):
        function = keras.saving.serialize_keras_object(self.function)
        return {**super().get_config(), "function": function}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["function"] = keras.saving.deserialize_keras_object(config["function"])
        return cls(**config)
