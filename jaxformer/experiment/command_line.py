"""The command line of `jaxformer train`, and what others share with it: an experiment and overrides of its fields."""

import argparse
import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
import typing
from pathlib import Path
from typing import Any

from jaxformer.config import describe_type, did_you_mean, require, require_one_of
from jaxformer.experiment.experiment import Experiment
from jaxformer.experiment.files import list_experiments, load_parts
from jaxformer.host.command import WIDTH, Parser
from jaxformer.host.console import print_line
from jaxformer.host.docstrings import docstring
from jaxformer.host.paths import expanded, local_path

# Column in which the explanations of the options of training begin.
_INDENT = 21


def parse_arguments(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns the options and the overrides `--section.field=value` by dotted path."""
    sections = [f"  {name:10}  {_first_clause(kind)}" for name, kind in _sections().items()]
    is_module = Path(sys.argv[0]).parts[-2:] == ("jaxformer", "train.py")
    parser = Parser(
        "python -m jaxformer.train" if is_module else "jaxformer train",
        "Trains an experiment, or resumes it where it stopped.",
        usage="%(prog)s --experiment=NAME [--SECTION.FIELD=VALUE ...]",
        epilog="\n".join(["sections, explained by --help=SECTION:", *sections]),
        add_help=False,
    )
    group = parser.add_argument_group()  # Without a title.
    add_experiment_options(group, f"{_first_experiments(WIDTH - _INDENT - 11)}, or a path")
    add = group.add_argument
    add("--workdir", type=local_path, metavar="DIR", help="run folder (default: runs/EXPERIMENT/seed_SEED)")
    add("--seed", type=int, default=0, metavar="N", help="seed of initialisation and data order (default: 0)")
    add("--print_config", action="store_true", help="print the resolved configuration and exit")
    add(
        "--plan",
        nargs="?",
        const="here",
        metavar="GPU",
        help="print size, memory and time, here or on an H100, and exit",
    )
    add("--help", action=_Help, nargs="?", const="", metavar="SECTION", help="explain the fields of a section")
    add("-h", action="help", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args(arguments)
    require(0 <= options.seed < 2**20, f"--seed ({options.seed}) must lie in [0, {2**20})")
    return options, parse_overrides(parser, options, rest)


def add_experiment_options(
    parser: argparse._ActionsContainer, names: str = "the name of a file in experiments/, or a path"
) -> None:
    """Adds `--experiment`, `--parent` and `--init_from`; `names` explains what the first takes."""
    parser.add_argument("--experiment", required=True, metavar="NAME", help=names)
    parser.add_argument(
        "--parent", default="", metavar="NAME", help="apply a variant to this parent instead of its own"
    )
    parser.add_argument(
        "--init_from",
        metavar="DIR",
        help="start from the weights of a run or Hugging Face folder",
    )
    add_code_option(parser, argparse.SUPPRESS)  # For `init_from` alone.


def add_code_option(
    parser: argparse._ActionsContainer, explained: str = "Python file of parts that the run was made with"
) -> None:
    """Adds `--code`, by which a file is run for the parts that stand in it."""
    parser.add_argument("--code", action=_Code, metavar="FILE", help=explained)


def parse_overrides(parser: Parser, options: argparse.Namespace, arguments: list[str]) -> dict[str, str]:
    """Returns the values of `--section.field=value` by dotted path, and that of `--init_from`.

    Args:
        parser: of the command; for an argument that it does not know, the error names the nearest that it does.
        options: what it knows, `init_from` among it.
        arguments: those that are none of its options.

    Raises:
        UserError: one of them is no override.
    """
    fields = (f"--{name}.{field.name}" for name, kind in _sections().items() for field in dataclasses.fields(kind))
    known = [*parser._option_string_actions, *fields]
    overrides = {} if options.init_from is None else {"init_from": options.init_from}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not (argument.startswith("--") and "." in name):
            parser.error(f"unknown argument {argument!r}{did_you_mean(name, known)}")
        require(bool(equals), f"--{name} needs a value: --{name}=VALUE")
        overrides[name] = value
    return overrides


class _Code(argparse.Action):
    """Runs a file, whose classes are then known to the process."""

    def __call__(self, parser, namespace, values, option_string=None):
        load_parts(expanded(str(values)))


class _Help(argparse.Action):
    """Prints the page of the command, of a section or of the experiments, and ends the process."""

    def __call__(self, parser, namespace, values, option_string=None):
        page = str(values)
        if not page:
            parser.print_help()
        else:
            require_one_of("--help", page, [*_sections(), "experiments"])
            names = textwrap.fill(", ".join(list_experiments()) or "none", WIDTH)
            print_line(names if page == "experiments" else describe_section(page))
        parser.exit()


def _sections() -> dict[str, Any]:
    """Returns the sections of an experiment by name."""
    return {name: kind for name, kind in typing.get_type_hints(Experiment).items() if dataclasses.is_dataclass(kind)}


def _first_clause(kind: type) -> str:
    """Returns the first clause of a class's docstring."""
    return docstring(kind).partition("\n")[0].partition(";")[0].removesuffix(".")


def _first_experiments(width: int) -> str:
    """Returns as many names of experiments as fit, and where all of them are."""
    names = list_experiments()
    return textwrap.shorten(", ".join(names) or "none", width, placeholder=f" ... ({len(names)}: --help=experiments)")


def describe_section(name: str) -> str:
    """Returns what a section's fields take, their defaults and what they mean."""
    kind = _sections()[name]
    declared, explained = typing.get_type_hints(kind, include_extras=True), field_docstrings(kind)
    lines = [f"--{name}.FIELD=VALUE", "", *textwrap.wrap(docstring(kind), WIDTH), ""]
    for field in dataclasses.fields(kind):
        default = field.default
        written = str(default).lower() if isinstance(default, bool) else repr(default)
        takes = f"{field.name}: {describe_type(declared[field.name])}"
        takes += "; no default" if default is dataclasses.MISSING else f"; default {written}"
        lines += textwrap.wrap(takes, WIDTH, initial_indent="  ", subsequent_indent="    ")
        lines += textwrap.wrap(
            explained.get(field.name, ""),
            WIDTH,
            initial_indent=" " * 6,
            subsequent_indent=" " * 6,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def field_docstrings(kind: type) -> dict[str, str]:
    """Returns the text below each field of a class, which Python does not keep, from its source."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    body = node.body if isinstance(node, ast.ClassDef) else []
    return {
        ast.unparse(field.target): inspect.cleandoc(str(text.value.value))
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
