"""Which files a folder or a glob means, here and at a remote place alike.

A folder means the glob `**/*` with the file suffixes of its kind, in any case. Links are followed, and a file is taken
once, by its own name. Hidden files and folders (`.cache/`, `.a.txt`) are taken only if a part of the glob names their
dot.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

# What a folder stands for.
FOLDER = ("**", "*")


class Entry(NamedTuple):
    """A file below a folder, or a hidden folder that was not entered."""

    name: str
    """The path below the folder; a folder's ends with '/'."""
    real: str
    """Its path with links resolved."""
    is_linked: bool
    """Whether a link leads to it."""


def walk(root: Path, pattern: tuple[str, ...]) -> Iterator[Entry]:
    """Yields entries below a folder that may match a pattern; follows no link to a folder that it is already in."""

    def inside(name: str, real: str, is_linked: bool, within: tuple[str, ...]) -> Iterator[Entry]:
        with os.scandir(root / name) as entries:
            children = sorted(entries, key=lambda entry: entry.name)
        for child in children:
            child_name, child_real = name + child.name, os.path.join(real, child.name)
            if child.is_symlink():
                child_real = os.path.realpath(child_real)
                is_folder = os.path.isdir(child_real)  # A link to itself is none.
            else:
                is_folder = child.is_dir()
            child_is_linked = is_linked or child.is_symlink()
            parts = child_name.split("/")
            if not is_folder:
                if _matches(parts, pattern, hidden=True) or _leads(parts, pattern, hidden=True):
                    yield Entry(child_name, child_real, child_is_linked)
            elif child_real in within:
                continue
            elif _leads(parts, pattern, hidden=False):
                yield from inside(child_name + "/", child_real, child_is_linked, (*within, child_real))
            elif _leads(parts, pattern, hidden=True):
                yield Entry(child_name + "/", child_real, child_is_linked)

    real = os.path.realpath(root)
    yield from inside("", real, False, (real,))


def choose(
    names: Iterable[str], pattern: tuple[str, ...], suffixes: tuple[str, ...]
) -> tuple[list[str], dict[str, list[str]]]:
    """Returns the names of files that match a pattern and a suffix, and the others by reason."""
    chosen, hidden, others = [], {}, []
    for name in names:
        parts = name.split("/")
        if name.endswith("/"):
            hidden[name] = None
        elif not _matches(parts, pattern, hidden=True):
            continue
        elif _matches(parts, pattern, hidden=False):
            (chosen if has_suffix(name, suffixes) else others).append(name)
        elif has_suffix(name, suffixes):
            depth = next(i for i, part in enumerate(parts, start=1) if part.startswith("."))
            hidden["/".join(parts[:depth]) + ("/" if depth < len(parts) else "")] = None
    return chosen, {"hidden": list(hidden), "of another kind": others}


def _matches(parts: Sequence[str], pattern: Sequence[str], *, hidden: bool) -> bool:
    """Returns whether a path matches a pattern, where `**` stands for any number of folders.

    Args:
        hidden: whether a wildcard may stand for a part that begins with a dot.
    """
    if not pattern:
        return not parts
    if pattern[0] == "**":
        inside = bool(parts) and (hidden or parts[0][:1] != ".") and _matches(parts[1:], pattern, hidden=hidden)
        return inside or _matches(parts, pattern[1:], hidden=hidden)
    return bool(parts) and _fits(parts[0], pattern[0], hidden) and _matches(parts[1:], pattern[1:], hidden=hidden)


def _leads(parts: Sequence[str], pattern: Sequence[str], *, hidden: bool) -> bool:
    """Returns whether something in a folder may match a pattern."""
    if not (pattern and parts):
        return bool(pattern)
    if pattern[0] == "**":
        inside = (hidden or parts[0][:1] != ".") and _leads(parts[1:], pattern, hidden=hidden)
        return inside or _leads(parts, pattern[1:], hidden=hidden)
    return _fits(parts[0], pattern[0], hidden) and _leads(parts[1:], pattern[1:], hidden=hidden)


def _fits(part: str, pattern: str, hidden: bool) -> bool:
    return fnmatchcase(part, pattern) and (hidden or part[:1] != "." or pattern[:1] == ".")


def in_any_case(pattern: Sequence[str], suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns a glob whose ending, where it is a suffix of the kind, matches letters of any case."""
    *folders, last = pattern
    for suffix in sorted(suffixes, key=len, reverse=True):
        if suffix and last.lower().endswith(suffix):
            ending = "".join(f"[{each}{each.upper()}]" if each.isalpha() else each for each in suffix)
            return (*folders, last[: -len(suffix)] + ending)
    return tuple(pattern)


def has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    """Returns whether a file's name ends with one of some lower-case suffixes, in letters of any case."""
    return name.lower().endswith(suffixes)
