"""A screening: many changes of one parent in few runs, their effects, and the study that confirms the best of them.

Each run is an ordinary experiment that joins the variants that are on in it: `swiglu+layernorm@first`. A screening
decides nothing: a study compares the best changes one by one, on seeds that did not choose them.
"""

import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from jaxformer.ablation.finished_runs import final_bits_per_byte, has_diverged
from jaxformer.ablation.records import to_json
from jaxformer.ablation.seeds import FIRST_SCREENING_SEED
from jaxformer.ablation.study import Study, ablate_command, make_jobs
from jaxformer.ablation.training_jobs import Planned, device_hours, make_job, not_over
from jaxformer.config import Bounds, UserError, check_fields, require
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.resolution import resolve, resolve_variant_of
from jaxformer.experiment.variant import JOIN, OF
from jaxformer.jobs.launch import Job
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.screening import Design, make_design, screen, smallest_rows
from jaxformer.statistics.significance import INTERIM_SEEDS

# Seeds on which the best changes are confirmed, as many changes as the hours allow; fewer seeds if they allow none. Of
# 5, 8 and 11 seeds, these found most after a screening on one seed. With the hours of five seeds of each change that
# was so in 8 of 8 cells (8, 11, 15 and 20 changes, effects of 0.5 and 1); with the hours of three in 5 of 8, and 8
# seeds found most in the others: `simulate` of tools/simulated_screening.py, 1,000 studies a cell.
CONFIRMED_ON = 11

# Bytes of the longest folder name on common file systems.
_LONGEST_NAME = 255


@dataclass(frozen=True, kw_only=True)
class Screening:
    """Changes of one parent, about half of them on in each run, to find those worth a study."""

    parent: str
    """The experiment that each variant changes."""
    variants: tuple[str, ...]
    """Names, 3 to 23; all are applied to the parent, in any combination. No two change the same, and none is retuned
    (`Variant.retune`).
    """
    runs: int = 0
    """Runs on each seed: 8, 12, 16, 20 or 24, which must be more than there are variants (resolution III); or 8, 16,
    24, 32, 40 or 48, at least twice as many (resolution IV). 0 takes the fewest.
    """
    seeds: Annotated[int, Bounds(at_least=1, at_most=100)] = 1
    """Seeds, each of all runs. Two or more give the effects standard errors; one leaves more hours to confirm."""

    def __post_init__(self):
        check_fields(self)
        Study(parent=self.parent, variants=self.variants)  # Checks the names.
        for name in self.variants:
            require(OF not in name and JOIN not in name, f"a screening names variants, without a parent: not {name}")
        _ = self.design

    @property
    def design(self) -> Design:
        """The variants that are on in each run.

        Raises:
            UserError: there is no design with so many runs and variants.
        """
        try:
            changes = len(self.variants)
            return make_design(changes, self.runs or smallest_rows(changes))
        except ValueError as error:
            raise UserError(f"runs ({self.runs}) of {len(self.variants)} variants: {error}") from error

    @property
    def run_seeds(self) -> range:
        """The seeds of its runs, which no study reads."""
        return range(FIRST_SCREENING_SEED, FIRST_SCREENING_SEED + self.seeds)


def resolve_variants(screening: Screening) -> list[Resolved]:
    """Returns the parent and its variants.

    Raises:
        UserError: one changes another parent, is retuned, or sets a field that another one sets.
    """
    parent = resolve(screening.parent)
    variants = [resolve_variant_of(parent, name) for name in screening.variants]
    for one in variants:
        is_single = one.variant is not None and one.parents[0].is_same(parent)
        require(is_single, f"{one.name} is not a single change of {parent.name}: compare it by `jaxformer ablate`")
        require(
            not one.is_retuned,
            f"{one.name} is compared at its own best learning rate, which cannot be screened with other changes: "
            "compare it by `jaxformer ablate`",
        )
    for first, second in itertools.combinations(variants, 2):
        # Consequences are solved after both changes; what one changes, the other may not solve or change.
        both = {*first.lineage.change, *first.lineage.consequences} & {*second.lineage.change}
        both |= {*second.lineage.consequences} & {*first.lineage.change}
        require(
            not both,
            f"{first.name} and {second.name} both set {', '.join(sorted(both))}: they cannot be screened together",
        )
    return [parent, *variants]


def resolve_rows(screening: Screening) -> list[Resolved]:
    """Returns the experiment of each row of a screening's design.

    Raises:
        UserError: as of `resolve_variants`, or some variants cannot be joined.
    """
    parent, *_ = resolve_variants(screening)
    rows = []
    for on_N in screening.design.on_RN:
        names = [name for name, on in zip(screening.variants, on_N, strict=True) if on]
        try:
            rows.append(resolve(JOIN.join(names), parent=parent.name) if names else parent)
        except UserError as error:
            raise UserError(f"{', '.join(names)} cannot be screened together: {error}") from error
        require(
            len(rows[-1].name.encode()) <= _LONGEST_NAME,
            f"a run folder has the names of the run's changes, and {rows[-1].name} is too long: screen fewer",
        )
    return rows


def screening_jobs(
    screening: Screening, rows: Sequence[Resolved], runs: Path, seconds: Mapping[str, float] = {}
) -> list[Job]:
    """Returns the runs of a screening, seed by seed; the parent's first run must train before others begin.

    Args:
        rows: as of `resolve_rows`.
        runs: folder of all run folders.
        seconds: of a run of each experiment, estimated.
    """
    first = runs / rows[0].name / f"seed_{screening.run_seeds[0]}"
    return [
        make_job(one, seed, runs, seconds.get(one.name, math.nan), needs=[first])
        for seed in screening.run_seeds
        for one in rows
    ]


def plan_screening(screening: Screening, runs: Path) -> Planned:
    """Returns the runs of a screening, to be checked.

    Raises:
        UserError: as of `resolve_rows`.
    """
    rows = resolve_rows(screening)
    return Planned(rows, screening_jobs(screening, rows, runs))


def describe_runs(screening: Screening, rows: Sequence[Resolved]) -> dict[str, Any]:
    """Returns a screening's design and runs, for JSON."""
    return {
        "parent": rows[0].name,
        "variants": [*screening.variants],
        "runs": [one.name for one in rows],
        "seeds": [*screening.run_seeds],
        "resolution": screening.design.resolution,
    }


class ScreeningResult(NamedTuple):
    """The result of a screening."""

    effects: Mapping[str, Difference]
    """For each variant, the mean bits per byte of the runs with it minus the mean of those without it."""
    survivors: tuple[str, ...]
    """The variants that seem to improve, the surest first."""
    interactions_p: float
    """P-value of the hypothesis that effects are additive; NaN if the design cannot test it."""
    parent_bits_per_byte: float
    """Mean of the parent's runs in it."""

    def record(self) -> dict[str, Any]:
        """Returns it as plain values that JSON can hold; effects of one seed have no errors."""
        effects = {name: one if one.seeds_counted else {"mean": one.mean} for name, one in self.effects.items()}
        return {name: to_json(value) for name, value in {**self._asdict(), "effects": effects}.items()}


def read_result(screening: Screening, rows: Sequence[Resolved], runs: Path) -> ScreeningResult:
    """Returns what the finished runs of a screening show.

    Raises:
        UserError: a run is missing, or diverged; then with the variant that only diverged runs have, if there is one.
    """
    refuse_diverged(screening, rows, runs)
    folders = _folders(screening, rows, runs)
    values = [[final_bits_per_byte(folder) for folder in row] for row in folders]
    for folder, value in zip(itertools.chain(*folders), itertools.chain(*values), strict=True):
        require(value is not None, f"{folder}: not finished; the same command resumes from there")
    values_RS, names = np.array(values, np.float64), screening.variants
    effects, survivors, interactions_p = screen(screening.design, values_RS)
    by_name = dict(zip(names, effects, strict=True))
    return ScreeningResult(by_name, tuple(names[n] for n in survivors), interactions_p, float(values_RS[0].mean()))


def refuse_diverged(screening: Screening, rows: Sequence[Resolved], runs: Path) -> None:
    """Raises `UserError` if runs of a screening diverged, with the variant that they have in common."""
    diverged_R = np.array([any(map(has_diverged, row)) for row in _folders(screening, rows, runs)])
    if not diverged_R.any():
        return
    on_RN = screening.design.on_RN
    common_N = np.logical_and(on_RN[diverged_R].all(0), ~on_RN[~diverged_R].any(0))
    names = [screening.variants[n] for n in np.flatnonzero(common_N)]
    number = f"{diverged_R.sum()} of the {len(diverged_R)} runs of a seed diverged"
    if not names:
        raise UserError(f"{number}, and no single variant explains them: compare the variants one by one")
    raise UserError(
        f"{number}, exactly those with {names[0]}: leave it out of the screening, or put another variant in its "
        "place, which keeps the runs without it"
    )


def _folders(screening: Screening, rows: Sequence[Resolved], runs: Path) -> list[list[Path]]:
    """Returns the run folders of each row, by seed."""
    return [[runs / one.name / f"seed_{seed}" for seed in screening.run_seeds] for one in rows]


class FollowUp(NamedTuple):
    """The study that confirms what a screening proposes."""

    study: Study
    device_hours: float
    """Of its runs that are not trained yet."""
    runs: Path

    @property
    def command(self) -> str:
        """The command that runs it."""
        return shlex.join(ablate_command(self.study.parent, self.study.variants, self.study.seeds, self.runs))

    def record(self) -> dict[str, Any]:
        """Returns it as plain values that JSON can hold."""
        study = {"parent": self.study.parent, "variants": [*self.study.variants], "seeds": self.study.seeds}
        return {**study, "device_hours": self.device_hours, "command": self.command}


def make_follow_up(
    parent: str, survivors: Sequence[str], runs: Path, seconds: Mapping[str, float], hours: float = math.inf
) -> FollowUp | None:
    """Returns the study of the surest survivors that fits in so many device hours.

    As many as fit on `CONFIRMED_ON` seeds; else the surest one on as many seeds as fit.

    Args:
        survivors: names, the surest first.
        seconds: of a run of the parent and of each survivor, by the name of the experiment.

    Returns:
        None without a survivor, or without hours for one on the fewest seeds.
    """
    for seeds in sorted((number for number in INTERIM_SEEDS if number <= CONFIRMED_ON), reverse=True):
        for number in range(len(survivors), 0, -1):
            study = Study(parent=parent, variants=tuple(survivors[:number]), seeds=seeds, parent_seeds=seeds)
            needed = device_hours(not_over(make_jobs(study, runs, seconds).now))
            if needed <= hours:
                return FollowUp(study, needed, runs)
    return None
