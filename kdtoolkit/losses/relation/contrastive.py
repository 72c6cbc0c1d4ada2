"""CRD: contrastive representation distillation with memory banks."""

import math

import keras
from keras import layers, ops

from kdtoolkit import functional, scalars, steps
from kdtoolkit.functional.contrastive import log_normaliser, noise_contrastive, scores
from kdtoolkit.functional.relation import unit_vectors
from kdtoolkit.losses.feature.base import LayeredLoss
from kdtoolkit.registry import expects, public


@public
class ContrastiveRepresentation(LayeredLoss):
    """Contrastive representation distillation: pick out an example's own features among many.

    Each network's features (the mean over their positions) go through a learned linear map of their
    own to `dim` numbers of length 1. Two banks hold the last of these embeddings for every training
    example, one bank per network. The student's embedding shall tell the source's stored embedding
    of the same example from those of K other examples, and the source's embedding the student's:

        sum over both networks  -log h(s_0) - sum_k log(1 - h(s_k))
        h(s) = (e^s / Z) / (e^s / Z + K / examples),   s = <embedding, stored> / temperature

    Z of each network is `examples * mean e^s` of the first batch, and stays. After each training
    step, an example's rows become `momentum * stored + (1 - momentum) * embedding`, brought to
    length 1. They start at random. Both linear maps learn; the source itself doesn't.

    The K others are drawn anew in each step, uniformly and with repetition, and are never the
    example itself. The authors' code draws them from other classes, for which the bank would have
    to know the labels.

    Cost: a step gathers `batch * (1 + K) * dim` numbers for each network: 34 MB each for a batch of
    64, K = 1024 and 128 dimensions, 540 MB with the paper's K. The banks take
    `2 * examples * dim * 4` bytes. They are saved with the distiller, as are Z and the random
    state.

    Batches carry example ids, the rows of the banks: see `kd.data.with_ids`. An id beyond
    `examples` stops a step on TensorFlow; where a compiled step can't stop, the logged loss is NaN.
    `evaluate` changes no bank. Each replica would have banks of its own, so several are refused.

    Source: Tian, Krishnan and Isola, 2020, arXiv:1910.10699, with the constants of the authors'
    code: 16384 negatives, transfer weight 0.8, on the last features before the logits.

    Args:
        examples: number of training examples, >= 2.
        negatives: K >= 1. Defaults to 1024, less than the paper's 16384, for memory's sake.
        dim: numbers in an embedding, >= 1. Defaults to 128.
        temperature: > 0, fixed because Z belongs to it. Defaults to 0.07.
        momentum: share of the old row in the new one, from 0 to below 1. Defaults to 0.5.
        seed: an integer for repeatable banks and draws, or `None` (default).
        reduction, name, dtype: as in `TransferLoss`.

    Raises:
        ValueError: arguments out of range; when connected, several layers at once, or something
            else than features of known size; when called, several replicas, or data without ids.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import losses
        >>> loss = losses.ContrastiveRepresentation(examples=100, negatives=8, seed=0)
        >>> values = loss.values(np.ones((2, 4, 4, 3)), np.ones((2, 5)), example_id=[40, 7])
        >>> tuple(values.shape)
        (2,)
    """

    @expects(seed="seed")
    def __init__(
        self,
        examples,
        negatives=1024,
        dim=128,
        temperature=0.07,
        momentum=0.5,
        seed=None,
        reduction="sum_over_batch_size",
        name=None,
        dtype=None,
    ):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        owner = type(self).__name__
        self.examples = scalars.whole(examples, "examples", owner, minimum=2)
        self.negatives = scalars.whole(negatives, "negatives", owner)
        self.dim = scalars.whole(dim, "dim", owner)
        self.temperature = scalars.checked(temperature, "temperature", owner, above=0.0)
        self.momentum = scalars.checked(momentum, "momentum", owner, minimum=0.0)
        if self.momentum >= 1:
            raise ValueError(f"`momentum` of {owner} must be below 1. Received: {momentum!r}")
        self.seed = seed

    def check_shapes(self, source, student):
        owner = type(self).__name__
        if isinstance(source, list) or isinstance(student, list):
            raise ValueError(
                f"{owner} has one bank per network and reads one layer of each. Received: source "
                f"{source} and student {student}. Make one transfer, with a loss of its own, per "
                "pair of layers."
            )
        for shape in (source, student):
            functional.check_features(shape, owner)

    def make_layers(self, source, student):
        embeddings = [layers.Dense(self.dim, dtype="float32") for _ in range(2)]
        for embedding, shape in zip(embeddings, (source, student), strict=True):
            embedding.build((None, shape[-1]))
        banks = Banks(self.examples, self.dim, self.seed)
        banks.build()
        return [*embeddings, banks]

    def values(self, source, student, example_id):
        self.prepare(source, student)
        self._check_replicas()
        *embeddings, banks = self._layers
        rows, known = self._rows(example_id)
        own = [
            unit_vectors(embed(functional.pooled(features)))
            for embed, features in zip(embeddings, (source, student), strict=True)
        ]
        # Each network's embedding looks for itself in the other network's bank.
        stored = banks.read(banks.draw(rows, self.negatives))
        found = [
            scores(anchor, of_other, self.temperature)
            for anchor, of_other in zip(own, reversed(stored), strict=True)
        ]
        normalisers = banks.normalisers(found, keep=self.training)
        total = sum(
            noise_contrastive(one, log_z, self.examples)
            for one, log_z in zip(found, normalisers, strict=True)
        )
        if self.training:
            banks.write(rows, own, self.momentum)
        # A constant for the gradient, so that a stray id is seen and does no damage.
        return ops.where(known, total, math.nan)

    def _check_replicas(self):
        if steps.replicas() > 1:
            raise ValueError(
                f"'{self.name}' would have banks of its own on each replica. Expected one replica. "
                f"Received: {steps.replicas()}. Train without a strategy, or use a loss without a "
                "memory, such as `SimilarityPreserving`."
            )

    def _rows(self, example_id):
        """Rows of the banks, and whether the ids are among them."""
        ids = ops.reshape(ops.cast(example_id, "int32"), (-1,))
        rows = steps.check_rows(
            ids,
            self.examples,
            f"Expected example ids in 0 ... {self.examples - 1}, the rows of '{self.name}'. Make "
            "the loss with the number of training examples as `examples`.",
        )
        return rows, ops.equal(rows, ids)

    def get_config(self):
        names = ("examples", "negatives", "dim", "temperature", "momentum", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


class Banks(layers.Layer):
    """The stored embeddings of two networks, their normalisers, and what draws from them.

    A layer, so that a distiller tracks and saves it; it is never called.

    Args:
        examples: rows of a bank.
        dim: length of a row.
        seed: an integer, or None.
        name: the layer's name.
    """

    def __init__(self, examples, dim, seed=None, name=None):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.examples = examples
        self.dim = dim
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def build(self, shape=None):
        # Rows whose squared length is 1 on average.
        limit = math.sqrt(3 / self.dim)
        self.tables = [
            self._new_weight(
                name,
                (self.examples, self.dim),
                keras.initializers.RandomUniform(
                    -limit, limit, seed=None if self.seed is None else self.seed + offset
                ),
            )
            for offset, name in enumerate(("source", "student"))
        ]
        self.log_z = self._new_weight("log_normalisers", (2,), "zeros")
        # 1 once the normalisers are set, 0 before.
        self.started = self._new_weight("started", (), "zeros")
        self.built = True

    def _new_weight(self, name, shape, initializer):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype="float32",
            trainable=False,
            autocast=False,
        )

    def draw(self, rows, negatives):
        """`(batch, 1 + negatives)` rows: an example's own one first, then rows of others."""
        shape = (ops.shape(rows)[0], negatives)
        own = ops.expand_dims(rows, 1)
        others = keras.random.randint(
            shape, 0, self.examples - 1, dtype="int32", seed=self.generator
        )
        others = others + ops.cast(others >= own, "int32")
        return ops.concatenate([own, others], axis=1)

    def read(self, rows):
        """The embeddings of both networks in those rows, without gradient."""
        return [ops.stop_gradient(steps.read_rows(table, rows)) for table in self.tables]

    def normalisers(self, found, keep):
        """log Z of both networks: those of the first batch.

        Args:
            found: the scores of both networks.
            keep: whether this batch may be the first.
        """
        now = ops.stop_gradient(ops.stack([log_normaliser(one, self.examples) for one in found]))
        log_z = ops.where(self.started > 0, ops.convert_to_tensor(self.log_z), now)
        if keep:
            self.log_z.assign(log_z)
            self.started.assign(1.0)
        return log_z[0], log_z[1]

    def write(self, rows, embeddings, momentum):
        """Move the rows towards the embeddings of both networks."""
        for table, new in zip(self.tables, embeddings, strict=True):
            mixed = momentum * steps.read_rows(table, rows) + (1 - momentum) * new
            steps.write_rows(table, rows, ops.stop_gradient(unit_vectors(mixed)))
