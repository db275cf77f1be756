"""The document mask as two integers per token: the first key that it sees, and the end of the queries that see it.

Documents are contiguous in a packed row, so these suffice: query t sees the keys in [starts[t], t], and key s is seen
by the queries in [s, ends[s]). Both are nondecreasing along the row. Axes: B row, T position.
"""

import jax
import jax.numpy as jnp


def document_bounds(segment_ids_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `(document_starts_BT, document_ends_BT)`, int32: the half-open range of each token's run of equal ids."""
    T = segment_ids_BT.shape[1]
    indices_1T = jnp.arange(T, dtype=jnp.int32)[None, :]
    changes_BT = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    edge_B1 = jnp.ones_like(segment_ids_BT[:, :1], dtype=bool)
    is_first_BT = jnp.concatenate([edge_B1, changes_BT], axis=1)
    is_last_BT = jnp.concatenate([changes_BT, edge_B1], axis=1)
    starts_BT = jax.lax.cummax(jnp.where(is_first_BT, indices_1T, 0), axis=1)
    ends_BT = jax.lax.cummin(jnp.where(is_last_BT, indices_1T + 1, T), axis=1, reverse=True)
    return starts_BT, ends_BT


def limit_window(document_starts_BT, document_ends_BT, window: int) -> tuple[jax.Array, jax.Array]:
    """Returns the bounds of the same documents where a token sees no more than `window` tokens, itself included.

    A sliding window (Beltagy et al. 2020, arXiv 2004.05150) is just a later start and an earlier end.
    """
    T = document_starts_BT.shape[1]
    window = min(window, T)  # A larger one would overflow the sum below.
    positions_1T = jnp.arange(T, dtype=jnp.int32)[None, :]
    starts_BT = jnp.maximum(document_starts_BT, positions_1T - window + 1)
    return starts_BT, jnp.minimum(document_ends_BT, positions_1T + window)


def visible_share(document_starts_BT) -> float:
    """Returns the share of the pairs of plain causal attention that the mask leaves visible."""
    T = document_starts_BT.shape[1]
    positions_1T = jnp.arange(T)[None, :]
    return float(jnp.mean(positions_1T - document_starts_BT + 1.0) / ((T + 1) / 2))
