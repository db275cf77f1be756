"""What asking a question is worth: how the rule would decide it, what a kept change saves, and what the answer costs.

Axes: P path, a simulated course of a question; S further seed; E true effect; D point of a distribution of effects; N
question; A analysis, one for each of `INTERIM_SEEDS`; further axes may come first.
"""

import functools
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

# No effect counts as a larger factor of the tokens, whatever the tail of its distribution: beyond a factor of e the
# slope of a loss curve shows nothing.
_LARGEST_LOGARITHM = 1.0


class ParentRuns(NamedTuple):
    """What runs of a parent and comparisons with them show; bits per byte."""

    deviation: float
    """Standard deviation of one seed's paired difference."""
    margin: float
    """Within which two arms count as equal."""
    slope: float
    """Fall of the parent's loss for each factor e of the tokens."""
    item_variance: float = 0.0
    """Variance of the mean by the choice of documents, which further seeds do not reduce."""
    prior: VariancePrior | None = None
    """Prior of the variance of one seed's difference, from other comparisons with the parent."""


class Question(NamedTuple):
    """What is known about a question before its first runs, or after seeds that left it undecided."""

    time_ratio: float = 1.0
    """Time of a run, relative to the parent's."""
    seeds: int = 0
    mean: float = 0.0
    """Mean difference over these seeds."""
    variance: float = 0.0
    """Variance of one seed's difference, from these seeds."""


NEW = Question()


class Followed(NamedTuple):
    """How courses of a question end."""

    kept_P: np.ndarray
    """Whether it is kept, by KEEP or by EQUIVALENT BUT CHEAPER."""
    seeds_P: np.ndarray
    mean_P: np.ndarray
    """The difference measured at the end; `error_P` is its error."""
    error_P: np.ndarray


def follow(
    difference_PS: np.ndarray,
    parent: ParentRuns,
    question: Question = NEW,
    *,
    min_power: float = 0.2,
    cheaper: float = 0.02,
) -> Followed:
    """Returns how the rule ends questions, by losses and time: analysed at each of `INTERIM_SEEDS` that is reached.

    A question ends when it is better, worse or equal, after the last seed, or when the probability that the last
    analysis keeps it (decides it, if it saves time) is below `min_power` under a flat prior of the effect. A better
    change is kept if its measured gain is worth at least its time in tokens; an equal one if it saves the share
    `cheaper` of the time. Savings of parameters alone, tasks and the q-value are not counted.
    """
    documents = Difference(0.0, 0.0, math.inf, parent.item_variance)
    worth_its_time, saves_time = -parent.slope * math.log(question.time_ratio), question.time_ratio <= 1 - cheaper
    most, open_P = question.seeds + difference_PS.shape[-1], np.ones(difference_PS.shape[:-1], bool)
    kept_P, seeds_P = np.zeros_like(open_P), np.full(open_P.shape, question.seeds)
    mean_P, error_P = np.full(open_P.shape, question.mean), np.full(open_P.shape, np.inf)
    for seeds in (each for each in INTERIM_SEEDS if question.seeds < each <= most):
        new_PS = difference_PS[..., : seeds - question.seeds]
        now_P = (question.seeds * question.mean + new_PS.sum(-1)) / seeds
        squares_P = question.variance * max(question.seeds - 1, 0) + ((new_PS - now_P[..., None]) ** 2).sum(-1)
        squares_P += question.seeds * (question.mean - now_P) ** 2
        variance_P, df = squares_P / (seeds - 1), seeds - 1.0
        width_P = half_widths(variance_P, seeds, parent.prior, documents)
        variance_P, df = moderate(variance_P, df, parent.prior) if parent.prior else (variance_P, df)
        mean_P = np.where(open_P, now_P, mean_P)
        error_P = np.where(open_P, np.sqrt(variance_P / seeds + parent.item_variance), error_P)
        seeds_P = np.where(open_P, seeds, seeds_P)
        low_P, high_P = now_P - width_P, now_P + width_P
        equal_P = ((low_P > -parent.margin) & (high_P < parent.margin)) | ((high_P < 0) & (now_P > -parent.margin))
        kept_P |= open_P & np.where(equal_P, saves_time, (high_P < 0) & (now_P <= worth_its_time))
        open_P &= (low_P <= 0) & (high_P >= 0) & ~equal_P
        open_P &= _useful_at_last(now_P, variance_P, df, seeds, parent, saves_time) >= min_power
    return Followed(kept_P, seeds_P, mean_P, error_P)


def _useful_at_last(
    mean_P: np.ndarray, variance_P: np.ndarray, df: float, seeds: int, parent: ParentRuns, saves_time: bool
) -> np.ndarray:
    """Returns the predictive probability that the last analysis keeps a question, or decides it if it saves time.

    As `prediction.predict`, but without the analyses before the last.
    """
    last, level = INTERIM_SEEDS[-1], interim_level(INTERIM_SEEDS[-1])
    if seeds >= last:
        return np.zeros_like(mean_P)
    of_seeds_P = t_quantile(df + last - seeds, level) ** 2 * variance_P / last
    width_P = np.sqrt(of_seeds_P + t_quantile(math.inf, level) ** 2 * parent.item_variance)
    scale_P = np.sqrt(variance_P * (1 / seeds - 1 / last))

    def below(bound_P: np.ndarray) -> np.ndarray:
        return special.stdtr(df, (bound_P - mean_P) / scale_P)

    if not saves_time:
        return below(-np.maximum(width_P, parent.margin))
    equal_P = np.clip(parent.margin - width_P, 0.0, width_P)
    return 1 - below(width_P) + below(-width_P) + below(equal_P) - below(-equal_P)


class Power(NamedTuple):
    """What the rule does with each of a range of true effects."""

    effect_E: np.ndarray
    kept_E: np.ndarray
    """Probability that it is kept."""
    ends_EA: np.ndarray
    """Probability that it ends at each analysis; the number of seeds includes those that exist already."""


@functools.lru_cache(maxsize=256)
def power(parent: ParentRuns, question: Question, most_seeds: int) -> Power:
    """Returns what the rule does with true effects, by simulation with fixed draws.

    They reach 12 standard deviations of a seed's difference beyond the margin, and beyond the effect that pays for its
    time.
    """
    reach = _REACH * parent.deviation + max(parent.margin, parent.slope * abs(math.log(question.time_ratio)))
    effect_E = np.linspace(-reach, reach, _EFFECTS)
    further = max(most_seeds - question.seeds, 0)
    drawn_PS = np.random.default_rng(0).standard_normal((_PATHS, further)) * parent.deviation
    found = follow(effect_E[:, None, None] + drawn_PS, parent, question)
    ends_EA = np.stack([(found.seeds_P == seeds).mean(-1) for seeds in INTERIM_SEEDS], -1)
    return Power(effect_E, found.kept_P.mean(-1), ends_EA)


class QuestionValue(NamedTuple):
    """The expected result of asking questions; the last axis is N unless a name shows another."""

    kept: np.ndarray
    """Probability that the change is kept."""
    ends_NA: np.ndarray
    """Probability that it ends at each analysis."""
    saved: np.ndarray
    """Share of the hours of future runs that is saved, minus the price of complexity."""
    effect: np.ndarray
    """Posterior mean."""
    low: np.ndarray
    high: np.ndarray
    """`low` and `high`: 10 % and 90 % quantiles of the effect's posterior."""

    @property
    def seeds(self) -> np.ndarray:
        """Expected seeds at the end."""
        return self.ends_NA @ np.array(INTERIM_SEEDS, np.float64)


def question_value(
    belief: Belief, parent: ParentRuns, question: Question, most_seeds: int, complexity: float
) -> QuestionValue:
    """Returns the expected value of asking questions that differ only in their beliefs.

    A kept effect lowers the loss like exp(-effect / slope) times the tokens, and a run takes `time_ratio` times the
    time: a share 1 - time_ratio exp(effect / slope) of the hours is saved. If noise keeps a change that is worth less
    than its time, this is below 0, and counts.

    Args:
        complexity: share of the hours that a kept change must save before it is worth anything.
    """
    decided, (effect_D, weight_D) = power(parent, question, most_seeds), _points(belief, parent, question)
    exponent_D = np.clip(effect_D / parent.slope, -_LARGEST_LOGARITHM, _LARGEST_LOGARITHM)
    saved_D = 1 - question.time_ratio * np.exp(exponent_D) - complexity
    kept_D = weight_D * np.interp(effect_D, decided.effect_E, decided.kept_E)
    ends = [(weight_D * np.interp(effect_D, decided.effect_E, end_E)).sum(-1) for end_E in decided.ends_EA.T]
    low, high = (_quantile(p, effect_D, weight_D) for p in (0.1, 0.9))
    expected = (kept_D * saved_D).sum(-1), (weight_D * effect_D).sum(-1)
    return QuestionValue(kept_D.sum(-1), np.stack(ends, -1), *expected, low, high)


def _points(belief: Belief, parent: ParentRuns, question: Question) -> tuple[np.ndarray, np.ndarray]:
    """Returns ascending effects and their weights: quantiles of a belief, or points around the measured effect.

    Points are weighted by the belief's density times the likelihood.
    """
    quantile_D = (np.arange(_POINTS) + 0.5) / _POINTS
    if not question.seeds:
        effect_D = belief.quantiles(quantile_D)
        return effect_D, np.full(effect_D.shape, 1 / _POINTS)
    error = math.sqrt(parent.deviation**2 / question.seeds + parent.item_variance)
    effect_D = np.broadcast_to(question.mean + error * special.ndtri(quantile_D), (*belief.mean_N.shape, _POINTS))
    weight_D = belief.density(effect_D)
    return effect_D, weight_D / weight_D.sum(-1, keepdims=True)


def _quantile(p: float, effect_D: np.ndarray, weight_D: np.ndarray) -> np.ndarray:
    """Returns a quantile of weighted, ascending effects, linear between the middles of their weights."""
    middle_D = weight_D.cumsum(-1) - weight_D / 2
    after_1 = np.clip((middle_D < p).sum(-1, keepdims=True), 1, _POINTS - 1)
    (begin_1, end_1), (low_1, high_1) = (
        [np.take_along_axis(values_D, after_1 + offset, -1) for offset in (-1, 0)] for values_D in (middle_D, effect_D)
    )
    return (low_1 + np.clip((p - begin_1) / (end_1 - begin_1), 0, 1) * (high_1 - low_1))[..., 0]


class RunCosts(NamedTuple):
    """Device hours of the runs of questions; numbers, or arrays with one number per question."""

    first_seeds: np.ndarray | int
    """Seeds at the next analysis."""
    until_first: np.ndarray | float
    """Hours of the runs of both arms that are missing until then."""
    per_seed: np.ndarray | float
    """Hours of the variant, for each further seed."""
    parent_per_seed: np.ndarray | float
    """Hours of the parent, for each further seed that it lacks."""
    parent_seeds: np.ndarray | int
    """Seeds that the parent has."""
    new_parent: np.ndarray | float
    """Hours of the first seeds of the new parent, if the change is kept."""

    def expected_hours(self, ends_NA: np.ndarray, kept: np.ndarray | float) -> np.ndarray:
        """Returns the expected device hours of questions, given the probabilities that they end at each analysis.

        `hours` of the expected seeds would be too few if the parent has more seeds than the first analysis takes.
        """
        return np.sum([ends_NA[..., a] * self.hours(seeds, kept) for a, seeds in enumerate(INTERIM_SEEDS)], 0)

    def hours(self, seeds: np.ndarray | int, kept: np.ndarray | float = 0.0) -> np.ndarray:
        """Returns the device hours up to a number of seeds, and of a new parent with the probability `kept`."""
        further = np.maximum(seeds - self.first_seeds, 0)
        lacking = np.maximum(seeds - np.maximum(self.first_seeds, self.parent_seeds), 0)
        runs = self.until_first + further * self.per_seed + lacking * self.parent_per_seed
        return runs + kept * self.new_parent
