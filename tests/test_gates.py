"""Gates: how much of a transfer passes, against sums by hand."""

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from tests import helpers, reference
from tests.support import CLASSES, arrays, crossentropy, data, dense, fit, largest_difference

pytestmark = pytest.mark.core


@keras.saving.register_keras_serializable("tests")
class Unsure(kd.gates.Gate):
    """Passes what the student isn't sure of."""

    def factor(self, source, student, sample_weight):
        return 1.0 - keras.ops.max(keras.ops.softmax(student), axis=-1)


def distiller(gate, teacher=None, weight=1.0, **kwargs):
    edge = kd.Transfer(kd.losses.SoftTargets(1.0), gate=gate, weight=weight, name="edge")
    made = kd.Distiller(
        student=dense(4, 1, norm=False), teacher=teacher or dense(8, 0), transfers=[edge], **kwargs
    )
    made.compile(keras.optimizers.SGD(0.1), crossentropy())
    return made


def parts():
    x, y = data(16)
    teacher = dense(8, 0)
    logits = [helpers.array(m(x)) for m in (teacher, dense(4, 1, norm=False))]
    return x, y, teacher, reference.kl_divergence(*logits), logits


def first_loss(gate, **kwargs):
    x, y, teacher, _, _ = parts()
    made = distiller(gate, teacher)
    return fit(made, x, y, epochs=1, **kwargs).history["edge"][0]


def test_correct_passes_what_the_source_ranks_right():
    _, y, _, each, (source, _) = parts()
    right = source.argmax(axis=-1) == y
    assert 0 < right.sum() < len(y)
    assert first_loss("correct") == pytest.approx((each * right).mean(), rel=1e-4)


def test_gates_and_sample_weights_multiply():
    _, y, _, each, (source, _) = parts()
    weights = np.linspace(0, 2, len(y)).astype("float32")
    expected = (each * weights * (source.argmax(axis=-1) == y)).mean()
    computed = first_loss("correct", sample_weight=weights)
    assert computed == pytest.approx(expected, rel=1e-4)


def test_a_gate_of_one_s_own_sees_both_outputs_and_is_a_constant():
    x, y, teacher, each, (_, student) = parts()
    share = 1 - reference.softmax(student).max(axis=-1)
    assert first_loss(Unsure()) == pytest.approx((each * share).mean(), rel=1e-4)

    edge = kd.Transfer(kd.losses.SoftTargets(1.0), gate=Unsure())
    source = teacher(x)
    context = {"sample_weight": None}
    gradient = helpers.gradient(
        lambda z: edge.value([source], [z], None, context, (source, z)), student.astype("float32")
    )
    p, q = reference.softmax(helpers.array(source)), reference.softmax(student)
    np.testing.assert_allclose(gradient, (q - p) * share[:, None] / len(y), atol=1e-6)


@pytest.mark.parametrize("gate", [None, "through", kd.gates.Through()])
def test_through_is_no_gate_to_the_bit(gate):
    assert first_loss(gate) == first_loss(None)


def test_linear_moves_with_the_epochs_without_a_new_trace():
    x, y, teacher, _, _ = parts()
    traces = []

    def counted(source, student):
        traces.append(1)
        return keras.ops.mean(keras.ops.square(source - source) + 1.0, axis=-1)

    edge = kd.Transfer(counted, gate=kd.gates.Linear(1.0, 0.0), name="edge")
    made = kd.Distiller(student=dense(4), teacher=teacher, transfers=[edge])
    made.compile("sgd", crossentropy())
    history = fit(made, x, y, epochs=1).history["edge"]
    before = len(traces)
    history = fit(made, x, y, epochs=4).history["edge"]
    assert history == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert len(traces) == before or keras.backend.backend() != "tensorflow"


def test_cutoff_trains_like_no_transfer_and_never_runs_the_teacher():
    calls = []

    class Counted(keras.layers.Layer):
        def call(self, inputs):
            calls.append(1)
            return inputs

    inputs = keras.Input((6,))
    teacher = keras.Model(inputs, keras.layers.Dense(CLASSES)(Counted()(inputs)))
    x, y, *_ = parts()
    cut = distiller(kd.gates.Cutoff(), teacher)
    calls.clear()
    history = cut.fit(keras.ops.convert_to_tensor(x), y, epochs=1, verbose=0, shuffle=False)
    # Once before training, when a few examples are looked at, and never in a step.
    assert len(calls) <= 1
    assert "edge" not in history.history
    plain = dense(4, 1, norm=False)
    plain.compile(keras.optimizers.SGD(0.1), crossentropy())
    plain.fit(x, y, epochs=1, verbose=0, shuffle=False)
    assert largest_difference(arrays(cut.student)[:4], arrays(plain)[:4]) < 1e-6


def test_a_gate_reads_the_output_that_the_transfer_reads_where_there_are_several():
    source = np.array([[2.0, 0.0], [0.0, 1.0]], "float32")
    student = source + np.array([[1.0, 0.0]], "float32")
    outputs = {"a": source, "b": -source}, {"a": student, "b": student}
    each = reference.kl_divergence(source, student)
    for labels in (np.array([0, 0]), {"a": np.array([0, 0]), "b": np.array([1, 1])}):
        edge = kd.Transfer(
            kd.losses.SoftTargets(1.0), source_layer="a", student_layer="a", gate="correct"
        )
        value = edge.value([source], [student], None, {"labels": labels}, outputs)
        assert float(value) == pytest.approx(each[0] / 2, rel=1e-4)
    inner = kd.Transfer(kd.losses.Hint(), source_layer="h", student_layer="h", gate="correct")
    with pytest.raises(ValueError, match="which of several outputs are class scores"):
        inner.value([source], [student], None, {"labels": np.array([0, 0])}, outputs)
    with pytest.raises(ValueError, match="needs one of several labels.*student_layer='h'"):
        inner.value([source], [student], None, {"labels": {"a": 0}}, (source, student))


def test_a_gate_may_keep_its_last_axis_and_no_other():
    @keras.saving.register_keras_serializable("tests")
    class Half(kd.gates.Gate):
        shape = (2, 1)

        def factor(self, source, student):
            return 0.5 * keras.ops.ones(self.shape)

    edge = kd.Transfer(kd.losses.LogitsMSE(), gate=Half(), name="edge")
    source, student = np.zeros((2, 3), "float32"), np.ones((2, 3), "float32")
    weights, context = np.array([1.0, 3.0], "float32"), {"sample_weight": None}
    ends = [source], [student], weights, context, (source, student)
    assert float(edge.value(*ends)) == pytest.approx(0.5 * 2.0)
    edge.gate.shape = (2, 3)
    with pytest.raises(ValueError, match=r"gate of transfer 'edge'.*\(2, 3\)"):
        edge.value(*ends)


def test_gates_and_their_transfers_survive_their_configs():
    for gate in ("cutoff", "correct", kd.gates.Linear(0.5, 2.0), Unsure(), None):
        edge = kd.Transfer(kd.losses.SoftTargets(), gate=gate)
        copy = kd.Transfer.from_config(edge.get_config())
        assert type(copy.gate) is type(edge.gate)
        assert copy.gate.get_config() == edge.gate.get_config()


def test_bad_gates_are_refused():
    loss = kd.losses.SoftTargets()
    with pytest.raises(ValueError, match="`gate` must be .*'correct'.*Received: gate='wrong'"):
        kd.Transfer(loss, gate="wrong")
    with pytest.raises(TypeError, match="`gate` must be a kd.gates.Gate"):
        kd.Transfer(loss, gate=0.5)
    with pytest.raises(ValueError, match="`first` of Linear must be a finite number and >= 0"):
        kd.gates.Linear(first=-1.0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        kd.gates.Correct().factor(np.zeros((2, 1)), None, labels=np.zeros(2))
    with pytest.raises(ValueError, match="Transfer 'edge' needs labels"):
        made = distiller("correct")
        made.compile("sgd")
        fit(made, data()[0])
    with pytest.raises(ValueError, match="no open transfer"):
        distiller("cutoff").compile("sgd")
