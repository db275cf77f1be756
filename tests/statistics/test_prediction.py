"""The predicted probability of a decision: by the intervals of the rule, and as often as it says."""

import math

import numpy as np
import pytest

from jaxformer.statistics.paired_difference import Difference, paired_difference
from jaxformer.statistics.prediction import half_widths, predict
from jaxformer.statistics.significance import INTERIM_SEEDS, interim_level
from jaxformer.statistics.variance_prior import VariancePrior

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

PRIORS = [None, VariancePrior(1.0, 8.0, 40.0), VariancePrior(0.01, 20.0, 40.0)]


@pytest.mark.parametrize("prior", PRIORS)
def test_widths_are_those_of_the_interval(prior):
    rng = np.random.default_rng(0)
    for seeds in INTERIM_SEEDS:
        values_PS = rng.normal(size=(20, seeds))
        found = [paired_difference(values_S, np.zeros(seeds), prior) for values_S in values_PS]
        found = [one._replace(item_variance=0.04, item_degrees_of_freedom=9.0) for one in found]
        expected = [np.diff(one.interval(1 - interim_level(seeds)))[0] / 2 for one in found]
        np.testing.assert_allclose(half_widths(values_PS.var(1, ddof=1), seeds, prior, found[0]), expected)


def is_decided(values_S: np.ndarray, margin: float, prior: VariancePrior | None) -> bool:
    low, high = paired_difference(values_S, np.zeros(len(values_S)), prior).interval(1 - interim_level(len(values_S)))
    return low > 0 or high < 0 or (-margin < low and high < margin)


@pytest.mark.parametrize(("prior", "margin"), [(None, 0.4), (PRIORS[1], 0.4), (PRIORS[1], 2.0)])
def test_as_many_comparisons_are_decided_as_predicted(prior, margin):
    rng, rows = np.random.default_rng(0), []
    while len(rows) < 400:
        variance = prior.degrees_of_freedom / rng.chisquare(prior.degrees_of_freedom) if prior else 1.0
        values_S = rng.normal(1.5 * rng.normal(), math.sqrt(variance), INTERIM_SEEDS[-1])
        if is_decided(values_S[:3], margin, prior):
            continue
        prospects = predict(paired_difference(values_S[:3], np.zeros(3), prior), 3, margin, prior, paths=500)
        decided = np.maximum.accumulate([is_decided(values_S[:n], margin, prior) for n in INTERIM_SEEDS[1:]])
        assert [one.seeds for one in prospects] == list(INTERIM_SEEDS[1:])
        rows += [([one.decided for one in prospects], decided)]
    predicted, seen = np.mean([row for row, _ in rows], 0), np.mean([row for _, row in rows], 0)
    np.testing.assert_allclose(predicted, seen, atol=0.1)


def test_probabilities_grow_with_the_seeds_and_hold_what_is_sure():
    clear = predict(Difference(-1.0, 0.01, 8.0), 3, 0.1)
    assert [one.decided for one in clear] == sorted(one.decided for one in clear) and clear[-1].kept > 0.99
    equal = predict(Difference(0.0, 1e-6, 2.0), 3, 0.1)
    assert equal[-1].decided > 0.99 and equal[-1].kept < 0.1
    by_documents = predict(Difference(0.1, 1e-6, 2.0, 1.0, 20.0), 3, 0.1)
    assert by_documents[-1].decided == 0.0, "no number of seeds makes the documents more"
    unknown = predict(Difference(-1.0, 0.01, 8.0), 3, math.nan)
    assert unknown[-1].kept == unknown[-1].decided, "without a margin nothing is called equal"
    assert predict(Difference(-1.0, 0.1, 8.0), 24, 0.1) == []
