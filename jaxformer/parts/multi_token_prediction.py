"""Multi-token prediction: the features predict tokens further ahead too (Gloeckle et al. 2024, arXiv 2404.19737).

Each further token has its own block on the features, and shares the model's unembedding. Unlike there, the next token
has none: it is predicted as usual, so that the model that is evaluated, sampled and exported is the plain one.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import NonNegativeFloat, PositiveInt, check_fields
from jaxformer.layers import Context, Rows, Sums
from jaxformer.loss import cross_entropy
from jaxformer.model import AuxiliaryLoss, Block, ModelConfig, Transformer, make_norm, plain_block


@dataclass(frozen=True)
class MultiTokenPrediction(AuxiliaryLoss):
    """The weighted cross-entropies of the tokens after the next one."""

    further: PositiveInt = 1
    """Number of them."""
    weight: NonNegativeFloat = 1.0
    """Weight of each of their losses, relative to the next token's."""

    def __post_init__(self):
        check_fields(self, "MultiTokenPrediction")

    def make(self, config: ModelConfig, *, key: jax.Array) -> nnx.Module:
        """Returns the blocks, as a module."""
        return _Heads(self, plain_block(config), key)


class _Heads(nnx.Module):
    def __init__(self, part: MultiTokenPrediction, config: ModelConfig, key: jax.Array):
        self.weight = part.weight
        keys = jax.random.split(key, part.further)
        self.blocks_ahead = nnx.List(Block(config, 0, key=each, index=jnp.int32(config.depth)) for each in keys)
        self.norms = nnx.List(make_norm(config) for _ in keys)

    def __call__(self, model: Transformer, features_ND: jax.Array, rows: Rows, targets_BT: jax.Array) -> Sums:
        """Returns the losses: sums over the tokens whose document has a token that far ahead."""
        attend = model.attend_rows(rows)

        def attention(q, k, v):
            return attend(q, k, v, None, model.config.have_window[-1])[0]

        context = Context(rows, model.rotation(rows.positions_BT.reshape(-1)), attention)
        indices_1T = jnp.arange(targets_BT.shape[1])[None, :]
        losses = {}
        for ahead, (block, norm) in enumerate(zip(self.blocks_ahead, self.norms, strict=True), 1):
            x_ND, _ = block(features_ND, context)
            is_there_BT = indices_1T + ahead < rows.ends_BT
            weights_BT = jnp.where(is_there_BT, rows.weights_BT * jnp.roll(rows.weights_BT, -ahead, axis=1), 0)
            sums = cross_entropy(
                norm(x_ND),
                model.unembedding_VD,
                jnp.roll(targets_BT, -ahead, axis=1).reshape(-1),
                weights_BT.reshape(-1),
                logit_soft_cap=model.config.logit_soft_cap,
                token_count=model.token_count,
                chunk_tokens=model.config.loss_chunk_tokens,
                implementation=model.config.loss,
            )
            losses[f"{ahead}_further"] = self.weight * sums.objective
        return Sums(losses)
