"""Snapshots: a copy of a student's network with weights of an earlier time."""

import dataclasses

import keras
from keras import ops

from kdtoolkit import scalars
from kdtoolkit.registry import public
from kdtoolkit.sources.base import Source


@public
class Snapshot(Source):
    """A second network like the student, whose weights are the student's of an earlier time.

    It runs on each batch in inference mode, so what it teaches belongs to exactly this input and
    to exactly these weights, for the price of a forward pass. Transfers may read its layers.

    Without `decay`, a callback decides when it takes the student's weights:
    `kd.callbacks.BestTeacher()` at the best validation score (the exact variant of Takagi and
    Hattori's self-distillation), `kd.callbacks.PeriodicTeacher(n)` every n epochs (n = 1: the last
    epoch; n = a cycle of the learning rate: snapshot distillation). Until then it teaches the
    labels (`initial`), and transfers that read its layers get those of the student's first weights.

    With `decay` it is a running average of the student's weights (mean teacher), updated before
    each step with the weights that the step before left:

        average <- a * average + (1 - a) * student,  a = min(decay, 1 - 1 / (t + 1)),  t = 0, 1, ...

    BatchNorm's moving statistics, which a step's forward pass has already moved, are averaged like
    weights. After the last step of `fit` the
    average lacks that step. With gradient accumulation it moves at every batch.

    Source: Takagi and Hattori, IPSJ 81st National Convention (2019), 4U-02; Yang et al., 2019,
    arXiv:1812.00123 (snapshot distillation); Tarvainen and Valpola, 2017, arXiv:1703.01780 (mean
    teacher; the ramp of `a` is the authors' code's).

    Args:
        network: the student to copy, or a network of the same architecture. It isn't changed.
        decay: number in [0, 1), or `None` (default) to wait for `commit`.
        follows, initial, name: as in `kd.sources.Source`. `initial` plays no part with `decay`.

    Raises:
        ValueError: a decay out of range; when connected, a student with other weights.

    Example:
        >>> import kdtoolkit as kd
        >>> student = kd.models.mlp((4,), 3, units=(8,))
        >>> average = kd.sources.Snapshot(student, decay=0.99)
        >>> edge = kd.Transfer(kd.losses.SoftTargets(1.0))
        >>> distiller = kd.Distiller(student=student, teacher={"mean": average}, transfers=[edge])
    """

    def __init__(self, network, decay=None, follows=None, initial="labels", name=None):
        super().__init__(follows=follows, initial=initial, name=name)
        if decay is not None:
            decay = scalars.checked(decay, "decay", "Snapshot", minimum=0.0)
            if decay >= 1:
                raise ValueError(f"`decay` of Snapshot must be below 1. Received: decay={decay}")
        self.decay = decay
        self.commits = decay is None
        self._network = _copy(network)
        # Updates of the average so far, or commits.
        self._count = scalars.variable(0.0, "count")
        self._pairs = _Pairs(())

    @property
    def network(self):
        return self._network

    def connect(self, student, output):
        mine, theirs = self._network.weights, student.weights
        shapes = [[tuple(w.shape) for w in weights] for weights in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Snapshot '{self.name}' was made of '{self._network.name}', whose weights don't "
                f"match those of the student '{student.name}'. Expected `Snapshot(student)` with "
                f"the student itself. Received: {len(mine)} and {len(theirs)} weights"
            )
        self._pairs = _Pairs(tuple(zip(mine, theirs, strict=True)))

    def update(self):
        if self.decay is None:
            return
        share = ops.minimum(self.decay, 1.0 - 1.0 / (self._count + 1.0))
        for mine, theirs in self._pairs.all:
            theirs = ops.stop_gradient(ops.convert_to_tensor(theirs))
            kept = ops.cast(share, theirs.dtype)
            mine.assign(kept * mine + (1 - kept) * theirs if _is_float(mine) else theirs)
        self._count.assign(self._count + 1.0)

    def read(self, forward, student_output, context):
        view = forward()
        if self.decay is not None:
            return view
        labels = context["labels"]
        if not isinstance(view["output"], dict):
            output = self._or_initial(view["output"], student_output, labels)
            return {**view, "output": output}
        # Of several outputs those that are read stand among the taps, under their keys.
        taps = dict(view["taps"])
        for key in taps.keys() & view["output"].keys():
            own = labels[key] if isinstance(labels, dict) else labels
            taps[key] = self._or_initial(taps[key], student_output[key], own)
        return {**view, "taps": taps}

    def _or_initial(self, output, student_output, labels):
        """What the snapshot says, or before the first commit what stands for nothing."""
        other = self.in_place_of_nothing(student_output, labels)
        return ops.where(self._count > 0, ops.cast(output, other.dtype), other)

    def commit(self, score=None):
        for mine, theirs in self._pairs.all:
            # A copy: JAX gives the memory of a variable away, so two must not share it.
            mine.assign(ops.copy(theirs))
        self._count.assign(self._count + 1.0)
        super().commit(score)

    def reset(self):
        super().reset()
        self._count.assign(0.0)

    def get_config(self):
        network = keras.saving.serialize_keras_object(self._network)
        return {**super().get_config(), "network": network, "decay": self.decay}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("network")), **config)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """`(own weight, student's weight)`. Keras tracks what a list holds, but not what this holds."""

    all: tuple


def _copy(network):
    if not isinstance(network, keras.Model):
        raise TypeError(f"Snapshot expected the student, a keras.Model. Received: {network!r}")
    copy = keras.models.clone_model(network)
    if network.built and copy.built:
        copy.set_weights(network.get_weights())
    return copy


def _is_float(variable):
    return keras.backend.is_float_dtype(variable.dtype)
