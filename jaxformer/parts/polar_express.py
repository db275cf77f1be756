"""Polar Express: Muon whose orthogonalisation is the best in the worst case (Amsel et al. 2025, arXiv 2505.16932)."""

import functools
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import optax

from jaxformer.config import Bounds, PositiveInt, check_fields
from jaxformer.model import ModelConfig
from jaxformer.optimizer import Optimizer, OptimizerConfig, muon

# Least share of the largest singular value that a polynomial is made for: made for less, it would press those in the
# middle down to nothing. Section 3.3 and the code of Amsel et al.
_CUSHION = 0.02407327424182761

# What all polynomials but the last are shrunk by, so that rounding throws no singular value out of their interval.
_SAFETY = 1.01

# From this ratio of an interval's ends on, its best polynomial is the limit, and four equations are singular.
_NARROW = 1 - 5e-6


@dataclass(frozen=True)
class PolarExpress(Optimizer):
    """Muon whose iterations have coefficients of their own, each the best for what the one before it leaves.

    It takes as many matrix products as Muon, of as many iterations. The paper shrinks the matrix by another 1.01 at
    first, against bfloat16's rounding of its norm; here all is float32.
    """

    iterations: PositiveInt = 5
    """Of the orthogonalisation; Muon has 5."""
    lowest: Annotated[float, Bounds(above=0, below=1)] = 1e-3
    """Singular value, as a share of the Frobenius norm, down to which all are brought near 1."""

    def __post_init__(self):
        check_fields(self, "PolarExpress")

    def transform(self, config: OptimizerConfig, model: ModelConfig) -> optax.GradientTransformation:
        """Returns Muon for the kernels and Adam for all else."""
        return muon(config, coefficients(self.iterations, self.lowest))


@functools.cache
def coefficients(iterations: int, lowest: float) -> tuple[tuple[float, float, float], ...]:
    """Returns (a, b, c) of the odd polynomial a x + b x^3 + c x^5 of each iteration (their algorithm 1).

    Each is nearest to 1, in the worst case, over the interval that the singular values lie in by then; the composition
    is the best of its degree.
    """
    low, high, found = lowest, 1.0, []
    for _ in range(iterations):
        polynomial = best_quintic(max(low, _CUSHION * high), high)
        # Made for a narrower interval it is not centred in this one.
        polynomial = polynomial * 2 / (_values(polynomial, low) + _values(polynomial, high))
        found.append(polynomial)
        low = _values(polynomial, low)
        high = 2 - low
    shrunk = [polynomial / _SAFETY ** np.array([1, 3, 5]) for polynomial in found[:-1]]
    return tuple((float(a), float(b), float(c)) for a, b, c in [*shrunk, found[-1]])


def best_quintic(low: float, high: float) -> np.ndarray:
    """Returns (a, b, c) of the odd quintic nearest to 1 over [low, high] in the worst case, by Remez's exchange.

    It errs by as much, and with the other sign in turn, at the two ends and at its two extrema between them.
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
