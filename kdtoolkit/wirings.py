"""Lists of transfers: methods that one network with several outputs needs no class for.

Each function returns what `kd.Distiller(student=..., transfers=...)` takes. The student comes from
`kd.models.branches`; source and student of each transfer are two of its outputs.
"""

import dataclasses
from typing import NamedTuple

import keras

from kdtoolkit.losses import Hint, SoftTargets
from kdtoolkit.outputs import layer_names
from kdtoolkit.scalars import checked
from kdtoolkit.transfer import Transfer


@dataclasses.dataclass(frozen=True)
class ExitWeights:
    """The numbers of a network that teaches its own exits.

    Attributes:
        labels: weight of the label loss of each exit.
        last_labels: weight of the label loss of the network's own output; None stands for 1, or
            with teachers for 0.1.
        soft: weight of own output -> each exit, soft targets; 0 leaves them out.
        temperature: of these, T > 0.
        hint: weight of own features -> each exit's, mean squared difference; 0 leaves it out.
        teacher: weight of all teachers' soft targets for the network's own output together.
        teacher_temperature: of these.
    """

    labels: float = 0.7
    last_labels: float | None = None
    soft: float = 0.3
    temperature: float = 3.0
    hint: float = 0.03
    teacher: float = 0.9
    teacher_temperature: float = 4.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if name.endswith("temperature"):
                checked(value, name, "own_exits", above=0.0)
            elif (name, value) != ("last_labels", None):
                checked(value, name, "own_exits", minimum=0.0)


#: Numbers by where they come from, see `own_exits`.
EXIT_PRESETS = {
    "byot": ExitWeights(),
    "luanyunteng": ExitWeights(labels=0.9, last_labels=0.9, soft=0.1, hint=0.066),
    "self_kd_lib": ExitWeights(labels=1.0, soft=1.0, temperature=4.0, hint=0.05),
    "deep_supervision": ExitWeights(labels=1.0, soft=0.0, hint=0.0),
}


class OwnExits(NamedTuple):
    """What `own_exits` returns: `transfers` for the distiller, `loss_weights` for `compile`."""

    transfers: list
    loss_weights: dict


def own_exits(model, preset="byot", *, teachers=(), features=None, student="student", **numbers):
    """A network teaches its own early exits, and teachers may teach its last output.

    With z_C and F_C the logits and features of the network's own classifier, z_i and F_i those of
    exit i, all of D features, v a teacher's logits, and p^T = softmax(z / T), the loss is

        last_labels * CE(y, z_C)  +  sum_i labels * CE(y, z_i)
          + sum_i soft * T^2 * KL(p_C^T || p_i^T)
          + sum_i hint * mean over D of (F_C - F_i)^2
          + sum_k teacher / teachers * T_t^2 * KL(p_v^Tt || p_C^Tt)

    What teaches is held constant: z_C and F_C learn from labels and teachers alone.

    Presets:

        "byot"              Be Your Own Teacher, the paper's formula with 0.3 and 0.03
        "luanyunteng"       a confirmed re-implementation: 0.9 for all labels, 0.1, and 1e-6 times a
                            sum over batch and features, here 0.066 times the mean at batch 128 and
                            D = 512
        "self_kd_lib"       labels and soft targets in full, T = 4, 0.05
        "deep_supervision"  labels alone (DSN): the control without distillation

    The paper's authors later took a norm that isn't squared, over the whole batch, whose size then
    matters: not built. Whether T^2 belongs to the paper's KL is not said; here it does.
    "luanyunteng" has its 0.9 for the last labels beside teachers too.

    Source: Zhang et al., "Be Your Own Teacher" (ICCV 2019), arXiv:1905.08094; Lee et al.,
    "Deeply-Supervised Nets" (2015), arXiv:1409.5185. With a teacher, the combination that a
    ResNet-18 on CIFAR-100 gains most from in a study of 2022 (offline and self); its weights are
    our choice.

    Args:
        model: the `keras.Model` with exits, from `kd.attach_exits`.
        preset: a key of `kd.wirings.EXIT_PRESETS`. Defaults to `"byot"`.
        teachers: names of the distiller's teachers that teach the last output, such as
            `["teacher"]`. Defaults to none. A teacher with exits of its own must be given to the
            distiller as `kd.models.single_output(teacher, "last")`.
        features: path of what the network's own classifier reads, if `attach_exits` was told it.
        student: the student's name in the distiller. Defaults to the name of a single one.
        **numbers: any field of `ExitWeights`, in place of the preset's.

    Returns:
        A tuple `(transfers, loss_weights)`: a list for `kd.Distiller(transfers=...)`, in the logs
        `exit1_soft_targets`, `exit1_features`, ..., `soft_targets`; and a dict for
        `compile(loss_weights=...)`, by output. `val_loss` is the sum with these weights.

    Raises:
        ValueError: a model without exits, an unknown preset, numbers outside their ranges, or a
            classifier whose features can't be found.
        TypeError: an unknown number, or teachers that aren't names.

    Example:
        >>> import kdtoolkit as kd
        >>> network = kd.models.mlp((4,), 3, units=(8, 8), seed=0)
        >>> student = kd.attach_exits(network, ["stage1"], seed=1)
        >>> edges, loss_weights = kd.wirings.own_exits(student, teachers=["teacher"])
        >>> [edge.name for edge in edges]
        ['exit1_soft_targets', 'exit1_features', 'soft_targets']
        >>> {key: round(weight, 2) for key, weight in loss_weights.items()}
        {'exit1': 0.7, 'last': 0.1}
    """
    if preset not in EXIT_PRESETS:
        raise ValueError(f"`preset` must be one of {list(EXIT_PRESETS)}. Received: {preset!r}")
    use = dataclasses.replace(EXIT_PRESETS[preset], **numbers)
    teachers = [teachers] if isinstance(teachers, str) else list(teachers or ())
    if not all(isinstance(name, str) for name in teachers):
        raise TypeError(
            "`teachers` must be names of the distiller's teachers, such as ['teacher']. "
            f"Received: {teachers}"
        )
    paths = _features_of(model, features)
    last = use.last_labels
    if last is None:
        last = 0.1 if teachers else 1.0
    exits = [key for key in paths if key != "last"]
    loss_weights = {**dict.fromkeys(exits, use.labels), "last": last}
    edges = [edge for key in exits for edge in _to_exit(key, paths, use, student)]
    return OwnExits(edges + _from_teachers(teachers, use, student), loss_weights)


def _to_exit(key, paths, use, student):
    """The transfers from the last output and its features to one exit; those of weight 0 aren't."""
    if use.soft:
        soft = SoftTargets(use.temperature)
        yield _within(student, "last", key, soft, use.soft, f"{key}_soft_targets")
    if use.hint:
        same = Hint(project=False)
        yield _within(student, paths["last"], paths[key], same, use.hint, f"{key}_features")


def _within(student, source_layer, student_layer, loss, weight, name):
    """A transfer from one place in a student to another."""
    return Transfer(
        loss,
        source=student,
        student=student,
        source_layer=source_layer,
        student_layer=student_layer,
        weight=weight,
        name=name,
    )


def _features_of(model, features):
    """`{key of an output: path of what its dense layer reads}`, exits in their order."""
    outputs = getattr(model, "output", None)
    if not isinstance(outputs, dict) or not {"exit1", "last"} <= set(outputs):
        raise ValueError(
            "`model` must be a network with the outputs 'exit1', ..., 'last', as `kd.attach_exits` "
            f"makes them. Received: {getattr(model, 'name', model)} with output {outputs}"
        )
    layers = layer_names(model)
    keys = [f"exit{number}" for number in range(1, len(outputs))]
    paths = {key: f"{layers[key]}:input" for key in [*keys, "last"]}
    if features is not None:
        paths["last"] = features
    elif not _is_dense(model, layers["last"]):
        raise ValueError(
            f"The last output of '{model.name}' comes from '{layers['last']}', expected a dense "
            "layer, whose input are the features. Say with `features` what the classifier reads"
        )
    return paths


def _is_dense(model, name):
    # Not all operations of a graph are layers.
    return any(isinstance(o, keras.layers.Dense) for o in model.operations if o.name == name)


def _from_teachers(teachers, use, student):
    return [
        Transfer(
            SoftTargets(use.teacher_temperature),
            source=teacher,
            student=student,
            student_layer="last",
            weight=use.teacher / len(teachers),
            name="soft_targets" if len(teachers) == 1 else f"soft_targets_{teacher}",
        )
        for teacher in teachers
    ]


def one(count, *, temperature=3.0, weight=1.0, student="student"):
    """The transfers of ONE: the ensemble of all branches teaches each branch.

    With labels for all branches and for the ensemble, as `compile` says, the loss is

        sum_i CE(y, z_i) + CE(y, z_e) + weight * T^2 * sum_i KL(p_e || p_i)

    p = softmax(z / T). The ensemble is held constant in the transfers: it learns from its own label
    loss. The authors' code raises the weight from exp(-5) to 1 in the first 80 of 300 epochs,
    `exp(-5 (1 - epoch / 80)^2)`, which is a `kd.callbacks.Schedule` for each transfer.

    Source: Lan, Zhu and Gong, 2018, arXiv:1806.04606, with the temperature of the paper.

    Args:
        count: int >= 2, the number of branches.
        temperature: T > 0. Defaults to 3.
        weight: weight of each transfer, >= 0. Defaults to 1.
        student: the student's name in the distiller. Defaults to the name of a single one.

    Returns:
        A list of `count` transfers, `ensemble_to_branch1`, `ensemble_to_branch2`, ... in the logs.

    Raises:
        ValueError: fewer than two branches, or a temperature or weight outside its range.

    Example:
        >>> from kdtoolkit import wirings
        >>> [edge.name for edge in wirings.one(2)]
        ['ensemble_to_branch1', 'ensemble_to_branch2']
    """
    sources = ["ensemble"] * _checked(count)
    return _to_each_branch(sources, "ensemble", temperature, weight, student)


def collaborative(count, *, temperature=2.0, weight=0.5, student="student"):
    """The transfers of CL-ILR: the mean of all other branches teaches each branch.

    With labels for all branches and `kd.Distiller(..., label_weight=0.5)` the loss is

        sum_k  0.5 * CE(y, z_k) + weight * T^2 * KL(p_k || q_k)

    p_k = softmax(o_k / T), q_k = softmax(z_k / T), and o_k is the mean of the other branches'
    logits, held constant.

    Source: Song and Chai, 2018, arXiv:1805.11761, with T = 2 and both weights 0.5. The T^2 is the
    one of `kd.losses.SoftTargets`.

    Args:
        count: int >= 2, the number of branches.
        temperature: T > 0. Defaults to 2.
        weight: weight of each transfer, >= 0. Defaults to 0.5.
        student: the student's name in the distiller. Defaults to the name of a single one.

    Returns:
        A list of `count` transfers, `others_to_branch1`, `others_to_branch2`, ... in the logs.

    Raises:
        ValueError: as `one`.

    Example:
        >>> from kdtoolkit import wirings
        >>> [edge.source_layer for edge in wirings.collaborative(2)]
        ['others1', 'others2']
    """
    sources = [f"others{k}" for k in range(1, _checked(count) + 1)]
    return _to_each_branch(sources, "others", temperature, weight, student)


def _to_each_branch(sources, teacher, temperature, weight, student):
    return [
        _within(
            student,
            source,
            f"branch{k}",
            SoftTargets(temperature),
            weight,
            f"{teacher}_to_branch{k}",
        )
        for k, source in enumerate(sources, start=1)
    ]


def _checked(count):
    if count < 2:
        raise ValueError(f"`count` must be 2 or more branches. Received: count={count}")
    return count


def views(direction="both", *, temperature=3.0, weight=1.0, student="student"):
    """The transfers between the two views of `kd.two_views`.

    With labels for both views, as `compile` says, the loss is

        both            CE(y, z_1) + CE(y, z_2) + weight * T^2 * (KL(p_1 || p_2) + KL(p_2 || p_1))
        weak_to_strong  CE(y, z_1) + CE(y, z_2) + weight * T^2 * KL(p_1 || p_2)

    p = softmax(z / T). What teaches is held constant: in KL(p_1 || p_2) only z_2 gets a gradient.

    Variants: of two public re-implementations of DDGSD one has T = 3 and adds the views' label
    losses, as here; the other has T = 4, weight 1 and a quarter of that sum. In one direction the
    first view, of the weaker augmentation, teaches the second. That is the direction of FixMatch,
    which learns so from unlabelled images and has hard targets above a confidence. Both constants
    are our choice there.

    Source: Xu and Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks" (AAAI
    2019), https://doi.org/10.1609/aaai.v33i01.33015565, without its term between features; Sohn et
    al., 2020, arXiv:2001.07685 (FixMatch).

    Args:
        direction: `"both"` (default) or `"weak_to_strong"`.
        temperature: T > 0. Defaults to 3.
        weight: weight of each transfer, >= 0. Defaults to 1.
        student: the student's name in the distiller. Defaults to the name of a single one.

    Returns:
        A list of one or two transfers, `first_to_second` and `second_to_first` in the logs.

    Raises:
        ValueError: an unknown direction, or a temperature or weight outside its range.

    Example:
        >>> from kdtoolkit import wirings
        >>> [edge.name for edge in wirings.views()]
        ['first_to_second', 'second_to_first']
    """
    ways = {"weak_to_strong": [("first", "second")]}
    ways["both"] = [*ways["weak_to_strong"], ("second", "first")]
    if not isinstance(direction, str) or direction not in ways:
        raise ValueError(
            f"`direction` must be one of {sorted(ways)}. Received: direction={direction!r}"
        )
    return [
        _within(student, source, view, SoftTargets(temperature), weight, f"{source}_to_{view}")
        for source, view in ways[direction]
    ]
