"""Sampling text from a model with a key/value cache."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer.attention.reference import MASKED
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.devices.options import fixed_options
from jaxformer.model import Transformer


def generate(
    model: Transformer,
    prompt_BP: jax.Array | np.ndarray,
    *,
    length: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    prompt_lengths_B: jax.Array | np.ndarray | None = None,
) -> jax.Array:
    """Returns `tokens_BS`, int32, S = P + length: the prompts followed by `length` sampled tokens each.

    Args:
        prompt_BP: int32 ids, one token or more; a text of its own begins with BOS.
        key: of the random draws.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: samples among the k likeliest tokens; 0 among all.
        prompt_lengths_B: int32, how many first tokens of each row are its prompt, one or more; None for all P. A
            shorter prompt is followed by more tokens, up to the end of its row.

    Raises:
        ValueError: an empty prompt, or more tokens than a learned position table holds.
    """
    P = prompt_BP.shape[1]
    if P < 1:
        raise ValueError("the prompt needs at least one token: BOS")
    limit = model.config.learned_positions
    if limit and P + length > limit:
        raise ValueError(f"prompt and sample ({P} + {length} tokens) exceed the learned positions ({limit})")
    graphdef, params = nnx.split(model)
    lengths_B = jnp.full(prompt_BP.shape[0], P, jnp.int32) if prompt_lengths_B is None else prompt_lengths_B
    return _generate(graphdef, params, prompt_BP, lengths_B, key, length, float(temperature), top_k)


@fixed_options()
def sample_text(model: Transformer, tokenizer: Tokenizer, *, tokens: int, seed: int) -> str:
    """Returns a text that the model writes from BOS on at temperature 0.8, up to its EOS or a number of tokens."""
    limit = model.config.learned_positions or math.inf
    prompt = jnp.full((1, 1), tokenizer.bos_id, jnp.int32)
    length = int(min(tokens, limit - 1))
    ids = generate(model, prompt, length=length, key=jax.random.key(seed), temperature=0.8)[0, 1:].tolist()
    ids = ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids
    return tokenizer.decode(ids)


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _generate(graphdef, params, prompt_BP, prompt_lengths_B, key, length, temperature, top_k):
    model = nnx.merge(graphdef, params)
    config = model.config
    B, P = prompt_BP.shape
    S = P + length
    tokens_BS = jnp.pad(prompt_BP.astype(jnp.int32), ((0, 0), (0, length)))
    cache_shape = (config.depth, B, S, config.G, config.K)
    caches = (jnp.zeros(cache_shape, model.compute_dtype), jnp.zeros(cache_shape, model.compute_dtype))

    def next_token(carry, index):
        tokens_BS, caches = carry
        logits_BV, caches = _decode(model, tokens_BS[:, index], index, caches)
        sampled_B = _sample(logits_BV, jax.random.fold_in(key, index), temperature, top_k)
        # Within the prompt the next token is given.
        next_B = jnp.where(index + 1 < prompt_lengths_B, tokens_BS[:, index + 1], sampled_B)
        return (tokens_BS.at[:, index + 1].set(next_B), caches), None

    (tokens_BS, _), _ = jax.lax.scan(next_token, (tokens_BS, caches), jnp.arange(S - 1))
    return tokens_BS


def _decode(model: Transformer, tokens_B, index, caches):
    """Returns the logits (B, V) after one more token at a position, and the caches with its keys and values."""
    B = tokens_B.shape[0]
    positions_B = jnp.full((B,), index, jnp.int32)
    x_BD = model.embed(tokens_B, positions_B)
    rotation = model.rotation(positions_B)
    graphdef, stacked = nnx.split(model.blocks)

    def layer(x_BD, inputs):
        params, k_BSGK, v_BSGK = inputs
        block = nnx.merge(graphdef, params)
        q_BHK, k_BGK, v_BGK = block.queries_keys_values(x_BD, rotation)
        k_BSGK = k_BSGK.at[:, index].set(k_BGK)
        v_BSGK = v_BSGK.at[:, index].set(v_BGK)
        attended_BHK = _attend_cached(q_BHK, k_BSGK, v_BSGK, index, model.config.sliding_window)
        return block.residuals(x_BD, attended_BHK), (k_BSGK, v_BSGK)

    x_BD, caches = jax.lax.scan(layer, x_BD, (stacked, *caches))
    return model.logits(model.final_norm(x_BD)), caches


def _attend_cached(q_BHK, k_BSGK, v_BSGK, index, window):
    """Returns the attention of one query per row over the cached positions up to its own, at most the last `window`."""
    B, H, K = q_BHK.shape
    S, G = k_BSGK.shape[1:3]
    q_BGRK = q_BHK.reshape(B, G, H // G, K)
    logits_BGRS = jnp.einsum("BGRK,BSGK->BGRS", q_BGRK, k_BSGK, preferred_element_type=jnp.float32) * K**-0.5
    positions_S = jnp.arange(S)
    is_visible_S = (positions_S <= index) & (positions_S > index - (window or S))
    weights_BGRS = jax.nn.softmax(jnp.where(is_visible_S[None, None, None, :], logits_BGRS, MASKED), axis=-1).astype(
        v_BSGK.dtype
    )
    return jnp.einsum("BGRS,BSGK->BGRK", weights_BGRS, v_BSGK).reshape(B, H, K)


def _sample(logits_BV, key, temperature, top_k):
    if temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    if top_k:
        kth_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, MASKED, logits_BV)
    return jax.random.categorical(key, logits_BV / temperature).astype(jnp.int32)
