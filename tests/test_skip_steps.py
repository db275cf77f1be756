"""Which steps count, worked out again in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.skip_steps import ENOUGH, MOST_IN_A_ROW, WINDOW, init_guard, judge

_judge = jax.jit(judge, static_argnames="skip_spikes_above")


def run(losses, norms=None, skip_spikes_above=0.0, guard=None):
    """Returns `(counts, score)` of each step, and the last guard."""
    guard = guard or init_guard()
    found = []
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        counts, score, guard = _judge(guard, jnp.float32(loss), jnp.float32(norm), skip_spikes_above=skip_spikes_above)
        found.append((bool(counts), float(score)))
    return found, guard


def losses_like(count, seed=0):
    return np.random.default_rng(seed).normal(3.0, 0.25, count).astype(np.float32).tolist()


def test_score_is_in_standard_deviations_of_the_last_finite_losses():
    losses = losses_like(WINDOW + 50)
    losses[20] = losses[100] = np.nan
    found, _ = run(losses)
    for step, (_, score) in enumerate(found):
        earlier = [x for x in losses[:step] if np.isfinite(x)][-WINDOW:]
        if len(earlier) < ENOUGH or not np.isfinite(losses[step]):
            assert score == 0
        else:
            assert score == pytest.approx((losses[step] - np.mean(earlier)) / np.std(earlier), rel=1e-3, abs=1e-3)


def test_spike_counts_unless_it_is_to_be_skipped():
    losses = [*losses_like(ENOUGH), 9.0, 3.0]
    assert all(counts for counts, _ in run(losses)[0])
    found, guard = run(losses, skip_spikes_above=6.0)
    assert [counts for counts, _ in found] == [True] * ENOUGH + [False, True]
    assert found[ENOUGH][1] > 6
    assert int(guard.skipped) == 1 and int(guard.non_finite_in_a_row) == 0


def test_losses_that_stay_high_count_again_once_the_window_has_seen_them():
    found, _ = run([*losses_like(ENOUGH), *[9.0] * 40], skip_spikes_above=3.0)
    skipped = [not counts for counts, _ in found[ENOUGH:]]
    assert skipped[0] and not skipped[-1] and sorted(skipped, reverse=True) == skipped


def test_equal_losses_have_no_spike_in_rounding():
    found, _ = run([2.5] * (ENOUGH + 5), skip_spikes_above=6.0)
    assert all(counts and score == 0 for counts, score in found)


BAD = st.sampled_from(["loss", "gradient", "both"])


@given(st.lists(st.one_of(st.none(), BAD), max_size=60), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_non_finite_steps_are_counted_and_too_many_in_a_row_freeze_the_run(kinds, bad):
    losses = [bad if kind in ("loss", "both") else 3.0 for kind in kinds]
    norms = [bad if kind in ("gradient", "both") else 1.0 for kind in kinds]
    found, guard = run(losses, norms)
    expected, row, until_frozen = [], 0, len(kinds)
    for step, kind in enumerate(kinds):
        expected.append(kind is None and row < MOST_IN_A_ROW)
        if row == MOST_IN_A_ROW:
            until_frozen = min(until_frozen, step)
        else:
            row = 0 if expected[-1] else row + 1
    assert [counts for counts, _ in found] == expected
    # Frozen, the guard is as it was when that began.
    assert int(guard.skipped) == expected[:until_frozen].count(False)
    assert int(guard.non_finite_in_a_row) == row
    assert np.isfinite(guard.losses_W).all()
    assert int(guard.finite) == sum(np.isfinite(losses[:until_frozen]))
