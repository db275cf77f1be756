"""The Hub's protocol and its faults, on a hub on the loopback; no test waits."""

import email.utils
import io
import json
import re
import sys
import time
import types

import pyarrow.parquet
import pytest
from local_hub import (
    Answer,
    Corrupted,
    LocalHub,
    OtherRange,
    RangeIgnored,
    Reset,
    Resized,
    Stall,
    Trickle,
    Truncated,
    compressed,
    fineweb_edu,
)

from jaxformer.config import UserError
from jaxformer.data import chunks, remote, source_files
from jaxformer.data import hub as hub_module
from jaxformer.data.chunks import write_chunk
from jaxformer.data.corpus import CorpusConfig, load_documents
from jaxformer.data.preparation import prepare
from jaxformer.data.remote import DamagedTransfer
from jaxformer.data.source_files import find_files, open_file, pinned
from jaxformer.data.tokenizer import TokenizerConfig, prepare_tokenizer

constants = pytest.importorskip("huggingface_hub.constants")

pytestmark = pytest.mark.device_free

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = COMMIT[::-1]


@pytest.fixture(scope="module")
def running():
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def waits(monkeypatch):
    """The waits, seconds, in place of waiting."""
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    return waits


@pytest.fixture
def hub(running, tmp_path, monkeypatch, waits):
    """An empty hub that `huggingface_hub` uses."""
    running.behave()
    running._repositories.clear()
    running.page_entries, running.moved = 1000, {}
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", running.environment["HF_ENDPOINT"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    for name in ("HF_TOKEN", "NO_PROXY"):
        monkeypatch.setenv(name, running.environment[name])
    hub_module.file_or_folder.cache_clear()
    return running


def lines(texts: list[str]) -> bytes:
    return "".join(f'{{"text": "{text}"}}\n' for text in texts).encode()


def texts_at(path: str, kind: str = "jsonl") -> list[str]:
    return [document.text for document in load_documents(CorpusConfig(kind=kind, path=path))]


# Branches and listings.


def test_a_branch_is_pinned_to_its_commit_once_and_again_on_request(hub, capsys):
    hub.commit("me/texts", {"a.txt": b"old"}, commit=COMMIT)
    path = "hf://datasets/me/texts/data/*.parquet"
    fixed = f"hf://datasets/me/texts@{COMMIT}/data/*.parquet"
    assert pinned(path, "corpus.path") == (fixed, COMMIT)
    assert capsys.readouterr().out == f"corpus      hf://datasets/me/texts: main is commit {COMMIT}\n"
    hub.commit("me/texts", {"a.txt": b"new"}, commit=OTHER)
    hub.behave()
    assert pinned(path, "corpus.path") == (fixed, COMMIT)
    assert not hub.requests
    assert "--newest` looks it up again" in capsys.readouterr().out
    for _ in range(2):
        assert pinned(path, "corpus.path", newest=True)[1] == OTHER
    assert pinned(path, "corpus.path")[1] == OTHER
    assert pinned(fixed, "corpus.path") == (fixed, COMMIT)
    assert pinned("s3://bucket/a", "corpus.path") == ("s3://bucket/a", "")


@pytest.mark.parametrize("branch", ["other", "refs/convert/parquet", "refs/pr/3"])
def test_other_branches_are_looked_up_by_their_names(hub, branch):
    hub.commit("me/texts", {"a.jsonl": lines(["x"])}, branch=branch, commit=OTHER)
    path, commit = pinned(f"hf://datasets/me/texts@{branch}/a.jsonl", "corpus.path")
    assert (path, commit) == (f"hf://datasets/me/texts@{OTHER}/a.jsonl", OTHER)
    assert texts_at(path) == ["x"]


def test_another_commit_is_another_corpus_and_a_branch_is_that_of_its_commit(hub):
    for commit, text in ((COMMIT, "old"), (OTHER, "new")):
        hub.commit("me/texts", {"data/a.parquet": fineweb_edu([text])}, commit=commit)
    documents = {
        revision: load_documents(CorpusConfig(kind="parquet", path=f"hf://datasets/me/texts{revision}/data"))
        for revision in ("", f"@{COMMIT}", f"@{OTHER}")
    }
    assert documents[""].digest == documents[f"@{OTHER}"].digest != documents[f"@{COMMIT}"].digest
    assert documents[""].commit == OTHER
    assert [document.text for document in documents[f"@{COMMIT}"]] == ["old"]


def test_a_revision_that_is_not_there_and_a_missing_package_are_one_line(hub, monkeypatch):
    hub.commit("me/texts", {})
    with pytest.raises(UserError, match=r"branch 'gone' cannot be resolved: RevisionNotFoundError: 404 .*rev id: gone"):
        pinned("hf://datasets/me/texts@gone/data", "corpus.path")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs huggingface_hub; pip install 'jaxformer\[hub\]'"):
        pinned("hf://datasets/me/texts/data", "corpus.path")


FILES = {f"data/{name}.jsonl": lines([name]) for name in ("b", "a.b", "a/z", "a/c", "a/d/e")}


@pytest.mark.parametrize("page", [1000, 2])
@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("", ["data/a/c", "data/a/d/e", "data/a/z", "data/a.b", "data/b"]),
        ("data/", ["a/c", "a/d/e", "a/z", "a.b", "b"]),
        ("data/*.jsonl", ["a.b", "b"]),
        ("data/**/*.jsonl", ["a/c", "a/d/e", "a/z", "a.b", "b"]),
        ("data/a/[cz].jsonl", ["c", "z"]),
        ("data/*/*.jsonl", ["a/c", "a/z"]),
        ("data/a/c.jsonl", ["c"]),
    ],
)
def test_files_are_found_in_the_order_of_their_names_whatever_the_pages(hub, page, path, names):
    hub.page_entries = page
    commit = hub.commit("me/texts", {**FILES, "README.md": b"no data", "data/a/readme.md": b"no data"})
    url = f"hf://datasets/me/texts@{commit}/{path}"
    found = find_files(url, (".jsonl",), "corpus.path").files
    assert [file.name for file in found] == [f"{name}.jsonl" for name in names]
    assert all(file.size == len(hub.files("me/texts", commit)[file.path.split(commit + "/")[1]]) for file in found)
    assert texts_at(url) == [name.rpartition("data/")[2] for name in (text_name(file.path) for file in found)]
    requests = len(hub.requests)
    assert find_files(url, (".jsonl",), "corpus.path").files == found
    assert len(hub.requests) == requests, "the files of a commit are listed once"


def text_name(url: str) -> str:
    return url.partition("/data/")[2].removesuffix(".jsonl")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("data/*.parquet", "no such file or folder, and as a glob it matches nothing"),
        ("nothing/here.jsonl", r"FileNotFoundError: nothing/here\.jsonl is not in it"),
        ("nothing/*.jsonl", "404"),
    ],
)
def test_a_place_without_files_is_one_line(hub, path, message):
    commit = hub.commit("me/texts", FILES)
    with pytest.raises(UserError, match=message):
        find_files(f"hf://datasets/me/texts@{commit}/{path}", (".jsonl",), "corpus.path")


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub):
    commit = hub.commit("me/texts", {"a.jsonl": lines(["x"])})
    assert texts_at(f"hf://datasets/me/texts@{commit}/a.jsonl") == ["x"]
    ours = [request for request in hub.requests if "me/texts" in request.line]
    assert {request.has_token for request in ours if "/cdn/" in request.line} == {False}
    assert {request.has_token for request in ours if "/cdn/" not in request.line} == {True}


# Ranges.

TEXTS = [f"{i} {'x' * 900}" for i in range(40)]


@pytest.fixture
def path(hub, monkeypatch):
    """A file that is read in ranges of 10,000 bytes."""
    monkeypatch.setattr(source_files, "_BUFFER_BYTES", 1000)
    monkeypatch.setattr(remote, "_FIRST_BYTES", 10_000)
    monkeypatch.setattr(remote, "_MOST_BYTES", 10_000)
    commit = hub.commit("me/texts", {"a.jsonl": lines(TEXTS), "a.jsonl.zst": compressed(lines(TEXTS))})
    return f"hf://datasets/me/texts@{commit}/a.jsonl"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (RangeIgnored(), "bytes 10000-19999 of 36630 were requested, and status 200 came with no Content-Range"),
        (OtherRange(5000), "status 206 came with Content-Range 'bytes 15000-24999/36630'"),
        (OtherRange(-10_000), "status 206 came with Content-Range 'bytes 0-9999/36630'"),
        (Resized(-1), "status 206 came with Content-Range 'bytes 10000-19998/36630'"),
        (Resized(1), "status 206 came with Content-Range 'bytes 10000-20000/36630'"),
        (Answer(206), "status 206 came with no Content-Range"),
        (Truncated(500), "peer closed connection|incomplete"),
        (Reset(), "disconnected|reset"),
        (Reset(500), "reset|closed connection"),
        (Stall(0.6), "timed out"),
        (Stall(0.6, after=500), "timed out"),
        (Answer(503), "503"),
        (Answer(429), "429"),
    ],
)
def test_an_answer_with_other_bytes_is_requested_again_and_is_a_line(hub, path, waits, capsys, fault, message):
    hub.misbehave(fault, on="GET /cdn/", skip=1)
    assert texts_at(path) == TEXTS
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"jaxformer: corpus file {path}: ") and line.endswith("; trying again in 1 s")
    assert re.search(message, line, re.IGNORECASE), line
    assert waits == [1]


def test_a_proxy_that_never_answers_rightly_ends_it_soon(hub, path, waits):
    hub.misbehave(RangeIgnored(), on="GET /cdn/", times=99)
    with pytest.raises(UserError, match=r"given up after 7 attempts \(WrongAnswer: .*a proxy may be at fault\)"):
        texts_at(path)
    assert sum(waits) == 60


def test_a_whole_file_needs_no_range(hub, path, monkeypatch, waits):
    monkeypatch.setattr(remote, "_FIRST_BYTES", 1 << 20)
    monkeypatch.setattr(remote, "_MOST_BYTES", 1 << 20)
    hub.misbehave(RangeIgnored())
    assert texts_at(path) == TEXTS
    assert not waits


def test_bytes_that_trickle_in_are_given_up_and_requested_again(hub, path, capsys, monkeypatch):
    monkeypatch.setattr(hub_module, "_SLOWEST", 1e5)
    hub.misbehave(Trickle(0.05), skip=1)
    assert texts_at(path) == TEXTS
    assert "of 10000 bytes came in" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_bytes_that_are_not_those_of_the_digest_are_refused(hub, path, suffix):
    hub.misbehave(Corrupted(at=20))
    with pytest.raises(UserError) as raised:
        texts_at(path + suffix)
    if not suffix:  # Else Zstandard may have noticed it first.
        assert isinstance(raised.value, DamagedTransfer)
        assert "but its store gives" in str(raised.value)
    assert texts_at(path + suffix) == TEXTS


def test_a_reader_that_goes_on_requests_more_and_one_that_jumps_little(hub, monkeypatch):
    monkeypatch.setattr(remote, "_FIRST_BYTES", 1000)
    monkeypatch.setattr(remote, "_MOST_BYTES", 4000)
    monkeypatch.setattr(remote, "_GAP_BYTES", 500)
    monkeypatch.setattr(source_files, "_BUFFER_BYTES", 100)
    data = bytes(range(256)) * 100
    commit = hub.commit("me/texts", {"a.txt": data})
    with open_file(f"hf://datasets/me/texts@{commit}/a.txt", "corpus file") as file:
        assert b"".join(iter(lambda: file.read(900), b"")) == data
        sizes = [request.sent for request in hub.requests if "/cdn/" in request.line]
        assert sizes == [1000, 2000, 4000, 4000, 4000, 4000, 4000, 2600]
        hub.behave()
        file.raw.seek(3000)
        assert file.raw.read(100) == data[3000:3100]
        assert hub.sent("/cdn/") == 1000


# Waiting.


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "250"}, 250),
        ({"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 55),
        ({"RateLimit": '"api";r=0;t=55', "Retry-After": "7"}, 55),
        ({"RateLimit": '"api";r=9;t=55'}, 1),
        ({"Retry-After": "0"}, 1),
        ({"Retry-After": "soon"}, 1),
        ({}, 1),
    ],
)
def test_a_rate_limit_at_the_start_is_waited_out_as_the_server_requests(hub, waits, capsys, headers, expected):
    hub.commit("me/texts", {}, commit=COMMIT)
    hub.misbehave(Answer(429, headers), on="GET /api/datasets")
    assert pinned("hf://datasets/me/texts/data", "corpus.path")[1] == COMMIT
    assert waits == [expected]
    (line,) = capsys.readouterr().err.splitlines()
    assert "429 Too Many Requests" in line
    assert line.endswith(f"trying again in {expected} s" + (", as the server requests" if expected > 1 else ""))


def test_a_date_until_which_to_wait_is_understood():
    error = OSError("refused")
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    error.response = types.SimpleNamespace(status_code=503, headers={"retry-after": date})
    assert 90 < remote._requested_wait(error) <= 100


def test_a_wait_of_hours_is_left_to_the_user(hub, waits):
    hub.misbehave(Answer(429, {"Retry-After": "86400"}), on="GET /api/datasets")
    with pytest.raises(UserError, match=r"given up after 1 attempt .*the server requests to wait 86400 s"):
        pinned("hf://datasets/me/texts/data", "corpus.path")
    assert not waits


def test_a_request_without_network_by_choice_is_not_repeated(hub, waits, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"offline mode is enabled.*unset the `HF_HUB_OFFLINE`"):
        pinned("hf://datasets/me/texts/data", "corpus.path")
    assert not waits


@pytest.mark.parametrize("status", [401, 403])
def test_a_closed_dataset_is_one_line_with_what_opens_it(hub, path, waits, status):
    hub.misbehave(Answer(status, {"X-Error-Code": "GatedRepo"}), on="/resolve/")
    with pytest.raises(UserError, match=r"GatedRepoError: .*accept its terms on its page, and log in with `hf auth"):
        texts_at(path)
    assert not waits


def test_a_file_that_is_not_as_long_as_listed_is_refused(hub, path, waits):
    documents = load_documents(CorpusConfig(kind="jsonl", path=path))
    reader = iter(documents)
    assert next(reader).text == TEXTS[0]
    hub.commit("me/texts", {"a.jsonl": lines([*TEXTS, "one more"])}, commit=documents.commit)
    with pytest.raises(UserError, match=r"given up after 7 attempts .*Content-Range 'bytes 10000-19999/36651'"):
        list(reader)


def test_a_file_that_vanished_is_one_line(hub, path, waits):
    assert texts_at(path) == TEXTS
    hub._repositories.clear()
    with pytest.raises(UserError, match="404 Client Error"):
        texts_at(path)
    assert not waits


# Preparation.


def test_a_preparation_of_parquet_files_goes_on_near_to_where_it_was_stopped(
    hub, tokenizer, make_texts, tmp_path, monkeypatch
):
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 7500)
    for name, value in {"_FIRST_BYTES": 4000, "_MOST_BYTES": 4000, "_GAP_BYTES": 0}.items():
        monkeypatch.setattr(remote, name, value)
    commit = hub.commit("me/texts", {"a.parquet": fineweb_edu(make_texts(1500), row_group=25)})
    config = CorpusConfig(kind="parquet", path=f"hf://datasets/me/texts@{commit}/a.parquet", validation_share=0.2)
    documents = load_documents(config)
    hub.behave()
    data = hub.files("me/texts", commit)["a.parquet"]
    footer = len(data) - 8 - pyarrow.parquet.read_metadata(io.BytesIO(data)).serialized_size

    def rows_sent() -> int:
        """Returns the bytes that were sent of what lies before the end of the file."""
        ranges = [
            re.fullmatch(r"bytes=(\d+)-(\d+)", request.range) for request in hub.requests if "/cdn/" in request.line
        ]
        return sum(int(each[2]) + 1 - int(each[1]) for each in ranges if int(each[1]) < footer - 65536)

    whole = prepare(documents, tokenizer, tmp_path / "whole", progress=False)
    at_once = rows_sent()
    hub.behave()
    written = []

    def write_some(path, chunk):
        written.append(path)
        if len(written) % 5 == 0:
            raise UserError("stopped")
        write_chunk(path, chunk)

    monkeypatch.setattr(chunks, "write_chunk", write_some)
    starts, folder = 1, None
    while folder is None:
        try:
            folder = prepare(documents, tokenizer, tmp_path / "stopped", progress=False)
        except UserError:
            starts += 1
    # Each start reads the row groups of three chunks that were not stored, and those of a chunk that ends within one.
    assert starts > 5
    assert rows_sent() < at_once + (starts - 1) * at_once / 4
    assert {path.name: path.read_bytes() for path in (folder / "token_shards").rglob("*.array_record*")} == {
        path.name: path.read_bytes() for path in (whole / "token_shards").rglob("*.array_record*")
    }


def test_what_was_made_of_bytes_that_are_not_those_of_the_digest_is_deleted(
    hub, tokenizer, make_texts, tmp_path, monkeypatch
):
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 1500)
    monkeypatch.setattr(remote, "_MOST_BYTES", 10_000)
    commit = hub.commit(
        "me/texts", {"a.jsonl": "".join(json.dumps({"text": t}) + "\n" for t in make_texts(300)).encode()}
    )
    documents = load_documents(CorpusConfig(kind="jsonl", path=f"hf://datasets/me/texts@{commit}/a.jsonl"))
    whole = prepare(documents, tokenizer, tmp_path / "whole", progress=False)
    hub.misbehave(Corrupted(at=20))
    with pytest.raises(DamagedTransfer, match="data made from them are deleted, run again"):
        prepare(documents, tokenizer, tmp_path / "damaged", progress=False)
    assert not list((tmp_path / "damaged").rglob("*.npz"))
    folder = prepare(documents, tokenizer, tmp_path / "damaged", progress=False)
    digests = [json.loads((each / "manifest.json").read_bytes())["shard_digests"] for each in (whole, folder)]
    assert digests[0] == digests[1]


def test_a_preparation_that_is_refused_at_its_first_request_leaves_nothing(hub, path, tokenizer, tmp_path):
    documents = load_documents(CorpusConfig(kind="jsonl", path=path))
    hub.misbehave(Answer(403))
    with pytest.raises(UserError, match="403"):
        prepare(documents, tokenizer, tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.unfinished"))


# Tokenizers.


def tokenizer_of(path: str, cache, **options):
    return prepare_tokenizer([], TokenizerConfig(path=path, processes=1), cache, **options)


@pytest.fixture
def gpt2(hub, make_texts):
    """A repository of a model that was known by its name alone once, and its commit."""
    tokenizers = pytest.importorskip("json_tokenizers")
    file = tokenizers.gpt2(make_texts(200)).to_str().encode()
    files = {"tokenizer.json": file, "README.md": b"no tokenizer", "onnx/tokenizer.json": b"another"}
    hub.moved = {"gpt2": "openai-community/gpt2"}
    return hub.commit("openai-community/gpt2", files, commit=COMMIT)


@pytest.mark.parametrize("path", ["gpt2", "openai-community/gpt2", "hf://openai-community/gpt2", "hf://gpt2@main"])
def test_a_tokenizer_of_the_hub_is_fetched_once_and_pinned_to_its_commit(hub, gpt2, tmp_path, capsys, path):
    found = tokenizer_of(path, tmp_path)
    assert (found.kind, found.bos, found.model) == (
        "tokenizer.json",
        "<|endoftext|>",
        hub.files("openai-community/gpt2", COMMIT)["tokenizer.json"],
    )
    assert re.search(rf"^tokenizer   hf://[\w/-]*gpt2: main is commit {COMMIT}$", capsys.readouterr().out, re.MULTILINE)
    config = b'{"bos_token": "b", "eos_token": "o", "chat_template": "..."}'
    hub.commit("openai-community/gpt2", {"tokenizer.json": found.model, "tokenizer_config.json": config}, commit=OTHER)
    hub.behave()
    assert tokenizer_of(path, tmp_path).digest == found.digest and not hub.requests
    newest = tokenizer_of(path, tmp_path, newest=True)
    assert newest.digest != found.digest and (newest.bos, newest.eos) == ("b", "o")
    (tmp_path / "own").mkdir()
    for name, content in found.files().items():
        (tmp_path / "own" / name).write_bytes(content)
    assert tokenizer_of(str(tmp_path / "own"), tmp_path).digest == found.digest


def test_a_sentencepiece_model_of_the_hub_and_a_file_in_a_folder_of_it_are_taken(hub, tokenizer_path, tmp_path):
    hub.commit("me/small", {"spm/tokenizer.model": tokenizer_path.read_bytes()}, commit=COMMIT)
    for path in ("hf://me/small/spm", f"hf://me/small@{COMMIT}/spm/tokenizer.model"):
        assert tokenizer_of(path, tmp_path).model == tokenizer_path.read_bytes()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nobody/nothing", "which is no file or folder here: hf://nobody/nothing: branch 'main' cannot be resolved"),
        ("me/empty", "which is no file or folder here: hf://me/empty: it has no tokenizer.model or tokenizer.json"),
        ("hf://datasets/me/texts", "hf://datasets/me/texts: write hf://OWNER/NAME@REVISION"),
        ("s3://me/gpt2", "s3://me/gpt2: give a file or folder of this machine, or hf://OWNER/NAME"),
        ("me/missing.json", "me/missing.json: No such file or directory"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_one_line(hub, tmp_path, path, message):
    hub.commit("me/empty", {"README.md": b"no tokenizer"})
    with pytest.raises(UserError) as raised:
        tokenizer_of(path, tmp_path)
    line = str(raised.value)
    assert line.startswith(f"tokenizer.path {path}") and message in line and "\n" not in line
    assert not list(tmp_path.glob("tokenizers/*/*"))


def test_a_name_that_may_be_mistyped_is_looked_up_once_where_nothing_answers(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda _: pytest.fail("it waits"))
    hub.misbehave(Answer(503), on="revision", times=9)
    with pytest.raises(UserError, match=r"^tokenizer.path gtp2, which is no file .*given up after 1 attempt \("):
        tokenizer_of("gtp2", tmp_path)
