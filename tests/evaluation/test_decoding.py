"""Decoding with a cache against the full forward pass."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from jaxformer.config import UserError
from jaxformer.evaluation import decoding as module
from jaxformer.evaluation.decoding import bucket, decode, next_token_logits
from jaxformer.evaluation.sampling import Sampling
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
# Of unequal length, of which the longest and 40 tokens fill the learned positions.
PROMPTS = [[5, 2, 30, 11, 8], [1], [7, 7, 20]]


@functools.cache
def make_model(option="rotary", window=0, token_count=None):
    # Untied and with large matrices: else a random model repeats its last token, whatever came before.
    options = OPTIONS[option] | {"sliding_window": window}
    config = ModelConfig(vocabulary_size=V, width=24, depth=2, heads=4, feed_forward_width=20, **options)
    graphdef, params = nnx.split(Transformer(config, rngs=nnx.Rngs(params=1), token_count=token_count))
    rng = np.random.default_rng(2)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x + 0.25 * rng.standard_normal(x.shape).astype("f4"), params))


def generate(model, prompts=PROMPTS, *, tokens=40, eos_id=-1, **options):
    """Returns the tokens that follow each prompt."""
    steps = decode(model, prompts, Sampling(tokens=tokens, **options), eos_id=eos_id)
    return np.stack(list(steps), axis=1).tolist()


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
    model, rng = make_model(option, window), np.random.default_rng(0)
    graphdef, params = nnx.split(model)
    prompt_BP, offsets_B = module._padded(PROMPTS)
    cache, first_B = module._prefill(graphdef, params, prompt_BP, offsets_B, Sampling(temperature=0).arrays(), 96)
    texts = [full_logits(model, prompt)[-1].argmax() for prompt in PROMPTS]
    assert first_B.tolist() == texts
    new_BN = rng.integers(0, V, (len(PROMPTS), 40))
    forward_last_token = jax.jit(lambda *inputs: module._forward_last_token(nnx.merge(graphdef, params), *inputs))
    for n in range(40):
        cache, features_BD = forward_last_token(cache, new_BN[:, n], np.int32(prompt_BP.shape[1] + n), offsets_B)
        for row, prompt in enumerate(PROMPTS) if n in (0, 1, 39) else ():
            text = [*prompt, *new_BN[row, : n + 1].tolist()]
            expected_TV = full_logits(model, text)
            np.testing.assert_allclose(model.logits(features_BD)[row], expected_TV[-1], atol=2e-5, rtol=1e-5)
            np.testing.assert_allclose(next_token_logits(model, text), expected_TV, atol=2e-5, rtol=1e-5)


def test_greedy_text_of_200_tokens_takes_the_likeliest_of_the_full_forward_pass():
    model = make_model("modern")
    for prompt, text in zip(PROMPTS, generate(model, tokens=200, temperature=0), strict=True):
        assert len(text) == 200 and len(set(text)) > 3, "a constant text would prove little"
        # By causality one pass over the whole text gives the logits of every step.
        likeliest = np.argmax(full_logits(model, [*prompt, *text]), axis=1)
        assert likeliest[len(prompt) - 1 : -1].tolist() == text


@pytest.mark.parametrize(("option", "window"), [("modern", 0), ("modern", 40), ("rotary", 11)])
def test_long_prompt_in_slices_has_the_features_and_the_cache_of_one_in_one_piece(monkeypatch, option, window):
    model, rng = make_model(option, window), np.random.default_rng(0)
    prompt_BP, offsets_B = module._padded([rng.integers(0, V, length).tolist() for length in (96, 3, 70)])
    is_prompt_BP = np.arange(96)[None] >= offsets_B[:, None]

    def forward():
        features_ND, kept = nnx.jit(lambda model: module._forward_prompt(model, prompt_BP, offsets_B))(model)
        return [np.asarray(features_ND)[is_prompt_BP.reshape(-1)]] + [
            np.asarray(x)[:, is_prompt_BP.reshape(-1)] for x in jax.tree.leaves(kept)
        ]

    whole = forward()
    monkeypatch.setattr(module, "_WHOLE_PROMPT", 64)
    monkeypatch.setattr(module, "_SLICE", 16)
    for ours, theirs in zip(forward(), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-5)


def test_memory_of_a_prompt_grows_with_its_length_and_not_with_its_square():
    graphdef, params = nnx.split(make_model("modern"))

    def memory(P):
        prompt_BP, offsets_B = jax.ShapeDtypeStruct((2, P), np.int32), jax.ShapeDtypeStruct((2,), np.int32)
        lowered = module._prefill.__wrapped__.lower(graphdef, params, prompt_BP, offsets_B, Sampling().arrays(), P)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    lengths = [8192, 32_768, 131_072]
    sizes = [memory(P) for P in lengths]
    assert sizes[1] < 5 * sizes[0] and sizes[2] < 5 * sizes[1] < 5e9, sizes
    assert all(bucket(length) % module._SLICE == 0 for length in range(module._WHOLE_PROMPT, 131_073, 512))


@pytest.mark.parametrize("tokens", [1, 5])
def test_no_step_is_computed_after_the_last_token(monkeypatch, tokens):
    steps, step = [], module._decode_step
    monkeypatch.setattr(module, "_decode_step", lambda *inputs: steps.append(1) or step(*inputs))
    assert len(generate(make_model(), tokens=tokens)[0]) == tokens
    assert len(steps) == tokens - 1


def compilations(caplog):
    return [record for record in caplog.records if "ompil" in record.getMessage()]


def test_other_options_seeds_and_prompts_compile_nothing(caplog):
    model = make_model()
    generate(model)
    compiled = [each.__wrapped__._cache_size() for each in (module._prefill, module._decode_step)]
    with jax.log_compiles():
        generate(model, temperature=0)
        generate(model, temperature=0.3, top_k=4, top_p=0.9, eos_id=3)
        generate(model, [[1] * 32, [2], [3] * 5], temperature=1.7, top_p=0.2, seed=1 << 31)
        generate(model, tokens=50)
        assert not compilations(caplog)
        generate(model, PROMPTS[:1])  # Another number of rows is another shape: the log would show it.
        assert compilations(caplog)
    after = [each.__wrapped__._cache_size() for each in (module._prefill, module._decode_step)]
    assert after == [count + 1 for count in compiled]


def test_lengths_that_are_compiled_are_few_and_hold_what_is_needed():
    buckets = [bucket(length) for length in range(1, 4097)]
    assert all(length <= each for length, each in enumerate(buckets, 1)) and buckets == sorted(buckets)
    assert max(each / length for length, each in enumerate(buckets, 1) if length > 32) < 1.5
    assert sorted(set(buckets)) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]


def test_texts_depend_on_seed_and_row_and_not_on_the_other_rows():
    first = generate(make_model(), [[5, 2]] * 3, temperature=2.0)
    assert len({tuple(text) for text in [*first, *generate(make_model(), [[5, 2]] * 3, temperature=2.0, seed=1)]}) == 6
    for prompts in ([[5, 2]], [[5, 2], [1, 2, 3, 4], [1]]):
        assert generate(make_model(), prompts, temperature=2.0)[0] == first[0]
    steps = decode(make_model(), [[5, 2]] * 2, Sampling(tokens=40, temperature=2.0), first_row=1)
    assert np.stack(list(steps), axis=1).tolist() == first[1:]


def test_ids_beyond_the_tokenizers_are_never_drawn():
    for options in ({"temperature": 0}, {"temperature": 1000.0}, {"temperature": 1000.0, "top_k": 5, "top_p": 0.99}):
        assert max(map(max, generate(make_model(), **options | {"top_k": 0}))) >= 5
        assert max(map(max, generate(make_model(token_count=5), **options))) < 5


def test_rows_end_with_the_last_eos():
    endless = generate(make_model(), temperature=1000.0, seed=3)
    eos_id = min(set.intersection(*map(set, endless)), key=lambda i: max(text.index(i) for text in endless))
    lengths = [text.index(eos_id) + 1 for text in endless]
    ended = generate(make_model(), temperature=1000.0, seed=3, eos_id=eos_id)
    assert ended == [text[: max(lengths)] for text in endless] and len(set(lengths)) == 3 and max(lengths) < 40


def test_text_ends_with_the_learned_positions():
    model = make_model("learned")
    assert [len(text) for text in generate(model, [[1] * 43, [1]], tokens=9)] == [2, 2]
    assert generate(model, tokens=1000) == generate(model, tokens=40)
    for ids in ([1] * 45, [1] * 46):
        with pytest.raises(UserError, match=f"a prompt of {len(ids)} tokens leaves no room in a text of at most 45"):
            decode(model, [[1], ids], Sampling())
    assert next_token_logits(model, [1] * 45).shape == (45, V)
    with pytest.raises(UserError, match="a text of 46 tokens is too long; it may have at most 45"):
        next_token_logits(model, [1] * 46)


def test_prompts_and_options_that_cannot_be_are_refused():
    for prompts in ([], [[1], []]):
        with pytest.raises(UserError, match="a prompt needs at least one token: BOS"):
            decode(make_model(), prompts, Sampling())
    with pytest.raises(UserError, match=r"top_k \(6\) must be at most the 5 tokens there are"):
        decode(make_model(token_count=5), PROMPTS, Sampling(top_k=6))
    with pytest.raises(UserError, match="a text of 131073 tokens is too long; it may have at most 131072"):
        next_token_logits(make_model(), [1] * (1 + (1 << 17)))
