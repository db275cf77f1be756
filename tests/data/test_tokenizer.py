import io
import random
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from jaxformer.config import UserError
from jaxformer.data import tokenizer as tokenizer_module
from jaxformer.data.corpus import CorpusConfig, Document, Documents, key_fraction, load_documents
from jaxformer.data.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxformer.data.tokenizer import (
    TokenizerConfig,
    load_tokenizer,
    prepare_tokenizer,
    sample_texts,
    train_tokenizer,
)

pytestmark = pytest.mark.device_free

CONFIG = TokenizerConfig(vocabulary_size=400, processes=1)

ODD_TEXTS = [
    "",
    "\n",
    "\n\n\n",
    "a\nb\r\nc\rd\r\n",
    "\t\ttab\tbed \t ",
    "   runs  of    spaces     ",
    " ",
    "\u2581",
    "\u2581\u2581 \u2581a \u2581",
    " \u2581 ",
    "\u0000",
    "a\u0000b\u0000",
    "\ufeffwith a byte order mark",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "<s>baba</s> <unk> <0x0A><0xE2><0x96><0x81>",
    "\U0001f9ea\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "e\u0301 \u00e9 \ufb01 \u00bc \u2460 \uff21",
    "\u2028\u2029\u0085\u000b\u000c\u00a0\u3000",
    "\ufffd\ufffe\uffff\U0010ffff",
    "\u202e\u05d0\u05d1 \u0627\u0644",
]


@given(st.text())
@example("".join(ODD_TEXTS))
def test_any_text_comes_back_as_it_was(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocabulary_size for i in ids)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_an_odd_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(st.sampled_from("\u2581 \n\ta<s>/0x\u0000\u00e2")))
def test_a_text_of_odd_characters_alone_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_of_the_training_kind_comes_back_in_fewer_ids_than_bytes(tokenizer, make_texts):
    for text in make_texts(50, seed=1):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) < 0.7 * len(text.encode())


@given(st.lists(st.text() | st.sampled_from(["<s>", "</s>", "<s></s>", "<unk>", "a<s>\u2581</s>"])))
def test_encode_never_yields_bos_or_eos(tokenizer, texts):
    assert tokenizer.bos_id != tokenizer.eos_id
    for text in texts:
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(tokenizer.encode(text))


@given(st.lists(st.text() | st.sampled_from(ODD_TEXTS)))
@example([])
@example(["", "a", "\u2581", "", "b\u2581"])
def test_encode_batch_is_encode_of_each(tokenizer, texts):
    encoded = tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in encoded] == [tokenizer.encode(text) for text in texts]
    assert {ids.dtype for ids in encoded} <= {np.dtype(np.int32)}


def test_the_number_of_threads_changes_no_id(tokenizer, make_texts):
    texts = [*make_texts(40, seed=2), *ODD_TEXTS]
    one, many = (tokenizer.encode_batch(texts, threads=threads) for threads in (1, 3))
    assert [ids.tolist() for ids in one] == [ids.tolist() for ids in many]


def test_decode_leaves_out_bos_and_eos_and_marks_bytes_that_form_no_character(tokenizer):
    ids = tokenizer.encode("baba ü")
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == "baba ü"
    assert tokenizer.decode(np.array(ids[:-1], np.int32)) == "baba \ufffd"


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_special_looking_text_can_be_trained_on_and_comes_back(tmp_path, make_texts, model_type):
    odd = "<s>struck</s> <unk> <0x0A> <0x41>\u2581\u2581 a\tb  c\x05\u0000"
    model = train_tokenizer([*([odd] * 100), *make_texts(100)], replace(CONFIG, model_type=model_type))
    path = tmp_path / "odd.model"
    path.write_bytes(model)
    trained = load_tokenizer(path)
    assert trained.vocabulary_size == 400
    for text in [odd, *ODD_TEXTS]:
        ids = trained.encode(text)
        assert trained.decode(ids) == text
        assert not {trained.bos_id, trained.eos_id} & set(ids)


def test_each_digit_is_an_id_however_often_digits_stood_together(tmp_path, make_texts):
    path = tmp_path / "digits.model"
    path.write_bytes(train_tokenizer([*(["in 2024 and 2025 "] * 200), *make_texts(100)], CONFIG))
    trained = load_tokenizer(path)
    assert len(trained.encode("2024")) == 4
    assert len(trained.encode("in")) == 1


def test_no_piece_reaches_beyond_a_line(tokenizer):
    newline = tokenizer.encode("\n")
    assert len(newline) == 1
    assert tokenizer.encode("ba\nba\n") == (tokenizer.encode("ba") + newline) * 2


# Training once, and on what.


def write_corpus(folder, texts, **fields) -> Documents:
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i:04}.txt").write_text(text)
    return load_documents(CorpusConfig(kind="text", path=str(folder), **fields))


def forbid_training(monkeypatch) -> None:
    def refuse(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr(tokenizer_module, "train_tokenizer", refuse)


def test_a_tokenizer_is_trained_once_for_a_corpus_wherever_it_lies(tmp_path, make_texts, monkeypatch):
    texts = make_texts(100)
    first = prepare_tokenizer([write_corpus(tmp_path / "here", texts)], CONFIG, tmp_path / "cache")
    forbid_training(monkeypatch)
    moved = write_corpus(tmp_path / "there", texts, weight=3.0, licence="CC0-1.0")
    for config in (CONFIG, replace(CONFIG, processes=2)):
        assert prepare_tokenizer([moved], config, tmp_path / "cache").digest == first.digest


def test_another_corpus_configuration_or_validation_share_is_another_tokenizer(tmp_path, make_texts, monkeypatch):
    texts, cache = make_texts(100), tmp_path / "cache"
    corpus = write_corpus(tmp_path / "one", texts)
    prepare_tokenizer([corpus], CONFIG, cache)
    forbid_training(monkeypatch)
    others = [
        ([write_corpus(tmp_path / "two", [*texts, "more"])], CONFIG),
        ([write_corpus(tmp_path / "one", texts, validation_share=0.5)], CONFIG),
        ([corpus], replace(CONFIG, vocabulary_size=401)),
        ([corpus], replace(CONFIG, model_type="unigram")),
        ([corpus], replace(CONFIG, training_bytes=1000)),
        ([corpus, corpus], CONFIG),
    ]
    for corpora, config in others:
        with pytest.raises(AssertionError, match="trained again"):
            prepare_tokenizer(corpora, config, cache)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_again_gives_the_same_model(make_texts, model_type):
    models = {train_tokenizer(make_texts(100), replace(CONFIG, model_type=model_type)) for _ in range(2)}
    assert len(models) == 1


def test_parts_of_a_mixture_give_equal_shares_of_the_training_text(tmp_path, tokenizer_path, monkeypatch):
    trained_on = []

    def train(texts, config):
        trained_on.extend(texts)
        return tokenizer_path.read_bytes()

    monkeypatch.setattr(tokenizer_module, "train_tokenizer", train)
    large = write_corpus(tmp_path / "large", [f"L{i:09}" for i in range(400)])
    small = write_corpus(tmp_path / "small", [f"S{i:09}" for i in range(100)])
    prepare_tokenizer([large, small], replace(CONFIG, training_bytes=1000), tmp_path / "cache")
    assert [sum(text[0] == part for text in trained_on) for part in "LS"] == [50, 50]


class FakeDocuments:
    """Documents in memory."""

    def __init__(self, documents, validation_share=0.2):
        self.config = CorpusConfig(kind="text", path="nowhere", validation_share=validation_share)
        self._documents = documents
        self.source_bytes = 1

    def sample(self, limit_bytes):
        return iter(self._documents)


def numbered_documents(sizes) -> list[Document]:
    """Returns documents of these lengths with distinct texts."""
    return [Document(f"key {i}", f"{i}:".ljust(size, "x")) for i, size in enumerate(sizes)]


@given(st.lists(st.integers(4, 60), max_size=12), st.integers(1, 200), st.randoms(use_true_random=False))
@example([6, 60, 4, 7, 50, 5, 5, 60, 4, 4], 40, random.Random(0))
def test_the_sample_does_not_depend_on_the_order_of_the_documents(sizes, limit, shuffler):
    documents = numbered_documents(sizes)
    shuffled = list(documents)
    shuffler.shuffle(shuffled)
    assert sample_texts(FakeDocuments(documents), limit) == sample_texts(FakeDocuments(shuffled), limit)


@given(st.lists(st.integers(4, 60), max_size=12), st.integers(1, 400))
def test_the_sample_is_the_training_texts_of_smallest_hash_that_fit(sizes, limit):
    training = [d for d in numbered_documents(sizes) if key_fraction(d.key) >= 0.2]
    expected, total = [], 0
    for document in sorted(training, key=lambda d: key_fraction(d.key)):
        total += len(document.text)
        if total > limit and expected:
            break
        expected.append(document.text)
    assert sample_texts(FakeDocuments(numbered_documents(sizes)), limit) == expected


def test_the_sample_leaves_validation_documents_out_and_no_other():
    documents = numbered_documents([8] * 200)
    sampled = sample_texts(FakeDocuments(documents, validation_share=0.3), 10**9)
    validation = {d.text for d in documents if key_fraction(d.key) < 0.3}
    assert validation
    assert sorted(sampled) == sorted({d.text for d in documents} - validation)


def test_the_sample_counts_bytes_not_characters():
    documents = [Document(f"key {i}", f"{i}" + "\u2581" * 33) for i in range(10)]
    assert len(sample_texts(FakeDocuments(documents, validation_share=1e-9), 500)) == 5


# What can be wrong.


def train_other(path, texts, **settings) -> None:
    """Writes a SentencePiece model that jaxformer did not train: lossless but for the settings."""
    model = io.BytesIO()
    lossless = {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        minloglevel=2,
        **{**lossless, **settings},
    )
    path.write_bytes(model.getvalue())


def test_a_lossless_model_of_another_trainer_is_accepted(tmp_path, make_texts):
    path = tmp_path / "other.model"
    train_other(path, make_texts(200))
    given_model = prepare_tokenizer([], TokenizerConfig(path=str(path)), tmp_path / "cache")
    assert given_model.vocabulary_size == 400
    for text in ODD_TEXTS:
        assert given_model.decode(given_model.encode(text)) == text


@pytest.mark.parametrize(
    "settings",
    [
        {"normalization_rule_name": "nmt_nfkc", "add_dummy_prefix": True, "remove_extra_whitespaces": True},
        {"normalization_rule_name": "nfkc"},
        {"add_dummy_prefix": True},
        {"remove_extra_whitespaces": True},
        {"byte_fallback": False},
    ],
    ids=["SentencePiece's own defaults", "nfkc", "dummy prefix", "extra spaces removed", "no byte fallback"],
)
def test_a_given_model_that_loses_text_is_refused(tmp_path, make_texts, settings):
    path = tmp_path / "lossy.model"
    train_other(path, make_texts(200), **settings)
    with pytest.raises(UserError, match=r"tokenizer\.path .*lossy\.model: it loses text"):
        prepare_tokenizer([], TokenizerConfig(path=str(path)), tmp_path / "cache")


@pytest.mark.parametrize("settings", [{"bos_id": -1}, {"eos_id": -1}])
def test_a_given_model_without_bos_or_eos_is_refused(tmp_path, make_texts, settings):
    path = tmp_path / "bare.model"
    train_other(path, make_texts(200), **settings)
    with pytest.raises(UserError, match=r"bare\.model: it has no BOS or no EOS piece"):
        load_tokenizer(path)


def test_a_missing_file_and_a_file_that_is_no_model_are_named(tmp_path, tokenizer_path):
    with pytest.raises(UserError, match=r"tokenizer\.path .*missing\.model: No such file"):
        load_tokenizer(tmp_path / "missing.model")
    with pytest.raises(UserError, match=r"tokenizer\.path .*: the folder holds no tokenizer\.model or tokenizer\.json"):
        load_tokenizer(tmp_path)
    for data in (b"no model at all", tokenizer_path.read_bytes()[:-2000]):
        (tmp_path / "bad.model").write_bytes(data)
        with pytest.raises(UserError, match=r"tokenizer\.path .*bad\.model: not a SentencePiece model"):
            load_tokenizer(tmp_path / "bad.model")


@pytest.mark.parametrize("texts", [["baba dodo"], [""], []], ids=["little text", "empty text", "no text"])
def test_a_vocabulary_too_large_for_the_text_is_a_user_error_that_names_it(texts):
    with pytest.raises(UserError, match=r"tokenizer\.vocabulary_size 400"):
        train_tokenizer(texts, CONFIG)


def test_the_cause_and_the_advice_are_in_the_users_terms():
    with pytest.raises(
        UserError, match=r"400: its text is too little, or too uniform, and gives 2\d\d pieces; give it more text$"
    ):
        train_tokenizer(["baba dodo"], CONFIG)
    with pytest.raises(UserError, match=r"it has no text$"):
        train_tokenizer([""], CONFIG)
    rare = ["".join(chr(0x4E00 + i) for i in range(start, start + 50)) for start in range(0, 500, 50)]
    with pytest.raises(
        UserError, match=r"its text has more characters than that; set 7\d\d or more, and model\."
    ) as raised:
        train_tokenizer(rare, CONFIG)
    fewest = int(str(raised.value).partition("set ")[2].split()[0])
    train_tokenizer(rare * 3, replace(CONFIG, vocabulary_size=fewest))


def test_the_largest_vocabulary_that_is_advised_can_be_trained(make_texts):
    for model_type in ("bpe", "unigram"):
        config = replace(CONFIG, vocabulary_size=4000, model_type=model_type)
        with pytest.raises(UserError, match=r"; set \d+ or less, or give it more text$") as raised:
            train_tokenizer(make_texts(20), config)
        most = int(str(raised.value).partition("set ")[2].split()[0])
        trained = SentencePieceTokenizer(train_tokenizer(make_texts(20), replace(config, vocabulary_size=most)))
        assert trained.vocabulary_size == most


def test_why_there_is_no_sample_is_named(tmp_path):
    blank = write_corpus(tmp_path / "blank", ["", " "])
    with pytest.raises(UserError, match=r"no document with text to train the tokenizer on$"):
        prepare_tokenizer([blank], CONFIG, tmp_path / "cache")
    held = write_corpus(tmp_path / "held", ["a", "b"], validation_share=0.9999999)
    with pytest.raises(UserError, match=r"all 2 that were read are for validation, by their keys"):
        prepare_tokenizer([held], CONFIG, tmp_path / "cache")


def test_a_failed_training_leaves_no_tokenizer_in_the_cache(tmp_path):
    corpus = write_corpus(tmp_path / "tiny", ["baba", "dodo"])
    for _ in range(2):
        with pytest.raises(UserError, match="could not be trained"):
            prepare_tokenizer([corpus], CONFIG, tmp_path / "cache")
        assert not list((tmp_path / "cache").rglob("*.model"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bpw"}, r"did you mean bpe\?"),
        ({"vocabulary_size": 299}, r"vocabulary_size \(299\) must be at least 300"),
        ({"training_bytes": 0}, r"training_bytes \(0\) must be at least 1"),
        ({"processes": -1}, r"processes \(-1\) must be at least 0 and at most 1024"),
        ({"vocabulary_size": 400.0}, r"tokenizer\.vocabulary_size must be of type int"),
    ],
)
def test_a_configuration_that_breaks_a_rule_is_refused_with_rule_and_value(fields, message):
    with pytest.raises(UserError, match=message):
        TokenizerConfig(**fields)
