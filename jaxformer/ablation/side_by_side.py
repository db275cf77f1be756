"""Any runs side by side: what differs, by how much, and whether that is evidence.

A study compares declared changes, over several seeds. Here any runs can be compared, so that most differences between
them are no evidence: each is shown with the reasons.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.ablation.comparability import ONE_DOCUMENT, check_comparable, have_same_documents
from jaxformer.ablation.comparison import TaskDifference, compare_tasks
from jaxformer.ablation.finished_runs import FinishedRun, load_finished_run, paired_seeds, stack, stack_sources
from jaxformer.config import UserError, require
from jaxformer.experiment.change import differences
from jaxformer.experiment.experiment import Experiment
from jaxformer.run.folder import load_run
from jaxformer.run.metrics import MetricsReader, Series
from jaxformer.statistics.paired_difference import Difference, crossed_difference

# The fewest seeds whose own differences give the error of a difference.
_FEWEST_SEEDS = 2


class ShownRun(NamedTuple):
    """A run, finished or not."""

    workdir: Path
    experiment: Experiment
    record: Mapping[str, Any]
    """Its `config.json`."""
    series: Mapping[str, Series]
    """Its `metrics.jsonl`."""
    finished: FinishedRun | None
    """Its results; None if it is not finished or they are damaged."""
    lacking: str
    """Why there are no results; '' if there are."""


class Contrast(NamedTuple):
    """A run, or several that differ by their seeds, compared with the first ones."""

    first: Sequence[ShownRun]
    other: Sequence[ShownRun]
    changes: Mapping[str, tuple[Any, Any]]
    """(first, other) of the scientific fields that differ, by path."""
    difference: Difference | None
    """Of validation bits per byte, other minus first; None if there is none."""
    no_difference: str
    """Why there is none; '' if there is one."""
    seeds: int
    """Number of pairs of runs with a seed in common; 0 for two runs with different seeds."""
    documents: int
    tasks: Mapping[str, TaskDifference]
    reservations: tuple[str, ...]
    """Why it is no evidence for the effect of the changes."""

    @property
    def is_again(self) -> bool:
        """Whether both have a run of the same configuration and seed."""
        return not self.changes and not _seeds(self.first).isdisjoint(_seeds(self.other))


def read_shown(workdir: Path) -> ShownRun:
    """Returns a run.

    Raises:
        UserError: it is no run, or has no metrics yet.
    """
    experiment, record = load_run(workdir)
    try:
        series = MetricsReader(workdir).read()
    except OSError as error:
        raise UserError(f"run folder {workdir}: no metrics yet ({error.strerror})") from error
    require("train/loss" in series, f"run folder {workdir}: it has trained no step yet")
    try:
        return ShownRun(workdir, experiment, record, series, load_finished_run(workdir, is_named=False), "")
    except UserError as error:
        return ShownRun(workdir, experiment, record, series, None, str(error))


def contrast_runs(runs: Sequence[ShownRun]) -> list[Contrast]:
    """Returns the runs of each further configuration, compared with the first; science identifies a configuration.

    The same run twice counts as two of them. If all runs differ only in their seeds, each is compared with the first.
    """
    arms: list[list[ShownRun]] = []
    for run in runs:
        same = (arm for arm in arms if not differences(arm[0].experiment, run.experiment))
        arm = next((arm for arm in same if run.record["seed"] not in _seeds(arm)), None)
        if arm is None:
            arms.append([run])
        else:
            arm.append(run)
    if len(arms) == 1:  # Seeds of one experiment: this shows how much seeds differ.
        arms = [[run] for run in runs]
    return [_contrast(arms[0], arm) for arm in arms[1:]]


def _seeds(arm: Iterable[ShownRun]) -> set[int]:
    return {run.record["seed"] for run in arm}


def _contrast(first: Sequence[ShownRun], other: Sequence[ShownRun]) -> Contrast:
    changes = differences(first[0].experiment, other[0].experiment)
    reservations = [run.lacking for run in (*first, *other) if run.lacking]
    firsts, others = ([run.finished for run in arm if run.finished] for arm in (first, other))
    if not (firsts and others):
        return Contrast(first, other, changes, None, "one is not finished", 0, 0, {}, tuple(reservations))
    pairs = paired_seeds(firsts, others)
    reservations += _reservations(firsts[0], others[0], len(pairs), changes)
    # Runs of different seeds are paired by documents.
    firsts, others = map(list, zip(*(pairs or [(firsts[0], others[0])]), strict=True))
    flags, notes = check_comparable(firsts, others, declared={path: [*each] for path, each in changes.items()})
    corpora = [name for name, read in firsts[0].validation.items() if len(set(read.sources.tolist())) > 1]
    difference, documents, lacking = None, 0, ""
    if not corpora:
        lacking = ONE_DOCUMENT
    elif not have_same_documents([*firsts, *others], corpora):
        lacking = "they were validated on different documents"
    else:
        (bits_SI, bytes_I, strata_I), (first_SI, _, _) = stack(others, corpora), stack(firsts, corpora)
        sources_I, documents = stack_sources(firsts[0], corpora), len(bytes_I)
        difference = crossed_difference(bits_SI - first_SI, bytes_I, sources_I, strata_I=strata_I)
    reservations += dict.fromkeys([*flags, *notes])
    tasks = compare_tasks(others, firsts)
    return Contrast(first, other, changes, difference, lacking, len(pairs), documents, tasks, tuple(reservations))


def _reservations(first: FinishedRun, other: FinishedRun, seeds: int, changes: Mapping[str, Any]) -> list[str]:
    if not changes and seeds:
        return ["the same run twice: only code, versions, device or the number of cores can differ"]
    if not changes:
        return ["seeds of one experiment: a change must exceed this difference"]
    names = [declared_name(run.record) for run in (first, other)]
    is_declared = names[0] in (other.record["lineage"].get("parents") or ())
    undeclared = f"{names[1]} is not a declared change of {names[0]}"
    if names[0] == names[1]:
        undeclared = f"both are of {names[0]}, and no file declares their difference"
    found = [] if is_declared else [f"change: {undeclared}"]
    if not seeds:
        return [*found, "seeds: they share none, so that they had different initial weights and batches"]
    if seeds < _FEWEST_SEEDS:
        text = "seeds: only one, so that the error is from the documents alone; other seeds may differ by more"
        return [*found, text]
    return found


def declared_name(record: Mapping[str, Any]) -> str:
    """Returns the name of a run's experiment, even if the run was given another name."""
    return record["lineage"].get("experiment") or record["experiment"]
