"""The options by which a command is given a study, its runs, and what may differ between them."""

import argparse
from pathlib import Path

from jaxformer.ablation.comparability import ALLOWABLE
from jaxformer.host.paths import local_path


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--study`, or `--parent` and `--variants` in its place, `--runs` and `--allow`."""
    add = parser.add_argument
    add("--study", metavar="NAME", help="the name of a file in experiments/studies/, or a path")
    add("--parent", metavar="NAME", help="instead of --study: the experiment that the variants change")
    add("--variants", metavar="NAME,...", help="with --parent: the variants, separated by commas")
    add_comparison_options(parser)


def add_comparison_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--runs` and `--allow`."""
    add = parser.add_argument
    add(
        "--runs", type=local_path, default=Path("runs"), metavar="DIR", help="folder of all run folders (default: runs)"
    )
    kinds = ", ".join(ALLOWABLE)
    add("--allow", default="", metavar="KIND,...", help=f"compare runs in spite of these kinds of differences: {kinds}")
