"""Attention by einsum and a mask: the reference, on any device and in any dtype.

Queries are taken in chunks, each against only the keys up to its own diagonal, which saves nearly half the work of a
square mask. As in flash attention (Dao et al. 2022, arXiv 2205.14135) the backward pass recomputes the weights from the
logits' log-sum-exp instead of keeping them, and computes softmax's subtracted mean from the output and its gradient.

A loop takes a few rows at a time: on a GPU so many that their logits take a gigabyte, whatever the batch; on a CPU so
few that they stay in its caches. A step of the smallest model takes 4 % more time with all of 48 rows of 256 tokens at
once, and 12 % with all of 4 rows of 1,024.

Axes: B row, T query, S key, G key/value heads, R query heads of one of them, K head width.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Finite, so that a masked logit never makes NaN; exp(MASKED - max) is exactly 0 in float32.
MASKED = -1e30

# Bytes of logits that are alive at once on a CPU.
_CACHE_BYTES = 1 << 22

# Bytes of logits of one turn of the loop on other devices, where the logits of all chunks may be alive.
_TURN_BYTES = 1 << 30


@jax.custom_vjp
def attend_einsum(q_BTHK, k_BTGK, v_BTGK, document_starts_BT) -> jax.Array:
    """Returns the attention output (B, T, H, K), in q's dtype; logits and softmax are float32."""
    return _forward(q_BTHK, k_BTGK, v_BTGK, document_starts_BT)[0]


def _forward(q_BTHK, k_BTGK, v_BTGK, starts_BT):
    of_group = functools.partial(_forward_rows, dtype=q_BTHK.dtype)
    out_BTHK, lse_BGRT = _by_rows(of_group, (q_BTHK, k_BTGK, v_BTGK, starts_BT))
    out_BTHK = checkpoint_name(out_BTHK, "attended")
    lse_BGRT = checkpoint_name(lse_BGRT, "log_sum_exp")
    return out_BTHK, (q_BTHK, k_BTGK, v_BTGK, starts_BT, out_BTHK, lse_BGRT)


def _backward(residuals, d_out_BTHK):
    return *_by_rows(_backward_rows, (*residuals, d_out_BTHK)), None


attend_einsum.defvjp(_forward, _backward)


def _forward_rows(q_BTHK, k_BSGK, v_BSGK, starts_BT, *, dtype):
    """Returns the output and the logits' log-sum-exp of some rows."""
    T, G = q_BTHK.shape[1], k_BSGK.shape[2]
    q_BGRTK, k_BGSK, v_BGSK = _by_head(q_BTHK, G), jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGK, 1, 2)
    outputs, log_sums = [], []
    for first, last in _chunks(T):
        logits_BGRTS = _logits(q_BGRTK, k_BGSK, starts_BT, first, last)
        largest_BGRT1 = jnp.max(logits_BGRTS, axis=-1, keepdims=True)
        weights_BGRTS = jnp.exp(logits_BGRTS - largest_BGRT1)
        sum_BGRT1 = jnp.sum(weights_BGRTS, axis=-1, keepdims=True)
        outputs.append(_einsum("BGRTS,BGSK->BGRTK", weights_BGRTS.astype(dtype), v_BGSK[:, :, :last]) / sum_BGRT1)
        log_sums.append((largest_BGRT1 + jnp.log(sum_BGRT1))[..., 0])
    out_BGRTK = jnp.concatenate(outputs, axis=3).astype(dtype)
    return jnp.moveaxis(out_BGRTK, 3, 1).reshape(q_BTHK.shape), jnp.concatenate(log_sums, axis=3)


def _backward_rows(q_BTHK, k_BSGK, v_BSGK, starts_BT, out_BTHK, lse_BGRT, d_out_BTHK):
    """Returns the gradients of queries, keys and values of some rows."""
    T, G, K = q_BTHK.shape[1], k_BSGK.shape[2], q_BTHK.shape[3]
    dtype = q_BTHK.dtype
    q_BGRTK, k_BGSK, v_BGSK = _by_head(q_BTHK, G), jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGK, 1, 2)
    d_out_BGRTK = _by_head(d_out_BTHK, G)
    # Summed before the transpose, which is a thirtieth of a step of the smallest model on a CPU.
    product_BTHK = d_out_BTHK.astype(jnp.float32) * out_BTHK.astype(jnp.float32)
    delta_BGRT1 = _by_head(jnp.sum(product_BTHK, axis=-1, keepdims=True), G)
    q_BGRKT, d_out_BGRKT = jnp.swapaxes(q_BGRTK, 3, 4), jnp.swapaxes(d_out_BGRTK, 3, 4)
    d_queries, d_keys, d_values = [], [], []
    for first, last in _chunks(T):
        logits_BGRTS = _logits(q_BGRTK, k_BGSK, starts_BT, first, last)
        weights_BGRTS = jnp.exp(logits_BGRTS - lse_BGRT[..., first:last, None])
        d_chunk_BGRTK = d_out_BGRTK[:, :, :, first:last]
        d_weights_BGRTS = _einsum("BGRTK,BGSK->BGRTS", d_chunk_BGRTK, v_BGSK[:, :, :last])
        d_logits_BGRTS = (weights_BGRTS * (d_weights_BGRTS - delta_BGRT1[:, :, :, first:last])).astype(dtype)
        d_queries.append(_einsum("BGRTS,BGSK->BGRTK", d_logits_BGRTS, k_BGSK[:, :, :last]))
        # A CPU transposes the left operand of a matmul if the sum is over its first axis: it took twice as long.
        d_values.append(_einsum("BGRKT,BGRTS->BGRKS", d_out_BGRKT[..., first:last], weights_BGRTS.astype(dtype)).sum(2))
        d_keys.append(_einsum("BGRKT,BGRTS->BGRKS", q_BGRKT[..., first:last], d_logits_BGRTS).sum(2))
    d_q_BTHK = jnp.moveaxis(jnp.concatenate(d_queries, axis=3), 3, 1).reshape(q_BTHK.shape) * K**-0.5
    d_k_BSGK = _summed(d_keys, T) * K**-0.5
    d_v_BSGK = _summed(d_values, T)
    return d_q_BTHK.astype(dtype), d_k_BSGK.astype(k_BSGK.dtype), d_v_BSGK.astype(v_BSGK.dtype)


def _logits(q_BGRTK, k_BGSK, starts_BT, first: int, last: int) -> jax.Array:
    """Returns the scaled, masked logits of the queries in [first, last) and the keys before `last`."""
    K = q_BGRTK.shape[-1]
    logits_BGRTS = _einsum("BGRTK,BGSK->BGRTS", q_BGRTK[:, :, :, first:last], k_BGSK[:, :, :last]) * K**-0.5
    keys_11S = jnp.arange(last)[None, None, :]
    queries_1T1 = jnp.arange(first, last)[None, :, None]
    visible_BTS = (keys_11S <= queries_1T1) & (keys_11S >= starts_BT[:, first:last, None])
    return jnp.where(visible_BTS[:, None, None], logits_BGRTS, MASKED)


def rows_at_once(B: int, T: int, H: int, platform: str) -> int:
    """Returns how many of B rows are computed at once, a divisor of B."""
    of_chunk, of_all = 4 * H * _chunk(T) * T, 4 * H * sum((last - first) * last for first, last in _chunks(T))
    most = _CACHE_BYTES // of_chunk if platform == "cpu" else _TURN_BYTES // of_all
    return max(n for n in range(1, max(1, min(B, most)) + 1) if B % n == 0)


def _by_rows(function: Callable, arrays: tuple) -> Any:
    """Returns `function(*arrays)`, computed for some rows at a time."""
    B, T, H, _ = arrays[0].shape
    rows = rows_at_once(B, T, H, jax.default_backend())
    if rows == B:
        return function(*arrays)
    groups = tuple(x.reshape(B // rows, rows, *x.shape[1:]) for x in arrays)
    results = jax.lax.map(lambda group: function(*group), groups)
    return jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), results)


def _chunks(T: int) -> Iterator[tuple[int, int]]:
    """Yields the chunks of queries, at most 8, which bounds the size of the graph."""
    for first in range(0, T, _chunk(T)):
        yield first, min(first + _chunk(T), T)


def _chunk(T: int) -> int:
    return max(64, -(-T // 8))


def _summed(parts_BGKS: list[jax.Array], T: int) -> jax.Array:
    """Returns the sum, `(B, S, G, K)`, of the chunks' arrays, each as long as the keys that its queries see."""
    pieces = [sum(x[..., first:last] for x in parts_BGKS[i:]) for i, (first, last) in enumerate(_chunks(T))]
    return jnp.transpose(jnp.concatenate(pieces, axis=-1), (0, 3, 1, 2))


def _by_head(x_BTHK: jax.Array, G: int) -> jax.Array:
    B, T, H, K = x_BTHK.shape
    return jnp.moveaxis(x_BTHK.reshape(B, T, G, H // G, K), 1, 3)


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
