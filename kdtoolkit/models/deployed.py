"""What to deploy of a network with several outputs."""

import math

import keras
from keras import layers, ops

from kdtoolkit.registry import expects


@expects(model="model", key="text", name="text")
def single_output(model, key, *, name=None):
    """Returns the part of a model that gives one of its named outputs.

    After training, `single_output(student, "fused")` is what to deploy: a plain model from images
    to logits, which shares its weights with `student` and leaves out what the output doesn't need.

    Args:
        model: a functional `keras.Model` whose output is a dict.
        key: str, one of that dict's keys.
        name: str, or None for the model's name, `_` and `key`.

    Returns:
        A functional `keras.Model` with one output.

    Raises:
        ValueError: an output that is no dict, or has no such key.

    Example:
        >>> from kdtoolkit import models
        >>> shape = {"width": 12, "depth": 1, "heads": 2, "patch_size": 4}
        >>> student = models.deit((8, 8, 1), 10, **shape, seed=0)
        >>> models.single_output(student, "fused").output.shape
        (None, 10)
    """
    outputs = _outputs_of(model, [key])
    return keras.Model(model.input, outputs[key], name=name or f"{model.name}_{key}")


@expects(model="model", keys="several", name="text")
def mean_output(model, keys=None, *, name=None):
    """Returns the ensemble of a model's outputs: the logarithm of their mean probabilities.

        z = log (1 / n * sum_i softmax(z_i))

    so its softmax is the mean. One network, for the cost of one pass to all its ends.

    Source: Zhang et al., "Be Your Own Teacher" (ICCV 2019), arXiv:1905.08094, whose tables have
    such an ensemble of all exits; the mean of probabilities is our reading.

    Args:
        model: a functional `keras.Model` whose output is a dict of logits `(batch, classes)`.
        keys: list of str, which of them, or None for all.
        name: str, or None for the model's name with `_mean` behind it.

    Returns:
        A functional `keras.Model` with one output, float32 logits.

    Raises:
        ValueError: an output that is no dict, or has no such key; no key; outputs of different
            shapes.

    Example:
        >>> from kdtoolkit import models
        >>> network = models.mlp((4,), 3, units=(8, 8), seed=0)
        >>> student = models.attach_exits(network, ["stage1"], seed=1)
        >>> models.mean_output(student).output.shape
        (None, 3)
    """
    if keys is not None and (isinstance(keys, str) or not keys):
        raise ValueError(f"`keys` must be a list of one or more outputs. Received: keys={keys!r}")
    outputs = _outputs_of(model, keys or ())
    chosen = [outputs[key] for key in keys or outputs]
    shapes = {tuple(tensor.shape) for tensor in chosen}
    if len(shapes) != 1:
        raise ValueError(f"The outputs must have one shape. Received: {sorted(shapes)}")
    logs = ops.stack([ops.log_softmax(ops.cast(z, "float32")) for z in chosen])
    mean = ops.logsumexp(logs, axis=0) - math.log(len(chosen))
    mean = layers.Identity(dtype="float32")(mean)
    return keras.Model(model.input, mean, name=name or f"{model.name}_mean")


def _outputs_of(model, keys):
    outputs = getattr(model, "output", None)
    if not isinstance(outputs, dict):
        raise ValueError(
            "`model` must be a functional model whose output is a dict, such as "
            f"`kd.models.deit`. Received: {getattr(model, 'name', model)} with output {outputs}"
        )
    for key in keys:
        if key not in outputs:
            raise ValueError(f"`key` must be one of {sorted(outputs)}. Received: key={key!r}")
    return outputs
