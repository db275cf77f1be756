"""The process of a `QuickPython`: it has loaded the package, and copies of it are what its programs start.

A copy is watched by a process of its own, which ends it when whoever asked for it is gone. One copy trains all runs. A
run is a function of its experiment and seed, so one that was trained before, in another folder, is copied.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path

# Streams stay when others take their place: they would close their numbers.
_replaced = []


def serve(address: str) -> None:
    """Starts a copy for each request, until standard input is closed."""
    listener, runs, trainer = listen(address), listen(f"{address}.runs"), 0
    print("ready", flush=True)
    while True:
        ended = {0}.union(*iter(ended_child, None))
        if trainer in ended and (trainer := os.fork()) == 0:
            listener.close()
            train(runs)
        ready, _, _ = select.select([listener, sys.stdin], [], [], 0.5)
        if sys.stdin in ready:
            break
        if listener not in ready:
            continue
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            runs.close()
            try:
                watch(connection)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        connection.close()
    os.kill(trainer, signal.SIGKILL)  # Whether it has ended or not, nobody has waited for it.


def ended_child() -> set[int] | None:
    """Waits for a process that has ended, and returns its number; None where there is none."""
    with contextlib.suppress(ChildProcessError):
        if number := os.waitpid(-1, os.WNOHANG)[0]:
            return {number}
    return None


def listen(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    return listener


def read(connection: socket.socket) -> tuple[list, list[int]]:
    """Returns a request and the files that came with it."""
    header, files, _, _ = socket.recv_fds(connection, 8, 253)
    size, data = int.from_bytes(header, "big"), b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return json.loads(data), files


def watch(connection: socket.socket) -> None:
    """Starts the copy of a request, tells its number, and then its exit status."""
    request, files = read(connection)
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking.fileno())
    if (copy := os.fork()) == 0:
        signal.set_wakeup_fd(-1)
        for each in (connection, woken, waking):
            each.close()
        run(*request, files)
    for number in files:
        os.close(number)
    connection.sendall(b"%d\n" % copy)
    if connection in select.select([connection, woken], [], [])[0]:
        os.kill(copy, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    with contextlib.suppress(OSError):  # Whoever asked may be gone.
        connection.sendall(b"%d\n" % status)


def run(arguments, folder, environment, numbers, affinity, files) -> None:
    """Runs what was asked for to the end of this process."""
    take(folder, environment, numbers, files)
    if affinity:
        os.sched_setaffinity(0, affinity)
    status = status_of(functools.partial(start, *arguments))
    atexit._run_exitfuncs()
    flush()
    os._exit(status)


def status_of(main) -> int:
    """Returns the exit status of a process that does what a function does."""
    try:
        return main() or 0
    except SystemExit as error:
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def train(listener: socket.socket) -> None:
    """Trains what is asked for, run after run: what is traced for one is there for the next."""
    experiment = importlib.import_module("jaxformer.experiment.experiment")
    # A traced step is that of an optimizer, which is made of functions: the same one for the same settings.
    experiment.make_optimizer = functools.cache(experiment.make_optimizer)
    main = importlib.import_module("jaxformer.commands.program").main
    nothing, kept_runs = os.open(os.devnull, os.O_RDWR), Path(sys.executable).parents[1] / "kept"
    while True:
        connection, _ = listener.accept()
        (arguments, folder, environment, numbers, _), files = read(connection)
        done = threading.Event()
        threading.Thread(target=end_with, args=(connection, done), daemon=True).start()
        connection.sendall(b"%d\n" % os.getpid())
        # Further numbers may be in use here, and runs have no further files.
        for number, file in zip(numbers, files, strict=True):
            if number > 2:
                os.close(file)
        kept = {number: file for number, file in zip(numbers, files, strict=True) if number <= 2}
        take(folder, environment, [*kept], [*kept.values()])
        words = [word for word in arguments if word not in ("-m", "jaxformer")]
        status = status_of(functools.partial(train_or_copy, words[1:], main, kept_runs))
        flush()
        for number in kept:  # They may be locked, or pipes that another reads to their end.
            os.dup2(nothing, number)
        done.set()
        with contextlib.suppress(OSError):  # Whoever asked may be gone by now.
            connection.sendall(b"%d\n" % status)
            connection.shutdown(socket.SHUT_RDWR)


def train_or_copy(words: list[str], main, kept: Path) -> int:
    """Trains a run, or copies the folder of one that was the same and repeats its output; returns the exit status.

    Args:
        words: the arguments of the command.
        main: the installed program.
        kept: where runs are kept for the next ones, and for a process that takes the place of this one: folders named
            by all that decided what a run is, each with what it printed and, below `folder`, the run in its place.
    """
    digest = hashlib.sha256(json.dumps(words).encode())
    for path in sorted(path for path in Path().rglob("*") if path.is_file() and path.parts[0] != "runs"):
        digest.update(f"\0{path}\0".encode() + path.read_bytes())
    found, same = finished(), kept / digest.hexdigest()
    if same.exists() and not any(place.exists() for place in finished(same / "folder")):
        shutil.copytree(same / "folder", ".", dirs_exist_ok=True)
        print((same / "printed").read_text(), end="")
        print("copied from a run that was the same")
        return 0
    with contextlib.redirect_stdout(Printed(sys.stdout)) as printed:
        status = main(["train", *words])
    new = finished() - found
    goes_on = any(word.startswith(("--init_from", "--resume")) for word in words)  # With what was trained before.
    if status == 0 and len(new) == 1 and not goes_on and not same.exists():
        kept.mkdir(exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=kept))
        (place,) = new
        shutil.copytree(place, making / "folder" / place)
        (making / "printed").write_text(printed.text)
        making.rename(same)
    return status


class Printed:
    """A stream that writes to another one, and remembers the text."""

    def __init__(self, stream):
        self.stream, self.text = stream, ""

    def write(self, text: str) -> int:
        self.text += text
        return self.stream.write(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def finished(folder: Path = Path()) -> set[Path]:
    """Returns the folders of finished runs below a folder, relative to it."""
    return {path.parent.relative_to(folder) for path in folder.glob("runs/*/*/summary.json")}


def end_with(connection: socket.socket, done: threading.Event) -> None:
    """Ends this process at once if whoever asked is gone before it is done; another takes its place."""
    with connection, contextlib.suppress(OSError):
        connection.recv(1)
    if not done.is_set():
        os._exit(1)


def take(folder: str, environment: dict[str, str], numbers: list[int], files: list[int]) -> None:
    """Gives this process the folder, variables and files of whoever asked, and signals that do what they do first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, 512) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(high, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)
    # Streams that there are remember what kind of file they were of.
    _replaced.extend((sys.__stdin__, sys.__stdout__, sys.__stderr__))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        mode, buffering = "w" if number else "r", 1 if number == 2 else -1
        stream = open(number, mode, buffering, encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


def flush() -> None:
    for each in (sys.stdout, sys.stderr):
        if not each.closed:
            each.flush()


def start(what: str, *rest: str) -> None:
    """Does what `python` does with these arguments: `-m MODULE`, `-c CODE` or a file, and those of that."""
    if what == "-m":
        sys.argv, sys.path[:0] = [*rest], [os.getcwd()]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [""]
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(module))
    else:
        sys.argv, sys.path[:0] = [what, *rest], [os.path.dirname(os.path.abspath(what))]
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    python, address, *names = sys.argv[1:]
    del sys.path[0]  # That of the tests.
    sys.executable = python  # Before what remembers it is loaded.
    multiprocessing.set_executable(python)
    for name in names:
        importlib.import_module(name)
    identity = importlib.import_module("jaxformer.run.identity")
    identity.code_digest(), identity.evaluation_code_digest()  # They are cached, so that no copy computes them.
    gc.freeze()  # No copy looks through what was loaded, and copies its pages by that.
    serve(address)
