"""Screens many changes of one parent in few runs.

Each run has about half of the changes on, by a two-level design, so that every run tells of every change. Nothing is
decided by it: what looks like an improvement is then asked by itself, by `jaxformer ablate`, on other seeds. `--plan`
says what can be found, and where one change at a time is the better way. Finished runs are used: the same command
resumes.

The study is a file in experiments/studies/ that assigns a `Screening` to STUDY.
"""

import math
import sys
from pathlib import Path

import numpy as np

from jaxformer.ablation.again import describe_again, make_again
from jaxformer.ablation.checks import check_screening
from jaxformer.ablation.command_line import add_run_options
from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.finished_runs import final_bits_per_byte, seed_folders
from jaxformer.ablation.records import to_json
from jaxformer.ablation.run_study import print_study_plan
from jaxformer.ablation.screening import (
    make_screening_jobs,
    read_screen,
    refuse_diverged,
    resolve_rows,
    resolve_variants,
)
from jaxformer.ablation.study import Jobs, load_screening
from jaxformer.ablation.training_jobs import run_to_results
from jaxformer.config import require
from jaxformer.host.command import Parser, command
from jaxformer.host.console import print_line, print_notice, print_wrapped
from jaxformer.host.docstrings import docstring
from jaxformer.host.files import write_json
from jaxformer.report.screening import describe_plan, describe_screen, screening_table


@command
def main(arguments: list[str]) -> int:
    """Screens the changes of a study; returns the exit status."""
    parser = Parser("jaxformer screen", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add("--study", required=True, metavar="NAME", help="the name of a file in experiments/studies/, or a path")
    add("--parallel", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    add("--plan", action="store_true", help="print what can be found and what it costs, and exit")
    add("--retrain", action="store_true", help="set runs of other code, data or versions aside, and train them again")
    add("--price", type=float, metavar="PRICE", help="price of a device hour: costs are printed in money too")
    add_run_options(parser)
    options = parser.parse_args(arguments)
    require(options.parallel >= 1, f"--parallel ({options.parallel}) must be at least 1")
    is_price = options.price is None or 0 <= options.price < math.inf
    require(is_price, f"--price ({options.price}) must be a price: a number that is not negative")
    screening, runs = load_screening(options.study), options.runs
    rows = resolve_rows(screening)
    checks = {"allow": parse_allowed(options.allow), "retrain": options.retrain, "parallel": options.parallel}
    checked = check_screening(screening, runs, prepare=not options.plan, **checks)
    if options.plan:
        print_notice(describe_again(checked.earlier))
    else:
        make_again(checked.earlier)
        refuse_diverged(screening, rows, runs)
    jobs = make_screening_jobs(screening, rows, runs, checked.seconds)
    print_study_plan(Jobs(jobs, []), options.parallel, options.price)
    for sentence in describe_plan(screening, resolve_variants(screening)[1:], _noise(runs / screening.parent)):
        print_wrapped(sentence, indent=0)
    if options.plan:
        return 0
    for number in range(screening.seeds):  # A change that diverges is seen, and named, on the first seed.
        ours = jobs[number * len(rows) : (number + 1) * len(rows)]
        run_to_results(ours, parallel=options.parallel, price_per_hour=options.price)
        refuse_diverged(screening, rows, runs)
    found = read_screen(screening, rows, runs)
    path = runs / screening.parent / f"screening_{Path(options.study).stem}.json"
    write_json(path, {name: to_json(value) for name, value in found._asdict().items()})
    print_line("\n".join(["", *screening_table(found), ""]))
    for sentence in describe_screen(found):
        print_wrapped(sentence, indent=0)
    print_line(f"{path}")
    return 0


def _noise(folder: Path) -> float:
    """Returns the standard deviation over its seeds of an experiment's finished runs; NaN with fewer than two."""
    known = [bits for path in seed_folders(folder) if (bits := final_bits_per_byte(path)) and math.isfinite(bits)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
