"""The command line of `python -m jaxformer.train`: options, and overrides of any field."""

import argparse
import dataclasses
import inspect
import typing
from pathlib import Path

from jaxformer.config import did_you_mean, is_unicode, require
from jaxformer.experiment.experiment import Experiment
from jaxformer.experiment.files import list_experiments
from jaxformer.host.command import Parser


def parse_arguments(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns the options and the overrides `--section.field=value` by dotted path."""
    sections = typing.get_type_hints(Experiment)
    documented = "\n\n".join(
        f"--{name}.FIELD=VALUE\n{inspect.getdoc(kind)}"
        for name, kind in sections.items()
        if dataclasses.is_dataclass(kind)
    )
    parser = Parser(
        "python -m jaxformer.train",
        "Trains an experiment, or resumes it where it stopped.",
        epilog=f"experiments here: {', '.join(list_experiments()) or 'none'}\n\n{documented}",
    )
    parser.add_argument("--experiment", required=True, help="a file in experiments/, or a path to one")
    parser.add_argument("--parent", default="", help="ask a variant of this experiment instead of its own parent")
    parser.add_argument("--workdir", type=Path, help="run folder (default: runs/EXPERIMENT/seed_SEED)")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation and data order (default: 0)")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument(
        "--plan",
        nargs="?",
        const="here",
        metavar="GPU",
        help="print size, memory, disk and expected time, here or on a GPU such as H100, and exit",
    )
    for argument in arguments:
        require(is_unicode(argument), f"argument {argument!r} is not UTF-8")
    options, rest = parser.parse_known_args(arguments)
    require(0 <= options.seed < 2**20, f"--seed ({options.seed}) must lie in [0, {2**20})")
    return options, parse_overrides(rest, ["experiment", "parent", "workdir", "seed", "print_config", "plan", "help"])


def parse_overrides(arguments: list[str], known: list[str]) -> dict[str, str]:
    """Returns the values of `--section.field=value` by dotted path; for a misspelt option, the nearest known one."""
    overrides = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        require(
            argument.startswith("--") and "." in name,
            f"unknown argument {argument!r}{did_you_mean(name, known)}; see --help",
        )
        require(bool(equals), f"--{name} needs a value: --{name}=VALUE")
        overrides[name] = value
    return overrides
