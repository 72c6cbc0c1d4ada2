"""A batch's rows of a cache, by its example ids and views."""

import numpy as np

from kdtoolkit.cache.contents import INPUTS_CRC, Contents
from kdtoolkit.cache.fingerprints import checksums
from kdtoolkit.cache.table import Table

#: How many examples of a batch are compared with what the teacher saw.
COMPARED = 8


class Lookup:
    """Reads what the teacher said of some examples. It may be pickled, and shared by threads.

    Args:
        table: a `Table` that `kd.cache_teacher` made.
        check_inputs: bool, whether some inputs of each batch are compared.
    """

    def __init__(self, table, check_inputs=True):
        self.table = table
        self.check_inputs = check_inputs
        self.contents = Contents.of(table.about["contents"])
        self.examples, self.views = table.about["examples"], table.about["views"]
        #: What `__call__` returns: columns of the table.
        self.columns = [column for column in table.columns if column.name != INPUTS_CRC]

    def __call__(self, inputs, ids, views=None):
        """The columns of some rows.

        Args:
            inputs: the examples' inputs, the first few or all; a structure of arrays.
            ids: int array `(batch,)`.
            views: int array `(batch,)`; may be None where there is one view.

        Returns:
            `{column: array (batch, ...)}`.

        Raises:
            ValueError: ids or views that the cache doesn't have, or inputs that the teacher didn't
                see.
        """
        ids = np.asarray(ids).astype("int64")
        if views is None and self.views > 1:
            raise ValueError(
                f"The cache {self.table.path} holds {self.views} views of each example, and the "
                "data don't tell which view an example is. Expected "
                f"`kd.data.ArrayPipeline(..., views={self.views})` or `kd.data.with_views`"
            )
        views = np.zeros_like(ids) if views is None else np.asarray(views).astype("int64")
        self._check("example id", ids, self.examples)
        self._check("view", views, self.views)
        found = self.table.read(views * self.examples + ids)
        expected = found.pop(INPUTS_CRC)
        if self.check_inputs:
            sums = checksums(inputs)
            wrong = np.flatnonzero(sums != expected[: len(sums)])
            if len(wrong):
                self._refuse(ids[wrong[0]], views[wrong[0]], len(wrong), len(sums))
        return found

    def _check(self, what, numbers, count):
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < count:
            raise ValueError(
                f"The cache {self.table.path} knows each {what} from 0 to {count - 1}. Received: "
                f"{numbers.min()} to {numbers.max()}. Train with the data that it was made for"
            )

    def _refuse(self, example, view, wrong, compared):
        raise ValueError(
            f"The cached teacher saw other inputs: example {example} of view {view}, and {wrong} "
            f"of {compared} that were compared, aren't those of {self.table.path}. Expected the "
            "same data set, order of ids, preprocessing, augmentation and seed. Cache the teacher "
            "for this data at another path, or teach with the network itself"
        )


def opened(path):
    """The `Table` of a cached teacher.

    Raises:
        FileNotFoundError, ValueError: there is no such cache, see `Table`.
    """
    table = Table(path)
    try:
        contents = Contents.of(table.about["contents"])
        rows = table.about["examples"] * table.about["views"]
        fits = table.columns == contents.columns and rows == table.rows
        fits = fits and isinstance(table.about["teacher"], str)
    except (KeyError, TypeError, ValueError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(
            f"{table.path} holds a table, but none of a teacher's outputs. Expected one that "
            "`kd.cache_teacher` wrote"
        )
    return table
