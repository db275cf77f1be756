"""Several variants of one parent, on the same seeds: what is to be run."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from jaxformer.ablation.tuning import Ladder, bits_of, foreseen, wanted
from jaxformer.ablation.verdict import Rule
from jaxformer.config import Bounds, UserError, check_fields, require
from jaxformer.experiment.files import find_study, run_file
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.resolution import resolve, resolve_variant_of
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
    """Names; one whose file has another parent is applied to this one: `swiglu` of `laptop` is `swiglu@laptop`. Those
    that are retuned (`Variant.retune`) are compared with their parent each at its best learning rate.
    """
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
            one = resolve_variant_of(experiments[0], name)
            _check_beginning(experiments[0], one)
            experiments.append(one)
        except UserError as error:
            refused[name] = error
    refused |= {one.name: error for one in experiments[1:] if (error := _other_ancestor(one, experiments))}
    experiments = [one for one in experiments if one.name not in refused]
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


def _other_ancestor(one: Resolved, experiments: Sequence[Resolved]) -> UserError | None:
    """Returns why an experiment is not compared with others: an ancestor has the name of one, and is another."""
    by_name = {each.name: each for each in experiments}
    for each in one.ancestors:
        if each.name in by_name and not each.is_same(by_name[each.name]):
            return UserError(f"{one.name} changes another {each.name} than the study's, of the same name: rename one")
    return None


def _missing_parents(one: Resolved, experiments: Sequence[Resolved]) -> list[str]:
    """Returns the names of what an experiment is compared with that is not among others."""
    names = [each.name for each in experiments]
    return [each.name for each in one.parents[:1] if each.name not in names] if one is not experiments[0] else []


class Jobs(NamedTuple):
    """The runs of a study, seed by seed, of each seed the parents first, and of each experiment its own rate."""

    now: list[Job]
    """Those that are wanted by what is known."""
    later: list[Job]
    """Those that will be wanted of what is retuned, if the best learning rates so far turn out to be the best."""


# Seeds that are set aside for each generation of parents: its studies use those from `first_seed` on.
SEEDS_OF_A_GENERATION = 1000

# (seed, name of the experiment, octaves from its own learning rate).
_Key = tuple[int, str, float]


def make_jobs(study: Study, runs: Path, seconds: Mapping[str, float]) -> Jobs:
    """Returns the runs of a study: of what is retuned, those that `tuning.wanted` asks for after what is finished.

    Nothing begins before the first seed of the study's parent is seen to train; what is compared at its parent's rate,
    not before the first and the same seed of that parent are.

    Args:
        seconds: of a run of each experiment, estimated.
    """
    resolved = _parents_first(resolve_study(study))
    first = resolved[0].first_seed
    order = {one.name: place for place, one in enumerate(resolved)}
    own = _own_jobs(study, resolved, runs, seconds)
    tried, later = _tried_jobs(study, resolved, runs, seconds)
    now = tried | own

    def place(key: _Key) -> tuple:
        seed, name, octave = key
        return seed, order[name], octave != 0, octave

    def needs(key: _Key) -> tuple[Path, ...]:
        seed, name, _ = key
        # The study's parent may change another, which is no part of the study.
        changed = [each.name for each in resolved[order[name]].parents[:1] if each.name in order and key in own]
        needed = [(study.parent, first), *((each, s) for each in changed for s in (first, seed))]
        folders = dict.fromkeys(runs / each / f"seed_{s}" for each, s in needed)
        return tuple(folder for folder in folders if folder != now[key].workdir)

    return Jobs(
        [dataclasses.replace(now[key], needs=needs(key)) for key in sorted(now, key=place)],
        [later[key] for key in sorted(later.keys() - now.keys(), key=place)],
    )


def all_jobs(study: Study, runs: Path) -> list[Job]:
    """Returns the runs of a study, and those that are over of what is retuned; how long each takes is not known."""
    seconds = collections.defaultdict(float)
    jobs = make_jobs(study, runs, seconds)
    found = [*jobs.now, *jobs.later]
    for ladder in ladders(study, resolve_study(study), runs):
        found += [ladder.job(octave, seed, 0.0) for octave, seed in ladder.read(study.seeds)[0]]
    return list({job.workdir: job for job in found}.values())


def _own_jobs(study: Study, resolved: Sequence[Resolved], runs: Path, seconds: Mapping[str, float]) -> dict[_Key, Job]:
    """Returns the runs at an experiment's own rate, of all that is compared there; the study's parent for its noise."""
    names = {study.parent}
    for one in resolved:
        if not is_retuned(study, one):
            names |= {one.name, *(each.name for each in one.parents[:1])}
    jobs = {}
    for one in resolved:
        processes = one.experiment.mesh.processes
        require(processes == 1, f"{one.name}: mesh.processes = {processes}, and a study starts one for each run")
        steps, devices = one.experiment.training.steps, one.experiment.mesh.devices
        seeds = study.parent_seeds if one.name == study.parent else study.seeds
        for seed in range(resolved[0].first_seed, resolved[0].first_seed + seeds):
            if one.name in names:
                workdir = runs / one.name / f"seed_{seed}"
                arguments = (f"--experiment={one.name}", f"--seed={seed}", f"--workdir={typed(workdir)}")
                job = Job(one.name, seed, arguments, workdir, steps, seconds[one.name], devices=devices)
                jobs[seed, one.name, 0.0] = job
    return jobs


def _tried_jobs(
    study: Study, resolved: Sequence[Resolved], runs: Path, seconds: Mapping[str, float]
) -> tuple[dict[_Key, Job], dict[_Key, Job]]:
    """Returns the runs of what is retuned, at any rate: those that are wanted now, and later."""
    now, later = {}, {}
    for ladder in ladders(study, resolved, runs):
        name, (trained, unreadable) = ladder.experiment, ladder.read(study.seeds)
        require(not unreadable, "; ".join(unreadable))
        ladder.check(trained)
        trials = bits_of(trained)
        missing = wanted(trials, study.seeds)
        for octave, seed in foreseen(trials, study.seeds):
            jobs = now if (octave, seed) in missing else later
            job = ladder.job(octave, seed, seconds[name])
            jobs[job.seed, name, octave] = job
    return now, later


def is_retuned(study: Study, one: Resolved) -> bool:
    """Returns whether a variant of a study is compared with its parent each at its best learning rate."""
    return one.name != study.parent and one.is_retuned


def ladders(study: Study, resolved: Sequence[Resolved], runs: Path) -> list[Ladder]:
    """Returns the learning rates of each variant that is retuned, and of each parent of one."""
    retuned = [one for one in resolved if is_retuned(study, one)]
    names = {each.name for one in retuned for each in (one, one.parents[0])}
    first = resolved[0].first_seed
    return [Ladder(one.name, "", runs, first) for one in resolved if one.name in names]


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
