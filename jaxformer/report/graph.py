"""The graph of ablations: from what is changed to its changes, coloured by verdict."""

import itertools
from collections.abc import Sequence

import numpy as np

from jaxformer.ablation.outcome import Outcome
from jaxformer.ablation.verdict import Word
from jaxformer.report.answers import Answer, answers, hours_of, parents_first, scores_of
from jaxformer.report.formatting import describe_change, percent, plain, signed, with_error
from jaxformer.report.graph_layout import HEIGHT, WIDTH, lay_out
from jaxformer.report.style import COLOURS, GREY, INK, make_figure


def draw_graph(outcome: Outcome):
    """Returns the graph of ablations, from what is changed to its changes, coloured by verdict."""
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.path import Path as Curve

    found = {each.name: each for each in answers(outcome)}
    names = parents_first(outcome.experiments)
    edges = graph_edges(outcome)
    positions, routes, columns = lay_out(names, edges)
    wide, tall = columns[-1][1], max(y for _, y in positions.values()) + HEIGHT / 2
    border, head = 0.15, 0.5
    figure = make_figure(wide + 2 * border, tall + 2 * border + head, layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-border, wide + border), ylim=(tall + border, -border - head))
    axes.axis("off")
    for (_, child), heights in routes.items():
        curve, codes = [(columns[heights[0][0]][1], heights[0][1])], [Curve.MOVETO]
        for (i, y), (j, next_y) in itertools.pairwise(heights):
            begin, end = columns[i][1], columns[j][0]
            middle = (begin + end) / 2
            curve += [(middle, y), (middle, next_y), (end, next_y)]
            codes += [Curve.CURVE4] * 3
            if (j, next_y) != heights[-1]:
                curve.append((columns[j][1], next_y))
                codes.append(Curve.LINETO)
        colour = COLOURS[found[child].word]
        axes.add_patch(PathPatch(Curve(curve, codes), fc="none", ec=colour, lw=1.3, alpha=0.75, zorder=1))
    tasks = list(scores_of(outcome.evidence[outcome.study.parent]))
    for name, (x, y) in positions.items():
        each = found.get(name)
        colour = COLOURS[each.word] if each else INK
        place = (x + 0.05, y - HEIGHT / 2 + 0.05), WIDTH - 0.1, HEIGHT - 0.1
        dashes = "--" if each and each.word is Word.NOT_COMPARED else "-"
        shape = "round,pad=0.05,rounding_size=0.07"
        box = FancyBboxPatch(*place, boxstyle=shape, fc=_tint(colour), ec=colour, lw=1.4, ls=dashes, zorder=2)
        axes.add_patch(box)
        for i, (text, style) in enumerate(_node_lines(outcome, name, each, tasks)):
            style = {"fontsize": 7.8, "color": INK} | style
            line = axes.text(x + 0.1, y - 0.36 + 0.185 * i, text, va="center", zorder=3, **style)
            line.set_clip_path(box)
    told = "Each box: the change; bits per byte against its parent ± standard error; "
    told += f"accuracy in % and its change: {' · '.join(tasks)}" if tasks else "no tasks"
    for i, text in enumerate((told, "Left: what is changed. Right: its changes. A merge has two parents.")):
        axes.text(0, -head + 0.05 + 0.2 * i, plain(text, int(wide * 16)), fontsize=7.8, color=GREY, va="center")
    return figure


def graph_edges(outcome: Outcome) -> list[tuple[str, str]]:
    """Returns (parent, child) of every experiment of a study."""
    names = {one.name for one in outcome.experiments}
    return [(p.name, one.name) for one in outcome.experiments for p in one.parents if p.name in names]


def node_facts(outcome: Outcome, name: str, each: Answer | None, tasks: Sequence[str]) -> list[str]:
    """Returns what a node of the graph tells: change, difference, scores, and cost."""
    runs = outcome.evidence.get(name, [])
    scores = scores_of(runs)
    spent = f"{hours_of(outcome, name):.3g} device h, {len(runs)} seed{'s' * (len(runs) != 1)}"
    if each is None:
        bits = float(np.mean([run.bits_per_byte for run in runs]))
        shown = " · ".join(f"{100 * scores[task]:.1f}" for task in tasks if task in scores)
        return ["the parent of the study", f"{bits:.4f} bits per byte", shown, spent]
    changes = describe_change(each.lineage["change"])
    change = changes[0] + (f" (+{len(changes) - 1} more)" if len(changes) > 1 else "") if changes else ""
    if len(each.resolved.parents) > 1:
        change = "joins " + " + ".join(parent.name for parent in each.resolved.parents)
    known = each.difference
    told = with_error(known) if known else "no difference known"
    compared = each.comparison.tasks if each.comparison else {}
    shown = " · ".join(
        f"{percent(compared[task].variant)} {signed(100 * compared[task].accuracy.mean, 1)}"
        for task in tasks
        if task in compared
    )
    return [change, told, shown, spent]


def _node_lines(outcome: Outcome, name: str, each: Answer | None, tasks: Sequence[str]) -> list[tuple[str, dict]]:
    change, told, scores, spent = node_facts(outcome, name, each, tasks)
    colour = COLOURS[each.word] if each else INK
    word = {Word.CHEAPER: "CHEAPER"}.get(each.word, each.word.value) if each else ""
    return [
        (plain(name, 34), {"weight": "bold", "fontsize": 9}),
        (plain(change, 46), {"color": GREY, "fontsize": 7.2}),
        (f"{word}  {told}".strip(), {"color": colour, "weight": "bold"}),
        (plain(scores, 46), {}),
        (spent, {"color": GREY}),
    ]


def _tint(colour: str, share: float = 0.1) -> str:
    """Returns a colour thinned with white."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - share * (255 - part)):02X}" for part in parts)
