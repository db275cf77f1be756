"""The pages of the documentation that are generated hold all that they are made of; mkdocs is not needed for that."""

import html
import importlib.util
import json
import re
import types
from pathlib import Path

import pytest

from jaxformer.commands.program import COMMANDS
from jaxformer.experiment.command_line import sections
from jaxformer.experiment.resolution import load_experiment
from jaxformer.record import flatten

pytestmark = pytest.mark.device_free

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "tools" / "docs_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_command_has_its_help(site):
    page = site.commands()
    assert re.findall("^## (.*)", page, re.M) == [*COMMANDS]
    helps = re.findall(r"^## (.*?)\n\n```\n(.*?)\n```$", page, re.M | re.S)
    assert all(f"usage: jaxformer {name}" in text for name, text in helps if name != "harness")
    assert len(helps) == len(COMMANDS)


def test_each_field_has_a_meaning(site):
    page = site.configuration()
    found = dict(re.findall(r"^`(\w+\.\w+)` — .*\n:   (.*)", page, re.M))
    assert {name for name in flatten(load_experiment("baseline")) if "." in name} <= {*found, "training.phases"}
    assert all(found.values())
    assert re.findall("^## (.*)", page, re.M) == [*sections()]


def test_each_question_of_each_report_is_a_finding(site):
    page = site.findings()
    reports = sorted(ROOT.glob("tools/results/**/report.md"))
    assert reports and page.count("whole report](") == len(reports)
    for report in reports:
        text = html.unescape(report.read_text(encoding="utf-8"))
        names = re.findall("^### (.*)", text.partition("## Question by question")[2].partition("\n## ")[0], re.M)
        assert names
        assert all(f"(`{name.partition('@')[0]}`)" in page for name in names), report


def test_the_page_of_the_notebook_has_its_cells_and_pictures(site):
    page, pictures = site.notebook(), site.notebook_pictures()
    notebook = json.loads((ROOT / "docs" / "tutorials" / "notebook.ipynb").read_text(encoding="utf-8"))
    assert all("".join(cell["source"]) in page for cell in notebook["cells"])
    assert re.findall(r"!\[.+\]\((.*)\)", page) == [*pictures]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())


def test_pages_that_are_generated_are_not_on_disk(site):
    assert not [uri for uri in site.PAGES if (ROOT / "docs" / uri).exists()]


@pytest.mark.parametrize(
    ("uri", "target", "leads_to"),
    [
        ("how_to/export.md", "../tutorials/first_run.md#train", ("docs/tutorials/first_run.md", "#train")),
        ("index.md", "../README.md", ("README.md", "")),
        ("repository/README.md", "docs/index.md", ("docs/index.md", "")),
        ("index.md", "#here", (None, "")),
        ("index.md", "https://example.org/a", (None, "")),
    ],
)
def test_links_lead_where_they_lead_in_a_checkout(site, uri, target, leads_to):
    assert site._in_repository(uri, target) == leads_to


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("[a `b[0]`](../experiments/baseline.py#L3)", "[a `b[0]`](repository/experiments/baseline.py.md#L3)"),
        ("![p](pictures/step.svg) [w](https://a.b)", "![p](pictures/step.svg) [w](https://a.b)"),
        ("see [those](../experiments), [here](#a)", "see those, [here](#a)"),
        ("[n](tutorials/notebook.ipynb)", "[n](tutorials/notebook.md)"),
        ("`x[a](../LICENSE)` [l](../LICENSE)", "`x[a](../LICENSE)` [l](repository/LICENSE.md)"),
        ("```python\n`x[a](../LICENSE)\n```\n[t](../tests)", "```python\n`x[a](../LICENSE)\n```\nt"),
    ],
)
def test_links_of_a_page_lead_to_where_things_are_on_the_site(site, there, here):
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="index.md"))
    assert site.on_page_markdown(there, page) == here


def test_links_in_code_add_no_files(site):
    text = "[b](../experiments/baseline.py) `[l](../LICENSE)`\n```\n[p](../pyproject.toml)\n```\n"
    assert site._linked(types.SimpleNamespace(src_uri="index.md", content_string=text)) == {"experiments/baseline.py"}


def test_a_file_is_shown_as_what_it_is_and_ends_no_fence(site, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "ROOT", tmp_path)
    for name, language in (("a.py", "python"), ("LICENSE", "text")):
        (tmp_path / name).write_text('x = """\n```\n[a](b)\n"""\n')
        page = site._page_of(name)
        assert re.search(rf"\n\n(`{{5}}){language}\n.*?\n```\n.*\n\1\n\Z", page, re.S)


def test_code_and_the_notebook_are_pages_of_the_site(site):
    assert site._uri("docs/tutorials/notebook.ipynb") == "tutorials/notebook.md"
    assert site._uri("experiments/baseline.py") == "repository/experiments/baseline.py.md"
    assert site._uri("docs/index.md") == "index.md"
