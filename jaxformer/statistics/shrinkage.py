"""Effects shrunken towards 0, as far as all that were measured together say that they owe to chance.

What is kept was chosen because it looked good, and so looks better than it is. The mean of its posterior has no such
bias, whatever was chosen and whenever the seeds stopped, where the prior is right. Simulated, 13 questions a study, in
units of the standard deviation of one seed's difference; what kept effects look like, as a multiple of what they are:

| true effects | raw | shrunken | raw, of three seeds | shrunken |
| --- | ---: | ---: | ---: | ---: |
| normal, 0.5 | 1.53 | 1.13 | 2.35 | 1.43 |
| normal, 1 | 1.19 | 1.01 | 1.34 | 1.05 |
| normal, 2 | 1.07 | 1.00 | 1.08 | 1.00 |
| all 1 better | 1.21 | 1.09 | 1.95 | 1.53 |
| 30 % 1 better, others 0 | 1.23 | 0.90 | 2.01 | 1.26 |

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
