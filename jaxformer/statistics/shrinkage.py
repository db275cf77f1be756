"""Effects shrunken towards 0, as far as all that were measured together say that they owe to chance.

What is kept was chosen because it looked good, and so looks better than it is: by 1.38 times where all true effects
are one standard deviation of a seed's difference. The mean of its posterior has no such bias, whatever was chosen and
whenever the seeds stopped, where the prior is right.

Axes: N effect.
"""

import math

import numpy as np
from scipy import optimize

# With fewer effects nothing is known of their spread, and they are not shrunken.
FEWEST = 4


def spread_of_effects(effects_N: np.ndarray, errors_N: np.ndarray) -> float:
    """Returns the standard deviation, about 0, of the normal prior from which true effects look drawn.

    By the moments of Paule and Mandel (1982), J. Res. Nat. Bur. Stand. 87:377, with a mean that is known: the sum of
    effect^2 / (spread^2 + error^2) is N. 0 where the errors alone explain the effects; NaN with fewer than `FEWEST`.

    Args:
        effects_N: measured.
        errors_N: their standard errors, above 0.
    """
    squares_N, variances_N = np.square(effects_N), np.square(errors_N)
    if len(squares_N) < FEWEST:
        return math.nan

    def excess(variance: float) -> float:
        return float((squares_N / (variance + variances_N)).mean()) - 1

    if excess(0.0) <= 0:
        return 0.0
    return math.sqrt(optimize.brentq(excess, 0.0, float(squares_N.sum())))  # pyright: ignore[reportArgumentType]


def shrink(effect: float, error: float, spread: float) -> float:
    """Returns the mean of what a true effect may be, given what was measured and the spread of effects.

    NaN where the spread is.
    """
    return effect * spread**2 / (spread**2 + error**2)
