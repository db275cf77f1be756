"""The files of a corpus, local or remote: found in a fixed order, identified by digests, and opened.

A path with a protocol (`hf://`, `gs://`, `s3://`, `memory://`) is opened through fsspec; any other is a local one.
"""

import codecs
import dataclasses
import glob
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.config import UserError, require
from jaxformer.data.globs import FOLDER, choose, in_any_case, walk
from jaxformer.data.hub import parse_hub_url
from jaxformer.data.remote import WAITS, RemoteFile, branch_commit, find, fixed_parts, is_remote
from jaxformer.host.cache import cache_folder
from jaxformer.host.console import format_size, print_line, print_notice
from jaxformer.host.digests import file_digests
from jaxformer.host.files import read_json_or_empty, write_remembered
from jaxformer.host.paths import expanded

# A smaller file is read for its digest at every start.
_REMEMBERED_BYTES = 1 << 20

# Bump when other files would be found, so that older listings are not reused.
_LISTING_VERSION = 2

# Reading more than this for digests prints a line.
_NOTABLE_BYTES = 10 << 30

# Bytes copied at a time from a received remote file, and from one of which little is read.
_BUFFER_BYTES, _SMALL_BUFFER_BYTES = 1 << 16, 1 << 13

# A file that changed so recently may change again within the same time stamp.
_SETTLED_NANOSECONDS = 2_000_000_000


class SourceFile(NamedTuple):
    """A file of a corpus."""

    path: str
    """Path of a local file, or the URL of a remote one."""
    name: str
    """The path below the folder of the corpus."""
    size: int
    """Bytes."""
    mark: str = ""
    """A remote store's identifier of its content (a digest, an ETag, else a time); '' for a local file."""

    def open(self) -> io.BufferedReader:
        """Returns it open for reading bytes, wherever it lies."""
        return open_file(self.path, "corpus file")


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a corpus, in reading order, and those that were skipped."""

    files: tuple[SourceFile, ...]
    passed_over: dict[str, list[str]]
    """The names of files and hidden folders (with a '/'), by the reason; those of empty files are in `files` too."""

    def __str__(self) -> str:
        """The skipped ones, or '': '2 hidden (.cache/, .a.txt), 1 of another kind (README.md)'."""
        return ", ".join(
            f"{len(names):,} {reason} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
            for reason, names in self.passed_over.items()
        )


def find_files(path: str, suffixes: tuple[str, ...], what: str) -> Listing:
    """Returns the files at a path: the file itself, the matches of a glob, or a folder's by suffix.

    The existing part of a local path is taken literally, whatever its characters, and a glob begins after it. A URL of
    the Hugging Face Hub must name a commit (`pinned`).

    Raises:
        UserError: there is none, or the place cannot be reached.
    """
    if is_remote(path):
        return _find_remote(path, suffixes, what)
    try:
        return _find_local(path, suffixes, what)
    except OSError as error:
        inside = f" ({error.filename})" if error.filename not in (None, path) else ""
        raise UserError(f"{what} {path}: {error.strerror}{inside}") from error


def _find_local(path: str, suffixes: tuple[str, ...], what: str) -> Listing:
    target = expanded(path)
    is_folder = target.is_dir()
    root, rest = _existing(target)
    if target.is_file():
        name = target.relative_to(root).as_posix()
        return Listing((SourceFile(str(target), name, target.stat().st_size),), {})
    pattern = FOLDER if is_folder else in_any_case(rest, suffixes)
    found = {each.name: each for each in walk(root, pattern)} if root.is_dir() else {}
    # A broken link may have been to a folder.
    gone = [name for name, entry in found.items() if entry.is_linked and not os.path.exists(entry.real)]
    names, passed_over = choose([name for name in found if name not in gone], pattern, suffixes if is_folder else ("",))
    files, again, taken = [], [], set()
    for entry in sorted((found[name] for name in names), key=lambda entry: entry.is_linked):
        if entry.real in taken:
            again.append(entry.name)
        elif os.path.isfile(entry.real):
            taken.add(entry.real)
            files.append(SourceFile(str(root / entry.name), entry.name, os.stat(entry.real).st_size))
    passed_over |= {"linked to nothing": gone, "linked to what is read already": again}
    return _listing(files, passed_over, path, suffixes if is_folder else (), what)


def _listing(
    found: Iterable[SourceFile], passed_over: dict[str, list[str]], path: str, suffixes: tuple[str, ...], what: str
) -> Listing:
    """Returns the listing of some files; raises `UserError` if there is none.

    Args:
        suffixes: of a folder's files; none if the path is a glob.
    """
    files = tuple(sorted(found, key=lambda file: file.name.split("/")))
    passed_over = passed_over | {"empty": [file.name for file in files if not file.size]}
    listing = Listing(files, {reason: names for reason, names in passed_over.items() if names})
    rest = f"; passed over: {listing}" if listing.passed_over else ""
    nothing = f"the folder holds no {' or '.join(suffixes)} file"
    if not suffixes:
        nothing = "no such file or folder, and as a glob it matches nothing"
    require(bool(files), f"{what} {path}: {nothing}{rest}")
    return listing


def _existing(target: Path) -> tuple[Path, tuple[str, ...]]:
    """Returns the existing folder at the start of a path, and the parts of the rest."""
    parts = target.parts
    depth = next(i for i in range(len(parts), -1, -1) if Path(*parts[:i]).is_dir())
    return Path(*parts[:depth]), parts[depth:]


def open_file(path: str | os.PathLike, what: str, first_bytes: int = 0) -> io.BufferedReader:
    """Returns an open file; reading a remote one is repeated after a temporary error.

    Args:
        first_bytes: as of `RemoteFile`; a local file is always read a few kilobytes at a time.
    """
    try:
        if not is_remote(path):
            return open(path, "rb")
        file = RemoteFile(os.fspath(path), f"{what} {path}", first_bytes)
        return io.BufferedReader(file, _SMALL_BUFFER_BYTES if first_bytes else _BUFFER_BYTES)
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror or error}") from error


def has_byte_order_mark(file: SourceFile) -> bool:
    """Returns whether a file begins with the byte order mark of UTF-8; False for one that cannot be read."""
    try:
        with open(file.path, "rb") as opened:
            return opened.read(3) == codecs.BOM_UTF8
    except OSError:
        return False  # Reading it for its digest shows why.


def content_digests(files: Sequence[SourceFile], what: str) -> list[str]:
    """Returns an identifier of the content of each file.

    For a local file it is the SHA-256, cached by path, size and time of change: a large file is read when it is new or
    changed, not at each start. For a remote file it is its size and the store's identifier; a file without one is read
    each time.

    Raises:
        UserError: a file cannot be read.
    """
    local = {os.path.abspath(file.path): Path(file.path) for file in files if not is_remote(file.path)}
    memory = cache_folder() / "digests" / f"{_short_digest([file.path for file in files])}.json"
    known = read_json_or_empty(memory)
    new = sum(file.size for file in files if os.path.abspath(file.path) in local.keys() - known.keys())
    if new > _NOTABLE_BYTES:
        print_notice(f"{what}s: reading {format_size(new)} once, for their digests")

    def is_worth(status: os.stat_result) -> bool:
        is_settled = time.time_ns() - status.st_mtime_ns > _SETTLED_NANOSECONDS
        return status.st_size >= _REMEMBERED_BYTES and is_settled

    try:
        found = file_digests(local, memory, is_worth=is_worth)
    except OSError as error:
        raise UserError(f"{what} {error.filename}: {error.strerror}") from error
    return [
        f"{file.size} {file.mark or _remote_digest(file.path, what)}"
        if is_remote(file.path)
        else found[os.path.abspath(file.path)]
        for file in files
    ]


def _remote_digest(url: str, what: str) -> str:
    """Returns the digest of a remote file whose store does not identify its content."""
    print_notice(f"{what} {url}: its store gives no digest, ETag or time; reading all of it to identify it")
    with open_file(url, what) as file:
        return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"


def pinned(
    path: str, what: str, *, kind: str = "datasets", newest: bool = False, waits: Sequence[float] = WAITS
) -> tuple[str, str]:
    """Returns a path with the commit of its branch, and the commit; '' for a path without commits.

    `hf://datasets/OWNER/NAME/...` means the default branch, `...NAME@BRANCH/...` that branch; a commit stays. A branch
    is looked up once and its commit is cached: a later start needs no network, and reads the same files.

    Args:
        path: a local path, or a URL.
        what: its field, such as 'corpus.path'.
        kind: of the repository, 'datasets' or 'models'.
        newest: looks it up again.
        waits: between attempts to do so, seconds.
    """
    if not path.startswith("hf://"):
        return path, ""
    place = parse_hub_url(path, what, kind)
    if place.is_pinned:
        return path, place.revision
    branch, name, label = place.revision or "main", place.repository_url, what.partition(".")[0]
    identity = [place.repository, branch, *([] if kind == "datasets" else [kind])]
    memory = cache_folder() / "digests" / f"{_short_digest(identity)}.json"
    known = {} if newest else read_json_or_empty(memory)
    if "commit" not in known:
        known = {"commit": branch_commit(place, what, waits), "looked_up": time.strftime("%Y-%m-%d")}
        write_remembered(memory, json.dumps(known).encode())
        print_line(f"{label:<11} {name}: {branch} is commit {known['commit']}")
    else:
        print_line(
            f"{label:<11} {name}: {branch} was commit {known['commit']} on {known['looked_up']}; `jaxformer prepare "
            "--newest` looks it up again"
        )
    return str(place._replace(revision=known["commit"])), known["commit"]


def _find_remote(url: str, suffixes: tuple[str, ...], what: str) -> Listing:
    is_pinned = url.startswith("hf://") and parse_hub_url(url, what).is_pinned
    memory = cache_folder() / "digests" / f"{_short_digest([_LISTING_VERSION, url, suffixes])}.json"
    # A commit's files never change: a later start sends no request.
    if is_pinned and (known := read_json_or_empty(memory)).get("files"):
        return Listing(tuple(SourceFile(*fields) for fields in known["files"]), known.get("passed_over", {}))
    is_glob = glob.has_magic(url)
    folder, slash, last = url.rpartition("/")
    found, is_file = find(folder + slash + in_any_case((last,), suffixes)[0] if is_glob else url, what)
    by_name = {each.name: each for each in found}
    names, passed_over = list(by_name), {}
    if not is_file:
        parts = url.split("/")
        pattern = in_any_case(parts[len(fixed_parts(parts[:-1])) :], suffixes) if is_glob else FOLDER
        names, passed_over = choose(by_name, pattern, suffixes if not is_glob else ("",))
    files = (SourceFile(*by_name[name]) for name in names)
    listing = _listing(files, passed_over, url, () if is_glob else suffixes, what)
    if is_pinned:
        write_remembered(memory, json.dumps(dataclasses.asdict(listing)).encode())
    return listing


def _short_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
