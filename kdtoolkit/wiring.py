"""Who teaches whom: names of the nodes and both ends of every transfer, before anything runs."""

import dataclasses

import keras

from kdtoolkit.losses import SoftTargets
from kdtoolkit.sources import Source
from kdtoolkit.transfer import Transfer


@dataclasses.dataclass(frozen=True)
class Edge:
    """A transfer with both ends known: `source` and `student` are names of nodes."""

    transfer: Transfer
    source: str
    student: str
    log_name: str

    @property
    def ends(self):
        """`(node, paths)` of the source, then of the student."""
        return (
            (self.source, self.transfer.source_paths),
            (self.student, self.transfer.student_paths),
        )


def name_nodes(given, role):
    """`{name: model}` from one model, a dict of them, or None.

    Args:
        given: a `keras.Model`, a dict from name to model, or `None`. Teachers may be `Source`s.
        role: "student" or "teacher"; the name of a single model.

    Raises:
        TypeError: something that is no Keras model, or as a teacher no source either.
        ValueError: an empty dict, or a name that can't be used in logs.
    """
    if given is None:
        return {}
    nodes = given if isinstance(given, dict) else {role: given}
    kinds = (keras.Model, Source) if role == "teacher" else keras.Model
    if not nodes:
        raise ValueError(f"`{role}` must be a model or a dict of models. Received: an empty dict")
    for name, model in nodes.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"The names in `{role}` must be Python identifiers. Received: {name!r}"
            )
        if not isinstance(model, kinds):
            raise TypeError(
                f"`{role}` must be a keras.Model{', a kd.sources.Source' * (role == 'teacher')}, "
                "or a dict of them by name. "
                f"Received: {name}={model!r}"
            )
    return dict(nodes)


def check_nodes(students, teachers):
    """Refuse graphs in which one network plays two parts.

    Raises:
        ValueError: no student, a name used twice, or the same object used twice.
    """
    if not students:
        raise ValueError("A Distiller needs a `student`. Received: student=None")
    shared = set(students) & set(teachers)
    if shared:
        raise ValueError(
            f"Students and teachers need different names. Received twice: {sorted(shared)}"
        )
    seen = {}
    for name, model in [*students.items(), *teachers.items()]:
        if id(model) in seen:
            raise ValueError(
                f"'{seen[id(model)]}' and '{name}' are the same model object, expected two "
                f"networks. Received: {model.name}. To teach a network with its earlier self, "
                "make a copy: `teacher = keras.models.clone_model(model)` and "
                "`teacher.set_weights(model.get_weights())`."
            )
        seen[id(model)] = name


def followed(sources, students):
    """`{name of a source: name of the student that it follows}`, or a tuple of names.

    Raises:
        ValueError: `follows` names no student, or is left out where there are several.
    """
    known = list(students)
    return {name: _followed(name, source, known) for name, source in sources.items()}


def _followed(name, source, known):
    if source.follows_several:
        found = tuple(known if source.follows is None else source.follows)
        if found and set(found) <= set(known):
            return found
    else:
        found = known[0] if source.follows is None and len(known) == 1 else source.follows
        if found in known:
            return found
    expected = f"a list of some of {known}" if source.follows_several else f"one of {known}"
    raise ValueError(
        f"Source '{name}' must say which student it follows. Expected `follows` as {expected}. "
        f"Received: follows={source.follows!r}"
    )


def default_transfers(teachers):
    """Hinton's distillation, 0.9 of the loss, shared equally among the teachers."""
    return [
        Transfer(
            SoftTargets(temperature=4.0),
            source=name,
            weight=0.9 / len(teachers),
            name="soft_targets" if len(teachers) == 1 else f"soft_targets_{name}",
        )
        for name in teachers
    ]


def _end(given, known, candidates, argument, transfer):
    if isinstance(given, str) and given in known:
        return given
    if given is None and len(candidates) == 1:
        return next(iter(candidates))
    problem = "is ambiguous" if given is None else "names no node"
    raise ValueError(
        f"`{argument}` of transfer '{transfer.name}' {problem}. Expected one of "
        f"{sorted(known)}. Received: {argument}={given!r}"
    )


def listed(transfers):
    """What was given as `transfers`, as a list."""
    if not isinstance(transfers, list | tuple):
        raise TypeError(
            f"`transfers` must be a list of kd.Transfer objects. Received: {transfers!r}. Write "
            "`[kd.Transfer(loss, weight=...)]`."
        )
    return list(transfers)


def connect_edges(transfers, students, teachers):
    """Resolve both ends of each transfer and give it a name in the logs of its own.

    Raises:
        TypeError: something that is no `Transfer`.
        ValueError: an unknown or ambiguous end, a transfer listed twice, or one from a student's
            output to the same output.
    """
    edges, seen = [], set()
    for transfer in listed(transfers):
        if not isinstance(transfer, Transfer):
            raise TypeError(
                "`transfers` must be a list of kd.Transfer objects. "
                f"Received: {transfer!r}. Write `kd.Transfer(loss, weight=...)`."
            )
        if id(transfer) in seen:
            raise ValueError(f"Transfer '{transfer.name}' is listed twice in `transfers`.")
        seen.add(id(transfer))
        source = _end(transfer.source, {**teachers, **students}, teachers, "source", transfer)
        student = _end(transfer.student, students, students, "student", transfer)
        if source == student and transfer.source_paths == transfer.student_paths:
            raise ValueError(
                f"Transfer '{transfer.name}' reads the same tensor of '{source}' at both ends. "
                "Expected another `source`, or different `source_layer` and `student_layer`."
            )
        name = transfer.name if len(students) == 1 else f"{student}_{transfer.name}"
        edges.append(Edge(transfer, source, student, name))
    return _with_unique_names(edges)


def check_log_names(edges, outputs):
    """Refuse names under which two things would be in the logs.

    Args:
        edges: list of `Edge`.
        outputs: names of the outputs of several students, or nothing for one.

    Raises:
        ValueError: a name that stands for two things.
    """
    names = ["loss", "label_loss", "val_loss", *[edge.log_name for edge in edges]]
    names += [f"{name}_loss" for name in outputs]
    twice = {name for name in [*names, *outputs] if [*names, *outputs].count(name) > 1}
    if twice:
        raise ValueError(
            f"The logs would hold {sorted(twice)} twice. Expected other names of students, of "
            f"their outputs or of transfers. Received: the names {names}"
        )


def _with_unique_names(edges):
    used, named = {}, []
    for edge in edges:
        count = used[edge.log_name] = used.get(edge.log_name, 0) + 1
        name = edge.log_name if count == 1 else f"{edge.log_name}_{count}"
        named.append(dataclasses.replace(edge, log_name=name))
    return named
