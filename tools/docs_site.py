"""What the site of the documentation has beside `docs/`: a hook of mkdocs, which `mkdocs build --strict` runs.

Pages that are made of the code (commands, configuration), of committed reports (findings) and of the notebook, and
every file of the repository that a page links to. A link out of `docs/`, as it reads in a checkout, leads on the site
to a page with the file, or to the file.
"""

import base64
import contextlib
import dataclasses
import html
import importlib
import io
import json
import os
import re
import sys
import typing
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]  # mkdocs runs from anywhere.

from jaxformer.commands.program import COMMANDS, describe  # noqa: E402
from jaxformer.config import describe_type  # noqa: E402
from jaxformer.experiment.command_line import field_docstrings, sections  # noqa: E402
from jaxformer.experiment.resolution import load_experiment  # noqa: E402
from jaxformer.host.docstrings import docstring  # noqa: E402

if TYPE_CHECKING:  # The pages are made, and tested, without mkdocs.
    from mkdocs.structure.files import File, Files

# Where files of the repository lie on the site.
_FOLDER = "repository"
_NOTEBOOK = "docs/tutorials/notebook.ipynb"
# Code is matched too, so that no link is found in it: what is between backticks, and as many of them.
_LINK = re.compile(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)|(!?)\[([^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*)\]\(([^)\s]+)\)", re.S)
_UNSEARCHED = "---\nsearch: {exclude: true}\n---\n"


def on_files(files: "Files", config) -> "Files":
    """Adds the generated pages, and the files of the repository that pages link to."""
    from mkdocs.structure.files import File

    for uri, make in PAGES.items():
        files.append(File.generated(config, uri, content=make()))
    for name, picture in notebook_pictures().items():
        files.append(File.generated(config, f"tutorials/{name}", content=picture))
    waiting = list(files.documentation_pages())
    while waiting:
        for path in _linked(waiting.pop()):
            uri = _uri(path)
            if files.get_file_from_path(uri):
                continue
            if uri.endswith(".md"):
                waiting.append(File.generated(config, uri, content=_page_of(path)))
                files.append(waiting[-1])
            else:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Returns the page with links to the repository's files as they are on the site; folders are no links."""

    def on_site(match: re.Match) -> str:
        code, image, text, target = match.groups()
        if code:
            return match[0]
        path, anchor = _in_repository(page.file.src_uri, target)
        if path is None or _uri(path) == page.file.src_uri:  # The page of the notebook offers the file.
            return match[0]
        if (ROOT / path).is_dir():
            return text
        there = os.path.relpath(_uri(path), PurePosixPath(page.file.src_uri).parent)
        return f"{image}[{text}]({there}{anchor})"

    return _LINK.sub(on_site, markdown)


def _linked(page: "File") -> set[str]:
    """Returns the files of the repository, not folders, that a page links to."""
    found = {_in_repository(page.src_uri, target)[0] for *_, target in _LINK.findall(page.content_string)}
    return {path for path in found if path and not path.startswith("docs/") and (ROOT / path).is_file()}


def _in_repository(uri: str, target: str) -> tuple[str | None, str]:
    """Returns the path in the repository that a link of a page leads to, None for another place, and its anchor."""
    name, mark, anchor = target.partition("#")
    if not name or "://" in name or name.startswith("mailto:"):
        return None, ""
    here = uri.removeprefix(f"{_FOLDER}/") if uri.startswith(f"{_FOLDER}/") else f"docs/{uri}"
    here = here.removesuffix(".py.md") + ".py" if here.endswith(".py.md") else here
    return os.path.normpath(os.path.join(os.path.dirname(here), name)), mark + anchor


def _uri(path: str) -> str:
    """Returns where a file of the repository lies on the site: code and the notebook as pages."""
    if path == _NOTEBOOK:
        return "tutorials/notebook.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{_FOLDER}/{path}" + ".md" * path.endswith((".py", ".toml", "LICENSE"))


def _page_of(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".md"):
        language = "python" if path.endswith(".py") else "text"
        return f"{_UNSEARCHED}# {path}\n\n`````{language}\n{text}`````\n"
    # A report's graph is there as a picture too, which needs no script from elsewhere.
    return _UNSEARCHED + re.sub(r"```mermaid\n.*?```", "![The graph of ablations](graph.png)", text, flags=re.S)


def commands() -> str:
    """Returns the page with each command's help."""
    lines = ["# Commands", "", "What each command prints with `--help`.", "", "```", describe(), "```", ""]
    for name in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            importlib.import_module(f"jaxformer.commands.{name.replace('-', '_')}").main(["--help"])
        lines += [f"## {name}", "", "```", out.getvalue().rstrip(), "```", ""]
    return "\n".join(lines)


def configuration() -> str:
    """Returns the page with each field of an experiment, from the dataclasses and their fields' docstrings."""
    baseline = load_experiment("baseline")
    lines = [
        "# Configuration",
        "",
        "All fields of an experiment by section, as [`baseline`](../../experiments/baseline.py) has them. A field is "
        "set in [an experiment file](experiments.md) or by `--section.field=value`; `jaxformer train --help=SECTION` "
        "prints the same.",
        "",
    ]
    for name, kind in sections().items():
        lines += [f"## {name}", "", docstring(kind), ""]
        explained, hints = field_docstrings(kind), typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            value = getattr(getattr(baseline, name), field.name)
            takes = [describe_type(hints[field.name]).replace(" and below 2**31", "")]
            takes += [] if field.default is dataclasses.MISSING else [f"default `{field.default!r}`"]
            takes += [] if value == field.default else [f"baseline `{value!r}`"]
            meaning = explained.get(field.name, "").replace("\n", "\n    ")
            lines += [f"`{name}.{field.name}` — {'; '.join(takes)}", f":   {meaning}", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def findings() -> str:
    """Returns the page with every question of the committed reports: what was expected, and what came out."""
    lines = [_FINDINGS]
    for path in sorted(ROOT.glob("tools/results/**/report.md"), key=_newest_run):
        text = html.unescape(path.read_text(encoding="utf-8"))
        parent, hours = re.findall(r"^- \*\*(?:Parent|Device hours)\*\*: (.*)", text, re.M)
        link = os.path.relpath(path, ROOT / "docs" / "results")
        lines += [f"## {parent.partition(':')[0]}, {_newest_run(path)}", ""]
        lines += [f"{parent.partition(': ')[2]} {hours.partition(' ')[0]} device hours; [whole report]({link})", ""]
        lines += ["| question | expected | found, bits per byte | verdict |", "| --- | --- | --- | --- |"]
        (answers,) = re.findall(r"^## Question by question$(.*?)^## ", text, re.M | re.S)
        for name, section in re.findall(r"^### (.*?)$(.*?)(?=^###|\Z)", answers, re.M | re.S):
            lines.append(_finding(name, section))
        lines.append("")
    return "\n".join(lines)


def _newest_run(report: Path) -> str:
    (day,) = re.findall(r"^- \*\*Newest run\*\*: (\S+)", report.read_text(encoding="utf-8"), re.M)
    return day


def _finding(name: str, section: str) -> str:
    """Returns the row of a question of a report."""
    question, *_ = section.strip().splitlines()
    expected, found = re.findall(r"^- Expected (.*?) \(.*; found (.*)\.$", section, re.M)[0]
    verdict, reason = re.findall(r"^- ([A-Z][A-Z ]+): (.*)", section, re.M)[0]
    cells = [f"{question} (`{name.partition('@')[0]}`)", expected, found, f"`{verdict}`: {reason}"]
    return f"| {' | '.join(map(_cell, cells))} |"


_FINDINGS = """# Findings

Every question that was asked in the studies of this repository, in the order of their last runs: what was expected
before, what came out, and what was decided. Generated from the reports that `jaxformer report` made of the studies'
ledgers. A difference is of validation bits per byte, variant minus parent, with its standard error and interval;
negative is better. [Studies](studies.md) tells the story.
"""


def notebook() -> str:
    """Returns the page with the cells of the notebook, each cell of code with what it printed and drew."""
    parts, names = [], iter(notebook_pictures())
    for cell in _cells():
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                parts.append(f"![{cell['metadata']['alt']}]({next(names)})")
            else:
                text = output.get("text") or output["data"]["text/plain"]
                parts.append(f"```text\n{''.join(text).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def notebook_pictures() -> dict[str, bytes]:
    """Returns the pictures of the notebook in their order, by file name."""
    outputs = [output.get("data", {}) for cell in _cells() for output in cell.get("outputs", ())]
    pictures = [base64.b64decode("".join(data["image/png"])) for data in outputs if "image/png" in data]
    return {f"notebook_{number}.png": picture for number, picture in enumerate(pictures, 1)}


def _cells() -> list[dict]:
    return json.loads((ROOT / _NOTEBOOK).read_text(encoding="utf-8"))["cells"]


PAGES = {
    "reference/commands.md": commands,
    "reference/configuration.md": configuration,
    "results/findings.md": findings,
    "tutorials/notebook.md": notebook,
}
