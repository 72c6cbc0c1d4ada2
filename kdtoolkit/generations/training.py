"""Trains one generation of a run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from kdtoolkit import checks
from kdtoolkit.callbacks import BestWeights, Resume
from kdtoolkit.callbacks.state import with_state
from kdtoolkit.callbacks.teachers import with_best_teacher
from kdtoolkit.data import ArrayPipeline, Dataset, FollowEpochs
from kdtoolkit.distiller import Distiller
from kdtoolkit.generations.recipe import Recipe
from kdtoolkit.generations.records import GenerationFolder, GenerationRecord
from kdtoolkit.generations.stopwatch import Stopwatch
from kdtoolkit.progress import TeacherPolicy


def generation_seed(seed, generation):
    """The seed of one generation, a function of the trial's seed and the generation alone.

    Args:
        seed: int >= 0, the trial's seed.
        generation: int >= 1.

    Returns:
        An int from 0 to 2**31 - 1.

    Example:
        >>> from kdtoolkit.generations import generation_seed
        >>> generation_seed(0, 1) == generation_seed(0, 2)
        False
    """
    return int(np.random.SeedSequence([seed, generation]).generate_state(1)[0] >> 1)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What all generations of a run share, and the training of one of them.

    Attributes:
        builders: one function `seed -> keras.Model` per generation.
        data: `kd.data.Dataset`.
        recipe: `Recipe`.
        method_name, method: as `find_method` returns them.
        directory: `Path` of the run.
        seed: the trial's seed.
        checkpoints: how often, as arguments of `Resume`; None for no checkpoint.
        verbose: as in `keras.Model.fit`.
    """

    builders: tuple
    data: Dataset
    recipe: Recipe
    method_name: str
    method: Callable
    directory: Path
    seed: int
    checkpoints: dict | None
    verbose: int | str

    def train(self, generation):
        """Train one generation, or the rest of it, and write it to its folder.

        Returns:
            Its `GenerationRecord`.
        """
        folder = GenerationFolder(self.directory, generation)
        folder.path.mkdir(exist_ok=True)
        distiller = self._distiller(generation)
        pipeline = self._pipeline(distiller, generation)
        best, watch = self._fit(distiller, pipeline, folder.checkpoint)
        last = self._accuracies(distiller.student, best, best.last_weights())
        chosen = best.best_weights() if self.recipe.select == "best" else best.last_weights()
        # After the last weights, so that the chosen ones are those that are saved.
        selected = self._accuracies(distiller.student, best, chosen)
        examples = watch.epochs * len(self.data.x_train)
        record = GenerationRecord(
            method=self.method_name,
            seed=self.seed,
            generation=generation,
            **selected,
            **{f"last_{name}": value for name, value in last.items()},
            epochs=watch.epochs,
            best_epoch=None if best.best_epoch is None else best.best_epoch + 1,
            steps=watch.epochs * len(pipeline),
            student_passes=examples,
            teacher_passes=examples * _networks_read(distiller),
            seconds=watch.seconds,
            cpu_seconds=watch.cpu_seconds,
            network=folder.network.relative_to(self.directory).as_posix(),
        )
        folder.finish(distiller.student, record)
        return record

    # The networks ---------------------------------------------------------------------------

    def _network(self, generation):
        """A new network of a generation, with weights as it starts."""
        seed = generation_seed(self.seed, generation)
        keras.utils.set_random_seed(seed)
        model = self.builders[generation - 1](seed)
        if not isinstance(model, keras.Model):
            raise TypeError(f"`build(seed)` must return a keras.Model. Received: {model!r}")
        checks.check_logits("build(seed)", model)
        # One example also builds a network whose layers wait for their first input.
        output = model(self.data.x_train[:1])
        shape = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), output)
        if shape != (1, self.data.num_classes):
            raise ValueError(
                "`build(seed)` must return a network whose one output holds the logits of "
                f"'{self.data.name}', shape (batch, {self.data.num_classes}). Received: "
                f"'{model.name}' with {shape} for one example"
            )
        return model

    def _teacher(self, generation):
        # From its file even where it's still in memory: a resumed run has nothing else. Not by
        # `load_model`, which needs every custom layer registered.
        model = self._network(generation)
        folder = GenerationFolder(self.directory, generation)
        folder.check_network()
        model.load_weights(folder.network)
        return model

    def _distiller(self, generation):
        teacher = self._teacher(generation - 1) if generation > 1 else None
        student = self._network(generation)
        if student is teacher:
            raise ValueError(
                "`build(seed)` must return a new network at every call. Received: the same object "
                "twice"
            )
        distiller = self.method(student, teacher)
        if not isinstance(distiller, Distiller) or distiller.student is not student:
            raise TypeError(
                "`method(student, teacher)` must return a kd.Distiller that trains `student`. "
                f"Received: {distiller!r}"
            )
        self.recipe.compile(distiller)
        if not distiller.built:
            distiller(self.data.x_train[:1])
        return distiller

    # The training ---------------------------------------------------------------------------

    def _pipeline(self, distiller, generation):
        return ArrayPipeline(
            self.data.x_train,
            self.data.y_train,
            batch_size=self.recipe.batch_size,
            augment=self.recipe.augment,
            seed=generation_seed(self.seed, generation),
            example_ids=any(source.needs_ids for source in distiller.sources.values()),
        )

    def _fit(self, distiller, pipeline, checkpoint):
        """Train to the end. Returns the callbacks that know the weights and the time."""
        recipe, data = self.recipe, self.data
        callbacks = recipe.new_callbacks()
        best = _best_weights(callbacks, recipe.monitor)
        waiting = any(source.commits for source in distiller.sources.values())
        if waiting and not any(isinstance(c, TeacherPolicy) for c in callbacks):
            callbacks = with_best_teacher(callbacks)
        watch = Stopwatch()
        callbacks = [FollowEpochs(pipeline), *callbacks, watch]
        last = []
        if self.checkpoints is not None:
            # Whoever wrote the recipe was told that others start anew.
            kept = with_state(callbacks, warn=False)
            last = [_ResumeGeneration(checkpoint, callbacks=kept, **self.checkpoints)]
        distiller.fit(
            pipeline,
            shuffle=False,
            epochs=recipe.epochs,
            validation_data=(data.x_val, data.y_val),
            validation_batch_size=recipe.batch_size,
            callbacks=[*callbacks, *last],
            verbose=self.verbose,
        )
        return best, watch

    def _accuracies(self, student, best, weights):
        """What these weights score, by the names that a record has for it."""
        best.put(weights)
        data = self.data
        return {
            "val_accuracy": self._accuracy(student, data.x_val, data.y_val),
            "test_accuracy": self._accuracy(student, data.x_test, data.y_test),
        }

    def _accuracy(self, student, x, y):
        if not len(x):
            return None
        logits = student.predict(x, batch_size=self.recipe.batch_size, verbose=0)
        return float(np.mean(np.argmax(logits, axis=-1) == y))


class _ResumeGeneration(Resume):
    """Goes on with a generation, which may have been trained before its record was written."""

    def _tell_that_it_had_finished(self):
        pass


def _networks_read(distiller):
    """How many networks beside the student run on each batch."""
    graph = distiller.graph
    read = {edge.source for edge in graph.edges} - set(graph.student_names)
    return len(read & set(graph.networks))


def _best_weights(callbacks, monitor):
    """The callback that knows the best weights, added to the list if it isn't there."""
    for callback in callbacks:
        if isinstance(callback, BestWeights):
            if callback.monitor != monitor:
                raise ValueError(
                    f"{type(callback).__name__} among the recipe's callbacks monitors "
                    f"'{callback.monitor}', and the recipe '{monitor}'. Expected one value to tell "
                    "the best epoch by. Give the recipe the same `monitor`"
                )
            return callback
    callbacks.append(BestWeights(monitor))
    return callbacks[-1]
