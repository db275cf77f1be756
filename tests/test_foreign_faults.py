"""What users met in other trainers and must not meet here: a test for each public report, run as a user would run it.

Each names the report, what its user did, and what must happen. Whoever finds another adds it.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import termios

import pytest
from local_hub import Answer, LocalHub, RangeIgnored, Reset, fineweb_edu
from user import EXPERIMENT, User

pytestmark = pytest.mark.device_free


def report(source: str, *, did: str, must: str):
    """Returns the mark of a row: the public report, what its user did, and what must happen here."""
    return pytest.mark.foreign_fault(source=source, did=did, must=must)


@pytest.fixture
def user(tmp_path, make_texts, compiled):
    """A user with a folder of their own."""
    return User(tmp_path, make_texts(120), compiled)


# Paths.

# Streams, terminals and locales.

# Signals and processes.

# What the environment sets for JAX.

# Corpora.

# The Hub.

DATA = "hf://datasets/me/texts/data"
PREPARE = ("prepare", "--experiment=tiny.py")


@pytest.fixture
def hub(make_texts):
    """A hub with a dataset of two Parquet files and one of JSON lines, at its default branch."""
    pytest.importorskip("huggingface_hub")
    with LocalHub() as hub:
        files = {f"data/{name}.parquet": fineweb_edu(make_texts(80, seed)) for seed, name in enumerate("ab")}
        hub.commit("me/texts", files | {"data/c.jsonl": lines(make_texts(60, 3))})
        yield hub


@pytest.fixture
def hub_user(user, hub):
    """A user of that hub."""
    user.environment |= hub.environment
    return user


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def parquet(*words: str) -> tuple[str, ...]:
    return (*PREPARE, "--corpus.kind=parquet", f"--corpus.path={DATA}/*.parquet", *words)


def shard_digests(user: User) -> list[dict]:
    """Returns the digests of the shards in the user's cache, in the order of their making."""
    manifests = sorted(user.folder.glob("cache/shards/*/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_bytes())["shard_digests"] for path in manifests]


@report(
    "https://github.com/fsspec/filesystem_spec/issues/1140",
    did="read files over a proxy that answers requests for a range with the whole file",
    must="other bytes than the requested ones are noticed and requested again, and the shards are the same",
)
@pytest.mark.parametrize("kind", ["parquet", pytest.param("text", marks=pytest.mark.slow)])
def test_a_proxy_that_ignores_ranges_changes_nothing(hub, hub_user, make_texts, kind):
    if kind == "parquet":
        name, data = "table.parquet", fineweb_edu(make_texts(1000), row_group=100)
    else:  # Of more bytes than one range: nothing but their number tells that they are wrong.
        name, data = "long.txt", "\n\n".join(f"{i} {text}" for i in range(4) for text in make_texts(15_000, i)).encode()
    commit = hub.commit("me/large", {name: data})
    hub.misbehave(RangeIgnored(), on="/cdn/.* bytes=[1-9]")
    for path in (f"hf://datasets/me/large@{commit}/{name}", str(hub_user.write(name, data))):
        words = (f"--corpus.kind={kind}", f"--corpus.path={path}", "--tokenizer.training_bytes=50000")
        ended = hub_user.run(*PREPARE, *words)
        assert ended.status == 0, ended.err
    remote, here = shard_digests(hub_user)
    assert remote == here


@report(
    "https://github.com/huggingface/datasets/issues/7506",
    did="started while the Hub's rate limit was reached",
    must="the wait that the Hub requests is kept, and one line says how long it is and why",
)
def test_a_rate_limit_at_the_start_is_waited_out(hub, hub_user):
    hub.misbehave(Answer(429, {"RateLimit": '"api";r=0;t=3', "Retry-After": "3"}), on="GET /api/datasets/.*revision")
    ended = hub_user.run(*parquet())
    assert ended.status == 0
    first, second, *_ = (request.at for request in hub.requests if "revision" in request.line)
    assert second - first >= 3
    (line,) = ended.err.splitlines()
    assert "429 Too Many Requests" in line and "trying again in 3 s, as the server requests" in line


@report(
    "https://github.com/huggingface/datasets/issues/1939",
    did="set HF_HUB_OFFLINE=1 where nothing was prepared yet",
    must="it ends in one line that names the variable, and nothing is tried again",
)
def test_offline_by_choice_ends_at_once(hub, hub_user):
    ended = hub_user.run(*parquet(), environment={"HF_HUB_OFFLINE": "1"})
    (line,) = ended.err.splitlines()
    assert ended.status == 2 and "HF_HUB_OFFLINE" in line and "attempts" not in line
    assert not hub.requests


@report(
    "https://github.com/huggingface/datasets/issues/5374",
    did="streamed a dataset while the connection failed now and then",
    must="each failure is one line of the program's own, at once, and the shards are those without failures",
)
def test_each_failed_request_is_one_line(hub, hub_user):
    hub.misbehave(Answer(503), on="/resolve/.*b.parquet")
    hub.misbehave(Reset(after=100), on="/cdn/.*b.parquet", skip=1)
    hub.misbehave(Answer(503), on="/tree/")
    ended = hub_user.run(*parquet())
    assert ended.status == 0
    assert [line.startswith("jaxformer: corpus") and "trying again in" in line for line in ended.err.splitlines()] == [
        True
    ] * 3


@report(
    "https://github.com/tqdm/tqdm/issues/941",
    did="watched a preparation on a terminal of 80 columns",
    must="the bar fits and shows how much is done, and a line about a failed request stands by itself",
)
def test_the_bar_of_a_preparation_fits_a_terminal(hub, hub_user):
    hub.misbehave(Answer(503), on="/cdn/")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with hub_user.start(*parquet(), stderr=theirs) as process:
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # What Linux raises at the end of a terminal.
            while block := os.read(ours, 1 << 16):
                written += block
        os.close(ours)
        process.communicate()
    assert process.returncode == 0
    lines = re.split(r"[\r\n]+", written.decode())
    assert sum(line.startswith("jaxformer: corpus file") for line in lines) == 1
    bars = [line for line in lines if line.startswith(("tokenising", "sampling"))]
    assert bars and all(len(bar) <= 80 and re.search(r"\d+(%|.*tokens)", bar) for bar in bars)


@report(
    "https://github.com/decoderesearch/SAELens/pull/207",
    did="set a budget of tokens that the dataset cannot fill",
    must="a line says how many tokens there are, of how many, and that they repeat",
)
def test_a_budget_that_a_dataset_cannot_fill_is_reported(hub, hub_user):
    for words in (parquet("--corpus.tokens=5_000_000"),) * 2:
        ended = hub_user.run(*words)
        tokens = re.search(r"([\d,]+) tokens to train on", ended.out)[1]
        assert re.search(rf"holds {tokens} tokens to train on, \d\.\d% of the 5,000,000 of corpus\.tokens", ended.err)


@report(
    "https://github.com/huggingface/datasets/issues/5572",
    did="prepared from a branch of the Hub, and started again without a network",
    must="what was prepared is used without a request, until the newest is requested",
)
def test_a_branch_is_looked_up_once(hub, hub_user):
    assert hub_user.run(*parquet()).status == 0
    before = hub.commit_of("me/texts", "main")
    hub.behave()
    hub.commit("me/texts", {"data/new.parquet": hub.files("me/texts", before)["data/a.parquet"]})
    again = hub_user.run(*parquet())
    assert (again.status, hub.requests) == (0, []) and before in again.out
    newest = hub_user.run(*parquet("--newest"))
    assert newest.status == 0 and hub.commit_of("me/texts", "main") in newest.out


@report(
    "https://github.com/huggingface/datasets/pull/241",
    did="was refused by a gated dataset",
    must="one line says what opens it, and nothing half made is left in the cache",
)
def test_a_refused_preparation_leaves_nothing_behind(hub, hub_user):
    assert hub_user.run(*parquet("--corpus.tokens=500")).status == 0  # Trains the tokenizer.
    hub.misbehave(Answer(403, {"X-Error-Code": "GatedRepo"}), on="/resolve/", times=99)
    ended = hub_user.run(*parquet("--corpus.tokens=600"))
    (line,) = ended.err.splitlines()
    assert ended.status == 2 and "accept its terms on its page" in line
    assert not list(hub_user.folder.glob("cache/shards/*.unfinished"))


@report(
    "https://github.com/huggingface/datasets/issues/3499",
    did="streamed a few documents of large files",
    must="of each file little more is downloaded than is used",
)
def test_a_sample_of_large_files_downloads_little(hub, hub_user, make_texts):
    texts = make_texts(20_000)
    files = {f"data/{name}.jsonl": lines([f"{name} {text}" for text in texts]) for name in "abc"}
    hub.commit("me/large", files)
    ended = hub_user.run(
        *PREPARE,
        "--corpus.path=hf://datasets/me/large/data/*.jsonl",
        "--tokenizer.training_bytes=100000",
        "--tokenizer.vocabulary_size=9000",
        "--model.vocabulary_size=9000",
    )
    assert "Vocabulary size too high" in ended.err, "it ends when all of the sample is there"
    assert hub.sent("/cdn/") <= 3 * (1 << 20)


@report(
    "https://github.com/osulp/Scholars-Archive/pull/2452",
    did="trained an experiment on a path of their own",
    must="the licence of the experiment's corpus is not recorded for it",
)
def test_another_path_does_not_keep_the_licence(user, make_texts):
    user.write("licensed.py", EXPERIMENT.replace('path="texts.jsonl"', 'path="texts.jsonl", licence="ODC-By 1.0"'))
    user.write("own.jsonl", lines(make_texts(120, 5)))
    ended = user.train("--corpus.path=own.jsonl", experiment="licensed.py")
    assert ended.status == 0
    assert "own.jsonl (licence: not stated)" in ended.out


# Runs and checkpoints.

# Studies.

# Evaluation.

# The table itself.


def test_every_row_names_its_report_and_what_must_happen():
    rows = [each for name, each in globals().items() if name.startswith("test_") and hasattr(each, "pytestmark")]
    marks = [mark for row in rows for mark in row.pytestmark if mark.name == "foreign_fault"]
    assert all(mark.kwargs[field] for mark in marks for field in ("source", "did", "must"))
    assert len(marks) == len([name for name in globals() if name.startswith("test_")]) - 1
