"""CRD: its estimation in NumPy, its banks, and what a distiller makes of them."""

import keras
import numpy as np
import pytest

import kdtoolkit as kd
from kdtoolkit import steps
from kdtoolkit.functional import contrastive
from kdtoolkit.losses.relation.contrastive import Banks, ContrastiveRepresentation
from tests import helpers, reference
from tests.feature_reference import dense, weights_of
from tests.support import arrays, conv, crossentropy, fit, images, largest_difference

pytestmark = pytest.mark.core

EXAMPLES, NEGATIVES, DIM, TEMPERATURE = 20, 6, 4, 0.5


def make(**kwargs):
    settings = {"negatives": NEGATIVES, "dim": DIM, "temperature": TEMPERATURE, "seed": 3}
    return ContrastiveRepresentation(EXAMPLES, **{**settings, **kwargs})


def built(**kwargs):
    loss = make(**kwargs)
    loss.build((None, 5), (None, 3))
    return loss


def batch(seed=0):
    random = np.random.default_rng(seed)
    source, student = (random.normal(size=(4, n)).astype("float32") for n in (5, 3))
    return source, student, np.array([3, 19, 0, 7], "int32")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def tables(loss):
    return [helpers.array(table) for table in loss.layers[-1].tables]


def normalisers(loss):
    return np.exp(helpers.array(loss.layers[-1].log_z))


# The estimation.


def estimation(anchors, stored, rows, z, examples, temperature):
    """One network's part, with probabilities instead of logarithms."""
    values = []
    for anchor, own in zip(anchors, rows, strict=True):
        densities = np.exp(stored[own] @ anchor / temperature) / z
        noise = (len(own) - 1) / examples
        right = densities / (densities + noise)
        values.append(-np.log(right[0]) - np.sum(np.log(1 - right[1:])))
    return np.array(values)


def test_the_estimation_equals_its_definition():
    random = np.random.default_rng(1)
    anchors, stored = unit(random.normal(size=(4, DIM))), unit(random.normal(size=(EXAMPLES, DIM)))
    rows = random.integers(EXAMPLES, size=(4, 1 + NEGATIVES))

    def computed(x):
        found = contrastive.scores(x, stored[rows].astype("float32"), TEMPERATURE)
        return contrastive.noise_contrastive(found, np.float32(np.log(30.0)), EXAMPLES)

    def expected(x):
        return estimation(x, stored, rows, 30.0, EXAMPLES, TEMPERATURE)

    anchors = anchors.astype("float32")
    np.testing.assert_allclose(helpers.array(computed(anchors)), expected(anchors), rtol=1e-5)
    slope = reference.numerical_gradient(lambda x: expected(x).sum(), anchors)
    np.testing.assert_allclose(helpers.gradient(computed, anchors), slope, rtol=1e-4, atol=1e-5)


def test_the_normaliser_makes_probabilities_of_the_mean_candidate_add_up_to_one():
    found = np.random.default_rng(2).normal(0, 3, (4, 7)).astype("float32")
    z = np.exp(float(contrastive.log_normaliser(found, EXAMPLES)))
    assert EXAMPLES * np.mean(np.exp(found) / z) == pytest.approx(1, rel=1e-5)


def test_very_sure_scores_stay_finite():
    found = np.array([[1000.0, -1000.0, 1000.0]], "float32")
    value = contrastive.noise_contrastive(found, contrastive.log_normaliser(found, 10), 10)
    assert np.all(np.isfinite(helpers.array(value)))


# The loss.


def whole(loss, rows, source, student, z=None):
    """The loss of a batch, and Z of both networks, from the weights of its layers."""
    stored = tables(loss)
    embeddings = [
        unit(dense(x, weights_of(layer)))
        for x, layer in zip((source, student), loss.layers[:2], strict=True)
    ]
    # Each network's embedding meets the other network's bank.
    pairs = list(zip(embeddings, stored[::-1], strict=True))
    if z is None:
        found = [np.einsum("bkd,bd->bk", bank[rows], e) for e, bank in pairs]
        z = [EXAMPLES * np.mean(np.exp(f / TEMPERATURE)) for f in found]
    parts = [
        estimation(e, bank, rows, one, EXAMPLES, TEMPERATURE)
        for (e, bank), one in zip(pairs, z, strict=True)
    ]
    return sum(parts), z, embeddings


def rows_of(ids, seed=3):
    """What a loss with this seed draws first."""
    twin = Banks(EXAMPLES, DIM, seed)
    return helpers.array(twin.draw(keras.ops.convert_to_tensor(ids), NEGATIVES)).astype(int)


def test_values_and_gradients_equal_the_reference():
    source, student, ids = batch()
    loss, twin = built(), built()
    for one, other in zip(loss.layers[:2], twin.layers[:2], strict=True):
        other.set_weights(one.get_weights())
    rows = rows_of(ids)
    expected, z, _ = whole(loss, rows, source, student)

    def of_student(x):
        with keras.StatelessScope():
            return twin.values(source, x, ids)

    # Z of the first batch is a constant.
    slope = reference.numerical_gradient(
        lambda x: whole(twin, rows, source, x, z)[0].sum(), student
    )
    np.testing.assert_allclose(helpers.gradient(of_student, student), slope, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        helpers.array(loss.values(source, student, ids)), expected, rtol=1e-4
    )
    np.testing.assert_allclose(normalisers(loss), z, rtol=1e-5)


def test_banks_start_at_length_one_and_follow_with_momentum():
    source, student, ids = batch()
    loss = built(momentum=0.75)
    before = tables(loss)
    _, _, embeddings = whole(loss, rows_of(ids), source, student)
    loss.values(source, student, ids)
    for old, new, embedding in zip(before, tables(loss), embeddings, strict=True):
        np.testing.assert_allclose(new[ids], unit(0.75 * old[ids] + 0.25 * embedding), atol=1e-6)
        others = np.setdiff1d(np.arange(EXAMPLES), ids)
        np.testing.assert_array_equal(new[others], old[others])
    large = Banks(500, 16, seed=0)
    large.build()
    for table in large.tables:
        lengths = np.sum(helpers.array(table) ** 2, axis=-1)
        assert np.mean(lengths) == pytest.approx(1, abs=0.05)
    assert np.any(helpers.array(large.tables[0]) != helpers.array(large.tables[1]))


def test_normalisers_are_those_of_the_first_batch_for_good():
    loss = built()
    loss.values(*batch())
    first = normalisers(loss)
    value = helpers.array(loss.values(*batch(seed=1)))
    np.testing.assert_array_equal(normalisers(loss), first)
    assert np.all(np.isfinite(value)) and np.all(first > 0)


def test_evaluation_changes_neither_banks_nor_normalisers():
    loss = built()
    for expected_start in (0.0, 1.0):
        before = [tables(loss), normalisers(loss)]
        with steps.during(steps.Stage.EVALUATE):
            value = helpers.array(loss.values(*batch()))
        assert np.all(np.isfinite(value))
        assert largest_difference(tables(loss), before[0]) == 0
        np.testing.assert_array_equal(normalisers(loss), before[1])
        assert float(loss.layers[-1].started) == expected_start
        loss.values(*batch())


def test_others_are_drawn_uniformly_and_never_the_example_itself():
    ids = np.array([0, 2, 4], "int32")
    rows = helpers.array(Banks(5, DIM, seed=1).draw(ids, 4000))
    np.testing.assert_array_equal(rows[:, 0], ids)
    for own, drawn in zip(ids, rows[:, 1:], strict=True):
        share = np.bincount(drawn.astype(int), minlength=5) / 4000
        assert share[own] == 0
        np.testing.assert_allclose(np.delete(share, own), 0.25, atol=0.04)


def test_each_call_draws_anew_and_a_seed_repeats_it():
    first, second = built(), built()
    for one, other in zip(first.layers[:2], second.layers[:2], strict=True):
        other.set_weights(one.get_weights())
    draws = [[helpers.array(loss.values(*batch())) for _ in range(2)] for loss in (first, second)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert largest_difference(tables(first), tables(second)) == 0


def test_an_id_that_is_no_row_is_noticed():
    source, student, ids = batch()
    ids[1] = EXAMPLES
    loss = built()
    if keras.backend.backend() == "tensorflow":
        with pytest.raises(Exception, match="0 ... 19.*as `examples`"):
            loss.values(source, student, ids)
        return

    def total(x):
        with keras.StatelessScope():
            return loss.values(source, x, ids)

    assert np.isnan(helpers.array(total(student))).tolist() == [False, True, False, False]
    gradient = helpers.gradient(total, student)
    assert np.all(np.isfinite(gradient)) and np.all(gradient[1] == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"examples": 1}, "`examples` of ContrastiveRepresentation must be an integer >= 2"),
        ({"negatives": 0}, "`negatives`"),
        ({"dim": 2.5}, "`dim`"),
        ({"temperature": 0.0}, "`temperature`"),
        ({"momentum": 1.0}, "`momentum` of ContrastiveRepresentation must be below 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveRepresentation(**{"examples": 10, **arguments})


# In a distiller.


def distiller(student=None):
    loss = ContrastiveRepresentation(24, negatives=8, dim=8, seed=0)
    edge = kd.Transfer(
        loss, source_layer="stage2", student_layer="features", weight=0.8, name="crd"
    )
    made = kd.Distiller(student=student or conv(4, 0), teacher=conv(6, 1), transfers=[edge])
    made.compile(keras.optimizers.Adam(0.01), crossentropy())
    return made


def test_a_distiller_trains_with_ids_and_moves_banks_and_both_maps():
    x, y = images(24)
    made = distiller()
    source_map, student_map, banks = made.transfers[0].own_layers
    before = [arrays(layer) for layer in (source_map, student_map)]
    rows = tables(made.transfers[0].loss)
    history = fit(made, kd.data.with_ids(x), y, batch_size=8, epochs=12).history["crd"]
    assert np.all(np.isfinite(history)) and history[-1] < 0.9 * history[0]
    for layer, start in zip((source_map, student_map), before, strict=True):
        assert largest_difference(arrays(layer), start) > 0
    for new, old in zip(tables(made.transfers[0].loss), rows, strict=True):
        assert np.all(np.any(new != old, axis=1))
    assert not any(v.trainable for v in banks.weights)
    assert not {id(v) for v in banks.variables} & {id(v) for v in made.trainable_variables}


def test_a_saved_distiller_goes_on_where_it_was(tmp_path):
    x, y = images(24)
    x = kd.data.with_ids(x)
    made = distiller()
    fit(made, x, y, batch_size=8, epochs=1)
    made.save(tmp_path / "run.keras")
    loaded = keras.models.load_model(tmp_path / "run.keras")
    assert largest_difference(arrays(loaded), arrays(made)) == 0
    for one in (made, loaded):
        one.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    assert largest_difference(arrays(loaded), arrays(made)) == 0


def test_batches_without_ids_are_refused():
    x, y = images(8)
    with pytest.raises(ValueError, match="'crd' needs example ids.*with_ids"):
        distiller().train_on_batch(x, y)


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="strategies are TensorFlow's")
def test_several_replicas_are_refused(two_replicas):
    x, y = images(24)
    with two_replicas.scope():
        made = distiller()
    with pytest.raises(ValueError, match="banks of its own on each replica. Expected one"):
        fit(made, kd.data.with_ids(x), y, batch_size=8, epochs=1)


def test_more_examples_than_rows_are_refused_before_training():
    x, y = images(12)
    loss = ContrastiveRepresentation(examples=8, negatives=2, dim=4, name="crd")
    layers = {"source_layer": "features", "student_layer": "features"}
    distiller = kd.Distiller(
        student=conv(4, 0), teacher=conv(6, 1), transfers=[kd.Transfer(loss, **layers)]
    )
    distiller.compile("sgd", crossentropy())
    match = r"'crd' keeps a row for each of 8 examples, and the data has 12.*examples=12"
    with pytest.raises(ValueError, match=match):
        distiller.fit(x, y, verbose=0)
