"""Polar Express: Muon with a worst-case optimal orthogonalisation (Amsel et al. 2025, arXiv 2505.16932)."""

import functools
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import optax

from jaxformer.config import Bounds, PositiveInt, check_fields
from jaxformer.model import ModelConfig
from jaxformer.optimizer import Optimizer, OptimizerConfig, muon

# Smallest share of the largest singular value that a polynomial is made for: made for less, it would press the middle
# ones down to nothing. Section 3.3 and the code of Amsel et al.
_CUSHION = 0.02407327424182761

# Factor that shrinks all polynomials but the last, so that rounding moves no singular value out of their interval.
_SAFETY = 1.01

# From this ratio of an interval's ends on, its best polynomial is the limit, and four equations are singular.
_NARROW = 1 - 5e-6


@dataclass(frozen=True)
class PolarExpress(Optimizer):
    """Muon whose iterations have their own coefficients, each the best for the result of the one before.

    It takes as many matrix products as Muon with the same iterations. The paper first shrinks the matrix by another
    1.01, against bfloat16's rounding of its norm; here all is float32.
    """

    iterations: PositiveInt = 5
    """Iterations of the orthogonalisation; Muon has 5."""
    lowest: Annotated[float, Bounds(above=0, below=1)] = 1e-3
    """Lowest singular value, as a share of the Frobenius norm, that is brought near 1."""

    def __post_init__(self):
        check_fields(self, "PolarExpress")

    def transform(self, config: OptimizerConfig, model: ModelConfig) -> optax.GradientTransformation:
        """Returns Muon for the kernels and Adam for all else."""
        return muon(config, coefficients(self.iterations, self.lowest))


@functools.cache
def coefficients(iterations: int, lowest: float) -> tuple[tuple[float, float, float], ...]:
    """Returns (a, b, c) of the odd polynomial a x + b x^3 + c x^5 of each iteration (their algorithm 1).

    Each is nearest to 1, in the worst case, over the interval that contains the singular values at that point; their
    composition is the best of its degree.
    """
    low, high, found = lowest, 1.0, []
    for _ in range(iterations):
        polynomial = best_quintic(max(low, _CUSHION * high), high)
        # Made for a narrower interval, it is not centred in this one.
        polynomial = polynomial * 2 / (_values(polynomial, low) + _values(polynomial, high))
        found.append(polynomial)
        low = _values(polynomial, low)
        high = 2 - low
    shrunk = [polynomial / _SAFETY ** np.array([1, 3, 5]) for polynomial in found[:-1]]
    return tuple((float(a), float(b), float(c)) for a, b, c in [*shrunk, found[-1]])


def best_quintic(low: float, high: float) -> np.ndarray:
    """Returns (a, b, c) of the odd quintic nearest to 1 over [low, high] in the worst case, by Remez's exchange.

    Its error is equal, with alternating sign, at the two ends and at its two extrema between them.
    """
    if low / high >= _NARROW:
        return np.array([15 / high, -10 / high**3, 3 / high**5]) / 8
    inner, error = np.array([3 * low + high, low + 3 * high]) / 4, np.inf
    while True:
        x = np.array([low, *inner, high])
        *polynomial, new_error = np.linalg.solve(np.stack([x, x**3, x**5, [1, -1, 1, -1]], axis=1), np.ones(4))
        a, b, c = polynomial
        if abs(new_error - error) <= 1e-15:
            return np.array(polynomial)
        error = new_error
        # Where the derivative, a + 3 b x^2 + 5 c x^4, is zero.
        inner = np.sqrt((-3 * b + np.array([-1, 1]) * np.sqrt(9 * b**2 - 20 * a * c)) / (10 * c))


def _values(polynomial: np.ndarray, x: float) -> float:
    return float(polynomial @ np.array([x, x**3, x**5]))
