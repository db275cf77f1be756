"""The source of your parts in a run: kept in its folder, never run from there, and loaded from the user's own file.

A run folder may come from anywhere, so no file is run because a folder names or holds it. The cache remembers files
that this user's processes ran, by the digest of their source; `--code=FILE` names one that it does not know.
"""

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxformer.config import UserError
from jaxformer.experiment.files import load_parts
from jaxformer.host.cache import cache_folder
from jaxformer.host.files import write_remembered, write_whole
from jaxformer.host.own_code import importing_from_beside, read_source
from jaxformer.record import all_parts, source_of


def keep_sources(workdir: Path, config: Any) -> None:
    """Writes the files of your parts to `code/DIGEST/` of a run folder, and remembers their paths.

    Raises:
        OSError: they cannot be written.
    """
    for source in filter(None, (source_of(type(part)) for part in all_parts(config))):
        for name, content in source.files.items():
            path = workdir / "code" / source.digest / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        write_remembered(_memory(source.digest), str(source.path).encode())


def load_sources(digests: Iterable[str]) -> None:
    """Loads files by digest from where they were run, unless they have changed; the record may hold anything."""
    for digest in digests:
        if re.fullmatch("[0-9a-f]{16}", digest):
            with contextlib.suppress(OSError, UserError):
                path = Path(_memory(digest).read_text(encoding="utf-8"))
                with importing_from_beside(path):
                    source = read_source(path)
                if source and source.digest == digest:
                    load_parts(path)


def _memory(digest: str) -> Path:
    return cache_folder() / "parts" / digest
