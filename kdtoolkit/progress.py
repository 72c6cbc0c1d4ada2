"""Callbacks that `fit` knows of: how far training is, and who decides when sources learn."""

import keras


class Progress(keras.callbacks.Callback):
    """Keeps `distiller.epoch` and `distiller.progress` (epoch / epochs). `fit` adds it itself."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.epoch.assign(float(epoch))
        self.model.progress.assign(epoch / self.params["epochs"])


class TeacherPolicy(keras.callbacks.Callback):
    """Base class of the callbacks that decide when a source takes over what it saw."""

    #: Key of the logs that decides, or None.
    monitor = None


class LastCallback(keras.callbacks.Callback):
    """Base class of the callbacks that must see what all others did."""

    def prepare(self, model, given):
        """Have a say in the arguments of a distiller's `fit`, before Keras gets them.

        Args:
            model: the distiller.
            given: dict of them by name; `callbacks` is a list.

        Returns:
            Such a dict.
        """
        return given


def listed(callbacks):
    """`callbacks` as given to `fit`, as a list."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]


def with_progress(callbacks):
    """`callbacks` as given to `fit`, with a `Progress` first, so that others see its values."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(Progress())
        return callbacks
    return [Progress(), *listed(callbacks)]
