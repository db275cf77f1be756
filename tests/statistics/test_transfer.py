"""The effect of a change at a size that was not trained, and the rule that gives it a word."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxformer.statistics.transfer import (
    Effect,
    Prediction,
    TransferVerdict,
    decide,
    error_covariance,
    predict_effect,
    prior_covariance,
    prior_grid,
)
from jaxformer.statistics.transfer_design import (
    SizeOption,
    cheapest_design,
    expected_deviation,
    target_power,
    transfer_power,
)

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

DISTANCE = np.log(4) * np.array([-4.0, -3.0, -2.0])


def found(
    smallest=(-0.04, -0.02), largest=(-0.04, -0.02), target=(-0.03, -0.01), margin=0.005, distances=(-4.0, -3.0, -2.0)
):
    first, last, there = (Effect((low + high) / 2, low, high, 0.9) for low, high in (smallest, largest, target))
    return Prediction(distances, first, last, there, margin)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, TransferVerdict.TRANSFERS),
        ({"distances": (-4.0, -2.0)}, TransferVerdict.UNKNOWN),
        ({"distances": (-4.0, -3.0, -2.1)}, TransferVerdict.UNKNOWN),
        ({"distances": (2.0, 3.0, 4.0)}, TransferVerdict.TRANSFERS),
        ({"distances": (2.1, 3.0, 4.0)}, TransferVerdict.UNKNOWN),
        ({"smallest": (-0.04, 0.01)}, TransferVerdict.UNKNOWN),
        ({"target": (-0.03, 0.01)}, TransferVerdict.UNKNOWN),
        # Within the margin counts before the sign, unless it was small from the beginning.
        ({"target": (-0.004, -0.001)}, TransferVerdict.FADES),
        ({"target": (-0.004, 0.004)}, TransferVerdict.FADES),
        ({"target": (-0.004, 0.004), "margin": math.nan}, TransferVerdict.UNKNOWN),
        ({"smallest": (-0.005, -0.003), "target": (-0.004, -0.001)}, TransferVerdict.TRANSFERS),
        # A trend alone reverses nothing.
        ({"target": (0.01, 0.03)}, TransferVerdict.UNKNOWN),
        ({"largest": (0.01, 0.02), "target": (0.01, 0.03)}, TransferVerdict.REVERSES),
    ],
)
def test_the_word_is_that_of_the_rule_on_either_side_of_zero(given, word):
    assert decide(found(**given))[0] is word
    effects = ("smallest", "largest", "target")
    ends = {"smallest": (-0.04, -0.02), "largest": (-0.04, -0.02), "target": (-0.03, -0.01)} | given
    mirrored = {key: (-high, -low) for key, (low, high) in ((k, v) for k, v in ends.items() if k in effects)}
    assert decide(found(**(ends | mirrored)))[0] is word


def test_the_posterior_is_that_of_the_joint_normal_at_each_point_of_the_prior():
    effects, errors, at = np.array([-0.03, -0.02, -0.025]), np.diag([4e-5, 2e-5, 1e-5]), np.array([0.0])
    total, mean, mass = 0.0, 0.0, 0.0
    for scale, slope, deviation, weight in zip(*prior_grid(), strict=True):
        K = scale * prior_covariance(np.append(DISTANCE, 0.0), slope, deviation)
        likelihood = weight * stats.multivariate_normal.pdf(effects, np.zeros(3), K[:3, :3] + errors)
        inverse = np.linalg.inv(K[:3, :3] + errors)
        here = K[3, :3] @ inverse @ effects
        deviation = math.sqrt(K[3, 3] - K[3, :3] @ inverse @ K[:3, 3])
        total, mean = total + likelihood, mean + likelihood * here
        mass += likelihood * stats.norm.cdf(0, here, deviation)
    effect = predict_effect(effects, errors, DISTANCE, at)
    assert effect.mean[0] == pytest.approx(mean / total, rel=1e-6)
    assert effect.below[0] == pytest.approx(mass / total, rel=1e-6)


def test_nothing_persists_unless_it_is_seen_to():
    """What is expected shrinks with the distance, its interval widens, and no seeds at one size make it certain."""
    errors = np.diag([1e-8])
    near, far = (predict_effect(np.array([-0.02]), errors, np.array([-x]), np.zeros(1)) for x in (1.4, 9.2))
    assert -0.02 < near.mean[0] < far.mean[0] < -0.005 and near.low[0] > far.low[0] and near.high[0] < far.high[0]
    assert far.high[0] > 0


def test_what_is_measured_at_the_target_itself_is_known_there():
    distances = np.append(DISTANCE, 0.0)
    effect = predict_effect(np.array([-0.05, -0.04, -0.03, 0.01]), np.eye(4) * 1e-8, distances, np.zeros(1))
    assert effect.mean[0] == pytest.approx(0.01, abs=1e-5)
    assert effect.high[0] - effect.low[0] == pytest.approx(2 * 1.96e-4, rel=0.01)


def test_many_questions_are_each_answered_as_alone():
    effects_QN = np.array([[-0.03, -0.02, -0.025], [0.001, 0.0, -0.002]])
    errors_QNN = np.stack([np.eye(3) * 1e-5, np.eye(3) * 4e-5])
    together = predict_effect(effects_QN, errors_QNN, DISTANCE, np.array([DISTANCE[0], 0.0]))
    alone = predict_effect(effects_QN[1], errors_QNN[1], DISTANCE, np.array([DISTANCE[0], 0.0]))
    for values, own in zip(together, alone, strict=True):
        np.testing.assert_allclose(values[1], own, rtol=1e-9, atol=1e-12)


def test_documents_are_shared_between_sizes_and_few_seeds_count_as_few():
    infinite, seeds, items = np.full(2, math.inf), np.full(2, 1e-6), np.array([4e-6, 1e-6])
    covariance = error_covariance(seeds, infinite, items, infinite)
    np.testing.assert_allclose(covariance, [[5e-6, 1e-6], [1e-6, 2e-6]])
    covariance = error_covariance(seeds, infinite, items, infinite, correlation=0.25)
    np.testing.assert_allclose(covariance, [[5e-6, 0.5e-6], [0.5e-6, 2e-6]])
    (few,), _ = error_covariance(np.array([1e-6, 0.0]), np.array([2.0, 0.0]), np.zeros(2), infinite)[:, :1]
    assert math.sqrt(few) * 1.959964 == pytest.approx(1e-3 * 4.302653, rel=1e-5)


def test_the_noise_of_one_size_says_nothing_of_another():
    """Seeds scatter least at the largest size, and pooled with it the smallest would look surer than it is."""
    df, none = np.array([2.0, 2.0, 2.0]), np.zeros(3)
    alone = error_covariance(np.array([9e-6, 1e-6, 1e-6]), df, none, df)
    beside = error_covariance(np.array([9e-6, 1e-8, 1e-8]), df, none, df)
    assert alone[0, 0] == beside[0, 0] > 9e-6


def test_the_cheapest_design_is_cheapest_and_has_its_power():
    options = [SizeOption(np.log(4) * (i - 5), 0.05 * 4**i, 0.012 * 0.7**i, 0.0015) for i in range(4)]
    found = cheapest_design([*options, SizeOption(0.0, 40.0, 0.003, 0.0015)], 0.02).sizes
    assert found is not None and found.power >= 0.8 and found.seeds_N[-1] == 0
    for n, seeds in enumerate(found.seeds_N[:4]):
        if seeds > 3:
            fewer = np.array(found.seeds_N[:4])
            fewer[n] = 3
            assert transfer_power(options, fewer[None], 0.02)[0] < 0.8
    assert found.hours == sum(seeds * one.hours for seeds, one in zip(found.seeds_N, options, strict=False))
    there = [one._replace(seeds=seeds) for one, seeds in zip(options, found.seeds_N, strict=False)]
    again = cheapest_design(there, 0.02).sizes
    assert again is not None and again.hours > 0 and again.power > found.power
    paid = cheapest_design(options, 0.02, hours=11.0).sizes
    assert paid is not None and paid.hours <= 11 and paid.power < 0.8
    assert cheapest_design(options[:2], 0.02).sizes is None
    assert cheapest_design(options[:3], 0.02).sizes is None  # Which span 16 x, and the target has 64 x.


def test_no_design_is_of_the_seeds_alone_that_are_there_already():
    options = [SizeOption(np.log(4) * (i - 4), 1.0, 0.001, seeds=8) for i in range(5)]
    found = cheapest_design(options, 0.05)
    assert found.sizes is not None and found.sizes.power > 0.8 and found.sizes.hours > 0
    assert found.target is not None and found.target.power > 0.8 and found.target.hours > 0
    assert cheapest_design([one._replace(seeds=24) for one in options], 0.05)[:2] == (None, None)


def test_runs_of_the_parent_that_are_there_cost_nothing():
    one = SizeOption(0.0, 5.0, 0.01, seeds=3, parent_hours=2.0, parent_seeds=8)
    assert one.hours_to(np.array([0, 3, 5, 12])).tolist() == [0, 0, 2 * 3, 9 * 3 + 4 * 2]
    options = [SizeOption(np.log(4) * (i - 4), 5.0, 0.01, parent_hours=2.0) for i in range(5)]
    dear = cheapest_design(options, 0.02)
    cheap = cheapest_design([one._replace(parent_seeds=24) for one in options], 0.02)
    for before, after in zip(dear, cheap, strict=True):
        assert before is not None and after is not None and after.hours == pytest.approx(before.hours * 3 / 5)


def test_asking_at_the_target_has_the_power_of_the_t_test():
    random, n = np.random.default_rng(0), 5
    values_QS = 0.01 + 0.006 * random.standard_normal((20_000, n))
    t_Q = values_QS.mean(1) / (values_QS.std(1, ddof=1) / math.sqrt(n))
    level = 0.0135 * (3 / n) ** 0.4
    simulated = float(np.mean(t_Q > stats.t.isf(level / 2, n - 1)))
    assert target_power(SizeOption(0.0, 1.0, 0.006), n, 0.01) == pytest.approx(simulated, abs=0.01)


def test_an_option_without_hours_or_an_effect_is_refused():
    with pytest.raises(ValueError, match="must be above 0"):
        cheapest_design([SizeOption(-1.0, 0.0, 0.01)], 0.01)
    with pytest.raises(ValueError, match="must be above 0"):
        cheapest_design([SizeOption(-1.0, 1.0, 0.01)], 0.0)


def test_the_noise_that_is_expected_falls_with_the_compute_to_a_floor():
    assert expected_deviation(4e12) == pytest.approx(0.7 * expected_deviation(1e12))
    assert expected_deviation(1e22) == 0.003
