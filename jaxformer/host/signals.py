"""SIGINT, SIGTERM and their kin: they end what runs at once, or after what must not be interrupted.

Python runs a handler between two instructions of the main thread. What it raises there may be lost: an exception in the
middle of a garbage collection or of a `__del__` is discarded (jax#18246), and some libraries in C++ turn one into
another. And while that thread computes in C++, as when XLA compiles, no handler runs. So a thread of its own watches:
`Stopped` is raised again until it is seen, and a second signal ends the process whatever it does.
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

# SIGHUP is what a lost terminal sends; SIGUSR1 and SIGUSR2, what Slurm and Grid Engine are asked to send in advance.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

# How the watching thread has the main thread raise again; the system ignores it where there is no handler.
_AGAIN = signal.SIGURG
_AGAIN_SECONDS = 0.1

# Signals within this time are one: `timeout` of GNU sends each to the process, and to the group that it is in.
_SAME_SECONDS = 0.2

# After this time without an answer of the main thread a line says that the signal has come.
_SILENT_SECONDS = 1.0

# Errors that no library has made of `Stopped`: they say what became of the run, whatever a signal began.
_VERDICTS = (TrainingFailure, UserError)

_Handler = Callable[[int, FrameType | None], None]


class Stopped(BaseException):
    """A signal ends the run; its text is the line that the command prints before exit status 128 + `number`."""

    def __init__(self, number: int, text: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}" + (text and f"; {text}"))
        self.number = number


class StopSignals:
    """The signals that a block has taken, which `stop_signals` makes.

    Attributes:
        received: the number of the first that came, or None.
        advice: what the text of `Stopped` says beside the name of the signal.
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
        """Within the block a signal is only noted in `received`: look at it where the run can be stopped.

        An exception that leaves the block ends the run, with its own text, whether a signal came or not.
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
        """Within the block, inside of a deferred one, a signal raises `Stopped`, and so does one that came before."""
        before, self._is_deferred = self._is_deferred, False
        try:
            self._stop()
            yield
        finally:
            self._is_deferred = before

    @contextlib.contextmanager
    def _taken(self) -> Iterator[None]:
        """Takes the signals within the block, and raises at its end what came and was not seen."""
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
            writing.shutdown(socket.SHUT_WR)  # A close alone is not seen while a forked process has it too.
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
        """Ends the process on a second signal, and has the main thread raise what was lost; a thread runs this."""
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


# Who has taken the signals of this process.
_active: StopSignals | None = None


@contextlib.contextmanager
def stop_signals(advice: str = "") -> Iterator[StopSignals]:
    """Takes the signals within the block, in the main thread, unless a block around it has; elsewhere it takes none.

    A signal raises `Stopped`, at once or once nothing defers it, and again until that leaves the block; an exception
    that leaves it in its place is what the block has made of it. A signal that the process ignores, as under `nohup`,
    stays ignored.

    Args:
        advice: what the text of `Stopped` says beside the name of the signal.
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
    """Returns a list to which the signals are only appended within the block, in the main thread; look at it."""
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
    """Within the block signals end the process as the system does, in the main thread: nothing is there to be saved.

    Imports would be left with a traceback.
    """
    if threading.current_thread() is threading.main_thread():
        with _handled(dict.fromkeys(_taken_by_default(), signal.SIG_DFL), -1):
            yield
    else:
        yield


def _taken_by_default() -> list[signal.Signals]:
    """Returns the signals that are taken: those that are neither ignored nor taken by something that is not Python."""
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
    """Within the block a `Stopped` that Python discards, and that is raised again, is not printed."""
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
    """Returns whether an error is on its way out: through a `finally`, an `except` or an `__exit__`."""
    seen = set()
    handled = sys.exception()
    while error is not None and handled is not None and id(handled) not in seen:
        if handled is error:
            return True
        seen.add(id(handled))
        handled = handled.__context__
    return False


def _release_in_child() -> None:
    """Leaves the signals of a forked process alone, which would wake up the thread of the one that it came from."""
    global _active
    if _active is not None:
        _active = None
        signal.set_wakeup_fd(-1)
        for number in _taken_by_default():
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


os.register_at_fork(after_in_child=_release_in_child)
