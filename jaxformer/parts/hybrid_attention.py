"""Hybrid attention of DeepSeek-V4 (DeepSeek-AI 2026, section 2.3): a short window, and beside it compressed groups.

Two attentions that take turns over the layers. In both a token attends, in one softmax, to the last `window` tokens and
to earlier groups of tokens, each pooled to one vector with weights that are learned for each feature:

- `HeavilyCompressed` (HCA): large groups, all of them.
- `CompressedSparse` (CSA): groups of a few tokens, each with the group before it mixed in, of which a light indexer
  chooses `top_k`.

A vector is key and value at once, is normed, and has its last features rotated, the position of a group being that of
its first token; what attention returns is rotated back by the query's position. Each head has a learned sink, a logit
without a value. Groups are counted from the start of a document and never cross its border, a group that the document
ends in the middle of is never seen, and a token sees the groups before its own only: the window has the rest.

Differences from the paper:
- Queries and the output have one matrix each instead of two of low rank, whose use is in heads far wider than a stream.
- `model.key_value_heads` is heeded: the paper has one head of keys and values, which is 1.
- The indexer learns as in DeepSeek-V3.2 (2025, arXiv 2512.02556): the Kullback-Leibler divergence of the softmax of its
  scores from the attention's weights on the chosen groups, summed over the heads, is added to the loss. It moves the
  indexer alone, which sees the stream without a gradient. The paper does not say how its own learns; it trains without
  a choice for its first trillion tokens, while here there is one from the first step on.
- Nothing has less precision than the rest: the paper's indexer has four bits.
- Unknown, and chosen: sinks and position biases begin with 0; one base for all rotations.
- The window takes T x 2 `window` products, the groups T x T / `group`; those that are not chosen are computed and
  masked. So it shows what such an attention learns, at the price of an XLA program; decoding has no cache.

Axes as in `jaxformer.model`; P chunk of W queries, S key of a chunk, C slot of a group, J token of a group, R query
heads of a key/value head, I indexer head, E its width, U features that lie side by side.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.attention.reference import MASKED
from jaxformer.config import NonNegativeInt, PositiveInt, check_fields, require
from jaxformer.layers import Context, RMSNorm, Rows, Scale, Sums, make_kernel, rotate
from jaxformer.model import LayerPart, ModelConfig, make_rotation, residual_scale


@dataclass(frozen=True)
class HeavilyCompressed(LayerPart):
    """An attention to a window, and to all earlier groups. The paper's window and group are 128 tokens."""

    window: PositiveInt
    """The last tokens that a token attends to one by one, itself included; `model.sliding_window` does not count."""
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
    """The complete groups of the documents of B rows, in C slots each.

    Slot c has the group whose last token is among the row's tokens from c x group on, if there is one: which slot a
    group has depends on its place alone.
    """

    exists_BC: jax.Array
    last_BC: jax.Array
    """int32, its last token's place in the row."""
    starts_BC: jax.Array
    """int32, where its document begins."""


def find_groups(rows: Rows, size: int) -> Groups:
    """Returns the groups of so many tokens."""
    B, T = rows.starts_BT.shape
    C = -(-T // size)
    is_last_BT = (jnp.arange(T)[None, :] - rows.starts_BT) % size == size - 1
    is_last_BCJ = jnp.pad(is_last_BT, ((0, 0), (0, C * size - T))).reshape(B, C, size)
    last_BC = size * jnp.arange(C)[None, :] + jnp.argmax(is_last_BCJ, axis=2)
    return Groups(jnp.any(is_last_BCJ, axis=2), last_BC, jnp.take_along_axis(rows.starts_BT, last_BC, axis=1))


class Pooling(nnx.Module):
    """Makes one normed vector of each group, as the sum of its tokens' features with learned weights, in float32.

    With `overlap` the features of the group before it are summed too, which each token makes apart.
    """

    def __init__(self, config: ModelConfig, size: int, heads: int, width: int, overlap: bool, *, rngs: nnx.Rngs):
        self.size, self.kinds = size, 1 + overlap
        self.kernel = make_kernel(rngs, config.width, self.kinds * 2 * heads * width)
        self.bias = Scale(jnp.zeros((self.kinds * size, heads, width), jnp.float32))
        self.norm = RMSNorm(width, config.norm_epsilon)

    def __call__(self, x_BTD: jax.Array, groups: Groups) -> jax.Array:
        """Returns the vectors, (B, C, heads, width); those of slots without a group mean nothing."""
        B, T, _ = x_BTD.shape
        J, heads, width = self.bias.shape
        kind_J = jnp.arange(J) // self.size
        tokens_BCJ = groups.last_BC[..., None] + jnp.arange(1 - J, 1)[None, None, :]
        is_inside_BCJ = tokens_BCJ >= groups.starts_BC[..., None]
        made = (x_BTD @ self.kernel[...]).reshape(B, T, self.kinds, 2, heads, width)
        of_group = made[jnp.arange(B)[:, None, None], jnp.maximum(tokens_BCJ, 0), kind_J[None, None, :]]
        content, logits = jnp.moveaxis(of_group.astype(jnp.float32), 3, 0)
        weights = jax.nn.softmax(
            jnp.where(is_inside_BCJ[..., None, None], logits + self.bias[...][None, None], MASKED), axis=2
        )
        return self.norm(jnp.sum(weights * content, axis=2)).astype(x_BTD.dtype)


class Indexer(nnx.Module):
    """Scores groups for each token: the weighted sum over its heads of what is positive of the products."""

    def __init__(self, part: CompressedSparse, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config, self.I, self.E, self.top_k = config, part.index_heads, part.index_width, part.top_k
        self.pooling = Pooling(config, part.group, 1, self.E, True, rngs=rngs)
        self.query = make_kernel(rngs, config.width, self.I * self.E)
        self.head_weights = make_kernel(rngs, config.width, self.I)

    def __call__(self, x_BTD: jax.Array, rows: Rows, groups: Groups) -> jax.Array:
        """Returns float32 `scores_BTC`."""
        of_tokens, of_groups = make_rotations(self.config, rows, groups, self.pooling.size, self.E // 4 * 2)
        B, T, _ = x_BTD.shape
        q_BTIE = rotate_last((x_BTD @ self.query[...]).reshape(B, T, self.I, self.E), of_tokens)
        k_BC1E = rotate_last(self.pooling(x_BTD, groups), of_groups)
        products_BTIC = jax.nn.relu(_einsum("BTIE,BCE->BTIC", q_BTIE, k_BC1E[:, :, 0]))
        weights_BTI = (x_BTD @ self.head_weights[...]).astype(jnp.float32)
        return jnp.einsum("BTI,BTIC->BTC", weights_BTI, products_BTIC) * (self.I * self.E) ** -0.5


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
        rows, part, H, K = context.rows, self.part, self.config.heads, self.config.K
        B, T = rows.starts_BT.shape
        x_BTD, groups = x_ND.reshape(B, T, -1), find_groups(rows, part.group)
        of_tokens, of_groups = make_rotations(self.config, rows, groups, part.group, part.rotary_width or K // 4 * 2)
        q_BTHK, kv_BTGK = jnp.split((x_BTD @ self.query_key_value[...]).reshape(B, T, -1, K), [H], axis=2)
        q_BTHK = rotate_last(self.query_norm(q_BTHK), of_tokens)
        kv_BTGK = rotate_last(self.key_value_norm(kv_BTGK), of_tokens)
        far_BCGK = rotate_last(self.pooling(x_BTD, groups), of_groups)
        is_earlier_BTC = groups.last_BC[:, None] < jnp.arange(T)[None, :, None]
        is_own_BTC = groups.starts_BC[:, None] == rows.starts_BT[..., None]
        is_seen_BTC = groups.exists_BC[:, None] & is_own_BTC & is_earlier_BTC
        losses = {}
        if self.indexer:
            scores_BTC = self.indexer(jax.lax.stop_gradient(x_BTD), rows, groups)
            is_seen_BTC = choose(scores_BTC, is_seen_BTC, self.indexer.top_k)
        attended_BTHK, weights_BTC = _attend(
            q_BTHK, kv_BTGK, far_BCGK, rows.starts_BT, is_seen_BTC, self.sinks[...], min(part.window, T)
        )
        if self.indexer:
            losses = {"indexer": divergence(weights_BTC, scores_BTC, is_seen_BTC, rows.weights_BT)}
        metrics = {"weight_of_groups": jnp.vdot(rows.weights_BT, jnp.sum(weights_BTC, axis=2)) / H}
        back = of_tokens and (of_tokens[0], -of_tokens[1])
        return rotate_last(attended_BTHK, back).reshape(B * T, H * K) @ self.output[...], Sums(losses, metrics)


def make_rotations(config: ModelConfig, rows: Rows, groups: Groups, size: int, width: int):
    """Returns what rotates tokens, (B, T, 1, width / 2), and groups, (B, C, 1, width / 2), which is their first's."""

    def rotation_at(positions):
        rotation = make_rotation(config, positions.reshape(-1), width)
        return jax.tree.map(lambda x: x.reshape(*positions.shape, 1, -1), rotation)

    last_BC = jnp.take_along_axis(rows.positions_BT, groups.last_BC, axis=1)
    return rotation_at(rows.positions_BT), rotation_at(last_BC - (size - 1))


def rotate_last(x: jax.Array, rotation: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """Returns x, of shape (B, T or C, heads, width), with as many of its last features rotated as there are angles."""
    if rotation is None:
        return x
    content, rotary = jnp.split(x, [x.shape[-1] - 2 * rotation[0].shape[-1]], axis=-1)
    return jnp.concatenate([content, rotate(rotary, rotation)], axis=-1)


def choose(scores_BTC: jax.Array, is_seen_BTC: jax.Array, top_k: int) -> jax.Array:
    """Returns which of the groups that a token sees have its highest scores, of equal ones the earlier."""
    _, chosen_BTk = jax.lax.top_k(jnp.where(is_seen_BTC, scores_BTC, MASKED), min(top_k, scores_BTC.shape[2]))
    is_chosen_BTC = jnp.put_along_axis(jnp.zeros_like(is_seen_BTC), chosen_BTk, True, axis=2, inplace=False)
    return is_seen_BTC & is_chosen_BTC


def divergence(weights_BTC, scores_BTC, is_chosen_BTC, weights_BT) -> jax.Array:
    """Returns the sum over tokens of the divergence of the chosen groups' scores from their weights in attention."""
    weights_BTC = jax.lax.stop_gradient(weights_BTC)
    shares_BTC = weights_BTC / jnp.maximum(jnp.sum(weights_BTC, axis=2, keepdims=True), 1e-30)
    log_BTC = jax.nn.log_softmax(jnp.where(is_chosen_BTC, scores_BTC, MASKED), axis=2)
    terms_BTC = jax.scipy.special.xlogy(shares_BTC, shares_BTC) - shares_BTC * log_BTC
    return jnp.vdot(weights_BT, jnp.sum(terms_BTC, axis=2))


# The backward pass makes the weights again: kept by the scan over layers they would be the most of a step's memory.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=6)
def _attend(q_BTHK, kv_BTGK, far_BCGK, starts_BT, is_seen_BTC, sinks_H, W: int) -> tuple[jax.Array, jax.Array]:
    """Returns the output (B, T, H, K), and the groups' float32 weights, summed over the heads, (B, T, C).

    A chunk of W queries finds its window among its own keys and those of the chunk before.
    """
    (B, T, H, K), G, P = q_BTHK.shape, kv_BTGK.shape[2], -(-q_BTHK.shape[1] // W)

    def in_chunks(x):
        return jnp.pad(x, ((0, 0), (0, P * W - T)) + ((0, 0),) * (x.ndim - 2)).reshape(B, P, W, *x.shape[2:])

    q_BPWGRK = in_chunks(q_BTHK).reshape(B, P, W, G, H // G, K)
    kv_BPWGK = in_chunks(kv_BTGK)
    before_BPWGK = jnp.pad(kv_BPWGK[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
    near_BPSGK = jnp.concatenate([before_BPWGK, kv_BPWGK], axis=2)
    queries_1PW1 = jnp.arange(P * W).reshape(1, P, W, 1)
    keys_1P1S = W * jnp.arange(P)[None, :, None, None] + jnp.arange(-W, W)[None, None, None, :]
    in_window_1PWS = (keys_1P1S <= queries_1PW1) & (keys_1P1S > queries_1PW1 - W)
    is_near_BPWS = in_window_1PWS & (keys_1P1S >= in_chunks(starts_BT)[..., None])
    near_BPGRWS = _masked(_einsum("BPWGRK,BPSGK->BPGRWS", q_BPWGRK, near_BPSGK), is_near_BPWS)
    far_BPGRWC = _masked(_einsum("BPWGRK,BCGK->BPGRWC", q_BPWGRK, far_BCGK), in_chunks(is_seen_BTC))
    sinks_11GR11 = sinks_H.reshape(1, 1, G, H // G, 1, 1)
    sinks_BPGRW1 = jnp.broadcast_to(sinks_11GR11, (*near_BPGRWS.shape[:-1], 1))
    logits = jnp.concatenate([K**-0.5 * near_BPGRWS, K**-0.5 * far_BPGRWC, sinks_BPGRW1], axis=-1)
    near_BPGRWS, far_BPGRWC, _ = jnp.split(jax.nn.softmax(logits, axis=-1), [2 * W, logits.shape[-1] - 1], axis=-1)
    dtype = q_BTHK.dtype
    attended_BPWGRK = _einsum("BPGRWS,BPSGK->BPWGRK", near_BPGRWS.astype(dtype), near_BPSGK)
    attended_BPWGRK += _einsum("BPGRWC,BCGK->BPWGRK", far_BPGRWC.astype(dtype), far_BCGK)
    attended_BTHK = attended_BPWGRK.astype(dtype).reshape(B, P * W, H, K)[:, :T]
    return attended_BTHK, jnp.sum(far_BPGRWC, axis=(2, 3)).reshape(B, P * W, -1)[:, :T]


def _masked(logits_BPGRWX, is_seen_BPWX):
    return jnp.where(is_seen_BPWX[:, :, None, None], logits_BPGRWX, MASKED)


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
