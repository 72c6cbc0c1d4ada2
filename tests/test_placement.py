"""What replicas can't do is refused before training; teachers come to where the students are."""

import contextlib

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit import placement
from tests.support import Subclassed, arrays, crossentropy, data, dense, fit, largest_difference

pytestmark = pytest.mark.core
ON_JAX = keras.backend.backend() == "jax"
PARTS = ("student", "optimizer", "distiller", "source")


@pytest.fixture(scope="module")
def spread(request):
    if not ON_JAX:
        return request.getfixturevalue("two_replicas").scope
    return keras.distribution.DataParallel().scope


def made(scope, outside=(), teacher=None, **options):
    """A compiled distiller; of its parts those in `outside` are made before."""

    def where(part):
        return contextlib.nullcontext() if part in outside else scope()

    with where("student"):
        student = dense(4, 0, norm=False)
    with where("source"):
        memory = kd.sources.VirtualTeacher()
    with where("optimizer"):
        optimizer = keras.optimizers.SGD(0.1, momentum=options.pop("momentum", 0.0))
    if options.pop("accumulate", False):
        with scope():
            optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    teachers = {"network": teacher or dense(8, 1), "labels": memory}
    with where("distiller"):
        distiller = kd.Distiller(
            student=student,
            teacher=teachers,
            transfers=[kd.Transfer(kd.losses.SoftTargets(), source=name) for name in teachers],
        )
        distiller.compile(optimizer, crossentropy(), **options)
    return distiller


def check(scope, distiller, **given):
    with scope() if ON_JAX else contextlib.nullcontext():
        placement.check(distiller, {"callbacks": [], **given})


@pytest.mark.parametrize("part", PARTS)
def test_what_trains_must_be_made_inside(part, spread):
    found = {"source": "The teacher 'labels'", "distiller": "The (student|distiller|transfer)"}
    # TensorFlow itself refuses an optimizer that has made its slots elsewhere.
    with pytest.raises(ValueError, match=f"{found.get(part, f'The {part}')}.* was made outside of"):
        check(spread, made(spread, outside=[part]))


def test_a_teacher_from_elsewhere_is_copied_with_its_weights(spread):
    teacher = dense(8, 1, dropout=0.5)
    teacher.get_layer("norm").moving_mean.assign(np.arange(8.0))
    inside = made(spread, teacher=teacher)
    found = inside.teachers["network"]
    assert found is not teacher
    assert largest_difference(found.get_weights(), teacher.get_weights()) == 0
    check(spread, inside)
    with spread():
        kept = dense(8, 1)
    assert made(spread, teacher=kept).teachers["network"] is kept
    assert made(contextlib.nullcontext, teacher=teacher).teachers["network"] is teacher


def test_a_teacher_without_a_config_must_be_made_inside(spread):
    class Own(Subclassed):
        def __init__(self, units, secret):
            super().__init__(units)

    teacher = Own(4, "not in the config")
    teacher(data(2)[0])
    with pytest.raises(ValueError, match="'network'.*can't be copied.*get_config.*Received: a Own"):
        made(spread, teacher=teacher)


def test_a_teacher_that_shares_layers_with_a_student_stays(spread):
    with spread():
        student = dense(4, 0)
    shared = keras.Model(student.input, student.output)
    assert placement.placed_teachers({"t": shared}, {"s": student}) == {"t": shared}


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"steps_per_execution": 2}, "`steps_per_execution` doesn't work with several replicas"),
        ({"jit_compile": True}, "`jit_compile` doesn't work.*Expected jit_compile='auto'"),
        ({"accumulate": True}, "`gradient_accumulation_steps` doesn't.*Received: MirroredStrategy"),
    ],
)
def test_options_that_fail_with_replicas_are_refused(option, expected, spread):
    with pytest.raises(ValueError, match=expected):
        check(spread, made(spread, **option))
    # One replica takes them.
    check(contextlib.nullcontext, made(contextlib.nullcontext, **option))


class Batches(keras.utils.PyDataset):
    """Batches of these sizes."""

    def __init__(self, *sizes):
        super().__init__()
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        return data(self.sizes[index])


def test_batches_must_split_evenly(spread):
    distiller = made(spread)
    x, y = data(12)
    check(spread, distiller, x=x, y=y, batch_size=4)
    check(spread, distiller, x=Batches(4, 4, 2))
    for given in ({"x": x, "batch_size": 3}, {"x": Batches(3, 4)}, {"x": x[:9]}):
        with pytest.raises(
            ValueError, match=r"multiple of 2 examples. Received: a batch of [39]\."
        ):
            check(spread, distiller, **given)
    last = pytest.raises(ValueError, match="a last batch of 1. Leave")
    if not ON_JAX:
        last = pytest.warns(UserWarning, match="a last batch of 3.*won't all count the same")
    with last:
        check(spread, distiller, x=x[:11] if not ON_JAX else x[:9], batch_size=4)
    with pytest.raises(ValueError, match="a batch of 5"):
        check(spread, distiller, x=x, batch_size=5, validation_split=0.25)


@pytest.mark.skipif(not ON_JAX, reason="TensorFlow evaluates what is left over")
def test_batches_for_validation_must_split_evenly_on_jax(spread):
    x, y = data(12)
    with pytest.raises(
        ValueError, match="validation batches of a multiple of 2.*a last batch of 1"
    ):
        check(spread, made(spread), x=x, batch_size=4, validation_data=(x[:9], y[:9]))


@pytest.mark.tensorflow
def test_data_of_unknown_length_cost_a_step_and_say_so():
    import tensorflow as tf

    x, y = data(12)
    whole = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    unknown = whole.filter(lambda x, y: True)
    distiller = made(contextlib.nullcontext, momentum=0.9)
    fit(distiller, whole, batch_size=None, shuffle=False, epochs=1)
    assert float(distiller.optimizer.iterations.numpy()) == 3
    # Keras warns too, when it is over.
    ours = pytest.warns(UserWarning, match="doesn't say how many batches.*one step too many")
    with pytest.warns(UserWarning, match="ran out of data"), ours:
        fit(distiller, unknown, batch_size=None, shuffle=False, epochs=1)
    assert float(distiller.optimizer.iterations.numpy()) == 3 + 4
    counted = unknown.apply(tf.data.experimental.assert_cardinality(3))
    fit(distiller, counted, batch_size=None, shuffle=False, epochs=1)
    assert float(distiller.optimizer.iterations.numpy()) == 7 + 3


class ParameterServerStrategyV2:
    """Stands for TensorFlow's, which needs servers."""


class ModelParallel:
    """Stands for Keras's, which needs a layout."""


def test_engines_that_lose_updates_are_refused_and_others_warned_of(monkeypatch):
    distiller = made(contextlib.nullcontext)
    monkeypatch.setattr(placement.devices, "engine", lambda _: ParameterServerStrategyV2())
    with pytest.raises(NotImplementedError, match="loses updates.*MultiWorkerMirroredStrategy, or"):
        placement.check(distiller, {})
    monkeypatch.setattr(placement.devices, "engine", lambda _: ModelParallel())
    with pytest.warns(UserWarning, match="never run with ModelParallel"):
        placement._check_engine(distiller)


@pytest.fixture
def several(monkeypatch):
    """As if this were process 1 of 2."""
    monkeypatch.setattr(placement.workers, "processes", lambda model=None: 2)
    monkeypatch.setattr(placement.workers, "rank", lambda model=None: 1)


def test_checkpoints_of_several_processes_want_folders_of_their_own(several):
    shared = keras.callbacks.BackupAndRestore("shared")
    with pytest.warns(UserWarning, match="must not share a folder.*Expected one for each"):
        placement._check_folders(None, [shared])
    # It makes one for each by itself.
    placement._check_folders(None, [kd.callbacks.Resume("shared")])
    placement._check_folders(None, [keras.callbacks.BackupAndRestore("run/1")])


@pytest.mark.tensorflow
def test_a_keras_without_the_method_that_is_overridden_is_refused(several, monkeypatch):
    monkeypatch.setattr(placement.workers, "BUILD", "_gone")
    with pytest.raises(NotImplementedError, match="no longer has `_gone`.*Expected an older Keras"):
        placement._check_processes(None, {})


def test_one_process_is_the_chief(monkeypatch):
    assert kd.is_chief() and kd.is_chief(dense())
    if ON_JAX:
        return
    cluster = (
        '{"cluster": {"chief": ["h:1"], "worker": ["h:2"]}, "task": {"type": "%s", "index": 0}}'
    )
    for job, expected in (("chief", True), ("worker", False)):
        monkeypatch.setenv("TF_CONFIG", cluster % job)
        assert kd.is_chief() is expected


def test_a_cached_teacher_speaks_to_two_replicas_as_to_one(spread, tmp_path):
    x, y = data(16)
    kd.cache_teacher(dense(8, 1), x, tmp_path / "cache", verbose=0)

    def run(scope):
        with scope():
            distiller = kd.Distiller(
                student=dense(4, 0, norm=False), teacher=kd.CachedTeacher(tmp_path / "cache")
            )
            distiller.compile(keras.optimizers.SGD(0.1), crossentropy())
        with scope() if ON_JAX else contextlib.nullcontext():
            fit(distiller, x, y, batch_size=8)
        return arrays(distiller.student)

    assert largest_difference(run(contextlib.nullcontext), run(spread)) < 1e-6
