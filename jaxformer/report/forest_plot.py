"""The forest plot: the differences of a study with their intervals, beside what was expected."""

import math
from collections.abc import Sequence

from jaxformer.ablation.outcome import Outcome
from jaxformer.report.findings import Finding, collect_findings, compare_with_expectation
from jaxformer.report.formatting import plain, with_error
from jaxformer.report.style import COLOURS, GREY, INK, make_figure
from jaxformer.statistics.paired_difference import Difference

_BAND = "#DCEAF5"


def draw_forest(outcome: Outcome):
    """Returns the differences with their intervals, the band of equals, and what was expected."""
    findings = collect_findings(outcome)
    rows = len(findings)
    figure = make_figure(11.5, 1.1 + 0.5 * rows)
    left, axes, right = figure.subplots(1, 3, width_ratios=(3.4, 5.2, 2.5), sharey=True)
    limit = _forest_limit(findings)
    for y, finding in enumerate(findings):
        colour = COLOURS[finding.word]
        if finding.comparison and math.isfinite(margin := min(finding.comparison.margin, limit)):
            axes.barh(y, 2 * margin, 1, -margin, color=_BAND, lw=0, zorder=0)
        low, high = (min(max(x, -limit), limit) for x in finding.expected)
        axes.barh(y, high - low, 0.52, low, color="none", edgecolor="#9CA0A6", lw=0.9, hatch="////", alpha=0.55)
        left.text(1, y - 0.16, plain(finding.name, 44), ha="right", va="center", weight="bold", fontsize=9)
        left.text(1, y + 0.22, plain(finding.question, 68), ha="right", va="center", color=GREY, fontsize=7)
        right.text(0, y - 0.16, finding.word.value, va="center", color=colour, weight="bold", fontsize=8.5)
        if finding.difference is None:
            summary = "no finished run" if not finding.runs else "see the table"
        else:
            _forest_row(axes, y, finding.difference, finding.level, limit, colour)
            comparison = compare_with_expectation(finding.difference, finding.expected, finding.level)
            summary = f"{with_error(finding.difference)}  {comparison}"
        right.text(0, y + 0.22, summary, va="center", fontsize=7.5)
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
    figure.legend(handles=_forest_legend(), loc="outside upper center", ncols=4, fontsize=7.5)
    return figure


def _forest_row(axes, y: int, difference: Difference, alpha: float, limit: float, colour: str) -> None:
    low, high = difference.interval(1 - alpha)
    face = colour if difference.seeds_counted else "white"
    if low < limit and high > -limit:
        axes.plot([max(low, -limit), min(high, limit)], [y, y], color=colour, lw=1.3, solid_capstyle="butt")
    error = difference.standard_error
    inner = [max(difference.mean - error, -limit), min(difference.mean + error, limit)]
    if inner[0] < inner[1]:
        axes.plot(inner, [y, y], color=colour, lw=4, alpha=0.55, solid_capstyle="butt")
    if low < -limit:
        axes.plot([-limit], [y], "<", color=colour, ms=5, clip_on=False)
    if high > limit:
        axes.plot([limit], [y], ">", color=colour, ms=5, clip_on=False)
    if abs(difference.mean) <= limit:
        axes.plot([difference.mean], [y], "o", color=colour, mfc=face, ms=6.5, mew=1.4, zorder=4)


def _forest_legend() -> list:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], color=INK, marker="o", lw=1.3, label="difference, ±1 standard error, interval"),
        Line2D([], [], color=INK, marker="o", mfc="white", lw=1.3, label="one seed: by documents alone"),
        Patch(fc=_BAND, label="counts as equal"),
        Patch(fc="none", ec="#9CA0A6", hatch="////", label="expected beforehand"),
    ]


def _forest_limit(findings: Sequence[Finding]) -> float:
    """Returns the end of the axis: all that is not far beyond the rest."""
    ends = [max(map(abs, finding.expected)) for finding in findings]
    for finding in findings:
        if finding.difference:
            reach = max(map(abs, finding.difference.interval(1 - finding.level)))
            ends += [reach if math.isfinite(reach) else abs(finding.difference.mean)]
    ends = sorted(end for end in ends if math.isfinite(end))
    return 1.06 * min(ends[-1], 4 * ends[int(0.75 * (len(ends) - 1))])
