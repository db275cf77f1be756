"""Runs a study: `python tools/ablate.py --study=experiments/studies/laptop.py [--parallel=N] [--plan]`.

Every run is an ordinary command of its own, `python -m jaxformer.train ...`: one that crashes harms no other, and what
is finished is skipped, so that the same command goes on wherever it was stopped. Instead of a file, a study can be
given as --parent=NAME --variants=A,B --seeds=N. At the end stands what was decided; `tools/report.py` draws it.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # The runs need the device.

from jaxformer.ablation.comparability import parse_allowed
from jaxformer.ablation.early_stopping import clearly_worse, may_stop
from jaxformer.ablation.outcome import judge_study
from jaxformer.ablation.study import Study, choose_study, estimate_seconds, make_jobs, resolve_study
from jaxformer.config import UserError, require
from jaxformer.devices.device import choose_device
from jaxformer.experiment.variant import Lineage
from jaxformer.host.console import duration, note, say
from jaxformer.host.files import read_json
from jaxformer.host.signals import Stopped
from jaxformer.jobs.dashboard import Board
from jaxformer.jobs.launch import Job, launch_local, launch_submitit
from jaxformer.jobs.queue import OVER, Queue, State, Status, state_on_disk
from jaxformer.plan.estimate import estimate_run_seconds
from jaxformer.report.text import decision_table
from jaxformer.run.identity import check_kin
from jaxformer.run.metrics import training_losses


def look_ahead(study: Study, runs: Path) -> dict[str, float]:
    """Returns the seconds that a run of each experiment will take; refuses runs that belong to what has moved.

    A process of its own does it, which gives the device back.
    """
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_look_ahead, study, runs).result()


def _look_ahead(study: Study, runs: Path) -> dict[str, float]:
    resolved = resolve_study(study)
    choose_device(resolved[0].experiment.training.device)  # Before anything looks for devices.
    for one in resolved:
        check_kin(runs, one)
    is_known = any((runs / study.parent).glob("seed_*/summary.json"))
    return estimate_seconds(resolved, runs, None if is_known else estimate_run_seconds(resolved[0].experiment))


def print_plan(jobs: list[Job], parallel: int, price: float | None) -> None:
    """Prints what is to be run, and what it will cost."""
    waiting = [job for job in jobs if state_on_disk(job.workdir)[0] not in OVER]
    seconds = sum(job.estimated_seconds for job in waiting)
    for name in dict.fromkeys(job.name for job in jobs):
        ours = [job for job in jobs if job.name == name]
        todo = sum(job in waiting for job in ours)
        each = duration(ours[0].estimated_seconds)
        say(f"{name:40}  {len(ours)} seeds, {len(ours) - todo} over  {ours[0].steps:,} steps  {each} each")
    hours = sum(job.estimated_seconds * job.devices for job in waiting) / 3600
    costs = "" if price is None else f", price {hours * price:,.2f}"
    say(f"{len(waiting)} runs to go, {hours:.2f} device hours{costs}, over in about {duration(seconds / parallel)}")


def stop_what_is_worse(queue: Queue, statuses: list[Status], lineages: dict[str, Lineage]) -> None:
    """Ends variants, by name, whose paired training losses are clearly worse than their parent's."""
    finished = {(s.job.name, s.job.seed): s.job for s in statuses if s.state is State.FINISHED}
    for status in statuses:
        name, seed = status.job.name, status.job.seed
        lineage = lineages.get(name)
        if status.state is not State.RUNNING or lineage is None:
            continue
        if not may_stop({**lineage.change, **lineage.consequences}):
            continue
        parents = {s: job.workdir for (n, s), job in finished.items() if n == lineage.parents[0]}
        if seed in parents:
            ends = [read_json(folder / "summary.json")["validation/loss"] for folder in parents.values()]
            ours, theirs = training_losses(status.job.workdir), training_losses(parents[seed])
            if behind := clearly_worse(ours, theirs, ends, status.job.steps):
                for other in statuses:
                    if other.job.name == name:
                        queue.stop(other.job, str(behind))


def run(study: Study, jobs: list[Job], options: argparse.Namespace) -> int:
    """Runs the jobs, shows them, and tells what was decided; returns the exit status."""
    allow = parse_allowed(options.allow)
    lineages = {one.name: one.lineage for one in resolve_study(study)[1:] if len(one.parents) == 1}
    launch = launch_local
    if options.slurm is not None:
        pairs = [pair.partition("=")[::2] for pair in options.slurm.split(",") if pair]
        parameters = {key: int(value) if value.isdigit() else value for key, value in pairs}
        launch = launch_submitit(options.runs / "submitit", parameters)
    board, looked = Board(), time.monotonic()
    with Queue(jobs, parallel=options.parallel, launch=launch) as queue:
        for statuses in queue.watch():
            board.draw(statuses, parallel=options.parallel, price_per_hour=options.price)
            if options.stop_worse and time.monotonic() > looked + 10:
                stop_what_is_worse(queue, statuses, lineages)
                looked = time.monotonic()
    for status in statuses:
        if status.state in (State.FAILED, State.REFUSED):
            note(f"{status.job}: {status.note}")
    say(decision_table(judge_study(study, options.runs, allow=allow)))
    return 1 if any(status.state in (State.FAILED, State.REFUSED) for status in statuses) else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, help="a file that assigns a Study to STUDY")
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
    try:
        require(options.parallel >= 1, f"--parallel ({options.parallel}) must be at least 1")
        seeds = {"seeds": options.seeds, "parent_seeds": max(options.seeds, options.parent_seeds or 0)}
        study = choose_study(options.study, options.parent, options.variants, **seeds)
        jobs = make_jobs(study, options.runs, look_ahead(study, options.runs))
        print_plan(jobs, options.parallel, options.price)
        return 0 if options.plan else run(study, jobs, options)
    except (UserError, OSError) as error:
        note(f"ablate: {error}")
        return 2
    except Stopped as error:
        note(str(error))
        return 128 + error.number


if __name__ == "__main__":
    sys.exit(main())
