"""P-values against numbers worked by hand, brute force, and the errors that they promise."""

import itertools
import math

import numpy as np
import pytest
from scipy import special
from simulated_studies import about, at_most

from jaxformer.statistics.significance import (
    INTERIM_SEEDS,
    benjamini_hochberg,
    holm,
    interim_level,
    mcnemar,
    next_analysis,
)

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


@pytest.mark.parametrize(("b", "c", "p"), [(0, 0, 1.0), (3, 0, 0.25), (0, 5, 0.0625), (1, 3, 0.625), (4, 4, 1.0)])
def test_mcnemar_equals_coin_tosses_counted_by_hand(b, c, p):
    assert mcnemar(b, c) == pytest.approx(p)


def test_holm_equals_one_worked_by_hand():
    # 0.01 x 4, 0.02 x 3, then 0.025 x 2 = 0.05 is lifted to 0.06, and 0.9 stays.
    assert holm([0.025, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


def test_holm_is_the_closed_bonferroni_test():
    """An adjusted p-value is the largest Bonferroni p-value of all sets that hold the hypothesis."""
    p_N = np.random.default_rng(0).uniform(0, 0.2, 5)
    for n, adjusted in enumerate(holm(p_N)):
        sets = [s for size in range(1, 6) for s in itertools.combinations(range(5), size) if n in s]
        assert adjusted == pytest.approx(min(1, max(len(s) * min(p_N[list(s)]) for s in sets)))


def test_benjamini_hochberg_equals_one_worked_by_hand():
    # 0.01 x 4/1, 0.02 x 4/2 and 0.03 x 4/3 are all 0.04; 0.9 stays.
    assert benjamini_hochberg([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.04, 0.04, 0.9, 0.04])


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_adjusting_refuses_what_is_no_p_value_and_takes_none(adjust):
    for wrong in ([0.1, math.nan], [0.1, 1.1], [-0.1]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            adjust(wrong)
    assert adjust([]).shape == (0,)


def test_holm_controls_any_error_and_benjamini_hochberg_the_share_of_errors():
    rng = np.random.default_rng(0)
    studies, true = 3000, 7
    z_RN = rng.normal(size=(studies, 10))
    z_RN[:, true:] += 3.0
    any_error, share_of_errors, any_error_of_bh = [], [], []
    for p_N in 2 * special.ndtr(-abs(z_RN)):
        any_error.append((holm(p_N) <= 0.05)[:true].any())
        called_N = benjamini_hochberg(p_N) <= 0.05
        share_of_errors.append(called_N[:true].sum() / max(called_N.sum(), 1))
        any_error_of_bh.append(called_N[:true].any())
    # Not far below what is promised either: 7 of 10 are true, and Holm holds most of them against 7 to 10.
    assert 0.03 < np.mean(any_error) <= at_most(0.05, studies)
    assert np.mean(share_of_errors) == about(0.05 * true / 10, studies)
    assert np.mean(any_error_of_bh) > 0.06


def test_interim_analyses_call_equals_different_at_most_5_times_in_200_on_a_side():
    rng = np.random.default_rng(0)
    studies = 400_000
    differences_RS = rng.normal(size=(studies, INTERIM_SEEDS[-1]))
    ended_R = np.zeros(studies)
    for seeds in INTERIM_SEEDS:
        seen_RS = differences_RS[:, :seeds]
        t_R = seen_RS.mean(1) / (seen_RS.std(1, ddof=1) / math.sqrt(seeds))
        called_R = 2 * special.stdtr(seeds - 1, -abs(t_R)) <= interim_level(seeds)
        ended_R = np.where((ended_R == 0) & called_R, np.sign(t_R), ended_R)
    for side in (-1, 1):
        assert 0.0240 < (ended_R == side).mean() <= 0.025


def test_the_next_analysis_is_the_first_with_more_seeds():
    assert [next_analysis(seeds) for seeds in (0, 2, 3, 7, 16, 23, 24, 30)] == [3, 3, 4, 8, 24, 24, None, None]
    levels = [interim_level(seeds) for seeds in (1, 2, *INTERIM_SEEDS)]
    assert levels[0] == levels[1] == levels[2] and levels == sorted(levels, reverse=True)
