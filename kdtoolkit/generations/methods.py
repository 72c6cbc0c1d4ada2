"""How a generation learns from the one before: functions `(student, teacher)` -> `Distiller`.

`teacher` is the previous generation's network, `None` in the first generation. The distiller comes
back uncompiled. All networks return logits. Where `label_weight` is 0 the label loss serves the
evaluation alone.

A method of your own is any such function. To change an argument, use `functools.partial`.
"""

import functools

from kdtoolkit import losses
from kdtoolkit.distiller import Distiller
from kdtoolkit.self_distillation import SelfDistiller
from kdtoolkit.transfer import Transfer


def independent(student, teacher=None):
    """Labels alone, in every generation: `CE(y, student)`. The teacher is ignored.

    The control for ensembles of generations: as many networks, trained apart.

    Args:
        student: `keras.Model` that returns logits.
        teacher: not used.

    Returns:
        An uncompiled `Distiller`.

    Example:
        >>> import kdtoolkit as kd
        >>> from kdtoolkit.generations import independent
        >>> independent(kd.models.mlp((4,), 3)).transfers
        []
    """
    return Distiller(student=student, transfers=[])


def born_again(student, teacher=None):
    """Labels first; then the previous network's distribution alone: `CE(softmax(z_t), student)`.

    T = 1 and no labels from the second generation on.

    Args:
        student, teacher: `keras.Model`s that return logits, see the module's first lines.

    Returns:
        An uncompiled `Distiller`.

    Source: Furlanello et al., 2018, arXiv:1805.04770, BAN.

    Example:
        >>> import kdtoolkit as kd
        >>> from kdtoolkit.generations import born_again
        >>> student, teacher = (kd.models.mlp((4,), 3) for _ in range(2))
        >>> [transfer.name for transfer in born_again(student, teacher).transfers]
        ['soft_cross_entropy']
    """
    return _taught(student, teacher, losses.SoftCrossEntropy())


def born_again_labels(student, teacher=None, label_weight=0.5, teacher_weight=0.5):
    """Labels and the previous network: `a * CE(y, student) + b * CE(softmax(z_t), student)`.

    The first generation has the labels alone, with weight 1.

    Args:
        student, teacher: `keras.Model`s that return logits, see the module's first lines.
        label_weight: a >= 0. Defaults to 0.5.
        teacher_weight: b >= 0. Defaults to 0.5. The paper adds both losses without saying with
            which weights; the plain sum is
            `functools.partial(born_again_labels, label_weight=1.0, teacher_weight=1.0)`.

    Returns:
        An uncompiled `Distiller`.

    Source: Furlanello et al., 2018, arXiv:1805.04770, BAN+L.

    Example:
        >>> import kdtoolkit as kd
        >>> from kdtoolkit.generations import born_again_labels
        >>> student, teacher = (kd.models.mlp((4,), 3) for _ in range(2))
        >>> float(born_again_labels(student, teacher).label_weight)
        0.5
    """
    loss = losses.SoftCrossEntropy()
    return _taught(student, teacher, loss, label_weight=label_weight, weight=teacher_weight)


def confidence_weighted(student, teacher=None):
    """Labels weighted by how sure the previous network is of each example; see
    `kd.losses.CategoryConfidence`.

    Args:
        student, teacher: `keras.Model`s that return logits, see the module's first lines.

    Returns:
        An uncompiled `Distiller`.

    Source: Furlanello et al., 2018, arXiv:1805.04770, CWTM.

    Example:
        >>> import kdtoolkit as kd
        >>> from kdtoolkit.generations import confidence_weighted
        >>> student, teacher = (kd.models.mlp((4,), 3) for _ in range(2))
        >>> float(confidence_weighted(student, teacher).label_weight)
        0.0
    """
    return _taught(student, teacher, losses.CategoryConfidence())


def permuted(student, teacher=None, seed=None):
    """The previous network's distribution with its smaller probabilities shuffled; see
    `kd.losses.PermutedDarkKnowledge`.

    Args:
        student, teacher: `keras.Model`s that return logits, see the module's first lines.
        seed: int of the permutations. `None` (default) draws one from Keras's global seed, which
            `kd.train_generations` sets for every generation.

    Returns:
        An uncompiled `Distiller`.

    Source: Furlanello et al., 2018, arXiv:1805.04770, DKPP.

    Example:
        >>> import kdtoolkit as kd
        >>> from kdtoolkit.generations import permuted
        >>> student, teacher = (kd.models.mlp((4,), 3) for _ in range(2))
        >>> permuted(student, teacher, seed=1).transfers[0].loss.seed
        1
    """
    return _taught(student, teacher, losses.PermutedDarkKnowledge(seed=seed))


def self_distillation(student, teacher=None):
    """Labels mixed with the student's own outputs of its best epoch; then the previous network too.

    First generation (eq. 1): `CE(0.5 y + 0.5 y_v, student)`. Later ones (eq. 2) add
    `CE(softmax(z_t), student)` with weight 1. See `kd.SelfDistiller`, whose arguments other than
    these are reached by a method of your own. `fit` needs `kd.callbacks.BestTeacher`, which
    `kd.train_generations` adds.

    Args:
        student, teacher: `keras.Model`s that return logits, see the module's first lines.

    Returns:
        An uncompiled `kd.SelfDistiller`.

    Source: Takagi and Hattori, IPSJ 81st National Convention (2019), 4U-02, equations 1 and 2.

    Example:
        >>> import kdtoolkit as kd
        >>> from kdtoolkit.generations import self_distillation
        >>> list(self_distillation(kd.models.mlp((4,), 3)).sources)
        ['past']
    """
    return SelfDistiller(student=student, teacher=teacher)


#: The methods that `kd.train_generations(method=...)` knows by name.
METHODS = {
    function.__name__: function
    for function in (
        independent,
        born_again,
        born_again_labels,
        confidence_weighted,
        permuted,
        self_distillation,
    )
}


def find_method(method):
    """The name and the function of a method.

    Args:
        method: a name from `METHODS`, or a function `(student, teacher)`. The name of a
            `functools.partial` holds its arguments.

    Returns:
        A pair `(name, function)`.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a function.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(
                f"`method` must be one of {sorted(METHODS)}, or a function (student, teacher) "
                f"that returns a Distiller. Received: method={method!r}"
            )
        return method, METHODS[method]
    if not callable(method):
        raise TypeError(
            "`method` must be a name or a function (student, teacher) that returns a Distiller. "
            f"Received: method={method!r}"
        )
    return _name_of(method), method


def _name_of(method):
    if isinstance(method, functools.partial):
        arguments = [*map(_shown, method.args)]
        arguments += [f"{key}={_shown(value)}" for key, value in sorted(method.keywords.items())]
        return f"{_name_of(method.func)}({', '.join(arguments)})"
    return getattr(method, "__name__", type(method).__name__)


def _shown(value):
    # The text of other objects holds their address, which the next process doesn't share.
    plain = isinstance(value, bool | int | float | str) or value is None
    return repr(value) if plain else type(value).__name__


def _taught(student, teacher, loss, label_weight=0.0, weight=1.0):
    if teacher is None:
        return independent(student)
    return Distiller(
        student=student,
        teacher=teacher,
        transfers=[Transfer(loss, weight=weight)],
        label_weight=label_weight,
    )
