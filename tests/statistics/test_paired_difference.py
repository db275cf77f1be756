"""Statistics against scipy, numbers worked by hand and brute force; and what they promise, by simulated studies.

A simulated rate is held against what is promised with three standard errors of the simulation, which is seeded.
"""

import math
import sys
import tracemalloc

import numpy as np
import pytest
from scipy import special, stats
from simulated_studies import at_most, model_SI, rates

from jaxformer.statistics.paired_difference import (
    OWN_LEVEL,
    Difference,
    crossed_difference,
    item_correlation,
    paired_difference,
)
from jaxformer.statistics.significance import interim_level
from jaxformer.statistics.variance_prior import VariancePrior

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

FLOAT64 = 1e-10
SEEDS_AGREE = Difference(mean=1.0, seed_variance=0.01, seed_degrees_of_freedom=1.0, item_variance=0.09)


# A difference.


def test_paired_difference_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    parent_S = rng.normal(1.0, 0.1, 5)
    variant_S = parent_S + rng.normal(-0.02, 0.02, 5)
    difference = paired_difference(variant_S, parent_S)
    oracle = stats.ttest_rel(variant_S, parent_S)
    low, high = oracle.confidence_interval(0.9)
    assert difference.p_value == pytest.approx(oracle.pvalue, rel=FLOAT64)
    assert difference.interval(0.9) == pytest.approx((low, high), rel=FLOAT64)
    assert difference.degrees_of_freedom == oracle.df == 4
    assert difference.mean / difference.standard_error == pytest.approx(oracle.statistic, rel=FLOAT64)


def test_paired_difference_equals_one_worked_by_hand():
    # Differences 1, 2, 3: mean 2, variance 1, error 1 / sqrt(3).
    difference = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert difference.mean == 2
    assert difference.standard_error == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize("df", [1.0, 2.5, 7.0, math.inf])
@pytest.mark.parametrize("mean", [1e-14, -0.01, 0.5, 3.0, -8.0])
def test_p_value_of_one_part_is_that_of_t(df, mean):
    oracle = 2 * stats.t.sf(abs(mean) / 0.2, df)
    assert Difference(mean, 0.04, df).p_value == pytest.approx(oracle, rel=1e-8)


@pytest.mark.parametrize("item_df", [5.0, math.inf])
@pytest.mark.parametrize("mean", [0.2, -1.0, 4.0])
def test_interval_at_one_less_the_p_value_ends_at_zero(mean, item_df):
    difference = Difference(mean, 0.01, 2.0, 0.09, item_df)
    low, high = difference.interval(1 - difference.p_value)
    assert min(abs(low), abs(high)) < 1e-8


def test_interval_of_two_parts_equals_one_worked_by_hand():
    # 12.7062 for one degree of freedom and 1.95996 for a normal; squared and weighted, 1.61448 + 0.34573.
    low, high = SEEDS_AGREE.interval(0.95)
    assert (low, high) == pytest.approx((1 - 1.400075, 1 + 1.400075), abs=1e-5)


@pytest.mark.parametrize(
    "difference",
    [SEEDS_AGREE, Difference(0.3, 1.0, 4.0, 2.0, 4.0), Difference(0.3, 1.0, math.inf, 2.0), Difference(0, 1, 3, 1e-9)],
)
def test_degrees_of_freedom_give_the_interval_at_95_percent(difference):
    half_width = stats.t.isf(0.025, difference.degrees_of_freedom) * difference.standard_error
    assert difference.interval(0.95)[1] - difference.mean == pytest.approx(half_width, rel=1e-8)


def test_no_variance_leaves_no_doubt_and_no_nan():
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p_value == 1
    sure = paired_difference([2.0, 3.0], [1.0, 2.0])
    assert (sure.p_value, sure.standard_error, sure.degrees_of_freedom) == (0, 0, 1)
    assert sure.interval(0.99) == (1, 1)
    assert Difference(1.0, 1e-20, math.inf).p_value == 0
    nothing = crossed_difference(np.zeros((3, 4)))
    assert (nothing.p_value, nothing.interval()) == (1, (0, 0))


# Seeds and items.


def test_variance_equals_a_crossed_analysis_worked_by_hand():
    # Seed means 2 and 4, item means 1, 3, 5; interactions (-1, 1, 0) and (1, -1, 0).
    differences_SI = np.array([[-1.0, 3.0, 4.0], [3.0, 3.0, 6.0]])
    # Their mean squares are 6, 8 and 2 over 6 values, so (6 + 8 - 2) / 6.
    difference = crossed_difference(differences_SI)
    assert difference.mean == 3
    assert difference.seed_variance == pytest.approx(6 / 6)
    assert difference.item_variance == pytest.approx((8 - 2) / 6)
    assert (difference.seed_degrees_of_freedom, difference.item_degrees_of_freedom) == (1, 2)


def test_parts_of_the_variance_are_unbiased():
    rng = np.random.default_rng(0)
    S, I, studies = 4, 25, 2000  # noqa: E741
    parts = [crossed_difference(model_SI(rng, S, I, seed=1.0, item=8.0, both=3.0)) for _ in range(studies)]
    seed, item = (np.array([d[k] for d in parts]) for k in (1, 3))
    assert seed.mean() == pytest.approx(1 / 4 + 9 / 100, abs=3 * seed.std() / math.sqrt(studies))
    assert item.mean() == pytest.approx(64 / 25, abs=3 * item.std() / math.sqrt(studies))


def test_mean_is_the_ratio_of_sums_averaged_over_seeds():
    bits_SI, bytes_I = np.array([[3.0, 1.0, 2.0], [5.0, 2.0, 1.0]]), np.array([10.0, 4.0, 6.0])
    assert crossed_difference(bits_SI, bytes_I).mean == pytest.approx((6 / 20 + 8 / 20) / 2)


def test_item_variance_is_the_jackknife_of_the_ratio():
    rng = np.random.default_rng(0)
    bytes_I, group_I = rng.lognormal(0, 1, 12), np.repeat(np.arange(4), 3)
    bits_I = bytes_I * (0.1 + rng.normal(size=12))
    left_out = np.array([bits_I[group_I != g].sum() / bytes_I[group_I != g].sum() for g in range(4)])
    ratio = bits_I.sum() / bytes_I.sum()
    difference = crossed_difference(bits_I[None], bytes_I, group_I)
    assert difference.item_variance == pytest.approx(3 / 4 * ((left_out - ratio) ** 2).sum(), rel=FLOAT64)


def test_effects_that_add_leave_no_interaction():
    rng = np.random.default_rng(0)
    bytes_I, item_I, seed_S = rng.lognormal(0, 1, 12), rng.normal(size=12), np.array([0.3, -0.1, 0.4])
    difference = crossed_difference((seed_S[:, None] + item_I) * bytes_I, bytes_I)
    alone = crossed_difference((item_I * bytes_I)[None], bytes_I)
    assert difference.item_variance == pytest.approx(alone.item_variance, rel=FLOAT64)
    assert difference.seed_variance == pytest.approx(seed_S.var(ddof=1) / 3, rel=FLOAT64)


def test_twins_count_once():
    rng = np.random.default_rng(0)
    one_SI, bytes_I = rng.normal(size=(3, 20)), rng.lognormal(size=20)
    alone = crossed_difference(one_SI, bytes_I)
    # The labels are strings in no order, as sources of items are.
    labels_I = np.repeat([f"source {(7 * i) % 20}" for i in range(20)], 2)
    twins = crossed_difference(one_SI.repeat(2, 1), bytes_I.repeat(2), labels_I)
    assert twins[:-1] == pytest.approx(alone[:-1], rel=FLOAT64) and twins.own is alone.own is None


def test_stratum_variance_equals_one_worked_by_hand():
    # Within strata of means 2 and 20: squares 2 and 8, each times 2 / 1, over 4 squared.
    difference = crossed_difference(np.array([[1.0, 3.0, 18.0, 22.0]]), strata_I=np.array(["a", "a", "b", "b"]))
    assert difference.item_variance == pytest.approx(2 * (2 + 8) / 16)
    # Satterthwaite for variances 4 and 16 of one degree of freedom each: 20^2 / (4^2 + 16^2).
    assert difference.item_degrees_of_freedom == pytest.approx(400 / 272)


def test_few_heavy_documents_give_few_degrees_of_freedom():
    rng = np.random.default_rng(0)
    differences_I, bytes_I = rng.normal(size=1000), np.ones(1000)
    differences_I[:5] *= 1000
    assert crossed_difference(differences_I[None], bytes_I).item_degrees_of_freedom < 15
    assert crossed_difference(rng.normal(size=(1, 1000))).item_degrees_of_freedom > 800


def test_scale_and_order_do_not_matter():
    rng = np.random.default_rng(0)
    differences_SI, bytes_I, group_I = rng.normal(size=(3, 12)), rng.lognormal(size=12), np.arange(12) // 2
    difference = crossed_difference(differences_SI, bytes_I, group_I)
    order_I = rng.permutation(12)
    shuffled = crossed_difference(differences_SI[::-1, order_I], bytes_I[order_I], group_I[order_I])
    assert shuffled[:-1] == pytest.approx(difference[:-1], rel=FLOAT64)
    scaled = crossed_difference(-8 * differences_SI, bytes_I, group_I)
    assert scaled.p_value == pytest.approx(difference.p_value, rel=1e-8)
    assert scaled.standard_error == pytest.approx(8 * difference.standard_error, rel=FLOAT64)


def test_one_seed_counts_items_alone_unless_a_prior_reports_of_seeds():
    # Of light tails, so that no item counts for more than one.
    differences_SI = np.random.default_rng(0).uniform(-1, 2, (1, 30))
    alone = crossed_difference(differences_SI)
    oracle = stats.ttest_1samp(differences_SI[0], 0.0)
    assert not alone.seeds_counted
    assert (alone.p_value, alone.degrees_of_freedom) == pytest.approx((oracle.pvalue, 29), rel=1e-8)
    known = crossed_difference(differences_SI, prior=VariancePrior(0.5, 6.0))
    assert known.seeds_counted
    assert (known.seed_variance, known.seed_degrees_of_freedom) == (0.5, 6)
    assert known.item_variance == alone.item_variance
    assert not crossed_difference(differences_SI, prior=VariancePrior(0.5, 0.0)).seeds_counted


def test_whole_is_never_below_a_part():
    rng = np.random.default_rng(0)
    for _ in range(200):
        differences_SI = model_SI(rng, 2, 6, both=1.0)
        difference = crossed_difference(differences_SI)
        by_seed = differences_SI.mean(1).var(ddof=1) / 2
        by_item = differences_SI.mean(0).var(ddof=1) / 6
        residuals_SI = differences_SI - differences_SI.mean(1, keepdims=True) - differences_SI.mean(0)
        # A mean square of (2 - 1) (6 - 1) degrees of freedom, of the mean of 2 x 6 values.
        naive = by_seed + by_item - residuals_SI.var() * 12 / 5 / 12
        assert difference.standard_error**2 >= max(by_seed, by_item, naive) * (1 - FLOAT64)


REGIMES = {
    # Standard deviations of the effects of 60 items, whose mean varies 7.75 times less.
    "seeds": dict(seed=1.0, item=0.5, both=0.5),
    "items": dict(seed=0.0, item=1.0, both=0.1),
    "interaction": dict(both=1.0),
    "both alike": dict(seed=1 / math.sqrt(60), item=1.0),
    "seeds more": dict(seed=3 / math.sqrt(60), item=1.0, both=1.0),
}
STUDIES = 500


def assert_level(differences) -> None:
    """Checks 95 % intervals of equals on each side and on both."""
    lower, higher = rates(differences)
    assert max(lower, higher) <= at_most(0.025, len(differences)), (lower, higher)
    assert lower + higher <= at_most(0.05, len(differences)), (lower, higher)


@pytest.mark.parametrize("shape", ["items", "pairs of documents"])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("S", [2, 3, 5, 8])
def test_equals_are_called_different_at_most_as_often_as_promised(regime, shape, S):
    rng = np.random.default_rng(0)
    group_I = np.arange(60) if shape == "items" else np.arange(120) // 2
    found = []
    for _ in range(STUDIES):
        bytes_I = np.ones(60) if shape == "items" else rng.lognormal(0, 1, 120)
        differences_SI = model_SI(rng, S, len(group_I), group_I=group_I, **REGIMES[regime]) * bytes_I
        found.append(crossed_difference(differences_SI, bytes_I, group_I))
    assert_level(found)


@pytest.mark.parametrize("S", [2, 5])
def test_few_documents_of_unequal_length_keep_the_level(S):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        bytes_I = rng.lognormal(0, 1, 20)
        found.append(crossed_difference(model_SI(rng, S, 20, item=1.0, both=0.1) * bytes_I, bytes_I))
    assert_level(found)


@pytest.mark.parametrize("regime", REGIMES)
def test_equals_are_called_different_at_most_as_often_as_promised_with_a_prior(regime):
    rng = np.random.default_rng(1)
    effects = dict(seed=0.0, both=0.0) | REGIMES[regime]
    usual = effects["seed"] ** 2 + effects["both"] ** 2 / 60
    for S in (1, 2, 3, 5):
        found = []
        for _ in range(STUDIES):
            # A comparison's true variance is drawn from the prior.
            scale = math.sqrt(5 / rng.chisquare(5))
            drawn = REGIMES[regime] | dict(seed=effects["seed"] * scale, both=effects["both"] * scale)
            found.append(crossed_difference(model_SI(rng, S, 60, **drawn), prior=VariancePrior(usual, 5.0)))
        assert_level(found)


@pytest.mark.parametrize(("regime", "S"), [("seeds", 2), ("seeds", 5), ("items", 5), ("both alike", 8)])
def test_intervals_cover_as_often_as_they_say(regime, S):
    """And not much oftener, where one of the parts dominates or seeds are many."""
    rng = np.random.default_rng(2)
    found = [crossed_difference(0.7 + model_SI(rng, S, 60, **REGIMES[regime])) for _ in range(2000)]
    for confidence in (0.8, 0.95):
        intervals = np.array([difference.interval(confidence) for difference in found])
        covered = ((intervals[:, 0] < 0.7) & (intervals[:, 1] > 0.7)).mean()
        low = confidence - 3 * math.sqrt(confidence * (1 - confidence) / 2000)
        high = confidence + (1 - confidence) / 5 + 3 * math.sqrt(confidence * (1 - confidence) / 2000)
        assert low <= covered <= high, (confidence, covered)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("df", [1, 2, 4])
def test_two_parts_keep_their_level_where_one_t_by_satterthwaite_does_not(df, share):
    """By integration over the seeds' estimated variance, which is a share of the whole; the items' is known."""
    chi_squares = stats.chi2.ppf((np.arange(400) + 0.5) / 400, df) / df
    for alpha in (0.05, interim_level(3)):
        level = 0.0
        for multiple in chi_squares:
            half_width = Difference(0.0, share * multiple, df, 1 - share).interval(1 - alpha)[1]
            level += 2 * special.ndtr(-half_width) / 400
        assert level <= alpha * 1.01
    total = share * chi_squares + 1 - share
    one_t = stats.t.isf(0.025, df * total**2 / (share * chi_squares) ** 2) * np.sqrt(total)
    if df == 1 and share == 0.8:
        assert 2 * special.ndtr(-one_t).mean() > 0.1


def test_ignoring_that_twins_are_twins_is_too_liberal():
    rng = np.random.default_rng(3)
    group_I = np.arange(120) // 2
    studies = [model_SI(rng, 3, 120, item=1.0, both=0.3, group_I=group_I) for _ in range(1000)]
    assert_level([crossed_difference(study, None, group_I) for study in studies])
    assert min(rates([crossed_difference(study) for study in studies])) > 0.05


def test_a_mixture_drawn_by_corpus_is_narrower_with_strata_and_keeps_its_level():
    rng = np.random.default_rng(4)
    stratum_I = np.arange(60) % 2
    # The corpora differ by 4 in opposite directions, so that their mean is 0.
    studies = [model_SI(rng, 3, 60, item=1.0, seed=0.02) + 4 * (2 * stratum_I - 1) for _ in range(1000)]
    assert_level([crossed_difference(study, strata_I=stratum_I) for study in studies])
    assert sum(rates([crossed_difference(study) for study in studies])) == 0


def test_ten_thousand_items_take_no_more_calls_than_a_hundred_and_memory_in_proportion():
    def count_calls_and_bytes(items):
        arguments = np.ones((8, items)) + np.eye(8, items), np.arange(1.0, items + 1), np.arange(items) // 2
        crossed_difference(*arguments)  # What is imported or cached at the first call does not count.
        events = []
        sys.setprofile(lambda frame, event, argument: events.append(event))
        try:
            crossed_difference(*arguments)
        finally:
            sys.setprofile(None)
        tracemalloc.start()
        try:
            crossed_difference(*arguments)
            return len(events), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    (few_calls, few_bytes), (calls, size) = count_calls_and_bytes(100), count_calls_and_bytes(10_000)
    assert calls == few_calls < 1000 and size < 200 * few_bytes < 8e6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.ones(3),), "seeds and items"),
        ((np.ones((0, 3)),), "seeds and items"),
        ((np.ones((2, 3)), np.ones(2)), "one weight per item"),
        ((np.ones((2, 3)), np.array([1.0, -1.0, 3.0])), "0 or more"),
        ((np.ones((2, 3)), np.zeros(3)), "not all 0"),
        ((np.array([[1.0, math.nan]]),), "finite"),
        ((np.ones((2, 2)), np.array([1.0, math.inf])), "finite"),
        ((np.ones((2, 3)), None, np.zeros(3)), "at least 2 groups"),
        ((np.ones((2, 1)),), "at least 2 groups"),
        ((np.ones((2, 3)), np.array([0.0, 1.0, 0.0])), "at least 2 groups"),
        ((np.ones((2, 3)), None, np.zeros(2)), "one label per item"),
    ],
)
def test_what_cannot_be_analysed_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        crossed_difference(*arguments)


def test_strata_that_cannot_be_analysed_are_refused():
    with pytest.raises(ValueError, match="one stratum"):
        crossed_difference(np.ones((2, 4)), None, np.array([0, 0, 1, 1]), strata_I=np.array([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="at least 2 groups"):
        crossed_difference(np.ones((2, 3)), strata_I=np.array([0, 0, 1]))


@pytest.mark.parametrize(
    ("variant_S", "parent_S", "words"),
    [([1.0], [2.0], "at least 2"), ([1.0, 2.0], [1.0], "per seed"), ([1.0, math.nan], [1.0, 2.0], "finite")],
)
def test_seeds_that_cannot_be_paired_are_refused(variant_S, parent_S, words):
    with pytest.raises(ValueError, match=words):
        paired_difference(variant_S, parent_S)


# Priors.


def test_prior_moderates_the_paired_difference():
    difference = paired_difference([1.0, 2.0, 3.0], np.zeros(3), VariancePrior(4.0, 2.0))
    assert (difference.seed_variance, difference.degrees_of_freedom) == pytest.approx(((2 * 1 + 2 * 4) / 4 / 3, 4.0))
    assert paired_difference([1.0], [0.0], VariancePrior(4.0, 2.0)).standard_error == 2


def test_a_prior_that_is_far_too_small_is_held_in_check_by_the_comparisons_own_variance():
    rng, alpha = np.random.default_rng(0), interim_level(3)
    for S in (2, 3):
        found = [paired_difference(rng.normal(0, 30.0, S), np.zeros(S), VariancePrior(1.0, 8.0)) for _ in range(2000)]
        below, above = (np.mean([each.p_value <= alpha and side * each.mean > 0 for each in found]) for side in (-1, 1))
        # Without it, nearly all would be called different.
        assert max(below, above) <= 0.03 + 3 * math.sqrt(0.03 / 2000)
    one = paired_difference(np.array([1.0, 2.0, 6.0]), np.zeros(3), VariancePrior(4.0, 50.0))
    alone = paired_difference(np.array([1.0, 2.0, 6.0]), np.zeros(3))
    assert one.own == (alone.seed_variance, 2)
    assert one.interval(1 - alpha) == pytest.approx(alone.interval(1 - OWN_LEVEL * alpha))
    far = paired_difference(np.array([1.0, 2.0, 6.0]), np.zeros(3), VariancePrior(0.1, 50.0))
    assert far == alone, "a variance that exceeds the prior is not drawn towards it"
    usual = paired_difference(np.array([1.0, 2.0, 6.0]), np.zeros(3), VariancePrior(1e6, 50.0))
    assert usual.interval() == pytest.approx(usual._replace(own=None).interval())


def test_the_one_sided_p_value_is_that_of_the_one_sided_t_test():
    rng = np.random.default_rng(0)
    for shift in (-0.5, 0.5):
        values = rng.normal(shift, 1.0, 6)
        expected = stats.ttest_1samp(values, 0.0, alternative="less").pvalue
        assert paired_difference(values, np.zeros(6)).p_value_below == pytest.approx(expected)


# What items do to several differences.


@pytest.mark.parametrize("true", [0.0, 0.4, 1.0])
def test_the_correlation_of_what_items_do_is_that_they_were_drawn_with(true):
    rng, found, I = np.random.default_rng(3), [], 200  # noqa: E741
    weights_I, groups_I = rng.uniform(0.5, 2, I), np.arange(I) // 2
    for _ in range(20):
        shared_G, sizes = rng.normal(size=I // 2), []
        for seeds in (3, 5):
            own_G = math.sqrt(true) * shared_G + math.sqrt(1 - true) * rng.normal(size=I // 2)
            noise_SI = 0.7 * rng.normal(size=(seeds, I))
            sizes.append((0.3 + 0.1 * seeds + own_G[groups_I] + noise_SI) * weights_I)
        found.append(item_correlation(sizes, weights_I, groups_I))
    assert np.mean(found) == pytest.approx(true, abs=0.1)


def test_the_correlation_of_one_difference_or_of_none_is_not_known():
    assert math.isnan(item_correlation([]))
    assert math.isnan(item_correlation([np.ones((2, 3))]))
    assert math.isnan(item_correlation([np.ones((2, 3)), np.ones((2, 3))]))
