"""Trackers, with which a person follows a run elsewhere than in its folder. One that fails harms no run."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxformer.host.console import print_notice
from jaxformer.host.files import Closing
from jaxformer.tracking.config import TrackingConfig


class Tracker(Protocol):
    """What is given the metrics of a run: TensorBoard, Weights & Biases, trackio, or anything with these methods.

    Where it has a `last_step`, the last step that it holds of the run, it is given those behind that, however often the
    run stopped and went on; without one, all since the beginning of the run at each start.
    """

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Takes what a run is, at each start: its `config.json`, with configuration, lineage and digests."""

    def log(self, step: int, values: Mapping[str, float | str | Path]) -> None:
        """Takes all that is known of a step; each step comes once, in order.

        Args:
            step: number of steps done.
            values: by name: a number, a text, or the file of a picture or of an HTML page.
        """

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Takes what a run that is finished came to: its `summary.json`."""

    def finish(self) -> None:
        """Writes out what it was given; it is the last call, whether the run or this tracker is done or has failed."""


class LocatedTracker(Tracker, Protocol):
    """A tracker that knows where the run is seen."""

    address: str
    """A web page, or the command that shows the run."""


class Trackers(Closing):
    """Some trackers as one: each is given a step once all is known of it, and is left where it fails."""

    def __init__(self, trackers: Iterable[tuple[str, Tracker]] = ()):
        """Args: trackers: by the names under which a failure is reported, of which several may be the same."""
        self._trackers = [*trackers]
        self._step = -1
        self._values: dict[str, float | str | Path] = {}

    @property
    def last_step(self) -> int:
        """The last step that one of them holds; -1 where none does."""
        return max((_last_step(tracker) for _, tracker in self._trackers), default=-1)

    @property
    def names(self) -> set[str]:
        """The names of those that have not failed."""
        return {name for name, _ in self._trackers}

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Takes what a run is."""
        self._for_each(lambda tracker: tracker.log_hyperparameters(values))

    def lack(self, step: int) -> bool:
        """Returns whether a tracker is without a step."""
        return any(step > _last_step(tracker) for _, tracker in self._trackers)

    def log(self, step: int, values: Mapping[str, float | str | Path]) -> None:
        """Takes some values of a step, which is given to the trackers once values of another step come."""
        if step != self._step:
            self.end_step()
        self._step = step
        self._values |= values

    def end_step(self) -> None:
        """Gives the trackers the step whose values came last, all of which are there."""
        step, values = self._step, self._values
        self._values = {}
        if values:
            self._for_each(lambda each: each.log(step, values) if step > _last_step(each) else None)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Takes what a finished run came to."""
        self._for_each(lambda tracker: tracker.log_summary(values))

    def close(self) -> None:
        """Ends the trackers, once. A step that is not ended is given to them when the run goes on."""
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
    print_notice(f"{name} takes no more of this run ({reason}); the run's own files have it all")


def _last_step(tracker: Tracker) -> int:
    return getattr(tracker, "last_step", -1)


def open_trackers(
    config: TrackingConfig, folder: Path, name: str, group: str, run_id: str
) -> dict[str, LocatedTracker]:
    """Returns the trackers of a run by name, each where it left off; one that cannot be opened is reported.

    Args:
        config: which, and the project.
        folder: of the run.
        name: of the run, for a person.
        group: the name that it shares with the same experiment on other seeds.
        run_id: what tells the run from all others.
    """
    found = {}
    for kind in config.names:
        try:
            found[kind] = _open(kind, config.project, folder, name, group, run_id)
        except Exception as error:
            print_notice(f"{kind} cannot be opened ({type(error).__name__}: {error}); the run's own files have it all")
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
