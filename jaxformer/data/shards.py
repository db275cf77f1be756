"""Token shards: the ids of every document on disk, written once and verified.

A folder of shards is a TFDS dataset in ArrayRecord form (random access, a checksum per chunk, no TensorFlow), with
the splits `train` and `validation`, beside `index.npz` (tokens and bytes of every document) and `manifest.json` (counts
and digests). `preparation` makes it.
"""

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxformer.config import UserError, require
from jaxformer.host.digests import file_digests
from jaxformer.host.paths import literal_path

SPLITS = ("train", "validation")

# Bump when the same documents and tokenizer would give other shards.
FORMAT_VERSION = 4

# Tokens of a record; a document's records but the last are of just this length.
RECORD_TOKENS = 2048


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds."""

    documents: dict[str, int]
    tokens: dict[str, int]
    text_bytes: dict[str, int]
    """`documents`, `tokens` and `text_bytes`: counts by split; tokens without BOS and EOS."""
    duplicates: int
    """Documents left out as exact repetitions of another."""
    empty: int
    """Documents left out because they hold nothing but whitespace."""
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
    """Training tokens at which reading ended (`corpus.tokens`); 0 where all was read."""
    corpus_digest: str
    source_digest: str
    """That of the corpus whatever the budget."""
    tokenizer_digest: str
    index_digest: str
    """`corpus_digest`, `tokenizer_digest` and `index_digest`: hexadecimal SHA-256."""
    shard_digests: dict[str, dict[str, str]]
    """Hexadecimal SHA-256 of each shard file, by split and name."""
    format_version: int
    keys: int = 0
    """How many the documents have, by which they are split; 0 where nobody has counted."""
    bad: int = 0
    """Records left out because they are bad (`corpus.skip_bad_records`)."""
    first_bad: list[str] = field(default_factory=list)
    """What is wrong with the first few of them, and where."""


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
        """Returns ids [start, stop) of a document, without BOS and EOS."""
        return self.read_pieces(*(np.array([each]) for each in (document, start, stop)))[0]

    def read_pieces(self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Returns ids [start, stop) of each of some documents, without BOS and EOS.

        All records are read by one call: each call of ArrayRecord's costs time in proportion to the records of a file,
        3 to 17 ms where these are 1.6 million short documents, whether it reads one record or thousands.

        Args:
            documents, starts, stops: int64 (pieces,).

        Raises:
            UserError: a shard file is damaged or missing.
        """
        dtype = id_dtype(self.manifest.vocabulary_size)
        first = starts // RECORD_TOKENS
        counts = np.where(stops > starts, (stops - 1) // RECORD_TOKENS + 1 - first, 0)
        begins = np.cumsum(counts) - counts
        of_piece = np.arange(counts.sum()) - np.repeat(begins, counts)
        numbers = np.repeat(self._first_record[documents] + first, counts) + of_piece
        try:
            # Several threads may open it, and each reads what it has opened or found.
            source, _ = self._source = self._source or _open_source(self.folder, self.split)
            records = [_parse(record, dtype) for record in source.__getitems__(numbers.tolist())]
            pieces = []
            columns = (documents, first * RECORD_TOKENS, starts, stops, begins, counts)
            for document, origin, start, stop, begin, count in zip(*(each.tolist() for each in columns), strict=True):
                read = records[begin : begin + count]
                ids = read[0] if count == 1 else np.concatenate([np.empty(0, dtype), *read])
                if count and len(ids) != min(origin + count * RECORD_TOKENS, int(self.tokens[document])) - origin:
                    raise ValueError(f"document {document} is not as long as the index says")
                pieces.append(ids[start - origin : stop - origin])
        except Exception as error:  # ArrayRecord, TFDS and protobuf each raise kinds of their own.
            raise UserError(
                f"token shards {self.folder}: split {self.split!r} cannot be read ({one_line(error)}); "
                "delete the folder and run again to prepare it anew"
            ) from error
        return pieces

    def __getstate__(self):
        return {**self.__dict__, "_source": None}


def open_shards(folder: Path, split: str) -> Shards:
    """Returns one split of a folder of shards, verified.

    A damaged record would otherwise end a run at the step that reads it. A shard file is read whole (1.3 GB/s on one
    core) when it is opened for the first time and when its size or its time of change is not what it was then, which
    `verified.json` remembers. What changes neither, a bit that rots on the disk, is noticed where the record is read:
    each has a checksum of ArrayRecord's. The index is verified each time.

    Raises:
        UserError: the manifest, the index or a shard file is missing, damaged or of another version.
    """
    advice = "delete the folder and run again to prepare it anew"
    try:
        manifest = Manifest(**json.loads((folder / "manifest.json").read_bytes()))
        index_bytes = (folder / "index.npz").read_bytes()
        digests = shard_digests(folder, split)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"token shards {folder}: a file is unreadable ({one_line(error)}); {advice}") from error
    require(manifest.format_version == FORMAT_VERSION, f"token shards {folder}: of another version; {advice}")
    require(
        hashlib.sha256(index_bytes).hexdigest() == manifest.index_digest,
        f"token shards {folder}: index.npz is damaged; {advice}",
    )
    require(
        isinstance(manifest.shard_digests, dict) and digests == manifest.shard_digests.get(split),
        f"token shards {folder}: a file of split {split!r} is damaged or missing; {advice}",
    )
    with np.load(io.BytesIO(index_bytes), allow_pickle=False) as index:
        return Shards(folder, split, manifest, index[f"{split}_tokens"], index[f"{split}_text_bytes"])


def one_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its type where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def id_dtype(vocabulary_size: int) -> type:
    """Returns the type in which ids below a number are kept."""
    return np.uint16 if vocabulary_size <= 1 << 16 else np.int32


def shard_digests(folder: Path, split: str) -> dict[str, str]:
    """Returns the hexadecimal SHA-256 of each shard file of a split, by name; of one that did not change, as it was."""
    paths = sorted((folder / "token_shards").rglob(f"*-{split}.array_record-*"))
    return file_digests({path.name: path for path in paths}, folder / "verified.json")


def _open_source(folder: Path, split: str):
    """Returns the split's records by number, as serialised bytes, and what keeps their path open."""
    import tensorflow_datasets as tfds

    path = contextlib.ExitStack()
    place = path.enter_context(literal_path(folder))
    builder = tfds.builder_from_directory(str(place / "token_shards" / "1.0.0"))
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split=split, deserialize_method=raw)  # pyright: ignore[reportCallIssue]  # Decorated.
    return source, path


def _parse(record: bytes, dtype: type) -> np.ndarray:
    """Returns the ids of a record; TFDS's own decoding, which serves any feature, takes eight times as long."""
    from tensorflow_datasets.proto import tf_example_pb2

    # A protocol buffer's classes are made when it is imported.
    example = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
    return np.frombuffer(example.features.feature["ids"].bytes_list.value[0], dtype)
