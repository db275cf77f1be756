"""The contributions to a promoted experiment's gain, in words, numbers and a picture."""

from jaxformer.ablation.leave_one_out import DROP, STAYS, Composition
from jaxformer.ablation.outcome import Outcome
from jaxformer.ablation.verdict import Word
from jaxformer.host.console import plain
from jaxformer.report.findings import NOT_KNOWN
from jaxformer.report.formatting import NOTHING, interval_of, with_error
from jaxformer.report.style import COLOURS, GREY, INK, make_figure
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.significance import interim_level

HEADING = "What the gain is made of"
COMPOSITION_HEADINGS = ("change", "when it was kept", "in the final experiment", "interval", "decision")

# Level of intervals without a verdict.
_LEVEL = 0.05

_COLOURS = {STAYS: COLOURS[Word.KEEP], DROP: COLOURS[Word.REVERT]}


def composition_rows(made_of: Composition) -> list[tuple[str, ...]]:
    """Returns a row for each change, the total and the overlap, in the order of `COMPOSITION_HEADINGS`."""
    return [
        (name, _error(when_kept), *_numbers(now, level), decision)
        for name, when_kept, now, level, decision in _rows(made_of)
    ]


def _rows(made_of: Composition) -> list[tuple[str, Difference | None, Difference | None, float, str]]:
    """Returns (name, difference when it was kept, and now, level of its interval, decision) of each row."""
    rows = [(part.name, part.when_kept, part.now, interim_level(part.seeds), part.decision) for part in made_of.parts]
    totals = (f"all, beside {made_of.root}", made_of.total), ("overlap", made_of.overlap)
    return rows + [(name, None, difference, _LEVEL, "") for name, difference in totals]


def describe_composition(made_of: Composition) -> list[str]:
    """Returns how to read the table, and what the overlap means."""
    sentences = [
        f"Bits per byte of {made_of.name}, minus those without the change; negative is better. {STAYS}: it is worse "
        f"without. {DROP}: it is equal or better without. An undecided change stays until it is decided. Do not add "
        "up the differences when changes were kept: they are too large on average, since they were selected for being "
        "large."
    ]
    if made_of.why_not:
        sentences.append(f"The total is unknown: {made_of.why_not}.")
    return [*sentences, f"The overlap is the total minus the sum of the parts: {_describe_overlap(made_of)}."]


def _describe_overlap(made_of: Composition) -> str:
    """Returns what the overlap means, or why it is unknown."""
    if made_of.overlap is not None:
        low, high = made_of.overlap.interval(1 - _LEVEL)
        if high < 0:
            return "some changes partly replace each other, so that together they gain more than the sum of the parts"
        if low > 0:
            return "some changes need each other, so that together they gain less than the sum of the parts"
        return "the parts add up to the total, as far as can be seen"
    missing = [part.name for part in made_of.parts if part.now is None]
    if made_of.total is None:
        return "unknown without the total"
    if missing:
        return f"unknown, since {made_of.name} was not compared with itself without {' and '.join(missing)}"
    return "unknown, since all these experiments need two seeds in common, on the same validation documents"


def _error(difference: Difference | None) -> str:
    return with_error(difference) if difference else NOTHING


def _numbers(difference: Difference | None, level: float) -> tuple[str, str]:
    return (_error(difference), interval_of(difference, level)) if difference else (NOTHING, NOTHING)


def draw_composition(outcome: Outcome):
    """Returns the plot of each change when it was kept and now, and the total; None if nothing is left out."""
    made_of = outcome.composition
    if made_of is None:
        return None
    rows = _rows(made_of)
    figure = make_figure(8.5, 1.3 + 0.42 * len(rows))
    axes = figure.subplots()
    for y, (_, when_kept, now, level, decision) in enumerate(rows):
        if when_kept:
            axes.errorbar(
                [when_kept.mean], [y - 0.17], xerr=[when_kept.standard_error], fmt="o", color=GREY, mfc="white", ms=5
            )
        if now:
            colour = _COLOURS.get(decision, INK)
            low, high = now.interval(1 - level)
            axes.barh(y + 0.1, now.mean, 0.34, color=colour, alpha=0.35, lw=0)
            axes.plot([low, high], [y + 0.1, y + 0.1], color=colour, lw=1.5, solid_capstyle="butt")
            axes.plot([now.mean], [y + 0.1], "o", color=colour, ms=5)
        else:
            axes.text(0, y + 0.1, f"{NOT_KNOWN} ", ha="right", va="center", color=GREY, fontsize=7.5)
        axes.text(
            1.01,
            y,
            decision,
            transform=axes.get_yaxis_transform(),
            va="center",
            weight="bold",
            color=_COLOURS.get(decision, GREY),
        )
    axes.axvline(0, color=INK, lw=1)
    axes.axhline(len(made_of.parts) - 0.5, color=GREY, lw=0.6)
    axes.set_yticks(range(len(rows)), [plain(name, 36) for name, *_ in rows])
    axes.set(ylim=(len(rows) - 0.5, -0.6), xlabel="bits per byte, with the change minus without it (left is better)")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    return figure
