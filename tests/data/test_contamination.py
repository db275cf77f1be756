import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.data import contamination
from jaxformer.data.contamination import WordReader, find_contamination
from jaxformer.data.corpus import CorpusConfig, load_documents
from jaxformer.data.preparation import prepare
from jaxformer.data.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxformer.data.shards import open_shards

pytestmark = pytest.mark.device_free


def words_of(text: str) -> list[str]:
    """Returns the words of a text, by the definition."""
    words = ("".join(c for c in word if c.isalnum()) for word in text.lower().split())
    return [word for word in words if word]


@pytest.fixture(scope="module")
def spaced_tokenizer(make_texts):
    """A tokenizer whose pieces may hold spaces anywhere."""
    texts = [text for text in make_texts(200) for text in (text, "a bDk a bb, a bDk-a bb Dk")]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=900,
        split_by_whitespace=False, normalization_rule_name="identity", add_dummy_prefix=False, byte_fallback=True,
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


@pytest.fixture(scope="module", params=["within words", "across words"])
def reader(request, tokenizer, spaced_tokenizer):
    """A tokenizer and its reader of words."""
    chosen = tokenizer if request.param == "within words" else spaced_tokenizer
    assert any(b" " in piece[1:].strip() for piece in chosen.pieces()) is (chosen is spaced_tokenizer)
    return chosen, WordReader(chosen)


def test_pieces_are_the_bytes_of_a_text(tokenizer):
    text, pieces = "A dog's\n  naïve “mark” \u2581", tokenizer.pieces()
    assert b"".join(pieces[i] for i in tokenizer.encode(text)) == text.encode()
    assert pieces[tokenizer.bos_id] == pieces[tokenizer.eos_id] == b""


# Whatever letters have no piece of their own are bytes, which have no case: those of the texts have.
texts = st.lists(st.text("ab Dk\n.,'-1", max_size=30), max_size=6)


@given(texts=texts)
def test_the_words_of_documents_are_those_of_their_texts(reader, texts):
    tokenizer, read = reader[0], reader[1].read
    words = read([np.array(tokenizer.encode(text), np.uint16) for text in texts])
    expected = [(word, number) for number, text in enumerate(texts) for word in words_of(text)]
    assert words.document_of.tolist() == [number for _, number in expected]
    pairs = {(word, value) for (word, _), value in zip(expected, words.hashes.tolist(), strict=True)}
    assert len(pairs) == len({word for word, _ in pairs}) == len({value for _, value in pairs})


def test_words_of_real_text_are_told_apart(tokenizer, make_texts):
    texts = make_texts(400)
    words = [word for text in texts for word in words_of(text)]
    found = WordReader(tokenizer).read(tokenizer.encode_batch(texts)).hashes.tolist()
    assert len(set(words)) == len(set(found)) == len(set(zip(words, found, strict=True))) > 600


def ngrams(text: str, size: int) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


@pytest.fixture(scope="module")
def shards(make_texts, tokenizer, tmp_path_factory):
    """Training shards of 120 texts, and the texts in their order."""
    folder = tmp_path_factory.mktemp("contamination")
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(120)))
    documents = load_documents(CorpusConfig(kind="jsonl", path=str(path), validation_share=0.1))
    opened = open_shards(prepare(documents, tokenizer, folder, progress=False), "train")
    return opened, [tokenizer.decode(opened.read(i, 0, int(opened.tokens[i]))) for i in range(len(opened))]


@pytest.mark.parametrize("batch_tokens", [1, 300, 1 << 16])
def test_pairs_are_those_that_share_an_ngram(shards, tokenizer, make_texts, tmp_path, monkeypatch, batch_tokens):
    monkeypatch.setattr(contamination, "_BATCH_TOKENS", batch_tokens)
    training, texts = shards
    others = make_texts(40, seed=7)
    items = {
        "long": [text.upper().replace(" ", ", ") for text in others[:20]] + [" ".join(words_of(t)) for t in texts[:30]],
        "medium": [" ".join(words_of(text)[1:10]) for text in [*texts[:9], *others]],
        "short": ["two words", "three more words", *(" ".join(words_of(text)[:8]) for text in texts[40:50])],
    }
    found = find_contamination(training, tokenizer, items, tmp_path)
    assert list(found) == list(items)
    for name, result in found.items():
        counts = [len(words_of(text)) for text in items[name]]
        size = result.ngram_words
        assert size == int(np.clip(np.percentile(counts, 5), 8, 13))
        expected = [
            [i, j]
            for (i, item), (j, text) in itertools.product(enumerate(items[name]), enumerate(texts))
            if ngrams(item, size) & ngrams(text, size)
        ]
        assert result.pairs.tolist() == expected and len(expected) > 3
        assert result.documents.tolist() == sorted({j for _, j in expected})
        assert (result.items, result.searched_documents) == (len(items[name]), len(texts))
        assert result.short_items == sum(count < size for count in counts)
    assert {result.ngram_words for result in found.values()} >= {8}
    short = found["short"]
    shared = f"{short.shared_items} of 12 items share an 8-gram with {len(short.documents)} of {len(texts)} training"
    assert (
        short.describe(is_removed=True)
        == f"{shared} documents, removed; {short.short_items} shorter items are not compared"
    )
    assert f"{shared} documents; corpus.decontaminate removes them" in short.describe(is_removed=False)


def test_shards_are_searched_once_for_the_same_items(shards, tokenizer, tmp_path, monkeypatch):
    training, texts = shards
    first = find_contamination(training, tokenizer, {"task": texts[:5]}, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(contamination, "_search", lambda *_: pytest.fail("searched again"))
        again = find_contamination(training, tokenizer, {"task": texts[:5]}, tmp_path)
    assert again["task"][:4] == first["task"][:4] and np.array_equal(again["task"].pairs, first["task"].pairs)
    other = find_contamination(training, tokenizer, {"task": texts[:6]}, tmp_path)
    assert other["task"].items == 6 and len(list(Path(tmp_path).glob("contamination/*.json"))) == 2


def test_an_ngram_does_not_reach_from_one_document_into_the_next(tokenizer):
    read = WordReader(tokenizer).read
    item = contamination._make_index(read(tokenizer.encode_batch(["a b c d e f g h"])), 8)
    halves = tokenizer.encode_batch(["a b c d", "e f g h", "", "x a b c d e f g h"])
    (pairs,) = contamination._collisions(read(halves), [item])
    assert pairs.tolist() == [[0, 3]]
