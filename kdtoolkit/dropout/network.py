"""A trained network whose dropout stays on."""

import math

import keras
from keras import ops

from kdtoolkit import checks, functional, scalars
from kdtoolkit.data.keys import is_arrays
from kdtoolkit.dropout.family import LeftOn
from kdtoolkit.dropout.sampler import Sampler
from kdtoolkit.registry import public
from kdtoolkit.saving import KeepsRandomStates
from kdtoolkit.taps import output_spec, spec_of


@public
class MonteCarloDropout(KeepsRandomStates, keras.Model):
    """A trained network in which dropout is on, always, and nothing else is random.

    With f the network, x an example and z dropout masks that are drawn anew for each example and
    each pass:

        samples = 1   logits = f(x, z)
        samples = K   logits = log(1/K sum_k softmax(f(x, z_k)))      in one pass over K copies

    Everything but dropout is in inference mode, whatever `training` says: BatchNorm keeps its
    statistics, augmentation and noise are off. On are `Dropout`, `SpatialDropout`, `AlphaDropout`,
    `GaussianDropout`, the dropout inside attention, and recurrent layers and cells with `dropout`
    or `recurrent_dropout`, wherever they are in the network. Those with a rate of 0 don't count.

    As the teacher of a `kd.Distiller` it gives other masks in each step, which is dropout
    distillation: with `kd.losses.BregmanDivergence` or `kd.losses.SoftTargets(1.0)` one sample per
    step has, on average, the gradient of distilling the mean prediction. More samples make that
    gradient less noisy, at as many times the cost of the teacher. `predict` with `samples`
    estimates the mean itself, and how uncertain the network is.

    Nothing of the network is changed or copied: its layers are told to train for the time of a
    pass.

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation" (2016), arXiv:1506.02142;
    Bulo, Porzi and Kontschieder, "Dropout Distillation" (ICML 2016), whose teacher draws one
    sample per step, the default.

    Args:
        model: a trained `keras.Model` of any kind with one output, logits `(batch, ..., classes)`.
        samples: int >= 1, K. Defaults to 1.
        name: str, or None for the model's name with `_monte_carlo` behind it.

    Attributes:
        model: the network.
        random_layers: list of the paths of the layers that are on, as for `kd.tap`. Of a network
            whose shapes only a batch tells it is empty before the first one.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: no dropout in it; a `noise_shape` that shares a mask over the batch; a network
            that ends in a softmax, has several outputs or less than 2 classes; `samples` below 1.
            Of a network whose shapes only a batch tells, some of it shows with the first batch.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> network = kd.models.mlp((4,), 3, units=(8,), dropout=0.5, seed=0)
        >>> teacher = kd.MonteCarloDropout(network)
        >>> teacher.random_layers
        ['stage1_dropout']
        >>> x = np.ones((2, 4), "float32")
        >>> bool(np.allclose(teacher(x), teacher(x)))
        False
        >>> said = teacher.predict(x, samples=50, seed=1, verbose=0)
        >>> said.probabilities.shape, said.mutual_information.shape
        ((2, 3), (2,))
    """

    def __init__(self, model, samples=1, name=None):
        if not isinstance(model, keras.Model):
            raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
        checks.check_logits("model", model)
        # The network casts its inputs itself, by its own policy.
        name = name or f"{model.name}_monte_carlo"
        super().__init__(name=name, dtype=model.dtype_policy, autocast=False)
        self.model = model
        self.samples = scalars.whole(samples, "samples", "MonteCarloDropout")
        self._left_on = LeftOn(model)
        self._sampler = None
        spec = checks.input_spec(model)
        if spec is not None:
            self.build(keras.tree.map_structure(lambda tensor: tensor.shape, spec))

    @property
    def random_layers(self):
        return list(self._left_on.layers)

    # As functional models have them, so that shapes are known before a batch.

    @property
    def inputs(self):
        """The network's symbolic inputs, a list; None where only a batch tells its shape."""
        return getattr(self.model, "inputs", None)

    @property
    def input(self):
        return self.inputs[0] if isinstance(self.model, keras.Sequential) else self.model.input

    def build(self, input_shape):
        spec = checks.input_spec(self.model)
        if spec is None:
            spec = keras.tree.map_shape_structure(keras.KerasTensor, input_shape)
        # A symbolic pass as it is, which builds all layers, so that they are found; then one with
        # dropout.
        _check_output(output_spec(self.model, spec))
        self._left_on.find()
        # Sizes that aren't known count as 1.
        shape = output_spec(self._left_on, spec).shape
        self._output_size = math.prod(size or 1 for size in shape[1:])

    def __call__(self, inputs, training=None):
        # A layer that isn't told takes `training` from the call around it, in Keras.
        return super().__call__(inputs, training=False)

    def call(self, inputs, training=None):
        if self.samples == 1:
            return self._left_on(inputs)
        copies = keras.tree.map_structure(lambda x: ops.concatenate([x] * self.samples), inputs)
        return functional.mean_probabilities(ops.split(self._left_on(copies), self.samples))

    def predict(self, x, batch_size=None, verbose="auto", *, samples=None, seed=None, **kwargs):
        """Predicts from many random passes, or as Keras does.

        What comes before the first dropout runs once for each batch, and only the rest for each
        sample. That needs a graph: a functional or sequential network, with others nested in it. A
        subclassed one runs as a whole. The samples run in passes over several copies of the batch,
        as many as hold 2^20 numbers at the first dropout or at the output, and at least one; sums
        alone are kept, in float64. So memory doesn't grow with `samples`.

        Args:
            x: array `(examples, ...)`, or a list or dict of them. Without `samples` all that
                Keras takes.
            batch_size: int >= 1. Defaults to 32.
            verbose: 0 for silence, 1 for a progress bar, 2 for a line; "auto" (default) is 1.
            samples: int >= 1, number of passes, such as 100. None (default) is Keras's own
                `predict`, which returns one pass.
            seed: int >= 0. Equal seeds give equal results, for the same `batch_size` on the same
                machine, and leave the random states of the layers as they were. None (default)
                draws other masks in each call.
            **kwargs: of Keras's own `predict`.

        Returns:
            A `kdtoolkit.dropout.MonteCarloPrediction`; without `samples` an array of logits.

        Raises:
            TypeError: with `samples`, data that aren't arrays, or an argument of Keras's own.
            ValueError: `samples`, `batch_size` or `seed` out of range; no examples; a network that
                returns probabilities, NaN or infinite values.
        """
        if not self.built and is_arrays(x):
            self.build(keras.tree.map_structure(lambda tensor: tensor.shape, spec_of(x)))
            self.built = True
        if samples is None:
            with self._left_on.seeded(seed):
                return super().predict(x, batch_size, verbose, **kwargs)
        _check_data(x, kwargs)
        samples = scalars.whole(samples, "samples", "MonteCarloDropout.predict")
        size = 32 if batch_size is None else batch_size
        size = scalars.whole(size, "batch_size", "MonteCarloDropout.predict")
        x = keras.tree.map_structure(ops.convert_to_numpy, x)
        with self._left_on.seeded(seed):
            self._sampler = self._sampler or Sampler(self._left_on, self._output_size)
            return self._sampler(x, samples, size, 1 if verbose == "auto" else verbose)

    def get_config(self):
        model = keras.saving.serialize_keras_object(self.model)
        return {"model": model, "samples": self.samples, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"])})


def _check_output(output):
    if keras.tree.is_nested(output):
        known = list(output) if isinstance(output, dict) else f"a {type(output).__name__}"
        raise ValueError(
            f"MonteCarloDropout takes a network with one output. Received: {known}. "
            "`kd.models.single_output` makes a network of one of several outputs"
        )
    if len(output.shape) < 2 or output.shape[-1] == 1:
        raise ValueError(
            "MonteCarloDropout expects logits (batch, ..., classes) of 2 or more classes. "
            f"Received: shape {tuple(output.shape)}. A binary classifier with one output z has the "
            "two-class logits [0, z]"
        )


def _check_data(x, kwargs):
    if kwargs:
        raise TypeError(
            f"With `samples`, `predict` doesn't take {sorted(kwargs)}, which are Keras's"
        )
    if not is_arrays(x):
        raise TypeError(
            "With `samples`, `predict` takes an array (examples, ...) or a list or dict of them. "
            f"Received: {type(x).__name__}. Of a data set, predict batch by batch"
        )
    lengths = {len(array) for array in keras.tree.flatten(x)}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(
            f"`x` must hold one or more examples, as many in each array. Received: {lengths}"
        )
