"""The kernels of flash attention by documents: what one program computes, independent of a backend.

FlashAttention (Dao 2023, arXiv 2307.08691) with two integers per token in place of a mask: the first key that a query
sees, and the end of the queries that see a key. Both are nondecreasing along the row, so a tile of queries sees one
range of key blocks, and a tile of keys is seen by one range of query blocks. A kernel loops only over its range; blocks
in which every pair is visible take a loop without a mask.

- `forward_kernel`: a tile of queries walks its key blocks with a running maximum and sum (online softmax).
- `queries_kernel`, the queries' gradient: the same walk; the weights are recomputed from the log-sum-exp.
- `keys_kernel`, the keys' and values' gradient: a tile of keys walks its query blocks, for every query head that
  shares it.

None uses atomics: the same inputs give the same bits. Axes: T queries and S keys of a tile, R query heads that share a
key/value head, K head width. Matmuls take the inputs' dtype and sum in float32; all else is float32.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

# Finite, so that a query without a visible key so far never subtracts infinity from infinity.
_LOWEST = -1e30


class Tile(NamedTuple):
    """How a kernel cuts its work: tokens of a block of queries and of keys, warps, and stages of the load pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


class _Range(NamedTuple):
    """Blocks [first, last) to visit; every pair of those in [inner, outer) is visible."""

    first: jax.Array
    inner: jax.Array
    outer: jax.Array
    last: jax.Array


def _key_blocks(first_query, earliest_start, latest_start, tile: Tile) -> _Range:
    """Returns the key blocks that a tile of queries sees."""
    first = jax.lax.div(earliest_start, tile.keys)
    diagonal = jax.lax.div(first_query, tile.keys)
    inner = jnp.minimum(_div_up(latest_start, tile.keys), diagonal)
    return _Range(first, inner, diagonal, _div_up(first_query + tile.queries, tile.keys))


def _query_blocks(first_key, earliest_end, latest_end, tile: Tile) -> _Range:
    """Returns the query blocks that see a tile of keys."""
    inner = _div_up(first_key + tile.keys - 1, tile.queries)
    outer = jnp.maximum(jax.lax.div(earliest_end, tile.queries), inner)
    return _Range(jax.lax.div(first_key, tile.queries), inner, outer, _div_up(latest_end, tile.queries))


def _div_up(x, divisor: int):
    return jax.lax.div(x + divisor - 1, divisor)


def _walk(blocks: _Range, body, carry):
    """Returns `carry` after `body(block, carry, masked)` on each block: first the inner ones, then both borders."""
    carry = jax.lax.fori_loop(blocks.inner, blocks.outer, functools.partial(body, masked=False), carry)
    inside = blocks.outer - blocks.inner

    def border(i, carry):
        return body(i + jnp.where(i >= blocks.inner, inside, 0), carry, masked=True)

    return jax.lax.fori_loop(blocks.first, blocks.last - inside, border, carry)


def forward_kernel(q_ref, k_ref, v_ref, starts_ref, out_ref, lse_ref, *, tile: Tile, first_query, exp2):
    """Writes a tile of the output, and the log-sum-exp of its logits to base 2.

    Args:
        q_ref, starts_ref, out_ref, lse_ref: (T, K), (T,), (T, K), (T,), the tile's.
        k_ref, v_ref: (row, K), the head's whole row.
        first_query: the tile's first position in the row.
        exp2: function of (logits, scale, shift) to 2 ** (logits * scale - shift).
    """
    q_TK, starts_T = q_ref[...], starts_ref[...]
    T, K = q_TK.shape
    queries_T = first_query + jnp.arange(T, dtype=jnp.int32)
    scale = K**-0.5 * math.log2(math.e)

    def body(block, carry, masked):
        out_TK, max_T, sum_T = carry
        keys = pl.ds(block * tile.keys, tile.keys)
        logits_TS = _dot_transposed(q_TK, k_ref[keys, :])
        if masked:
            logits_TS = jnp.where(_visible_TS(block, tile, queries_T, starts_T), logits_TS, -jnp.inf)
        new_max_T = jnp.maximum(max_T, jnp.max(logits_TS, axis=1) * scale)
        weights_TS = exp2(logits_TS, scale, new_max_T[:, None])
        shrink_T = exp2(max_T, 1.0, new_max_T)
        sum_T = sum_T * shrink_T + jnp.sum(weights_TS, axis=1)
        v_SK = v_ref[keys, :]
        out_TK = out_TK * shrink_T[:, None] + _dot(weights_TS.astype(v_SK.dtype), v_SK)
        return out_TK, new_max_T, sum_T

    zeros_T = jnp.zeros((T,), jnp.float32)
    carry = jnp.zeros((T, K), jnp.float32), zeros_T + _LOWEST, zeros_T
    blocks = _key_blocks(first_query, starts_ref[0], starts_ref[T - 1], tile)
    out_TK, max_T, sum_T = _walk(blocks, body, carry)
    out_ref[...] = (out_TK / sum_T[:, None]).astype(out_ref.dtype)
    lse_ref[...] = max_T + jnp.log2(sum_T)


def queries_kernel(
    q_ref, k_ref, v_ref, do_ref, out_ref, lse_ref, starts_ref, dq_ref, delta_ref, *, tile: Tile, first_query, exp2
):
    """Writes a tile of the queries' gradient, and of `delta`, each output times its gradient; arguments likewise."""
    q_TK, do_TK, lse_T, starts_T = q_ref[...], do_ref[...], lse_ref[...], starts_ref[...]
    T, K = q_TK.shape
    queries_T = first_query + jnp.arange(T, dtype=jnp.int32)
    scale = K**-0.5 * math.log2(math.e)
    # Softmax's gradient subtracts the weights' mean gradient, which is the output times its own gradient.
    delta_T = jnp.sum(out_ref[...].astype(jnp.float32) * do_TK.astype(jnp.float32), axis=1)
    delta_ref[...] = delta_T

    def body(block, dq_TK, masked):
        keys = pl.ds(block * tile.keys, tile.keys)
        k_SK = k_ref[keys, :]
        weights_TS = exp2(_dot_transposed(q_TK, k_SK), scale, lse_T[:, None])
        if masked:
            weights_TS = jnp.where(_visible_TS(block, tile, queries_T, starts_T), weights_TS, 0.0)
        dlogits_TS = weights_TS * (_dot_transposed(do_TK, v_ref[keys, :]) - delta_T[:, None])
        return dq_TK + _dot(dlogits_TS.astype(k_SK.dtype), k_SK)

    blocks = _key_blocks(first_query, starts_ref[0], starts_ref[T - 1], tile)
    dq_TK = _walk(blocks, body, jnp.zeros((T, K), jnp.float32))
    dq_ref[...] = (dq_TK * K**-0.5).astype(dq_ref.dtype)


def keys_kernel(
    q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, ends_ref, dk_ref, dv_ref, *, tile: Tile, first_key, exp2
):
    """Writes a tile of the keys' and values' gradients.

    Args:
        k_ref, v_ref, ends_ref, dk_ref, dv_ref: (S, K), (S, K), (S,), (S, K), (S, K), the tile's.
        q_ref, do_ref: (row, R, K), the whole row of the heads that share these keys.
        lse_ref, delta_ref: (R, row), of the same heads.
        first_key: the tile's first position in the row.
        exp2: as in `forward_kernel`.
    """
    k_SK, v_SK, ends_S = k_ref[...], v_ref[...], ends_ref[...]
    S, K = k_SK.shape
    keys_S = first_key + jnp.arange(S, dtype=jnp.int32)
    scale = K**-0.5 * math.log2(math.e)
    blocks = _query_blocks(first_key, ends_ref[0], ends_ref[S - 1], tile)

    def head(r, carry):
        def body(block, carry, masked):
            dk_SK, dv_SK = carry
            queries = pl.ds(block * tile.queries, tile.queries)
            q_TK, do_TK = q_ref[queries, r, :], do_ref[queries, r, :]
            weights_ST = exp2(_dot_transposed(k_SK, q_TK), scale, lse_ref[r, queries][None, :])
            if masked:
                weights_ST = jnp.where(_visible_ST(block, tile, keys_S, ends_S), weights_ST, 0.0)
            dv_SK = dv_SK + _dot(weights_ST.astype(do_TK.dtype), do_TK)
            dlogits_ST = weights_ST * (_dot_transposed(v_SK, do_TK) - delta_ref[r, queries][None, :])
            return dk_SK + _dot(dlogits_ST.astype(q_TK.dtype), q_TK), dv_SK

        return _walk(blocks, body, carry)

    R = q_ref.shape[1]
    zeros_SK = jnp.zeros((S, K), jnp.float32)
    carry = (zeros_SK, zeros_SK)
    dk_SK, dv_SK = head(0, carry) if R == 1 else jax.lax.fori_loop(0, R, head, carry)
    dk_ref[...] = (dk_SK * K**-0.5).astype(dk_ref.dtype)
    dv_ref[...] = dv_SK.astype(dv_ref.dtype)


def _visible_TS(block, tile: Tile, queries_T, starts_T):
    """Start <= key <= query, in one comparison: below the start the difference wraps around to a huge number."""
    keys_1S = (block * tile.keys + jnp.arange(tile.keys, dtype=jnp.int32))[None, :]
    return _unsigned(keys_1S - starts_T[:, None]) <= _unsigned(queries_T - starts_T)[:, None]


def _visible_ST(block, tile: Tile, keys_S, ends_S):
    """Key <= query < end, likewise."""
    queries_1T = (block * tile.queries + jnp.arange(tile.queries, dtype=jnp.int32))[None, :]
    return _unsigned(queries_1T - keys_S[:, None]) < _unsigned(ends_S - keys_S)[:, None]


def _unsigned(x):
    return x.astype(jnp.uint32)


def _dot(a, b):
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _dot_transposed(a, b):
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
