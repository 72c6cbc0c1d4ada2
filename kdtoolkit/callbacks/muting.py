"""Callbacks that don't hear of the batches that are only drawn."""

_HOOKS = ("on_train_batch_begin", "on_train_batch_end")


class Muted:
    """Takes the functions for batches from callbacks for a while."""

    def __init__(self):
        self._taken = []

    def begin(self, callbacks):
        """Have these callbacks do nothing with batches, until `end`."""
        for callback in callbacks:
            # Some, such as Keras's `LambdaCallback`, have theirs on the object.
            self._taken.append((callback, {name: vars(callback).get(name) for name in _HOOKS}))
            callback.on_train_batch_begin = callback.on_train_batch_end = _nothing

    def end(self):
        """Give back what was taken."""
        while self._taken:
            callback, own = self._taken.pop()
            for name, function in own.items():
                delattr(callback, name)
                if function is not None:
                    setattr(callback, name, function)


def _nothing(batch, logs=None):
    """What they do meanwhile."""
