"""Paths as users type them, and for libraries that interpret characters in a path."""

import argparse
import contextlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from jaxformer.config import UserError, is_unicode, require

# How a URL begins.
URL = re.compile(r"\w[\w+.:-]*://")

# Links to a process's open files, by number; Linux has them.
_OPENED = Path("/proc/self/fd")


def expanded(path: str) -> Path:
    """Returns a local path with `~` replaced by a home folder, if there is one; shells do not after `--option=`."""
    return Path(os.path.expanduser(path))  # Unlike pathlib's, it accepts the name of an unknown user.


def on_this_machine(path: str | Path) -> Path:
    """Returns a local path, with `~` in a text replaced.

    Raises:
        UserError: a text is a URL, which would be taken for a folder named `gs:` or similar.
    """
    if isinstance(path, Path):
        return path
    require(not URL.match(path), f"{path!r} is a URL; give a folder of this machine, such as one of a mount")
    return expanded(path)


def local_path(path: str) -> Path:
    """Returns `on_this_machine(path)`, as the type of an option's argument."""
    try:
        return on_this_machine(path)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def typed(path: Path) -> str:
    """Returns the text of a path that `expanded` takes for it."""
    return f"./{path}" if str(path).startswith("~") else str(path)


def shell_word(path: Path) -> str:
    """Returns a path as typed in a shell, also after `--option=`."""
    return shlex.quote(typed(path))


def absolute(folder: Path) -> Path:
    """Returns the absolute path of a folder; one with `..` as the system finds it, since Orbax drops `link/..`."""
    own = folder.absolute()
    return own.resolve() if ".." in own.parts else own


def is_literal(folder: Path) -> bool:
    """Returns whether Orbax, TensorStore and etils (which TFDS uses) take the path of a folder literally.

    Measured with Orbax 0.12, TensorStore 0.1.86 and etils 1.14: etils globs the whole path, and takes `/gs`, `/s3`,
    `/az` and `/hf` for stores; TensorStore takes a backslash for a slash, and no text that is not UTF-8; Orbax takes
    `gs:/` for a URL.
    """
    own = absolute(folder)
    text = str(own)
    return (
        is_unicode(text)
        and not any(character in text for character in "*?[\\")
        and "gs:/" not in f"{text}/"
        and not text.startswith("//")
        and own.parts[1:2] not in (("gs",), ("s3",), ("az",), ("hf",))
    )


def check_literal(folder: Path) -> None:
    """Raises `UserError` if a path is not literal and this system has no descriptor paths, which would be."""
    require(
        is_literal(folder) or _OPENED.is_dir(),
        f"folder {folder}: libraries read a pattern or a store in its path; choose one without '*', '?', '[', '\\' and "
        "'gs:'",
    )


@contextlib.contextmanager
def literal_path(folder: Path) -> Iterator[Path]:
    """Yields an absolute path of an existing folder that all libraries take literally, valid within the block.

    It is the folder's own path if that is literal, else the path of its descriptor, only for this process.

    Raises:
        OSError: the folder cannot be opened.
        UserError: as of `check_literal`.
    """
    check_literal(folder)
    own = absolute(folder)
    if is_literal(own):
        yield own
        return
    descriptor = os.open(own, os.O_PATH | os.O_DIRECTORY)
    try:
        yield _OPENED / str(descriptor)
    finally:
        os.close(descriptor)
