"""The examples that a teacher speaks about, from data of several kinds."""

import reprlib

import keras
import numpy as np

from kdtoolkit.cache.fingerprints import checksums
from kdtoolkit.data.keys import EXAMPLE_ID, EXAMPLE_VIEW, has_ids, is_arrays, is_tf_dataset, strip


def examples_of(data, examples, views, batch_size):
    """What goes through all examples in all views.

    Args:
        data, examples, views, batch_size: as given to `kd.cache_teacher`.

    Raises:
        TypeError: data of another kind.
        ValueError: data that doesn't say how many examples there are, that has none, or another
            number.
    """
    if hasattr(data, "view") and hasattr(data, "examples"):
        found = _Indexed(data.view, data.examples, getattr(data, "views", None) or 1, batch_size)
        return _agreeing(found, examples, views)
    if is_arrays(data):
        return _agreeing(_of_arrays(data, batch_size), examples, views)
    if isinstance(data, keras.utils.PyDataset) or is_tf_dataset(data):
        examples = examples or getattr(data, "examples", None)
        if examples is None:
            raise ValueError(
                f"A {type(data).__name__} doesn't say how many examples it holds. Expected "
                "`examples=`. Received: examples=None"
            )
        return _Stream(data, examples, views)
    raise TypeError(
        "A teacher is cached for arrays, a kd.data.ArrayPipeline, a keras.utils.PyDataset or a "
        f"tf.data.Dataset. Received: {type(data).__name__}"
    )


def _of_arrays(data, batch_size):
    if has_ids(data):
        data = _by_id(data)
    lengths = {len(leaf) for leaf in keras.tree.flatten(data)}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"All inputs must have the same length above 0. Received: {lengths}")
    return _Indexed(_Rows(data), lengths.pop(), 1, batch_size)


def _agreeing(found, examples, views):
    """Examples that say themselves how many there are, if nothing else was said."""
    if examples not in (None, found.examples) or views not in (1, found.views):
        raise ValueError(
            f"The data have {found.examples} examples in {found.views} views, and say so "
            f"themselves. Leave `examples` and `views` out. Received: examples={examples}, "
            f"views={views}"
        )
    return found


class _Rows:
    """Rows of arrays, which have one view."""

    def __init__(self, data):
        self.data = data

    def __call__(self, rows, view=0):
        return keras.tree.map_structure(lambda leaf: np.asarray(leaf)[rows], self.data)


def _by_id(data):
    """Arrays with ids of their own in the order of these."""
    inputs, ids = strip(data)
    ids = np.asarray(ids)
    if not np.array_equal(np.sort(ids), np.arange(len(ids))):
        raise ValueError(
            f"A cache has a row for each id from 0 on. Expected the ids 0 to {len(ids) - 1}, each "
            f"once. Received: {ids.min()} to {ids.max()}"
        )
    return _Rows(inputs)(np.argsort(ids))


class _Examples:
    """What both kinds share.

    Args:
        examples, views: int.
    """

    def __init__(self, examples, views):
        self.examples, self.views = int(examples), int(views)
        if self.examples < 1 or self.views < 1:
            raise ValueError(
                f"There must be examples and views. Received: examples={examples}, views={views}"
            )

    @property
    def rows(self):
        """Number of rows of the cache."""
        return self.examples * self.views

    def lacking(self, missing, part):
        """How many rows of a part `missing` says are missing."""
        ids = self.ids_of(part)
        return sum(int(missing(view * self.examples + ids).sum()) for view in range(self.views))


class _Indexed(_Examples):
    """Examples that can be had in any order: `inputs(rows, view)`."""

    def __init__(self, inputs, examples, views, batch_size):
        super().__init__(examples, views)
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ValueError(f"`batch_size` must be an integer >= 1. Received: {batch_size!r}")
        self._inputs, self._batch_size = inputs, batch_size

    def first(self):
        """A few inputs."""
        return self._inputs(np.arange(min(2, self.examples)), 0)

    def sample(self):
        """Checksums of some inputs, by which the data are known again."""
        some = np.unique(np.linspace(0, self.examples - 1, 8).astype(int))
        parts = [checksums(self._inputs(some, view)) for view in {0, self.views - 1}]
        return [int(value) for value in np.concatenate(parts)]

    def known(self):
        """`(rows, inputs)` of all examples as they are in the first view."""
        for start in range(0, self.examples, self._batch_size):
            rows = np.arange(start, min(start + self._batch_size, self.examples))
            yield rows, self._inputs(rows, 0)

    def some(self, count):
        """`(rows, inputs)` of examples drawn at random."""
        generator = np.random.default_rng(0)
        view = int(generator.integers(self.views))
        rows = np.sort(generator.permutation(self.examples)[:count])
        return view * self.examples + rows, self._inputs(rows, view)

    def ids_of(self, part):
        """The ids of one part `(i, n)` of the examples."""
        return np.array_split(np.arange(self.examples), part[1])[part[0]]

    def batches(self, missing, part):
        """`(rows, inputs)` of all that is missing, of one part of the examples.

        Args:
            missing: function of rows that says which are.
            part: `(i, n)`.
        """
        own = self.ids_of(part)
        for view in range(self.views):
            rows = view * self.examples + own
            left = own[missing(rows)] if len(rows) else own
            for start in range(0, len(left), self._batch_size):
                some = left[start : start + self._batch_size]
                yield view * self.examples + some, self._inputs(some, view)


class _Stream(_Examples):
    """Examples in the order in which a data set gives them."""

    def __init__(self, data, examples, views):
        super().__init__(examples, views)
        self._data = data

    def first(self):
        """A few inputs."""
        return self.some(2)[1]

    def sample(self):
        """Nothing: another pass may begin with other examples."""
        return None

    def some(self, count):
        """`(rows, inputs)` of the examples with which another pass begins."""
        for ids, views, inputs in self._all():
            few = keras.tree.map_structure(lambda leaf: leaf[:count], inputs)
            return (views * self.examples + ids)[:count], few
        raise ValueError(f"The data have no batch. Expected all {self.examples} examples")

    def known(self):
        """Nothing: that would be a pass over the data."""
        return ()

    def ids_of(self, part):
        """The ids of one part `(i, n)` of the examples."""
        return np.arange(part[0], self.examples, part[1])

    def batches(self, missing, part):
        """As of `_Indexed`. Batches in which nothing is missing aren't read."""
        for ids, views, inputs in self._all():
            rows = views * self.examples + ids
            # The same example may come twice, in a batch or in a repeated data set.
            first = np.zeros(len(rows), bool)
            first[np.unique(rows, return_index=True)[1]] = True
            wanted = np.flatnonzero(first & missing(rows) & (ids % part[1] == part[0]))
            if len(wanted):
                some = keras.tree.map_structure(lambda leaf, w=wanted: np.asarray(leaf)[w], inputs)
                yield rows[wanted], some

    def _all(self):
        for batch in self._batches():
            x = batch[0] if isinstance(batch, tuple) else batch
            if not has_ids(x):
                raise ValueError(
                    "A cache is written by example id. Expected inputs from `kd.data.with_ids`, or "
                    f"a PyDataset whose inputs are dicts with '{EXAMPLE_ID}'"
                )
            inputs, ids = strip(x)
            ids = np.asarray(ids).astype("int64")
            views = np.asarray(x.get(EXAMPLE_VIEW, np.zeros_like(ids))).astype("int64")
            self._check("example id", ids, self.examples)
            self._check("view", views, self.views)
            yield ids, views, keras.tree.map_structure(np.asarray, inputs)

    def _batches(self):
        if is_tf_dataset(self._data):
            endless, batches = int(self._data.cardinality()) == -1, iter(self._data)
        else:
            count = self._data.num_batches
            endless, batches = count is None, (self._data[i] for i in range(count or 0))
        if endless:
            raise ValueError("The data set repeats for ever. Expected one pass, without repeat")
        return batches

    def _check(self, what, numbers, count):
        if numbers.ndim != 1 or (numbers.size and not 0 <= numbers.min() <= numbers.max() < count):
            raise ValueError(
                f"Expected a batch with one {what} for each example, from 0 to {count - 1}. "
                f"Received: {reprlib.repr(numbers.tolist())}"
            )
