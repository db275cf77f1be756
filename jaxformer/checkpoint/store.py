"""The folder of a run's checkpoints: steps are saved in the background, whole or absent, and some are kept.

A failed save leaves older steps as they were and frees what it wrote; the second in a row ends the run. A damaged step
is never deleted, but set aside.
"""

import contextlib
import itertools
import logging
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxformer.checkpoint.retention import CheckpointConfig, steps_to_keep
from jaxformer.config import TrainingFailure, UserError, require
from jaxformer.devices.multihost import is_first, wait_for_all
from jaxformer.host.files import Closing
from jaxformer.host.paths import literal_path

# Failed saves in a row that end a run. With several processes the first one does: the others do not know of it.
_MOST_FAILURES = 2

# Of listing the checkpoints of a run that may remove some meanwhile.
_ATTEMPTS_TO_READ = 5


class Checkpoints(Closing):
    """The saved steps of a run, opened by `open_checkpoints`; close it to wait for the last save.

    Attributes:
        folder: of the steps.
        is_read_only: whether nothing in it may change.
        is_proven: whether a step that this process saved was read back (`prove`).
        validation_losses: by step, to decide which one is the best.
        decay_start: as of `retention.steps_to_keep`.
    """

    def __init__(self, folder: Path, config: CheckpointConfig | None):
        self.folder = folder
        self.is_read_only = config is None
        self.is_proven = False
        self.validation_losses: dict[int, float] = {}
        self.decay_start = 0
        self._config = config
        self._saving: int | None = None
        self._failures = 0
        with contextlib.ExitStack() as stack:
            self._literal = stack.enter_context(literal_path(folder))
            self._manager = self._open()
            self._stack = stack.pop_all()

    def steps(self) -> list[int]:
        """Returns the saved steps, oldest first."""
        return sorted(self._manager.all_steps())

    def reload(self) -> None:
        """Updates the steps after other processes saved and deleted some."""
        self._manager.reload()

    def save(self, step: int, items: dict[str, ocp.args.CheckpointArgs]) -> str | None:
        """Begins to save a step in the background; returns None, or a line on a save that failed.

        Raises:
            TrainingFailure: it is the second failure in a row.
        """
        line = self.check(wait=True)
        if step in self.steps():
            return line
        self._remove_leftovers()
        self._saving = step
        try:
            if not self._manager.save(step, args=ocp.args.Composite(**items)):
                raise RuntimeError(f"Orbax saves no step before {self.steps()[-1]}")
        except Exception as error:  # Orbax and TensorStore raise many kinds.
            return self._failed(error)
        return line

    def check(self, *, wait: bool = False) -> str | None:
        """Returns None, or a line on a save that failed in the background; `wait` waits for the one under way.

        Raises:
            TrainingFailure: it is the second failure in a row.
        """
        if self._saving is None or (self._manager.is_saving_in_progress() and not wait):
            return None
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            return self._failed(error)
        self._saving, self._failures = None, 0
        return None

    def restore(self, step: int, items: dict[str, ocp.args.CheckpointArgs]) -> Any:
        """Returns the items of a step."""
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def prove(self) -> None:
        """Records that a step saved by this process was read back; before that no other is deleted."""
        self.is_proven = True
        steps = self.steps()
        for step in sorted(set(steps) - self._kept(steps)):
            self._manager.delete(step)

    def set_aside(self, step: int) -> Path:
        """Renames a damaged step, so that it can be saved again; returns its new place."""
        names = (f"{step}.damaged{number or ''}" for number in itertools.count())
        aside = next(self.folder / name for name in names if not (self.folder / name).exists())
        wait_for_all("a damaged step is seen")
        if is_first():
            (self.folder / str(step)).rename(aside)
        wait_for_all("a damaged step is set aside")
        self.reload()
        return aside

    def close(self) -> None:
        """Waits for the save under way.

        Raises:
            TrainingFailure: it failed.
        """
        with self._stack:
            try:
                failure = self.check(wait=True)
            finally:
                with contextlib.suppress(Exception):
                    self._manager.close()
                if not self.is_read_only:
                    self._remove_leftovers()
        if failure:
            raise TrainingFailure(failure)

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Answers Orbax when it saves; it deletes the others once that is done."""
        kept = self._kept([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]

    def _kept(self, steps: Sequence[int]) -> set[int]:
        if self._config is None or not self.is_proven:
            return set(steps)
        return steps_to_keep(steps, self._config, self.validation_losses, self.decay_start)

    def _open(self) -> ocp.CheckpointManager:
        if self.is_read_only:
            # Nothing is saved or deleted, so Orbax changes nothing; with `read_only` it would warn the user, twice.
            return ocp.CheckpointManager(self._literal, options=ocp.CheckpointManagerOptions(create=False))
        self._remove_leftovers()
        return ocp.CheckpointManager(
            self._literal,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self,
                # Created in the background, a folder that cannot be written blocks for 300 s before it fails.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def _remove_leftovers(self) -> None:
        """Removes the remains of failed and interrupted saves; a failed one may still write for a moment."""
        if not is_first():
            return
        seen = time.monotonic()
        deadline, quiet = seen + 2, 0.5 if self._failures else 0.0
        while (now := time.monotonic()) < deadline:
            leftovers = list(self.folder.glob("*.orbax-checkpoint-tmp"))
            if not leftovers and now - seen >= quiet:
                break
            for leftover in leftovers:
                shutil.rmtree(leftover, ignore_errors=True)
                seen = now
            time.sleep(0.02)

    def _failed(self, error: Exception) -> str:
        """Frees the remains of a failed save, and reopens the folder with its steps."""
        step, self._saving = self._saving, None
        self._failures += 1
        if jax.process_count() > 1:
            raise TrainingFailure(
                f"saving step {step} in {self.folder} failed ({first_line(error)}); the same command resumes"
            ) from error
        with contextlib.suppress(Exception):
            self._manager.close()
        try:
            self._manager = self._open()
        except OSError as second:
            raise TrainingFailure(
                f"checkpoints {self.folder}: {second.strerror} while step {step} was saved"
            ) from error
        steps = self.steps()
        kept = f"step {steps[-1]} is the newest that is kept" if steps else "none is saved yet"
        text = f"saving step {step} in {self.folder} failed ({first_line(error)}); {kept}"
        if self._failures >= _MOST_FAILURES:
            raise TrainingFailure(f"{text}; the same command resumes from there") from error
        return f"{text}; the next save tries again"


def open_checkpoints(folder: Path, config: CheckpointConfig | None = None) -> Checkpoints:
    """Returns the checkpoints of a run, to write, after removing remains of interrupted saves, or only to read.

    Args:
        config: which ones are kept; None opens an existing folder to read, and changes nothing in it.

    Raises:
        UserError: the path is not a folder, or cannot be written.
    """
    require(not folder.exists() or folder.is_dir(), f"checkpoints {folder}: not a folder; move it elsewhere")
    require(config is not None or folder.is_dir(), f"checkpoints {folder}: no such folder")
    try:
        if config is None:
            return _open_to_read(folder)
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
        wait_for_all("the folder of checkpoints is there")
        return Checkpoints(folder, config)
    except OSError as error:  # Those of Orbax have no number.
        raise UserError(f"checkpoints {folder}: {error.strerror or first_line(error)}") from error


def _open_to_read(folder: Path) -> Checkpoints:
    """Returns checkpoints to read; tries again where a run that trains removed one while they were listed."""
    for _ in range(_ATTEMPTS_TO_READ - 1):
        with contextlib.suppress(OSError):
            return Checkpoints(folder, None)
    return Checkpoints(folder, None)


def saved_steps(folder: Path) -> list[int]:
    """Returns the saved steps in a folder, which need not exist, oldest first; changes nothing in it."""
    if not folder.is_dir():
        return []
    with open_checkpoints(folder) as checkpoints:
        return checkpoints.steps()


def first_line(error: BaseException) -> str:
    """Returns the first line of what went wrong, at its origin."""
    errors = chain(error)
    for each in errors:
        # TensorStore's name for a full disk; JAX's for a full device.
        is_exhausted = "RESOURCE_EXHAUSTED" in str(each) and not isinstance(each, jax.errors.JaxRuntimeError)
        if is_exhausted or any(words in str(each) for words in ("No space left", "Disk quota")):
            return "no space left on the disk"
    text = str(errors[-1]).strip() or type(errors[-1]).__name__
    return text.splitlines()[0][:160]


def chain(error: BaseException | None) -> list[BaseException]:
    """Returns an error and what it came from, back to its origin."""
    errors = []
    while error is not None and not any(error is each for each in errors):
        errors.append(error)
        error = error.__cause__ or error.__context__
    return errors


def hush() -> Callable[[], None]:
    """Silences what coroutines of Orbax and TensorStore print after a raised failure; returns a function to undo it.

    They print from other threads and when they are collected, at any time until the process ends.
    """
    hook, logger, filters = sys.unraisablehook, logging.getLogger("asyncio"), warnings.filters[:]
    level = logger.level

    def filtered(unraisable):
        trace = traceback.extract_tb(unraisable.exc_traceback)
        text = f"{unraisable.exc_value!r} {unraisable.object!r} {trace[-1].filename if trace else ''}"
        if not any(word in text for word in ("asyncio", "orbax", "tensorstore", "Event loop is closed")):
            hook(unraisable)

    def undo():
        sys.unraisablehook = hook
        logger.setLevel(level)
        warnings.filters[:] = filters  # pyright: ignore[reportIndexIssue]  # A list, whatever its stub says.

    sys.unraisablehook = filtered
    logger.setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    return undo
