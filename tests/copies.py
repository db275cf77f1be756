"""Commands in copies of a process that has loaded the package: most of what a short command takes is loading."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

# For each line that it reads, a copy of it runs a command in a group of its own, with an empty standard input and with
# signals that do what they do by default; once that holds, the copy prints its number.
_LOADED = """
import gc, importlib, json, os, signal, sys
from jaxformer.__main__ import run
from jaxformer.host.signals import SIGNALS
from jaxformer.run.identity import code_digest, evaluation_code_digest

code_digest(), evaluation_code_digest()  # They are cached, so that no copy computes them.
for name in sys.argv[1:]:
    importlib.import_module(name)
# What they read of the environment is set for each command.
assert not {"huggingface_hub", "matplotlib"} & set(sys.modules)
gc.freeze()  # No copy looks through what was loaded, and copies its pages by that.

for line in sys.stdin:
    words, before, folder, environment, seconds, *outputs = json.loads(line)
    if (copy := os.fork()) == 0:
        os.setpgid(0, 0)
        signal.alarm(seconds)
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        print(os.getpid(), flush=True)
        os.chdir(folder)
        os.environ.update(environment)
        for path, number in ((os.devnull, 0), *zip(outputs, (1, 2))):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["jaxformer", *words]
        exec(before, {})
        run(words)
    print(os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    """A process that ended: its exit status, and what it wrote to standard output and standard error."""

    status: int
    out: str
    err: str


def kill_group(process: int) -> None:
    """Kills what is left of the group of a process that leads one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # The latter for zombies, on macOS.
        os.killpg(process, signal.SIGKILL)


class Copies:
    """Runs commands as `jaxformer WORD...` does, one at a time, until its block ends.

    Args:
        environment: all variables; those that are read while the package is loaded are the same for all commands.
        modules: that are loaded beside `jaxformer.train`.
    """

    def __init__(self, environment: Mapping[str, str], *modules: str):
        self._folder = tempfile.TemporaryDirectory()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", _LOADED, "jaxformer.train", *modules]
        self._process = subprocess.Popen(command, env=dict(environment), **pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._process.communicate()  # Which ends with its input.
        self._folder.cleanup()

    def run(
        self,
        words,
        folder: Path,
        environment: Mapping[str, str],
        timeout: int = 120,
        before: str = "",
        meanwhile: Callable[[int], object] | None = None,
    ) -> Ended:
        """Runs a command in a folder, with variables that are set beside the others.

        Args:
            before: Python code that is run before the command.
            meanwhile: called while the command runs, with the number of its process, which leads a group of its own.

        Raises:
            TimeoutExpired: it took so many seconds.
            RuntimeError: the process whose copies run the commands has died.
        """
        outputs = [f"{self._folder.name}/{name}" for name in ("out", "err")]
        request = [[os.fsdecode(word) for word in words], before, str(folder), dict(environment), timeout, *outputs]
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        process = status = None
        try:
            process = self._answer()
            if meanwhile:
                meanwhile(process)
            status = self._answer()
            if status == -signal.SIGALRM:
                raise subprocess.TimeoutExpired(words, timeout)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # Ctrl-C in a terminal ends the loaded process as well.
                kill_group(process or self._answer())
                if status is None:
                    self._answer()
            raise
        return Ended(status, *(Path(path).read_bytes().decode(errors="backslashreplace") for path in outputs))

    def _answer(self) -> int:
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the loaded process ended with {self._process.wait()}")
        return int(line)
