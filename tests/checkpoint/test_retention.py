"""Which checkpoints are kept: the newest always, the best that is a number, and those asked for."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.checkpoint.retention import CheckpointConfig, best_step, most_kept, steps_to_keep
from jaxformer.config import UserError

pytestmark = pytest.mark.device_free

LOSSES = {2: 3.0, 4: 1.5, 6: math.nan, 8: 1.5, 10: -math.inf, 12: 2.0}


def test_best_is_the_first_of_the_least_finite_losses():
    assert best_step(range(2, 14, 2), LOSSES) == 4
    assert best_step([6, 8, 10], LOSSES) == 8
    assert best_step([6, 10, 14], LOSSES) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CheckpointConfig(keep=1, keep_best=False), {14}),
        (CheckpointConfig(keep=2), {4, 12, 14}),
        (CheckpointConfig(keep=1, keep_every_steps=6, keep_best=False), {6, 12, 14}),
        (CheckpointConfig(keep=9), {2, 4, 6, 8, 10, 12, 14}),
    ],
)
def test_kept_are_the_newest_those_at_multiples_and_the_best(config, expected):
    assert steps_to_keep([14, 2, 4, 12, 6, 8, 10], config, LOSSES) == expected


@pytest.mark.parametrize(("decay_start", "expected"), [(1, {12, 14}), (8, {8, 12, 14}), (9, {8, 12, 14})])
def test_the_newest_up_to_the_decay_is_kept(decay_start, expected):
    config = CheckpointConfig(keep=2, keep_best=False)
    assert steps_to_keep([14, 2, 4, 12, 6, 8, 10], config, LOSSES, decay_start) == expected


CONFIGS = st.builds(
    CheckpointConfig, keep=st.integers(1, 4), keep_every_steps=st.integers(0, 9), keep_best=st.booleans()
)


@given(CONFIGS, st.integers(1, 40), st.integers(1, 9), st.integers(0, 40), st.data())
def test_newest_and_best_survive_every_save_and_the_room_is_enough(config, steps, every, decay_start, data):
    """As steps are saved one after another, each before its validation."""
    losses, kept, most = {}, set(), 0
    for step in [*range(every, steps, every), steps]:
        most = max(most, len(kept) + 1)
        before = best_step(kept, losses)
        kept = steps_to_keep(kept | {step}, config, losses, decay_start)
        assert step in kept
        assert not config.keep_best or before is None or best_step(kept, losses) == before
        losses[step] = data.draw(st.floats())
    assert most <= most_kept(config, steps, decay_start)


@pytest.mark.parametrize("field", ["every_steps", "keep"])
def test_less_than_one_is_refused(field):
    with pytest.raises(UserError, match=rf"checkpoint.{field} \(0\) must be at least 1"):
        CheckpointConfig(**{field: 0})


def test_negative_multiple_is_refused():
    with pytest.raises(UserError, match=r"checkpoint.keep_every_steps \(-1\) must be at least 0"):
        CheckpointConfig(keep_every_steps=-1)
