"""What to ask next, as text."""

import shlex

from jaxformer.ablation.next_question import Ranked, Ranking
from jaxformer.host.console import format_table, plain, printable, wrap
from jaxformer.report.formatting import expectation, signed

HEADINGS = ("", "question", "bits per byte, 80 %", "KEEP", "hours", "saves", "saved/h")

# Columns of a line where the output is no terminal, and of a name.
_COLUMNS, _NAME = 80, 24


def ranking_text(ranking: Ranking, number: int, columns: int | None = None) -> str:
    """Returns the first so many questions with why, how expectations came true, and what to do."""
    columns, shown = columns or _COLUMNS, ranking.ranked[:number]
    lines = [f"What to ask of {printable(ranking.parent)} next", ""]
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
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _paragraphs(ranking: Ranking, more: int) -> list[str]:
    """Returns what the numbers mean, how expectations came true, what is left out, and the conclusion."""
    stakes, calibration = ranking.stakes, ranking.calibration
    outcomes = ", ".join(f"{number} {word}" for word, number in ranking.outcomes().items())
    count = len(ranking.answered)
    found = f"{count} question{'s' * (count != 1)} in the ledger{f' ({outcomes})' if outcomes else ''}"
    slope, shift = calibration.mean_C[:2]
    paragraphs = [
        f"KEEP is its probability. hours: of a device, to the decision, and of a new parent. saves: of the "
        f"{_hours(stakes.hours)} hours of {ranking.target}, where 2% more tokens are worth "
        f"{ranking.noise.margin:.4f} bits per byte; {stakes.complexity:.1%} of them are taken off for each field "
        "changed.",
        f"Expectations, by {found} and what is known elsewhere: an effect is {slope:.1f} x the middle of what is "
        f"expected {signed(shift, 1)} half-widths, and from there {calibration.spread:.1f} half-widths of scatter.",
    ]
    left_out = [f"{more} more are ranked below these"] if more else []
    if ranking.closed:
        decided = ", ".join(f"{name} {word}" for name, word in ranking.closed.items())
        left_out.append(f"answered: {decided}")
    if ranking.refused:
        left_out.append(f"{len(ranking.refused)} cannot be asked of {ranking.parent} (--json says why)")
    if left_out:
        paragraphs.append(f"{'; '.join(left_out)}.")
    if ranking.best:
        paragraphs.append(f"Ask {ranking.best.name}: {ranking.best.question}")
    else:
        best = [f": the best saves {one.ratio:.2f} hours for each that it takes" for one in ranking.ranked[:1]]
        paragraphs.append(f"STOP: nothing that is open is expected to pay{''.join(best)}.")
    return paragraphs
