"""SHA-256 of files, cached by size and time of change, so that a large file is read once and not at each start."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxformer.host.files import read_json_or_empty, write_remembered


def file_digest(path: str | os.PathLike) -> str:
    """Returns the hexadecimal SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(
    paths: Mapping[str, Path], memory: Path, *, is_worth: Callable[[os.stat_result], bool] = lambda status: True
) -> dict[str, str]:
    """Returns the hexadecimal SHA-256 of files by name; for an unchanged file, the cached one.

    A change that keeps size and time is not noticed.

    Args:
        paths: of the files, by their names in the cache.
        memory: the cache file; if it cannot be written, the files are read each time.
        is_worth: whether to cache a file's digest.

    Raises:
        OSError: a file cannot be read.
    """
    known = read_json_or_empty(memory)

    def digest(name: str) -> tuple[str, list | None]:
        status = paths[name].stat()
        state = [status.st_size, status.st_mtime_ns]
        match known.get(name):
            case [*before, str(remembered)] if before == state:
                return remembered, [*state, remembered]
        found = file_digest(paths[name])
        return found, [*state, found] if is_worth(status) else None

    with ThreadPoolExecutor() as executor:
        found = dict(zip(paths, executor.map(digest, paths), strict=True))
    new = known | {name: entry for name, (_, entry) in found.items() if entry}
    if new != known:
        write_remembered(memory, json.dumps(new).encode())
    return {name: digest for name, (digest, _) in found.items()}
