"""The return of a study on its device hours, and on the complexity that it added."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.outcome import Outcome
from jaxformer.ablation.verdict import Word
from jaxformer.experiment.lineage import changed_settings
from jaxformer.host.console import plain
from jaxformer.report.findings import Finding, collect_findings, device_hours
from jaxformer.report.formatting import signed
from jaxformer.report.graph import study_graph
from jaxformer.report.style import BEHIND, COLOURS, GREY, INK, make_figure, spread


class Return(NamedTuple):
    """The return of a study after one of its variants."""

    name: str
    word: Word
    hours: float
    """Device hours of all runs up to it, including those stopped early."""
    best: float
    """Improvement of the best kept experiment so far over the study's parent, bits per byte: its `total`."""
    added: float
    """Sum of the improvements of all kept changes so far, each shrunken, without merges, which change nothing new. NaN
    if comparisons are too few to estimate the share of chance.
    """
    total: float
    """Improvement of this one, kept or not, over the study's parent; NaN if unknown."""
    is_measured: bool
    """Whether `total` was measured against the study's parent: see `measured_gain`; else it is the sum of the shrunken
    gains along the line of parents.
    """
    fields: int
    """Settings in which it differs along that line; a part that is put in counts as one, whatever its fields."""


def returns(outcome: Outcome) -> list[Return]:
    """Returns the return after each variant: in the study's order, but none before its parents."""
    import networkx as nx

    spent = device_hours(outcome, outcome.study.parent)
    best = added = 0.0
    sums, changed, points = {outcome.study.parent: 0.0}, {outcome.study.parent: {}}, []
    graph = study_graph(outcome)
    order = list(nx.lexicographical_topological_sort(graph, key=list(graph).index))
    findings = {finding.name: finding for finding in collect_findings(outcome)}
    for finding in sorted(findings.values(), key=lambda finding: order.index(finding.name)):
        measured = measured_gain(finding, findings)
        is_measured = math.isfinite(measured)
        sums[finding.name] = sums.get(finding.parent, math.nan) - finding.shrunken
        total = measured if is_measured else sums[finding.name]
        changes = [*(changed.get(parent.name, {}) for parent in finding.resolved.parents), finding.lineage["change"]]
        changed[finding.name] = {path: values for change in changes for path, values in change.items()}
        spent += finding.hours
        if finding.word is Word.KEEP:
            best = max(best, total) if math.isfinite(total) else best
            added -= 0.0 if finding.is_merge else finding.shrunken
        fields = len(changed_settings(changed[finding.name]))
        points.append(Return(finding.name, finding.word, spent, best, added, total, is_measured, fields))
    return points


def measured_gain(finding: Finding, findings: Mapping[str, Finding]) -> float:
    """Returns by how much a variant is better than the study's parent: the sum of differences along its parents.

    Its ends are runs of the same seeds, since each comparison along the line has the same seeds, all at their own
    learning rates or all at their best ones. NaN if they have not, or if one is unknown.

    Args:
        findings: of all variants, by name.
    """
    line = [finding]
    while line[-1].parent in findings:
        line.append(findings[line[-1].parent])
    compared = [one.comparison for one in line if one.comparison and one.difference]
    is_measured = len({(one.seeds, bool(one.best_rates)) for one in compared}) == 1 and len(compared) == len(line)
    return -sum(one.difference.mean for one in line if one.difference) if is_measured else math.nan


def draw_returns(outcome: Outcome):
    """Returns the plot of the improvement against the device hours spent, and against the number of fields changed.

    None if nothing was kept.
    """
    points = returns(outcome)
    if not any(one.word is Word.KEEP for one in points):
        return None
    base = device_hours(outcome, outcome.study.parent)
    figure = make_figure(11.5, max(4.3, 1.2 + 0.2 * _largest_column(points)))
    spent, fields = figure.subplots(1, 2, width_ratios=(1.15, 1))
    at = [0.0, base, *(one.hours for one in points)]
    for key, style, label in (
        ("added", {"ls": (0, (2, 1.5)), "color": GREY}, "kept changes, shrunken, if they added up"),
        ("best", {"ls": "-", "color": COLOURS[Word.KEEP]}, describe_best(points)),
    ):
        values = [getattr(one, key) for one in points]
        if values and math.isfinite(values[-1]):
            spent.step(at, [0.0, 0.0, *values], where="post", lw=1.8, label=label, **style)
    for one in points:
        marker = "o" if one.word is Word.KEEP else "|"
        spent.plot([one.hours], [one.best], marker, color=COLOURS[one.word], ms=7, mew=1.6, zorder=4, clip_on=False)
    spent.plot([base], [0], "|", color=INK, ms=7, mew=1.6)
    spent.set(title="Returned for the compute", xlim=(0, max(at) * 1.03 or 1))
    spent.set_xlabel("device hours of all runs, including the parent's and those of rejected changes")
    spent.set_ylabel("bits per byte below the study's parent")
    top = max([value for one in points for value in (one.best, one.added) if math.isfinite(value)] + [1e-4])
    spent.set_ylim(-0.06 * top, 1.3 * top)
    if spent.get_legend_handles_labels()[0]:
        spent.legend(loc="upper left", fontsize=7.5)
    kept = [one for one in points if one.word is Word.KEEP]
    for number, one in enumerate(kept):
        beside = {"xytext": (-3, 7 if number % 2 == 0 else 17), "textcoords": "offset points", "ha": "right"}
        spent.annotate(plain(one.name, 22), (one.hours, one.best), fontsize=7, color=COLOURS[one.word], **beside)
    _draw_fields(fields, [one for one in points if math.isfinite(one.total)])
    return figure


def describe_best(points: Sequence[Return]) -> str:
    """Returns the label of the line of the best kept experiment."""
    kept = [one for one in points if one.word is Word.KEEP and math.isfinite(one.total)]
    is_measured = all(one.is_measured for one in kept)
    return f"best kept experiment, {'measured' if is_measured else 'measured or a sum of shrunken gains'}"


def _largest_column(points: Sequence[Return]) -> int:
    numbers = [one.fields for one in points]
    return max((numbers.count(each) for each in set(numbers)), default=1)


def _draw_fields(axes, points: Sequence[Return]) -> None:
    """Draws the improvement of each variant against its number of fields, with labels that do not overlap."""
    axes.axhline(0, color=INK, lw=0.9)
    axes.set(
        title="Returned for the complexity",
        xlabel="settings changed since the study's parent",
        ylabel="bits per byte below the study's parent",
    )
    largest = max((one.fields for one in points), default=1)
    axes.set_xlim(0.6, largest + 0.95)
    axes.set_xticks(range(1, largest + 1))
    if not points:
        axes.text(0.5, 0.5, "nothing is compared yet", transform=axes.transAxes, ha="center", color=GREY)
        return
    values = np.array([one.total for one in points])
    middle, reach = float(np.median(values)), float(np.quantile(np.abs(values - np.median(values)), 0.8)) or 1e-3
    low, high = max(values.min(), middle - 2.5 * reach), min(values.max(), middle + 2.5 * reach)
    low, high = min(low, 0.0) - 0.06 * (high - low + 1e-6), max(high, 0.0) + 0.06 * (high - low + 1e-6)
    axes.set_ylim(low, high)
    for number in sorted({one.fields for one in points}):
        column = sorted((one for one in points if one.fields == number), key=lambda one: one.total)
        apart = (high - low) * min(0.046, 0.96 / len(column))
        places = spread([min(max(one.total, low), high) for one in column], apart, low + apart / 2, high - apart / 2)
        for one, place in zip(column, places, strict=True):
            y = min(max(one.total, low), high)
            marker = "o" if y == one.total else ("v" if y > one.total else "^")
            axes.plot([number], [y], marker, color=COLOURS[one.word], ms=5.5, zorder=4, clip_on=False)
            axes.plot([number + 0.03, number + 0.1], [y, place], color="#C5C8CC", lw=0.7, zorder=1)
            beyond = "" if y == one.total else f" ({signed(one.total, 3)})"
            axes.text(
                number + 0.12,
                place,
                plain(one.name, 26) + beyond,
                va="center",
                fontsize=7,
                color=COLOURS[one.word],
                bbox=BEHIND,
            )
