"""The Markdown file of a study shows every text literally, in its tables and in its graph."""

import html
import re

import pytest
from fake_runs import HOSTILE

from jaxformer.report.graph import study_graph

pytestmark = pytest.mark.device_free


pytest.importorskip("matplotlib")
pytest.importorskip("networkx")
pytest.importorskip("jinja2")


def test_hostile_text_is_shown_literally(report):
    text = " ".join(HOSTILE.split())
    markdown = (report / "report.md").read_text()
    assert not re.search(r"<(?!br>|br/>)", markdown) and html.unescape(markdown).count(text) >= 2
    widths = {len(re.findall(r"\|", line)) for line in markdown.splitlines() if line.startswith("| ")}
    assert len(widths) == 2, "the rows of the two tables have as many cells as their heads"


def test_hostile_text_cannot_leave_its_place_in_the_mermaid_graph(report):
    markdown = (report / "report.md").read_text()
    graph = markdown[markdown.index("```mermaid") + 10 :]
    graph = graph[: graph.index("```")]
    assert "#60;script#62;alert(1)" in graph
    for line in graph.splitlines():
        for label in re.findall(r'\["(.*)"\]', line):
            assert not set(label.replace("<br/>", "")) & set('"<>`[]{}|&$\\')
            assert re.sub(r"#\d+;", "", label).count("#") == 0


def test_the_mermaid_graph_has_the_edges_of_the_study(report, outcome):
    markdown = (report / "report.md").read_text()
    graph = markdown[markdown.index("```mermaid") :]
    names = dict(re.findall(r'(n\d+)\["([\w ]+)<br', graph))
    edges = {(names[a], names[b]) for a, b in re.findall(r"(n\d+) --> (n\d+)", graph)}
    assert edges == set(study_graph(outcome).edges) >= {("muon", "joined"), ("swiglu", "joined"), ("root", "muon")}
