"""The folder of a run's checkpoints: steps that are saved in the background, whole or absent, and what is kept of them.

A save that fails leaves the older steps as they were and frees what it wrote; the second in a row ends the run. A
damaged step is never deleted, but set aside.
"""

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from jaxformer.config import TrainingFailure, UserError, require
from jaxformer.retention import CheckpointConfig, steps_to_keep

# Failed saves in a row that end a run.
_MOST_FAILURES = 2


class Checkpoints:
    """The saved steps of a run, opened by `open_checkpoints`; close it to wait for the last save.

    Attributes:
        folder: where they are.
        is_read_only: whether nothing in it is to be changed.
        validation_losses: by step, what decides which one is the best.
    """

    def __init__(self, folder: Path, config: CheckpointConfig | None):
        self.folder = folder
        self.is_read_only = config is None
        self.validation_losses: dict[int, float] = {}
        self._config = config
        self._saving: int | None = None
        self._failures = 0
        self._manager = self._open()

    def steps(self) -> list[int]:
        """Returns the steps that are saved, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: dict[str, ocp.args.CheckpointArgs]) -> str | None:
        """Begins to save a step in the background; returns None, or a line on a save that failed.

        Raises:
            TrainingFailure: it is the second failure in a row.
        """
        told = self.check(wait=True)
        if step in self.steps():
            return told
        self._saving = step
        try:
            self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise many kinds.
            return self._failed(error)
        return told

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

    def set_aside(self, step: int) -> Path:
        """Renames a damaged step, so that it can be saved again; returns its new place."""
        aside = self.folder / f"{step}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        (self.folder / str(step)).rename(aside)
        self._manager.reload()
        return aside

    def close(self) -> None:
        """Waits for the save under way.

        Raises:
            TrainingFailure: it failed.
        """
        failure = self.check(wait=True)
        with contextlib.suppress(Exception):
            self._manager.close()
        if failure:
            raise TrainingFailure(failure)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None:
            self.close()
        else:  # What ended the run is what is told.
            with contextlib.suppress(TrainingFailure):
                self.close()

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Answers Orbax, which asks when it saves, and deletes the others once that is done."""
        kept = steps_to_keep((info.step for info in checkpoints), self._config, self.validation_losses)
        return [info.step in kept for info in checkpoints]

    def _open(self) -> ocp.CheckpointManager:
        if self.is_read_only:
            return ocp.CheckpointManager(
                self.folder.absolute(), options=ocp.CheckpointManagerOptions(create=False, read_only=True)
            )
        for leftover in self.folder.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        return ocp.CheckpointManager(
            self.folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self,
                # Created in the background, a folder that cannot be written blocks for 300 s before it fails.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def _failed(self, error: Exception) -> str:
        """Frees what a failed save left, and begins anew with the steps that are there."""
        step, self._saving = self._saving, None
        self._failures += 1
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
    """Returns the checkpoints of a run: to write, what interrupted saves left being removed, or else only to read.

    Args:
        config: which ones are kept; None opens an existing folder to read, and changes nothing in it.

    Raises:
        UserError: the path is not a folder, or cannot be written.
    """
    require(not folder.exists() or folder.is_dir(), f"checkpoints {folder}: not a folder; move it away")
    require(config is not None or folder.is_dir(), f"checkpoints {folder}: no such folder")
    try:
        return Checkpoints(folder, config)
    except OSError as error:
        raise UserError(f"checkpoints {folder}: {error.strerror}") from error


def first_line(error: BaseException) -> str:
    """Returns the first line of what went wrong, at its origin."""
    texts = []
    while error is not None and error not in texts:
        texts.append(error)
        error = error.__cause__ or error.__context__
    for each in texts:
        if any(words in str(each) for words in ("No space left", "RESOURCE_EXHAUSTED", "Disk quota")):
            return "no space left on the disk"
    text = str(texts[-1]).strip() or type(texts[-1]).__name__
    return text.splitlines()[0][:160]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what Orbax's threads and coroutines print about a step that they cannot read."""
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")
    level = logger.level
    sys.unraisablehook = lambda _: None
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.setLevel(level)
