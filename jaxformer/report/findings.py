"""What a study found, as the words and numbers that its tables, its page and its Markdown share."""

import datetime
import math
from collections.abc import Sequence

import numpy as np

from jaxformer.ablation.noise_floor import noise_floor
from jaxformer.ablation.outcome import Outcome
from jaxformer.ablation.verdict import Word
from jaxformer.report.answers import Answer, answers, beside_expectation
from jaxformer.report.formatting import (
    NOTHING,
    expectation,
    interval_of,
    number,
    percent,
    probability,
    signed,
    with_error,
)


def difference(outcome: Outcome, each: Answer) -> tuple[str, str]:
    """Returns the difference with its standard error, and its interval."""
    if each.difference is None:
        return NOTHING, NOTHING
    return with_error(each.difference), interval_of(each.difference, outcome.study.rule.alpha)


def p_and_q(each: Answer) -> tuple[str, str]:
    """Returns the probability of so large a difference by chance, and that adjusted for all questions."""
    if each.difference is None:
        return NOTHING, NOTHING
    p = each.difference.p_value if math.isfinite(each.difference.mean) else math.nan
    return probability(p), probability(each.comparison.q_value)


def seed_count(each: Answer) -> int:
    """Returns the seeds of the difference, or the finished runs where there is none."""
    return len(each.comparison.seeds) if each.comparison and each.difference else len(each.runs)


def ratios(each: Answer) -> tuple[str, str]:
    """Returns the time per token and the parameters, relative to the parent's."""
    cost = each.comparison.cost if each.comparison else None
    return (number(cost.time_per_token, 3), number(cost.parameters, 3)) if cost else (NOTHING, NOTHING)


def accuracy(each: Answer, task: str) -> str:
    """Returns the accuracy at a task in %, and its difference."""
    scores = each.comparison.tasks.get(task) if each.comparison else None
    return f"{percent(scores.variant)} ({signed(100 * scores.accuracy.mean, 1)})" if scores else NOTHING


def reason(each: Answer) -> str:
    """Returns why it is decided so, and what would decide."""
    if each.comparison is None:
        return "no run of it has ended"
    verdict = each.comparison.verdict
    if verdict.word is Word.UNDECIDED and verdict.more_seeds:
        seeds = f"{verdict.more_seeds} more seed{'s' * (verdict.more_seeds > 1)}"
        return f"{verdict.reason}; {seeds} ({verdict.more_hours:.2f} device hours) may decide"
    return verdict.reason


def notes(each: Answer) -> list[str]:
    """Returns what to keep in mind: of flags only those that the reason does not tell."""
    comparison = each.comparison
    found = [*comparison.flags, *comparison.notes] if comparison else []
    now = each.resolved.lineage.expected
    if tuple(each.expected) != tuple(map(float, now)):
        recorded = expectation(each.expected)
        found.append(f"the runs recorded the expectation {recorded}, the file now has {expectation(now)}")
    return [note for note in found if note not in reason(each)]


def beside(outcome: Outcome, each: Answer) -> str:
    """Returns where what came out lies beside what was expected."""
    if each.difference is None:
        return "not known"
    return beside_expectation(each.difference, each.expected, 1 - outcome.study.rule.alpha)


def readings(each: Answer) -> list[str]:
    """Returns the readings at equal tokens, and at equal time."""
    comparison = each.comparison
    if comparison is None or comparison.cost is None:
        return []
    worth, time = comparison.worth, comparison.cost.time_per_token
    if not math.isfinite(worth):
        return [
            "At equal tokens: the curves have too few evaluations to say what the difference is worth.",
            f"A token takes {number(time, 3)} x the parent's time.",
        ]
    return [
        f"At equal tokens: the parent needs {worth:.2f} x the variant's tokens for the same loss.",
        f"At equal time: {worth:.2f} / {time:.3f} = {worth / time:.2f} x, of which more than 1 is a gain.",
    ]


def interaction(outcome: Outcome, each: Answer) -> str:
    """Returns whether the gains of a merge add up; '' of what is none."""
    if len(each.resolved.parents) < 2:
        return ""
    if each.interaction is None:
        return "Interaction: not known; it takes two seeds that all arms share."
    alpha = outcome.study.rule.alpha
    low, high = each.interaction.interval(1 - alpha)
    told = "the gains add up, as far as can be told"
    if high < 0:
        told = "together they gain more than apart"
    elif low > 0:
        told = "together they gain less than apart"
    return f"Interaction: {with_error(each.interaction)} {interval_of(each.interaction, alpha)}: {told}."


def rule(outcome: Outcome) -> str:
    """Returns the rule of the study in words."""
    floor = noise_floor(outcome.evidence[outcome.study.parent])
    return outcome.study.rule.describe(outcome.study.rule.margin or floor.standard_deviation)


def noise(outcome: Outcome) -> str:
    """Returns how much the runs of the study's parent differ by their seeds alone."""
    floor = noise_floor(outcome.evidence[outcome.study.parent])
    told = "not known with one seed of the parent"
    if math.isfinite(floor.standard_deviation):
        seeds = f"of {len(floor.seeds)} seeds: {', '.join(map(str, floor.seeds))}"
        told = f"{floor.standard_deviation:.4f} bits per byte, {seeds}"
    return f"{told} (standard deviation of the parent's runs)"


def device_hours(outcome: Outcome) -> str:
    """Returns what the study took."""
    finished = sum(run.device_hours for runs in outcome.evidence.values() for run in runs)
    parents = sum(run.device_hours for run in outcome.evidence[outcome.study.parent])
    told = f"{finished:.2f} of finished runs, {parents:.2f} of them the parent's"
    lost = sum(outcome.lost_hours.values())
    return told + (f"; {lost:.2f} of runs that were stopped early" if lost else "")


def about(outcome: Outcome) -> list[tuple[str, str]]:
    """Returns what holds for the whole study, as (name, value)."""
    study, runs = outcome.study, [run for found in outcome.evidence.values() for run in found]
    parents = outcome.evidence[study.parent]
    bits = float(np.mean([run.bits_per_byte for run in parents]))
    newest = max((run.workdir / "summary.json").stat().st_mtime for run in runs)
    date = datetime.datetime.fromtimestamp(int(newest), datetime.UTC)
    seeds = sorted({run.seed for run in runs})
    versions = _several([", ".join(f"{k} {v}" for k, v in run.record["versions"].items()) for run in runs])
    return [
        ("Parent", f"{study.parent}, {bits:.4f} bits per byte: {parents[0].record['question']}"),
        ("Rule", rule(outcome)),
        ("Noise floor", noise(outcome)),
        ("Seeds", f"{', '.join(map(str, seeds))}; {len(runs)} finished runs"),
        ("Device", _several([run.record["device"] for run in runs])),
        ("Device hours", device_hours(outcome)),
        ("Code", _several([start["code"][:12] for run in runs for start in run.record["starts"]])),
        ("Versions", versions),
        ("Newest run", f"{date:%Y-%m-%d %H:%M} UTC"),
    ]


def _several(values: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def count_words(outcome: Outcome) -> str:
    """Returns how many questions were decided how."""
    words = [each.word for each in answers(outcome)]
    told = ", ".join(f"{words.count(word)} {word.value}" for word in Word if word in words)
    return f"{len(words)} question{'s' * (len(words) != 1)}: {told}"
