"""Compares runs side by side.

Prints how their configurations and validation losses differ, and whether the difference is evidence. Losses are paired
by document if the runs validate on the same ones. Writes a page with their curves. All are compared with the first run:

  jaxformer compare runs/baseline/seed_0 runs/swiglu/seed_0
"""

import hashlib
import sys
from pathlib import Path

from jaxformer.ablation.side_by_side import contrast_runs, read_shown
from jaxformer.config import UserError, require
from jaxformer.host.command import Parser, command
from jaxformer.host.console import output_columns, print_line
from jaxformer.host.docstrings import docstring
from jaxformer.host.files import write_whole
from jaxformer.host.paths import local_path
from jaxformer.report.side_by_side import comparison_page, comparison_text

# If the names of the runs take more bytes, the name of the page has their digest; a file system takes 255.
_LONGEST_NAME = 200


@command
def main(arguments: list[str]) -> int:
    """Compares runs side by side; returns the exit status."""
    parser = Parser("jaxformer compare", docstring(sys.modules[__name__]))
    parser.add_argument("runs", nargs="+", type=local_path, metavar="RUN", help="folders of runs, finished or not")
    text = "where the page is written (default: compare_RUNS.html beside the first experiment's runs)"
    parser.add_argument("--page", type=local_path, metavar="FILE", help=text)
    options = parser.parse_args(arguments)
    folders = [path.resolve() for path in options.runs]
    require(len({*folders}) > 1, "give at least two runs to compare")
    runs = [read_shown(path) for path in options.runs]
    contrasts = contrast_runs(runs)
    print_line(comparison_text(runs, contrasts, output_columns()))
    names = "_".join(f"{folder.parent.name}_{folder.name}" for folder in folders)
    if len(names.encode()) > _LONGEST_NAME:
        names = hashlib.sha256(names.encode()).hexdigest()[:12]
    page: Path = options.page or options.runs[0].parent / f"compare_{names}.html"
    try:
        write_whole(page, comparison_page(runs, contrasts).encode())
    except OSError as error:
        raise UserError(f"{page}: {error.strerror}; choose another --page") from error
    print_line(f"\ncurves: {page}")
    return 0
