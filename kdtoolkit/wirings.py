"""Lists of transfers: methods that one network with several outputs needs no class for.

Each function returns what `kd.Distiller(student=..., transfers=...)` takes. The student comes from
`kd.models.branches`; source and student of each transfer are two of its outputs.
"""

from kdtoolkit.losses import SoftTargets
from kdtoolkit.transfer import Transfer


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
        Transfer(
            SoftTargets(temperature),
            source=student,
            student=student,
            source_layer=source,
            student_layer=f"branch{k}",
            weight=weight,
            name=f"{teacher}_to_branch{k}",
        )
        for k, source in enumerate(sources, start=1)
    ]


def _checked(count):
    if count < 2:
        raise ValueError(f"`count` must be 2 or more branches. Received: count={count}")
    return count
