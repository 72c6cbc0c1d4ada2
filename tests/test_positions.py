"""Layouts of features: resized and rearranged against NumPy, cell by cell."""

import numpy as np
import pytest

from kdtoolkit import functional
from kdtoolkit.functional import positions
from tests import helpers
from tests.feature_reference import average_pool


def features(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype("float32")


@pytest.mark.core
@pytest.mark.parametrize("old", [(4, 4), (7, 5), (1, 6)])
@pytest.mark.parametrize("new", [(1, 1), (2, 2), (1, 4)])
def test_smaller_maps_are_adaptive_averages(old, new):
    new = tuple(min(pair) for pair in zip(old, new, strict=True))
    maps = features(3, *old, 2)
    computed = helpers.array(functional.resize_maps(maps, *new))
    np.testing.assert_allclose(computed, average_pool(maps, *new), atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(1, 4), (2, 3), (2, 4), (3, 7), (5, 6)])
def test_larger_maps_are_interpolated_between_the_centres_of_cells(old, new):
    maps = features(2, 3, old, 2)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    expected = np.empty((2, 3, new, 2))
    for i, j, c in np.ndindex(2, 3, 2):
        expected[i, j, :, c] = np.interp(centres, np.arange(old), maps[i, j, :, c])
    computed = helpers.array(functional.resize_maps(maps, 3, new))
    np.testing.assert_allclose(computed, expected, atol=1e-6)


def test_a_grid_of_tokens_is_a_map_behind_its_extra_tokens():
    maps = features(2, 4, 4, 3)
    tokens = np.concatenate([features(2, 2, 3), maps.reshape(2, 16, 3)], axis=1)
    np.testing.assert_allclose(functional.arrange(tokens, (None, 4, 4, 9)), maps)
    # The first extra token stays the first; the second has no place in the target.
    computed = helpers.array(functional.arrange(tokens, (None, 5, 9)))
    np.testing.assert_allclose(computed[:, 0], tokens[:, 0])
    np.testing.assert_allclose(
        computed[:, 1:], average_pool(maps, 2, 2).reshape(2, 4, 3), atol=1e-6
    )


def test_what_a_map_does_not_have_its_mean_stands_for():
    maps = features(2, 4, 4, 3)
    computed = helpers.array(functional.arrange(maps, (None, 18, 7)))
    mean = maps.mean(axis=(1, 2))
    for extra in range(2):
        np.testing.assert_allclose(computed[:, extra], mean, atol=1e-6)
    np.testing.assert_allclose(computed[:, 2:], maps.reshape(2, 16, 3), atol=1e-6)


def test_everything_becomes_a_vector_by_its_mean():
    for shape in ((2, 3), (2, 5, 3), (2, 4, 2, 3)):
        value = features(*shape)
        expected = value.reshape(2, -1, 3).mean(axis=1)
        computed = helpers.array(functional.arrange(value, (None, 11)))
        np.testing.assert_allclose(computed, expected, atol=1e-6)


def test_one_cell_wide_maps_stand_for_what_is_no_map():
    assert positions.map_shape((None, 5)) == (None, 1, 1, 5)
    tokens = features(2, 12, 3)
    np.testing.assert_allclose(helpers.array(positions.as_map(tokens))[:, :, 0], tokens)


@pytest.mark.parametrize(
    ("shape", "target", "match"),
    [
        ((None, 8), (None, 4, 4, 8), "vector, which has no positions, with maps"),
        ((None, 12, 8), (None, 4, 4, 8), "12 tokens form none"),
        ((None, None, 4, 8), (None, 4, 4, 8), "of known size"),
        ((None, 4, 4, 4, 8), (None, 4), r"Received: shape \(None, 4, 4, 4, 8\)"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(shape, target, match):
    with pytest.raises(ValueError, match=match):
        functional.check_arrangement(shape, target, "mine")
