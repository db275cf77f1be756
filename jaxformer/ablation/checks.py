"""Checks before the first step of a study: its files, its data and its earlier runs."""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.another_process import in_another_process
from jaxformer.ablation.earlier import EarlierRuns, describe_now, find_earlier
from jaxformer.ablation.study import estimate_seconds, mean_seconds
from jaxformer.ablation.training_jobs import Planned
from jaxformer.config import UserError, require
from jaxformer.data.corpus import check_sources
from jaxformer.devices.device import choose_device, keep_compiled, out_of_memory_reported
from jaxformer.devices.options import fixed_options
from jaxformer.evaluation.task_scores import load_tasks
from jaxformer.evaluation.validation import ValidationSet
from jaxformer.experiment.experiment import Experiment, spans_of
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.gpu_memory import share_of_gpus
from jaxformer.jobs.launch import share_of_cores
from jaxformer.plan.run_time import estimate_run_seconds
from jaxformer.run.earlier_runs import check_earlier_runs
from jaxformer.run.init_from import check_fits, find_weights, with_tokenizer
from jaxformer.run.inputs import digests, prepare_data

# The status of the process that uses the device.
_CHECKS = "checking the data and earlier runs"


class Checked(NamedTuple):
    """Runs that passed the checks."""

    seconds: dict[str, float]
    """Seconds that a run of each experiment will take, estimated."""
    earlier: EarlierRuns


def check_runs(
    plan: Callable[[Path], Planned],
    runs: Path,
    *,
    allow: Collection[str] = (),
    retrain: bool = False,
    prepare: bool = True,
    parallel: int = 1,
) -> Checked:
    """Checks all that can be checked before the first step of runs; returns what they will take.

    Args:
        plan: returns the planned runs, given the folder of all run folders. It is called in other processes too, so it
            is a function of a module, or a `functools.partial` of one, such as of `plan_study`.
        runs: folder of all run folders.
        allow: kinds of differences from earlier runs that do not count.
        retrain: earlier runs that were made otherwise will be set aside.
        prepare: prepares the data and checks them.
        parallel: how many will run at a time.

    Raises:
        UserError: an experiment has changed since runs of it were trained, its files or data are missing or cannot be
            compared on, or runs to come could not be compared with earlier ones; and as of `plan`.
    """
    earlier = in_another_process(_CHECKS, _check, plan, runs, tuple(allow), retrain, prepare)
    planned = plan(runs)
    timed = {}
    if _to_time(planned, runs):
        with share_of_cores(0, parallel):
            timed = in_another_process("timing a step", _time_steps, plan, runs, parallel)
    return Checked(estimate_seconds(planned.experiments, runs, timed), earlier)


@fixed_options()
def _check(
    plan: Callable[[Path], Planned], runs: Path, allow: tuple[str, ...], retrain: bool, prepare: bool
) -> EarlierRuns:
    experiments, jobs, ended, _ = plan(runs)
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


def _to_time(planned: Planned, runs: Path) -> list[Resolved]:
    """Returns the experiments whose step must be timed, since no run shows how long it takes."""
    experiments = planned.experiments if planned.times_each else planned.experiments[:1]
    return [one for one in experiments if mean_seconds(runs / one.name) is None]


def _time_steps(plan: Callable[[Path], Planned], runs: Path, parallel: int) -> dict[str, float]:
    """Returns, by name, the seconds of a run, from a timed step with a run's share of the GPUs."""
    keep_compiled()  # The runs find what is compiled for an estimate.
    experiments = _to_time(plan(runs), runs)
    if not experiments:  # Their runs have finished since, as those of a killed command.
        return {}
    devices = max(one.experiment.mesh.devices for one in experiments)
    os.environ.update(share_of_gpus(0, parallel, devices) if parallel > 1 else {})
    choose_device(experiments[0].experiment.training.device)
    with out_of_memory_reported():
        return {one.name: estimate_run_seconds(one.experiment) for one in experiments}


def check_files(resolved: Sequence[Resolved]) -> None:
    """Raises `UserError` if corpora or tasks of experiments that should lie on this machine are missing."""
    for one in _distinct(resolved, lambda experiment: (experiment.corpus, experiment.evaluation)):
        try:
            check_sources(one.experiment.corpus)
            load_tasks(one.experiment.evaluation)
        except UserError as error:
            raise UserError(f"{one.name}: {error}") from error


def prepare_study(resolved: Sequence[Resolved], runs: Path) -> dict[str, dict[str, str]]:
    """Prepares the data of experiments, each once; returns their digests by name, without what depends on a seed.

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
    """Returns the first experiment of each key."""
    first = {}
    for one in resolved:
        first.setdefault(key(one.experiment), one)
    return list(first.values())


def _check_validation(validation: ValidationSet) -> None:
    sources = len(np.unique(validation.shards.sources[validation.documents]))
    require(
        sources > 1,
        f"corpus {validation.name}: it is validated on one document, or on pieces of one file. Nothing can be "
        "compared, since that does not show how documents vary: raise evaluation.validation_bytes or "
        "corpus.validation_share, or give it more files",
    )
