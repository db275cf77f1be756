"""What can be known before the first step of a study, checked before it: its files, its data and its earlier runs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.ablation.comparability import ALLOWABLE
from jaxformer.config import UserError, require
from jaxformer.data.corpus import check_sources
from jaxformer.evaluation.config import task_names
from jaxformer.evaluation.task_scores import load_tasks
from jaxformer.evaluation.validation import ValidationSet
from jaxformer.experiment.experiment import Experiment
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.files import read_json_or_empty
from jaxformer.jobs.launch import Job
from jaxformer.jobs.queue import OVER, State, state_on_disk
from jaxformer.run.earlier_runs import differences_from_now, made_with
from jaxformer.run.folder import evaluations_folder
from jaxformer.run.identity import CONFIG, evaluated_with
from jaxformer.run.init_from import check_fits, find_weights, with_tokenizer
from jaxformer.run.inputs import digests, prepare_data

# Run folders that are named in one line.
_NAMED = 3


class EarlierRuns(NamedTuple):
    """Run folders of a study that were made with something else than a run that would start now."""

    trained_otherwise: list[Path]
    """Trained with other code, data, versions, options or on another device."""
    evaluated_otherwise: list[Path]
    """Finished, and evaluated by other code than would evaluate now."""


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
        return e.corpus, e.tokenizer, e.packing, e.evaluation, e.training.rows_per_step, model, e.init_from

    found = {}
    for one in _distinct(resolved, read_by):
        experiment = one.experiment
        try:
            if initial := find_weights(experiment.init_from, runs / one.name / "seed_0"):
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


def check_earlier(
    jobs: Sequence[Job], now: Mapping[str, Mapping[str, Any]], *, allow: Collection[str] = (), retrain: bool = False
) -> EarlierRuns:
    """Returns which runs of a study were made otherwise than those that would start now.

    Args:
        jobs: the runs of the study.
        now: by name of the experiment, as `differences_from_now` takes it.
        allow: kinds of differences that do not count.
        retrain: what was trained otherwise will be moved aside.

    Raises:
        UserError: runs that are to start could not be compared with earlier ones, and those are not to be moved aside.
    """
    differing = {}
    for job in jobs:
        found = differences_from_now(job.workdir, now[job.experiment])
        if kinds := {kind: how for kind, how in found.items() if kind not in allow}:
            differing[job] = kinds
    states = {job: state_on_disk(job.workdir, job.log)[0] for job in jobs}
    is_any_to_start = any(state not in OVER | {State.ELSEWHERE} for state in states.values())
    if retrain:
        running = [str(job) for job in differing if states[job] is State.ELSEWHERE]
        require(not running, f"{', '.join(running)}: it runs, and cannot be moved aside; stop it first")
    elif differing and is_any_to_start:
        raise UserError(_refusal(differing))
    moved = [job.workdir for job in differing] if retrain else []
    finished = [job.workdir for job in jobs if states[job] is State.FINISHED and job.workdir not in moved]
    return EarlierRuns(moved, _evaluated_otherwise(finished, allow, always=is_any_to_start or bool(moved)))


def _refusal(differing: Mapping[Job, Mapping[str, str]]) -> str:
    kinds = {kind: how for found in differing.values() for kind, how in found.items()}
    what = ", ".join(f"other {kind} ({how})" for kind, how in kinds.items())
    names = [str(job) for job in differing]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    is_allowable = all(kind in ALLOWABLE for kind in kinds)
    as_they_are = f"; --allow={','.join(kinds)} compares them as they are" if is_allowable else ""
    return (
        f"{', '.join(names[:_NAMED])}{more}: trained with {what}, so that runs that start now would not be compared "
        f"with them; put that back, or --retrain keeps them aside and trains them anew{as_they_are}"
    )


def _evaluated_otherwise(finished: Sequence[Path], allow: Collection[str], *, always: bool) -> list[Path]:
    """Returns the finished runs that were evaluated by something else than would evaluate now, if they must agree.

    Args:
        always: they must agree with runs to come; otherwise with each other.
    """
    now = {name: value for name, value in evaluated_with().items() if name not in allow}
    evaluations = {workdir: _evaluations(workdir, now.keys()) for workdir in finished}
    must_agree = always or any(each != found for found in evaluations.values() for each in evaluations.values())
    return [workdir for workdir, found in evaluations.items() if must_agree and any(each != now for each in found)]


def own_results(record: Mapping) -> list[str]:
    """Returns the names of the results that a run makes at its end, and `jaxformer evaluate` again.

    Args:
        record: the run's `config.json`.
    """
    config = record.get("config", {}).get("evaluation", {})
    return ["validation", *(task_names(config.get("tasks", "")) if config.get("task_data") else [])]


def _evaluations(workdir: Path, kinds: Collection[str]) -> list[dict]:
    """Returns what the evaluations of a finished run, of its own tasks too, were made with; {} of one that is gone.

    Args:
        workdir: of the run.
        kinds: of what it may be made with, those that count.
    """
    record, summary = (read_json_or_empty(workdir / name) for name in (CONFIG, "summary.json"))
    folder = evaluations_folder(workdir, summary.get("steps", 0))
    found = [read_json_or_empty(folder / f"{name}.json") for name in own_results(record)]
    distinct = []
    for each in ({name: each.get(name, {}) for name in kinds} if each else {} for each in found):
        distinct += [each] if each not in distinct else []
    return distinct


def describe_now(resolved: Sequence[Resolved], device_kind: str) -> dict[str, dict[str, Any]]:
    """Returns, by name, what a run of each experiment that starts now is made with, without its data."""
    return {one.name: made_with(device_kind) | {"own_code": dict(one.lineage.own_code)} for one in resolved}
