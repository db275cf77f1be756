"""Many changes of one parent screened in few runs: which runs, what they say, and which changes are worth confirming.

A row of the design is an ordinary experiment, the variants that are on in it joined: `swiglu+layernorm@first`. Nothing
is decided here. What survives is asked one by one, by a study, on seeds that did not choose it.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.ablation.finished_runs import final_bits_per_byte, has_diverged
from jaxformer.ablation.study import Screening
from jaxformer.ablation.training_jobs import make_job
from jaxformer.config import UserError, require
from jaxformer.experiment.lineage import Resolved
from jaxformer.experiment.resolution import resolve, resolve_variant_of
from jaxformer.experiment.variant import JOIN
from jaxformer.jobs.launch import Job
from jaxformer.statistics.paired_difference import Difference
from jaxformer.statistics.screening import Screened, screen

# Behind those of all generations of parents, of which each has a thousand: no study compares on a seed of a screening.
FIRST_SEED = 1_000_000

# Bytes of the longest name of a folder, on the file systems in use.
_LONGEST_NAME = 255


def resolve_variants(screening: Screening) -> list[Resolved]:
    """Returns the parent and its variants.

    Raises:
        UserError: one changes another parent, is retuned, or sets a field that another one sets.
    """
    parent = resolve(screening.parent)
    variants = [resolve_variant_of(parent, name) for name in screening.variants]
    for one in variants:
        is_single = one.variant is not None and one.parents[0].is_same(parent)
        require(is_single, f"{one.name} is no single change of {parent.name}: ask it by `jaxformer ablate`")
        require(
            not one.is_retuned,
            f"{one.name} is compared at its own best learning rate, which no run has beside other changes: ask it by "
            "`jaxformer ablate`",
        )
    for first, second in itertools.combinations(variants, 2):
        # What is solved after both is solved for both, in turn; what one changes, the other may not solve or change.
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
            f"a run folder is named after the changes of its run, and {rows[-1].name} is too long: screen fewer",
        )
    return rows


def make_screening_jobs(
    screening: Screening, rows: Sequence[Resolved], runs: Path, seconds: Mapping[str, float] = {}
) -> list[Job]:
    """Returns the runs of a screening, seed by seed.

    None begins before the first run of the parent is seen to train.

    Args:
        rows: as of `resolve_rows`.
        runs: folder of all run folders.
        seconds: of a run of each experiment, estimated.
    """
    first = runs / rows[0].name / f"seed_{FIRST_SEED}"
    return [
        make_job(one, seed, runs, seconds.get(one.name, math.nan), needs=[first])
        for seed in seeds_of_screening(screening)
        for one in rows
    ]


def seeds_of_screening(screening: Screening) -> range:
    """Returns the seeds of a screening, on which no study compares."""
    return range(FIRST_SEED, FIRST_SEED + screening.seeds)


class Screen(NamedTuple):
    """What a screening found."""

    screening: Screening
    found: Screened
    parent_bits_per_byte: float
    """Of the parent's runs in it, the mean."""

    @property
    def survivors(self) -> list[tuple[str, Difference]]:
        """Name and effect of each variant that is worth asking, the surest first."""
        return [(self.screening.variants[n], self.found.effects[n]) for n in self.found.survivors]


def read_screen(screening: Screening, rows: Sequence[Resolved], runs: Path) -> Screen:
    """Returns what the finished runs of a screening say.

    Raises:
        UserError: a run is missing, or diverged; then with the variants that all such runs have, and no other run.
    """
    refuse_diverged(screening, rows, runs)
    folders = _folders(screening, rows, runs)
    values = [[final_bits_per_byte(folder) for folder in row] for row in folders]
    for folder, value in zip(itertools.chain(*folders), itertools.chain(*values), strict=True):
        require(value is not None, f"{folder}: not finished; the same command goes on from there")
    values_RS = np.array(values, np.float64)
    return Screen(screening, screen(screening.design, values_RS), float(values_RS[0].mean()))


def refuse_diverged(screening: Screening, rows: Sequence[Resolved], runs: Path) -> None:
    """Raises `UserError` where runs of a screening diverged, which names the variant that they have in common."""
    diverged_R = np.array([any(map(has_diverged, row)) for row in _folders(screening, rows, runs)])
    if not diverged_R.any():
        return
    on_RN = screening.design.on_RN
    guilty_N = np.logical_and(on_RN[diverged_R].all(0), ~on_RN[~diverged_R].any(0))
    names = [screening.variants[n] for n in np.flatnonzero(guilty_N)]
    number = f"{diverged_R.sum()} of the {len(diverged_R)} runs of a seed diverged"
    if not names:
        raise UserError(f"{number}, and no variant is in all those and in no other: ask the variants one by one")
    raise UserError(
        f"{number}, all those with {names[0]} and no other: leave it out of the screening, or put another variant in "
        "its place, which keeps the runs without it"
    )


def _folders(screening: Screening, rows: Sequence[Resolved], runs: Path) -> list[list[Path]]:
    """Returns the run folders of each row, by seed."""
    return [[runs / one.name / f"seed_{seed}" for seed in seeds_of_screening(screening)] for one in rows]
