"""The architectures that every promise on parts is tested for, and what the tests of them share.

To test a part of your own, add a line to `CASES`.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer.data.packing import Batch
from jaxformer.layers import Activation, Norm, Sums
from jaxformer.model import FeedForward, LayerPart, ModelConfig, Scaling, Transformer, abstract_model
from jaxformer.parts.complete_p import CompletePResidual
from jaxformer.parts.hybrid_attention import CompressedSparse, HeavilyCompressed
from jaxformer.parts.hyper_connections import HyperConnections, ManifoldHyperConnections
from jaxformer.parts.latent_attention import LatentAttention
from jaxformer.parts.mixture_of_experts import MixtureOfExperts
from jaxformer.parts.value_embeddings import ValueEmbeddings
from jaxformer.step import rows_of


@dataclass(frozen=True)
class ShiftedFeedForward(LayerPart):
    """A feed-forward of a token and the one before it, as in an experiment file: it looks back without attention."""

    is_cached: ClassVar[bool] = False
    share: float = 0.5

    def make(self, config, *, rngs):
        return _Shifted(self, config, rngs=rngs)


class _Shifted(nnx.Module):
    def __init__(self, part, config, *, rngs):
        self.share, self.feed_forward = part.share, FeedForward(config, rngs=rngs)

    def __call__(self, x_ND, context):
        is_first_N1 = context.rows.positions_BT.reshape(-1, 1) == 0
        before_ND = jnp.where(is_first_N1, 0, jnp.roll(x_ND, 1, axis=0))
        y_ND, _ = self.feed_forward(x_ND + self.share * before_ND, context)
        weights_N1 = context.rows.weights_BT.reshape(-1, 1)
        return y_ND, Sums(losses={"size": 1e-3 * jnp.sum(weights_N1 * jnp.square(y_ND.astype(jnp.float32)))})


@dataclass(frozen=True)
class Sine(Activation):
    """An activation of one's own, fed by two matrices."""

    matrices: ClassVar[int] = 2

    def __call__(self, gate_NF, value_NF):
        return jnp.sin(gate_NF) * value_NF


@dataclass(frozen=True)
class Halved(Norm):
    """A norm of one's own, without parameters."""

    def make(self, width, epsilon):
        return _Halved()


class _Halved(nnx.Module):
    def __call__(self, x):
        return x / (0.1 + jnp.mean(jnp.abs(x), axis=-1, keepdims=True))


@dataclass(frozen=True)
class DoubledLogits(Scaling):
    """A scaling of one's own."""

    def of_logits(self, width, depth):
        return 2.0


BASE = ModelConfig(
    vocabulary_size=40, width=16, depth=2, heads=2, feed_forward_width=24, tied_embeddings=False, scan_unroll=1
)
CASES = {
    "experts": {"feed_forward": MixtureOfExperts(experts=4, top_k=2)},
    "lanes": {"residual": HyperConnections(lanes=4)},
    "manifold_and_experts": {
        "residual": ManifoldHyperConnections(lanes=4, iterations=5),
        "feed_forward": MixtureOfExperts(experts=4, top_k=1, shared=1, scores="sigmoid", bias_rate=0.01),
        "activation": "swiglu",
    },
    "latent_and_value_embeddings": {
        "attention": (
            LatentAttention(key_value_rank=6, query_rank=5, rotary_width=2),
            ValueEmbeddings(gate_features=5),
        ),
    },
    "hybrid": {
        "attention": (
            CompressedSparse(window=3, group=2, top_k=2, index_heads=2, index_width=4),
            HeavilyCompressed(window=2, group=3),
        ),
    },
    "turns_and_own_code": {
        "feed_forward": (None, ShiftedFeedForward()),
        "activation": Sine(),
        "norm": Halved(),
        "residual": CompletePResidual(base_depth=1),
        "scaling": DoubledLogits(),
        "sliding_window": 3,
        "window_pattern": "SL",
    },
}
# Compiling for eight devices takes long: `manifold_and_experts` has what the others have.
ON_EIGHT_DEVICES = [name for name in CASES if name not in ("experts", "lanes")]

ROWS, T = 16, 12
# The second document of a row, which the tests look at, and where it begins and ends.
ROW, FIRST, LAST = 3, 4, 10


def config_of(name: str) -> ModelConfig:
    """Returns the model of a case, or the plain one."""
    return dataclasses.replace(BASE, **CASES.get(name, {}))


@functools.cache
def initial(name: str) -> nnx.State:
    """Returns the parameters of a seed."""
    return jax.jit(lambda: nnx.state(Transformer(config_of(name), rngs=nnx.Rngs(params=3))))()


def shown(params: nnx.State) -> nnx.State:
    """Returns parameters of which each shows in the logits: larger ones, and no gain is 1."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.25 * rng.standard_normal(x.shape).astype(np.float32), params)


def make_batch(seed: int = 0) -> Batch:
    """Returns rows of three segments each, the last of them padding in some, of which part of the targets counts."""
    rng = np.random.default_rng(seed)
    starts_BT = np.select([np.arange(T) >= LAST, np.arange(T) >= FIRST], [LAST, FIRST], 0)[None].repeat(ROWS, 0)
    ends_BT = np.where(starts_BT == 0, FIRST, np.where(starts_BT == FIRST, LAST, T))
    segment_ids_BT = np.where(starts_BT == 0, 1, np.where(starts_BT == FIRST, 2, (np.arange(ROWS) % 3)[:, None]))
    weights_BT = (segment_ids_BT > 0) & (rng.random((ROWS, T)) < 0.8)
    tokens_BT, targets_BT = rng.integers(0, BASE.vocabulary_size, (2, ROWS, T))
    arrays = (tokens_BT, targets_BT, weights_BT, segment_ids_BT, np.arange(T) - starts_BT, starts_BT, ends_BT)
    return Batch(*(x.astype(np.float32 if x is weights_BT else np.int32) for x in arrays))


@functools.partial(jax.jit, static_argnums=0)
def probe(name: str, params: nnx.State, batch: Batch, cotangent_BTV: jax.Array):
    """Returns the logits, the sums, and the gradients by the embedded tokens and by the parameters.

    They are those of the logits, weighted by `cotangent_BTV`, and of the losses of the layers.
    """
    graphdef = nnx.graphdef(abstract_model(config_of(name)))
    zeros_ND = jnp.zeros((cotangent_BTV[..., 0].size, BASE.width))

    def objective(params, shift_ND):
        model = nnx.merge(graphdef, params)
        x_ND = model.embed(batch.tokens_BT.reshape(-1), batch.positions_BT.reshape(-1)) + shift_ND
        features_ND, sums = model.transform(x_ND, rows_of(batch))
        logits_BTV = model.logits(features_ND).reshape(cotangent_BTV.shape)
        return jnp.vdot(cotangent_BTV, logits_BTV) + sum(map(jnp.sum, sums.losses.values())), (logits_BTV, sums)

    (of_params, of_x_ND), (logits_BTV, sums) = jax.grad(objective, argnums=(0, 1), has_aux=True)(params, zeros_ND)
    of_x_BTD = of_x_ND.reshape(*batch.tokens_BT.shape, -1)
    return logits_BTV, {**sums.losses, **sums.metrics}, of_x_BTD, of_params
