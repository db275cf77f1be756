"""Repositories of the Hugging Face Hub over HTTP: the commit of a branch, the files of a commit, ranges of their bytes.

Each request is made once, and its answer is checked. `huggingface_hub` gives the address, the token and the kinds of
error. Its own file objects are not used, because they retry silently, and accept any bytes that a proxy answers for a
range (fsspec/filesystem_spec#1140 reports the same for fsspec).
"""

import functools
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

from jaxformer.config import UserError

# A slower answer counts as stalled, bytes per second: the data of a day's training would take months.
_SLOWEST = 10_000

_REVISION = r"(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(/.*)?"
_URLS = {
    "datasets": re.compile(r"hf://datasets/([^/@]+/[^/@]+)" + _REVISION),
    # Some early models have no owner.
    "models": re.compile(r"hf://(?!(?:datasets|spaces)/)([^/@]+(?:/[^/@]+)?)" + _REVISION),
}


class WrongAnswer(OSError):
    """The answer is not what was requested."""


class HubPath(NamedTuple):
    """A place in a dataset or a model of the Hub."""

    repository: str
    """OWNER/NAME; of some models NAME."""
    revision: str
    """A commit, a branch, or '' for the default branch."""
    path: str
    """Of a file, a folder or a glob; '' for all."""
    kind: str = "datasets"
    """'datasets' or 'models'."""

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None

    def __str__(self) -> str:
        revision = self.revision and f"@{self.revision}"
        return f"{self.repository_url}{revision}{self.path and '/' + self.path}"

    @property
    def repository_url(self) -> str:
        """The URL of the repository."""
        return f"hf://{'datasets/' if self.kind == 'datasets' else ''}{self.repository}"

    @property
    def api(self) -> str:
        """The Hub's API address for the repository."""
        return f"api/{self.kind}/{self.repository}"


class HubFile(NamedTuple):
    """A file of a commit."""

    path: str
    """Its path in the repository."""
    size: int
    """Bytes."""
    blob_id: str
    """Its hexadecimal SHA-1 in Git; for a large file, of the pointer to it."""
    sha256: str
    """Hexadecimal SHA-256 of a large file; '' for one stored in Git itself."""


def parse_hub_url(url: str, what: str, kind: str = "") -> HubPath:
    """Returns the place that a URL names: `hf://datasets/OWNER/NAME@REVISION/FILES`, without `datasets/` in a model.

    Args:
        url: of the place.
        what: it is for.
        kind: of the repository, 'datasets' or 'models'; '' for either.

    Raises:
        UserError: it is of another form.
    """
    for each, form in _URLS.items():
        if kind in ("", each) and (match := form.fullmatch(url)):
            return HubPath(match[1], (match[2] or "").replace("%2F", "/"), (match[3] or "").strip("/"), each)
    form = "hf://OWNER/NAME@REVISION" if kind == "models" else "hf://datasets/OWNER/NAME@REVISION/FILES"
    raise UserError(f"{what} {url}: write {form}")


def require_hub_package(where: str) -> None:
    """Raises `UserError` unless `huggingface_hub` is installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise UserError(f"{where}: hf:// needs huggingface_hub; pip install 'jaxformer[hub]'") from error


def commit_of(place: HubPath, branch: str) -> str:
    """Returns the commit of a branch of the repository of a place."""
    return _json("GET", f"{place.api}/revision/{quote(branch, safe='')}")[0]["sha"]


@functools.lru_cache(maxsize=1024)
def file_or_folder(place: HubPath) -> HubFile | None:
    """Returns the file at a place of a commit, which never changes; None if it is a folder.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if not place.path:
        return None
    url = f"{place.api}/paths-info/{place.revision}"
    found, _ = _json("POST", url, data={"paths": [place.path], "expand": False})
    if not found:
        raise FileNotFoundError(f"{place.path} is not in it")
    return _file(found[0]) if found[0]["type"] == "file" else None


def list_files(place: HubPath, *, recursive: bool) -> Iterator[HubFile]:
    """Yields the files of a folder of a commit, and of the folders below it."""
    url = f"{place.api}/tree/{place.revision}"
    url += place.path and f"/{quote(place.path, safe='')}"
    page: dict[str, str] = {"recursive": str(recursive), "expand": "False"}
    while page:
        entries, page = _json("GET", url, params=page)
        yield from (_file(entry) for entry in entries if entry["type"] == "file")


def read_range(place: HubPath, size: int, start: int, stop: int) -> bytes:
    """Returns bytes [start, stop) of a file.

    Raises:
        WrongAnswer: other bytes came, or fewer, or more.
        TimeoutError: they came too slowly.
    """
    url = f"{place.repository_url.removeprefix('hf://')}/resolve/{place.revision}/{quote(place.path)}"
    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    data = bytearray()
    with _session().stream("GET", **_request(url, headers)) as response:
        _raise_for_status(response)
        _check_range(response, start, stop, size)
        deadline = time.monotonic() + _timeout() + (stop - start) / _SLOWEST
        for block in response.iter_raw():
            data += block
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(data)} of {stop - start} bytes came in {_timeout():.0f} s and more")
    if len(data) != stop - start:
        raise WrongAnswer(f"{len(data)} bytes came in place of {stop - start}")
    return bytes(data)


def _check_range(response: Any, start: int, stop: int, size: int) -> None:
    """Raises `WrongAnswer` unless an answer is of bytes [start, stop) of a file, by its status and headers."""
    given = response.headers.get("Content-Range", "")
    if response.status_code == 200:
        is_right = (start, stop) == (0, size) and response.headers.get("Content-Length", str(size)) == str(size)
    else:
        is_right = response.status_code == 206 and given in (f"bytes {start}-{stop - 1}/{each}" for each in (size, "*"))
    if not is_right:
        raise WrongAnswer(
            f"bytes {start}-{stop - 1} of {size} were requested, and status {response.status_code} came with "
            f"{f'Content-Range {given!r}' if given else 'no Content-Range'}; a proxy may be at fault"
        )


def _file(entry: dict[str, Any]) -> HubFile:
    return HubFile(entry["path"], entry["size"], entry["oid"], (entry.get("lfs") or {}).get("oid", ""))


def _json(method: str, url: str, **options: Any) -> tuple[Any, dict[str, str]]:
    """Returns the JSON of an answer, and the query of its next page; empty for the last."""
    response = _session().request(method, **_request(url), **options)
    _raise_for_status(response)
    # The link may name another host than the chosen mirror.
    following = response.links.get("next", {}).get("url", "")
    return response.json(), dict(parse_qsl(urlsplit(following).query))


def _request(url: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """Returns the arguments that all requests share; the client sends the token only to the Hub, not on redirects."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    headers = {**build_hf_headers(library_name="jaxformer"), **(headers or {})}
    return {
        "url": f"{constants.ENDPOINT}/{url}",
        "headers": headers,
        "timeout": _timeout(),
        "follow_redirects": True,
    }


def _session() -> Any:
    from huggingface_hub.utils import get_session

    return get_session()


def _timeout() -> float:
    """Returns the longest time without an answer, seconds: $HF_HUB_DOWNLOAD_TIMEOUT, or 10."""
    from huggingface_hub import constants

    return constants.HF_HUB_DOWNLOAD_TIMEOUT


def _raise_for_status(response: Any) -> None:
    from huggingface_hub.utils import hf_raise_for_status

    if response.is_error:
        response.read()  # For a streamed one, to get the Hub's message.
    hf_raise_for_status(response)
