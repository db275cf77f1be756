"""What can be known before the first step of a study, checked before it: its files, its data and its earlier runs."""

import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.another_process import in_another_process
from jaxformer.ablation.earlier import EarlierRuns, describe_now, find_earlier
from jaxformer.ablation.finished_runs import ended_seeds
from jaxformer.ablation.ladder import Ladder, make_rungs
from jaxformer.ablation.screening import make_screening_jobs, resolve_rows
from jaxformer.ablation.study import (
    Screening,
    Study,
    ended_jobs,
    estimate_seconds,
    make_jobs,
    mean_seconds,
    resolve_study,
    seeds_of,
    with_root,
)
from jaxformer.ablation.training_jobs import make_job
from jaxformer.ablation.tuning import make_search, runs_to_come
from jaxformer.config import UserError, require
from jaxformer.data.corpus import check_sources
from jaxformer.devices.device import choose_device, keep_compiled, out_of_memory_reported
from jaxformer.devices.options import fixed_options
from jaxformer.evaluation.task_scores import load_tasks
from jaxformer.evaluation.validation import ValidationSet
from jaxformer.experiment.experiment import Experiment, spans_of
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.gpu_memory import share_of_memory
from jaxformer.jobs.launch import Job, share_of_cores
from jaxformer.plan.run_time import estimate_run_seconds
from jaxformer.run.earlier_runs import check_earlier_runs
from jaxformer.run.init_from import check_fits, find_weights, with_tokenizer
from jaxformer.run.inputs import digests, prepare_data

# What the process is doing that looks at the device.
_CHECKS = "checking the data and earlier runs"


class Checked(NamedTuple):
    """What can be run."""

    seconds: dict[str, float]
    """Seconds that a run of each experiment will take, estimated."""
    earlier: EarlierRuns


def check_study(
    study: Study,
    runs: Path,
    *,
    allow: Collection[str] = (),
    retrain: bool = False,
    prepare: bool = True,
    jobs: Sequence[Job] | None = None,
    parallel: int = 1,
) -> Checked:
    """Returns what the runs of a study will take, once all that can be known before the first step is checked.

    Args:
        runs: folder of all run folders.
        allow: kinds of differences from earlier runs that do not count.
        retrain: earlier runs that were made otherwise will be moved aside.
        prepare: prepares the data, which are checked then too.
        jobs: the runs of its experiments that are to be made; those of the study if they are not given.
        parallel: how many will run at a time.

    Raises:
        UserError: an experiment has moved since runs of it were trained, its files or data are missing or cannot be
            compared on, or runs to come could not be compared with earlier ones.
    """
    earlier = in_another_process(_CHECKS, _check_study, study, runs, tuple(allow), retrain, prepare, jobs)
    return Checked(_estimate(with_root(resolve_study(study)), runs, parallel), earlier)


def check_tuning(
    experiment: str,
    parent: str,
    runs: Path,
    seeds: int,
    *,
    allow: Collection[str] = (),
    retrain: bool = False,
    parallel: int = 1,
) -> Checked:
    """Returns what the runs will take by which an experiment is tuned, checked as those of a study are.

    Args:
        experiment, parent: as of `make_search`.
        seeds: of each of the best rates.
        runs, allow, retrain, parallel: as of `check_study`.

    Raises:
        UserError: as of `check_study`.
    """
    earlier = in_another_process(_CHECKS, _check_tuning, experiment, parent, runs, seeds, tuple(allow), retrain)
    return Checked(_estimate([make_search(experiment, parent, runs).own], runs, parallel), earlier)


def check_ladder(
    ladder: Ladder,
    runs: Path,
    *,
    allow: Collection[str] = (),
    retrain: bool = False,
    prepare: bool = True,
    parallel: int = 1,
) -> Checked:
    """Returns what the runs of a ladder will take, checked as those of a study are.

    Args:
        runs, allow, retrain, prepare, parallel: as of `check_study`.

    Raises:
        UserError: as of `check_study`.
    """
    earlier = in_another_process(_CHECKS, _check_ladder, ladder, runs, tuple(allow), retrain, prepare)
    with share_of_cores(0, parallel):
        seconds = in_another_process("timing a step of each size", _estimate_ladder, ladder, runs, parallel)
    return Checked(seconds, earlier)


@fixed_options()
def _check_ladder(ladder: Ladder, runs: Path, allow: tuple[str, ...], retrain: bool, prepare: bool) -> EarlierRuns:
    rungs = make_rungs(ladder)
    jobs = [job for rung in rungs for job in rung.jobs(runs, math.nan)]
    ended = [make_job(one.resolved, n, runs, math.nan) for one in rungs for n in ended_seeds(runs / one.name)]
    resolved = [rung.resolved for rung in rungs]
    return _check(resolved, runs, jobs, ended, allow=allow, retrain=retrain, prepare=prepare)


def _estimate_ladder(ladder: Ladder, runs: Path, parallel: int) -> dict[str, float]:
    """Returns the seconds of a run of each size: as its runs took, else by timing its own step."""
    resolved = [rung.resolved for rung in make_rungs(ladder)]
    return {one.name: mean_seconds(runs / one.name) or _estimate_run(one.experiment, parallel) for one in resolved}


def check_screening(
    screening: Screening,
    runs: Path,
    *,
    allow: Collection[str] = (),
    retrain: bool = False,
    prepare: bool = True,
    parallel: int = 1,
) -> Checked:
    """Returns what the runs of a screening will take, checked as those of a study are.

    Args:
        runs, allow, retrain, prepare, parallel: as of `check_study`.

    Raises:
        UserError: as of `check_study` and `resolve_rows`.
    """
    earlier = in_another_process(_CHECKS, _check_screening, screening, runs, tuple(allow), retrain, prepare)
    return Checked(_estimate(resolve_rows(screening), runs, parallel), earlier)


@fixed_options()
def _check_screening(
    screening: Screening, runs: Path, allow: tuple[str, ...], retrain: bool, prepare: bool
) -> EarlierRuns:
    rows = resolve_rows(screening)
    jobs = make_screening_jobs(screening, rows, runs)
    return _check(rows, runs, jobs, [], allow=allow, retrain=retrain, prepare=prepare)


@fixed_options()
def _check_study(
    study: Study,
    runs: Path,
    allow: tuple[str, ...],
    retrain: bool,
    prepare: bool,
    jobs: Sequence[Job] | None,
) -> EarlierRuns:
    resolved, ended = resolve_study(study), []
    if jobs is None:
        now, later = make_jobs(study, runs)
        jobs, ended = [*now, *later], ended_jobs(study, runs)
    return _check(with_root(resolved), runs, jobs, ended, allow=allow, retrain=retrain, prepare=prepare)


@fixed_options()
def _check_tuning(
    name_or_path: str, parent: str, runs: Path, seeds: int, allow: tuple[str, ...], retrain: bool
) -> EarlierRuns:
    search = make_search(name_or_path, parent, runs)
    jobs = [search.job(octave, seed) for octave, seed in runs_to_come(search.trials(seeds), seeds)]
    ended = search.ended_jobs(seeds_of([search.own]))
    return _check([search.own], runs, jobs, ended, allow=allow, retrain=retrain, prepare=True)


def _check(
    experiments: Sequence[Resolved],
    runs: Path,
    jobs: Sequence[Job],
    ended: Sequence[Job],
    *,
    allow: Collection[str],
    retrain: bool,
    prepare: bool,
) -> EarlierRuns:
    """Args: jobs and ended: of `find_earlier`."""
    device = choose_device(experiments[0].experiment.training.device)  # Before anything looks for devices.
    for one in experiments:
        check_earlier_runs(runs, one)
    check_files(experiments)
    now = describe_now(experiments, device.device_kind)
    earlier = find_earlier(jobs, now, ended=ended, allow=allow, retrain=retrain)
    if prepare:
        for name, digests in prepare_study(experiments, runs).items():
            now[name]["digests"] = digests
        earlier = find_earlier(jobs, now, ended=ended, allow=allow, retrain=retrain)
    return earlier


def _estimate(experiments: Sequence[Resolved], runs: Path, parallel: int) -> dict[str, float]:
    """Returns the seconds that a run of each experiment takes beside so many, by name.

    Where none of the first experiment is finished its step is timed, with the share of the cores and of a GPU's memory
    that a run has.
    """
    parent, seconds = experiments[0], None
    if mean_seconds(runs / parent.name) is None:
        with share_of_cores(0, parallel):
            seconds = in_another_process("timing a step", _estimate_run, parent.experiment, parallel)
    return estimate_seconds(experiments, runs, seconds)


def _estimate_run(experiment: Experiment, parallel: int) -> float:
    os.environ.update(share_of_memory(parallel) if parallel > 1 else {})
    keep_compiled()  # What is compiled for an estimate, the runs find.
    choose_device(experiment.training.device)
    with out_of_memory_reported():
        return estimate_run_seconds(experiment)


def check_files(resolved: Sequence[Resolved]) -> None:
    """Raises `UserError` unless the corpora and tasks of experiments are there, as far as they lie on this machine."""
    for one in _distinct(resolved, lambda experiment: (experiment.corpus, experiment.evaluation)):
        try:
            check_sources(one.experiment.corpus)
            load_tasks(one.experiment.evaluation)
        except UserError as error:
            raise UserError(f"{one.name}: {error}") from error


def prepare_study(resolved: Sequence[Resolved], runs: Path) -> dict[str, dict[str, str]]:
    """Prepares the data of experiments, each once; returns by name what identifies them, without what a seed draws.

    Raises:
        UserError: they cannot be trained on, or a corpus has a single independent validation document.
    """

    def read_by(e: Experiment) -> tuple:
        model = e.model if e.init_from else e.model.vocabulary_size
        return (
            e.corpus,
            e.tokenizer,
            e.packing,
            e.evaluation,
            spans_of(e) if e.training.phases else e.training.rows_per_step,
            model,
            e.init_from,
        )

    found = {}
    for one in _distinct(resolved, read_by):
        experiment = one.experiment
        try:
            if initial := find_weights(experiment.init_from, runs / one.name / f"seed_{one.first_seed}"):
                check_fits(experiment, initial)
                experiment = with_tokenizer(experiment, initial.folder)
            data = prepare_data(experiment, seed=0)
            for validation in data.validation:
                _check_validation(validation)
        except UserError as error:
            raise UserError(f"{one.name}: {error}") from error
        fixed = {name: digest for name, digest in digests(data).items() if not name.startswith("plan.")}
        found[read_by(one.experiment)] = fixed
    return {one.name: found[read_by(one.experiment)] for one in resolved}


def _distinct(resolved: Sequence[Resolved], key: Callable[[Experiment], tuple]) -> list[Resolved]:
    """Returns of the experiments of each key the first."""
    first = {}
    for one in resolved:
        first.setdefault(key(one.experiment), one)
    return list(first.values())


def _check_validation(validation: ValidationSet) -> None:
    sources = len(np.unique(validation.shards.sources[validation.documents]))
    require(
        sources > 1,
        f"corpus {validation.name}: it is validated on one document, or on pieces of one file, which do not show how "
        "documents vary, so that nothing could be compared; raise evaluation.validation_bytes or "
        "corpus.validation_share, or give it more files",
    )
