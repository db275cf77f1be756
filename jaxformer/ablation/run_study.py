"""A study from its plan to its verdicts: what it will cost, its runs as a queue, and the early end of what is worse."""

import collections
import concurrent.futures
import concurrent.futures.process
import glob
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from jaxformer.ablation.checks import EarlierRuns, check_earlier, check_files, describe_now, prepare_study
from jaxformer.ablation.clock import CLOCK
from jaxformer.ablation.early_stopping import clearly_worse, may_stop, spread_of_differences
from jaxformer.ablation.finished_runs import has_diverged
from jaxformer.ablation.study import (
    Jobs,
    Study,
    all_jobs,
    estimate_seconds,
    is_retuned,
    make_jobs,
    mean_seconds,
    resolve_study,
)
from jaxformer.ablation.timing import clock_seconds, measure_clock
from jaxformer.config import TrainingFailure, UserError
from jaxformer.devices.device import choose_device
from jaxformer.devices.options import fixed_options
from jaxformer.experiment.lineage import Lineage
from jaxformer.experiment.resolution import resolve
from jaxformer.host.console import format_duration, print_line, print_notice, print_wrapped, progress_bar
from jaxformer.host.files import read_json_or_empty
from jaxformer.host.signals import Stopped
from jaxformer.host.waiting import waiting
from jaxformer.jobs.dashboard import Dashboard
from jaxformer.jobs.launch import Job, Launch, launch_local
from jaxformer.jobs.queue import OVER, Queue, State, Status, state_on_disk
from jaxformer.plan.estimate import estimate_run_seconds
from jaxformer.run.earlier_runs import check_earlier_runs
from jaxformer.run.metrics import training_losses

T = TypeVar("T")

_ESTIMATE = "estimates what the runs will take"

# Seconds between two comparisons of the training losses of what runs.
_COMPARE_EVERY = 10


class Checked(NamedTuple):
    """A study that can be run."""

    seconds: dict[str, float]
    """Seconds that a run of each experiment will take, estimated."""
    earlier: EarlierRuns


def check_study(
    study: Study,
    runs: Path,
    *,
    allow: Collection[str] = (),
    retrain: bool = False,
    prepare: bool = True,
    jobs: Sequence[Job] | None = None,
) -> Checked:
    """Returns what the runs of a study will take, once all that can be known before the first step is checked.

    Args:
        runs: folder of all run folders.
        allow: kinds of differences from earlier runs that do not count.
        retrain: earlier runs that were made otherwise will be moved aside.
        prepare: prepares the data, which are checked then too.
        jobs: the runs of its experiments that are to be made; those of the study if they are not given.

    Raises:
        UserError: an experiment has moved since runs of it were trained, its files or data are missing or cannot be
            compared on, or runs to come could not be compared with earlier ones.
    """
    return _in_another_process(_ESTIMATE, _check_study, study, runs, tuple(allow), retrain, prepare, jobs)


def estimate_experiment(name: str, parent: str, runs: Path) -> float:
    """Returns the seconds that a run of an experiment, perhaps asked of a parent, will take; refuses as above."""
    return _in_another_process(_ESTIMATE, _estimate_experiment, name, parent, runs)


def measure_clocks(pairs: Sequence[tuple[str, str]]) -> None:
    """Measures the times per token of pairs of run folders (parent, variant); what cannot be measured is named."""
    with progress_bar(desc="measuring the time per token", unit=" pairs", total=len(pairs)) as bar:
        for parent, variant in (map(Path, pair) for pair in pairs):
            try:
                _in_another_process("times the training steps", measure_clock, parent, variant)
            except (UserError, TrainingFailure, OSError) as error:
                print_notice(f"{variant.parent.name}: the time per token was not measured: {error}")
            bar.update()


def _in_another_process(what: str, function: Callable[..., T], *arguments) -> T:
    """Returns what a function returns in a process of its own, which gives the device back.

    Args:
        what: what the process does, in words.
    """
    others = multiprocessing.active_children()
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, initializer=_end_with_parent) as pool:
        try:
            # Ctrl-C, which a terminal sends to both, is left to this process: the other inherits that it is blocked.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                estimate = pool.submit(function, *arguments)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            with waiting(f"the process that {what}", after=60):
                return estimate.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise TrainingFailure(f"the process that {what} was killed, as when memory runs out") from error
        except Stopped:
            for process in set(multiprocessing.active_children()).difference(others):
                process.kill()
            raise


def _end_with_parent() -> None:
    """Ends this process when its parent does, however that ends."""
    if parent := multiprocessing.parent_process():
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@fixed_options()
def _check_study(
    study: Study, runs: Path, allow: tuple[str, ...], retrain: bool, prepare: bool, jobs: Sequence[Job] | None
) -> Checked:
    resolved = resolve_study(study)
    device = choose_device(resolved[0].experiment.training.device)  # Before anything looks for devices.
    for one in resolved:
        check_earlier_runs(runs, one)
    check_files(resolved)
    jobs = all_jobs(study, runs) if jobs is None else jobs
    now = describe_now(resolved, device.device_kind)
    earlier = check_earlier(jobs, now, allow=allow, retrain=retrain)
    if prepare:
        for name, digests in prepare_study(resolved, runs).items():
            now[name]["digests"] = digests
        earlier = check_earlier(jobs, now, allow=allow, retrain=retrain)
    is_known = mean_seconds(runs / study.parent) is not None
    seconds = estimate_seconds(resolved, runs, None if is_known else estimate_run_seconds(resolved[0].experiment))
    return Checked(seconds, earlier)


def _estimate_experiment(name: str, parent: str, runs: Path) -> float:
    one = resolve(name, parent=parent)
    choose_device(one.experiment.training.device)
    check_earlier_runs(runs, one)
    return mean_seconds(runs / one.name) or estimate_run_seconds(one.experiment)


def print_study_plan(study_jobs: Jobs, parallel: int, price: float | None, clocks: Sequence[float] = ()) -> None:
    """Prints what is to be run, and what it will cost.

    Args:
        clocks: of each variant whose time per token may then be measured, the most seconds that takes.
    """
    jobs = [*study_jobs.now, *study_jobs.later]
    waiting = [job for job in jobs if state_on_disk(job.workdir)[0] not in OVER]
    seconds = sum(job.estimated_seconds for job in waiting)
    width = max((len(job.name) for job in jobs), default=0)
    for name in dict.fromkeys(job.name for job in jobs):
        ours = [job for job in jobs if job.name == name]
        todo = sum(job in waiting for job in ours)
        each = format_duration(ours[0].estimated_seconds)
        seeds = f"{len(ours)} seed{'s' * (len(ours) > 1)}, {len(ours) - todo} over"
        line = f"{name:{width}}  {seeds}  {ours[0].steps:,} steps  {each} each"
        print_wrapped(line, indent=4)
    hours = sum(job.estimated_seconds * job.devices for job in waiting) / 3600
    costs = "" if price is None else f", price {hours * price:,.2f}"
    left = format_duration(seconds / parallel)
    print_line(f"{len(waiting)} runs to go, {hours:.2f} device hours{costs}, over in about {left}")
    if study_jobs.later:
        print_wrapped(
            "What changes the best learning rate is compared with its parent each at its best: at three rates or more, "
            "which are those above if the best so far is the best.",
            indent=0,
        )
    if clocks:
        text = f"then the times per token that verdicts depend on, of at most {len(clocks)} variants: up to "
        print_wrapped(f"{text}{format_duration(sum(clocks))}, besides compiling their steps", indent=4)


def clocks_to_come(study: Study, runs: Path, seconds: Mapping[str, float], *, again: bool = False) -> list[float]:
    """Returns, of each variant whose time per token may be measured, the most seconds that takes.

    Args:
        seconds: of a run of each experiment, estimated.
        again: of those that were measured too.
    """
    variants = [one for one in resolve_study(study)[1:] if again or not _clock_files(one.name, runs)]
    return [clock_seconds(seconds[one.name] / one.experiment.training.steps) for one in variants]


def forget_clocks(study: Study, runs: Path) -> None:
    """Removes what was measured of the times per token of a study's variants."""
    for one in resolve_study(study)[1:]:
        for path in _clock_files(one.name, runs):
            path.unlink(missing_ok=True)


def _clock_files(name: str, runs: Path) -> list[Path]:
    """Returns what was measured of a variant, at its own learning rate and at others."""
    return [*runs.glob(f"{glob.escape(name)}/{CLOCK}"), *runs.glob(f"{glob.escape(name)}~*/{CLOCK}")]


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
            siblings = {n for n, each in lineages.items() if each.parents[0] == lineage.parents[0]}
            ends = _last_validation_losses(finished, {lineage.parents[0], *siblings})
            spread = spread_of_differences(ends, lineage.parents[0], name)
            try:
                ours, theirs = training_losses(status.job.workdir), training_losses(parents[seed])
            except UserError:  # What is not known stops nothing.
                continue
            if spread and (behind := clearly_worse(ours, theirs, spread, status.job.steps)):
                for other in statuses:
                    if other.job.name == name:
                        queue.stop(other.job, str(behind))


def _last_validation_losses(finished: Mapping[tuple[str, int], Job], names: set[str]) -> dict[str, dict[int, float]]:
    """Returns the validation loss that runs ended with, nats per target, by experiment and seed, where it is known."""
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
    further: Sequence[Job] = (),
    parallel: int = 1,
    price_per_hour: float | None = None,
    stop_worse: bool = False,
) -> list[Status]:
    """Runs a study, showing what it does; returns what became of each run.

    What is retuned is wanted in rounds, each by what came out of the last one. A learning rate at which it diverges is
    an answer, and none of those that are returned.

    Args:
        seconds: of a run of each experiment, estimated.
        further: runs beside those of the study.
        price_per_hour: of a device, to give costs in money.
        stop_worse: ends variants early that are clearly worse than their parents at the same learning rate.
    """
    resolved = resolve_study(study)[1:]
    lineages = {one.name: one.lineage for one in resolved if len(one.parents) == 1 and not is_retuned(study, one)}
    board, compared, over = Dashboard(), time.monotonic(), dict[Path, Status]()
    while True:
        jobs = make_jobs(study, runs, seconds)
        now = [job for job in (*jobs.now, *further) if job.workdir not in over]
        if not now:
            return [status for status in over.values() if not _is_diverged_trial(status)]
        later = [_not_begun(job) for job in jobs.later]
        statuses = []
        with Queue(now, parallel=parallel, launch=launch) as queue:
            for statuses in queue.watch():
                board.draw([*over.values(), *statuses, *later], parallel=parallel, price_per_hour=price_per_hour)
                if stop_worse and time.monotonic() > compared + _COMPARE_EVERY:
                    stop_what_is_worse(queue, statuses, lineages)
                    compared = time.monotonic()
        over |= {status.job.workdir: status for status in statuses}


def _not_begun(job: Job) -> Status:
    return Status(job, State.WAITING, 0, math.nan, math.nan, job.estimated_seconds, 0.0, "")


def _is_diverged_trial(status: Status) -> bool:
    """Returns whether a run diverged at a learning rate that was only tried: such runs are named after their rate."""
    is_tried = status.job.name != status.job.experiment
    return is_tried and status.state is State.FAILED and has_diverged(status.job.workdir)


def describe_failures(statuses: Sequence[Status]) -> list[str]:
    """Returns a line on each run that failed or was refused, and where its log is; last, those that blocked others."""
    blocked_by = collections.Counter(status.note for status in statuses if status.state is State.BLOCKED)
    lines = []
    for status in statuses:
        if status.state in (State.FAILED, State.REFUSED):
            cause = f"{status.job} {status.state.value}: {status.note}"
            log = "" if str(status.job.log) in cause else f"; see {status.job.log}"
            lines.append((blocked_by[cause], f"{cause}{_not_trained(blocked_by.pop(cause, 0))}{log}"))
    # What ended early by design blocks others too.
    lines += [(number, f"{cause}{_not_trained(number)}") for cause, number in blocked_by.items()]
    return [line for _, line in sorted(lines, key=lambda each: each[0])]


def _not_trained(number: int) -> str:
    return f"; not trained, since they need it: {number}" if number else ""
