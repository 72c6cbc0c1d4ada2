"""What Vision Transformers need beside Keras's own layers: how weights start, and their tokens."""

import keras
from keras import initializers, layers, ops

from kdtoolkit.models.factory import LayerFactory
from kdtoolkit.registry import public

# Of the ViT and DeiT code; Keras's own default is 1e-3.
NORM_EPSILON = 1e-6
# Standard deviation of kernels, tokens and positions at the start.
STDDEV = 0.02


@public
class TokensAndPositions(keras.Layer):
    """Puts learned tokens in front of a sequence and adds one learned position to every token.

    `(batch, n, width)` becomes `(batch, tokens + n, width)`: first the learned tokens, the same for
    every example (the class token, the distillation token), then the sequence. Weights: `tokens`
    of `(tokens, width)` and `positions` of `(tokens + n, width)`.

    Source: Dosovitskiy et al., 2020, arXiv:2010.11929; with a second token: Touvron et al., 2021,
    arXiv:2012.12877.

    Args:
        tokens: int >= 0, how many are learned. 0 adds positions only. Defaults to 1.
        token_initializer, position_initializer: as Keras takes initialisers. Default: a truncated
            normal distribution with standard deviation 0.02.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ValueError: for a negative number of tokens, or a sequence whose length isn't known.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit import models
        >>> layer = models.TokensAndPositions(tokens=2)
        >>> layer(np.zeros((1, 4, 3))).shape[1]
        6
    """

    def __init__(self, tokens=1, token_initializer=None, position_initializer=None, **kwargs):
        super().__init__(**kwargs)
        if tokens < 0:
            raise ValueError(f"`tokens` must be 0 or more. Received: tokens={tokens}")
        self.tokens = tokens
        self._token_initializer = _initializer(token_initializer)
        self._position_initializer = _initializer(position_initializer)

    def build(self, input_shape):
        _, length, width = input_shape
        if length is None:
            raise ValueError(
                "Learned positions need a sequence of known length. "
                f"Expected (batch, length, width). Received: {tuple(input_shape)}"
            )
        if self.tokens:
            self._tokens = self.add_weight(
                name="tokens", shape=(self.tokens, width), initializer=self._token_initializer
            )
        self._positions = self.add_weight(
            name="positions",
            shape=(self.tokens + length, width),
            initializer=self._position_initializer,
        )

    def call(self, inputs):
        if not self.tokens:
            return inputs + self._positions
        # Zeros in front instead of copies of the tokens: no operation depends on the batch size,
        # and an exported file adds one constant.
        rest = self._positions.shape[0] - self.tokens
        tokens = ops.pad(ops.convert_to_tensor(self._tokens), [[0, rest], [0, 0]])
        sequence = ops.pad(inputs, [[0, 0], [self.tokens, 0], [0, 0]])
        return sequence + (tokens + self._positions)

    def get_config(self):
        return {
            **super().get_config(),
            "tokens": self.tokens,
            "token_initializer": initializers.serialize(self._token_initializer),
            "position_initializer": initializers.serialize(self._position_initializer),
        }


class TransformerFactory(LayerFactory):
    """Makes the layers of one Vision Transformer: kernels start truncated normal, biases at 0."""

    def norm(self, name):
        """Returns a LayerNormalization layer over the last axis."""
        return layers.LayerNormalization(epsilon=NORM_EPSILON, name=name)

    def tokens(self, count, name):
        """Returns the layer that adds `count` learned tokens and the positions."""
        return TokensAndPositions(count, self._initializer(), self._initializer(), name=name)

    def attend(self, x, heads, dropout, name):
        """Returns `x` after multi-head self-attention among its tokens."""
        attention = layers.MultiHeadAttention(
            heads,
            x.shape[-1] // heads,
            dropout=dropout,
            seed=self._next_seed(),
            kernel_initializer=_initializer(None),
            name=name,
        )
        y = attention(x, x)
        if self.seeded:
            # Keras gives all four kernels the same initialiser. With a seed in it the queries
            # would start equal to the keys and to the values.
            for dense in (
                attention.query_dense,
                attention.key_dense,
                attention.value_dense,
                attention.output_dense,
            ):
                dense.kernel.assign(self._initializer()(dense.kernel.shape))
        return y

    def drop(self, x, rate, name, noise_shape=None):
        """Returns `x` after a dropout of single numbers, or of what `noise_shape` says."""
        seed = self._next_seed()
        return layers.Dropout(rate, noise_shape, seed, name=name)(x) if rate else x

    def drop_branch(self, x, rate, name):
        """Returns `x` after stochastic depth: whole examples become 0, the rest is scaled."""
        return self.drop(x, rate, name, noise_shape=(None, 1, 1))

    def _initializer(self):
        return initializers.TruncatedNormal(stddev=STDDEV, seed=self._next_seed())


def _initializer(given):
    return initializers.get(given or initializers.TruncatedNormal(stddev=STDDEV))
