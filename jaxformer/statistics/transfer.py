"""Whether a change that was compared with its parent at small sizes has the same effect at a larger one.

Its effect d_i at a size is a difference of bits per byte, variant minus parent. With the training compute of the sizes,
x_i = log(compute_i / compute of the target), the model is

    d_i = a + b x_i + deviation_i + error_i

where a, the effect at the target, is estimated. The prior is in units of one scale A, so that large and small changes
are treated alike, and is integrated over a grid:

| what | prior | why |
| --- | --- | --- |
| A | log-uniform, 0.0003 to 1 bit per byte | from far below a seed's noise to more than a change gains |
| a | normal about 0, standard deviation A | no effect persists unless it is seen to |
| b | normal about 0, standard deviation 0.05, 0.1, 0.2 or 0.4 A | an effect loses 0.21 of itself for each factor e of |
|   |   | compute from 0.002 to 0.0007 bits per byte (nanochat, dev/LOG.md, depths 12 to 20), and 0.14 from 1.4 x to |
|   |   | 1.1 x the speed (Muon at 0.1B and 1.2B parameters, Wen et al. 2025, arXiv 2509.02046) |
| deviation | standard deviation tau at each size, and a random walk with tau for each factor 4 of compute; tau from 0 |
|   |   | to 0.8 A, as of a half-Cauchy distribution of scale 0.15: pairs of corpora rank at 150M parameters as at 1B |
|   |   | in 80 % (DataDecide, Magnusson et al. 2025, arXiv 2504.11393); by this prior a sign persists over those 44 x |
|   |   | the compute in 79 % |

The farther a size is below the target, the less it shows about it, and the smaller is the predicted effect. Only the
prior allows for what no size shows, such as a jump beyond the largest.

Axes: N size, G point of the grid, L place along the compute; further axes, of independent questions, come first.
"""

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from scipy import special

# Of the intervals of the effect at the target and at the smallest size.
CONFIDENCE = 0.95

FEWEST_SIZES = 3

# Between the effects of documents on the differences at two sizes, which share them; used if no runs measure it.
DOCUMENT_CORRELATION = 0.5

_SCALES = np.geomspace(3e-4, 1.0, 14)
_SLOPES = np.array([0.05, 0.1, 0.2, 0.4])
_DEVIATIONS = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 0.8])
_DEVIATION_WEIGHTS = np.array([0.18, 0.24, 0.22, 0.18, 0.12, 0.06])
_STEP = math.log(4)

# Bisections of the interval that contains a quantile, which is some ten standard deviations wide.
_HALVINGS = 24


class Effect(NamedTuple):
    """A change's effect at a place along the compute, bits per byte; arrays over questions where there are many."""

    mean: Any
    low: Any
    high: Any
    """`low` and `high`: the interval that contains it with the probability `CONFIDENCE`."""
    below: Any
    """Probability that it is below 0."""


def error_covariance(
    seed_variances_N: np.ndarray,
    seed_df_N: np.ndarray,
    item_variances_N: np.ndarray,
    item_df_N: np.ndarray,
    correlation: float = DOCUMENT_CORRELATION,
) -> np.ndarray:
    """Returns the covariances (..., N, N) of the errors of a change's differences at several sizes.

    Each variance is enlarged by (t / z)^2, so that a normal interval at `CONFIDENCE` is as wide as Student's. Variances
    of sizes are not pooled: noise falls with size, and a pooled variance is too small at the smallest.

    Args:
        seed_variances_N, item_variances_N: (..., N), the parts of the variance of each difference.
        seed_df_N, item_df_N: their degrees of freedom.
        correlation: between the effects of documents at two sizes.
    """
    seeds_N, items_N = (
        variance_N * _enlarged(np.where(variance_N > 0, df_N, np.inf))
        for variance_N, df_N in ((seed_variances_N, seed_df_N), (item_variances_N, item_df_N))
    )
    return seeds_N[..., None] * np.eye(seeds_N.shape[-1]) + shared_by_documents(np.sqrt(items_N), correlation)


def shared_by_documents(errors_N: np.ndarray, correlation: float = DOCUMENT_CORRELATION) -> np.ndarray:
    """Returns the covariances (..., N, N) by documents of the differences at several sizes, given standard errors."""
    shared = correlation + (1 - correlation) * np.eye(errors_N.shape[-1])
    return errors_N[..., :, None] * errors_N[..., None, :] * shared


def _enlarged(df: np.ndarray) -> np.ndarray:
    """Returns (t / z)^2 at `CONFIDENCE`, for degrees of freedom of any shape."""
    tail = (1 - CONFIDENCE) / 2
    return (special.stdtrit(df, tail) / special.ndtri(tail)) ** 2


def predict_effect(effects_N: np.ndarray, errors_NN: np.ndarray, distances_N: np.ndarray, at_L: np.ndarray) -> Effect:
    """Returns the effect at places along the compute, given the differences at several sizes.

    Args:
        effects_N: (..., N), bits per byte.
        errors_NN: (..., N, N), the covariance of their errors.
        distances_N: log(compute / compute of the target) of each size.
        at_L: the same of the places; the distance of a size means that size itself, with its deviation.

    Returns:
        Its fields are arrays (..., L).
    """
    mean_GL, deviation_GL, weight_G = _posterior(*map(np.asarray, (effects_N, errors_NN, distances_N, at_L)))
    weight_GL, tail = weight_G[..., None], (1 - CONFIDENCE) / 2

    def below(value_L: np.ndarray) -> np.ndarray:
        return (weight_GL * special.ndtr((value_L[..., None, :] - mean_GL) / deviation_GL)).sum(-2)

    def quantile(probability: float) -> np.ndarray:
        low_L, high_L = mean_L - reach_L, mean_L + reach_L
        for _ in range(_HALVINGS):
            middle_L = (low_L + high_L) / 2
            is_below_L = below(middle_L) < probability
            low_L, high_L = np.where(is_below_L, middle_L, low_L), np.where(is_below_L, high_L, middle_L)
        return (low_L + high_L) / 2

    mean_L = (weight_GL * mean_GL).sum(-2)
    variance_L = (weight_GL * (deviation_GL**2 + (mean_GL - mean_L[..., None, :]) ** 2)).sum(-2)
    # No quantile is farther from the mean (Cantelli's inequality).
    reach_L = np.sqrt(variance_L * (1 - tail) / tail)
    return Effect(mean_L, quantile(tail), quantile(1 - tail), below(np.zeros_like(mean_L)))


def _posterior(
    effects_N: np.ndarray, errors_NN: np.ndarray, distances_N: np.ndarray, at_L: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean and standard deviation (..., G, L) of the effect at each point of the grid, and weights (..., G)."""
    N, places = len(distances_N), np.concatenate([distances_N, at_L])
    scale_G, slope_G, deviation_G, prior_G = (each.reshape(-1, 1, 1) for each in prior_grid())
    prior = scale_G * prior_covariance(places, slope_G, deviation_G)
    covariance_GNN = prior[:, :N, :N] + errors_NN[..., None, :, :]
    whitened = np.linalg.inv(np.linalg.cholesky(covariance_GNN))
    known_GNL = whitened @ prior[:, :N, N:]
    effect_GN = (whitened @ effects_N[..., None, :, None])[..., 0]
    mean_GL = (known_GNL * effect_GN[..., None]).sum(-2)
    variance_GL = np.diagonal(prior[:, N:, N:], axis1=-2, axis2=-1) - (known_GNL**2).sum(-2)
    log_G = np.log(np.diagonal(whitened, axis1=-2, axis2=-1)).sum(-1) - (effect_GN**2).sum(-1) / 2
    log_G = log_G + np.log(prior_G[:, 0, 0])
    weight_G = np.exp(log_G - log_G.max(-1, keepdims=True))
    return mean_GL, np.sqrt(np.maximum(variance_GL, 1e-18)), weight_G / weight_G.sum(-1, keepdims=True)


def prior_grid() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns A^2, the variances of slope and deviation in units of it, and the probability, of each point (G,)."""
    names = (_SCALES, _SLOPES, _DEVIATIONS)
    scale, slope, deviation = (each.reshape(-1) ** 2 for each in np.meshgrid(*names, indexing="ij"))
    weights = np.broadcast_to(_DEVIATION_WEIGHTS, tuple(map(len, names))).reshape(-1)
    return scale, slope, deviation, weights / weights.sum()


def prior_covariance(places_L: np.ndarray, slope: np.ndarray | float, deviation: np.ndarray | float) -> np.ndarray:
    """Returns the covariance (..., L, L) of effects at places along the compute, in units of A^2; 0 is the target.

    Args:
        slope, deviation: variances of b and of the deviation of a size, in the same units.
    """
    one, other = places_L[:, None], places_L[None, :]
    is_other = (one != 0) & (other != 0)
    walk = np.where(one * other > 0, np.minimum(abs(one), abs(other)), 0.0) / _STEP
    # The target's own deviation enters all sizes alike, since a is the effect there with its deviation.
    deviates = np.where(is_other, walk + 1 + (one == other), 0.0)
    return 1 + slope * one * other + deviation * deviates


class TransferVerdict(Enum):
    """What becomes of a change's effect at the target."""

    TRANSFERS = "TRANSFERS"
    FADES = "FADES"
    REVERSES = "REVERSES"
    UNKNOWN = "UNKNOWN"


class Prediction(NamedTuple):
    """What is known about a change at the target, before the verdict."""

    distances: Sequence[float]
    """log(compute / compute of the target) of each size, in ascending order."""
    smallest: Effect
    largest: Effect
    """`smallest`, `largest`: the effect at the smallest and the largest size, estimated from all sizes."""
    target: Effect
    margin: float
    """Bits per byte within which two arms count as equal at the target; NaN if unknown."""

    @property
    def same_sign(self) -> float:
        """The probability that the effect has the same sign at the target as at the smallest size."""
        return self.target.below if self.smallest.mean < 0 else 1 - self.target.below


def is_within_reach(first: Any, last: Any) -> Any:
    """Returns whether a target is no farther beyond the sizes than they span, given the distances of first and last.

    A law that breaks at some size looks like any other until the break is among the sizes.
    """
    # If one law in twenty breaks somewhere, up to 4.5 % of the verdicts within reach are wrong, by
    # tools/simulated_transfer.py.
    return np.maximum(-last, first) <= (last - first) * (1 + 1e-9)


def decide(found: Prediction) -> tuple[TransferVerdict, str]:
    """Returns the word and its reason, by the first of these that holds.

    UNKNOWN: fewer than three sizes; the target lies farther above the largest size, or below the smallest, than these
    lie apart; or the interval of the effect at the smallest size contains 0.

    FADES: the interval at the target lies within the margin, and the effect at the smallest size is larger than it.

    TRANSFERS: the interval at the target lies on the side of 0 of the effect at the smallest size.

    REVERSES: it lies on the other side, and so does that at the largest size: no trend alone reverses an effect.

    UNKNOWN: in all other cases.

    Intervals contain the effect with a probability of 95 %; that at the smallest size is by all sizes together.
    """
    (mean, low, high, _), target = found.smallest, found.target
    sizes, first, last = len(found.distances), found.distances[0], found.distances[-1]
    if sizes < FEWEST_SIZES:
        return TransferVerdict.UNKNOWN, f"{sizes} of at least {FEWEST_SIZES} sizes: fewer show no trend"
    if not is_within_reach(first, last):
        apart, beyond = (f"{math.exp(x):.3g} x" for x in (last - first, max(-last, first)))
        far = f"the target has {beyond} that of the largest" if last < 0 else f"the smallest has {beyond} the target's"
        return TransferVerdict.UNKNOWN, f"the sizes span {apart} the compute, and {far}"
    if low <= 0 <= high:
        return TransferVerdict.UNKNOWN, "no effect is certain at the smallest size, so that none can be followed"
    if max(-target.low, target.high) < found.margin < abs(mean):
        return TransferVerdict.FADES, "what is left of the effect at the target is within the margin"
    if target.low > 0 if mean > 0 else target.high < 0:
        return TransferVerdict.TRANSFERS, "the effect at the target has the sign of that at the smallest size"
    if all(one.low > 0 if mean < 0 else one.high < 0 for one in (found.largest, target)):
        reason = "the effect at the largest size and at the target has the other sign than at the smallest"
        return TransferVerdict.REVERSES, reason
    reason = f"the effect at the target has the same sign with a probability of {found.same_sign:.0%}"
    return TransferVerdict.UNKNOWN, reason
