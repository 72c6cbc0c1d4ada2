"""A step that draws batches without training on them, to go on in the middle of an epoch."""

import keras


def stop_skipping(model):
    """Give a model its own step back, also where what skipped was interrupted."""
    if isinstance(model.train_function, Skipping):
        model.train_function = model.train_function.step


class Skipping:
    """In place of a model's compiled step, until the batches before a position are drawn.

    The first one is trained on after all: that builds whatever only a first step builds. Whoever
    skips gives the state back afterwards.

    Args:
        model: a compiled `keras.Model` inside of `fit`.
    """

    def __init__(self, model):
        stop_skipping(model)
        self.step = model.train_function
        self._batches = model.steps_per_execution
        self._built = False
        model.train_function = self

    def __call__(self, *args):
        if not self._built:
            self._built = True
            return self.step(*args)
        if keras.backend.backend() == "torch":
            # There a step is given its batches, elsewhere what to draw them from.
            return {}
        for _ in range(self._batches):
            next(args[-1])
        return {} if len(args) == 1 else ({}, args[0])
