"""Gains after selection: raw they are too large, shrunken they are not."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxformer.statistics.shrinkage import FEWEST, shrink, spread_of_effects

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


def test_the_spread_is_that_of_which_effects_and_errors_are_drawn():
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.5, 2.0, 20_000)
    effects = 1.5 * rng.standard_normal(20_000) + errors * rng.standard_normal(20_000)
    assert spread_of_effects(effects, errors) == pytest.approx(1.5, rel=0.03)
    assert spread_of_effects(0.1 * errors, errors) == 0.0, "less than the errors explain"
    assert math.isnan(spread_of_effects(effects[: FEWEST - 1], errors[: FEWEST - 1]))


def test_kept_effects_are_too_large_raw_and_not_shrunken():
    rng = np.random.default_rng(1)
    raw = shrunken = true = 0.0
    for _ in range(400):  # Studies of 13 questions, effects and seeds' differences of 1 sd each, three seeds.
        effects, error = rng.standard_normal(13), math.sqrt(1 / 3)
        found = effects + error * rng.standard_normal(13)
        spread = spread_of_effects(found, np.full(13, error))
        kept = found < -error * stats.norm.isf(0.0135 / 2)
        raw, true = raw + found[kept].sum(), true + effects[kept].sum()
        shrunken += sum(shrink(each, error, spread) for each in found[kept])
    assert raw / true > 1.25 and shrunken / true == pytest.approx(1, abs=0.07)


def test_how_bad_some_changes_are_says_nothing_of_how_good_others_are():
    effects, errors = np.array([-0.02, 0.01, -0.005, 0.015, -0.01, 0.0]), np.full(6, 0.005)
    spread = spread_of_effects(effects, errors)
    assert 0 < spread < 0.02
    worse = np.array([0.5, 9.0])
    assert spread_of_effects(np.append(effects, worse), np.full(8, 0.005)) == spread
    assert spread_of_effects(np.abs(worse[[0, 1, 0, 1]]), np.ones(4)) == 0.0, "nothing is better"
