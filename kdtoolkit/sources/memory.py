"""Memories: tables of a student's own outputs, one row per training example."""

import keras
from keras import ops

from kdtoolkit import scalars, steps
from kdtoolkit.registry import public
from kdtoolkit.sources.base import Source

DTYPES = ("float32", "float16")
ENTRIES = "each training example has a row, which is its example id"


class _Memory(Source):
    """What the memories have in common: a table that is made when its size is known."""

    needs_ids = True

    def __init__(self, examples=None, dtype="float32", follows=None, initial="labels", name=None):
        super().__init__(follows=follows, initial=initial, name=name)
        if dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {DTYPES}. Received: dtype={dtype!r}")
        owner = type(self).__name__
        self.examples = None if examples is None else scalars.whole(examples, "examples", owner)
        self.classes = None
        self.table = None
        self.table_dtype = dtype
        # A float, because GPUs have no scatter of integers; exact up to 16 million steps.
        self._clock = scalars.variable(0.0, "clock")
        # How many ids were no row of the table, where the step itself can't stop for them.
        self._strays = scalars.variable(0.0, "strays")

    def connect(self, student, output):
        if not isinstance(output, keras.KerasTensor) or len(output.shape) != 2:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' holds one output of shape (batch, classes). "
                f"Received: {keras.tree.map_structure(lambda t: tuple(t.shape), output)}"
            )
        if self.table is not None and self.table.shape[1] != output.shape[-1]:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' holds outputs of {self.table.shape[1]} "
                f"classes, but the student that it follows has {output.shape[-1]}. Expected the "
                "same. Make a new memory for this student"
            )
        self.classes = output.shape[-1]
        self._make_tables()

    def prepare(self, examples):
        """Learn how many training examples there are, from data that knows.

        Args:
            examples: int, or None for data that doesn't know.

        Raises:
            ValueError: neither side knows, or they disagree.
        """
        if self.examples is None and examples is None:
            self._unknown_length()
        if examples is not None and self.examples not in (None, examples):
            raise ValueError(
                f"{type(self).__name__} '{self.name}' has {self.examples} rows, but there are "
                f"{examples} training examples; {ENTRIES}. Train with the data that it was made "
                "for, or make a new distiller."
            )
        self.examples = self.examples or examples
        self._make_tables()

    def _unknown_length(self):
        raise ValueError(
            f"{type(self).__name__} '{self.name}' must know how many training examples there are: "
            "`fit` reads it from arrays and `kd.data.ArrayPipeline`, other data and other loops "
            f"don't say. Expected `{type(self).__name__}(examples=...)`. Received: examples=None"
        )

    def _make_tables(self):
        """Create the variables once both numbers are known."""
        if self.table is None and None not in (self.examples, self.classes):
            self.table = self._new_table("table", self.classes, dtype=self.table_dtype)
            self._make_more()

    def _make_more(self):
        """Create what stands beside the table."""
        raise NotImplementedError

    def reset(self):
        super().reset()
        for variable in self.weights:
            if variable is not self._score:
                variable.assign(ops.zeros(variable.shape, variable.dtype))

    def _new_table(self, name, *shape, dtype="float32"):
        return self.add_weight(
            shape=(self.examples, *shape),
            initializer="zeros",
            dtype=dtype,
            trainable=False,
            autocast=False,
            name=name,
        )

    def _rows(self, context):
        ids = context["example_id"]
        if ids is None:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' needs example ids; {ENTRIES}. Expected "
                "arrays, or inputs from `kd.data.with_ids(x)`, or "
                "`kd.data.ArrayPipeline(..., example_ids=True)`. Received: example_id=None"
            )
        if self.table is None:
            self._unknown_length()
        ids = ops.reshape(ops.cast(ids, "int32"), (-1,))
        return steps.check_rows(
            ids,
            self.examples,
            f"Expected example ids in 0 ... {self.examples - 1}, the rows of "
            f"{type(self).__name__} '{self.name}'. The data has more examples than the memory.",
        )

    def _chosen(self, found, logits, student_output, context):
        """`logits` for the examples of which something was found, else what comes first."""
        other = self.in_place_of_nothing(student_output, context["labels"])
        logits = ops.where(found[:, None], ops.cast(logits, other.dtype), other)
        return {"output": logits, "taps": {}}

    def _count_strays(self, context):
        ids = ops.cast(context["example_id"], "int32")
        stray = ops.logical_or(ids < 0, ids >= self.examples)
        self._strays.assign(self._strays + ops.sum(ops.cast(stray, "float32")))

    def _check_strays(self):
        count = sum(float(ops.convert_to_numpy(copy)) for copy in steps.copies(self._strays))
        if count:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' has {self.examples} rows, but {count:.0f} "
                "example ids weren't among them. Expected ids from 0 to "
                f"{self.examples - 1}. Received: data with more examples than the memory. Make a "
                "new distiller with a memory of the right length"
            )

    def _tick(self):
        self._clock.assign(self._clock + 1.0)

    def get_config(self):
        return {**super().get_config(), "examples": self.examples, "dtype": self.table_dtype}


@public
class PredictionMemory(_Memory):
    """Holds a student's training outputs of one whole epoch, and teaches them until a better one.

    Each training step writes the outputs that it has computed anyway to a pending table, row by
    example id: no extra forward pass. A callback decides at the end of the epoch whether the
    pending outputs become what is taught: `kd.callbacks.BestTeacher()` when the validation score
    has improved, `kd.callbacks.PeriodicTeacher()` every epoch. Until the first commit, and for
    examples that weren't in the committed epoch, it teaches the labels (`initial`).

    What an example meets was computed from another augmentation of it, with dropout and batch
    statistics of training, and with weights that moved on during the epoch. Takagi and Hattori put
    part of the gain down to this noise; `kd.sources.Snapshot` recomputes exactly instead.

    Memory: two tables of examples * classes * (4 bytes, or 2 for float16) and 8 bytes per example.
    45,000 examples of 100 classes take 36 MB, or 18 MB in float16.

    Where nothing is held, labels become logits of 0 and -10,000, whose softmax is exactly the
    label; half precision and `decay` keep logits up to a constant. Losses that compare logits
    themselves, such as `LogitsMSE`, want `initial="student"`, full precision and no `decay`.

    A memory that is given to another distiller keeps what it holds; `reset()` forgets it.

    With `decay` the table is an average over commits, `Z <- decay * Z + (1 - decay) * p`, taught
    as `Z / (1 - decay^t)` after t commits of the example (temporal ensembling). It then holds
    probabilities, else logits.

    Replicas: each replica writes the examples that it saw, `commit` puts them together. With
    `MultiWorkerMirroredStrategy` each process holds the tables of all of them for that moment.

    Source: Takagi and Hattori, "Reducing Training Time for Distillation of DNN by Self
    Distillation", IPSJ 81st National Convention (2019), 4U-02: algorithm 1, table `tmp` and `y_v`.
    Every epoch: Kim et al., 2021, arXiv:2006.12000 (PS-KD). Average: Laine and Aila, 2017,
    arXiv:1610.02242.

    Args:
        examples: number of training examples. May be left out where `fit` is given arrays or a
            `kd.data.ArrayPipeline`.
        dtype: "float32" or "float16". Half precision keeps logits to 0.05 %, each example's up to a
            constant, which softmax ignores.
        decay: number in [0, 1), 0 (default) keeps the last committed epoch alone.
        follows, initial, name: as in `kd.sources.Source`.

    Raises:
        ValueError: arguments out of range; in `fit`, data without example ids or with another
            number of examples, or a student whose output isn't `(batch, classes)`.

    Example:
        >>> import kdtoolkit as kd
        >>> memory = kd.sources.PredictionMemory(dtype="float16")
        >>> student = kd.models.mlp((4,), 3, units=(8,))
        >>> distiller = kd.Distiller(
        ...     student=student,
        ...     teacher=memory,
        ...     transfers=[kd.Transfer(kd.losses.SoftCrossEntropy(), weight=0.5)],
        ...     label_weight=0.5,
        ... )
        >>> memory.score is None
        True
    """

    commits = True

    def __init__(
        self,
        examples=None,
        dtype="float32",
        decay=0.0,
        follows=None,
        initial="labels",
        name=None,
    ):
        super().__init__(examples, dtype, follows, initial, name)
        self.decay = scalars.checked(decay, "decay", type(self).__name__, minimum=0.0)
        if self.decay >= 1:
            raise ValueError(f"`decay` must be below 1. Received: decay={decay}")

    def _make_more(self):
        self.pending = self._new_table("pending", self.classes, dtype=self.table_dtype)
        # When each example was written in this epoch, 0 for not yet; and how often committed.
        self.written = self._new_table("written")
        self.counts = self._new_table("counts")

    def read(self, forward, student_output, context):
        rows = self._rows(context)
        counts = steps.read_rows(self.counts, rows)
        values = steps.read_rows(self.table, rows)
        if self.decay:
            share = 1.0 - ops.power(self.decay, ops.maximum(counts, 1.0))
            values = ops.log(ops.maximum(ops.cast(values, "float32") / share[:, None], 1e-30))
        return self._chosen(counts > 0, values, student_output, context)

    def observe(self, student_output, context):
        self._tick()
        self._count_strays(context)
        rows = self._rows(context)
        output = ops.cast(student_output, "float32")
        values = ops.softmax(output) if self.decay else _finite_in(self.table_dtype, output)
        steps.write_rows(self.pending, rows, ops.cast(values, self.table_dtype))
        now = ops.zeros_like(values[:, 0]) + self._clock
        steps.write_rows(self.written, rows, now)

    def begin_epoch(self):
        self._check_strays()
        if self.table is not None:
            self.written.assign(ops.zeros(self.written.shape))

    def commit(self, score=None):
        if self.table is None:
            raise ValueError(f"PredictionMemory '{self.name}' has seen no batch to commit.")
        self._check_strays()
        pending, written = self._of_all_replicas()
        seen = written > 0
        if self.decay:
            old = ops.cast(self.table, "float32")
            new = self.decay * old + (1.0 - self.decay) * ops.cast(pending, "float32")
            pending = ops.cast(new, self.table_dtype)
        self.table.assign(ops.where(seen[:, None], pending, ops.convert_to_tensor(self.table)))
        self.counts.assign(self.counts + ops.cast(seen, "float32"))
        super().commit(score)

    def _of_all_replicas(self):
        """The pending outputs, and when they were written; of each example the newest."""
        (pending, *tables), (written, *times) = map(steps.copies, (self.pending, self.written))
        for table, time in zip(tables, times, strict=True):
            newer = time > written
            pending = ops.where(newer[:, None], table, pending)
            written = ops.where(newer, time, written)
        return pending, written

    def get_config(self):
        return {**super().get_config(), "decay": self.decay}


@public
class LastPredictions(_Memory):
    """Holds what a student said when it saw an example last, and teaches that.

    Every training step reads the rows of its batch and then overwrites them; nothing waits for a
    callback. With `lifetime=1` only the step before counts: where half of each batch repeats the
    one before (`kd.data.ArrayPipeline(..., overlap=True)`), this is distillation from the last
    mini-batch.

    The mean over the batch counts the examples without a stored output as 0. A paper that averages
    over the repeated half alone has twice this value: double the transfer's weight.

    Memory: one table of examples * classes * (4 or 2 bytes) and 4 bytes per example. It doesn't
    work with replicas, which see different examples: use `PredictionMemory` there.

    Source: Shen et al., 2022, arXiv:2203.16172 (DLB: T = 3, weight 1 for the repeated half).

    Args:
        lifetime: steps for which an output counts, an integer >= 1, or None (default) for ever.
        examples, dtype: as in `PredictionMemory`.
        follows, initial, name: as in `kd.sources.Source`; `initial` defaults to "student", no
            gradient from examples of which nothing is held.

    Example:
        >>> import kdtoolkit as kd
        >>> memory = kd.sources.LastPredictions(lifetime=1)
        >>> edge = kd.Transfer(kd.losses.SoftTargets(3.0), weight=2.0)
        >>> student = kd.models.mlp((4,), 3, units=(8,))
        >>> distiller = kd.Distiller(
        ...     student=student, teacher=memory, transfers=[edge], label_weight=1.0
        ... )
    """

    def __init__(
        self,
        lifetime=None,
        examples=None,
        dtype="float32",
        follows=None,
        initial="student",
        name=None,
    ):
        super().__init__(examples, dtype, follows, initial, name)
        owner = type(self).__name__
        self.lifetime = None if lifetime is None else scalars.whole(lifetime, "lifetime", owner)

    def _make_more(self):
        self.written = self._new_table("written")

    def update(self):
        if steps.replicas() > 1:
            raise ValueError(
                f"LastPredictions '{self.name}' can't follow examples from replica to replica. "
                "Expected one replica, or `PredictionMemory` with `kd.callbacks.PeriodicTeacher()`."
            )
        self._tick()

    def read(self, forward, student_output, context):
        rows = self._rows(context)
        written = steps.read_rows(self.written, rows)
        oldest = 0.0 if self.lifetime is None else self._clock - self.lifetime
        found = (written > 0) & (written >= oldest)
        values = steps.read_rows(self.table, rows)
        return self._chosen(found, values, student_output, context)

    def observe(self, student_output, context):
        rows = self._rows(context)
        values = _finite_in(self.table_dtype, ops.cast(student_output, "float32"))
        steps.write_rows(self.table, rows, ops.cast(values, self.table_dtype))
        steps.write_rows(self.written, rows, ops.zeros_like(values[:, 0]) + self._clock)

    def get_config(self):
        return {**super().get_config(), "lifetime": self.lifetime}


def _finite_in(dtype, logits):
    """Logits that half precision can hold: their largest is brought to 0, which softmax ignores."""
    if dtype == "float32":
        return logits
    return ops.maximum(logits - ops.max(logits, axis=-1, keepdims=True), -65000.0)
