"""The losses between features and relations, one by one, against what `contract.Case` says."""

import keras
import numpy as np
import pytest
from keras import ops

from kdtoolkit.losses.feature.base import LayeredLoss
from kdtoolkit.registry import PUBLIC_CLASSES
from tests import (
    cases_attention,
    cases_contrastive,
    cases_generative,
    cases_hints,
    cases_relation,
    contract,
    helpers,
)
from tests.contract import as_list, built, features, gradients, like, values

CASES = {
    **cases_attention.CASES,
    **cases_contrastive.CASES,
    **cases_generative.CASES,
    **cases_hints.CASES,
    **cases_relation.CASES,
}
EACH = [(name, kind) for name, case in CASES.items() for kind in case.shapes]
FIRST = [(name, next(iter(case.shapes))) for name, case in CASES.items()]
# JAX compiles every operation on its first use, so one kind of each loss is all it is asked for.
WITH_REFERENCE = [
    pytest.param(*each, marks=[pytest.mark.core] if each in FIRST else [])
    for each in EACH
    if CASES[each[0]].reference
]
TWINS = [(name, kind) for name, kind in EACH if CASES[name].zero_for_equal]
REFUSED = [(name, *entry) for name, case in CASES.items() for entry in case.refused]


def test_every_public_loss_between_features_is_in_the_table():
    ours = [c for c in PUBLIC_CLASSES.values() if c.__module__.startswith("kdtoolkit.")]
    expected = {c for c in ours if issubclass(c, LayeredLoss)}
    assert expected == {type(case.make()) for case in CASES.values()}


@pytest.mark.parametrize(("name", "kind"), WITH_REFERENCE)
def test_values_equal_the_reference(name, kind):
    case = CASES[name]
    loss = built(case, kind)
    source, student, context = features(case, kind)
    expected = case.reference(loss, source, student, **context)
    assert expected.shape == (contract.BATCH,)
    computed = values(loss, source, student, context)
    np.testing.assert_allclose(computed, expected, rtol=2e-4, atol=1e-6)
    assert np.all(np.isfinite(expected)) and np.any(np.abs(expected) > 1e-6)


@pytest.mark.parametrize(("name", "kind"), WITH_REFERENCE)
def test_gradients_equal_differences_of_the_reference(name, kind):
    case = CASES[name]
    loss = built(case, kind)
    source, student, context = features(case, kind)
    found = gradients(loss, source, student, context)
    random = np.random.default_rng(5)
    for _ in range(3):
        steps = [random.normal(size=x.shape) for x in as_list(student)]
        ends = []
        for sign in (1, -1):
            moved = [
                np.asarray(x, "float64") + sign * 1e-6 * d
                for x, d in zip(as_list(student), steps, strict=True)
            ]
            ends.append(np.sum(case.reference(loss, source, like(student, moved), **context)))
        expected = (ends[0] - ends[1]) / 2e-6
        computed = sum(np.sum(g * d) for g, d in zip(found, steps, strict=True))
        size = sum(np.linalg.norm(g) * np.linalg.norm(d) for g, d in zip(found, steps, strict=True))
        assert computed == pytest.approx(expected, rel=2e-3, abs=2e-3 * size + 1e-7)


@pytest.mark.parametrize(("name", "kind"), EACH)
def test_no_gradient_is_missing_or_zero(name, kind):
    loss = built(CASES[name], kind)
    source, student, context = features(CASES[name], kind)
    for gradient in gradients(loss, source, student, context):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


@pytest.mark.parametrize(("name", "kind"), TWINS)
def test_equal_features_cost_nothing(name, kind):
    case = CASES[name]
    source, _, context = features(case, kind)
    loss = case.make()
    np.testing.assert_allclose(values(loss, source, source, context), 0, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), EACH)
@pytest.mark.parametrize("content", ["extreme", "nothing"])
def test_half_precision_is_finite_for_extreme_and_for_dead_features(name, kind, content):
    case = CASES[name]
    loss = built(case, kind)
    source, student, context = features(case, kind)

    def converted(end, factor):
        arrays = [factor * np.sign(x) for x in as_list(end)]
        return like(end, [ops.cast(ops.convert_to_tensor(x), "float16") for x in arrays])

    sizes = {"extreme": (case.extreme, case.extreme), "nothing": (1.0, 0.0)}[content]
    source, student = converted(source, sizes[0]), converted(student, sizes[1])
    result = loss.values(source, student, **context)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    assert np.all(np.isfinite(helpers.array(result)))
    for gradient in gradients(loss, source, student, context):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(("name", "kind"), FIRST)
def test_reductions_and_weights_are_keras_s(name, kind):
    case = CASES[name]
    if case.reference is None:
        pytest.skip("random: two calls differ")
    loss = built(case, kind, reduction="sum")
    source, student, context = features(case, kind)
    each = values(loss, source, student, context)
    y_true = {"source": source, **context} if loss.needs else source
    weights = np.array([0.0, 1.0, 2.0, 0.5])
    assert float(loss(y_true, student)) == pytest.approx(each.sum(), rel=1e-3)
    weighted = float(loss(y_true, student, sample_weight=weights))
    assert weighted == pytest.approx((each * weights).sum(), rel=1e-3)


@pytest.mark.parametrize(("name", "kind"), FIRST)
def test_a_loss_survives_its_config(name, kind):
    loss = CASES[name].make(reduction="sum", name="mine")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(copy) is type(loss)
    assert copy.get_config() == loss.get_config()
    assert copy.name == "mine" and copy.reduction == "sum"


@pytest.mark.parametrize(("name", "source", "student", "match"), REFUSED)
def test_shapes_that_cannot_be_compared_are_refused(name, source, student, match):
    loss = CASES[name].make()
    with pytest.raises(ValueError, match=match):
        loss.check_shapes(source, student)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.needs_pairs])
def test_a_batch_of_one_is_refused_where_pairs_are_needed(name):
    case = CASES[name]
    kind = next(iter(case.shapes))
    loss = built(case, kind)
    source, student, context = features(case, kind, batch=1)
    with pytest.raises(ValueError, match=r"at least 2.*drop_remainder"):
        loss.values(source, student, **context)
