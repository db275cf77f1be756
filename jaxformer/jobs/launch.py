"""Jobs and their start: on this machine, or by submitit on a cluster."""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from jaxformer.config import UserError, require
from jaxformer.host.files import read_json_or_empty, write_whole
from jaxformer.host.gpu_memory import share_of_gpus
from jaxformer.host.lock import Held, take
from jaxformer.host.paths import typed
from jaxformer.host.waiting import waiting

TRAIN = (sys.executable, "-m", "jaxformer.train")

# Lets glibc ask Linux for huge pages: with pages of 4 KB a step of 27 million parameters takes 300,000 page faults on a
# CPU, a tenth of its time.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

# Beginning of a log line for the start of a process.
HEADER = "--- "


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to train."""

    name: str
    """Name of the experiment, or of that and the learning rate that is tried."""
    seed: int
    arguments: tuple[str, ...]
    """Arguments of `python -m jaxformer.train`, including `--workdir`."""
    workdir: Path
    steps: int
    """Steps of the whole run."""
    estimated_seconds: float
    """Estimated seconds of the whole run, until its own speed is known."""
    needs: tuple[Path, ...] = ()
    """Run folders of jobs that come first: this one begins once each of them trains, and not if one fails."""
    devices: int = 1
    """Devices that the run takes at a time."""

    def __post_init__(self):
        workdir = f"--workdir={typed(self.workdir)}"
        require(workdir in self.arguments, f"{self}: its arguments {shlex.join(self.arguments)} lack {workdir}")

    def __str__(self):
        return f"{self.name} seed {self.seed}"

    @property
    def log(self) -> Path:
        """The file beside the run folder to which all that the job's processes print is appended."""
        return self.workdir.with_name(self.workdir.name + ".log")


class Handle(Protocol):
    """A job's process; `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Returns the exit status, negative for a signal, or None while it runs."""

    def terminate(self) -> None:
        """Asks it to save and end."""

    def kill(self) -> None:
        """Ends it at once."""


# (job, slot, slots) -> its process, `Held` where another process runs it, or `OSError` where it cannot be started. Jobs
# at once have different slots.
Launch = Callable[[Job, int, int], Handle]


def launch_local(job: Job, slot: int, slots: int, *, program: Sequence[str] = TRAIN) -> subprocess.Popen:
    """Starts a job on this machine, in its own session, so that Ctrl-C only reaches the queue.

    With several slots each has an equal share of the cores, and GPUs of its own or a share of one's memory.

    Raises:
        Held: the job runs already.
    """
    shares = share_of_gpus(slot, slots, job.devices) if slots > 1 else {}
    with share_of_cores(slot, slots):
        return _start_process([*program, *job.arguments], job.log, shares)


@contextlib.contextmanager
def share_of_cores(slot: int, slots: int) -> Iterator[None]:
    """Limits this thread to the cores of a slot: processes started in the block keep them."""
    if slots == 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    # The same number for each slot, and a remainder stays unused: XLA splits sums by the number of cores, and a job
    # that is resumed in another slot must end with the same bits.
    share = max(1, len(before) // slots)
    cores = sorted(before)
    try:
        os.sched_setaffinity(0, {cores[(slot * share + i) % len(cores)] for i in range(share)})
        yield
    finally:
        os.sched_setaffinity(0, before)


def _start_process(command: Sequence[str], log: Path, environment: dict[str, str], *, wait=False) -> subprocess.Popen:
    """Starts a process that prints to a log and holds the lock on it.

    Args:
        wait: for the process that holds it; otherwise raises `Held`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        if not take(file):
            if not wait:
                raise Held(f"a process that writes to {log}")
            with waiting(f"a process that writes to {log}"):
                fcntl.flock(file, fcntl.LOCK_EX)
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(f"{HEADER}{now} on {socket.gethostname()}: {shlex.join(command)}\n")
        file.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=HUGE_PAGES | os.environ | environment,
            start_new_session=True,
        )


def launch_submitit(
    folder: Path, parameters: dict, *, cluster: str = "slurm", program: Sequence[str] = TRAIN
) -> Launch:
    """Returns a function that submits a job to Slurm, or finds it if it was submitted before and is not over.

    The job's id is kept beside the run folder, in `NAME.job`.

    Args:
        folder: for the files of submitit; on a disk that all nodes share, as for the run folders.
        parameters: of `submitit.AutoExecutor.update_parameters`: `timeout_min`, `gpus_per_node`, `slurm_partition`, ...
        cluster: or "local", for tests.

    Raises:
        UserError: submitit is not installed, does not know the cluster or a parameter, or the folder has a '%'.
    """
    require("%" not in str(folder.absolute()), f"folder {folder}: Slurm takes '%' in it for a pattern; choose another")
    try:
        import submitit
    except ImportError as error:
        raise UserError("submitit is not installed: pip install 'jaxformer[slurm]'") from error
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**parameters)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"submitit: {error}") from error

    def launch(job: Job, slot: int, slots: int) -> _Submitted:
        path = job.log.with_suffix(".job")
        record = read_json_or_empty(path)
        if record.keys() >= {"cluster", "folder", "id"}:
            kind = submitit.LocalJob if record["cluster"] == "local" else submitit.SlurmJob
            found = kind(folder=record["folder"], job_id=record["id"])
            if not found.done(force_check=True):
                return _Submitted(found)
        path.parent.mkdir(parents=True, exist_ok=True)
        executor.update_parameters(name=f"{job.name}_{job.seed}")
        try:
            submitted = executor.submit(run_command, [*program, *job.arguments], str(job.log))
        except RuntimeError as error:  # From submitit: Slurm refused it.
            raise OSError(f"submitit: {' '.join(str(error).split())[:200]}") from error
        record = {"cluster": cluster, "folder": str(submitted.paths.folder), "id": submitted.job_id}
        write_whole(path, (json.dumps(record) + "\n").encode())
        return _Submitted(submitted)

    return launch


def run_command(command: list[str], log: str) -> int:
    """Runs a command on a cluster's node, and returns its exit status, negative for a signal.

    A queue killed while it submits can leave a second one of the same job: it waits for the first, and then finds
    nothing left to do.
    """
    process = _start_process(command, Path(log), {}, wait=True)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


class _Submitted:
    """The handle of a submitted job. Slurm itself kills a cancelled job that does not end."""

    def __init__(self, job):
        self._job = job
        self._cancelled = None

    def poll(self) -> int | None:
        # By default submitit asks Slurm ever more rarely, after hours every ten minutes: a job cancelled before it
        # began would be waited for as long.
        ask = self._cancelled is not None and time.monotonic() > self._cancelled + 2
        if not self._job.done(force_check=ask):
            if ask:
                self._cancelled = time.monotonic()
            return None
        if not self._job.paths.result_pickle.exists():
            return -signal.SIGKILL  # The node failed, the time was up, or it was cancelled.
        error = self._job.exception()
        return 255 if error else self._job.result()

    def terminate(self) -> None:
        self._cancelled = time.monotonic()
        self._job.cancel(check=False)

    kill = terminate
