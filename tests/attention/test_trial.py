"""The measure of an implementation: small for what rounds, large for what sees a wrong token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.attention import flash, trial
from jaxformer.attention.dispatch import TOLERANCES, Implementation
from jaxformer.attention.document_mask import document_bounds
from jaxformer.attention.trial import attention_error, fastest_tiles, forward_backward, random_inputs

pytestmark = pytest.mark.device_free

B, T, H, G, K = 2, 150, 4, 2, 32
XLA = Implementation("xla")
TILES = flash.Tiles(*(flash.Tile(32, 32, 4, 2) for _ in range(3)))
SEGMENT_IDS = np.stack([np.repeat([1, 2, 3, 0], [40, 1, 99, 10]), np.repeat([1, 2], [130, 20])]).astype(np.int32)
STARTS, ENDS = document_bounds(jnp.asarray(SEGMENT_IDS))


def shifted(by_start, by_end, q, k, v, starts, ends):
    """Attention by `xla` whose documents, but for the first of a row, start elsewhere."""
    return XLA(q, k, v, jnp.where(starts > 0, starts + by_start, starts), ends + by_end)


@pytest.mark.parametrize("dtype", sorted(TOLERANCES))
def test_what_only_rounds_is_within_its_tolerance(dtype):
    inputs = random_inputs(B, T, H, G, K, jnp.dtype(dtype))
    for ours in (XLA, Implementation("pallas", TILES, interpret=True)):
        error = attention_error(ours, XLA, inputs, STARTS, ENDS)
        assert error < TOLERANCES[dtype] / 2


def test_a_mask_that_is_off_by_one_token_exceeds_every_tolerance():
    inputs = random_inputs(B, T, H, G, K, jnp.bfloat16)
    leaking = functools.partial(shifted, -1, 0)
    assert attention_error(leaking, XLA, inputs, STARTS, ENDS) > 5 * max(TOLERANCES.values())


@pytest.mark.parametrize("wrong", ["dq", "dk", "dv"])
def test_a_wrong_gradient_is_seen_though_the_output_is_right(wrong):
    @jax.custom_vjp
    def ours(q, k, v, starts, ends):
        return XLA(q, k, v, starts, ends)

    def backward(residuals, do):
        q, k, v, starts, ends = residuals
        grads = dict(zip(("out", "dq", "dk", "dv"), forward_backward(XLA, q, k, v, do, starts, ends), strict=True))
        grads[wrong] = grads[wrong].at[1, 77].multiply(3.0)
        return grads["dq"], grads["dk"], grads["dv"], None, None

    ours.defvjp(lambda *inputs: (ours(*inputs), inputs), backward)
    inputs = random_inputs(B, T, H, G, K, jnp.float32)
    assert attention_error(ours, XLA, inputs, STARTS, ENDS) > 5 * max(TOLERANCES.values())


def test_nan_is_an_infinite_error():
    inputs = random_inputs(B, T, H, G, K, jnp.bfloat16)
    assert attention_error(lambda q, k, v, s, e: q * jnp.nan, XLA, inputs, STARTS, ENDS) == np.inf


def test_random_inputs_are_fresh_for_every_seed():
    ours, again, other = (random_inputs(2, 3, 4, 2, 5, jnp.float32, seed=seed) for seed in (0, 0, 1))
    for x, y, z in zip(ours, again, other, strict=True):
        np.testing.assert_array_equal(x, y)
        assert not np.isin(x, z).any()
    assert [x.shape for x in ours] == [(2, 3, 4, 5), (2, 3, 2, 5), (2, 3, 2, 5), (2, 3, 4, 5)]


@pytest.mark.parametrize("capability", [None, 9.0])
def test_each_kernel_gets_the_tile_that_took_the_least_time(monkeypatch, capability):
    forward, backward_queries, backward_keys = flash.forward, flash.backward_queries, flash.backward_keys
    tile = flash.Tile(64, 64, 4, 2)

    def interpreted(kernel):
        return lambda *arguments: kernel(*arguments[:-1], tile, True)

    for name, kernel in (
        ("forward", forward),
        ("backward_queries", backward_queries),
        ("backward_keys", backward_keys),
    ):
        monkeypatch.setattr(flash, name, interpreted(kernel))
    candidates = flash.candidate_tiles(K, capability)
    monkeypatch.setattr(trial, "compute_capability", lambda device: capability)
    wanted = flash.Tiles(candidates.forward[1], candidates.queries[0], candidates.keys[2])

    def milliseconds(functions):
        jax.block_until_ready(next(iter(functions.values()))())
        # One candidate asked for too much shared memory and has no time.
        return {tile: 1.0 if tile in wanted else 2.0 for tile in list(functions)[:-1]}, {list(functions)[-1]: "no"}

    inputs = random_inputs(1, 70, 2, 1, K, jnp.float32)
    bounds = document_bounds(jnp.ones((1, 70), jnp.int32))
    found = fastest_tiles(inputs, *bounds, milliseconds)
    assert found.forward in wanted and found.queries in wanted and found.keys in wanted
    with pytest.raises(RuntimeError, match=r"with none of its tiles: .*too large"):
        fastest_tiles(inputs, *bounds, lambda functions: ({}, dict.fromkeys(functions, "too large")))
