"""The files of a corpus, here or elsewhere: found in a fixed order, distinguished by digests, and opened.

A path with a protocol (`hf://`, `gs://`, `s3://`, `memory://`) is opened through fsspec; any other is a local one.
"""

import glob
import hashlib
import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.config import UserError, require
from jaxformer.data.hub import parse_hub_url
from jaxformer.data.remote import RemoteFile, branch_commit, find, fixed_parts, is_remote
from jaxformer.host.cache import cache_folder
from jaxformer.host.console import format_size, print_line, print_notice
from jaxformer.host.digests import file_digests
from jaxformer.host.files import read_json_or_empty, write_remembered

# A smaller file is read for its digest at every start.
_REMEMBERED_BYTES = 1 << 20

# To read more than this for digests is worth a line.
_NOTABLE_BYTES = 10 << 30

# Copied at a time from what was received of a remote file.
_BUFFER_BYTES = 1 << 16

# A file that changed so shortly before it was read may change again within the same time stamp.
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
    """What a remote store says of its content (a digest, an ETag, else a time); '' for a local file."""


def expanded(path: str) -> Path:
    """Returns a local path with `~` replaced by a home folder, if there is one."""
    return Path(os.path.expanduser(path))  # Unlike pathlib's, it takes the name of a user who is not there.


def find_files(path: str, suffixes: tuple[str, ...], what: str) -> tuple[SourceFile, ...]:
    """Returns the files at a path in sorted order: the file itself, the matches of a glob, or a folder's by suffix.

    A URL of the Hugging Face Hub must name a commit (`pinned`).

    Raises:
        UserError: there is none, or the place cannot be reached.
    """
    if is_remote(path):
        return _find_remote(path, suffixes, what)
    try:
        target = expanded(path)
        if target.is_file():
            files = [target]
        elif target.is_dir():
            files = sorted(p for p in target.rglob("*") if p.is_file() and p.name.endswith(suffixes))
            require(bool(files), f"{what} {path}: the folder holds no {' or '.join(suffixes)} file")
        else:
            files = sorted(Path(p) for p in glob.glob(str(target), recursive=True) if Path(p).is_file())
            require(bool(files), f"{what} {path}: no such file or folder, and as a glob it matches none")
        root = target if target.is_dir() else Path(*fixed_parts(target.parts[:-1]))
        return tuple(SourceFile(str(p), p.relative_to(root).as_posix(), p.stat().st_size) for p in files)
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from error


def open_file(path: str | os.PathLike, what: str) -> io.BufferedReader:
    """Returns an open file; reading a remote one is tried again after an error that may pass."""
    try:
        if not is_remote(path):
            return open(path, "rb")
        return io.BufferedReader(RemoteFile(os.fspath(path), f"{what} {path}"), _BUFFER_BYTES)
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror or error}") from error


def content_digests(files: Sequence[SourceFile], what: str) -> list[str]:
    """Returns what distinguishes the content of each file from any other.

    Of a local file it is the SHA-256, remembered in the cache by path, size and time of change: a large file is read
    when it is new or was written to, not at each start. Of a remote file it is its size and what the store says of its
    content; only where it says nothing the file is read, each time.

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
    """Returns what tells the content of a remote file where its store does not."""
    print_notice(f"{what} {url}: its store tells no digest, ETag or time; reading all of it to know it again")
    with open_file(url, what) as file:
        return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"


def pinned(path: str, what: str, *, newest: bool = False) -> tuple[str, str]:
    """Returns a path with the commit that its branch stands for, and the commit; '' for what has no commits.

    Of `hf://datasets/OWNER/NAME/...` that is the default branch, of `...NAME@BRANCH/...` that branch; a commit stays.
    A branch is looked up once and its commit is remembered in the cache: a later start needs no network, and reads the
    same files.

    Args:
        newest: looks it up again.
    """
    if not path.startswith("hf://"):
        return path, ""
    place = parse_hub_url(path, what)
    if place.is_pinned:
        return path, place.revision
    branch, name = place.revision or "main", f"hf://datasets/{place.repository}"
    memory = cache_folder() / "digests" / f"{_short_digest([place.repository, branch])}.json"
    known = {} if newest else read_json_or_empty(memory)
    if "commit" not in known:
        known = {"commit": branch_commit(place, what), "looked_up": time.strftime("%Y-%m-%d")}
        write_remembered(memory, json.dumps(known).encode())
        print_line(f"corpus      {name}: {branch} is commit {known['commit']}")
    else:
        print_line(
            f"corpus      {name}: {branch} was commit {known['commit']} on {known['looked_up']}; `jaxformer prepare "
            "--newest` looks it up again"
        )
    return str(place._replace(revision=known["commit"])), known["commit"]


def _find_remote(url: str, suffixes: tuple[str, ...], what: str) -> tuple[SourceFile, ...]:
    is_pinned = url.startswith("hf://") and parse_hub_url(url, what).is_pinned
    memory = cache_folder() / "digests" / f"{_short_digest([url, suffixes])}.json"
    # A commit's files never change: a later start asks nobody.
    if is_pinned and (known := read_json_or_empty(memory).get("files")):
        return tuple(SourceFile(*fields) for fields in known)
    files = tuple(SourceFile(*found) for found in find(url, suffixes, what))
    if is_pinned:
        write_remembered(memory, json.dumps({"files": files}).encode())
    return files


def _short_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
