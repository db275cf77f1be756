"""Earlier runs that were trained or evaluated otherwise than runs that would start now."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.ablation.comparability import ALLOWABLE
from jaxformer.ablation.training_jobs import experiment_of
from jaxformer.config import UserError, require
from jaxformer.evaluation.config import task_names
from jaxformer.experiment.lineage import Resolved
from jaxformer.host.files import read_json_or_empty
from jaxformer.jobs.launch import Job
from jaxformer.jobs.queue import OVER, State, state_on_disk
from jaxformer.run.earlier_runs import differences_from_now, made_with
from jaxformer.run.folder import evaluations_folder
from jaxformer.run.identity import CONFIG, evaluated_with

# Run folders that are named in one line.
_NAMED = 3


class EarlierRuns(NamedTuple):
    """Folders of runs that were made otherwise than a run that would start now."""

    trained_otherwise: list[Path]
    """Trained with other code, data, versions, options or on another device."""
    evaluated_otherwise: list[Path]
    """Finished, and evaluated by other code than would evaluate now."""


def find_earlier(
    jobs: Sequence[Job],
    now: Mapping[str, Mapping[str, Any]],
    *,
    ended: Sequence[Job] = (),
    allow: Collection[str] = (),
    retrain: bool = False,
) -> EarlierRuns:
    """Returns which runs were made otherwise than those that would start now.

    Args:
        jobs: the runs to make, if they are not over.
        now: by name of the experiment, as `differences_from_now` takes it.
        ended: further runs, which have ended and will be compared with those.
        allow: kinds of differences that do not count.
        retrain: runs that were trained otherwise will be set aside.

    Raises:
        UserError: new runs could not be compared with earlier ones, and those are not to be set aside.
    """
    everything, differing = {job.workdir: job for job in (*jobs, *ended)}.values(), {}
    for job in everything:
        found = differences_from_now(job.workdir, now[experiment_of(job)])
        if kinds := {kind: how for kind, how in found.items() if kind not in allow}:
            differing[job] = kinds
    states = {job.workdir: state_on_disk(job.workdir, job.log)[0] for job in everything}
    is_any_to_start = any(states[job.workdir] not in OVER | {State.ELSEWHERE} for job in jobs)
    if retrain:
        running = [str(job) for job in differing if states[job.workdir] is State.ELSEWHERE]
        require(not running, f"{', '.join(running)}: it is running, and cannot be set aside; stop it first")
    elif differing and is_any_to_start:
        raise UserError(_refusal(differing))
    moved = [job.workdir for job in differing] if retrain else []
    finished = [path for path, state in states.items() if state is State.FINISHED and path not in moved]
    return EarlierRuns(moved, _evaluated_otherwise(finished, allow, always=is_any_to_start or bool(moved)))


def _refusal(differing: Mapping[Job, Mapping[str, str]]) -> str:
    kinds = {kind: how for found in differing.values() for kind, how in found.items()}
    what = ", ".join(f"other {kind} ({how})" for kind, how in kinds.items())
    names = [str(job) for job in differing]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    is_allowable = all(kind in ALLOWABLE for kind in kinds)
    as_they_are = f"; --allow={','.join(kinds)} compares them as they are" if is_allowable else ""
    return (
        f"{', '.join(names[:_NAMED])}{more}: trained with {what}, so that new runs cannot be compared with them; "
        f"restore that, or use --retrain to set them aside and train them again{as_they_are}"
    )


def _evaluated_otherwise(finished: Sequence[Path], allow: Collection[str], *, always: bool) -> list[Path]:
    """Returns the finished runs that were evaluated otherwise than they would be now, if they must agree.

    Args:
        always: they must agree with new runs; otherwise with each other.
    """
    now = {name: value for name, value in evaluated_with().items() if name not in allow}
    evaluations = {workdir: _evaluations(workdir, now.keys()) for workdir in finished}
    must_agree = always or any(each != found for found in evaluations.values() for each in evaluations.values())
    return [workdir for workdir, found in evaluations.items() if must_agree and any(each != now for each in found)]


def own_results(record: Mapping) -> list[str]:
    """Returns the names of the results that a run makes at its end, and that `jaxformer evaluate` can make again.

    Args:
        record: the run's `config.json`.
    """
    config = record.get("config", {}).get("evaluation", {})
    return ["validation", *(task_names(config.get("tasks", "")) if config.get("task_data") else [])]


def _evaluations(workdir: Path, kinds: Collection[str]) -> list[dict]:
    """Returns what the evaluations of a finished run, with its own tasks, were made with; {} for a missing one.

    Args:
        workdir: of the run.
        kinds: of differences that count.
    """
    record, summary = (read_json_or_empty(workdir / name) for name in (CONFIG, "summary.json"))
    folder = evaluations_folder(workdir, summary.get("steps", 0))
    found = [read_json_or_empty(folder / f"{name}.json") for name in own_results(record)]
    distinct = []
    for each in ({name: each.get(name, {}) for name in kinds} if each else {} for each in found):
        distinct += [each] if each not in distinct else []
    return distinct


def describe_now(resolved: Sequence[Resolved], device_kind: str) -> dict[str, dict[str, Any]]:
    """Returns, by name, what a new run of each experiment is made with, without its data."""
    return {one.name: made_with(device_kind) | {"own_code": dict(one.lineage.own_code)} for one in resolved}
