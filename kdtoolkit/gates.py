"""Gates: how much of a transfer's loss passes, for each example and at each time."""

from keras import ops

from kdtoolkit import functional, scalars
from kdtoolkit.losses.base import needs_of
from kdtoolkit.registry import public


@public
class Gate:
    """Base class of what may stand between a transfer's loss and its weight.

    A subclass writes one method, `factor`; the loss of an example is multiplied by what it
    returns, which counts as a constant. The mean still runs over all examples, also over those
    that don't pass.

    ```python
    @keras.saving.register_keras_serializable("mine")
    class Sure(kd.gates.Gate):
        def factor(self, source, student):
            return keras.ops.max(keras.ops.softmax(source), axis=-1) > 0.9
    ```

    Arguments of `factor` after the first two are filled by name, where it asks for them: `labels`,
    `sample_weight`, `example_id`, `epoch`, `progress`, as in `kd.losses.TransferLoss`.

    Source: Minami et al., "Knowledge Transfer Graph for Deep Collaborative Learning", ACCV 2020,
    arXiv:1909.04286.
    """

    #: False where nothing ever passes, so that the edge needn't be computed.
    is_open = True

    def __init__(self):
        self.needs = needs_of(self.factor)

    def factor(self, source, student):
        """How much passes: a number, a scalar tensor, a tensor `(batch,)`, or None for everything.

        Args:
            source, student: the outputs of both networks, such as logits; of a network with several
                outputs the one that the transfer reads, None if it reads an inner layer.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `factor(source, student)`.")

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@public
class Through(Gate):
    """Everything passes, as without a gate. The default of `kd.Transfer`."""

    def factor(self, source, student):
        return None


@public
class Cutoff(Gate):
    """Nothing passes: the edge isn't computed, nor its teacher if no other edge reads it.

    A weight of 0 does the same to the numbers, but may be raised later, so it saves nothing.
    """

    is_open = False

    def factor(self, source, student):
        return 0.0


@public
class Linear(Gate):
    """The share that passes moves in a straight line with training.

        first + (last - first) * epoch / epochs

    `epochs` is what `fit` was given. From 0 to 1 (default) it is the paper's linear gate, which
    lets a student find its own way first; from 1 to 0 a teacher that fades. With `epochs=1`, and
    outside of `fit`, it stays at `first`.

    Source: as in `Gate`. The paper counts iterations; here it moves at the start of each epoch.

    Args:
        first: share in the first epoch, >= 0. Defaults to 0.
        last: share that would be reached after the last epoch, >= 0. Defaults to 1.

    Raises:
        ValueError: a negative or non-finite share.

    Example:
        >>> from kdtoolkit import gates
        >>> float(gates.Linear().factor(None, None, progress=0.25))
        0.25
    """

    def __init__(self, first=0.0, last=1.0):
        super().__init__()
        self.first = scalars.checked(first, "first", "Linear", minimum=0.0)
        self.last = scalars.checked(last, "last", "Linear", minimum=0.0)

    def factor(self, source, student, progress):
        return self.first + (self.last - self.first) * progress

    def get_config(self):
        return {"first": self.first, "last": self.last}


@public
class Correct(Gate):
    """Only examples pass that the source ranks right: its largest logit is the label's.

    Of an output with several positions the share of right ones passes. An example without a label
    (class number -1) doesn't pass. It needs labels, also where `compile` has no label loss.

    Source: as in `Gate`. The paper's correct gate.

    Example:
        >>> from kdtoolkit import gates
        >>> passed = gates.Correct().factor([[2.0, 0.0], [2.0, 0.0]], None, labels=[0, 1])
        >>> [float(share) for share in passed]
        [1.0, 0.0]
    """

    def factor(self, source, student, labels):
        if source is None:
            raise ValueError(
                "The gate 'correct' must know which of several outputs are class scores. Expected "
                "a source with one output, or a transfer that reads the output by its key. "
                "Received: a transfer of an inner layer."
            )
        source = functional.as_numbers(source, "logits of the source", minimum_rank=1)
        functional.check_logits(source.shape, source.shape, "The gate 'correct'")
        right = functional.class_numbers(labels, source)
        chosen = ops.cast(ops.argmax(source, axis=-1), right.dtype)
        return functional.per_example(ops.cast(ops.equal(chosen, right), "float32"))


NAMES = {"through": Through, "cutoff": Cutoff, "linear": Linear, "correct": Correct}


def as_gate(value):
    """A gate from a `Gate`, a name in `NAMES`, or None (everything passes).

    Raises:
        ValueError: an unknown name.
        TypeError: something else.
    """
    if value is None:
        return Through()
    if isinstance(value, Gate):
        return value
    if isinstance(value, str) and value in NAMES:
        return NAMES[value]()
    message = f"`gate` must be a kd.gates.Gate or one of {sorted(NAMES)}. Received: gate={value!r}"
    raise ValueError(message) if isinstance(value, str) else TypeError(message)
