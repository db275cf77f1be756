"""Runs a study and prints what it decided.

Each run is a process of its own, `python -m jaxformer.train ...`, so that one that crashes harms no other. Finished
runs are skipped: the same command resumes a study that was stopped. A study is a file, or a parent and its variants:

  jaxformer ablate --parent=NAME --variants=A,B --seeds=N

A study can be a chain: changes tried in turn, each on top of those that were kept before it.

To see which of its changes a promoted experiment's gain comes from, leave out each in turn:

  jaxformer ablate --leave_one_out=NAME --seeds=N

`jaxformer report` draws the result.
"""

import argparse
import functools
import math
import sys
from pathlib import Path

from jaxformer.ablation.again import describe_again, make_again
from jaxformer.ablation.chain import Chain, run_chain
from jaxformer.ablation.checks import check_runs
from jaxformer.ablation.command_line import add_study_options, chosen_study_or_chain
from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.comparison import Comparison
from jaxformer.ablation.finished_runs import has_diverged
from jaxformer.ablation.outcome import Outcome, judge_study
from jaxformer.ablation.run_study import (
    describe_failures,
    print_study_plan,
    run_jobs,
)
from jaxformer.ablation.study import Study, make_jobs, plan_study
from jaxformer.ablation.study_clocks import clocks_to_come, forget_clocks, measure_clocks
from jaxformer.ablation.verdict import Word
from jaxformer.config import UserError, require
from jaxformer.host.command import Parser, command
from jaxformer.host.console import output_columns, print_line, print_notice, printable
from jaxformer.host.docstrings import docstring
from jaxformer.jobs.launch import launch_local, launch_submitit
from jaxformer.jobs.queue import State, Status
from jaxformer.report.text import decision_table


@command
def main(arguments: list[str]) -> int:
    """Runs a study and prints what it decided; returns the exit status."""
    options = _parse(arguments)
    seeds = {"seeds": options.seeds, "parent_seeds": max(options.seeds, options.parent_seeds or 0)}
    study = chosen_study_or_chain(options, **seeds)
    return _run_chain(study, options) if isinstance(study, Chain) else int(bool(_ablate(study, options)[0]))


def _run_chain(chain: Chain, options: argparse.Namespace) -> int:
    """Runs the questions of a chain in turn; returns the exit status."""
    require(not options.plan, "a chain's runs depend on what it keeps: plan one question with --parent and --variants")
    failed = False

    def ask(study: Study) -> Comparison | None:
        nonlocal failed
        failures, outcome = _ablate(study, options)
        failed |= bool(failures)
        found = outcome and outcome.comparisons[0]
        # A crashed run leaves the question open; a diverged run may answer it.
        has_crashed = any(not has_diverged(status.job.workdir) for status in failures)
        return None if has_crashed and found and found.verdict.word is Word.UNDECIDED else found

    name, last = Path(options.study).stem, chain.parent
    for answer in run_chain(chain, name, options.runs, ask):
        last = answer.kept or answer.parent
        became = f"kept, as {answer.kept}" if answer.kept else f"not kept: {answer.parent} stays"
        print_line(f"{printable(answer.variant)}: {became}\n")
    print_line(f"The chain ends with {last}. `jaxformer report --all` draws how it got there.")
    return 1 if failed else 0


def _ablate(study: Study, options: argparse.Namespace) -> tuple[list[Status], Outcome | None]:
    """Runs a study and prints what it decided; returns the runs that failed, and the outcome if it was judged."""
    allow = parse_allowed(options.allow)
    # Runs on a cluster have other devices than this machine, and their data are prepared there.
    is_here = options.slurm is None
    ignored, prepare = allow if is_here else (*allow, "device"), is_here and not options.plan
    parallel = options.parallel if is_here else 1
    checks = {"allow": ignored, "retrain": options.retrain, "prepare": prepare, "parallel": parallel}
    checked = check_runs(functools.partial(plan_study, study), options.runs, **checks)
    if options.plan:
        print_notice(describe_again(checked.earlier))
    else:
        make_again(checked.earlier, on_a_cluster=not is_here)
    jobs = make_jobs(study, options.runs, checked.seconds)
    is_timed, again = options.clock != "off" and is_here, options.clock == "again"
    clocks = clocks_to_come(study, options.runs, checked.seconds, again=again) if is_timed else []
    print_study_plan(jobs, options.parallel, options.price, clocks)
    if options.plan:
        return [], None
    launch = launch_local
    if options.slurm is not None:
        launch = launch_submitit(options.runs / "submitit", _parameters(options.slurm))
    shown = {"parallel": options.parallel, "price_per_hour": options.price, "stop_worse": options.stop_worse}
    statuses = run_jobs(study, options.runs, checked.seconds, launch, **shown)
    failures, outcome = describe_failures(statuses), None
    try:
        if again and is_timed:
            forget_clocks(study, options.runs)
        outcome = judge_study(study, options.runs, allow=allow, measure_clocks=measure_clocks if is_timed else None)
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
    return [status for status in statuses if status.state in (State.FAILED, State.REFUSED)], outcome


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("jaxformer ablate", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add_study_options(parser)
    add("--seeds", type=int, default=3, metavar="N", help="with --parent: seeds of each experiment (default: 3)")
    add(
        "--parent_seeds",
        type=int,
        metavar="N",
        help="with --parent: seeds of the parent, at least --seeds; more of them measure its seed noise better",
    )
    add("--parallel", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    add("--plan", action="store_true", help="print the runs that are left and what they cost, and exit")
    add("--retrain", action="store_true", help="set runs of other code, data or versions aside, and train them again")
    add("--stop_worse", action="store_true", help="stop the runs of a variant once it is clearly worse than its parent")
    add("--price", type=float, metavar="PRICE", help="price of a device hour: costs are printed in money too")
    add(
        "--clock",
        choices=("missing", "again", "off"),
        default="missing",
        help="the times per token that verdicts depend on: measure the missing ones, measure all again, or none "
        "(default: missing; with --slurm: off)",
    )
    add("--slurm", metavar="KEY=VALUE,...", help="submit the runs to Slurm, with these parameters of submitit")
    options = parser.parse_args(arguments)
    require(options.parallel >= 1, f"--parallel ({options.parallel}) must be at least 1")
    is_price = options.price is None or 0 <= options.price < math.inf
    require(is_price, f"--price ({options.price}) must be a price: a number that is not negative")
    return options


def _parameters(text: str) -> dict[str, str | int]:
    pairs = [pair.partition("=")[::2] for pair in text.split(",") if pair]
    return {key: int(value) if value.isdigit() else value for key, value in pairs}
