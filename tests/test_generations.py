"""Born-again generations: what each method trains, seeds, selection, resuming, records."""

import dataclasses
import functools
import gc
import json
import os
import signal
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
from scipy.special import softmax

import kdtoolkit as kd
from kdtoolkit.data import ArrayPipeline, Dataset, FollowEpochs
from kdtoolkit.ensemble import Ensemble
from kdtoolkit.generations import (
    METHODS,
    Recipe,
    born_again_labels,
    generation_seed,
    load_generations,
    load_network,
    records,
    train_generations,
    training,
)
from kdtoolkit.generations.stopwatch import Stopwatch
from tests.support import CLASSES, FEATURES, Subclassed, arrays, crossentropy, largest_difference

EXAMPLES = 60


def dataset(seed=0):
    """Three overlapping clouds, so that no network is perfect."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(CLASSES, FEATURES))
    parts = {}
    for part, count in (("train", EXAMPLES), ("val", 50), ("test", 50)):
        labels = random.integers(CLASSES, size=count).astype("int32")
        noise = random.normal(scale=1.5, size=(count, FEATURES))
        parts[f"x_{part}"] = (centres[labels] + noise).astype("float32")
        parts[f"y_{part}"] = labels
    return Dataset(
        **parts,
        num_classes=CLASSES,
        input_shape=(FEATURES,),
        name="clouds",
        mean=np.zeros(1, "float32"),
        std=np.ones(1, "float32"),
    )


class Noise:
    """An augmentation of examples that aren't images."""

    def draw(self, generator, count):
        return generator.normal(scale=0.1, size=(count, FEATURES)).astype("float32")

    def apply(self, images, draws):
        return images + draws


class Kill(keras.callbacks.Callback):
    """Kills the process after a number of batches of a run.

    Args:
        countdown: list of one number, shared by the generations of a run, or None for never. Kept
            in private, where it is no setting of the run.
    """

    def __init__(self, countdown=None):
        super().__init__()
        self._countdown = countdown

    def on_train_batch_end(self, batch, logs=None):
        if self._countdown is not None:
            self._countdown[0] -= 1
            if self._countdown[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class Scores(keras.callbacks.Callback):
    """Collects the logged validation accuracies of all generations, in one list per generation."""

    def __init__(self, scores):
        super().__init__()
        scores.append([])
        self._scores = scores[-1]

    def on_epoch_end(self, epoch, logs=None):
        self._scores.append(logs["val_accuracy"])


def network(seed, units=8):
    return kd.models.mlp((FEATURES,), CLASSES, units=(units,), dropout=0.2, seed=seed)


def recipe(**changes):
    settings = {
        "optimizer": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
        "epochs": 3,
        "batch_size": 16,
        "augment": Noise(),
    }
    return Recipe(**{**settings, **changes})


def train(directory, method="born_again", generations=1, *, build=network, data=None, **changes):
    arguments = {k: changes.pop(k) for k in ("checkpoint_every",) if k in changes}
    return train_generations(
        build,
        data or dataset(),
        recipe=changes.pop("recipe", None) or recipe(**changes),
        method=method,
        generations=generations,
        directory=directory,
        seed=3,
        **arguments,
    )


def weights(directory, generation):
    return arrays(load_network(directory, generation))


def same(first, second):
    return largest_difference(first, second) == 0.0


# What each method trains ----------------------------------------------------------------------
# One step of a linear softmax network. With one-hot inputs, one example moves one row of the
# kernel, so what the step aimed at can be read off for each example.

SIZE = 8
TEACHER = np.random.default_rng(1).normal(scale=2.0, size=(SIZE, 5))
LABELS = np.random.default_rng(2).integers(5, size=SIZE)


def linear(kernel):
    model = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(5)])
    model.set_weights([kernel.astype("float32"), np.zeros(5, "float32")])
    return model


def pull(method, first_generation=False):
    """`examples * (q - gradient)`, float64, one row per example, and the student's own q."""
    start = np.random.default_rng(3).normal(size=(SIZE, 5))
    student, teacher = linear(start), linear(TEACHER)
    distiller = method(student, None if first_generation else teacher)
    distiller.compile(keras.optimizers.SGD(1.0), crossentropy(), metrics=["accuracy"])
    x = np.eye(SIZE, dtype="float32")
    validation = {"validation_data": (x, LABELS), "verbose": 0}
    distiller.fit(x, LABELS, batch_size=SIZE, shuffle=False, **validation)
    step = start - student.get_weights()[0].astype("float64")
    q = softmax(start, axis=-1)
    return SIZE * step, q


P, Y = softmax(TEACHER, axis=-1), np.eye(5)[LABELS]
CONFIDENCE = SIZE * P.max(-1, keepdims=True) / P.max(-1).sum()
summed = functools.partial(born_again_labels, label_weight=1.0, teacher_weight=1.0)

# Gradients with respect to the logits, before the mean over the batch.
WANTED = {
    "independent": lambda q: q - Y,
    "born_again": lambda q: q - P,
    "born_again_labels": lambda q: q - 0.5 * Y - 0.5 * P,
    "confidence_weighted": lambda q: CONFIDENCE * (q - Y),
    # Nothing is remembered yet, so the first epoch's memory is the labels.
    "self_distillation": lambda q: (q - Y) + (q - P),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.core] * (name == "born_again")) for name in WANTED],
)
def test_one_step_is_the_gradient_of_the_methods_loss(name):
    step, q = pull(METHODS[name])
    np.testing.assert_allclose(step, WANTED[name](q), atol=1e-5)


def test_labels_and_teacher_may_be_added_up():
    step, q = pull(summed)
    np.testing.assert_allclose(step, (q - Y) + (q - P), atol=1e-5)


@pytest.mark.parametrize("name", ["independent", "self_distillation"])
def test_the_first_generation_learns_from_labels_alone(name):
    step, q = pull(METHODS[name], first_generation=True)
    np.testing.assert_allclose(step, q - Y, atol=1e-5)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"self_distillation"}))
def test_the_first_generation_has_nothing_else_and_full_label_weight(name):
    distiller = METHODS[name](linear(TEACHER), None)
    assert distiller.transfers == [] and distiller.teachers == {}
    assert float(distiller.label_weight) == 1.0


def test_permuted_targets_keep_the_top_class_and_shuffle_the_rest():
    step, q = pull(METHODS["permuted"])
    targets = q - step
    np.testing.assert_allclose(np.sort(targets, -1), np.sort(P, -1), atol=1e-5)
    assert np.array_equal(targets.argmax(-1), P.argmax(-1))
    assert np.abs(targets - P).max() > 0.01


# Seeds ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Watched:
    """A run of two generations by the last weights, and what its functions were given."""

    directory: object
    records: list = None
    starts: list = dataclasses.field(default_factory=list)
    teachers: list = dataclasses.field(default_factory=list)
    networks: list = dataclasses.field(default_factory=list)

    def build(self, seed):
        model = network(seed)
        self.networks.append(weakref.ref(model))
        return model

    def train(self, name):
        @functools.wraps(METHODS[name])
        def method(student, teacher):
            self.starts.append(student.get_weights())
            self.teachers.append(teacher and teacher.get_weights())
            return METHODS[name](student, teacher)

        self.records = train(self.directory, method, 2, build=self.build, select="last")
        return self

    def weights(self, generation):
        return weights(self.directory, generation)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    names = ("independent", "born_again")
    return {name: Watched(tmp_path_factory.mktemp(name)).train(name) for name in names}


def plain_fit(seed, epochs=3):
    """The same training with nothing but Keras and the pipeline."""
    data = dataset()
    keras.utils.set_random_seed(seed)
    model = network(seed)
    model.compile(recipe().optimizer(), crossentropy(), metrics=["accuracy"])
    pipeline = ArrayPipeline(data.x_train, data.y_train, batch_size=16, augment=Noise(), seed=seed)
    callbacks = [FollowEpochs(pipeline)]
    model.fit(pipeline, shuffle=False, epochs=epochs, callbacks=callbacks, verbose=0)
    return model.get_weights()


@pytest.mark.parametrize("generation", [1, 2])
def test_a_generation_on_labels_is_a_plain_fit_with_its_own_seed(generation, watched):
    trained = load_network(watched["independent"].directory, generation).get_weights()
    assert same(trained, plain_fit(generation_seed(3, generation)))


def test_methods_share_the_first_generation_and_every_start(watched):
    ours, theirs = watched["born_again"], watched["independent"]
    assert same(ours.weights(1), theirs.weights(1))
    assert not same(ours.weights(2), theirs.weights(2))
    for generation in (0, 1):
        assert same(ours.starts[generation], theirs.starts[generation])
    assert not same(*ours.starts)


def test_the_network_that_was_kept_teaches_the_next(watched):
    teachers = watched["born_again"].teachers
    first = load_network(watched["born_again"].directory, 1)
    assert teachers[0] is None and same(teachers[1], first.get_weights())


def test_earlier_networks_do_not_stay_in_memory(watched):
    gc.collect()
    for run in watched.values():
        assert len(run.networks) == 3
        assert not any(reference() for reference in run.networks)


@pytest.mark.core
def test_every_generation_of_every_trial_has_a_seed_of_its_own():
    seeds = [
        generation_seed(trial, generation) for trial in range(20) for generation in range(1, 9)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


# Selection ------------------------------------------------------------------------------------


HIGH = {"epochs": 6, "optimizer": lambda: keras.optimizers.SGD(1.0, momentum=0.9)}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A run per `select`, in its folder, and the logged validation accuracies."""
    directory, scores, found = tmp_path_factory.mktemp("chosen"), [], {}
    for select in ("best", "last"):
        callbacks = {"callbacks": lambda: [Scores(scores)]}
        found[select] = train(directory / select, select=select, **callbacks, **HIGH)[0]
    # Settings are read from callbacks of their own, which see no epoch.
    logged, again = [s for s in scores if s]
    assert logged == again and max(logged) > logged[-1]
    return directory, found, logged


def test_validation_chooses_the_weights(chosen):
    _, found, logged = chosen
    assert found["best"].best_epoch == found["last"].best_epoch == np.argmax(logged) + 1
    assert found["best"].val_accuracy == pytest.approx(max(logged), abs=1e-6)
    assert found["last"].val_accuracy == pytest.approx(logged[-1], abs=1e-6)
    for record in found.values():
        assert record.last_val_accuracy == pytest.approx(logged[-1], abs=1e-6)
        assert record.last_test_accuracy == found["last"].test_accuracy


def test_the_record_says_what_the_saved_network_scores(chosen):
    (directory, found, _), data = chosen, dataset()
    for select, record in found.items():
        model = load_network(directory / select, 1)
        for part, accuracy in (("val", record.val_accuracy), ("test", record.test_accuracy)):
            logits = np.asarray(model(getattr(data, f"x_{part}")))
            assert accuracy == np.mean(logits.argmax(-1) == getattr(data, f"y_{part}"))


def test_the_network_does_not_depend_on_the_test_labels(chosen, tmp_path):
    (directory, found, _), data = chosen, dataset()
    other = dataclasses.replace(data, y_test=(data.y_test + 1) % CLASSES)
    (theirs,) = train(tmp_path, data=other, **HIGH)
    assert found["best"].test_accuracy != theirs.test_accuracy
    assert same(weights(directory / "best", 1), weights(tmp_path, 1))


def test_without_test_data_there_is_no_test_accuracy(tmp_path):
    data = dataset()
    data = dataclasses.replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0])
    (record,) = train(tmp_path, data=data, epochs=1)
    assert record.test_accuracy is None and record.last_test_accuracy is None
    assert load_generations(tmp_path) == [record]


# Interruptions --------------------------------------------------------------------------------

# Rewinds and stops before the last epoch; momentum, dropout and the memory are state to keep.
PLATEAU = functools.partial(
    Recipe.takagi_hattori,
    batch_size=16,
    epochs=12,
    augment=None,
    patience=2,
    stop_patience=3,
    learning_rate=0.05,
)


def run(directory, kill_after=None, generations=2):
    """A run with everything that has a state. Also called by the killed process."""
    settings, countdown = PLATEAU(), kill_after and [kill_after]
    callbacks = settings.callbacks
    settings = dataclasses.replace(settings, callbacks=lambda: [*callbacks(), Kill(countdown)])
    return train(directory, "self_distillation", generations, recipe=settings)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    return directory, run(directory)


def check_equal(directory, found, expected_in, expected):
    """Same bits, and same records but for the clock."""
    for ours, theirs in zip(found, expected, strict=True):
        networks = [weights(folder, ours.generation) for folder in (directory, expected_in)]
        assert same(*networks)
        assert min(ours.seconds, ours.cpu_seconds) > 0
        assert ours == dataclasses.replace(
            theirs, seconds=ours.seconds, cpu_seconds=ours.cpu_seconds
        )


def test_the_run_to_interrupt_rewinds_and_stops_early(uninterrupted):
    _, found = uninterrupted
    assert all(4 <= record.epochs < 12 for record in found)
    assert any(record.best_epoch < record.epochs for record in found)


@pytest.mark.tensorflow
def test_a_run_killed_within_an_epoch_ends_with_the_same_bits(tmp_path, uninterrupted):
    steps_per_epoch = 4
    kill_after = uninterrupted[1][0].steps + 2 * steps_per_epoch + 2
    code = f"from tests.test_generations import run; run({str(tmp_path)!r}, {kill_after})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(load_generations(tmp_path)) == 1
    checkpoints = (tmp_path / "generation-2" / "checkpoint").iterdir()
    assert "epoch-00002.npz" in [path.name for path in checkpoints]
    check_equal(tmp_path, run(tmp_path), *uninterrupted)


class Stop(Exception):
    pass


def stop(*_):
    raise Stop


def test_a_run_stopped_after_its_last_epoch_goes_on(tmp_path, uninterrupted, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(records.GenerationFolder, "finish", stop)
        run(tmp_path)
    assert load_generations(tmp_path) == []
    directory, expected = uninterrupted
    check_equal(tmp_path, run(tmp_path, generations=1), directory, expected[:1])


def test_a_run_stopped_between_network_and_record_goes_on(tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = train(whole)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(records.dataclasses, "asdict", stop)
        train(stopped, checkpoint_every=2)
    assert (stopped / "generation-1" / "network.keras").exists()
    assert (stopped / "generation-1" / "checkpoint").exists()
    check_equal(stopped, train(stopped, checkpoint_every=2), whole, expected)


def test_finished_generations_are_read_and_more_may_follow(tmp_path, monkeypatch):
    reported = []
    report = {"data": dataset(), "recipe": recipe(epochs=1), "directory": tmp_path, "seed": 3}
    first = train_generations(network, generations=1, report=reported.append, **report)
    both = train_generations(network, generations=2, report=reported.append, **report)
    assert both[:1] == first and reported == both
    monkeypatch.setattr(training.Trial, "train", stop)
    (tmp_path / "generation-2" / "checkpoint").mkdir()
    assert train_generations(network, generations=2, report=stop, **report) == both
    assert load_generations(tmp_path) == both
    assert sorted(os.listdir(tmp_path / "generation-2")) == ["network.keras", "record.json"]


CHANGED = {
    "method: .*born_again.* before, .*permuted.* now": {"method": "permuted"},
    "recipe.optimizer.learning_rate: 0.05": {"optimizer": lambda: keras.optimizers.SGD(0.1)},
    "recipe.batch_size: 16 before, 20 now": {"batch_size": 20},
    "recipe.callbacks.0.class: None before": {"callbacks": lambda: [Scores([])]},
    "data.y_test": {"data": dataset(seed=1)},
}


@pytest.mark.parametrize("message", CHANGED)
def test_a_run_is_not_continued_with_other_settings(message, tmp_path, monkeypatch):
    monkeypatch.setattr(training.Trial, "train", stop)
    with pytest.raises(Stop):
        train(tmp_path)
    with pytest.raises(ValueError, match=f"(?s)other settings.*{message}.*another `directory`"):
        train(tmp_path, **CHANGED[message])
    with pytest.raises(Stop):
        train(tmp_path)


def test_callbacks_are_compared_by_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(training.Trial, "train", stop)
    with pytest.raises(Stop):
        train(tmp_path, recipe=PLATEAU())
    with pytest.raises(ValueError, match="recipe.callbacks.0.patience: 2 before, 3 now"):
        train(tmp_path, recipe=PLATEAU(patience=3))


def test_methods_with_other_arguments_are_other_methods(tmp_path, monkeypatch):
    monkeypatch.setattr(training.Trial, "train", stop)
    with pytest.raises(Stop):
        train(tmp_path, summed)
    with pytest.raises(ValueError, match=r"label_weight=1.0.* before, .*born_again_labels.* now"):
        train(tmp_path, "born_again_labels")


def test_the_stopwatch_goes_on_where_it_was():
    watch = Stopwatch()
    watch.on_train_begin()
    watch.on_epoch_end(0)
    saved = {name: np.asarray(value) for name, value in watch.get_state().items()}
    other = Stopwatch()
    other.on_train_begin()
    other.set_state({**saved, "seconds": np.asarray(100.0)})
    other.on_epoch_end(1)
    other.on_train_end()
    assert other.epochs == 2
    assert 100 < other.seconds < 110
    assert other.seconds == other.get_state()["seconds"]


# Networks and records -------------------------------------------------------------------------


def test_another_architecture_teaches_even_one_that_builds_at_its_first_batch(tmp_path):
    builders = [lambda seed: Subclassed(4), network]
    train(tmp_path, generations=2, build=builders, epochs=1)
    first, second = (load_network(tmp_path, generation) for generation in (1, 2))
    assert first(dataset().x_val).shape == second(dataset().x_val).shape == (50, CLASSES)
    assert type(first) is Subclassed and second.get_layer("stage1_dense").units == 8


def test_networks_of_a_run_make_an_ensemble(watched):
    directory, x = watched["independent"].directory, dataset().x_test
    networks = [load_network(directory, generation) for generation in (1, 2)]
    mean = np.mean([softmax(np.asarray(net(x)), -1) for net in networks], axis=0)
    found = Ensemble(networks, output="probabilities")(x)
    np.testing.assert_allclose(np.asarray(found), mean, atol=1e-6)


def test_records_count_the_work(watched, uninterrupted):
    for name, teacher_passes in (("independent", [0, 0]), ("born_again", [0, 3 * EXAMPLES])):
        found = watched[name].records
        assert [(r.method, r.seed, r.generation) for r in found] == [(name, 3, 1), (name, 3, 2)]
        assert [(r.epochs, r.steps, r.student_passes) for r in found] == [(3, 12, 3 * EXAMPLES)] * 2
        assert [r.teacher_passes for r in found] == teacher_passes
        assert [r.network for r in found] == [f"generation-{g}/network.keras" for g in (1, 2)]
        assert all(r.seconds > 0 and r.cpu_seconds > 0 for r in found)
        assert load_generations(watched[name].directory) == found
    first, second = uninterrupted[1]
    assert (first.teacher_passes, second.teacher_passes) == (0, second.epochs * EXAMPLES)


def test_snapshots_of_the_student_count_as_passes_of_another_network(tmp_path):
    def exact(student, teacher):
        return kd.SelfDistiller(student=student, teacher=teacher, source="snapshot")

    (record,) = train(tmp_path, exact, epochs=1)
    assert record.method == "exact" and record.teacher_passes == EXAMPLES
    saved = json.loads((tmp_path / "generation-1" / "record.json").read_text())
    assert isinstance(saved.pop("crc32"), int)
    assert saved == dataclasses.asdict(record)


def test_a_network_that_is_not_finished_is_not_loaded(tmp_path, watched):
    with pytest.raises(FileNotFoundError, match="no settings.json"):
        load_generations(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Generation 3 isn't finished.*\[1, 2\]"):
        load_network(watched["born_again"].directory, 3)


# What is refused ------------------------------------------------------------------------------

OPTIMIZER = keras.optimizers.SGD
RECIPES = {
    "optimizer object": ({"optimizer": OPTIMIZER()}, TypeError, "function that returns new"),
    "callback list": ({"callbacks": [Kill()]}, TypeError, "`callbacks` must be a function"),
    "metric object": (
        {"metrics": [keras.metrics.SparseCategoricalAccuracy()]},
        TypeError,
        "names or functions",
    ),
    "no epoch": ({"epochs": 0}, ValueError, "`epochs` of Recipe must be an integer >= 1"),
    "select": ({"select": "test"}, ValueError, "'best', 'last'"),
    "monitor": ({"monitor": "accuracy"}, ValueError, "value of the validation"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_that_can_not_work_is_refused(case):
    changes, error, message = RECIPES[case]
    with pytest.raises(error, match=message):
        recipe(**changes)


def with_softmax(seed):
    return keras.Sequential([network(seed), keras.layers.Softmax()])


def without_validation():
    data = dataset()
    return dataclasses.replace(data, x_val=data.x_val[:0], y_val=data.y_val[:0])


RUNS = {
    "unknown method": ({"method": "ban"}, ValueError, "self_distillation.*Received.*'ban'"),
    "no method": ({"method": 1}, TypeError, "function .student, teacher."),
    "other result": ({"method": lambda s, t: s}, TypeError, "return a kd.Distiller"),
    "no generation": (
        {"generations": 0},
        ValueError,
        "`generations` of train_generations must be an integer >= 1",
    ),
    "no epoch between": (
        {"checkpoint_every": 0},
        ValueError,
        "`checkpoint_every` of train_generations must be",
    ),
    "builders": ({"build": [network] * 2}, ValueError, "one function per generation, 1"),
    "a model": ({"build": network(0)}, TypeError, "must be a function seed"),
    "no model": ({"build": lambda seed: seed}, TypeError, "return a keras.Model"),
    "probabilities": ({"build": with_softmax}, ValueError, "returns probabilities"),
    "classes": (
        {"build": lambda seed: kd.models.mlp((FEATURES,), 4)},
        ValueError,
        r"shape \(batch, 3\)",
    ),
    "no validation": ({"data": without_validation()}, ValueError, "no validation part"),
    "no recipe": ({"recipe": "paper"}, TypeError, "must be a kd.Recipe"),
    "monitor": (
        {"callbacks": lambda: [kd.callbacks.BestWeights("val_loss")]},
        ValueError,
        "monitors 'val_loss'",
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_arguments_that_can_not_work_are_refused(case, tmp_path):
    changes, error, message = RUNS[case]
    with pytest.raises(error, match=message):
        train(tmp_path, **changes)


def test_a_network_built_twice_must_be_two(tmp_path):
    model = network(0)
    with pytest.raises(ValueError, match="new network at every call"):
        train(tmp_path, generations=2, build=lambda seed: model, epochs=1)


def test_the_papers_recipe_has_the_papers_numbers():
    settings = Recipe.takagi_hattori().describe()
    rewind, optimizer = settings["callbacks"][0], settings["optimizer"]
    assert [rewind[k] for k in ("patience", "factor", "min_lr", "stop_patience")] == [
        20,
        0.1,
        0.001,
        40,
    ]
    assert optimizer["learning_rate"] == pytest.approx(0.1) and optimizer["momentum"] == 0.9
    assert not optimizer["weight_decay"]
    assert settings["batch_size"] == 100 and settings["select"] == "best"
    assert (settings["augment"]["shift"], settings["augment"]["flip"]) == (4, True)
