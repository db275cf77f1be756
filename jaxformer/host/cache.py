"""The cache of things made once: complete or absent, and made by one process at a time."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from jaxformer.config import UserError, require
from jaxformer.host.lock import hold
from jaxformer.host.paths import URL


def cache_folder() -> Path:
    """Returns the folder for tokenizers and token shards: $JAXFORMER_CACHE, or ~/.cache/jaxformer.

    Raises:
        UserError: it is a URL, or there is no home folder, as for a container user without an entry in a passwd file.
    """
    given = os.environ.get("JAXFORMER_CACHE") or "~/.cache/jaxformer"
    require(not URL.match(given), f"JAXFORMER_CACHE ({given}) is a URL; set it to a folder of this machine")
    path = os.path.expanduser(given)
    require(not path.startswith("~"), f"cache {given}: there is no such home folder; set JAXFORMER_CACHE to a folder")
    return Path(path)


def make_once(path: Path, make: Callable[[Path], None], what: str, *, resume: bool = False) -> Path:
    """Returns `path`, after `make` has created it if it does not exist yet.

    `make` creates it under another name, which is renamed when complete: an interrupted attempt never seems finished,
    and its remains are removed, by the next one if its process was killed. While one process works, others that need
    the same path wait.

    Args:
        resume: leaves the remains of an interrupted attempt for the next one, which gets the same name: `make` itself
            checks which of them are whole.
        make: creates a file or a folder at the given path.
        what: what is being made, for the line that a waiting process prints.
    """
    try:
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold(path.with_name(path.name + ".lock"), wait=what):
            if not path.exists():
                unfinished = path.with_name(path.name + ".unfinished")
                if not resume:
                    _remove(unfinished)
                try:
                    make(unfinished)
                except BaseException:
                    if not resume:
                        _remove(unfinished)
                    raise
                unfinished.rename(path)
    except OSError as error:
        places = (str(path.parent), *map(str, path.parent.parents))
        is_ours = str(error.filename).startswith(places[0]) or str(error.filename) in places
        if not is_ours and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"cache {path.parent}: {error.strerror}; free space there or set JAXFORMER_CACHE to another folder"
        ) from error
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
