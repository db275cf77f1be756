"""The seeds of runs by purpose: the comparisons of each generation of parents, and screenings."""

from collections.abc import Sequence

from jaxformer.experiment.lineage import Resolved

# Seeds of each generation of parents, none of which chose it: its studies use those from `first_seed` on.
SEEDS_OF_A_GENERATION = 1000

# First seed of a screening, after those of all generations.
FIRST_SCREENING_SEED = 1_000_000


def seeds_of(resolved: Sequence[Resolved]) -> range:
    """Returns the seeds reserved for the comparison of experiments; none of them chose one of the experiments."""
    first = max(one.first_seed for one in resolved)
    return range(first, first + SEEDS_OF_A_GENERATION)


def is_screening_seed(seed: int) -> bool:
    """Returns whether a run of a seed belongs to a screening: it proposes changes, so no comparison may read it."""
    return seed >= FIRST_SCREENING_SEED
