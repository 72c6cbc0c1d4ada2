"""Trains generation after generation, writes each to disk, and goes on where it was interrupted."""

import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from kdtoolkit import checks
from kdtoolkit.callbacks import BestTeacher, BestWeights, Resume
from kdtoolkit.callbacks.state import stateful
from kdtoolkit.data import ArrayPipeline, Dataset, FollowEpochs
from kdtoolkit.distiller import Distiller
from kdtoolkit.generations.methods import find_method
from kdtoolkit.generations.recipe import Recipe
from kdtoolkit.generations.records import (
    GenerationFolder,
    GenerationRecord,
    check_settings,
    describe_data,
)
from kdtoolkit.generations.stopwatch import Stopwatch
from kdtoolkit.progress import TeacherPolicy


def train_generations(
    build,
    data,
    *,
    recipe,
    generations,
    directory,
    method="born_again",
    seed=0,
    verbose=0,
    report=None,
):
    """Trains networks one after the other, each taught by the one before.

    For every generation: build a new network, train it by the method with the recipe, keep the
    weights of its best validation epoch (or the last, see `Recipe.select`), write them and a record
    to `directory`. The next generation learns from these weights. Test data is measured once the
    weights are chosen, and decides nothing.

    Called again with the same arguments it goes on where it was: finished generations are read, an
    interrupted one continues after its last whole epoch, and the weights end bit-equal to those of
    a run without interruption on the same machine. A larger `generations` adds more.

    Every generation has a seed of its own, `generation_seed(seed, generation)`, for the weights,
    the order of the examples, the augmentation and Keras's global random state
    (`keras.utils.set_random_seed`, set when the generation begins). It doesn't depend on the
    method: with one trial seed, all methods start generation k from the same weights and see the
    same batches, which pairs them.

    Args:
        build: function `seed -> keras.Model` that returns a new network with logits for `data`; or
            a list of such functions, one per generation. Previous networks teach by their outputs,
            so architectures may differ.
        data: `kd.data.Dataset` with a validation part; the test part may be empty. One split
            serves all generations.
        recipe: `kd.Recipe`, how each generation is trained.
        generations: int >= 1.
        directory: folder of this run alone; made if it isn't there.
        method: `"independent"`, `"born_again"` (default), `"born_again_labels"`,
            `"confidence_weighted"`, `"permuted"`, `"self_distillation"`, see
            `kdtoolkit.generations.methods`; or a function `(student, teacher)` that returns an
            uncompiled `kd.Distiller`, with `teacher=None` in the first generation.
        seed: int >= 0, the trial's seed.
        verbose: as in `keras.Model.fit`. Defaults to 0, silent.
        report: function that is called with the record of each generation that this call has
            trained, or None (default).

    Returns:
        A list of `GenerationRecord`, one per generation.

    Raises:
        ValueError: a number out of range, data without validation part, a network without logits
            for this data, another number of functions than generations, or a `directory` with a
            run of other settings.
        TypeError: something else than the arguments above.

    Example:
        >>> import keras, tempfile, kdtoolkit as kd
        >>> from kdtoolkit.generations import Recipe, train_generations
        >>> data = kd.data.load_digits(image_shape=(64,))
        >>> recipe = Recipe(lambda: keras.optimizers.Adam(0.01), epochs=2, batch_size=128)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     records = train_generations(
        ...         lambda seed: kd.models.mlp((64,), 10, units=(16,), seed=seed),
        ...         data, recipe=recipe, generations=2, directory=folder,
        ...     )
        >>> [record.generation for record in records]
        [1, 2]

    Source: Furlanello et al., 2018, arXiv:1805.04770 (born-again networks; the paper doesn't say
    whether the last or the best weights teach); Takagi and Hattori, IPSJ 81st National Convention
    (2019), 4U-02 (best validation weights).
    """
    _check_numbers(generations, seed)
    _check_types(data, recipe)
    name, method = find_method(method)
    run = _Run(_builders(build, generations), data, recipe, method, Path(directory), seed, verbose)
    settings = {"method": name, "seed": int(seed), "recipe": recipe.describe()}
    check_settings(run.directory, {**settings, "data": describe_data(data)})
    records = []
    for generation in range(1, generations + 1):
        folder = GenerationFolder(run.directory, generation)
        record = folder.record()
        if record is None:
            record = run.train(folder, name)
            # Keras's models refer to themselves; their memory is needed for the next ones.
            gc.collect()
            if report is not None:
                report(record)
        else:
            folder.clean()
        records.append(record)
    return records


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
class _Run:
    """What all generations of a run share."""

    builders: tuple
    data: Dataset
    recipe: Recipe
    method: Callable
    directory: Path
    seed: int
    verbose: int | str

    def train(self, folder, name):
        """Train one generation, or the rest of it, and write it to its folder."""
        folder.path.mkdir(exist_ok=True)
        distiller = self._distiller(folder.generation)
        pipeline = self._pipeline(distiller, folder.generation)
        best, watch = self._fit(distiller, pipeline, folder.checkpoint)
        last = self._accuracies(distiller.student, best, best.last_weights())
        chosen = best.best_weights() if self.recipe.select == "best" else best.last_weights()
        # After the last weights, so that the chosen ones are those that are saved.
        selected = self._accuracies(distiller.student, best, chosen)
        examples = watch.epochs * len(self.data.x_train)
        record = GenerationRecord(
            method=name,
            seed=self.seed,
            generation=folder.generation,
            val_accuracy=selected[0],
            test_accuracy=selected[1],
            last_val_accuracy=last[0],
            last_test_accuracy=last[1],
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
        model.load_weights(GenerationFolder(self.directory, generation).network)
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
        waiting = any(source.commits for source in distiller.sources.values())
        if waiting and not any(isinstance(c, TeacherPolicy) for c in callbacks):
            callbacks.insert(0, BestTeacher(recipe.monitor))
        best = _best_weights(callbacks, recipe.monitor)
        watch = Stopwatch()
        callbacks = [FollowEpochs(pipeline), *callbacks, watch]
        resume = Resume(checkpoint, callbacks=[c for c in callbacks if _has_state(c)])
        distiller.fit(
            pipeline,
            shuffle=False,
            epochs=recipe.epochs,
            initial_epoch=resume.epoch,
            validation_data=(data.x_val, data.y_val),
            validation_batch_size=recipe.batch_size,
            callbacks=[*callbacks, resume],
            verbose=self.verbose,
        )
        return best, watch

    def _accuracies(self, student, best, weights):
        """Accuracy of these weights on the validation and the test part."""
        best.put(weights)
        data = self.data
        return tuple(
            self._accuracy(student, x, y)
            for x, y in ((data.x_val, data.y_val), (data.x_test, data.y_test))
        )

    def _accuracy(self, student, x, y):
        if not len(x):
            return None
        logits = student.predict(x, batch_size=self.recipe.batch_size, verbose=0)
        return float(np.mean(np.argmax(logits, axis=-1) == y))


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


def _has_state(callback):
    try:
        stateful(callback)
    except TypeError:
        return False
    return True


def _builders(build, generations):
    builders = tuple(build) if isinstance(build, list | tuple) else (build,) * generations
    if len(builders) != generations:
        raise ValueError(
            f"`build` must have one function per generation, {generations}. "
            f"Received: {len(builders)} functions"
        )
    if not all(callable(function) and not isinstance(function, keras.Model) for function in builders):
        raise TypeError(
            "`build` must be a function seed -> keras.Model, such as "
            f"`lambda seed: kd.models.mlp((64,), 10, seed=seed)`. Received: build={build!r}"
        )
    return builders


def _check_numbers(generations, seed):
    for name, value, minimum in (("generations", generations, 1), ("seed", seed, 0)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < minimum:
            raise ValueError(f"`{name}` must be an integer >= {minimum}. Received: {value!r}")


def _check_types(data, recipe):
    if not isinstance(recipe, Recipe):
        raise TypeError(f"`recipe` must be a kd.Recipe. Received: recipe={recipe!r}")
    if not isinstance(data, Dataset):
        raise TypeError(f"`data` must be a kd.data.Dataset. Received: {type(data).__name__}")
    if not len(data.x_val):
        raise ValueError(
            "The best epoch of a generation is told by validation, but the data has no validation "
            "part. Load it with `val_fraction` above 0, or split the training part with "
            "`kd.data.split`."
        )
