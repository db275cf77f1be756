"""Locks that name their holder; the system releases a lock when its process ends, however it ends."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from jaxformer.config import UserError
from jaxformer.host.console import print_line
from jaxformer.host.waiting import waiting

# File in a run folder that names the process running in it.
LOCK = ".lock"

# Checking a lock holds it for microseconds: a lock held for this long is held by a running process.
_PATIENCE_SECONDS = 0.2


class Held(RuntimeError):
    """A lock is held; its text names the process and the machine."""


@contextlib.contextmanager
def hold(lock: Path, *, wait: str | None = None) -> Iterator[None]:
    """Holds an exclusive lock on a file, which is created if missing and stays.

    Args:
        wait: what the holder is doing, printed while waiting for the lock. None does not wait.

    Raises:
        Held: another process holds it, and `wait` is None.
        UserError: the file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(lock.open("a+", encoding="utf-8"))
            if not take(file):
                if wait is None:
                    raise Held(holder(lock))
                what = f"{holder(lock)}, which is {wait}"
                print_line(f"waiting for {what}")
                with waiting(what, after=60):
                    fcntl.flock(file, fcntl.LOCK_EX)
            # The last holder may have removed it, and another may hold a new one of the same name.
            if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                break
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def take(file: IO) -> bool:
    """Takes the exclusive lock on an open file, or returns False if another process holds it.

    It is held until this process, and all that inherited the open file, have closed it or ended.

    Raises:
        UserError: the file system has no locks.
    """
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > give_up:
                return False
            time.sleep(0.01)
        except OSError as error:  # As from Lustre and FUSE without locks, and NFS without its lock service.
            raise UserError(
                f"{Path(file.name).parent}: its file system has no file locks ({error.strerror}), which keep two "
                "processes from writing the same files; choose a folder on another file system"
            ) from error


def is_held(lock: Path) -> bool:
    """Returns whether a process holds the exclusive lock on a file, which need not exist."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def holder(lock: Path) -> str:
    """Returns the name of the process that holds a lock, in words."""
    # It may not have written its name yet.
    return lock.read_text(encoding="utf-8").strip() or "another process"
