"""A lock is held by one process, named, and free again however that process ends."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from jaxformer.host.lock import Held, hold, holder, is_held, take

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

HOLD = """
import sys, time
from pathlib import Path
from jaxformer.host.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def elsewhere(tmp_path):
    """The path of a lock, and the process that holds it."""
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield path, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_held_lock_names_its_holder(elsewhere):
    path, process = elsewhere
    with pytest.raises(Held, match=f"^process {process.pid} on {socket.gethostname()}$"), hold(path):
        pass


def test_lock_of_a_killed_process_is_free(elsewhere):
    path, process = elsewhere
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with hold(path):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    with hold(path):
        pass


def test_lock_whose_file_was_replaced_is_taken_on_the_new_one(tmp_path):
    path = tmp_path / "lock"
    with hold(path):
        path.unlink()
        # Who would have the old one would share the folder with who has the new.
        with hold(path):
            assert path.exists()


def test_who_looks_at_a_lock_sees_whether_it_is_held_and_keeps_nobody_from_it(elsewhere, tmp_path):
    path, process = elsewhere
    assert is_held(path) and holder(path) == f"process {process.pid} on {socket.gethostname()}"
    process.kill()
    process.wait()
    assert not is_held(path) and not is_held(tmp_path / "absent") and not (tmp_path / "absent").exists()
    looking = threading.Event()

    def look():
        while not looking.is_set():
            is_held(path)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(200):
            with hold(path):
                pass
    finally:
        looking.set()
        thread.join()


def test_lock_of_an_inherited_file_is_held_as_long_as_the_process_that_inherited_it(tmp_path):
    path = tmp_path / "log"
    with path.open("a") as file:
        assert take(file)
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=file)
    with path.open("a") as file:
        assert is_held(path) and not take(file)
        process.communicate(b"\n")
        assert not is_held(path) and take(file)
