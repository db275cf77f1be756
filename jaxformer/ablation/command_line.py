"""Options that give a command its study, its runs, and the differences to allow between them."""

import argparse
from pathlib import Path

from jaxformer.ablation.chain import Chain
from jaxformer.ablation.comparability import ALLOWABLE
from jaxformer.ablation.leave_one_out import leave_one_out
from jaxformer.ablation.study import Study
from jaxformer.ablation.study_file import choose_study, no_chain
from jaxformer.config import require
from jaxformer.host.paths import local_path


def add_study_options(parser: argparse.ArgumentParser, *, compares: bool = True) -> None:
    """Adds `--study`, or `--parent` and `--variants` in its place, and `--runs`.

    With `compares`, also `--leave_one_out`, in place of a study, and `--allow`.
    """
    add = parser.add_argument
    add("--study", metavar="NAME", help="the name of a file in experiments/studies/, or a path")
    add("--parent", metavar="NAME", help="instead of --study: the experiment that the variants change")
    add("--variants", metavar="NAME,...", help="with --parent: the variants, separated by commas")
    if compares:
        text = "instead of --study: a promoted experiment; each change that it keeps is left out in turn"
        add("--leave_one_out", metavar="NAME", help=text)
    add_run_options(parser, compares=compares)


def add_run_options(parser: argparse.ArgumentParser, *, compares: bool = True) -> None:
    """Adds `--runs` and, with `compares`, `--allow`."""
    add = parser.add_argument
    add(
        "--runs", type=local_path, default=Path("runs"), metavar="DIR", help="folder of all run folders (default: runs)"
    )
    if compares:
        text = f"compare runs despite these kinds of differences: {', '.join(ALLOWABLE)}"
        add("--allow", default="", metavar="KIND,...", help=text)


def chosen_study(options: argparse.Namespace) -> Study:
    """Returns the study that the options of `add_study_options` name.

    Raises:
        UserError: as of `chosen_study_or_chain`, or it is a chain.
    """
    return no_chain(chosen_study_or_chain(options))


def chosen_study_or_chain(
    options: argparse.Namespace, *, seeds: int = Study.seeds, parent_seeds: int = Study.parent_seeds
) -> Study | Chain:
    """Returns the study or the chain that the options of `add_study_options` name.

    Raises:
        UserError: as of `choose_study` and `leave_one_out`, or both are given.
    """
    if not options.leave_one_out:
        return choose_study(options.study, options.parent, options.variants, seeds=seeds, parent_seeds=parent_seeds)
    is_alone = not (options.study or options.parent or options.variants)
    require(is_alone, "give --leave_one_out alone, or --study, or --parent and --variants")
    return leave_one_out(options.leave_one_out, seeds, parent_seeds)
