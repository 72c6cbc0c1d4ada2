"""One network with several ends: branches that share their first layers and learn together.

ONE and CL-ILR train such a network, and deploy one branch of it. `kd.wirings` has their transfers.
"""

import difflib
import itertools
import math

import keras
import numpy as np
from keras import layers, ops

from kdtoolkit.models.factory import LayerFactory
from kdtoolkit.registry import expects, public

ENSEMBLES = ("gate", "mean", None)


@expects(model="model", at="text", count="whole", name="text", seed="seed")
def branches(
    model,
    at,
    count=3,
    *,
    ensemble="gate",
    others=False,
    share_gradient=False,
    name=None,
    seed=None,
):
    """Builds all that comes behind one layer of a network `count - 1` times more.

    The network itself is the first branch: the same layer objects, so training the result trains
    `model`, and `model` is what to deploy. The other branches are networks called `branch2`,
    `branch3`, ..., of the same architecture with weights of their own. With z_i the logits of
    branch i and x what the layer `at` returns:

        mean         z_e = 1 / count * sum_i z_i
        gate         z_e = sum_i g_i z_i
                     g = softmax(relu(batch_norm(dense(average of x over positions))))
        others       o_k = 1 / (count - 1) * sum over i != k of z_i

    The branches start from other random numbers than the network: initialisers and dropout with a
    seed get another one. Initialisers without one stay so, and follow
    `keras.utils.set_random_seed`.

    Variants: ONE's authors have 3 branches from the last stage of a ResNet on, the gate and the
    whole gradient. CL-ILR has the others' mean and shares the gradient; its paper also splits the
    branches again, which is not built here.

    Source: Lan, Zhu and Gong, 2018, arXiv:1806.04606 (ONE: the gate, as in the authors' code); Song
    and Chai, 2018, arXiv:1805.11761 (CL-ILR).

    Args:
        model: a functional or built sequential `keras.Model` with one output, logits `(batch,
            classes)`.
        at: str, name of the layer that ends the shared part, such as `"stage2"`. All that is behind
            must reach the output through its one output tensor.
        count: int >= 2, the number of branches. Defaults to 3.
        ensemble: `"gate"` (default), `"mean"`, or None for no ensemble.
        others: whether each branch gets the mean of the others. Defaults to False.
        share_gradient: whether the gradient that reaches the shared part, from all branches and
            from the gate, is divided by `count`. Defaults to False.
        name: str, or None for the model's name with `_branches` behind it.
        seed: int >= 0 for reproducible branches, or None.

    Returns:
        A functional `keras.Model` with the input of `model` and a dict of logits: `"branch1"`,
        `"branch2"`, ..., with an ensemble `"ensemble"`, and with others `"others1"`, `"others2"`,
        ... `kd.models.single_output` makes a plain network of one of them.

    Raises:
        ValueError: a model with another output; an unknown layer, one that runs twice, or has
            several outputs; a connection that leads around it; fewer than two branches; an unknown
            ensemble; branches that start equal, or a seed as in `convnet`.

    Example:
        >>> from kdtoolkit.models import mlp
        >>> from kdtoolkit.models.branches import branches
        >>> network = mlp((4,), 3, units=(8, 8), seed=0)
        >>> student = branches(network, "stage1", count=2, seed=1)
        >>> sorted(student.output)
        ['branch1', 'branch2', 'ensemble']
        >>> student.get_layer("stage2_dense") is network.get_layer("stage2_dense")
        True
    """
    _check_arguments(model, count, ensemble)
    factory = _BranchFactory(seed)
    split = _Split(at, 1 / count if share_gradient else None)
    first = split.run(model)
    ends = [keras.Model(split.tensor, first.output, name="branch1")]
    ends += [factory.again(ends[0], f"branch{k}") for k in range(2, count + 1)]
    _check_different(ends, at)
    logits = [first.output, *(end(split.tensor) for end in ends[1:])]
    outputs = {f"branch{k}": z for k, z in enumerate(logits, start=1)}
    if ensemble is not None:
        gate = factory.gate(split.tensor, count) if ensemble == "gate" else None
        outputs["ensemble"] = _together(logits, gate)
    if others:
        for k in range(1, count + 1):
            rest = [*logits[: k - 1], *logits[k:]]
            outputs[f"others{k}"] = _mean(rest, f"others{k}")
    return keras.Model(first.input, outputs, name=name or f"{model.name}_branches")


@public
class ScaleGradient(layers.Layer):
    """Returns its input, and multiplies the gradient that comes back by a factor.

        y = x        dL/dx = factor * dL/dy

    In inference mode it does nothing at all, so nothing of it is exported.

    Source: backpropagation rescaling of Song and Chai, 2018, arXiv:1805.11761, with the factor
    1 / number of branches.

    Args:
        factor: float >= 0.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ValueError: a factor that is negative or not finite.

    Example:
        >>> import numpy as np
        >>> from kdtoolkit.models.branches import ScaleGradient
        >>> float(ScaleGradient(0.5)(np.array([3.0]), training=True)[0])
        3.0
    """

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= factor < math.inf:
            raise ValueError(f"`factor` must be 0 or more and finite. Received: factor={factor}")
        self.factor = factor
        self.supports_masking = True

    def call(self, inputs, training=None):
        if not training:
            return inputs
        constant = ops.stop_gradient(inputs)
        # The difference is exactly 0, so the sum is exactly the input.
        return constant + self.factor * (inputs - constant)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class _BranchFactory(LayerFactory):
    """Makes branches like one that is there, and the gate."""

    def __init__(self, seed):
        super().__init__(seed, stream=1)

    def again(self, model, name):
        """Returns a network like `model` with weights of its own."""
        like = model.input
        inputs = keras.Input(batch_shape=like.shape, dtype=like.dtype, name="inputs")
        copy = keras.models.clone_model(model, inputs, clone_function=self._layer_again)
        return keras.Model(inputs, copy.output, name=name)

    def gate(self, x, count):
        """Returns the weights of the branches, `(batch, count)`, from what they read."""
        if len(x.shape) > 2:
            x = ops.mean(x, axis=tuple(range(1, len(x.shape) - 1)))
        x = self.dense(count, "gate_dense", dtype="float32")(x)
        x = self.relu("gate_relu")(self.norm("gate_norm")(x))
        return layers.Softmax(dtype="float32", name="gate")(x)

    def _layer_again(self, layer):
        return type(layer).from_config(self._reseeded(layer.get_config()))

    def _reseeded(self, value, key=None):
        if isinstance(value, dict):
            return {key: self._reseeded(inner, key) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._reseeded(inner) for inner in value)
        # A seed of None stays None: attention makes four initialisers of one, and with a seed in
        # it they would all draw the same weights.
        return self._next_seed() if key == "seed" and isinstance(value, int) else value


class _Split:
    """Runs a network anew on the same layers, and finds the tensor behind which branches start."""

    def __init__(self, at, factor):
        self.tensor = None
        self._at = at
        self._factor = factor
        # By id: the tensors that come from behind the split, and which layer made a tensor.
        self._behind = set()
        self._maker = {}

    def run(self, model):
        """Returns a functional model of the layers of `model`."""
        # A model of its own, since a sequential one has no graph, and the clone of a compiled one
        # would be compiled too.
        sequential = isinstance(model, keras.Sequential)
        model = keras.Model(model.inputs[0] if sequential else model.input, model.outputs[0])
        copy = keras.models.clone_model(
            model, model.input, clone_function=lambda layer: layer, call_function=self._call
        )
        if self.tensor is None:
            known = list(self._maker.values())
            near = difflib.get_close_matches(str(self._at), known, n=8, cutoff=0.0)
            raise ValueError(
                "`at` must name a layer of the model itself, not its input and none inside a "
                f"nested model. Received: at={self._at!r}. Near names: {', '.join(near)}"
            )
        if id(copy.output) not in self._behind or copy.output is self.tensor:
            raise ValueError(
                "`at` must name a layer that has layers behind it, on the way to the output. "
                f"Received: at={self._at!r}"
            )
        return copy

    def _call(self, operation, *args, **kwargs):
        read = keras.tree.flatten((args, kwargs))
        read = [tensor for tensor in read if isinstance(tensor, keras.KerasTensor)]
        before = [tensor for tensor in read if id(tensor) not in self._behind]
        if before and len(before) < len(read):
            names = [self._maker.get(id(tensor), tensor.name) for tensor in before]
            raise ValueError(
                f"All that is behind `at` must pass through it. Received: at={self._at!r}, but "
                f"'{operation.name}' behind it also reads {names} from before. Split where such a "
                "connection ends, for instance at the end of a block"
            )
        output = operation(*args, **kwargs)
        if operation.name == self._at:
            output = self._split(output)
        elif len(before) < len(read):
            self._behind.update(id(tensor) for tensor in keras.tree.flatten(output))
        self._maker.update((id(tensor), operation.name) for tensor in keras.tree.flatten(output))
        return output

    def _split(self, output):
        if self.tensor is not None or not isinstance(output, keras.KerasTensor):
            raise ValueError(
                "`at` must name a layer that runs once and returns one tensor. "
                f"Received: at={self._at!r}, which "
                + ("runs twice" if self.tensor is not None else f"returns {output}")
            )
        if self._factor is not None:
            output = ScaleGradient(self._factor, name="shared_gradient")(output)
        self._behind.add(id(output))
        self.tensor = output
        return output


def _mean(tensors, name):
    if len(tensors) == 1:
        return layers.Identity(dtype="float32", name=name)(tensors[0])
    return layers.Average(dtype="float32", name=name)(tensors)


def _together(logits, gate):
    if gate is None:
        return _mean(logits, "ensemble")
    stacked = ops.stack(logits, axis=1)
    return layers.Dot(axes=1, dtype="float32", name="ensemble")([gate, stacked])


def _check_arguments(model, count, ensemble):
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise ValueError(
            "`model` must be a functional model with one output, (batch, classes). Received: "
            f"{getattr(model, 'name', model)} with the outputs {outputs}. "
            "`kd.models.single_output` takes one of several"
        )
    if count < 2:
        raise ValueError(f"`count` must be 2 or more, the original included. Received: {count}")
    if ensemble not in ENSEMBLES:
        raise ValueError(f"`ensemble` must be one of {ENSEMBLES}. Received: {ensemble!r}")


def _check_different(ends, at):
    for first, second in itertools.pairwise(ends):
        pairs = zip(first.get_weights(), second.get_weights(), strict=True)
        if all(np.array_equal(a, b) for a, b in pairs):
            raise ValueError(
                "Branches must differ from the start. Expected layers with random weights behind "
                f"`at`. Received: at={at!r}, and equal weights in {first.name} and {second.name}"
            )
