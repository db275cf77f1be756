"""A study from its plan to its verdicts: its cost, its runs as a queue, and the early end of worse variants."""

import collections
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxformer.ablation.early_stopping import clearly_worse, may_stop, spread_of_differences
from jaxformer.ablation.finished_runs import has_diverged
from jaxformer.ablation.study import Jobs, Study, is_retuned, make_jobs, resolve_study
from jaxformer.ablation.training_jobs import device_hours, experiment_of, not_over
from jaxformer.config import UserError
from jaxformer.experiment.lineage import Lineage
from jaxformer.host.console import format_duration, print_line, print_wrapped
from jaxformer.host.files import read_json_or_empty
from jaxformer.jobs.dashboard import Dashboard, seconds_until_over
from jaxformer.jobs.launch import Job, Launch, launch_local
from jaxformer.jobs.queue import Queue, State, Status
from jaxformer.run.metrics import training_losses

# Seconds between two comparisons of the training losses of running jobs.
_COMPARE_EVERY = 10


def print_study_plan(study_jobs: Jobs, parallel: int, price: float | None, clocks: Sequence[float] = ()) -> None:
    """Prints the runs to train, and their cost.

    Args:
        clocks: the most seconds to measure the time per token of each variant that may need it.
    """
    jobs = [*study_jobs.now, *study_jobs.later]
    waiting = not_over(jobs)
    width = max((len(job.name) for job in jobs), default=0)
    for name in dict.fromkeys(job.name for job in jobs):
        ours = [job for job in jobs if job.name == name]
        todo = sum(job in waiting for job in ours)
        each = format_duration(ours[0].estimated_seconds)
        seeds = f"{len(ours)} seed{'s' * (len(ours) > 1)}, {len(ours) - todo} over"
        line = f"{name:{width}}  {seeds}  {ours[0].steps:,} steps  {each} each"
        print_wrapped(line, indent=4)
    print_line(describe_costs(waiting, parallel, price))
    if study_jobs.later:
        print_wrapped(
            "A variant that moves the best learning rate is compared with its parent each at its best rate, found by "
            "runs at three rates or more. The runs above suffice if the best rate so far stays the best.",
            indent=0,
        )
    if clocks:
        number, most = f"{len(clocks)} variant{'s' * (len(clocks) > 1)}", format_duration(sum(clocks))
        text = f"then the times per token that verdicts depend on, of at most {number}: up to {most}"
        print_wrapped(f"{text} on a quiet machine, plus compilation", indent=4)


def describe_costs(waiting: Sequence[Job], parallel: int, price: float | None) -> str:
    """Returns a line on the cost of jobs to train.

    Args:
        parallel: how many run at a time.
        price: of a device hour; None leaves it out.
    """
    hours = device_hours(waiting)
    costs = "" if price is None else f", price {hours * price:,.2f}"
    left = format_duration(seconds_until_over((job.estimated_seconds for job in waiting), parallel))
    return f"{len(waiting)} run{'s' * (len(waiting) != 1)} to go, {hours:.2f} device hours{costs}, over in about {left}"


def stop_what_is_worse(queue: Queue, statuses: list[Status], lineages: dict[str, Lineage]) -> None:
    """Stops variants, by name, whose paired training losses are clearly worse than their parent's."""
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
            siblings = {n for n, each in lineages.items() if each.parents[0] == lineage.parents[0]}
            ends = _last_validation_losses(finished, {lineage.parents[0], *siblings})
            spread = spread_of_differences(ends, lineage.parents[0], name)
            try:
                ours, theirs = training_losses(status.job.workdir), training_losses(parents[seed])
            except UserError:  # Nothing is stopped without evidence.
                continue
            if spread and (behind := clearly_worse(ours, theirs, spread, status.job.steps)):
                for other in statuses:
                    if other.job.name == name:
                        queue.stop(other.job, str(behind))


def _last_validation_losses(finished: Mapping[tuple[str, int], Job], names: set[str]) -> dict[str, dict[int, float]]:
    """Returns the final validation loss of runs, nats per target, by experiment and seed, if known."""
    ends = collections.defaultdict(dict)
    for (name, seed), job in finished.items():
        loss = read_json_or_empty(job.workdir / "summary.json").get("validation/loss")
        if name in names and isinstance(loss, float) and math.isfinite(loss):
            ends[name][seed] = loss
    return ends


def run_jobs(
    study: Study,
    runs: Path,
    seconds: Mapping[str, float],
    launch: Launch = launch_local,
    *,
    parallel: int = 1,
    price_per_hour: float | None = None,
    stop_worse: bool = False,
) -> list[Status]:
    """Runs a study, showing its progress; returns the status of each run.

    Retuned variants run in rounds, each based on the results of the last. Divergence at a tried learning rate is a
    result, and is not returned.

    Args:
        seconds: of a run of each experiment, estimated.
        price_per_hour: of a device, to give costs in money.
        stop_worse: stops variants early that are clearly worse than their parents at the same learning rate.
    """
    resolved = resolve_study(study)[1:]
    lineages = {one.name: one.lineage for one in resolved if len(one.parents) == 1 and not is_retuned(study, one)}
    board, compared, jobs = Dashboard(), time.monotonic(), make_jobs(study, runs, seconds)
    with Queue(jobs.now, parallel=parallel, launch=launch) as queue:
        while True:
            later = [_not_begun(job) for job in jobs.later]
            for statuses in queue.watch():
                board.draw([*statuses, *later], parallel=parallel, price_per_hour=price_per_hour)
                if stop_worse and time.monotonic() > compared + _COMPARE_EVERY:
                    stop_what_is_worse(queue, statuses, lineages)
                    compared = time.monotonic()
            jobs, queued = make_jobs(study, runs, seconds), {status.job.workdir for status in queue.statuses()}
            further = [job for job in jobs.now if job.workdir not in queued]
            queue.add(further)
            if not further:
                *_, statuses = queue.watch()  # A signal may have come meanwhile.
                return [status for status in statuses if not _is_diverged_trial(status)]


def _not_begun(job: Job) -> Status:
    return Status(job, State.WAITING, 0, math.nan, math.nan, job.estimated_seconds, 0.0, "")


def _is_diverged_trial(status: Status) -> bool:
    """Returns whether a run diverged at a learning rate that was only tried: such runs are named after their rate."""
    is_tried = status.job.name != experiment_of(status.job)
    return is_tried and status.state is State.FAILED and has_diverged(status.job.workdir)


def describe_failures(statuses: Sequence[Status]) -> list[str]:
    """Returns a line on each run that failed or was refused, with its log; those that blocked others come last."""
    blocked_by = collections.Counter(status.note for status in statuses if status.state is State.BLOCKED)
    lines = []
    for status in statuses:
        if status.state in (State.FAILED, State.REFUSED):
            cause = f"{status.job} {status.state.value}: {status.note}"
            log = "" if str(status.job.log) in cause else f"; see {status.job.log}"
            lines.append((blocked_by[cause], f"{cause}{_not_trained(blocked_by.pop(cause, 0))}{log}"))
    # Runs that were stopped early block others too.
    lines += [(number, f"{cause}{_not_trained(number)}") for cause, number in blocked_by.items()]
    return [line for _, line in sorted(lines, key=lambda each: each[0])]


def _not_trained(number: int) -> str:
    return f"; not trained, since they need it: {number}" if number else ""
