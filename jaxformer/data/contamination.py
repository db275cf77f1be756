"""Training documents that contain items of evaluation tasks: those that share an n-gram of words with one.

The rule is from GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C), as is lm-evaluation-harness's. Words are
compared in lower case and without punctuation. The n-grams of a task are as long as its shorter items (the 5th
percentile), but at least 8 words and at most 13; shorter items are not compared. Unlike in GPT-3's rule, a single
n-gram contaminates a whole document, however many others have it: most are web pages, not books.

Words are read from the ids of token shards, so that it does not matter when or where these were prepared.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.data.overlap import remembered, shards_identity
from jaxformer.data.shards import Shards, batches_of_documents
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.host.console import progress_bar
from jaxformer.host.workers import usable_processors

# Bump when the same shards and items would give other collisions.
_VERSION = 1

# Words of an n-gram.
_SHORTEST, _LONGEST = 8, 13

# Tokens that a thread searches at a time: its arrays fit in a processor's cache.
_BATCH_TOKENS = 1 << 16

# Batches in progress at once: a signal has to wait for them.
_BATCHES_AHEAD = 64

# Letters of a word with their own place in its hash.
_PLACES = 1 << 12

# Arbitrary odd numbers: the bases of polynomials in letters and in words, modulo 2^64, and a multiplier to mix bits.
_LETTER_BASE, _WORD_BASE, _MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xFF51AFD7ED558CCD], np.uint64)


class Contamination(NamedTuple):
    """What a task shares with the training documents of a corpus."""

    ngram_words: int
    """Words of an n-gram."""
    items: int
    """Items of the task."""
    short_items: int
    """Items shorter than an n-gram, which are not compared."""
    searched_documents: int
    """Training documents of the corpus."""
    pairs: np.ndarray
    """int64 (pairs, 2), the indices of an item and a document that share an n-gram."""

    @property
    def shared_items(self) -> int:
        """How many items share an n-gram with a document."""
        return len(np.unique(self.pairs[:, 0]))

    @property
    def documents(self) -> np.ndarray:
        """The indices of the documents that share an n-gram with an item, int64, ascending."""
        return np.unique(self.pairs[:, 1])

    def describe(self, *, is_removed: bool) -> str:
        """Returns the counts as text, and whether the documents are removed from training."""
        how = (", removed" if is_removed else "; corpus.decontaminate removes them") if len(self.documents) else ""
        short = f"; {self.short_items:,} shorter items are not compared" if self.short_items else ""
        article = "an" if self.ngram_words in (8, 11) else "a"
        return (
            f"{self.shared_items:,} of {self.items:,} items share {article} {self.ngram_words}-gram with "
            f"{len(self.documents):,} of {self.searched_documents:,} training documents{how}{short}"
        )


class Words(NamedTuple):
    """The words of some documents, one after another; both arrays are (words,)."""

    hashes: np.ndarray
    """uint64."""
    document_of: np.ndarray
    """int64, ascending."""


class WordReader:
    """Reads the words of documents from their ids.

    A word's hash is a sum over its letters, so that it does not depend on the pieces that the word was cut into.
    """

    def __init__(self, tokenizer: Tokenizer):
        fragments = [_fragments(piece) for piece in tokenizer.pieces()]
        self._counts = np.array([len(each) for each in fragments])
        flat = [fragment for each in fragments for fragment in each]
        self._powers = np.multiply.accumulate(np.full(_PLACES, _LETTER_BASE))
        self._begins = np.array([begins for begins, _ in flat])
        self._lengths = np.array([len(letters) for _, letters in flat], np.int32)
        self._hashes = np.array([self._hash(letters) for _, letters in flat], np.uint64)

    def read(self, documents: Sequence[np.ndarray]) -> Words:
        """Returns the words of documents, each of which is its ids."""
        ids = np.concatenate([np.empty(0, np.int64), *documents])
        return self.read_joined(ids, np.array([len(document) for document in documents], np.int64))

    def read_joined(self, ids: np.ndarray, sizes: np.ndarray) -> Words:
        """Returns the words of documents given their concatenated ids.

        Args:
            ids: int64 (tokens,).
            sizes: int64 (documents,), the tokens of each.
        """
        fragments, sizes = self._cut(ids, sizes)
        if not len(fragments):
            return Words(np.empty(0, np.uint64), np.empty(0, np.int64))
        first_of_documents = np.cumsum(sizes) - sizes
        begins = self._begins[fragments]
        begins[first_of_documents[sizes > 0]] = True
        starts = np.flatnonzero(begins)
        lengths = self._lengths[fragments]
        places = np.cumsum(lengths, dtype=np.int32) - lengths
        places_in_word = places - np.repeat(places[starts], np.diff(starts, append=len(fragments)))
        shares = self._hashes[fragments] * self._powers.take(places_in_word, mode="clip")
        hashes = np.add.reduceat(shares, starts)
        document_of = np.searchsorted(first_of_documents, starts, side="right") - 1
        is_word = np.diff(places[starts], append=places[-1] + lengths[-1]) > 0
        hashes = hashes[is_word]
        return Words((hashes ^ (hashes >> np.uint64(32))) * _MIX, document_of[is_word])

    def _hash(self, letters: str) -> np.uint64:
        codes = np.array([ord(letter) for letter in letters], np.uint64)
        return np.sum(codes * self._powers[: len(codes)], dtype=np.uint64)

    def _cut(self, ids: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the word fragments of documents of these sizes, and their numbers."""
        if len(self._hashes) == len(self._counts):  # Most vocabularies have no space within a piece.
            return ids, sizes
        counts = self._counts[ids]
        ends = np.cumsum(counts)
        first_of_pieces = np.cumsum(self._counts) - self._counts
        fragments = np.repeat(first_of_pieces[ids] - ends + counts, counts) + np.arange(counts.sum())
        document_of = np.repeat(np.arange(len(sizes)), sizes)
        return fragments, np.bincount(document_of, counts, minlength=len(sizes)).astype(np.int64)


def _fragments(piece: bytes) -> list[tuple[bool, str]]:
    """Returns the fragments of words in a piece: whether each begins a word, and its letters."""
    try:
        first, *rest = re.split(r"\s+", piece.decode().lower())
    except UnicodeDecodeError:  # A byte of a character.
        return [(False, "".join(chr(0x10FF00 + byte) for byte in piece))]
    fragments = [*([(False, first)] if first or not rest else []), *((True, each) for each in rest)]
    return [(begins, "".join(c for c in letters if c.isalnum())) for begins, letters in fragments]


def find_contamination(
    training: Shards, tokenizer: Tokenizer, tasks: Mapping[str, Sequence[str]], cache: Path
) -> dict[str, Contamination]:
    """Returns what each task shares with the training documents of a corpus, by the task's name.

    For the same tasks the shards are read once: 16 million tokens a second on one core, a sixteenth of the time of
    preparing them.

    Args:
        tasks: the texts of a task's items, by its name.
        cache: folder for the results.
    """

    def find() -> dict:
        reader = WordReader(tokenizer)
        words = [reader.read(tokenizer.encode_batch(texts, threads=usable_processors())) for texts in tasks.values()]
        counts = [
            np.bincount(each.document_of, minlength=len(texts))
            for each, texts in zip(words, tasks.values(), strict=True)
        ]
        indexes = [_make_index(each, _ngram_words(count)) for each, count in zip(words, counts, strict=True)]
        found = {}
        for name, count, index, pairs in zip(tasks, counts, indexes, _search(training, reader, indexes), strict=True):
            short_items = int((count < index.ngram_words).sum())
            found[name] = Contamination(index.ngram_words, len(count), short_items, len(training), pairs)._asdict()
            found[name]["pairs"] = pairs.tolist()
        return found

    items = hashlib.sha256(json.dumps({name: list(tasks[name]) for name in sorted(tasks)}).encode()).hexdigest()
    identity = [_VERSION, shards_identity(training), training.manifest.tokenizer_digest, items]
    found = remembered(cache / "contamination", identity, find)
    return {
        name: Contamination(**found[name] | {"pairs": np.array(found[name]["pairs"], np.int64).reshape(-1, 2)})
        for name in tasks
    }


def _search(training: Shards, reader: WordReader, indexes: Sequence["_Index"]) -> list[np.ndarray]:
    """Returns the pairs of an item and a document for each of the indexes, each once and in ascending order."""

    def search(documents: range) -> list[np.ndarray]:
        numbers = np.arange(documents.start, documents.stop)
        words = reader.read_joined(training.read_documents(numbers).astype(np.int64), training.tokens[numbers])
        return [pairs + np.array([0, documents.start]) for pairs in _collisions(words, indexes)]

    found = [[np.empty((0, 2), np.int64) for _ in indexes]]
    with (
        progress_bar(desc="searching for items of tasks", unit=" tokens", total=int(training.tokens.sum())) as bar,
        ThreadPoolExecutor(os.cpu_count()) as executor,
    ):
        batches = batches_of_documents(training.tokens, _BATCH_TOKENS)
        while some := list(itertools.islice(batches, _BATCHES_AHEAD)):
            for documents, pairs in zip(some, executor.map(search, some), strict=True):
                found.append(pairs)
                bar.update(int(training.tokens[documents.start : documents.stop].sum()))
    return [np.unique(np.concatenate(pairs), axis=0) for pairs in zip(*found, strict=True)]


class _Index(NamedTuple):
    """The n-grams of a task's items."""

    ngram_words: int
    hashes: np.ndarray
    """uint64 (n-grams,), ascending."""
    items: np.ndarray
    """int64 (n-grams,), of each."""
    is_possible: np.ndarray
    """bool (a power of two,), whether a hash begins with these bits: this excludes nearly all others at once."""


def _make_index(words: Words, ngram_words: int) -> _Index:
    hashes, is_within = _ngrams(words, [ngram_words])[ngram_words]
    hashes, items = hashes[is_within], words.document_of[: len(hashes)][is_within]
    order = np.argsort(hashes, kind="stable")
    is_possible = np.zeros(1 << (32 * len(hashes) + 1).bit_length(), bool)
    is_possible[_first_bits(hashes, is_possible)] = True
    return _Index(ngram_words, hashes[order], items[order], is_possible)


def _collisions(words: Words, indexes: Sequence[_Index]) -> list[np.ndarray]:
    """Returns, for each index, the pairs of an item and a document that share an n-gram, int64 (pairs, 2)."""
    ngrams = _ngrams(words, {index.ngram_words for index in indexes})
    found = []
    for index in indexes:
        hashes, is_within = ngrams[index.ngram_words]
        places = np.flatnonzero(index.is_possible[_first_bits(hashes, index.is_possible)] & is_within)
        first, stop = (np.searchsorted(index.hashes, hashes[places], side) for side in ("left", "right"))
        counts = stop - first
        of_items = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        found.append(np.stack([index.items[of_items], np.repeat(words.document_of[places], counts)], axis=1))
    return found


def _ngrams(words: Words, sizes: Collection[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Returns, for n-grams of each of some sizes, their hashes, and whether they lie within a document."""
    found, hashes = {}, words.hashes
    for size in range(2, max(sizes) + 1):
        hashes = hashes[:-1] * _WORD_BASE + words.hashes[size - 1 :]
        if size in sizes:
            found[size] = hashes * _MIX, words.document_of[: len(hashes)] == words.document_of[size - 1 :]
    return found


def _first_bits(hashes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Returns the first bits of hashes, as an index into a table."""
    return hashes >> np.uint64(65 - len(table).bit_length())


def _ngram_words(words_of_items: np.ndarray) -> int:
    """Returns the number of words in a task's n-grams."""
    return int(np.clip(np.percentile(words_of_items, 5), _SHORTEST, _LONGEST))
