"""A teacher whose outputs come from the disk."""

from kdtoolkit.cache.fingerprints import fingerprint
from kdtoolkit.cache.lookup import COMPARED, Lookup, opened
from kdtoolkit.data.joining import join
from kdtoolkit.registry import public
from kdtoolkit.sources.base import Source


@public
class CachedTeacher(Source):
    """A teacher that spoke once: its outputs for all training examples, in files.

    `kd.cache_teacher` writes them; this reads them, in the place of the teacher's network. Any loss
    of any weight may read it, beside other teachers; of the strongest logits (`top_k`) those that
    read probabilities, since a constant in the logits is lost. What was said about an example is
    found by its id, so shuffling, repeats and batch sizes don't matter; of augmented examples by
    the number of the view, which the data must tell.

    `fit` adds the rows to the data, before the step: arrays get them all at once, beside the
    examples; a `PyDataset` or a `tf.data.Dataset` gets those of each batch, from memory-mapped
    files. A loop of your own gets them by `attach(x)`, for arrays of one batch or of all.

    Inputs are compared with what the teacher saw, by their CRC-32: all of arrays, some of each
    batch of other data. In `evaluate` it takes no part, since it knows training examples alone.

    Source: Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", 2022,
    arXiv:2112.01528 (labels per view, the rest of the probability spread evenly); Wu et al.,
    "TinyViT", 2022, arXiv:2207.10666 (the strongest logits, views replayed from seeds).

    Args:
        path: str or `Path`, a cache that `kd.cache_teacher` wrote.
        teacher: the network that it should be of, or None (default) not to ask. Weights are
            compared, and not what has none.
        check_inputs: bool. False doesn't compare inputs, for augmentation that another machine
            computes with other last bits. Defaults to True.
        name: the layer's name.

    Attributes:
        directory: str, the absolute path.
        examples, views: int, of how many examples and views of each.
        classes: int, the last size of the teacher's output; None if it isn't stored.
        layers_held: tuple of paths that transfers may read as `source_layer`.
        about: dict, what the cache says of itself.
        size: int, bytes on the disk.

    Raises:
        FileNotFoundError: no cache at `path`.
        ValueError: another teacher's, a damaged file, or no cache; in `fit`, other examples, other
            inputs, or a view that isn't there.

    Example:
        >>> import numpy as np, kdtoolkit as kd
        >>> teacher = kd.models.mlp((4,), 3, units=(8,), seed=0)
        >>> student = kd.models.mlp((4,), 3, units=(2,), seed=1)
        >>> x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
        >>> cached = kd.cache_teacher(teacher, x, "cache", verbose=0)
        >>> cached.examples, cached.classes
        (20, 3)
        >>> distiller = kd.Distiller(
        ...     student=student,
        ...     teacher=kd.CachedTeacher("cache"),
        ...     transfers=[kd.Transfer(kd.losses.SoftTargets(2.0))],
        ... )
        >>> distiller.compile("sgd")
        >>> history = distiller.fit(x, verbose=0)
    """

    needs_ids = True
    # It follows nobody: what it says is settled.
    follows_several = True

    def __init__(self, path, teacher=None, check_inputs=True, name=None):
        super().__init__(name=name)
        table = opened(path)
        self.directory = str(table.path)
        self.check_inputs = bool(check_inputs)
        self._lookup = Lookup(table, self.check_inputs)
        if teacher is not None and fingerprint(teacher) != self.about["teacher"]:
            raise ValueError(
                f"{self.directory} is another teacher's cache: it holds what a network with the "
                f"fingerprint {self.about['teacher']} said, and that of '{teacher.name}' is "
                f"{fingerprint(teacher)}. Cache this teacher at another path"
            )

    @property
    def table(self):
        """The files' `Table`."""
        return self._lookup.table

    @property
    def about(self):
        """What the cache says of itself, a dict."""
        return self.table.about

    @property
    def examples(self):
        """Number of examples; their ids go from 0 on."""
        return self._lookup.examples

    @property
    def views(self):
        """Number of views of each example."""
        return self._lookup.views

    @property
    def classes(self):
        """The last size of the teacher's output, None if it isn't stored."""
        return self._lookup.contents.classes

    @property
    def size(self):
        """Bytes on the disk."""
        return self.table.size

    @property
    def layers_held(self):
        """Paths of the teacher's layers that are stored."""
        return tuple(self._lookup.contents.layers)

    def check(self):
        """Compare all files with their checksums.

        Raises:
            ValueError: one is damaged.
        """
        self.table.check()

    def prepare(self, examples):
        """Learn how many training examples there are, from data that knows.

        Raises:
            ValueError: another number than the cache has.
        """
        if examples not in (None, self.examples):
            raise ValueError(
                f"The cache {self.directory} holds what the teacher said about {self.examples} "
                f"examples, and there are {examples} training examples. Train with the data that "
                "it was made for, or cache the teacher for this data at another path"
            )

    def connect(self, student, output):
        """Nothing to learn: transfers compare the shapes that they read."""

    def form(self, student_output):
        return self._lookup.contents.symbols

    def attach(self, x):
        """The training input with the rows of each batch in it.

        Args:
            x: as given to `fit`, with example ids.
        """
        views = getattr(x, "views", None)
        if isinstance(views, int) and views > self.views:
            raise ValueError(
                f"The cache {self.directory} holds {self.views} views of each example, and the "
                f"training shows {views}. Train with as many, or cache the teacher for this data "
                "at another path"
            )
        return join(x, self.name, self._lookup, self._lookup.columns, COMPARED)

    def read(self, forward, student_output, context):
        if self.name not in context["stored"]:
            raise ValueError(
                f"CachedTeacher '{self.name}' reads its rows from the batch, and this one has "
                "none. `fit` adds them; in a loop of your own give the distiller "
                "`cached_teacher.attach(kd.data.with_ids(x, ids))`"
            )
        return self._lookup.contents.decode(context["stored"][self.name])

    def get_config(self):
        return {"path": self.directory, "check_inputs": self.check_inputs, "name": self.name}
