"""The tokenizer of a run: trained on its corpus, or given as a file, a folder, or a model of the Hugging Face Hub."""

import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np

from jaxformer.config import Bounds, OneOf, PositiveInt, UserError, check_fields, execution, require
from jaxformer.data.corpus import Documents, part_names, split_fraction, unique_documents
from jaxformer.data.documents import Document
from jaxformer.data.json_tokenizer import JsonTokenizer
from jaxformer.data.sentencepiece_tokenizer import FEWEST_PIECES, SentencePieceTokenizer, train_sentencepiece
from jaxformer.data.tokenizer_files import TOKENIZER_FILES, local_tokenizer
from jaxformer.host.cache import make_once
from jaxformer.host.console import progress_bar
from jaxformer.host.files import require_json
from jaxformer.host.paths import expanded
from jaxformer.record import flatten

# Bump when the same corpora would give another sample, so that older tokenizers are not reused.
SAMPLE_VERSION = 4


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer to train on the corpus, or a given one."""

    path: str = ""
    """A tokenizer to use: a SentencePiece .model file, a tokenizer.json of Hugging Face tokenizers, a folder with one
    of them, or a model of the Hugging Face Hub, as hf://OWNER/NAME@REVISION or by its name, such as gpt2, if no file or
    folder has that name. Its branch is looked up once, as for a corpus. '' trains one on the training documents of the
    corpus.
    """
    vocabulary_size: Annotated[int, Bounds(at_least=FEWEST_PIECES)] = 4096
    """Pieces to train, including specials and 256 bytes, and so at least 300."""
    model_type: Annotated[str, OneOf("bpe", "unigram")] = "bpe"
    """'bpe' or 'unigram'."""
    training_bytes: PositiveInt = 50_000_000
    """Bytes of text to train on; of a larger corpus only the first documents of its files are read."""
    processes: Annotated[int, Bounds(at_least=0, at_most=1024)] = execution(0)
    """Processes that tokenise a corpus and write its shards; 0 for one per available processor, but at most 32, and no
    more than the memory holds at 256 MiB each.
    """

    def __post_init__(self):
        check_fields(self, "tokenizer")


class Tokenizer(Protocol):
    """Text to ids and back. It can be pickled, and two with the same digest do the same.

    Attributes:
        kind: 'sentencepiece' or 'tokenizer.json'.
        is_lossless: whether `decode(encode(text)) == text` for every text; if not, it is for most texts or for few.
        vocabulary_size: ids lie in [0, vocabulary_size); some may have no token.
        bos_id, eos_id: the marks of a document's beginning and end, never produced by `encode`; both may be one.
        bos, eos: their spelling.
        model: the bytes of the model file.
        digest: hexadecimal SHA-256 of what decides the ids.
    """

    kind: str
    is_lossless: bool
    vocabulary_size: int
    bos_id: int
    eos_id: int
    bos: str
    eos: str
    model: bytes
    digest: str

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without BOS and EOS."""
        ...

    def encode_batch(self, texts: Sequence[str], *, threads: int = 1) -> list[np.ndarray]:
        """Returns the ids of each text, int32 (tokens,), computed by some threads outside of Python's lock."""
        ...

    def pieces(self) -> list[bytes]:
        """Returns the UTF-8 bytes that each id stands for; none for marks such as BOS."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; BOS and EOS are left out, and bytes that form no character become U+FFFD."""
        ...

    def files(self) -> dict[str, bytes]:
        """Returns the files of a folder that `load_tokenizer` takes, by name."""
        ...


def prepare_tokenizer(
    corpora: Sequence[Documents], config: TokenizerConfig, cache: Path, *, newest: bool = False
) -> Tokenizer:
    """Returns the given tokenizer, or one trained once on the training documents of some corpora.

    Each corpus gives an equal share of the text, independent of its weight in a mixture, so that runs that differ only
    in the weights share a tokenizer.

    Args:
        corpora: to train on.
        config: of the tokenizer.
        cache: folder for trained and fetched ones.
        newest: looks up the commit of a Hub branch again.
    """
    if config.path:
        path = local_tokenizer(config.path, cache, newest=newest)
        return load_tokenizer(path, name=config.path)

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
    return load_tokenizer(path)


def load_tokenizer(path: str | os.PathLike, *, name: str = "") -> Tokenizer:
    """Returns the tokenizer of a file, or of a folder, as of `tokenizer_file`.

    Args:
        path: a SentencePiece model, or a tokenizer.json, where tokenizer_config.json beside it may name BOS and EOS.
        name: to show in errors; '' for the path.

    Raises:
        UserError: it is missing, is no tokenizer, or is unsuitable: jaxformer needs BOS and EOS and, for a
            SentencePiece model, byte fallback and no normalisation.
    """
    what, target = f"tokenizer.path {name or path}", expanded(os.fspath(path))
    if os.path.isdir(target):
        found = tokenizer_file(target)
        if found is None:
            raise UserError(f"{what}: the folder holds no {' or '.join(TOKENIZER_FILES)}")
        target = found
    try:
        model = target.read_bytes()
        if target.suffix != ".json" and not model.startswith(b"{"):
            return SentencePieceTokenizer(model)
        beside = target.with_name("tokenizer_config.json")
        return JsonTokenizer(model, require_json(beside) if beside.is_file() else {})
    except OSError as error:
        raise UserError(f"{what}: {error.strerror}") from error
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def tokenizer_file(folder: Path) -> Path | None:
    """Returns the file of a folder's tokenizer: tokenizer.model if it can be used, else tokenizer.json, if any."""
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    for file in files[:-1]:
        try:
            load_tokenizer(file)
        except UserError:  # Such as Llama 2's, which loses text.
            continue
        return file
    return files[-1] if files else None  # Loading the last one prints why it is refused.


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """Returns the SentencePiece model trained on some texts, as its file's bytes.

    Raises:
        UserError: the text is too little for the vocabulary.
    """
    return train_sentencepiece(texts, vocabulary_size=config.vocabulary_size, model_type=config.model_type)


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

    It needs no more memory than the limit. Within the limit, the result depends on neither order nor files.
    """
    heap: list[tuple[float, str]] = []
    total = 0
    bound = (-1.0, "")  # the smallest hash that has been dropped, negated: nothing at or beyond it fits
    for document in unique_documents(_shown(documents, limit_bytes), Counter()):
        fraction = split_fraction(document)
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
