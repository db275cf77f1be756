"""Texts that a model writes, token by token, with a key/value cache.

A prompt goes through the model in one pass, which leaves the keys and values of its tokens; each further token is drawn
from the logits after the last, and only its own keys and values are computed. The prompts of a batch end at the same
place of the cache, and what stands before a shorter one is a document of its own, which it never sees. Lengths of
prompts and caches go through a few buckets, and all options are arrays, so that another prompt or temperature takes the
compiled program of the one before.

Axes: B row, P place in the padded prompt, C place in the cache, and as in `model`.
"""

import functools
import numbers
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer.attention.reference import MASKED
from jaxformer.config import is_unicode, require
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.devices.options import fixed_options
from jaxformer.host.console import progress_bar
from jaxformer.model import Transformer

# Between these, logits divided by a temperature stay well within float32.
_COLDEST, _HOTTEST = 1e-3, 1e3

# The shortest prompt and cache that is compiled.
_SMALLEST_BUCKET = 32

# Of a prompt and its text; of a model of 500 million parameters the keys and values of so many take 21 GB in bfloat16.
_MOST_TOKENS = 1 << 17

# Tokens between two looks at the texts of a batch, which are a step of its bar.
_TOKENS_AT_ONCE = 16


def require_whole(**values: object) -> None:
    """Raises `UserError` unless each value, given by its name, is a whole number."""
    for name, value in values.items():
        require(isinstance(value, numbers.Integral), f"{name} ({value}) must be a whole number")


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; each limits what the one before leaves."""

    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Draws among the k likeliest tokens, and those as likely as the last of them; 0 among all."""
    top_p: float = 1.0
    """Draws among the fewest likeliest tokens whose probabilities sum to p or more, and those as likely as the last of
    them (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751); 1 among all.
    """

    def __post_init__(self):
        # NaN is refused by either comparison.
        require(
            self.temperature == 0 or _COLDEST <= self.temperature <= _HOTTEST,
            f"temperature ({self.temperature}) must be 0, for the likeliest token, or between {_COLDEST} and "
            f"{_HOTTEST:.0f}",
        )
        require_whole(top_k=self.top_k)
        require(self.top_k >= 0, f"top_k ({self.top_k}) must be at least 1, or 0 to draw among all tokens")
        require(0 < self.top_p <= 1, f"top_p ({self.top_p}) must be above 0 and at most 1")


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    key: jax.Array,
    sampling: Sampling = Sampling(),
    eos_id: int = -1,
    label: str | None = None,
) -> list[list[int]]:
    """Returns the ids that the model writes after each prompt, up to its EOS, which is left out.

    Args:
        prompts: ids, one or more each; a text of its own begins with BOS.
        tokens: the most to write after each.
        key: of the random draws; each row has its own, so that its draws do not depend on the other rows.
        eos_id: the id that ends a text; -1 for none.
        label: of a progress bar; None shows none.

    Raises:
        UserError: an empty prompt, no tokens, more of them than a learned position table or a cache holds, or a top_k
            beyond the vocabulary.
    """
    texts: list[list[int]] = [[] for _ in prompts]
    options = {"tokens": tokens, "key": key, "sampling": sampling, "eos_id": eos_id}
    with progress_bar(desc=label, unit=" tokens", total=tokens, disable=label is None) as bar:
        for new_BN in decode(model, prompts, **options, at_once=_TOKENS_AT_ONCE):
            bar.update(new_BN.shape[1])
            for text, new_N in zip(texts, new_BN.tolist(), strict=True):
                text += new_N
    return [text[: text.index(eos_id)] if eos_id in text else text for text in texts]


def stream_text(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    tokens: int,
    key: jax.Array,
    sampling: Sampling = Sampling(),
) -> Iterator[str]:
    """Yields what the model writes after the ids of a prompt as it is written, in whole characters, up to EOS.

    Raises:
        UserError: as of `generate`.
    """
    written = decode(
        model,
        [prompt],
        tokens=tokens,
        key=key,
        sampling=sampling,
        eos_id=tokenizer.eos_id,
        at_once=1,
    )
    return whole_characters(tokenizer, prompt, (int(new_BN[0, 0]) for new_BN in written))


@fixed_options()
def sample_text(model: Transformer, tokenizer: Tokenizer, *, tokens: int, seed: int) -> str:
    """Returns a text of its own that the model writes with the defaults of `Sampling`, up to EOS or so many tokens."""
    limit = model.config.learned_positions
    (ids,) = generate(
        model,
        [[tokenizer.bos_id]],
        tokens=min(tokens, limit - 1) if limit else tokens,
        key=jax.random.key(seed),
        eos_id=tokenizer.eos_id,
    )
    return tokenizer.decode(ids)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Returns the ids of a prompt, which begins a document: those of its text behind BOS.

    Raises:
        UserError: it holds a lone surrogate, as which Python reads a byte that is not UTF-8.
    """
    require(is_unicode(prompt), "the prompt is not UTF-8")
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]


def whole_characters(tokenizer: Tokenizer, before: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
    """Yields the text of ids, up to EOS, in pieces: a character whose bytes are spread over several ids is one.

    Args:
        before: ids of the prompt, whose text is not yielded.
    """
    shown, waiting = list(before), []
    for i in ids:
        if i == tokenizer.eos_id:
            break
        waiting.append(i)
        text = text_after(tokenizer, shown, waiting)
        if text and not text.endswith("\ufffd"):
            yield text
            shown, waiting = waiting, []
    if waiting and (text := text_after(tokenizer, shown, waiting)):
        yield text


def text_after(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    """Returns what ids add to the text of those before, which may decide about a space between the two."""
    last = list(before[-1:])
    return tokenizer.decode([*last, *ids])[len(tokenizer.decode(last)) :]


@fixed_options()
def next_token_logits(model: Transformer, ids: Sequence[int]) -> np.ndarray:
    """Returns the logits of the token after each of some ids, float32 (T, V), of the ids that stand for a token.

    Raises:
        UserError: no ids, or more than a learned position table holds.
    """
    limit = model.config.learned_positions
    require(len(ids) > 0, "a prompt needs at least one token: BOS")
    require(not limit or len(ids) <= limit, f"a text of {len(ids)} tokens exceeds the {limit} positions of the model")
    prompt_BP, offsets_B = _padded([ids])
    logits_NV = _prompt_logits(*nnx.split(model), prompt_BP, offsets_B)
    return np.asarray(logits_NV)[offsets_B[0] :, : model.token_count]


@functools.partial(jax.jit, static_argnums=0)
def _prompt_logits(graphdef, params, prompt_BP, offsets_B) -> jax.Array:
    model = nnx.merge(graphdef, params)
    return model.logits(_read(model, prompt_BP, offsets_B)[0])


def decode(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    key: jax.Array,
    sampling: Sampling,
    eos_id: int,
    at_once: int,
) -> Iterator[np.ndarray]:
    """Yields what is written after all prompts, int32 (B, N), `at_once` tokens at a time, until each has had its EOS.

    What follows the EOS of a row, while others go on, means nothing. Arguments are those of `generate`.
    """
    count, limit = model.token_count, model.config.learned_positions
    longest = max(map(len, prompts), default=0)
    require(bool(prompts) and min(map(len, prompts)) > 0, "a prompt needs at least one token: BOS")
    require_whole(tokens=tokens)
    require(tokens > 0, f"tokens ({tokens}) must be at least 1")
    require(
        longest + tokens <= _MOST_TOKENS,
        f"a prompt of {longest} tokens and tokens ({tokens}) must be at most {_MOST_TOKENS} together",
    )
    require(
        not limit or longest + tokens <= limit,
        f"a prompt of {longest} tokens and tokens ({tokens}) exceed the {limit} positions that the model has learned",
    )
    require(sampling.top_k <= count, f"top_k ({sampling.top_k}) must be at most the {count} tokens there are")
    prompt_BP, offsets_B = _padded(prompts)
    graphdef, params = nnx.split(model)
    draw = _Draw(
        key,
        np.float32(sampling.temperature),
        np.int32(sampling.top_k),
        np.float32(sampling.top_p),
        np.int32(eos_id),
    )
    return _decode(graphdef, params, prompt_BP, offsets_B, draw, tokens, at_once)


def _decode(graphdef, params, prompt_BP, offsets_B, draw: "_Draw", tokens: int, at_once: int):
    P = prompt_BP.shape[1]
    state, written = _begin(graphdef, params, prompt_BP, offsets_B, bucket(P + tokens))
    begin = 0
    while begin < tokens and not np.asarray(written.is_done_B).all():
        end = min(begin + at_once, tokens)
        state, written = _advance(graphdef, params, state, written, offsets_B, draw, np.int32(P), np.int32(end))
        yield np.asarray(written.tokens_BC)[:, begin:end]
        begin = end


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts as rows of one length, `prompt_BP`, that end together, and where they begin, `offsets_B`."""
    P = bucket(max(map(len, prompts)))
    prompt_BP = np.zeros((len(prompts), P), np.int32)
    offsets_B = np.array([P - len(prompt) for prompt in prompts], np.int32)
    for row, prompt in enumerate(prompts):
        prompt_BP[row, offsets_B[row] :] = prompt
    return prompt_BP, offsets_B


def bucket(length: int) -> int:
    """Returns the least length that is compiled and holds `length`: 2^n or 3 x 2^n."""
    power = max(_SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    return power * 3 // 4 if length <= power * 3 // 4 and power > _SMALLEST_BUCKET else power


class _Draw(NamedTuple):
    """How tokens are drawn, and which ends a text: arrays, so that other values compile nothing."""

    key: jax.Array
    temperature: jax.Array | np.float32
    top_k: jax.Array | np.int32
    top_p: jax.Array | np.float32
    eos_id: jax.Array | np.int32


class _State(NamedTuple):
    """What the next token depends on."""

    features_BD: jax.Array
    """After the last token, normed."""
    keys_LBGCK: jax.Array
    values_LBGCK: jax.Array


class _Written(NamedTuple):
    """What was written after the prompts."""

    count: jax.Array
    """int32, tokens of each row."""
    tokens_BC: jax.Array
    is_done_B: jax.Array
    """Whether a row has had its EOS."""


@fixed_options()
@functools.partial(jax.jit, static_argnums=(0, 4))
def _begin(graphdef, params, prompt_BP, offsets_B, C: int) -> tuple[_State, _Written]:
    """Returns the state after the prompts, whose rows begin at `offsets_B`, with room for C tokens in its cache."""
    model = nnx.merge(graphdef, params)
    B, P = prompt_BP.shape
    features_ND, kept = _read(model, prompt_BP, offsets_B)

    def cached(kept_LNGK):
        kept_LBGPK = jnp.swapaxes(kept_LNGK.reshape(-1, B, P, *kept_LNGK.shape[2:]), 2, 3)
        return jnp.pad(kept_LBGPK, ((0, 0), (0, 0), (0, 0), (0, C - P), (0, 0)))

    keys_LBGCK, values_LBGCK = map(cached, kept)
    state = _State(features_ND.reshape(B, P, -1)[:, -1], keys_LBGCK, values_LBGCK)
    return state, _Written(jnp.int32(0), jnp.zeros((B, C), jnp.int32), jnp.zeros(B, bool))


def _read(model: Transformer, prompt_BP, offsets_B) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Returns the features after each token of the prompts, and the keys and values of each layer, `kept_LNGK`."""
    # What was chosen for the rows of training was measured on those alone, and may need their length.
    model.attention = "xla"
    P = prompt_BP.shape[1]
    places_BP, offsets_B1 = jnp.arange(P)[None, :], offsets_B[:, None]
    is_prompt_BP = places_BP >= offsets_B1
    starts_BP, ends_BP = jnp.where(is_prompt_BP, offsets_B1, 0), jnp.where(is_prompt_BP, P, offsets_B1)
    attend_documents = model.attend_documents(starts_BP, ends_BP)
    positions_N = jnp.maximum(places_BP - offsets_B1, 0).reshape(-1)

    def attention(q, k, v, _):
        return attend_documents(q, k, v, None)[0], (k, v)

    return model.apply_blocks(model.embed(prompt_BP.reshape(-1), positions_N), positions_N, attention)


@fixed_options()
@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(
    graphdef, params, state: _State, written: _Written, offsets_B, draw: _Draw, P, until
) -> tuple[_State, _Written]:
    """Returns the state once all rows have `until` tokens behind their prompts of P, or all have had their EOS."""
    model = nnx.merge(graphdef, params)
    rows_B = jnp.arange(offsets_B.shape[0])

    def next_token(carry):
        state, written = carry
        keys_B = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(draw.key, row), written.count))(rows_B)
        tokens_B = _sample(model.logits(state.features_BD), keys_B, draw)
        state = _extend(model, state, tokens_B, P + written.count, offsets_B)
        written = _Written(
            written.count + 1,
            written.tokens_BC.at[:, written.count].set(tokens_B),
            written.is_done_B | (tokens_B == draw.eos_id),
        )
        return state, written

    def goes_on(carry):
        return (carry[1].count < until) & ~jnp.all(carry[1].is_done_B)

    return jax.lax.while_loop(goes_on, next_token, (state, written))


def _extend(model: Transformer, state: _State, tokens_B, place, offsets_B) -> _State:
    """Returns the state after one more token of each row, whose keys and values go to a place of the cache."""
    C = state.keys_LBGCK.shape[3]
    places_1C = jnp.arange(C)[None, :]
    first_B1 = jnp.maximum(offsets_B[:, None], place + 1 - (model.config.sliding_window or C))
    is_visible_BC = (places_1C >= first_B1) & (places_1C < place)
    positions_B = place - offsets_B

    def attention(q_BHK, k_BGK, v_BGK, cached):
        k_BGCK, v_BGCK = cached
        return _attend_cached(q_BHK, k_BGK, v_BGK, k_BGCK, v_BGCK, is_visible_BC), (k_BGK, v_BGK)

    x_BD = model.embed(tokens_B, positions_B)
    caches = (state.keys_LBGCK, state.values_LBGCK)
    features_BD, (k_LBGK, v_LBGK) = model.apply_blocks(x_BD, positions_B, attention, caches)

    def put(cache_LBGCK, new_LBGK):
        return jax.lax.dynamic_update_slice(cache_LBGCK, new_LBGK[:, :, :, None], (0, 0, 0, place, 0))

    return _State(features_BD, put(state.keys_LBGCK, k_LBGK), put(state.values_LBGCK, v_LBGK))


def _attend_cached(q_BHK, k_BGK, v_BGK, k_BGCK, v_BGCK, is_visible_BC):
    """Returns the attention of one query of each row over its own token and what is visible of the cache."""
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


def _sample(logits_BV, keys_B, draw: _Draw) -> jax.Array:
    """Returns a token of each row, int32; what an option does not need is not computed."""

    def draw_tokens():
        scaled_BV = logits_BV / draw.temperature
        is_truncated = (draw.top_k > 0) | (draw.top_p < 1)
        scaled_BV = jax.lax.cond(is_truncated, lambda: _truncate(scaled_BV, draw), lambda: scaled_BV)
        return jax.vmap(jax.random.categorical)(keys_B, scaled_BV)

    tokens_B = jax.lax.cond(draw.temperature > 0, draw_tokens, lambda: jnp.argmax(logits_BV, axis=1))
    return tokens_B.astype(jnp.int32)


def _truncate(logits_BV, draw: _Draw) -> jax.Array:
    """Returns the logits with those masked that neither top_k nor, of what it leaves, top_p leaves."""
    V = logits_BV.shape[1]
    is_kept_BV = _likeliest(logits_BV, jnp.ones_like(logits_BV), jnp.where(draw.top_k > 0, draw.top_k, V))
    logits_BV = jnp.where(is_kept_BV, logits_BV, MASKED)
    # Without a bound that no sum of probabilities reaches, rounding could leave something out at 1.
    most = jnp.where(draw.top_p < 1, draw.top_p, jnp.inf)
    return jnp.where(_likeliest(logits_BV, jax.nn.softmax(logits_BV, axis=1), most), logits_BV, MASKED)


def _likeliest(logits_BV, weights_BV, total) -> jax.Array:
    """Returns which are the fewest largest logits of each row whose weights sum to `total` or more; all where none do.

    The smallest logit that is kept is found bit by bit, from the highest: 32 sums, where a sort of 32,768 logits takes
    a CPU longer than a token of a model of 27 million parameters.
    """
    bits_BV = jax.lax.bitcast_convert_type(logits_BV, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # In the order of the numbers that they stand for: of negative ones a larger pattern is a smaller number.
    ordered_BV = jnp.where(bits_BV >= sign, ~bits_BV, bits_BV | sign)

    def try_bit(i, least_B1):
        larger_B1 = least_B1 | (sign >> i.astype(jnp.uint32))
        sum_B1 = jnp.sum(jnp.where(ordered_BV >= larger_B1, weights_BV, 0), axis=1, keepdims=True)
        return jnp.where(sum_B1 >= total, larger_B1, least_B1)

    return ordered_BV >= jax.lax.fori_loop(0, 32, try_bit, jnp.zeros_like(ordered_BV[:, :1]))
