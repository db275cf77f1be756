"""The rule that keeps or reverts a change or leaves it undecided: fixed before the runs, printed with its numbers."""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from jaxformer.ablation.cost import Cost
from jaxformer.config import Bounds, NonNegativeFloat, check_fields
from jaxformer.host.docstrings import docstring
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.prediction import predict
from jaxformer.statistics.significance import INTERIM_SEEDS, interim_level, next_analysis
from jaxformer.statistics.variance_prior import VariancePrior

Share = Annotated[float, Bounds(above=0, below=1)]


class Word(enum.Enum):
    """The decision."""

    KEEP = "KEEP"
    REVERT = "REVERT"
    UNDECIDED = "UNDECIDED"
    CHEAPER = "EQUIVALENT BUT CHEAPER"
    EQUIVALENT = "EQUIVALENT"
    NOT_COMPARED = "NOT COMPARED"


@dataclass(frozen=True)
class Rule:
    """Thresholds of the decision."""

    equal_tokens: Share = 0.02
    """Two models count as equal within the value of this share of the tokens, on the parent's own loss curve."""
    margin: NonNegativeFloat = 0.0
    """Bits per byte within which two models count as equal instead; 0 for the value of `equal_tokens`."""
    power: Share = 0.8
    """Probability of a decision for which a number of seeds is advised."""
    min_power: Share = 0.2
    """Probability of KEEP by the last interim analysis below which no further seeds are advised."""
    guard_alpha: Share = 0.05
    """Level, over all tasks together (Holm 1979), at which a worse task counts against a change."""
    cheaper: Share = 0.02
    """Share of the time or of the parameters that an equal model must save to be worth its change."""
    q: Share = 0.05
    """Accepted share of false ones among the kept changes of a parent (Benjamini & Hochberg 1995)."""

    def __post_init__(self):
        check_fields(self, "rule")

    def describe(self) -> str:
        """Returns in words what the decision is based on."""
        margin = f"what {self.equal_tokens:.0%} of the tokens are worth on the parent's own loss curve"
        return (
            "The difference of validation bits per byte, variant minus parent, decides; negative is better. Both have "
            "the parent's learning rate or, where a note says so, each its best one. With a probability of 95%, all "
            f"intervals together, over seeds and documents, after {', '.join(map(str, INTERIM_SEEDS))} seeds contain "
            "the true difference. "
            f"Two models count as equal within the margin: {f'±{self.margin:g}' if self.margin else margin}."
        )

    def steps(self) -> list[str]:
        """Returns the rules in words; the first that holds decides."""
        return [" ".join(docstring(rule).format(rule=self).split()) for rule in (*RULES, kept_by_chance)]


class Measured(NamedTuple):
    """What is known about a variant compared with its parent."""

    difference: Difference
    """Difference of validation bits per byte, variant minus parent."""
    seeds: int
    """Seeds that both have."""
    margin: float
    """Bits per byte within which they count as equal; NaN if unknown."""
    cost: Cost
    worth: float
    """Worth of the gain in tokens: the parent needs so many times the variant's for the same loss; NaN if the parent's
    curve does not show it.
    """
    prior: VariancePrior | None = None
    """Prior for the variance of the difference."""
    worse_tasks: tuple[str, ...] = ()
    """Names of tasks at which the variant is worse, at `Rule.guard_alpha`."""
    failures: str = ""
    """How runs of the variant failed where the parent's did not, in words; '' if none did."""
    parent_seeds: int = 0
    """Seeds of the parent."""
    runs_per_seed: int = 1
    """Runs of each arm for a further seed."""
    leaves_out: bool = False
    """Whether a kept change is left out, so that it is useful to know that this is worse."""

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the difference at the level of this interim analysis."""
        return self.difference.interval(1 - interim_level(self.seeds))

    @property
    def is_equal(self) -> bool:
        """Whether the two differ by less than the margin, or the variant is better, but by less than that."""
        low, high = self.interval
        return (-self.margin < low and high < self.margin) or (high < 0 and self.difference.mean > -self.margin)

    def until_next(self) -> tuple[int | None, float]:
        """Returns how many more seeds the next interim analysis needs, and the device hours of both arms' missing runs.

        (None, 0) after the last.
        """
        if (seeds := next_analysis(self.seeds)) is None:
            return None, 0.0
        more, missing_parents = seeds - self.seeds, max(0, seeds - self.parent_seeds)
        hours = more * self.cost.device_hours + missing_parents * self.cost.parent_device_hours
        return more, self.runs_per_seed * hours

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"


class Verdict(NamedTuple):
    """A decision and its reason."""

    word: Word
    reason: str
    """One sentence."""
    more_seeds: int | None = 0
    """More seeds that may decide, if undecided; None if the reason advises something else."""
    more_hours: float = 0.0
    """Their device hours."""


def decide(found: Measured, rule: Rule) -> Verdict:
    """Returns the verdict of the first of `RULES` that holds."""
    return next(verdict for each in RULES if (verdict := each(found, rule)))


def depends_on_time(found: Measured, rule: Rule) -> bool:
    """Returns whether the verdict, or the seeds that it advises, depend on the time per token."""
    ratios = (1e-3, 1.0, 1e3)
    costs = [found.cost._replace(time_per_token=ratio, time_interval=(ratio, ratio)) for ratio in ratios]
    verdicts = [decide(found._replace(cost=cost), rule) for cost in costs]
    return len({(one.word, one.more_seeds) for one in verdicts}) > 1


# The rules. Each returns a verdict if it holds, else None; `Rule.describe` prints its docstring.


def failed(found: Measured, rule: Rule) -> Verdict | None:
    """REVERT: a run of the variant failed on a seed on which the parent's did not."""
    if found.failures:
        return Verdict(Word.REVERT, f"{found.difference.mean:+.4f}, but {found.failures}")


def too_few_seeds(found: Measured, rule: Rule) -> Verdict | None:
    """UNDECIDED: there are fewer seeds than the first interim analysis takes."""
    if found.seeds < INTERIM_SEEDS[0]:
        reason = f"{found}: the first interim analysis is after {INTERIM_SEEDS[0]} seeds"
        return Verdict(Word.UNDECIDED, reason, *found.until_next())


def worse_at_a_task(found: Measured, rule: Rule) -> Verdict | None:
    """UNDECIDED: it would be EQUIVALENT BUT CHEAPER or KEEP, but is worse at a task (at the level
    {rule.guard_alpha:g} over all tasks, by Holm's method).
    """
    if found.worse_tasks and (verdict := cheaper(found, rule) or better(found, rule)):
        tasks = " and ".join(found.worse_tasks)
        advice = "read its items, and train more seeds to see whether it is chance"
        if next_analysis(found.seeds) is None:
            advice = "read its items, and keep the change by hand if nothing is lost there"
        reason = f"{verdict.reason}, but worse at {tasks}: {advice}"
        return Verdict(Word.UNDECIDED, reason, *found.until_next())


def cheaper(found: Measured, rule: Rule) -> Verdict | None:
    """EQUIVALENT BUT CHEAPER: the interval lies within the margin, or it lies below 0 and the difference is smaller
    than the margin; and by a measurement, {rule.cheaper:.0%} of the time per token is surely saved, or as much of the
    parameters without taking as much more time.
    """
    if found.is_equal and (saving := _saving(found.cost, rule)):
        return Verdict(Word.CHEAPER, f"{found} is equal, {saving}")


def worse(found: Measured, rule: Rule) -> Verdict | None:
    """REVERT: the interval lies above 0."""
    if found.interval[0] > 0:
        return Verdict(Word.REVERT, f"{found} is worse")


def equivalent(found: Measured, rule: Rule) -> Verdict | None:
    """EQUIVALENT: the difference is as for EQUIVALENT BUT CHEAPER, but no saving is sure, or the time not measured."""
    if found.is_equal:
        what = "is better by too little to matter" if found.interval[1] < 0 else "is equal"
        cost = "not cheaper" if found.cost.is_timed else "its time per token was not measured"
        return Verdict(Word.EQUIVALENT, f"{found} {what}, and {cost}: the parent stays")


def not_worth_its_time(found: Measured, rule: Rule) -> Verdict | None:
    """UNDECIDED: the interval lies below 0, but by a measurement a token surely takes longer by a larger factor than
    the gain is worth in tokens by the slope of the parent's loss curve; or, where that does not show it, by more than
    {rule.cheaper:.0%}.
    """
    is_unknown, (low, high) = math.isnan(found.worth), found.cost.time_interval
    is_slower = low > (1 + rule.cheaper if is_unknown else found.worth)
    if is_slower and (verdict := better(found, rule)):
        ratio = f"{found.cost.time_per_token:.2f}"
        times = f"takes {ratio} x the time [{low:.2f}, {high:.2f}]"
        worth = "its worth in tokens is not known" if is_unknown else f"is worth {found.worth:.2f} x the tokens"
        advice = f"train the parent on {ratio} x its tokens, as long, and keep the change if it is still better"
        return Verdict(Word.UNDECIDED, f"{verdict.reason}, but {times} and {worth}: {advice}", None)


def better(found: Measured, rule: Rule) -> Verdict | None:
    """KEEP: the interval lies below 0, and the difference is larger than the margin."""
    if found.interval[1] < 0 and not found.is_equal:
        return Verdict(Word.KEEP, f"{found} is better")


def after_the_last_analysis(found: Measured, rule: Rule) -> Verdict | None:
    """UNDECIDED: this was the last analysis, and the parent stays."""
    if next_analysis(found.seeds) is None:
        reason = f"{found} after {found.seeds} seeds, the last analysis: the parent stays"
        return Verdict(Word.UNDECIDED, reason, None)


def more_seeds(found: Measured, rule: Rule) -> Verdict:
    """UNDECIDED: in all other cases, until the next analysis. The reason names the number of seeds by which it is
    decided with a probability of {rule.power:.0%}. The parent stays where KEEP by the last analysis has a probability
    below {rule.min_power:.0%}; for a variant that saves time or parameters, or that leaves out a kept change, the
    same holds of any decision.
    """
    prospects = predict(found.difference, found.seeds, found.margin, found.prior)
    last, is_open = prospects[-1], found.leaves_out or bool(_saving(found.cost, rule))
    end, useful = ("a decision", last.decided) if is_open else ("KEEP", last.kept)
    if useful < rule.min_power:
        probability = f"of {useful:.0%}" if useful >= 0.005 else "below 1%"
        reason = f"{found}: even with {last.seeds} seeds {end} has a probability {probability}: the parent stays"
        return Verdict(Word.UNDECIDED, reason, None)
    likely = next((one for one in prospects if one.decided >= rule.power), last)
    reason = f"{found}: decided by {likely.seeds} seeds with a probability of {likely.decided:.0%}"
    reason += f", and KEEP by {last.seeds} seeds with {last.kept:.0%}"
    return Verdict(Word.UNDECIDED, reason, *found.until_next())


RULES: tuple[Callable[[Measured, Rule], Verdict | None], ...] = (
    failed,
    too_few_seeds,
    worse_at_a_task,
    cheaper,
    worse,
    equivalent,
    not_worth_its_time,
    better,
    after_the_last_analysis,
    more_seeds,
)


def kept_by_chance(
    verdict: Verdict, q_value: float, rule: Rule, more_seeds: int | None, more_hours: float
) -> Verdict | None:
    """UNDECIDED instead of KEEP, until the next interim analysis: the q-value over all questions about the parent is
    above {rule.q:g}.
    """
    if verdict.word is Word.KEEP and q_value > rule.q:
        reason = f"{verdict.reason}, but among so many questions it may be chance (q = {q_value:.2f})"
        if more_seeds is None:
            reason += ", and this was the last analysis: the parent stays"
        return Verdict(Word.UNDECIDED, reason, more_seeds, more_hours)


def _saving(cost: Cost, rule: Rule) -> str:
    """Returns in words what an equal model saves; '' if no saving is sure and large enough."""
    if 1 - cost.time_interval[1] >= rule.cheaper:
        return f"in {cost.time_per_token:.3f} x the time per token"
    low, high = cost.time_interval
    if 1 - cost.parameters >= rule.cheaper and low <= 1 and high < 1 + rule.cheaper:
        return f"with {cost.parameters:.3f} x the parameters"
    return ""
