"""Token shards: the ids of every document on disk, written once and verified.

A folder of shards is a TFDS dataset in ArrayRecord form (random access, a checksum per chunk, no TensorFlow), with
the splits `train` and `validation`, beside `index.npz` (tokens and bytes of every document) and `manifest.json` (counts
and digests). It is built under another name and renamed when it is complete, so a folder that exists is whole.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxformer.cache import make_once
from jaxformer.config import UserError, require
from jaxformer.corpus import Document, Documents, is_validation, key_fraction, unique_documents
from jaxformer.tokenizer import Tokenizer

SPLITS = ("train", "validation")

# Bump when the same documents and tokenizer would give other shards.
FORMAT_VERSION = 2

# Tokens of a record; a document's records but the last are of just this length.
RECORD_TOKENS = 2048

# Text that is tokenised at once: enough for all threads, little enough to see progress.
_CHUNK_CHARACTERS = 1_000_000

# Ids in one shard file, bytes, as long as the sizes of the sources foretell how many shards there will be.
_SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    documents, tokens, text_bytes: counts by split; tokens without BOS and EOS.
    duplicates: documents left out as exact repetitions of another.
    empty: documents left out because they hold nothing but whitespace.
    vocabulary_size: of the tokenizer; every id lies in [0, vocabulary_size).
    bos_id, eos_id: the marks to put around a document.
    corpus_digest, tokenizer_digest, index_digest: hexadecimal SHA-256.
    shard_digests: hexadecimal SHA-256 of the shard files by split.
    """

    documents: dict[str, int]
    tokens: dict[str, int]
    text_bytes: dict[str, int]
    duplicates: int
    empty: int
    vocabulary_size: int
    bos_id: int
    eos_id: int
    origin: str
    licence: str
    corpus_digest: str
    tokenizer_digest: str
    index_digest: str
    shard_digests: dict[str, str]
    format_version: int


class Shards:
    """One split of a folder of shards.

    A long document is several records, so that reading a piece of it costs a piece's time.

    Attributes:
        manifest: of the folder.
        tokens: int64 (documents,), tokens of each document without BOS and EOS.
        text_bytes: int64 (documents,), UTF-8 bytes of each document's text.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest, tokens: np.ndarray, text_bytes: np.ndarray):
        self.folder = folder
        self.split = split
        self.manifest = manifest
        self.tokens = tokens
        self.text_bytes = text_bytes
        records = -(-tokens // RECORD_TOKENS)
        self._first_record = np.cumsum(records) - records
        self._source = None

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Returns ids [start, stop) of a document, without BOS and EOS.

        Raises:
            UserError: a shard file is damaged or missing.
        """
        dtype = _id_dtype(self.manifest.vocabulary_size)
        if start >= stop:
            return np.empty(0, dtype)
        first, last = start // RECORD_TOKENS, (stop - 1) // RECORD_TOKENS
        base = int(self._first_record[document])
        try:
            if self._source is None:
                self._source = _open_source(self.folder, self.split)
            records = [_parse(self._source[base + i], dtype) for i in range(first, last + 1)]
            ids = records[0] if len(records) == 1 else np.concatenate(records)
            if len(ids) != min((last + 1) * RECORD_TOKENS, int(self.tokens[document])) - first * RECORD_TOKENS:
                raise ValueError(f"document {document} is not as long as the index says")
        except Exception as error:  # ArrayRecord, TFDS and protobuf each raise kinds of their own.
            raise UserError(
                f"token shards {self.folder}: split {self.split!r} cannot be read ({one_line(error)}); "
                "delete the folder and run again to prepare it anew"
            ) from error
        return ids[start - first * RECORD_TOKENS : stop - first * RECORD_TOKENS]

    def __getstate__(self):
        return {**self.__dict__, "_source": None}


def prepare(documents: Documents, tokenizer: Tokenizer, cache: Path, *, progress: bool = True) -> Path:
    """Tokenises a corpus into `cache` unless that was done before; returns the folder of its shards.

    Of several processes that prepare the same corpus, one works and the others wait for it. Validation documents
    (their ids) are held in memory meanwhile.

    Raises:
        UserError: the corpus leaves no document in one of the splits.
    """
    identity = [FORMAT_VERSION, documents.digest, documents.config.validation_share, tokenizer.digest]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return make_once(
        cache / "shards" / name,
        lambda folder: _write(documents, tokenizer, folder, progress),
        f"preparing {documents.origin}",
    )


def open_shards(folder: Path, split: str) -> Shards:
    """Returns one split of a folder of shards, whose files are read once to verify them (1.3 GB/s on one core).

    A damaged record would otherwise end a run at the step that reads it.

    Raises:
        UserError: the manifest, the index or a shard file is missing, damaged or of another version.
    """
    advice = "delete the folder and run again to prepare it anew"
    try:
        manifest = Manifest(**json.loads((folder / "manifest.json").read_text()))
        index_bytes = (folder / "index.npz").read_bytes()
        shard_digest = _digest(folder, split)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"token shards {folder}: a file is unreadable ({one_line(error)}); {advice}") from error
    require(manifest.format_version == FORMAT_VERSION, f"token shards {folder}: of another version; {advice}")
    require(
        hashlib.sha256(index_bytes).hexdigest() == manifest.index_digest,
        f"token shards {folder}: index.npz is damaged; {advice}",
    )
    require(
        isinstance(manifest.shard_digests, dict) and shard_digest == manifest.shard_digests.get(split),
        f"token shards {folder}: a file of split {split!r} is damaged or missing; {advice}",
    )
    with np.load(folder / "index.npz", allow_pickle=False) as index:
        return Shards(folder, split, manifest, index[f"{split}_tokens"], index[f"{split}_text_bytes"])


def one_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its type where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _write(documents: Documents, tokenizer: Tokenizer, folder: Path, progress: bool) -> None:
    """Writes shards, index and manifest into a new folder."""
    smallest = _write_split(documents, tokenizer, folder, documents.config.validation_share, progress)
    if smallest is not None:
        # A small corpus may have no document below the share; then the one of smallest hash is kept for validation.
        shutil.rmtree(folder)
        _write_split(documents, tokenizer, folder, np.nextafter(smallest, 1.0), progress)


def _write_split(
    documents: Documents, tokenizer: Tokenizer, folder: Path, threshold: float, progress: bool
) -> float | None:
    """Writes the folder with documents whose key's hash is below the threshold as validation.

    Returns None, or, where that leaves no document to validate, the smallest hash; the folder is then not finished.
    """
    counts: Counter = Counter()
    sizes = {split: ([], []) for split in SPLITS}
    kept_for_validation = []
    smallest = 1.0

    def training_ids() -> Iterator[np.ndarray]:
        nonlocal smallest
        bar = tqdm(
            desc=f"tokenising {documents.origin}",
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
            leave=False,
        )
        with bar:
            for document, ids in _encoded(unique_documents(documents, counts), tokenizer):
                text_bytes = len(document.text.encode())
                smallest = min(smallest, key_fraction(document.key))
                split = "validation" if is_validation(document.key, threshold) else "train"
                tokens, sized = sizes[split]
                tokens.append(len(ids))
                sized.append(text_bytes)
                bar.update(text_bytes)
                if split == "train":
                    yield ids
                else:
                    kept_for_validation.append(ids)

    shard_count = max(1, -(-documents.source_bytes // _SHARD_BYTES))
    training_stream = training_ids()
    shards = [_take(training_stream, _SHARD_BYTES) for _ in range(shard_count - 1)] + [training_stream]
    _write_array_records(folder, {"train": shards, "validation": [kept_for_validation]}, tokenizer)
    found = {split: len(sizes[split][0]) for split in SPLITS}
    require(
        sum(found.values()) >= 2 and found["train"] > 0,
        f"corpus {documents.origin}: {sum(found.values())} documents with text cannot be split into training and "
        "validation; it takes two or more",
    )
    if not found["validation"]:
        return smallest
    index = {}
    for split in SPLITS:
        tokens, sized = sizes[split]
        index[f"{split}_tokens"] = np.array(tokens, np.int64)
        index[f"{split}_text_bytes"] = np.array(sized, np.int64)
    np.savez(folder / "index.npz", **index)
    manifest = Manifest(
        documents={split: len(sizes[split][0]) for split in SPLITS},
        tokens={split: sum(sizes[split][0]) for split in SPLITS},
        text_bytes={split: sum(sizes[split][1]) for split in SPLITS},
        duplicates=counts["duplicates"],
        empty=counts["empty"],
        vocabulary_size=tokenizer.vocabulary_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        origin=documents.origin,
        licence=documents.licence,
        corpus_digest=documents.digest,
        tokenizer_digest=tokenizer.digest,
        index_digest=hashlib.sha256((folder / "index.npz").read_bytes()).hexdigest(),
        shard_digests={split: _digest(folder, split) for split in SPLITS},
        format_version=FORMAT_VERSION,
    )
    (folder / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest), indent=2))
    return None


def _encoded(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[Document, np.ndarray]]:
    """Yields each document with its ids; the next chunk is encoded while one is consumed."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        pending = None
        for chunk in _chunks(documents):
            encoding = executor.submit(tokenizer.encode_batch, [document.text for document in chunk])
            if pending:
                yield from _checked(*pending, tokenizer)
            pending = chunk, encoding
        if pending:
            yield from _checked(*pending, tokenizer)


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _checked(chunk: list[Document], encoding: Future, tokenizer: Tokenizer) -> Iterator[tuple[Document, np.ndarray]]:
    dtype = _id_dtype(tokenizer.vocabulary_size)
    for document, ids in zip(chunk, encoding.result(), strict=True):
        if ids.size == 0 or ids.min() < 0 or ids.max() >= tokenizer.vocabulary_size:
            raise AssertionError(f"document {document.key!r} has ids outside of the tokenizer's vocabulary")
        yield document, ids.astype(dtype)


def _id_dtype(vocabulary_size: int) -> type:
    return np.uint16 if vocabulary_size <= 1 << 16 else np.int32


def _take(stream: Iterator[np.ndarray], limit_bytes: int) -> Iterator[np.ndarray]:
    """Yields from the front of a stream until the arrays reach a number of bytes."""
    size = 0
    while size < limit_bytes and (ids := next(stream, None)) is not None:
        size += ids.nbytes
        yield ids


def _write_array_records(folder: Path, shards: dict[str, list[Iterable[np.ndarray]]], tokenizer: Tokenizer) -> None:
    """Writes each split's documents in order, in records, as a TFDS dataset in ArrayRecord form."""
    import tensorflow_datasets as tfds

    def examples(documents: Iterable[np.ndarray]):
        pieces = (ids[i : i + RECORD_TOKENS] for ids in documents for i in range(0, len(ids), RECORD_TOKENS))
        for number, ids in enumerate(pieces):
            yield number, {"ids": ids}

    with tfds.core.registered.skip_registration():

        class TokenShards(tfds.core.ShardBasedBuilder):
            """Records of token ids, in the order of the index."""

            VERSION = tfds.core.Version("1.0.0")
            name = "token_shards"

            def _info(self):
                ids = tfds.features.Tensor(shape=(None,), dtype=_id_dtype(tokenizer.vocabulary_size), encoding="bytes")
                features = tfds.features.FeaturesDict({"ids": ids})
                return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

            def _shard_iterators_per_split(self, dl_manager):
                return {split: [partial(examples, shard) for shard in parts] for split, parts in shards.items()}

    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints about downloads; there are none.
        builder = TokenShards(data_dir=str(folder), file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    shutil.rmtree(folder / "downloads", ignore_errors=True)


def _digest(folder: Path, split: str) -> str:
    """Returns the hexadecimal SHA-256 of a split's shard files, in order."""
    digest = hashlib.sha256()
    for path in sorted((folder / "token_shards").rglob(f"*-{split}.array_record-*")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _open_source(folder: Path, split: str):
    """Returns the split's records by number, as serialised bytes."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder / "token_shards" / "1.0.0"))
    return builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)


def _parse(record: bytes, dtype: type) -> np.ndarray:
    """Returns the ids of a record; TFDS's own decoding, which serves any feature, takes eight times as long."""
    from tensorflow_datasets.proto import tf_example_pb2

    return np.frombuffer(tf_example_pb2.Example.FromString(record).features.feature["ids"].bytes_list.value[0], dtype)
