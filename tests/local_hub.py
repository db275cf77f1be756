"""A Hugging Face Hub on the loopback: lists, resolves, redirects and serves ranges, and misbehaves on command.

    with LocalHub() as hub:
        commit = hub.commit("me/texts", {"data/a.parquet": ...})
        hub.misbehave(Answer(503), on="cdn", times=2)
        user = User(folder, texts, hub.environment)

It keeps everything in memory, listens on a port of its own, and serves data from another host name than the API, as the
Hub does, so that a token that goes there is noticed.
"""

import hashlib
import io
import json
import re
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, sleep
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pyarrow
import pyarrow.parquet

TOKEN = "hf_of_the_tests"


# What can go wrong with an answer.


@dataclass(frozen=True)
class Answer:
    """Another status, such as 429 with `{"Retry-After": "1"}`, or 403."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reset:
    """The connection is reset after so many bytes of the body; None before the headers."""

    after: int | None = None


@dataclass(frozen=True)
class Stall:
    """Nothing comes for some seconds after so many bytes of the body; None before the headers."""

    seconds: float
    after: int | None = None


@dataclass(frozen=True)
class Trickle:
    """A byte comes at a time, with a pause, seconds."""

    pause: float


@dataclass(frozen=True)
class Truncated:
    """The connection is closed after so many bytes, fewer than the headers promise."""

    after: int


@dataclass(frozen=True)
class Resized:
    """So many bytes more, or fewer, with headers that agree with themselves."""

    change: int


@dataclass(frozen=True)
class RangeIgnored:
    """Status 200 and the whole file, as a proxy that knows no ranges answers."""


@dataclass(frozen=True)
class OtherRange:
    """Status 206 and a range of the same length elsewhere, as a cache that mistakes one for another answers."""

    shift: int


@dataclass(frozen=True)
class Corrupted:
    """The right headers, and a byte of the body changed."""

    at: int = 0


Fault = Answer | Reset | Stall | Trickle | Truncated | Resized | RangeIgnored | OtherRange | Corrupted


@dataclass
class _Planned:
    fault: Fault
    on: re.Pattern
    skip: int
    times: int


class Request(NamedTuple):
    """A request that was answered."""

    line: str
    """'GET /api/...', and the range as in 'bytes=0-99'; what the pattern of a fault is searched in."""
    range: str
    """As it was requested; '' for none."""
    has_token: bool
    status: int
    sent: int
    """Bytes of the body."""
    at: float
    """When it came, seconds of a clock that only runs forward."""


@dataclass
class _Repository:
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)


class LocalHub:
    """A server within a `with` block, in a thread.

    Attributes:
        requests: those that were answered so far.
        page_entries: entries of a page of a listing.
        moved: the new name of each model that has another.
    """

    def __init__(self):
        self.requests: list[Request] = []
        self.page_entries = 1000
        self.moved: dict[str, str] = {}
        self._repositories: dict[str, _Repository] = {}
        self._planned: list[_Planned] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port = self._server.server_address[1]

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which `huggingface_hub` uses this hub."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "NO_PROXY": "*",
        }

    def commit(self, repository: str, files: dict[str, bytes], branch: str = "main", commit: str = "") -> str:
        """Puts files into a new commit and a branch at it; returns the commit, which may be chosen."""
        content = repr([(name, hashlib.sha1(data).hexdigest()) for name, data in sorted(files.items())])
        commit = commit or hashlib.sha1(content.encode()).hexdigest()
        kept = self._repositories.setdefault(repository, _Repository())
        kept.commits[commit] = dict(files)
        kept.branches[branch] = commit
        return commit

    def misbehave(self, fault: Fault, *, on: str = "cdn", times: int = 1, skip: int = 0) -> None:
        """Plans a fault for requests whose line matches a pattern, after some that are answered rightly."""
        self._planned.append(_Planned(fault, re.compile(on), skip, times))

    def behave(self) -> None:
        """Forgets the planned faults, and the requests."""
        self._planned.clear()
        self.requests.clear()

    def sent(self, on: str = "cdn") -> int:
        """Returns the bytes of the answers to requests that match a pattern."""
        return sum(request.sent for request in self.requests if re.search(on, request.line))

    def fault_of(self, line: str) -> Fault | None:
        """Returns what is planned for a request."""
        with self._lock:
            for planned in self._planned:
                if planned.times and planned.on.search(line):
                    if planned.skip:
                        planned.skip -= 1
                        continue
                    planned.times -= 1
                    return planned.fault
        return None

    def files(self, repository: str, revision: str) -> dict[str, bytes] | None:
        """Returns the files of a branch or a commit; None for none."""
        kept = self._repositories.get(repository, _Repository())
        return kept.commits.get(kept.branches.get(revision, revision))

    def commit_of(self, repository: str, revision: str) -> str:
        """Returns the commit of a branch; a commit is itself."""
        return self._repositories[repository].branches.get(revision, revision)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Prints nothing: clients that go away are a part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Else the body waits for the headers to be acknowledged.
    hub: LocalHub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer(b"")

    def do_HEAD(self):
        self._answer(b"")

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes) -> None:
        url = urlsplit(self.path)
        fault = self.hub.fault_of(self._line())
        match fault:
            case Answer(status, headers):
                return self._send(status, {"error": "as planned"}, headers)
            case Reset(after=None):
                return self._reset()
            case Stall(seconds, after=None):
                sleep(seconds)
        # A path within a path of the address has its slashes escaped.
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if moved := self._moved(parts):  # A model of the first days, by its name alone.
            return self._send(307, {}, {"Location": self.path.replace(*moved, 1)})
        match parts:
            case ["api", "datasets" | "models", owner, name, "revision", revision]:
                if self._has(f"{owner}/{name}", revision):
                    commit = self.hub.commit_of(f"{owner}/{name}", revision)
                    self._send(200, {"id": f"{owner}/{name}", "sha": commit, "siblings": []})
            case ["api", "datasets" | "models", owner, name, "tree", revision, *path]:
                if self._has(f"{owner}/{name}", revision):
                    files = self.hub.files(f"{owner}/{name}", revision) or {}
                    self._send_tree(files, "/".join(path), parse_qs(url.query), url.path)
            case ["api", "datasets" | "models", owner, name, "paths-info", revision]:
                if self._has(f"{owner}/{name}", revision):
                    entries = _entries(self.hub.files(f"{owner}/{name}", revision) or {})
                    self._send(200, [entries[path] for path in _wanted_paths(body) if path in entries])
            case ["datasets", owner, name, "resolve", revision, *path] | [owner, name, "resolve", revision, *path]:
                self._redirect(f"{owner}/{name}", revision, "/".join(path))
            case ["cdn", owner, name, commit, *path]:
                self._send_data((self.hub.files(f"{owner}/{name}", commit) or {})["/".join(path)], fault)
            case _:
                self._send(404, {"error": "Not Found"})

    def _moved(self, parts: list[str]) -> tuple[str, str] | None:
        """Returns the old and the new name of a model in a path, where it has moved."""
        old = parts[2] if parts[:2] == ["api", "models"] else parts[0]
        return (f"/{old}/", f"/{self.hub.moved[old]}/") if old in self.hub.moved else None

    def _line(self) -> str:
        return f"{self.command} {self.path} {self.headers.get('Range', '')}".strip()

    def _has(self, repository: str, revision: str) -> bool:
        """Returns whether a revision is there; answers that it is not."""
        if self.hub.files(repository, revision) is None:
            headers = {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}
            self._send(404, {"error": headers["X-Error-Message"]}, headers)
            return False
        return True

    def _send_tree(self, files: dict[str, bytes], folder: str, query: dict[str, list[str]], path: str) -> None:
        entries = _entries(files)
        if folder and entries.get(folder, {"type": "file"})["type"] == "file":
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": f"{folder} does not exist"}
            return self._send(404, {"error": headers["X-Error-Message"]}, headers)
        prefix = f"{folder}/" if folder else ""
        is_deep = query["recursive"][0].lower() == "true"
        names = [each for each in entries if each.startswith(prefix) and (is_deep or "/" not in each[len(prefix) :])]
        first = int(query.get("cursor", ["0"])[0])
        stop = first + self.hub.page_entries
        # As a mirror does, it names the Hub itself.
        link = f'<https://huggingface.co{path}?recursive={is_deep}&expand=False&cursor={stop}>; rel="next"'
        page = [entries[name] for name in names[first:stop]]
        self._send(200, page, {"Link": link} if stop < len(names) else {})

    def _redirect(self, repository: str, revision: str, path: str) -> None:
        if path not in (self.hub.files(repository, revision) or {}):
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self._send(404, {"error": "Entry not found"}, headers)
        commit = self.hub.commit_of(repository, revision)
        place = f"http://localhost:{self.hub.port}/cdn/{repository}/{commit}/{quote(path)}?signature=1"
        self._send(302, {}, {"Location": place, "X-Repo-Commit": commit})

    def _send_data(self, data: bytes, fault: Fault | None) -> None:
        """Answers with a range of a file, or with what a fault makes of it."""
        start, stop, status = 0, len(data), 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and not isinstance(fault, RangeIgnored):
            start, stop, status = int(wanted[1]), min(int(wanted[2]) + 1, len(data)), 206
        if isinstance(fault, OtherRange):
            start, stop = (max(0, each + fault.shift) for each in (start, stop))
        if isinstance(fault, Resized):
            stop += fault.change
        body = data[start:stop].ljust(stop - start, b"?")
        if isinstance(fault, Corrupted):
            body = body[: fault.at] + bytes([body[fault.at] ^ 1]) + body[fault.at + 1 :]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        cut = getattr(fault, "after", None)
        self._note(status, len(body) if cut is None else cut)  # Before the client has it.
        self._write(body, fault)

    def _write(self, body: bytes, fault: Fault | None) -> None:
        """Writes a body, or what a fault leaves of it."""
        match fault:
            case Reset(int(after)):
                self.wfile.write(body[:after])
                self.wfile.flush()
                sleep(0.05)
                self._reset()
            case Truncated(after):
                self.wfile.write(body[:after])
                self.close_connection = True
            case Stall(seconds, int(after)):
                self.wfile.write(body[:after])
                sleep(seconds)
                self.wfile.write(body[after:])
            case Trickle(pause):
                for i in range(len(body)):
                    self.wfile.write(body[i : i + 1])
                    sleep(pause)
            case _:
                self.wfile.write(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _send(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self._note(status, len(body))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _note(self, status: int, sent: int) -> None:
        token = self.headers.get("Authorization", "")
        request = Request(self._line(), self.headers.get("Range", ""), TOKEN in token, status, sent, monotonic())
        self.hub.requests.append(request)


def _wanted_paths(body: bytes) -> list[str]:
    """Returns the paths that a request names, as JSON or as a form."""
    try:
        return json.loads(body)["paths"]
    except ValueError:
        return parse_qs(body.decode())["paths"]


def _entries(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """Returns what the Hub lists of files and of the folders that they lie in, by path."""
    entries: dict[str, dict[str, Any]] = {}
    for path, data in files.items():
        parts = path.split("/")
        for i in range(1, len(parts)):
            folder = "/".join(parts[:i])
            entries[folder] = {"type": "directory", "oid": hashlib.sha1(folder.encode()).hexdigest(), "size": 0}
        entries[path] = {"type": "file", "size": len(data)}
        if path.endswith((".parquet", ".zst", ".gz")):
            pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b" % hashlib.sha256(data).digest()
            entries[path]["oid"] = hashlib.sha1(pointer).hexdigest()
            entries[path]["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}
        else:
            entries[path]["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {path: {"path": path, **entries[path]} for path in sorted(entries)}


# Data as it lies on the Hub.


def fineweb_edu(texts: list[str], row_group: int = 1000) -> bytes:
    """Returns a Parquet file with the ten columns of FineWeb-EDU."""
    count = len(texts)
    columns = {
        "text": texts,
        "id": [f"<urn:uuid:{hashlib.md5(text.encode()).hexdigest()}>" for text in texts],
        "dump": ["CC-MAIN-2024-10"] * count,
        "url": [f"http://example.org/{i}" for i in range(count)],
        "file_path": ["s3://commoncrawl/crawl-data/CC-MAIN-2024-10/segments/1.warc.gz"] * count,
        "language": ["en"] * count,
        "language_score": [0.9 + i % 10 / 100 for i in range(count)],
        "token_count": [len(text.split()) for text in texts],
        "score": [2.5 + i % 5 / 2 for i in range(count)],
        "int_score": [3] * count,
    }
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file, row_group_size=row_group)
    return file.getvalue()


def dclm(texts: list[str]) -> bytes:
    """Returns JSON lines with fields of DCLM, compressed by Zstandard."""
    lines = (
        json.dumps({"text": text, "url": "http://example.org", "language_id_whole_page_fasttext": {"en": 0.9}})
        for text in texts
    )
    return compressed("".join(line + "\n" for line in lines).encode())


def compressed(data: bytes) -> bytes:
    """Returns data as a Zstandard file."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()
