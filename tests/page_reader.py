"""Somebody who types in a folder what a page of the documentation says, and the variables that programs there have."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from copies import kill_group
from markdown_pages import ROOT, Block, blocks_of, commands_of
from printed_lines import missing_line
from quick_python import QuickPython
from small_package import SIZES, install

from jaxformer.ablation.judge import STATUS
from jaxformer.ablation.verdict import Word

# Of blocks that are executed, and of those that are only read.
EXECUTED, READ = {"console", "python"}, {"text", "json", "mermaid"}

LOADED = [f"jaxformer.commands.{path.stem}" for path in (ROOT / "jaxformer/commands").glob("[!_]*.py")]
LOADED = [*sorted(set(LOADED) - {"jaxformer.commands.harness"}), "matplotlib.pyplot", "networkx"]

# The exit statuses of `jaxformer judge`, which are no failures.
VERDICTS = set(STATUS.values()) - {STATUS[Word.NOT_COMPARED]}

# Executes the code that it is sent, and answers what that raised.
SESSION = """
import json, sys, traceback

def answer(text, to=open(int(sys.argv[1]), "w")):
    sys.stdout.flush()
    print(json.dumps(text), file=to, flush=True)

for line in sys.stdin:
    try:
        exec(compile(*json.loads(line), "exec"))
    except BaseException:
        answer(traceback.format_exc())
    else:
        answer("")
"""

# A program that a page must not start.
REFUSED = """#!/bin/sh
echo "$(basename "$0"): mark the block as one that is not run" >&2
exit 1
"""


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[dict[str, str]]:
    """Gives the variables of a reader who has installed the small package, and whose programs start at once.

    Args:
        folder: an empty one, for what is installed.
    """
    package = install(folder / "site")
    names = ("HOME", "LANG", "LC_ALL", "TMPDIR", "XLA_FLAGS")
    variables = {name: os.environ[name] for name in names if name in os.environ}
    variables |= {"PYTHONPATH": str(folder / "site"), "JAXFORMER_CACHE": str(folder / "cache")}
    variables |= {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    # Whoever would reach the network learns at once that there is none.
    variables |= {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    refusing = folder / "bin"
    refusing.mkdir()
    for name in ("pip", "git", "curl", "wget", "sbatch", "srun", "tensorboard", "mkdocs"):
        (refusing / name).write_text(REFUSED)
        (refusing / name).chmod(0o755)
    with QuickPython(variables | {"PATH": os.environ["PATH"]}, *LOADED) as python:
        variables["PATH"] = f"{python.programs}:{refusing}:/usr/bin:/bin"
        subprocess.run(SIZES.split(), cwd=package, env=variables, check=True, stdout=subprocess.DEVNULL)
        yield variables


class Reader:
    """Somebody who types in a folder what a page says: commands in one shell, and Python in one session.

    Args:
        environment: all variables.
        state: a folder for what the shell and the session remember from block to block.
    """

    def __init__(self, folder: Path, environment: dict[str, str], state: Path):
        self.folder, self.environment, self.state = folder, environment, state
        self._session = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._session:
            kill_group(self._session.pid)
            self._session.communicate()

    def do(self, block: Block) -> str:
        """Does what a block says; returns what that printed.

        Raises:
            Failed: a command has another exit status than 0, or the code raises.
        """
        if block.saved_as:
            path = self.folder / block.saved_as
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
            return ""
        return self._execute(block) if block.language == "python" else self._type(block)

    def _type(self, block: Block) -> str:
        lines = [f"cd '{self.folder}'", f"[ ! -f '{self.state}/shell' ] || . '{self.state}/shell'"]
        for number, command in commands_of(block.code):
            done = VERDICTS if command.startswith("jaxformer judge ") else {0}
            checked = f"case $status in {'|'.join(map(str, sorted(done)))}) ;; *)"
            lines += [command, f"status=$?; {checked} echo {block.line + number} >&3; exit $status;; esac"]
        lines += [f"{{ export -p; echo \"cd '$PWD'\"; }} > '{self.state}/shell'"]
        failed = self.state / "failed"
        with (self.state / "output").open("w+") as output, failed.open("w") as failing:
            shell = ["bash", "-c", 'exec 3>&"$0"; ' + "\n".join(lines), str(failing.fileno())]
            options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            options |= {"env": self.environment, "process_group": 0, "pass_fds": [failing.fileno()]}
            with subprocess.Popen(shell, **options) as process:
                try:
                    status = process.wait(timeout=900)
                except BaseException:
                    kill_group(process.pid)
                    raise
            output.seek(0)
            printed = output.read()
        if status:
            line = failed.read_text().strip() or block.line
            pytest.fail(f"{block.page}:{line}: exit status {status}\n{printed}", pytrace=False)
        return printed

    def _execute(self, block: Block) -> str:
        output = self.state / "session"
        if self._session is None:
            reading, writing = os.pipe()
            options = {"stdin": subprocess.PIPE, "pass_fds": [writing], "text": True}
            options |= {"env": self.environment, "cwd": self.folder, "process_group": 0}
            python = [self.environment["PATH"].split(":")[0] + "/python", "-c", SESSION, str(writing)]
            with output.open("w") as stdout:
                self._session = subprocess.Popen(python, stdout=stdout, **options)
            os.close(writing)
            self._answers = os.fdopen(reading)
        before = output.stat().st_size
        self._session.stdin.write(json.dumps([block.code, str(block)]) + "\n")
        self._session.stdin.flush()
        answer = json.loads(self._answers.readline() or '"the session ended"')
        if answer:
            pytest.fail(f"{block}: {answer}", pytrace=False)
        return output.read_bytes()[before:].decode()


def is_quoted(block: Block) -> bool:
    """Returns whether a block stands as it is in an experiment of the repository."""
    files = (ROOT / "experiments").rglob("*.py")
    return block.language == "python" and any(block.code in path.read_text(encoding="utf-8") for path in files)


def follow(page: str, reader: Reader) -> None:
    """Does what the blocks of a page say; what they print is what the blocks of text after them show.

    Raises:
        Failed: a block fails, or shows a line that was not printed.
    """
    printed = None
    for block in blocks_of(page):
        if block.language == "text" and printed is not None and not block.not_compared:
            missing = missing_line(block.code, printed.replace(f"{reader.folder}/", ""))
            if missing:
                message = f"{block} shows what was not printed:\n{missing}\nThis was printed:\n{printed}"
                pytest.fail(message, pytrace=False)
        is_done = block.language in EXECUTED and not block.not_run and not is_quoted(block)
        printed = reader.do(block) if is_done else None
        printed = None if block.saved_as else printed
