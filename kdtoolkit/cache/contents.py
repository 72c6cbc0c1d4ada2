"""What a cache holds of a teacher for each row, and how that becomes the teacher's word again."""

import dataclasses

import keras
import numpy as np
from keras import ops

from kdtoolkit.cache.format import Column
from kdtoolkit.logits import log_probabilities

DTYPES = ("float32", "float16")
INPUTS_CRC = "inputs_crc32"
OUTPUT, VALUES, INDICES = "output", "values", "indices"
# The log of what counts as a probability of 0.
_SMALLEST = -1e4


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is stored of one example, and its coding.

    All of an output: `output`, and `layer_0`, ... for the layers, of the cache's dtype. With
    `top_k` instead of the output, for C classes:

        values    k + 1 numbers: the k largest log-probabilities, largest first, and the log of the
                  mean probability of the C - k others
        indices   the k classes

    The others are taken to be equally probable ("marginal smoothing"). Log-probabilities are logits
    without the constant that a softmax ignores.

    Args:
        output: shape of one example's output, or None where a teacher returns several.
        layers: `{path: shape}`.
        dtype: "float32" or "float16".
        top_k: int or None.
    """

    output: tuple | None
    layers: dict
    dtype: str = "float32"
    top_k: int | None = None

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {DTYPES}. Received: dtype={self.dtype!r}")
        if self.top_k is not None:
            self._check_top_k()
            object.__setattr__(self, "top_k", int(self.top_k))

    @property
    def classes(self):
        """The last size of the output, None without one."""
        return self.output[-1] if self.output else None

    @property
    def columns(self):
        """What one row of the table consists of, a tuple of `Column`."""
        found = []
        if self.top_k is not None:
            index = "uint16" if self.classes <= 2**16 else "uint32"
            found.append(Column(VALUES, self.dtype, (self.top_k + 1,)))
            found.append(Column(INDICES, index, (self.top_k,)))
        elif self.output is not None:
            found.append(Column(OUTPUT, self.dtype, self.output))
        for index, shape in enumerate(self.layers.values()):
            found.append(Column(f"layer_{index}", self.dtype, shape))
        return (*found, Column(INPUTS_CRC, "uint32"))

    def encode(self, view):
        """The columns but for the checksum, of a teacher's view with NumPy arrays.

        Raises:
            ValueError: a number too large for half precision, or another shape than before.
        """
        said = {}
        if self.top_k is not None:
            said |= self._strongest(view["output"])
        elif self.output is not None:
            said[OUTPUT] = self._stored(view["output"], self.output)
        for index, (path, shape) in enumerate(self.layers.items()):
            said[f"layer_{index}"] = self._stored(view["taps"][path], shape, path)
        return said

    def decode(self, stored):
        """A teacher's view, of tensors as `encode` gave them.

        Returns:
            `{"output": float32 tensor, "taps": {path: float32 tensor}}`. Where the teacher has
            several outputs, "output" is those that are stored.
        """
        taps = {
            path: ops.cast(stored[f"layer_{index}"], "float32")
            for index, path in enumerate(self.layers)
        }
        if self.top_k is not None:
            return {"output": self._spread(stored), "taps": taps}
        output = taps if self.output is None else ops.cast(stored[OUTPUT], "float32")
        return {"output": output, "taps": taps}

    @property
    def symbols(self):
        """The view that `decode` returns, as symbolic tensors."""
        taps = {p: keras.KerasTensor((None, *s), dtype="float32") for p, s in self.layers.items()}
        if self.output is None:
            return {"output": taps, "taps": taps}
        return {"output": keras.KerasTensor((None, *self.output), dtype="float32"), "taps": taps}

    def described(self):
        """A dict of JSON from which `Contents.of` makes the same."""
        return {
            "output": None if self.output is None else list(self.output),
            "layers": {path: list(shape) for path, shape in self.layers.items()},
            "dtype": self.dtype,
            "top_k": self.top_k,
        }

    @classmethod
    def of(cls, described):
        """What `described` describes."""
        output, layers = described["output"], described["layers"]
        return cls(
            None if output is None else tuple(output),
            {path: tuple(shape) for path, shape in layers.items()},
            described["dtype"],
            described["top_k"],
        )

    def _check_top_k(self):
        if self.output is None or len(self.output) != 1:
            raise ValueError(
                "`top_k` keeps the largest of some classes. Expected a teacher that returns logits "
                f"(batch, classes). Received: an output of shape {self.output} for one example"
            )
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int | np.integer):
            raise TypeError(f"`top_k` must be an integer. Received: top_k={self.top_k!r}")
        if not 1 <= self.top_k < self.classes:
            raise ValueError(
                f"`top_k` must be from 1 to {self.classes - 1}, below the number of classes. "
                f"Received: top_k={self.top_k}"
            )

    def _stored(self, array, shape, name="output"):
        array = np.asarray(array, "float32")
        if array.shape[1:] != shape:
            raise ValueError(
                f"'{name}' of the teacher has the shape {shape} for some examples and "
                f"{array.shape[1:]} for others. Expected one for all, such as a pooled layer's"
            )
        if self.dtype == "float16" and np.any(np.abs(array) > np.finfo("float16").max):
            raise ValueError(
                "Half precision holds numbers up to 65504. Received: a teacher's value of "
                f'{np.abs(array).max():g}. Use dtype="float32"'
            )
        return array.astype(self.dtype)

    def _strongest(self, logits):
        logs = log_probabilities(logits)
        order = np.argpartition(-logs, self.top_k, axis=-1)
        best, others = order[:, : self.top_k], order[:, self.top_k :]
        best = np.take_along_axis(
            best, np.argsort(-np.take_along_axis(logs, best, axis=-1), axis=-1, kind="stable"), -1
        )
        others = np.take_along_axis(logs, others, axis=-1)
        # Above 0 even where the probabilities themselves are not.
        largest = others.max(axis=-1, keepdims=True)
        rest = largest + np.log(np.mean(np.exp(others - largest), axis=-1, keepdims=True))
        values = np.concatenate([np.take_along_axis(logs, best, axis=-1), rest], axis=-1)
        return {
            VALUES: self._stored(np.maximum(values, _SMALLEST), (self.top_k + 1,)),
            INDICES: best.astype(self.columns[1].dtype),
        }

    def _spread(self, stored):
        values = ops.cast(stored[VALUES], "float32")
        classes = ops.cast(stored[INDICES], "int32")
        batch = ops.shape(classes)[0]
        rest = ops.broadcast_to(values[:, -1:], (batch, self.classes))
        rows = ops.broadcast_to(ops.arange(batch, dtype="int32")[:, None], ops.shape(classes))
        places = ops.reshape(ops.stack([rows, classes], axis=-1), (-1, 2))
        return ops.scatter_update(rest, places, ops.reshape(values[:, :-1], (-1,)))


def divergence(first, second):
    """KL(first || second) in nats, for each row of two arrays of logits `(batch, classes)`."""
    p, q = log_probabilities(first), log_probabilities(second)
    return np.sum(np.exp(p) * (p - q), axis=-1)
