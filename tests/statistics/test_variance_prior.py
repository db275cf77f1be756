"""Priors of variances recover what made them, equal numbers worked by hand, and keep the level of a test."""

import math

import numpy as np
import pytest
from scipy import special
from simulated_studies import at_most

from jaxformer.statistics.variance_prior import VariancePrior, exceeds, fit_prior, moderate

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


@pytest.mark.parametrize("prior_df", [3.0, 10.0])
@pytest.mark.parametrize("df", [2, 7])
def test_prior_is_recovered_from_many_variances(df, prior_df):
    rng = np.random.default_rng(0)
    N = 200_000
    true_N = 0.7 * prior_df / rng.chisquare(prior_df, N)
    prior = fit_prior(true_N * rng.chisquare(df, N) / df, np.full(N, df))
    assert prior.variance == pytest.approx(0.7, rel=0.05)
    assert prior.degrees_of_freedom == pytest.approx(prior_df, rel=0.1)
    assert prior.pooled_degrees_of_freedom == N * df


def test_prior_has_the_moments_of_the_logs():
    variances_N, df_N = np.array([0.5, 3.0, 0.1, 20.0]), np.array([2.0, 4.0, 2.0, 7.0])
    prior = fit_prior(variances_N, df_N)
    logs_N = np.log(variances_N) - special.digamma(df_N / 2) + np.log(df_N / 2)
    half = prior.degrees_of_freedom / 2
    spread = logs_N.var(ddof=1) * (1 + 1 / 4) - special.polygamma(1, df_N / 2).mean()
    assert special.polygamma(1, half) == pytest.approx(spread, rel=1e-8)
    assert math.log(prior.variance) + math.log(half) - special.digamma(half) == pytest.approx(logs_N.mean())


def test_variances_that_do_not_differ_are_pooled():
    rng = np.random.default_rng(0)
    prior = fit_prior(rng.chisquare(4, 2000) / 4 * 0.3, 4)
    assert prior.degrees_of_freedom > 100
    assert prior.variance == pytest.approx(0.3, rel=0.05)
    same = fit_prior([2.0, 2.0, 2.0], [2, 2, 2])
    # Pooled by the mean of logs, whose expected value for two degrees of freedom is lower by 0.577.
    assert same.variance == pytest.approx(2 * math.exp(np.euler_gamma), rel=1e-6)
    assert moderate(9.0, 2.0, same) == pytest.approx((same.variance, 6.0))


def test_an_outlier_of_zero_does_not_blow_up_the_prior():
    assert fit_prior([0.0, 1.0, 1.0, 1.0], 3) == fit_prior([1e-5, 1.0, 1.0, 1.0], 3)


def test_moderated_variance_equals_one_worked_by_hand():
    # (2 x 9 + 4 x 3) / 6 of 2 + 4 degrees of freedom.
    assert moderate(9.0, 2.0, VariancePrior(3.0, 4.0)) == pytest.approx((5.0, 6.0))
    assert moderate(9.0, 2.0, VariancePrior(3.0, 4.0, 5.0)) == pytest.approx((5.0, 5.0))
    assert moderate(9.0, 2.0, VariancePrior(3.0, math.inf, 12.0)) == (3.0, 12.0)
    assert moderate(9.0, 2.0, VariancePrior(3.0, 0.0)) == (9.0, 2.0)
    # Its own degrees of freedom are never taken away.
    assert moderate(9.0, 7.0, VariancePrior(3.0, 4.0, 5.0))[1] == 7


@pytest.mark.parametrize("true_df", [4.0, 20.0])
def test_prior_from_few_other_comparisons_keeps_the_level(true_df):
    rng = np.random.default_rng(0)
    for S, N in ((2, 4), (3, 3), (3, 6)):
        called = 0
        for _ in range(1000):
            true_N = true_df / rng.chisquare(true_df, N + 1)
            variances_N = true_N * rng.chisquare(S - 1, N + 1) / (S - 1)
            variance, df = moderate(variances_N[0], S - 1.0, fit_prior(variances_N[1:], S - 1))
            called += abs(rng.normal(0, math.sqrt(true_N[0]))) > -special.stdtrit(df, 0.025) * math.sqrt(variance)
        assert called / 1000 <= at_most(0.05, 1000), (S, N)


@pytest.mark.parametrize("variances", [[1.0, 2.0], [1.0, -1.0, 2.0], [0.0, 0.0, 1.0], [1.0, math.nan, 2.0]])
def test_variances_that_make_no_prior_are_refused(variances):
    with pytest.raises(ValueError):
        fit_prior(variances, 2)
    with pytest.raises(ValueError, match="degrees of freedom above 0"):
        fit_prior([1.0, 2.0, 3.0], [2, 0, 2])


def test_a_variance_exceeds_its_prior_as_often_as_an_f_test_says():
    rng = np.random.default_rng(0)
    true_N = 3.0 * 8 / rng.chisquare(8, 20000)
    drawn_N = true_N * rng.chisquare(2, 20000) / 2
    assert exceeds(drawn_N, 2, VariancePrior(3.0, 8.0)).mean() == pytest.approx(0.05, abs=0.006)
    assert exceeds(25 * drawn_N, 2, VariancePrior(3.0, 8.0)).mean() > 0.7
    assert not exceeds(1e9, 0, VariancePrior(3.0, 8.0)) and not exceeds(1e9, 2, VariancePrior(3.0, 0.0))
    assert exceeds(12.0, 2, VariancePrior(3.0, math.inf)) == (math.exp(-4.0) < 0.05)
