"""Batches from arrays in memory, shuffled, augmented and mixed reproducibly."""

import math

import keras
import numpy as np

from kdtoolkit.data.augment import Augmentation, Augmentations
from kdtoolkit.data.keys import EXAMPLE_VIEW, is_whole, with_ids
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

    Pass `shuffle=False` to `fit`: the pipeline shuffles the examples by itself, and Keras would
    put the finished batches in another order of its own. `steps_per_epoch` must be left out.

    Args:
        x: NumPy array `(examples, ...)`.
        y: array `(examples, ...)`, or None without labels.
        batch_size: int >= 1; even with `overlap`.
        sample_weight: array `(examples,)`, or None. Needs `y`.
        augment: an `Augmentation` such as `FlipShift()`, a list of them, which act one after the
            other, or None.
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

    Raises:
        ValueError: for arrays of different lengths, a batch size below 1, an odd one with
            `overlap`, or no batch at all; for labels that aren't class numbers below `num_classes`;
            for `mix` with other labels than said, `sample_weight`, `example_ids` or `overlap`;
            for `views` without `augment`, or with `mix` or `overlap`.
        TypeError: if `x` is not a NumPy array, or `augment` or `mix` does not have its two methods;
            later, for images that float32 doesn't hold exactly, with `mix`.

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
    ):
        super().__init__()
        _check(x, y, sample_weight, batch_size, augment, overlap)
        _check_views(views, augment, mix, overlap)
        self.x = x
        self.y = None if y is None else np.asarray(y)
        self.sample_weight = None if sample_weight is None else np.asarray(sample_weight)
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
        # How many new examples a batch brings.
        self._step = batch_size // 2 if overlap else batch_size
        self.epoch = 0
        self._plan = (None, None, None)
        self._viewed = (None, None)
        if not len(self):
            raise ValueError(
                f"There is no full batch of {batch_size} in {len(x)} examples. "
                "Use a smaller `batch_size` or `drop_remainder=False`"
            )

    @property
    def examples(self):
        """How many examples the ids number: they go from 0 to `examples - 1`."""
        return len(self.x)

    def __len__(self):
        batches = (len(self.x) - self.batch_size + self._step) / self._step
        return max(0, math.floor(batches) if self.drop_remainder else math.ceil(batches))

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)}")
        epoch, order, draws = self._epoch_plan()
        start = index * self._step
        rows = order[start : start + self.batch_size]
        x = self.x[rows]
        if self.augment is not None:
            chosen = draws[0][rows]
            if self.overlap and index:
                chosen[: self._step] = draws[1][rows[: self._step]]
            x = self.augment.apply(x, chosen)
        if self.example_ids:
            x = with_ids(x, rows)
        if self.views is not None:
            x[EXAMPLE_VIEW] = np.full(len(rows), epoch % self.views, "int32")
        labels = [part[rows] for part in (self.y, self.sample_weight) if part is not None]
        if self.num_classes is not None:
            labels[0] = one_hot(labels[0], self.num_classes)
        if self.mix:
            # Streams 0 to 2 belong to the order and to the draws of an epoch.
            generator = np.random.default_rng([self.seed, epoch, 3, index])
            return mix_batch(self.mix, generator, x, *labels)
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
            return self.x[rows]
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
            count = len(self.x)
            order = np.arange(count)
            if self.shuffle:
                order = np.random.default_rng([self.seed, epoch, 0]).permutation(count)
            if self.augment is not None:
                view = epoch if self.views is None else epoch % self.views
                draws = [self._draws(view, visit) for visit in ((1, 2) if self.overlap else (1,))]
            # One assignment, so that a reader in another thread never sees half a plan.
            self._plan = (epoch, order, draws)
        return epoch, order, draws

    def _draws(self, view, visit):
        generator = np.random.default_rng([self.seed, view, visit])
        return self.augment.draw(generator, len(self.x))


class FollowEpochs(keras.callbacks.Callback):
    """Gives a pipeline the epoch that `fit` is in, so that a resumed run repeats nothing.

    Args:
        pipeline: `ArrayPipeline`, the training data of this `fit`.

    Example:

    ```python
    train = kdtoolkit.data.ArrayPipeline(x, y, batch_size=128)
    follow = kdtoolkit.data.FollowEpochs(train)
    model.fit(train, shuffle=False, initial_epoch=3, epochs=5, callbacks=[follow])
    ```
    """

    def __init__(self, pipeline):
        super().__init__()
        self.pipeline = pipeline

    def on_epoch_begin(self, epoch, logs=None):
        self.pipeline.epoch = epoch


def _check_views(views, augment, mix, overlap):
    if views is None:
        return
    if not is_whole(views) or views < 1:
        raise ValueError(f"`views` must be an integer >= 1, or None. Received: views={views!r}")
    if augment is None or mix is not None or overlap:
        raise ValueError(
            "`views` numbers the augmented views of single examples. Expected `augment`, and "
            "neither `mix` nor `overlap`. Without augmentation there is one view, leave `views` out"
        )


def _check(x, y, sample_weight, batch_size, augment, overlap):
    if not isinstance(x, np.ndarray):
        raise TypeError(f"`x` must be one NumPy array. Received: {type(x).__name__}")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be 1 or more. Received: batch_size={batch_size}")
    if overlap and batch_size % 2:
        raise ValueError(
            "`batch_size` must be even with `overlap=True`, which repeats half of each batch. "
            f"Received: batch_size={batch_size}"
        )
    if sample_weight is not None and y is None:
        raise ValueError("`sample_weight` weighs the loss of labels `y`, but `y` is None.")
    for name, part in (("y", y), ("sample_weight", sample_weight)):
        if part is not None and len(part) != len(x):
            raise ValueError(
                f"`{name}` must be as long as `x`. Received: {len(part)} and {len(x)} examples"
            )
    parts = augment if isinstance(augment, list | tuple) else [augment]
    for part in parts if augment is not None else []:
        # A class has the methods too: `ZeroPixels` for `ZeroPixels()`.
        if isinstance(part, type) or not isinstance(part, Augmentation):
            raise TypeError(
                "`augment` must have the methods `draw` and `apply`, as `kdtoolkit.data.FlipShift` "
                f"has. Received: {part!r}. Other Keras layers belong in the model"
            )
