"""The command line of `jaxformer train`, and its shared part: an experiment and overrides of its fields."""

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

from jaxformer.config import describe_type, require, require_one_of
from jaxformer.experiment.customary import suggest
from jaxformer.experiment.experiment import Experiment
from jaxformer.experiment.files import list_experiments, load_parts
from jaxformer.experiment.resolution import resolve
from jaxformer.host.command import WIDTH, Parser
from jaxformer.host.console import print_line
from jaxformer.host.docstrings import docstring
from jaxformer.host.paths import expanded, local_path

# Column at which explanations of training options begin, and the indent of a field's explanation.
_INDENT, _BELOW = 21, " " * 6


def parse_arguments(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns the options and the overrides `--section.field=value` by dotted path."""
    names = [f"  {name:10}  {_first_clause(kind)}" for name, kind in sections().items()]
    is_module = Path(sys.argv[0]).parts[-2:] == ("jaxformer", "train.py")
    parser = Parser(
        "python -m jaxformer.train" if is_module else "jaxformer train",
        None,
        usage="%(prog)s --experiment=NAME [--SECTION.FIELD=VALUE ...]",
        epilog="\n".join(names),
        add_help=False,
    )
    group = parser.add_argument_group()  # Without a title.
    add_experiment_options(group, f"{_first_experiments(WIDTH - _INDENT - 11)}, or a path", is_required=False)
    add = group.add_argument
    add("--resume", type=local_path, metavar="RUN", help="resume a run; with --extend_to=STEPS beyond its end")
    add("--extend_to", type=int, metavar="STEPS", help=argparse.SUPPRESS)
    add("--workdir", type=local_path, metavar="DIR", help="run folder (default: runs/NAME/seed_SEED)")
    add("--seed", type=int, metavar="N", help="seed of initialisation and data order (default: 0)")
    add("--print_config", action="store_true", help="print the resolved configuration and exit")
    add(
        "--plan",
        nargs="?",
        const="here",
        metavar="GPU",
        help=argparse.SUPPRESS,  # As `jaxformer plan`.
    )
    add("--profile", metavar="A:B", help="trace steps A to B, and print the slowest kernels")
    add("--help", action=_Help, nargs="?", const="", metavar="SECTION", help="explain the fields of a section:")
    add("-h", dest="help", action=_Help, nargs="?", const="", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args(arguments)
    if options.help is not None:
        _print_help(parser, options, rest)
        parser.exit()
    if (options.experiment is None) == (options.resume is None):
        parser.error("give --experiment=NAME to start a run, or --resume=RUN to resume one")
    names = ("parent", "seed", "init_from", "name", "question", *(("workdir",) if options.extend_to is None else ()))
    is_of_run = [name for name in names if getattr(options, name) is not None]
    require(
        not (options.resume and is_of_run),
        f"--{' and --'.join(is_of_run)}: a resumed run keeps its own; leave it out with --resume",
    )
    lacks_run = options.extend_to is not None and options.resume is None
    require(not lacks_run, "--extend_to needs --resume=RUN, the run to extend")
    options.seed = options.seed or 0
    require(0 <= options.seed < 2**20, f"--seed ({options.seed}) must lie in [0, {2**20})")
    profile = {"training.profile": options.profile} if options.profile is not None else {}
    return options, profile | parse_overrides(parser, options, rest)


def add_experiment_options(
    parser: argparse._ActionsContainer,
    names: str = "the name of a file in experiments/, or a path",
    *,
    is_required: bool = True,
) -> None:
    """Adds `--experiment`, `--parent`, `--init_from`, `--name` and `--question`; `names` explains the first."""
    parser.add_argument("--experiment", required=is_required, metavar="NAME", help=names)
    of_parent = "apply a variant to this parent instead of its own"
    parser.add_argument("--parent", metavar="NAME", help=of_parent if is_required else argparse.SUPPRESS)
    parser.add_argument(
        "--init_from",
        metavar="DIR",
        help="start from the weights of a run or Hugging Face folder",
    )
    parser.add_argument("--name", metavar="NAME", help="name of the run and its folder (default: the experiment's)")
    parser.add_argument("--question", metavar="TEXT", help="the question of the run (default: the experiment's)")
    add_code_option(parser, argparse.SUPPRESS)  # For `init_from` alone.


def add_code_option(
    parser: argparse._ActionsContainer, explained: str = "Python file of parts that the run was made with"
) -> None:
    """Adds `--code`, which runs a file for the parts in it."""
    parser.add_argument("--code", action=_Code, metavar="FILE", help=explained)


def parse_overrides(parser: Parser, options: argparse.Namespace, arguments: list[str]) -> dict[str, str]:
    """Returns the values of `--section.field=value` by dotted path, and of `--init_from` and the like.

    Args:
        parser: of the command; the error for an unknown argument names the nearest known one.
        options: the parsed options, including those of `add_experiment_options`.
        arguments: the remaining ones.

    Raises:
        UserError: one of them is no override.
    """
    fields = (f"--{name}.{field.name}" for name, kind in sections().items() for field in dataclasses.fields(kind))
    known = [*parser._option_string_actions, *fields]
    given = {name: getattr(options, name) for name in ("init_from", "name", "question")}
    overrides = {name: value for name, value in given.items() if value is not None}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not (argument.startswith("--") and "." in name):
            parser.error(f"unknown argument {argument!r}{suggest(name, known)}")
        require(bool(equals), f"--{name} needs a value: --{name}=VALUE")
        overrides[name] = value
    return overrides


class _Code(argparse.Action):
    """Runs a file, so that the process knows its classes."""

    def __call__(self, parser, namespace, values, option_string=None):
        load_parts(expanded(str(values)))


class _Help(argparse.Action):
    """Stores which page to print; no other option is then required."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.help = values
        for action in parser._actions:
            action.required = False


def _print_help(parser: Parser, options: argparse.Namespace, rest: list[str]) -> None:
    """Prints the page of the command, of a section, with the values of an experiment, or of the experiments."""
    if not options.help:
        parser.print_help()
        return
    require_one_of("--help", options.help, [*sections(), "experiments"])
    if options.help == "experiments":
        print_line(textwrap.fill(", ".join(list_experiments()) or "none", WIDTH))
        return
    overrides = parse_overrides(parser, options, rest)
    experiment = (
        resolve(options.experiment, overrides, parent=options.parent).experiment if options.experiment else None
    )
    print_line(describe_section(options.help, experiment))


def sections() -> dict[str, Any]:
    """Returns the sections of an experiment by name."""
    return {name: kind for name, kind in typing.get_type_hints(Experiment).items() if dataclasses.is_dataclass(kind)}


def _classes(kind: Any) -> list[type]:
    """Returns the dataclasses that an annotation names, without sections."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return [] if kind in sections().values() else [kind]
    return [one for each in typing.get_args(kind) for one in _classes(each)]


def _first_clause(kind: type) -> str:
    """Returns the first clause of a class's docstring."""
    return docstring(kind).partition("\n")[0].partition(";")[0].removesuffix(".")


def _first_experiments(width: int) -> str:
    """Returns as many names of experiments as fit, and how to list all."""
    names = list_experiments()
    return textwrap.shorten(", ".join(names) or "none", width, placeholder=f" ... ({len(names)}: --help=experiments)")


def describe_section(name: str, experiment: Experiment | None = None) -> str:
    """Returns a section's fields: types, defaults, an experiment's different values, and what they mean."""
    kind = sections()[name]
    lines = [f"--{name}.FIELD=VALUE", "", *textwrap.wrap(docstring(kind), WIDTH), ""]
    lines += _describe_fields(kind, getattr(experiment, name, None), getattr(experiment, "name", ""))
    if classes := [*dict.fromkeys(one for each in typing.get_type_hints(kind).values() for one in _classes(each))]:
        width = max(len(each.__name__) for each in classes) + 4
        lines += ["", "classes for objects in an experiment file:"]
        for each in classes:
            text = f"  {each.__name__:{width - 2}}{_first_clause(each)}"
            lines += textwrap.wrap(text, WIDTH, subsequent_indent=" " * width)
    return "\n".join(lines)


def _describe_fields(kind: type, config: Any, owner: str, prefix: str = "", *, briefly: bool = False) -> list[str]:
    """Returns the lines about the fields of a class, and about the fields of objects in them.

    Args:
        config: of the class, or None for none.
        owner: name of its experiment.
        prefix: of the names of its fields.
        briefly: leaves out their meaning, and those at their default.
    """
    declared, explained, lines = typing.get_type_hints(kind, include_extras=True), field_docstrings(kind), []
    for field in dataclasses.fields(kind):
        path, default, value = prefix + field.name, field.default, getattr(config, field.name, field.default)
        takes = f"{path}: {describe_type(declared[field.name])}"
        takes += "; no default" if default is dataclasses.MISSING else f"; default {_written(default)}"
        takes += f"; {owner} has {_written(value)}" if value != default else ""
        meaning = "" if briefly else explained.get(field.name, "")
        if value != default or not briefly:
            lines += textwrap.wrap(takes, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
        lines += textwrap.wrap(meaning, WIDTH, initial_indent=_BELOW, subsequent_indent=_BELOW, break_on_hyphens=False)
        objects, met = value if isinstance(value, tuple) else (value,), {kind}
        for i, each in enumerate(objects):
            if dataclasses.is_dataclass(each):
                inside = f"{path}.{i}." if objects is value else f"{path}."
                lines += _describe_fields(type(each), each, owner, inside, briefly=type(each) in met)
                met.add(type(each))
    return lines


def _written(value: Any) -> str:
    """Returns a value as the page of a section shows it; for an object its class, as its fields follow."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_written, value))})"
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    return str(value).lower() if value is None or isinstance(value, bool) else repr(value)


def field_docstrings(kind: type) -> dict[str, str]:
    """Returns the text below each field of a class from its source, since Python does not keep it."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    body = node.body if isinstance(node, ast.ClassDef) else []
    return {
        ast.unparse(field.target): inspect.cleandoc(str(text.value.value))
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
