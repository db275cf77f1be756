"""The installed program: `jaxformer COMMAND [ARGUMENTS]`."""

import ast
import importlib
import importlib.metadata
import signal
import sys
from pathlib import Path
from types import ModuleType

from jaxformer.config import UserError, did_you_mean
from jaxformer.host.command import command, flush_streams

_FOLDER = Path(__file__).parent
COMMANDS = tuple(sorted(path.stem.replace("_", "-") for path in _FOLDER.glob("[a-z]*.py") if path != Path(__file__)))


def describe() -> str:
    """Returns what `jaxformer --help` prints: each command with the first line of its module, none of them imported."""
    lines = []
    for name in COMMANDS:
        module = ast.parse((_FOLDER / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8"))
        lines.append(f"  {name:12} {(ast.get_docstring(module) or '').partition(':')[0]}")
    return "\n".join(
        [
            "usage: jaxformer COMMAND [ARGUMENTS]",
            "",
            *lines,
            "",
            "`jaxformer COMMAND --help` explains one. Start with `jaxformer train --experiment=baseline`.",
        ]
    )


@command
def main(arguments: list[str]) -> int:
    """Runs a command by its name; returns its exit status."""
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h", "help"):
        print(describe())
        return 0
    if name == "--version":
        print(f"jaxformer {importlib.metadata.version('jaxformer')}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}; see `jaxformer --help`")
    return _load(name).main(rest)


def _load(name: str) -> ModuleType:
    """Returns the module of a command. Ctrl-C ends the process as the system does meanwhile, without a traceback."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    module = importlib.import_module(f"jaxformer.commands.{name.replace('-', '_')}")
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)
    return module


def run() -> None:
    """Runs the command of this process, and ends the process with its status."""
    status = main()
    flush_streams()
    sys.exit(status)
