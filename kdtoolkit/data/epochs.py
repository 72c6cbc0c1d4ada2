"""Data whose batches are a function of the epoch: how they are told which epoch it is.

Such data have a method `set_epoch(epoch)`, and promise that the batches of the next pass, and their
order, follow from their own seed and that epoch alone. `ArrayPipeline`, `ReorderedBatches` and the
data of `epoch_dataset` have one; a `keras.utils.PyDataset` of yours may have one as well. So a run
that goes on in another process sees what it would have seen.
"""

import keras
import numpy as np


def repeats(data):
    """Whether data promise to give the batches of an epoch again, and can be told the epoch.

    Args:
        data: what `fit` is given as `x`, of any kind. Arrays are batched by Keras, so they don't.

    Returns:
        A bool.
    """
    return callable(getattr(data, "set_epoch", None))


def set_epoch(data, epoch):
    """Tells data which epoch the next pass is.

    Args:
        data: data that repeat themselves, see `repeats`.
        epoch: int >= 0.

    Raises:
        TypeError: data that can't be told.
        ValueError: a `PyDataset` that several workers read.
    """
    _check(data)
    data.set_epoch(epoch)


def passing_on(data, source):
    """Data made out of others batch by batch: whoever tells them the epoch tells the source.

    Args:
        data: a `PyDataset` or a `tf.data.Dataset` made of `source`.
        source: data of any kind.

    Returns:
        `data`, with `set_epoch` where the source has it.
    """
    if repeats(source):
        data.set_epoch = source.set_epoch
    return data


def order(count, seed, epoch, shuffle):
    """The order of `count` things in an epoch, an int array.

    Args:
        count, seed, epoch: int >= 0.
        shuffle: bool. False keeps them as they are.
    """
    if not shuffle:
        return np.arange(count)
    # Other streams of `(seed, epoch)` belong to augmentation and mixing.
    return np.random.default_rng([seed, epoch, 0]).permutation(count)


class FollowEpochs(keras.callbacks.Callback):
    """Gives data the epoch that `fit` is in, so that a resumed run repeats nothing.

    Without it data that count passes would be an epoch ahead, since Keras reports an end of a pass
    at the start of `fit` too, and would start again at epoch 0 in another process.

    `steps_per_epoch` must be left out: Keras would cut a pass in two and go on with it in the next
    epoch. A `PyDataset` needs `fit(shuffle=False)`, or Keras puts its batches in an order of its
    own; and one worker, since with several an epoch may begin with batches of the one before.

    Args:
        data: the training data of this `fit`: `ArrayPipeline`, `ReorderedBatches`, what
            `epoch_dataset` returns, or any data with a method `set_epoch(epoch)` whose batches
            follow from the epoch alone.

    Raises:
        TypeError: data that can't be told the epoch.
        ValueError: a `PyDataset` with `workers` above 1 or `use_multiprocessing`.

    Example:
        >>> import numpy as np, kdtoolkit as kd
        >>> train = kd.data.ArrayPipeline(np.arange(8), batch_size=4)
        >>> follow = kd.data.FollowEpochs(train)  # fit(train, shuffle=False, callbacks=[follow])
        >>> follow.on_epoch_begin(3)
        >>> train.epoch
        3
    """

    def __init__(self, data):
        super().__init__()
        _check(data)
        self.data = data

    def on_epoch_begin(self, epoch, logs=None):
        set_epoch(self.data, epoch)


def _check(data):
    if not repeats(data):
        raise TypeError(
            "These data can't be told the epoch. Expected `kd.data.ArrayPipeline` instead of "
            "arrays, `kd.data.ReorderedBatches` around a `keras.utils.PyDataset`, "
            "`kd.data.epoch_dataset` for a `tf.data.Dataset`, with all its `map` and `batch` "
            "inside, or data with a method `set_epoch`. Received: "
            f"{type(data).__name__}"
        )
    # Keras (3.15) keeps what workers made ahead, also before `set_epoch`, and gives it out later.
    if getattr(data, "workers", 1) > 1 or getattr(data, "use_multiprocessing", False):
        raise ValueError(
            "With several workers Keras may begin an epoch with batches that were made for another "
            "one. Expected a PyDataset with workers=1 and use_multiprocessing=False, or a "
            f"tf.data.Dataset, see `kd.data.epoch_dataset`. Received: workers={data.workers}, "
            f"use_multiprocessing={data.use_multiprocessing}"
        )
