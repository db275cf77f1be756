"""The seeds of runs by what they are for: the comparisons of each generation of parents, and screenings."""

from collections.abc import Sequence

from jaxformer.experiment.lineage import Resolved

# Seeds of each generation of parents, which chose none of them: its studies use those from `first_seed` on.
SEEDS_OF_A_GENERATION = 1000

# First seed of a screening, behind those of all generations.
FIRST_SCREENING_SEED = 1_000_000


def seeds_of(resolved: Sequence[Resolved]) -> range:
    """Returns the seeds that are set aside for the comparison of experiments, none of which one was chosen by."""
    first = max(one.first_seed for one in resolved)
    return range(first, first + SEEDS_OF_A_GENERATION)


def is_screening_seed(seed: int) -> bool:
    """Returns whether a run of a seed belongs to a screening, which proposes changes: no comparison may read it."""
    return seed >= FIRST_SCREENING_SEED
