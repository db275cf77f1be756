"""What a study found: each question with what is known of its answer, in words and numbers.

The table in a terminal, the page and the Markdown file show the same columns and sentences, which are written here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.cost import shapes_the_curve
from jaxformer.ablation.finished_runs import FinishedRun
from jaxformer.ablation.outcome import Outcome
from jaxformer.ablation.verdict import Word
from jaxformer.experiment.lineage import Resolved
from jaxformer.report.formatting import (
    NOTHING,
    expectation,
    interval_of,
    number,
    percent,
    probability,
    ratio,
    signed,
    with_error,
)
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.shrinkage import shrink
from jaxformer.statistics.significance import interim_level

EXPECTATION_HEADINGS = ("variant", "question", "expected", "source", "found", "outcome")


class Finding(NamedTuple):
    """A question of a study, and what is known of its answer."""

    resolved: Resolved
    question: str
    lineage: Mapping[str, Any]
    """Lineage as the runs recorded it, else as the file has it now: parents, change, consequences, bundle, expected,
    source.
    """
    comparison: Comparison | None
    """None where no run of it has ended."""
    runs: list[FinishedRun]
    """Runs that are finished."""
    interaction: Difference | None
    """Interaction of a merge."""
    hours: float
    """Device hours of all its runs that are finished or were stopped early."""
    shrunken: float = math.nan
    """Difference shrunken by what all comparisons owe to chance; NaN where that is not known."""
    confirmation: str = ""
    """What was answered when it was confirmed; '' where it was not."""

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.resolved.name

    @property
    def parent(self) -> str:
        """The first parent, which it is compared with."""
        return self.resolved.parents[0].name

    @property
    def is_merge(self) -> bool:
        """Whether it joins several variants."""
        return len(self.resolved.parents) > 1

    @property
    def word(self) -> Word:
        """What was decided."""
        return self.comparison.verdict.word if self.comparison else Word.NOT_COMPARED

    @property
    def difference(self) -> Difference | None:
        """Of validation bits per byte, variant minus parent; None where they were not compared."""
        return self.comparison.difference if self.comparison else None

    @property
    def level(self) -> float:
        """The level of its interim analysis, at which its intervals are shown."""
        return interim_level(len(self.comparison.seeds) if self.comparison else 0)

    @property
    def expected(self) -> tuple[float, float]:
        """The interval that was expected of the difference."""
        low, high = self.lineage["expected"]
        return float(low), float(high)


def collect_findings(outcome: Outcome) -> list[Finding]:
    """Returns what was found of each variant of a study, in its order."""
    comparisons = {one.variant: one for one in outcome.comparisons}
    findings = []
    for one in outcome.experiments[1:]:
        runs = outcome.runs.get(one.name, [])
        recorded = runs[0].record if runs else {}
        lineage = recorded.get("lineage", {})
        lineage = lineage if lineage.get("expected") else vars(one.lineage)
        question = recorded.get("question") or one.experiment.question
        interaction, hours = outcome.interactions.get(one.name), device_hours(outcome, one.name)
        comparison = comparisons.get(one.name)
        shrunken = shrink_difference(comparison.difference if comparison else None, outcome.spread)
        confirmation = outcome.confirmations.get(one.name, "")
        findings.append(Finding(one, question, lineage, comparison, runs, interaction, hours, shrunken, confirmation))
    return findings


def shrink_difference(difference: Difference | None, spread: float) -> float:
    """Returns a difference shrunken by the spread of all; NaN where one of them is not known."""
    if difference is None or not difference.seeds_counted or not math.isfinite(spread):
        return math.nan
    return shrink(difference.mean, difference.standard_error, spread)


def device_hours(outcome: Outcome, name: str) -> float:
    """Returns the device hours of an experiment's runs, at all rates, that are finished or were stopped early."""
    runs = [*outcome.runs.get(name, []), *outcome.tried.get(name, [])]
    return sum((run.device_hours for run in runs), outcome.lost_hours.get(name, 0.0))


def mean_accuracies(runs: Sequence[FinishedRun]) -> dict[str, float]:
    """Returns the mean accuracy of each task that all runs have."""
    names = [name for name in (runs[0].tasks if runs else ()) if all(name in run.tasks for run in runs)]
    return {name: float(np.mean([run.tasks[name].accuracy.mean() for run in runs])) for name in names}


def mean_bits_per_byte(runs: Sequence[FinishedRun]) -> str:
    """Returns the mean of runs."""
    return f"{float(np.mean([run.bits_per_byte for run in runs])):.4f}"


def task_names(outcome: Outcome) -> list[str]:
    """Returns the tasks of the study's parent, and others that were compared."""
    names = dict.fromkeys(mean_accuracies(outcome.runs[outcome.study.parent]))
    for one in outcome.comparisons:
        names |= dict.fromkeys(one.tasks)
    return list(names)


class Column(NamedTuple):
    """A column of numbers in the table of decisions."""

    heading: tuple[str, ...]
    """Lines of the heading."""
    cell: Callable[[Finding], tuple[str, ...]]
    """Returns the lines of the cell of a variant."""
    parent: str = ""
    """Cell of the study's parent."""
    terminal: tuple[str, ...] = ()
    """Heading, in a terminal, of each line of a cell; '' for a line that is not shown there."""


def decision_columns(outcome: Outcome) -> list[Column]:
    """Returns the columns between the verdict of a variant and its reason."""
    runs = outcome.runs[outcome.study.parent]
    accuracies, parent_hours = mean_accuracies(runs), device_hours(outcome, outcome.study.parent)
    return [
        Column(
            ("bits per byte ± error", "interval"),
            difference_and_interval,
            mean_bits_per_byte(runs),
            ("difference", "interval"),
        ),
        Column(("p", "q"), p_and_q, terminal=("", "q")),
        Column(("seeds",), seed_count, str(len(runs)), ("seeds",)),
        *(
            Column((f"{task} %",), partial(task_scores, task=task), percent(accuracies.get(task, math.nan)))
            for task in task_names(outcome)
        ),
        Column(("tokens", "time per token", "parameters"), ratios, "1 x", ("tokens", "time")),
        Column(("device", "hours"), lambda finding: (f"{finding.hours:.2f}",), f"{parent_hours:.2f}"),
    ]


def difference_and_interval(finding: Finding) -> tuple[str, str]:
    """Returns the difference with its standard error, and its interval."""
    if finding.difference is None:
        return NOTHING, NOTHING
    return with_error(finding.difference), interval_of(finding.difference, finding.level)


def p_and_q(finding: Finding) -> tuple[str, str]:
    """Returns the probability of so large a difference by chance, and that adjusted for all questions."""
    comparison, difference = finding.comparison, finding.difference
    if comparison is None or difference is None:
        return NOTHING, NOTHING
    p = difference.p_value if math.isfinite(difference.mean) else math.nan
    return probability(p), probability(comparison.q_value)


def seed_count(finding: Finding) -> tuple[str]:
    """Returns the number of seeds of the difference, or of the finished runs where there is none."""
    return (str(len(finding.comparison.seeds if finding.comparison and finding.difference else finding.runs)),)


def task_scores(finding: Finding, task: str) -> tuple[str, ...]:
    """Returns the accuracy in %, its difference ± error, and that of the right answers' bits per byte."""
    scores = finding.comparison.tasks.get(task) if finding.comparison else None
    if scores is None:
        return (NOTHING,)
    accuracy = f"{signed(100 * scores.accuracy.mean, 1)} ± {number(100 * scores.accuracy.standard_error, 1)}"
    return percent(scores.variant), accuracy, with_error(scores.gold_bits_per_byte, 3)


def ratios(finding: Finding) -> tuple[str, str, str]:
    """Returns the worth in tokens, the time per token and the parameters of a variant, each beside its parent's.

    The first is how many times the variant's tokens the parent needs for the same loss.
    """
    comparison = finding.comparison
    if comparison is None or comparison.cost is None:
        return NOTHING, NOTHING, NOTHING
    cost = comparison.cost
    return ratio(comparison.worth, 2), ratio(cost.time_per_token, 3), ratio(cost.parameters, 3)


def expectation_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """Returns what was expected and what came out, a variant a row, in the order of `EXPECTATION_HEADINGS`."""
    return [
        (
            finding.name,
            finding.question,
            expectation(finding.expected),
            finding.lineage["source"],
            difference_and_interval(finding)[0],
            compare_with_expectation(finding.difference, finding.expected, finding.level),
        )
        for finding in collect_findings(outcome)
    ]


def corpus_rows(finding: Finding) -> list[tuple[str, str, str]]:
    """Returns (corpus, difference, interval) where there are several corpora."""
    corpora = finding.comparison.corpora if finding.comparison else {}
    rows = [(name, with_error(one), interval_of(one, finding.level)) for name, one in corpora.items()]
    return rows if len(rows) > 1 else []


def compare_with_expectation(difference: Difference | None, expected: tuple[float, float], alpha: float) -> str:
    """Returns in words how a difference relates to the interval that it was expected in."""
    if difference is None:
        return "not known"
    low, high = expected
    if low <= difference.mean <= high:
        return "inside"
    word = "better" if difference.mean < low else "worse"
    lower, upper = difference.interval(1 - alpha)
    return f"{word} than expected" + (", but not surely" if lower <= high and upper >= low else "")


def reason(finding: Finding) -> str:
    """Returns why it is decided so, and what would decide."""
    if finding.comparison is None:
        return "no run of it has ended"
    verdict = finding.comparison.verdict
    if verdict.word is Word.UNDECIDED and verdict.more_seeds:
        seeds = f"{verdict.more_seeds} more seed{'s' * (verdict.more_seeds > 1)}"
        return f"{verdict.reason}; the next analysis takes {seeds} ({verdict.more_hours:.2f} device hours)"
    return verdict.reason


def notes(finding: Finding) -> list[str]:
    """Returns what to keep in mind: of flags only those that are not in the reason."""
    comparison = finding.comparison
    notes = [*comparison.flags, *comparison.notes] if comparison else []
    if finding.confirmation:
        notes.append(f"on fresh seeds: {finding.confirmation}")
    elif finding.word is Word.KEEP:
        notes.append("kept, not confirmed yet")
    current = finding.resolved.lineage.expected
    if current and finding.expected != tuple(map(float, current)):
        recorded = expectation(finding.expected)
        notes.append(f"the runs recorded the expectation {recorded}, the file now has {expectation(current)}")
    return [note for note in notes if note not in reason(finding)]


def equal_budget_readings(finding: Finding) -> list[str]:
    """Returns how the result reads at equal tokens, and at equal time."""
    comparison = finding.comparison
    if comparison is None or comparison.cost is None:
        return []
    worth, cost = comparison.worth, comparison.cost
    low, high = cost.time_interval
    time = f"{cost.time_per_token:.3f} [{low:.3f}, {high:.3f}]"
    if not math.isfinite(worth):
        why = "the curves have too few evaluations to say what the difference is worth"
        if shapes_the_curve(comparison.lineage):
            why = "what the difference is worth is not read off curves that the change itself shapes"
        known = [f"A token takes {time} x the parent's time."] if cost.is_timed else []
        return [f"At equal tokens, and at equal time: {why}.", *known]
    gain = "not known, since the time per token was not measured"
    if cost.is_timed:
        ends = f"{worth / cost.time_per_token:.2f} x [{worth / high:.2f}, {worth / low:.2f}]"
        gain = f"{worth:.2f} / {time} = {ends}, of which more than 1 is a gain; the interval is that of the time alone"
    return [
        f"At equal tokens: the parent needs {worth:.2f} x the variant's tokens for the same loss.",
        f"At equal time: {gain}.",
    ]


def describe_pairing(finding: Finding) -> list[str]:
    """Returns what the shared seeds saved, where there are enough of them to see."""
    pairing = finding.comparison.pairing if finding.comparison else math.nan
    text = (
        f"Pairing: from seed to seed the difference scatters {number(pairing, 2)} x as much as that of unpaired runs."
    )
    return [text] if math.isfinite(pairing) else []


def describe_shrunken(finding: Finding) -> list[str]:
    """Returns what is left of a difference that may have been chosen because it looked good."""
    if finding.difference is None or not math.isfinite(finding.shrunken):
        return []
    raw = signed(finding.difference.mean)
    return [f"Shrunken: {signed(finding.shrunken)} in place of {raw}, by what all comparisons owe to chance."]


def points(finding: Finding) -> list[str]:
    """Returns what there is beside the reason: how the result reads, whether a merge adds up, and notes."""
    interaction = [describe_interaction(finding.interaction, finding.level)] if finding.is_merge else []
    return [
        *describe_shrunken(finding),
        *equal_budget_readings(finding),
        *describe_pairing(finding),
        *interaction,
        *(f"Note: {note}" for note in notes(finding)),
    ]


def describe_interaction(interaction: Difference | None, alpha: float) -> str:
    """Returns whether the gains of a merge add up."""
    if interaction is None:
        return "Interaction: not known; it takes two seeds that all arms share."
    low, high = interaction.interval(1 - alpha)
    conclusion = "the gains add up, as far as can be seen"
    if high < 0:
        conclusion = "together they gain more than apart"
    elif low > 0:
        conclusion = "together they gain less than apart"
    return f"Interaction: {with_error(interaction)} {interval_of(interaction, alpha)}: {conclusion}."
