"""What the feature losses have in common: pairs of layers, and layers of their own."""

import keras

from kdtoolkit import functional
from kdtoolkit.losses.base import TransferLoss, shapes_of
from kdtoolkit.steps import Stage, stage


def as_pairs(source, student, owner):
    """`[(source, student), ...]` from one of each or from two lists of equal length.

    Raises:
        ValueError: lists of different lengths, or a list and a single one.
    """
    lists = [isinstance(end, list) for end in (source, student)]
    if any(lists) and (not all(lists) or len(source) != len(student)):
        found = [f"{len(e)} layers" if isinstance(e, list) else "one" for e in (source, student)]
        raise ValueError(
            f"{owner} compares layers pair by pair and expects as many from the source as from "
            f"the student. Received: source_layer with {found[0]}, student_layer with {found[1]}"
        )
    return list(zip(source, student, strict=True)) if all(lists) else [(source, student)]


class LayeredLoss(TransferLoss):
    """A loss that may own layers. They are made once, for the shapes of one transfer.

    A subclass fills in `make_layers`; its `values` begins with `self.prepare(source, student)`.
    """

    def __init__(self, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self._layers = None
        self._shapes = None
        self._connected = False

    @property
    def layers(self):
        return [layer for layer in self._layers or [] if layer is not None]

    @property
    def training(self):
        """Whether the loss's own layers run in training mode: everywhere but in `evaluate`."""
        return stage() is not Stage.EVALUATE

    def make_layers(self, source, student):
        """The loss's own layers, built, for these shapes (tuples, or lists of them)."""
        return []

    def build(self, source, student):
        if self._connected and self.layers:
            raise ValueError(
                f"'{self.name}' has layers of its own and serves one transfer. Expected a loss "
                f"object for each. Received: the same for shapes {self._shapes} and "
                f"{(source, student)}"
            )
        self._connected = True
        self._make(source, student)

    def _make(self, source, student):
        if self._shapes != (source, student):
            self._layers = self.make_layers(source, student)
            self._shapes = (source, student)

    def prepare(self, source, student):
        """Check and build from tensors, where the loss is called without a transfer.

        Its own layers are then trained by nobody but the caller: `model.compile(loss=...)` doesn't
        know them.
        """
        shapes = tuple(shapes_of(end) for end in (source, student))
        if self._layers is None:
            self.check_shapes(*shapes)
            self._make(*shapes)
        elif self.layers and not _fit(self._shapes, shapes):
            raise ValueError(
                f"'{self.name}' has layers of its own, made for features of the shapes "
                f"{self._shapes}. Received: {shapes}. Make a loss for each pair of shapes"
            )


class FeatureLoss(LayeredLoss):
    """A loss between a layer of the source and one of the student, or several such pairs.

    Pairs add up. A subclass fills in `pair_values`, and where it needs them `check_pair` and
    `make_layer`.
    """

    #: Kinds of features that the loss reads, see `functional.check_features`.
    kinds = ("vectors", "tokens", "maps")

    def check_shapes(self, source, student):
        for pair in as_pairs(source, student, type(self).__name__):
            self.check_pair(*pair)

    def check_pair(self, source, student):
        """Raise a ValueError if these shapes (tuples) can never be compared."""
        for shape in (source, student):
            functional.check_features(shape, type(self).__name__, self.kinds)

    def make_layers(self, source, student):
        pairs = as_pairs(source, student, type(self).__name__)
        return [self.make_layer(*pair) for pair in pairs]

    def make_layer(self, source, student):
        """The loss's own layer for one pair of shapes, built; None (default) without one."""
        return

    def values(self, source, student):
        self.prepare(source, student)
        total = 0.0
        pairs = as_pairs(source, student, type(self).__name__)
        # Without layers one loss may serve transfers of other lengths.
        layers = self._layers if self.layers else [None] * len(pairs)
        for layer, pair in zip(layers, pairs, strict=True):
            total = total + self.pair_values(*map(functional.at_least_float32, pair), layer)
        return total

    def pair_values(self, source, student, layer):
        """One value per example, `(batch,)`.

        Args:
            source, student: features of one pair, at least float32.
            layer: what `make_layer` made for this pair.
        """
        raise NotImplementedError


def _fit(built, given):
    built, given = (keras.tree.flatten(list(shapes)) for shapes in (built, given))
    return len(built) == len(given) and all(
        None in pair or pair[0] == pair[1] for pair in zip(built, given, strict=True)
    )
