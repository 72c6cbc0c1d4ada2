"""The front door to self-distillation: a Distiller wired to its student's own past."""

import keras

from kdtoolkit import scalars, wiring
from kdtoolkit.callbacks import BestWeights
from kdtoolkit.callbacks.teachers import with_best_teacher
from kdtoolkit.distiller import Distiller
from kdtoolkit.losses import SoftCrossEntropy
from kdtoolkit.progress import TeacherPolicy, listed
from kdtoolkit.registry import public
from kdtoolkit.sources import PredictionMemory, Snapshot, Source
from kdtoolkit.transfer import Transfer

#: What teaches, by name.
SOURCES = {
    "memory": lambda student: PredictionMemory(),
    "snapshot": Snapshot,
    "average": lambda student: Snapshot(student, decay=0.999),
}


@public
class SelfDistiller(Distiller):
    """Trains one network with what it said itself when its validation score was best.

    Loss of a step, CE being the label loss of `compile` and the cross-entropy of outputs:

        (1 - s) * CE(y, f(x)) + s * CE(y_v, f(x)) + w * CE(f_previous(x), f(x)) + regularisation

    y_v is what `source` holds: by default the outputs of the best epoch so far, collected during
    training without a forward pass of their own, and the labels until the first one. The last term
    is the born-again one, with a `teacher`. With s = 0.5 and w = 1 these are equations 1 (no
    teacher, first generation) and 2 (teacher, later generations) of Takagi and Hattori; the first
    two terms equal the paper's CE(0.5 y + 0.5 y_v, f(x)) because cross-entropy is linear in its
    target.

    `fit` on arrays numbers the examples by itself. Other data carries example ids, from
    `kd.data.ArrayPipeline(..., example_ids=True)` or `kd.data.with_ids`. Without a callback that
    says when the source takes over, `fit` adds `kd.callbacks.BestTeacher`, which monitors what a
    `kd.callbacks.RewindOnPlateau` in the list monitors, else "val_accuracy".

    The stored targets start as the labels themselves, also where the label loss smooths them.

    Choices that the paper leaves open, and their arguments: targets from stored outputs or exactly
    recomputed (`source`), the weight of the born-again term (`previous_weight`, `normalise`). What
    happens to momentum at a rewind, and how epochs without progress are counted, are arguments of
    `kd.callbacks.RewindOnPlateau`. A new generation is a new `SelfDistiller`: its memory starts
    with the labels. (A `Source` object that was used before keeps what it holds.)

    Args:
        student: the `keras.Model` that learns; it returns logits.
        teacher: the network of the generation before, a `keras.Model`, or `None` (default).
        source: what holds the past: "memory" (default, stored outputs of the best epoch),
            "snapshot" (recomputed with the weights of the best epoch, one more forward pass),
            "average" (recomputed with the running average of the weights, decay 0.999), or a
            `kd.sources.Source`.
        teacher_share: s, a number in [0, 1]. Defaults to 0.5. Assignable:
            `distiller.teacher_share = 0.8` acts on the next batch.
        previous_weight: w >= 0. Defaults to 1, as in equation 2.
        normalise: whether all terms are divided by `1 + w`, so that a generation with a teacher has
            the learning rate of one without. Defaults to False, as in equation 2.
        temperature: T > 0 of both source's and teacher's targets. Defaults to 1.
        name: name of the model.

    Raises:
        TypeError, ValueError: as `kd.Distiller`; a share outside [0, 1]; an unknown source; in
            `fit`, no validation data and no callback that says when to take over.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> data = kd.data.load_digits(image_shape=(64,))
        >>> distiller = kd.SelfDistiller(student=kd.models.mlp((64,), 10, units=(16,), seed=0))
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> distiller.compile("adam", loss, metrics=["accuracy"])
        >>> validation = data.x_val, data.y_val
        >>> history = distiller.fit(data.x_train, data.y_train, validation_data=validation,
        ...                         epochs=2, verbose=0)
        >>> history.history["teacher_updated"][0]
        1.0

    Source: Takagi and Hattori, "Reducing Training Time for Distillation of DNN by Self
    Distillation", IPSJ 81st National Convention (2019), 4U-02. The born-again term: Furlanello et
    al., 2018, arXiv:1805.04770.
    """

    def __init__(
        self,
        *,
        student,
        teacher=None,
        source="memory",
        teacher_share=0.5,
        previous_weight=1.0,
        normalise=False,
        temperature=1.0,
        name=None,
    ):
        students = wiring.name_nodes(student, "student")
        if len(students) != 1:
            raise ValueError(
                "SelfDistiller trains one student. Expected a keras.Model. Received the students "
                f"{list(students)}. Wire several with `kd.Distiller` and sources that `follows`."
            )
        own = Transfer(SoftCrossEntropy(temperature), source="past", name="self_distillation")
        transfers, teachers = [own], {"past": _as_source(source, next(iter(students.values())))}
        if teacher is not None:
            teachers["previous"] = teacher
            loss = SoftCrossEntropy(temperature)
            transfers.append(Transfer(loss, source="previous", name="born_again"))
        super().__init__(student=student, teacher=teachers, transfers=transfers, name=name)
        self._settings = {
            "previous_weight": scalars.checked(
                previous_weight, "previous_weight", "SelfDistiller", minimum=0.0
            ),
            "normalise": bool(normalise),
        }
        self.teacher_share = teacher_share
        if teacher is not None:
            transfers[1].weight = self._settings["previous_weight"] * self._scale

    @property
    def _scale(self):
        """What all terms are multiplied by."""
        normalise = self._settings["normalise"] and "previous" in self.teachers
        return 1.0 / (1.0 + self._settings["previous_weight"]) if normalise else 1.0

    @property
    def source(self):
        """What holds the student's past, a `kd.sources.Source`."""
        return self.sources["past"]

    @property
    def teacher_share(self):
        """The share s of the source beside the labels."""
        return scalars.number(self.transfers[0].weight) / self._scale

    @teacher_share.setter
    def teacher_share(self, value):
        share = scalars.checked(value, "teacher_share", "SelfDistiller", minimum=0.0, maximum=1.0)
        self.label_weight = (1.0 - share) * self._scale
        self.transfers[0].weight = share * self._scale

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """As `Distiller.fit`; adds `kd.callbacks.BestTeacher` where no such callback is given.

        Raises:
            ValueError: as `Distiller.fit`; no validation data to tell the best epoch by.
        """
        callbacks = listed(callbacks)
        if self.source.commits and not any(isinstance(c, TeacherPolicy) for c in callbacks):
            if not any(isinstance(c, BestWeights) for c in callbacks):
                self._check_measured(kwargs)
            callbacks = with_best_teacher(callbacks)
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def _check_measured(self, arguments):
        """Refuse a `fit` in which nothing would measure "val_accuracy"."""
        data = [arguments.get(name) for name in ("validation_data", "validation_split")]
        metrics = [self._compiled_with[name] for name in ("metrics", "weighted_metrics")]
        if data[0] is None and not data[1]:
            raise ValueError(
                "'val_accuracy' tells the best epoch, but there is no validation data. Expected "
                "`validation_data` or `validation_split` in `fit`, or "
                "`kd.callbacks.PeriodicTeacher()`, which needs neither. Received: none of them"
            )
        if not any(metrics):
            raise ValueError(
                "'val_accuracy' tells the best epoch, but nothing measures it. Expected "
                "`compile(metrics=['accuracy'])`, or `kd.callbacks.BestTeacher('val_loss')` among "
                "the callbacks. Received: metrics=None"
            )

    def get_config(self):
        previous = self.teachers.get("previous")
        parts = {"student": self.student, "teacher": previous, "source": self.source}
        return {
            "name": self.name,
            "teacher_share": round(self.teacher_share, 7),
            "temperature": scalars.number(self.transfers[0].loss.temperature),
            **self._settings,
            **{key: keras.saving.serialize_keras_object(part) for key, part in parts.items()},
        }


def _as_source(source, student):
    if isinstance(source, Source):
        return source
    if not isinstance(source, str) or source not in SOURCES:
        raise ValueError(
            f"`source` must be one of {sorted(SOURCES)} or a kd.sources.Source. "
            f"Received: source={source!r}"
        )
    return SOURCES[source](student)
