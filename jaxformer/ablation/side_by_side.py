"""Runs beside one another, whatever they are: what differs, by how much, and whether that is evidence.

A study compares what was declared, over several seeds. Here any runs are compared that someone wants to look at, so
that most differences between them are no evidence: each is shown with the reasons.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.ablation.comparability import check_comparable, have_same_documents
from jaxformer.ablation.comparison import TaskDifference, compare_tasks
from jaxformer.ablation.finished_runs import FinishedRun, load_finished_run, paired_seeds, stack, stack_sources
from jaxformer.config import UserError, require
from jaxformer.experiment.change import differences
from jaxformer.experiment.experiment import Experiment
from jaxformer.run.folder import load_run
from jaxformer.run.metrics import MetricsReader, Series
from jaxformer.statistics.paired_difference import Difference, crossed_difference

# Seeds from which on the error of a difference counts how seeds differ, by their own differences.
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
    """What it left; None where it is not finished or its results are damaged."""
    lacking: str
    """Why there are no results; '' where there are."""


class Contrast(NamedTuple):
    """A run, or several that differ by their seeds, beside the first ones."""

    first: Sequence[ShownRun]
    other: Sequence[ShownRun]
    changes: Mapping[str, tuple[Any, Any]]
    """(first, other) of the fields that decide what is learned, by path."""
    difference: Difference | None
    """Of validation bits per byte, other minus first; None where they read no documents in common."""
    seeds: int
    """Pairs of runs with a seed in common that it is over; 0 for one of two runs with other seeds."""
    documents: int
    tasks: Mapping[str, TaskDifference]
    reservations: tuple[str, ...]
    """Why it is no evidence of what the changes do."""


def read_shown(workdir: Path) -> ShownRun:
    """Returns a run.

    Raises:
        UserError: it is none, or has no metrics yet.
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
    """Returns the runs of each further configuration beside those of the first one; they are told apart by science.

    Raises:
        UserError: all are of one configuration and seed.
    """
    arms: list[list[ShownRun]] = []
    for run in runs:
        arm = next((arm for arm in arms if not differences(arm[0].experiment, run.experiment)), None)
        if arm is None or run.record["seed"] in {each.record["seed"] for each in arm}:
            arms.append([run])
        else:
            arm.append(run)
    if len(arms) == 1:  # Seeds of one experiment: how much they differ is what can be seen.
        arms = [[run] for run in runs]
    return [_contrast(arms[0], arm) for arm in arms[1:]]


def _contrast(first: Sequence[ShownRun], other: Sequence[ShownRun]) -> Contrast:
    changes = differences(first[0].experiment, other[0].experiment)
    theirs, ours = ([run.finished for run in arm if run.finished] for arm in (first, other))
    pairs = paired_seeds(theirs, ours)
    reservations = [run.lacking for run in (*first, *other) if run.lacking]
    reservations += _reservations(len(pairs), changes) if theirs and ours else []
    pairs_read = pairs or [*zip(theirs[:1], ours[:1], strict=False)]  # Those of other seeds by their documents.
    if not pairs_read:
        return Contrast(first, other, changes, None, 0, 0, {}, tuple(reservations))
    parents, variants = ([pair[side] for pair in pairs_read] for side in (0, 1))
    flags, notes = check_comparable(parents, variants, declared={path: [*each] for path, each in changes.items()})
    corpora = [name for name, read in parents[0].validation.items() if len(set(read.sources.tolist())) > 1]
    difference, documents = None, 0
    if corpora and have_same_documents([*parents, *variants], corpora):
        (bits_SI, bytes_I, strata_I), (parent_SI, _, _) = stack(variants, corpora), stack(parents, corpora)
        sources_I, documents = stack_sources(parents[0], corpora), len(bytes_I)
        difference = crossed_difference(bits_SI - parent_SI, bytes_I, sources_I, strata_I=strata_I)
    reservations += dict.fromkeys([*flags, *notes])
    tasks = compare_tasks(variants, parents)
    return Contrast(first, other, changes, difference, len(pairs), documents, tasks, tuple(reservations))


def _reservations(seeds: int, changes: Mapping[str, Any]) -> list[str]:
    if not changes:
        return ["seeds of one experiment: how far apart they are is what a change must exceed"]
    if not seeds:
        return ["seeds: they share none, so that they began with other weights and read other batches"]
    if seeds < _FEWEST_SEEDS:
        return ["seeds: one, so that the error is that of the documents alone; other seeds may differ by more"]
    return []
