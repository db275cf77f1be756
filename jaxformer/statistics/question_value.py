"""What asking a question is worth: how the rule would decide it, what a kept gain saves, and what the answer costs.

Axes: P path, a simulated course of a question; S further seed; E true effect; D point of a distribution of effects; any
axes may lead.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from jaxformer.statistics.expectations import Belief
from jaxformer.statistics.paired_difference import Difference, t_quantile
from jaxformer.statistics.prediction import half_widths
from jaxformer.statistics.significance import INTERIM_SEEDS, interim_level
from jaxformer.statistics.variance_prior import VariancePrior, moderate

_PATHS, _POINTS, _EFFECTS, _REACH = 1000, 41, 81, 12.0

# No saving is larger, whatever a belief's tail says: beyond a factor of e the slope of a loss curve shows nothing.
_LARGEST_LOGARITHM = 1.0


class Noise(NamedTuple):
    """What hides an effect; bits per byte."""

    deviation: float
    """Standard deviation of one seed's paired difference."""
    margin: float
    """Within which two arms count as equal."""
    item_variance: float = 0.0
    """Of the mean by the choice of documents, which further seeds do not make smaller."""
    prior: VariancePrior | None = None
    """Of the variance of one seed's difference, by other comparisons with the parent."""


class Begun(NamedTuple):
    """The seeds of a question that is undecided; none of one that is new."""

    seeds: int = 0
    mean: float = 0.0
    variance: float = 0.0
    """Of one seed's difference, by these seeds."""


NEW = Begun()


class Followed(NamedTuple):
    """How courses of a question end."""

    kept_P: np.ndarray
    seeds_P: np.ndarray
    mean_P: np.ndarray
    """What was measured at the end, with its `error_P`."""
    error_P: np.ndarray


def follow(difference_PS: np.ndarray, noise: Noise, begun: Begun = NEW, *, min_power: float = 0.2) -> Followed:
    """Returns how the rule ends questions, by the losses alone: analysed at each of `INTERIM_SEEDS` that is reached.

    One ends when it is kept, reverted or equal, after the last seed that there is, and where its probability of being
    kept at the last analysis, by a flat prior of the effect, is below `min_power`. Time, tasks and the q-value, which
    may hold a gain back, are not counted.
    """
    documents = Difference(0.0, 0.0, math.inf, noise.item_variance)
    most, open_P = begun.seeds + difference_PS.shape[-1], np.ones(difference_PS.shape[:-1], bool)
    kept_P, seeds_P = np.zeros_like(open_P), np.full(open_P.shape, begun.seeds)
    mean_P, error_P = np.full(open_P.shape, begun.mean), np.full(open_P.shape, np.inf)
    for seeds in (each for each in INTERIM_SEEDS if begun.seeds < each <= most):
        new_PS = difference_PS[..., : seeds - begun.seeds]
        now_P = (begun.seeds * begun.mean + new_PS.sum(-1)) / seeds
        squares_P = begun.variance * max(begun.seeds - 1, 0) + ((new_PS - now_P[..., None]) ** 2).sum(-1)
        squares_P += begun.seeds * (begun.mean - now_P) ** 2
        variance_P = squares_P / (seeds - 1)
        width_P = half_widths(variance_P, seeds, noise.prior, documents)
        variance_P, df = moderate(variance_P, seeds - 1.0, noise.prior) if noise.prior else (variance_P, seeds - 1.0)
        mean_P = np.where(open_P, now_P, mean_P)
        error_P = np.where(open_P, np.sqrt(variance_P / seeds + noise.item_variance), error_P)
        seeds_P = np.where(open_P, seeds, seeds_P)
        low_P, high_P = now_P - width_P, now_P + width_P
        equal_P = ((low_P > -noise.margin) & (high_P < noise.margin)) | ((high_P < 0) & (now_P > -noise.margin))
        kept_P |= open_P & (high_P < 0) & ~equal_P
        open_P &= (low_P <= 0) & (high_P >= 0) & ~equal_P
        open_P &= _kept_at_last(now_P, variance_P, df, seeds, noise) >= min_power
    return Followed(kept_P, seeds_P, mean_P, error_P)


def _kept_at_last(mean_P: np.ndarray, variance_P: np.ndarray, df: float, seeds: int, noise: Noise) -> np.ndarray:
    """Returns the predictive probability that the last analysis keeps it: `prediction.predict` without its paths."""
    last, level = INTERIM_SEEDS[-1], interim_level(INTERIM_SEEDS[-1])
    if seeds >= last:
        return np.zeros_like(mean_P)
    of_seeds_P = t_quantile(df + last - seeds, level) ** 2 * variance_P / last
    needed_P = np.sqrt(of_seeds_P + t_quantile(math.inf, level) ** 2 * noise.item_variance)
    needed_P = np.maximum(needed_P, noise.margin)
    return special.stdtr(df, (-needed_P - mean_P) / np.sqrt(variance_P * (1 / seeds - 1 / last)))


class Power(NamedTuple):
    """What the rule does with each of a range of true effects."""

    effect_E: np.ndarray
    kept_E: np.ndarray
    """Probability of KEEP."""
    seeds_E: np.ndarray
    """Expected seeds at the end, those that it has begun with among them."""
    measured: tuple[float, float] | None = None
    """What has been measured already, and its standard error; None where nothing has."""


def power(noise: Noise, most_seeds: int, begun: Begun = NEW) -> Power:
    """Returns what the rule does with true effects up to 12 standard deviations of a seed's difference, by simulation.

    The draws are fixed.
    """
    effect_E = np.linspace(-_REACH, _REACH, _EFFECTS) * noise.deviation
    further = max(most_seeds - begun.seeds, 0)
    drawn_PS = np.random.default_rng(0).standard_normal((_PATHS, further)) * noise.deviation
    found = follow(effect_E[:, None, None] + drawn_PS, noise, begun)
    measured = None
    if begun.seeds:
        measured = begun.mean, math.sqrt(noise.deviation**2 / begun.seeds + noise.item_variance)
    return Power(effect_E, found.kept_P.mean(-1), found.seeds_P.mean(-1), measured)


class Stakes(NamedTuple):
    """What a gain is good for."""

    hours: float
    """Device hours of the runs to come, as the parent would take them."""
    slope: float
    """Fall of the parent's bits per byte for each factor e of the tokens."""
    complexity: float
    """Share of those hours that each changed field has to save before it is worth anything."""


class Prospect(NamedTuple):
    """What comes of asking a question; the last axis is of questions."""

    kept: np.ndarray
    """Probability of KEEP."""
    seeds: np.ndarray
    """Expected seeds."""
    saved: np.ndarray
    """Expected device hours that it saves of the runs to come, its complexity subtracted."""
    effect: np.ndarray
    """Mean effect, by the belief and by what has been measured."""


def prospect(belief: Belief, power: Power, stakes: Stakes, time_ratio: np.ndarray, fields: np.ndarray) -> Prospect:
    """Returns what asking questions is expected to bring.

    A kept effect lowers the loss as exp(-effect / slope) times the tokens would, and a token takes `time_ratio` times
    the time: a share 1 - time_ratio exp(effect / slope) of the hours is saved. What saves nothing is not kept, since
    the rule does not take a gain that costs more time than it is worth.
    """
    effect_D, weight_D = _points(belief, power.measured)
    exponent_D = np.clip(effect_D / stakes.slope, -_LARGEST_LOGARITHM, _LARGEST_LOGARITHM)
    saved_D = 1 - time_ratio[..., None] * np.exp(exponent_D)
    kept_D = np.interp(effect_D, power.effect_E, power.kept_E) * (saved_D > 0)
    kept = (weight_D * kept_D).sum(-1)
    seeds = (weight_D * np.interp(effect_D, power.effect_E, power.seeds_E)).sum(-1)
    share = (weight_D * kept_D * saved_D).sum(-1) - stakes.complexity * fields * kept
    return Prospect(kept, seeds, stakes.hours * share, (weight_D * effect_D).sum(-1))


def _points(belief: Belief, measured: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns effects and their weights: quantiles of a belief, or where something has been measured points around it.

    The weights of the latter are the belief's density times the likelihood.
    """
    quantile_D = (np.arange(_POINTS) + 0.5) / _POINTS
    if measured is None:
        return belief.quantiles(quantile_D), np.full(_POINTS, 1 / _POINTS)
    effect_D = np.broadcast_to(measured[0] + measured[1] * special.ndtri(quantile_D), (*belief.mean_N.shape, _POINTS))
    weight_D = belief.density(effect_D)
    return effect_D, weight_D / weight_D.sum(-1, keepdims=True)
