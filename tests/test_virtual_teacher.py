"""The virtual teacher: label smoothing and Tf-KD_reg as distillation."""

import keras
import numpy as np
import pytest
from keras import ops

import kdtoolkit as kd
from kdtoolkit.sources.virtual import VirtualTeacher
from tests import helpers, reference
from tests.support import CLASSES, crossentropy, data, dense, fit

pytestmark = pytest.mark.core


def taught(source, labels, student_output=None):
    """What a teacher says of a batch, as an array."""
    output = (
        np.zeros((len(labels), CLASSES), "float32") if student_output is None else student_output
    )
    context = {"labels": np.asarray(labels), "example_id": None}
    view = source.read(None, ops.convert_to_tensor(output), context)
    assert view["taps"] == {}
    return helpers.array(view["output"])


def smoothed(labels, correct):
    y = reference.one_hot(labels, CLASSES)
    return correct * y + (1 - correct) / (CLASSES - 1) * (1 - y)


@pytest.mark.parametrize("correct", [0.99, 0.5, 1.0])
def test_it_says_log_p_for_labels_in_any_form(correct):
    source, labels = VirtualTeacher(correct), np.array([2, 0, 1])
    expected = smoothed(labels, correct)
    forms = labels, labels[:, None], labels.astype("float32"), reference.one_hot(labels, CLASSES)
    for form in forms:
        p = reference.softmax(taught(source, form))
        np.testing.assert_allclose(p, expected, atol=1e-6)


def test_a_soft_label_is_a_mixture():
    label = np.array([[0.5, 0.25, 0.25]], "float32")
    p = reference.softmax(taught(VirtualTeacher(0.7), label))
    mixture = label @ smoothed([0, 1, 2], 0.7)
    np.testing.assert_allclose(p, mixture, atol=1e-6)


def test_the_form_of_the_authors_code_teaches_the_probabilities_themselves():
    source = VirtualTeacher(0.9, scores="probabilities")
    np.testing.assert_allclose(taught(source, [2, 0]), smoothed([2, 0], 0.9), atol=1e-6)


@pytest.mark.parametrize("scores", ["logits", "probabilities"])
def test_an_example_without_a_label_is_taught_the_student_s_own_output(scores):
    output = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "float32")
    source = VirtualTeacher(scores=scores)
    said = taught(source, [-1, 0], output)
    np.testing.assert_array_equal(said[0], output[0])
    np.testing.assert_array_equal(said[1], taught(source, [0])[0])


def distiller_of(source, loss, weight, label_weight, student=None):
    edge = kd.Transfer(loss, weight=weight, name="virtual")
    distiller = kd.Distiller(
        student=student or dense(), teacher=source, transfers=[edge], label_weight=label_weight
    )
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy(), metrics=["accuracy"])
    return distiller


def test_with_soft_cross_entropy_it_is_label_smoothing():
    x, y = data()
    share, correct = 0.3, 0.9
    epsilon = share * (1 - correct) * CLASSES / (CLASSES - 1)
    ours, theirs = dense(norm=False), dense(norm=False)
    distiller = distiller_of(
        VirtualTeacher(correct), kd.losses.SoftCrossEntropy(), share, 1 - share, ours
    )
    smoothing = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=epsilon)
    theirs.compile(keras.optimizers.SGD(0.1), smoothing)
    logs = fit(distiller, x, y, shuffle=False).history
    expected = fit(theirs, x, reference.one_hot(y, CLASSES), shuffle=False).history
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=1e-5)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_with_mixed_targets_it_is_the_loss_of_the_authors_code():
    x, y = data()
    share, temperature = 0.1, 20.0
    student = dense(norm=False)
    logits = helpers.array(student(x))
    loss = kd.losses.MixedTargets(label_share=1 - share, temperature=temperature)
    distiller = distiller_of(VirtualTeacher(scores="probabilities"), loss, 1.0, 0.0, student)
    logs = fit(distiller, x, y, batch_size=len(x), epochs=1).history
    # Only the teacher is softened, and by a softmax of its probabilities. The authors' KL lacks
    # the cross-entropy's constant, the entropy of the target.
    target = reference.softmax(smoothed(y, 0.99), temperature)
    labels = reference.cross_entropy(reference.one_hot(y, CLASSES), logits).mean()
    expected = (1 - share) * labels + share * reference.cross_entropy(target, logits).mean()
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", [kd.losses.SoftTargets(20.0), kd.losses.DecoupledKD()])
def test_other_losses_train_with_it_and_evaluate_leaves_it_out(loss):
    x, y = data()
    distiller = distiller_of(VirtualTeacher(), loss, 0.5, 0.5)
    logs = fit(distiller, x, y, validation_data=(x, y), epochs=4).history
    assert logs["virtual"][-1] < logs["virtual"][0]
    results = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert set(results) == {"loss", "accuracy"}


def test_a_distiller_with_it_is_saved_and_loaded(tmp_path):
    x, y = data()
    source = VirtualTeacher(0.8, "probabilities", name="virtual_teacher")
    distiller = distiller_of(source, kd.losses.SoftCrossEntropy(), 0.5, 0.5)
    fit(distiller, x, y, epochs=1)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.sources["teacher"].get_config() == source.get_config()
    np.testing.assert_allclose(helpers.array(loaded(x)), helpers.array(distiller(x)), atol=1e-6)


def test_its_config_has_what_it_was_given():
    source = VirtualTeacher(0.6, "probabilities", "small", name="mine")
    config = source.get_config()
    expected = {"correct": 0.6, "scores": "probabilities", "follows": "small", "name": "mine"}
    assert config == expected
    assert VirtualTeacher.from_config(config).get_config() == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"correct": 1.1}, "`correct` of VirtualTeacher .*<= 1"),
        ({"correct": 0.0}, "> 0"),
        ({"scores": "log"}, "`scores` of VirtualTeacher must be one of .*scores='log'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VirtualTeacher(**arguments)


def test_a_teacher_that_would_be_wrong_more_often_than_chance_is_refused():
    with pytest.raises(ValueError, match="above 1 / 3 for 3 classes. Received: correct=0.3"):
        distiller_of(VirtualTeacher(0.3), kd.losses.SoftCrossEntropy(), 1.0, 1.0)


def test_data_without_labels_is_refused():
    x, _ = data()
    source = VirtualTeacher(name="mine")
    edge = kd.Transfer(kd.losses.SoftCrossEntropy())
    distiller = kd.Distiller(student=dense(), teacher=source, transfers=[edge])
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="'mine' is made from the labels.*labels=None"):
        fit(distiller, x)
