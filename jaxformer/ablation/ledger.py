"""The ledger of all questions: `decisions.jsonl` beside the runs, one line per decision, only ever appended to.

A line is an object with `kind`, `time` (UTC), `parent`, `variant` and the keys of its kind. Of all verdicts on a
variant of a parent, by any study, the last counts; a new one is added only if it differs from that.
"""

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.verdict import Word
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.console import print_notice
from jaxformer.host.json_lines import append_json_line, read_json_lines
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.shrinkage import shrink, spread_of_effects
from jaxformer.statistics.significance import INTERIM_SEEDS, interim_level

LEDGER = "decisions.jsonl"

VERDICT, PROMOTION, CONFIRMATION = "verdict", "promotion", "confirmation"

# Answers of a confirmation.
CONFIRMED, NOT_CONFIRMED = "CONFIRMED", "NOT CONFIRMED"

# Probability that a question about an equal variant, followed to its last analysis, ends as KEEP: see `interim_level`.
FALSE_KEEP = 0.025

# Keys in which a verdict differs from the one before.
_DECIDED = ("verdict", "reason", "seeds", "difference", "q")

Line = dict[str, Any]


def append(runs: Path, line: Mapping[str, Any]) -> None:
    """Appends a line to the ledger of a folder of runs, with the time: see `append_json_line`."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    append_json_line(runs / LEDGER, {**line, "time": now})


def read_ledger(runs: Path) -> list[Line]:
    """Returns the lines of the ledger of a folder of runs: see `read_json_lines`."""
    return read_json_lines(runs / LEDGER, ("kind", "time", "parent", "variant"))


def latest_verdicts(lines: Iterable[Line]) -> dict[tuple[str, str], Line]:
    """Returns the last verdict on each question, by (parent, variant), in the order in which they were first asked."""
    found = {}
    for line in lines:
        if line["kind"] == VERDICT:
            key = line["parent"], line["variant"]
            found[key] = line
    return found


def answers(lines: Iterable[Line]) -> dict[str, str]:
    """Returns the answer of the confirmation of each promoted variant, by the name under which it was judged."""
    return {line["variant"]: line["answer"] for line in lines if line["kind"] == CONFIRMATION}


def last_of(lines: Sequence[Line], kind: str, **values: str) -> Line | None:
    """Returns the last line of a kind with these values; None if there is none."""
    ours = (line for line in reversed(lines) if line["kind"] == kind)
    return next((line for line in ours if all(line.get(name) == value for name, value in values.items())), None)


def verdict_line(comparison: Comparison, resolved: Resolved, device_hours: float, code: str) -> Line:
    """Returns the ledger's line on a comparison.

    Args:
        device_hours: of all runs of the variant.
        code: digest of the code that trained them.
    """
    seeds, difference = len(comparison.seeds), comparison.difference
    lineage = comparison.lineage if comparison.lineage.get("expected") else vars(resolved.lineage)
    return {
        "kind": VERDICT,
        "parent": comparison.parent,
        "variant": comparison.variant,
        "parents": [parent.name for parent in resolved.parents],
        "leaves_out": resolved.without,
        "generation": resolved.generation,
        "question": comparison.question or resolved.experiment.question,
        "expected": list(lineage["expected"]),
        "source": lineage["source"],
        "verdict": comparison.verdict.word.value,
        "reason": comparison.verdict.reason,
        "bits_per_byte": {"parent": _finite(comparison.parent_bits), "variant": _finite(comparison.variant_bits)},
        "difference": describe_difference(difference, interim_level(seeds)) if difference else None,
        "seeds": list(comparison.seeds),
        "level": interim_level(seeds),
        "q": comparison.q_value if math.isfinite(comparison.q_value) else None,
        "learning_rates": dict(zip(("parent", "variant"), _learning_rates(comparison, resolved), strict=True)),
        "device_hours": device_hours,
        "code": code,
    }


def _learning_rates(comparison: Comparison, resolved: Resolved) -> list[float]:
    """Returns the rates at which the parent and the variant were compared."""
    if comparison.best_rates:
        return [best.compared for best in comparison.best_rates]
    return [one.experiment.optimizer.learning_rate for one in (resolved.parents[0], resolved)]


def describe_difference(difference: Difference, level: float) -> dict[str, float | None]:
    """Returns a difference as the ledger keeps it, with its interval at a two-sided level."""
    low, high = difference.interval(1 - level)
    error = difference.standard_error if difference.seeds_counted else math.nan
    values = {"mean": difference.mean, "standard_error": error, "low": low, "high": high}
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def append_verdicts(runs: Path, verdicts: Sequence[Line]) -> list[Line]:
    """Appends verdicts of a study that the ledger does not have, and returns all lines with them.

    If the ledger cannot be read or written, a notice is printed.
    """
    lines = []
    try:
        lines = read_ledger(runs)
        spread = spread_of_gains([*lines, *verdicts])
        for line in verdicts:
            before = last_of(lines, VERDICT, parent=line["parent"], variant=line["variant"]) or {}
            if any(before.get(name) != line[name] for name in _DECIDED):
                append(runs, {**line, "shrunken": _finite(shrunken_gain(line, spread))})
    except OSError as error:
        print_notice(f"{runs / LEDGER}: {error.strerror or error}; the decisions are not recorded")
    return [*lines, *verdicts]


def spread_of_gains(lines: Iterable[Line]) -> float:
    """Returns the spread of the true differences of all questions, bits per byte: see `spread_of_effects`.

    What leaves out a change that was kept is none.
    """
    found = [measured for line in latest_verdicts(lines).values() if (measured := _measured(line))]
    effects_N, errors_N = np.array(found, np.float64).reshape(-1, 2).T
    return spread_of_effects(effects_N, errors_N)


def shrunken_gain(line: Line, spread: float) -> float:
    """Returns a line's difference shrunken by the spread of all, bits per byte; NaN where it is not known."""
    measured = _measured(line)
    return shrink(*measured, spread) if measured and math.isfinite(spread) else math.nan


def _measured(line: Line) -> tuple[float, float] | None:
    """Returns (difference, standard error) of a line; None where it has none, or leaves out a change that was kept."""
    difference = line.get("difference") or {}
    mean, error = difference.get("mean"), difference.get("standard_error")
    return (mean, error) if mean is not None and error and not line.get("leaves_out") else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def beside_expectation(difference: Line | None, expected: Sequence[float]) -> str:
    """Returns how a difference came out beside what was expected; '' where it is not known.

    'as expected', 'better than expected' or 'worse than expected'; with 'perhaps' where its interval reaches into what
    was expected.

    Args:
        difference: as of `describe_difference`.
    """
    found, (low, high) = difference or {}, expected
    if (mean := found.get("mean")) is None:
        return ""
    if low <= mean <= high:
        return "as expected"
    word = "better than expected" if mean < low else "worse than expected"
    begin, end = found.get("low"), found.get("high")
    is_sure = (begin is not None and begin > high) or (end is not None and end < low)
    return word if is_sure else f"perhaps {word}"


class Account(NamedTuple):
    """What all questions of a ledger amount to."""

    asked: int
    """Questions that were compared on as many seeds as the first analysis takes; what leaves out a change that was kept
    is none.
    """
    kept: int
    """Of those, KEEP."""
    false_keeps: float
    """As many would be kept on average if all variants were equal to their parents, and each were followed to its last
    analysis.
    """
    expectations: dict[str, int]
    """How many came out so, by the words of `beside_expectation`."""


def account(lines: Iterable[Line]) -> Account:
    """Returns what the questions of a ledger amount to."""
    verdicts = [line for line in latest_verdicts(lines).values() if not line.get("leaves_out")]
    asked = [line for line in verdicts if line.get("difference") and len(line["seeds"]) >= INTERIM_SEEDS[0]]
    outcomes = [beside_expectation(line["difference"], line["expected"]) for line in asked]
    return Account(
        len(asked),
        sum(line["verdict"] == Word.KEEP.value for line in asked),
        FALSE_KEEP * len(asked),
        {word: outcomes.count(word) for word in sorted({*outcomes} - {""})},
    )
