"""What users met in other trainers and must not meet here: a test for each public report, run as a user would run it.

Each names the report, what its user did, and what must happen. Whoever finds another adds it.
"""

import contextlib
import fcntl
import functools
import gzip
import hashlib
import html
import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time

import pyarrow
import pyarrow.parquet
import pytest
import user as user_module
from copies import Copies
from local_hub import Answer, LocalHub, RangeIgnored, Reset, fineweb_edu
from user import EXPERIMENT, REPOSITORY, Ended, User, is_gone, wait_until

from jaxformer.devices.options import recorded_options

pytestmark = pytest.mark.device_free


def report(source: str, *, did: str, must: str):
    """Returns the mark of a row: the public report, what its user did, and what must happen here."""
    return pytest.mark.foreign_fault(source=source, did=did, must=must)


@pytest.fixture
def user(tmp_path, make_texts, compiled, default_signals):
    """A user with a folder of their own."""
    return User(tmp_path, make_texts(120), compiled)


# What writes a text at the end of a run.
SAMPLE = "--evaluation.sample_tokens=5"


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory, make_texts, compiled):
    """A user who has trained a run without anything set; tests add run folders of other names."""
    user = User(tmp_path_factory.mktemp("ordinary"), make_texts(120), compiled)
    assert user.train(SAMPLE, workdir="ordinary").status == 0
    return user


# Paths.

# A folder that holds what a user owns; each character means something to a shell, a pattern, a format or a URL. It is
# no regular expression, and no whole pattern of a shell.
ODD = "x[1]*?\\'\"$%#~ é\nx\\y[z"

# Loaded by Python at its start: a library that, without an error, finds none of the files that it is to merge.
FINDS_NOTHING = """
import etils.epath

type(etils.epath.Path()).glob = lambda self, pattern: iter(())
"""


def has_lines(path, number):
    """Returns whether a file is there and has so many lines."""
    return path.exists() and path.read_bytes().count(b"\n") >= number


def signal_once(condition, number=signal.SIGTERM):
    """Returns what sends a process a signal as soon as a condition holds, if it has not ended before."""

    def send(process: int) -> None:
        wait_until(lambda: condition() or is_gone(process), process)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    return send


@report(
    "tensorflow/tensorflow#34290",
    did="kept the checkout, the corpus, the cache and the run folder below a folder whose name is a pattern",
    must="train, stop, resume and evaluate there as anywhere, and write nowhere else",
)
def test_names_that_are_patterns_elsewhere_are_names(user):
    steps = ("--training.steps=40", "--evaluation.every_steps=40", "--checkpoint.every_steps=10")
    assert user.train(*steps).status == 0
    folder = user.folder / ODD
    package = user_module.REPOSITORY / "jaxformer"
    shutil.copytree(package, folder / "checkout" / "jaxformer", ignore=shutil.ignore_patterns("__pycache__"))
    user.write(f"{ODD}/corpus/texts.jsonl", (user.folder / "texts.jsonl").read_bytes())
    environment = {"PYTHONPATH": str(folder / "checkout"), "JAXFORMER_CACHE": str(folder / "cache")}
    words = (f"--corpus.path={folder}/corpus", *steps)
    before = {path.name for path in user.folder.iterdir()}

    arguments = ("train", "--experiment=tiny.py", f"--workdir={ODD}/run", *words)
    due = (folder / "run" / "checkpoints" / "10").exists
    with Copies(user.environment | environment) as there:
        stopped = there.run(arguments, user.folder, {}, meanwhile=signal_once(due))
        # The signal may find a run that is over.
        assert stopped.status in (0, 128 + signal.SIGTERM), stopped.err
        resumed = there.run(arguments, user.folder, {})
        evaluated = there.run(("evaluate", f"--workdir={ODD}/run"), user.folder, {})
    assert resumed.status == 0, resumed.err
    assert "resumed from step" in resumed.out or stopped.status == 0
    assert user.summary(f"{ODD}/run")["validation/loss"] == user.summary()["validation/loss"]
    assert evaluated.status == 0 and "step 40: " in evaluated.out, evaluated.err
    assert {path.name for path in user.folder.iterdir()} == before


@report(
    "tensorflow/tensorflow#34290",
    did="named the run folder by way of the folder above a link",
    must="save where the system finds the folder, and read it from there",
)
def test_run_folder_beside_the_target_of_a_link_is_read_again(user):
    (user.folder / "elsewhere" / "deep").mkdir(parents=True)
    (user.folder / "link").symlink_to(user.folder / "elsewhere" / "deep")
    before = {path.name for path in user.folder.iterdir()}
    assert user.train(workdir="link/../run").status == 0
    evaluated = user.run("evaluate", "--workdir=elsewhere/run")
    assert evaluated.status == 0, evaluated.err
    assert {path.name for path in user.folder.iterdir()} - before == {"cache"}


@report(
    "tensorflow/tensorflow#34290",
    did="trained where checkpoints are written without an error and hold nothing",
    must="end at the first of them with status 1 and one line, whether it is due or a signal asks for it",
)
def test_first_checkpoint_that_holds_nothing_ends_the_run(user):
    user.write("patched/sitecustomize.py", FINDS_NOTHING)
    environment = user.environment | {"PYTHONPATH": f"{user.folder / 'patched'}:{user.environment['PYTHONPATH']}"}
    words = ("--training.steps=5000", "--evaluation.every_steps=5000", "--checkpoint.every_steps=5000")
    begun = functools.partial(has_lines, user.folder / "other" / "metrics.jsonl", 1)
    with Copies(environment) as patched:
        ended = patched.run(["train", "--experiment=tiny.py", "--workdir=run"], user.folder, {})
        other = ["train", "--experiment=tiny.py", "--workdir=other", *words]
        stopped = patched.run(other, user.folder, {}, meanwhile=signal_once(begun))
    assert ended.status == 1
    assert "step 2 was saved and cannot be read back (" in ended.err and "finished" not in ended.out
    assert ended.err.count("\n") == 1 and "run/checkpoints" in ended.err
    assert stopped.status == 1
    assert "cannot be read back" in stopped.err and "is saved" not in stopped.err


@report(
    "huggingface/datasets#7468",
    did="gave a glob below a folder with brackets in its name, and the files of such a folder as its own parts",
    must="take the folder's name literally, and call the documents the same wherever the folder lies",
)
def test_folder_with_brackets_is_no_pattern_of_a_corpus(user):
    text = (user.folder / "texts.jsonl").read_bytes()
    for folder in ("plain", "corpus [v1]"):
        user.write(f"{folder}/a.jsonl", text)
    for path in ("plain/*.jsonl", "corpus [v1]/*.jsonl", "corpus [v1]/a.jsonl"):
        ended = prepared(user, f"--corpus.path={path}")
        assert ended.status == 0, ended.err
    manifests = [json.loads(path.read_bytes()) for path in user.folder.glob("cache/shards/*/manifest.json")]
    assert len({manifest["corpus_digest"] for manifest in manifests}) == 1


@report(
    "huggingface/transformers#10628",
    did="gave a run folder as --workdir=~/run, which no shell expands there",
    must="run in the home folder, and make no folder named ~",
)
def test_tilde_is_the_home_folder(user):
    home = user.folder / "home"
    home.mkdir()
    ended = user.train(workdir="~/run", environment={"HOME": str(home)})
    assert ended.status == 0, ended.err
    assert (home / "run" / "summary.json").exists() and not (user.folder / "~").exists()


@report(
    "whylabs/whylogs#107",
    did="gave a bucket for the run folder or the cache",
    must="say in one line that it is no folder, and make none that is named like the bucket",
)
def test_bucket_is_not_made_a_folder_of_its_name(user):
    before = sorted(user.folder.iterdir())
    for ended in (
        user.train(workdir="gs://bucket/run"),
        user.run("evaluate", "--workdir=hf://datasets/run"),
        user.train(environment={"JAXFORMER_CACHE": "s3://bucket/cache"}),
    ):
        assert ended.status == 2 and "is a URL" in ended.err and ended.err.count("\n") == 1
    assert sorted(user.folder.iterdir()) == before


# Streams, terminals and locales.


# A locale whose encoding is ASCII, without Python's own remedies; and such streams alone.
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
GREEK = str.maketrans("abdefgiklmnoprstu", "αβδεφγικλμνοπρστυ")


@pytest.fixture(scope="module")
def greek(tmp_path_factory, make_texts, compiled):
    """A user with a corpus that neither ASCII nor Latin-1 can show, who has trained in the locale of the tests."""
    user = User(tmp_path_factory.mktemp("greek"), [text.translate(GREEK) for text in make_texts(120)], compiled)
    assert user.train(SAMPLE, workdir="usual").status == 0
    return user


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
def test_stream_of_ascii_changes_nothing_but_what_is_shown(greek):
    ended = greek.train(SAMPLE, workdir="ascii", environment={"PYTHONIOENCODING": "ascii"})
    assert ended.status == 0 and "failed" not in ended.err
    assert results(greek, "ascii") == results(greek, "usual")
    assert (greek.folder / "ascii/sample.txt").read_bytes() == (greek.folder / "usual/sample.txt").read_bytes()


@report(
    "python-jsonschema/jsonschema#299",
    did="trains in a container without a locale, with files that are UTF-8 in every locale",
    must="numbers, the digest of the code and the exit status are those of any other locale",
)
def test_locale_changes_neither_numbers_nor_digests(greek):
    ended = greek.train(workdir="c", environment=ASCII_LOCALE)
    assert ended.status == 0 and "Traceback" not in ended.err
    assert results(greek, "c") == results(greek, "usual")


@report(
    "theskumar/python-dotenv#74",
    did="trains in a Latin-1 locale",
    must="as in any other locale",
)
def test_latin_1_locale_changes_neither_numbers_nor_digests(greek):
    make = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(greek.folder / "en_US.ISO-8859-1")]
    if shutil.which("localedef") is None or subprocess.run(make, capture_output=True).returncode:
        pytest.skip("this system cannot make a Latin-1 locale")
    latin_1 = {"LOCPATH": str(greek.folder), "LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"}
    assert greek.train(workdir="latin1", environment=latin_1).status == 0
    assert results(greek, "latin1") == results(greek, "usual")


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
    assert user.run("prepare", "--experiment=other.py", environment=ASCII_LOCALE | {"PYTHONUTF8": "1"}).status == 0


@report(
    "tqdm/tqdm#1593",
    did="trains with standard output closed, or all streams, as some job systems start processes",
    must="the run ends as with them; no file takes the number of a stream, and what is written to it",
)
def test_closed_streams_change_nothing(ordinary):
    ended = ordinary.train(workdir="closed", preexec_fn=lambda: os.closerange(0, 2))
    assert ended.status == 0 and ended.err == ""
    assert results(ordinary, "closed") == results(ordinary, "ordinary")
    assert len(read_metrics(ordinary, "train/loss", "closed")) == 4
    # Its one line has nowhere to go.
    assert ordinary.train(experiment="absent.py", preexec_fn=lambda: os.closerange(0, 3)).status == 2


@pytest.fixture(scope="module")
def long_run(tmp_path_factory, make_texts, compiled):
    """A user who has trained 600 steps in a terminal of 44 columns, and what was written there."""
    user = User(tmp_path_factory.mktemp("long"), make_texts(120), compiled)
    # So many that they take more than the second that a pace is measured over.
    steps = [f"--{name}=600" for name in ("training.steps", "evaluation.every_steps", "checkpoint.every_steps")]
    status, written = run_in_terminal(user, 44, "train", "--experiment=tiny.py", "--workdir=run", *steps)
    assert status == 0, written
    return user, written


@report(
    "console-rs/indicatif#218",
    did="trains in a terminal that is narrower than the progress line",
    must="each line that the next one replaces fits, and keeps the step and the time that is left",
)
def test_progress_line_fits_a_narrow_terminal(long_run):
    _, written = long_run
    lines = [line for line in re.findall(r"\r\x1b\[K([^\r\n]*)", written) if "/600  loss" in line]
    assert len(lines) > 500 and max(map(len, lines)) < 44
    assert re.fullmatch(r"step 599/600  loss \S+ .*ETA \d+:\d\d", lines[-2])


@report(
    "karpathy/nanoGPT#527",
    did="trains small steps and reads the rate of each",
    must="rates are of times long enough to mean something, and no share of the time passes 1",
)
def test_rates_and_shares_can_be(long_run):
    user, _ = long_run
    tokens = user.summary()["tokens"]
    # Within any second there is at most the whole run.
    assert 0 < max(read_metrics(user, "train/tokens_per_second")) <= tokens
    assert max(read_metrics(user, "train/waiting_for_data")) <= 1


@report(
    "googlecolab/colabtools#5148",
    did="writes a report from a notebook's shell, which inherits MPLBACKEND, with a library that is not installed",
    must="the pictures are drawn: they need no backend",
)
def test_report_is_drawn_whatever_backend_is_inherited(researcher):
    ended = researcher.run("report", *STUDY, environment={"MPLBACKEND": "no_such_backend"})
    assert ended.status == 0 and ended.err == ""
    assert (researcher.folder / "runs/reports/root/index.html").exists()


@report(
    "huggingface/transformers#36045",
    did="asks for help with PYTHONOPTIMIZE=2, which drops docstrings",
    must="the same text",
)
def test_help_is_the_same_without_docstrings(user):
    with Copies(user.environment | {"PYTHONOPTIMIZE": "2"}) as without:
        for words in (("prepare", "--help"), ("train", "--help=model")):
            page = user.run(*words)
            assert page.status == 0 and page.out and page == without.run(words, user.folder, {})


@pytest.mark.slow
@report(
    "visionmedia/node-progress#184",
    did="runs a study in a terminal of 60 columns, and again with standard output closed",
    must="the table is drawn in place, and keeps states, steps and what is left; the study ends as elsewhere",
)
def test_study_in_a_narrow_terminal_is_drawn_in_place(user):
    words = "ablate", *write_pair(user), "--seeds=1", "--clock=off"
    status, written = run_in_terminal(user, 60, *words)
    drawn = re.findall(r"\r\x1b\[J([^\x1b]*)", written)
    assert status == 0 and len(drawn) > 2
    for table in drawn[:-1]:
        assert max(map(len, table.splitlines())) < 60
        assert all(word in table for word in ("parent", "variant", "running", "/4"))
    assert "finished" in drawn[-1] and "UNDECIDED" in drawn[-1]
    ended = user.run(*words, preexec_fn=lambda: os.close(1))
    assert ended.status == 0 and "Traceback" not in ended.err


def write_pair(user):
    """Writes a parent and a variant of it; returns the arguments that name them."""
    user.write("experiments/parent.py", EXPERIMENT.replace("validation_bytes=200", "validation_bytes=3000"))
    user.write(
        "experiments/variant.py",
        "from jaxformer.experiment import Variant\n\nEXPERIMENT = Variant(parent='parent', question='Is it better?', "
        "change={'optimizer.learning_rate': 2e-2}, expected=(-1.0, 1.0), source='none')\n",
    )
    return "--parent=parent", "--variants=variant"


# Signals and processes.

# What a library does in a garbage collection, which this stands for: a handler's exception is discarded there.
IN_GARBAGE_COLLECTION = """
import gc, os, signal, threading

def callback(phase, info):
    number = int(os.environ["NUMBER"])
    if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(number)):
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), number)
        for _ in range(1000):
            pass

gc.callbacks.append(callback)
gc.set_threshold(50)  # So that one happens, however little is allocated.
"""


@report(
    "jax-ml/jax#18246",
    did="pressed Ctrl-C, or was preempted, while Python collected garbage: 'Exception ignored in _xla_gc_callback'",
    must="the process stops all the same, says so in one line, and ends with 128 + the signal",
)
@pytest.mark.parametrize(
    ("words", "number"),
    [
        (("train", "--workdir=run"), signal.SIGTERM),
        (("train", "--workdir=run"), signal.SIGINT),
        (("prepare",), signal.SIGINT),
    ],
)
def test_signal_in_a_garbage_collection_stops_the_process(user, words, number):
    user.write("tiny.py", EXPERIMENT + IN_GARBAGE_COLLECTION)
    ended = user.run(*words, "--experiment=tiny.py", environment={"NUMBER": str(int(number))})
    assert ended.status == 128 + number
    assert ended.err.startswith(f"jaxformer: stopped by {number.name}") and ended.err.count("\n") == 1


@report(
    "https://github.com/mosaicml/composer/pull/52; here under `ulimit -v 2000000`",
    did="sent SIGTERM to a run in which a library's thread hangs",
    must="once it has said that it is stopped, it is gone; and a run that is finished ends as well",
)
def test_process_ends_though_a_thread_of_a_library_hangs(user):
    hangs = "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,)).start()\n"
    user.write("tiny.py", EXPERIMENT + hangs)
    begun = functools.partial(has_lines, user.folder / "run/metrics.jsonl", 1)
    ended = user.train("--training.steps=1000000", timeout=120, meanwhile=signal_once(begun))
    assert ended.status == 143 and "jaxformer: stopped by SIGTERM; step " in ended.err
    assert user.train(workdir="another", timeout=120).status == 0


# What an experiment does in the process that estimates a study, and there alone: it names itself, and takes its time.
ESTIMATES_SLOWLY = """
import multiprocessing, os, pathlib, time
if multiprocessing.parent_process() is not None:
    pathlib.Path("estimating.unfinished").write_text(str(os.getpid()))
    pathlib.Path("estimating.unfinished").rename("estimating")
    time.sleep(120)  # Longer than the test waits, and not for long where it fails.
"""


@report(
    "python/cpython#125886",
    did="pressed Ctrl-C, or killed the study, while a process of its own estimated what the runs take",
    must="that process is gone at once, and prints no traceback",
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_study_that_is_stopped_takes_its_estimating_process_along(user, number):
    user.write("experiments/tiny.py", EXPERIMENT + ESTIMATES_SLOWLY)
    variant = 'parent="tiny", question="Is it?", change={"optimizer.learning_rate": 2e-2}, expected=(0, 1), source="x"'
    user.write("experiments/faster.py", f"from jaxformer.experiment import Variant\nEXPERIMENT = Variant({variant})\n")
    words = ("ablate", "--parent=tiny", "--variants=faster", "--seeds=1")
    estimating = user.folder / "estimating"

    def stop(process):
        wait_until(estimating.exists, process)
        if number == signal.SIGINT:  # As a terminal sends it, to all that runs in it.
            os.killpg(process, number)
        else:
            os.kill(process, number)

    ended = user.run(*words, timeout=60, meanwhile=stop)
    if number == signal.SIGKILL:
        assert ended.status == -number
    else:
        lines = [line for line in ended.err.splitlines() if not line.startswith("jaxformer: waiting for")]
        assert (ended.status, lines) == (128 + number, [f"jaxformer: stopped by {number.name}"])
    process, end = int(estimating.read_text()), time.monotonic() + 30
    while not is_gone(process):
        assert time.monotonic() < end
        time.sleep(0.1)


@report(
    "Deep-MI/FastSurfer#286",
    did="ran in a container as `docker run --user 4711`: without an entry in its passwd file, and without HOME",
    must="it works with JAXFORMER_CACHE set, and one line says what to set where it is not; git's commit is recorded",
)
@pytest.mark.skipif(not shutil.which("setpriv") or os.getuid() != 0, reason="needs to be root, and setpriv")
def test_user_without_passwd_entry_and_home(user, compiled_folder):
    shutil.copytree(compiled_folder, user.folder / "compiled")
    user.environment["JAX_COMPILATION_CACHE_DIR"] = str(user.folder / "compiled")
    subprocess.run(["chown", "-R", "4711:4711", user.folder], check=True)
    # It may read all, such as an interpreter in root's home.
    can_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    prefix = ("setpriv", "--reuid=4711", "--regid=4711", "--clear-groups", *can_read)
    nothing = dict.fromkeys(("HOME", "USER", "LOGNAME"))
    ended = user.train(prefix=prefix, environment=nothing)
    assert (ended.status, ended.err) == (0, "")
    config = json.loads((user.folder / "run" / "config.json").read_bytes())
    is_checkout = (user_module.REPOSITORY / ".git").exists() and shutil.which("git")
    assert config["git"] if is_checkout else config["git"] is None
    ended = user.run("prepare", "--experiment=tiny.py", prefix=prefix, environment=nothing | {"JAXFORMER_CACHE": None})
    line = "jaxformer: cache ~/.cache/jaxformer: there is no such home folder; set JAXFORMER_CACHE to a folder\n"
    assert (ended.status, ended.err) == (2, line)


@report(
    "https://github.com/jax-ml/jax/issues/38503; here nothing was printed in 100 s",
    did="started one of the two processes of a run, and wondered whether it hangs",
    must="within seconds it says what it waits for, and a signal ends it",
)
def test_process_that_waits_for_its_peers_says_so(user):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {"JAX_COORDINATOR_ADDRESS": address, "JAX_PROCESS_ID": "0"}
    with user.start(
        *("train", "--experiment=tiny.py", "--workdir=run", "--mesh.data=2", "--mesh.processes=2"),
        environment=environment,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            os.set_blocking(process.stdout.fileno(), False)
            printed, end = b"", time.monotonic() + 60
            while b"\n" not in printed and time.monotonic() < end and process.poll() is None:
                printed += process.stdout.read() or b""
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            status = process.wait(30)
        finally:
            process.kill()
    waiting = f"jaxformer: waiting for the other processes of the run, 2 in all, at JAX_COORDINATOR_ADDRESS={address}"
    assert printed.decode().startswith(waiting) and status in (-signal.SIGTERM, 128 + signal.SIGTERM)


@report(
    "https://pubs.opengroup.org/onlinepubs/9799919799/utilities/V3_chap02.html, 2.12: a background job ignores SIGINT",
    did="ran the tests as a background job of a script, and under nohup",
    must="they pass: what a test needs of its process it sets",
)
def test_tests_of_signals_pass_where_signals_are_ignored():
    tests = [str(path) for path in (user_module.REPOSITORY / "tests").rglob("test_*signals.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "at_once", *tests]
    ignoring = ["sh", "-c", 'trap "" INT HUP; exec "$@"', "sh"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    ended = subprocess.run([*ignoring, *command], cwd=user_module.REPOSITORY, env=environment, capture_output=True)
    assert ended.returncode == 0, ended.stdout.decode()


@report(
    "Lightning-AI/pytorch-lightning#1455",
    did="had Slurm send SIGUSR1 some time before the end of the job",
    must="the step is saved, and the exit status is 128 + the signal's number",
)
def test_signal_of_a_batch_system_saves_the_run(user):
    due = (user.folder / "run" / "checkpoints" / "2").exists
    ended = user.train("--training.steps=100000", meanwhile=signal_once(due, signal.SIGUSR1))
    assert ended.status == 128 + signal.SIGUSR1
    assert "is saved, and the same command resumes from there" in ended.err


# What the environment sets for JAX.


def numbers(user, workdir):
    """Returns what a run learned: its losses, the text that it wrote, and the fingerprints of its last state."""
    summary = {name: value for name, value in user.summary(workdir).items() if "/" in name}
    folder = user.folder / workdir
    record = json.loads((folder / "checkpoints/4/record/metadata").read_bytes())
    losses = [json.loads(line)["train/loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()[:4]]
    return summary, losses, record["fingerprints"], (folder / "sample.txt").read_text()


@report(
    "google/flax#924, jax-ml/jax#4827, jax-ml/jax#13346",
    did="trained where the shell sets options of JAX and Flax for something else",
    must="the same numbers, bit by bit",
)
def test_options_that_are_not_the_runs_change_none_of_its_numbers(ordinary):
    options = {
        "JAX_ENABLE_X64": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_THREEFRY_PARTITIONABLE": "0",
        "NNX_GRAPH_MODE": "false",
        "NNX_GRAPH_UPDATES": "false",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "7",
    }
    ended = ordinary.train(SAMPLE, workdir="options", environment=options)
    assert ended.status == 0, ended.err
    assert numbers(ordinary, "options") == numbers(ordinary, "ordinary")


@report(
    "jax-ml/jax#14022",
    did="compared a run with one whose shell had set flags of XLA and options of JAX that change rounding",
    must="not compared, and each option named with both values",
)
def test_options_that_change_rounding_are_recorded_and_not_compared(researcher):
    flags = sorted([*os.environ.get("XLA_FLAGS", "").split(), "--xla_cpu_enable_fast_math=true"])
    options = {"XLA_FLAGS": " ".join(flags), "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    usual = dict.fromkeys(options, "not set") | recorded_options()
    shutil.rmtree(researcher.folder / "runs/root")
    ended = researcher.train(experiment="root", workdir="runs/root/seed_0", environment=options)
    assert ended.status == 0 and all(f"{name}={value}" in ended.out for name, value in options.items()), ended.err
    ended = researcher.run("report", "--parent=root", "--variants=normed")
    assert ended.status == 0 and "NOT COMPARED" in ended.out, ended.err
    report = html.unescape((researcher.folder / "runs/reports/root/report.md").read_text())
    assert "environment: they differ between runs/root/seed_0 and runs/normed/seed_0" in report
    assert all(f"{name}: {value}; {usual[name]}" in report for name, value in options.items())


@report(
    "jax-ml/jax#16602",
    did="trained where a shell had left an option of a debugging session with which JAX cannot train",
    must="refused in one line, and nothing is written",
)
@pytest.mark.parametrize(
    "option",
    [
        "FLAX_HIJAX_VARIABLE=true",
        "JAX_DEFAULT_DEVICE=tpu",
        "JAX_ENABLE_X64=maybe",
        "JAX_NO_TRACING=1",
        "JAX_TRANSFER_GUARD=disallow",
    ],
)
def test_option_with_which_jax_cannot_train_is_refused(user, option):
    name, value = option.split("=")
    ended = user.train(environment={name: value})
    assert ended.status == 2 and len(ended.err.splitlines()) == 1 and name in ended.err, ended.err
    assert not (user.folder / "run").exists()


# Corpora.


def prepared(user, *words: str) -> Ended:
    """Prepares the corpus of the experiment; returns how that ended, and of standard output the counts of tokens.

    Equal texts, split in the same way, give the same.
    """
    ended = user.run("prepare", "--experiment=tiny.py", *words)
    return ended._replace(out=" ".join(re.findall(r"[\d,]+ tokens to \w+", ended.out)))


def as_lines(texts) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def as_parquet(names: list[str], columns: list[list]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(each) for each in columns], names=names), file)
    return file.getvalue()


@report(
    "huggingface/datasets#6764",
    did="gave a folder, and then a glob, of files of which some are linked, hidden, or end in capital letters",
    must="read the same files by both, follow links once, leave hidden files out, and name what was passed over",
)
def test_a_folder_and_a_glob_read_the_same_files_and_name_what_they_pass_over(user, make_texts):
    texts = make_texts(120)
    expected = prepared(user).out
    user.write("texts/a.jsonl", as_lines(texts[:50]))
    user.write("texts/B.JSONL", as_lines(texts[50:80]))
    user.write("elsewhere/c.jsonl", as_lines(texts[80:]))
    (user.folder / "texts" / "linked").symlink_to("../elsewhere")
    (user.folder / "texts" / "circle").symlink_to(".")
    (user.folder / "texts" / "gone.jsonl").symlink_to("nowhere.jsonl")
    user.write("texts/.ipynb_checkpoints/a-checkpoint.jsonl", as_lines(["an older text"] * 3))
    user.write("texts/README.md", "What these texts are.")
    status, counts, said = prepared(user, "--corpus.path=texts")
    assert (status, counts) == (0, expected)
    assert "passed over 1 hidden (.ipynb_checkpoints/), 1 of another kind (README.md)" in said
    assert "1 linked to nothing (gone.jsonl)" in said
    assert prepared(user, "--corpus.path=texts/**/*.jsonl") == (0, expected, ""), "it is the same corpus"


@report(
    "huggingface/datasets#3630",
    did="split by a field that does not identify a record",
    must="refuse a split without a document to train on, and report one that is far from its share, with numbers",
)
def test_keys_that_repeat_are_reported_with_what_they_do_to_the_split(user, make_texts):
    def write(keys: int) -> None:
        records = ({"text": text, "source": f"site {i % keys}"} for i, text in enumerate(make_texts(120)))
        user.write("texts.jsonl", "".join(json.dumps(record) + "\n" for record in records))

    keyed = ("--corpus.key_field=source", "--corpus.validation_share=0.05")
    write(keys=1)
    status, _, said = user.train(*keyed)
    assert status == 2
    assert "all have one key" in said and "corpus.key_field ('source')" in said
    assert "row_length" not in said
    write(keys=2)
    status, _, said = user.run("prepare", "--experiment=tiny.py", *keyed)
    assert status == 0
    assert "the 120 documents have 2 keys (corpus.key_field 'source')" in said
    assert "validation got 50.0% of the documents (60), but corpus.validation_share is 5.0%" in said


@report(
    "huggingface/trl#1337",
    did="trained on a handful of texts, in rows longer than all of them together",
    must="name the true cause, too little text, before the share of the rows that it fills",
)
def test_too_few_documents_are_named_as_the_cause_of_rows_that_are_not_filled(user, make_texts):
    user.write("texts.jsonl", as_lines(make_texts(40)))
    few = ("--packing.row_length=8192", "--tokenizer.vocabulary_size=300")
    status, _, said = user.train(*few)
    assert status == 2
    assert "1 rows of 8192 tokens are fewer than training.rows_per_step (4)" in said
    status, _, said = user.train(*few, "--training.rows_per_step=1", "--packing.minimum_fill=0.9")
    assert status == 2
    assert "training documents" in said and "are too few" in said and "shorten" not in said


@report(
    "huggingface/datasets#8241",
    did="saved texts and JSON lines on Windows, with a byte order mark, and joined such files",
    must="read them as if it were not there",
)
def test_a_byte_order_mark_is_no_text(user, make_texts):
    texts, mark = make_texts(120), b"\xef\xbb\xbf"
    expected = prepared(user).out
    user.write("marked.jsonl", mark + as_lines(texts[:50]) + mark + as_lines(texts[50:]))
    assert prepared(user, "--corpus.path=marked.jsonl")[:2] == (0, expected)
    for number, text in enumerate(texts):
        user.write(f"plain/{number}.txt", text)
        user.write(f"marked/{number}.txt", mark + text.encode())
    plain, marked = (prepared(user, "--corpus.kind=text", f"--corpus.path={path}") for path in ("plain", "marked"))
    assert (plain.status, plain.out) == (marked.status, marked.out)


@report(
    "wonderwhy-er/DesktopCommanderMCP#610",
    did="gave what PowerShell wrote (UTF-16), a JSON array for JSON lines, and packed lines under a plain name",
    must="name the true cause in one line, and what converts the file; zeros between letters are no text",
)
def test_a_file_of_another_form_is_named_as_what_it_is(user, make_texts):
    texts = make_texts(120)
    user.write("wide.jsonl", as_lines(texts).decode().encode("utf-16"))
    user.write("wide.txt", "\n".join(texts).encode("utf-16-le"))
    user.write("array.jsonl", json.dumps([{"text": text} for text in texts], indent=1))
    user.write("packed.jsonl", gzip.compress(as_lines(texts)))
    for path, kind, cause in (
        ("wide.jsonl", "jsonl", "UTF-16"),
        ("wide.txt", "text", "UTF-16"),
        ("array.jsonl", "jsonl", "one JSON array, not JSON lines"),
        ("packed.jsonl", "jsonl", "gzip data"),
    ):
        status, _, said = prepared(user, f"--corpus.kind={kind}", f"--corpus.path={path}")
        assert status == 2
        assert path in said and cause in said and said.count("\n") == 1


@report(
    "InertExpert2911/Mutual_Fund_Data#1",
    did="cloned a repository of texts without Git LFS, and trained on what lay there",
    must="name the pointers as what they are, and train on none",
)
def test_a_pointer_of_git_lfs_is_no_text(user):
    for number in range(120):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{number:064x}\nsize 146946961\n"
        user.write(f"cloned/{number}.txt", pointer)
    user.write("cloned.parquet", pointer)
    for kind, path in (("text", "cloned"), ("parquet", "cloned.parquet")):
        status, _, said = prepared(user, f"--corpus.kind={kind}", f"--corpus.path={path}")
        assert status == 2
        assert "a pointer of Git LFS" in said and "git lfs pull" in said


@report(
    "indygreg/python-zstandard#157",
    did="gave JSON lines that were packed with `zstd --long=31`, as the archives of Reddit are",
    must="name the window as the cause, and not call the file damaged",
)
def test_a_window_of_zstandard_that_is_too_large_is_named(user):
    user.write("long.jsonl.zst", bytes.fromhex("28b52ffd04a87100007b2274657874223a202261227d0afc0c4858"))
    status, _, said = prepared(user, "--corpus.path=long.jsonl.zst")
    assert status == 2
    assert "a window above 128 MB" in said and "damaged" not in said


@report(
    "apache/datafusion#24381",
    did="joined two tables, which gave two columns of one name, and gave records in which a name stands twice",
    must="refuse them, since either may be meant, in place of reading the last",
)
def test_two_fields_of_one_name_are_refused(user, make_texts):
    texts = make_texts(120)
    user.write("two.parquet", as_parquet(["text", "text"], [texts, [text[::-1] for text in texts]]))
    user.write("two.jsonl", "".join(f'{{"text": {json.dumps(text)}, "text": "another"}}\n' for text in texts))
    for kind in ("parquet", "jsonl"):
        status, _, said = prepared(user, f"--corpus.kind={kind}", f"--corpus.path=two.{kind}")
        assert status == 2
        assert f"two.{kind}" in said and "2 fields are named 'text'" in said


@report(
    "apache/spark#1855",
    did="gave a Parquet file of Impala or Hive, which do not mark the bytes of a text as text",
    must="read them as UTF-8",
)
def test_a_column_of_bytes_is_read_as_text(user, make_texts):
    texts = make_texts(120)
    user.write("texts.parquet", as_parquet(["text"], [[text.encode() for text in texts]]))
    expected = prepared(user).out
    assert prepared(user, "--corpus.kind=parquet", "--corpus.path=texts.parquet")[:2] == (0, expected)


@report(
    "google/sentencepiece#727",
    did="trained a tokenizer on too little text, and then did as the message said",
    must="advise what is possible, or name the true cause",
)
def test_the_advice_on_a_vocabulary_can_be_followed(user):
    user.write("texts.jsonl", as_lines(["ab", "ba", "aab"]))
    status, _, said = prepared(user)
    assert status == 2
    assert "its text is too little" in said and not re.search(r"(<=|set) \d", said)
    user.write("texts.jsonl", as_lines(["a few words", "a few other words", "and these"]))
    status, _, said = prepared(user)
    assert status == 2
    (advised,) = re.findall(r"set (\d+) or less", said)
    assert prepared(user, f"--tokenizer.vocabulary_size={advised}").status == 0


@report(
    "NVIDIA-NeMo/Automodel#1694",
    did="prepared JSON lines of which a few are torn, not UTF-8, or hold half of a surrogate pair",
    must="end at the first, unless a share may be left out; then count them, name the first, and record both",
)
def test_a_share_of_bad_records_is_left_out_on_demand(user, make_texts):
    texts = make_texts(120)
    expected = prepared(user).out
    bad = [b'{"text": "torn', b'{"text": "caf\xe9"}', b'{"text": "half \\ud83d"}']
    lines = as_lines(texts).splitlines()
    for place, line in zip((100, 50, 7), bad, strict=True):
        lines.insert(place, line)
    user.write("torn.jsonl", b"\n".join(lines))
    torn = "--corpus.path=torn.jsonl"
    status, _, said = prepared(user, torn)
    assert status == 2 and "torn.jsonl, line 8" in said and "corpus.skip_bad_records" in said
    status, counts, said = prepared(user, torn, "--corpus.skip_bad_records=0.03")
    assert (status, counts) == (0, expected)
    assert "left out 3 of 123 records" in said and "torn.jsonl, line 8: a lone surrogate" in said
    manifests = [json.loads(path.read_bytes()) for path in user.folder.glob("cache/shards/*/manifest.json")]
    assert sorted(manifest["bad"] for manifest in manifests) == [0, 3]
    assert len({manifest["corpus_digest"] for manifest in manifests}) == 2


PART = 'CorpusConfig(kind="jsonl", path="texts.jsonl", validation_share=0.1)'
MIXTURE = f"""CorpusConfig(kind="mixture", parts=(
    {PART},
    CorpusConfig(kind="jsonl", path="keyed.jsonl", key_field="id", validation_share=0.3),
    CorpusConfig(kind="text", path="files/", validation_share=0.2, weight=3.0),
))"""


def is_held_out(key: str, share: float) -> bool:
    """Returns whether a document of a corpus is validated on, by the hash of its key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64 < share


@report(
    "openai/parameter-golf#2127",
    did="mixed corpora that share documents, each of which was split by itself",
    must="no text that one of them is validated on is trained on in another; what is removed is counted and recorded",
)
def test_what_one_part_of_a_mixture_is_validated_on_is_not_trained_on_in_another(user):
    texts = [json.loads(line)["text"] for line in (user.folder / "texts.jsonl").read_text().splitlines()]
    keyed, filed = texts[40:], texts[20:70]
    user.write("keyed.jsonl", "".join(json.dumps({"id": f"{i}", "text": text}) + "\n" for i, text in enumerate(keyed)))
    for number, text in enumerate(filed):
        user.write(f"files/{number}.txt", text)
    user.write("mixture.py", EXPERIMENT.replace(PART, MIXTURE))
    digests = {text: hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in texts}
    validation = [
        {text for text in texts if is_held_out(digests[text], 0.1)},
        {text for i, text in enumerate(keyed) if is_held_out(f"{i}", 0.3)},
        {text for i, text in enumerate(filed) if is_held_out(f"{i}.txt", 0.2)},
    ]
    parts = (set(texts), set(keyed), set(filed))
    removed = [(part - own) & set.union(*validation) for part, own in zip(parts, validation, strict=True)]
    assert all(map(len, removed)), "a mixture without what this is about"

    prepared = user.run("prepare", "--experiment=mixture.py")
    trained = user.train(experiment="mixture.py")
    assert (prepared.status, trained.status) == (0, 0), prepared.err + trained.err
    planned = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) documents split", trained.out)]
    assert planned == [len(part - own - gone) for part, own, gone in zip(parts, validation, removed, strict=True)]
    for out in (prepared.out, trained.out):
        told = re.findall(r"(\d+) of (\d+) training documents .* removed: other corpora validate on them", out)
        expected = [(len(gone), len(part - own)) for part, own, gone in zip(parts, validation, removed, strict=True)]
        assert [(int(some), int(of)) for some, of in told] == expected
    config = json.loads((user.folder / "run" / "config.json").read_bytes())
    assert [each["removed_documents"] for each in config["corpora"].values()] == [len(gone) for gone in removed]


@report(
    "EleutherAI/lm-evaluation-harness#231",
    did="trained on a corpus that holds items of the tasks on which the run is scored",
    must="items and documents are counted at preparation and recorded; on demand the documents are removed",
)
def test_training_documents_that_contain_items_of_a_task_are_counted_and_removed_on_demand(user):
    texts = [json.loads(line)["text"] for line in (user.folder / "texts.jsonl").read_text().splitlines()]
    trained_on = [
        text for text in texts if not is_held_out(hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), 0.1)
    ]
    questions = [" ".join(text.split()[-14:]) for text in sorted(trained_on, key=len)[-4:]]
    asked = [
        *(f"{question.upper()}?" for question in questions),
        "Does any document here hold this question, word by word?",
    ]
    choices = {"label": ["A", "B"], "text": ["yes, it seems so to me", "no"]}
    rows = [{"question": question, "choices": choices, "answerKey": "A"} for question in asked]
    user.write("tasks/arc_easy.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    tasks = ("--evaluation.task_data=tasks", "--evaluation.tasks=arc_easy", "--packing.row_length=128")
    counted = f"arc_easy: 4 of 5 items share a 13-gram with 4 of {len(trained_on)} training documents"
    prepared = user.run("prepare", "--experiment=tiny.py", *tasks)
    assert counted in prepared.out, prepared.err
    for removes in (False, True):
        ended = user.train(*tasks, f"--corpus.decontaminate={removes}", workdir=f"{removes}")
        assert ended.status == 0 and counted in ended.out, ended.err
        (planned,) = re.findall(r"([\d,]+) documents split", ended.out)
        assert int(planned) == len(trained_on) - 4 * removes
        config = json.loads((user.folder / f"{removes}" / "config.json").read_bytes())
        (corpus,) = config["corpora"].values()
        assert corpus["contamination"] == {"arc_easy": {"ngram_words": 13, "items": 4, "documents": 4}}
        assert ("corpus.0.removed" in config["digests"], corpus["removed_documents"]) == (removes, 4 * removes)
    needs_tasks = user.train("--corpus.decontaminate=true", workdir="none")
    assert needs_tasks.status == 2 and "set evaluation.task_data" in needs_tasks.err


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
    "fsspec/filesystem_spec#1140",
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
    "huggingface/datasets#7506",
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
    "huggingface/datasets#1939",
    did="set HF_HUB_OFFLINE=1 where nothing was prepared yet",
    must="it ends in one line that names the variable, and nothing is tried again",
)
def test_offline_by_choice_ends_at_once(hub, hub_user):
    ended = hub_user.run(*parquet(), environment={"HF_HUB_OFFLINE": "1"})
    (line,) = ended.err.splitlines()
    assert ended.status == 2 and "HF_HUB_OFFLINE" in line and "attempts" not in line
    assert not hub.requests


@report(
    "huggingface/datasets#5374",
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
    "tqdm/tqdm#941",
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
    "decoderesearch/SAELens#207",
    did="set a budget of tokens that the dataset cannot fill",
    must="a line says how many tokens there are, of how many, and that they repeat",
)
def test_a_budget_that_a_dataset_cannot_fill_is_reported(hub, hub_user):
    for words in (parquet("--corpus.tokens=5_000_000"),) * 2:
        ended = hub_user.run(*words)
        tokens = re.search(r"([\d,]+) tokens to train on", ended.out)[1]
        assert re.search(rf"holds {tokens} tokens to train on, \d\.\d% of the 5,000,000 of corpus\.tokens", ended.err)


@report(
    "huggingface/datasets#5572",
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
    "huggingface/datasets#241",
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
    "huggingface/datasets#3499",
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
    assert "text is too little" in ended.err, "it ends when all of the sample is there"
    # Once for the sample, and once to find how many pieces it can give.
    assert hub.sent("/cdn/") <= 2 * 3 * (1 << 20)


@report(
    "osulp/Scholars-Archive#2452",
    did="trained an experiment on a path of their own",
    must="the licence of the experiment's corpus is not recorded for it",
)
def test_another_path_does_not_keep_the_licence(user, make_texts):
    user.write("licensed.py", EXPERIMENT.replace('path="texts.jsonl"', 'path="texts.jsonl", licence="ODC-By 1.0"'))
    user.write("own.jsonl", lines(make_texts(120, 5)))
    ended = user.train("--corpus.path=own.jsonl", experiment="licensed.py")
    assert ended.status == 0
    assert "own.jsonl (kind: jsonl, licence: not stated)" in ended.out


# Runs and checkpoints.


@report(
    "roboflow/rf-detr#1321",
    did="compressed the log of a stopped run, and went on with it",
    must="refused in one line until the log is back, not finished with half of its steps recorded",
)
def test_run_whose_metrics_are_gone_is_not_resumed_until_they_are_back(user):
    steps = "--training.steps=400", "--checkpoint.every_steps=400", "--evaluation.every_steps=400"
    metrics = user.folder / "run/metrics.jsonl"
    stopped = user.train(*steps, meanwhile=signal_once(functools.partial(has_lines, metrics, 4)))
    assert stopped.status == 128 + signal.SIGTERM
    written = metrics.read_bytes()
    for content in (gzip.compress(written), b""):
        metrics.write_bytes(content)
        ended = user.train(*steps)
        assert ended.status == 2 and len(ended.err.splitlines()) == 1 and "metrics.jsonl" in ended.err, ended.err
        assert metrics.read_bytes() == content
    metrics.write_bytes(written)
    assert user.train(*steps).status == 0
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 401))


@report(
    "lanpa/tensorboardX#185, tensorflow/tensorboard#3732",
    did="looked at TensorBoard after a run was killed twice",
    must="each step once, as in the run's own log",
)
def test_tensorboard_has_each_step_once_after_two_kills(user):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    steps = "--training.steps=300", "--checkpoint.every_steps=40", "--evaluation.every_steps=300"
    steps = *steps, "--tracking.to=tensorboard"
    for lines in (75, 175):
        due = functools.partial(has_lines, user.folder / "run/metrics.jsonl", lines)
        assert user.train(*steps, meanwhile=signal_once(due, signal.SIGKILL)).status == -signal.SIGKILL
    assert user.train(*steps).status == 0
    folder = str(user.folder / "run")
    events = event_accumulator.EventAccumulator(folder, {"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 301))


@report(
    "facebookresearch/fairseq#4748",
    did="moved the run folder while the run went on",
    must="the run ends with status 1 and one line, and no second folder is begun",
)
def test_run_whose_folder_is_moved_ends(user):
    options = ("--training.steps=100000", "--checkpoint.every_steps=50", "--evaluation.every_steps=100000")
    run = user.folder / "run"

    def move(process):
        wait_until((run / "checkpoints" / "100").exists, process)  # The one before has been read back.
        run.rename(user.folder / "moved")

    moved = user.train(*options, meanwhile=move)
    assert moved.status == 1 and "moved or removed during the run" in moved.err
    assert not (run / "summary.json").exists()
    ended = user.run("evaluate", "--workdir=moved")
    assert ended.status == 0, ended.err


# Studies.

STUDY = ("--parent=root", "--variants=normed,warm")


def write_variant(user: User, name: str, change: dict, parent: str = "root") -> None:
    """Writes the experiment file of one change."""
    options = f"parent={parent!r}, question='Why?', change={change!r}, expected=(-1, 1), source='a test', retune='off'"
    user.write(
        f"experiments/{name}.py",
        f"from jaxformer.experiment import Variant\nEXPERIMENT = Variant({options})\n",
    )


def write_study(user: User, *changes: tuple[str, str]) -> None:
    """Writes the experiment `root`, of which texts may be changed, and two variants of it."""
    experiment = EXPERIMENT
    for before, after in (("validation_bytes=200", "validation_bytes=3000"), *changes):
        assert before in experiment
        experiment = experiment.replace(before, after)
    user.write("experiments/root.py", experiment)
    write_variant(user, "normed", {"model.qk_norm": True})
    write_variant(user, "warm", {"optimizer.warmup_steps": 3})


def copy_run(source, target) -> None:
    """Copies the folder of a run as that of another seed or experiment, whose losses are a little different."""
    shutil.copytree(source, target)
    name, seed = target.parent.name, int(target.name.removeprefix("seed_"))
    record = json.loads((target / "config.json").read_text())
    record |= {"experiment": name, "seed": seed, "identity": record["identity"] | {"seed": seed}}
    (target / "config.json").write_text(json.dumps(record))
    documents = target / "evaluations/step_4/validation.documents.jsonl"
    rows = [json.loads(line) for line in documents.read_text().splitlines()]
    factor = 1 + 1e-3 * (seed + len(name))
    documents.write_text("".join(json.dumps(row | {"nats": row["nats"] * factor}) + "\n" for row in rows))


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory, make_texts, compiled):
    """The folder of a user whose runs are all finished: `root`, `normed` and `warm`, with three seeds each."""
    user = User(tmp_path_factory.mktemp("study"), make_texts(120), compiled)
    write_study(user)
    runs = user.folder / "runs"
    for name in ("root", "normed", "warm"):
        ended = user.train("--seed=0", experiment=name, workdir=f"runs/{name}/seed_0")
        assert ended.status == 0, ended.err
        for seed in (1, 2):
            copy_run(runs / name / "seed_0", runs / name / f"seed_{seed}")
    return user.folder


@pytest.fixture
def researcher(finished_study, tmp_path, make_texts, compiled):
    """A user with a copy of that folder."""
    shutil.copytree(finished_study, tmp_path, dirs_exist_ok=True)
    return User(tmp_path, make_texts(120), compiled)


def verdicts(ended) -> dict[str, str]:
    """Returns the line of each variant in the table of decisions."""
    lines = [line for line in ended.out.splitlines() if line.startswith(("normed", "warm"))]
    return {line.split()[0]: line for line in lines}


def is_reported(ended, name: str) -> bool:
    """Returns whether a variant was compared, over three seeds."""
    return "[" in (line := verdicts(ended).get(name, "")) and " 3 " in line


@report(
    "catapult#2969; neon#8004; OpenHands/benchmarks#511",
    did="reported a study of which a summary.json was cut off, evaluations were gone, a folder was a link to a "
    "disk that is not mounted, one was half written and one made by another version",
    must="each is named with what to do, and all that can be read is compared",
)
def test_one_unreadable_run_leaves_the_others_their_report(researcher):
    runs = researcher.folder / "runs"
    for seed, name in ((3, "root"), (4, "root"), (3, "normed"), (4, "normed"), (3, "warm")):
        copy_run(runs / name / "seed_0", runs / name / f"seed_{seed}")
    (runs / "warm/seed_4").symlink_to("/nowhere/at/all")
    (runs / "root/seed_3/summary.json").write_bytes((runs / "root/seed_0/summary.json").read_bytes()[:40])
    shutil.rmtree(runs / "root/seed_4/evaluations")
    record = json.loads((runs / "normed/seed_3/config.json").read_text())
    record["config"]["model"]["hyper_connections"] = 4
    (runs / "normed/seed_3/config.json").write_text(json.dumps(record))
    documents = runs / "warm/seed_3/evaluations/step_4/validation.documents.jsonl"
    documents.write_bytes(documents.read_bytes()[:-30])
    (runs / "normed/seed_4/summary.json").unlink()  # It is not finished, which is no fault.

    ended = researcher.run("report", *STUDY)
    assert ended.status == 0, ended.err
    assert is_reported(ended, "normed") and is_reported(ended, "warm")
    page = (runs / "reports/root/index.html").read_text()
    for folder, advice in {
        "root/seed_3": "remove it and start the run again",
        "root/seed_4": "by `jaxformer evaluate --workdir=runs/root/seed_4`",
        "normed/seed_3": "has no field hyper_connections); train it again",
        "warm/seed_3": "by `jaxformer evaluate --workdir=runs/warm/seed_3`",
        "warm/seed_4": "a broken link",
    }.items():
        (line,) = (line for line in ended.err.splitlines() if f"runs/{folder}" in line)
        assert advice in line and f"runs/{folder}" in page, line
    assert "Traceback" not in ended.err and "normed/seed_4" not in ended.err


@report(
    "hydra#1407; wandb#2980",
    did="deleted the file of a variant that was rejected, months before the report was made again",
    must="the others are reported, and the one is named",
)
def test_a_variant_whose_file_is_gone_leaves_the_others_their_report(researcher):
    (researcher.folder / "experiments/normed.py").unlink()
    ended = researcher.run("report", *STUDY)
    assert ended.status == 0 and is_reported(ended, "warm"), ended.err
    assert "not reported: unknown experiment 'normed'" in ended.err
    # What is to be trained is complete before anything is.
    refused = researcher.run("ablate", *STUDY, "--clock=off")
    assert refused.status == 2 and refused.err.startswith("jaxformer: unknown experiment 'normed'")


@report(
    "mlflow#15535; lm-evaluation-harness#1918",
    did="evaluated one seed of both experiments on another task as well, and the parent's on a third",
    must="what all runs have is compared, and the others are named",
)
def test_a_task_of_some_runs_alone_leaves_the_rest_compared(researcher):
    runs = researcher.folder / "runs"
    words = ["ba", "de", "fi", "go"]
    choices = {"text": words, "label": ["A", "B", "C", "D"]}
    rows = [{"question": word, "choices": choices, "answerKey": "A"} for word in words]
    researcher.write("arc_easy.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    evaluated = researcher.run("evaluate", "--workdir=runs/root/seed_0", "--task=arc_easy", "--data=arc_easy.jsonl")
    assert evaluated.status == 0, evaluated.err
    for target in ("arc_easy", "arc_challenge"):
        for kind in ("json", "items.jsonl"):
            source = runs / f"root/seed_0/evaluations/step_4/arc_easy.{kind}"
            for name in ("root", "normed") if target == "arc_easy" else ("root",):
                if (to := runs / f"{name}/seed_0/evaluations/step_4/{target}.{kind}") != source:
                    shutil.copy(source, to)
    ended = researcher.run("report", *STUDY)
    assert ended.status == 0, ended.err
    assert is_reported(ended, "normed") and is_reported(ended, "warm")
    assert "arc_challenge, arc_easy: not compared" in " ".join(ended.out.split())


@report(
    "mailinabox#2347; temci#26",
    did="reported a study again whose record beside the runs was half written, on a disk that took no other",
    must="the report is made, and a line says what is not kept or used",
)
def test_a_record_beside_the_runs_that_is_damaged_ends_no_report(researcher):
    assert researcher.run("report", *STUDY).status == 0
    (kept,) = (researcher.folder / "runs/normed").glob("comparison_*.json")
    kept.unlink()
    kept.mkdir()
    researcher.write("runs/root/noise.json", '{"seeds": [0, 1')
    ended = researcher.run("report", *STUDY)
    assert ended.status == 0 and is_reported(ended, "normed") and is_reported(ended, "warm"), ended.err
    assert "noise.json: " in ended.err
    assert f"normed/{kept.name}: Is a directory; the report is made without" in ended.err


@report(
    "litgpt#942",
    did="reported a study to a folder that cannot be made",
    must="it is refused before anything is read or printed",
)
def test_a_report_that_cannot_be_written_is_refused_at_once(researcher):
    ended = researcher.run("report", *STUDY, "--output=texts.jsonl/report")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("jaxformer: report texts.jsonl/report: ") and "choose another --output" in ended.err


@report(
    "hydra#1462; wandb#1879",
    did="ran a study whose parent diverges",
    must="its variants are not trained; the last line names the parent, what happened and its log; status 1",
)
def test_a_parent_that_diverges_ends_its_study(user):
    write_study(user, ("learning_rate=1e-2", "learning_rate=1e38"), ("(steps=4", "(steps=24"))
    ended = user.run("ablate", *STUDY, "--clock=off", "--seeds=1")
    assert ended.status == 1, ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith("jaxformer: root seed 0 failed: 8 steps in a row had a loss or a gradient")
    assert "not trained, since they need it: 2" in last and last.endswith("see runs/root/seed_0.log")
    assert "train it first" not in ended.err
    assert not (user.folder / "runs/normed/seed_0").exists() and not (user.folder / "runs/warm/seed_0.log").exists()
    # What the report says of it leads to the cause, too.
    reported = user.run("report", *STUDY)
    assert reported.status == 2 and "seed 0 diverged" in reported.err and "runs/root/seed_0.log" in reported.err


@report(
    "wandb#2031; rslurm#52",
    did="resumed a study of finished runs, of which one's config.json and another's summary.json were damaged",
    must="the damaged are named, the others are judged, nothing is trained in vain; status 1",
)
def test_a_damaged_run_does_not_stop_a_resumed_study(researcher):
    runs = researcher.folder / "runs"
    (runs / "normed/seed_2/config.json").write_text('{"experiment": ')
    (runs / "warm/seed_1/summary.json").write_text('{"status": ')
    ended = researcher.run("ablate", *STUDY, "--clock=off")
    assert ended.status == 1, ended.err
    assert is_compared_over(ended, "normed", 2) and is_compared_over(ended, "warm", 2)
    assert "runs/normed/seed_2/config.json: unreadable" in ended.err
    assert ended.err.splitlines()[-1].startswith("jaxformer: warm seed 1 refused: runs/warm/seed_1/summary.json: ")


@report(
    "hydra#1892; hydra#1462",
    did="ran a study in a folder where one job's log could not be opened",
    must="that job fails, and the others are run",
)
def test_a_job_that_cannot_be_started_stops_no_other(researcher):
    runs = researcher.folder / "runs"
    shutil.rmtree(runs / "normed/seed_1")
    (runs / "normed/seed_1.log").mkdir()
    ended = researcher.run("ablate", *STUDY, "--clock=off")
    assert ended.status == 1, ended.err
    assert is_reported(ended, "warm") and is_compared_over(ended, "normed", 2)
    assert "normed seed 1 failed: it could not be started (" in ended.err.splitlines()[-1]


@report(
    "ShapeWorks#2621; wandb#749",
    did="started a study where the process that estimates it is killed, as when memory runs out",
    must="one line says so; no traceback, status 1",
)
def test_an_estimate_that_is_killed_ends_in_one_line(researcher):
    path = researcher.folder / "experiments/root.py"
    kill = "import multiprocessing, os, signal\nif multiprocessing.parent_process():\n"
    path.write_text(f"{kill}    os.kill(os.getpid(), signal.SIGKILL)\n{path.read_text()}")
    ended = researcher.run("ablate", *STUDY, "--clock=off")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.splitlines()[-1].startswith(
        "jaxformer: the process that was checking the data and earlier runs was killed"
    )
    assert "Traceback" not in ended.err


@report(
    "mlflow#15535; fasttrackml#489",
    did="reported a study of which one run had skipped steps that were not finite",
    must="it is compared and drawn as the others are",
)
def test_a_run_that_skipped_steps_is_reported_with_the_others(researcher):
    path = researcher.folder / "runs/normed/seed_0/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    skipped = {"train/loss": "nan", "train/gradient_norm": "inf", "train/spike_score": "nan"}
    path.write_text("".join(json.dumps(line | (skipped if line["step"] == 2 else {})) + "\n" for line in lines))
    ended = researcher.run("report", *STUDY)
    assert ended.status == 0 and is_reported(ended, "normed") and is_reported(ended, "warm"), ended.err
    assert ended.err == ""


def is_compared_over(ended, name: str, seeds: int) -> bool:
    """Returns whether a variant was compared, over so many seeds."""
    return "[" in (line := verdicts(ended).get(name, "")) and f" {seeds} " in line


# Evaluation.


def write_task(user: User, name: str, rows: list[dict], task: str = "arc_easy") -> None:
    """Writes the file of a task to a folder."""
    user.write(f"{name}/{task}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def arc(question: str, texts=("ba", "de", "fi"), labels=("A", "B", "C"), answer="A") -> dict:
    """Returns a row of ARC."""
    return {"question": question, "choices": {"text": list(texts), "label": list(labels)}, "answerKey": answer}


def winogrande(word: str, tail: str = "go") -> dict:
    """Returns a row of WinoGrande."""
    return {"sentence": f"{word} _ {tail}.", "option1": "ba", "option2": "de", "answer": "2"}


@pytest.fixture
def evaluator(ordinary, tmp_path, make_texts, compiled):
    """A user with a copy of the ordinary run."""
    for name in ("cache", "ordinary"):
        shutil.copytree(ordinary.folder / name, tmp_path / name.replace("ordinary", "run"))
    return User(tmp_path, make_texts(120), compiled)


def evaluate(user: User, *words: str):
    return user.run("evaluate", "--workdir=run", "--task=arc_easy,winogrande", *words)


@report(
    "litgpt#942; lm-evaluation-harness#4063",
    did="scored two tasks, of which the second's results could not be written, or the second could not be scored",
    must="it is refused before the first is scored",
)
@pytest.mark.parametrize("fault", ["other items", "damaged results", "a continuation longer than a row"])
def test_what_cannot_be_scored_or_written_is_refused_before_anything_is_scored(evaluator, fault):
    write_task(evaluator, "tasks", [arc(word) for word in ("go", "ki", "lu")])
    write_task(evaluator, "tasks", [winogrande(word) for word in ("go", "ki", "lu")], "winogrande")
    results = evaluator.folder / "run/evaluations/step_4"
    if fault == "other items":
        write_task(evaluator, "others", [winogrande("mu")], "winogrande")
        other = evaluator.run("evaluate", "--workdir=run", "--task=winogrande", "--data=others")
        assert other.status == 0, other.err
        message = "winogrande.json: it has the scores of other items"
    elif fault == "damaged results":
        evaluator.write("run/evaluations/step_4/winogrande.json", '{"task": ')
        message = "winogrande.json: unreadable"
    else:
        write_task(evaluator, "tasks", [winogrande("go", "ba de fi go " * 30)], "winogrande")
        message = "cannot be scored in rows of 32"
    ended = evaluate(evaluator, "--data=tasks")
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err and len(ended.err.splitlines()) == 1
    assert not (results / "arc_easy.json").exists()


@report(
    "deepeval#3070; evalscope#1516; HRM-Text#2",
    did="scored questions whose labels stood for two options each, or had an option of white space",
    must="they are refused with file, line and what is wrong",
)
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (arc("go", labels=("A", "A", "B")), "the label A stands for 2 options"),
        (arc("go", texts=("ba", "\t ", "fi")), "option 1 is blank"),
    ],
)
def test_questions_without_a_single_answer_are_refused(evaluator, row, message):
    write_task(evaluator, "tasks", [arc("ki"), row])
    ended = evaluator.run("evaluate", "--workdir=run", "--task=arc_easy", "--data=tasks")
    assert (ended.status, ended.out) == (2, "") and f"arc_easy.jsonl, line 2: {message}" in ended.err


@report(
    "lm-evaluation-harness#1395; hellaswag#8",
    did="scored a single question, which has the same option twice",
    must="no '± nan' is printed; equal options are counted in a line and in the record",
)
def test_one_question_with_equal_options_is_scored_and_they_are_counted(evaluator):
    write_task(evaluator, "tasks", [arc("go", texts=("ba", "ba", "fi"))])
    ended = evaluator.run("evaluate", "--workdir=run", "--task=arc_easy", "--data=tasks")
    assert ended.status == 0, ended.err
    assert "arc_easy" in ended.out and "nan" not in ended.out
    assert "1 of 1 items have the same option twice (items 0, from 0)" in ended.err
    record = json.loads((evaluator.folder / "run/evaluations/step_4/arc_easy.json").read_text())
    assert record["items_with_equal_options"] == 1


@report(
    "deepeval#3070; evalscope#1516; HRM-Text#2",
    did="scored questions whose labels or answers another program had written as numbers",
    must="a number and the text that reads as it are one label",
)
def test_numbers_and_texts_are_the_same_labels(evaluator):
    rows = [arc("go", labels=("1", "2", "3"), answer=3), arc("ki", labels=(1, 2, 3), answer="1")]
    write_task(evaluator, "tasks", rows)
    write_task(evaluator, "tasks", [winogrande("go") | {"answer": 2}, winogrande("ki")], "winogrande")
    ended = evaluate(evaluator, "--data=tasks")
    assert ended.status == 0, ended.err
    items = (evaluator.folder / "run/evaluations/step_4/arc_easy.items.jsonl").read_text().splitlines()
    assert [json.loads(line)["gold"] for line in items] == [2, 0]


@report(
    "litgpt#942",
    did="trained with a task of which the folder held the scores of other items for the last step",
    must="it is refused before the training, not after the last step, and again at each start",
)
def test_scores_in_the_way_of_the_last_evaluation_are_refused_before_training(evaluator):
    write_task(evaluator, "others", [arc("mu")])
    write_task(evaluator, "tasks", [arc("go"), arc("ki")])
    other = evaluator.run("evaluate", "--workdir=run", "--task=arc_easy", "--data=others")
    assert other.status == 0, other.err
    (evaluator.folder / "run/summary.json").unlink()
    options = ("--evaluation.task_data=tasks", "--evaluation.tasks=arc_easy")
    ended = evaluator.train(*options)
    assert ended.status == 2 and "arc_easy.json: it has the scores of other items" in ended.err
    assert "resumed" not in ended.out and len(ended.err.splitlines()) == 1


# What a command is given, and where it runs.


@report(
    "Homebrew/legacy-homebrew#46408",
    did="pastes a command from a page that prints two hyphens as a dash",
    must="one line that names the dash and what to type, exit status 2",
)
@pytest.mark.parametrize("dashes", ["\u2014", "\u2013-"])
def test_dash_in_place_of_hyphens_is_named(user, dashes):
    ended = user.run("train", f"{dashes}experiment=tiny.py")
    assert ended.status == 2
    assert ended.err.count("\n") == 1 and "type --experiment=tiny.py" in ended.err


@report(
    "VundleVim/Vundle.vim#807",
    did="trains within a hook of git, which sets GIT_DIR to the repository of the hook",
    must="the run records the commit of the code, as without",
)
def test_repository_of_a_hook_is_not_taken_for_that_of_the_code(ordinary):
    git = ("git", "-C", REPOSITORY, "rev-parse", "HEAD")
    if shutil.which("git") is None or (head := subprocess.run(git, capture_output=True, text=True)).returncode:
        pytest.skip("the tests are not in a git repository")
    folder = str(ordinary.folder / "other")
    subprocess.run(["git", "init", "-q", folder], check=True)
    of_a_hook = {"GIT_DIR": f"{folder}/.git", "GIT_WORK_TREE": folder}
    assert ordinary.train(workdir="hook", environment=of_a_hook).status == 0
    record = json.loads((ordinary.folder / "hook" / "config.json").read_bytes())
    assert record["git"]["commit"] == head.stdout.strip()


@report(
    "tox-dev/filelock#67",
    did="trains on a file system without locks, such as Lustre mounted without them",
    must="one line that names the folder and the cause, exit status 2, and nothing is left behind",
)
def test_file_system_without_locks_is_named(user):
    module = "import errno, fcntl, os\ndef flock(*_):\n    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\n"
    user.write("site/sitecustomize.py", f"{module}fcntl.flock = flock\n")
    path = os.pathsep.join([str(user.folder / "site"), user.environment["PYTHONPATH"]])
    before = sorted(user.folder.rglob("*"))
    with Copies(user.environment | {"PYTHONPATH": path}) as without:
        for words in (["train", "--experiment=tiny.py", "--workdir=run"], ["prepare", "--experiment=tiny.py"]):
            ended = without.run(words, user.folder, {})
            assert ended.status == 2
            assert ended.err.count("\n") == 1 and "has no file locks" in ended.err
    assert not (user.folder / "run").exists() and before


@report(
    "PrimeIntellect-ai/prime-rl#1585",
    did="evaluates a run that trains, and deletes its older checkpoints, at the same time",
    must="the newest checkpoint at that time is evaluated; none is called damaged",
)
def test_run_is_evaluated_while_it_trains(user):
    options = ["--checkpoint.every_steps=3", "--checkpoint.keep=1", "--training.steps=100000"]
    with user.start("train", "--experiment=tiny.py", "--workdir=run", *options) as process:
        try:
            wait_until(lambda: list((user.folder / "run" / "checkpoints").glob("[0-9]*[0-9]")), process.pid)
            for _ in range(2):
                ended = user.run("evaluate", "--workdir=run")
                assert ended.status == 0, ended.err
        finally:
            process.kill()


# The table itself.


def test_every_row_names_its_report_and_what_must_happen():
    rows = [each for name, each in globals().items() if name.startswith("test_") and hasattr(each, "pytestmark")]
    marks = [mark for row in rows for mark in row.pytestmark if mark.name == "foreign_fault"]
    assert all(mark.kwargs[field] for mark in marks for field in ("source", "did", "must"))
    assert len(marks) == len([name for name in globals() if name.startswith("test_")]) - 1
