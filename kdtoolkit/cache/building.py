"""Lets a teacher speak once about each example, and writes down what it says."""

import reprlib

import keras
import numpy as np

from kdtoolkit import checks
from kdtoolkit.cache.contents import INPUTS_CRC, divergence
from kdtoolkit.cache.draft import Draft, size_of
from kdtoolkit.cache.examples import examples_of
from kdtoolkit.cache.fingerprints import checksums, description, fingerprint
from kdtoolkit.cache.source import CachedTeacher
from kdtoolkit.cache.speaker import Speaker
from kdtoolkit.locks import alone
from kdtoolkit.registry import expects

#: How many examples the finished cache is compared with the teacher on.
VERIFIED = 64


@expects(teacher="model", layers="several")
def cache_teacher(
    teacher,
    data,
    path,
    *,
    dtype="float32",
    top_k=None,
    layers=(),
    preprocess=None,
    examples=None,
    views=1,
    batch_size=256,
    part=(0, 1),
    verbose=1,
):
    """Writes what a teacher says about all training examples, for `kd.CachedTeacher` to read.

    The teacher runs once over the data, in inference mode, instead of in each step of each epoch.
    Where each example has several augmented views, it runs over all of them.

    What is stored is found by example id, see `kd.data.with_ids`; the order in which the data come
    doesn't matter. The files are written in `path.building`; at the end they are compared with the
    data and, on a sample of examples, with the teacher, and appear at `path` all at once.
    Interrupted, the same call goes on where it was. If `path` has the same teacher's cache of the
    same kind already, it is compared in the same way and used.

    Don't use it where no example comes twice in the same form: with endless random augmentation, or
    with mixup and CutMix. Fix a number of views then (`ArrayPipeline(views=)`,
    `kd.data.with_views`), or teach with the network.

    Source: see `kd.CachedTeacher`.

    Args:
        teacher: the `keras.Model`.
        data: what it speaks about, one of
            - arrays: an array `(examples, ...)` or a structure of them; ids are their rows;
            - a `kd.data.ArrayPipeline`, the one of the training; with `views` for augmentation;
            - a `keras.utils.PyDataset` or a batched `tf.data.Dataset` whose inputs have ids. One
              pass must hold all examples in all views.
        path: str or `Path`, a directory to be made.
        dtype: "float32" (default), which keeps every bit, or "float16".
        top_k: int from 1 to classes - 1: store the k largest log-probabilities and spread the rest
            of the probability evenly, for losses at low temperatures that read probabilities. None
            (default) stores all numbers.
        layers: paths of layers to store as well, such as `["features"]`; see `kd.tap`. A pooled
            layer is small, a feature map is not. For a teacher with several outputs their keys.
        preprocess: layer that makes the teacher's input from the data's, or None.
        examples, views: int, for data that doesn't know them: how many examples, ids from 0 to
            `examples` - 1, and views of each. Views default to 1.
        batch_size: int, examples that the teacher reads at once, of arrays and pipelines.
        part: `(i, n)`: this process writes the i-th of n parts of the examples, from 0. All n
            write at the same `path`, on one machine, at the same time or one after the other. Two
            processes with the same part wait for each other, but on Windows.
        verbose: 0 is silent; 1 (default) tells the size and shows progress with the time left.

    Returns:
        The `CachedTeacher`; None if other parts are still missing.

    Raises:
        TypeError: a teacher or data of another kind.
        ValueError: data without ids, or with ids out of range; a teacher that returns NaN,
            probabilities, or something else when it is asked again; a cache at `path`, or begun
            there, of another teacher, other data or other options; options out of range.
        OSError: not enough space for the whole cache; nothing is written then.

    Example:
        >>> import numpy as np, kdtoolkit as kd
        >>> teacher = kd.models.mlp((4,), 100, units=(8,), seed=0)
        >>> x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
        >>> cached = kd.cache_teacher(teacher, x, "strongest", top_k=10, dtype="float16", verbose=0)
        >>> cached.about["contents"]["top_k"], cached.views
        (10, 1)
    """
    known, part = fingerprint(teacher), _checked_part(part)
    source = examples_of(data, examples, views, batch_size)
    speaker = Speaker(teacher, layers, preprocess)
    contents = speaker.contents(source.first(), dtype, top_k)
    about = {
        "examples": source.examples,
        "views": source.views,
        "contents": contents.described(),
        "teacher": known,
        "preprocess": description(preprocess),
        "data": source.sample(),
    }
    work = _Work(speaker, contents, source, about, verbose)
    with alone(path, part):
        ready = work.ready(path)
        return work.run(path, part) if ready is None else ready


class _Work:
    """The building of one cache."""

    def __init__(self, speaker, contents, source, about, verbose):
        self._speaker, self._contents, self._source = speaker, contents, source
        self._about, self._verbose = about, verbose
        self._looked = False

    def ready(self, path):
        """The cache at `path` if it is the one that is asked for, None if there is nothing."""
        try:
            found = CachedTeacher(path)
        except FileNotFoundError:
            return None
        way_out = "Use another path, or delete it"
        for key, value in self._about.items():
            # Streams don't say what is in them.
            unknown = key == "data" and None in (value, found.about.get(key))
            if found.about.get(key) != value and not unknown:
                raise ValueError(
                    f"{found.directory} holds another cache. Expected {key}: "
                    f"{reprlib.repr(value)}. Received: {reprlib.repr(found.about.get(key))}. "
                    f"{way_out}"
                )
        # The same weights may be in another network.
        self._verify(found.table, way_out)
        return found

    def run(self, path, part):
        """Builds the cache, or a part of it."""
        rows, columns = self._source.rows, self._contents.columns
        self._tell(f"{path} takes {size_of(rows, columns, self._about):,} bytes")
        try:
            draft = Draft(path, rows, columns, self._about)
        except FileExistsError:
            # The last of the other parts was written meanwhile.
            return self.ready(path)
        try:
            self._write(draft, part)
        finally:
            draft.flush()
        lacking = self._source.lacking(draft.missing, part)
        if lacking:
            raise ValueError(
                f"The data lack {lacking} of {rows} examples and views. Expected one pass over the "
                f"data to hold all {self._source.examples} examples in {self._source.views} views"
            )
        if draft.left:
            self._tell(f"{draft.left} rows of other parts are missing")
            return None
        draft.finish(lambda table: self._verify(table, f"Delete {table.path.parent}"))
        return CachedTeacher(path)

    def _write(self, draft, part):
        bar = keras.utils.Progbar(max(1, draft.left // part[1]), verbose=self._verbose)
        for rows, inputs in self._source.batches(draft.missing, part):
            view = self._speaker(inputs)
            self._look_at(view)
            draft.write(rows, {**self._contents.encode(view), INPUTS_CRC: checksums(inputs)})
            bar.add(len(rows))

    def _look_at(self, view):
        # Not in each batch: the logits of one example sum to 1 now and then.
        wants_logits = self._contents.output is not None and not self._looked
        checks.check_values(self._speaker.name, view["output"], wants_logits)
        checks.check_values(self._speaker.name, view["taps"], False)
        self._looked = True

    def _verify(self, table, way_out):
        """Compares whole files with the data and with the teacher."""
        for rows, inputs in self._source.known():
            _check_inputs(table.read(rows), inputs, way_out)
        rows, inputs = self._source.some(VERIFIED)
        stored = table.read(rows)
        _check_inputs(stored, inputs, way_out)
        said = self._speaker(inputs)
        for name, array in self._contents.encode(said).items():
            _check_close(name, stored[name], array, way_out)
        self._tell_error(said, stored)

    def _tell_error(self, said, stored):
        if not self._verbose or self._contents.output is None or len(self._contents.output) != 1:
            return
        decoded = keras.ops.convert_to_numpy(self._contents.decode(stored)["output"])
        lost = divergence(said["output"], decoded)
        self._tell(
            f"KL(teacher || stored) of {len(lost)} examples in nats: mean {lost.mean():.2e}, "
            f"largest {lost.max():.2e}"
        )

    def _tell(self, text):
        if self._verbose:
            print(text, flush=True)


def _check_inputs(stored, inputs, way_out):
    if np.any(stored[INPUTS_CRC] != checksums(inputs)):
        raise ValueError(
            "The data changed since the teacher was asked: examples have other inputs than before. "
            "Expected the same in each pass; random augmentation needs numbered views, see "
            f"`kd.data.with_views`. {way_out}"
        )


def _check_close(name, stored, again, way_out):
    scale = np.abs(np.asarray(again, "float64")).max() + 1e-6
    # Kernels may add in another order for another batch, and half precision rounds.
    limit = scale * (1e-4 if stored.dtype == "float32" else 4e-3)
    # What is equally large may come in any order.
    far = 0 if name == "indices" else np.abs(stored.astype("float64") - again).max()
    if far > limit:
        raise ValueError(
            f"The teacher says something else when it is asked again: '{name}' differs by {far:g}. "
            "Expected a network that is deterministic in inference mode. A teacher that draws, "
            f"such as kd.MonteCarloDropout, can't be cached. {way_out}"
        )


def _checked_part(part):
    whole = isinstance(part, list | tuple) and all(isinstance(n, int | np.integer) for n in part)
    if not whole or len(part) != 2 or not 0 <= part[0] < part[1]:
        raise ValueError(f"`part` must be (i, n) with 0 <= i < n. Received: part={part!r}")
    return int(part[0]), int(part[1])
