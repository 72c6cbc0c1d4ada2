"""Magnitude pruning, at once or little by little."""

import math
import numbers
import warnings

import keras
import numpy as np

from kdtoolkit.compress.masks import Mask, pattern_kept, smallest_pruned
from kdtoolkit.compress.weights import weights_of
from kdtoolkit.compress.wrapping import compressed_layers, with_changes
from kdtoolkit.registry import expects

SCOPES = ("layer", "global")


def prune(model, sparsity, *, scope="layer", pattern=None, layers=None):
    """Sets the weights of smallest magnitude to zero, for good.

    Returns a copy of the network in which masked weights are zero whatever training does to
    them: `layer(x; w * mask)`. It trains in any `fit`, `kd.Distiller` among them; saving keeps the
    masks; `GradualPruning` prunes further while it trains. Biases, normalisation and other small
    weights stay.

    Exactly `round(sparsity * size)` weights of each kernel are zero, or of all together with
    `scope="global"`, ties by position. What was pruned before stays pruned and counts.

    Zeros shrink the compressed file, not the raw one, and speed up no interpreter that doesn't know
    sparse kernels; `prune_filters` makes a smaller network.

    After pruning, statistics of batch normalisation are those of another network:
    `recalibrate_batchnorm`.

    Source: Han et al., "Learning both Weights and Connections" (2015), arXiv:1506.02626, per layer;
    N:M patterns as in Zhou et al. (2021), arXiv:2102.04010, without their decay: masked weights get
    no gradient.

    Args:
        model: functional or built sequential `keras.Model`.
        sparsity: share of weights to prune, 0 <= sparsity < 1. 0 prepares a network for
            `GradualPruning`. With a pattern it is that of the pattern, or 0.
        scope: `"layer"` (default), each kernel alone, or `"global"`.
        pattern: None, or (n, m) such as (2, 4): of each m weights in a row along the input
            channels, the n largest stay. Kernels whose input channels m doesn't divide, depthwise
            kernels and embeddings have none: an error names them unless `layers` leaves them out.
        layers: list of names of layers, a function `layer -> bool`, or None (default) for all with
            kernels or embeddings. The classifier at the end and the first convolution are small
            and worth leaving out at high sparsity.

    Returns:
        A functional `keras.Model` with its own weights and the names of `model`.

    Raises:
        ValueError: a sparsity out of range or other than the pattern's; an unknown layer or
            scope; a pattern that doesn't fit; a model without a graph.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8),
        ...                             keras.layers.Dense(3)])
        >>> pruned = kd.compress.prune(network, 0.75)
        >>> [row["sparsity"] for row in kd.compress.summary(pruned)]
        [0.75, 0.75]
    """
    _check_sparsity(sparsity, pattern)
    if scope not in SCOPES:
        raise ValueError(f"`scope` must be one of {SCOPES}. Received: {scope!r}")
    misfits, made = [], []

    def make(layer, index, path, weight):
        axis = weight.input_axis
        if pattern and (axis is None or weight.variable.shape[axis] % pattern[1]):
            misfits.append(f"{layer.name}/{path} {tuple(weight.variable.shape)}")
            return None
        made.append(Mask(index, scope, pattern, axis if pattern else None))
        return made[-1]

    pruned = with_changes(model, make, layers)
    if misfits:
        raise ValueError(
            f"The pattern {pattern} needs kernels whose input channels are a multiple of "
            f"{pattern[1]}. Received: {', '.join(misfits)}. Leave these out with `layers`"
        )
    own = set(map(id, made))
    update_masks([found for found in masks_of(pruned) if id(found[1]) in own], sparsity)
    return pruned


def _check_sparsity(sparsity, pattern):
    if not isinstance(sparsity, numbers.Real) or not 0 <= sparsity < 1:
        raise ValueError(f"`sparsity` must be at least 0 and below 1. Received: {sparsity!r}")
    if pattern is None:
        return
    n, m = pattern if isinstance(pattern, list | tuple) and len(pattern) == 2 else (0, 0)
    if not (isinstance(n, int) and isinstance(m, int) and 0 < n < m):
        raise ValueError(f"`pattern` must be (n, m) with 0 < n < m. Received: {pattern!r}")
    if sparsity and abs(sparsity - (m - n) / m) > 1e-9:
        raise ValueError(
            f"The pattern {n}:{m} has a sparsity of {(m - n) / m:g}. Received: {sparsity!r}. "
            "Give that, or 0 to prune later"
        )


def masks_of(model):
    """`(layer, Mask, magnitudes)` of each masked weight; magnitudes are -1 where pruned."""
    found = []
    for layer in compressed_layers(model):
        weights = list(weights_of(layer.layer).values())
        masks = [change for change in layer.changes if isinstance(change, Mask)]
        # A second pruning puts its mask behind the first: the last one decides.
        for mask in {mask.index: mask for mask in masks}.values():
            variable = weights[mask.index].variable
            size = np.abs(keras.ops.convert_to_numpy(variable)).astype("float64")
            for other in masks:
                if other.index == mask.index:
                    size[~keras.ops.convert_to_numpy(other.mask)] = -1.0
            found.append((layer, mask, size))
    return found


def update_masks(found, sparsity):
    """Set masks, as `masks_of` gives them, to a sparsity, by the weights of this moment."""
    for _, mask, size in found:
        if mask.pattern is not None:
            mask.mask.assign(pattern_kept(size, mask.pattern, mask.axis, sparsity))
        elif mask.scope == "layer":
            mask.mask.assign(smallest_pruned([size], sparsity)[0])
    together = [
        (mask, size) for _, mask, size in found if mask.scope == "global" and not mask.pattern
    ]
    if together:
        new = smallest_pruned([size for _, size in together], sparsity)
        for (mask, _), value in zip(together, new, strict=True):
            mask.mask.assign(value)


class GradualPruning(keras.callbacks.Callback):
    """Prunes a network further and further while it trains.

    At step t of the optimizer, from `begin_step` to `end_step` every `every` steps and once more at
    the end, the masks are set anew to

        s_t = sparsity + (initial - sparsity) * (1 - (t - begin) / (end - begin))^power

    by the magnitudes of that moment. What is pruned stays pruned. Behind `end_step` the masks don't
    change. The step isn't compiled again, and between updates nothing runs in Python.

    `power=3` is the cubic schedule, `power=1` a linear one; for constant sparsity call `prune` and
    use no callback. Steps are those of the model's optimizer, so a run that is resumed goes on
    where it was.

    Source: Zhu and Gupta, "To prune, or not to prune" (2017), arXiv:1710.01878. There, masked
    weights may come back; here they don't.

    Args:
        network: what `prune` returned: the model that trains, or a student in it.
        sparsity: share of weights pruned at the end, between 0 and 1; of an N:M pattern its own.
        end_step: int, step with the final sparsity. Leave some training behind it.
        begin_step: int, step of the first pruning. Defaults to 0.
        initial: share pruned at `begin_step`. Defaults to 0.
        power: > 0. Defaults to 3.
        every: int >= 1, steps between updates. Defaults to 100.

    Raises:
        ValueError: a number out of range, or a network without masks.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> network = kd.compress.prune(network, 0)
        >>> gradual = kd.compress.GradualPruning(network, 0.5, end_step=6, every=2)
        >>> network.compile("sgd", "mse")
        >>> x = np.ones((16, 4), "float32")
        >>> _ = network.fit(x, np.ones((16, 8)), batch_size=4, epochs=2, callbacks=[gradual],
        ...                 verbose=0)
        >>> kd.compress.summary(network)[0]["sparsity"]
        0.5
    """

    @expects(network="model")
    def __init__(
        self, network, sparsity, *, end_step, begin_step=0, initial=0.0, power=3.0, every=100
    ):
        super().__init__()
        found = masks_of(network)
        if not found:
            raise ValueError(
                f"'{network.name}' has no masks. Make it with kd.compress.prune(network, 0) first"
            )
        for layer, mask, _ in found:
            _check_sparsity(sparsity, mask.pattern)
            if any(change.replaces for change in layer.changes if change.index == mask.index):
                raise ValueError(
                    f"'{layer.name}' has shared weights, which masks don't reach any more. Prune "
                    "before kd.compress.cluster"
                )
        if not 0 <= initial <= sparsity:
            raise ValueError(
                f"`initial` must lie between 0 and `sparsity`. Received: {initial!r}, {sparsity!r}"
            )
        if not 0 <= begin_step < end_step or every < 1 or not power > 0:
            raise ValueError(
                "Expected 0 <= begin_step < end_step, every >= 1 and power > 0. Received: "
                f"begin_step={begin_step}, end_step={end_step}, every={every}, power={power}"
            )
        self.network = network
        self.sparsity, self.initial, self.power = sparsity, initial, power
        self.begin_step, self.end_step, self.every = begin_step, end_step, every
        self._begun = self._step = 0
        self._next = None
        self._steps_per_update = 1

    def get_state(self):
        """What `kd.callbacks.Resume` saves: a dict of numbers."""
        return {"begun": self._begun, "step": self._step, "next": self._next}

    def set_state(self, saved):
        """Goes on from what `get_state` returned."""
        self._begun, self._step = int(saved["begun"]), int(saved["step"])
        # A step, or infinity behind the last one.
        self._next = float(saved["next"]) if "next" in saved else None

    def sparsity_at(self, step):
        """The sparsity of the schedule at a step of the optimizer, 0 to 1."""
        if step < self.begin_step:
            return 0.0
        done = min((step - self.begin_step) / (self.end_step - self.begin_step), 1.0)
        return self.sparsity + (self.initial - self.sparsity) * (1.0 - done) ** self.power

    def on_epoch_begin(self, epoch, logs=None):
        # Here, what resumes a run has put the optimizer back. Looking at `model` makes JAX write
        # the state of the last step into the variables.
        optimizer = getattr(self.model, "optimizer", None)
        self._steps_per_update = getattr(optimizer, "gradient_accumulation_steps", None) or 1
        count = 0 if optimizer is None else optimizer.iterations
        before, self._step = self._step, int(keras.ops.convert_to_numpy(count))
        self._begun = self._step
        if self._next is None or self._step != before:
            self._next = max(self.begin_step, self._step)
        # Masks are weights: whoever puts older weights back puts older masks back.
        if self._step >= self.end_step and self._missing():
            self._next = self._step

    def on_train_batch_end(self, batch, logs=None):
        # Several steps may run in one execution; `batch` is the last of them.
        self._step = self._begun + (batch + 1) // self._steps_per_update
        if self._step >= self._next:
            _ = self.model
            update_masks(masks_of(self.network), self.sparsity_at(self._step))
            due = min(self._step + self.every, self.end_step)
            self._next = due if self._step < self.end_step else math.inf

    def on_train_end(self, logs=None):
        _ = self.model
        if missing := self._missing():
            warnings.warn(
                f"'{self.network.name}' is pruned to {missing} and not to {self.sparsity:g}: "
                f"training ended at step {self._step}, `end_step` is {self.end_step}, or weights "
                "from before were put back",
                stacklevel=2,
            )

    def _missing(self):
        """The share pruned where it is less than asked, as a string, else None."""
        masks = [keras.ops.convert_to_numpy(mask.mask) for _, mask, _ in masks_of(self.network)]
        pruned = [~mask for mask in masks]
        share = sum(int(mask.sum()) for mask in pruned) / sum(mask.size for mask in pruned)
        # Each kernel may be half a weight short.
        short = self.sparsity - 0.5 * len(masks) / sum(mask.size for mask in masks)
        return f"{share:.3f}" if share < short - 1e-9 else None
