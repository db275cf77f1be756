"""Runs a study and prints what it decided.

Each run is a process of its own, `python -m jaxformer.train ...`, so that one that crashes harms no other. Finished
runs are skipped: the same command resumes a study that was stopped. A study is a file, or a parent and its variants:

  jaxformer ablate --parent=NAME --variants=A,B --seeds=N

`jaxformer report` draws the result.
"""

import math
import sys

from jaxformer.ablation.command_line import add_study_options
from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.run_study import describe_failures, estimate_runs, print_study_plan, run_jobs
from jaxformer.ablation.study import choose_study, make_jobs
from jaxformer.config import UserError, require
from jaxformer.host.command import Parser, command
from jaxformer.host.console import output_columns, print_line, print_notice
from jaxformer.host.docstrings import docstring
from jaxformer.jobs.launch import launch_local, launch_submitit
from jaxformer.jobs.queue import State
from jaxformer.report.text import decision_table


@command
def main(arguments: list[str]) -> int:
    """Runs a study and prints what it decided; returns the exit status."""
    parser = Parser("jaxformer ablate", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add_study_options(parser)
    add("--seeds", type=int, default=3, metavar="N", help="with --parent: seeds of each experiment (default: 3)")
    add(
        "--parent_seeds",
        type=int,
        metavar="N",
        help="with --parent: seeds of the parent, at least --seeds; more make its noise better known",
    )
    add("--parallel", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    add("--plan", action="store_true", help="print the runs that are left and what they cost, and exit")
    add("--stop_worse", action="store_true", help="stop the runs of a variant once it is clearly worse than its parent")
    add("--price", type=float, metavar="PRICE", help="price of a device hour: costs are printed in money too")
    add("--slurm", metavar="KEY=VALUE,...", help="submit the runs to Slurm, with these parameters of submitit")
    options = parser.parse_args(arguments)
    require(options.parallel >= 1, f"--parallel ({options.parallel}) must be at least 1")
    is_price = options.price is None or 0 <= options.price < math.inf
    require(is_price, f"--price ({options.price}) must be a price: a number that is not negative")
    seeds = {"seeds": options.seeds, "parent_seeds": max(options.seeds, options.parent_seeds or 0)}
    study = choose_study(options.study, options.parent, options.variants, **seeds)
    allow = parse_allowed(options.allow)
    seconds = estimate_runs(study, options.runs)
    print_study_plan(make_jobs(study, options.runs, seconds), options.parallel, options.price)
    if options.plan:
        return 0
    launch = launch_local
    if options.slurm is not None:
        launch = launch_submitit(options.runs / "submitit", _parameters(options.slurm))
    shown = {"parallel": options.parallel, "price_per_hour": options.price}
    statuses = run_jobs(study, options.runs, seconds, launch, **shown, stop_worse=options.stop_worse)
    failures = describe_failures(statuses)
    try:
        outcome = judge_study(study, options.runs, allow=allow)
    except UserError as error:
        if not failures:
            raise
        print_notice(str(error))
    else:
        print_line(decision_table(outcome, output_columns()))
        for line in outcome.unread:
            print_notice(f"not compared: {line}")
    for line in failures:
        print_notice(line)
    return 1 if any(status.state in (State.FAILED, State.REFUSED) for status in statuses) else 0


def _parameters(text: str) -> dict[str, str | int]:
    pairs = [pair.partition("=")[::2] for pair in text.split(",") if pair]
    return {key: int(value) if value.isdigit() else value for key, value in pairs}
