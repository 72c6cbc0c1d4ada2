"""Several networks' logits as one set, against NumPy and SciPy; the source that teaches them."""

import numpy as np
import pytest
from keras import ops

import kdtoolkit as kd
from kdtoolkit import functional
from tests import reference
from tests.helpers import array
from tests.support import CLASSES, dense

pytestmark = pytest.mark.core
LABELS = np.array([0, 2, 1, 2, 0])


def logits(networks=3, seed=0, scale=2.0):
    random = np.random.default_rng(seed)
    return [scale * random.normal(size=(len(LABELS), CLASSES)) for _ in range(networks)]


def losses(z):
    return -np.log(reference.softmax(z))[np.arange(len(LABELS)), LABELS]


def test_the_mean_of_probabilities_is_that_and_finite_for_certain_networks():
    z = logits()
    mean = np.mean([reference.softmax(each) for each in z], axis=0)
    np.testing.assert_allclose(array(functional.mean_probabilities(z)), np.log(mean), atol=1e-5)
    sure = np.array([[1e4, -1e4, 0.0]], "float16")
    assert np.all(np.isfinite(array(functional.mean_probabilities([sure, -sure]))))


def test_the_mean_of_probabilities_is_no_further_from_a_network_than_the_members_are():
    # So DML_e's loss is at most DML's: the divergence is convex in its first argument.
    *z, q = logits(4)
    together = functional.kl_divergence(functional.mean_probabilities(z), q)
    apart = np.mean([array(functional.kl_divergence(each, q)) for each in z], axis=0)
    assert np.all(array(together) <= apart + 1e-6)


def test_the_best_network_is_chosen_for_each_example():
    z = logits()
    chosen = array(functional.best_logits(z, LABELS))
    best = np.argmin([losses(each) for each in z], axis=0)
    np.testing.assert_allclose(chosen, [z[k][i] for i, k in enumerate(best)], rtol=1e-6)
    assert len(set(best)) > 1


@pytest.mark.parametrize("networks", [2, 3, 4])
def test_the_best_mixture_has_the_least_loss_of_all_convex_ones(networks):
    from scipy.optimize import minimize

    # Networks that are wrong in different ways: the best mixture lies inside.
    z = [each - 2.0 * np.eye(CLASSES)[LABELS] for each in logits(networks, seed=networks)]
    mixed = losses(array(functional.best_mixture(z, LABELS)))
    inside = 0
    for row, label in enumerate(LABELS):

        def loss(shares, row=row, label=label):
            scores = sum(share * each[row] for share, each in zip(shares, z, strict=True))
            return -np.log(reference.softmax(scores))[label]

        sums_to_one = {"type": "eq", "fun": lambda shares: np.sum(shares) - 1}
        start, bounds = np.full(networks, 1 / networks), [(0, 1)] * networks
        best = minimize(loss, start, bounds=bounds, constraints=[sums_to_one], tol=1e-10)
        inside += np.sum(best.x > 0.01) > 1
        assert mixed[row] == pytest.approx(best.fun, abs=1e-5 if networks == 2 else 5e-3)
    assert inside
    assert np.all(mixed <= np.min([losses(each) for each in z], axis=0) + 1e-6)


def test_the_least_logits_are_counted_from_the_label():
    z = logits()
    rows = np.arange(len(LABELS))
    expected = np.min([each - each[rows, LABELS][:, None] for each in z], axis=0)
    found = array(functional.min_logits(z, LABELS))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found[rows, LABELS], 0.0, atol=1e-6)
    one_hot = np.eye(CLASSES, dtype="float32")[LABELS]
    np.testing.assert_allclose(array(functional.min_logits(z, one_hot)), expected, atol=1e-6)


def read(source, outputs, labels):
    context = {"labels": labels, "example_id": None}
    return array(source.read(None, outputs, context)["output"])


@pytest.mark.parametrize("combine", ["naive", "linear", "min_logit"])
def test_an_example_without_a_label_is_taught_the_mean(combine):
    z = [ops.convert_to_tensor(each, "float32") for each in logits(2)]
    labels = np.where(np.arange(len(LABELS)) == 1, -1, LABELS)
    said = read(kd.sources.PeerEnsemble(combine=combine), z, labels)
    np.testing.assert_allclose(said[1], (array(z[0]) + array(z[1]))[1] / 2, rtol=1e-5)
    assert np.all(np.isfinite(said))


def test_an_ensemble_may_follow_some_students_and_read_one_of_their_outputs():
    z = [{"class": ops.ones((2, 3)) * k, "other": ops.zeros((2, 3))} for k in (1.0, 3.0)]
    source = kd.sources.PeerEnsemble(["a", "b"], combine="logits", layer="class")
    np.testing.assert_allclose(read(source, z, None), 2.0)
    with pytest.raises(ValueError, match="which output to read"):
        read(kd.sources.PeerEnsemble(combine="logits"), z, None)


REFUSED = {
    "combination": (dict(combine="median"), "`combine` of PeerEnsemble"),
    "student": (dict(follows=["a", "c"]), "a list of some of"),
    "nobody": (dict(follows=[]), "a list of some of"),
    "layer": (dict(layer="class"), "which output to read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_ensemble_that_cannot_be_is_refused(case):
    kwargs, message = REFUSED[case]
    edge = [kd.Transfer(kd.losses.SoftTargets(), student="a")]
    with pytest.raises(ValueError, match=message):
        source = kd.sources.PeerEnsemble(**kwargs)
        kd.Distiller(student={"a": dense(4), "b": dense(4)}, teacher=source, transfers=edge)


def test_students_over_other_classes_form_no_ensemble():
    students = {"a": dense(4), "b": dense(4, classes=CLASSES + 1)}
    edge = [kd.Transfer(kd.losses.SoftTargets(), student="a")]
    with pytest.raises(ValueError, match="over the same classes"):
        kd.Distiller(student=students, teacher=kd.sources.PeerEnsemble(), transfers=edge)


def test_evaluation_without_labels_measures_ensembles_too():
    students = {"a": dense(4, 0), "b": dense(4, 1)}
    edges = [
        kd.Transfer(kd.losses.SoftTargets(), source="everyone", student="a"),
        kd.Transfer(kd.losses.SoftTargets(), source="large", student="b"),
    ]
    teachers = {"everyone": kd.sources.PeerEnsemble(), "large": dense(8, 2)}
    distiller = kd.Distiller(student=students, teacher=teachers, transfers=edges)
    distiller.compile("sgd")
    x = np.ones((4, 6), "float32")
    logs = distiller.evaluate(x, verbose=0, return_dict=True)
    said = [array(student(x)) for student in students.values()]
    together = np.log(np.mean([reference.softmax(z) for z in said], axis=0))
    expected = array(kd.losses.SoftTargets()(together, said[0]))
    assert logs["a_soft_targets"] == pytest.approx(float(expected), rel=1e-4)
    assert logs["loss"] == pytest.approx(logs["a_soft_targets"] + logs["b_soft_targets"])
