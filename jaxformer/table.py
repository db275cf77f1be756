"""Lookup of rows of a table, with a gradient that has the same bits every time, on a GPU too.

The gradient of a row is the sum over all tokens with its id. Atomic additions on a GPU take another order each time, so
that a resumed run would differ from an uninterrupted one. Here tokens are sorted by id, and rows of equal ids are added
by matmuls: first within chunks, then across the ends of chunks.

Axes: N token, V row of the table, D width, X chunk, C token of a chunk, P place of an id within a chunk, E first or
last id of a chunk.
"""

import jax
import jax.numpy as jnp

_CHUNK, _MOST_EDGES = 128, 4096


@jax.custom_vjp
def look_up(table_VD: jax.Array, ids_N: jax.Array) -> jax.Array:
    """Returns the rows of a table, of its dtype."""
    return table_VD[ids_N]


def _forward(table_VD, ids_N):
    return table_VD[ids_N], (table_VD, ids_N)


def _backward(residual, gradient_ND):
    table_VD, ids_N = residual

    def added_by_id(gradient_ND, ids_N):
        return jnp.zeros(table_VD.shape, jnp.float32).at[ids_N].add(gradient_ND)

    def in_order(gradient_ND, ids_N):
        return sums_by_id(gradient_ND, ids_N, table_VD.shape[0])

    sums_VD = jax.lax.platform_dependent(gradient_ND, ids_N, cuda=in_order, default=added_by_id)
    return sums_VD.astype(table_VD.dtype), None


look_up.defvjp(_forward, _backward)


def sums_by_id(
    x_ND: jax.Array, ids_N: jax.Array, rows: int, chunk: int = _CHUNK, most_edges: int = _MOST_EDGES
) -> jax.Array:
    """Returns float32 `sums_VD`, the sums of x over the tokens of each id, in an order that follows from the ids alone.

    Args:
        ids_N: int32 in [0, rows); what has the id `rows` is dropped.
        rows: V.
        chunk: tokens whose sums are one matmul; above 2.
        most_edges: first and last ids of chunks whose sums are one matmul; more are summed in chunks again.
    """
    N, D = x_ND.shape
    padding = -N % chunk
    order_N = jnp.argsort(ids_N, stable=True)
    # Padding has an id of its own, whose sums are dropped.
    ids_XC = jnp.pad(ids_N[order_N], (0, padding), constant_values=rows).reshape(-1, chunk)
    x_XCD = jnp.pad(x_ND[order_N], ((0, padding), (0, 0))).reshape(-1, chunk, D)
    begins_XC = jnp.pad(ids_XC[:, 1:] != ids_XC[:, :-1], ((0, 0), (1, 0)))
    places_XC = jnp.cumsum(begins_XC.astype(jnp.int32), axis=1)
    is_at_XPC = places_XC[:, None, :] == jnp.arange(chunk)[None, :, None]
    sums_XPD = _matmul("XPC,XCD->XPD", is_at_XPC, x_XCD)
    ids_XP = jnp.max(jnp.where(is_at_XPC, ids_XC[:, None, :], -1), axis=2)
    last_X1 = places_XC[:, -1:]
    # The first and the last id of a chunk may continue in others; a chunk of a single id has no separate last one.
    last_sums_X1D = jnp.take_along_axis(sums_XPD, last_X1[:, :, None], axis=1)
    edge_sums_ED = jnp.concatenate([sums_XPD[:, :1], last_sums_X1D], axis=1).reshape(-1, D)
    last_ids_X1 = jnp.where(last_X1 > 0, jnp.take_along_axis(ids_XP, last_X1, axis=1), -1)
    edge_ids_E = jnp.concatenate([ids_XP[:, :1], last_ids_X1], axis=1).reshape(-1)
    is_within_XP = (jnp.arange(chunk)[None, :] > 0) & (jnp.arange(chunk)[None, :] < last_X1)
    within = jnp.where(is_within_XP, ids_XP, -1).reshape(-1), sums_XPD.reshape(-1, D)
    if edge_ids_E.size > most_edges:  # As tokens; the unused ones get the id of padding.
        edge_ids_E = jnp.where(edge_ids_E < 0, rows, edge_ids_E)
        return _put(sums_by_id(edge_sums_ED, edge_ids_E, rows, chunk, most_edges), *within)
    is_same_EE = edge_ids_E[:, None] == edge_ids_E[None, :]
    totals_ED = _matmul("EF,FD->ED", is_same_EE, edge_sums_ED)
    is_first_E = (jnp.argmax(is_same_EE, axis=1) == jnp.arange(edge_ids_E.size)) & (edge_ids_E >= 0)
    sums_VD = _put(jnp.zeros((rows, D), jnp.float32), *within)
    return _put(sums_VD, jnp.where(is_first_E, edge_ids_E, -1), totals_ED)


def _matmul(axes: str, is_in: jax.Array, x: jax.Array) -> jax.Array:
    """Returns sums of x in float32, to the last bit of each product."""
    return jnp.einsum(axes, is_in.astype(x.dtype), x, precision="highest", preferred_element_type=jnp.float32)


def _put(sums_VD: jax.Array, ids_E: jax.Array, sums_ED: jax.Array) -> jax.Array:
    """Returns the sums with rows put at their ids; a negative id, or one that is no row, puts none."""
    V = sums_VD.shape[0]
    places_E = jnp.where((ids_E >= 0) & (ids_E < V), ids_E, V + jnp.arange(ids_E.size))
    return sums_VD.at[places_E].set(sums_ED, mode="drop", unique_indices=True)
