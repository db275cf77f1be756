"""Which steps count: those whose loss and gradient are finite and, if so configured, whose loss is no spike.

A step that does not count leaves parameters and optimizer state as they are. The new values are selected, never
multiplied by 0, since 0 x NaN is NaN. The guard is part of the training state and saved with it, so that a resumed run
judges as the uninterrupted one; nothing waits for the host.

Spikes are scored as in OLMo-core's `SkipStepOptimizer` and levanter's `skip_bad_steps`: standard deviations above the
mean of the last 128 losses, and not before 64 of them. Unlike there, a loss that is not finite never enters the window,
which it would fill with NaN.
"""

import flax.struct
import jax
import jax.numpy as jnp

# Losses in the window, and the fewest that give a score.
WINDOW, ENOUGH = 128, 64

# A loss with at least this score is reported as a spike.
SPIKE = 6.0

# Non-finite steps in a row after which nothing changes any more, until the host notices and stops the run.
MOST_IN_A_ROW = 8


class Guard(flax.struct.PyTreeNode):
    """What is remembered of earlier steps."""

    losses_W: jax.Array
    """float32, the last finite losses, nats per target, each at its number modulo W."""
    finite: jax.Array
    """int32, finite losses so far."""
    skipped: jax.Array
    """int32, steps so far that did not count."""
    non_finite_in_a_row: jax.Array
    """int32, the latest steps whose loss or gradient was not finite."""


def init_guard() -> Guard:
    """Returns the guard before step 0."""
    return Guard(jnp.zeros(WINDOW, jnp.float32), *(jnp.zeros((), jnp.int32) for _ in range(3)))


def judge(
    guard: Guard, loss: jax.Array, gradient_norm: jax.Array, *, skip_spikes_above: float
) -> tuple[jax.Array, jax.Array, Guard]:
    """Returns whether a step counts (bool), the score of its loss (float32, in standard deviations), and the new guard.

    Args:
        loss: nats per target.
        gradient_norm: before clipping.
        skip_spikes_above: score from which a step does not count; 0 for none.
    """
    score = spike_score(guard, loss)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    # Frozen, nothing changes at all: the run ends as if the host had noticed at once.
    is_frozen = guard.non_finite_in_a_row >= MOST_IN_A_ROW
    counts = is_finite & ~is_frozen
    if skip_spikes_above:
        counts &= score <= skip_spikes_above
    enters = jnp.isfinite(loss)
    place = guard.finite % WINDOW
    after = Guard(
        losses_W=guard.losses_W.at[place].set(jnp.where(enters, loss, guard.losses_W[place])),
        finite=guard.finite + enters,
        skipped=guard.skipped + ~counts,
        non_finite_in_a_row=jnp.where(is_finite, 0, guard.non_finite_in_a_row + 1),
    )
    return counts, score, jax.tree.map(lambda old, new: jnp.where(is_frozen, old, new), guard, after)


def spike_score(guard: Guard, loss: jax.Array) -> jax.Array:
    """Returns how many standard deviations a loss lies above the mean of the window; 0 while that holds too few."""
    count = jnp.minimum(guard.finite, WINDOW)
    is_held_W = jnp.arange(WINDOW) < count
    mean = jnp.sum(guard.losses_W) / jnp.maximum(count, 1)
    deviations_W = jnp.where(is_held_W, guard.losses_W - mean, 0)
    deviation = jnp.sqrt(jnp.sum(deviations_W**2) / jnp.maximum(count, 1))
    # Equal losses deviate by rounding only.
    score = (loss - mean) / jnp.maximum(deviation, 1e-6 * jnp.maximum(mean, 1))
    return jnp.where((count >= ENOUGH) & jnp.isfinite(loss), score, 0)
