"""Where the boxes and edges of a graph go."""

import itertools
from collections.abc import Sequence

import numpy as np

# Of a box, inches; boxes of a layer beyond the last number stand in two columns.
WIDTH, HEIGHT = 2.75, 1.0
_GAP, _GUTTER, _COLUMN = 0.22, 0.6, 12


def lay_out(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> tuple[dict, dict, list[tuple[float, float]]]:
    """Returns a layered drawing of a graph: where nodes and edges go, and the columns.

    A layer is as far from the roots as its longest path; an edge that passes a layer takes a place in it; the order
    within layers follows the mean place of the neighbours (Sugiyama, Tagawa and Toda 1981). A long layer stands in two
    columns, the one between the gaps of the other.

    Args:
        names: of the nodes, in the order that decides where nothing else does; parents before children.
        edges: (parent, child).

    Returns:
        (x, y) of each node's left middle, for each edge the heights at which it passes each column from its parent's on
        to its child's, and (left, right) of each column; inches, y downwards.
    """
    layer = dict.fromkeys(names, 0)
    for name in names:
        layer[name] = max([layer[parent] + 1 for parent, child in edges if child == name], default=0)
    chains = {}
    layers: list[list] = [[] for _ in range(max(layer.values()) + 1)]
    for name in names:
        layers[layer[name]].append(name)
    for parent, child in edges:
        passing = [(parent, child, i) for i in range(layer[parent] + 1, layer[child])]
        for i, place in zip(range(layer[parent] + 1, layer[child]), passing, strict=True):
            layers[i].append(place)
        chains[parent, child] = [parent, *passing, child]
    links = [link for chain in chains.values() for link in itertools.pairwise(chain)]
    for sweep in range(8):
        order = range(1, len(layers)) if sweep % 2 == 0 else range(len(layers) - 2, -1, -1)
        place = {item: i / max(len(each) - 1, 1) for each in layers for i, item in enumerate(each)}
        for i in order:
            side = [(b, a) if sweep % 2 == 0 else (a, b) for a, b in links]

            def mean(item, side=side, place=place):
                found = [place[other] for one, other in side if one == item]
                return float(np.mean(found)) if found else place[item]

            layers[i].sort(key=mean)
            place |= {item: j / max(len(layers[i]) - 1, 1) for j, item in enumerate(layers[i])}
    is_double = [len(each) > _COLUMN for each in layers]
    pitch = [(HEIGHT + _GAP) * (0.5 if double else 1.0) for double in is_double]
    tall = max(step * (len(each) - 1) for step, each in zip(pitch, layers, strict=True)) + HEIGHT
    height = {}
    for each, step in zip(layers, pitch, strict=True):
        top = (tall - step * (len(each) - 1)) / 2
        height |= {item: top + i * step for i, item in enumerate(each)}
    columns, first, positions = [], [], {}
    for each, double in zip(layers, is_double, strict=True):
        first.append(len(columns))
        for _ in range(1 + double):
            left = columns[-1][1] + _GUTTER if columns else 0.0
            columns.append((left, left + WIDTH))
        for i, item in enumerate(each):
            if isinstance(item, str):
                positions[item] = (columns[first[-1] + (i % 2 if double else 0)][0], height[item])
    routes = {}
    ends = [*first[1:], len(columns)]
    for (parent, child), chain in chains.items():
        heights = []
        for i, item in enumerate(chain, layer[parent]):
            begin, end = first[i], ends[i]
            if item == parent:
                begin = next(j for j in range(begin, end) if columns[j][0] == positions[parent][0])
            if item == child:
                end = 1 + next(j for j in range(begin, end) if columns[j][0] == positions[child][0])
            heights += [(j, height[item]) for j in range(begin, end)]
        routes[parent, child] = heights
    return positions, routes, columns
