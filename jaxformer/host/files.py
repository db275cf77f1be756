"""Files that are whole or absent, even after a power failure; JSON; and objects closed at the end of a block."""

import contextlib
import json
import math
import os
import secrets
from pathlib import Path

from jaxformer.config import UserError
from jaxformer.host.console import print_notice


def sync_tree(folder: Path) -> None:
    """Returns once all files below a folder, and their names, are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Writes a file under another name, waits until it is on the disk, and renames it.

    Each writer uses its own other name: if several write the same file at once, one whole file stays.

    Args:
        sync: False for a file that is checked when read: a power failure may damage it.
    """
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


class Closing:
    """Closes itself at the end of its block. After an error of the block, one of closing is only printed."""

    def close(self) -> None:
        """Closes; defined by subclasses."""
        raise NotImplementedError

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as second:
            print_notice(str(second))


def read_json(path: Path, advice: str = "") -> dict | None:
    """Returns the object in a JSON file, or None if there is no file.

    Args:
        path: of the file.
        advice: what to do about a damaged one.

    Raises:
        UserError: it is unreadable, or contains something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: unreadable ({error}){advice and '; '}{advice}") from error


def require_json(path: Path, refusal: str = "", advice: str = "") -> dict:
    """Returns the object in a JSON file; raises `UserError` if there is no file.

    Args:
        path, advice: as of `read_json`.
        refusal: the message if there is no file.
    """
    value = read_json(path, advice)
    if value is None:
        raise UserError(refusal or f"{path}: no such file")
    return value


def write_json(path: Path, value: dict) -> None:
    """Writes a JSON file that is whole or absent."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def for_json(values: dict) -> dict:
    """Returns an object with non-finite numbers as texts, since JSON has none."""

    def written(value):
        if isinstance(value, list):
            return [written(each) for each in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return {name: written(value) for name, value in values.items()}


def read_json_or_empty(path: Path) -> dict:
    """Returns the object of a JSON file, or an empty one if it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_remembered(path: Path, content: bytes) -> None:
    """Writes a cached value; a disk that does not take it costs time, but no run."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
