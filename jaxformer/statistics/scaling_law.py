"""Forecasts the loss of a run of another size, with its uncertainty, from the losses of finished sizes.

A law is L(N, D) = E + A N^-alpha + B D^-beta for N parameters and D tokens (Hoffmann et al. 2022, arXiv 2203.15556), or
the same without the irreducible E. For given exponents it is linear in E, A and B, so that with normal errors their
posterior is known exactly; the exponents, and how far a size may lie off its law, are summed over grids. A prediction
is drawn from all of that, so that what a few sizes cannot show (how much of the loss is irreducible, which of the two
exponents is which) widens its interval instead of being chosen.

The two forms are weighted by how well each forecast every size after the second from the smaller ones (held-out
predictive densities; Geisser and Eddy 1979, J. Am. Stat. Assoc. 74:153): with three sizes, by one such forecast.

Axes: S size, G grid of exponents, T grid of deviations, K coefficient, P draw.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

# Fewer sizes show no law: two coefficients and an exponent go through two points.
FEWEST_SIZES = 3

# How far a size may lie off its law, as a share of the loss, since its learning rate and batch are not optimal:
# half-Cauchy with this scale, which lets sizes that follow no law lie far off it.
_DEVIATION = 0.0008
_DEVIATIONS_T = np.array([0.0003, 0.0006, 0.001, 0.0015, 0.0023, 0.0035, 0.005, 0.0075, 0.011, 0.016, 0.024])

# Prior of seed noise: this share of the loss, which counts as this many degrees of freedom.
_SEEDS, _SEEDS_DF = 0.003, 2.0

# Degrees of freedom that the other sizes count for in the variance of a size.
_POOLED_DF = 4.0

_DRAWS, _FEWEST_DRAWS = 8000, 1000


class NoLaw(ValueError):
    """No law fits the sizes."""


class _Form(NamedTuple):
    """A form of the law, with its prior."""

    name: str
    has_floor: bool
    exponents: tuple[float, ...]
    """Grid of the exponents of N and of D, each of which has a lognormal prior."""
    median: float
    spread: float
    """`median` and `spread`: of that prior, the spread in natural logarithms."""
    shares_K: tuple[float, ...]
    """Prior means of the terms at the middle of the sizes, as shares of the loss there; none is below 0."""
    errors_K: tuple[float, ...]
    """Their standard deviations."""

    def basis(self, sizes_S2: np.ndarray) -> np.ndarray:
        """Returns the terms (G, S, K) of sizes, relative to the middle one; their coefficients are fitted."""
        alpha_G, beta_G = np.array([(a, b) for a in self.exponents for b in self.exponents]).T
        terms = [sizes_S2[:, 0] ** -alpha_G[:, None], sizes_S2[:, 1] ** -beta_G[:, None]]
        return np.stack([*([np.ones_like(terms[0])] if self.has_floor else []), *terms], axis=2)

    def log_prior(self) -> np.ndarray:
        """Returns the logarithm of the prior (G,) of the exponents, up to a constant."""
        logs = np.log(self.exponents)
        of_one = np.log(np.gradient(logs)) - 0.5 * ((logs - math.log(self.median)) / self.spread) ** 2
        return (of_one[:, None] + of_one[None, :]).ravel()


# Exponents with a floor: 0.34 and 0.28 of Hoffmann et al., 0.35 and 0.37 of Besiroglu et al. 2024 (arXiv 2404.10102).
# Without one: 0.076 and 0.095 of Kaplan et al. 2020 (arXiv 2001.08361).
_FORMS = (
    _Form(
        "with a floor",
        True,
        (0.05, 0.1, 0.15, 0.2, 0.27, 0.35, 0.45, 0.6, 0.8),
        0.3,
        0.6,
        (0.45, 0.27, 0.27),
        (0.3, 0.2, 0.2),
    ),
    _Form(
        "without",
        False,
        (0.01, 0.02, 0.03, 0.045, 0.07, 0.1, 0.15, 0.22, 0.33, 0.5),
        0.1,
        0.7,
        (0.5, 0.5),
        (0.3, 0.3),
    ),
)


class Prediction(NamedTuple):
    """The probable loss of one run of a size."""

    losses_P: np.ndarray
    """Draws of a run's loss."""
    laws_P: np.ndarray
    """Draws of the law there: without the size's deviation from it, and without seed noise."""
    seeds: float
    """Standard deviation of one run of the size over seeds."""
    forms: dict[str, float]
    """Weight of each form of the law."""

    @property
    def median(self) -> float:
        """The middle of the draws."""
        return float(np.median(self.losses_P))

    def interval(self, confidence: float = 0.9) -> tuple[float, float]:
        """Returns the central interval (low, high) that contains a run's loss with a probability."""
        low, high = np.quantile(self.losses_P, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)


def predict_loss(
    parameters_S: Sequence[float] | np.ndarray,
    tokens_S: Sequence[float] | np.ndarray,
    losses_S: Sequence[Sequence[float] | np.ndarray],
    parameters: float,
    tokens: float,
) -> Prediction:
    """Returns the forecast of one run of a further size.

    Args:
        parameters_S, tokens_S: of the finished sizes, by ascending compute.
        losses_S: of each, the losses of its seeds.
        parameters, tokens: of the size to forecast.

    Raises:
        NoLaw: the losses do not fall with size.
        ValueError: there are fewer than `FEWEST_SIZES`, or a number is not above 0 and finite.
    """
    known_S2 = np.array([parameters_S, tokens_S], np.float64).T
    numbers = [*known_S2.ravel(), *(loss for one in losses_S for loss in one), parameters, tokens]
    if len(known_S2) < FEWEST_SIZES or len(losses_S) != len(known_S2) or not all(map(len, losses_S)):
        raise ValueError(f"a law takes {FEWEST_SIZES} sizes or more, with losses of each, not {len(known_S2)}")
    if not all(0 < each < math.inf for each in numbers):
        raise ValueError("a law takes parameters, tokens and losses that are above 0 and finite")
    random = np.random.default_rng(0)
    sizes_S2 = np.vstack([known_S2, [parameters, tokens]]) / np.exp(np.log(known_S2).mean(0))
    mean_S, variance_S, df_S = _means(losses_S)
    drawn, log_weights = [], []
    for form in _FORMS:
        fit = _Fit(form, form.basis(sizes_S2), mean_S, variance_S / [len(one) for one in losses_S])
        log_weights.append(sum(map(fit.log_density_of, range(2, len(mean_S)))))
        drawn.append(fit.draw(random))
    weights = special.softmax(log_weights)
    pick_P = random.choice(len(drawn), _DRAWS, p=weights)
    laws_P, deviations_P = np.stack(drawn, 1)[:, pick_P, np.arange(_DRAWS)]
    seeds_P = np.sqrt(variance_S[-1] * df_S[-1] / random.chisquare(df_S[-1], _DRAWS))
    noise_2P = random.standard_normal((2, _DRAWS))
    return Prediction(
        laws_P + deviations_P * noise_2P[0] + seeds_P * noise_2P[1],
        laws_P,
        float(math.sqrt(variance_S[-1])),
        {form.name: float(weight) for form, weight in zip(_FORMS, weights, strict=True)},
    )


def _means(losses_S: Sequence[Sequence[float] | np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each size the mean of its seeds, the variance of one seed, and that variance's degrees of freedom.

    Few seeds estimate a variance badly, and small sizes scatter more than large ones. So the variance, as a share of
    the loss, is drawn towards the variance of all sizes, weighted by half for each step to a neighbouring size.
    """
    mean_S = np.array([np.mean(one) for one in losses_S])
    squares_S = np.array([np.sum(np.square(np.asarray(one) / m - 1)) for one, m in zip(losses_S, mean_S, strict=True)])
    own_S = np.array([len(one) - 1.0 for one in losses_S])
    places_S = np.arange(len(mean_S))
    nearness_SS = 0.5 ** np.abs(places_S[:, None] - places_S)
    pooled_S = (nearness_SS @ squares_S + _SEEDS_DF * _SEEDS**2) / (nearness_SS @ own_S + _SEEDS_DF)
    df_S = own_S + np.minimum(_POOLED_DF, nearness_SS @ own_S + _SEEDS_DF)
    share_S = (squares_S + (df_S - own_S) * pooled_S) / df_S
    return mean_S, share_S * mean_S**2, df_S


class _Posterior(NamedTuple):
    """Posterior of the coefficients, for each cell of the two grids."""

    mean_GTK: np.ndarray
    covariance_GTKK: np.ndarray
    log_weight_GT: np.ndarray
    """Of the cell, normalised."""


class _Fit:
    """A form fitted to the means of the first of several sizes."""

    def __init__(self, form: _Form, basis_GSK: np.ndarray, mean_S: np.ndarray, error_S: np.ndarray):
        """Args: basis_GSK: of one size more than there are means; error_S: variances of those."""
        self._scale = float(mean_S[:2].mean())  # Held-out sizes must not be used.
        self._basis_GSK, self._mean_S = basis_GSK, mean_S
        self._variance_TS = np.square(_DEVIATIONS_T * self._scale)[:, None] + error_S
        self._prior_K = np.array(form.shares_K) * self._scale
        self._precision_KK = np.diag(np.square(np.array(form.errors_K) * self._scale) ** -1.0)
        widths_T = _DEVIATIONS_T * np.gradient(np.log(_DEVIATIONS_T))
        log_prior_T = np.log(widths_T) - np.log1p((_DEVIATIONS_T / _DEVIATION) ** 2)
        self._log_prior_GT = form.log_prior()[:, None] + log_prior_T

    def posterior(self, sizes: int) -> _Posterior:
        """Returns the posterior from the first sizes, conjugate normal in each cell; negative terms are included."""
        basis_GSK, precision_TS = self._basis_GSK[:, :sizes], 1 / self._variance_TS[:, :sizes]
        weighted_GTSK = basis_GSK[:, None] * precision_TS[None, :, :, None]
        residual_GS = self._mean_S[:sizes] - basis_GSK @ self._prior_K
        inverse_GTKK = self._precision_KK + np.einsum("gtsk,gsl->gtkl", weighted_GTSK, basis_GSK)
        covariance_GTKK = np.linalg.inv(inverse_GTKK)
        moved_GTK = np.einsum("gtsk,gs->gtk", weighted_GTSK, residual_GS)
        shift_GTK = np.einsum("gtkl,gtl->gtk", covariance_GTKK, moved_GTK)
        squares_GT = np.einsum("gs,ts,gs->gt", residual_GS, precision_TS, residual_GS)
        squares_GT = squares_GT - np.einsum("gtk,gtk->gt", moved_GTK, shift_GTK)
        log_GT = self._log_prior_GT - 0.5 * (squares_GT + np.linalg.slogdet(inverse_GTKK).logabsdet)
        log_GT = log_GT + 0.5 * np.log(precision_TS).sum(1)
        return _Posterior(self._prior_K + shift_GTK, covariance_GTKK, log_GT - special.logsumexp(log_GT))

    def log_density_of(self, size: int) -> float:
        """Returns the log density that the smaller sizes predict at a size's mean."""
        found, basis_GK = self.posterior(size), self._basis_GSK[:, size]
        law_GT = np.einsum("gtk,gk->gt", found.mean_GTK, basis_GK)
        variance_GT = np.einsum("gk,gtkl,gl->gt", basis_GK, found.covariance_GTKK, basis_GK)
        variance_GT = variance_GT + self._variance_TS[:, size]
        log_GT = -0.5 * (np.log(variance_GT) + np.square(self._mean_S[size] - law_GT) / variance_GT)
        return float(np.logaddexp.reduce(found.log_weight_GT + log_GT, axis=None))

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Returns draws (2, P): of the law at the size to forecast, and of how far sizes deviate from it.

        Raises:
            NoLaw: almost all draws have a negative term.
        """
        found = self.posterior(len(self._mean_S))
        cell_P = random.choice(found.log_weight_GT.size, 4 * _DRAWS, p=np.exp(found.log_weight_GT).ravel())
        g_P, t_P = np.divmod(cell_P, len(_DEVIATIONS_T))
        roots_GTKK = np.linalg.cholesky(found.covariance_GTKK)
        normal_PK = random.standard_normal((len(cell_P), found.mean_GTK.shape[2]))
        terms_PK = found.mean_GTK[g_P, t_P] + np.einsum("pkl,pl->pk", roots_GTKK[g_P, t_P], normal_PK)
        allowed_P = np.flatnonzero((terms_PK >= 0).all(1))
        if len(allowed_P) < _FEWEST_DRAWS:
            raise NoLaw("the losses do not fall with size as a law would have them")
        allowed_P = np.resize(allowed_P, _DRAWS)
        law_P = (terms_PK[allowed_P] * self._basis_GSK[g_P[allowed_P], -1]).sum(1)
        return np.stack([law_P, _DEVIATIONS_T[t_P[allowed_P]] * self._scale])
