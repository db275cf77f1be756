"""The probability that further seeds decide a comparison, by simulation.

Axes: P path, a simulated continuation; K later interim analysis.
"""

from typing import NamedTuple

import numpy as np

from jaxformer.statistics.paired_difference import OWN_LEVEL, Difference, t_quantile
from jaxformer.statistics.significance import INTERIM_SEEDS, interim_level
from jaxformer.statistics.variance_prior import VariancePrior, exceeds, moderate

_PATHS = 4000


class Prospect(NamedTuple):
    """The probable state at a later interim analysis."""

    seeds: int
    decided: float
    """Probability that it is decided then or before: the interval excludes 0, or lies within the margin."""
    kept: float
    """Probability that it is decided for the better by more than the margin; part of `decided`."""


def predict(
    difference: Difference, seeds: int, margin: float, prior: VariancePrior | None = None, *, paths: int = _PATHS
) -> list[Prospect]:
    """Returns the predictive probabilities of each later interim analysis (Spiegelhalter, Freedman & Blackburn 1986).

    By simulation from the posterior under a flat prior of the effect: the variance of one seed's difference is drawn
    from a scaled inverse chi-square with its degrees of freedom, then the effect around the mean, then the further
    seeds. Documents are the same at all analyses: their part of the error widens the intervals and moves no mean. The
    draws are fixed, so that the same data give the same answer.

    Args:
        difference: after `seeds` seeds, at least two.
        margin: within which two arms count as equal; NaN if unknown.
        prior: with which the difference was moderated, if it was.
    """
    random = np.random.default_rng(0)
    df = difference.seed_degrees_of_freedom
    own = (difference.own[0] if difference.own else difference.seed_variance) * seeds
    scale_P = df / random.chisquare(df, paths) if np.isfinite(df) else np.ones(paths)
    deviation_P = np.sqrt(difference.seed_variance * seeds * scale_P)
    effect_P = difference.mean + deviation_P / np.sqrt(seeds) * random.standard_normal(paths)
    number, mean_P, squares_P = seeds, np.full(paths, difference.mean), np.full(paths, own * (seeds - 1))
    is_decided_P, is_kept_P, prospects = np.zeros(paths, bool), np.zeros(paths, bool), []
    for later in (later for later in INTERIM_SEEDS if later > seeds):
        new = later - number
        new_mean_P = effect_P + deviation_P / np.sqrt(new) * random.standard_normal(paths)
        squares_P = squares_P + number * new / later * (new_mean_P - mean_P) ** 2
        if new > 1:
            squares_P = squares_P + deviation_P**2 * random.chisquare(new - 1, paths)
        mean_P, number = (number * mean_P + new * new_mean_P) / later, later
        width_P = half_widths(squares_P / (later - 1), later, prior, difference)
        ends_P = ~is_decided_P & ((np.abs(mean_P) > width_P) | (np.abs(mean_P) + width_P < margin))
        is_kept_P |= ends_P & (mean_P + width_P < 0) & ~(mean_P > -margin)
        is_decided_P |= ends_P
        prospects.append(Prospect(later, float(is_decided_P.mean()), float(is_kept_P.mean())))
    return prospects


def half_widths(variance_P: np.ndarray, seeds: int, prior: VariancePrior | None, difference: Difference) -> np.ndarray:
    """Returns the half-widths of the intervals of an interim analysis, as in `Difference.interval`.

    Args:
        variance_P: of one seed's difference, by its own seeds.
        difference: its items' variance counts for all.
    """

    def widths(variance_P: np.ndarray, df: float, level: float) -> np.ndarray:
        items = difference.item_variance
        items *= t_quantile(difference.item_degrees_of_freedom, level) ** 2 if items else 1.0
        return np.sqrt(t_quantile(df, level) ** 2 * variance_P / seeds + items)

    level, df = interim_level(seeds), seeds - 1.0
    if prior is None:
        return widths(variance_P, df, level)
    moderated_P = np.maximum(widths(*moderate(variance_P, df, prior), level), widths(variance_P, df, OWN_LEVEL * level))
    return np.where(exceeds(variance_P, df, prior), widths(variance_P, df, level), moderated_P)
