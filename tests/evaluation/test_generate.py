"""Texts in whole characters, up to their EOS."""

import functools
import itertools

import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given
from hypothesis import strategies as st

from jaxformer.config import UserError
from jaxformer.data.tokenizer import load_tokenizer
from jaxformer.evaluation import generate as module
from jaxformer.evaluation.decoding import decode
from jaxformer.evaluation.generate import decode_text, encode_text, generate_texts, sample_text, stream_text
from jaxformer.evaluation.sampling import Sampling
from jaxformer.model import ModelConfig, Transformer

pytestmark = pytest.mark.device_free


@pytest.fixture(scope="module")
def model(tokenizer):
    config = ModelConfig(vocabulary_size=512, width=24, depth=2, heads=4, learned_positions=45)
    return Transformer(config, rngs=nnx.Rngs(params=1), token_count=tokenizer.vocabulary_size)


@given(st.text())
def test_streamed_text_is_the_text_and_no_character_comes_in_parts(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = list(decode_text(tokenizer, [tokenizer.bos_id], [*ids, tokenizer.eos_id, *ids]))
    assert "".join(pieces) == text and all(pieces)
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@pytest.fixture(scope="module")
def json_tokenizer_of(make_texts, tmp_path_factory):
    """A function from the name of a shape to a `tokenizer.json` of it."""
    pytest.importorskip("tokenizers")
    shapes, texts = pytest.importorskip("json_tokenizers"), make_texts(200)

    @functools.cache
    def load(shape):
        return load_tokenizer(shapes.save(shapes.SHAPES[shape](texts), tmp_path_factory.mktemp(shape)))

    return load


@pytest.mark.parametrize("shape", ["gpt2", "qwen", "llama3", "llama2", "bert", "t5"])
@given(st.text(min_size=1), st.text())
@example("\u65e5", "\u672c\u8a9e")
@example("\ufffd\ufffd", "\u65e5\u65e5 a")
def test_text_streamed_after_a_prompt_is_what_it_adds_to_the_text_of_all_ids(json_tokenizer_of, shape, before, text):
    tokenizer = json_tokenizer_of(shape)
    prompt, ids = encode_text(tokenizer, before), tokenizer.encode(text)
    pieces = list(decode_text(tokenizer, prompt, ids))
    whole = tokenizer.decode([*prompt, *ids])
    assert tokenizer.decode(prompt) + "".join(pieces) == whole
    assert "\ufffd" in whole or not any("\ufffd" in piece for piece in pieces)


def test_character_comes_with_its_last_byte_and_one_that_is_cut_off_at_the_end(tokenizer):
    ids = tokenizer.encode("a\U0001f9ea")
    assert len(ids) == 5
    assert list(decode_text(tokenizer, [tokenizer.bos_id], ids)) == ["a", "\U0001f9ea"]
    assert "".join(decode_text(tokenizer, [tokenizer.bos_id], ids[:-1])) == tokenizer.decode(ids[:-1]) != "a"
    assert len(list(itertools.islice(decode_text(tokenizer, [], itertools.chain(ids, itertools.repeat(5))), 2)))


def test_texts_are_those_of_the_tokens_and_the_same_streamed_and_in_a_batch(model, tokenizer):
    prompts = [encode_text(tokenizer, text) for text in ("ba du", "", "ka")]
    sampling = Sampling(tokens=30, temperature=3.0, seed=2)
    rows = np.stack(list(decode(model, prompts, sampling)), axis=1).tolist()
    texts = generate_texts(model, tokenizer, prompts, sampling)
    for prompt, ids, text in zip(prompts, rows, texts, strict=True):
        assert tokenizer.decode([*prompt, *itertools.takewhile(tokenizer.eos_id.__ne__, ids)]) == (
            tokenizer.decode(prompt) + text
        )
    assert "".join(stream_text(model, tokenizer, prompts[0], sampling)) == texts[0]


def test_texts_are_cut_before_their_stop_sequences_and_no_more_is_generated_once_each_is(model, tokenizer, monkeypatch):
    drawn = []

    def counted(*inputs, **options):
        for tokens_B in decode(*inputs, **options):
            drawn.append(tokens_B)
            yield tokens_B

    monkeypatch.setattr(module, "decode", counted)
    prompts, sampling = [encode_text(tokenizer, "ba du")] * 3, Sampling(tokens=36, temperature=3.0, seed=2)
    whole = generate_texts(model, tokenizer, prompts, sampling)
    assert len(drawn) == 36
    stops = [["nowhere", whole[0][4:6]], ["", whole[1][2]]]
    for wanted, count in ((stops, 16), ([*stops[:1], []], 36)):
        drawn.clear()
        cut = [
            text[: min((text.index(s) for s in some if s and s in text), default=99_999)]
            for text, some in zip(whole, wanted, strict=False)
        ]
        assert generate_texts(model, tokenizer, prompts, sampling, stops=wanted) == cut
        assert len(drawn) == count


def test_sample_repeats_with_the_seed_and_ends_where_the_learned_positions_do(model, tokenizer):
    texts = [sample_text(model, tokenizer, tokens=1000, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] == sample_text(model, tokenizer, tokens=44, seed=0)


def test_text_that_is_no_unicode_is_refused(tokenizer):
    with pytest.raises(UserError, match="the text is not UTF-8"):
        encode_text(tokenizer, "caf\udce9")
