"""The tokenizer's files against Hugging Face tokenizers, which reads them."""

import io
import json
import os
import string
import sys
from pathlib import Path

import pytest
import sentencepiece
from google.protobuf import runtime_version
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxformer.config import UserError
from jaxformer.data.json_tokenizer import JsonTokenizer
from jaxformer.data.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxformer.data.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer
from jaxformer.huggingface.tokenizer_json import ambiguity, from_sentencepiece, tokenizer_files

tokenizers = pytest.importorskip("tokenizers")
import json_tokenizers  # noqa: E402

pytestmark = pytest.mark.device_free

SOURCE = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (string, os))
HARD = (
    "<s>",
    "</s>",
    "<unk>",
    "<0x41>",
    "<0xE2>",
    "<0x0A>",
    "\u2581",
    "\t",
    "\r\n",
    "\n\n",
    "   ",
    "\U0001f9ea",
    " the",
)
TEXTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(HARD)), max_size=8).map("".join)


def loaded(files):
    """Returns the tokenizer of some files as transformers sets it up: BOS before, and what is spelled is text."""
    tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    tokenizer.encode_special_tokens = json.loads(files["tokenizer_config.json"])["split_special_tokens"]
    return tokenizer


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def pair(request):
    """Our tokenizer and that of its files."""
    config = TokenizerConfig(vocabulary_size=600, model_type=request.param, processes=1)
    ours = SentencePieceTokenizer(train_tokenizer([SOURCE], config))
    return ours, loaded(tokenizer_files(ours, 64))


def likelihood(unigram, ids):
    """Returns the sum of the scores of a unigram model's pieces."""
    vocabulary = json.loads(unigram.to_str())["model"]["vocab"]
    return sum(vocabulary[i][1] for i in ids)


@settings(max_examples=300)
@given(TEXTS)
@example("".join(HARD))
@example("")
@example('0""""')  # '"' and '"""', or '"""' and '"'.
def test_any_text_has_the_same_ids_and_comes_back(pair, text):
    ours, theirs = pair
    ids, expected = theirs.encode(text).ids, [ours.bos_id, *ours.encode(text)]
    if ids != expected:
        assert ambiguity(ours) and likelihood(theirs, ids) == pytest.approx(likelihood(theirs, expected), abs=1e-3)
    assert theirs.decode(ids) == theirs.decode(ids[1:]) == text


def test_real_text_has_the_same_ids(pair):
    ours, theirs = pair
    lines = SOURCE.splitlines(keepends=True)
    differing = [line for line in lines if theirs.encode(line).ids[1:] != ours.encode(line)]
    if ambiguity(ours):
        assert len(differing) < 0.01 * len(lines)  # Two readings that are equally likely in float32.
    else:
        assert differing == [] and theirs.encode(SOURCE).ids[1:] == ours.encode(SOURCE)


def test_unigram_of_a_tokenizer_json_is_ambiguous_where_a_text_spells_its_tokens():
    ours = JsonTokenizer(json_tokenizers.t5([SOURCE]).to_str().encode(), {})
    theirs = loaded(tokenizer_files(ours, 64))
    assert "spells one of its special tokens" in ambiguity(ours)
    assert theirs.encode("a <unk>").ids != [ours.bos_id, *ours.encode("a <unk>")]


def test_configuration_names_no_tokenizer_with_steps_of_its_own(tokenizer):
    files = tokenizer_files(tokenizer, 64)
    assert files["tokenizer.model"] == tokenizer.model
    assert json.loads(files["tokenizer_config.json"]) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "padding_side": "left",
        "add_bos_token": True,
        "add_eos_token": False,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 64,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    added = json.loads(files["tokenizer.json"])["added_tokens"]
    assert {token["content"]: token["special"] for token in added} == {
        "<unk>": True, "<s>": True, "</s>": True, "\n": False
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises its text"),
        ({"byte_fallback": False}, "no byte fallback"),
        ({"model_type": "char"}, "neither BPE nor unigram"),
    ],
)
def test_model_that_the_format_has_no_words_for_is_refused(options, message):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        **{
            "sentence_iterator": iter(SOURCE.split("\n")), "model_writer": model, "vocab_size": 400,
            "model_type": "bpe", "normalization_rule_name": "identity", "add_dummy_prefix": False,
            "remove_extra_whitespaces": False, "byte_fallback": True, "minloglevel": 2, "hard_vocab_limit": False,
            **options,
        }
    )  # fmt: skip
    with pytest.raises(UserError, match=message):
        from_sentencepiece(model.getvalue())


def test_protobuf_that_sentencepiece_does_not_work_with_is_told_in_one_line(tokenizer, monkeypatch):
    def refuse(*_):
        raise runtime_version.VersionError("gencode 7.36.1 runtime 6.33.6")

    monkeypatch.setattr(runtime_version, "ValidateProtobufRuntimeVersion", refuse)
    monkeypatch.delattr(sentencepiece, "sentencepiece_model_pb2", raising=False)
    monkeypatch.delitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", raising=False)
    with pytest.raises(
        UserError,
        match=r"gencode 7\.36\.1 runtime 6\.33\.6; export in an environment without Apache Beam, or after `pip install",
    ):
        tokenizer_files(tokenizer, row_length=64)


def test_given_tokenizer_json_keeps_its_ids_and_gains_a_bos(tmp_path):
    """As GPT-2's: byte-level BPE, with one special token for both ends and a post-processor that adds none."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    given = Fast(models.BPE())
    given.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    given.decoder = decoders.ByteLevel()
    given.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    given.train_from_iterator([SOURCE], trainer)
    given.enable_truncation(5)
    end = given.token_to_id("<|endoftext|>")
    ours = JsonTokenizer(given.to_str().encode(), {})
    files = tokenizer_files(ours, 64)
    theirs = loaded(files)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert load_tokenizer(tmp_path).encode(SOURCE) == ours.encode(SOURCE)
    for text in ("", SOURCE, "a<|endoftext|>b", "\u2581 \U0001f9ea  \t\n"):
        assert theirs.encode(text).ids == [end, *ours.encode(text)]
        assert theirs.decode(theirs.encode(text).ids) == text
    config = json.loads(files["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"]) == ("<|endoftext|>", "<|endoftext|>")
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"} and ambiguity(ours) == ""
