"""The pages of the documentation in Markdown, and the blocks of code that they hold."""

import re
import textwrap
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# Those that a reader follows, and those that only name what there is.
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
}
OTHERS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "CHANGELOG.md")}

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[\w+-]*).*\n(?P<code>(?:.*\n)*?)(?P=indent)(?P=fence)$", re.M
)
_REASON = re.compile(r"<!-- not (run|compared): (.*?) -->\s*\Z")


class Block(NamedTuple):
    """A block of code of a page."""

    page: str
    line: int
    """That of its first line, from 1 on."""
    language: str
    code: str
    not_run: str = ""
    """Why it cannot be executed in a test; empty if it can."""
    not_compared: str = ""
    """Why it is not what the block before it prints in a test; empty if it is."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def saved_as(self) -> str:
        """The name of the file that it is; empty for code that is no file."""
        match = re.match(r"# ([\w./-]+\.py)\n", self.code) if self.language == "python" else None
        return match[1] if match else ""


def blocks_of(page: str) -> list[Block]:
    """Returns the blocks of a page, in their order."""
    text, found = PAGES[page], []
    for match in _FENCE.finditer(text):
        reason = _REASON.search(text, 0, match.start())
        line = text.count("\n", 0, match.start("code")) + 1
        code = textwrap.dedent(match["code"])
        found.append(Block(page, line, match["language"], code, **({f"not_{reason[1]}": reason[2]} if reason else {})))
    return found


def commands_of(code: str) -> Iterator[tuple[int, str]]:
    """Yields the commands of a console block, each with the number of its first line, counted from 0.

    A line that ends in a backslash goes on in the next one, and a here-document to its end.
    """
    lines = iter(enumerate(code.splitlines()))
    for number, line in lines:
        command = [line]
        while command[-1].endswith("\\"):
            command.append(next(lines)[1])
        if heredoc := re.search(r"<<-?\s*(['\"]?)(\w+)\1", line):
            command += iter(lambda: next(lines)[1], heredoc[2])
            command.append(heredoc[2])
        if line.strip():
            yield number, "\n".join(command)


def anchors_of(text: str) -> list[str]:
    """Returns the anchors of the headings of a page, as the extension `toc` of the site names them."""
    found = []
    for heading in re.findall(r"^#+ +(.*?) *#*$", _FENCE.sub("", text), re.M):
        if own := re.search(r"\{[^}]*#([\w-]+)[^}]*\}$", heading):
            found.append(own[1])
            continue
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        words = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
        anchor = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", words).strip().lower())
        number = sum(re.fullmatch(rf"{re.escape(anchor)}(_\d+)?", each) is not None for each in found)
        found.append(f"{anchor}_{number}" if number else anchor)
    return found
