"""The installed program: `jaxformer COMMAND [ARGUMENTS]`."""

import ast
import importlib
import importlib.metadata
import os
from pathlib import Path
from types import ModuleType

from jaxformer.config import UserError, did_you_mean
from jaxformer.host.command import command
from jaxformer.host.console import print_line, show_status
from jaxformer.host.signals import ended_by_signals

_FOLDER = Path(__file__).parent
_FOUND = {path.stem.replace("_", "-") for path in _FOLDER.glob("[a-z]*.py") if path != Path(__file__)}
_FIRST = (
    "train",
    "plan",
    "prepare",
    "evaluate",
    "generate",
    "tune",
    "compare",
    "ablate",
    "report",
    "screen",
    "promote",
    "confirm",
    "judge",
    "ladder",
    "forecast",
    "transfer",
    "next",
    "export",
    "replay-step",
    "harness",
)
# In the order in which a user meets them.
COMMANDS = (*_FIRST, *sorted(_FOUND.difference(_FIRST)))

# Environment variables set before a command is imported, unless the user has set them. A module must not do so itself:
# a notebook that imports `jaxformer.commands.report` keeps the GPU.
ENVIRONMENT = {
    "prepare": {"JAX_PLATFORMS": "cpu"},  # Nothing is computed on a device.
    "export": {"JAX_PLATFORMS": "cpu"},  # It is compared in the CPU's float32.
    "compare": {"JAX_PLATFORMS": "cpu"},  # A run may be training on the device.
    "report": {"JAX_PLATFORMS": "cpu"},  # As above.
    "forecast": {"JAX_PLATFORMS": "cpu"},  # As above.
    "promote": {"JAX_PLATFORMS": "cpu"},  # As above.
    "judge": {"JAX_PLATFORMS": "cpu"},  # As above.
    "transfer": {"JAX_PLATFORMS": "cpu"},  # As above.
    "next": {"JAX_PLATFORMS": "cpu"},  # As above.
    "evaluate": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # A run may be training on the same device.
    "generate": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # As above.
    "tune": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # The runs need the device.
    "ladder": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # As above.
    "ablate": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # As above.
    "confirm": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # As above.
    "screen": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # As above.
}


def describe() -> str:
    """Returns what `jaxformer --help` prints: each command with the first line of its module, none of them imported."""
    lines = []
    for name in COMMANDS:
        module = ast.parse((_FOLDER / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8"))
        first_line, *_ = (ast.get_docstring(module) or "").split("\n")
        lines.append(f"  {name:12} {first_line.removesuffix('.')}")
    return "\n".join(
        [
            "usage: jaxformer COMMAND [ARGUMENTS]",
            "",
            *lines,
            "",
            "`jaxformer COMMAND --help` explains a command.",
            "Start with `jaxformer train --experiment=baseline`.",
        ]
    )


@command
def main(arguments: list[str]) -> int:
    """Runs a command by its name; returns its exit status."""
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h", "help"):
        print_line(describe())
        return 0
    if name == "--version":
        print_line(f"jaxformer {importlib.metadata.version('jaxformer')}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}; see `jaxformer --help`")
    return _load(name).main(rest)


def _load(name: str) -> ModuleType:
    """Returns the module of a command, once its environment is set."""
    for variable, value in ENVIRONMENT.get(name, {}).items():
        os.environ.setdefault(variable, value)
    show_status(f"jaxformer {name} ...")  # Importing JAX alone takes seconds.
    with ended_by_signals():
        try:
            return importlib.import_module(f"jaxformer.commands.{name.replace('-', '_')}")
        except ValueError as error:  # JAX or Flax refuses a value in the environment.
            raise UserError(f"{error}; correct or unset it") from error
