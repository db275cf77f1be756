"""Parabolas through three points, and the weights by which three runs become one at the best place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.statistics.optimum import fit_parabola, interpolation_weights

pytestmark = pytest.mark.device_free

PLACES = st.tuples(st.integers(-9, 9), st.integers(1, 3), st.integers(1, 3)).map(
    lambda each: np.array([each[0], each[0] + each[1], each[0] + each[1] + each[2]], float)
)


@given(PLACES, st.floats(-10, 10), st.floats(-5, 5), st.floats(0.01, 10))
def test_the_parabola_of_three_of_its_points_is_found_again(places, place, value, curvature):
    found = fit_parabola(places, value + curvature * (places - place) ** 2)
    np.testing.assert_allclose(found, (place, value, curvature), rtol=1e-6, atol=1e-5)
    assert found.at(place + 2) == pytest.approx(value + 4 * curvature, abs=1e-4)


@pytest.mark.parametrize("values", [[1, 2, 1], [1, 2, 3], [1, 0, np.inf], [np.nan, 0, 1]])
def test_what_does_not_bend_upwards_or_is_not_finite_is_none(values):
    assert fit_parabola(np.array([-1, 0, 1]), np.array(values)) is None


@given(PLACES, st.floats(-10, 10))
def test_weights_are_those_of_the_polynomial_through_the_points(places, place):
    weights = interpolation_weights(places, place)
    for power in range(3):
        assert weights @ places**power == pytest.approx(place**power, abs=1e-6)


def test_the_lowest_value_moves_with_each_of_three_by_its_weight():
    places, values = np.array([-1.0, 0, 1]), np.array([1.4, 1.0, 1.2])
    before = fit_parabola(places, values)
    weights = interpolation_weights(places, before.place)
    for i in range(3):
        moved = values + 1e-6 * (np.arange(3) == i)
        assert (fit_parabola(places, moved).value - before.value) / 1e-6 == pytest.approx(weights[i], abs=1e-4)
