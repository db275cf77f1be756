"""Power against the noncentral t, and against how often simulated effects are called."""

import math

import numpy as np
import pytest
from scipy import stats
from simulated_studies import about, model_SI, rates

from jaxformer.statistics.paired_difference import crossed_difference, paired_difference
from jaxformer.statistics.power import power, seeds_needed
from jaxformer.statistics.variance_prior import VariancePrior

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


@pytest.mark.parametrize("seeds", [2, 3, 5, 8, 30])
@pytest.mark.parametrize("paired", [True, False])
def test_power_is_the_tail_of_the_noncentral_t(seeds, paired):
    df, error = (seeds - 1, 0.3 / math.sqrt(seeds)) if paired else (2 * (seeds - 1), 0.3 * math.sqrt(2 / seeds))
    for effect in (0.0, 0.1, -0.5):
        oracle = stats.nct.sf(stats.t.isf(0.01, df), df, abs(effect) / error)
        assert power(effect, 0.3, seeds, alpha=0.02, paired=paired) == pytest.approx(oracle, abs=2e-4)


def test_power_is_how_often_the_test_calls_the_effect():
    rng = np.random.default_rng(0)
    studies = 20_000
    variant_RS, parent_RS = rng.normal(0.3, 0.3, (studies, 4)), rng.normal(0.0, 0.3, (studies, 4))
    paired = stats.ttest_1samp(variant_RS, 0.0, axis=1)
    unpaired = stats.ttest_ind(variant_RS, parent_RS, axis=1)
    for test, rate in (
        (paired, power(-0.3, 0.3, 4, alpha=0.05)),
        (unpaired, power(-0.3, 0.3, 4, alpha=0.05, paired=False)),
    ):
        assert ((test.pvalue < 0.05) & (test.statistic > 0)).mean() == about(rate, studies)


def test_power_with_items_is_how_often_their_difference_is_called():
    rng = np.random.default_rng(0)
    found = [crossed_difference(0.9 + model_SI(rng, 5, 200, seed=0.3, item=4.0)) for _ in range(2000)]
    _, higher = rates(found)
    assert 0.4 < higher == about(power(0.9, 0.3, 5, alpha=0.05, item_variance=16 / 200), 2000)


def test_power_with_a_prior_is_how_often_the_moderated_difference_is_called():
    rng = np.random.default_rng(0)
    prior = VariancePrior(0.09, 6.0)
    found = [paired_difference(rng.normal(0.4, 0.3, 2), np.zeros(2), prior) for _ in range(2000)]
    assert rates(found)[1] == about(power(0.4, 0.3, 2, alpha=0.05, prior_df=6), 2000)
    assert power(0.4, 0.3, 1, alpha=0.05, prior_df=math.inf) == pytest.approx(stats.norm.cdf(0.4 / 0.3 - 1.959964))
    assert power(0.4, 0.3, 1, alpha=0.05) == 0


def test_seeds_needed_are_the_fewest_that_reach_the_power():
    def needed(**options):
        return seeds_needed(0.3, 0.3, alpha=0.05, wanted_power=0.8, **options)

    # A tabulated sample size for an effect of one standard deviation: 10 pairs, or 17 in each of two groups.
    assert needed() == 10
    assert needed(paired=False) == 17
    assert power(0.3, 0.3, 9, alpha=0.05) < 0.8 <= power(0.3, 0.3, 10, alpha=0.05)
    assert needed(most=9) is None
    assert needed(prior_df=20) < 10 < needed(item_variance=0.05**2)
    # More seeds do not reduce what the items leave open.
    assert needed(item_variance=0.2**2) is None
