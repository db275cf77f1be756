"""Files that are whole or absent, also after the power failed."""

import os
import secrets
from pathlib import Path


def sync_tree(folder: Path) -> None:
    """Returns once all files below a folder, and their names, are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under another name, waits until it is on the disk, and renames it.

    The other name is each writer's own: of several that write the same file at once, one stays, whole.
    """
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
