"""Several networks as one: the mean of their probabilities."""

import itertools

import keras
from keras import ops

from kdtoolkit import checks, functional
from kdtoolkit.functional.logits import at_least_float32
from kdtoolkit.registry import public

OUTPUTS = ("logits", "probabilities")


@public
class Ensemble(keras.Model):
    """A network that averages the probabilities of its members.

    Members give logits `z_k`, shape `(batch, ..., classes)`. With K members:

        probabilities = 1 / K * sum_k softmax(z_k)
        logits        = logsumexp_k(log_softmax(z_k)) - log K      (the log of the same mean)

    The log of a mean of probabilities is a valid set of logits: its softmax is that mean. So an
    ensemble can teach in a `kd.Distiller`, be compiled with `from_logits=True` and be exported with
    `kd.export.litert`, all in one file. Averaging the members' logits would be something else, the
    geometric mean.

    Members keep their weights: training the ensemble trains them. They run in inference mode unless
    the ensemble is called with `training=True`.

    Args:
        models: list of one or more `keras.Model` that read the same input and return logits over
            the same classes. Architectures may differ.
        output: "logits" (default) or "probabilities".
        name: name of the model.

    Raises:
        TypeError: something in `models` is no Keras model.
        ValueError: no member, one model twice, members that end in a softmax, read different
            shapes or return different shapes, or an unknown `output`.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> from kdtoolkit.ensemble import Ensemble
        >>> first, second = (kd.models.mlp((4,), 3, units=(8,), seed=seed) for seed in (0, 1))
        >>> ensemble, x = Ensemble([first, second]), np.ones((1, 4), "float32")
        >>> mean = (keras.ops.softmax(first(x)) + keras.ops.softmax(second(x))) / 2
        >>> bool(np.allclose(keras.ops.softmax(ensemble(x)), mean, atol=1e-6))
        True

    Source: Furlanello et al., 2018, arXiv:1805.04770, born-again ensembles (BANE): the mean over
    consecutive generations. The paper writes a mean of networks; that it is one of probabilities
    is this library's reading.
    """

    def __init__(self, models, output="logits", name=None):
        models = _checked(models)
        if output not in OUTPUTS:
            raise ValueError(f"`output` must be one of {OUTPUTS}. Received: output={output!r}")
        # Members cast their inputs themselves, each by its own policy.
        super().__init__(name=name, dtype="float32", autocast=False)
        self._output_kind = output
        self._size = len(models)
        # One attribute each: PyTorch finds parameters in attributes only, not in lists.
        for index, model in enumerate(models):
            setattr(self, f"member_{index}", model)
        specs = [spec for model in models if (spec := checks.input_spec(model)) is not None]
        if specs:
            # A symbolic call builds the ensemble now and not at its first batch.
            self(specs[0])

    @property
    def members(self):
        """The networks, a list."""
        return [getattr(self, f"member_{index}") for index in range(self._size)]

    def call(self, inputs, training=None):
        # Keras hands `training` on to the members.
        logits = [member(inputs) for member in self.members]
        _check_outputs([keras.tree.map_structure(lambda t: tuple(t.shape), z) for z in logits])
        if self._output_kind == "probabilities":
            return ops.mean(ops.softmax(ops.stack([at_least_float32(z) for z in logits])), axis=0)
        return functional.mean_probabilities(logits)

    def get_config(self):
        return {
            "models": [keras.saving.serialize_keras_object(member) for member in self.members],
            "output": self._output_kind,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        models = [keras.saving.deserialize_keras_object(model) for model in config["models"]]
        return cls(**{**config, "models": models})


def _checked(models):
    models = list(models) if isinstance(models, list | tuple) else models
    if not models or not isinstance(models, list):
        raise ValueError(
            "`models` must be a list of one or more models that return logits. "
            f"Received: models={models!r}"
        )
    for index, model in enumerate(models):
        if not isinstance(model, keras.Model):
            raise TypeError(f"`models` must hold keras.Model objects. Received: {model!r}")
        checks.check_logits(f"models[{index}]", model)
    if len({id(model) for model in models}) < len(models):
        raise ValueError(
            "Each member must be a network of its own. Received one model object twice in "
            f"{[model.name for model in models]}."
        )
    _check_inputs(models)
    return models


def _check_inputs(models):
    known = {}
    for model in models:
        spec = checks.input_spec(model)
        if spec is not None:
            known[model.name, id(model)] = [tuple(t.shape)[1:] for t in keras.tree.flatten(spec)]
    shapes = list(known.values())
    for (name, _), shape in known.items():
        if not _agree(shapes[0], shape):
            raise ValueError(
                f"All members must read inputs of one shape. Received: {shapes[0]} and {shape} "
                f"('{name}'). Put a layer such as keras.layers.Resizing in front of one."
            )


def _agree(first, second):
    """Whether two lists of input shapes may be the same; a size of None may be any."""
    ranks = [[len(shape) for shape in shapes] for shapes in (first, second)]
    sizes = zip(itertools.chain(*first), itertools.chain(*second), strict=False)
    return ranks[0] == ranks[1] and all(None in (a, b) or a == b for a, b in sizes)


def _check_outputs(shapes):
    if any(isinstance(shape, dict | list) for shape in shapes):
        raise ValueError(f"Members must return one tensor of logits each. Received: {shapes}")
    if len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(
            "All members must return logits over the same classes, in the same order. Received "
            f"outputs of the shapes {shapes}."
        )
