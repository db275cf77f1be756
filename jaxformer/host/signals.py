"""SIGINT, SIGTERM, SIGHUP: they end a run at once or after what must not be interrupted; a second one at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

# SIGHUP is what a lost terminal sends.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal ends the run; its text is the line that the command prints before exit status 128 + `number`."""

    def __init__(self, number: int, text: str):
        super().__init__(f"stopped by {signal.Signals(number).name}; {text}")
        self.number = number


class StopSignals:
    """Takes the signals within its `with` block, in the main thread; elsewhere it does nothing.

    A signal that the process ignores, as under `nohup`, stays ignored.

    Attributes:
        received: the number of the signal that came while signals were deferred, or None.
    """

    def __init__(self):
        self.received: int | None = None
        self._is_deferred = False
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            taken = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._take) for number in taken}
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a signal is only noted in `received`: look at it where the run can be stopped."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, inside of a deferred one, a signal raises `Stopped`, and so does one that came before."""
        self._is_deferred = False
        try:
            if self.received:
                self._raise(self.received)
            yield
        finally:
            self._is_deferred = True

    def _take(self, number: int, frame) -> None:
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        self.received = number
        if not self._is_deferred:
            self._raise(number)
        # Not `print`, which may be what was interrupted.
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):
            os.write(2, f"\njaxformer: {name}: saving after this step; a second signal stops at once\n".encode())

    def _raise(self, number: int) -> None:
        raise Stopped(number, "the same command goes on from what is saved")


@contextlib.contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """Within the block Ctrl-C ends the process as the system does: imports would be left with a traceback.

    This holds in the main thread, and where Python's own handler stands; another's stays, and so an ignored signal.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
