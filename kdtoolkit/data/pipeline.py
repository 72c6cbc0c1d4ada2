"""Batches from arrays in memory, shuffled, augmented and mixed reproducibly."""

import math

import keras
import numpy as np

from kdtoolkit.data.augment import Augmentation
from kdtoolkit.data.keys import with_ids
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

    Pass `shuffle=False` to `fit`: the pipeline shuffles the examples by itself, and Keras would
    put the finished batches in another order of its own. `steps_per_epoch` must be left out.

    Args:
        x: NumPy array `(examples, ...)`.
        y: array `(examples, ...)`, or None without labels.
        batch_size: int >= 1; even with `overlap`.
        sample_weight: array `(examples,)`, or None. Needs `y`.
        augment: an `Augmentation` such as `FlipShift()`, or None.
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

    Raises:
        ValueError: for arrays of different lengths, a batch size below 1, an odd one with
            `overlap`, or no batch at all; for labels that aren't class numbers below `num_classes`;
            for `mix` with other labels than said, `sample_weight`, `example_ids` or `overlap`.
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
    ):
        super().__init__()
        _check(x, y, sample_weight, batch_size, augment, overlap)
        self.x = x
        self.y = None if y is None else np.asarray(y)
        self.sample_weight = None if sample_weight is None else np.asarray(sample_weight)
        self.batch_size = batch_size
        self.augment = augment
        self.mix = checked_mixers(mix, sample_weight, example_ids, overlap)
        check_labels(self.y, num_classes, mixed=bool(self.mix))
        self.num_classes = num_classes
        self.shuffle = shuffle
        self.seed = seed
        self.drop_remainder = drop_remainder
        self.example_ids = example_ids
        self.overlap = overlap
        # How many new examples a batch brings.
        self._step = batch_size // 2 if overlap else batch_size
        self.epoch = 0
        self._plan = (None, None, None)
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
        labels = [part[rows] for part in (self.y, self.sample_weight) if part is not None]
        if self.num_classes is not None:
            labels[0] = one_hot(labels[0], self.num_classes)
        if self.mix:
            # Streams 0 to 2 belong to the order and to the draws of an epoch.
            generator = np.random.default_rng([self.seed, epoch, 3, index])
            return mix_batch(self.mix, generator, x, *labels)
        return (x, *labels)

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
                draws = [
                    self.augment.draw(np.random.default_rng([self.seed, epoch, visit]), count)
                    for visit in ((1, 2) if self.overlap else (1,))
                ]
            # One assignment, so that a reader in another thread never sees half a plan.
            self._plan = (epoch, order, draws)
        return epoch, order, draws


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
    if augment is not None and not isinstance(augment, Augmentation):
        raise TypeError(
            "`augment` must have the methods `draw` and `apply`, as `kdtoolkit.data.FlipShift` "
            f"has. Received: {type(augment).__name__}. Other Keras layers belong in the model"
        )
