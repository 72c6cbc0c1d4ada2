"""Many random passes over some examples, with sums of what they say."""

import math

import keras
import numpy as np

from kdtoolkit import checks
from kdtoolkit.dropout.prediction import Tally, joined
from kdtoolkit.dropout.split import split

#: How many numbers the copies of a batch may hold, going in or coming out.
NUMBERS = 2**20


class Sampler:
    """Runs a network's first part once for each batch, and the random rest for each sample.

    Args:
        left_on: the network, a `LeftOn` that knows its layers.
        output_size: how many numbers it returns for one example.
    """

    def __init__(self, left_on, output_size):
        self._before, behind = split(left_on.model, list(left_on.layers.values()))
        self._behind = _Behind(left_on, behind)
        self._output_size = output_size

    def __call__(self, x, samples, batch_size, verbose):
        """The `MonteCarloPrediction` of arrays; the arguments are those of `predict`."""
        examples = len(keras.tree.flatten(x)[0])
        batch_size = min(batch_size, examples)
        starts = range(0, examples, batch_size)
        bar = keras.utils.Progbar(len(starts), verbose=verbose)
        found = []
        for number, start in enumerate(starts, start=1):
            # The last batch is filled up, so that no part is compiled for its shape alone.
            rows = np.minimum(np.arange(start, start + batch_size), examples - 1)
            batch = keras.tree.map_structure(lambda array, rows=rows: array[rows], x)
            found.append(self._tally(batch, samples, batch_size).result())
            bar.update(number)
        return joined(found, examples)

    def _tally(self, batch, samples, batch_size):
        if self._before is not None:
            batch = self._before.predict_on_batch(batch)
        copies = self._copies(batch, samples, batch_size)
        batch = keras.tree.map_structure(lambda array: np.concatenate([array] * copies), batch)
        tally = Tally()
        while tally.samples < samples:
            logits = self._behind.predict_on_batch(batch)
            if not tally.samples:
                name = self._behind.model.name
                checks.check_values(name, logits[:batch_size], wants_logits=True)
            logits = logits.reshape(copies, batch_size, *logits.shape[1:])
            # The last pass may have drawn a few more than were asked for.
            tally.add(logits[: samples - tally.samples])
        return tally

    def _copies(self, batch, samples, batch_size):
        """How many copies of a batch one pass reads, so that all passes are about equal."""
        inside = sum(array[0].size for array in keras.tree.flatten(batch))
        most = max(1, NUMBERS // (batch_size * max(inside, self._output_size)))
        return math.ceil(samples / math.ceil(samples / most))


class _Behind(keras.Model):
    """The random part as a model of its own, for the sake of Keras's compiled `predict`."""

    def __init__(self, left_on, model):
        super().__init__(name=f"{left_on.model.name}_behind", autocast=False)
        self.model = model
        self._left_on = left_on.around(model)
        self.built = True

    def call(self, inputs):
        return self._left_on(inputs)
