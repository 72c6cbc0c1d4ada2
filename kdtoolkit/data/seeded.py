"""A `tf.data.Dataset` that is built anew for each epoch, from a seed."""

import numpy as np

from kdtoolkit.data.keys import is_tf_dataset, is_whole


def epoch_dataset(build, *, seed=0, batches=None):
    """A `tf.data.Dataset` whose batches are a function of `(seed, epoch)`.

    At the start of a pass TensorFlow runs the graph of `build` for the epoch it is; the batches
    then come as from any `tf.data.Dataset`, without Python. `tf.data`'s own
    `shuffle(reshuffle_each_iteration=True)` goes through orders that a new process begins again.

    `build` gets one number from 0 to 2^63 - 1 that stands for the seed and the epoch, a hash of
    both, and gives it to everything that is random: `shuffle(size, seed=number)`, and the stateless
    operations, which take pairs, `tf.image.stateless_random_crop(..., seed=[number, id])` with
    another `id` for each example (`with_ids`, `enumerate`). What isn't seeded by it is the same in
    each epoch. `tf.random.set_seed` and `keras.utils.set_random_seed` change nothing. (The epoch
    itself would not do: `shuffle` takes seeds modulo 2^31 - 1, and a run with another seed must not
    have the orders of this one a few epochs later.)

    Make the source outside of `build`, since an array inside becomes a constant of its graph.
    `map`, `batch` and `prefetch` go inside: a data set made out of the result can't be told the
    epoch.

    Give the epochs of `fit` with the callback `FollowEpochs`. `steps_per_epoch` must be left out:
    Keras would cut a pass in two. It works on the JAX backend too, and under `MirroredStrategy`.

    Args:
        build: function of an int64 scalar tensor that returns the `tf.data.Dataset` of the batches
            of one epoch. Called twice, and never again.
        seed: int >= 0. Defaults to 0.
        batches: int >= 1, the number of batches of every epoch, where `tf.data` doesn't know it, as
            after `filter` or from a generator. None (default) asks the data set of epoch 0.

    Returns:
        A `tf.data.Dataset` of known cardinality. An epoch with another number of batches ends with
        TensorFlow's error.

    Raises:
        TypeError: `build` isn't a function, or doesn't return a `tf.data.Dataset`.
        ValueError: data without an end or a batch; an unknown number of batches without `batches`,
            or another one; numbers out of range.

    Example:
        >>> import tensorflow as tf, kdtoolkit as kd
        >>> examples = tf.data.Dataset.range(6)
        >>> def build(number):
        ...     return examples.shuffle(6, seed=number).batch(3)
        >>> train = kd.data.epoch_dataset(build)
        >>> for epoch in (0, 1, 0):
        ...     train.set_epoch(epoch)
        ...     print([batch.tolist() for batch in train.as_numpy_iterator()])
        [[5, 2, 4], [1, 3, 0]]
        [[5, 2, 1], [0, 4, 3]]
        [[5, 2, 4], [1, 3, 0]]
    """
    import tensorflow as tf

    if not (is_whole(seed) and seed >= 0):
        raise ValueError(f"`seed` must be an integer >= 0. Received: seed={seed!r}")
    clock = _Clock(seed)

    def of_epoch(_):
        # Acts on the graph of this function alone: the seed of the program would be part of the
        # seed of `shuffle` otherwise.
        tf.random.set_seed(1)
        # A function of Python sits beside no device, so that it works wherever a variable doesn't:
        # with an accelerator, and in the scope of a strategy. It is called once per pass.
        number = tf.numpy_function(clock.number, [], tf.int64)
        return build(tf.reshape(number, []))

    batches = _number_of_batches(_built(build, tf.constant(clock.number())), batches)
    dataset = tf.data.Dataset.range(1).flat_map(of_epoch)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(batches))
    dataset.set_epoch = clock.set_epoch
    return dataset


class _Clock:
    """Knows the epoch, and the number that stands for it."""

    def __init__(self, seed):
        self._seed, self._epoch = int(seed), 0

    def set_epoch(self, epoch):
        """Tells the epoch of the next pass, an int >= 0."""
        self._epoch = int(epoch)

    def number(self):
        """A hash of seed and epoch, the same on every machine; an int64 >= 0."""
        state = np.random.SeedSequence([self._seed, self._epoch]).generate_state(1, "uint64")
        return np.int64(state[0] >> np.uint64(1))


def _built(build, number):
    if not callable(build):
        raise TypeError(
            "`build` must be a function that gets a number and returns a tf.data.Dataset. "
            f"Received: {type(build).__name__}. Expected `epoch_dataset(lambda number: "
            "dataset.shuffle(10_000, seed=number).batch(128))`"
        )
    dataset = build(number)
    if not is_tf_dataset(dataset):
        raise TypeError(
            f"`build` must return a tf.data.Dataset. Received: {type(dataset).__name__}"
        )
    return dataset


def _number_of_batches(dataset, given):
    if given is not None and not (is_whole(given) and given >= 1):
        raise ValueError(f"`batches` must be an integer >= 1, or None. Received: {given!r}")
    known = int(dataset.cardinality())
    if known == -1:
        raise ValueError(
            "`build` must return the batches of one epoch, and these have no end. Leave "
            "`.repeat()` out, or end them with `.take(batches)`"
        )
    if known == -2:
        if given is None:
            raise ValueError(
                "`tf.data` doesn't know how many batches an epoch has, as after `filter` or from a "
                "generator. Expected `batches=`. Received: batches=None"
            )
        return int(given)
    if known == 0 or given not in (None, known):
        raise ValueError(
            f"The data set of epoch 0 has {known} batches. Expected at least one, and `batches` "
            f"left out or the same. Received: batches={given}"
        )
    return known
