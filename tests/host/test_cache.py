import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxformer.config import UserError
from jaxformer.host.cache import cache_folder, make_once

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

MAKE_IN_STEPS = """
import os, signal, sys
from pathlib import Path
from jaxformer.host.cache import make_once

def make(folder):
    folder.mkdir()
    (folder / "first").write_text(str(os.getpid()))
    print("making", flush=True)
    if sys.stdin.readline() == "die\\n":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "second").write_text(str(os.getpid()))

path = make_once(Path(sys.argv[1]), make, "making it")
print((path / "first").read_text(), (path / "second").read_text(), flush=True)
"""


@contextlib.contextmanager
def start(path: Path) -> Iterator[subprocess.Popen]:
    """Starts a process that makes a folder of two files, and stops between them to read a line; ends it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE_IN_STEPS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()  # A test that failed would wait for it without end.
        process.communicate()


def write_both(folder: Path) -> None:
    folder.mkdir()
    (folder / "first").write_text("mine")
    (folder / "second").write_text("mine")


def test_the_cache_is_where_the_environment_says_else_in_the_home(monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", "/somewhere/else")
    assert cache_folder() == Path("/somewhere/else")
    monkeypatch.setenv("HOME", "/home/me")
    for unset in (lambda: monkeypatch.setenv("JAXFORMER_CACHE", ""), lambda: monkeypatch.delenv("JAXFORMER_CACHE")):
        unset()
        assert cache_folder() == Path("/home/me/.cache/jaxformer")


@pytest.mark.parametrize("given", ["~nobody_at_all/cache", "~nobody_at_all"])
def test_a_home_that_there_is_not_is_refused(given, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", given)
    with pytest.raises(UserError, match=f"cache {given}: there is no such home folder; set JAXFORMER_CACHE"):
        cache_folder()


def test_a_file_is_made_once(tmp_path):
    calls = []

    def make(path: Path) -> None:
        calls.append(path)
        path.write_text("whole")

    for _ in range(3):
        assert make_once(tmp_path / "deep" / "file", make, "a file").read_text() == "whole"
    assert len(calls) == 1


def test_what_is_being_made_has_another_name_until_it_is_whole(tmp_path):
    path = tmp_path / "file"

    def make(unfinished: Path) -> None:
        unfinished.write_text("half")
        assert unfinished != path and not path.exists()

    assert make_once(path, make, "a file").read_text() == "half"
    assert {p.name for p in tmp_path.iterdir()} <= {"file", "file.lock"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_attempt_leaves_nothing_finished_and_the_next_starts_clean(tmp_path, error):
    path = tmp_path / "folder"

    def fail(folder: Path) -> None:
        folder.mkdir()
        (folder / "rubbish").write_text("half")
        raise error("interrupted")

    with pytest.raises(error, match="interrupted"):
        make_once(path, fail, "a folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.lock"], "what it half made takes no room"
    make_once(path, write_both, "a folder")
    assert {p.name for p in path.iterdir()} == {"first", "second"}


def test_the_remains_of_a_file_are_removed_where_a_folder_is_made_and_the_reverse(tmp_path):
    def fail_as_folder(path: Path) -> None:
        path.mkdir()
        raise RuntimeError

    def fail_as_file(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError

    for number, fail in enumerate([fail_as_folder, fail_as_file]):
        for make in (write_both, lambda path: path.write_text("whole")):
            path = tmp_path / f"{number}{make.__name__}"
            with pytest.raises(RuntimeError):
                make_once(path, fail, "it")
            assert make_once(path, make, "it").exists()


def test_a_killed_process_leaves_nothing_finished_and_the_next_starts_clean(tmp_path):
    path = tmp_path / "folder"
    with start(path) as process:
        process.communicate("die\n")
    assert process.returncode == -signal.SIGKILL
    assert not path.exists()
    make_once(path, write_both, "a folder")
    assert {p.name: p.read_text() for p in path.iterdir()} == {"first": "mine", "second": "mine"}


def test_of_two_processes_one_makes_and_both_get_the_whole(tmp_path):
    path = tmp_path / "folder"
    with start(path) as first:
        assert first.stdout.readline() == "making\n"
        with start(path) as second:
            waiting = f"waiting for process {first.pid} on {socket.gethostname()}, which is making it\n"
            assert second.stdout.readline() == waiting
            assert not path.exists()
            first_output, _ = first.communicate("go on\n")
            second_output, _ = second.communicate("never read\n")
    assert first_output == second_output == f"{first.pid} {first.pid}\n"


def test_a_process_that_waited_for_a_killed_one_makes_it_itself(tmp_path):
    path = tmp_path / "folder"
    with start(path) as first:
        assert first.stdout.readline() == "making\n"
        with start(path) as second:
            assert second.stdout.readline().startswith(f"waiting for process {first.pid}")
            first.communicate("die\n")
            second_output, _ = second.communicate("go on\n")
    assert second_output == f"making\n{second.pid} {second.pid}\n"


def test_of_many_at_once_one_makes(tmp_path, capsys):
    calls = []

    def make(path: Path) -> None:
        calls.append(path)
        path.write_text("whole")

    with ThreadPoolExecutor(8) as executor:
        texts = list(executor.map(lambda _: make_once(tmp_path / "file", make, "a file").read_text(), range(32)))
    assert len(calls) == 1
    assert texts == ["whole"] * 32


def test_a_cache_that_cannot_be_written_is_a_user_error_that_names_it(tmp_path):
    (tmp_path / "taken").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cache .*taken.*JAXFORMER_CACHE"):
        make_once(tmp_path / "taken" / "file", lambda path: path.write_text(""), "a file")


def test_a_full_disk_while_making_is_a_user_error_that_says_so(tmp_path):
    def make(path: Path) -> None:
        raise OSError(28, os.strerror(28))

    with pytest.raises(UserError, match="No space left on device; free space there or set JAXFORMER_CACHE"):
        make_once(tmp_path / "file", make, "a file")
    assert not (tmp_path / "file").exists()


def test_a_cache_whose_name_is_too_long_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"File name too long; .* set JAXFORMER_CACHE to another folder"):
        make_once(tmp_path / ("x" * 300) / "file", lambda path: path.write_text(""), "a file")


def test_a_cache_is_no_url(monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", "gs://bucket/cache")
    with pytest.raises(UserError, match=r"JAXFORMER_CACHE \(gs://bucket/cache\) is a URL"):
        cache_folder()
