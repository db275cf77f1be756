"""Attention against a float64 oracle, and what its document mask promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.attention import IMPLEMENTATIONS, AttentionConfig, attend, choose_implementation, document_bounds
from jaxformer.config import UserError

B, H, G, K = 2, 6, 3, 5
FLOAT32 = 2e-6
# The rounding of one weight and of one output, each relative to the largest value.
BFLOAT16 = 2**-8

attend_xla = jax.jit(functools.partial(attend, implementation="xla"))


def oracle(q, k, v, starts):
    """Attention by its definition, one query and one head at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        seen, g = slice(starts[b, t], t + 1), h // (q.shape[2] // k.shape[2])
        logits = k[b, seen, g] @ q[b, t, h] * q.shape[3] ** -0.5
        weights = np.exp(logits - logits.max())
        out[b, t, h] = weights / weights.sum() @ v[b, seen, g]
    return out


def make_inputs(T, seed=0, scale=1.0):
    """Returns float32 q, k, v and the bounds of random documents in each row."""
    rng = np.random.default_rng(seed)
    q, k, v = (scale * rng.standard_normal((B, T, heads, K)).astype(np.float32) for heads in (H, G, G))
    segment_ids = np.cumsum(rng.random((B, T)) < 5 / T, axis=1).astype(np.int32)
    return (q, k, v), tuple(np.asarray(bound) for bound in document_bounds(jnp.asarray(segment_ids)))


# Chunks have 64 queries or an eighth of the row: one, one that is full, three with a last one of 3, and eight.
@pytest.mark.parametrize("T", [11, 64, 131, 526])
def test_attention_equals_its_definition(T):
    (q, k, v), (starts, ends) = make_inputs(T)
    np.testing.assert_allclose(attend_xla(q, k, v, starts, ends), oracle(q, k, v, starts), rtol=0, atol=FLOAT32)


def test_gradient_equals_the_difference_quotient_of_the_definition():
    (q, k, v), (starts, ends) = make_inputs(131)
    rng = np.random.default_rng(1)
    cotangent = rng.standard_normal(q.shape)

    def objective(q, k, v):
        return jnp.sum(attend_xla(q, k, v, starts, ends) * cotangent.astype(np.float32))

    grads = jax.jit(jax.grad(objective, argnums=(0, 1, 2)))(q, k, v)
    for argument, gradient in enumerate(grads):
        direction = rng.standard_normal(gradient.shape)
        ahead, behind = ([np.float64(x) for x in (q, k, v)] for _ in range(2))
        ahead[argument] += 1e-6 * direction
        behind[argument] -= 1e-6 * direction
        slope = np.sum((oracle(*ahead, starts) - oracle(*behind, starts)) * cotangent) / 2e-6
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(np.sum(gradient * direction) - slope) < 1e-6 * scale


@pytest.mark.parametrize("seed", range(5))
def test_document_bounds_are_the_runs_of_equal_ids(seed):
    # Ids come back later in the row, as the padding's 0 may: only neighbours make a document.
    ids = np.random.default_rng(seed).integers(0, 3, (3, 13)).astype(np.int32)
    starts, ends = document_bounds(jnp.asarray(ids))
    for b, t in np.ndindex(ids.shape):
        first, last = t, t
        while first > 0 and ids[b, first - 1] == ids[b, t]:
            first -= 1
        while last < 12 and ids[b, last + 1] == ids[b, t]:
            last += 1
        assert (starts[b, t], ends[b, t]) == (first, last + 1)


def test_document_ignores_its_neighbours_exactly():
    T, changed = 131, slice(40, 97)
    (q, k, v), _ = make_inputs(T)
    segment_ids = np.repeat([[1, 2, 3]], B, axis=0).repeat([40, 57, 34], axis=1)
    starts, ends = document_bounds(jnp.asarray(segment_ids))
    before = np.asarray(attend_xla(q, k, v, starts, ends))
    for x in (q, k, v):
        x[:, changed] = 100 * x[:, changed] + 7
    after = np.asarray(attend_xla(q, k, v, starts, ends))
    is_same = np.all(before == after, axis=(0, 2, 3))
    np.testing.assert_array_equal(is_same, segment_ids[0] != 2)


def test_gradient_of_a_document_by_its_neighbours_is_exactly_zero():
    (q, k, v), _ = make_inputs(131)
    segment_ids = np.repeat([[1, 2, 3]], B, axis=0).repeat([40, 57, 34], axis=1)
    starts, ends = document_bounds(jnp.asarray(segment_ids))
    is_second = (segment_ids == 2)[:, :, None, None]

    def objective(q, k, v):
        return jnp.sum(jnp.square(attend_xla(q, k, v, starts, ends)) * is_second)

    for gradient in jax.jit(jax.grad(objective, argnums=(0, 1, 2)))(q, k, v):
        is_used = np.any(gradient != 0, axis=(2, 3))
        # A document's first token sees one key, so that its query changes nothing.
        np.testing.assert_array_equal(is_used[:, 41:], segment_ids[:, 41:] == 2)
        assert not is_used[:, :40].any()


def test_bfloat16_inputs_are_accumulated_in_float32():
    # Logits of up to 40: rounded to bfloat16 they would be wrong by 0.1, and the weights by a tenth.
    (q, k, v), (starts, ends) = make_inputs(131, scale=4.0)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    out = attend_xla(q, k, v, starts, ends)
    assert out.dtype == jnp.bfloat16
    expected = oracle(q, k, v, starts)
    np.testing.assert_allclose(np.float64(out), expected, rtol=0, atol=BFLOAT16 * np.abs(np.float64(v)).max())


def test_auto_chooses_an_implementation_that_attend_has():
    assert choose_implementation(AttentionConfig()) in IMPLEMENTATIONS
    assert choose_implementation(AttentionConfig(implementation="xla")) == "xla"


def test_unknown_implementation_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"'xlaa'.*did you mean xla\?"):
        AttentionConfig(implementation="xlaa")
    (q, k, v), (starts, ends) = make_inputs(3)
    with pytest.raises(ValueError, match="'flash'"):
        attend(q, k, v, starts, ends, implementation="flash")
