"""The rule by which a change is kept, reverted or asked again: written down before, printed with the numbers."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from jaxformer.ablation.cost import Cost
from jaxformer.config import Bounds, NonNegativeFloat, check_fields
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.power import seeds_needed
from jaxformer.statistics.significance import LOOK_ALPHA, LOOKS

Share = Annotated[float, Bounds(above=0, below=1)]


class Word(enum.Enum):
    """What is decided."""

    KEEP = "KEEP"
    REVERT = "REVERT"
    UNDECIDED = "UNDECIDED"
    CHEAPER = "EQUIVALENT BUT CHEAPER"
    EQUIVALENT = "EQUIVALENT"
    NOT_COMPARED = "NOT COMPARED"


@dataclass(frozen=True)
class Rule:
    """Thresholds of the decision."""

    alpha: Share = LOOK_ALPHA
    """Two-sided level of each look; the default is that of at most three looks, after 3, 5 and 8 seeds."""
    margin: NonNegativeFloat = 0.0
    """Bits per byte within which two models are called equal; 0 for the noise floor, the standard deviation of the
    parent's own seeds.
    """
    power: Share = 0.8
    """Probability with which the further seeds that are asked for would decide an effect as large as the one seen."""
    guard_alpha: Share = 0.05
    """Level, over all tasks together (Holm 1979), at which a task that is worse speaks against a change."""
    cheaper: Share = 0.02
    """Share of the time or of the parameters that an equal model must save to be worth its change."""
    q: Share = 0.05
    """Share of false ones among a study's kept changes that is accepted (Benjamini & Hochberg 1995)."""

    def __post_init__(self):
        check_fields(self, "rule")

    def describe(self, margin: float) -> str:
        """Returns the rule in words, with the margin that it comes to; NaN where it is a noise floor not known yet."""
        within = "the noise floor, which one seed does not show" if math.isnan(margin) else f"±{margin:.4f}"
        return (
            f"Difference of validation bits per byte, variant minus parent, with its {1 - self.alpha:.1%} interval "
            f"over seeds and documents, looked at after {', '.join(map(str, LOOKS))} seeds. KEEP: all of it below 0, "
            f"no task worse (Holm, {self.guard_alpha:g}), worth its time, and q at most {self.q:g} in the study. "
            f"REVERT: all of it above 0, or a run that failed. EQUIVALENT: 0 is in it, and all of it is within {within}"
            f"; BUT CHEAPER, even where it is worse by less than that, if {self.cheaper:.0%} of the time or the "
            "parameters are saved. UNDECIDED: otherwise."
        )


class Verdict(NamedTuple):
    """What is decided, and why."""

    word: Word
    reason: str
    """One sentence."""
    more_seeds: int | None = 0
    """More seeds that would probably decide, where it is undecided; None where no number within reach would."""
    more_hours: float = 0.0
    """Device hours of those."""


def decide(
    difference: Difference,
    *,
    seeds: int,
    rule: Rule,
    margin: float,
    cost: Cost,
    worth: float,
    worse_tasks: Sequence[str] = (),
    parent_seeds: int = 0,
) -> Verdict:
    """Returns the verdict on a difference of bits per byte.

    Args:
        seeds: that both arms have.
        worth: what the gain is worth in tokens: the parent needs so many times the variant's for the same loss; NaN
            where that is not known.
        worse_tasks: names of those that speak against the change.
        parent_seeds: runs of the parent that there are.
    """
    low, high = difference.interval(1 - rule.alpha)
    told = f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    if seeds < LOOKS[0]:
        asked = _more(LOOKS[0], seeds, cost, parent_seeds)
        return Verdict(Word.UNDECIDED, f"{told}: the first look is after {LOOKS[0]} seeds", *asked)
    worse = f"worse at {' and '.join(worse_tasks)}: look at the items" if worse_tasks else ""
    if -margin < low and high < margin and high >= 0:
        if saved := _saving(cost, rule):
            if worse:
                return Verdict(Word.UNDECIDED, f"{told} is equal, {saved}, but {worse}", None)
            return Verdict(Word.CHEAPER, f"{told} is equal, {saved}")
        if low <= 0:
            return Verdict(Word.EQUIVALENT, f"{told} is equal, and not cheaper: the parent stays")
    if low > 0:
        return Verdict(Word.REVERT, f"{told} is worse")
    if high < 0:
        if worse:
            return Verdict(Word.UNDECIDED, f"{told} is better, but {worse}", None)
        if (is_unknown := math.isnan(worth)) and cost.time_interval[0] > 1 + rule.cheaper:
            times = f"in {cost.time_per_token:.2f} x the time, and what it is worth is not known"
            return Verdict(Word.UNDECIDED, f"{told} is better, {times}: train the parent as long to decide", None)
        if not is_unknown and cost.time_interval[0] > worth:
            times = f"worth {worth:.2f} x the tokens, but {cost.time_per_token:.2f} x the time"
            return Verdict(Word.UNDECIDED, f"{told} is better, {times}: train the parent as long to decide", None)
        return Verdict(Word.KEEP, f"{told} is better")
    if seeds >= LOOKS[-1]:
        return Verdict(Word.UNDECIDED, f"{told} after {seeds} seeds, the last look: the parent stays", None)
    variance = difference.seed_variance * seeds
    needed = seeds_needed(
        difference.mean,
        math.sqrt(variance),
        alpha=rule.alpha,
        wanted_power=rule.power,
        item_variance=difference.item_variance,
        most=100,
    )
    equal = _seeds_to_be_equal(difference, variance, margin, rule)
    options = [number for number in (needed, equal) if number is not None]
    if not options:
        return Verdict(Word.UNDECIDED, f"{told}: not even 100 seeds would tell it from 0 or from the margin", None)
    if min(options) > LOOKS[-1]:
        beyond = f"it would take about {min(options)} seeds, beyond the last look: the parent stays"
        return Verdict(Word.UNDECIDED, f"{told}: {beyond}", None)
    look = next(look for look in LOOKS if look > seeds and look >= min(options))
    return Verdict(Word.UNDECIDED, told, *_more(look, seeds, cost, parent_seeds))


def _saving(cost: Cost, rule: Rule) -> str:
    """Returns by what an equal model is cheaper, in words; '' if by nothing that is sure and large enough."""
    if 1 - cost.time_interval[1] >= rule.cheaper:
        return f"in {cost.time_per_token:.3f} x the time per token"
    low, high = cost.time_interval
    if 1 - cost.parameters >= rule.cheaper and low <= 1 and math.isfinite(high):
        return f"with {cost.parameters:.3f} x the parameters"
    return ""


def _seeds_to_be_equal(difference: Difference, variance: float, margin: float, rule: Rule) -> int | None:
    """Returns the seeds at which the interval would fit into the margin if the mean stays, at most 100; or None."""
    for seeds in range(2, 101):
        known = difference._replace(seed_variance=variance / seeds)
        if known.lies_within(margin, 1 - rule.alpha):
            return seeds
    return None


def _more(wanted: int, seeds: int, cost: Cost, parent_seeds: int) -> tuple[int, float]:
    """Returns how many more seeds there are to a number, and the device hours of both arms' missing runs."""
    more = max(1, wanted - seeds)
    missing_parents = max(0, seeds + more - parent_seeds)
    return more, more * cost.device_hours + missing_parents * cost.parent_device_hours
