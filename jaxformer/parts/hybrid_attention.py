"""Hybrid attention of DeepSeek-V4 (DeepSeek-AI 2026, section 2.3): a short window, and beside it compressed groups.

Two attentions alternate over the layers. In both a token attends, in one softmax, to the last `window` tokens and to
earlier groups of tokens, each pooled to one vector with weights that are learned for each feature:

- `HeavilyCompressed` (HCA): large groups, all of them.
- `CompressedSparse` (CSA): groups of a few tokens, each with the group before it mixed in. A light indexer chooses
  `top_k` of them.

A vector is key and value at once, is normed, and has its last features rotated; a group has the position of its first
token. The output of attention is rotated back by the query's position. Each head has a learned sink, a logit without a
value. Groups are counted from the start of a document and never cross its border; an incomplete group at its end is
never seen. A token sees only the groups before its own: the window has the rest.

Differences from the paper:
- Queries and the output have one matrix each instead of two of low rank, which help if heads are far wider than the
  stream.
- `model.key_value_heads` applies: the paper has one head of keys and values, which is 1.
- The indexer learns as in DeepSeek-V3.2 (2025, arXiv 2512.02556): the Kullback-Leibler divergence of the softmax of its
  scores from the attention's weights on the chosen groups, summed over the heads, is added to the loss. It changes only
  the indexer, which sees the stream without a gradient. The paper does not say how its own learns; it trains without
  a choice for its first trillion tokens, while here there is one from the first step on.
- Everything has the same precision: the paper's indexer has four bits.
- Unknown in the paper, chosen here: sinks and position biases start at 0; all rotations have one base.
- The window takes T x 2 `window` products, the groups T x T / `group`; those that are not chosen are computed and
  masked. So it shows what such an attention learns, at the price of an XLA program; decoding has no cache.

Matrices multiply the tokens of all rows at once. The rest is computed for a few rows at a time, and again in the
backward pass, so that the logits of only a few rows are in memory: compiled for an H100, a step of 27 million
parameters and 16 rows of 2,048 takes 5.3 GB, and with all rows at once it took 10.1.

Axes as in `jaxformer.model`; P chunk of W queries, S key of a chunk, C slot of a group, J token of a group, R query
heads of a key/value head, I indexer head, E its width, U concatenated features.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.attention.reference import MASKED
from jaxformer.config import NonNegativeInt, PositiveInt, check_fields, require
from jaxformer.layers import Context, RMSNorm, Scale, Sums, make_kernel, rotate
from jaxformer.model import LayerPart, ModelConfig, make_rotation, residual_scale

# Tokens of the rows that are computed at once, unless one row has more: with this many, what is recomputed is at most a
# twentieth of a step's memory in rows of 2,048.
_TOKENS_AT_ONCE = 2048


@dataclass(frozen=True)
class HeavilyCompressed(LayerPart):
    """An attention to a window, and to all earlier groups. The paper's window and group are 128 tokens."""

    window: PositiveInt
    """The last tokens that a token attends to one by one, itself included; `model.sliding_window` is ignored."""
    group: PositiveInt
    """Tokens that become one key and value."""
    rotary_width: NonNegativeInt = 0
    """Features that are rotated; 0 for half of the head width, or the even number below."""

    def __post_init__(self):
        check_fields(self, type(self).__name__)

    def make(self, config: ModelConfig, *, rngs: nnx.Rngs) -> "HybridAttention":
        """Returns the module of one block.

        Raises:
            UserError: the rotary width does not fit.
        """
        require(
            self.rotary_width % 2 == 0 and self.rotary_width <= config.K,
            f"{type(self).__name__}.rotary_width ({self.rotary_width}) must be even, and at most the head width "
            f"({config.K})",
        )
        return HybridAttention(self, config, rngs=rngs)


@dataclass(frozen=True)
class CompressedSparse(HeavilyCompressed):
    """An attention to a window, and to the earlier groups that an indexer chooses. The paper's groups have 4 tokens."""

    top_k: PositiveInt = 512
    """Groups that a token attends to at most."""
    index_heads: PositiveInt = 4
    """I; the paper has 64."""
    index_width: PositiveInt = 32
    """E; the paper has 128."""


class Groups(NamedTuple):
    """The complete groups of the documents of a row, in C slots.

    Slot c has the group whose last token is among the row's tokens from c x group on, if there is one. So a group's
    slot depends only on its place.
    """

    exists_C: jax.Array
    last_C: jax.Array
    """int32, its last token's place in the row."""
    starts_C: jax.Array
    """int32, where its document begins."""


def find_groups(starts_T: jax.Array, size: int) -> Groups:
    """Returns the groups of so many tokens."""
    (T,) = starts_T.shape
    C = -(-T // size)
    is_last_T = (jnp.arange(T) - starts_T) % size == size - 1
    is_last_CJ = jnp.pad(is_last_T, (0, C * size - T)).reshape(C, size)
    last_C = size * jnp.arange(C) + jnp.argmax(is_last_CJ, axis=1)
    return Groups(jnp.any(is_last_CJ, axis=1), last_C, starts_T[last_C])


class Pooling(nnx.Module):
    """Makes one normed vector of each group, as the sum of its tokens' features with learned weights, in float32.

    With `overlap` the group before it is summed too, from separate features of each token.
    """

    def __init__(self, config: ModelConfig, size: int, heads: int, width: int, overlap: bool, *, rngs: nnx.Rngs):
        self.size, self.kinds = size, 1 + overlap
        self.kernel = make_kernel(rngs, config.width, self.kinds * 2 * heads * width)
        self.bias = Scale(jnp.zeros((self.kinds * size, heads, width), jnp.float32))
        self.norm = RMSNorm(width, config.norm_epsilon)

    def project(self, x_ND: jax.Array) -> jax.Array:
        """Returns the features and logits of each token, (N, U)."""
        return x_ND @ self.kernel[...]

    def __call__(self, projected_TU: jax.Array, groups: Groups) -> jax.Array:
        """Returns the vectors of a row's groups, (C, heads, width); those of slots without a group mean nothing."""
        J, heads, width = self.bias.shape
        kind_J = jnp.arange(J) // self.size
        tokens_CJ = groups.last_C[:, None] + jnp.arange(1 - J, 1)[None, :]
        is_inside_CJ = tokens_CJ >= groups.starts_C[:, None]
        projected = projected_TU.reshape(-1, self.kinds, 2, heads, width)
        of_group = projected[jnp.maximum(tokens_CJ, 0), kind_J[None, :]]
        content, logits = jnp.moveaxis(of_group.astype(jnp.float32), 2, 0)
        weights = jax.nn.softmax(
            jnp.where(is_inside_CJ[..., None, None], logits + self.bias[...][None], MASKED), axis=1
        )
        return self.norm(jnp.sum(weights * content, axis=1)).astype(projected_TU.dtype)


class Indexer(nnx.Module):
    """Scores groups for each token: the weighted sum over its heads of the positive parts of the products."""

    def __init__(self, part: CompressedSparse, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config, self.I, self.E, self.top_k = config, part.index_heads, part.index_width, part.top_k
        self.pooling = Pooling(config, part.group, 1, self.E, True, rngs=rngs)
        self.query = make_kernel(rngs, config.width, self.I * self.E)
        self.head_weights = make_kernel(rngs, config.width, self.I)

    def project(self, x_ND: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the queries and the weights of the heads of each token, and what is pooled, (N, U)."""
        return x_ND @ self.query[...], x_ND @ self.head_weights[...], self.pooling.project(x_ND)

    def __call__(self, projected, positions_T: jax.Array, groups: Groups) -> jax.Array:
        """Returns float32 `scores_TC` of a row from what `project` returns for it."""
        queries_TU, weights_TI, pooled_TU = projected
        of_tokens, of_groups = make_rotations(self.config, positions_T, groups, self.pooling.size, self.E // 4 * 2)
        q_TIE = rotate_last(queries_TU.reshape(-1, self.I, self.E), of_tokens)
        k_C1E = rotate_last(self.pooling(pooled_TU, groups), of_groups)
        products_TIC = jax.nn.relu(_einsum("TIE,CE->TIC", q_TIE, k_C1E[:, 0]))
        scale = (self.I * self.E) ** -0.5
        return jnp.einsum("TI,TIC->TC", weights_TI.astype(jnp.float32), products_TIC) * scale


class HybridAttention(nnx.Module):
    """The module of both parts."""

    def __init__(self, part: HeavilyCompressed, config: ModelConfig, *, rngs: nnx.Rngs):
        D, H, G, K = config.width, config.heads, config.G, config.K
        self.part, self.config = part, config
        self.query_key_value = make_kernel(rngs, D, (H + G) * K)
        self.query_norm, self.key_value_norm = (RMSNorm(K, config.norm_epsilon) for _ in range(2))
        self.pooling = Pooling(config, part.group, G, K, isinstance(part, CompressedSparse), rngs=rngs)
        self.sinks = Scale(jnp.zeros(H, jnp.float32))
        self.output = make_kernel(rngs, H * K, D, residual_scale(config))
        self.indexer = Indexer(part, config, rngs=rngs) if isinstance(part, CompressedSparse) else None

    def __call__(self, x_ND: jax.Array, context: Context) -> tuple[jax.Array, Sums]:
        """Returns what is added to the stream, the loss of the indexer, and the weight of the groups in attention."""
        rows = context.rows
        B, T = rows.starts_BT.shape
        scored = self.indexer and self.indexer.project(jax.lax.stop_gradient(x_ND))
        projected = x_ND @ self.query_key_value[...], self.pooling.project(x_ND), scored
        projected = jax.tree.map(lambda x_NU: x_NU.reshape(B, T, -1), projected)
        attended_BTU, sums = jax.lax.map(
            jax.checkpoint(lambda row: self._attend(*row), prevent_cse=False),
            (projected, rows.positions_BT, rows.starts_BT, rows.weights_BT),
            batch_size=max(1, _TOKENS_AT_ONCE // T),
        )
        return attended_BTU.reshape(B * T, -1) @ self.output[...], jax.tree.map(jnp.sum, sums)

    def _attend(self, projected, positions_T, starts_T, weights_T) -> tuple[jax.Array, Sums]:
        """Returns the heads' output for each token of a row, (T, H x K), and its sums."""
        (query_key_value_TU, pooled_TU, scored), part, T = projected, self.part, len(starts_T)
        H, K = self.config.heads, self.config.K
        groups = find_groups(starts_T, part.group)
        of_tokens, of_groups = make_rotations(
            self.config, positions_T, groups, part.group, part.rotary_width or K // 4 * 2
        )
        q_THK, kv_TGK = jnp.split(query_key_value_TU.reshape(T, -1, K), [H], axis=1)
        q_THK = rotate_last(self.query_norm(q_THK), of_tokens)
        kv_TGK = rotate_last(self.key_value_norm(kv_TGK), of_tokens)
        far_CGK = rotate_last(self.pooling(pooled_TU, groups), of_groups)
        is_earlier_TC = groups.last_C[None, :] < jnp.arange(T)[:, None]
        is_seen_TC = groups.exists_C[None, :] & is_earlier_TC & (groups.starts_C[None, :] == starts_T[:, None])
        losses = {}
        if self.indexer:
            scores_TC = self.indexer(scored, positions_T, groups)
            is_seen_TC = choose(scores_TC, is_seen_TC, self.indexer.top_k)
        attended_THK, group_weights_TC = attend(
            q_THK, kv_TGK, far_CGK, starts_T, is_seen_TC, self.sinks[...], min(part.window, T)
        )
        if self.indexer:
            losses = {"indexer": divergence(group_weights_TC, scores_TC, is_seen_TC, weights_T)}
        metrics = {"weight_of_groups": jnp.vdot(weights_T, jnp.sum(group_weights_TC, axis=1)) / H}
        back = of_tokens and (of_tokens[0], -of_tokens[1])
        return rotate_last(attended_THK, back).reshape(T, H * K), Sums(losses, metrics)


def make_rotations(config: ModelConfig, positions_T: jax.Array, groups: Groups, size: int, width: int):
    """Returns the rotations of tokens, (T, 1, width / 2), and of groups, (C, 1, width / 2): their first token's."""
    first_C = positions_T[groups.last_C] - (size - 1)
    return make_rotation(config, positions_T, width), make_rotation(config, first_C, width)


def rotate_last(x: jax.Array, rotation: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """Returns x, of shape (T or C, heads, width), with as many of its last features rotated as there are angles."""
    if rotation is None:
        return x
    content, rotary = jnp.split(x, [x.shape[-1] - 2 * rotation[0].shape[-1]], axis=-1)
    return jnp.concatenate([content, rotate(rotary, rotation)], axis=-1)


def choose(scores_TC: jax.Array, is_seen_TC: jax.Array, top_k: int) -> jax.Array:
    """Returns which visible groups have a token's highest scores, the earlier of equal ones."""
    _, chosen_Tk = jax.lax.top_k(jnp.where(is_seen_TC, scores_TC, MASKED), min(top_k, scores_TC.shape[1]))
    is_chosen_TC = jnp.put_along_axis(jnp.zeros_like(is_seen_TC), chosen_Tk, True, axis=1, inplace=False)
    return is_seen_TC & is_chosen_TC


def divergence(weights_TC, scores_TC, is_chosen_TC, weights_T) -> jax.Array:
    """Returns the sum over tokens of the divergence of the chosen groups' scores from their weights in attention."""
    weights_TC = jax.lax.stop_gradient(weights_TC)
    shares_TC = weights_TC / jnp.maximum(jnp.sum(weights_TC, axis=1, keepdims=True), 1e-30)
    log_TC = jax.nn.log_softmax(jnp.where(is_chosen_TC, scores_TC, MASKED), axis=1)
    terms_TC = jax.scipy.special.xlogy(shares_TC, shares_TC) - shares_TC * log_TC
    return jnp.vdot(weights_T, jnp.sum(terms_TC, axis=1))


def attend(q_THK, kv_TGK, far_CGK, starts_T, is_seen_TC, sinks_H, W: int) -> tuple[jax.Array, jax.Array]:
    """Returns the output (T, H, K), and the groups' float32 weights, summed over the heads, (T, C).

    A chunk of W queries finds its window among its own keys and those of the chunk before.
    """
    (T, H, K), G, P = q_THK.shape, kv_TGK.shape[1], -(-len(q_THK) // W)

    def in_chunks(x):
        return jnp.pad(x, ((0, P * W - T),) + ((0, 0),) * (x.ndim - 1)).reshape(P, W, *x.shape[1:])

    q_PWGRK = in_chunks(q_THK).reshape(P, W, G, H // G, K)
    kv_PWGK = in_chunks(kv_TGK)
    before_PWGK = jnp.pad(kv_PWGK[:-1], ((1, 0), (0, 0), (0, 0), (0, 0)))
    near_PSGK = jnp.concatenate([before_PWGK, kv_PWGK], axis=1)
    queries_PW1 = jnp.arange(P * W).reshape(P, W, 1)
    keys_P1S = W * jnp.arange(P)[:, None, None] + jnp.arange(-W, W)[None, None, :]
    in_window_PWS = (keys_P1S <= queries_PW1) & (keys_P1S > queries_PW1 - W)
    is_near_PWS = in_window_PWS & (keys_P1S >= in_chunks(starts_T)[..., None])
    near_PGRWS = _masked(_einsum("PWGRK,PSGK->PGRWS", q_PWGRK, near_PSGK), is_near_PWS)
    far_PGRWC = _masked(_einsum("PWGRK,CGK->PGRWC", q_PWGRK, far_CGK), in_chunks(is_seen_TC))
    sinks_PGRW1 = jnp.broadcast_to(sinks_H.reshape(1, G, H // G, 1, 1), (*near_PGRWS.shape[:-1], 1))
    logits = jnp.concatenate([K**-0.5 * near_PGRWS, K**-0.5 * far_PGRWC, sinks_PGRW1], axis=-1)
    near_PGRWS, far_PGRWC, _ = jnp.split(jax.nn.softmax(logits, axis=-1), [2 * W, logits.shape[-1] - 1], axis=-1)
    dtype = q_THK.dtype
    attended_PWGRK = _einsum("PGRWS,PSGK->PWGRK", near_PGRWS.astype(dtype), near_PSGK)
    attended_PWGRK += _einsum("PGRWC,CGK->PWGRK", far_PGRWC.astype(dtype), far_CGK)
    attended_THK = attended_PWGRK.astype(dtype).reshape(P * W, H, K)[:T]
    return attended_THK, jnp.sum(far_PGRWC, axis=(1, 2)).reshape(P * W, -1)[:T]


def _masked(logits_PGRWX, is_seen_PWX):
    return jnp.where(is_seen_PWX[:, None, None], logits_PGRWX, MASKED)


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
