"""Several variants of one parent, on the same seeds: what is to be run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

from jaxformer.ablation.verdict import Rule
from jaxformer.config import Bounds, UserError, check_fields, require
from jaxformer.experiment.files import find_study, run_file
from jaxformer.experiment.variant import OF, Resolved, resolve
from jaxformer.flops import training_flops_per_token
from jaxformer.host.files import require_json
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
    """Seeds of each variant, from 0 on."""
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
    parent = resolve(study.parent)
    variants = []
    for name in study.variants:
        one = resolve(name)
        if OF not in name and study.parent not in {each.name for each in _ancestors(one)}:
            one = resolve(name, parent=study.parent)
        variants.append(one)
    names = [one.name for one in (parent, *variants)]
    for one in variants:
        missing = [each.name for each in one.parents if each.name not in names]
        require(not missing, f"{one.name} is compared with {', '.join(missing)}: add it to the study")
    return [parent, *variants]


def _ancestors(resolved: Resolved) -> list[Resolved]:
    return [each for parent in resolved.parents for each in (parent, *_ancestors(parent))]


def make_jobs(study: Study, runs: Path, seconds: Mapping[str, float]) -> list[Job]:
    """Returns the runs of a study: seed by seed, and of each seed the parents first.

    Args:
        seconds: of a run of each experiment, estimated.
    """
    resolved = resolve_study(study)
    jobs = []
    for seed in range(study.parent_seeds):
        for one in resolved if seed < study.seeds else resolved[:1]:
            processes = one.experiment.mesh.processes
            require(processes == 1, f"{one.name}: mesh.processes = {processes}, and a study starts one for each run")
            workdir = runs / one.name / f"seed_{seed}"
            arguments = (f"--experiment={one.name}", f"--seed={seed}", f"--workdir={typed(workdir)}")
            steps, devices = one.experiment.training.steps, one.experiment.mesh.devices
            jobs.append(Job(one.name, seed, arguments, workdir, steps, seconds[one.name], devices=devices))
    return jobs


def estimate_seconds(resolved: Sequence[Resolved], runs: Path, parent_seconds: float | None = None) -> dict[str, float]:
    """Returns the seconds of a run of each experiment: as its runs took, else as the parent's did for each FLOP.

    Args:
        parent_seconds: of the parent, where none of its runs is finished.
    """
    known = {one.name: _mean_seconds(runs / one.name) for one in resolved}
    parent, *_ = resolved
    base = known[parent.name] or parent_seconds
    if base is None:
        raise UserError(f"no run of {parent.name} is finished: give the seconds of one")
    return {one.name: known[one.name] or base * _flops(one) / _flops(parent) for one in resolved}


def _flops(resolved: Resolved) -> float:
    experiment = resolved.experiment
    tokens = experiment.training.steps * experiment.training.rows_per_step * experiment.packing.row_length
    return tokens * training_flops_per_token(experiment.model, experiment.packing.row_length)


def _mean_seconds(folder: Path) -> float | None:
    seconds = [float(require_json(path)["seconds"]) for path in folder.glob("seed_*/summary.json")]
    return float(np.mean(seconds)) if seconds else None
