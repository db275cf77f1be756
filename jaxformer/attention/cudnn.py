"""Attention by cuDNN, of documents packed at offsets.

The packed layout skips everything outside a document, as our own kernels do. JAX offers it only by a private function,
so it is imported where it is used, lowered in the tests on every supported version of JAX, and compared with `xla`
before a run relies on it. Its softmax statistics, kept for the backward pass, take B x M x H x T x 4 bytes a layer, so
a tight bound M on the segments of a row saves memory. The offsets do not depend on the layer: XLA moves them out of
the scan over layers. Axes as in `attention`.
"""

import jax
import jax.numpy as jnp


def attend_packed(q_BTHK, k_BTGK, v_BTGK, document_starts_BT, document_ends_BT, *, segments: int):
    """Returns document-masked attention; a row of more than `segments` documents starts with NaN."""
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    lengths_BM, offsets_BN = packed_offsets(document_starts_BT, document_ends_BT, segments)
    # The output of a document beyond the offsets is uninitialised memory. One NaN makes the loss NaN.
    poison_B = jnp.where(count_segments(document_starts_BT) > segments, jnp.nan, 0).astype(q_BTHK.dtype)
    q_BTHK = q_BTHK.at[:, 0].add(poison_B[:, None, None])
    return dot_product_attention(
        q_BTHK,
        k_BTGK,
        v_BTGK,
        q_seqlen=lengths_BM,
        kv_seqlen=lengths_BM,
        q_offsets=offsets_BN,
        kv_offsets=offsets_BN,
        scale=q_BTHK.shape[-1] ** -0.5,
        mask_type=MaskType.PADDING_CAUSAL,
    )


def packed_offsets(document_starts_BT, document_ends_BT, segments: int) -> tuple[jax.Array, jax.Array]:
    """Returns `(lengths_BM, offsets_BN)`, int32, N = M + 1: each document's tokens, and its start in its row.

    Absent documents are -1, and so is the last offset: cuDNN derives the end of a row itself.
    """
    B, T = document_starts_BT.shape
    is_first_BT = _is_first(document_starts_BT)
    ordinals_BT = jnp.where(is_first_BT, jnp.cumsum(is_first_BT, axis=1) - 1, segments + 1)
    rows_B1 = jnp.arange(B)[:, None]
    positions_1T = jnp.arange(T, dtype=jnp.int32)[None, :]
    absent_BN = jnp.full((B, segments + 1), -1, jnp.int32)
    offsets_BN = absent_BN.at[rows_B1, ordinals_BT].set(jnp.broadcast_to(positions_1T, (B, T)), mode="drop")
    lengths_BN = absent_BN.at[rows_B1, ordinals_BT].set(document_ends_BT - positions_1T, mode="drop")
    return lengths_BN[:, :-1], offsets_BN.at[:, -1].set(-1)


def count_segments(document_starts_BT) -> jax.Array:
    """Returns the number of documents in each row, (B,); padding counts as one."""
    return jnp.sum(_is_first(document_starts_BT), axis=1)


def _is_first(document_starts_BT):
    return document_starts_BT == jnp.arange(document_starts_BT.shape[1], dtype=jnp.int32)[None, :]
