"""Compares and times implementations of attention: the error against a reference, and the fastest tiles on this device.

Axes: B row, T query, H query heads, G key/value heads, K head width.
"""

import functools

import jax
import jax.numpy as jnp

from jaxformer.attention import flash
from jaxformer.devices.device import compute_capability
from jaxformer.devices.fastest import Timer


def random_inputs(B: int, T: int, H: int, G: int, K: int, dtype, seed: int = 0):
    """Returns normal `(q_BTHK, k_BTGK, v_BTGK, do_BTHK)`, the last one a gradient of the output."""
    keys = jax.random.split(jax.random.key(seed), 4)
    sizes = ((B, T, heads, K) for heads in (H, G, G, H))
    return tuple(jax.random.normal(key, size, dtype) for key, size in zip(keys, sizes, strict=True))


@functools.partial(jax.jit, static_argnums=0)
def forward_backward(attended, q_BTHK, k_BTGK, v_BTGK, do_BTHK, starts_BT, ends_BT):
    """Returns `(out_BTHK, dq_BTHK, dk_BTGK, dv_BTGK)` of a function of `(q, k, v, starts, ends)`."""
    out, pullback = jax.vjp(lambda q, k, v: attended(q, k, v, starts_BT, ends_BT), q_BTHK, k_BTGK, v_BTGK)
    return out, *pullback(do_BTHK)


def attention_error(attended, reference, inputs, starts_BT, ends_BT) -> float:
    """Returns the error of output and gradients against a reference, which is computed in float32.

    It is the largest distance of a head's vectors at one token, over the reference's norm there, or the root mean
    square of all norms if that is larger. So a token that sees one key too many stands out among any number of others.
    NaN counts as infinity.

    Args:
        attended, reference: functions of `(q, k, v, starts, ends)`; the reference runs row by row.
        inputs: `(q, k, v, do)`, such as `random_inputs` returns.
    """
    ours = forward_backward(attended, *inputs, starts_BT, ends_BT)
    theirs = _row_by_row(reference, *inputs, starts_BT, ends_BT)
    error = jnp.max(jnp.stack([largest_distance(x, y) for x, y in zip(ours, theirs, strict=True)]))
    return float(jnp.where(jnp.isnan(error), jnp.inf, error))


@functools.partial(jax.jit, static_argnums=0)
def _row_by_row(reference, *arrays):
    """Returns `forward_backward` of the reference in float32; the logits of all rows would not fit at once."""

    def row(arrays):
        *inputs, starts_1T, ends_1T = (x[None] for x in arrays)
        floats = (x.astype(jnp.float32) for x in inputs)
        return tuple(x[0] for x in forward_backward(reference, *floats, starts_1T, ends_1T))

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(row, arrays)


def largest_distance(x, reference):
    """Returns the largest distance of a vector, over the larger of its reference's norm and their root mean square."""
    norms = jnp.linalg.norm(reference, axis=-1)
    distances = jnp.linalg.norm(x.astype(jnp.float32) - reference, axis=-1)
    return jnp.max(distances / jnp.maximum(norms, jnp.sqrt(jnp.mean(norms * norms))))


def fastest_tiles(inputs, starts_BT, ends_BT, timer: Timer) -> flash.Tiles:
    """Returns the fastest tiles of our flash attention on these inputs, for each kernel by itself.

    Raises:
        RuntimeError: a kernel runs with no tiles.
    """
    K = inputs[0].shape[3]
    capability = compute_capability(jax.devices()[0])
    candidates, default = flash.candidate_tiles(K, capability), flash.default_tiles(K, capability)
    every_tile = [tile for tiles in candidates for tile in tiles]
    q, k, v, do, starts_BT, ends_BT = flash.fill_blocks(inputs, starts_BT, ends_BT, every_tile)
    out, lse_BHT = flash.forward(q, k, v, starts_BT, default.forward)
    _, delta_BHT = flash.backward_queries(q, k, v, do, out, lse_BHT, starts_BT, default.queries)
    calls = flash.PerKernel(
        forward=(flash.forward, q, k, v, starts_BT),
        queries=(flash.backward_queries, q, k, v, do, out, lse_BHT, starts_BT),
        keys=(flash.backward_keys, q, k, v, do, lse_BHT, delta_BHT, ends_BT),
    )
    fastest = []
    for tiles, (kernel, *operands) in zip(candidates, calls, strict=True):
        jitted = jax.jit(kernel, static_argnums=len(operands))
        # A tile may ask for more shared memory than this device has; the default does not.
        times, failures = timer({tile: functools.partial(jitted, *operands, tile) for tile in tiles})
        if not times:
            raise RuntimeError(f"with none of its tiles: {failures}")
        fastest.append(min(times, key=times.__getitem__))
    return flash.Tiles(*fastest)
