"""The report of a study is the same each time, and says what it needs."""

import sys

import pytest
from fake_runs import FIRST_ENDS

from jaxformer.config import UserError
from jaxformer.report.write import LIBRARIES, write_report

pytestmark = pytest.mark.device_free


pytest.importorskip("matplotlib")
pytest.importorskip("networkx")
pytest.importorskip("jinja2")


def test_the_same_outcome_gives_the_same_bytes(outcome, report, tmp_path):
    other = write_report(outcome, tmp_path / "again").parent
    names = sorted(path.name for path in report.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert {"index.html", "report.md", "forest.png", "graph.png", "losses.png", "paired.png", "returns.png"} == set(
        names
    )
    for name in names:
        assert (report / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("library", LIBRARIES)
def test_without_a_library_one_line_says_what_to_install(outcome, tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"^the report needs {library}: pip install 'jaxformer\[report\]'$"):
        write_report(outcome, tmp_path / "report")


def test_fake_runs_end_at_the_time_that_is_asked_for(outcome):
    first = outcome.runs["root"][0].workdir / "summary.json"
    assert first.stat().st_mtime == FIRST_ENDS
