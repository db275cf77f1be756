"""P-values of counts, of many comparisons together, and of comparisons that are analysed again as seeds come in.

Axes: N comparison.
"""

import numpy as np
from scipy import stats

# Seeds at each interim analysis of a comparison, which ends at the first that is significant (group sequential design).
INTERIM_SEEDS = (3, 4, 5, 6, 8, 11, 16, 24)

# Level of the first interim analysis, and the power by which later levels fall with the seeds: see `interim_level`.
# `python tools/verdict_campaign.py --simulated` counts the resulting errors.
_FIRST_LEVEL, _FALL = 0.0135, 0.4


def interim_level(seeds: int) -> float:
    """Returns the two-sided level of the interim analysis after so many seeds.

    Levels fall as a power of the sample (the family of boundaries of Wang & Tsiatis 1987). A comparison of equals that
    stops at the first significant analysis then ends on either side with a probability of at most 2.5 %: 2.46 % for
    seeds alone, and 1.6 to 2.3 % with a prior fitted from 3 to 12 other variants. Intervals at these levels contain the
    true difference at all analyses together in at least 95 % (repeated confidence intervals, Jennison & Turnbull 1989).
    """
    return _FIRST_LEVEL * (INTERIM_SEEDS[0] / max(seeds, INTERIM_SEEDS[0])) ** _FALL


def next_analysis(seeds: int) -> int | None:
    """Returns the seeds of the next interim analysis after a number of seeds; None after the last."""
    return next((later for later in INTERIM_SEEDS if later > seeds), None)


def mcnemar(b: int, c: int) -> float:
    """Returns the exact two-sided p-value of b items that only the variant has right and c that only the parent has.

    For one seed, and for items drawn independently (McNemar 1947; the binomial form).
    """
    return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0


def holm(p_values_N: np.ndarray) -> np.ndarray:
    """Returns p-values (N,) adjusted so that calling those below alpha errs anywhere with probability alpha at most.

    Under any dependence (Holm 1979).

    Raises:
        ValueError: a p-value is not between 0 and 1; NaN is not.
    """
    p_N = _check_p_values(p_values_N)
    order_N = np.argsort(p_N)
    # The smallest is multiplied by the number of all, the next by the number that remains; the order never changes.
    adjusted_N = np.empty_like(p_N)
    adjusted_N[order_N] = np.minimum(np.maximum.accumulate(p_N[order_N] * np.arange(len(p_N), 0, -1)), 1)
    return adjusted_N


def benjamini_hochberg(p_values_N: np.ndarray) -> np.ndarray:
    """Returns q-values (N,): of those called below q, a share of q at most is expected to be false.

    For independent or positively dependent p-values (Benjamini and Hochberg 1995).

    Raises:
        ValueError: a p-value is not between 0 and 1; NaN is not.
    """
    p_N = _check_p_values(p_values_N)
    return stats.false_discovery_control(p_N) if len(p_N) else p_N


def _check_p_values(p_values_N: np.ndarray) -> np.ndarray:
    p_N = np.asarray(p_values_N, np.float64)
    if p_N.ndim != 1 or not ((p_N >= 0) & (p_N <= 1)).all():
        raise ValueError(f"p-values must be a list of numbers between 0 and 1, not {p_N}")
    return p_N
