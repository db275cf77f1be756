"""Lines on what a process waits for: one that prints nothing seems to hang."""

import contextlib
import threading
import time
from collections.abc import Iterator

from jaxformer.host.console import format_duration, print_notice

# Seconds between the first two lines; from then on twice as many each time.
_BETWEEN = 60


@contextlib.contextmanager
def waiting(what: str, *, after: float = 5) -> Iterator[None]:
    """Within the block, prints what is waited for, and for how long.

    Args:
        after: seconds until the first line.
    """
    over = threading.Event()

    def report() -> None:
        started, delay, following = time.monotonic(), after, _BETWEEN
        while not over.wait(delay):
            print_notice(f"waiting for {what}: {format_duration(time.monotonic() - started)} so far")
            delay, following = following, 2 * following

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
