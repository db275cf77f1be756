"""Locks that name who holds them; the system releases a lock when its process ends, however it ends."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from jaxformer.screen import say


class Held(RuntimeError):
    """A lock is held; its text names the process and the machine."""


@contextlib.contextmanager
def hold(lock: Path, *, wait: str | None = None) -> Iterator[None]:
    """Holds an exclusive lock on a file, which is created if it does not exist and stays behind.

    Args:
        wait: what the holder is doing: a line says so, and the lock is waited for. None does not wait.

    Raises:
        Held: another process holds it, and none is waited for.
    """
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(lock.open("a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    raise Held(_holder(lock)) from None
                say(f"waiting for {_holder(lock)}, which is {wait}")
                fcntl.flock(file, fcntl.LOCK_EX)
            # Who held it may have removed it, and another may hold a new one of the same name.
            if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                break
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _holder(lock: Path) -> str:
    # The holder may not have written its name yet.
    return lock.read_text().strip() or "another process"
