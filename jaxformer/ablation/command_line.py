"""The options by which a command is given a study and its runs."""

import argparse
from pathlib import Path

from jaxformer.ablation.comparability import ALLOWABLE
from jaxformer.host.paths import local_path


def add_study_options(parser: argparse.ArgumentParser, *, compares: bool = True) -> None:
    """Adds `--study`, or `--parent` and `--variants` in its place, `--runs`, and for what compares runs `--allow`."""
    add = parser.add_argument
    add("--study", metavar="NAME", help="the name of a file in experiments/studies/, or a path")
    add("--parent", metavar="NAME", help="instead of --study: the experiment that the variants change")
    add("--variants", metavar="NAME,...", help="with --parent: the variants, separated by commas")
    add(
        "--runs", type=local_path, default=Path("runs"), metavar="DIR", help="folder of all run folders (default: runs)"
    )
    if compares:
        text = f"compare runs in spite of these kinds of differences: {', '.join(ALLOWABLE)}"
        add("--allow", default="", metavar="KIND,...", help=text)
