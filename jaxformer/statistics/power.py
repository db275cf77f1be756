"""How probably an effect is seen, and how many seeds that takes."""

import bisect
import math

import numpy as np
from scipy import special

from jaxformer.statistics.paired_difference import OWN_LEVEL, t_quantile


def power(
    effect: float,
    standard_deviation: float,
    seeds: int,
    *,
    alpha: float,
    prior_df: float = 0.0,
    item_variance: float = 0.0,
    paired: bool = True,
) -> float:
    """Returns the probability that an effect is called, and in the right direction.

    The two-sided test of `Difference` at level alpha; without a prior and items, that is a tail of the noncentral t.

    Args:
        effect: true difference; the sign does not matter.
        standard_deviation: of one seed's difference, variant minus parent; of one seed's run if not paired.
        seeds: of the variant; the parent has as many, the same ones if paired and others if not.
        prior_df: degrees of freedom of a prior whose variance is the true one; the own variance is held against it.
        item_variance: of the mean by the choice of items, which no number of seeds reduces; taken as known.
    """
    own_df = seeds - 1 if paired else 2 * (seeds - 1)
    if seeds < 1 or own_df + prior_df == 0:
        return 0.0
    seed_variance = (1 if paired else 2) * standard_deviation**2 / seeds
    if seed_variance + item_variance == 0:
        return float(effect != 0)
    # The own variance as a multiple of the true one, at the midpoints of 2,000 equally likely slices.
    own = np.ones(1)
    if own_df:
        own = 2 * special.gammaincinv(own_df / 2, (np.arange(2000) + 0.5) / 2000) / own_df

    def half_widths(multiples: np.ndarray, df: float, level: float) -> np.ndarray:
        seeds_part = t_quantile(df, level) ** 2 * multiples * seed_variance
        return np.sqrt(seeds_part + t_quantile(math.inf, level) ** 2 * item_variance)

    share = 0.0 if math.isinf(prior_df) else own_df / (own_df + prior_df)
    widths = half_widths(share * own + (1 - share), own_df + prior_df, alpha)
    if own_df and prior_df:  # As `Difference` holds them against the comparison's own variance.
        widths = np.maximum(widths, half_widths(own, own_df, min(1.0, OWN_LEVEL * alpha)))
    return float(special.ndtr((abs(effect) - widths) / math.sqrt(seed_variance + item_variance)).mean())


def seeds_needed(
    effect: float,
    standard_deviation: float,
    *,
    alpha: float,
    wanted_power: float,
    prior_df: float = 0.0,
    item_variance: float = 0.0,
    paired: bool = True,
    most: int = 100,
) -> int | None:
    """Returns the fewest seeds of each arm at which `power` is as wanted, or None if `most` are too few."""
    conditions = {"alpha": alpha, "prior_df": prior_df, "item_variance": item_variance, "paired": paired}
    numbers = range(1, most + 1)
    # Power grows with the seeds.
    place = bisect.bisect_left(
        numbers, wanted_power, key=lambda seeds: power(effect, standard_deviation, seeds, **conditions)
    )
    return numbers[place] if place < most else None
