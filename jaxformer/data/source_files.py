"""The files of a corpus, here or elsewhere: found in a fixed order, distinguished by digests, and opened.

A path with a protocol (`hf://`, `gs://`, `s3://`, `memory://`) is opened through fsspec; any other is a local one.
"""

import glob
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.config import UserError, require
from jaxformer.data.remote import REQUEST_BYTES, RemoteFile, find, is_remote
from jaxformer.host.cache import cache_folder
from jaxformer.host.console import format_size, print_notice
from jaxformer.host.digests import file_digests
from jaxformer.host.files import read_json_or_empty, write_remembered
from jaxformer.host.paths import expanded

# A smaller file is read for its digest at every start.
_REMEMBERED_BYTES = 1 << 20

# To read more than this for digests is worth a line.
_NOTABLE_BYTES = 10 << 30

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


def find_files(path: str, suffixes: tuple[str, ...], what: str) -> tuple[SourceFile, ...]:
    """Returns the files at a path in sorted order: the file itself, the matches of a glob, or a folder's by suffix.

    Of a local path, what exists is taken literally whatever its characters, and a glob begins behind it. A URL of the
    Hugging Face Hub must name a commit (`pinned`).

    Raises:
        UserError: there is none, or the place cannot be reached.
    """
    if is_remote(path):
        return _find_remote(path, suffixes, what)
    try:
        target = expanded(path)
        root, pattern = _existing(target)
        if target.is_file():
            files = [target]
        elif target.is_dir():
            files = sorted(p for p in target.rglob("*") if p.is_file() and p.name.endswith(suffixes))
            require(bool(files), f"{what} {path}: the folder holds no {' or '.join(suffixes)} file")
        else:
            found = (root / name for name in glob.glob(pattern, root_dir=root, recursive=True))
            files = sorted(path for path in found if path.is_file())
            require(bool(files), f"{what} {path}: no such file or folder, and as a glob it matches none")
        return tuple(SourceFile(str(p), p.relative_to(root).as_posix(), p.stat().st_size) for p in files)
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from error


def _existing(target: Path) -> tuple[Path, str]:
    """Returns the folder that exists of a path, as far as it does, and the rest."""
    parts = target.parts
    depth = next(i for i in range(len(parts), -1, -1) if Path(*parts[:i]).is_dir())
    return Path(*parts[:depth]), os.path.join("", *parts[depth:])


def open_file(path: str | os.PathLike, what: str) -> io.BufferedReader:
    """Returns an open file; reading a remote one is tried again after an error that may pass."""
    try:
        if not is_remote(path):
            return open(path, "rb")
        return io.BufferedReader(RemoteFile(os.fspath(path), f"{what} {path}"), REQUEST_BYTES)
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


def _find_remote(url: str, suffixes: tuple[str, ...], what: str) -> tuple[SourceFile, ...]:
    pin = re.match(r"hf://datasets/[^@]+@[0-9a-f]{40}(/|$)", url)
    memory = cache_folder() / "digests" / f"{_short_digest([url, suffixes])}.json"
    # A commit's files never change: a later start asks nobody.
    if pin and (known := read_json_or_empty(memory).get("files")):
        return tuple(SourceFile(*fields) for fields in known)
    files = tuple(SourceFile(*found) for found in find(url, suffixes, what))
    if pin:
        write_remembered(memory, json.dumps({"files": files}).encode())
    return files


def _short_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
