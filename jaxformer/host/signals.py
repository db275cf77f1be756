"""SIGINT, SIGTERM and similar signals: they end a run at once, or after a part that must not be interrupted.

Python runs a handler between two instructions of the main thread. An exception raised there may be lost: in a garbage
collection or a `__del__` it is discarded (jax#18246), and some C++ libraries turn it into another. And while the main
thread computes in C++, as when XLA compiles, no handler runs. So a separate thread watches: `Stopped` is raised again
until it is seen, and a second signal ends the process at any time.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from jaxformer.config import TrainingFailure, UserError

# A lost terminal sends SIGHUP; Slurm and Grid Engine can send SIGUSR1 and SIGUSR2 as a warning.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

# Signal with which the watching thread makes the main thread raise again; ignored by the system without a handler.
_AGAIN = signal.SIGURG
_AGAIN_SECONDS = 0.1

# Signals within this time count as one: GNU `timeout` sends each to the process, and to its group.
_SAME_SECONDS = 0.2

# If the main thread does not react within this time, a line reports the signal.
_SILENT_SECONDS = 1.0

# Errors that no library makes out of `Stopped`: they report the run's own end, even after a signal.
_VERDICTS = (TrainingFailure, UserError)

_Handler = Callable[[int, FrameType | None], None]


class Stopped(BaseException):
    """A signal ends the run; its text is the line that the command prints before exit status 128 + `number`."""

    def __init__(self, number: int, text: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}" + (text and f"; {text}"))
        self.number = number


class StopSignals:
    """The signals received by a block, made by `stop_signals`.

    Attributes:
        received: the number of the first signal, or None.
        advice: the text of `Stopped` after the name of the signal.
    """

    def __init__(self):
        self.received: int | None = None
        self.advice = ""
        self._is_deferred = False
        self._is_announced = False
        self._raised: Stopped | None = None
        self._is_seen = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a signal is only recorded in `received`: check it where the run can be stopped.

        An exception that leaves the block ends the run, with its own text, with or without a signal.
        """
        before, self._is_deferred = self._is_deferred, True
        try:
            yield
        except BaseException as error:
            is_own = self._raised is None or (isinstance(error, (Stopped, *_VERDICTS)) and error is not self._raised)
            self._is_seen |= self.received is not None and is_own
            raise
        finally:
            self._is_deferred = before

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, inside a deferred one, a signal raises `Stopped`, and so does an earlier one."""
        before, self._is_deferred = self._is_deferred, False
        try:
            self._stop()
            yield
        finally:
            self._is_deferred = before

    @contextlib.contextmanager
    def _taken(self) -> Iterator[None]:
        """Handles the signals within the block, and raises at its end for one that was not seen."""
        global _active
        reading, writing = socket.socketpair()
        writing.setblocking(False)
        watching = threading.Thread(target=self._watch, args=(reading,), daemon=True)

        def take(number: int, frame: FrameType | None) -> None:
            if self.received is None:
                self.received = number
                with contextlib.suppress(OSError):
                    writing.send(b"\0")  # The number may have gone to another, such as an event loop.
            self._stop()

        handlers = {number: take for number in _taken_by_default()} | {_AGAIN: lambda number, frame: self._stop()}
        try:
            watching.start()
            with self.deferred(), _handled(handlers, writing.fileno()), _without_stopped_in_hook():
                _active = self
                try:
                    with self.at_once():
                        yield
                finally:
                    _active = None
        finally:
            writing.shutdown(socket.SHUT_WR)  # A close alone is not noticed while a forked process has it open too.
            writing.close()
            watching.join()
            reading.close()
        self._stop()

    def _stop(self) -> None:
        """Raises `Stopped` if a signal came, unless it is deferred, is being handled, or was seen."""
        if self.received is None or self._is_seen:
            return
        if self._is_deferred:
            self._announce("saving after this step")
        elif not _is_being_handled(self._raised):
            self._raised = Stopped(self.received, self.advice)
            raise self._raised

    def _announce(self, what: str, number: int | None = None) -> None:
        if not self._is_announced:
            self._is_announced = True
            name = signal.Signals(number or self.received or 0).name
            with contextlib.suppress(OSError):  # Not `print`, which may be what was interrupted.
                os.write(2, f"\njaxformer: {name}: {what}; a second signal stops at once\n".encode())

    def _watch(self, reading: socket.socket) -> None:
        """Ends the process on a second signal, and makes the main thread raise a lost one; runs in a thread."""
        first, since = None, 0.0
        while True:
            reading.settimeout(None if first is None else _AGAIN_SECONDS)
            try:
                numbers = reading.recv(4096)
            except TimeoutError:
                if self.received is not None:
                    if not (self._is_deferred or self._is_seen):
                        signal.pthread_kill(threading.main_thread().ident or 0, _AGAIN)
                elif time.monotonic() > since + _SILENT_SECONDS:
                    self._announce("stopping once what is being computed is done", first)
                continue
            if not numbers:
                return
            for number in numbers:
                if first is None and number in (0, *SIGNALS):
                    first, since = number, time.monotonic()
                elif number in SIGNALS and time.monotonic() > since + _SAME_SECONDS:
                    os._exit(128 + number)


# The present handler of this process's signals.
_active: StopSignals | None = None


@contextlib.contextmanager
def stop_signals(advice: str = "") -> Iterator[StopSignals]:
    """Handles the signals within the block, in the main thread, unless an outer block does; elsewhere it does nothing.

    A signal raises `Stopped`, at once or when nothing defers it, and again until that leaves the block; the block may
    raise another exception in its place. A signal that the process ignores, as under `nohup`, stays ignored.

    Args:
        advice: the text of `Stopped` after the name of the signal.
    """
    is_main = threading.current_thread() is threading.main_thread()
    signals = (_active if is_main else None) or StopSignals()
    before, signals.advice = signals.advice, advice or signals.advice
    try:
        with signals._taken() if is_main and signals is not _active else contextlib.nullcontext():
            yield signals
    except (Stopped, *_VERDICTS):
        signals._is_seen = True
        raise
    except Exception as error:
        if signals._raised is None or signals._is_seen:
            raise
        signals._is_seen = True
        raise signals._raised from error
    finally:
        signals.advice = before


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yields a list to which signals are only appended within the block, in the main thread; the caller checks it."""
    received: list[int] = []
    if threading.current_thread() is threading.main_thread():
        handlers = dict.fromkeys(_taken_by_default(), lambda number, frame: received.append(number))
        with _handled(handlers, -1):
            yield received
    else:
        yield received


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the block SIGINT raises `KeyboardInterrupt`, in the main thread, and does not end the command."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.SIGINT in _taken_by_default():
        with _handled({signal.SIGINT: signal.default_int_handler}, -1):
            yield
    else:
        yield


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block signals end the process by the system's default, in the main thread: nothing must be saved.

    Otherwise an interrupted import would print a traceback.
    """
    if threading.current_thread() is threading.main_thread():
        with _handled(dict.fromkeys(_taken_by_default(), signal.SIG_DFL), -1):
            yield
    else:
        yield


def _taken_by_default() -> list[signal.Signals]:
    """Returns the signals to handle: neither ignored, nor handled by something other than Python."""
    return [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]


@contextlib.contextmanager
def _handled(handlers: Mapping[signal.Signals, _Handler | signal.Handlers], wakeup: int) -> Iterator[None]:
    """Sets handlers within the block, and the descriptor to which the system writes the numbers of signals, or -1."""
    before = {}
    wakeup_before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        for number, handler in handlers.items():
            before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)


@contextlib.contextmanager
def _without_stopped_in_hook() -> Iterator[None]:
    """Within the block a `Stopped` that Python discards is not printed, since it is raised again."""
    hook = sys.unraisablehook

    def filtered(unraisable):
        if not isinstance(unraisable.exc_value, Stopped):
            hook(unraisable)

    sys.unraisablehook = filtered
    try:
        yield
    finally:
        if sys.unraisablehook is filtered:
            sys.unraisablehook = hook


def _is_being_handled(error: BaseException | None) -> bool:
    """Returns whether an error is being handled: in a `finally`, an `except` or an `__exit__`."""
    seen = set()
    handled = sys.exception()
    while error is not None and handled is not None and id(handled) not in seen:
        if handled is error:
            return True
        seen.add(id(handled))
        handled = handled.__context__
    return False


def _release_in_child() -> None:
    """Releases the signals in a forked process, where they would wake up its parent's thread."""
    global _active
    if _active is not None:
        _active = None
        signal.set_wakeup_fd(-1)
        for number in _taken_by_default():
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


os.register_at_fork(after_in_child=_release_in_child)
