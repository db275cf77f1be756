"""Screens many changes of one parent in few runs.

Each run turns on about half of the changes, by a two-level design, so that all runs count for every change. This
decides nothing: `jaxformer ablate` then confirms the best changes, one at a time, on other seeds. `--plan` prints which
effects can be found, and when one change at a time is better. Finished runs are used: the same command resumes.

The study is a file in experiments/studies/ that assigns a `Screening` to STUDY.
"""

import argparse
import contextlib
import functools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.ablation.again import describe_again, make_again
from jaxformer.ablation.checks import check_runs
from jaxformer.ablation.command_line import add_run_options
from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.finished_runs import final_bits_per_byte, seed_folders
from jaxformer.ablation.run_study import describe_costs
from jaxformer.ablation.screening import (
    describe_runs,
    make_follow_up,
    plan_screening,
    read_result,
    refuse_diverged,
    resolve_rows,
    resolve_variants,
    screening_jobs,
)
from jaxformer.ablation.study import estimate_seconds
from jaxformer.ablation.study_file import load_screening
from jaxformer.ablation.training_jobs import device_hours, not_over, run_to_results
from jaxformer.config import require
from jaxformer.host.command import Parser, command
from jaxformer.host.console import print_line, print_notice, print_wrapped
from jaxformer.host.docstrings import docstring
from jaxformer.host.files import write_json
from jaxformer.jobs.dashboard import seconds_until_over
from jaxformer.report.screening import describe_follow_up, describe_plan, describe_result, effects_table


@command
def main(arguments: list[str]) -> int:
    """Screens the changes of a study; returns the exit status."""
    options = _parse(arguments)
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        record = _screen(options)
    if options.json:
        print_line(json.dumps(record))
    return 0


def _screen(options: argparse.Namespace) -> dict[str, Any]:
    """Plans or runs a screening and prints it; returns its record."""
    screening, runs = load_screening(options.study), options.runs
    rows, (parent, *variants) = resolve_rows(screening), resolve_variants(screening)
    checks = {"allow": parse_allowed(options.allow), "retrain": options.retrain, "parallel": options.parallel}
    checked = check_runs(functools.partial(plan_screening, screening), runs, prepare=not options.plan, **checks)
    jobs, record = screening_jobs(screening, rows, runs, checked.seconds), describe_runs(screening, rows)
    hours = device_hours(jobs)
    require(
        hours <= options.hours or not not_over(jobs),
        f"the runs of this screening take about {hours:.2f} device hours, more than --hours ({options.hours:g}): give "
        "more hours, or screen fewer changes or seeds",
    )
    if options.plan:
        print_notice(describe_again(checked.earlier))
    else:
        make_again(checked.earlier)
        refuse_diverged(screening, rows, runs)
    waiting = not_over(jobs)
    print_line(describe_costs(waiting, options.parallel, options.price))
    known = _noise(runs / parent.name), device_hours(jobs[:1]), options.hours
    for sentence in describe_plan(screening, parent, variants, *known):
        print_wrapped(sentence, indent=0)
    if options.plan:
        seconds = seconds_until_over((job.estimated_seconds for job in waiting), options.parallel)
        to_go = {"device_hours_to_go": device_hours(waiting), "seconds_to_go": seconds}
        return {**record, "runs_to_go": len(waiting), **to_go}
    for number in range(screening.seeds):  # The first seed shows which changes diverge.
        ours = jobs[number * len(rows) : (number + 1) * len(rows)]
        run_to_results(ours, parallel=options.parallel, price_per_hour=options.price)
        refuse_diverged(screening, rows, runs)
    result = read_result(screening, rows, runs)
    seconds = estimate_seconds([parent, *rows, *variants], runs, checked.seconds)
    left = max(options.hours - device_hours(screening_jobs(screening, rows, runs, seconds)), 0.0)
    follow_up = make_follow_up(parent.name, result.survivors, runs, seconds, left)
    record |= {**result.record(), "confirm": follow_up and follow_up.record()}
    path = runs / parent.name / f"screening_{Path(options.study).stem}.json"
    write_json(path, record)
    print_line("\n".join(["", *effects_table(result), ""]))
    for sentence in (*describe_result(screening, parent.name, result), describe_follow_up(result, follow_up, left)):
        print_wrapped(sentence, indent=0)
    print_line(f"{path}")
    return record


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("jaxformer screen", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add("--study", required=True, metavar="NAME", help="the name of a file in experiments/studies/, or a path")
    text = "device hours for the screening and for the confirming study that it proposes at the end"
    add("--hours", type=float, default=math.inf, metavar="H", help=text)
    add("--parallel", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    add("--plan", action="store_true", help="print what can be found and what it costs, and exit")
    add("--retrain", action="store_true", help="set runs of other code, data or versions aside, and train them again")
    add("--price", type=float, metavar="PRICE", help="price of a device hour: costs are printed in money too")
    add("--json", action="store_true", help="print one JSON object, and nothing else")
    add_run_options(parser)
    options = parser.parse_args(arguments)
    require(options.hours > 0, f"--hours ({options.hours}) must be above 0")
    require(options.parallel >= 1, f"--parallel ({options.parallel}) must be at least 1")
    is_price = options.price is None or 0 <= options.price < math.inf
    require(is_price, f"--price ({options.price}) must be a price: a number that is not negative")
    return options


def _noise(folder: Path) -> float:
    """Returns the standard deviation over seeds of an experiment's finished runs; NaN with fewer than two."""
    known = [bits for path in seed_folders(folder) if (bits := final_bits_per_byte(path)) and math.isfinite(bits)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
