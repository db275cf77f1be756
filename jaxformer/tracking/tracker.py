"""Trackers, which show a run outside of its folder. A tracker that fails does not affect the run."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxformer.host.console import print_notice
from jaxformer.host.files import Closing
from jaxformer.tracking.config import TrackingConfig


class Tracker(Protocol):
    """Receives the metrics of a run: TensorBoard, Weights & Biases, trackio, or anything with these methods.

    If it has a `last_step`, the last step of the run that it holds, it gets only later ones, however often the run
    stops and resumes; without one, it gets all steps from the beginning at each start.
    """

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Takes the run's `config.json` at each start, with configuration, lineage and digests."""

    def log(self, step: int, values: Mapping[str, float | str | Path]) -> None:
        """Takes all values of a step; each step comes once, in order.

        Args:
            step: number of steps done.
            values: by name: a number, a text, or the file of a picture or of an HTML page.
        """

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Takes the `summary.json` of a finished run."""

    def finish(self) -> None:
        """Writes out pending values; it is the last call, whether the run or this tracker is done or has failed."""


class LocatedTracker(Tracker, Protocol):
    """A tracker that knows where to see the run."""

    address: str
    """A web page, or the command that shows the run."""


class Trackers(Closing):
    """Some trackers as one: each gets a step once it is complete, and is dropped if it fails."""

    def __init__(self, trackers: Iterable[tuple[str, Tracker]] = ()):
        """Args: trackers: by the names that failures are reported under; names may repeat."""
        self._trackers = [*trackers]
        self._step = -1
        self._values: dict[str, float | str | Path] = {}

    @property
    def last_step(self) -> int:
        """The last step that one of them holds; -1 without any."""
        return max((_last_step(tracker) for _, tracker in self._trackers), default=-1)

    @property
    def names(self) -> set[str]:
        """The names of trackers that have not failed."""
        return {name for name, _ in self._trackers}

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Takes the run's configuration."""
        self._for_each(lambda tracker: tracker.log_hyperparameters(values))

    def lack(self, step: int) -> bool:
        """Returns whether a tracker lacks a step."""
        return any(step > _last_step(tracker) for _, tracker in self._trackers)

    def log(self, step: int, values: Mapping[str, float | str | Path]) -> None:
        """Takes some values of a step; the trackers get the step once values of another step come."""
        if step != self._step:
            self.end_step()
        self._step = step
        self._values |= values

    def end_step(self) -> None:
        """Passes the last step to the trackers, as it is complete."""
        step, values = self._step, self._values
        self._values = {}
        if values:
            self._for_each(lambda each: each.log(step, values) if step > _last_step(each) else None)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Takes the summary of a finished run."""
        self._for_each(lambda tracker: tracker.log_summary(values))

    def close(self) -> None:
        """Ends the trackers, once. They get an incomplete step when the run resumes."""
        trackers, self._trackers = self._trackers, []
        for name, tracker in trackers:
            try:
                tracker.finish()
            except Exception as error:
                _report(name, error)

    def _for_each(self, call: Callable[[Tracker], None]) -> None:
        for each in [*self._trackers]:
            name, tracker = each
            try:
                call(tracker)
            except Exception as error:
                self._trackers = [other for other in self._trackers if other is not each]
                _report(name, error)
                with contextlib.suppress(Exception):
                    tracker.finish()


def _report(name: str, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}"
    print_notice(f"{name} is stopped for this run ({reason}); the run's own files are complete")


def _last_step(tracker: Tracker) -> int:
    return getattr(tracker, "last_step", -1)


def open_trackers(
    config: TrackingConfig, folder: Path, name: str, group: str, run_id: str
) -> dict[str, LocatedTracker]:
    """Returns the trackers of a run by name, each continued where it stopped; one that cannot be opened is reported.

    Args:
        config: which, and the project.
        folder: of the run.
        name: of the run, to show.
        group: the name shared by the same experiment on other seeds.
        run_id: identifies the run.
    """
    found = {}
    for kind in config.names:
        try:
            found[kind] = _open(kind, config.project, folder, name, group, run_id)
        except Exception as error:
            print_notice(f"{kind} cannot be opened ({type(error).__name__}: {error}); the run's own files are complete")
    return found


def _open(kind: str, project: str, folder: Path, name: str, group: str, run_id: str) -> LocatedTracker:
    # Each imports what may not be installed.
    if kind == "tensorboard":
        from jaxformer.tracking.to_tensorboard import TensorBoard

        return TensorBoard(folder)
    if kind == "wandb":
        from jaxformer.tracking.to_wandb import WeightsAndBiases

        return WeightsAndBiases(folder, project, name, group, run_id)
    from jaxformer.tracking.to_trackio import Trackio

    return Trackio(project, f"{name} {run_id}", group)
