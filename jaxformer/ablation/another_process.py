"""A call in a separate process, for work that takes the device, so that it is free for the runs of a queue."""

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

from jaxformer.config import TrainingFailure
from jaxformer.host.console import show_status
from jaxformer.host.signals import Stopped
from jaxformer.host.waiting import waiting
from jaxformer.jobs.launch import HUGE_PAGES

T = TypeVar("T")


def in_another_process(what: str, function: Callable[..., T], *arguments) -> T:
    """Returns the result of a function called in a separate process, which then frees the device.

    Args:
        what: it is doing, in words, shown as the status until it ends.
    """
    show_status(what)
    others = multiprocessing.active_children()
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(what,)) as pool:
        try:
            # A terminal sends Ctrl-C to both; only this process handles it, since the other inherits it blocked.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            as_jobs_have = {name: value for name, value in HUGE_PAGES.items() if name not in os.environ}
            os.environ.update(as_jobs_have)  # So that timings match the jobs'.
            try:
                future = pool.submit(function, *arguments)
            finally:
                for name in as_jobs_have:
                    del os.environ[name]
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            with waiting(f"the process that is {what}", after=60):
                return future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise TrainingFailure(f"the process that was {what} was killed, as when memory runs out") from error
        except Stopped:
            for process in set(multiprocessing.active_children()).difference(others):
                process.kill()
            raise
        finally:
            show_status()


def _begin(what: str) -> None:
    """Continues the status of the waiting parent, and ends this process when the parent ends."""
    show_status(what)
    if parent := multiprocessing.parent_process():
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
