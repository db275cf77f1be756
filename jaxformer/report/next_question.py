"""The next question to ask, as text."""

import shlex

from jaxformer.ablation.next_question import Ranked, Ranking
from jaxformer.ablation.verdict import Rule
from jaxformer.host.console import format_table, plain, printable, wrap
from jaxformer.report.formatting import expectation, signed

HEADINGS = ("", "question", "bits per byte, 80 %", "kept", "hours", "saves", "saved/h")

# Columns of a line if the output is no terminal, and of a name.
_COLUMNS, _NAME = 80, 24


def ranking_text(ranking: Ranking, number: int, columns: int | None = None) -> str:
    """Returns the first questions with their reasons, how expectations came true, and what to do."""
    columns, shown = columns or _COLUMNS, ranking.ranked[:number]
    lines = [f"What to try next on {printable(ranking.parent)}", ""]
    table = format_table([HEADINGS, *(_cells(i, each) for i, each in enumerate(shown, 1))], left=(1,))
    lines.append(table[0])
    for row, each in zip(table[1:], shown, strict=True):
        why = "; ".join([f"expected {expectation(each.expected)}", each.kind, *each.why])
        lines += [row, *(f"   {line}" for line in wrap(printable(why), columns - 3, 2))]
    for paragraph in _paragraphs(ranking, len(ranking.ranked) - len(shown)):
        lines += ["", *wrap(printable(paragraph), columns)]
    if ranking.best:
        lines += ["", printable(shlex.join(ranking.best.command))]
    return "\n".join(lines)


def _cells(number: int, one: Ranked) -> list[str]:
    low, high = one.interval
    may_be = f"{signed(one.effect, 3)} [{signed(low, 3)}, {signed(high, 3)}]"
    numbers = (_hours(value) for value in (one.hours, one.saved, one.ratio))
    return [str(number), plain(one.name, _NAME), may_be, f"{one.kept:.0%}", *numbers]


def _hours(value: float) -> str:
    digits = 3 if abs(value) < 0.1 else 2 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _paragraphs(ranking: Ranking, more: int) -> list[str]:
    """Returns what the numbers mean, how expectations came true, the questions left out, and the conclusion."""
    past, parent_runs = ranking.past, ranking.parent_runs
    outcomes = ", ".join(f"{number} {word}" for word, number in past.outcomes().items())
    count = len(past.questions)
    found = f"{count} question{'s' * (count != 1)} in the ledger{f' ({outcomes})' if outcomes else ''}"
    (slope, shift), scatter = past.calibration.mean_C[:2], past.calibration.spread
    paragraphs = [
        "kept: the probability of KEEP or EQUIVALENT BUT CHEAPER. hours: device hours until the decision, and of a "
        f"new parent. saves: hours saved of the {_hours(ranking.hours_to_come)} device hours of {ranking.target}. "
        f"{Rule().equal_tokens:.0%} more tokens are worth {parent_runs.margin:.4f} bits per byte, and each changed "
        f"field costs {ranking.complexity:.1%} of the hours. saved/h: saves / hours; above 1 it pays.",
        f"How expectations came true, from {found} and from elsewhere: an effect is {slope:.1f} x the middle of the "
        f"expected interval {signed(shift, 1)} half-widths, with a scatter of {scatter:.1f} half-widths.",
    ]
    left_out = [f"{more} more are ranked below these"] if more else []
    if ranking.closed:
        decided = ", ".join(f"{name} {word}" for name, word in ranking.closed.items())
        left_out.append(f"answered: {decided}")
    if ranking.refused:
        left_out.append(f"{len(ranking.refused)} cannot be applied to {ranking.parent} (--json shows why)")
    if left_out:
        paragraphs.append(f"{'; '.join(left_out)}.")
    paragraphs.append(_conclusion(ranking))
    return paragraphs


def _conclusion(ranking: Ranking) -> str:
    """Returns the question to ask, or why there is none."""
    if ranking.best:
        return f"Try {ranking.best.name}: {ranking.best.question}"
    if not ranking.ranked:
        return f"STOP: no question is open about {ranking.parent}. Write another one in experiments/."
    stop = "STOP: no open question is expected to save the device hours that it takes."
    one = ranking.ranked[0]
    if one.ratio <= 0:
        return f"{stop} None is expected to save anything."
    return (
        f"{stop} The best, {one.name}, takes {_hours(one.hours)} and saves {_hours(one.saved)} of the "
        f"{_hours(ranking.hours_to_come)} to come. It would pay if more than "
        f"{_hours(ranking.hours_to_come / one.ratio)} were to come (--target, --target_hours, --runs_to_come)."
    )
