"""A run of an experiment as a job of a queue, and a queue of such jobs that must all give a result."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.ablation.finished_runs import has_diverged
from jaxformer.config import TrainingFailure, require
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.variant import AD_HOC
from jaxformer.host.paths import typed
from jaxformer.jobs.dashboard import Dashboard
from jaxformer.jobs.launch import Job
from jaxformer.jobs.queue import OVER, Queue, State, state_on_disk


class Planned(NamedTuple):
    """Planned runs, and their experiments."""

    experiments: Sequence[Resolved]
    jobs: Sequence[Job]
    ended: Sequence[Job] = ()
    """Runs of the experiments with a result, which the planned ones will be compared with."""
    times_each: bool = False
    """Whether a step of each experiment without a finished run is timed; else only the first one's, and the others are
    estimated from their operations.
    """


def make_job(
    one: Resolved,
    seed: int,
    runs: Path,
    seconds: float,
    *,
    name: str = "",
    needs: Sequence[Path] = (),
    arguments: Sequence[str] = (),
) -> Job:
    """Returns the run of an experiment on a seed, in its folder `runs/EXPERIMENT/seed_N`.

    Args:
        seconds: of the run, estimated; NaN if unknown.
        name: shown for it; by default the experiment's.
        needs: folders of runs that must train first; its own among them is ignored.
        arguments: of the command line for the experiment without its overrides; its name by default.

    Raises:
        UserError: it needs several processes.
    """
    processes, devices = one.experiment.mesh.processes, one.experiment.mesh.devices
    require(processes == 1, f"{one.name}: mesh.processes = {processes}, but a queue starts one process for each run")
    workdir = runs / one.name / f"seed_{seed}"
    arguments = [*(arguments or [f"--experiment={one.name.partition(AD_HOC)[0]}"])]
    arguments += [f"--seed={seed}", f"--workdir={typed(workdir)}"]
    arguments += [f"--{path}={after}" for path, (_, after) in one.lineage.overrides.items()]
    steps, others = one.experiment.training.steps, tuple(path for path in dict.fromkeys(needs) if path != workdir)
    return Job(name or one.name, seed, tuple(arguments), workdir, steps, seconds, others, devices)


def experiment_of(job: Job) -> str:
    """Returns the name of a job's experiment, without the mark of fields set by its command line."""
    return job.workdir.parent.name.partition(AD_HOC)[0]


def not_over(jobs: Sequence[Job]) -> list[Job]:
    """Returns the jobs that are not trained yet."""
    return [job for job in jobs if state_on_disk(job.workdir)[0] not in OVER]


def device_hours(jobs: Sequence[Job]) -> float:
    """Returns the estimated device hours of jobs."""
    return sum(job.estimated_seconds * job.devices for job in jobs) / 3600


def run_to_results(jobs: Sequence[Job], *, parallel: int = 1, price_per_hour: float | None = None) -> None:
    """Runs jobs, showing their progress.

    Raises:
        TrainingFailure: one ended neither finished nor by divergence.
    """
    board, statuses = Dashboard(), []
    with Queue(jobs, parallel=parallel) as queue:
        for statuses in queue.watch():
            board.draw(statuses, parallel=parallel, price_per_hour=price_per_hour)
    for status in statuses:
        if status.state is not State.FINISHED and not has_diverged(status.job.workdir):
            raise TrainingFailure(f"{status.job} {status.state.value}: {status.note}; see {status.job.log}")
