"""A variant is stopped early where it is clearly worse, and nowhere else."""

import math

import numpy as np
import pytest

from jaxformer.ablation.early_stopping import Spread, clearly_worse, may_stop, spread_of_differences

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

STEPS = 1000

THREE_PARENTS, FIVE_PARENTS = Spread(math.sqrt(2) * 0.01, 2), Spread(math.sqrt(2) * 0.0084, 4)


def losses(seed, *, behind=0.0, steps=STEPS, own=0.02):
    """Returns a curve whose batches, and their noise, all runs of a seed share."""
    batches = np.random.default_rng(seed).normal(0, 0.2, STEPS)
    wobble = np.random.default_rng([seed, abs(int(behind * 1000))]).normal(0, own, STEPS)
    return (3 + 4 * np.exp(-np.arange(STEPS) / 200) + batches + wobble + behind)[:steps]


@pytest.mark.parametrize("done", [450, 700, 1000])
def test_what_is_far_behind_is_stopped(done):
    found = clearly_worse(losses(0, behind=0.5, steps=done), losses(0), THREE_PARENTS, STEPS)
    assert found.step == done and found.difference == pytest.approx(0.5, abs=0.02) and found.threshold < 0.5
    assert "nats above its parent's" in str(found)
    # More seeds of the parent make what is smaller sure.
    assert clearly_worse(losses(0, behind=0.15, steps=done), losses(0), THREE_PARENTS, STEPS) is None
    assert clearly_worse(losses(0, behind=0.15, steps=done), losses(0), FIVE_PARENTS, STEPS)


def test_what_is_ahead_is_never_stopped_and_equals_hardly_ever():
    stopped, rng = 0, np.random.default_rng(0)
    for seed in range(300):
        spread = spread_of_differences({"parent": dict(enumerate(rng.normal(3, 0.02, 3)))}, "parent", "equal")
        # A run has an offset of its own, from its beginning to its end, which no batch explains.
        equal = losses(seed, behind=1e-3) - 1e-3 + rng.normal(0, 0.02) - rng.normal(0, 0.02)
        lengths = range(400, 1001, 60)
        stopped += any(clearly_worse(equal[:done], losses(seed), spread, STEPS) is not None for done in lengths)
        assert clearly_worse(equal - 0.5, losses(seed), spread, STEPS) is None
    assert stopped <= 2


@pytest.mark.parametrize(
    ("variant", "spread"),
    [
        (losses(0, behind=0.9, steps=390), THREE_PARENTS),  # too early
        (losses(0, behind=0.5), Spread(math.sqrt(2) * 0.1, 2)),  # within what seeds do
        (losses(0) + np.where(np.arange(STEPS) > 960, 0.9, 0), THREE_PARENTS),  # in one of the two windows
        (losses(0) * np.nan, THREE_PARENTS),
    ],
)
def test_what_is_not_clear_goes_on(variant, spread):
    assert clearly_worse(variant, losses(0), spread, STEPS) is None


def test_paired_differences_of_other_variants_show_far_smaller_effects_than_runs_of_the_parent():
    rng = np.random.default_rng(1)
    parent = dict(enumerate(3 + rng.normal(0, 0.05, 3)))
    ends = {f"variant {n}": {seed: parent[seed] + rng.normal(0, 0.01) for seed in range(2)} for n in range(12)}
    unpaired = spread_of_differences({"parent": parent}, "parent", "variant 0")
    paired = spread_of_differences({"parent": parent, **ends}, "parent", "variant 0")
    assert unpaired.degrees_of_freedom == 2 and paired.degrees_of_freedom > 5
    assert paired.standard_deviation == pytest.approx(0.01, rel=0.4) and unpaired.standard_deviation > 0.015
    behind = losses(0, behind=0.06, own=0.005, steps=700)
    assert clearly_worse(behind, losses(0, own=0.005), paired, STEPS)
    assert clearly_worse(behind, losses(0, own=0.005), unpaired, STEPS) is None
    assert spread_of_differences({"parent": {0: 3.0, 1: 3.1}, "variant 0": {0: 3.0}}, "parent", "variant 0") is None


def test_changes_that_may_win_late_are_exempt():
    assert may_stop(["model.activation", "model.feed_forward_width"])
    for path in (
        *("optimizer.learning_rate", "optimizer.schedule", "optimizer.weight_decay", "training.rows_per_step"),
        *("model.depth", "corpus.parts.1.weight", "packing.method", "model.z_loss"),
    ):
        assert not may_stop(["model.activation", path]), path
