"""Many runs, one after another or several at once: each a process of its own, resumed after crashes, started once.

The state of a job is read from its run folder and from locks, and not kept by the queue, so that a killed queue is
simply started again. The job's process locks the log beside the run folder from before its first line until it is gone,
however it and its queue end: two queues never start one job twice.

    with Queue(jobs, parallel=2) as queue:
        for statuses in queue.watch():
            board.draw(statuses)

The module imports no jax: a process that only waits holds no device.
"""

import contextlib
import dataclasses
import enum
import json
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.config import require
from jaxformer.host.console import print_notice
from jaxformer.host.files import read_json_or_empty, write_whole
from jaxformer.host.lock import LOCK, Held, holder, is_held
from jaxformer.host.signals import Stopped, noted_signals
from jaxformer.jobs.launch import HEADER, Handle, Job, Launch, launch_local

# In a run folder, why a queue ended the run before its last step.
STOPPED_EARLY = "stopped_early.json"

# A run counts as training after this share of its steps, with a finite loss and gradient: most warmups are shorter.
_PROOF = 0.1

# The phase of a run, by a line in its log, the last phase first.
_PHASES = {
    "first step  ": "",
    "device      ": "compiling",
    "tokenising ": "tokenising",
    "for the tokenizer": "training a tokenizer",
    "": "starting",
}

# How often a crashed job is started again: the first crash may be bad luck, the third is not.
RETRIES = 2

# Bytes that are read at the end of a log or of metrics.
_TAIL = 65536


class State(enum.Enum):
    """The state of a job, in words."""

    WAITING = "waiting"
    RUNNING = "running"
    ELSEWHERE = "runs elsewhere"
    CRASHED = "crashed, again soon"
    FINISHED = "finished"
    STOPPED_EARLY = "stopped early"
    FAILED = "failed"
    REFUSED = "refused"
    BLOCKED = "blocked"


# States that are over, and those of them without a result for comparisons.
OVER = {State.FINISHED, State.STOPPED_EARLY, State.FAILED, State.REFUSED, State.BLOCKED}
_WITHOUT_RESULT = OVER - {State.FINISHED}


class Status(NamedTuple):
    """A job at a moment."""

    job: Job
    state: State
    step: int
    """The last with metrics, 0 if there is none; `loss` is its training loss, NaN if there is none."""
    loss: float
    tokens_per_second: float
    """Tokens per second as the run last reported, NaN if it has not."""
    seconds_left: float
    """Seconds left until it is over, without waiting for others."""
    device_hours: float
    """All hours of a finished run; else those in this queue."""
    note: str
    """Why it is in this state, or its phase before the first step; may be empty."""


@dataclasses.dataclass
class _Run:
    """What this queue has seen of a job, and what it must do with it."""

    job: Job
    handle: Handle | None = None
    slot: int = 0
    since: float = 0.0
    seconds: float = 0.0
    first_step: int = 0
    crashes: int = 0
    crash: str = ""
    ended: tuple[State, str] | None = None
    stop_reason: str | None = None
    # Why it must not run, or not go on: another that it needs has no result.
    obstacle: str = ""
    # (time, step) of the first and the last step seen to be done by the running process.
    marks: tuple[tuple[float, int], tuple[float, int]] | None = None
    final: Status | None = None


class Queue:
    """Runs jobs within its `with` block, in order; on leaving it, running jobs save and end.

    SIGINT, SIGTERM and SIGHUP end `watch` with `Stopped`; a second one kills jobs that have not saved yet.
    """

    def __init__(self, jobs: Sequence[Job], *, parallel: int = 1, launch: Launch | None = None):
        """Args: jobs; how many run at once; how one is started, by default `launch_local`.

        Raises:
            UserError: as of `add`.
        """
        require(parallel >= 1, f"jobs at once ({parallel}) must be at least 1")
        self._runs: dict[Path, _Run] = {}
        self.add(jobs)
        self._parallel = parallel
        self._launch = launch or launch_local
        self._received: list[int] = []
        self._stack = contextlib.ExitStack()

    def add(self, jobs: Sequence[Job]) -> None:
        """Appends further jobs; `watch` continues with them.

        Raises:
            UserError: two jobs share a folder, or one needs a job that does not come before it.
        """
        for job in jobs:
            require(job.workdir not in self._runs, f"two jobs have the run folder {job.workdir}")
            for path in job.needs:
                is_there = path in self._runs or state_on_disk(path)[0] in OVER
                require(is_there, f"{job} needs {path}, which no job before it makes")
            self._runs[job.workdir] = _Run(job)

    def __enter__(self):
        # Checked between two jobs, so that a process just started is never forgotten.
        self._received = self._stack.enter_context(noted_signals())
        return self

    def __exit__(self, kind, error, trace):
        with self._stack:
            self._stop_all()

    def watch(self, every_seconds: float = 0.5) -> Iterator[list[Status]]:
        """Starts jobs when possible, and yields all statuses at intervals, until all jobs are over.

        Raises:
            Stopped: by a signal.
        """
        while True:
            for run in self._runs.values():
                self._collect(run)
            if self._received:
                raise Stopped(self._received[0], "the same command resumes with what is not finished")
            self._block()
            self._start()
            statuses = self.statuses()
            yield statuses
            if all(status.state in OVER for status in statuses):
                return
            time.sleep(every_seconds)

    def statuses(self) -> list[Status]:
        """Returns the status of each job, in their order."""
        return [self._status(run) for run in self._runs.values()]

    def stop(self, job: Job, reason: str) -> None:
        """Ends a job for good: it saves, and `stopped_early.json` gives the reason; nothing happens if it is over."""
        run = self._runs[job.workdir]
        if run.stop_reason is None and self._state(run)[0] not in OVER:
            run.stop_reason = reason
            if run.handle:
                run.handle.terminate()

    def _collect(self, run: _Run) -> None:
        """Handles a process that has ended."""
        if run.handle and (status := run.handle.poll()) is not None:
            run.handle = None
            run.seconds += time.monotonic() - run.since
            if state_on_disk(run.job.workdir)[0] is not State.FINISHED and run.stop_reason is None:
                self._judge(run, status)
        if run.stop_reason is not None and self._state(run)[0] in (State.WAITING, State.CRASHED):
            record = {
                "step": _progress(run.job.workdir)[0],
                "reason": run.stop_reason,
                "device_hours": run.seconds / 3600 * run.job.devices,
            }
            try:
                run.job.workdir.mkdir(parents=True, exist_ok=True)
                write_whole(run.job.workdir / STOPPED_EARLY, (json.dumps(record, indent=2) + "\n").encode())
            except OSError as error:
                run.ended = State.STOPPED_EARLY, run.stop_reason
                print_notice(f"{run.job.workdir / STOPPED_EARLY}: {error.strerror}; the next queue will start it again")

    def _judge(self, run: _Run, status: int) -> None:
        job = run.job
        if run.obstacle:
            run.ended = State.BLOCKED, run.obstacle
        elif status == 0:
            run.ended = State.FAILED, f"it ended well without a summary.json; see {job.log}"
        elif status == 1:
            run.ended = State.FAILED, last_line(job.log)
        elif status == 2:
            # Another process may have begun in the folder in the meantime: its end decides.
            if not _is_held(job.workdir / LOCK):
                run.ended = State.REFUSED, last_line(job.log)
        else:
            run.crashes += 1
            run.crash = _describe_exit(status)
            if run.crashes > RETRIES:
                run.ended = State.FAILED, f"crashed {run.crashes} times, the last by {run.crash}; see {job.log}"

    def _block(self) -> None:
        """Ends jobs that need one without a result: running ones save, and waiting ones do not start."""
        for run in self._runs.values():
            can_be_ended = run.handle or self._state(run)[0] in (State.WAITING, State.CRASHED)
            if run.obstacle or run.stop_reason is not None or not can_be_ended:
                continue
            needed = [self._runs[path] for path in run.job.needs if path in self._runs]
            ended = [(each, *self._state(each)) for each in needed]
            lacking = [(each, state, why) for each, state, why in ended if state in _WITHOUT_RESULT]
            if lacking:
                each, state, why = lacking[0]
                # Whatever blocks the needed job blocks this one.
                run.obstacle = why if state is State.BLOCKED else f"{each.job} {state.value}: {why}"
                if run.handle:
                    run.handle.terminate()
                else:
                    run.ended = State.BLOCKED, run.obstacle

    def _start(self) -> None:
        """Starts the jobs that can start. Jobs that run elsewhere, as from a killed queue, take a slot."""
        states = {path: self._state(run)[0] for path, run in self._runs.items()}
        # A refusal that names the run folder concerns only that folder, any other the experiment.
        refused = {
            run.job.name: run.job
            for run in self._runs.values()
            if run.ended and run.ended[0] is State.REFUSED and str(run.job.workdir) not in run.ended[1]
        }
        free = self._parallel - sum(state in (State.RUNNING, State.ELSEWHERE) for state in states.values())
        for path, run in self._runs.items():
            if states[path] not in (State.WAITING, State.CRASHED) or run.stop_reason is not None:
                continue
            if run.job.name in refused:
                run.ended = State.REFUSED, f"as {refused[run.job.name]} is"
            elif free > 0 and all(self._trains(path, states) for path in run.job.needs):
                used = {other.slot for other in self._runs.values() if other.handle}
                run.slot = min(set(range(self._parallel)) - used)
                try:
                    run.handle = self._launch(run.job, run.slot, self._parallel)
                    run.since, run.marks, run.first_step = time.monotonic(), None, _progress(path)[0]
                except Held:  # Another queue was faster.
                    pass
                except OSError as error:
                    run.ended = State.FAILED, f"it could not be started ({error})"
                    continue
                free -= 1

    def _trains(self, path: Path, states: dict[Path, State]) -> bool:
        """Returns whether a run that others need is finished, or is training."""
        if states.get(path, State.FINISHED) is State.FINISHED:
            return True
        step, scalars = _last_metrics(path)
        numbers = scalars.get("train/loss", math.nan), scalars.get("train/gradient_norm", 0.0)
        return step >= max(1.0, _PROOF * self._runs[path].job.steps) and all(map(math.isfinite, numbers))

    def _stop_all(self) -> None:
        def running():
            return [run.handle for run in self._runs.values() if run.handle and run.handle.poll() is None]

        signals = len(self._received)  # Counted before they are asked to end: a second one may come at once.
        if handles := running():
            print_notice(f"{len(handles)} running: they save and end; a second signal kills them")
        for handle in handles:
            handle.terminate()
        while handles := running():
            if len(self._received) > signals:
                signals = len(self._received)
                for handle in handles:
                    handle.kill()
            time.sleep(0.1)
        for run in self._runs.values():
            if run.handle:
                run.handle = None
                run.seconds += time.monotonic() - run.since
                self._collect(run)  # Jobs to stop early are stopped.

    def _state(self, run: _Run) -> tuple[State, str]:
        why = run.obstacle or run.stop_reason
        stopping = f"is stopped: {why}" if why else ""
        if run.handle:
            return State.RUNNING, stopping
        if run.ended:
            return run.ended
        state, why = state_on_disk(run.job.workdir, run.job.log)
        if state is State.WAITING and run.crashes:
            return State.CRASHED, f"by {run.crash}, {run.crashes} of {RETRIES + 1} times"
        return state, why or stopping

    def _status(self, run: _Run) -> Status:
        if run.final:
            return run.final
        job, (state, why) = run.job, self._state(run)
        step, loss, speed = _progress(job.workdir)
        now = time.monotonic()
        _mark(run, step, now)
        is_running = state in (State.RUNNING, State.ELSEWHERE)
        if state is State.RUNNING and (run.marks is None or run.marks[0][1] == run.marks[1][1]):
            why, speed = why or _phase(job.log), math.nan  # The entry is from an earlier process.
        left = 0.0 if state in OVER else _seconds_left(run, step, now if is_running else None, self._slowness())
        hours = (run.seconds + (now - run.since if run.handle else 0)) / 3600 * job.devices
        file = "summary.json" if state is State.FINISHED else STOPPED_EARLY
        if state in (State.FINISHED, State.STOPPED_EARLY):
            hours = read_json_or_empty(job.workdir / file).get("device_hours", hours)
        status = Status(job, state, step, loss, speed, left, hours, why)
        if state in OVER:
            run.final = status
        return status

    def _slowness(self) -> float:
        """Returns the ratio of actual to estimated time of the jobs that this queue has run from start to end."""
        whole = [run for run in self._runs.values() if run.seconds and not run.crashes and not run.first_step]
        whole = [run for run in whole if run.final and run.final.state is State.FINISHED]
        estimated = sum(run.job.estimated_seconds for run in whole)
        return sum(run.seconds for run in whole) / estimated if estimated > 0 else 1.0


def state_on_disk(workdir: Path, log: Path | None = None) -> tuple[State, str]:
    """Returns the state of a run from its folder and the lock on its log, and why."""
    # A process that has written its summary keeps the device until it is gone.
    if log and _is_held(log):
        return State.ELSEWHERE, "as another queue started it"
    if read_json_or_empty(workdir / "summary.json").get("status") == "finished":
        return State.FINISHED, ""
    if _is_held(workdir / LOCK):
        return State.ELSEWHERE, holder(workdir / LOCK)
    if early := read_json_or_empty(workdir / STOPPED_EARLY):
        return State.STOPPED_EARLY, str(early.get("reason", ""))
    return State.WAITING, ""


def _is_held(lock: Path) -> bool:
    """Returns whether a process holds a lock; if it cannot be opened, the job itself will fail."""
    try:
        return is_held(lock)
    except OSError:
        return False


def last_line(log: Path) -> str:
    """Returns the last line of a log's last process: its last line from jaxformer, if there is one."""
    lines = [line for line in _tail(log).rpartition(f"\n{HEADER}")[2].splitlines()[1:] if line.strip()]
    ours = [line for line in lines if line.startswith("jaxformer: ")]
    return (ours or lines or [f"see {log}"])[-1].removeprefix("jaxformer: ")


def _phase(log: Path) -> str:
    """Returns the phase of a log's last process before its first step is done; '' from then on."""
    text = _tail(log).rpartition(f"\n{HEADER}")[2]
    return next(phase for line, phase in _PHASES.items() if line in text)


def _progress(workdir: Path) -> tuple[int, float, float]:
    """Returns the last step with metrics, its training loss, and the last reported tokens per second."""
    step, scalars = _last_metrics(workdir)
    return step, scalars.get("train/loss", math.nan), scalars.get("train/tokens_per_second", math.nan)


def _last_metrics(workdir: Path) -> tuple[int, dict[str, float]]:
    """Returns the last step with metrics, and the last training metrics by name."""
    step, scalars = 0, {}
    for line in _tail(workdir / "metrics.jsonl").splitlines():
        try:
            values = json.loads(line)
            if "train/loss" in values:
                names = [name for name in values if name.startswith("train/") and name.count("/") == 1]
                numbers = {name: float(values[name]) for name in names}
                step, scalars = int(values["step"]), scalars | numbers
        except (ValueError, TypeError, KeyError):
            continue  # A cut line, at either end of what was read.
    return step, scalars


def _mark(run: _Run, step: int, now: float) -> None:
    """Records when the first and the last step were seen to be done."""
    if not step:
        return
    if run.marks is None or step < run.marks[1][1]:
        run.marks = (now, step), (now, step)
    elif step > run.marks[1][1]:
        run.marks = run.marks[0], (now, step)


def _seconds_left(run: _Run, step: int, now: float | None, slowness: float) -> float:
    """Returns the time that a job needs: at the speed of its process or, if unknown, as estimated.

    Args:
        now: None for a job that does not run.
        slowness: ratio of actual to estimated time of other jobs.
    """
    if now is not None and run.marks:
        (first, first_step), (last, last_step) = run.marks
        if last_step > first_step:
            return max(0.0, (run.job.steps - step) * (last - first) / (last_step - first_step) - (now - last))
    taken = now - run.since if now is not None and run.handle else 0.0
    return max(0.0, run.job.estimated_seconds * slowness * (1 - step / run.job.steps) - taken)


def _describe_exit(status: int) -> str:
    number = -status if status < 0 else status - 128
    try:
        name = signal.Signals(number).name
        return f"{name} (as when memory runs out)" if number == signal.SIGKILL else name
    except ValueError:
        return f"exit status {status}"


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
