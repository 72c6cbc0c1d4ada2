"""Trains generation after generation, writes each to disk, and goes on where it was interrupted."""

import gc
from pathlib import Path

import keras

from kdtoolkit import scalars
from kdtoolkit.data import Dataset
from kdtoolkit.generations.methods import find_method
from kdtoolkit.generations.recipe import Recipe
from kdtoolkit.generations.records import GenerationFolder, check_settings, describe_data
from kdtoolkit.generations.training import Trial
from kdtoolkit.locks import claim, release


def train_generations(
    build,
    data,
    *,
    recipe,
    generations,
    directory,
    method="born_again",
    seed=0,
    checkpoint_every=1,
    checkpoint_every_batches=None,
    verbose=0,
    report=None,
):
    """Trains networks one after the other, each taught by the one before.

    For every generation: build a new network, train it by the method with the recipe, keep the
    weights of its best validation epoch (or the last, see `Recipe.select`), write them and a record
    to `directory`. The next generation learns from these weights. Test data is measured once the
    weights are chosen, and decides nothing.

    Called again with the same arguments it goes on where it was: finished generations are read, an
    interrupted one continues after its last checkpoint, and the weights end bit-equal to those of
    a run without interruption on the same machine. A larger `generations` adds more. The same
    means: method (by its name), seed, recipe and data. What `build` returns isn't compared, nor
    are two functions of one name, such as lambdas: give each its own directory.

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
        checkpoint_every: int >= 1, epochs between the checkpoints of an unfinished generation.
            Defaults to 1. None writes no checkpoint: an interrupted generation starts again.
        checkpoint_every_batches: int >= 1, batches between further checkpoints within an epoch, or
            None (default) for none.
        verbose: as in `keras.Model.fit`. Defaults to 0, silent.
        report: function that is called with the record of each generation that this call has
            trained, or None (default).

    Returns:
        A list of `GenerationRecord`, one per generation.

    Raises:
        ValueError: a directory that another process trains in; a number out of range, data without
            validation part, a network without logits for this data, another number of functions
            than generations, or a `directory` with a run of other settings.
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
    owner = "train_generations"
    generations = scalars.whole(generations, "generations", owner)
    seed = scalars.whole(seed, "seed", owner, minimum=0)
    checkpoints = _checkpoints(checkpoint_every, checkpoint_every_batches, owner)
    _check_types(data, recipe)
    name, function = find_method(method)
    directory, builders = Path(directory), _builders(build, generations)
    settings = {"method": name, "seed": seed, "recipe": recipe.describe()}
    check_settings(directory, {**settings, "data": describe_data(data)})
    claim(directory)
    trial = Trial(builders, data, recipe, name, function, directory, seed, checkpoints, verbose)
    try:
        return [_record(trial, number, report) for number in range(1, generations + 1)]
    finally:
        release(directory)


def _record(trial, generation, report):
    """The record of one generation, trained if it isn't there."""
    folder = GenerationFolder(trial.directory, generation)
    record = folder.record()
    if record is not None:
        folder.clean()
        return record
    record = trial.train(generation)
    # Keras's models refer to themselves; their memory is needed for the next ones.
    gc.collect()
    if report is not None:
        report(record)
    return record


def _checkpoints(every, batches, owner):
    if every is None and batches is None:
        return None
    if every is not None:
        every = scalars.whole(every, "checkpoint_every", owner)
    if batches is not None:
        batches = scalars.whole(batches, "checkpoint_every_batches", owner)
    return {"every": every or 1, "every_batches": batches}


def _builders(build, generations):
    builders = tuple(build) if isinstance(build, list | tuple) else (build,) * generations
    if len(builders) != generations:
        raise ValueError(
            f"`build` must have one function per generation, {generations}. "
            f"Received: {len(builders)} functions"
        )
    if not all(callable(b) and not isinstance(b, keras.Model) for b in builders):
        raise TypeError(
            "`build` must be a function seed -> keras.Model, such as "
            f"`lambda seed: kd.models.mlp((64,), 10, seed=seed)`. Received: build={build!r}"
        )
    return builders


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
