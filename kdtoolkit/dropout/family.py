"""Which layers of a network drop something, and a pass in which they alone are random."""

import contextlib

import keras
import numpy as np
from keras import layers

from kdtoolkit import scalars
from kdtoolkit.saving import random_states
from kdtoolkit.taps import around_calls, in_stage, takes_training, walk

# Spatial dropout is a kind of `Dropout`, and `MultiHeadAttention` holds one.
_DROPOUTS = (layers.Dropout, layers.AlphaDropout, layers.GaussianDropout)
# These drop by themselves, where their `dropout` or `recurrent_dropout` says so.
_DROPPING = (
    layers.LSTM,
    layers.GRU,
    layers.SimpleRNN,
    layers.ConvLSTM1D,
    layers.ConvLSTM2D,
    layers.ConvLSTM3D,
    layers.LSTMCell,
    layers.GRUCell,
    layers.SimpleRNNCell,
    layers.Attention,
)


class LeftOn:
    """Runs a network in inference mode, but for its dropout, which is on.

    Args:
        model: a `keras.Model` of any kind.
        layers: `{path: layer}` of what is random, where that is known.
    """

    def __init__(self, model, layers=()):
        self.model = model
        #: `{path: layer}` of what is random; known after `find`.
        self.layers = dict(layers)

    def find(self):
        """Look for the layers. All of them must have been built.

        Raises:
            ValueError: there are none.
        """
        self.layers = _find(self.model)
        if not self.layers:
            raise ValueError(
                "MonteCarloDropout needs a network with dropout. Expected a layer such as "
                "keras.layers.Dropout(0.5), attention or an LSTM with dropout, with a rate above "
                f"0. Received: '{self.model.name}' without any. Layers of your own count if they "
                "are derived from keras.layers.Dropout"
            )

    def __call__(self, inputs):
        with around_calls(list(self.layers.values()), _on):
            return in_stage(self.model, inputs, False)

    def around(self, part):
        """The same for a part of the network, with the same layers on."""
        return LeftOn(part, self.layers)

    @contextlib.contextmanager
    def seeded(self, seed):
        """Numbers that follow from `seed`; afterwards the layers go on as if nothing had been.

        Args:
            seed: int >= 0, or None to change nothing.
        """
        if seed is None:
            yield
            return
        seed = scalars.whole(seed, "seed", "MonteCarloDropout.predict", minimum=0)
        states = [s for layer in self.layers.values() for s in random_states(layer)]
        before = [keras.ops.convert_to_numpy(state).copy() for state in states]
        try:
            for index, state in enumerate(states):
                numbers = np.random.default_rng([seed, index]).integers(2**31, size=state.shape)
                state.assign(numbers.astype(before[index].dtype))
            yield
        finally:
            for state, value in zip(states, before, strict=True):
                state.assign(value)


def holds(operation, dropping):
    """Whether an operation of a graph is one of the layers `dropping`, or has one in it."""
    inside = [operation, *(layer for _, layer in walk(operation))]
    return any(layer is one for layer in inside for one in dropping)


def _find(model):
    found, seen = {}, set()
    for path, layer in walk(model):
        # A layer has several names in a subclassed model, and an LSTM's cell is part of it.
        if id(layer) not in seen and not any(path.startswith(f"{outer}/") for outer in found):
            if _rate(layer) > 0:
                found[path] = layer
        seen.add(id(layer))
    return found


def _rate(layer):
    if isinstance(layer, _DROPOUTS):
        return layer.rate
    if isinstance(layer, _DROPPING):
        return max(layer.dropout, getattr(layer, "recurrent_dropout", 0))
    return 0


def _on(layer, call, *args, **kwargs):
    _check_mask(layer, (*args, *kwargs.values())[0])
    # One of the user's own that is always on may not want to know.
    return call(*args, **{**kwargs, "training": True} if takes_training(layer) else kwargs)


def _check_mask(layer, inputs):
    shape = getattr(layer, "noise_shape", None)
    if shape is not None and (shape[0] is not None or len(shape) < len(inputs.shape)):
        raise ValueError(
            "Monte-Carlo dropout draws one fresh mask per example. Expected a `noise_shape` with "
            "None for the batch and one size for each axis, such as (None, 1, 1). Received: "
            f"'{layer.name}' with noise_shape={shape}, which shares a mask over the batch"
        )
