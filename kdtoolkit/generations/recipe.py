"""How each generation is trained: optimizer, length, batches, callbacks, which weights are kept."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import keras

from kdtoolkit import scalars
from kdtoolkit.callbacks import RewindOnPlateau
from kdtoolkit.data import FlipShift
from kdtoolkit.settings import described

SELECT = ("best", "last")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of the training that all generations share.

    Args:
        optimizer: function without arguments that returns a new Keras optimizer, such as
            `lambda: keras.optimizers.SGD(0.1)`. Every generation gets its own.
        epochs: int >= 1, the most epochs of one generation. Callbacks may stop earlier.
        batch_size: int >= 1.
        augment: a `kd.data.Augmentation` such as `kd.data.FlipShift()`, or None (default).
        callbacks: function without arguments that returns a list of new callbacks, or None
            (default). An interrupted run continues what those know that `kd.callbacks.Resume` can
            keep; others start anew. `kd.callbacks.BestTeacher` is added for methods that need it.
        loss: the label loss, a Keras loss. Defaults to
            `SparseCategoricalCrossentropy(from_logits=True)`.
        metrics: names of metrics, or functions. Defaults to `("accuracy",)`.
        monitor: the value that decides which epoch was the best. Defaults to `"val_accuracy"`. A
            `RewindOnPlateau` or `BestWeights` among the callbacks must have the same.
        select: which weights are the generation's network and teach the next one: those of the
            `"best"` epoch (default; the first one where several are equal), or of the `"last"`.
            Test data never decides.
        steps_per_execution: int >= 1, as in `keras.Model.compile`. Defaults to 1.

    Raises:
        TypeError: an optimizer, metric or callback object where a function that makes new ones
            is needed.
        ValueError: a number or `select` out of range, or a `monitor` that isn't of validation.

    Example:
        >>> import keras, kdtoolkit as kd
        >>> from kdtoolkit.generations import Recipe
        >>> recipe = Recipe(lambda: keras.optimizers.Adam(1e-3), epochs=20, batch_size=64)
        >>> recipe.select
        'best'
    """

    optimizer: Callable
    epochs: int
    batch_size: int
    augment: object = None
    callbacks: Callable | None = None
    loss: object = None
    metrics: Sequence = ("accuracy",)
    monitor: str = "val_accuracy"
    select: str = "best"
    steps_per_execution: int = 1

    def __post_init__(self):
        for name in ("optimizer", "callbacks"):
            value = getattr(self, name)
            if not callable(value) and (name == "optimizer" or value is not None):
                raise TypeError(
                    f"`{name}` must be a function that returns new objects, because every "
                    f"generation needs its own; for example `lambda: keras.optimizers.SGD(0.1)`. "
                    f"Received: {name}={value!r}"
                )
        listed = isinstance(self.metrics, Sequence) and not isinstance(self.metrics, str)
        if not listed or any(isinstance(m, keras.Metric) for m in self.metrics):
            raise TypeError(
                "`metrics` must be a list of names or functions, because a metric object can't "
                f"serve several generations. Received: metrics={self.metrics!r}"
            )
        for name in ("epochs", "batch_size", "steps_per_execution"):
            scalars.whole(getattr(self, name), name, "Recipe")
        if not isinstance(self.select, str) or self.select not in SELECT:
            raise ValueError(f"`select` must be one of {SELECT}. Received: {self.select!r}")
        if not isinstance(self.monitor, str) or not self.monitor.startswith("val_"):
            raise ValueError(
                "`monitor` must be a value of the validation, such as 'val_accuracy' or "
                f"'val_loss'. Received: monitor={self.monitor!r}"
            )

    @classmethod
    def takagi_hattori(
        cls,
        *,
        epochs=1000,
        batch_size=100,
        learning_rate=0.1,
        momentum=0.9,
        augment="default",
        patience=20,
        factor=0.1,
        min_lr=0.001,
        stop_patience=40,
        steps_per_execution=1,
    ):
        """The training of "Reducing Training Time for Distillation of DNN by Self Distillation".

        SGD with momentum. After 20 epochs without a better validation accuracy the best weights
        come back and the learning rate falls to a tenth, to 0.001 at the least; after 40 the
        generation ends.

        Weight decay belongs to the network: the paper's 1e-4 is
        `kd.models.resnet(20, (32, 32, 3), 100, variant="v2", weight_decay=1e-4, seed=seed)`, whose
        gradient passes through the momentum as it does in the common form of SGD. The
        `weight_decay` of Keras's optimizers is the decoupled form, which isn't the same with
        momentum.

        Args:
            epochs: the most epochs of one generation. The paper gives no number; 1000 (default)
                isn't reached.
            batch_size, learning_rate, momentum: of SGD.
            augment: defaults to `kd.data.FlipShift(shift=4)`; None for no augmentation.
            patience, factor, min_lr, stop_patience: as in `kd.callbacks.RewindOnPlateau`. For
                short runs, lower both patiences.
            steps_per_execution: as in `Recipe`.

        Returns:
            A `Recipe`.

        Source: Takagi and Hattori, IPSJ 81st National Convention (2019), 4U-02, section 5.1.

        Example:
            >>> from kdtoolkit.generations import Recipe
            >>> recipe = Recipe.takagi_hattori(patience=8, stop_patience=16, epochs=100)
            >>> recipe.batch_size
            100
        """
        return cls(
            optimizer=functools.partial(keras.optimizers.SGD, learning_rate, momentum=momentum),
            epochs=epochs,
            batch_size=batch_size,
            augment=FlipShift(shift=4) if augment == "default" else augment,
            callbacks=lambda: [
                RewindOnPlateau(
                    patience=patience, factor=factor, min_lr=min_lr, stop_patience=stop_patience
                )
            ],
            steps_per_execution=steps_per_execution,
        )

    def new_callbacks(self):
        """A list of new callbacks for one generation."""
        return list(self.callbacks()) if self.callbacks is not None else []

    def compile(self, distiller):
        """Compile a distiller with a new optimizer, the label loss and the metrics."""
        loss = self.loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(
            self.optimizer(),
            loss,
            metrics=list(self.metrics),
            steps_per_execution=self.steps_per_execution,
        )

    def describe(self):
        """The settings as plain numbers and texts, by which a resumed run is recognised."""
        fields = dataclasses.fields(self)
        return {
            **{field.name: getattr(self, field.name) for field in fields},
            "optimizer": described(self.optimizer()),
            "callbacks": [described(callback) for callback in self.new_callbacks()],
            "augment": described(self.augment),
            "loss": described(self.loss),
            "metrics": [described(metric) for metric in self.metrics],
        }
