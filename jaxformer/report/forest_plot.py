"""The forest plot: differences with their intervals and expectations, of a study or of all questions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxformer.ablation.outcome import Outcome
from jaxformer.ablation.verdict import Word
from jaxformer.host.console import plain
from jaxformer.report.findings import Finding, beside_expectation, collect_findings
from jaxformer.report.formatting import two_lines, with_error
from jaxformer.report.style import COLOURS, GREY, INK, make_figure

_BAND = "#DCEAF5"


class Row(NamedTuple):
    """A question in the plot; differences are variant minus parent, bits per byte; NaN if unknown."""

    name: str
    question: str
    word: Word
    summary: str
    """The finding, in words."""
    expected: tuple[float, float]
    mean: float = math.nan
    error: float = math.nan
    """Standard error; NaN if it is from documents alone."""
    interval: tuple[float, float] = (math.nan, math.nan)
    margin: float = math.nan


def draw_forest(outcome: Outcome):
    """Returns the plot of a study's differences, the band of equals, and expectations."""
    return draw_rows([_row(finding) for finding in collect_findings(outcome)])


def _row(finding: Finding) -> Row:
    margin = finding.comparison.margin if finding.comparison else math.nan
    about = finding.name, finding.question, finding.word
    if (difference := finding.difference) is None:
        summary = "no finished run" if not finding.runs else "see the table"
        return Row(*about, summary, finding.expected, margin=margin)
    summary = f"{with_error(difference)}  {beside_expectation(finding)}"
    error = difference.standard_error if difference.seeds_counted else math.nan
    interval = difference.interval(1 - finding.level)
    return Row(*about, summary, finding.expected, difference.mean, error, interval, margin)


def draw_rows(rows: Sequence[Row]):
    """Returns the plot, a question a row."""
    figure = make_figure(11.5, 1.1 + 0.5 * len(rows))
    left, axes, right = figure.subplots(1, 3, width_ratios=(3.4, 5.2, 2.7), sharey=True)
    limit = axis_limit(rows)
    for y, row in enumerate(rows):
        colour = COLOURS[row.word]
        if math.isfinite(margin := min(row.margin, limit)):
            axes.barh(y, 2 * margin, 1, -margin, color=_BAND, lw=0, zorder=0)
        low, high = (min(max(x, -limit), limit) for x in row.expected)
        axes.barh(y, high - low, 0.52, low, color="none", edgecolor="#9CA0A6", lw=0.9, hatch="////", alpha=0.55)
        left.text(1, y - 0.18, plain(row.name, 44), ha="right", va="center", weight="bold", fontsize=9)
        for i, line in enumerate(two_lines(row.question, 66)):
            left.text(1, y + 0.14 + 0.24 * i, line, ha="right", va="center", color=GREY, fontsize=7)
        right.text(0, y - 0.18, row.word.value, va="center", color=colour, weight="bold", fontsize=8.5)
        right.text(0, y + 0.14, row.summary, va="center", fontsize=7.5)
        if not math.isnan(row.mean):
            _draw_difference(axes, y, row, limit, colour)
    axes.axvline(0, color=INK, lw=1)
    xlabel = "bits per byte, variant minus parent (left is better)"
    axes.set(xlim=(-limit, limit), ylim=(len(rows) - 0.4, -0.6), xlabel=xlabel)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.spines["left"].set_visible(False)
    for side in (left, right):
        side.axis("off")
        side.set_xlim(0, 1)
    figure.legend(handles=_legend(rows), loc="outside upper center", ncols=4, fontsize=7.5)
    return figure


def _draw_difference(axes, y: int, row: Row, limit: float, colour: str) -> None:
    low, high = row.interval
    if low < limit and high > -limit:
        axes.plot([max(low, -limit), min(high, limit)], [y, y], color=colour, lw=1.3, solid_capstyle="butt")
    inner = [max(row.mean - row.error, -limit), min(row.mean + row.error, limit)]
    if inner[0] < inner[1] and math.isfinite(row.error):
        axes.plot(inner, [y, y], color=colour, lw=4, alpha=0.55, solid_capstyle="butt")
    if low < -limit:
        axes.plot([-limit], [y], "<", color=colour, ms=5, clip_on=False)
    if high > limit:
        axes.plot([limit], [y], ">", color=colour, ms=5, clip_on=False)
    if abs(row.mean) <= limit:
        face = colour if math.isfinite(row.error) else "white"
        axes.plot([row.mean], [y], "o", color=colour, mfc=face, ms=6.5, mew=1.4, zorder=4)


def _legend(rows: Sequence[Row]) -> list:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    band = [Patch(fc=_BAND, label="counts as equal")] if any(math.isfinite(row.margin) for row in rows) else []
    return [
        Line2D([], [], color=INK, marker="o", lw=1.3, label="difference, ±1 standard error, interval"),
        Line2D([], [], color=INK, marker="o", mfc="white", lw=1.3, label="one seed: by documents alone"),
        *band,
        Patch(fc="none", ec="#9CA0A6", hatch="////", label="expected beforehand"),
    ]


def axis_limit(rows: Sequence[Row]) -> float:
    """Returns the end of the axis: beyond all values but outliers, for any order of the rows."""
    ends = [max(map(abs, row.expected)) for row in rows]
    for row in rows:
        reach = max(map(abs, row.interval))
        ends.append(reach if math.isfinite(reach) else abs(row.mean))
    ends = sorted(end for end in ends if math.isfinite(end))
    return 1.06 * (min(ends[-1], 4 * ends[int(0.75 * (len(ends) - 1))]) or 1e-4)
