"""What the gain of a promoted experiment is made of, in words, numbers and a picture."""

from jaxformer.ablation.leave_one_out import DROP, STAYS, Composition
from jaxformer.ablation.outcome import Outcome
from jaxformer.ablation.verdict import Word
from jaxformer.report.formatting import NOTHING, interval_of, plain, with_error
from jaxformer.report.style import COLOURS, GREY, INK, make_figure
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.significance import interim_level

HEADING = "What the gain is made of"
COMPOSITION_HEADINGS = ("change", "when it was kept", "in the final experiment", "interval", "decision")

# Level of the intervals of what no verdict is about.
_LEVEL = 0.05

_COLOURS = {STAYS: COLOURS[Word.KEEP], DROP: COLOURS[Word.REVERT]}


def composition_rows(made_of: Composition) -> list[tuple[str, ...]]:
    """Returns a row for each change, the total and the overlap, in the order of `COMPOSITION_HEADINGS`."""
    rows = [
        (part.name, _error(part.when_kept), *_numbers(part.now, interim_level(part.seeds)), part.decision)
        for part in made_of.parts
    ]
    rows.append((f"all, beside {made_of.root}", NOTHING, *_numbers(made_of.total, _LEVEL), ""))
    rows.append(("overlap", NOTHING, *_numbers(made_of.overlap, _LEVEL), ""))
    return rows


def describe_composition(made_of: Composition) -> list[str]:
    """Returns how to read the table, and what the overlap says."""
    sentences = [
        f"Bits per byte by which {made_of.name} differs from what it is without a change; negative is better. A change "
        f"whose removal is worse stays ({STAYS}); one whose removal is equal or better can go ({DROP}); one that is "
        "undecided stays until it is decided. When it was kept, a change was chosen for its difference, which is "
        "therefore too large on average, and must not be added up."
    ]
    if made_of.why_not:
        sentences.append(f"The total is not known: {made_of.why_not}.")
    if made_of.overlap is not None:
        low, high = made_of.overlap.interval(1 - _LEVEL)
        meaning = "the parts add up to the total, as far as can be seen"
        if high < 0:
            meaning = "changes do in part the same, so that the total is more than the sum of the parts"
        elif low > 0:
            meaning = "changes need each other, so that the total is less than the sum of the parts"
        sentences.append(f"The overlap is the total minus the sum of the parts: {meaning}.")
    return sentences


def _error(difference: Difference | None) -> str:
    return with_error(difference) if difference else NOTHING


def _numbers(difference: Difference | None, level: float) -> tuple[str, str]:
    return (_error(difference), interval_of(difference, level)) if difference else (NOTHING, NOTHING)


def draw_composition(outcome: Outcome):
    """Returns each change when it was kept and now, and the total, with intervals; None where nothing is left out."""
    made_of = outcome.composition
    if made_of is None:
        return None
    rows = [(part.name, part.when_kept, part.now, interim_level(part.seeds), part.decision) for part in made_of.parts]
    rows.append((f"all, beside {made_of.root}", None, made_of.total, _LEVEL, ""))
    rows.append(("overlap", None, made_of.overlap, _LEVEL, ""))
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
