"""A tf_keras model where Keras 3 expects a model, and the pruning callback for its training."""

import keras

from kdtoolkit.tfmot.loading import check_tf_keras_model, load


class Student(keras.Model):
    """A Keras 3 model around a tf_keras model: it trains wherever Keras 3 trains.

    Its variables *are* those of the tf_keras model, so what an optimizer of Keras 3 changes is
    changed there; nothing is copied. BatchNorm's statistics, masks and quantisation ranges move as
    they do in tf_keras, and its regularisers count among `losses`. Constraints on weights are kept.

    Made for models that tensorflow-model-optimization has wrapped, as the student of a
    `kd.Distiller` whose teacher is a Keras 3 model. A pruned one needs `kd.tfmot.PruningStep` among
    the callbacks. Freeze layers before: what is trainable is read once.

    It can't be saved or copied, and its inner layers can't be tapped (give the tf_keras model a
    dict of outputs for that). Save `student.model`, the tf_keras model.

    Args:
        model: a built tf_keras model.
        name: name of the Keras 3 model. Defaults to the name of `model`.

    Attributes:
        model: the tf_keras model.

    Raises:
        ImportError: tf_keras is not installed.
        TypeError: `model` is no tf_keras model.
        ValueError: `model` is not built, or Keras runs on another backend than TensorFlow.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> def network(units):
        ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, "relu"),
        ...                              keras.layers.Dense(3)])
        >>> pruned = kd.tfmot.prune(network(8), 0.5)
        >>> student = kd.tfmot.Student(pruned)
        >>> distiller = kd.Distiller(student=student, teacher=network(64))
        >>> len(distiller.trainable_weights), len(student.weights)
        (4, 10)
    """

    def __init__(self, model, name=None):
        _check_backend()
        check_tf_keras_model(model)
        super().__init__(name=name or model.name, dtype="float32", autocast=False)
        # Pruning and quantisation contain operations that XLA doesn't compile.
        self.supports_jit = False
        self.model = model
        learned = {id(v) for v in model.trainable_weights}
        unique = {id(v): v for v in model.weights}.values()
        self._held = [_holding(v, id(v) in learned) for v in unique]
        self.built = True

    def call(self, inputs, training=None):
        outputs = self.model(inputs, training=bool(training))
        for loss in self.model.losses:
            self.add_loss(loss)
        return outputs

    def get_build_config(self):
        # From this, `kd.export` knows the inputs.
        return {"input_shape": self.model.input_shape}

    def get_config(self):
        raise ValueError(
            f"'{self.name}' holds a tf_keras model, which Keras 3 can neither save nor copy. Save "
            "the tf_keras model itself: `student.model.save(...)`."
        )

    def export(self, filepath, *args, **kwargs):
        """As `export` of the tf_keras model."""
        return self.model.export(filepath, *args, **kwargs)


def _check_backend():
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "A tf_keras model trains in TensorFlow alone. Expected KERAS_BACKEND=tensorflow. "
            f"Received: the backend '{keras.backend.backend()}'."
        )


def _holding(variable, trainable):
    """A Keras 3 variable that is a given `tf.Variable`, not a copy of it.

    Keras 3 keeps a `tf.Variable` that its constructor is given as the initial value.
    """
    held = keras.Variable(
        variable,
        dtype=variable.dtype.name,
        trainable=trainable,
        autocast=False,
        name=variable.name.partition(":")[0].replace("/", "_"),
    )
    if held.value is not variable:
        raise RuntimeError(
            "`keras.Variable(tf_variable)` must hold the tf.Variable itself, so that tf_keras and "
            f"Keras 3 train the same weights. Keras {keras.__version__} makes a copy of "
            f"'{variable.name}'. Use a version of Keras 3 with which kdtoolkit was tested."
        )
    if getattr(variable, "constraint", None) is not None:
        held.constraint = _constraint(variable.constraint)
    return held


def _constraint(constraint):
    return lambda value: constraint(keras.ops.convert_to_tensor(value))


class PruningStep(keras.callbacks.Callback):
    """Counts the steps of a pruned student, which decide when and how much is pruned.

    What `tfmot.sparsity.keras.UpdatePruningStep` does in `fit` of tf_keras, for `fit` of Keras 3:
    starts the count, unless it has begun before, and cuts the pruned weights at each epoch's end.

    Args:
        student: the `Student` that trains, or its tf_keras model.

    Raises:
        TypeError: `student` is neither.
        ValueError: nothing in it is pruned.

    Example:

    ```python
    distiller.fit(x, y, callbacks=[kd.tfmot.PruningStep(student)])
    ```
    """

    def __init__(self, student):
        super().__init__()
        model = student.model if isinstance(student, Student) else student
        check_tf_keras_model(model, "student")
        if not any("pruning_step" in v.name for v in model.weights):
            raise ValueError(
                "`student` must be pruned. Received: a model without pruning wrappers, "
                f"'{model.name}'. Prune it before: `kd.tfmot.prune(model, 0.5)`."
            )
        self._inner = load().sparsity.keras.UpdatePruningStep()
        self._inner.set_model(model)

    def on_train_begin(self, logs=None):
        self._inner.on_train_begin(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._inner.on_epoch_end(epoch, logs)
