"""Tells the losses how far training is."""

import keras


class Progress(keras.callbacks.Callback):
    """Keeps `distiller.epoch` and `distiller.progress` (epoch / epochs). `fit` adds it itself."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.epoch.assign(float(epoch))
        self.model.progress.assign(epoch / self.params["epochs"])


def with_progress(callbacks):
    """`callbacks` as given to `fit`, with a `Progress` first, so that others see its values."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(Progress())
        return callbacks
    if callbacks is None:
        return [Progress()]
    return (
        [Progress(), *callbacks] if isinstance(callbacks, list | tuple) else [Progress(), callbacks]
    )
