"""Token shards: the ids of every document on disk, written once and verified.

A folder of shards is a TFDS dataset in ArrayRecord form (random access, a checksum per record, no TensorFlow), with
the splits `train` and `validation`, beside `index.npz` (tokens and bytes of every document, and which belong together)
and `manifest.json` (counts and digests). `preparation` makes it.

The documents of a split form one stream of ids, end to end in the order of the index. It is cut into records of
`RECORD_TOKENS` and files of `FILE_RECORDS`, at any place; only the last record and the last file are shorter. So the
cost of a record does not depend on the length of the documents, and a document begins at the sum of the lengths before
it.
"""

import functools
import hashlib
import io
import itertools
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.config import UserError, require
from jaxformer.host.digests import file_digests

SPLITS = ("train", "validation")

# Bump when the same documents and tokenizer would give other shards, as with records or files of another size below.
FORMAT_VERSION = 6

# Tokens of a record. A document of 40 tokens is read with its record, which takes 3 us, or 4 us from a record of 2048;
# ArrayRecord's overhead of 80 bytes per record is 4 %.
RECORD_TOKENS = 1024

# Records of a shard file: 128 MiB of ids of 16 bits.
FILE_RECORDS = 1 << 16

# Bytes that ArrayRecord reads at a time: about a record, since the short documents of a row lie in many places.
_READ_BYTES = 4096


@dataclass(frozen=True)
class Manifest:
    """The contents of a folder of shards."""

    documents: dict[str, int]
    tokens: dict[str, int]
    text_bytes: dict[str, int]
    """`documents`, `tokens` and `text_bytes`: counts by split; tokens without BOS and EOS."""
    duplicates: int
    """Documents left out as exact repetitions of another."""
    empty: int
    """Documents left out because they have only whitespace, or nothing that the tokenizer keeps."""
    vocabulary_size: int
    """Vocabulary size of the tokenizer; every id lies in [0, vocabulary_size)."""
    bos_id: int
    eos_id: int
    """`bos_id` and `eos_id`: the marks to put around a document."""
    origin: str
    licence: str
    commit: str
    """Commit of the Hugging Face Hub, whose files were read; '' for files elsewhere."""
    budget: int
    """Training tokens at which reading ended (`corpus.tokens`); 0 if all was read."""
    corpus_digest: str
    source_digest: str
    """The digest of the corpus without the budget."""
    tokenizer_digest: str
    index_digest: str
    """`corpus_digest`, `tokenizer_digest` and `index_digest`: hexadecimal SHA-256."""
    shard_digests: dict[str, dict[str, str]]
    """Hexadecimal SHA-256 of each shard file, by split and name."""
    format_version: int
    keys: int = 0
    """The number of distinct keys of the documents, which decide the split; 0 if not counted."""
    bad: int = 0
    """Records left out because they are bad (`corpus.skip_bad_records`)."""
    first_bad: list[str] = field(default_factory=list)
    """The faults of the first few of them, and their places."""


class Shards:
    """One split of a folder of shards; several threads may read it at once.

    Attributes:
        manifest: of the folder.
        tokens: int64 (documents,), tokens of each document without BOS and EOS.
        text_bytes: int64 (documents,), UTF-8 bytes of each document's text.
        sources: int64 (documents,), the first document with the same key, such as pieces of the same file; only for the
            validation split, empty for training.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        manifest: Manifest,
        tokens: np.ndarray,
        text_bytes: np.ndarray,
        sources: np.ndarray,
    ):
        self.folder = folder
        self.split = split
        self.manifest = manifest
        self.tokens = tokens
        self.text_bytes = text_bytes
        self.sources = sources
        self._ends = np.cumsum(tokens)  # Of the documents, in the stream.
        self._files: _Files | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Returns ids [start, stop) of a document, without BOS and EOS."""
        return self.read_pieces(*(np.array([each]) for each in (document, start, stop)))

    def read_documents(self, documents: np.ndarray) -> np.ndarray:
        """Returns the ids of some whole documents, one after another, without BOS and EOS."""
        return self.read_pieces(documents, np.zeros(len(documents), np.int64), self.tokens[documents])

    def read_pieces(self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Returns ids [start, stop) of each of some documents, one after another, without BOS and EOS.

        Each record that holds any of them is read once, in the order of the files.

        Args:
            documents, starts, stops: int64 (pieces,).

        Raises:
            UserError: a shard file is damaged or missing.
        """
        lengths = stops - starts
        begins = self._ends[documents] - self.tokens[documents] + starts
        first = begins // RECORD_TOKENS
        counts = np.where(lengths > 0, (begins + lengths - 1) // RECORD_TOKENS + 1 - first, 0)
        records = np.unique(np.repeat(first, counts) + _ordinals(counts))
        read = self._read_records(records)
        # The records of a piece are neighbours in the stream, and so in the read ids.
        places = np.searchsorted(records, first) * RECORD_TOKENS + begins - first * RECORD_TOKENS
        return read[np.repeat(places, lengths) + _ordinals(lengths)]

    def _read_records(self, records: np.ndarray) -> np.ndarray:
        """Returns the ids of some ascending records, one after another."""
        dtype = np.dtype(id_dtype(self.manifest.vocabulary_size))
        if not len(records):
            return np.empty(0, dtype)
        last_tokens = min(RECORD_TOKENS, int(self._ends[-1]) - int(records[-1]) * RECORD_TOKENS)
        try:
            # Several threads may open them, and each reads what it has opened or found.
            files = self._files = self._files or _Files(shard_paths(self.folder, self.split))
            read = files.read(records)
            ids = _ids_of(read[:-1], RECORD_TOKENS * dtype.itemsize) + _ids_of(read[-1:], last_tokens * dtype.itemsize)
        except Exception as error:  # ArrayRecord raises several types.
            raise UserError(
                f"token shards {self.folder}: split {self.split!r} cannot be read ({one_line(error)}); "
                "delete the folder and run again to prepare it again"
            ) from error
        return np.frombuffer(b"".join(ids), dtype)

    def __getstate__(self):
        return {**self.__dict__, "_files": None}


class _Files:
    """The files of a split, each opened when it is first read."""

    def __init__(self, paths: list[Path]):
        self._paths = paths
        self._readers: list[Any] = [None] * len(paths)
        self._lock = threading.Lock()

    def read(self, records: np.ndarray) -> list[bytes]:
        """Returns some ascending records of the split.

        Neighbours are read together, and never a list of records: for a list ArrayRecord first makes a table of all
        records of the file, which takes 3 to 60 ms for 1.6 million.
        """
        is_first = (np.diff(records, prepend=-2) > 1) | (records % FILE_RECORDS == 0)
        starts = np.flatnonzero(is_first)
        stops = np.append(starts[1:], len(records))
        files, begins = np.divmod(records[starts], FILE_RECORDS)
        if files.max(initial=0) >= len(self._paths):
            raise ValueError("a file is missing")
        found = []
        for file, begin, length in zip(files.tolist(), begins.tolist(), (stops - starts).tolist(), strict=True):
            found += (self._readers[file] or self._open(file)).read(begin, begin + length)
        return found

    def _open(self, file: int):
        """Returns the reader of a file, for random access."""
        from array_record.python.array_record_module import ArrayRecordReader

        path, options = self._paths[file], "readahead_buffer_size:0,max_parallelism:0"
        with self._lock:
            if self._readers[file] is None:
                reader = ArrayRecordReader(os.fsencode(path), options, file_reader_buffer_size=_READ_BYTES)
                if not reader.ok():
                    raise ValueError(f"{path.name} is damaged or missing")
                self._readers[file] = reader
            return self._readers[file]


def _ids_of(records: list[bytes], size: int) -> list[bytes]:
    """Returns the ids of records, of so many bytes each.

    Parsing with the classes of protocol buffers, which handle any message, takes 2 us more per record.

    Raises:
        ValueError: a record contains anything else.
    """
    head = record_head(size)
    if not all(record.startswith(head) and len(record) == len(head) + size for record in records):
        raise ValueError("a record is not as long as the index says")
    return [record[-size:] for record in records]


@functools.lru_cache
def record_head(size: int) -> bytes:
    """Returns the bytes before ids of so many bytes in a record: the head of a serialised `tf.train.Example`.

    They are the tags and lengths of its nested messages: features, one entry of their map, the name and the value of
    the entry, and in it the list with one string of bytes.
    """
    head = b""
    for tag in (b"\n", b"\n", b"\n\x03ids\x12", b"\n", b"\n"):
        head = tag + _varint(len(head) + size) + head
    return head


def _varint(number: int) -> bytes:
    """Returns a number as protocol buffers write it: 7 bits a byte, the lowest first."""
    return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + _varint(number // 128)


def _ordinals(counts: np.ndarray) -> np.ndarray:
    """Returns 0, 1, ... for each of some counts, one after another."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def open_shards(folder: Path, split: str) -> Shards:
    """Returns one split of a folder of shards, verified.

    Otherwise a damaged record would end a run at the step that reads it. A shard file is read whole (1.3 GB/s on one
    core) when it is first opened, and again if its size or time of change differs from `verified.json`. A flipped bit
    on the disk, which changes neither, is noticed when the record is read: each has a checksum by ArrayRecord. The
    index is verified each time.

    Raises:
        UserError: the manifest, the index or a shard file is missing, damaged or of another version.
    """
    advice = "delete the folder and run again to prepare it again"
    try:
        manifest = Manifest(**json.loads((folder / "manifest.json").read_bytes()))
        is_current = manifest.format_version == FORMAT_VERSION
        index_bytes = (folder / "index.npz").read_bytes()
        digests = shard_digests(folder, split) if is_current else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"token shards {folder}: a file is unreadable ({one_line(error)}); {advice}") from error
    require(is_current, f"token shards {folder}: made by another version; {advice}")
    require(
        hashlib.sha256(index_bytes).hexdigest() == manifest.index_digest,
        f"token shards {folder}: index.npz is damaged; {advice}",
    )
    require(
        isinstance(manifest.shard_digests, dict) and digests == manifest.shard_digests.get(split),
        f"token shards {folder}: a file of split {split!r} is damaged or missing; {advice}",
    )
    with np.load(io.BytesIO(index_bytes), allow_pickle=False) as index:
        sources = index["validation_sources"] if split == "validation" else np.empty(0, np.int64)
        return Shards(folder, split, manifest, index[f"{split}_tokens"], index[f"{split}_text_bytes"], sources)


def batches_of_documents(tokens: np.ndarray, batch_tokens: int) -> Iterator[range]:
    """Yields runs of documents of about so many tokens, or of one longer document.

    Args:
        tokens: int64 (documents,), of each.
    """
    numbers = (np.cumsum(tokens) - tokens) // batch_tokens
    borders = np.unique(np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1, [len(tokens)]]))
    return itertools.starmap(range, itertools.pairwise(borders.tolist()))


def one_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its type if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def id_dtype(vocabulary_size: int) -> type:
    """Returns the type that stores ids below a number."""
    return np.uint16 if vocabulary_size <= 1 << 16 else np.int32


def shard_paths(folder: Path, split: str) -> list[Path]:
    """Returns the shard files of a split, in order."""
    return sorted((folder / "token_shards").rglob(f"*-{split}.array_record-*"))


def shard_digests(folder: Path, split: str) -> dict[str, str]:
    """Returns the hexadecimal SHA-256 of each shard file of a split, by name; for an unchanged file, the stored one."""
    return file_digests({path.name: path for path in shard_paths(folder, split)}, folder / "verified.json")
