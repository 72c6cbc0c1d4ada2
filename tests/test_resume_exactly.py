"""An interrupted run ends with the bits of one left alone, wherever in an epoch it was stopped."""

import pathlib
import random
import subprocess
import sys

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit import steps
from kdtoolkit.callbacks import BestTeacher, Resume, RewindOnPlateau
from kdtoolkit.callbacks.checkpoints import NEEDED, Checkpoints, Position
from kdtoolkit.steps import skipping
from tests.support import crossentropy

ROOT = pathlib.Path(kd.__file__).parent.parent
EXAMPLES = 44
BATCHES = 6  # of 8 examples, the last of 4


class Interruption(Exception):
    """What a test raises in the middle of a run."""


class Watch(keras.callbacks.Callback):
    """Remembers the batches that it sees, and stops the run behind one of them."""

    def __init__(self, stop=None):
        super().__init__()
        self.stop = stop
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append((self.epoch, batch))
        if self.seen[-1] == self.stop:
            raise Interruption

    def get_state(self):
        return {}

    def set_state(self, saved):
        pass


def examples():
    rng = np.random.default_rng(0)
    return rng.normal(size=(EXAMPLES, 6)).astype("float32"), rng.integers(0, 3, EXAMPLES)


def network(seed, units=4):
    """Weights and dropout of another process are others: only a checkpoint makes them equal."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(units, "relu", name="inner"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(3),
        ]
    )


def state_of(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    copies = [copy for variable in variables for copy in steps.own_copies(variable)]
    return [keras.ops.convert_to_numpy(copy) for copy in copies]


def attempt(make, seed, folder, stop=None, data=examples, **options):
    """One process's part of a run. Returns the state at its end, the history, what was seen."""
    model, callbacks = make(seed)
    watch, given = Watch(stop), data()
    given = dict(zip("xy", given, strict=True)) if isinstance(given, tuple) else {"x": given}
    resume = Resume(folder, every_batches=2)
    fitting = {"epochs": 2, "verbose": 0, **options}
    if "y" in given:
        fitting["batch_size"] = 8
    try:
        history = model.fit(**given, callbacks=[watch, *callbacks, resume], **fitting)
    except Interruption:
        return None
    return state_of(model), (history.history, history.epoch), watch.seen


def check(make, folder, stops=((0, 4), (1, 2)), **options):
    """Stop a run behind some batches, each time with other objects, and compare its end."""
    state, history, _ = attempt(make, 0, folder / "whole", **options)
    for seed, stop in enumerate(stops):
        assert attempt(make, seed, folder / "parts", stop, **options) is None
    found, found_history, seen = attempt(make, 99, folder / "parts", **options)
    for a, b in zip(found, state, strict=True):
        np.testing.assert_array_equal(a, b)
    assert found_history == history
    return seen


def past_and_large(seed):
    """A memory, a frozen teacher, and a learning rate that falls."""
    past = kd.sources.PredictionMemory()
    distiller = kd.Distiller(
        student=network(seed),
        teacher={"past": past, "large": network(seed + 1000, 8)},
        transfers=[
            kd.Transfer(kd.losses.SoftCrossEntropy(), source="past"),
            kd.Transfer(
                kd.losses.Hint(project=True),
                source="large",
                source_layer="inner",
                student_layer="inner",
            ),
        ],
    )
    optimizer = keras.optimizers.Adam(0.05, gradient_accumulation_steps=4)
    distiller.compile(optimizer, crossentropy(), metrics=["accuracy"])
    rewind = RewindOnPlateau(patience=1, stop_patience=9, min_lr=1e-4)
    return distiller, [BestTeacher(), rewind]


@pytest.mark.core
def test_a_memory_a_projector_accumulators_and_a_rewind_go_on_within_an_epoch(tmp_path):
    options = {"epochs": 3, "validation_data": examples()}
    seen = check(past_and_large, tmp_path, **options)
    # The last checkpoint was behind batch 2 of epoch 1, and others don't see what it had seen.
    assert seen == [(1, 2), (1, 3), (1, 4), (1, 5)] + [(2, batch) for batch in range(BATCHES)]


def peers(seed):
    students = [network(seed), network(seed + 7, 5)]
    distiller = kd.MutualDistiller(students=students)
    # Their names are part of the history, and within one process Keras numbers them.
    adam = keras.optimizers.Adam(0.05, name="adam")
    sgd = keras.optimizers.SGD(0.1, momentum=0.9, name="sgd")
    distiller.compile({"student1": adam, "student2": sgd}, crossentropy(), metrics=["accuracy"])
    schedule = keras.callbacks.ReduceLROnPlateau("val_loss", patience=0, min_delta=10.0)
    return distiller, [schedule]


@pytest.mark.core
def test_students_with_an_optimizer_each_go_on(tmp_path):
    check(peers, tmp_path, stops=[(1, 4)], validation_data=examples())


def plain(seed):
    model = network(seed)
    model.compile("adam", crossentropy(), metrics=["accuracy"], run_eagerly=True)
    return model


def distilling(seed, **options):
    distiller = kd.Distiller(student=network(seed), teacher=network(seed + 1000, 8))
    distiller.compile("adam", crossentropy(), metrics=["accuracy"], **options)
    return distiller, []


def eagerly(seed):
    """The same where tracing would only take time."""
    return distilling(seed, run_eagerly=True)


@pytest.mark.parametrize(
    "options",
    [
        {"validation_split": 0.25},
        {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}},
        {"shuffle": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_arrays_are_repeated_however_fit_is_called(tmp_path, options):
    check(eagerly, tmp_path, stops=[(1, 3)], **options)


def test_arrays_are_shuffled_anew_in_each_epoch(tmp_path):
    (x, y), (distiller, _) = examples(), distilling(0)
    given = {"x": x, "y": y, "batch_size": 8, "callbacks": []}
    data = Resume(tmp_path).prepare(distiller, given)["x"]
    orders = []
    for epoch in range(2):
        data.set_epoch(epoch)
        orders.append(np.concatenate([data[i][0] for i in range(len(data))])[:, 0])
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(x[:, 0])
    assert list(orders[0]) != list(orders[1])


@pytest.mark.core
def test_several_steps_in_one_call_go_on(tmp_path):
    check(lambda seed: distilling(seed, steps_per_execution=2), tmp_path, stops=[(1, 3)])


def of_tf_data():
    import tensorflow as tf

    x, y = examples()
    source = tf.data.Dataset.from_tensor_slices((x, y))
    return kd.data.epoch_dataset(lambda number: source.shuffle(50, seed=number).batch(8))


class Slices(keras.utils.PyDataset):
    """Batches that depend on their index alone."""

    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        return tuple(part[8 * index : 8 * index + 8] for part in examples())


@pytest.mark.parametrize(
    "data", [of_tf_data, lambda: kd.data.ReorderedBatches(Slices())], ids=["tf.data", "PyDataset"]
)
@pytest.mark.core
def test_other_data_that_repeat_themselves_go_on_within_an_epoch(tmp_path, data):
    check(distilling, tmp_path, stops=[(1, 3)], data=data)


def test_data_in_an_unknown_order_go_on_at_the_start_of_an_epoch(tmp_path):
    def start(seed, stop):
        with pytest.warns(UserWarning, match="order of this data.*Expected arrays"):
            return attempt(eagerly, seed, tmp_path, stop, data=Slices)

    start(0, (1, 3))
    found = [path.name for path in sorted(tmp_path.glob("epoch*"))]
    assert found == ["epoch-00000.npz", "epoch-00001.npz"]
    assert start(1, None)[2][0] == (1, 0)


def test_a_model_that_is_no_distiller_goes_on_within_an_epoch(tmp_path):
    def part(seed, folder, stop=None):
        model, data, watch = (
            plain(seed),
            kd.data.ArrayPipeline(*examples(), batch_size=8),
            Watch(stop),
        )
        early = keras.callbacks.EarlyStopping("loss", patience=9)
        resume = Resume(folder, callbacks=[early, watch], every_batches=2, data=data)
        first, seen = resume.epoch, [early, watch, resume]
        try:
            model.fit(data, shuffle=False, epochs=2, initial_epoch=first, callbacks=seen, verbose=0)
        except Interruption:
            return None
        return [*state_of(model), np.array([early.best, early.wait])]

    expected = part(0, tmp_path / "whole")
    assert part(0, tmp_path / "parts", (1, 3)) is None
    for a, b in zip(part(2, tmp_path / "parts"), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.tensorflow
def test_replicas_go_on_each_with_its_own_batch_statistics(tmp_path, two_replicas):
    def made(seed):
        with two_replicas.scope():
            return distilling(seed)

    # Without the last batch, which two replicas can't share evenly.
    options = {"data": lambda: kd.data.ArrayPipeline(*even(), batch_size=8)}
    check(made, tmp_path, stops=[(1, 3)], **options)


def even():
    return tuple(part[:40] for part in examples())


def test_random_numbers_that_callbacks_draw_go_on(tmp_path):
    class Drawing(Watch):
        def __init__(self):
            super().__init__()
            self.drawn = []

        def on_train_batch_end(self, batch, logs=None):
            self.drawn.append((random.random(), random.gauss(0, 1), np.random.normal()))

    def part(folder, stop=None):
        drawing = Drawing()
        attempt(lambda seed: (eagerly(seed)[0], [drawing]), 0, folder, stop)
        return drawing.drawn

    random.seed(5), np.random.seed(5)
    whole = part(tmp_path / "whole")
    random.seed(5), np.random.seed(5)
    part(tmp_path / "parts", (1, 3))
    # Two batches of epoch 1 were finished when its last checkpoint was written.
    assert part(tmp_path / "parts") == whole[BATCHES + 2 :]


def pruned(seed):
    """Masks on a grid that no checkpoint falls on."""
    student = kd.compress.prune(network(seed, 6), 0)
    distiller = kd.Distiller(student=student, teacher=network(seed + 1000, 8))
    distiller.compile("sgd", crossentropy(), run_eagerly=True)
    return distiller, [kd.compress.GradualPruning(student, 0.8, end_step=11, every=3)]


def test_masks_that_grow_go_on(tmp_path):
    check(pruned, tmp_path, stops=[(0, 4), (1, 3)])


def test_what_was_interrupted_while_batches_were_only_drawn_goes_on(tmp_path, monkeypatch):
    state, _, _ = attempt(eagerly, 0, tmp_path / "whole")
    attempt(eagerly, 0, tmp_path / "parts", (1, 4))
    distiller, calls = eagerly(1)[0], []
    # It has what it does with batches on the object.
    called = keras.callbacks.LambdaCallback(on_train_batch_end=lambda b, logs: calls.append(b))

    def fit():
        resume = Resume(tmp_path / "parts", every_batches=2)
        callbacks = [Watch(), called, resume]
        distiller.fit(*examples(), batch_size=8, epochs=2, callbacks=callbacks, verbose=0)

    with monkeypatch.context() as patch:
        patch.setattr(skipping.Skipping, "__call__", interrupted)
        with pytest.raises(Interruption):
            fit()
    fit()
    for a, b in zip(state_of(distiller), state, strict=True):
        np.testing.assert_array_equal(a, b)
    assert calls == [4, 5]


def interrupted(*args):
    raise Interruption


def test_the_same_objects_start_again_from_the_weights_before_the_first_batch(tmp_path):
    state, _, _ = attempt(eagerly, 0, tmp_path / "whole")
    distiller, _ = eagerly(0)
    for stop in [(0, 1), None]:
        callbacks = [Watch(stop), Resume(tmp_path / "parts")]
        try:
            distiller.fit(*examples(), batch_size=8, epochs=2, callbacks=callbacks, verbose=0)
        except Interruption:
            pass
    for a, b in zip(state_of(distiller), state, strict=True):
        np.testing.assert_array_equal(a, b)


# Files and folders -------------------------------------------------------------------------------


def checkpoint(folder):
    """A small checkpoint, and what is in it."""
    rng = np.random.default_rng(0)
    arrays = {"model/0": rng.normal(size=(20, 3)), "random/python": rng.integers(9, size=30)}
    arrays |= {name: np.asarray("something") for name in NEEDED}
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.write(Position(3, 7), arrays)
    return checkpoints, arrays


def test_a_damaged_checkpoint_is_named_and_left_as_it_is(tmp_path):
    checkpoints, arrays = checkpoint(tmp_path)
    path = tmp_path / "epoch-00003-batch-000007.npz"
    whole, draw = path.read_bytes(), random.Random(0)
    damaged = []
    for _ in range(150):
        content = bytearray(whole)
        content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        damaged += [bytes(content), whole[: draw.randrange(len(whole))]]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            found = checkpoints.read(Position(3, 7))
        except ValueError as error:
            refused += 1
            assert "is damaged" in str(error) and path.name in str(error)
        else:
            # Some bits of an archive mean nothing, such as the time of an entry.
            assert found.keys() == arrays.keys()
            assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
        assert path.read_bytes() == content
    assert refused > 200


def test_a_damaged_checkpoint_stops_a_run_before_it_trains(tmp_path):
    attempt(eagerly, 0, tmp_path, (1, 4))
    newest = tmp_path / "epoch-00001-batch-000004.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    match = "000004.npz' is damaged.*'epoch-00001-batch-000002.npz' is the one before"
    with pytest.raises(ValueError, match=match):
        attempt(eagerly, 1, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # The way out that it names.
    newest.unlink()
    assert attempt(eagerly, 2, tmp_path)[2][0] == (1, 2)


def test_a_folder_belongs_to_one_process(tmp_path):
    code = (
        "import fcntl, sys, pathlib; folder = pathlib.Path(sys.argv[1]);"
        "folder.mkdir(exist_ok=True); file = open(folder / '.lock', 'a');"
        "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="Another process is training in .*another folder"):
            attempt(eagerly, 0, tmp_path)
        other.communicate()
    # It ended, however it did.
    assert attempt(eagerly, 0, tmp_path) is not None


@pytest.mark.timeout(900)  # several processes, each of which imports the engine
@pytest.mark.parametrize(("kind", "kills"), [("self_distilled", 2), ("born_again", 1)])
def test_runs_that_are_killed_at_random_moments_end_like_one_left_alone(tmp_path, kind, kills):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import kill_and_resume
    finally:
        sys.path.pop(0)
    row = kill_and_resume.torture(kind, kills, seed=3, folder=tmp_path)
    assert row["kills"] == kills
    assert row["bit_equal"] == row["runs"] >= 1


# Mistakes ----------------------------------------------------------------------------------------


def test_another_number_of_batches_is_refused_within_an_epoch(tmp_path):
    attempt(eagerly, 0, tmp_path, (1, 3))
    data = lambda: kd.data.ArrayPipeline(*examples(), batch_size=4)  # noqa: E731
    with pytest.raises(ValueError, match="other settings.*batches: 6 before, 11 now"):
        attempt(eagerly, 1, tmp_path, data=data)


def test_backup_and_restore_beside_it_is_refused(tmp_path):
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
    with pytest.raises(ValueError, match="BackupAndRestore and Resume.*Leave BackupAndRestore out"):
        attempt(lambda seed: (eagerly(seed)[0], [backup]), 0, tmp_path)


def hotter(seed):
    distiller, _ = eagerly(seed)
    distiller.transfers[0].loss.temperature = 9.0
    return distiller, []


def test_the_folder_of_another_run_is_refused_and_nothing_is_changed(tmp_path):
    attempt(eagerly, 0, tmp_path)

    def given(*made):
        return lambda seed: made

    others = [(hotter, "numbers.*4.0 before, 9.0 now"), (slower, "optimizer.*0.001.* before")]
    for make, match in others:
        model, callbacks = make(0)
        before = state_of(model)
        with pytest.raises(ValueError, match=match):
            attempt(given(model, callbacks), 0, tmp_path, epochs=3)
        for a, b in zip(state_of(model), before, strict=False):
            np.testing.assert_array_equal(a, b)
    other = Resume(tmp_path, seed=7)
    with pytest.raises(ValueError, match="seed: 0 before, 7 now"):
        eagerly(0)[0].fit(*examples(), batch_size=8, epochs=3, callbacks=[Watch(), other])


def slower(seed):
    distiller, _ = eagerly(seed)
    distiller.optimizer.learning_rate = 0.01
    return distiller, []


def test_averages_that_are_swapped_in_for_an_epoch_are_refused(tmp_path):
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    with pytest.raises(ValueError, match="SwapEMAWeights.*Expected `swap_on_epoch=False`"):
        attempt(lambda seed: (eagerly(seed)[0], [swap]), 0, tmp_path)


def test_another_number_of_processes_is_refused(tmp_path):
    (tmp_path / "process-0-of-2").mkdir()
    with pytest.raises(ValueError, match="trained by 2 processes.*Received: 1"):
        _ = Resume(tmp_path).epoch


def test_a_file_of_another_kind_is_refused(tmp_path):
    np.savez(tmp_path / "epoch-00001.npz", something=np.zeros(3))
    with pytest.raises(ValueError, match="epoch-00001.npz' is damaged.*one without"):
        _ = Resume(tmp_path).epoch
    with pytest.raises(ValueError, match="A run needs a folder.*the file"):
        attempt(eagerly, 0, tmp_path / "epoch-00001.npz")


class Counting(keras.callbacks.Callback):
    """Knows something that nobody can read."""

    def __init__(self):
        super().__init__()
        self.count = 0


def test_a_callback_that_starts_anew_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"Counting starts anew.*get_state\(\)"):
        attempt(lambda seed: (eagerly(seed)[0], [Counting()]), 0, tmp_path, epochs=1)


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_numbers_of_batches_are_whole_and_positive(value):
    with pytest.raises(ValueError, match="`every_batches` of Resume must be an integer >= 1"):
        Resume("anywhere", every_batches=value)
