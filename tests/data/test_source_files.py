import io
import os
import sys
import types
from unittest import mock

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jaxformer.config import UserError
from jaxformer.data import remote, source_files
from jaxformer.data.corpus import CorpusConfig, load_documents
from jaxformer.data.source_files import content_digests, find_files, open_file
from jaxformer.host import digests as host_digests

pytestmark = pytest.mark.device_free

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = COMMIT[::-1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of each test's own, and no waiting."""
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)


@pytest.fixture
def bucket():
    """A function (files by name) that fills memory://bucket."""

    def fill(files: dict[str, bytes]) -> None:
        filesystem = fsspec.filesystem("memory")
        for name, data in files.items():
            filesystem.pipe_file(f"/bucket/{name}", data)

    yield fill
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def parquet(texts: list[str]) -> bytes:
    """Returns a Parquet file with row groups of two."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=2)
    return file.getvalue()


def lines(texts: list[str]) -> bytes:
    return "".join(f'{{"text": "{text}"}}\n' for text in texts).encode()


def read(kind: str, path: str) -> list[str]:
    return [document.text for document in load_documents(CorpusConfig(kind=kind, path=path))]


# Found and read.


@pytest.mark.parametrize(
    ("kind", "suffix", "pack"),
    [("parquet", ".parquet", parquet), ("jsonl", ".jsonl", lines), ("text", ".txt", lambda texts: texts[0].encode())],
)
def test_remote_files_are_read_in_the_order_of_their_names_as_local_ones_are(tmp_path, bucket, kind, suffix, pack):
    files = {f"{name}{suffix}": pack([f"{name}{i}" for i in range(5)]) for name in ("b", "a/z", "a/c", "a.b")}
    bucket({**files, "a/README.md": b"no data"})
    for name, data in files.items():
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_bytes(data)
    local = read(kind, str(tmp_path / "here"))
    assert local[0] == "a/c0" and len(local) == (4 if kind == "text" else 20)
    for path in ("memory://bucket", f"memory://bucket/**/*{suffix}"):
        assert read(kind, path) == local
    assert read(kind, f"memory://bucket/a/*{suffix}") == [text for text in local if text[:2] == "a/"]
    assert read(kind, f"memory://bucket/b{suffix}") == [text for text in local if text[0] == "b"]


FILES = ("a.txt", "B.TXT", "c.md", "in/d.txt", "in/.e.txt", ".hid/f.txt", ".hid/g.txt", ".dotted", "in/deep/h.tXt")


@pytest.mark.parametrize("place", ["here", "memory://bucket"])
@pytest.mark.parametrize(
    ("path", "names", "passed_over"),
    [
        ("", ["B.TXT", "a.txt", "in/d.txt", "in/deep/h.tXt"], "2 hidden (.hid/, in/.e.txt), 1 of another kind (c.md)"),
        ("/**/*.txt", ["B.TXT", "a.txt", "in/d.txt", "in/deep/h.tXt"], "2 hidden (.hid/, in/.e.txt)"),
        ("/*.txt", ["B.TXT", "a.txt"], ""),
        ("/*/*.txt", ["in/d.txt"], "2 hidden (.hid/, in/.e.txt)"),
        ("/in/**", ["d.txt", "deep/h.tXt"], "1 hidden (.e.txt)"),
        ("/.hid", ["f.txt", "g.txt"], ""),
        ("/.hid/*.txt", ["f.txt", "g.txt"], ""),
        ("/.*/[fg].txt", [".hid/f.txt", ".hid/g.txt"], ""),
        ("/in/.e.txt", [".e.txt"], ""),
        ("/*.md", ["c.md"], ""),
    ],
)
def test_a_folder_and_a_glob_follow_one_convention_wherever_the_files_lie(
    tmp_path, monkeypatch, bucket, place, path, names, passed_over
):
    bucket({name: b"x" for name in FILES})
    for name in FILES:
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    listing = find_files(place + path, (".txt",), "corpus.path")
    assert [file.name for file in listing.files] == names
    assert str(listing) == passed_over
    assert [open_file(file.path, "corpus file").read() for file in listing.files] == [b"x"] * len(names)


def test_links_are_followed_and_a_file_is_taken_once_by_its_own_name(tmp_path):
    for name in ("texts/real/x.txt", "texts/y.txt", "elsewhere/z.txt", "elsewhere/deep/w.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name, to in {
        "texts/0.txt": "y.txt",
        "texts/a_link": "real",
        "texts/outside": "../elsewhere",
        "texts/real/up": "..",
        "elsewhere/deep/back": "../../texts",
        "texts/gone.txt": "nowhere",
        "texts/itself.txt": "itself.txt",
        "texts/unmounted": "../nowhere",
    }.items():
        (tmp_path / name).symlink_to(to)
    for path in ("texts", "texts/**/*.txt"):
        listing = find_files(str(tmp_path / path), (".txt",), "corpus.path")
        assert [file.name for file in listing.files] == ["outside/deep/w.txt", "outside/z.txt", "real/x.txt", "y.txt"]
        assert listing.passed_over["linked to nothing"] == ["gone.txt", "itself.txt", "unmounted"]
        assert {"0.txt", "a_link/x.txt"} <= set(listing.passed_over["linked to what is read already"])
    (linked,) = find_files(str(tmp_path / "texts" / "a_link" / "*.txt"), (".txt",), "corpus.path").files
    assert linked.name == "x.txt"


def test_what_was_passed_over_is_part_of_the_refusal_where_nothing_is_left(tmp_path):
    (tmp_path / "a.JSON").write_text("{}")
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    message = r"no \.jsonl file; passed over: 1 of another kind \(a\.JSON\), 1 linked to nothing \(gone\.jsonl\)$"
    with pytest.raises(UserError, match=message):
        find_files(str(tmp_path), (".jsonl",), "corpus.path")


def test_an_empty_file_is_reported_and_stays_part_of_the_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("")
    listing = find_files(str(tmp_path), (".txt",), "corpus.path")
    assert [file.name for file in listing.files] == ["a.txt", "b.txt"]
    assert str(listing) == "1 empty (b.txt)"


def test_a_folder_that_cannot_be_read_is_an_error_and_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/in/"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", lambda path: refuse(f"{path}/"))
    with pytest.raises(UserError, match=r"corpus\.path .*: Permission denied \(.*/in/\)"):
        find_files(str(tmp_path), (".txt",), "corpus.path")


def test_names_are_relative_to_the_fixed_part_of_a_remote_path(bucket):
    bucket({"a/x.txt": b"x", "a/b/y.txt": b"y"})
    for path in ("memory://bucket/a", "memory://bucket/a/**/*.txt"):
        assert [file.name for file in find_files(path, (".txt",), "corpus.path").files] == ["b/y.txt", "x.txt"]


@pytest.mark.parametrize("folder", ["plain", "a[1]", "a*", "a?b", "a://b", "#%20"])
def test_folders_that_exist_are_taken_literally_and_a_glob_begins_behind_them(tmp_path, folder):
    for name in ("x.txt", "b/y.txt", "b/[z].txt"):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    # What a pattern would find besides.
    (tmp_path / "a1").mkdir()
    (tmp_path / "a1" / "x.txt").write_bytes(b"another")

    def names(path):
        found = find_files(str(tmp_path / folder / path), (".txt",), "corpus.path").files
        for file in found:
            assert open_file(file.path, "corpus file").read().decode() in file.path
        return [file.name for file in found]

    assert names("") == names("**/*.txt") == ["b/[z].txt", "b/y.txt", "x.txt"]
    assert names("*.txt") == names("x.txt") == ["x.txt"]
    assert names("b/[z].txt") == ["[z].txt"]
    assert names("[b]/y.txt") == ["b/y.txt"]


def test_the_digest_of_remote_files_reads_none_of_them_and_changes_with_them(bucket, monkeypatch):
    config = CorpusConfig(kind="text", path="memory://bucket")
    bucket({"a.txt": b"one"})
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "_open", None)
        first = load_documents(config)
        assert load_documents(config).digest == first.digest
    bucket({"a.txt": b"two"})
    changed = load_documents(config)
    bucket({"b.txt": b""})
    assert len({first.digest, changed.digest, load_documents(config).digest}) == 3
    assert first.origin == "memory://bucket"


def test_a_mark_is_the_strongest_that_a_store_gives():
    assert remote._mark({"size": 3, "ETag": '"e"', "LastModified": "now"}) == 'ETag "e"'
    assert remote._mark({"size": 3, "sha256": "s", "LastModified": "now"}) == "sha256 s"
    assert remote._mark({"size": 3}) == ""


# Requests that fail.


class Hiccup:
    """Makes each so manyth read of memory files fail."""

    def __init__(self, monkeypatch, error: Exception, every: int):
        self.reads = 0

        def read_range(filesystem, path, start, end):
            self.reads += 1
            if self.reads % every == 0:
                raise error
            return filesystem.store[path].getvalue()[start:end]

        monkeypatch.setattr(MemoryFileSystem, "cat_file", read_range)


@pytest.mark.parametrize(("kind", "name", "pack"), [("jsonl", "a.jsonl", lines), ("parquet", "a.parquet", parquet)])
def test_a_read_that_fails_now_and_then_loses_and_doubles_nothing(bucket, monkeypatch, capsys, kind, name, pack):
    texts = [f"{i} {'x' * 900}" for i in range(40)]
    bucket({name: pack(texts)})
    monkeypatch.setattr(remote, "_FIRST_BYTES", 1000)
    monkeypatch.setattr(remote, "_MOST_BYTES", 4000)
    monkeypatch.setattr(source_files, "_BUFFER_BYTES", 1000)
    hiccup = Hiccup(monkeypatch, ConnectionResetError("connection lost"), every=3)
    assert read(kind, f"memory://bucket/{name}") == texts
    assert hiccup.reads > 9
    assert (
        f"memory:///bucket/{name}: ConnectionResetError: connection lost; trying again in 1 s"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TimeoutError(), r"given up after 36 attempts \(TimeoutError: no reason given\)$"),
        (PermissionError("no key"), r"PermissionError: no key$"),
        (FileNotFoundError("gone"), r"FileNotFoundError: gone$"),
    ],
)
def test_an_error_that_stays_is_one_line(bucket, monkeypatch, error, message):
    bucket({"a.jsonl": lines(["x"])})
    Hiccup(monkeypatch, error, every=1)
    with pytest.raises(UserError, match=rf"^corpus file memory:///bucket/a\.jsonl: {message}"):
        read("jsonl", "memory://bucket/a.jsonl")


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (401, 1), (429, 36), (503, 7)])
def test_only_answers_of_a_server_that_may_change_are_asked_for_again(status, attempts):
    asked = []

    def attempt():
        asked.append(1)
        error = RuntimeError("refused")
        error.response = types.SimpleNamespace(status_code=status)
        raise error

    with pytest.raises(UserError, match="refused"):
        remote.patiently(attempt, "somewhere")
    assert len(asked) == attempts


def test_all_that_an_error_says_is_reported_in_one_line_and_what_opens_a_closed_dataset():
    closed = type("GatedRepoError", (OSError,), {"__module__": "huggingface_hub.errors"})
    error = closed(
        "403 Client Error. (Request ID: 1)\n\nCannot access gated repo for url u.\nVisit u to ask for access."
    )
    error.response = types.SimpleNamespace(status_code=403)
    with pytest.raises(UserError) as raised:
        remote.patiently(mock.Mock(side_effect=error), "corpus.path hf://x")
    assert str(raised.value) == (
        "corpus.path hf://x: GatedRepoError: 403 Client Error. (Request ID: 1) Cannot access gated repo for url u. "
        "Visit u to ask for access.; accept its terms on its page, and log in with `hf auth login` or set HF_TOKEN"
    )
    with pytest.raises(UserError, match=r"x \.\.\.$") as raised:
        remote.patiently(mock.Mock(side_effect=ValueError("x" * 1000)), "somewhere")
    assert len(str(raised.value)) < 400


class ConnectTimeoutError(Exception):
    """Stands for errors of botocore and others that are no OSError."""


def coded(**fields) -> Exception:
    error = OSError("refused")
    vars(error).update(fields)
    return error


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (coded(code=403), False),
        (coded(code=500), True),
        (coded(response={"ResponseMetadata": {"HTTPStatusCode": 401}}), False),
        (coded(response={"ResponseMetadata": {"HTTPStatusCode": 503}}), True),
        (coded(), True),
        (ConnectTimeoutError(), True),
        (Exception("no credentials"), False),
    ],
)
def test_only_connections_and_answers_that_may_change_are_tried_again(error, may_pass):
    assert remote._may_pass(error) is may_pass


def test_a_file_of_which_its_store_says_nothing_is_read_for_its_digest_and_this_is_reported(
    bucket, monkeypatch, capsys
):
    monkeypatch.setattr(remote, "_MARKS", ())
    found = []
    for data in (b"one", b"two", b"two"):
        bucket({"a.txt": data})
        found += content_digests(find_files("memory://bucket/a.txt", (".txt",), "corpus.path").files, "corpus file")
    assert found[0] != found[1] == found[2]
    assert "a.txt: its store gives no digest, ETag or time; reading all of it" in capsys.readouterr().err


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_an_answer_of_another_length_is_an_error_and_neither_the_end_nor_text_of_the_file(
    bucket, monkeypatch, capsys, change
):
    texts = [f"{i} {'x' * 900}" for i in range(40)]
    bucket({"a.jsonl": lines(texts)})
    whole = MemoryFileSystem.cat_file
    reads = []

    def read_range(filesystem, path, start, end):
        reads.append(start)
        data = whole(filesystem, path, start=start, end=end)
        return data if len(reads) % 2 == 0 else change(data)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", read_range)
    monkeypatch.setattr(remote, "_FIRST_BYTES", 4000)
    monkeypatch.setattr(source_files, "_BUFFER_BYTES", 1000)
    assert read("jsonl", "memory://bucket/a.jsonl") == texts
    assert "bytes came in place of 4000" in capsys.readouterr().err


def test_damage_of_a_remote_file_is_reported_as_that_of_a_local_one(bucket):
    bucket({"a.parquet": parquet(["a", "b"])[:-9]})
    with pytest.raises(UserError, match=r"memory:///bucket/a\.parquet: damaged or not Parquet"):
        read("parquet", "memory://bucket/a.parquet")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("memory://nowhere", "memory://nowhere: FileNotFoundError"),
        ("memory://nowhere/*.txt", r"memory://nowhere/\*\.txt: no such file"),
        ("gs://bucket/*.txt", r"gs:// needs a package; pip install gcsfs"),
        ("s3://bucket/*.txt", r"s3:// needs a package; pip install s3fs"),
        ("gopher://a/b.txt", r"gopher://a/b\.txt: .*known are hf://, gs://, s3:// and local paths"),
        ("hf://OWNER/NAME", r"write hf://datasets/OWNER/NAME@REVISION/FILES"),
    ],
)
def test_a_place_that_cannot_be_opened_is_named_with_what_to_do(monkeypatch, path, message):
    for module in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"^corpus\.path .*{message}"):
        load_documents(CorpusConfig(kind="text", path=path))


# Digests of local files.


def digests(path, monkeypatch) -> tuple[list[str], int]:
    """Returns the digests of the files in a folder, and how many of them were read for it."""
    count = 0
    original = host_digests.file_digest

    def counted(*args):
        nonlocal count
        count += 1
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(host_digests, "file_digest", counted)
        return content_digests(find_files(str(path), (".txt",), "corpus.path").files, "corpus file"), count


def test_a_large_file_is_read_for_its_digest_when_it_is_new_or_changed_and_a_small_one_always(tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    folder.mkdir()
    large, small = folder / "large.txt", folder / "small.txt"
    large.write_bytes(b"x" * source_files._REMEMBERED_BYTES)
    small.write_bytes(b"y")
    for path in (large, small):
        os.utime(path, (1e9, 1e9))
    first, read_first = digests(folder, monkeypatch)
    again, read_again = digests(folder, monkeypatch)
    assert (first, read_first, read_again) == (again, 2, 1)
    large.write_bytes(b"z" + b"x" * (source_files._REMEMBERED_BYTES - 1))
    os.utime(large, (2e9 - 1e9 + 5, 1e9 + 5))
    changed, read_changed = digests(folder, monkeypatch)
    assert read_changed == 2
    assert changed[0] != first[0] and changed[1] == first[1]


def test_a_file_that_was_written_a_moment_ago_is_not_remembered(tmp_path, monkeypatch):
    (tmp_path / "large.txt").write_bytes(b"x" * source_files._REMEMBERED_BYTES)
    assert digests(tmp_path / "large.txt", monkeypatch)[1] == 1
    assert digests(tmp_path / "large.txt", monkeypatch)[1] == 1


def test_a_cache_that_cannot_be_written_stops_no_digest(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where a folder should be")
    (tmp_path / "large.txt").write_bytes(b"x" * source_files._REMEMBERED_BYTES)
    os.utime(tmp_path / "large.txt", (1e9, 1e9))
    assert digests(tmp_path / "large.txt", monkeypatch)[1] == 1


def test_a_remote_file_can_be_sought_and_read_from_anywhere(bucket):
    data = bytes(range(256)) * 50
    bucket({"a": data})
    with open_file("memory://bucket/a", "corpus file") as file:
        for start, length in ((100, 10), (0, 3), (12_700, 200), (12_800, 5)):
            file.seek(start)
            assert file.read(length) == data[start : start + length]
        assert file.seek(-5, os.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]
