"""A run of an experiment, as a job of a queue, and a queue of such jobs that must all have a result."""

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
    """Runs that are to be made, and of what."""

    experiments: Sequence[Resolved]
    jobs: Sequence[Job]
    ended: Sequence[Job] = ()
    """Runs of the experiments that have a result, with which those will be compared."""
    times_each: bool = False
    """Whether a step of each experiment is timed, where none of its runs is finished; else the first one's, and those
    of the others follow by their operations.
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
        seconds: that it takes, estimated; NaN where that is not known.
        name: under which it is shown; that of the experiment by default.
        needs: folders of the runs that must be seen to train before; its own among them counts for nothing.
        arguments: by which the command line has the experiment without its overrides; its name by default.

    Raises:
        UserError: it takes several processes.
    """
    processes, devices = one.experiment.mesh.processes, one.experiment.mesh.devices
    require(processes == 1, f"{one.name}: mesh.processes = {processes}, and a queue starts one for each run")
    workdir = runs / one.name / f"seed_{seed}"
    arguments = [*(arguments or [f"--experiment={one.name.partition(AD_HOC)[0]}"])]
    arguments += [f"--seed={seed}", f"--workdir={typed(workdir)}"]
    arguments += [f"--{path}={after}" for path, (_, after) in one.lineage.overrides.items()]
    steps, others = one.experiment.training.steps, tuple(path for path in dict.fromkeys(needs) if path != workdir)
    return Job(name or one.name, seed, tuple(arguments), workdir, steps, seconds, others, devices)


def experiment_of(job: Job) -> str:
    """Returns the name of the experiment of a job, without the mark of fields that its command line sets."""
    return job.workdir.parent.name.partition(AD_HOC)[0]


def not_over(jobs: Sequence[Job]) -> list[Job]:
    """Returns the jobs that are to be trained yet."""
    return [job for job in jobs if state_on_disk(job.workdir)[0] not in OVER]


def device_hours(jobs: Sequence[Job]) -> float:
    """Returns the device hours that jobs are estimated to take."""
    return sum(job.estimated_seconds * job.devices for job in jobs) / 3600


def run_to_results(jobs: Sequence[Job], *, parallel: int = 1, price_per_hour: float | None = None) -> None:
    """Runs jobs, showing what they do.

    Raises:
        TrainingFailure: one ended otherwise than finished or by divergence.
    """
    board, statuses = Dashboard(), []
    with Queue(jobs, parallel=parallel) as queue:
        for statuses in queue.watch():
            board.draw(statuses, parallel=parallel, price_per_hour=price_per_hour)
    for status in statuses:
        if status.state is not State.FINISHED and not has_diverged(status.job.workdir):
            raise TrainingFailure(f"{status.job} {status.state.value}: {status.note}; see {status.job.log}")
