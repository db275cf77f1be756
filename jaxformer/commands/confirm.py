"""Confirms a promoted variant, once.

Trains the missing runs of the new parent and of the one before it, on the new parent's seeds, which its next study uses
too. Validates both on documents that no verdict has read, and answers whether the gain holds. The answer is appended to
RUNS/decisions.jsonl, and later calls print it again. The same command resumes what was stopped.
"""

import functools
import sys

from jaxformer.ablation.again import describe_again, make_again
from jaxformer.ablation.checks import check_runs
from jaxformer.ablation.command_line import add_run_options
from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.confirmation import confirm, confirmation_jobs, find_answer, plan_confirmation
from jaxformer.ablation.run_study import print_study_plan
from jaxformer.ablation.study import Jobs, Study, plan_study
from jaxformer.ablation.training_jobs import run_to_results
from jaxformer.config import require
from jaxformer.experiment.resolution import resolve
from jaxformer.host.command import Parser, command
from jaxformer.host.console import print_line, print_notice
from jaxformer.host.docstrings import docstring


@command
def main(arguments: list[str]) -> int:
    """Confirms a promoted variant; returns the exit status."""
    parser = Parser("jaxformer confirm", docstring(sys.modules[__name__]))
    add = parser.add_argument
    add("experiment", metavar="NAME", help="the promoted variant, by name")
    add("--seeds", type=int, default=5, metavar="N", help="seeds of each arm (default: 5)")
    add("--parallel", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    add("--plan", action="store_true", help="print the runs that are left and what they cost, and exit")
    add("--retrain", action="store_true", help="set runs of other code, data or versions aside, and train them again")
    add("--price", type=float, metavar="PRICE", help="price of a device hour: costs are printed in money too")
    add_run_options(parser)
    options = parser.parse_args(arguments)
    require(2 <= options.seeds <= 100, f"--seeds ({options.seeds}) must lie in [2, 100]")
    require(options.parallel >= 1, f"--parallel ({options.parallel}) must be at least 1")
    allow, promoted = parse_allowed(options.allow), resolve(options.experiment)
    line, when = find_answer(promoted, options.runs), ""
    if line:
        when = f" (answered {line['time']}, once)"
    else:
        confirmation = plan_confirmation(promoted, options.seeds, options.runs)
        study = Study(parent=confirmation.own_parent.name, variants=(promoted.name,))
        jobs = confirmation_jobs(confirmation, options.runs)
        checks = {"allow": allow, "retrain": options.retrain, "prepare": not options.plan}
        checked = check_runs(functools.partial(plan_study, study, jobs=jobs), options.runs, **checks)
        jobs = confirmation_jobs(confirmation, options.runs, checked.seconds)
        print_study_plan(Jobs(jobs, []), options.parallel, options.price)
        if options.plan:
            print_notice(describe_again(checked.earlier))
            return 0
        make_again(checked.earlier)
        run_to_results(jobs, parallel=options.parallel)
        line = confirm(confirmation, options.runs, allow=allow)
    print_line(f"{promoted.name}, {line['variant']}: {line['answer']}: {line['reason']}{when}")
    return 0
