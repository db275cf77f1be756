"""What users met in other trainers and must not meet here: a test for each public report, run as a user would run it.

Each names the report, what its user did, and what must happen. Whoever finds another adds it.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import user as user_module
from user import EXPERIMENT, User

pytestmark = pytest.mark.device_free


def report(source: str, *, did: str, must: str):
    """Returns the mark of a row: the public report, what its user did, and what must happen here."""
    return pytest.mark.foreign_fault(source=source, did=did, must=must)


@pytest.fixture
def user(tmp_path, make_texts, compiled, default_signals):
    """A user with a folder of their own."""
    return User(tmp_path, make_texts(120), compiled)


# Paths.

# Streams, terminals and locales.

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
"""


@report(
    "https://github.com/jax-ml/jax/issues/18246",
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
    with user.start(
        "train", "--experiment=tiny.py", "--workdir=run", "--training.steps=1000000", stderr=subprocess.STDOUT
    ) as process:
        try:
            while not process.stdout.readline().startswith(b"step "):
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 143 and b"jaxformer: stopped by SIGTERM; step " in out
    assert user.train(workdir="another", timeout=120).status == 0


# What an experiment does in the process that estimates a study, and there alone: it names itself, and takes its time.
ESTIMATES_SLOWLY = """
import multiprocessing, os, pathlib, time
if multiprocessing.parent_process() is not None:
    pathlib.Path("estimating.unfinished").write_text(str(os.getpid()))
    pathlib.Path("estimating.unfinished").rename("estimating")
    time.sleep(3600)
"""


@report(
    "https://github.com/python/cpython/issues/125886",
    did="pressed Ctrl-C, or killed the study, while a process of its own estimated what the runs take",
    must="that process is gone at once, and prints no traceback",
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_study_that_is_stopped_takes_its_estimating_process_along(user, number):
    user.write("experiments/tiny.py", EXPERIMENT + ESTIMATES_SLOWLY)
    variant = 'parent="tiny", question="Is it?", change={"optimizer.learning_rate": 2e-2}, expected=(0, 1), source="x"'
    user.write("experiments/faster.py", f"from jaxformer.experiment import Variant\nEXPERIMENT = Variant({variant})\n")
    words = ("ablate", "--parent=tiny", "--variants=faster", "--seeds=1")
    with user.start(*words, start_new_session=True) as process:
        try:
            while not (user.folder / "estimating").exists():
                assert process.poll() is None
                time.sleep(0.1)
            estimating = int((user.folder / "estimating").read_text())
            if number == signal.SIGINT:  # As a terminal sends it, to all that runs in it.
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            _, err = process.communicate(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        lines = [line for line in err.decode().splitlines() if not line.startswith("jaxformer: waiting for")]
        assert (process.returncode, lines) == (128 + number, [f"jaxformer: stopped by {number.name}"])
    assert is_gone(estimating)


def is_gone(process: int, seconds: float = 30) -> bool:
    """Returns whether a process ends within a time, also one that nobody asks for its status."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


@report(
    "https://github.com/Deep-MI/FastSurfer/issues/286",
    did="ran in a container as `docker run --user 4711`: without an entry in its passwd file, and without HOME",
    must="it works with JAXFORMER_CACHE set, and one line says what to set where it is not; git's commit is recorded",
)
@pytest.mark.skipif(not shutil.which("setpriv") or os.getuid() != 0, reason="needs to be root, and setpriv")
def test_user_without_passwd_entry_and_home(user):
    subprocess.run(["chown", "-R", "4711:4711", user.folder], check=True)
    # It may read all, such as an interpreter in root's home.
    can_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    prefix = ("setpriv", "--reuid=4711", "--regid=4711", "--clear-groups", *can_read)
    nothing = dict.fromkeys(("HOME", "USER", "LOGNAME", "JAX_COMPILATION_CACHE_DIR"))
    ended = user.train(prefix=prefix, environment=nothing)
    assert (ended.status, ended.err) == (0, "")
    config = json.loads((user.folder / "run" / "config.json").read_bytes())
    is_checkout = (user_module.REPOSITORY / ".git").exists() and shutil.which("git")
    assert config["git"] if is_checkout else config["git"] is None
    assert user.run("evaluate", "--workdir=run", prefix=prefix, environment=nothing).status == 0
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
