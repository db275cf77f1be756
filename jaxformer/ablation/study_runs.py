"""The runs of a study: the finished ones, how others ended, and which cannot be read."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.ablation.envelope import Trained
from jaxformer.ablation.finished_runs import FinishedRun, Runs, has_diverged, seed_of
from jaxformer.ablation.seeds import SEEDS_OF_A_GENERATION, seeds_of
from jaxformer.ablation.study import (
    Study,
    rate_searches,
    resolve_what_can_be,
    with_root,
)
from jaxformer.config import UserError, require
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.files import read_json_or_empty
from jaxformer.jobs.queue import STOPPED_EARLY, State, state_on_disk

# (folder of all run folders, name of an experiment) -> its runs.
Reader = Callable[[Path, str], Runs]


class StudyRuns(NamedTuple):
    """The experiments of a study, and their runs."""

    experiments: list[Resolved]
    refused: Mapping[str, UserError]
    """Why other variants are invalid, by name."""
    read: Mapping[str, Runs]
    failures: Mapping[str, Mapping[int, str]]
    """How runs ended without a result, by name and seed."""
    trained: Mapping[str, Trained]
    """Runs of retuned variants, at all learning rates, by name."""

    @property
    def finished(self) -> dict[str, list[FinishedRun]]:
        """The finished runs of each experiment, by name."""
        return {name: each.finished for name, each in self.read.items()}

    @property
    def tried(self) -> dict[str, list[FinishedRun]]:
        """The finished runs at other learning rates than an experiment's own, by its name."""
        return {
            name: [run for (octave, _), run in each.items() if run and octave] for name, each in self.trained.items()
        }

    @property
    def unread(self) -> tuple[str, ...]:
        """A line on each run folder, and each variant of the study, that cannot be read."""
        return (*(line for each in self.read.values() for line in each.unreadable), *map(str, self.refused.values()))

    @property
    def lost_hours(self) -> dict[str, float]:
        """Device hours of runs that were stopped early, by name of the experiment."""
        return {name: hours for name, each in self.read.items() if (hours := _hours_stopped_early(each.folders))}

    @property
    def variants(self) -> list[Resolved]:
        """The variants with a run that has ended."""
        ended = {name for name, each in self.read.items() if each.finished or each.unreadable or self.failures[name]}
        return [one for one in self.experiments[1:] if one.name in ended]


def collect_runs(study: Study, runs: Path, reader: Reader) -> StudyRuns:
    """Returns the runs of a study that count for a reader.

    Raises:
        UserError: the parent has no finished run that can be read, or no variant of the study is one change.
    """
    experiments, refused = resolve_what_can_be(study)
    ours = seeds_of(experiments)  # Later generations train their own seeds, of the same experiments too.
    read = {one.name: _of_seeds(reader(runs, one.name), ours) for one in with_root(experiments)}
    failures = {name: failures_of(each.folders) for name, each in read.items()}
    _require_runs(runs / study.parent, read[study.parent], failures[study.parent])
    trained = {}
    for search in rate_searches(study, experiments, runs):
        name = search.own.name
        trained[name], unreadable = search.read(SEEDS_OF_A_GENERATION)
        more = tuple(line for line in unreadable if line not in read[name].unreadable)
        read[name] = read[name]._replace(unreadable=(*read[name].unreadable, *more))
    return StudyRuns(experiments, refused, read, failures, trained)


def _of_seeds(read: Runs, seeds: Collection[int]) -> Runs:
    """Returns the runs of some seeds."""
    folders = [path for path in read.folders if seed_of(path) in seeds]
    return read._replace(folders=folders, finished=[run for run in read.finished if run.seed in seeds])


def _require_runs(folder: Path, read: Runs, failures: Mapping[int, str]) -> None:
    """Raises `UserError`, with how its runs ended, unless the study's parent has a finished run that can be read."""
    ended = [*(f"seed {seed} {why}; see {folder / f'seed_{seed}'}.log" for seed, why in sorted(failures.items()))]
    ended += read.unreadable
    require(
        bool(read.finished),
        f"{folder}: no finished run of the parent{' can be read' * bool(read.unreadable)}"
        + (f": {'; '.join(ended)}" if ended else "; train it first"),
    )


def failures_of(folders: Sequence[Path]) -> dict[int, str]:
    """Returns, by seed, how runs of an experiment ended without a result."""
    failures = {}
    for path in folders:
        seed, (state, reason) = seed_of(path), state_on_disk(path)
        if state is State.STOPPED_EARLY:
            step = read_json_or_empty(path / STOPPED_EARLY).get("step", "?")
            failures[seed] = f"stopped early at step {step}: {reason}"
        elif has_diverged(path):
            failures[seed] = "diverged: its loss or gradient is not finite"
    return failures


def _hours_stopped_early(folders: Sequence[Path]) -> float:
    """Returns the device hours of an experiment's runs that were stopped early."""
    stopped = [one for one in folders if state_on_disk(one)[0] is State.STOPPED_EARLY]
    return sum(float(read_json_or_empty(one / STOPPED_EARLY).get("device_hours", 0.0)) for one in stopped)
