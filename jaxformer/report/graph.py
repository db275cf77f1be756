"""The graph of ablations: from experiments to their changes, coloured by verdict."""

import itertools
import textwrap
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.outcome import Outcome
from jaxformer.ablation.verdict import Word
from jaxformer.experiment.lineage import describe_change
from jaxformer.host.console import plain
from jaxformer.report.findings import (
    Finding,
    collect_findings,
    describe_parent_at_best,
    device_hours,
    mean_accuracies,
    mean_bits_per_byte,
    task_names,
)
from jaxformer.report.formatting import percent, signed, two_lines, with_error
from jaxformer.report.style import COLOURS, GREY, INK, make_figure, spread

# Sizes of a box, and gaps between boxes of a column and between columns, inches.
WIDTH, HEIGHT, _GAP, _GUTTER = 2.75, 1.16, 0.2, 0.6

# A layer with more boxes has two columns, with the boxes of one between the gaps of the other.
_COLUMN = 12


def study_graph(outcome: Outcome):
    """Returns a `networkx.DiGraph` of the experiments of a study, in its order, with edges from parents to children."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(one.name for one in outcome.experiments)
    graph.add_edges_from(
        (parent.name, one.name) for one in outcome.experiments for parent in one.parents if parent.name in graph
    )
    return graph


class Place(NamedTuple):
    """The place of a box in its layer, or of an edge that passes a layer: inches, y downwards."""

    x: float
    """Left end of the box."""
    y: float
    """Middle of the box."""
    left: float
    """Left end of the layer."""
    right: float
    """Right end of the layer."""


def lay_out(graph) -> tuple[dict[str, Place], dict[tuple[str, str], list[Place]]]:
    """Returns a layered drawing of a directed acyclic graph (Sugiyama, Tagawa and Toda 1981).

    The layer of a node is its longest path from a root. An edge that passes a layer takes a place in it, which keeps it
    clear of boxes. A place is as near to the mean height of its predecessors as its neighbours allow.

    Returns:
        The place of each node, and for each edge the places from its parent's to its child's, one in each layer.
    """
    import networkx as nx

    layer = {name: i for i, names in enumerate(nx.topological_generations(graph)) for name in names}
    routes: dict[tuple[str, str], list[Hashable]] = {}
    passing = nx.create_empty_copy(graph)
    for parent, child in graph.edges:
        between = [(parent, child, i) for i in range(layer[parent] + 1, layer[child])]
        routes[parent, child] = [parent, *between, child]
        nx.add_path(passing, routes[parent, child])
    places: dict[Hashable, Place] = {}
    left = 0.0
    for items in nx.topological_generations(passing):
        parents = {item: [places[one].y for one in passing.predecessors(item)] for item in items}
        wanted = {item: float(np.mean(heights)) if heights else 0.0 for item, heights in parents.items()}
        items = sorted(items, key=wanted.__getitem__)
        columns = 2 if len(items) > _COLUMN else 1
        heights = spread([wanted[item] for item in items], (HEIGHT + _GAP) / columns)
        right = left + columns * (WIDTH + _GUTTER) - _GUTTER
        for i, (item, y) in enumerate(zip(items, heights, strict=True)):
            places[item] = Place(left + i % columns * (WIDTH + _GUTTER), y, left, right)
        left = right + _GUTTER
    return {name: places[name] for name in graph}, {edge: [places[one] for one in routes[edge]] for edge in routes}


def edge_path(route: Sequence[Place]):
    """Returns the `matplotlib.path.Path` of an edge: level across layers, and curved from one to the next."""
    from matplotlib.path import Path

    points, codes = [(route[0].x + WIDTH, route[0].y)], [Path.MOVETO]
    for one, following in itertools.pairwise(route):
        middle = (one.right + following.left) / 2
        points += [(one.right, one.y), (middle, one.y), (middle, following.y), (following.left, following.y)]
        codes += [Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    return Path([*points, (route[-1].x, route[-1].y)], [*codes, Path.LINETO])


class Box(NamedTuple):
    """An experiment in the graph."""

    title: str
    word: Word | None
    """The decision on it; None for one that no question led to."""
    change: str
    """The change, or the question; on one line or two."""
    difference: str
    details: str
    cost: str
    is_flagged: bool = False
    """Drawn with a broken line: too little is known of it."""
    is_parent: bool = False
    """Drawn with a thick line: it is the parent of a generation."""


def draw_graph(outcome: Outcome):
    """Returns the graph of ablations, from experiments to their changes, coloured by verdict."""
    findings = {finding.name: finding for finding in collect_findings(outcome)}
    tasks, boxes = task_names(outcome), {}
    for one in outcome.experiments:
        finding = findings.get(one.name)
        word = finding.word if finding else None
        lines = box_lines(outcome, finding, tasks)
        boxes[one.name] = Box(one.name, word, *lines, is_flagged=word is Word.NOT_COMPARED)
    legend = "In each box: the change; bits per byte, minus its parent's, ± standard error; "
    legend += f"accuracy in % and its change ({' · '.join(tasks)}); " if tasks else ""
    return draw_boxes(study_graph(outcome), boxes, legend + "device hours of all runs, and seeds of the difference.")


def draw_boxes(graph, boxes: Mapping[str, Box], legend: str):
    """Returns the drawing of a directed acyclic graph.

    Args:
        boxes: of each node.
        legend: above it.
    """
    from matplotlib.patches import PathPatch

    places, routes = lay_out(graph)
    right = max(place.right for place in places.values())
    lines = textwrap.wrap(plain(legend), int(right * 15))
    border, head = 0.15, 0.1 + 0.2 * len(lines)
    top = min(place.y for place in places.values()) - HEIGHT / 2
    bottom = max(place.y for place in places.values()) + HEIGHT / 2
    figure = make_figure(right + 2 * border, bottom - top + 2 * border + head, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-border, right + border), ylim=(bottom + border, top - border - head))
    axes.axis("off")
    for (_, child), route in routes.items():
        colour, width = _colour(boxes[child]), 2.8 if boxes[child].is_parent else 1.3
        axes.add_patch(PathPatch(edge_path(route), fc="none", ec=colour, lw=width, alpha=0.75, zorder=1))
    for name, place in places.items():
        _draw_box(axes, place, boxes[name])
    for i, text in enumerate(lines):
        axes.text(0, top - head + 0.05 + 0.2 * i, text, fontsize=7.8, color=GREY, va="center")
    return figure


def _colour(box: Box) -> str:
    return COLOURS[box.word] if box.word else INK


def box_lines(outcome: Outcome, finding: Finding | None, tasks: Sequence[str]) -> list[str]:
    """Returns the lines in the box of a variant, None for the study's parent: change, difference, scores, and cost."""
    if finding is None:
        runs = outcome.runs[outcome.study.parent]
        scores = mean_accuracies(runs)
        shown = " · ".join(percent(scores[task]) for task in tasks if task in scores)
        about = "; ".join(text for text in ("the parent of the study", describe_parent_at_best(outcome)) if text)
        hours = device_hours(outcome, outcome.study.parent)
        return [about, f"{mean_bits_per_byte(runs)} bits per byte", shown, describe_cost(hours, len(runs))]
    changes = describe_change(finding.lineage["change"])
    change = changes[0] + (f" (+{len(changes) - 1} more)" if len(changes) > 1 else "") if changes else ""
    if finding.is_merge:
        change = "joins " + " + ".join(parent.name for parent in finding.resolved.parents)
    difference = with_error(finding.difference) if finding.difference else "no difference known"
    compared = finding.comparison.tasks if finding.comparison else {}
    shown = " · ".join(
        f"{percent(compared[task].variant)} {signed(100 * compared[task].accuracy.mean, 1)}"
        for task in tasks
        if task in compared
    )
    cost = describe_cost(finding.hours, finding.seeds)
    cost += "; each at its best rate" * bool(finding.comparison and finding.comparison.best_rates)
    return [change, difference, shown, cost]


def describe_cost(hours: float, seeds: int) -> str:
    """Returns the last line of a box."""
    return f"{hours:.2f} device hours, {seeds} seed{'s' * (seeds != 1)}"


def _draw_box(axes, place: Place, box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    colour, word = _colour(box), box.word.value if box.word else ""
    word = "CHEAPER" if box.word is Word.CHEAPER else word
    patch = FancyBboxPatch(
        (place.x + 0.05, place.y - HEIGHT / 2 + 0.05),
        WIDTH - 0.1,
        HEIGHT - 0.1,
        boxstyle="round,pad=0.05,rounding_size=0.07",
        fc=_tint(colour),
        ec=colour,
        lw=2.8 if box.is_parent else 1.4,
        ls="--" if box.is_flagged else "-",
        zorder=2,
    )
    axes.add_patch(patch)
    change = two_lines(box.change, 47)
    small = {"color": GREY, "fontsize": 7.2}
    texts = (
        (0.0, plain(box.title, 34), {"weight": "bold", "fontsize": 9}),
        *((0.34 - 0.075 * len(change) + 0.15 * i, line, small) for i, line in enumerate(change)),
        (0.51, f"{word}  {box.difference}".strip(), {"color": colour, "weight": "bold"}),
        (0.69, plain(box.details, 46), {}),
        (0.87, box.cost, small),
    )
    for below, text, style in texts:
        style = {"fontsize": 7.8, "color": INK} | style
        line = axes.text(place.x + 0.1, place.y - 0.43 + below, text, va="center", zorder=3, **style)
        line.set_clip_path(patch)


def _tint(colour: str, share: float = 0.1) -> str:
    """Returns a colour mixed with white."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - share * (255 - part)):02X}" for part in parts)
