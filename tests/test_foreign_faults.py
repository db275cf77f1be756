"""What users met in other trainers and must not meet here: a test for each public report, run as a user would run it.

Each names the report, what its user did, and what must happen. Whoever finds another adds it.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import struct
import subprocess
import termios

import pytest
from user import User

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


# A locale whose encoding is ASCII, without Python's own remedies; and such streams alone.
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
GREEK = str.maketrans("abdefgiklmnoprstu", "αβδεφγικλμνοπρστυ")


def write_greek(user):
    """Gives a user a corpus that neither ASCII nor Latin-1 can show."""
    lines = (user.folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"].translate(GREEK) for line in lines]
    user.write("texts.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))


def results(user, workdir):
    """Returns what a run came to, and the digest of the code at each of its starts."""
    summary, record = (
        json.loads((user.folder / workdir / name).read_bytes()) for name in ("summary.json", "config.json")
    )
    numbers = {name: value for name, value in summary.items() if "/" in name or name in ("status", "steps", "tokens")}
    return numbers, [start["code"] for start in record["starts"]]


def run_in_terminal(user, columns, *words, lines=24):
    """Runs `jaxformer WORD...` in a terminal of so many columns; returns its exit status, and what it wrote there."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {"TERM": "xterm", "COLUMNS": None, "LINES": None}
    written = b""
    with user.start(*words, stdout=theirs, stderr=theirs, environment=environment) as process:
        os.close(theirs)
        try:
            with contextlib.suppress(OSError):  # The other end is closed.
                while block := os.read(ours, 65536):
                    written += block
        finally:
            process.kill()
    os.close(ours)
    return process.returncode, written.decode().replace("\r\n", "\n")


def read_metrics(user, name, workdir="run"):
    """Returns the values of a metric, in the order of the steps."""
    lines = map(json.loads, (user.folder / workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line[name] for line in lines if name in line]


@report(
    "minimaxir/gpt-2-simple#192",
    did="trains where standard output can show ASCII only",
    must="the run ends as elsewhere; what the stream cannot show is replaced",
)
def test_stream_of_ascii_changes_nothing_but_what_is_shown(user):
    write_greek(user)
    assert user.train("--seed=1", workdir="utf8").status == 0
    ended = user.train("--seed=1", workdir="ascii", environment={"PYTHONIOENCODING": "ascii"})
    assert ended.status == 0 and "failed" not in ended.err
    assert results(user, "ascii") == results(user, "utf8")
    assert (user.folder / "ascii/sample.txt").read_bytes() == (user.folder / "utf8/sample.txt").read_bytes()


@report(
    "python-jsonschema/jsonschema#299",
    did="trains in a container without a locale, with files that are UTF-8 in every locale",
    must="numbers, the digest of the code and the exit status are those of any other locale",
)
def test_locale_changes_neither_numbers_nor_digests(user):
    write_greek(user)
    environments = {
        "utf8": {"LC_ALL": "C.UTF-8"},
        "c": ASCII_LOCALE,
        "posix": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
    }
    for workdir, environment in environments.items():
        ended = user.train("--seed=1", workdir=workdir, environment=environment)
        assert ended.status == 0 and "Traceback" not in ended.err
        assert results(user, workdir) == results(user, "utf8")


@report(
    "theskumar/python-dotenv#74",
    did="trains in a Latin-1 locale",
    must="as in any other locale",
)
def test_latin_1_locale_changes_neither_numbers_nor_digests(user):
    make = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(user.folder / "en_US.ISO-8859-1")]
    if shutil.which("localedef") is None or subprocess.run(make, capture_output=True).returncode:
        pytest.skip("this system cannot make a Latin-1 locale")
    latin_1 = {"LOCPATH": str(user.folder), "LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"}
    write_greek(user)
    for workdir, environment in {"utf8": {}, "latin1": latin_1}.items():
        assert user.train("--seed=1", workdir=workdir, environment=environment).status == 0
    assert results(user, "latin1") == results(user, "utf8")


@report(
    "aboutcode-org/scancode-toolkit#688",
    did="names an experiment, or a corpus, with a letter that the locale's encoding of file names does not have",
    must="one line that says so and what to set, and exit status 2; with that set it works",
)
def test_name_that_the_locale_cannot_encode_is_refused_in_one_line(user):
    user.write("tiny_é.py", (user.folder / "tiny.py").read_text(encoding="utf-8"))
    user.write("other.py", (user.folder / "tiny.py").read_text(encoding="utf-8").replace("texts.jsonl", "téxts.jsonl"))
    for experiment in ("tiny_é.py", "other.py"):
        ended = user.train(experiment=experiment, environment=ASCII_LOCALE)
        assert ended.status == 2 and len(ended.err.splitlines()) == 1
        assert "encoding of file names is ascii: set PYTHONUTF8=1" in ended.err
    (user.folder / "texts.jsonl").rename(user.folder / "téxts.jsonl")
    assert user.train(experiment="other.py", environment=ASCII_LOCALE | {"PYTHONUTF8": "1"}).status == 0


@report(
    "tqdm/tqdm#1593",
    did="trains with standard output closed, or all streams, as some job systems start processes",
    must="the run ends as with them; no file takes the number of a stream, and what is written to it",
)
def test_closed_streams_change_nothing(user):
    for workdir, numbers in {"open": (), "output": (1,), "all": (0, 1, 2)}.items():
        ended = user.train(
            "--seed=1", workdir=workdir, preexec_fn=lambda numbers=numbers: [os.close(n) for n in numbers]
        )
        assert ended.status == 0 and ended.err == ""
        assert results(user, workdir) == results(user, "open")
        assert len(read_metrics(user, "train/loss", workdir)) == 4
    assert user.run("train", "--help", preexec_fn=lambda: os.close(1)).status == 0


@report(
    "console-rs/indicatif#218",
    did="trains in a terminal that is narrower than the progress line",
    must="each line that the next one replaces fits, and keeps the step and the time that is left",
)
def test_progress_line_fits_a_narrow_terminal(user):
    # So many that they take more than the second that a pace is measured over.
    words = "train", "--experiment=tiny.py", "--workdir=run", "--training.steps=2000", "--evaluation.every_steps=2000"
    status, written = run_in_terminal(user, 44, *words, "--checkpoint.every_steps=2000")
    lines = [line for line in re.findall(r"\r\x1b\[K([^\r\n]*)", written) if "/2000  loss" in line]
    assert status == 0 and len(lines) > 1900 and max(map(len, lines)) < 44
    assert re.fullmatch(r"step 1999/2000  loss \S+ .*ETA \d+:\d\d", lines[-2])


@report(
    "karpathy/nanoGPT#527",
    did="trains small steps and reads the rate of each",
    must="rates are of times long enough to mean something, and no share of the time passes 1",
)
def test_rates_and_shares_can_be(user):
    steps = "--training.steps=60", "--checkpoint.every_steps=20", "--evaluation.every_steps=60"
    assert user.train(*steps).status == 0
    tokens = user.summary()["tokens"]
    # Within any second there is at most the whole run.
    assert max(read_metrics(user, "train/tokens_per_second"), default=0) <= tokens
    assert max(read_metrics(user, "train/waiting_for_data"), default=0) <= 1


@report(
    "googlecolab/colabtools#5148",
    did="writes a report from a notebook's shell, which inherits MPLBACKEND, with a library that is not installed",
    must="the pictures are drawn: they need no backend",
)
def test_report_is_drawn_whatever_backend_is_inherited(user):
    study = write_study(user)
    for name in ("parent", "variant"):
        assert user.train(experiment=name, workdir=f"runs/{name}/seed_0").status == 0
    ended = user.run("report", *study, environment={"MPLBACKEND": "no_such_backend"})
    assert ended.status == 0 and ended.err == ""
    assert (user.folder / "runs/reports/parent/index.html").exists()


@report(
    "huggingface/transformers#36045",
    did="asks for help with PYTHONOPTIMIZE=2, which drops docstrings",
    must="the same text",
)
def test_help_is_the_same_without_docstrings(user):
    for words in (("prepare", "--help"), ("train", "--help=model")):
        pages = [user.run(*words, environment={"PYTHONOPTIMIZE": level}) for level in (None, "2")]
        assert pages[0] == pages[1] and pages[0].status == 0 and pages[0].out


@pytest.mark.slow
@report(
    "visionmedia/node-progress#184",
    did="runs a study in a terminal of 60 columns, and again with standard output closed",
    must="the table is drawn in place, and keeps states, steps and what is left; the study ends as elsewhere",
)
def test_study_in_a_narrow_terminal_is_drawn_in_place(user):
    words = "ablate", *write_study(user), "--seeds=1"
    status, written = run_in_terminal(user, 60, *words)
    drawn = re.findall(r"\r\x1b\[J([^\x1b]*)", written)
    assert status == 0 and len(drawn) > 2
    for table in drawn[:-1]:
        assert max(map(len, table.splitlines())) < 60
        assert all(word in table for word in ("parent", "variant", "running", "/4"))
    assert "finished" in drawn[-1] and "verdict" in drawn[-1]
    ended = user.run(*words, preexec_fn=lambda: os.close(1))
    assert ended.status == 0 and "Traceback" not in ended.err


def write_study(user):
    """Writes a parent and a variant of it; returns the arguments that name them."""
    user.write("experiments/parent.py", (user.folder / "tiny.py").read_bytes())
    user.write(
        "experiments/variant.py",
        "from jaxformer.experiment import Variant\n\nEXPERIMENT = Variant(parent='parent', question='Is it better?', "
        "change={'optimizer.learning_rate': 2e-2}, expected=(-1.0, 1.0), source='none')\n",
    )
    return "--parent=parent", "--variants=variant"


# Signals and processes.

# What the environment sets for JAX.

# Corpora.

# The Hub.

# Runs and checkpoints.

# Studies.

# Evaluation.

# The table itself.


def test_every_row_names_its_report_and_what_must_happen():
    rows = [each for name, each in globals().items() if name.startswith("test_") and hasattr(each, "pytestmark")]
    marks = [mark for row in rows for mark in row.pytestmark if mark.name == "foreign_fault"]
    assert all(mark.kwargs[field] for mark in marks for field in ("source", "did", "must"))
    assert len(marks) == len([name for name in globals() if name.startswith("test_")]) - 1
