"""The level of a look is what simulated studies that stop early need."""

import math

import numpy as np
from scipy import special

from jaxformer.statistics.looks import LOOK_ALPHA, LOOKS


def test_looking_thrice_calls_equals_different_at_most_5_times_in_200_on_a_side():
    rng = np.random.default_rng(0)
    studies = 400_000
    differences_RS = rng.normal(size=(studies, LOOKS[-1]))
    ended_R = np.zeros(studies)
    for look in LOOKS:
        seen_RS = differences_RS[:, :look]
        t_R = seen_RS.mean(1) / (seen_RS.std(1, ddof=1) / math.sqrt(look))
        called_R = 2 * special.stdtr(look - 1, -abs(t_R)) <= LOOK_ALPHA
        ended_R = np.where((ended_R == 0) & called_R, np.sign(t_R), ended_R)
    # The next constant of two digits, 0.020, is above on both sides together: 0.0252.
    for side in (-1, 1):
        assert 0.0230 < (ended_R == side).mean() <= 0.025
