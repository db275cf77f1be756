"""Generation with a cache against the full forward pass, and draws against the softmax."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.config import UserError
from jaxformer.evaluation import generate as module
from jaxformer.evaluation.generate import (
    Sampling,
    bucket,
    decode,
    generate,
    next_token_logits,
    sample_text,
    text_after,
    whole_characters,
)
from jaxformer.model import ModelConfig, Transformer

pytestmark = pytest.mark.device_free

V = 37
OPTIONS = {
    "rotary": {"tied_embeddings": False},
    "learned": {"tied_embeddings": False, "learned_positions": 45},
    "modern": {
        "tied_embeddings": False,
        "key_value_heads": 2,
        "qk_norm": True,
        "activation": "swiglu",
        "logit_soft_cap": 5.0,
        "norm": "layernorm",
    },
}
# Of unequal length, of which the longest and a text fill the learned positions.
PROMPTS = [[5, 2, 30, 11, 8], [1], [7, 7, 20]]
LENGTH = 40
GREEDY = Sampling(temperature=0)
KEY = jax.random.key(0)


@functools.cache
def make_model(option="rotary", window=0, vocabulary_size=V, token_count=None):
    # Untied and with large matrices: else a random model repeats its last token, whatever came before.
    options = OPTIONS[option] | {"sliding_window": window}
    config = ModelConfig(vocabulary_size=vocabulary_size, width=24, depth=2, heads=4, feed_forward_width=20, **options)
    graphdef, params = nnx.split(Transformer(config, rngs=nnx.Rngs(params=1), token_count=token_count))
    rng = np.random.default_rng(0)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x + 0.25 * rng.standard_normal(x.shape).astype("f4"), params))


def uniform_model(token_count=None):
    graphdef, params = nnx.split(make_model(token_count=token_count))
    return nnx.merge(graphdef, jax.tree.map(np.zeros_like, params))


def full_logits(model, ids):
    """Returns the logits after each id by the forward pass of training, (T, V); its lengths are few, to compile few."""
    tokens = np.zeros((1, 45 if len(ids) <= 45 else 256), np.int32)
    tokens[0, : len(ids)] = ids
    return np.asarray(forward(*nnx.split(model), tokens))[0, : len(ids)]


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, tokens_BT):
    positions_BT = np.arange(tokens_BT.shape[1])[None]
    return nnx.merge(graphdef, params)(tokens_BT, np.ones_like(positions_BT), positions_BT)


@pytest.mark.parametrize(("option", "window"), [("rotary", 4), ("learned", 0), ("modern", 4)])
def test_logits_from_the_cache_are_those_of_the_full_forward_pass(option, window):
    model = make_model(option, window)
    graphdef, params = nnx.split(model)
    prompt_BP, offsets_B = module._padded(PROMPTS)
    state, written = module._begin(graphdef, params, prompt_BP, offsets_B, 96)
    draw = module._Draw(KEY, np.float32(0), np.int32(0), np.float32(1), np.int32(-1))
    for length in (0, 1, LENGTH):
        if length:
            until, P = np.int32(length), np.int32(prompt_BP.shape[1])
            state, written = module._advance(graphdef, params, state, written, offsets_B, draw, P, until)
        logits_BV = model.logits(state.features_BD)
        for row, prompt in enumerate(PROMPTS):
            text = [*prompt, *np.asarray(written.tokens_BC)[row, :length].tolist()]
            expected_TV = full_logits(model, text)
            np.testing.assert_allclose(logits_BV[row], expected_TV[-1], atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(next_token_logits(model, text), expected_TV, atol=2e-5, rtol=1e-5)


def test_greedy_text_of_200_tokens_takes_the_likeliest_of_the_full_forward_pass():
    model = make_model("modern")
    texts = generate(model, PROMPTS, tokens=200, key=KEY, sampling=GREEDY)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert len(text) == 200 and len(set(text)) > 3, "a constant text would prove little"
        # By causality one pass over the whole text gives the logits of every step.
        likeliest = np.argmax(full_logits(model, [*prompt, *text]), axis=1)
        assert likeliest[len(prompt) - 1 : -1].tolist() == text


SAMPLINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.5),
    Sampling(temperature=2.0, top_k=5),
    Sampling(temperature=1.0, top_p=0.7),
    Sampling(temperature=2.0, top_k=9, top_p=0.6),
    Sampling(temperature=1.0, top_k=V, top_p=0.999),
]


def truncated_softmax(logits_V, sampling):
    """Returns the probabilities by sorting, in float64."""
    logits_V = np.float64(logits_V) / sampling.temperature
    order = np.argsort(-logits_V)
    weights = np.exp(logits_V[order] - logits_V.max())
    weights[sampling.top_k or V :] = 0
    weights /= weights.sum()
    before = np.cumsum(weights) - weights
    weights[before >= sampling.top_p] = 0
    probabilities_V = np.zeros(V)
    probabilities_V[order] = weights / weights.sum()
    return probabilities_V


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_frequencies_are_those_of_the_truncated_softmax(sampling):
    model, prompt, draws = make_model(), PROMPTS[0], 4000
    probabilities_V = truncated_softmax(full_logits(model, prompt)[-1], sampling)
    texts = generate(model, [prompt] * draws, tokens=1, key=jax.random.key(7), sampling=sampling)
    counts_V = np.bincount([text[0] for text in texts], minlength=V)
    assert not counts_V[probabilities_V == 0].any()
    # Ids of fewer than 5 expected draws are one class.
    order = np.argsort(probabilities_V)
    observed, expected = counts_V[order], draws * probabilities_V[order]
    rare = int(np.searchsorted(np.cumsum(expected), 5, side="right")) if expected.min() < 5 else 0
    groups = [0, *range(rare + 1, V)] if rare else range(V)
    observed, expected = np.add.reduceat(observed, groups), np.add.reduceat(expected, groups)
    observed, expected = observed[expected > 0], expected[expected > 0]
    assert len(expected) > 2
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.01


def compilations(caplog):
    return [record for record in caplog.records if "ompil" in record.getMessage()]


def test_other_options_seeds_and_prompts_compile_nothing(caplog):
    def write(prompts, *, tokens=LENGTH, key=KEY, eos_id=3, **options):
        return generate(make_model(), prompts, tokens=tokens, key=key, eos_id=eos_id, sampling=Sampling(**options))

    write(PROMPTS)
    keys = [jax.random.key(seed) for seed in range(2)]
    compiled = [each.__wrapped__._cache_size() for each in (module._begin, module._advance)]
    with jax.log_compiles():
        write(PROMPTS, temperature=0.0)
        write(PROMPTS, temperature=0.3, top_k=4, top_p=0.9)
        write([[1] * 32, [2], [3] * 5], temperature=1.7, top_p=0.2, key=keys[1], eos_id=-1)
        write(PROMPTS, tokens=50)
        assert not compilations(caplog)
        write(PROMPTS[:1])  # Another number of rows is another shape: the log would show it.
        assert compilations(caplog)
    after = [each.__wrapped__._cache_size() for each in (module._begin, module._advance)]
    assert after == [count + 1 for count in compiled]


def test_lengths_that_are_compiled_are_few_and_hold_what_is_asked():
    buckets = [bucket(length) for length in range(1, 4097)]
    assert all(length <= each for length, each in enumerate(buckets, 1)) and buckets == sorted(buckets)
    assert max(each / length for length, each in enumerate(buckets, 1) if length > 32) < 1.5
    assert sorted(set(buckets)) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]


def test_draws_repeat_with_the_key_and_differ_by_key_and_by_row_and_not_by_the_other_rows():
    def write(prompts, seed=0, **options):
        return generate(
            make_model(), prompts, tokens=LENGTH, key=jax.random.key(seed), sampling=Sampling(2.0), **options
        )

    first = write([[5, 2]] * 3)
    assert first == write([[5, 2]] * 3)
    assert len({tuple(text) for text in [*first, *write([[5, 2]] * 3, seed=1)]}) == 6
    assert write([[5, 2]]) == first[:1] == write([[5, 2], [1, 2, 3, 4], [1]])[:1]


def test_draws_of_different_steps_are_independent():
    (text,) = generate(uniform_model(), [[1]], tokens=400, key=KEY, sampling=Sampling(2.0))
    pairs = np.zeros((V, V))
    np.add.at(pairs, tuple(np.array(list(itertools.pairwise(text))).T), 1)
    assert scipy.stats.chisquare(pairs.sum(axis=0)).pvalue > 0.01
    assert pairs.max() < 5, "a pair of tokens comes 0.3 times on average"


def test_ids_beyond_the_tokenizers_are_never_drawn():
    options = {"tokens": LENGTH, "key": KEY}
    for sampling in (Sampling(1000.0), Sampling(1000.0, top_k=5, top_p=0.99)):
        texts = generate(uniform_model(5), PROMPTS, sampling=sampling, **options)
        assert {i for text in texts for i in text} == set(range(5))
    assert max(map(max, generate(make_model(), PROMPTS, sampling=GREEDY, **options))) >= 5
    assert max(map(max, generate(make_model(token_count=5), PROMPTS, sampling=GREEDY, **options))) < 5


def test_text_ends_before_its_eos_and_all_end_with_the_last():
    options = {"tokens": LENGTH, "key": jax.random.key(3), "sampling": Sampling(2.0)}
    endless = generate(uniform_model(), PROMPTS, **options)
    eos_id = min(set.intersection(*map(set, endless)), key=lambda i: max(text.index(i) for text in endless))
    ended = generate(uniform_model(), PROMPTS, **options, eos_id=eos_id)
    assert ended == [text[: text.index(eos_id)] for text in endless] and len({*map(len, ended)}) == 3
    written = decode(uniform_model(), PROMPTS, **options, eos_id=eos_id, at_once=1)
    assert len(list(written)) == max(map(len, ended)) + 1 < LENGTH


@given(st.text())
def test_streamed_text_is_the_text_and_no_character_comes_in_parts(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = list(whole_characters(tokenizer, [tokenizer.bos_id], [*ids, tokenizer.eos_id, *ids]))
    assert "".join(pieces) == text and all(pieces)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_character_comes_with_its_last_byte_and_one_that_is_cut_off_at_the_end(tokenizer):
    ids = tokenizer.encode("a\U0001f9ea")
    assert len(ids) == 5
    assert list(whole_characters(tokenizer, [tokenizer.bos_id], ids)) == ["a", "\U0001f9ea"]
    cut = "".join(whole_characters(tokenizer, [tokenizer.bos_id], ids[:-1]))
    assert cut == tokenizer.decode(ids[:-1]) == text_after(tokenizer, [tokenizer.bos_id], ids[:-1]) != "a"
    assert len(list(itertools.islice(whole_characters(tokenizer, [], itertools.chain(ids, itertools.repeat(5))), 2)))


def test_sample_is_of_the_tokenizers_ids_and_repeats_with_the_seed(tokenizer):
    model = make_model("learned", vocabulary_size=512, token_count=tokenizer.vocabulary_size)
    texts = [sample_text(model, tokenizer, tokens=1000, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    options = {"tokens": 44, "key": KEY, "eos_id": tokenizer.eos_id}
    (ids,) = generate(model, [[tokenizer.bos_id]], **options)
    assert tokenizer.decode(ids) == texts[0] and len(ids) <= 44, "it ends where the learned positions do"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature \(-1\.0\) must be 0, for the likeliest token, or between 0.001 and 1000"),
        ({"temperature": math.nan}, r"temperature \(nan\) must be 0"),
        ({"temperature": math.inf}, r"temperature \(inf\) must be 0"),
        ({"temperature": 1e-38}, r"temperature \(1e-38\) must be 0"),
        ({"top_k": -1}, r"top_k \(-1\) must be at least 1, or 0 to draw among all tokens"),
        ({"top_k": V + 1}, r"top_k \(38\) must be at most the 37 tokens there are"),
        ({"top_p": 0.0}, r"top_p \(0\.0\) must be above 0 and at most 1"),
        ({"top_p": 1.01}, r"top_p \(1\.01\) must be above 0 and at most 1"),
        ({"top_p": math.nan}, r"top_p \(nan\) must be above 0 and at most 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        generate(make_model(), PROMPTS, tokens=1, key=KEY, sampling=Sampling(**options))


@pytest.mark.parametrize(
    ("prompts", "tokens", "message"),
    [
        ([[1], []], 1, "needs at least one token: BOS"),
        ([], 1, "needs at least one token: BOS"),
        ([[1]], 0, r"tokens \(0\) must be at least 1"),
        ([[1] * 6, [1]], (1 << 17) - 5, r"a prompt of 6 tokens and tokens \(131067\) must be at most 131072 together"),
        ([[1] * 6, [1]], LENGTH, r"a prompt of 6 tokens and tokens \(40\) exceed the 45 positions"),
    ],
)
def test_prompts_and_lengths_that_cannot_be_are_refused(prompts, tokens, message):
    with pytest.raises(UserError, match=message):
        generate(make_model("learned"), prompts, tokens=tokens, key=KEY)
