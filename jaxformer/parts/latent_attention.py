"""Multi-head latent attention (DeepSeek-AI 2024, arXiv 2405.04434): keys and values come from a small latent vector.

Each head's keys and values are read from one normed latent of `key_value_rank` features, its queries from the stream or
from their own latent. A rotation cannot pass through such a latent: the last `rotary_width` features of a query are
rotated, and multiply a rotated key that all heads share.

Differences from the paper:
- Queries, keys and values are all K wide, K the model's head width: K - `rotary_width` features of content and the
  rotary ones. In the paper values are as wide as the content, and keys wider; `Context.attend` takes one width, so that
  attention costs as much as in a plain model with the same heads.
- The decoding cache has keys and values, not the latent: this part is not meant to save cache memory as in the paper.

Axes as in `jaxformer.model`; R rotated features, C content features, C + R = K.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import NonNegativeInt, PositiveInt, check_fields, require
from jaxformer.layers import Context, RMSNorm, Sums, make_kernel, rotate
from jaxformer.model import LayerPart, ModelConfig, make_rotation, residual_scale


@dataclass(frozen=True)
class LatentAttention(LayerPart):
    """An attention whose keys and values are made of a latent vector."""

    key_value_rank: PositiveInt
    """Features of the latent of keys and values."""
    query_rank: NonNegativeInt = 0
    """Features of the latent of queries; 0 for queries from the stream itself."""
    rotary_width: NonNegativeInt = 0
    """R; 0 for half of K, or the even number below."""

    is_cached: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self, "LatentAttention")

    def make(self, config: ModelConfig, *, rngs: nnx.Rngs) -> "LatentAttentionLayer":
        """Returns the module of one block.

        Raises:
            UserError: heads share keys, or the widths do not fit.
        """
        R = self.rotary_width or config.K // 4 * 2
        require(
            R % 2 == 0 and R <= config.K,
            f"LatentAttention.rotary_width ({R}) must be even, and at most the head width ({config.K})",
        )
        require(
            config.heads == config.G and not config.qk_norm,
            "LatentAttention has its own keys for each head, and norms of its latents: leave model.key_value_heads at "
            "0 and model.qk_norm off",
        )
        return LatentAttentionLayer(self, config, R, rngs=rngs)


class LatentAttentionLayer(nnx.Module):
    """The module: down to the latents, their norms, up to the heads, attention, and out."""

    def __init__(self, part: LatentAttention, config: ModelConfig, rotary_width: int, *, rngs: nnx.Rngs):
        D, H, K, R = config.width, config.heads, config.K, rotary_width
        self.config, self.key_value_rank, self.R = config, part.key_value_rank, R
        self.down = make_kernel(rngs, D, part.key_value_rank + R + part.query_rank)
        self.key_value_norm = RMSNorm(part.key_value_rank, config.norm_epsilon)
        self.key_value = make_kernel(rngs, part.key_value_rank, H * (K - R + K))
        self.query_norm = RMSNorm(part.query_rank, config.norm_epsilon) if part.query_rank else None
        self.query = make_kernel(rngs, part.query_rank or D, H * K)
        self.output = make_kernel(rngs, H * K, D, residual_scale(config))

    def __call__(self, x_ND: jax.Array, context: Context) -> tuple[jax.Array, Sums]:
        """Returns what is added to the stream."""
        H, K, R = self.config.heads, self.config.K, self.R
        ends = (self.key_value_rank, self.key_value_rank + R)
        key_value_latent_NX, shared_NR, query_latent_NX = jnp.split(x_ND @ self.down[...], ends, axis=1)
        heads_NHX = (self.key_value_norm(key_value_latent_NX) @ self.key_value[...]).reshape(-1, H, K - R + K)
        k_NHC, v_NHK = jnp.split(heads_NHX, [K - R], axis=2)
        of_query_NX = self.query_norm(query_latent_NX) if self.query_norm else x_ND
        q_NHC, q_NHR = jnp.split((of_query_NX @ self.query[...]).reshape(-1, H, K), [K - R], axis=2)
        rotation_N1R = make_rotation(self.config, context.rows.positions_BT.reshape(-1), R)
        shared_NHR = jnp.broadcast_to(rotate(shared_NR[:, None], rotation_N1R), q_NHR.shape)
        q_NHK = jnp.concatenate([q_NHC, rotate(q_NHR, rotation_N1R)], axis=2)
        attended_NHK = context.attend(q_NHK, jnp.concatenate([k_NHC, shared_NHR], axis=2), v_NHK)
        return attended_NHK.reshape(-1, H * K) @ self.output[...], Sums()
