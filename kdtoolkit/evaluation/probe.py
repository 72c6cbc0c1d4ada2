"""Loss and accuracy of a network as its weights change. The one file here that imports Keras."""

import keras
import numpy as np
from keras import ops


class Probe:
    """Measures a network on data, in inference mode, with one compiled function for all weights.

    The network is read through a model of its own: its optimizer, its metrics and its compiled
    functions stay as they are. Batches are views of the data, and two numbers per batch come back.

    Args:
        model, x, y, loss, output, batch_size: as in `noise_curve`.
        advance: function to call after each measurement.

    Raises:
        ValueError: as `noise_curve`.
    """

    def __init__(self, model, x, y, loss, output, batch_size, advance):
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be 1 or more. Received: batch_size={batch_size}")
        self._data = keras.tree.map_structure(np.asarray, (x, y))
        self._examples = _examples(self._data)
        self._batch_size = batch_size
        self._advance = advance
        self._measuring = Measuring(model, _checked_loss(loss), output)

    def __call__(self):
        """Returns the floats `(loss, accuracy)` at the weights of this moment."""
        sums = [0.0, 0.0]
        for start in range(0, self._examples, self._batch_size):
            stop = min(start + self._batch_size, self._examples)
            batch = keras.tree.map_structure(lambda a, s=slice(start, stop): a[s], self._data)
            # Python floats add infinities without a warning.
            means = self._measuring.predict_on_batch(batch).tolist()
            sums = [a + mean * (stop - start) for a, mean in zip(sums, means, strict=True)]
        self._advance()
        return tuple(a / self._examples for a in sums)


class Measuring(keras.Model):
    """From a batch `(x, y)` to its mean loss and accuracy, shape `(2,)`."""

    def __init__(self, model, loss, output):
        # The network casts its inputs itself, by its own policy.
        super().__init__(dtype="float32", autocast=False)
        self.network = model
        self._loss = loss
        self._output = output

    def call(self, inputs):
        x, y = inputs
        prediction = _one_output(self.network(x, training=False), self._output)
        dtype = keras.backend.result_type(prediction.dtype, "float32")
        prediction = ops.cast(prediction, dtype)
        loss = ops.mean(self._loss(y, prediction))
        return ops.stack([ops.cast(loss, dtype), ops.cast(_accuracy(y, prediction), dtype)])


def _one_output(outputs, key):
    if isinstance(outputs, dict | list | tuple):
        keys = list(outputs) if isinstance(outputs, dict) else list(range(len(outputs)))
    else:
        keys, outputs = [None], {None: outputs}
    if key not in keys:
        raise ValueError(
            "`output` must be the key of the output to measure, and None for a network with only "
            f"one. Expected one of {keys}. Received: output={key!r}"
        )
    return outputs[key]


def _accuracy(y, prediction):
    """The share of examples whose largest score is the label's; NaN where y are no labels."""
    classes = prediction.shape[-1]
    best = ops.argmax(prediction, axis=-1)
    if classes == 1 or len(prediction.shape) < 2:
        return float("nan")
    if y.shape[1:] == prediction.shape[1:]:
        labels = ops.argmax(y, axis=-1)
    elif y.shape[1:] in (best.shape[1:], (*best.shape[1:], 1)):
        labels = ops.reshape(y, ops.shape(best))
    else:
        return float("nan")
    return ops.mean(ops.cast(ops.equal(best, ops.cast(labels, best.dtype)), "float32"))


def _checked_loss(loss):
    if loss is None:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = keras.losses.get(loss)
    if getattr(loss, "reduction", None) == "sum":
        raise ValueError(
            "`loss` must give a mean over a batch, or one value per example. Received: "
            f"{type(loss).__name__} with reduction='sum'. Use reduction='sum_over_batch_size'"
        )
    return loss


def _examples(data):
    lengths = [len(array) if array.ndim else 0 for array in keras.tree.flatten(data)]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(
            "`x` and `y` must hold the same examples, one or more. Received: "
            f"{lengths} examples in their arrays"
        )
    return lengths[0]
