"""Worker processes: a function computed of many arguments on several processors, with the results in order.

Unlike in `concurrent.futures.ProcessPoolExecutor`, a worker is a fresh interpreter that imports the function's module
and nothing of the main program, so that scripts and notebooks without `if __name__ == "__main__"` can have workers. A
worker ends with the process that started it, however that ends, since its pipe is then closed. Signals that a terminal
or a scheduler sends to the whole group do not reach it. Each worker has a thread here.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jaxformer.config import UserError
from jaxformer.host.signals import SIGNALS

T = TypeVar("T")
R = TypeVar("R")

# This package comes first, before others of its name in the path, since the results must come from it.
_SERVE = (
    "import sys; sys.path.insert(0, {root}); import jaxformer; sys.path[:] = {path}; "
    "from jaxformer.host.workers import serve; serve()"
)
_ROOT = Path(__file__).parents[2]


def _folder_of_start() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # Removed, so nothing is imported from it.
        return os.sep


# Base of the relative entries of `sys.path`.
_STARTED_IN = _folder_of_start()

# There is a worker for each processor: libraries must start no further threads in it.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}

# Processor time that a Linux container may use in each period: "200000 100000" means two processors.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")

# Bytes of memory that it may use, or "max".
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


def usable_processors() -> int:
    """Returns how many processors this process may use or, if the system does not limit it, how many there are."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, _QUOTA.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # There is no such file, or no limit in it.
        return count
    return max(1, min(count, -(-quota // period)))


def usable_memory() -> int:
    """Returns the most bytes of memory that this process may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(_MEMORY_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):  # There is no such file, or no limit in it.
        return total


class Ready(NamedTuple):
    """A ready result, in place of an argument of `Workers.map`."""

    result: Any


class Workers:
    """Some processes that compute functions; with one, this process does. Use it in a `with` block.

    A process starts when no other is free for an argument, and all are killed at the end of the block: wait for results
    inside it.

    Attributes:
        count: number of processes.
    """

    def __init__(self, count: int, *, advice: str = ""):
        """Starts none yet; the advice is for a process killed by the system."""
        self.count, self._advice = count, advice
        self._threads = ThreadPoolExecutor(count) if count > 1 else None
        self._of_thread = threading.local()
        self._lock = threading.Lock()
        self._started: list[_Worker] | None = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Kills the processes, even if they compute."""
        with self._lock:
            started, self._started = self._started or [], None
        for worker in started:
            worker.process.kill()
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        for worker in started:
            worker.close()

    def map(self, function: Callable[[T], R], arguments: Iterable[T | Ready]) -> Generator[R, None, None]:
        """Yields the results of a function in the order of its arguments; all of them must be picklable.

        Enough arguments are taken ahead to keep the processes busy. An error, of the function or of the iterator of
        arguments, is raised in its place, after all earlier results.
        """
        if self._threads is None:
            for each in arguments:
                yield each.result if isinstance(each, Ready) else function(each)
            return
        waiting: deque[Future[R]] = deque()
        try:
            for future in self._futures(self._threads, function, arguments):
                waiting.append(future)
                while len(waiting) > 2 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # The caller takes no more results.
                future.cancel()

    def _futures(
        self, threads: ThreadPoolExecutor, function: Callable[[T], R], arguments: Iterable[T | Ready]
    ) -> Iterator[Future[R]]:
        """Yields a future for each result; the last may have an error of the iterator of arguments."""
        pickled = pickle.dumps(function, pickle.HIGHEST_PROTOCOL)
        try:
            for each in arguments:
                future = Future()
                if isinstance(each, Ready):
                    future.set_result(each.result)
                else:
                    future = threads.submit(self._compute, pickled, pickle.dumps(each, pickle.HIGHEST_PROTOCOL))
                yield future
        except Exception as error:
            future = Future()
            future.set_exception(error)
            yield future

    def _compute(self, function: bytes, argument: bytes) -> Any:
        """Returns the result of a function; runs in a thread."""
        worker = getattr(self._of_thread, "worker", None) or self._start()
        try:
            worker.pipe.send_bytes(b"" if worker.function is function else function)
            worker.pipe.send_bytes(argument)
            worker.function = function
            answer = worker.pipe.recv_bytes()
        except (EOFError, OSError) as lost:
            raise UserError(f"a worker process {worker.end(self._advice)}") from lost
        result, error = pickle.loads(answer)
        if error is not None:
            raise error
        return result

    def _start(self) -> "_Worker":
        """Starts the process of this thread."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # For this thread, and the process that it starts.
        with self._lock:
            if self._started is None:
                raise CancelledError
            self._of_thread.worker = _Worker()
            self._started.append(self._of_thread.worker)
        return self._of_thread.worker


class _Worker:
    """A worker process, and its connection to this one.

    Attributes:
        function: the last one sent to it, pickled.
    """

    def __init__(self):
        self.function = b""
        path = [os.path.join(_STARTED_IN, each) for each in sys.path]
        program = _SERVE.format(root=ascii(os.fspath(_ROOT)), path=ascii(path))
        # As multiprocessing does: -X utf8, -O, -W and the like hold for what a worker computes too.
        flags = subprocess._args_from_interpreter_flags()  # pyright: ignore[reportAttributeAccessIssue]
        self.pipe, theirs = Pipe()
        self._errors = tempfile.TemporaryFile("w+b")  # noqa: SIM115  Read when the process has ended, and closed then.
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, *flags, "-c", program],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={**os.environ, **_ONE_THREAD},
            )

    def end(self, advice: str) -> str:
        """Waits for the end of the process after its pipe closed; returns how it ended, and what to do."""
        status = self.process.wait()
        if status < 0:
            memory = ", as the system does where memory runs out" if status == -signal.SIGKILL else ""
            return f"was killed by {signal.Signals(-status).name}{memory}{advice and '; '}{advice}"
        self._errors.seek(0)
        last_line = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        return f"ended with status {status}{last_line and f' ({last_line:.200})'}"

    def close(self) -> None:
        """Waits for the end of the process, and closes its pipes."""
        self.process.wait()
        self.pipe.close()
        self._errors.close()


def serve() -> None:
    """In a worker, computes calls from a pipe, its standard input, until that is closed.

    A call is a function, or nothing for the one before, and its argument; the answer is the result and the error.
    """
    pipe = Connection(os.dup(sys.__stdin__.fileno() if sys.__stdin__ else 0))
    received: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def receive() -> None:
        try:
            while True:
                received.put(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # In the middle of a computation: nobody waits for it.
        finally:
            os._exit(1)  # As without memory: else both processes would wait for each other.

    threading.Thread(target=receive, daemon=True).start()
    function: Any = None
    while True:
        new_function, argument = received.get(), received.get()
        try:
            function = pickle.loads(new_function) if new_function else function
            answer = pickle.dumps((function(pickle.loads(argument)), None), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            answer = _pickled(error)
        del argument
        pipe.send_bytes(answer)


def _pickled(error: Exception) -> bytes:
    """Returns a worker's answer with an error, with its traceback if it is a bug."""
    if not isinstance(error, (UserError, OSError)):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        answer = pickle.dumps((None, error))
        pickle.loads(answer)  # Some can be pickled but not unpickled.
        return answer
    except Exception:
        return pickle.dumps((None, RuntimeError("".join(traceback.format_exception(error)))))
