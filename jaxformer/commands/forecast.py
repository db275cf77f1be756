"""Forecasts the loss of a run, and scores earlier forecasts.

With --experiment, prints a forecast from the finished runs of its smaller sizes, and writes it to `forecast.json` in
the folders of its runs that have not begun; a run records the digest. Sizes differ only in fields of size, as those of
`jaxformer ladder` do. One page shows all forecasts of the folder of runs beside their results.
"""

import logging
import sys
from collections.abc import Collection
from pathlib import Path

from jaxformer.ablation.command_line import add_run_options
from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.forecast import forecast_runs, keep_outcomes, outcomes_of_deleted, read_forecasts
from jaxformer.config import require
from jaxformer.experiment.resolution import resolve
from jaxformer.host.command import Parser, command
from jaxformer.host.console import format_rows, output_columns, print_line, print_wrapped
from jaxformer.host.docstrings import docstring
from jaxformer.host.paths import local_path
from jaxformer.report.forecasts import (
    HEADINGS,
    Forecasts,
    describe_forecast,
    forecast_rows,
    summarise_forecasts,
)
from jaxformer.report.write import write_forecasts
from jaxformer.run.forecast import read_forecast


@command
def main(arguments: list[str]) -> int:
    """Forecasts a run, and reports all forecasts; returns the exit status."""
    parser = Parser("jaxformer forecast", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add("--experiment", metavar="NAME", help="the experiment whose runs are forecast")
    add("--seeds", type=int, default=1, metavar="N", help="runs to forecast, from its first seed on (default: 1)")
    add_run_options(parser)
    text = "folder of the page (default: RUNS/reports/forecasts)"
    add("--output", type=local_path, metavar="DIR", help=text)
    options = parser.parse_args(arguments)
    require(1 <= options.seeds <= 1000, f"--seeds ({options.seeds}) must lie in [1, 1000]")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # Without a home folder it prints where its fonts are.
    is_there = bool(options.experiment) or options.runs.is_dir()
    require(is_there, f"{options.runs}: there is no such folder of runs; name another by --runs")
    folder, allow = options.output or options.runs / "reports" / "forecasts", parse_allowed(options.allow)
    if options.experiment:
        _forecast(options.experiment, options.seeds, options.runs, allow)
    found = read_forecasts(options.runs)
    lines = keep_outcomes(options.runs, found)
    require(bool(found or lines), f"{options.runs}: no run was forecast; name one by --experiment")
    forecasts = Forecasts(tuple(found), outcomes_of_deleted(lines, found))
    print_line("\n".join(format_rows([[*HEADINGS], *forecast_rows(forecasts)], output_columns())))
    print_line(f"{summarise_forecasts(forecasts)}\n")
    print_line(f"{write_forecasts(forecasts, folder)}")
    return 0


def _forecast(name: str, seeds: int, runs: Path, allow: Collection[str]) -> None:
    target = resolve(name)
    folders = [runs / target.name / f"seed_{target.first_seed + number}" for number in range(seeds)]
    forecast_runs(target, [target.first_seed + number for number in range(seeds)], runs, allow)
    known = [found for folder in folders if (found := read_forecast(folder))]
    require(bool(known), f"{folders[0]}: the run has begun without a forecast; forecast a run before it begins")
    print_wrapped(f"{target.name}: {describe_forecast(known[-1])}\n", indent=2)
