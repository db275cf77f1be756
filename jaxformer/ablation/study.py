"""Several variants of one parent, on the same seeds: what is to be run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

from jaxformer.ablation.verdict import Rule
from jaxformer.config import Bounds, UserError, check_fields, require
from jaxformer.experiment.files import find_study, run_file
from jaxformer.experiment.variant import OF, Resolved, ancestors, resolve
from jaxformer.flops import training_flops_per_token
from jaxformer.host.files import read_json_or_empty
from jaxformer.host.paths import typed
from jaxformer.jobs.launch import Job


@dataclass(frozen=True, kw_only=True)
class Study:
    """Questions to one parent, and the rule by which they will be decided."""

    parent: str
    """The experiment that each variant changes."""
    variants: tuple[str, ...]
    """Names; one whose file has another parent is applied to this one: `swiglu` of `laptop` is `swiglu@laptop`."""
    seeds: Annotated[int, Bounds(at_least=1, at_most=1000)] = 3
    """Seeds of each variant, from 0 on, or from the `first_seed` of a promoted parent."""
    parent_seeds: int = 3
    """Seeds of the parent, at least as many: more make its noise better known."""
    rule: Rule = field(default_factory=Rule)

    def __post_init__(self):
        check_fields(self)
        require(bool(self.variants), "a study needs a variant")
        for name in (self.parent, *self.variants):
            is_path = "/" in name or name.endswith(".py")
            require(not is_path, f"a study names its experiments, and {name} is a path; put the file in experiments/")
        require(len(set(self.variants)) == len(self.variants), "a study names a variant twice")
        require(
            self.parent_seeds >= self.seeds, f"parent_seeds ({self.parent_seeds}) must be at least seeds ({self.seeds})"
        )


def load_study(name_or_path: str) -> Study:
    """Returns the study that a file assigns to `STUDY`, found at a path or by its name.

    Raises:
        UserError: there is none.
    """
    return run_file(find_study(name_or_path), "STUDY", (Study,), "study")


def choose_study(
    name_or_path: str | None,
    parent: str | None,
    variants: str | None,
    *,
    seeds: int = Study.seeds,
    parent_seeds: int = Study.parent_seeds,
) -> Study:
    """Returns the study of a file, or of a parent and its variants, separated by commas, in place of one.

    Raises:
        UserError: neither is given, both are, or there is no such study.
    """
    if name_or_path:
        require(not (parent or variants), "give --study, or --parent and --variants, not both")
        return load_study(name_or_path)
    names = tuple(name.strip() for name in (variants or "").split(",") if name.strip())
    if not (parent and names):
        raise UserError("give --study, or --parent and --variants")
    return Study(parent=parent, variants=names, seeds=seeds, parent_seeds=parent_seeds)


def resolve_study(study: Study) -> list[Resolved]:
    """Returns the parent and its variants, each checked to be one change.

    Raises:
        UserError: one is none.
    """
    experiments, refused = resolve_what_can_be(study)
    for error in refused.values():
        raise error
    return experiments


def resolve_what_can_be(study: Study) -> tuple[list[Resolved], dict[str, UserError]]:
    """Returns the parent and the variants that are one change each, and of the others, by name, why they are none.

    Raises:
        UserError: the parent is none, or no variant is one.
    """
    experiments, refused = [resolve(study.parent)], {}
    for name in study.variants:
        try:
            one = resolve(name)
            if OF not in name and study.parent not in {each.name for each in ancestors(one)}:
                one = resolve(name, parent=study.parent)
            _check_beginning(experiments[0], one)
            experiments.append(one)
        except UserError as error:
            refused[name] = error
    while orphans := {one.name: missing for one in experiments if (missing := _missing_parents(one, experiments))}:
        experiments = [one for one in experiments if one.name not in orphans]
        for name, missing in orphans.items():
            refused[name] = UserError(f"{name} is compared with {', '.join(missing)}: add it to the study")
    if len(experiments) == 1:
        raise next(iter(refused.values()))
    return experiments, refused


def _check_beginning(parent: Resolved, one: Resolved) -> None:
    """Raises `UserError` where one of two experiments starts from trained weights, and the other from scratch.

    Their difference would be that of the training before, and their seeds draw unlike things.
    """
    trained, drawn = (parent, one) if parent.experiment.init_from else (one, parent)
    require(
        bool(trained.experiment.init_from) == bool(drawn.experiment.init_from),
        f"{trained.name} starts from trained weights ({trained.experiment.init_from}) and {drawn.name} from scratch: "
        "they are not compared; give all of a study the same init_from, or none",
    )


def _missing_parents(one: Resolved, experiments: Sequence[Resolved]) -> list[str]:
    names = [each.name for each in experiments]
    return [each.name for each in one.parents if each.name not in names] if one is not experiments[0] else []


def make_jobs(study: Study, runs: Path, seconds: Mapping[str, float]) -> list[Job]:
    """Returns the runs of a study: seed by seed, and of each seed the parents first.

    Nothing begins before the first seed of the study's parent is seen to train; a variant, not before the first and the
    same seed of the one that it changes are.

    Args:
        seconds: of a run of each experiment, estimated.
    """
    resolved = _parents_first(resolve_study(study))
    first = resolved[0].first_seed
    names = {one.name for one in resolved}  # The study's parent may change another, which is no part of the study.
    jobs = []
    for seed in range(first, first + study.parent_seeds):
        for one in resolved if seed < first + study.seeds else resolved[:1]:
            processes = one.experiment.mesh.processes
            require(processes == 1, f"{one.name}: mesh.processes = {processes}, and a study starts one for each run")
            workdir = runs / one.name / f"seed_{seed}"
            arguments = (f"--experiment={one.name}", f"--seed={seed}", f"--workdir={typed(workdir)}")
            steps, devices = one.experiment.training.steps, one.experiment.mesh.devices
            changed = [each.name for each in one.parents[:1] if each.name in names]
            needed = [(study.parent, first), *((name, s) for name in changed for s in (first, seed))]
            needs = dict.fromkeys(runs / name / f"seed_{s}" for name, s in needed if (name, s) != (one.name, seed))
            jobs.append(Job(one.name, seed, arguments, workdir, steps, seconds[one.name], tuple(needs), devices))
    return jobs


def _parents_first(resolved: Sequence[Resolved]) -> list[Resolved]:
    """Returns experiments in their order, but each behind those of its parents that are among them."""
    waiting, ordered = list(resolved), []
    while waiting:
        names = {one.name for one in waiting}
        one = next(one for one in waiting if not names & {each.name for each in one.parents})
        ordered.append(one)
        waiting.remove(one)
    return ordered


def estimate_seconds(resolved: Sequence[Resolved], runs: Path, parent_seconds: float | None = None) -> dict[str, float]:
    """Returns the seconds of a run of each experiment: as its runs took, else as the parent's did for each FLOP.

    Args:
        parent_seconds: of the parent, where none of its runs is finished.
    """
    known = {one.name: mean_seconds(runs / one.name) for one in resolved}
    parent, *_ = resolved
    base = known[parent.name] or parent_seconds
    if base is None:
        raise UserError(f"no run of {parent.name} is finished: give the seconds of one")
    return {one.name: known[one.name] or base * _flops(one) / _flops(parent) for one in resolved}


def _flops(resolved: Resolved) -> float:
    experiment = resolved.experiment
    tokens = experiment.training.steps * experiment.training.rows_per_step * experiment.packing.row_length
    return tokens * training_flops_per_token(experiment.model, experiment.packing.row_length)


def mean_seconds(folder: Path) -> float | None:
    """Returns the mean over the runs whose summary holds it, or None; a damaged one is for the run to refuse."""
    seconds = [read_json_or_empty(path).get("seconds") for path in folder.glob("seed_*/summary.json")]
    known = [each for each in seconds if isinstance(each, int | float) and 0 < each < math.inf]
    return float(np.mean(known)) if known else None
