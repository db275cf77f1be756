"""Trains an experiment at several sizes, with forecasts.

A size is a depth. The width grows with it, and the tokens with the parameters; docs/how_to/ladder.md has the rules for
batch size and learning rate. Each size is an ordinary experiment, NAME_dDEPTH, whose file is written to experiments/.
From the fourth size on, a forecast is written to the folders of its runs before they begin. Finished runs are used: the
same command resumes. `jaxformer forecast` shows the forecasts beside their results.
"""

import argparse
import functools
import itertools
import math
import shlex
import sys
from collections.abc import Collection
from pathlib import Path

from jaxformer.ablation.again import describe_again, make_again
from jaxformer.ablation.checks import check_runs
from jaxformer.ablation.command_line import add_run_options
from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.finished_runs import has_diverged
from jaxformer.ablation.forecast import TooFewSizes, forecast_runs, keep_outcomes, read_forecasts
from jaxformer.ablation.ladder import Ladder, Rung, check_rungs, make_rungs, plan_ladder, train_rung, write_rungs
from jaxformer.ablation.training_jobs import not_over
from jaxformer.config import UserError, require
from jaxformer.experiment.experiment import Experiment
from jaxformer.experiment.files import check_name
from jaxformer.experiment.resolution import resolve
from jaxformer.experiment.sizes import Rate, fit_rate, published_rate
from jaxformer.host.command import Parser, command
from jaxformer.host.console import format_duration, output_columns, print_line, print_notice, print_wrapped
from jaxformer.host.docstrings import docstring
from jaxformer.jobs.dashboard import seconds_until_over
from jaxformer.report.forecasts import describe_forecast, describe_outcome, ladder_table
from jaxformer.statistics.scaling_law import FEWEST_SIZES

# Compute of a size over that of the size below it; less shows little of a scaling law.
_FEWEST_TIMES = 2.0

_MOST_TOKENS = 1e6


@command
def main(arguments: list[str]) -> int:
    """Trains a ladder of sizes; returns the exit status."""
    options = _parse(arguments)
    ladder = _ladder(options)
    rungs, allow = make_rungs(ladder), parse_allowed(options.allow)
    check_rungs(ladder, rungs)
    if not options.plan:
        of_size = ("experiment", "sizes", "name", "rates", "tokens_per_parameter")
        words = [f"--{each}={value}" for each in of_size if (value := getattr(options, each))]
        for path in write_rungs(ladder, rungs, shlex.join(["jaxformer", "ladder", *words])):
            print_line(f"{path}")
    if options.write:
        return 0
    checks = {"allow": allow, "retrain": options.retrain, "prepare": not options.plan, "parallel": options.parallel}
    checked = check_runs(functools.partial(plan_ladder, ladder), options.runs, **checks)
    print_line("\n".join(ladder_table(rungs, checked.seconds, output_columns())))
    for smaller, larger in itertools.pairwise(rungs):
        if larger.compute < _FEWEST_TIMES * smaller.compute:
            times = f"{larger.compute / smaller.compute:.1f} x the compute of {smaller.name}"
            print_notice(f"{larger.name} takes {times}: too close to show a scaling law; leave one of them out")
    _print_time_left(rungs, checked.seconds, options.runs, options.parallel)
    if options.plan:
        print_notice(describe_again(checked.earlier))
        return 0
    make_again(checked.earlier)
    for number, rung in enumerate(rungs):
        _forecast(rung, number, options.runs, allow)
        train_rung(rung, options.runs, checked.seconds[rung.name], parallel=options.parallel)
        _print_outcomes(rung, options.runs)
    print_line("`jaxformer forecast` draws the scaling law, and the forecasts beside their results")
    return 0


def _print_time_left(rungs: list[Rung], seconds: dict[str, float], runs: Path, parallel: int) -> None:
    left = 0.0
    for rung in rungs:  # One size after the other.
        jobs = not_over(rung.jobs(runs, seconds[rung.name]))
        left += seconds_until_over((job.estimated_seconds for job in jobs), parallel)
    print_line(f"over in about {format_duration(left)}")


def _forecast(rung: Rung, number: int, runs: Path, allow: Collection[str]) -> None:
    """Writes and prints the forecast of the runs of a size; without a forecast they are trained anyway.

    Args:
        number: of smaller sizes in this ladder; nothing is printed while they are too few for a forecast.
    """
    try:
        for forecast in forecast_runs(rung.resolved, range(rung.seeds), runs, allow)[:1]:  # All are the same.
            print_wrapped(f"{rung.name}: {describe_forecast(forecast)}", indent=2)
    except UserError as error:
        if number >= FEWEST_SIZES or not isinstance(error, TooFewSizes):
            print_notice(f"no forecast of {error}")


def _print_outcomes(rung: Rung, runs: Path) -> None:
    """Prints which runs of a size diverged; prints and records the others' results beside their forecasts."""
    for job in rung.jobs(runs, math.nan):
        if has_diverged(job.workdir):
            print_notice(f"{job}: diverged, and left out of the scaling law; try lower learning rates with --rates")
    finished = [one for one in read_forecasts(runs) if one.experiment == rung.name and one.run]
    keep_outcomes(runs, finished)
    for one in finished:
        print_wrapped(f"{rung.name} seed {one.seed}: {describe_outcome(one)}", indent=2)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("jaxformer ladder", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add("--experiment", required=True, metavar="NAME", help="the experiment to scale")
    add("--sizes", required=True, metavar="DEPTH,...", help="the depths, in blocks, such as 2,3,4,5,7")
    add("--name", default="", metavar="NAME", help="what the names of the sizes begin with (default: the experiment's)")
    add("--seeds", default="3", metavar="N,...", help="runs of each size, smallest first, or of all sizes (default: 3)")
    add(
        "--rates",
        default="",
        metavar="DEPTH:RATE,...",
        help="learning rates tuned at two depths or more; all sizes follow the power law of compute through them "
        "(default: the experiment's own, times compute to the power of -0.125)",
    )
    add(
        "--tokens_per_parameter",
        type=float,
        metavar="N",
        help="training tokens per parameter (default: the experiment's)",
    )
    add("--parallel", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    add("--plan", action="store_true", help="print the sizes and what they take, and exit")
    add("--write", action="store_true", help="write the files of the sizes, and exit")
    add_run_options(parser)
    add("--retrain", action="store_true", help="keep runs of other code, data or versions aside, and train them anew")
    options = parser.parse_args(arguments)
    require(options.parallel >= 1, f"--parallel ({options.parallel}) must be at least 1")
    per_parameter = options.tokens_per_parameter
    require(not (options.plan and options.write), "give --plan or --write, not both")
    is_number = per_parameter is None or 0 < per_parameter <= _MOST_TOKENS
    require(is_number, f"--tokens_per_parameter ({per_parameter}) must be above 0 and at most {_MOST_TOKENS:g}")
    check_name(options.name or "NAME", "--name")
    return options


def _ladder(options: argparse.Namespace) -> Ladder:
    depths = _numbers("--sizes", options.sizes)
    require(len(set(depths)) == len(depths), f"--sizes={options.sizes} names a depth twice")
    seeds = _numbers("--seeds", options.seeds)
    seeds = seeds * len(depths) if len(seeds) == 1 else seeds
    require(len(seeds) == len(depths), f"--seeds={options.seeds} must have one number, or one for each of the sizes")
    by_depth = tuple(sorted(depths))
    base, tokens = resolve(options.experiment), options.tokens_per_parameter or 0.0
    rate = _rate(base.experiment, options.rates, tokens)
    return Ladder(options.experiment, options.name or base.name, by_depth, tuple(seeds), rate, tokens)


def _numbers(name: str, text: str) -> list[int]:
    numbers = [int(each) for each in text.split(",") if each.isdecimal()]
    is_whole = len(numbers) == len(text.split(",")) and all(1 <= each <= 1000 for each in numbers)
    require(is_whole, f"{name}={text} must be whole numbers from 1 to 1000, separated by commas")
    return numbers


def _rate(base: Experiment, text: str, tokens_per_parameter: float) -> Rate:
    """Returns the learning rate as a function of compute: through the rates given by depth, else as published."""
    if not text:
        return published_rate(base)
    tuned = {}
    for pair in text.split(","):
        depth, _, rate = pair.partition(":")
        try:
            tuned[int(depth)] = float(rate)
        except ValueError as error:
            raise UserError(f"--rates={text} must be DEPTH:RATE, separated by commas, such as 2:0.005") from error
        is_rate = int(depth) >= 1 and 1e-9 <= tuned[int(depth)] <= 1e3
        require(is_rate, f"--rates={text}: {pair} is no depth and learning rate from 1e-9 to 1e3")
    return fit_rate(base, tuned, tokens_per_parameter=tokens_per_parameter)
