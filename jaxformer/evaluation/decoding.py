"""Tokens generated after prompts, one at a time, with a key/value cache.

The prompts go through the model in one pass (`_prefill`), which fills the cache and draws the first token of each. Then
only the last token of each row is computed (`_decode_step`). A model whose layers use earlier tokens other than by
attention has no cache: its text is recomputed for each token (`_draw_next`). The prompts of a batch end at the same
slot of the cache, and the padding before a shorter one is a separate document, which it never sees. Lengths of prompts
and caches are rounded up to a few, and all options are arrays, so that another prompt or temperature compiles nothing.

Axes: B row, P slot of the padded prompt, Q one of a slice of it, C slot of the cache, R query heads of a key/value
head, and as in `model`.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer.attention.reference import MASKED
from jaxformer.config import require
from jaxformer.devices.options import fixed_options
from jaxformer.evaluation.sampling import MAX_TOKENS, Sampling, SamplingArrays, draw
from jaxformer.layers import Rows, where
from jaxformer.model import Transformer

# The shortest prompt and cache that is compiled.
_SMALLEST_BUCKET = 32

# A longer prompt attends in slices of so many queries, which divide every length that is compiled beyond it. The
# attention of a whole prompt computes half as much, and takes 600 MB for 16 heads at this length.
_WHOLE_PROMPT, _SLICE = 4096, 512


def decode(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos_id: int = -1,
    first_row: int = 0,
) -> Iterator[np.ndarray]:
    """Yields the next token of each prompt, int32 (B,), again and again, until each has had its EOS.

    It also ends after `sampling.tokens`, or when the longest prompt reaches the last learned position. Tokens of a row
    after its EOS, while others continue, have no meaning.

    Args:
        prompts: ids, one or more each; a new text begins with BOS.
        sampling: how the tokens are drawn.
        eos_id: the id that ends a text; -1 for none.
        first_row: number of the first prompt, if these are some of a seed's prompts: each row has its own draws.

    Raises:
        UserError: an empty prompt, one that leaves no room for a token, or a top_k beyond the vocabulary.
    """
    longest, limit = max(map(len, prompts), default=0), longest_text(model)
    require(bool(prompts) and min(map(len, prompts)) > 0, "a prompt needs at least one token: BOS")
    require(longest < limit, f"a prompt of {longest} tokens leaves no room in a text of at most {limit}")
    require(
        sampling.top_k <= model.token_count,
        f"top_k ({sampling.top_k}) must be at most the {model.token_count} tokens there are",
    )
    return _decode(model, *_padded(prompts), sampling.arrays(first_row), min(sampling.tokens, limit - longest), eos_id)


def _decode(
    model: Transformer, prompt_BP: np.ndarray, offsets_B: np.ndarray, options: SamplingArrays, tokens: int, eos_id: int
) -> Iterator[np.ndarray]:
    split = nnx.split(model)
    B, P = prompt_BP.shape
    begin, go_on = (_prefill, _decode_step) if model.config.is_cached else (_draw_first, _draw_next)
    so_far, next_B = begin(*split, prompt_BP, offsets_B, options, bucket(P + tokens))
    ended_B = np.zeros(B, bool)
    for number in range(tokens):
        last_B = next_B
        if number + 1 < tokens:
            # Starts before waiting for the last tokens, so that the device does not wait for the host.
            so_far, next_B = go_on(*split, so_far, last_B, offsets_B, options, np.int32(P), np.int32(number))
        tokens_B = np.asarray(last_B)
        yield tokens_B
        ended_B |= tokens_B == eos_id
        if ended_B.all():
            return


@fixed_options()
def next_token_logits(model: Transformer, ids: Sequence[int]) -> np.ndarray:
    """Returns the logits of the token after each of some ids, float32 (T, V), of the ids that stand for a token.

    Raises:
        UserError: no ids, or more than a text may have.
    """
    limit = longest_text(model)
    require(len(ids) > 0, "a text needs at least one token: BOS")
    require(len(ids) <= limit, f"a text of {len(ids)} tokens is too long; it may have at most {limit}")
    prompt_BP, offsets_B = _padded([ids])
    logits_NV = _prompt_logits(*nnx.split(model), prompt_BP, offsets_B)
    return np.asarray(logits_NV)[offsets_B[0] :, : model.token_count]


def longest_text(model: Transformer) -> int:
    """Returns the most tokens of a text: the learned positions, or the limit of a cache."""
    return min(model.config.most_positions or MAX_TOKENS, MAX_TOKENS)


def bucket(length: int) -> int:
    """Returns the smallest compiled length of at least `length`: 2^n or 3 x 2^n."""
    power = max(_SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    return power * 3 // 4 if length <= power * 3 // 4 and power > _SMALLEST_BUCKET else power


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts as rows of one length, `prompt_BP`, that end together, and where they begin, `offsets_B`."""
    P = bucket(max(map(len, prompts)))
    prompt_BP = np.zeros((len(prompts), P), np.int32)
    offsets_B = np.array([P - len(prompt) for prompt in prompts], np.int32)
    for row, prompt in enumerate(prompts):
        prompt_BP[row, offsets_B[row] :] = prompt
    return prompt_BP, offsets_B


@fixed_options()
@functools.partial(jax.jit, static_argnums=(0, 5))
def _prefill(graphdef, params, prompt_BP, offsets_B, options: SamplingArrays, C: int) -> tuple[Any, jax.Array]:
    """Returns a cache of C slots after the prompts, whose rows begin at `offsets_B`, and the next tokens, (B,).

    The cache is a tree of keys and values, `(L, B, G, C, K)`, of all tokens but the last of each row, as the attention
    of the layers kept it.
    """
    model = nnx.merge(graphdef, params)
    B, P = prompt_BP.shape
    features_ND, kept = _forward_prompt(model, prompt_BP, offsets_B)

    def cached(kept_LNGK):
        kept_LBGPK = jnp.swapaxes(kept_LNGK.reshape(-1, B, P, *kept_LNGK.shape[2:]), 2, 3)
        return jnp.pad(kept_LBGPK, ((0, 0), (0, 0), (0, 0), (0, C - P), (0, 0)))

    features_BD = features_ND.reshape(B, P, -1)[:, -1]
    return jax.tree.map(cached, kept), draw(model.logits(features_BD), 0, options)


@fixed_options()
@functools.partial(jax.jit, static_argnums=(0, 5))
def _draw_first(graphdef, params, prompt_BP, offsets_B, options: SamplingArrays, C: int) -> tuple[Any, jax.Array]:
    """Returns the prompts in rows of C tokens, and the next tokens, of a model whose text has no cache."""
    model = nnx.merge(graphdef, params)
    B, P = prompt_BP.shape
    text_BC = jnp.pad(prompt_BP, ((0, 0), (0, C - P)))
    return text_BC, draw(
        model.logits(_forward_prompt(model, prompt_BP, offsets_B)[0].reshape(B, P, -1)[:, -1]), 0, options
    )


@fixed_options()
@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _draw_next(
    graphdef, params, text_BC, tokens_B, offsets_B, options: SamplingArrays, P, number
) -> tuple[Any, jax.Array]:
    """Returns the text with the last tokens, `number` of them after the prompts, and the next ones.

    All of the text is recomputed: entries after the last token change nothing before it.
    """
    model = nnx.merge(graphdef, params)
    text_BC = jax.lax.dynamic_update_slice(text_BC, tokens_B[:, None], (0, P + number))
    features_ND, _ = _forward_prompt(model, text_BC, offsets_B)
    features_BCD = features_ND.reshape(*text_BC.shape, -1)
    features_BD = jax.lax.dynamic_index_in_dim(features_BCD, P + number, axis=1, keepdims=False)
    return text_BC, draw(model.logits(features_BD), number + 1, options)


@functools.partial(jax.jit, static_argnums=0)
def _prompt_logits(graphdef, params, prompt_BP, offsets_B) -> jax.Array:
    model = nnx.merge(graphdef, params)
    return model.logits(_forward_prompt(model, prompt_BP, offsets_B)[0])


def _forward_prompt(model: Transformer, prompt_BP, offsets_B) -> tuple[jax.Array, Any]:
    """Returns the features after each token of the prompts, and the keys and values of each layer, `kept_LNGK`."""
    # The attention chosen for training was only measured on its rows, and may need their length.
    model.attention = "xla"
    P, window = prompt_BP.shape[1], model.config.sliding_window
    slots_BP, offsets_B1 = jnp.arange(P)[None, :], offsets_B[:, None]
    is_prompt_BP = slots_BP >= offsets_B1
    starts_BP, ends_BP = jnp.where(is_prompt_BP, offsets_B1, 0), jnp.where(is_prompt_BP, P, offsets_B1)
    positions_BP = jnp.maximum(slots_BP - offsets_B1, 0)
    rows = Rows(jnp.asarray(prompt_BP), positions_BP, starts_BP, ends_BP, jnp.ones(prompt_BP.shape, jnp.float32))
    attend_rows = model.attend_rows(rows)

    def attention(q, k, v, _, has_window):
        if P <= _WHOLE_PROMPT:
            return attend_rows(q, k, v, None, has_window)[0], (k, v)
        first_BP = jnp.maximum(offsets_B1, where(has_window, slots_BP + 1 - window, jnp.zeros_like(slots_BP)))
        q_BPHK, k_BPGK, v_BPGK = (x.reshape(*prompt_BP.shape, *x.shape[1:]) for x in (q, k, v))
        return _attend_in_slices(q_BPHK, k_BPGK, v_BPGK, first_BP).reshape(q.shape), (k, v)

    x_ND = model.embed(rows.tokens_BT.reshape(-1), positions_BP.reshape(-1))
    features_ND, _, kept = model.apply_blocks(x_ND, rows, attention)
    return features_ND, kept


def _attend_in_slices(q_BPHK, k_BPGK, v_BPGK, first_BP):
    """Returns the attention of prompts, of a slice of the queries of one row at a time.

    Logits of Q x P exist at once: the memory of a prompt grows with its length, not with its square.

    Args:
        first_BP: the first slot that each query sees; those before a prompt see none, and their results are unused.
    """
    P, H, K = q_BPHK.shape[1:]
    G, Q = k_BPGK.shape[2], _SLICE
    slots_1P = jnp.arange(P)[None, :]

    def attend_row(row):
        q_PHK, k_PGK, v_PGK, first_P = row

        def attend_slice(queries):
            q_QGRK, first_Q1, slots_Q1 = queries
            is_visible_QP = (slots_1P >= first_Q1) & (slots_1P <= slots_Q1)
            logits_GRQP = _einsum("QGRK,PGK->GRQP", q_QGRK, k_PGK) * K**-0.5
            weights_GRQP = jax.nn.softmax(jnp.where(is_visible_QP[None, None], logits_GRQP, MASKED), axis=3)
            return _einsum("GRQP,PGK->QGRK", weights_GRQP.astype(v_PGK.dtype), v_PGK).astype(q_PHK.dtype)

        slices = (q_PHK.reshape(-1, Q, G, H // G, K), first_P.reshape(-1, Q, 1), jnp.arange(P).reshape(-1, Q, 1))
        return jax.lax.map(attend_slice, slices).reshape(P, H, K)

    return jax.lax.map(attend_row, (q_BPHK, k_BPGK, v_BPGK, first_BP))


@fixed_options()
@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _decode_step(
    graphdef, params, cache, tokens_B, offsets_B, options: SamplingArrays, P, number
) -> tuple[Any, jax.Array]:
    """Returns the cache with the last tokens of the rows, `number` of them after the prompts, and the next ones."""
    model = nnx.merge(graphdef, params)
    cache, features_BD = _forward_last_token(model, cache, tokens_B, P + number, offsets_B)
    return cache, draw(model.logits(features_BD), number + 1, options)


def _forward_last_token(model: Transformer, cache, tokens_B, slot, offsets_B) -> tuple[Any, jax.Array]:
    """Returns the cache with one more token of each row, at a slot that all share, and the features after it."""
    positions_B1 = (slot - offsets_B)[:, None]
    starts_B1 = jnp.zeros_like(positions_B1)
    rows = Rows(tokens_B[:, None], positions_B1, starts_B1, starts_B1 + 1, jnp.ones(positions_B1.shape, jnp.float32))

    def attention(q_BHK, k_BGK, v_BGK, cached, has_window):
        k_BGCK, v_BGCK = cached
        slots_1C = jnp.arange(k_BGCK.shape[2])[None, :]
        first_B1 = jnp.maximum(offsets_B[:, None], where(has_window, slot + 1 - model.config.sliding_window, 0))
        is_visible_BC = (slots_1C >= first_B1) & (slots_1C < slot)
        return _attend_cached(q_BHK, k_BGK, v_BGK, k_BGCK, v_BGCK, is_visible_BC), (k_BGK, v_BGK)

    features_BD, _, kept = model.apply_blocks(model.embed(tokens_B, positions_B1[:, 0]), rows, attention, cache)

    def put(cache_LBGCK, new_LBGK):
        return jax.lax.dynamic_update_slice(cache_LBGCK, new_LBGK[:, :, :, None], (0, 0, 0, slot, 0))

    return jax.tree.map(put, cache, kept), features_BD


def _attend_cached(q_BHK, k_BGK, v_BGK, k_BGCK, v_BGCK, is_visible_BC):
    """Returns the attention of one query of each row over its own token and the visible part of the cache."""
    B, H, K = q_BHK.shape
    q_BGRK = q_BHK.reshape(B, k_BGK.shape[1], -1, K)
    cached_BGRC = _einsum("BGRK,BGCK->BGRC", q_BGRK, k_BGCK)
    own_BGR1 = _einsum("BGRK,BGK->BGR", q_BGRK, k_BGK)[..., None]
    logits_BGRS = jnp.concatenate([jnp.where(is_visible_BC[:, None, None], cached_BGRC, MASKED), own_BGR1], axis=3)
    weights_BGRS = jax.nn.softmax(logits_BGRS * K**-0.5, axis=3).astype(v_BGK.dtype)
    attended_BGRK = _einsum("BGRC,BGCK->BGRK", weights_BGRS[..., :-1], v_BGCK)
    attended_BGRK += weights_BGRS[..., -1:] * v_BGK[:, :, None]
    return attended_BGRK.astype(q_BHK.dtype).reshape(B, H, K)


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
