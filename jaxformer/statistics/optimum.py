"""The best value of a setting that was tried at three values (places), by the parabola through them.

Axes: S seed, P place.
"""

import math
from typing import NamedTuple

import numpy as np


class Parabola(NamedTuple):
    """The parabola through three points, convex."""

    place: float
    """Where it is lowest; `value` is how low, and `curvature` the second derivative over two."""
    value: float
    curvature: float

    def at(self, place: float) -> float:
        """Returns its value at a place."""
        return self.value + self.curvature * (place - self.place) ** 2


def fit_parabola(places_P: np.ndarray, values_P: np.ndarray) -> Parabola | None:
    """Returns the parabola through three points; None where they are not convex, or not finite."""
    places_P, values_P = np.asarray(places_P, np.float64), np.asarray(values_P, np.float64)
    if places_P.shape != (3,) or values_P.shape != (3,):
        raise ValueError(f"a parabola goes through 3 points, not places {places_P.shape} and values {values_P.shape}")
    if not np.isfinite(values_P).all():
        return None
    # About the middle place, which keeps the digits.
    curvature, slope, level = np.polyfit(places_P - places_P[1], values_P, 2)
    if curvature <= 0:
        return None
    return Parabola(
        float(places_P[1] - slope / (2 * curvature)), float(level - slope**2 / (4 * curvature)), float(curvature)
    )


def interpolation_weights(places_P: np.ndarray, place: float) -> np.ndarray:
    """Returns the weights (P,), which sum to 1, with which values at places give the polynomial's value at a place.

    At the lowest place of a parabola they are the derivatives of its lowest value by the three values: that its place
    moves too does not count (the envelope theorem). So seeds and documents of the three runs stay paired in the error.
    """
    return np.array(
        [
            math.prod((place - other) / (own - other) for j, other in enumerate(places_P) if j != i)
            for i, own in enumerate(places_P)
        ]
    )
