"""Generation with a cache against the full forward pass."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from jaxformer.evaluation.generate import generate
from jaxformer.model import ModelConfig, Transformer

pytestmark = pytest.mark.device_free

B, P, LENGTH, V = 2, 3, 9, 37
OPTIONS = {
    "rotary": {"tied_embeddings": False},
    "learned": {"tied_embeddings": False, "learned_positions": P + LENGTH},
    "modern": {
        "tied_embeddings": False,
        "key_value_heads": 2,
        "qk_norm": True,
        "activation": "swiglu",
        "logit_soft_cap": 5.0,
        "norm": "layernorm",
    },
}
PROMPT = np.array([[5, 2, 30], [1, 7, 7]])


@functools.cache
def make_model(option, window=0):
    # Untied and with large matrices: else a random model repeats its last token, whatever came before.
    options = OPTIONS[option] | {"sliding_window": window}
    config = ModelConfig(vocabulary_size=V, width=24, depth=2, heads=4, feed_forward_width=20, **options)
    graphdef, params = nnx.split(Transformer(config, rngs=nnx.Rngs(params=1)))
    rng = np.random.default_rng(0)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x + 0.25 * rng.standard_normal(x.shape).astype("f4"), params))


def sample(option="rotary", *, window=0, key=0, **options):
    return np.asarray(generate(make_model(option, window), PROMPT, length=LENGTH, key=jax.random.key(key), **options))


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("option", OPTIONS)
def test_greedy_generation_takes_the_likeliest_token_of_the_full_forward_pass(option, window):
    tokens = sample(option, window=window, temperature=0)
    np.testing.assert_array_equal(tokens[:, :P], PROMPT)
    assert len(set(tokens[:, P:].ravel().tolist())) > 3, "a constant text would prove little"
    # By causality one pass over the whole text gives the logits of every step.
    positions = np.tile(np.arange(P + LENGTH), (B, 1))
    model = make_model(option, window)
    logits = nnx.jit(lambda model, *batch: model(*batch))(model, tokens, np.ones_like(tokens), positions)
    np.testing.assert_array_equal(np.argmax(logits, axis=2)[:, P - 1 : -1], tokens[:, P:])


def test_window_as_long_as_the_text_generates_what_no_window_does_and_a_short_one_something_else():
    unlimited = sample(temperature=0)
    np.testing.assert_array_equal(sample(window=P + LENGTH, temperature=0), unlimited)
    assert np.any(sample(window=2, temperature=0) != unlimited)


def test_top_1_is_greedy_at_any_temperature():
    np.testing.assert_array_equal(sample(top_k=1, temperature=5.0), sample(temperature=0))


def test_draws_repeat_with_the_key_and_differ_by_key_and_by_row():
    first = sample(temperature=2.0)
    np.testing.assert_array_equal(first[:, :P], PROMPT)
    np.testing.assert_array_equal(first, sample(temperature=2.0))
    assert np.any(first != sample(temperature=2.0, key=1))
    assert np.any(first[0, P:] != first[1, P:])
    assert first.min() >= 0 and first.max() < V


def test_draws_of_different_steps_are_independent():
    graphdef, params = nnx.split(make_model("rotary"))
    uniform = nnx.merge(graphdef, jax.tree.map(np.zeros_like, params))
    tokens = np.asarray(generate(uniform, PROMPT, length=LENGTH, key=jax.random.key(0), temperature=2.0))
    # Of 9 draws among 37 equally likely tokens 8 are distinct on average.
    assert min(len(set(row[P:])) for row in tokens.tolist()) > 4


def test_top_k_draws_among_the_k_likeliest_only():
    tokens = sample(top_k=3, temperature=5.0)
    positions = np.tile(np.arange(P + LENGTH), (B, 1))
    logits = np.asarray(make_model("rotary")(tokens, np.ones_like(tokens), positions))
    drawn = np.take_along_axis(logits[:, P - 1 : -1], tokens[:, P:, None], axis=2)
    ranks = (logits[:, P - 1 : -1] > drawn).sum(axis=2)
    assert set(ranks.ravel().tolist()) == {0, 1, 2}


def test_text_longer_than_the_learned_positions_is_refused():
    with pytest.raises(ValueError, match=r"\(3 \+ 10 tokens\) exceed the learned positions \(12\)"):
        generate(make_model("learned"), PROMPT, length=LENGTH + 1, key=jax.random.key(0))


def test_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        generate(make_model("rotary"), PROMPT[:, :0], length=LENGTH, key=jax.random.key(0))
