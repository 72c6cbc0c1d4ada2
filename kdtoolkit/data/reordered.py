"""Batches of any `PyDataset` in an order of their own for each epoch."""

import keras

from kdtoolkit.data import epochs
from kdtoolkit.data.keys import is_whole


class ReorderedBatches(keras.utils.PyDataset):
    """The batches of another `PyDataset`, in an order that is a function of `(seed, epoch)`.

    Keras's own shuffling of a `PyDataset` can't be repeated after an interruption; this can. The
    batches stay whole: which examples share one is decided by the inner data set.

    What `dataset[i]` returns must depend on `i` alone: not on what was asked for before, and not on
    the epoch. So its `on_epoch_begin` and `on_epoch_end` aren't called. Augmentation that changes
    from epoch to epoch belongs in the model, in an `ArrayPipeline`, or in a `PyDataset` that has a
    method `set_epoch` itself.

    The attribute `epoch` starts at 0 and grows with every pass that Keras makes; give the epochs of
    `fit` with the callback `FollowEpochs`. Pass `shuffle=False` to `fit`, and leave
    `steps_per_epoch` out.

    Args:
        dataset: `keras.utils.PyDataset` with an end. Its attribute `examples` is taken over where
            it has one; its `workers` aren't, see `FollowEpochs`. Where reading is slow,
            `epoch_dataset` reads in parallel.
        shuffle: bool. False keeps its order. Defaults to True.
        seed: int >= 0. Defaults to 0.

    Raises:
        TypeError: something else than a `PyDataset`.
        ValueError: one without an end, without batches, or that repeats itself already; a seed that
            isn't an integer >= 0.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> class Files(keras.utils.PyDataset):
        ...     def __len__(self):
        ...         return 4
        ...     def __getitem__(self, index):
        ...         return np.full((2, 3), index), np.full(2, index)
        >>> train = kd.data.ReorderedBatches(Files(), seed=0)
        >>> [int(y[0]) for _, y in train]
        [2, 0, 1, 3]
        >>> train.set_epoch(1)
        >>> [int(y[0]) for _, y in train]
        [3, 0, 2, 1]
    """

    def __init__(self, dataset, shuffle=True, seed=0):
        _check(dataset, seed)
        super().__init__()
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self._plan = (None, None)
        if hasattr(dataset, "examples"):
            self.examples = dataset.examples

    def __len__(self):
        return self.dataset.num_batches

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)}")
        return self.dataset[int(self._order()[index])]

    def set_epoch(self, epoch):
        """Tells the epoch of the next pass, an int >= 0."""
        self.epoch = epoch

    def on_epoch_end(self):
        self.epoch += 1

    def _order(self):
        epoch = self.epoch
        planned, order = self._plan
        if planned != epoch:
            order = epochs.order(len(self), self.seed, epoch, self.shuffle)
            # One assignment, so that a reader in another thread never sees half a plan.
            self._plan = (epoch, order)
        return order


def _check(dataset, seed):
    if not isinstance(dataset, keras.utils.PyDataset):
        raise TypeError(
            f"`dataset` must be a keras.utils.PyDataset. Received: {type(dataset).__name__}"
        )
    if epochs.repeats(dataset):
        raise ValueError(
            "This data set has a method `set_epoch`, and so an order of its own for each epoch. "
            f"Give it to `fit` as it is. Received: {type(dataset).__name__}"
        )
    if not dataset.num_batches:
        received = "no end" if dataset.num_batches is None else "no batch"
        raise ValueError(
            "An order needs a known number of batches above 0. Expected a PyDataset with "
            f"`__len__`. Received: a {type(dataset).__name__} with {received}"
        )
    if not (is_whole(seed) and seed >= 0):
        raise ValueError(f"`seed` must be an integer >= 0. Received: seed={seed!r}")
