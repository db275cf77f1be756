"""The forest plot: the differences of a study with their intervals, beside what was expected."""

import math
from collections.abc import Sequence

from jaxformer.ablation.outcome import Outcome
from jaxformer.report.answers import Answer, answers, beside_expectation
from jaxformer.report.formatting import plain, with_error
from jaxformer.report.style import COLOURS, GREY, INK, make_figure
from jaxformer.statistics.paired_difference import Difference

_BAND = "#DCEAF5"


def draw_forest(outcome: Outcome):
    """Returns the differences with their intervals, the band of equals, and what was expected."""
    rule = outcome.study.rule
    found = answers(outcome)
    rows = len(found)
    figure = make_figure(11.5, 1.1 + 0.5 * rows)
    left, axes, right = figure.subplots(1, 3, width_ratios=(3.4, 5.2, 2.5), sharey=True)
    limit = _forest_limit(found, rule.alpha)
    for y, each in enumerate(found):
        colour = COLOURS[each.word]
        if each.comparison and math.isfinite(margin := min(each.comparison.margin, limit)):
            axes.barh(y, 2 * margin, 1, -margin, color=_BAND, lw=0, zorder=0)
        low, high = (min(max(x, -limit), limit) for x in each.expected)
        axes.barh(y, high - low, 0.52, low, color="none", edgecolor="#9CA0A6", lw=0.9, hatch="////", alpha=0.55)
        left.text(1, y - 0.16, plain(each.name, 44), ha="right", va="center", weight="bold", fontsize=9)
        left.text(1, y + 0.22, plain(each.question, 68), ha="right", va="center", color=GREY, fontsize=7)
        right.text(0, y - 0.16, each.word.value, va="center", color=colour, weight="bold", fontsize=8.5)
        known = each.difference
        if known is None:
            told = "no finished run" if not each.runs else "see the table"
        else:
            _forest_row(axes, y, known, rule.alpha, limit, colour)
            beside = beside_expectation(known, each.expected, 1 - rule.alpha)
            told = f"{with_error(known)}  {beside}"
        right.text(0, y + 0.22, told, va="center", fontsize=7.5)
    axes.axvline(0, color=INK, lw=1)
    axes.set(
        xlim=(-limit, limit), ylim=(rows - 0.4, -0.6), xlabel="bits per byte, variant minus parent (left is better)"
    )
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.spines["left"].set_visible(False)
    for side in (left, right):
        side.axis("off")
        side.set_xlim(0, 1)
    figure.legend(handles=_forest_legend(rule.alpha), loc="outside upper center", ncols=4, fontsize=7.5)
    return figure


def _forest_row(axes, y: int, known: Difference, alpha: float, limit: float, colour: str) -> None:
    low, high = known.interval(1 - alpha)
    face = colour if known.seeds_counted else "white"
    if low < limit and high > -limit:
        axes.plot([max(low, -limit), min(high, limit)], [y, y], color=colour, lw=1.3, solid_capstyle="butt")
    error = known.standard_error
    inner = [max(known.mean - error, -limit), min(known.mean + error, limit)]
    if inner[0] < inner[1]:
        axes.plot(inner, [y, y], color=colour, lw=4, alpha=0.55, solid_capstyle="butt")
    if low < -limit:
        axes.plot([-limit], [y], "<", color=colour, ms=5, clip_on=False)
    if high > limit:
        axes.plot([limit], [y], ">", color=colour, ms=5, clip_on=False)
    if abs(known.mean) <= limit:
        axes.plot([known.mean], [y], "o", color=colour, mfc=face, ms=6.5, mew=1.4, zorder=4)


def _forest_legend(alpha: float) -> list:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], color=INK, marker="o", lw=1.3, label=f"difference, ±1 standard error, {1 - alpha:.1%} interval"),
        Line2D([], [], color=INK, marker="o", mfc="white", lw=1.3, label="one seed: by documents alone"),
        Patch(fc=_BAND, label="counts as equal"),
        Patch(fc="none", ec="#9CA0A6", hatch="////", label="expected beforehand"),
    ]


def _forest_limit(found: Sequence[Answer], alpha: float) -> float:
    """Returns the end of the axis: all that is not far beyond the rest."""
    ends = [max(map(abs, each.expected)) for each in found]
    for each in found:
        if each.difference:
            reach = max(map(abs, each.difference.interval(1 - alpha)))
            ends += [reach if math.isfinite(reach) else abs(each.difference.mean)]
    ends = sorted(end for end in ends if math.isfinite(end))
    return 1.06 * min(ends[-1], 4 * ends[int(0.75 * (len(ends) - 1))])
