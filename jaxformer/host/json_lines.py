"""Files of JSON lines, which only grow."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxformer.host.console import print_notice


def append_json_line(path: Path, value: Mapping[str, Any]) -> None:
    """Appends an object to a file of JSON lines, which need not exist; returns once it is on the disk.

    It is one write, so that several processes may append, and a killed process leaves all of it or none. After an
    incomplete last line, as from a failing machine, it begins a new line.

    Raises:
        OSError: the disk does not take it.
    """
    content = json.dumps(value, allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        content = b"\n" * is_torn + content
        written = os.write(descriptor, content)
        if written < len(content):
            raise OSError(f"{path}: only {written} of {len(content)} bytes could be written; free space")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_lines(path: Path, texts: Collection[str]) -> list[dict[str, Any]]:
    """Returns the objects of a file of JSON lines, none without a file; a damaged one is reported and left out.

    Args:
        texts: names that each object must have, with a text.

    Raises:
        OSError: there is a file that cannot be read.
    """
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n") if path.exists() else [], 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if not all(isinstance(line[name], str) for name in texts):
                raise ValueError("another kind of line")
            lines.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            print_notice(f"{path}, line {number}: damaged, and left out")
    return lines
