"""Text to ids and back with SentencePiece (Kudo & Richardson 2018, arXiv 1808.06226), without loss.

`decode(encode(text)) == text` for every Unicode text: no normalisation, whitespace kept, byte fallback for what the
vocabulary lacks. SentencePiece writes a space as U+2581; that character itself is therefore encoded as its bytes.
"""

import hashlib
import heapq
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import sentencepiece

from jaxformer.config import Bounds, OneOf, PositiveInt, UserError, check_fields, execution, flatten, require
from jaxformer.data.corpus import Documents, key_fraction, part_names, unique_documents
from jaxformer.data.documents import Document
from jaxformer.host.cache import make_once
from jaxformer.host.console import progress_bar
from jaxformer.host.paths import expanded

SPACE_MARK = "\u2581"


# Specials, 256 bytes, and room for characters.
_FEWEST_PIECES = 300

# Bump when the same corpora would give another sample, so that no tokenizer trained before is taken for the new.
SAMPLE_VERSION = 4


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer to train on the corpus, or a given one."""

    path: str = ""
    """A SentencePiece .model file to use; '' trains one on the training documents of the corpus."""
    vocabulary_size: Annotated[int, Bounds(at_least=_FEWEST_PIECES)] = 4096
    """Pieces to train, specials and 256 bytes among them, and so at least 300."""
    model_type: Annotated[str, OneOf("bpe", "unigram")] = "bpe"
    """'bpe' or 'unigram'."""
    training_bytes: PositiveInt = 50_000_000
    """Text to train on, bytes; of a larger corpus the first documents of its files, and nothing else is read."""
    threads: Annotated[int, Bounds(at_least=0, at_most=1024)] = execution(0)
    """Threads to encode with; 0 for one per processor."""

    def __post_init__(self):
        check_fields(self, "tokenizer")


class Tokenizer:
    """A SentencePiece model that loses nothing.

    Attributes:
        vocabulary_size: ids lie in [0, vocabulary_size).
        bos_id, eos_id: the marks of a document's beginning and end, never produced by `encode`.
        model: the bytes of the model file.
        digest: hexadecimal SHA-256 of them.
    """

    def __init__(self, model: bytes, *, threads: int = 0):
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._threads = threads or os.cpu_count() or 1
        self.model = model
        self.digest = hashlib.sha256(model).hexdigest()
        self.vocabulary_size = self._processor.vocab_size()
        self.bos_id = self._processor.bos_id()
        self.eos_id = self._processor.eos_id()
        self._space_mark_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without BOS and EOS."""
        if SPACE_MARK not in text:
            return self._processor.encode(text)
        first, *rest = text.split(SPACE_MARK)
        ids = self._processor.encode(first)
        for part in rest:
            ids += self._space_mark_ids + self._processor.encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32 (tokens,), computed by several threads outside of Python's lock."""
        marked = [i for i, text in enumerate(texts) if SPACE_MARK in text]
        plain = list(texts)
        for i in marked:
            plain[i] = ""
        encoded = self._processor.encode(plain, return_type="numpy", num_threads=self._threads)
        for i in marked:
            encoded[i] = np.array(self.encode(texts[i]), np.int32)
        return encoded

    def pieces(self) -> list[bytes]:
        """Returns the UTF-8 bytes that each id stands for; none for marks such as BOS."""
        processor, found = self._processor, []
        for i in range(self.vocabulary_size):
            piece = processor.id_to_piece(i)
            if processor.is_byte(i):
                found.append(bytes([int(piece[3:-1], 16)]))
            else:
                is_mark = processor.is_control(i) or processor.is_unknown(i)
                found.append(b"" if is_mark else piece.replace(SPACE_MARK, " ").encode())
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; BOS and EOS are left out, and bytes that form no character become U+FFFD."""
        return self._processor.decode([int(i) for i in ids])


def prepare_tokenizer(corpora: Sequence[Documents], config: TokenizerConfig, cache: Path) -> Tokenizer:
    """Returns the given tokenizer, or the one trained on the training documents of some corpora, trained once.

    Each corpus gives an equal share of the text whatever its weight in a mixture, so that runs which differ only in
    the weights share a tokenizer.
    """
    if config.path:
        return load_tokenizer(config.path, threads=config.threads)

    def train(path: Path) -> None:
        limit = max(1, config.training_bytes // len(corpora))
        texts = []
        for documents in corpora:
            sample = sample_texts(documents, limit)
            require(bool(sample), f"corpus {documents.origin}: {_no_sample(documents, limit)}")
            texts += sample
        path.write_bytes(train_tokenizer(texts, config))

    sources = [[d.source_digest, d.config.validation_share] for d in corpora]
    identity = [SAMPLE_VERSION, flatten(config, science_only=True), sources]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    path = make_once(cache / "tokenizers" / f"{name}.model", train, "training the tokenizer")
    return load_tokenizer(path, threads=config.threads)


def _no_sample(documents: Documents, limit_bytes: int) -> str:
    """Returns why a sample is empty."""
    config = documents.config
    counts = Counter()
    if count := sum(1 for _ in unique_documents(documents.sample(limit_bytes), counts)):
        return (
            f"no document to train the tokenizer on; all {count:,} that were read are for validation, by their keys "
            f"(corpus.key_field {config.key_field!r}, corpus.validation_share {config.validation_share})"
        )
    bad = next((document.bad for document in documents.sample(limit_bytes) if document.bad), "")
    left_out = f"; {counts['bad']:,} records are bad: {bad}" if bad else ""
    return f"no document with text to train the tokenizer on{left_out}"


def sample_texts(documents: Documents, limit_bytes: int) -> list[str]:
    """Returns the training texts of `Documents.sample`, those whose keys have the smallest hashes first.

    It holds no more than the limit in memory, and of a corpus that is no larger depends on neither order nor files.
    """
    heap: list[tuple[float, str]] = []
    total = 0
    bound = (-1.0, "")  # the smallest hash that has been dropped, negated: nothing at or beyond it fits
    for document in unique_documents(_shown(documents, limit_bytes), Counter()):
        fraction = key_fraction(document.key)
        entry = (-fraction, document.text)
        if fraction < documents.config.validation_share or entry <= bound:
            continue
        heapq.heappush(heap, entry)
        total += len(document.text.encode())
        while total > limit_bytes and len(heap) > 1:
            bound = heapq.heappop(heap)
            total -= len(bound[1].encode())
    return [text for _, text in sorted(heap, reverse=True)]


def _shown(documents: Documents, limit_bytes: int) -> Iterator[Document]:
    """Yields the documents of `Documents.sample`, and shows how much text they hold so far."""
    name, total = part_names(documents.config)[0], min(limit_bytes, documents.source_bytes)
    with progress_bar(desc=f"sampling {name} for the tokenizer", unit="B", total=total) as bar:
        for document in documents.sample(limit_bytes):
            bar.update(len(document.text.encode()))
            yield document


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """Returns the SentencePiece model trained on some texts, as its file's bytes.

    Raises:
        UserError: the text is too little for the vocabulary.
    """
    lines = (line for text in texts for line in text.split("\n"))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_cut(lines, 4000),
            model_writer=model,
            model_type=config.model_type,
            vocab_size=config.vocabulary_size,
            # Losslessness.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            user_defined_symbols=["\n"],
            character_coverage=0.9999,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=1 << 20,
            # Constant, because it is written into the model: the digest must not depend on the machine.
            num_threads=16,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the tokenizer could not be trained with tokenizer.vocabulary_size {config.vocabulary_size}: "
            f"{_cause(str(error))}"
        ) from error
    return model.getvalue()


def _cause(error: str) -> str:
    """Returns what is wrong and what to do, from an error of SentencePiece: 'INTERNAL: a.cc(1) [condition] text'."""
    if most := re.search(r"size too high .* value <= (\d+)", error):
        text = f"its text is too little, or too uniform, and gives {most[1]} pieces"
        return f"{text}; {f'set {most[1]} or less, or ' if int(most[1]) >= _FEWEST_PIECES else ''}give it more text"
    if fewest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return f"its text has more characters than that; set {fewest[1]} or more, and model.vocabulary_size as large"
    if "!sentences_.empty()" in error:
        return "it has no text"
    return error.strip().splitlines()[-1].rpartition("] ")[2]


def load_tokenizer(path: str | os.PathLike, *, threads: int = 0) -> Tokenizer:
    """Returns the tokenizer of a SentencePiece .model file.

    Raises:
        UserError: the file is missing, is no SentencePiece model, or lacks what jaxformer needs: BOS, EOS, byte
            fallback, and no normalisation.
    """
    try:
        tokenizer = Tokenizer(expanded(os.fspath(path)).read_bytes(), threads=threads)
    except OSError as error:
        raise UserError(f"tokenizer.path {path}: {error.strerror}") from error
    except RuntimeError as error:
        raise UserError(f"tokenizer.path {path}: not a SentencePiece model") from error
    require(tokenizer.bos_id >= 0 and tokenizer.eos_id >= 0, f"tokenizer.path {path}: it has no BOS or no EOS piece")
    probe = "  a\tb\n\n\u0000 ¼ﬁ \u2581\U0001f9ea e\u0301  "
    require(
        tokenizer.decode(tokenizer.encode(probe)) == probe,
        f"tokenizer.path {path}: it loses text (train it with byte_fallback, normalization_rule_name=identity, "
        "add_dummy_prefix=false and remove_extra_whitespaces=false)",
    )
    return tokenizer


def _cut(lines: Iterable[str], length: int) -> Iterable[str]:
    """Yields the non-empty lines, long ones in pieces: the trainer's cost grows with the length of a line."""
    for line in lines:
        for first in range(0, len(line), length):
            yield line[first : first + length]
