"""The rule by which a change is kept, reverted or left undecided: fixed before the runs, printed with their numbers."""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from jaxformer.ablation.cost import Cost
from jaxformer.config import Bounds, NonNegativeFloat, check_fields
from jaxformer.host.docstrings import docstring
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.power import seeds_needed
from jaxformer.statistics.significance import INTERIM_ALPHA, INTERIM_SEEDS

# Seeds beyond which none are searched for.
_MOST_SEEDS = 100

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

    alpha: Share = INTERIM_ALPHA
    """Two-sided level of each interim analysis; the default is that of at most three, after 3, 5 and 8 seeds."""
    margin: NonNegativeFloat = 0.0
    """Bits per byte within which two models are called equal; 0 for the noise floor, the standard deviation of the
    parent's own seeds.
    """
    power: Share = 0.8
    """Probability with which the further seeds that are advised would decide an effect as large as the estimate."""
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
        preface = (
            f"Difference of validation bits per byte, variant minus parent, with its {1 - self.alpha:.1%} interval "
            f"over seeds and documents, analysed after {', '.join(map(str, INTERIM_SEEDS))} seeds. The first that "
            "holds decides."
        )
        rules = " ".join(map(docstring, (*RULES, kept_by_chance)))
        return f"{preface} {' '.join(rules.format(rule=self, within=within).split())}"


class Measured(NamedTuple):
    """What is known of a variant beside its parent."""

    difference: Difference
    """Difference of validation bits per byte, variant minus parent."""
    seeds: int
    """Seeds that both have."""
    margin: float
    """Bits per byte within which they count as equal; NaN where that is not known."""
    cost: Cost
    worth: float
    """What the gain is worth in tokens: the parent needs so many times the variant's for the same loss; NaN where that
    is not known.
    """
    worse_tasks: tuple[str, ...] = ()
    """Names of those at which the variant is worse, at `Rule.guard_alpha`."""
    failures: str = ""
    """How runs of the variant failed, in words; '' where none did."""
    parent_seeds: int = 0
    """Runs of the parent that there are."""


class Verdict(NamedTuple):
    """What is decided, and why."""

    word: Word
    reason: str
    """One sentence."""
    more_seeds: int | None = 0
    """More seeds that would probably decide, where it is undecided; None where no number within reach would."""
    more_hours: float = 0.0
    """Device hours of those."""


def decide(found: Measured, rule: Rule) -> Verdict:
    """Returns the verdict of the first of `RULES` that holds."""
    return next(verdict for each in RULES if (verdict := each(found, rule)))


# The rules. Each returns a verdict where it holds and None elsewhere, and its docstring is what `Rule.describe` prints.


def failed(found: Measured, rule: Rule) -> Verdict | None:
    """REVERT: a run of the variant failed."""
    if found.failures:
        return Verdict(Word.REVERT, f"{found.difference.mean:+.4f}, but {found.failures}")


def too_few_seeds(found: Measured, rule: Rule) -> Verdict | None:
    """UNDECIDED: there are fewer seeds than the first interim analysis takes."""
    if found.seeds < INTERIM_SEEDS[0]:
        reason = f"{_shown(found, rule)}: the first interim analysis is after {INTERIM_SEEDS[0]} seeds"
        return Verdict(Word.UNDECIDED, reason, *_until(INTERIM_SEEDS[0], found))


def worse_at_a_task(found: Measured, rule: Rule) -> Verdict | None:
    """UNDECIDED: equivalent but cheaper, or better, as below, but worse at a task (Holm, {rule.guard_alpha:g})."""
    if found.worse_tasks and (verdict := cheaper(found, rule) or better(found, rule)):
        tasks = " and ".join(found.worse_tasks)
        return Verdict(Word.UNDECIDED, f"{verdict.reason}, but worse at {tasks}: look at the items", None)


def cheaper(found: Measured, rule: Rule) -> Verdict | None:
    """EQUIVALENT BUT CHEAPER: the interval lies within {within}, not all of it below 0, and {rule.cheaper:.0%} of the
    time per token is surely saved, or of the parameters without surely taking more time.
    """
    saving = _saving(found.cost, rule)
    if _is_within_margin(found, rule) and _interval(found, rule)[1] >= 0 and saving:
        return Verdict(Word.CHEAPER, f"{_shown(found, rule)} is equal, {saving}")


def equivalent(found: Measured, rule: Rule) -> Verdict | None:
    """EQUIVALENT: the interval lies within {within} and contains 0."""
    low, high = _interval(found, rule)
    if _is_within_margin(found, rule) and low <= 0 <= high:
        return Verdict(Word.EQUIVALENT, f"{_shown(found, rule)} is equal, and not cheaper: the parent stays")


def worse(found: Measured, rule: Rule) -> Verdict | None:
    """REVERT: the interval lies above 0."""
    if _interval(found, rule)[0] > 0:
        return Verdict(Word.REVERT, f"{_shown(found, rule)} is worse")


def not_worth_its_time(found: Measured, rule: Rule) -> Verdict | None:
    """UNDECIDED: the interval lies below 0, but a token surely takes longer than the gain is worth: than the parent
    would take longer to the same loss, or by more than {rule.cheaper:.0%} where that is not known.
    """
    is_unknown = math.isnan(found.worth)
    is_slower = found.cost.time_interval[0] > (1 + rule.cheaper if is_unknown else found.worth)
    if is_slower and (verdict := better(found, rule)):
        ratio = f"{found.cost.time_per_token:.2f} x the time"
        times = f"worth {found.worth:.2f} x the tokens, but {ratio}"
        if is_unknown:
            times = f"in {ratio}, and what it is worth is not known"
        return Verdict(Word.UNDECIDED, f"{verdict.reason}, {times}: train the parent as long to decide", None)


def better(found: Measured, rule: Rule) -> Verdict | None:
    """KEEP: the interval lies below 0."""
    if _interval(found, rule)[1] < 0:
        return Verdict(Word.KEEP, f"{_shown(found, rule)} is better")


def after_the_last_analysis(found: Measured, rule: Rule) -> Verdict | None:
    """UNDECIDED: there is no further interim analysis, and the parent stays."""
    if found.seeds >= INTERIM_SEEDS[-1]:
        reason = f"{_shown(found, rule)} after {found.seeds} seeds, the last analysis: the parent stays"
        return Verdict(Word.UNDECIDED, reason, None)


def more_seeds(found: Measured, rule: Rule) -> Verdict:
    """UNDECIDED: otherwise, until the interim analysis that would decide with a probability of {rule.power:.0%} if the
    difference is as large as it seems; the parent stays if none would.
    """
    shown, needed = _shown(found, rule), _seeds_to_decide(found, rule)
    if needed is None:
        reason = f"{shown}: not even {_MOST_SEEDS} seeds would distinguish it from 0 or from the margin"
        return Verdict(Word.UNDECIDED, reason, None)
    if needed > INTERIM_SEEDS[-1]:
        reason = f"{shown}: it would take about {needed} seeds, beyond the last analysis: the parent stays"
        return Verdict(Word.UNDECIDED, reason, None)
    later = next(seeds for seeds in INTERIM_SEEDS if seeds > found.seeds and seeds >= needed)
    return Verdict(Word.UNDECIDED, shown, *_until(later, found))


RULES: tuple[Callable[[Measured, Rule], Verdict | None], ...] = (
    failed,
    too_few_seeds,
    worse_at_a_task,
    cheaper,
    equivalent,
    worse,
    not_worth_its_time,
    better,
    after_the_last_analysis,
    more_seeds,
)


def kept_by_chance(verdict: Verdict, q_value: float, rule: Rule) -> Verdict | None:
    """UNDECIDED instead of KEEP: the q-value among all comparisons of the study is above {rule.q:g}."""
    if verdict.word is Word.KEEP and q_value > rule.q:
        reason = f"{verdict.reason}, but among so many questions it may be chance (q = {q_value:.2f})"
        return Verdict(Word.UNDECIDED, reason, None)


def _interval(found: Measured, rule: Rule) -> tuple[float, float]:
    return found.difference.interval(1 - rule.alpha)


def _is_within_margin(found: Measured, rule: Rule) -> bool:
    return found.difference.lies_within(found.margin, 1 - rule.alpha)


def _shown(found: Measured, rule: Rule) -> str:
    low, high = _interval(found, rule)
    return f"{found.difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def _saving(cost: Cost, rule: Rule) -> str:
    """Returns by what an equal model is cheaper, in words; '' if by nothing that is sure and large enough."""
    if 1 - cost.time_interval[1] >= rule.cheaper:
        return f"in {cost.time_per_token:.3f} x the time per token"
    low, high = cost.time_interval
    if 1 - cost.parameters >= rule.cheaper and low <= 1 and math.isfinite(high):
        return f"with {cost.parameters:.3f} x the parameters"
    return ""


def _seeds_to_decide(found: Measured, rule: Rule) -> int | None:
    """Returns the fewest seeds that would probably show a difference, or that there is none; None if too many."""
    difference = found.difference
    variance = difference.seed_variance * found.seeds
    different = seeds_needed(
        difference.mean,
        math.sqrt(variance),
        alpha=rule.alpha,
        wanted_power=rule.power,
        item_variance=difference.item_variance,
        most=_MOST_SEEDS,
    )
    # If the mean stays.
    narrowed = ((n, difference._replace(seed_variance=variance / n)) for n in range(2, _MOST_SEEDS + 1))
    equal = next((n for n, each in narrowed if each.lies_within(found.margin, 1 - rule.alpha)), None)
    return min((n for n in (different, equal) if n is not None), default=None)


def _until(seeds: int, found: Measured) -> tuple[int, float]:
    """Returns how many more seeds there are to a number, and the device hours of both arms' missing runs."""
    more = max(1, seeds - found.seeds)
    missing_parents = max(0, found.seeds + more - found.parent_seeds)
    return more, more * found.cost.device_hours + missing_parents * found.cost.parent_device_hours
