"""SHA-256 of files: read once, again after a change, and whatever became of what was remembered."""

import hashlib
import json
import os

import pytest

from jaxformer.host import digests
from jaxformer.host.digests import file_digests

pytestmark = pytest.mark.device_free


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "memory" / "digests.json"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"first")
    return path


@pytest.fixture
def read(monkeypatch):
    """The files that were read, in order."""
    paths = []
    digest = digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda path: paths.append(path) or digest(path))
    return paths


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once_while_size_and_time_stay(file, memory, read):
    for _ in range(3):
        assert file_digests({"a": file}, memory) == {"a": sha256(b"first")}
    assert read == [file]
    status = file.stat()
    assert json.loads(memory.read_bytes()) == {"a": [status.st_size, status.st_mtime_ns, sha256(b"first")]}


@pytest.mark.parametrize("content", [b"other", b"longer than before"])
def test_a_changed_file_is_read_again(content, file, memory, read):
    file_digests({"a": file}, memory)
    before = file.stat().st_mtime_ns
    file.write_bytes(content)
    # Of another size, the time may be the same.
    os.utime(file, ns=(before, before + (len(content) == len(b"first"))))
    for _ in range(2):
        assert file_digests({"a": file}, memory) == {"a": sha256(content)}
    assert read == [file, file]


def test_what_is_not_worth_it_is_not_remembered(file, memory, read):
    for _ in range(2):
        file_digests({"a": file}, memory, is_worth=lambda status: status.st_size > 5)
    assert read == [file, file] and not memory.exists()


def test_what_is_remembered_of_other_files_stays(file, memory, tmp_path, read):
    other = tmp_path / "b.txt"
    other.write_bytes(b"second")
    file_digests({"a": file}, memory)
    assert file_digests({"b": other}, memory) == {"b": sha256(b"second")}
    assert file_digests({"a": file, "b": other}, memory) == {"a": sha256(b"first"), "b": sha256(b"second")}
    assert read == [file, other]


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"[]", b"\xff", b'{"a": [1, 2]}', b'{"a": [SIZE, TIME]}', b'{"a": [SIZE, TIME, 3]}',
     b'{"a": [SIZE, TIME, "x", 4]}', b'{"a": []}', b'{"a": "SIZE"}', b'{"a": null}'],
)  # fmt: skip
def test_a_damaged_memory_costs_a_reading_and_is_mended(damaged, file, memory, read):
    status = file.stat()
    memory.parent.mkdir()
    memory.write_bytes(
        damaged.replace(b"SIZE", str(status.st_size).encode()).replace(b"TIME", str(status.st_mtime_ns).encode())
    )
    for _ in range(2):
        assert file_digests({"a": file}, memory) == {"a": sha256(b"first")}
    assert read == [file]


def test_without_a_place_to_remember_the_files_are_read_each_time(file, tmp_path, read):
    for _ in range(2):
        assert file_digests({"a": file}, file / "digests.json") == {"a": sha256(b"first")}
    assert read == [file, file]


def test_a_file_that_is_not_there_is_an_error(memory, tmp_path):
    with pytest.raises(FileNotFoundError):
        file_digests({"a": tmp_path / "missing"}, memory)
