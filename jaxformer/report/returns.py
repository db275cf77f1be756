"""What a study returned for its device hours, and for the complexity that it added."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.outcome import Outcome
from jaxformer.ablation.verdict import Word
from jaxformer.report.answers import answers, hours_of, parents_first
from jaxformer.report.formatting import plain, signed
from jaxformer.report.style import BEHIND, COLOURS, GREY, INK, make_figure


class Return(NamedTuple):
    """A point of what a study had returned after one of its variants."""

    name: str
    word: Word
    hours: float
    """Device hours of all runs up to it, those that were stopped early among them."""
    best: float
    """Improvement of the best experiment that was kept so far on the study's parent, bits per byte: measured, along its
    line of parents.
    """
    added: float
    """Improvement of all changes that were kept so far if they added up; merges, which change nothing new, are left
    out.
    """
    total: float
    """Total of this one, kept or not, along its line of parents; NaN where it is not known."""
    fields: int
    """Fields in which it was declared to differ along that line."""


def returns(outcome: Outcome) -> list[Return]:
    """Returns what a study had returned after each variant, in its order."""
    spent = hours_of(outcome, outcome.study.parent)
    best = added = 0.0
    totals, paths, found = {outcome.study.parent: 0.0}, {outcome.study.parent: frozenset()}, []
    waiting = {each.name: each for each in answers(outcome)}
    ranked = {name: i for i, name in enumerate(parents_first(outcome.experiments))}
    for each in sorted(waiting.values(), key=lambda each: ranked[each.name]):
        gain = -each.difference.mean if each.difference else math.nan
        totals[each.name] = totals.get(each.parent, math.nan) + gain
        joined = [paths.get(parent.name, frozenset()) for parent in each.resolved.parents]
        paths[each.name] = frozenset(each.lineage["change"]).union(*joined)
        spent += each.hours
        if each.word is Word.KEEP:
            best = max(best, totals[each.name]) if math.isfinite(totals[each.name]) else best
            added += gain if len(each.resolved.parents) == 1 else 0.0
        fields = len(paths[each.name])
        found.append(Return(each.name, each.word, spent, best, added, totals[each.name], fields))
    return found


def draw_returns(outcome: Outcome):
    """Returns the improvement against the device hours spent, and against the number of fields changed."""
    found = returns(outcome)
    base = hours_of(outcome, outcome.study.parent)
    figure = make_figure(11.5, max(4.3, 1.2 + 0.2 * _most_in_a_column(found)))
    spent, fields = figure.subplots(1, 2, width_ratios=(1.15, 1))
    at = [0.0, base, *(one.hours for one in found)]
    for key, style, label in (
        ("added", {"ls": (0, (2, 1.5)), "color": GREY}, "kept changes, if they added up"),
        ("best", {"ls": "-", "color": COLOURS[Word.KEEP]}, "best kept experiment, measured"),
    ):
        spent.step(at, [0.0, 0.0, *(getattr(one, key) for one in found)], where="post", lw=1.8, label=label, **style)
    for one in found:
        marker = "o" if one.word is Word.KEEP else "|"
        spent.plot([one.hours], [one.best], marker, color=COLOURS[one.word], ms=7, mew=1.6, zorder=4, clip_on=False)
    spent.plot([base], [0], "|", color=INK, ms=7, mew=1.6)
    spent.set(title="Returned for the compute", xlim=(0, max(at) * 1.03 or 1))
    spent.set_xlabel("device hours of all runs, parents' and rejected ones' among them")
    spent.set_ylabel("bits per byte saved on the study's parent")
    top = max([*(max(one.best, one.added) for one in found), 1e-4])
    spent.set_ylim(-0.06 * top, 1.18 * top)
    spent.legend(loc="upper left", fontsize=7.5)
    kept = [one for one in found if one.word is Word.KEEP]
    for number, one in enumerate(kept):
        beside = {"xytext": (-3, 7 if number % 2 == 0 else 17), "textcoords": "offset points", "ha": "right"}
        spent.annotate(plain(one.name, 22), (one.hours, one.best), fontsize=7, color=COLOURS[one.word], **beside)
    _draw_fields(fields, [one for one in found if math.isfinite(one.total)])
    return figure


def _most_in_a_column(found: Sequence[Return]) -> int:
    numbers = [one.fields for one in found]
    return max((numbers.count(each) for each in set(numbers)), default=1)


def _draw_fields(axes, found: Sequence[Return]) -> None:
    """Draws the improvement of each variant against its number of fields, with labels that do not overlap."""
    axes.axhline(0, color=INK, lw=0.9)
    axes.set(
        title="Returned for the complexity",
        xlabel="fields changed since the study's parent",
        ylabel="bits per byte saved",
    )
    most = max((one.fields for one in found), default=1)
    axes.set_xlim(0.6, most + 0.95)
    axes.set_xticks(range(1, most + 1))
    if not found:
        axes.text(0.5, 0.5, "nothing is compared yet", transform=axes.transAxes, ha="center", color=GREY)
        return
    values = np.array([one.total for one in found])
    middle, reach = float(np.median(values)), float(np.quantile(np.abs(values - np.median(values)), 0.8)) or 1e-3
    low, high = max(values.min(), middle - 2.5 * reach), min(values.max(), middle + 2.5 * reach)
    low, high = min(low, 0.0) - 0.06 * (high - low + 1e-6), max(high, 0.0) + 0.06 * (high - low + 1e-6)
    axes.set_ylim(low, high)
    for number in sorted({one.fields for one in found}):
        column = sorted((one for one in found if one.fields == number), key=lambda one: one.total)
        apart = (high - low) * min(0.046, 0.96 / len(column))
        places = _spread([min(max(one.total, low), high) for one in column], apart, low + apart / 2, high - apart / 2)
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


def _spread(values: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Returns ascending values moved apart, by the least sum of squares, and between two ends where there is room."""
    from scipy.optimize import isotonic_regression

    steps = apart * np.arange(len(values))
    places = isotonic_regression(np.asarray(values) - steps).x
    return list(np.clip(places, low, max(low, high - steps[-1])) + steps)
