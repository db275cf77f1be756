"""What asking is worth: the rule that is simulated is the library's, and the value is what can be worked by hand."""

import math

import numpy as np
import pytest

from jaxformer.ablation.cost import Cost
from jaxformer.ablation.verdict import Measured, Rule, Word, decide
from jaxformer.statistics.expectations import Belief
from jaxformer.statistics.paired_difference import paired_difference
from jaxformer.statistics.question_value import NEW, ParentRuns, Question, RunCosts, follow, power, question_value
from jaxformer.statistics.significance import INTERIM_SEEDS
from jaxformer.statistics.variance_prior import VariancePrior

pytestmark = pytest.mark.device_free

PARENT = ParentRuns(1.0, 0.5, 25.0)


def by_the_rule(difference_S, parent, ratio):
    """Returns (whether it is kept, seeds) by the library's own rule and its advice."""
    cost = Cost(ratio, (ratio, ratio), 1.0, 1.0, 1.0)
    for seeds in (each for each in INTERIM_SEEDS if each <= len(difference_S)):
        found = paired_difference(difference_S[:seeds], np.zeros(seeds), parent.prior)
        worth = math.exp(-found.mean / parent.slope)
        verdict = decide(Measured(found, seeds, parent.margin, cost, worth, parent.prior), Rule())
        if verdict.word is not Word.UNDECIDED or verdict.more_seeds is None:
            break
    return verdict.word in (Word.KEEP, Word.CHEAPER), seeds


@pytest.mark.parametrize(
    ("parent", "ratio", "kept"),
    [
        (PARENT, 1.0, (5, 14)),
        (PARENT._replace(prior=VariancePrior(1.0, 6.0, 12.0)), 1.0, (5, 19)),
        (PARENT, 1.1, (1, 4)),
        (PARENT._replace(margin=1.5), 0.9, (9, 15)),
    ],
    ids=["", "with a prior", "slower", "faster"],
)
def test_questions_end_as_the_librarys_rule_ends_them(parent, ratio, kept):
    rng = np.random.default_rng(0)
    difference_PS = rng.normal(0, 1.5, (30, 1)) + rng.standard_normal((30, 8))
    found = follow(difference_PS, parent, Question(ratio))
    expected = [by_the_rule(each_S, parent, ratio) for each_S in difference_PS]
    same = [pair == (kept, seeds) for pair, kept, seeds in zip(expected, found.kept_P, found.seeds_P, strict=True)]
    # The probability of KEEP by the last analysis is reckoned without those before it, which ends a few one earlier.
    assert np.mean(same) >= 0.9 and kept[0] <= found.kept_P.sum() <= kept[1]


def test_a_question_that_has_begun_goes_on_as_if_it_had_not_stopped():
    rng, parent = np.random.default_rng(1), PARENT._replace(margin=0.2)
    for _ in range(60):
        difference_S = -0.6 + rng.standard_normal(8)
        whole = follow(difference_S[None], parent)
        if whole.seeds_P[0] > 3:
            begun = Question(1.0, 3, float(difference_S[:3].mean()), float(difference_S[:3].var(ddof=1)))
            rest = follow(difference_S[None, 3:], parent, begun)
            assert all(np.allclose(one, other) for one, other in zip(whole, rest, strict=True))


def test_equal_changes_are_seldom_kept_and_larger_gains_more_often():
    found = power(PARENT._replace(margin=0.3), NEW, 8)
    none = len(found.effect_E) // 2
    assert found.effect_E[none] == 0 and found.kept_E[none] <= 0.025
    assert (np.diff(found.kept_E) <= 0.02).all() and found.kept_E[0] == 1 and found.kept_E[-1] == 0
    seeds_E = found.ends_EA @ INTERIM_SEEDS
    assert seeds_E[0] == pytest.approx(3, abs=0.1) and seeds_E.max() > 3.5
    assert found.ends_EA.sum(-1) == pytest.approx(1) and not found.ends_EA[:, INTERIM_SEEDS.index(8) + 1 :].any()


def value_of(effect, ratio=1.0, parent=PARENT, complexity=0.01):
    sure = Belief(np.array([effect]), np.full(1, 1e-6))
    return question_value(sure, parent, Question(ratio), 8, complexity)


@pytest.mark.parametrize(("effect", "ratio", "kept"), [(-10, 1.0, 1), (-10, 1.2, 1), (-10, 2.0, 0), (10, 1.0, 0)])
def test_the_value_of_a_sure_gain_is_the_share_of_tokens_that_it_is_worth_less_its_complexity(effect, ratio, kept):
    found = value_of(effect, ratio)
    assert found.kept == pytest.approx([kept]), "what costs more time than it is worth is not kept"
    assert found.saved == pytest.approx([kept * (1 - ratio * math.exp(effect / 25) - 0.01)], rel=1e-3)


def test_a_gain_worth_a_little_less_than_its_time_is_kept_by_chance_at_a_loss():
    found = value_of(-9.8, 1.5)  # Whose time takes 10.1.
    assert 0.2 < found.kept[0] < 0.5 and found.saved[0] == pytest.approx(
        found.kept[0] * (1 - 1.5 * math.exp(-9.8 / 25) - 0.01)
    )
    assert found.saved[0] < 0


def test_an_equal_change_that_takes_less_time_saves_that_time():
    precise = PARENT._replace(margin=3.0)
    faster, hardly = (value_of(0.0, ratio, precise, complexity=0.0) for ratio in (0.9, 0.99))
    assert faster.kept > 0.95 > 0.05 > hardly.kept and faster.saved == pytest.approx(0.1 * faster.kept)


def test_gains_are_kept_however_small_the_noise_is_beside_the_margin():
    assert value_of(-30.0, parent=ParentRuns(1.0, 20.0, 1000.0)).kept == pytest.approx([1])


def test_what_was_measured_moves_the_effect_as_far_as_its_error_says():
    begun = Question(1.0, 3, -1.0, 1.0)
    wide, narrow = (
        question_value(Belief(np.zeros(1), np.array([scale])), PARENT, begun, 8, 0.01) for scale in (100.0, 0.05)
    )
    assert wide.effect[0] == pytest.approx(-1.0, abs=0.01), "a wide belief leaves it"
    assert -0.2 < narrow.effect[0] < 0 and narrow.kept[0] < wide.kept[0]


def test_the_interval_of_what_was_measured_is_that_of_the_belief_times_the_likelihood():
    belief, begun = Belief(np.array([0.0, -1.0]), np.array([0.5, 100.0])), Question(1.0, 3, -1.0, 1.0)
    found = question_value(belief, PARENT, begun, 8, 0.01)
    grid = np.linspace(-5, 5, 10001)
    share_ND = (belief.density(grid[None]) * np.exp(-3 * (grid + 1) ** 2 / 2)).cumsum(-1)
    for p, points in ((0.1, found.low), (0.9, found.high)):
        assert points == pytest.approx(grid[(share_ND < p * share_ND[:, -1:]).sum(-1)], abs=0.02)


def test_the_interval_of_what_was_not_measured_is_that_of_the_belief():
    belief = Belief(np.array([[-1.0], [0.5]]), np.array([[0.4], [2.0]]), 0.6)
    found = question_value(belief, PARENT, NEW, 8, 0.01)
    expected = belief.quantiles(np.array([0.1, 0.9]))
    assert np.stack([found.low, found.high], -1) == pytest.approx(expected, abs=0.02)


def test_a_question_takes_its_missing_runs_further_seeds_of_both_arms_and_a_new_parents():
    costs = RunCosts(first_seeds=3, until_first=10.0, per_seed=2.0, parent_per_seed=1.0, parent_seeds=4, new_parent=6.0)
    hours = costs.hours(np.array([3.0, 5.0]), np.array([0.0, 0.5]))
    assert hours == pytest.approx([10, 10 + 2 * 2 + 1 * 1 + 0.5 * 6])


def test_the_parents_further_seeds_are_expected_over_where_questions_end():
    costs = RunCosts(first_seeds=3, until_first=0.0, per_seed=1.0, parent_per_seed=1.0, parent_seeds=5, new_parent=6.0)
    half_NA = np.array([[0.5 * (seeds in (3, 8)) for seeds in INTERIM_SEEDS]])  # 5.5 seeds; the parent lacks 0 or 3.
    assert costs.expected_hours(half_NA, np.array([0.25])) == pytest.approx([0.5 * 5 + 0.5 * 3 + 0.25 * 6])
