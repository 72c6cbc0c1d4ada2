"""Bad input raises one clear error: what, expected, received, and the way out."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kdtoolkit as kd
from tests.support import CLASSES, FEATURES, arrays, conv, crossentropy, data, dense, fit

soft = kd.losses.SoftTargets


def squared(source, student):
    return ops.mean(ops.square(source - student), axis=-1)


def with_softmax(units=8):
    return keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(units), layers.Dense(CLASSES, "softmax")]
    )


def distiller_of(**kwargs):
    return kd.Distiller(**{"student": dense(8), "teacher": dense(16, 1), **kwargs})


@pytest.mark.core
def test_the_same_object_as_teacher_and_student():
    model = dense(8)
    with pytest.raises(ValueError, match="'student' and 'teacher' are the same model.*clone_model"):
        kd.Distiller(student=model, teacher=model)


def test_no_student():
    with pytest.raises(ValueError, match="needs a `student`"):
        kd.Distiller(student=None, teacher=dense(8))


@pytest.mark.parametrize("node", ["student", "teacher"])
def test_something_that_is_no_model(node):
    with pytest.raises(TypeError, match=f"`{node}` must be a keras.Model.*Received: {node}=3"):
        distiller_of(**{node: 3})


def test_names_that_cannot_be_used():
    with pytest.raises(ValueError, match="must be Python identifiers. Received: 'my net'"):
        distiller_of(teacher={"my net": dense(4)})
    with pytest.raises(ValueError, match="different names. Received twice: \\['a'\\]"):
        distiller_of(student={"a": dense(4)}, teacher={"a": dense(4)})
    with pytest.raises(ValueError, match="`teacher` must be .* Received: an empty dict"):
        distiller_of(teacher={})


@pytest.mark.core
def test_a_layer_that_does_not_exist():
    edge = kd.Transfer(squared, source_layer="hiden", student_layer="hidden")
    with pytest.raises(ValueError, match="no layer 'hiden'.*Near names: hidden"):
        distiller_of(transfers=[edge])


@pytest.mark.core
def test_class_counts_that_differ():
    with pytest.raises(ValueError, match=r"10.*3|3.*10"):
        distiller_of(teacher=dense(16, 1, classes=10))


def test_networks_that_cannot_read_the_same_batch():
    with pytest.raises(
        ValueError, match=r"shape .*8, 8.* and 'teacher' of shape .*16, 16.*preproc"
    ):
        kd.Distiller(student=conv(size=8), teacher=conv(size=16))


@pytest.mark.parametrize("node", ["student", "teacher"])
def test_probabilities_where_logits_are_expected(node):
    with pytest.raises(ValueError, match=f"'{node}' .*returns probabilities.*activation=None"):
        distiller_of(**{node: with_softmax()})


def test_probabilities_of_a_subclassed_teacher_are_seen_on_the_first_batch():
    @keras.saving.register_keras_serializable("tests")
    class Probabilities(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = with_softmax()

        def call(self, inputs):
            return self.inner(inputs)

    distiller, (x, y) = distiller_of(teacher=Probabilities()), data()
    distiller.compile("sgd", crossentropy())
    before = arrays(distiller.student)
    with pytest.raises(ValueError, match="'teacher' .*returns probabilities"):
        fit(distiller, x, y)
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays(distiller.student), strict=True))


def test_as_logits_is_the_way_out():
    teacher = with_softmax(16)
    distiller, (x, y) = distiller_of(teacher=kd.as_logits(teacher)), data()
    distiller.compile("sgd", crossentropy())
    assert np.isfinite(fit(distiller, x, y).history["soft_targets"]).all()


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "4", None])
def test_temperatures_that_make_no_sense(temperature):
    with pytest.raises(ValueError, match="`temperature` of SoftTargets must be a finite number"):
        soft(temperature=temperature)


def test_negative_weights():
    with pytest.raises(ValueError, match="`weight` of Transfer must be .* Received: weight=-0.5"):
        kd.Transfer(soft(), weight=-0.5)
    with pytest.raises(ValueError, match="`label_weight` of Distiller must be"):
        distiller_of(label_weight=float("nan"))


def test_nothing_to_learn_from():
    distiller = kd.Distiller(student=dense(8))
    with pytest.raises(ValueError, match="Nothing to learn from: no label loss and no open"):
        distiller.compile("sgd")


@pytest.mark.core
def test_a_label_loss_without_labels():
    distiller, (x, _) = distiller_of(), data()
    distiller.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match="the data has no labels.*leave `loss` out"):
        fit(distiller, x)


def test_a_transfer_that_needs_labels_without_labels():
    distiller, (x, _) = distiller_of(transfers=[kd.Transfer(kd.losses.DecoupledKD())]), data()
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="'decoupled_kd' needs labels.*Expected .*x, y"):
        fit(distiller, x)


def test_ids_that_a_loss_needs_and_nobody_gave():
    def keyed(source, student, example_id):
        return squared(source, student)

    distiller, (x, y) = distiller_of(transfers=[kd.Transfer(keyed)]), data()
    distiller.compile("sgd", crossentropy())
    # Arrays get ids by themselves; a pipeline has its own order, and must say which it is.
    fit(distiller, x, y, epochs=1)
    with pytest.raises(ValueError, match="'keyed' needs example ids.*kd.data.with_ids"):
        distiller.fit(kd.data.ArrayPipeline(x, y, batch_size=8), shuffle=False, verbose=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_teacher_with_broken_weights(bad):
    distiller, (x, y) = distiller_of(), data()
    layer = distiller.teachers["teacher"].get_layer("hidden")
    kernel, bias = layer.get_weights()
    kernel[0, 0] = bad
    layer.set_weights([kernel, bias])
    distiller.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match="'teacher' .*NaN or infinite values in 'hidden/kernel'"):
        fit(distiller, x, y)


@pytest.mark.core
def test_a_teacher_that_overflows_on_the_data():
    distiller, (x, y) = distiller_of(), data()
    distiller.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match="'teacher' returns .* NaN or infinite on the first batch"):
        fit(distiller, x * np.float32(np.nan), y)


def test_a_value_per_class_instead_of_one_per_example():
    def elementwise(source, student):
        return ops.square(source - student)

    distiller, (x, y) = distiller_of(transfers=[kd.Transfer(elementwise)]), data()
    distiller.compile("sgd", crossentropy())
    with pytest.raises(ValueError, match=r"'elementwise' .*one value per example.*Received: .*3\)"):
        fit(distiller, x, y)


def test_ends_of_transfers_that_are_wrong():
    with pytest.raises(
        ValueError, match="`source` of transfer 'soft_targets' names no node.*nobody"
    ):
        distiller_of(transfers=[kd.Transfer(soft(), source="nobody")])
    two = {"a": dense(4, 1), "b": dense(4, 2)}
    with pytest.raises(ValueError, match="`source` of transfer 'soft_targets' is ambiguous"):
        distiller_of(teacher=two, transfers=[kd.Transfer(soft())])
    with pytest.raises(ValueError, match="reads the same tensor of 'student' at both ends"):
        distiller_of(transfers=[kd.Transfer(soft(), source="student")])
    with pytest.raises(
        TypeError, match="must be a list of kd.Transfer objects.*kd.Transfer\\(loss"
    ):
        distiller_of(transfers=[soft()])
    edge = kd.Transfer(soft())
    with pytest.raises(ValueError, match="'soft_targets' is listed twice"):
        distiller_of(transfers=[edge, edge])


def test_losses_and_layers_of_the_wrong_kind():
    with pytest.raises(TypeError, match="`loss` must be a `keras.losses.Loss` object.*'mse'"):
        kd.Transfer("mse")
    with pytest.raises(TypeError, match="`loss` must be a `keras.losses.Loss` object"):
        kd.Transfer(soft)
    with pytest.raises(ValueError, match="`source_layer` must be a layer's path.*Received: .*3"):
        kd.Transfer(soft(), source_layer=3)
    with pytest.raises(TypeError, match="takes \\(source, student\\) and any of"):
        kd.Transfer(lambda source, student, gravity: student)


def test_an_output_must_be_chosen_where_there_are_several():
    inputs = keras.Input((FEATURES,))
    heads = {"kind": layers.Dense(CLASSES)(inputs), "size": layers.Dense(1)(inputs)}
    with pytest.raises(ValueError, match="'teacher' has several outputs.*\\['kind', 'size'\\]"):
        distiller_of(teacher=keras.Model(inputs, heads))


def test_preprocess_for_an_unknown_node():
    with pytest.raises(ValueError, match="`preprocess` must map names of nodes.*tutor"):
        distiller_of(preprocess={"tutor": layers.Rescaling(2.0)})


def test_optimizers_that_do_not_match_the_students():
    peers = {"a": dense(4, 1), "b": dense(4, 2)}
    distiller = kd.Distiller(
        student=peers, transfers=[kd.Transfer(soft(), source="a", student="b")]
    )
    with pytest.raises(
        ValueError, match="one entry per student: \\['a', 'b'\\]. Received: \\['a'\\]"
    ):
        distiller.compile({"a": "sgd"}, crossentropy())
    shared = keras.optimizers.SGD()
    with pytest.raises(ValueError, match="an optimizer object of its own"):
        distiller.compile({"a": shared, "b": shared}, crossentropy())


def test_sample_weights_per_output():
    inputs = keras.Input((FEATURES,))
    heads = {"kind": layers.Dense(CLASSES)(inputs), "size": layers.Dense(CLASSES)(inputs)}
    edge = kd.Transfer(soft(), student_layer="kind")
    distiller = distiller_of(student=keras.Model(inputs, heads), transfers=[edge])
    distiller.compile("sgd", {"kind": crossentropy(), "size": crossentropy()})
    (x, y), weight = data(), np.ones(40, "float32")
    with pytest.raises(ValueError, match="one weight per example, for all outputs"):
        fit(distiller, x, {"kind": y, "size": y}, sample_weight={"kind": weight, "size": weight})
