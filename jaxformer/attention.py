"""Document-masked causal attention: a token sees itself and the earlier tokens of its own document, nothing else.

Documents are contiguous in a packed row, so the mask is two integers per token: where its document starts
(inclusive) and where it ends (exclusive). `attend` is the one contract; each implementation is a function beside
its siblings. Axes: B row, T query, S key, H query heads, G key/value heads, R = H / G, K head width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxformer.config import check_types, require_one_of

IMPLEMENTATIONS = ("xla",)

# Finite, so that a masked logit never makes NaN; exp(MASKED - max) is exactly 0 in float32.
MASKED = -1e30


@dataclass(frozen=True)
class AttentionConfig:
    """How attention is computed.

    implementation: 'auto' chooses for the device; 'xla' runs anywhere.
    """

    implementation: str = "auto"

    def __post_init__(self):
        check_types(self)
        require_one_of("attention.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))


def choose_implementation(config: AttentionConfig) -> str:
    """Returns the name of the implementation that `attend` will use on this device."""
    return "xla" if config.implementation == "auto" else config.implementation


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


def attend(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    document_starts_BT: jax.Array,
    document_ends_BT: jax.Array,
    *,
    implementation: str,
) -> jax.Array:
    """Returns the attention output (B, T, H, K), in q's dtype; logits and softmax are float32.

    Query head h reads key/value head h // (H / G). Logits are scaled by K ** -0.5.

    Args:
        document_starts_BT: int32, first position of the token's document (inclusive), nondecreasing along T.
        document_ends_BT: int32, end of the token's document (exclusive), nondecreasing along T; kernels whose
            backward pass walks the keys read it.
        implementation: one of `IMPLEMENTATIONS`.
    """
    if implementation == "xla":
        return _attend_xla(q_BTHK, k_BTGK, v_BTGK, document_starts_BT)
    raise ValueError(f"unknown attention implementation {implementation!r}")


def _attend_xla(q_BTHK, k_BTGK, v_BTGK, document_starts_BT):
    """Attention by einsum in static chunks of queries, each against the keys up to its own diagonal only.

    Stopping at the diagonal saves nearly half the work of a square mask. At most 8 chunks bound the size of the graph.
    """
    B, T, H, K = q_BTHK.shape
    G = k_BTGK.shape[2]
    chunk = max(64, -(-T // 8))
    outputs = []
    for first in range(0, T, chunk):
        last = min(first + chunk, T)
        q_BTGRK = q_BTHK[:, first:last].reshape(B, last - first, G, H // G, K)
        k_BSGK, v_BSGK = k_BTGK[:, :last], v_BTGK[:, :last]
        logits_BGRTS = jnp.einsum("BTGRK,BSGK->BGRTS", q_BTGRK, k_BSGK, preferred_element_type=jnp.float32) * K**-0.5
        keys_11S = jnp.arange(last)[None, None, :]
        queries_1T1 = jnp.arange(first, last)[None, :, None]
        visible_BTS = (keys_11S <= queries_1T1) & (keys_11S >= document_starts_BT[:, first:last, None])
        logits_BGRTS = jnp.where(visible_BTS[:, None, None], logits_BGRTS, MASKED)
        weights_BGRTS = jax.nn.softmax(logits_BGRTS, axis=-1).astype(v_BSGK.dtype)
        outputs.append(jnp.einsum("BGRTS,BSGK->BTGRK", weights_BGRTS, v_BSGK).reshape(B, last - first, H, K))
    return jnp.concatenate(outputs, axis=1)
