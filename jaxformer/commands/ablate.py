"""Runs a study: `jaxformer ablate --study=NAME [--parallel=N] [--plan]`.

Every run is an ordinary command of its own, `python -m jaxformer.train ...`: one that crashes harms no other, and what
is finished is skipped, so that the same command goes on wherever it was stopped. Instead of a file, a study can be
given as --parent=NAME --variants=A,B --seeds=N. At the end stands what was decided; `jaxformer report` draws it.
"""

import os
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # The runs need the device.

from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.run_study import estimate_runs, print_study_plan, run_jobs
from jaxformer.ablation.study import choose_study, make_jobs
from jaxformer.config import require
from jaxformer.host.command import Parser, command
from jaxformer.host.console import print_line
from jaxformer.jobs.launch import launch_local, launch_submitit
from jaxformer.jobs.queue import State
from jaxformer.report.text import decision_table


@command
def main(arguments: list[str]) -> int:
    """Runs a study and prints what it decided; returns the exit status."""
    parser = Parser("jaxformer ablate", __doc__)
    parser.add_argument("--study", metavar="NAME", help="a file in experiments/studies/, or a path to one")
    parser.add_argument("--parent", help="in place of a file: the experiment that is changed")
    parser.add_argument("--variants", help="and its variants, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="of each experiment (default: 3)")
    parser.add_argument("--parent_seeds", type=int, help="of the parent, if more: its noise is better known then")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--plan", action="store_true", help="print what is to be run and what it costs, and exit")
    parser.add_argument("--stop_worse", action="store_true", help="end variants early that are clearly worse")
    parser.add_argument("--allow", default="", help="compare in spite of such differences: code, versions, device, ...")
    parser.add_argument("--price", type=float, help="of a device hour, to tell costs in money")
    parser.add_argument("--slurm", metavar="KEY=VALUE,...", help="submit to Slurm, with these parameters of submitit")
    options = parser.parse_args(arguments)
    require(options.parallel >= 1, f"--parallel ({options.parallel}) must be at least 1")
    seeds = {"seeds": options.seeds, "parent_seeds": max(options.seeds, options.parent_seeds or 0)}
    study = choose_study(options.study, options.parent, options.variants, **seeds)
    allow = parse_allowed(options.allow)
    jobs = make_jobs(study, options.runs, estimate_runs(study, options.runs))
    print_study_plan(jobs, options.parallel, options.price)
    if options.plan:
        return 0
    launch = launch_local
    if options.slurm is not None:
        launch = launch_submitit(options.runs / "submitit", _parameters(options.slurm))
    statuses = run_jobs(
        study, jobs, launch, parallel=options.parallel, price_per_hour=options.price, stop_worse=options.stop_worse
    )
    print_line(decision_table(judge_study(study, options.runs, allow=allow)))
    return 1 if any(status.state in (State.FAILED, State.REFUSED) for status in statuses) else 0


def _parameters(text: str) -> dict[str, str | int]:
    pairs = [pair.partition("=")[::2] for pair in text.split(",") if pair]
    return {key: int(value) if value.isdigit() else value for key, value in pairs}
