"""A variant is stopped early where it is clearly worse, and nowhere else."""

import numpy as np
import pytest

from jaxformer.ablation.early_stopping import clearly_worse, may_stop

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

STEPS = 1000


ENDS = [3.0, 3.01, 2.99]


def losses(seed, *, behind=0.0, steps=STEPS, own=0.02):
    """Returns a curve whose batches, and their noise, all runs of a seed share."""
    batches = np.random.default_rng(seed).normal(0, 0.2, STEPS)
    wobble = np.random.default_rng([seed, abs(int(behind * 1000))]).normal(0, own, STEPS)
    return (3 + 4 * np.exp(-np.arange(STEPS) / 200) + batches + wobble + behind)[:steps]


@pytest.mark.parametrize("done", [450, 700, 1000])
def test_what_is_far_behind_is_stopped(done):
    found = clearly_worse(losses(0, behind=0.5, steps=done), losses(0), ENDS, STEPS)
    assert found.step == done and found.difference == pytest.approx(0.5, abs=0.02) and found.threshold < 0.5
    assert "nats above its parent's" in str(found)
    # More seeds of the parent make what is smaller sure.
    assert clearly_worse(losses(0, behind=0.15, steps=done), losses(0), ENDS, STEPS) is None
    assert clearly_worse(losses(0, behind=0.15, steps=done), losses(0), [*ENDS, 3.01, 2.99], STEPS)


def test_what_is_ahead_is_never_stopped_and_equals_hardly_ever():
    stopped, rng = 0, np.random.default_rng(0)
    for seed in range(300):
        ends = rng.normal(3, 0.02, 3)
        # A run has an offset of its own, from its beginning to its end, which no batch explains.
        equal = losses(seed, behind=1e-3) - 1e-3 + rng.normal(0, 0.02) - rng.normal(0, 0.02)
        lengths = range(400, 1001, 60)
        stopped += any(clearly_worse(equal[:done], losses(seed), ends, STEPS) is not None for done in lengths)
        assert clearly_worse(equal - 0.5, losses(seed), ends, STEPS) is None
    assert stopped <= 2


@pytest.mark.parametrize(
    ("variant", "ends"),
    [
        (losses(0, behind=0.9, steps=390), ENDS),  # too early
        (losses(0, behind=0.9), ENDS[:2]),  # too little is known of seeds
        (losses(0, behind=0.5), [3.0, 3.1, 2.9]),  # within what seeds do
        (losses(0) + np.where(np.arange(STEPS) > 960, 0.9, 0), ENDS),  # in one of the two windows
        (losses(0) * np.nan, ENDS),
    ],
)
def test_what_is_not_clear_goes_on(variant, ends):
    assert clearly_worse(variant, losses(0), ends, STEPS) is None


def test_changes_that_may_win_late_are_exempt():
    assert may_stop(["model.activation", "model.feed_forward_width"])
    for path in (
        *("optimizer.learning_rate", "optimizer.schedule", "optimizer.weight_decay", "training.rows_per_step"),
        *("model.depth", "corpus.parts.1.weight", "packing.method", "model.z_loss"),
    ):
        assert not may_stop(["model.activation", path]), path
