"""Expectations, calibrated: what is fitted is what answers were drawn from, and forecasts come true as often."""

import numpy as np
import pytest
from scipy import stats

from jaxformer.statistics.expectations import OVERLAP, PRIOR, TAIL, Belief, Expectations, Prior, calibrate

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

VAGUE = Prior((0, 10), (0, 10), (1, 0.1), (1, 0.1))


def draw(rng, number, *, slope=0.5, shift=1.0, spread=2.0, kind_spread=1.5, kinds=40, error=0.3):
    half_N, kind_N = rng.lognormal(-4, 0.7, number), rng.integers(0, kinds, number)
    midpoint_N = half_N * rng.uniform(-3, 1, number)
    own_N = (kind_spread * rng.standard_normal(kinds))[kind_N] + spread * rng.standard_t(TAIL, number)
    effect_N = slope * midpoint_N + half_N * (shift + own_N)
    error_N = error * half_N
    measured_N = effect_N + error_N * rng.standard_normal(number)
    return effect_N, Expectations(midpoint_N - half_N, midpoint_N + half_N, kind_N, measured_N, error_N)


def test_what_answers_were_drawn_from_is_found():
    _, answers = draw(np.random.default_rng(0), 3000)
    found = calibrate(answers, 40, VAGUE)
    assert found.mean_C[0] == pytest.approx(0.5, abs=0.15) and found.mean_C[1] == pytest.approx(1.0, abs=0.6)
    assert float(found.spread) == pytest.approx(2.0, rel=0.1) and float(found.kind_spread) == pytest.approx(
        1.5, rel=0.3
    )


def test_intervals_of_new_questions_hold_as_many_effects_as_they_say_after_few_answers_too():
    rng, inside = np.random.default_rng(1), []
    for _ in range(40):
        law = {"slope": rng.normal(*PRIOR.slope), "shift": rng.normal(*PRIOR.shift), "spread": 3.1, "kind_spread": 0.5}
        effect_N, answers = draw(rng, 40, kinds=5, **law)
        asked_N = np.arange(40) < 12
        found = calibrate(answers._replace(effect_N=np.where(asked_N, answers.effect_N, np.nan)), 5)
        low_N, high_N = found.belief(*answers[:3]).quantiles(np.array([0.1, 0.9])).T
        inside.append(((low_N < effect_N) & (effect_N < high_N))[~asked_N].mean())
    assert np.mean(inside) == pytest.approx(0.8, abs=0.05)


def test_without_answers_the_prior_is_what_is_expected():
    nothing = Expectations(*np.zeros((5, 0)))._replace(kind_N=np.zeros(0, int))
    found = calibrate(nothing, 1)
    belief = found.belief(np.array([-0.03]), np.array([-0.01]), np.array([0]))
    assert belief.mean_N[0] == pytest.approx(PRIOR.slope[0] * -0.02 + PRIOR.shift[0] * 0.01)
    assert belief.scale_N[0] > PRIOR.spread[0] * 0.01


def test_a_kind_whose_answers_were_better_is_expected_to_be_better_than_others():
    high_N, low_N, kind_N = np.full(12, 0.01), np.full(12, -0.01), np.repeat([0, 1], 6)
    effect_N = np.where(kind_N == 0, -0.06, 0.0)
    found = calibrate(Expectations(low_N, high_N, kind_N, effect_N, np.full(12, 0.002)), 3)
    better, other, new = found.belief(low_N[:3], high_N[:3], np.arange(3)).mean_N
    assert better < new < other


def test_several_projects_at_once_are_each_as_alone():
    rng = np.random.default_rng(2)
    drawn = [draw(rng, 9, kinds=3)[1] for _ in range(2)]
    together = calibrate(Expectations(*(np.stack(each) for each in zip(*drawn, strict=True))), 3)
    for i, answers in enumerate(drawn):
        alone = calibrate(answers, 3)
        assert np.allclose(together.mean_C[i], alone.mean_C) and np.allclose(together.spread[i], alone.spread)


def test_what_was_kept_of_a_kind_leaves_less_of_a_gain_and_all_of_a_loss():
    before, after = (Belief(np.array([0.0]), np.array([1.0]), left) for left in (1.0, OVERLAP))
    ends = np.array([0.1, 0.9])
    assert np.allclose(after.quantiles(ends), before.quantiles(ends) * [OVERLAP, 1.0])
    grid_D = np.linspace(-300, 300, 600_001)
    density_D = after.density(grid_D[None])[0]
    below = density_D[grid_D < -0.5].sum() / density_D.sum()
    assert below == pytest.approx(stats.t.cdf(-0.5 / OVERLAP, TAIL), abs=2e-3)
