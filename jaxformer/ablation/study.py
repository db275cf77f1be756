"""Several variants of one parent, on the same seeds, and the runs that they need."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from jaxformer.ablation.finished_runs import ended_seeds
from jaxformer.ablation.seeds import seeds_of
from jaxformer.ablation.training_jobs import Planned, make_job
from jaxformer.ablation.tuning import RateSearch, missing_runs, runs_to_come
from jaxformer.ablation.verdict import Rule
from jaxformer.config import Bounds, UserError, check_fields, require
from jaxformer.experiment.experiment import training_flops
from jaxformer.experiment.files import is_path
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.promoted import kept_changes
from jaxformer.experiment.resolution import resolve, resolve_variant_of
from jaxformer.host.files import read_json_or_empty
from jaxformer.host.paths import typed
from jaxformer.jobs.launch import Job
from jaxformer.plan.run_time import IMPORTING


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants of one parent, and the rule that will decide on them."""

    parent: str
    """The experiment that each variant changes."""
    variants: tuple[str, ...]
    """Names; one whose file has another parent is applied to this one: `swiglu` of `laptop` is `swiglu@laptop`.
    Retuned variants (`Variant.retune`) and their parent are each compared at their best learning rate.
    """
    seeds: Annotated[int, Bounds(at_least=1, at_most=1000)] = 3
    """Seeds of each variant, from 0 on, or from the highest `first_seed` of promoted ones among them."""
    parent_seeds: int = 0
    """Seeds of the parent, at least as many, or 0 for as many: more of them measure its seed noise better."""
    rule: Rule = field(default_factory=Rule)

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "parent_seeds", self.parent_seeds or self.seeds)
        require(bool(self.variants), "a study needs a variant")
        for name in (self.parent, *self.variants):
            require(
                not is_path(name), f"a study takes names of experiments, not a path: {name}; put it in experiments/"
            )
        require(len(set(self.variants)) == len(self.variants), "a study names a variant twice")
        require(
            self.parent_seeds >= self.seeds, f"parent_seeds ({self.parent_seeds}) must be at least seeds ({self.seeds})"
        )


def ablate_command(parent: str, variants: Sequence[str], seeds: int, runs: Path) -> tuple[str, ...]:
    """Returns the words of the command that runs a study of variants of a parent in a folder of runs."""
    options = [f"--parent={parent}", f"--variants={','.join(variants)}", f"--seeds={seeds}"]
    return ("jaxformer", "ablate", *options, *[f"--runs={typed(runs)}"] * (runs != Path("runs")))


def resolve_study(study: Study) -> list[Resolved]:
    """Returns the parent and its variants, each checked to be one change.

    Raises:
        UserError: one is not.
    """
    experiments, refused = resolve_what_can_be(study)
    for error in refused.values():
        raise error
    return experiments


def resolve_what_can_be(study: Study) -> tuple[list[Resolved], dict[str, UserError]]:
    """Returns the parent and the variants that are one change each; and by name, why others are not.

    Raises:
        UserError: the parent is invalid, or no variant is one change.
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
    """Raises `UserError` if one of two experiments starts from trained weights, and the other from scratch.

    Their difference would come from the earlier training, and their seeds draw different things.
    """
    trained, drawn = (parent, one) if parent.experiment.init_from else (one, parent)
    require(
        bool(trained.experiment.init_from) == bool(drawn.experiment.init_from),
        f"{trained.name} starts from trained weights ({trained.experiment.init_from}) and {drawn.name} from scratch: "
        "they are not compared; give all of a study the same init_from, or none",
    )


def _other_ancestor(one: Resolved, experiments: Sequence[Resolved]) -> UserError | None:
    """Returns why an experiment is not compared with others: an ancestor has the name of one but differs from it."""
    by_name = {each.name: each for each in experiments}
    for each in one.ancestors:
        if each.name in by_name and not each.is_same(by_name[each.name]):
            return UserError(f"{one.name} changes another {each.name} than the study's, of the same name: rename one")
    return None


def _missing_parents(one: Resolved, experiments: Sequence[Resolved]) -> list[str]:
    """Returns the names of experiments that one is compared with and that are not among others."""
    names = [each.name for each in experiments]
    return [each.name for each in one.parents[:1] if each.name not in names] if one is not experiments[0] else []


def root_of_removals(resolved: Sequence[Resolved]) -> Resolved | None:
    """Returns the experiment from which the whole gain is measured in a study that leaves changes out; else None.

    Args:
        resolved: the study's parent and variants.
    """
    whole, *variants = resolved
    return kept_changes(whole)[0] if all(one.without for one in variants) else None


def with_root(resolved: Sequence[Resolved]) -> list[Resolved]:
    """Returns all experiments whose runs a study uses: its own, and last the root of its removals."""
    root = root_of_removals(resolved)
    return [*resolved, *([root] if root else [])]


class Jobs(NamedTuple):
    """The runs of a study, seed by seed, with parents first, and each experiment's own rate first."""

    now: list[Job]
    """Runs to train, as far as is known."""
    later: list[Job]
    """Runs of retuned variants that follow if the best learning rates so far turn out to be the best."""


def make_jobs(
    study: Study, runs: Path, seconds: Mapping[str, float] = {}, resolved: Sequence[Resolved] | None = None
) -> Jobs:
    """Returns the runs of a study; for retuned variants, those that `missing_runs` names after the finished ones.

    The first seed of the study's parent must train before others begin. A variant compared at its parent's rate also
    waits until the first and the same seed of that parent train.

    Args:
        seconds: of a run of each experiment, estimated; NaN if left out.
        resolved: the experiments, as of `resolve_study`, if known.
    """
    resolved = [*resolved] if resolved else resolve_study(study)
    first = seeds_of(resolved).start
    experiments = _parents_first(with_root(resolved))
    seeds_at_own_rate = _seeds_at_own_rate(study, resolved)
    searches = {search.own.name: search for search in rate_searches(study, resolved, runs)}
    trials = {name: search.trials(study.seeds) for name, search in searches.items()}
    missing = {name: missing_runs(found, study.seeds) for name, found in trials.items()}
    to_come = {name: runs_to_come(found, study.seeds) for name, found in trials.items()}

    def needs(number: int, parents: Sequence[Resolved] = ()) -> list[Path]:
        needed = [(study.parent, 0), *((each.name, n) for each in parents for n in (0, number))]
        return [runs / name / f"seed_{first + n}" for name, n in needed]

    jobs = Jobs([], [])
    for number, one in itertools.product(range(study.parent_seeds), experiments):
        name, expected = one.name, seconds.get(one.name, math.nan)
        at_own_rate = number < seeds_at_own_rate.get(name, 0)
        if at_own_rate:
            # The study's parent may have a parent that is not in the study.
            parents = [each for each in one.parents[:1] if each.name in seeds_at_own_rate]
            jobs.now.append(make_job(one, first + number, runs, expected, needs=needs(number, parents)))
        octaves = [octave for octave, n in to_come.get(name, ()) if n == number and not (at_own_rate and octave == 0)]
        for octave in sorted(octaves, key=lambda octave: (octave != 0, octave)):
            job = searches[name].job(octave, number, expected, needs=needs(number))
            (jobs.now if (octave, number) in missing[name] else jobs.later).append(job)
    return jobs


def _seeds_at_own_rate(study: Study, resolved: Sequence[Resolved]) -> dict[str, int]:
    """Returns, by name, the number of seeds of experiments that are trained, and compared, at their own rates.

    The study's parent always is, for its seed noise.
    """
    at_own_rate = [one for one in resolved if not is_retuned(study, one)]
    names = {each.name for one in at_own_rate for each in (one, *one.parents[:1])}
    seeds = {one.name: study.seeds for one in resolved if one.name in names}
    root = root_of_removals(resolved)
    return seeds | ({root.name: study.seeds} if root else {}) | {study.parent: study.parent_seeds}


def ended_jobs(study: Study, runs: Path) -> list[Job]:
    """Returns the runs of a study's experiments that have a result, on all compared seeds, at any rate."""
    resolved = resolve_study(study)
    seeds, at_any_rate = seeds_of(resolved), rate_searches(study, resolved, runs)
    found = [job for search in at_any_rate for job in search.ended_jobs(seeds)]
    for one in with_root(resolved):
        found += [make_job(one, seed, runs, math.nan) for seed in ended_seeds(runs / one.name) if seed in seeds]
    return found


def plan_study(study: Study, runs: Path, jobs: Sequence[Job] | None = None) -> Planned:
    """Returns the runs of a study, to be checked.

    Args:
        jobs: the runs of its experiments to make, if not the study's own.

    Raises:
        UserError: as of `resolve_study`.
    """
    experiments = with_root(resolve_study(study))
    if jobs is not None:
        return Planned(experiments, jobs)
    now, later = make_jobs(study, runs)
    return Planned(experiments, [*now, *later], ended_jobs(study, runs))


def is_retuned(study: Study, one: Resolved) -> bool:
    """Returns whether a variant of a study and its parent are each compared at their best learning rate."""
    return one.name != study.parent and one.is_retuned


def rate_searches(study: Study, resolved: Sequence[Resolved], runs: Path) -> list[RateSearch]:
    """Returns the search for the best learning rate of each retuned variant, and of its parent."""
    retuned = [one for one in resolved if is_retuned(study, one)]
    names = {each.name for one in retuned for each in (one, one.parents[0])}
    return [RateSearch(one, runs, seeds_of(resolved).start) for one in resolved if one.name in names]


def _parents_first(resolved: Sequence[Resolved]) -> list[Resolved]:
    """Returns experiments in their order, but each after its parents among them."""
    waiting, ordered = list(resolved), []
    while waiting:
        names = {one.name for one in waiting}
        one = next(one for one in waiting if not names & {each.name for each in one.parents})
        ordered.append(one)
        waiting.remove(one)
    return ordered


def estimate_seconds(resolved: Sequence[Resolved], runs: Path, timed: Mapping[str, float] = {}) -> dict[str, float]:
    """Returns the seconds of a run of each experiment: from its runs, else from the first one's seconds per FLOP.

    Args:
        timed: seconds of a run by name, if none of its runs is finished.

    Raises:
        UserError: the first experiment's are unknown.
    """
    known = {one.name: mean_seconds(runs / one.name) or timed.get(one.name) for one in resolved}
    parent, *_ = resolved
    base = known[parent.name]
    if base is None:
        raise UserError(f"no run of {parent.name} is finished: give the seconds of one")
    return {
        one.name: known[one.name] or base * training_flops(one.experiment) / training_flops(parent.experiment)
        for one in resolved
    }


def mean_seconds(folder: Path) -> float | None:
    """Returns the mean seconds over runs with a summary, or None; the run itself reports a damaged one.

    Measured from the start of the process to its end. Runs of screenings count, since the seed does not matter.
    """
    seconds = [read_json_or_empty(path).get("seconds") for path in folder.glob("seed_*/summary.json")]
    known = [each for each in seconds if isinstance(each, int | float) and 0 < each < math.inf]
    return IMPORTING + float(np.mean(known)) if known else None
