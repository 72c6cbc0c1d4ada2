"""Measures a training that may be interrupted."""

import time

import keras


class Stopwatch(keras.callbacks.Callback):
    """Counts epochs, wall clock and processor time of a `fit`, over its interruptions.

    Attributes:
        epochs: epochs that have ended.

    Example:
        >>> from kdtoolkit.generations.stopwatch import Stopwatch
        >>> watch = Stopwatch()
        >>> watch.epochs, watch.seconds
        (0, 0.0)
    """

    def __init__(self):
        super().__init__()
        self._reset()

    def _reset(self, epochs=0, seconds=0.0, cpu_seconds=0.0):
        self.epochs = int(epochs)
        self._before = float(seconds), float(cpu_seconds)
        self._started = None

    @property
    def seconds(self):
        """Wall clock so far."""
        return self._elapsed()[0]

    @property
    def cpu_seconds(self):
        """Processor time of the process so far, all cores added up."""
        return self._elapsed()[1]

    def _elapsed(self):
        if self._started is None:
            return self._before
        return tuple(b + n - s for b, n, s in zip(self._before, _now(), self._started, strict=True))

    def on_train_begin(self, logs=None):
        self._reset()
        self._started = _now()

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1

    def on_train_end(self, logs=None):
        self._before, self._started = self._elapsed(), None

    def get_state(self):
        """What `kd.callbacks.Resume` saves."""
        return {"epochs": self.epochs, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def set_state(self, saved):
        """Goes on from what `get_state` returned."""
        self._reset(**saved)
        self._started = _now()


def _now():
    return time.perf_counter(), time.process_time()
