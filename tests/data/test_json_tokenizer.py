"""A tokenizer.json of any shape is a tokenizer: texts alone are encoded, BOS and EOS are found, and losses are told."""

import itertools
import json
import pickle
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxformer.config import UserError
from jaxformer.data.corpus import CorpusConfig, load_documents
from jaxformer.data.json_tokenizer import JsonTokenizer, find_marks
from jaxformer.data.preparation import prepare
from jaxformer.data.round_trip import find_round_trip, measure_round_trip
from jaxformer.data.shards import open_shards
from jaxformer.data.tokenizer import TokenizerConfig, load_tokenizer, prepare_tokenizer

pytest.importorskip("tokenizers")
json_tokenizers = pytest.importorskip("json_tokenizers")

pytestmark = pytest.mark.device_free

SPELLED = "a <|endoftext|> b</s><s> <|begin_of_text|>[CLS] [SEP] <pad><unk><0x41> <|end_of_text|>"
ODD_TEXTS = ["", "\n", " a  b\t\n c ", "\u2581 \u2581", "\u0000\ufeff", "e\u0301 \u00e9 \U0001f9ea\u200d", SPELLED]
BYTE_LEVEL = ["gpt2", "llama3"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory, make_texts):
    """The folder of a tokenizer of each shape."""
    place, texts = tmp_path_factory.mktemp("tokenizers"), [*make_texts(200), "ba . do , bi n't"]
    return {name: json_tokenizers.save(make(texts), place / name) for name, make in json_tokenizers.SHAPES.items()}


@pytest.fixture(scope="session")
def opened(folders):
    """A tokenizer of each shape."""
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


# Texts.


@pytest.mark.parametrize("shape", BYTE_LEVEL)
@given(st.text())
@example("".join(ODD_TEXTS))
def test_any_text_comes_back_from_a_byte_level_tokenizer(opened, shape, text):
    tokenizer = opened[shape]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    assert all(0 <= i < tokenizer.vocabulary_size for i in ids)


@pytest.mark.parametrize("shape", json_tokenizers.SHAPES)
def test_a_text_that_spells_a_special_token_is_a_text(opened, shape):
    tokenizer, special = opened[shape], {"[UNK]", "<unk>"}  # Which stand for unknown characters.
    spelled = {tokenizer._tokenizer.id_to_token(i) for i in tokenizer.encode(SPELLED) if tokenizer._is_special[i]}
    assert spelled <= special
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(tokenizer.encode_batch([SPELLED])[0].tolist())


def test_a_mark_that_a_normalizer_spells_is_no_mark(make_texts, tmp_path):
    from tokenizers import normalizers

    tokenizer = json_tokenizers.t5(make_texts(200))
    tokenizer.normalizer = normalizers.NFKC()
    opened = load_tokenizer(json_tokenizers.save(tokenizer, tmp_path))
    ids = opened.encode("ba \uff1c/s\uff1e</s> du")
    assert opened.eos_id not in ids and opened.decode(ids).startswith("ba") and opened.decode(ids).endswith("du")


def test_a_mark_that_the_file_does_not_call_special_is_one(folders, tmp_path):
    file = json.loads((folders["gpt2"] / "tokenizer.json").read_text())
    file["added_tokens"][0]["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.bos_id == tokenizer.eos_id == 0
    assert 0 not in tokenizer.encode(SPELLED) and tokenizer.decode(tokenizer.encode(SPELLED)) == SPELLED
    assert tokenizer.decode([0, *tokenizer.encode("ba"), 0]) == "ba"


@pytest.mark.parametrize("shape", json_tokenizers.SHAPES)
def test_encode_batch_is_encode_of_each_whatever_the_threads_and_after_pickling(opened, shape, make_texts):
    texts = [*make_texts(70, seed=2), *ODD_TEXTS]
    expected = [opened[shape].encode(text) for text in texts]
    for tokenizer, threads in itertools.product((opened[shape], pickle.loads(pickle.dumps(opened[shape]))), (1, 3)):
        encoded = tokenizer.encode_batch(texts, threads=threads)
        assert [ids.tolist() for ids in encoded] == expected
        assert {ids.dtype for ids in encoded} == {np.dtype(np.int32)}
    assert opened[shape].encode_batch([]) == []


@pytest.mark.parametrize("shape", json_tokenizers.SHAPES)
def test_nothing_is_put_around_a_text_cut_off_filled_up_or_left_to_chance(folders, opened, tmp_path, shape, make_texts):
    file = json.loads((folders[shape] / "tokenizer.json").read_text())
    file["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    file["padding"] = {"strategy": {"Fixed": 900}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
    if file["model"]["type"] == "BPE":
        file["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    texts = make_texts(10)
    assert [ids.tolist() for ids in load_tokenizer(tmp_path).encode_batch(texts)] == [
        ids.tolist() for ids in opened[shape].encode_batch(texts)
    ]


def test_spaces_are_not_cleaned_up(opened):
    ids = opened["bert"].encode("ba . do , bi n't")
    assert " ." in opened["bert"].decode(ids)


@pytest.mark.parametrize("shape", [*BYTE_LEVEL, "qwen", "llama2"])
def test_pieces_are_the_bytes_of_a_text(opened, shape):
    tokenizer = opened[shape]
    text, pieces = "A dog's\n  na\u00efve \u201cmark\u201d \U0001f9ea", tokenizer.pieces()
    found = b"".join(pieces[i] for i in tokenizer.encode(text))
    assert found == (f" {text}" if shape == "llama2" else text).encode()
    assert pieces[tokenizer.bos_id] == pieces[tokenizer.eos_id] == b""


def test_pieces_of_words_begin_them_or_go_on(opened):
    tokenizer, pieces = opened["bert"], opened["bert"].pieces()
    text = "baba dogo mi"
    assert b"".join(pieces[i] for i in tokenizer.encode(text)).decode() == f" {text}"


def test_a_vocabulary_may_have_holes_and_added_tokens_count(folders, tmp_path):
    file = json.loads((folders["gpt2"] / "tokenizer.json").read_text())
    file["added_tokens"].append({**file["added_tokens"][0], "id": 1000, "content": "<tool>", "special": False})
    file["model"]["vocab"]["<tool>"] = 1000
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocabulary_size == 1001 == len(tokenizer.pieces())
    assert tokenizer.pieces()[900] == b"" and tokenizer.pieces()[1000] == b"<tool>"
    assert 1000 in tokenizer.encode("a<tool>") and tokenizer.decode([900, *tokenizer.encode("a<tool>")]) == "a<tool>"


# BOS and EOS.

DEEPSEEK = ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>")


def file(special: str = "", around: str = "") -> dict:
    """Returns what matters of a file: its special tokens, and those that are put around a text, `$A`."""
    pieces = [
        {"Sequence": {"id": "A"}} if piece == "$A" else {"SpecialToken": {"id": piece}} for piece in around.split()
    ]
    processors = [{"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": pieces}]
    return {
        "added_tokens": [{"content": each, "special": True} for each in special.split()],
        "post_processor": {"type": "Sequence", "processors": processors} if pieces else None,
    }


@pytest.mark.parametrize(
    ("definition", "config", "expected"),
    [
        (file("<|endoftext|>"), {}, ("<|endoftext|>", "<|endoftext|>")),
        (file("<|endoftext|> <|im_end|>"), {"bos_token": None, "eos_token": "<|im_end|>"}, ("<|im_end|>",) * 2),
        (file("<|begin_of_text|> <|end_of_text|> <|eot_id|>"), {}, ("<|begin_of_text|>", "<|end_of_text|>")),
        (file("<unk> <s> </s>"), {"bos_token": {"content": "<s>"}}, ("<s>", "</s>")),
        (file("<pad> <eos> <bos>"), {}, ("<bos>", "<eos>")),
        (file(" ".join(DEEPSEEK)), {}, DEEPSEEK),
        (file("<EOT> <META> <SOS>"), {}, ("<SOS>", "<EOT>")),
        (file("", "[CLS] $A [SEP]"), {}, ("[CLS]", "[SEP]")),
        (file("<s> </s>", "<x> $A"), {}, ("<x>", "</s>")),
        (file("", "$A </s>"), {}, ("</s>", "</s>")),
        (file("", "<a> <b> $A <c> <d>"), {}, ("<b>", "<c>")),
        (file("", "[CLS] $A [SEP]"), {"eos_token": "<e>"}, ("[CLS]", "<e>")),
        ({"post_processor": {"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2]}}, {}, ("<s>", "</s>")),
    ],
)
def test_the_marks_are_what_is_stated_then_what_is_put_around_a_text_then_what_is_named_so(
    definition, config, expected
):
    assert find_marks(definition, config) == expected


@pytest.mark.parametrize("shape", json_tokenizers.SHAPES)
def test_the_marks_of_every_shape_are_found(opened, shape):
    expected = {
        "gpt2": ("<|endoftext|>",) * 2,
        "qwen": ("<|endoftext|>",) * 2,
        "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
        "llama2": ("<s>", "</s>"),
        "bert": ("[CLS]", "[SEP]"),
        "t5": ("</s>",) * 2,
    }
    tokenizer = opened[shape]
    assert (tokenizer.bos, tokenizer.eos) == expected[shape]
    names = {i: token for token, i in tokenizer._tokenizer.get_vocab().items()}
    assert (names[tokenizer.bos_id], names[tokenizer.eos_id]) == expected[shape]


# Files.


def test_its_files_are_the_same_tokenizer_and_the_digest_is_of_what_decides_ids(folders, opened, tmp_path):
    tokenizer = opened["llama3"]
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "tokenizer.model").write_bytes(b"of the same folder, as of Llama 2")
    again = load_tokenizer(tmp_path)
    assert again.digest == tokenizer.digest and again.model == tokenizer.model
    (tmp_path / "tokenizer_config.json").write_text(
        '{"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "chat_template": "", "model_max_length": 1}'
    )
    assert load_tokenizer(tmp_path / "tokenizer.json").digest == tokenizer.digest
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|eot_id|>"}')
    assert load_tokenizer(tmp_path).digest != tokenizer.digest
    assert len({each.digest for each in opened.values()}) == len(opened)


def without_marks(file: dict) -> None:
    file["added_tokens"], file["post_processor"] = [], None


def of_unknown_kind(file: dict) -> None:
    file["model"]["type"] = "Ngram"


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (
            without_marks,
            None,
            "it has no BOS and no EOS; name them in a file tokenizer_config.json beside it",
        ),
        (
            None,
            '{"bos_token": "<x>"}',
            "bos_token '<x>' is no token of it; name one in tokenizer_config.json",
        ),
        (None, '{"bos_token": ', "tokenizer_config.json: unreadable"),
        (of_unknown_kind, None, "not a tokenizer.json of Hugging Face tokenizers"),
        (dict.clear, None, "not a tokenizer.json of Hugging Face tokenizers"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(folders, tmp_path, change, config, message):
    file = json.loads((folders["gpt2"] / "tokenizer.json").read_text())
    if change:
        change(file)
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    if config:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(UserError) as raised:
        prepare_tokenizer([], TokenizerConfig(path=str(tmp_path)), tmp_path)
    line = str(raised.value)
    assert line.startswith(f"tokenizer.path {tmp_path}: ") and message in line and "\n" not in line and len(line) < 400


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b'{"model": 5}', b"\xff", b"[" * 100_000])
def test_what_is_no_tokenizer_json_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.path .*: not a tokenizer\.json of Hugging Face tokenizers \("):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_without_the_package_what_to_install_is_said(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"needs the package tokenizers; pip install 'jaxformer\[hub\]'"):
        load_tokenizer(folders["gpt2"])


# What is lost.


def test_what_does_not_come_back_is_counted_with_an_example(opened):
    texts = ["abc def", "e\u0301 is one", "Caf\u00e9 cafe\u0301 x"]
    loss = measure_round_trip(texts, opened["qwen"])
    assert (loss.documents, loss.changed_documents) == (3, 2)
    words = [len(word.encode()) for text in texts for word in text.split()]
    assert (loss.bytes, loss.changed_bytes) == (sum(words), len("e\u0301".encode()) + len("cafe\u0301".encode()))
    assert (loss.before, loss.after) == ("'e\\u0301 is one'", "'\\xe9 is one'")
    assert "2 of 3 sampled documents come back changed" in str(loss) and str(loss).isprintable()
    assert measure_round_trip(texts, opened["gpt2"]).changed_documents == 0
    assert measure_round_trip(["a  b"], opened["bert"]).changed_documents == 1


def test_the_loss_is_found_once_on_a_sample_and_what_is_wholly_lost_is_left_out(
    opened, tokenizer, make_texts, tmp_path, monkeypatch
):
    path, texts = tmp_path / "texts.jsonl", make_texts(60)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["\u0001\u0002", "\u200b\n", *texts]))
    documents = load_documents(CorpusConfig(kind="jsonl", path=str(path), validation_share=0.1))
    assert find_round_trip(documents, tokenizer, tmp_path) is None
    loss = find_round_trip(documents, opened["bert"], tmp_path)
    assert loss is not None and loss.documents == 62 and loss.changed_documents >= 2
    monkeypatch.setattr(type(documents), "sample", None)
    assert find_round_trip(documents, opened["bert"], tmp_path) == loss
    manifest = open_shards(prepare(documents, opened["bert"], tmp_path, progress=False), "train").manifest
    assert (manifest.empty, sum(manifest.documents.values())) == (2, 60)
    assert sum(manifest.text_bytes.values()) == sum(len(text.encode()) for text in texts)


def test_text_with_a_character_that_the_tokenizer_has_no_token_for_is_refused_in_one_line():
    from tokenizers import Tokenizer, models

    given = Tokenizer(models.WordLevel({"a": 0, "<s>": 1}, unk_token="[UNK]"))
    given.add_special_tokens(["<s>"])
    tokenizer = JsonTokenizer(given.to_str().encode(), {})
    for texts in (["b"], ["a", "b"] * 40):
        with pytest.raises(UserError, match=r"^the tokenizer cannot encode a text \(.*UNK.*\)$"):
            tokenizer.encode_batch(texts, threads=2)
