"""Callbacks that don't hear of the batches that are only drawn."""

_HOOKS = ("on_train_batch_begin", "on_train_batch_end")


class _Silence:
    """In the place of a callback's function; knows what the object had there itself."""

    def __init__(self, before):
        self.before = before

    def __call__(self, batch, logs=None):
        pass


def mute(callbacks):
    """Have these callbacks do nothing with batches, until `unmute`."""
    unmute(callbacks)
    for callback in callbacks:
        for name in _HOOKS:
            # Some, such as Keras's `LambdaCallback`, have their functions on the object.
            setattr(callback, name, _Silence(vars(callback).get(name)))


def unmute(callbacks):
    """Give back what was taken, also where somebody else was interrupted before he could."""
    for callback in callbacks:
        for name in _HOOKS:
            own = vars(callback).get(name)
            if isinstance(own, _Silence):
                delattr(callback, name)
                if own.before is not None:
                    setattr(callback, name, own.before)
