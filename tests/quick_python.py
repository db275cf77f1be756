"""Programs `python` and `jaxformer` that start at once: each start is a copy of a process that has loaded the package.

Most of what a short command takes is loading, and most of a short run is tracing, which the run before it did as well.
So runs are trained by one copy, one after the other, and each different run once. A folder with these programs comes
first on a `PATH`; a shell, a script or a queue of runs starts them as it would start any other, with files, variables,
folder, signals and status.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

_HERE = Path(__file__).parent


class QuickPython:
    """Programs for a `PATH`, until its block ends.

    Args:
        environment: all variables of the loaded process; what is read while it loads is the same for all its copies.
        modules: that are loaded.

    Attributes:
        programs: the folder that holds `python`, `python3` and `jaxformer`.
    """

    def __init__(self, environment: Mapping[str, str], *modules: str):
        self._folder = tempfile.TemporaryDirectory()  # Of a short name, since that of a socket is bounded.
        self.programs = Path(self._folder.name, "bin")
        self.programs.mkdir()
        address = f"{self._folder.name}/socket"
        text = f"#!{sys.executable} -IS\n{(_HERE / 'quick_client.py').read_text()}"
        before = 'ADDRESS, PYTHON, FLAGS, LOADED = "", "", None, {}\n'
        assert before in text
        of_jax = {name: value for name, value in environment.items() if name.startswith("JAX_")}
        values = address, sys.executable, environment.get("XLA_FLAGS"), of_jax
        text = text.replace(before, f"ADDRESS, PYTHON, FLAGS, LOADED = {values!r}\n")
        for name in ("python", "python3", "jaxformer"):
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)
        server = [sys.executable, _HERE / "quick_server.py", self.programs / "python", address]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([*server, *modules], env=dict(environment), **pipes)
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the loaded process ended with {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._process.communicate()  # Which ends with its input.
        self._folder.cleanup()
