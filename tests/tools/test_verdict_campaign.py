"""The campaign's own arithmetic, on made-up runs of which the truth is known."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxformer.ablation.verdict import Word

pytestmark = pytest.mark.device_free

TOOLS = Path(__file__).parents[2] / "tools"
SEEDS, DOCUMENTS = 300, 60


@pytest.fixture(scope="module", autouse=True)
def tools():
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


def make_arms(correlation=0.6, scatter=(1.0, 1.0, 1.0, 1.0)):
    """Returns a parent and arms that equal it: normal seeds of these standard deviations, and documents."""
    from tiny_arms import Arm

    random = np.random.default_rng(0)
    bytes_I = random.integers(50, 150, DOCUMENTS).astype(np.float64)
    shared_S, document_I, arms = random.normal(size=SEEDS), random.normal(size=DOCUMENTS), {}
    for name, deviation in zip(
        ["parent", *(f"variant {n}" for n in range(len(scatter)))], (1.0, *scatter), strict=True
    ):
        seed_S = math.sqrt(correlation) * shared_S + math.sqrt(1 - correlation) * random.normal(size=SEEDS)
        bits_SI = (50 + deviation * seed_S[:, None] + document_I) * bytes_I
        bits_SI += random.normal(size=(SEEDS, DOCUMENTS)) * 10
        arms[name] = Arm(None, bits_SI + (name != "parent") * random.normal(size=DOCUMENTS) * 10, bytes_I)
    return arms


def test_rates_that_move_the_loss_are_solved_on_the_parabola():
    from tiny_arms import LEARNING_RATE, PILOT_SEEDS, PILOT_STEP, PLANTED, Arm, plant

    def loss(rate):
        return 3 - 0.4 * math.log(rate / LEARNING_RATE) + 0.3 * math.log(rate / LEARNING_RATE) ** 2

    def arm(rate, noise):
        bits_S1 = (loss(rate) + noise * np.array([-1.0, 1.0] * (PILOT_SEEDS // 2)))[:, None]
        return Arm(None, bits_S1, np.ones(1))

    pilots = [arm(LEARNING_RATE * math.exp(sign * PILOT_STEP), 0.0) for sign in (-1, 1)]
    parent = arm(LEARNING_RATE, 0.01)
    rates = plant(parent, *pilots, PLANTED)
    moved = [(loss(rate) - loss(LEARNING_RATE)) / parent.noise for rate in rates]
    np.testing.assert_allclose(moved, PLANTED, atol=1e-9)


def test_fitted_noise_draws_differences_as_spread_as_the_runs():
    from noise_model import fit_noise, measure

    arms = make_arms(scatter=(1.0, 2.0))
    parent, *variants = arms.values()
    noise = fit_noise([one.bits_SI - parent.bits_SI for one in variants], parent, share_documents=True)
    random = np.random.default_rng(1)
    for n, arm in enumerate(variants):
        drawn = [noise.draw(n, 8, random, moderated=True) for _ in range(400)]
        truth, other = measure(parent, arm), measure(parent, variants[1 - n])
        spread = np.mean([(one.bits_SI.sum(1) / one.bytes_I.sum()).var(ddof=1) for one in drawn])
        np.testing.assert_allclose(spread, truth.standard_deviation**2, rtol=0.1)
        spread = np.mean([one.others_SN.var(0, ddof=1) for one in drawn])
        np.testing.assert_allclose(spread, other.standard_deviation**2, rtol=0.1)


def test_redrawn_effects_are_found_on_their_side_and_more_often_with_seeds_and_a_prior():
    from tiny_arms import Arm
    from verdict_campaign import find_effect

    arms = make_arms(scatter=(1.0,) * 10)
    better = arms["variant 0"]
    arms["variant 0"] = Arm(None, better.bits_SI - 2.0 * better.bytes_I, better.bytes_I)
    found = {(one.seeds, one.moderated): one for one in find_effect(arms, "variant 0", 300, np.random.default_rng(2))}
    assert not any(one.wrong for one in found.values())
    assert found[3, False].seen < found[5, False].seen < found[8, False].seen
    assert found[3, False].seen < found[3, True].seen - 0.1


@pytest.mark.parametrize("kind", ["other seeds", "prior", "prior of calmer arms"])
def test_equals_are_seldom_decided(kind):
    from noise_model import redraw, redraw_unpaired, tally

    random = np.random.default_rng(3)
    arms = make_arms(scatter=(10.0 if kind == "prior of calmer arms" else 1.0, 1.0, 1.0, 1.0))

    def draw():
        if kind == "other seeds":
            return redraw_unpaired(arms["parent"], 24, random)
        return redraw(arms, "variant 0", 24, random, moderated=True)

    assert (draw().prior(3) is None) == (kind == "other seeds")
    for when, counts in tally(draw, 300).items():
        assert counts.total() == 300
        assert max(counts[Word.KEEP], counts[Word.REVERT]) <= 0.05 * 300, (when, counts)


def test_pairing_saves_what_the_correlation_says():
    from verdict_campaign import measure_pairing

    arms = make_arms(correlation=0.9)
    pairing = measure_pairing("variant 0", arms["parent"], arms["variant 0"])
    # The variance of a paired difference is 2 (1 - r), beside 2 of one that is not.
    assert pairing.noise_ratio == pytest.approx(math.sqrt(1 - pairing.correlation), rel=0.05)
    assert pairing.runs_ratio == pytest.approx(10, rel=0.2)


def test_a_simulated_line_is_broken_by_what_breaks_the_rule(capsys, monkeypatch):
    import simulated_rule
    import verdict_campaign

    kept = [("normal", simulated_rule.equals, "")]
    monkeypatch.setattr(simulated_rule, "EQUALS", kept)
    assert all(line.holds for line in simulated_rule.count_errors(100))
    moved = simulated_rule.equals(np.random.default_rng(0))
    moved.variants_SN[:] += 5.0
    monkeypatch.setattr(simulated_rule, "EQUALS", [("worse", lambda random: moved, "")])
    monkeypatch.setattr(verdict_campaign, "simulate", simulated_rule.count_errors)
    assert verdict_campaign.print_simulated(20) == 1 and "| 0.0% / 100.0% | broken |" in capsys.readouterr().out
    monkeypatch.setattr(simulated_rule, "EQUALS", [("worse", lambda random: moved, "so it is")])
    assert verdict_campaign.print_simulated(20) == 0 and "| known: so it is |" in capsys.readouterr().out


def test_a_whole_study_keeps_what_is_better_and_goes_on_with_what_is_not_sure():
    from simulated_rule import equals, judge_whole

    study = equals(np.random.default_rng(4), others=5)
    study.variants_SN[:] += np.array([-6.0, 0.0, 0.0, 0.0, 6.0, 0.0])
    kept, seeds_N = judge_whole(study)
    assert kept == [0] and seeds_N[0] < 6 > seeds_N[4] and seeds_N[1] > 8
