"""The processes of one run: how they find each other, and how they exchange values between hosts.

Each computes on its own devices, and all call the same functions on devices in the same order; otherwise they would
wait for each other. In a run of one process this does nothing.
"""

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxformer.config import TrainingFailure, UserError, require
from jaxformer.host.signals import ended_by_signals
from jaxformer.host.waiting import waiting

# In JAX's errors if another process is gone: codes of the coordination service, and the communication libraries.
_OF_CONNECTIONS = re.compile(
    r"^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)|gloo|nccl|connection|coordination|heartbeat|peer",
    re.IGNORECASE,
)


def join_processes(count: int) -> None:
    """Connects this process to the others of its run, before JAX searches for devices; nothing for a count of 1.

    JAX finds the others through Slurm or Open MPI, or else by JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID.

    Raises:
        UserError: it cannot find them, or not all of them started.
    """
    if count == 1 or jax.distributed.is_initialized():
        return
    number, address = os.environ.get("JAX_PROCESS_ID"), os.environ.get("JAX_COORDINATOR_ADDRESS")
    where = f", at JAX_COORDINATOR_ADDRESS={address}" if address else ""
    require(number is None or number.isdigit(), f"JAX_PROCESS_ID ({number}) must be a whole number from 0")
    # JAX would stop at once on SIGTERM; `agreed_stop` does after the state is saved.
    jax.config.update("jax_enable_preemption_service", False)
    # A GPU runs one program after another. On CPUs two could run at once, and mix up their sums over processes.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        with ended_by_signals(), waiting(f"the other processes of the run, {count} in all{where}"):
            jax.distributed.initialize(
                num_processes=count if number else None,
                process_id=int(number) if number else None,
                cluster_detection_method="deactivate" if number else None,
                shutdown_timeout_seconds=60,  # A process that ends waits so long for the others, before they are ended.
            )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"mesh.processes = {count}, but they do not find each other ({' '.join(str(error).split())[:160]}); start "
            "them by Slurm or Open MPI, or set JAX_COORDINATOR_ADDRESS=HOST:PORT and JAX_PROCESS_ID=0, 1, ..."
        ) from error


def is_first() -> bool:
    """Returns whether this is the process that writes the run folder and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def folder_to_write(folder: Path) -> Iterator[Path]:
    """Yields the folder in the first process, and in the others a temporary one, which is removed at the end."""
    if is_first():
        yield folder
    else:
        with tempfile.TemporaryDirectory() as own:
            yield Path(own)


@contextlib.contextmanager
def silence_all_but_first() -> Iterator[None]:
    """Silences this process within the block unless it is the first."""
    with contextlib.ExitStack() as stack:
        if jax.distributed.is_initialized() and not is_first():
            silence = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        yield


@contextlib.contextmanager
def lost_process_reported() -> Iterator[None]:
    """Raises `TrainingFailure` in place of JAX's error if another process of the run is gone."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not _OF_CONNECTIONS.search(str(error)):
            raise
        raise TrainingFailure(
            f"process {jax.process_index()} of {jax.process_count()} ends, since another does not answer "
            f"({str(error).splitlines()[0]:.160}); the same command resumes from what is saved"
        ) from error


def leave(status: int) -> None:
    """Ends this process at once after an error if there are several; the others then notice instead of waiting."""
    if 0 < status < 128 and jax.distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)


def _waiting_for_others() -> contextlib.AbstractContextManager:
    return waiting("the other processes of the run")


def wait_for_all(where: str) -> None:
    """Returns once all processes have reached this point."""
    if jax.process_count() > 1:
        with _waiting_for_others():
            multihost_utils.sync_global_devices(where)


def from_first(value: Any) -> Any:
    """Returns the first process's JSON value in all of them."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    with _waiting_for_others():
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
        padded = np.resize(text, size)
        return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)))


def require_same_everywhere(value: Any, other: str) -> None:
    """Raises `UserError` in a process whose JSON value differs from the first one's."""
    value = json.loads(json.dumps(value))
    require(from_first(value) == value, f"process {jax.process_index()} of the run has {other} than the first")


def all_min(value: int) -> int:
    """Returns the smallest of all processes' numbers, in [0, 2**63)."""
    return min(_of_all([value]))[0]


def all_max(value: int) -> int:
    """Returns the largest of all processes' numbers, in [0, 2**63)."""
    return max(_of_all([value]))[0]


def _of_all(values: list[int]) -> list[list[int]]:
    """Returns the numbers of each process, in [0, 2**63)."""
    if jax.process_count() == 1:
        return [values]
    halves = np.array([(value >> 32, value & 0xFFFFFFFF) for value in values], np.uint32)
    gathered = multihost_utils.process_allgather(halves)
    return [[(high << 32) + low for high, low in of_process] for of_process in gathered.tolist()]


def arrays_from_first(tree: Any) -> Any:
    """Returns the first process's arrays in all of them; the others' are of the same shapes."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def all_rows(tree: Any) -> Any:
    """Returns arrays with the rows of all processes, in order."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))


def all_sum(values: list[int], modulus: int) -> list[int]:
    """Returns the sum over all processes of each number below a modulus of at most 2**63, modulo that."""
    if jax.process_count() == 1:
        return values
    return [sum(of_one) % modulus for of_one in zip(*_of_all(values), strict=True)]


class AgreedStop:
    """Informs all processes, at the same step, that one of them has received a signal.

    The number of the signal goes to the devices after each step, and the answer is read after the next: it is ready by
    then, and no device waits for a host.
    """

    def __init__(self):
        self._asked: jax.Array | None = None
        self._answer: int | None = None

    def ask(self, received: int | None, step: jax.Array) -> None:
        """Asks all processes, and takes the answer to the previous call.

        Args:
            received: the signal that this process has received, or None.
            step: a copied number computed by the step, which the question follows.
        """
        if jax.process_count() == 1:
            return
        before, mesh = self._asked, cast(jax.sharding.NamedSharding, step.sharding).mesh
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        here = np.full(len(rows.addressable_devices), received or 0, np.int32)
        self._asked = _largest(jax.make_array_from_process_local_data(rows, here), step)
        self._answer = None if before is None else int(before) or None

    def settle(self, received: int | None, step: jax.Array) -> None:
        """Asks all processes and takes the answer, waiting for it: after the last step."""
        self.ask(received, step)
        self.ask(received, step)

    def answer(self, received: int | None) -> int | None:
        """Returns the largest signal that any process had received, or None; with one process, its own now."""
        return received if jax.process_count() == 1 else self._answer


@jax.jit
def _largest(numbers_X, step):
    # After the step: programs whose sums cross would wait for each other.
    return jax.lax.optimization_barrier((jnp.max(numbers_X), step))[0]
