"""Files that are whole or absent, also after the power failed."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under another name, waits until it is on the disk, and renames it."""
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
