"""A lock is held by one process, named, and free again however that process ends."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from jaxformer.lock import Held, hold

HOLD = """
import sys, time
from pathlib import Path
from jaxformer.lock import hold
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
