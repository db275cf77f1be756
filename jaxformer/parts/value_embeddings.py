"""Value embeddings: a table by token id, whose rows are added to the values of attention, with a gate for each head.

A token's identity reaches every later layer directly; in the stream it is mixed with the output of earlier layers. The
table costs parameters, as many as the values of all tokens of the vocabulary, and no matmul.

Zhou et al. 2024 (arXiv 2410.17897) give later layers the first layer's values. The table in place of those is from
modded-nanogpt (Jordan et al. 2024); it and nanochat (Karpathy 2025) have a gate by a few features of the stream:
2 x sigmoid(gate), which starts as 1. As there, give it to every other layer: `attention=(None, ValueEmbeddings())`.

Differences: each layer has its own table, where modded-nanogpt shares one between two layers; it is initialised,
learned and decayed like the embedding, where they give it its own learning rate.

Axes as in `jaxformer.model`.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import PositiveInt, check_fields, require
from jaxformer.layers import INITIAL_SCALE, Context, Kernel, Sums, Table
from jaxformer.model import Attention, LayerPart, ModelConfig
from jaxformer.table import look_up


@dataclass(frozen=True)
class ValueEmbeddings(LayerPart):
    """The model's own attention, with a table that adds to its values."""

    gate_features: PositiveInt = 32
    """Number of the stream's first features, from which the gate of each key/value head is computed."""

    is_cached: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self, "ValueEmbeddings")

    def make(self, config: ModelConfig, *, rngs: nnx.Rngs) -> "ValueEmbeddingAttention":
        """Returns the module of one block.

        Raises:
            UserError: the stream is narrower than the gate.
        """
        require(
            self.gate_features <= config.width,
            f"ValueEmbeddings.gate_features ({self.gate_features}) must be at most model.width ({config.width})",
        )
        return ValueEmbeddingAttention(self, config, rngs=rngs)


class ValueEmbeddingAttention(nnx.Module):
    """The module."""

    def __init__(self, part: ValueEmbeddings, config: ModelConfig, *, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs=rngs)
        shape = (config.vocabulary_size, config.G * config.K)
        self.table = Table(INITIAL_SCALE * jax.random.normal(rngs.params(), shape))
        self.gate = Kernel(jnp.zeros((part.gate_features, config.G)))

    def __call__(self, x_ND: jax.Array, context: Context) -> tuple[jax.Array, Sums]:
        """Returns what is added to the stream."""
        logits_NG = x_ND[:, : self.gate.shape[0]] @ self.gate[...]
        gate_NG1 = 2 * jax.nn.sigmoid(logits_NG.astype(jnp.float32))[:, :, None]
        of_token_NX = look_up(self.table[...], context.rows.tokens_BT.reshape(-1))
        of_token_NGK = of_token_NX.reshape(-1, self.attention.G, self.attention.K)

        def attend(q_NHK, k_NGK, v_NGK):
            return context.attend(q_NHK, k_NGK, v_NGK + (gate_NG1 * of_token_NGK).astype(v_NGK.dtype))

        return self.attention(x_ND, context._replace(attend=attend))
