"""The graph of ablations is drawn without an overlap."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.report.graph import HEIGHT, WIDTH, edge_path, lay_out

pytestmark = pytest.mark.device_free

pytest.importorskip("matplotlib")
networkx = pytest.importorskip("networkx")


def assert_clear(names, edges):
    """No box of the graph overlaps another, no edge passes a box, and edges lead to the right."""
    from matplotlib.transforms import Bbox

    graph = networkx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from(edges)
    places, routes = lay_out(graph)
    boxes = {name: Bbox.from_bounds(x, y - HEIGHT / 2, WIDTH, HEIGHT) for name, (x, y, _, _) in places.items()}
    for one, other in itertools.combinations(boxes.values(), 2):
        assert not one.overlaps(other)
    assert set(routes) == set(edges)
    for edge, route in routes.items():
        path = edge_path(route)
        crossed = {name for name, box in boxes.items() if path.intersects_bbox(box, filled=False)}
        assert crossed <= set(edge), f"{edge} passes {crossed}"
        assert boxes[edge[0]].x1 < boxes[edge[1]].x0


def test_boxes_of_the_graph_do_not_overlap_and_edges_pass_between_them():
    names = ["root", *(f"a{i}" for i in range(20)), *(f"b{i}" for i in range(4)), "end"]
    edges = [("root", f"a{i}") for i in range(20)] + [(f"a{5 * i}", f"b{i}") for i in range(4)]
    edges += [("b0", "end"), ("root", "end"), ("a7", "end")]
    assert_clear(names, edges)


@given(st.lists(st.sets(st.integers(0, 30), max_size=3), min_size=1, max_size=31))
def test_no_edge_of_any_graph_passes_a_box(parents):
    edges = [(str(i), str(child)) for child, earlier in enumerate(parents) for i in sorted(earlier) if i < child]
    assert_clear([str(i) for i in range(len(parents))], edges)


def test_boxes_stand_in_the_order_of_the_study():
    graph = networkx.DiGraph([("root", name) for name in "dbca"])
    places, _ = lay_out(graph)
    assert sorted("abcd", key=lambda name: places[name].y) == list("dbca")
    assert places["root"].y == pytest.approx(sum(places[name].y for name in "abcd") / 4)
