"""The front door to mutual learning: a Distiller whose students teach each other."""

import keras

from kdtoolkit import scalars, steps, wiring
from kdtoolkit.callbacks.monitor import Monitor
from kdtoolkit.distiller import Distiller
from kdtoolkit.ensemble import Ensemble
from kdtoolkit.losses import SoftTargets
from kdtoolkit.outputs import ENSEMBLE, keys_of
from kdtoolkit.registry import public
from kdtoolkit.sources import PeerEnsemble
from kdtoolkit.sources.cohort import COMBINATIONS
from kdtoolkit.steps import alternating
from kdtoolkit.transfer import Transfer

#: Whom a student learns from: each of the others, the others' mean, or an ensemble of all.
TARGETS = ("each", "others", *COMBINATIONS)
UPDATES = ("simultaneous", "alternating")


@public
class MutualDistiller(Distiller):
    """Trains a cohort of networks that teach each other: deep mutual learning.

    Loss of student k, CE being the label loss of `compile` and p the softmax of logits over T:

        L_k = label_weight * CE_k + weight * T² / (K - 1) * sum over l != k of KL(p_l || p_k)

    What another student says counts as a constant, so no gradient reaches a student through
    another's loss. A step runs K forward and K backward passes.

    | `targets` | student k learns from | method |
    |---|---|---|
    | "each" (default) | every other member of the cohort, 1 / (K - 1) each | DML |
    | "others" | the mean of the other students' probabilities | DML_e |
    | "probabilities", "logits" | the mean of all students | |
    | "naive", "linear", "min_logit" | an ensemble of all, chosen by the labels | KDCL |

    The logs hold each student's label loss and metrics under its name (`student1_accuracy`), the
    same metrics of the cohort's mean probabilities (`ensemble_accuracy`), and each transfer.
    `evaluate` measures all students and the ensemble in one pass, and `predict` returns a dict of
    what each says. `distiller.students["student1"]` is the plain network, ready for export.

    Each student gets an optimizer of its own: a copy of the one given to `compile`, or one per
    student by a dict.

    The authors' code leaves out 1 / (K - 1), which is `weight=K - 1`, and updates all students at
    once; the paper updates them one after the other within a batch, and each sees what those before
    it say after their update (`updates="alternating"`). That costs K - 1 more forward passes; their
    batch statistics move twice. Two students in it must not share layers.

    Source: Zhang, Xiang, Hospedales and Lu, "Deep Mutual Learning" (CVPR 2018), arXiv:1706.00384,
    equations of section 3; KDCL: Guo et al., CVPR 2020.

    Args:
        students: list of two or more `keras.Model`, of the same architecture or of different ones,
            or a dict `{name: model}`. From a list they are called student1, student2, ...
        teacher: a network that doesn't learn, or a dict of them. With `targets="each"` it is one
            more member of the cohort, from which the students learn as from one another.
        transfers: list of further `kd.Transfer`s beside the mutual ones.
        targets: see above.
        temperature: T > 0. Defaults to 1.
        weight: weight of what a student learns from the others, >= 0. Defaults to 1.
        label_weight: factor of the label losses, >= 0. Defaults to 1.
        source_layer, student_layer: what the mutual transfers read, see `kd.Transfer`: for students
            with several outputs the key of one, such as "distillation". `None` is the output.
        deployed: for students with several outputs the key of the one that is deployed; the
            ensemble is the mean of these. Without it there is no ensemble of such students.
        updates: "simultaneous" (default) or "alternating".
        preprocess: as in `kd.Distiller`: an augmentation for each student, as KDCL has.
        name: name of the model.

    Raises:
        TypeError, ValueError: as `kd.Distiller`; fewer than two students; unknown `targets` or
            `updates`; alternating updates with sources, shared layers or half precision.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> students = [kd.models.mlp((4,), 3, units=(8,), seed=seed) for seed in (0, 1)]
        >>> distiller = kd.MutualDistiller(students=students)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> distiller.compile("adam", loss, metrics=["accuracy"])
        >>> x, y = np.random.normal(size=(32, 4)), np.random.randint(3, size=32)
        >>> history = distiller.fit(x, y, validation_split=0.25, verbose=0).history
        >>> [name for name in history if name.endswith("accuracy") and "val" not in name]
        ['ensemble_accuracy', 'student1_accuracy', 'student2_accuracy']
        >>> best = distiller.best_student("val_accuracy")
    """

    def __init__(
        self,
        *,
        students,
        teacher=None,
        transfers=(),
        targets="each",
        temperature=1.0,
        weight=1.0,
        label_weight=1.0,
        source_layer=None,
        student_layer=None,
        deployed=None,
        updates="simultaneous",
        preprocess=None,
        name=None,
    ):
        students = _named(students)
        for argument, value, known in (
            ("targets", targets, TARGETS),
            ("updates", updates, UPDATES),
        ):
            if value not in known:
                raise ValueError(f"`{argument}` must be one of {known}. Received: {value!r}")
        settings = {
            "targets": targets,
            "temperature": temperature,
            "weight": scalars.checked(weight, "weight", "MutualDistiller", minimum=0.0),
            "source_layer": source_layer,
            "student_layer": student_layer,
        }
        teachers, extra = wiring.name_nodes(teacher, "teacher"), wiring.listed(transfers)
        sources, mutual = _mutual(students, teachers, **settings)
        _check_teachers(students, teachers, sources, [*mutual, *extra])
        super().__init__(
            student=students,
            teacher={**teachers, **sources} or None,
            transfers=[*mutual, *extra],
            label_weight=label_weight,
            preprocess=preprocess,
            name=name,
        )
        self._settings = {**settings, "deployed": deployed, "updates": updates}
        self._own = len(sources), len(mutual)
        self._seen.ensemble_of = _ensemble_of(students, deployed)
        if updates == "alternating":
            _check_alternating(self)

    @property
    def ensemble(self):
        """The cohort as one network, a `kd.Ensemble` of the students; it shares their weights.

        It reads its members' input; layers of `preprocess` aren't in it. A new object each time.

        Raises:
            ValueError: students with several outputs, and no `deployed`.
        """
        key = self._seen.ensemble_of
        if key is None:
            raise ValueError(
                "The students have several outputs. Expected "
                "`MutualDistiller(..., deployed='name of one')`. Received: deployed=None"
            )
        models = self.students.values()
        return Ensemble([keras.Model(m.input, m.output[key]) if key else m for m in models])

    def best_student(self, monitor="val_accuracy", logs=None, mode="auto"):
        """The student that is best by a value of the logs.

        Args:
            monitor: what to compare, without the students' names: "val_accuracy" compares
                "val_student1_accuracy", "val_student2_accuracy", ...
            logs: dict of logs, such as `distiller.evaluate(..., return_dict=True)` returns.
                Defaults to the last epoch of the last `fit`. If a callback has put the weights of
                another epoch back since, evaluate anew and give these logs, with
                `monitor="accuracy"`.
            mode: "min", "max", or "auto": the smaller the better if the name ends in "loss" or
                "error".

        Returns:
            A `keras.Model`, one of `students`.

        Raises:
            ValueError: no `fit` yet, a value that isn't in the logs, or nothing but NaN.
        """
        if logs is None:
            history = getattr(getattr(self, "history", None), "history", None) or {}
            logs = {key: values[-1] for key, values in history.items()}
        before, value = ("val_", monitor[4:]) if monitor.startswith("val_") else ("", monitor)
        best, found = None, None
        for name, model in self.students.items():
            compared = Monitor(f"{before}{name}_{value}", mode)
            score = compared.score_of(logs)
            if compared.better(score, best):
                best, found = score, model
        if found is None:
            raise ValueError(f"'{monitor}' is NaN for every student, so none is best.")
        return found

    def compile(self, optimizer="rmsprop", *args, **kwargs):
        """As `Distiller.compile`, with an optimizer for each student.

        Args:
            optimizer: an optimizer, which is copied for each student; a function without arguments
                that makes one; or a dict `{student name: optimizer}`. Copies have the same
                configuration, of which Keras's `exclude_from_weight_decay` is no part: give a
                function that calls it.
            *args, **kwargs: as in `Distiller.compile`.
        """
        if callable(optimizer):
            optimizer = {name: optimizer() for name in self.graph.student_names}
        elif not isinstance(optimizer, dict) or "class_name" in optimizer:
            optimizer = keras.optimizers.get(optimizer)
            optimizer = {name: _copy(optimizer, name) for name in self.graph.student_names}
        super().compile(optimizer, *args, **kwargs)

    def train_step(self, *args):
        if self._settings["updates"] == "simultaneous":
            return super().train_step(*args)
        with steps.during(steps.Stage.TRAIN):
            return alternating.train_step(self, *args)

    def get_config(self):
        config = super().get_config()
        sources, mutual = self._own
        teachers = dict(list(self.teachers.items())[: len(self.teachers) - sources])
        parts = {"teacher": teachers or None, "transfers": self.transfers[mutual:]}
        config["students"] = config.pop("student")
        return {
            **config,
            **self._settings,
            **{key: keras.saving.serialize_keras_object(part) for key, part in parts.items()},
        }


def _copy(optimizer, name):
    try:
        # Keras's callbacks log a rate under its optimizer's name.
        return type(optimizer).from_config({**optimizer.get_config(), "name": name})
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            "Each student gets a copy of the optimizer, and this one can't be copied by its "
            "configuration. Expected a function that makes one, "
            "`compile(lambda: keras.optimizers.SGD(...))`, or a dict with one per student. "
            f"Received: {optimizer!r}"
        ) from error


def _named(students):
    if not isinstance(students, dict):
        students = students if isinstance(students, list | tuple) else [students]
        students = {f"student{index}": model for index, model in enumerate(students, start=1)}
    if len(students) < 2:
        raise ValueError(
            "MutualDistiller trains networks that teach each other. Expected two or more "
            f"`students`. Received: {list(students)}. For one, use `kd.Distiller` or "
            "`kd.SelfDistiller`."
        )
    if ENSEMBLE in students:
        raise ValueError(f"'{ENSEMBLE}' is the name of all students together. Expected another.")
    return wiring.name_nodes(students, "student")


def _mutual(students, teachers, targets, temperature, weight, source_layer, student_layer):
    """The sources and transfers by which the members of a cohort teach the students."""

    def edge(source, student, share=1.0, layer=None, name=None):
        return Transfer(
            SoftTargets(temperature),
            source=source,
            student=student,
            source_layer=layer,
            student_layer=student_layer,
            weight=weight * share,
            name=f"from_{name or source}",
        )

    if targets == "each":
        share, members = 1.0 / (len(students) + len(teachers) - 1), {**students, **teachers}
        heads = {n: _layer_of(model, source_layer, students) for n, model in members.items()}
        pairs = [(m, s) for s in students for m in members if m != s]
        return {}, [edge(m, s, share, heads[m]) for m, s in pairs]
    if targets == "others":
        sources, edges = {}, []
        for student in students:
            others = [other for other in students if other != student]
            sources[f"others_of_{student}"] = PeerEnsemble(others, layer=source_layer)
            edges.append(edge(f"others_of_{student}", student, name="others"))
        return sources, edges
    together = PeerEnsemble(combine=targets, layer=source_layer)
    return {"everyone": together}, [edge("everyone", student) for student in students]


def _layer_of(member, layer, students):
    """What to read of a member: of a frozen network with one output that output."""
    of_students = all(layer in (keys_of(model) or ()) for model in students.values())
    return None if of_students and keys_of(member) is None else layer


def _check_teachers(students, teachers, sources, transfers):
    """Refuse frozen networks that nobody would learn from, or whose names are taken."""
    taken = sources.keys() & {*students, *teachers}
    if taken:
        raise ValueError(
            f"The names {sorted(taken)} stand for ensembles of the students here. Expected others."
        )
    read = {transfer.source for transfer in transfers}
    idle = [name for name in teachers if name not in read and None not in read]
    if idle:
        raise ValueError(
            "A frozen network is a member of the cohort only with targets='each'. Expected "
            f"that, or `transfers=[kd.Transfer(..., source='{idle[0]}')]`. Received: "
            f"teachers {idle} that nothing reads"
        )


def _ensemble_of(students, deployed):
    """Which output the ensemble is the mean of, see `Outputs`."""
    keys = {name: keys_of(model) for name, model in students.items()}
    if deployed is None:
        return None if any(keys.values()) else ""
    for name, known in keys.items():
        if deployed not in (known or ()):
            raise ValueError(
                f"`deployed` must be the key of an output of every student. Expected one of "
                f"{known} for '{name}'. Received: deployed={deployed!r}"
            )
    return deployed


def _check_alternating(distiller):
    """Refuse graphs in which students can't be updated one after the other."""
    remembering = [name for name, source in distiller.sources.items() if source.remembers]
    if remembering:
        raise ValueError(
            "Alternating updates work between students and frozen networks. Expected "
            "`updates='simultaneous'` with sources that remember. Received: the sources "
            f"{remembering}"
        )
    if distiller.dtype_policy.name == "mixed_float16":
        raise ValueError(
            "Alternating updates don't scale losses, which float16 needs. Expected students in "
            "float32 or bfloat16, or `updates='simultaneous'`. Received: a student in float16"
        )
    owners = {}
    for name in distiller.graph.student_names:
        for variable in distiller.graph.node(name).trainable_weights:
            if owners.setdefault(id(variable), name) != name:
                raise ValueError(
                    "Alternating updates need students without common layers. Expected "
                    f"`updates='simultaneous'`. Received: '{variable.path}' in "
                    f"'{owners[id(variable)]}' and '{name}'"
                )
