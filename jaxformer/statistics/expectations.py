"""How well expectations come true, and what an expectation is worth as a forecast, judged by earlier ones.

A question comes with an expected interval (low, high) of its effect. Past questions show whether effects are as large
as their midpoints say (slope), better or worse throughout (shift), and how many half-widths they lie away (spread):

    effect / half-width = slope x midpoint / half-width + shift + kind + t with `TAIL` degrees of freedom x spread
    measured = effect + normal error

where each kind of question has its own deviation, kind ~ N(0, kind_spread^2), learned from its answers. All are in
half-widths, so that answers at one size inform another, and intervals that are usually too narrow count as wider.

Axes: N question; C coefficient: the slope, the shift and a deviation for each kind. Further axes, of independent
projects, may come first.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

# Degrees of freedom of the deviation of a single effect: a few deviate by far more than most.
TAIL = 3.0

# Assumed share of a gain that is left when another change of the same kind was kept: in `tools/results` the gain of a
# short decay under AdamW vanished under Muon, and other gains stayed the same.
OVERLAP = 0.6

_ITERATIONS = 40


class Prior(NamedTuple):
    """What is assumed before there are answers, and its weight against them."""

    slope: tuple[float, float]
    """Mean and standard deviation."""
    shift: tuple[float, float]
    """Mean and standard deviation, half-widths."""
    spread: tuple[float, float]
    """Value, half-widths, and how many answers it counts for."""
    kind_spread: tuple[float, float]
    """Value, half-widths, and how many kinds it counts for."""


# From the questions whose reports are in `tools/results` (models of 0.3 million parameters; `python
# tools/simulated_projects.py --expectations` reads and fits them): of 30, 11 came out within what was expected, 8
# better, 11 worse. Fitted alone, with slope ~ N(1, 1.5) and shift ~ N(0, 3): slope 1.4 ± 0.6, shift 0.3 ± 0.7, spread
# 3.2. Kinds do not improve the fit, so `kind_spread` is a guess. The questions have only five parents, and effects are
# said to shrink with size: so this is a weaker version of that fit, with a slope nearer to 1.
PRIOR = Prior(slope=(1.3, 0.8), shift=(0.2, 1.5), spread=(3.1, 3), kind_spread=(1.0, 3))


class Expectations(NamedTuple):
    """Expectations and what was measured; bits per byte, negative is better."""

    low_N: np.ndarray
    high_N: np.ndarray
    kind_N: np.ndarray
    """Integers from 0 on."""
    effect_N: np.ndarray
    """NaN where nothing is measured yet."""
    error_N: np.ndarray
    """Standard errors."""


class Belief(NamedTuple):
    """The distribution of an effect: mean + scale x t; if it is a gain, times `left`."""

    mean_N: np.ndarray
    scale_N: np.ndarray
    left_N: np.ndarray | float = 1.0

    def quantiles(self, p_D: np.ndarray) -> np.ndarray:
        """Returns the quantiles of the effects at probabilities (N, D)."""
        effect_ND = self.mean_N[..., None] + self.scale_N[..., None] * special.stdtrit(TAIL, p_D)
        return np.minimum(effect_ND, 0) * np.asarray(self.left_N)[..., None] + np.maximum(effect_ND, 0)

    def density(self, effect_ND: np.ndarray) -> np.ndarray:
        """Returns a multiple of the density of effects."""
        left_ND = np.where(effect_ND < 0, np.asarray(self.left_N)[..., None], 1.0)
        t_ND = (effect_ND / left_ND - self.mean_N[..., None]) / self.scale_N[..., None]
        return (1 + t_ND**2 / TAIL) ** (-(TAIL + 1) / 2) / left_ND


class Calibration(NamedTuple):
    """What answers show about expectations."""

    mean_C: np.ndarray
    covariance_CC: np.ndarray
    spread: np.ndarray
    kind_spread: np.ndarray

    def belief(
        self, low_N: np.ndarray, high_N: np.ndarray, kind_N: np.ndarray, kept_N: np.ndarray | float = 0
    ) -> Belief:
        """Returns the effects of new questions, as distributions, given how many changes of their kinds were kept."""
        half_N = (high_N - low_N) / 2
        x_NC = _design(low_N, high_N, kind_N, self.mean_C.shape[-1] - 2)
        mean_N = (x_NC @ self.mean_C[..., None])[..., 0]
        known_N = ((x_NC @ self.covariance_CC) * x_NC).sum(-1)
        return Belief(half_N * mean_N, half_N * np.sqrt(self.spread[..., None] ** 2 + known_N), OVERLAP**kept_N)


def calibrate(expectations: Expectations, kinds: int, prior: Prior = PRIOR) -> Calibration:
    """Returns what answers and a prior show: the posterior mode of both spreads, and the coefficients given those.

    By expectation and conditional maximisation; a t is a normal whose precision varies (Lange, Little & Taylor 1989).

    Args:
        kinds: number of kinds, those of new questions included.
    """
    half_N = (expectations.high_N - expectations.low_N) / 2
    known_N = np.isfinite(expectations.effect_N)
    z_N = np.where(known_N, expectations.effect_N / half_N, 0.0)
    noise_N = np.where(known_N, (expectations.error_N / half_N) ** 2, 0.0)
    x_NC = _design(expectations.low_N, expectations.high_N, expectations.kind_N, kinds) * known_N[..., None]
    seen_K = np.abs(x_NC[..., 2:]).sum(-2) > 0
    # Kinds start as far apart as questions: from a small spread the iteration converges too slowly.
    spread2 = np.full(known_N.shape[:-1], prior.spread[0] ** 2)
    kind2 = spread2.copy()
    weight_N = np.ones(known_N.shape)
    for _ in range(_ITERATIONS):
        own_N = spread2[..., None] / weight_N
        mean_C, covariance_CC = _coefficients(x_NC, z_N, known_N / (own_N + noise_N), kind2, prior)
        misfit_N = (z_N - (x_NC @ mean_C[..., None])[..., 0]) ** 2 + ((x_NC @ covariance_CC) * x_NC).sum(-1)
        part_N = own_N / (own_N + noise_N)
        square_N = part_N**2 * misfit_N + (1 - part_N) * own_N
        weight_N = (TAIL + 1) / (TAIL + square_N / spread2[..., None])
        spread2 = _pooled(prior.spread, weight_N * square_N, known_N)
        kind2 = _pooled(prior.kind_spread, _squares(mean_C, covariance_CC)[..., 2:], seen_K)
    return Calibration(mean_C, covariance_CC, np.sqrt(spread2), np.sqrt(kind2))


def _design(low_N: np.ndarray, high_N: np.ndarray, kind_N: np.ndarray, kinds: int) -> np.ndarray:
    half_N, midpoint_N = (high_N - low_N) / 2, (high_N + low_N) / 2
    return np.concatenate(
        [(midpoint_N / half_N)[..., None], np.ones_like(half_N)[..., None], kind_N[..., None] == np.arange(kinds)], -1
    )


def _coefficients(
    x_NC: np.ndarray, z_N: np.ndarray, precision_N: np.ndarray, kind2: np.ndarray, prior: Prior
) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and covariance of the coefficients, given the variances."""
    before_C = np.zeros(x_NC.shape[-1])
    before_C[:2] = prior.slope[0], prior.shift[0]
    precision_C = np.repeat(1 / kind2[..., None], x_NC.shape[-1], -1)
    precision_C[..., 0], precision_C[..., 1] = prior.slope[1] ** -2, prior.shift[1] ** -2
    weighted_CN = np.swapaxes(x_NC * precision_N[..., None], -1, -2)
    covariance_CC = np.linalg.inv(weighted_CN @ x_NC + precision_C[..., None] * np.eye(x_NC.shape[-1]))
    towards_C = (weighted_CN @ z_N[..., None])[..., 0] + precision_C * before_C
    return (covariance_CC @ towards_C[..., None])[..., 0], covariance_CC


def _squares(mean_C: np.ndarray, covariance_CC: np.ndarray) -> np.ndarray:
    return mean_C**2 + np.diagonal(covariance_CC, axis1=-2, axis2=-1)


def _pooled(prior: tuple[float, float], squares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns a variance from squared deviations and a prior that counts as a number of them."""
    value, weight = prior
    return (weight * value**2 + (squares * counts).sum(-1)) / (weight + counts.sum(-1))
