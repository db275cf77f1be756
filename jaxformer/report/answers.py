"""The questions of a study, each with what is known of its answer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.finished_runs import Evidence
from jaxformer.ablation.outcome import Outcome
from jaxformer.ablation.verdict import Word
from jaxformer.experiment.variant import Resolved
from jaxformer.statistics.paired_difference import Difference


class Answer(NamedTuple):
    """A question of a study, and what is known of its answer."""

    resolved: Resolved
    question: str
    lineage: Mapping[str, Any]
    """Lineage as the runs recorded it, else as the file has it now: parents, change, consequences, bundle, expected,
    source.
    """
    comparison: Comparison | None
    """None where no run of it has ended."""
    runs: list[Evidence]
    """Runs that are finished."""
    interaction: Difference | None
    """Interaction of a merge."""
    hours: float
    """Device hours of all its runs that are finished or were stopped early."""

    @property
    def name(self) -> str:
        return self.resolved.name

    @property
    def parent(self) -> str:
        return self.resolved.parents[0].name

    @property
    def word(self) -> Word:
        return self.comparison.verdict.word if self.comparison else Word.NOT_COMPARED

    @property
    def difference(self) -> Difference | None:
        return self.comparison.difference if self.comparison else None

    @property
    def expected(self) -> tuple[float, float]:
        low, high = self.lineage["expected"]
        return float(low), float(high)


def answers(outcome: Outcome) -> list[Answer]:
    """Returns the variants of a study, in its order."""
    comparisons = {one.variant: one for one in outcome.comparisons}
    found = []
    for one in outcome.experiments[1:]:
        comparison, runs = comparisons.get(one.name), outcome.evidence.get(one.name, [])
        recorded = runs[0].record if runs else {}
        lineage = recorded.get("lineage", {})
        lineage = lineage if lineage.get("expected") else vars(one.lineage)
        question = recorded.get("question") or one.experiment.question
        interaction = outcome.interactions.get(one.name)
        found.append(Answer(one, question, lineage, comparison, runs, interaction, hours_of(outcome, one.name)))
    return found


def hours_of(outcome: Outcome, name: str) -> float:
    """Returns the device hours of an experiment's runs that are finished or were stopped early."""
    return sum((run.device_hours for run in outcome.evidence.get(name, [])), outcome.lost_hours.get(name, 0.0))


def scores_of(runs: Sequence[Evidence]) -> dict[str, float]:
    """Returns the mean accuracy of each task that all runs have."""
    names = [name for name in (runs[0].tasks if runs else ()) if all(name in run.tasks for run in runs)]
    return {name: float(np.mean([run.tasks[name].accuracy.mean() for run in runs])) for name in names}


def tasks_of(outcome: Outcome) -> list[str]:
    """Returns the tasks of the study's parent, and others that were compared."""
    names = dict.fromkeys(scores_of(outcome.evidence[outcome.study.parent]))
    for one in outcome.comparisons:
        names |= dict.fromkeys(one.tasks)
    return list(names)


def beside_expectation(difference: Difference, expected: tuple[float, float], confidence: float) -> str:
    """Returns in words where a difference lies beside the interval that it was expected in."""
    low, high = expected
    if low <= difference.mean <= high:
        return "inside"
    word = "better" if difference.mean < low else "worse"
    least, most = difference.interval(confidence)
    return f"{word} than expected" + (", within its error" if least <= high and most >= low else "")


def parents_first(experiments: Sequence[Resolved]) -> list[str]:
    """Returns names in the order of a study, but none before its parents."""
    waiting, names = list(experiments), []
    known = {one.name for one in experiments}
    while waiting:
        one = next(one for one in waiting if all(p.name in names or p.name not in known for p in one.parents))
        names.append(one.name)
        waiting.remove(one)
    return names
