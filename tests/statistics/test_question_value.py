"""What asking is worth: the rule that is simulated is the library's, and the value is what can be worked by hand."""

import math

import numpy as np
import pytest

from jaxformer.ablation.cost import Cost
from jaxformer.ablation.verdict import Measured, Rule, Word, decide
from jaxformer.statistics.expectations import Belief
from jaxformer.statistics.paired_difference import paired_difference
from jaxformer.statistics.question_value import Begun, Noise, Stakes, follow, power, prospect
from jaxformer.statistics.significance import INTERIM_SEEDS
from jaxformer.statistics.variance_prior import VariancePrior

pytestmark = pytest.mark.device_free

COST = Cost(1.0, (1.0, 1.0), 1.0, 1.0, 1.0)
STAKES = Stakes(100.0, 25.0, 0.01)


def by_the_rule(difference_S, noise):
    """Returns (kept, seeds) by the library's own rule and its advice."""
    for seeds in (each for each in INTERIM_SEEDS if each <= len(difference_S)):
        found = paired_difference(difference_S[:seeds], np.zeros(seeds), noise.prior)
        verdict = decide(Measured(found, seeds, noise.margin, COST, 2.0, noise.prior), Rule())
        if verdict.word is not Word.UNDECIDED or verdict.more_seeds is None:
            break
    return verdict.word is Word.KEEP, seeds


@pytest.mark.parametrize("prior", [None, VariancePrior(1.0, 6.0, 12.0)])
def test_questions_end_as_the_librarys_rule_ends_them(prior):
    rng, noise = np.random.default_rng(0), Noise(1.0, 0.5, prior=prior)
    difference_PS = rng.normal(0, 1.5, (30, 1)) + rng.standard_normal((30, 8))
    found = follow(difference_PS, noise)
    expected = [by_the_rule(each_S, noise) for each_S in difference_PS]
    same = [pair == (kept, seeds) for pair, kept, seeds in zip(expected, found.kept_P, found.seeds_P, strict=True)]
    # The probability of KEEP by the last analysis is reckoned without those before it, which ends a few one earlier.
    assert np.mean(same) >= 0.9 and 4 < found.kept_P.sum() < 20


def test_a_question_that_has_begun_goes_on_as_if_it_had_not_stopped():
    rng, noise = np.random.default_rng(1), Noise(1.0, 0.2)
    for _ in range(60):
        difference_S = -0.6 + rng.standard_normal(8)
        whole = follow(difference_S[None], noise)
        if whole.seeds_P[0] > 3:
            begun = Begun(3, float(difference_S[:3].mean()), float(difference_S[:3].var(ddof=1)))
            rest = follow(difference_S[None, 3:], noise, begun)
            assert all(np.allclose(one, other) for one, other in zip(whole, rest, strict=True))


def test_equal_changes_are_seldom_kept_and_larger_gains_more_often():
    found = power(Noise(1.0, 0.3), 8)
    none = len(found.effect_E) // 2
    assert found.effect_E[none] == 0 and found.kept_E[none] <= 0.025
    assert (np.diff(found.kept_E) <= 0.02).all() and found.kept_E[0] == 1 and found.kept_E[-1] == 0
    assert found.seeds_E[0] == pytest.approx(3, abs=0.1) and found.seeds_E.max() > 3.5


def test_the_value_of_a_sure_gain_is_the_share_of_tokens_that_it_is_worth_less_its_complexity():
    sure = Belief(np.array([-10.0, -10.0, -10.0, 10.0]), np.full(4, 1e-6))
    ratio, fields = np.array([1.0, 1.2, 2.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0])
    found = prospect(sure, power(Noise(1.0, 0.5), 8), STAKES, ratio, fields)
    assert found.kept == pytest.approx([1, 1, 0, 0]), "what costs more time than it is worth is not kept"
    worth = [100 * (1 - each * math.exp(-10 / 25) - 0.01) for each in (1.0, 1.2)]
    assert found.saved == pytest.approx([*worth, 0, 0], rel=1e-3)


def test_what_was_measured_moves_the_effect_as_far_as_its_error_says():
    belief, noise = Belief(np.array([0.0]), np.array([100.0])), Noise(1.0, 0.5)
    found = prospect(belief, power(noise, 8, Begun(3, -1.0, 1.0)), STAKES, np.ones(1), np.ones(1))
    assert found.effect[0] == pytest.approx(-1.0, abs=0.01), "a wide belief leaves it"
    narrow = prospect(
        Belief(np.zeros(1), np.array([0.05])), power(noise, 8, Begun(3, -1.0, 1.0)), STAKES, np.ones(1), np.ones(1)
    )
    assert -0.2 < narrow.effect[0] < 0 and narrow.kept[0] < found.kept[0]
