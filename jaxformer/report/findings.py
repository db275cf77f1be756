"""The findings of a study: each question with its answer so far, in words and numbers.

The table in a terminal, the page and the Markdown file show the same columns and sentences, which are written here.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxformer.ablation import ledger
from jaxformer.ablation.comparison import BestRate, Comparison
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
from jaxformer.statistics.significance import interim_level

NOT_KNOWN = "not known"

# Explanation of the table of tasks.
TASKS = (
    "For each task: the accuracy in %, its difference ± standard error, and the difference in bits per byte of the "
    "right answers (negative is better). The parent's accuracies are at its own learning rate."
)


class Finding(NamedTuple):
    """A question of a study, and its answer so far."""

    resolved: Resolved
    question: str
    lineage: Mapping[str, Any]
    """Lineage as recorded by the runs, else as in the file now: parents, change, consequences, bundle, expected,
    source.
    """
    comparison: Comparison | None
    """None if no run of it has ended."""
    runs: list[FinishedRun]
    """Finished runs at its own learning rate."""
    interaction: Difference | None
    """Interaction of a merge."""
    hours: float
    """Device hours of all its runs that are finished or were stopped early."""
    shrunken: float = math.nan
    """Difference shrunken by the share of chance in all comparisons; NaN if unknown."""
    confirmation: str = ""
    """The answer of its confirmation; '' without one."""

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.resolved.name

    @property
    def parent(self) -> str:
        """The first parent, with which it is compared."""
        return self.resolved.parents[0].name

    @property
    def is_merge(self) -> bool:
        """Whether it joins several variants."""
        return len(self.resolved.parents) > 1

    @property
    def word(self) -> Word:
        """The decision."""
        return self.comparison.verdict.word if self.comparison else Word.NOT_COMPARED

    @property
    def difference(self) -> Difference | None:
        """Of validation bits per byte, variant minus parent; None if they were not compared."""
        return self.comparison.difference if self.comparison else None

    @property
    def level(self) -> float:
        """The level of its interim analysis, used for its intervals."""
        return interim_level(len(self.comparison.seeds) if self.comparison else 0)

    @property
    def seeds(self) -> int:
        """The number of seeds of the difference, or else of the finished runs."""
        return len(self.comparison.seeds if self.comparison and self.difference else self.runs)

    @property
    def expected(self) -> tuple[float, float]:
        """The expected interval of the difference."""
        low, high = self.lineage["expected"]
        return float(low), float(high)


def collect_findings(outcome: Outcome) -> list[Finding]:
    """Returns the findings on each variant of a study, in its order."""
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
        shrunken = outcome.shrunken.get(one.name, math.nan)
        confirmation = outcome.confirmations.get(one.name, "")
        findings.append(Finding(one, question, lineage, comparison, runs, interaction, hours, shrunken, confirmation))
    return findings


def device_hours(outcome: Outcome, name: str) -> float:
    """Returns the device hours of an experiment's runs, at all rates, that are finished or were stopped early."""
    runs = [*outcome.runs.get(name, []), *outcome.tried.get(name, [])]
    return sum((run.device_hours for run in runs), outcome.lost_hours.get(name, 0.0))


def mean_accuracies(runs: Sequence[FinishedRun]) -> dict[str, float]:
    """Returns the mean accuracy on each task that all runs have."""
    names = [name for name in (runs[0].tasks if runs else ()) if all(name in run.tasks for run in runs)]
    return {name: float(np.mean([run.tasks[name].accuracy.mean() for run in runs])) for name in names}


def mean_bits_per_byte(runs: Sequence[FinishedRun]) -> str:
    """Returns the mean over runs."""
    return f"{float(np.mean([run.bits_per_byte for run in runs])):.4f}"


def parent_at_best(outcome: Outcome) -> Comparison | None:
    """Returns the comparison with the most seeds of the study's parent at its best learning rate; None without one."""
    found = [one for one in outcome.comparisons if one.parent == outcome.study.parent and one.best_rates]
    found = [one for one in found if one.difference is not None]
    return max(found, key=lambda one: len(one.seeds)) if found else None


def describe_parent_at_best(outcome: Outcome) -> str:
    """Returns what the study's parent reaches at its best learning rate; '' if nothing is compared there."""
    one = parent_at_best(outcome)
    best = one.best_rates[0].compared if one and one.best_rates else math.nan
    return f"{one.parent_bits:.4f} at its best learning rate, {best:.2g}" if one else ""


def runs_nearest_best(outcome: Outcome, name: str, best: BestRate | None) -> list[FinishedRun]:
    """Returns an experiment's runs at the best learning rate tried; at its own if `best` is None."""
    runs = outcome.runs.get(name, [])
    if best is None:
        return runs
    tried = [*runs, *outcome.tried.get(name, ())]
    middle = best.tried[1]
    return [run for run in tried if math.isclose(run.experiment.optimizer.learning_rate, middle, rel_tol=1e-3)]


def task_names(outcome: Outcome) -> list[str]:
    """Returns the tasks of the study's parent, and other compared ones."""
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
    """Heading, in a terminal, of each line of a cell; '' for a line not shown there."""


def decision_columns(outcome: Outcome) -> list[Column]:
    """Returns the columns between the verdict of a variant and its reason."""
    runs = outcome.runs[outcome.study.parent]
    bits, hours = mean_bits_per_byte(runs), device_hours(outcome, outcome.study.parent)
    headings = ("bits per byte ± error", "interval"), ("difference", "interval")
    return [
        Column(headings[0], difference_and_interval, bits, headings[1]),
        Column(("expected", "outcome"), lambda finding: (expectation(finding.expected), beside_expectation(finding))),
        Column(("q",), q_value, terminal=("q",)),
        Column(("seeds",), lambda finding: (str(finding.seeds),), str(len(runs)), ("seeds",)),
        Column(("tokens",), lambda finding: (worth_in_tokens(finding),), "1 x", ("tokens",)),
        Column(("time", "per token"), lambda finding: (cost_ratio(finding, "time_per_token"),), "1 x", ("time",)),
        Column(("parameters",), lambda finding: (cost_ratio(finding, "parameters"),), "1 x"),
        Column(("device", "hours"), lambda finding: (f"{finding.hours:.2f}",), f"{hours:.2f}"),
    ]


def task_table(outcome: Outcome) -> list[tuple[str | tuple[str, ...], ...]]:
    """Returns a row of headings, of the parent, and of each variant whose tasks were compared; empty without tasks."""
    names, accuracies = task_names(outcome), mean_accuracies(outcome.runs[outcome.study.parent])
    parent = outcome.study.parent, *(percent(accuracies.get(name, math.nan)) for name in names)
    rows = [
        (finding.name, *(task_scores(finding, name) for name in names))
        for finding in collect_findings(outcome)
        if finding.comparison and finding.comparison.tasks
    ]
    return [("variant", *(f"{name} %" for name in names)), parent, *rows] if names else []


def difference_and_interval(finding: Finding) -> tuple[str, str]:
    """Returns the difference with its standard error, and its interval."""
    if finding.difference is None:
        return NOTHING, NOTHING
    return with_error(finding.difference), interval_of(finding.difference, finding.level)


def q_value(finding: Finding) -> tuple[str]:
    """Returns the q-value of an improvement."""
    return (probability(finding.comparison.q_value) if finding.comparison else NOTHING,)


def task_scores(finding: Finding, task: str) -> tuple[str, ...]:
    """Returns the accuracy in %, its difference ± error, and the difference in the right answers' bits per byte."""
    scores = finding.comparison.tasks.get(task) if finding.comparison else None
    if scores is None:
        return (NOTHING,)
    accuracy = f"{signed(100 * scores.accuracy.mean, 1)} ± {number(100 * scores.accuracy.standard_error, 1)}"
    return percent(scores.variant), accuracy, with_error(scores.gold_bits_per_byte, 3)


def worth_in_tokens(finding: Finding) -> str:
    """Returns the multiple of the variant's tokens that the parent needs for the same loss."""
    return ratio(finding.comparison.worth, 2) if finding.comparison else NOTHING


def cost_ratio(finding: Finding, name: str) -> str:
    """Returns a field of the variant's cost, relative to its parent."""
    cost = finding.comparison.cost if finding.comparison else None
    return ratio(getattr(cost, name), 3) if cost else NOTHING


def corpus_rows(finding: Finding) -> list[tuple[str, str, str]]:
    """Returns (corpus, difference, interval) if there are several corpora."""
    corpora = finding.comparison.corpora if finding.comparison else {}
    rows = [(name, with_error(one), interval_of(one, finding.level)) for name, one in corpora.items()]
    return rows if len(rows) > 1 else []


def beside_expectation(finding: Finding) -> str:
    """Returns in words how a difference compares with its expectation."""
    found = ledger.describe_difference(finding.difference, finding.level) if finding.difference else None
    return ledger.beside_expectation(found, finding.expected) or NOT_KNOWN


def reason(finding: Finding) -> str:
    """Returns the reason of the decision, and what would decide."""
    if finding.comparison is None:
        return "no run of it has ended"
    verdict = finding.comparison.verdict
    if verdict.word is Word.UNDECIDED and verdict.more_seeds:
        seeds = f"{verdict.more_seeds} more seed{'s' * (verdict.more_seeds > 1)}"
        return f"{verdict.reason}; the next analysis needs {seeds} ({verdict.more_hours:.2f} device hours)"
    return verdict.reason


def reason_beside_numbers(finding: Finding) -> str:
    """Returns the reason of the decision, without the difference and the interval, which the table has."""
    why = reason(finding)
    return re.sub(r"^[-+]\S*( \[\S+ \S+\])?[:,;]* *(is )?", "", why) if finding.difference else why


def notes(finding: Finding) -> list[str]:
    """Returns reservations, including flags that are not in the reason."""
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
        why = "the parent's loss curve is too short or does not fall"
        known = [f"A token takes {time} x the parent's time."] if cost.is_timed else []
        return [f"At equal tokens, and at equal time: unknown, since {why}.", *known]
    gain = "unknown, since the time per token was not measured"
    if cost.is_timed:
        ends = f"{ratio(worth / cost.time_per_token, 2)} [{worth / high:.2f}, {worth / low:.2f}]"
        gain = f"{worth:.2f} / {time} = {ends}; above 1 is a gain; the interval only counts the error of the time"
    slope = "by the slope of its loss curve"
    return [
        f"At equal tokens: {slope}, the parent needs {ratio(worth, 2)} the variant's tokens for the same loss.",
        f"At equal time: {gain}.",
    ]


def describe_pairing(finding: Finding) -> list[str]:
    """Returns what pairing by seeds saved, if there are enough seeds to see it."""
    pairing = finding.comparison.pairing if finding.comparison else math.nan
    text = f"Pairing: over seeds, the paired difference scatters {number(pairing, 2)} x as much as an unpaired one."
    return [text] if math.isfinite(pairing) else []


def describe_shrunken(finding: Finding) -> list[str]:
    """Returns the shrunken difference, without the share of chance, if it was chosen for being large."""
    if finding.difference is None or not math.isfinite(finding.shrunken):
        return []
    raw = signed(finding.difference.mean)
    return [f"Shrunken: {signed(finding.shrunken)} instead of {raw}, by the share of chance in all differences."]


def describe_expectation(finding: Finding) -> str:
    """Returns the expectation, its source, and how it came out."""
    expected = f"Expected {expectation(finding.expected)} ({finding.lineage['source']})"
    found = " ".join(difference_and_interval(finding)) if finding.difference else "nothing yet"
    return f"{expected}; found {found}: {beside_expectation(finding)}."


def points(finding: Finding) -> list[str]:
    """Returns what to add to the reason: how the result reads, whether a merge adds up, and notes."""
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
        return "Interaction: unknown; it needs two seeds that all arms share."
    low, high = interaction.interval(1 - alpha)
    conclusion = "the gains add up, as far as can be seen"
    if high < 0:
        conclusion = "together they gain more than apart"
    elif low > 0:
        conclusion = "together they gain less than apart"
    return f"Interaction: {with_error(interaction)} {interval_of(interaction, alpha)}: {conclusion}."
