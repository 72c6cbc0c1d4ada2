"""Batches from arrays in memory, shuffled, augmented and mixed reproducibly."""

import math

import keras
import numpy as np

from kdtoolkit.data import checks, epochs
from kdtoolkit.data.augment import Augmentations
from kdtoolkit.data.keys import EXAMPLE_VIEW, with_ids
from kdtoolkit.data.mixing import check_labels, checked_mixers, mix_batch, one_hot


class ArrayPipeline(keras.utils.PyDataset):
    """Shuffled, augmented batches of arrays, on every backend.

    The order of the examples is a function of `(seed, epoch)`, and the augmentation of an example
    a function of `(seed, epoch, its row)`, for a given number of examples: in one epoch,
    `pipeline[i]` is the same batch whenever it is asked for.

    With `overlap=True` batches are for distillation from the last mini-batch (DLB): the first half
    of a batch is the second half of the batch before, augmented anew, and the second half is new.
    The examples of the first batch of an epoch are all new; no batch reaches into another epoch.
    So each example is in two successive batches, except for the first half of the first batch and
    the second half of the last batch, which come once. An epoch has `2 * examples / batch_size - 1`
    batches; if the last has fewer new examples than half, `drop_remainder` leaves it out. The order
    of examples and the augmentation of their first visits are those without overlap; the second
    visit has draws of its own, a function of the same `(seed, epoch, row)`. Source: Shen et al.,
    2022, arXiv:2203.16172; the first and the last batch are this library's choice.

    The attribute `epoch` starts at 0, can be assigned, and grows with every pass that Keras makes.
    Keras reports an end of a pass at the start of `fit` too, so counting alone skips an epoch
    there. With the callback `FollowEpochs(pipeline)` the epochs are exactly those of `fit`,
    `initial_epoch` included, and a run that is resumed sees what it would have seen.

    With `mix` the examples of a batch are mixed with each other, after `augment`. Because it
    happens in the data, teacher and student see the same mixed images. Example i of a batch is
    mixed with example i - 1, the first with the last, and a batch of one with itself. How a batch
    is mixed is a function of `(seed, epoch, its index)`, and changes neither the order nor the
    augmentation. Labels are mixed in the same shares, so they must be `(examples, classes)`, or
    class numbers with `num_classes`; they become float32. The label loss is then
    `CategoricalCrossentropy(from_logits=True)`, and validation labels must be one-hot as well
    (`keras.utils.to_categorical`). Without labels only the images are mixed. Images of 8- or 16-bit
    integers become float32. A `tf.data.Dataset` is mixed by `keras.layers.MixUp` and
    `keras.layers.CutMix` in `map`, after `batch`.

    With `views=k` an example has k augmented views: in epoch e it is augmented as in epoch e mod k.
    Batches then tell the example ids and the view (`"example_view"`), so that a teacher's outputs
    can be stored for each view (`kd.cache_teacher`). The order goes on changing with the epoch.

    With `shard=(index, count)` each batch is one of `count` equal contiguous parts of the batch of
    `batch_size` examples: the data of one process of several. Order, augmentation and mixing are
    those of the whole, so that the parts of all processes, put together, are the batch of a
    pipeline without. `batch_size` stays the size of the whole. With `mix` a process makes the whole
    batch and keeps its part.

    Pass `shuffle=False` to `fit`: the pipeline shuffles the examples by itself, and Keras would
    put the finished batches in another order of its own. `steps_per_epoch` must be left out.

    Args:
        x: NumPy array `(examples, ...)`; for several inputs, a dict, list or tuple of them, of one
            length. A list becomes a tuple, which Keras reads in the same way: on TensorFlow it
            takes no lists from a `PyDataset`.
        y: array `(examples, ...)`, such a structure for several outputs, or None without labels.
        batch_size: int >= 1; even with `overlap`, a multiple of `count` with `shard`.
        sample_weight: array `(examples,)`, a structure like `y`, or None. Needs `y`.
        augment: an `Augmentation` such as `FlipShift()`, a list of them, which act one after the
            other, or None. For a single array `x`.
        mix: a `Mixer` such as `Mixup()`, or a list of them, of which each batch takes one with
            equal chances, or None.
        num_classes: int >= 2: class numbers `y` become one-hot, float32 `(batch, num_classes)`,
            with `mix` or without. None leaves labels as they are.
        shuffle: bool. False keeps the order of the arrays. Defaults to True.
        seed: int >= 0. Defaults to 0.
        drop_remainder: bool. True leaves out the last batch if it is smaller, so that all batches
            have one shape (JAX and `jit_compile` then compile once).
        example_ids: bool. True gives inputs as `{"inputs": x, "example_id": rows}`, see `with_ids`.
        overlap: bool. True repeats half of each batch in the next one. Defaults to False.
        views: int >= 1, number of augmented views of an example, or None (default) for new ones in
            each epoch. Gives example ids as well.
        shard: `(index, count)`, which part of each batch, 0 <= index < count. Defaults to (0, 1),
            the whole.

    Raises:
        ValueError: for arrays of different lengths, a batch size below 1, an odd one with
            `overlap`, or no batch at all; for labels that aren't class numbers below `num_classes`;
            for `mix` with other labels than said, `sample_weight`, `example_ids` or `overlap`;
            for `views` without `augment`, or with `mix` or `overlap`; for several inputs or outputs
            with `augment`, `mix` or `num_classes`; for a `shard` that isn't one, with `overlap`, or
            for batches that can't be cut in `count` equal parts.
        TypeError: if `x` is not made of NumPy arrays, or a list or tuple with `example_ids`; if
            `augment` or `mix` does not have its two methods; later, for images that float32 doesn't
            hold exactly, with `mix`.

    Example:

    ```python
    train = kdtoolkit.data.ArrayPipeline(
        data.x_train, data.y_train, batch_size=128, augment=kdtoolkit.data.FlipShift(), seed=0
    )
    follow = kdtoolkit.data.FollowEpochs(train)
    model.fit(train, shuffle=False, callbacks=[follow], validation_data=(data.x_val, data.y_val))
    ```
    """

    def __init__(
        self,
        x,
        y=None,
        *,
        batch_size,
        sample_weight=None,
        augment=None,
        mix=None,
        num_classes=None,
        shuffle=True,
        seed=0,
        drop_remainder=False,
        example_ids=False,
        overlap=False,
        views=None,
        shard=(0, 1),
    ):
        super().__init__()
        self.x, self.y, self.sample_weight = checks.arrays(x, y, sample_weight)
        checks.batches(batch_size, overlap)
        checks.augmentation(augment)
        checks.views(views, augment, mix, overlap)
        checks.single(self.x, self.y, augment, mix, num_classes)
        checks.shard(shard, self.examples, batch_size, overlap, drop_remainder)
        if example_ids:
            # Refuses inputs without names, and taken names.
            with_ids(self._rows(self.x, slice(0)))
        self.batch_size = batch_size
        self.augment = Augmentations(augment) if isinstance(augment, list | tuple) else augment
        self.mix = checked_mixers(mix, sample_weight, example_ids, overlap)
        check_labels(self.y, num_classes, mixed=bool(self.mix))
        self.num_classes = num_classes
        self.shuffle = shuffle
        self.seed = seed
        self.drop_remainder = drop_remainder
        self.example_ids = example_ids or views is not None
        self.views = views
        self.overlap = overlap
        self.shard = tuple(shard)
        # How many new examples a batch brings.
        self._step = batch_size // 2 if overlap else batch_size
        self.epoch = 0
        self._plan = (None, None, None)
        self._viewed = (None, None)
        if not len(self):
            raise ValueError(
                f"There is no full batch of {batch_size} in {self.examples} examples. "
                "Use a smaller `batch_size` or `drop_remainder=False`"
            )

    @property
    def examples(self):
        """How many examples the ids number: they go from 0 to `examples - 1`."""
        return len(keras.tree.flatten(self.x)[0])

    def __len__(self):
        batches = (self.examples - self.batch_size + self._step) / self._step
        return max(0, math.floor(batches) if self.drop_remainder else math.ceil(batches))

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)}")
        epoch, order, draws = self._epoch_plan()
        start = index * self._step
        rows = order[start : start + self.batch_size]
        part = self._part(len(rows))
        if not self.mix:
            rows = rows[part]
        x = self._rows(self.x, rows)
        if self.augment is not None:
            chosen = draws[0][rows]
            if self.overlap and index:
                chosen[: self._step] = draws[1][rows[: self._step]]
            x = self.augment.apply(x, chosen)
        if self.example_ids:
            x = with_ids(x, rows)
        if self.views is not None:
            x[EXAMPLE_VIEW] = np.full(len(rows), epoch % self.views, "int32")
        given = (self.y, self.sample_weight)
        labels = [self._rows(each, rows) for each in given if each is not None]
        if self.num_classes is not None:
            labels[0] = one_hot(labels[0], self.num_classes)
        if self.mix:
            # Streams 0 to 2 belong to the order and to the draws of an epoch.
            generator = np.random.default_rng([self.seed, epoch, 3, index])
            # A part has the partners that its examples have in the whole batch.
            return tuple(each[part] for each in mix_batch(self.mix, generator, x, *labels))
        return (x, *labels)

    def view(self, rows, view=0):
        """Examples as they are in a view, without ids and labels.

        Args:
            rows: int array, the examples.
            view: from 0 to `views` - 1; 0 without augmentation.

        Raises:
            ValueError: an example looks different in each epoch; no such view.
        """
        views = self.views or 1
        if not 0 <= view < views:
            raise ValueError(f"This pipeline has views from 0 to {views - 1}. Received: {view}")
        if self.augment is None and not self.mix:
            return self._rows(self.x, rows)
        if self.views is None:
            raise ValueError(
                "This pipeline augments or mixes each example anew in every epoch, so there is no "
                "end of views to store. Expected `ArrayPipeline(..., views=k)` with `augment` and "
                "without `mix`, or no augmentation. Otherwise teach with the network itself"
            )
        # Whoever goes through a view asks for it batch by batch.
        if self._viewed[0] != (self.seed, view):
            self._viewed = ((self.seed, view), self._draws(view, 1))
        return self.augment.apply(self.x[rows], self._viewed[1][rows])

    def set_epoch(self, epoch):
        """Tells the epoch of the next pass, an int >= 0."""
        self.epoch = epoch

    def on_epoch_end(self):
        self.epoch += 1

    def _epoch_plan(self):
        """The epoch, and its order and draws, one set per visit, made once per epoch.

        Draws are made for all rows in the order of the arrays, and not batch by batch, so that
        they do not depend on the order or on the batch size.
        """
        epoch = self.epoch
        planned, order, draws = self._plan
        if planned != epoch:
            order = epochs.order(self.examples, self.seed, epoch, self.shuffle)
            if self.augment is not None:
                view = epoch if self.views is None else epoch % self.views
                draws = [self._draws(view, visit) for visit in ((1, 2) if self.overlap else (1,))]
            # One assignment, so that a reader in another thread never sees half a plan.
            self._plan = (epoch, order, draws)
        return epoch, order, draws

    def _draws(self, view, visit):
        generator = np.random.default_rng([self.seed, view, visit])
        return self.augment.draw(generator, self.examples)

    def _part(self, size):
        """The part of a batch that is this shard's."""
        index, count = self.shard
        return slice(index * size // count, (index + 1) * size // count)

    @staticmethod
    def _rows(arrays, rows):
        return keras.tree.map_structure(lambda array: array[rows], arrays)
