"""Remote files, on the Hub or through fsspec: found, identified by their store's digests, and read with retries."""

import email.utils
import glob
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from jaxformer.config import UserError, require
from jaxformer.data import hub
from jaxformer.data.hub import HubPath, WrongAnswer
from jaxformer.host.console import print_notice
from jaxformer.host.paths import URL

T = TypeVar("T")

# Waits between attempts to reach a remote file, seconds: a minute in all, for a short failure of a server; and half an
# hour once it was opened, or if the server limits requests, since nobody may be there to start again.
WAITS = (1, 2, 4, 8, 15, 30)
READING_WAITS = (*WAITS, *(60,) * 29)

# A server that requests a longer wait, seconds, is left to the user.
_LONGEST_WAIT = 3600

# Bytes per request: at first, and at most. A reader that continues gets twice as many each time, so that the end of a
# file costs little and a long file few requests.
_FIRST_BYTES, _MOST_BYTES = 1 << 20, 8 << 20

# A reader that skips fewer bytes continues its request, as one for some columns of a Parquet file does.
_GAP_BYTES = 1 << 20

# Printed characters of an error's text.
_REASON_CHARACTERS = 300

_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "http": "aiohttp"}

# Names of errors of a connection.
_OF_CONNECTIONS = re.compile("Timeout|Connect|Disconnected|Transport|Payload|IncompleteRead|ProtocolError")

# A store's identifiers of a file's content, the strongest first.
_MARKS = ("sha256", "md5Hash", "ETag", "etag", "generation", "mtime", "LastModified", "updated", "created")


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is a URL; `./x://y` is not."""
    return URL.match(os.fspath(path)) is not None


class Found(NamedTuple):
    """A remote file."""

    url: str
    name: str
    """The path below the fixed part of the searched path."""
    size: int
    """Bytes."""
    mark: str
    """Its store's identifier of its content: a digest, an ETag, else a time; '' for none."""


def find(url: str, what: str) -> tuple[list[Found], bool]:
    """Returns the file at a URL, or all that match a glob or lie in a folder; and whether it is the file.

    Raises:
        UserError: the place cannot be reached, or does not exist.
    """
    where = f"{what} {url}"
    if url.startswith("hf://"):
        hub.require_hub_package(where)
        place = hub.parse_hub_url(url, what)
        require(place.is_pinned, f"{where}: a commit must be named")
        found, root, is_file = patiently(lambda: _find_on_hub(place), where)
    else:
        filesystem, path = _filesystem(url, where)
        found, root, is_file = patiently(lambda: _find_by_fsspec(filesystem, path), where)
    files = [Found(each.url, each.name.removeprefix(root).lstrip("/"), each.size, each.mark) for each in found]
    return files, is_file


def _find_on_hub(place: HubPath) -> tuple[list[Found], str, bool]:
    """Returns the files at a place of the Hub by whole path, the fixed part of its path, and whether it is a file."""
    is_file = False
    if glob.has_magic(place.path):
        from fsspec.utils import glob_translate

        parts = place.path.split("/")
        root, pattern = "/".join(fixed_parts(parts[:-1])), re.compile(glob_translate(place.path))
        is_deep = "**" in place.path or len(parts) > len(fixed_parts(parts[:-1])) + 1
        files = hub.list_files(place._replace(path=root), recursive=is_deep)
        found = [file for file in files if pattern.match(file.path)]
    elif file := hub.file_or_folder(place):
        root, found, is_file = place.path.rpartition("/")[0], [file], True
    else:
        root, found = place.path, hub.list_files(place, recursive=True)
    files = [Found(str(place._replace(path=f.path)), f.path, f.size, f"blob_id {f.blob_id}") for f in found]
    return files, root, is_file


def _find_by_fsspec(filesystem: Any, path: str) -> tuple[list[Found], str, bool]:
    """Returns the files at a path of an fsspec filesystem, the fixed part of the path, and whether it is a file."""
    root, is_file = "/".join(fixed_parts(path.split("/")[:-1])), False
    if glob.has_magic(path):
        found = filesystem.glob(path, detail=True)
    elif filesystem.isdir(path):
        found, root = filesystem.find(path, detail=True), path
    else:
        found, is_file = {path: filesystem.info(path)}, True
    infos = ((name, info) for name, info in found.items() if info["type"] == "file")
    files = [Found(filesystem.unstrip_protocol(name), name, info["size"], _mark(info)) for name, info in infos]
    return files, root, is_file


def branch_commit(place: HubPath, what: str, waits: Sequence[float] = WAITS) -> str:
    """Returns the commit of the branch of a place of the Hub.

    Args:
        waits: as of `patiently`.

    Raises:
        UserError: it cannot be resolved.
    """
    where, branch = f"{what} {place}", place.revision or "main"
    hub.require_hub_package(where)
    return patiently(lambda: hub.commit_of(place, branch), f"{where}: branch {branch!r} cannot be resolved", waits)


class RemoteContent(NamedTuple):
    """The readable content of a remote file."""

    size: int
    """Bytes."""
    read_range: Callable[[int, int], bytes]
    """Returns bytes [start, stop)."""
    digest: str
    """The kind of digest that its store gives, and the hexadecimal digest: 'sha256 ...', 'blob_id ...', or ''."""


class DamagedTransfer(UserError):
    """A file read from start to end does not match its store's digest."""


def _content(url: str, where: str) -> RemoteContent:
    """Returns the content of the file at a URL."""
    if not url.startswith("hf://"):
        filesystem, path = _filesystem(url, where)
        size = filesystem.info(path)["size"]
        return RemoteContent(size, lambda start, stop: filesystem.cat_file(path, start=start, end=stop), "")
    hub.require_hub_package(where)
    place = hub.parse_hub_url(url, where)
    file = hub.file_or_folder(place)
    if file is None:
        raise IsADirectoryError("it is a folder")
    digest = f"sha256 {file.sha256}" if file.sha256 else f"blob_id {file.blob_id}"
    return RemoteContent(file.size, lambda start, stop: hub.read_range(place, file.size, start, stop), digest)


class RemoteFile(io.RawIOBase):
    """A remote file opened for reading; a request with a temporary error is repeated.

    Every answer has exactly the requested bytes. A file read from start to end is compared with its store's digest, if
    there is one.

    Args:
        first_bytes: if little of a file will be read, the bytes of the first request, and of one elsewhere in the file.
            A reader that continues gets a quarter of what it has read, and at most these, so that little is requested
            in vain. 0 for a file that will be read whole.

    Raises:
        UserError: a permanent error.
        DamagedTransfer: the digest differs.
    """

    def __init__(self, url: str, where: str, first_bytes: int = 0):
        self._where, self._at, self._first_bytes = where, 0, first_bytes
        self._content = patiently(lambda: _content(url, where), where)
        self._block, self._start, self._window, self._run = b"", 0, 0, 0
        self._digest, self._digested = _digest_of(self._content), 0

    def readinto(self, buffer) -> int:
        """Reads into a buffer; returns the bytes that were read, 0 at the end."""
        if self._at >= self._content.size or not len(buffer):
            return 0
        if not self._start <= self._at < self._start + len(self._block):
            self._fetch(len(buffer))
        first = self._at - self._start
        data = self._block[first : first + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _fetch(self, length: int) -> None:
        """Reads the block at the position, of so many bytes if it may be so large."""
        start, stop = self._at, min(self._content.size, self._at + min(max(length, self._next_bytes()), _MOST_BYTES))

        def read() -> bytes:
            data = self._content.read_range(start, stop)
            if len(data) != stop - start:
                raise WrongAnswer(f"{len(data)} bytes came in place of {stop - start}")
            return data

        self._block, self._start = patiently(read, self._where, READING_WAITS), start
        if self._digest is not None and self._digested == start:
            self._digest.update(self._block)
            self._digested = stop
            given, found = self._content.digest.partition(" ")[2], self._digest.hexdigest()
            if stop == self._content.size and found != given:
                raise DamagedTransfer(
                    f"{self._where}: its bytes have the digest {found:.16}, but its store gives {given:.16}; data made "
                    "from them are deleted, run again"
                )

    def _next_bytes(self) -> int:
        """Returns how many bytes to request next, unless the reader wants more."""
        ahead = self._at - self._start - len(self._block)
        if self._first_bytes:
            self._run = self._run + len(self._block) if ahead == 0 else 0
            return min(max(self._run, self._first_bytes) // 4, self._first_bytes) if self._run else self._first_bytes
        goes_on = -len(self._block) <= ahead <= _GAP_BYTES
        self._window = min(max(2 * self._window if goes_on else 0, _FIRST_BYTES), _MOST_BYTES)
        return self._window

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
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._content.size}[whence]
        return self._at


def _digest_of(content: RemoteContent):
    """Returns the hash function for a file's digest as its store computes it; None if the store has none."""
    kind = content.digest.partition(" ")[0]
    if kind == "blob_id":  # Of Git.
        return hashlib.sha1(b"blob %d\0" % content.size, usedforsecurity=False)
    return hashlib.sha256() if kind == "sha256" else None


def patiently(attempt: Callable[[], T], where: str, waits: Sequence[float] = WAITS) -> T:
    """Returns the result of `attempt`, which is repeated after waits, in seconds, on temporary errors.

    A server that limits requests (status 429) is waited for longer, as long as it requests; a wrong answer is not
    waited for. Each failure prints a line.
    """
    attempts = 0
    while True:
        try:
            return attempt()
        except Exception as error:  # Each store has its own exceptions.
            attempts += 1
            if isinstance(error, UserError):
                raise
            reason = _reason(error)
            if not _may_pass(error):
                raise UserError(f"{where}: {reason}") from error
            requested = _requested_wait(error)
            allowed = WAITS if isinstance(error, WrongAnswer) else READING_WAITS if _status(error) == 429 else waits
            if attempts > len(allowed) or requested > _LONGEST_WAIT:
                asks = f", the server requests to wait {requested:.0f} s" if requested > _LONGEST_WAIT else ""
                raise UserError(f"{where}: given up after {_times(attempts)} ({reason}{asks})") from error
            wait = max(allowed[attempts - 1], requested)
            asks = ", as the server requests" if requested >= wait else ""
            print_notice(f"{where}: {reason}; trying again in {wait:.0f} s{asks}")
            time.sleep(wait)


def _times(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"


def _requested_wait(error: Exception) -> float:
    """Returns how long a server that refused a request asks to wait, seconds; 0 if it does not say.

    From `RateLimit` (draft-ietf-httpapi-ratelimit-headers, as of the Hub: `"api";r=0;t=250`) or `Retry-After` (RFC
    9110, 10.2.3: seconds or a date).
    """
    headers = {name.lower(): str(value) for name, value in _headers(error).items()}
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    if limit and _status(error) == 429:
        return float(limit[1])
    after = headers.get("retry-after", "").strip()
    if after.isdecimal():
        return float(after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return 0.0


def _headers(error: Exception) -> Mapping[str, Any]:
    """Returns the headers of an error's answer; none if it has none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # Of botocore.
        return response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return getattr(response, "headers", None) or {}


def _reason(error: Exception) -> str:
    """Returns the kind and the text of an error in one line, with a hint for a Hub dataset that is not public."""
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
    """Returns whether the same request may succeed later: not if something is absent, forbidden or wrong."""
    if type(error).__name__ == "OfflineModeIsEnabled":  # Of huggingface_hub, with HF_HUB_OFFLINE=1.
        return False
    status = _status(error)
    if status is not None:
        return status >= 500 or status in (408, 429)
    if isinstance(error, OSError):
        never = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
        return not isinstance(error, never)
    # Errors of connections that are no OSError, as of aiohttp, httpx and botocore.
    return any(_OF_CONNECTIONS.search(kind.__name__) for kind in type(error).__mro__)


def _mark(info: dict[str, Any]) -> str:
    return next((f"{name} {info[name]}" for name in _MARKS if info.get(name)), "")
