"""The Distiller: one Keras model, one training step, every wiring of the transfer graph."""

import keras
from keras import ops

from kdtoolkit import compiling, fitting, placement, scalars, steps, wiring
from kdtoolkit.data.keys import strip
from kdtoolkit.graph import TransferGraph, context_of
from kdtoolkit.logs import LabelLosses
from kdtoolkit.outputs import Outputs
from kdtoolkit.registry import public
from kdtoolkit.saving import KeepsRandomStates
from kdtoolkit.steps import Stage
from kdtoolkit.steps.workers import AcrossWorkers


@public
class Distiller(AcrossWorkers, KeepsRandomStates, keras.Model):
    """Trains students with what sources teach them: `fit` it like any Keras model.

    Loss of a step:

        label_weight · Σ label losses + Σ weight · transfer(source, student) + regularisation

    The label loss is the one given to `compile`; regularisation is the students' own (`add_loss`,
    weight and activity regularisers). All weights are independent of one another. Each student
    runs forward once per step; each teacher that a transfer reads runs once, in inference mode and
    without gradient.

    `evaluate` and `predict` are the student's own: no teacher runs and no weight changes, so
    `distiller.evaluate(...)` equals `distiller.student.evaluate(...)`. Without a label loss,
    `evaluate` measures the transfers.

    The logs hold `loss` (the total), `label_loss`, each transfer by its name, before its weight,
    and the compiled metrics. With several students, names start with the student's.

    Args:
        student: the `keras.Model` that learns, or a dict `{name: model}` of several.
        teacher: the `keras.Model` that teaches, a dict `{name: model}` of several, or `None`.
            Teachers keep their `trainable` flags and never change. A `kd.sources.Source` teaches
            what the student said or was before.
        transfers: list of `kd.Transfer`. Defaults to Hinton's distillation from each teacher:
            `SoftTargets(temperature=4.0)` with weights that sum to 0.9.
        label_weight: factor of the label loss, >= 0. Defaults to 0.1 with the default transfers,
            else to 1. A variable: `distiller.label_weight = 0.5` acts on the next batch.
        preprocess: dict from a node's name to a layer that makes its input from the batch's, for
            networks that see another size or view: `{"teacher": keras.layers.Resizing(64, 64)}`.
        name: name of the model.

    Raises:
        TypeError, ValueError: a graph that can't be trained: unknown nodes or layers, the same
            object as teacher and student, shapes that can't match, probabilities where logits are
            expected, negative weights.

    Example:
        >>> import keras, numpy as np, kdtoolkit as kd
        >>> def network(units):
        ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, "relu"),
        ...                              keras.layers.Dense(3)])
        >>> distiller = kd.Distiller(student=network(8), teacher=network(64))
        >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> x, y = np.random.normal(size=(32, 4)), np.random.randint(3, size=32)
        >>> history = distiller.fit(x, y, verbose=0)
        >>> sorted(history.history)
        ['label_loss', 'loss', 'soft_targets']

    Source: the graph is that of Minami et al., "Knowledge Transfer Graph" (ACCV 2020); the default
    loss is Hinton, Vinyals and Dean (2015), https://arxiv.org/abs/1503.02531, with the constants
    of the CRD benchmark (T = 4, 0.9 and 0.1).
    """

    label_weight = scalars.Scalar(minimum=0.0)

    def __init__(
        self,
        *,
        student,
        teacher=None,
        transfers=None,
        label_weight=None,
        preprocess=None,
        name=None,
    ):
        students = wiring.name_nodes(student, "student")
        teachers = placement.placed_teachers(wiring.name_nodes(teacher, "teacher"), students)
        policy = compiling.policy_of(students.values())
        super().__init__(name=name, dtype=policy, autocast=False)
        # Whether `student` and `teacher` came as dicts, for the config.
        self._as_dict = isinstance(student, dict), isinstance(teacher, dict)
        if label_weight is None:
            label_weight = 0.1 if transfers is None else 1.0
        if transfers is None:
            transfers = wiring.default_transfers(teachers)
        self.label_weight = label_weight
        self.epoch = scalars.variable(0.0, "epoch")
        self.progress = scalars.variable(0.0, "progress")
        self.graph = TransferGraph(students, teachers, transfers, preprocess or {})
        self._seen = Outputs(students)
        wiring.check_log_names(self.graph.edges, self._seen.names)
        self._label_losses = LabelLosses(self._seen)
        self._label_loss_alone = False
        self._evaluating = False
        # Whether the data of the last training and of the last evaluation had labels.
        self._labelled = {Stage.TRAIN: True, Stage.EVALUATE: True}
        self.checked = False
        self._compiled_with = compiling.Given({"loss": None})
        self.built = self.graph.built

    # The parts ------------------------------------------------------------------------------

    @property
    def students(self):
        """The students, `{name: model}`."""
        return {name: self.graph.node(name) for name in self.graph.student_names}

    @property
    def teachers(self):
        """The teachers, `{name: model or source}`."""
        return {name: self.graph.node(name) for name in self.graph.teacher_names}

    @property
    def student(self):
        """The student itself: save, export and count this one. See `students` for several."""
        if len(self.graph.student_names) > 1:
            raise ValueError(
                f"This distiller has the students {self.graph.student_names}. Use "
                "`distiller.students[name]`."
            )
        return self.graph.node(self.graph.student_names[0])

    @property
    def transfers(self):
        """The transfers, a list."""
        return list(self.graph.transfers)

    @property
    def sources(self):
        """The teachers that are no plain networks, `{name: kd.sources.Source}`."""
        return {name: self.graph.node(name) for name in self.graph.source_names}

    @property
    def learned_variables(self):
        """All that training changes in the networks: students' weights, losses' own layers'."""
        return self.graph.learned_variables

    @property
    def trainable_weights(self):
        return self.graph.trained_weights if self.trainable else []

    @property
    def trainable_variables(self):
        return self.trainable_weights

    @property
    def non_trainable_weights(self):
        return self._not_trained(self.weights)

    @property
    def non_trainable_variables(self):
        return self._not_trained(self.variables)

    def _not_trained(self, variables):
        trained = {id(v) for v in self.trainable_weights}
        return [v for v in variables if id(v) not in trained]

    @property
    def measures_loss(self):
        """Whether `evaluate` has a loss to measure: labels, or transfers other than memories'."""
        return not self._label_free or bool(self.graph.active_edges(training=False))

    @property
    def _label_free(self):
        # Keras keeps the `loss` of an earlier compile() where a later one has none.
        return self._compiled_with["loss"] is None

    # The step -------------------------------------------------------------------------------
    # Keras's own `train_step` and `test_step` call these; they differ between backends, this
    # doesn't. In a step that transfers, `call` returns the students' views: output and taps.

    def train_step(self, *args):
        with steps.during(Stage.TRAIN):
            return super().train_step(*args)

    def test_step(self, *args):
        with steps.during(Stage.EVALUATE):
            return super().test_step(*args)

    def _transferring(self):
        stage = steps.stage()
        return stage is Stage.TRAIN or (stage is Stage.EVALUATE and self._label_free)

    def call(self, inputs, training=None):
        x, _ = strip(inputs)
        self.graph.connect(x)
        one = steps.learner()
        names = self.graph.student_names if one is None else [one]
        views = {name: self.graph.forward(name, x, training) for name in names}
        return views if self._transferring() else self._seen.of(views)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        transferring = self._transferring()
        # Read before a teacher runs: its activity losses are nobody's regularisation.
        total = [steps.share(ops.sum(loss)) for loss in self.losses]
        if not self._label_free:
            outputs = self._seen.of(y_pred) if transferring else y_pred
            label_loss = self._label_loss(x, y, outputs, sample_weight, training)
            if transferring:
                batch_size = ops.shape(keras.tree.flatten(x)[0])[0]
                # A mean over turns, of which each has one student's loss, would be too small.
                turns = 1 if steps.learner() is None else len(self.graph.student_names)
                value = steps.whole(label_loss) * turns
                self._label_losses.together.update_state(value, batch_size)
                label_loss = label_loss * ops.cast(self.label_weight, label_loss.dtype)
            total.append(label_loss)
        if transferring:
            context = context_of(x, y, sample_weight, self.epoch, self.progress)
            training = steps.stage() is Stage.TRAIN
            total += self.graph.losses_of(strip(x)[0], y_pred, context, training)
        # A zero, since evaluation may have nothing to measure: memories say nothing of other data.
        total = [ops.cast(loss, keras.config.floatx()) for loss in [0.0, *total]]
        return ops.sum(ops.stack(total))

    def _label_loss(self, x, y, outputs, sample_weight, training):
        """Keras's compiled loss alone, without the regularisation that Keras adds to it."""
        if y is None:
            raise ValueError(
                "compile() was given a label loss, but the data has no labels. Expected (x, y). "
                "Received: x alone. To train without labels, leave `loss` out of compile()."
            )
        y, sample_weight = self._seen.targets(y, sample_weight, outputs)
        self._label_loss_alone = True
        try:
            return super().compute_loss(x, y, outputs, sample_weight, training=training)
        finally:
            self._label_loss_alone = False

    @property
    def losses(self):
        if self._label_loss_alone:
            return []
        student = steps.learner()
        return super().losses if student is None else self.graph.losses_of_layers(student)

    # The logs -------------------------------------------------------------------------------

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self._labelled[self._phase()] = y is not None
        if y is None:
            return self.get_metrics_result()
        outputs = self._seen.of(y_pred) if self._transferring() else y_pred
        y, sample_weight = self._seen.targets(y, sample_weight, outputs)
        return super().compute_metrics(x, y, outputs, sample_weight)

    def _phase(self):
        evaluating = self._evaluating or steps.stage() is Stage.EVALUATE
        return Stage.EVALUATE if evaluating else Stage.TRAIN

    def get_metrics_result(self):
        training = self._phase() is Stage.TRAIN
        metrics = [metric for metric in self.metrics if metric not in self.graph.trackers]
        shown = self._label_losses.select(metrics, self._labelled[self._phase()], training)
        if training or self._label_free:
            shown += self.graph.trackers_of(training)
        results = {}
        for metric in shown:
            result = metric.result()
            results.update(result if isinstance(result, dict) else {metric.name: result})
        return results

    # Keras's entry points -------------------------------------------------------------------

    def compile(
        self, optimizer="rmsprop", loss=None, metrics=None, weighted_metrics=None, **kwargs
    ):
        """As `keras.Model.compile`, for all students.

        Args:
            optimizer: an optimizer for all students, or a dict `{student name: optimizer}`.
            loss: the label loss, anything that Keras takes, for each student; or a dict
                `{student name: loss}`. `None` (default) trains without labels.
            metrics, weighted_metrics: as in Keras; each student gets its own copies, and so does
                each output of a student whose output is a dict.
            **kwargs: passed on to `keras.Model.compile`.

        Raises:
            ValueError: nothing to learn from: no label loss and no transfer.
        """
        if loss is None and not self.graph.active_edges(training=True):
            raise ValueError(
                "Nothing to learn from: no label loss and no open transfer. Expected "
                "`compile(loss=...)`, or a `teacher` or `transfers` in the Distiller. "
                "Received neither."
            )
        given = {"optimizer": optimizer, "loss": loss, "metrics": metrics}
        given |= {"weighted_metrics": weighted_metrics, **kwargs}
        self._compiled_with = compiling.Given(given)
        weights = kwargs.pop("loss_weights", None)
        losses = compiling.label_losses(loss, self._seen, self._label_losses.by_output, weights)
        self._label_losses.use(losses)
        super().compile(
            optimizer=compiling.combine(optimizer, self.graph),
            loss=losses,
            loss_weights=compiling.loss_weights(weights, self._seen, losses),
            metrics=compiling.copied_metrics(metrics, self._seen),
            weighted_metrics=compiling.copied_metrics(weighted_metrics, self._seen),
            **kwargs,
        )

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """As `keras.Model.fit`, after a look at what the networks return for a few examples.

        Where a source needs example ids, arrays get them by themselves.

        Raises:
            ValueError: a teacher returns NaN, or probabilities where a loss expects logits; a
                source lacks example ids, or the callback that it waits for.
        """
        given = {"x": x, "y": y, "batch_size": batch_size, "epochs": epochs, "verbose": verbose}
        return super().fit(**fitting.prepared(self, {**given, "callbacks": callbacks, **kwargs}))

    def evaluate(self, *args, **kwargs):
        self._evaluating = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._evaluating = False

    def predict(self, *args, **kwargs):
        placement.check_predict()
        return super().predict(*args, **kwargs)

    def export(self, filepath, *args, **kwargs):
        """As `keras.Model.export`, of the student alone."""
        return self.student.export(filepath, *args, **kwargs)

    # Saving ---------------------------------------------------------------------------------

    def get_config(self):
        students, teachers = self.students, self.teachers
        student = students if self._as_dict[0] else self.student
        teacher = teachers if self._as_dict[1] or not teachers else next(iter(teachers.values()))
        parts = {
            "student": student,
            "teacher": teacher or None,
            "transfers": self.transfers,
            "preprocess": {n: self.graph.preprocess(n) for n in self.graph.preprocessed},
        }
        return {
            "name": self.name,
            "label_weight": scalars.number(self.label_weight),
            **{key: keras.saving.serialize_keras_object(part) for key, part in parts.items()},
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{k: keras.saving.deserialize_keras_object(v) for k, v in config.items()})

    def get_compile_config(self):
        return self._compiled_with.config() if self.compiled else {}

    def compile_from_config(self, config):
        self.compile(**{k: keras.saving.deserialize_keras_object(v) for k, v in config.items()})
        if self.built:
            self.optimizer.build(self.trainable_variables)
