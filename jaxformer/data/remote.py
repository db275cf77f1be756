"""Files elsewhere, through fsspec: found, distinguished by what their store says, and read with patience."""

import glob
import io
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from jaxformer.config import UserError, require
from jaxformer.host.console import print_line, print_notice
from jaxformer.host.paths import URL

T = TypeVar("T")

# Waits between attempts to reach a remote file, seconds: a minute in all, as long as a server's hiccup; and half an
# hour once it was opened, since nobody may be there to start a preparation again.
WAITS = (1, 2, 4, 8, 15, 30)
READING_WAITS = (*WAITS, *(60,) * 29)

# Bytes of a remote file that are requested at once, at least.
REQUEST_BYTES = 4 << 20

# Of an error's text that are printed.
_REASON_CHARACTERS = 300

_PACKAGES = {"hf": "'jaxformer[hub]'", "gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "http": "aiohttp"}

# Names of errors of a connection.
_OF_CONNECTIONS = re.compile("Timeout|Connect|Disconnected|Transport|Payload|IncompleteRead|ProtocolError")

# What a store says of a file's content, the strongest first.
_MARKS = ("blob_id", "sha256", "md5Hash", "ETag", "etag", "generation", "mtime", "LastModified", "updated", "created")


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is a URL; `./x://y` is none."""
    return URL.match(os.fspath(path)) is not None


class Found(NamedTuple):
    """A remote file."""

    url: str
    name: str
    """The path below the fixed part of the path at which it was found."""
    size: int
    """Bytes."""
    mark: str
    """What its store says of its content: a digest, an ETag, else a time; '' for nothing."""


def find(url: str, suffixes: tuple[str, ...], what: str) -> list[Found]:
    """Returns the files at a URL, ordered by their names: the file itself, the matches of a glob, or a folder's.

    Raises:
        UserError: there is none, or the place cannot be reached.
    """
    filesystem, path = _filesystem(url, f"{what} {url}")

    def look() -> dict[str, dict[str, Any]]:
        if glob.has_magic(path):
            found = filesystem.glob(path, detail=True)
        elif filesystem.isdir(path):
            found = filesystem.find(path, detail=True)
            return {name: info for name, info in found.items() if name.endswith(suffixes)}
        else:
            found = {path: filesystem.info(path)}
        return {name: info for name, info in found.items() if info["type"] == "file"}

    found = patiently(look, f"{what} {url}")
    require(bool(found), f"{what} {url}: no such file, and no {' or '.join(suffixes)} file as a folder or glob")
    is_folder = not glob.has_magic(path) and path not in found
    root = path if is_folder else "/".join(fixed_parts(path.split("/")[:-1]))
    return [
        Found(filesystem.unstrip_protocol(name), name.removeprefix(root).lstrip("/"), info["size"], _mark(info))
        for name, info in sorted(found.items(), key=lambda item: item[0].split("/"))
    ]


def pinned(path: str, what: str) -> tuple[str, str]:
    """Returns a path with the commit that its branch stands for, and the commit; '' for what has no commits.

    Of `hf://datasets/OWNER/NAME/...` that is the default branch, of `...NAME@BRANCH/...` that branch; a commit stays.
    """
    match = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(/.*)?", path)
    if not match:
        require(not path.startswith("hf://"), f"{what} {path}: write hf://datasets/OWNER/NAME@REVISION/FILES")
        return path, ""
    name, revision, rest = match[1], match[2], match[3] or ""
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return path, revision
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UserError(f"{what} {path}: hf:// needs huggingface_hub; pip install {_PACKAGES['hf']}") from error
    branch = (revision or "main").replace("%2F", "/")
    commit = patiently(
        lambda: HfApi().dataset_info(name, revision=branch).sha, f"{what} {path}: branch {branch!r} cannot be resolved"
    )
    print_line(f"corpus      hf://datasets/{name}: {branch} is commit {commit}")
    return f"hf://datasets/{name}@{commit}{rest}", commit


class RemoteFile(io.RawIOBase):
    """A remote file, opened to be read, and again where it was after an error that may pass."""

    def __init__(self, url: str, where: str):
        self._url, self._where, self._at, self._file = url, where, 0, None
        self._size = patiently(lambda: self._opened().size, self._where)

    def _opened(self):
        if self._file is None:
            filesystem, path = _filesystem(self._url, self._where)
            self._file = filesystem.open(path, "rb")
        return self._file

    def readinto(self, buffer) -> int:
        """Reads into a buffer; returns the bytes that were read, 0 at the end."""

        def read() -> bytes:
            try:
                file = self._opened()
                file.seek(self._at)
                data = file.read(len(buffer))
                # Of a connection that was cut: an end here would lose documents and look like the file's own.
                if len(data) < min(len(buffer), self._size - self._at):
                    raise OSError(f"{len(data)} bytes came in place of {len(buffer)}")
                return data
            except Exception:
                self._file = None
                raise

        data = patiently(read, self._where, READING_WAITS)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position, bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a position; returns it, bytes from the start."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def close(self) -> None:
        """Closes the connection."""
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


def patiently(attempt: Callable[[], T], where: str, waits: Sequence[float] = WAITS) -> T:
    """Returns what `attempt` returns, which is tried again after some waits, seconds, where its error may pass."""
    for wait in (*waits, None):
        try:
            return attempt()
        except Exception as error:  # Each store raises kinds of its own.
            reason = _reason(error)
            if isinstance(error, UserError):
                raise
            if not _may_pass(error):
                raise UserError(f"{where}: {reason}") from error
            if wait is None:
                raise UserError(f"{where}: given up after {len(waits) + 1} attempts ({reason})") from error
            print_notice(f"{where}: {reason}; trying again in {wait} s")
            time.sleep(wait)
    raise AssertionError


def _reason(error: Exception) -> str:
    """Returns the kind and the text of an error in one line, and what opens a dataset of the Hub that is not public."""
    text = " ".join(str(error).split()) or "no reason given"
    if len(text) > _REASON_CHARACTERS:
        text = text[:_REASON_CHARACTERS] + " ..."
    is_closed = _status(error) in (401, 403) and type(error).__module__.startswith("huggingface_hub")
    hint = "; accept its terms on its page, and log in with `hf auth login` or set HF_TOKEN" if is_closed else ""
    return f"{type(error).__name__}: {text}{hint}"


def _status(error: Exception) -> int | None:
    """Returns the HTTP status of an error, if it has one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # Of botocore.
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", None)
    numbers = (status, getattr(error, "status", None), getattr(error, "code", None))
    return next((number for number in numbers if isinstance(number, int)), None)


def fixed_parts(parts: Sequence[str]) -> list[str]:
    """Returns the parts of a path before the first that is a pattern."""
    fixed = []
    for part in parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return fixed


def _filesystem(url: str, where: str):
    """Returns (fsspec filesystem, path in it) of a URL."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol, f"the fsspec filesystem for {protocol}")
        raise UserError(f"{where}: {protocol}:// needs a package; pip install {package}") from error
    except ValueError as error:
        raise UserError(f"{where}: {error}; known are hf://, gs://, s3:// and local paths") from error


def _may_pass(error: Exception) -> bool:
    """Returns whether the same request may succeed later: not where something is absent, forbidden or wrong."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status in (408, 429)
    if isinstance(error, OSError):
        never = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
        return not isinstance(error, never)
    # Errors of connections that are no OSError, as of aiohttp, httpx and botocore.
    return any(_OF_CONNECTIONS.search(kind.__name__) for kind in type(error).__mro__)


def _mark(info: dict[str, Any]) -> str:
    known = {**info, **(info.get("lfs") or {})}
    return next((f"{name} {known[name]}" for name in _MARKS if known.get(name)), "")
