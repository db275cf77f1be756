"""A corpus in chunks: runs of documents, tokenised once each into a file that is whole or absent.

A chunk depends only on its documents and the tokenizer, so any process or machine can make it, at any time, after any
number of killed ones. Chunks of a part are numbered; the last one is marked.
"""

import hashlib
import io
import itertools
import json
import shutil
import zipfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.config import UserError
from jaxformer.data import kinds
from jaxformer.data.corpus import Documents, split_fraction
from jaxformer.data.documents import Document
from jaxformer.data.kinds import CorpusPart
from jaxformer.data.reader import Reader
from jaxformer.data.remote import DamagedTransfer, is_remote
from jaxformer.data.shards import id_dtype
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.host.console import format_size, print_notice
from jaxformer.host.files import write_whole
from jaxformer.host.workers import Ready, Workers

# Text of a chunk, characters: it takes a processor a quarter of a second. A killed preparation loses that much on each
# processor, and at the end all but one wait at most that long.
CHUNK_CHARACTERS = 1_000_000

# Bump when the same documents would be cut in another way.
_LAYOUT_VERSION = 2

# Bad records that are reported one by one.
FIRST_BAD = 3


class Run(NamedTuple):
    """The documents that become a chunk, in columns, which pass a pipe several times as fast as rows."""

    texts: list[str]
    fractions: list[float]
    """`texts`, and the number that decides their split (`split_fraction`), of documents with more than whitespace."""
    bad: list[str]
    """What is wrong with the bad records, and where."""
    read: int
    """Documents, and bad records."""
    is_last: bool
    """Whether it ends its part."""


class Chunk(NamedTuple):
    """The tokenised documents of a run, without those of which the tokenizer keeps nothing."""

    ids: np.ndarray
    """Ids of all of them, one after another."""
    tokens: np.ndarray
    text_bytes: np.ndarray
    """`tokens` and `text_bytes`: int32 (documents,), of each."""
    digests: np.ndarray
    """16 bytes (documents,), of its text."""
    fractions: np.ndarray
    """float64 (documents,), decides its split: the hash of its key, or its place in a single text."""
    read: np.ndarray
    """Documents of the run, including those without text, and bad records."""
    is_last: np.ndarray
    """Whether it ends its part."""
    bad: np.ndarray = np.array(0)
    """Bad records of the run, which are left out."""
    first_bad: np.ndarray = np.empty(0, np.str_)
    """What is wrong with the first few of them, and where."""


def encode_chunk(run: Run, tokenizer: Tokenizer) -> Chunk:
    """Returns the chunk of some documents."""
    encoded = tokenizer.encode_batch(run.texts)
    if not tokenizer.is_lossless:  # It may keep nothing of a text, such as control characters.
        kept = [i for i, ids in enumerate(encoded) if ids.size]
        run = run._replace(texts=[run.texts[i] for i in kept], fractions=[run.fractions[i] for i in kept])
        encoded = [encoded[i] for i in kept]
    tokens = np.array([len(ids) for ids in encoded], np.int32)
    ids = np.concatenate([np.empty(0, np.int32), *encoded])
    if not tokens.all() or ids.min(initial=0) < 0 or ids.max(initial=0) >= tokenizer.vocabulary_size:
        is_wrong = [each.size == 0 or each.min() < 0 or each.max() >= tokenizer.vocabulary_size for each in encoded]
        text = run.texts[is_wrong.index(True)]
        raise AssertionError(f"document {text!r:.60} has ids outside of the tokenizer's vocabulary")
    bytes_of = [text.encode() for text in run.texts]
    return Chunk(
        ids=ids.astype(id_dtype(tokenizer.vocabulary_size)),
        tokens=tokens,
        text_bytes=np.array([len(each) for each in bytes_of], np.int32),
        digests=np.array([hashlib.blake2b(each, digest_size=16).digest() for each in bytes_of], "V16"),
        fractions=np.array(run.fractions, np.float64),
        read=np.array(run.read),
        is_last=np.array(run.is_last),
        bad=np.array(len(run.bad)),
        first_bad=np.array(run.bad[:FIRST_BAD], np.str_),
    )


def open_chunks(folder: Path) -> None:
    """Creates a folder of chunks, or empties one whose chunks are cut in another way, as by other code."""
    layout = folder / "layout.json"
    cut = [_LAYOUT_VERSION, kinds.PART_BYTES, kinds.PART_RECORDS, CHUNK_CHARACTERS]
    content = json.dumps(cut).encode()
    if not (layout.exists() and layout.read_bytes() == content):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_whole(layout, content)


def chunk_path(folder: Path, part: int, number: int) -> Path:
    """Returns the path of a chunk of a part in a folder of chunks."""
    return folder / f"{part:06d}_{number:06d}.npz"


def write_chunk(path: Path, chunk: Chunk) -> None:
    """Writes a chunk, whole or not at all; a power failure may damage it, which `read_chunk` notices."""
    file = io.BytesIO()
    np.savez(file, **chunk._asdict())
    write_whole(path, file.getvalue(), sync=False)


def read_chunk(path: Path, *, with_ids: bool) -> Chunk | None:
    """Returns a chunk, without its ids unless wanted; None if it is absent or damaged (by its CRCs)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            wanted = [name for name in Chunk._fields if with_ids or name != "ids"]
            wanted = [name for name in wanted if name in file or name not in Chunk._field_defaults]
            return Chunk(**{"ids": np.empty(0), **{name: file[name] for name in wanted}})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


class Stored(NamedTuple):
    """A chunk stored in its file."""

    path: Path
    part: CorpusPart
    """The part that it belongs to."""
    chunk: Chunk
    """Chunk without its ids."""
    is_new: bool
    """Whether it was made just now."""


def tokenise(
    documents: Documents, parts: Iterable[tuple[int, CorpusPart]], tokenizer: Tokenizer, folder: Path, workers: Workers
) -> Generator[Stored, None, None]:
    """Yields the chunks of some parts of a corpus in reading order, once each is stored; makes missing ones.

    This process reads, and the workers tokenise and store: reading takes a thirtieth of the time of tokenising, and a
    corpus may be one file that can only be read from its start.

    Args:
        parts: with their numbers.
    """
    damaged: list[int] = []
    to_make = (each for number, part in parts for each in _chunks_of(documents, part, number, folder, damaged))
    try:
        yield from workers.map(partial(_store, tokenizer), to_make)
    finally:
        if damaged:
            workers.close()  # No process writes more of them.
        for number in damaged:
            for path in folder.glob(f"{number:06d}_*.npz"):
                path.unlink()


def stored_chunks(part: CorpusPart, number: int, folder: Path) -> list[Stored]:
    """Returns the stored chunks of a part, up to the first missing one."""
    found: list[Stored] = []
    while not (found and found[-1].chunk.is_last):
        path = chunk_path(folder, number, len(found))
        chunk = read_chunk(path, with_ids=False)
        if chunk is None:
            break
        found.append(Stored(path, part, chunk, is_new=False))
    return found


def _chunks_of(
    documents: Documents, part: CorpusPart, number: int, folder: Path, damaged: list[int]
) -> Iterator[Ready | tuple[Path, CorpusPart, Run]]:
    """Yields the chunks of a part: stored ones, and for the others the documents to make them of.

    Args:
        damaged: called with the number of the part if its file is damaged.
    """
    found = stored_chunks(part, number, folder)
    yield from map(Ready, found)
    if found and found[-1].chunk.is_last:
        return
    done = sum(int(each.chunk.read) for each in found)
    if done and documents.config.kind == "jsonl" and is_remote(documents.files[part.file].path):
        file = documents.files[part.file]
        print_notice(
            f"corpus file {file.path}: {done:,} of its documents are tokenised already; they are only read again, "
            f"from its start ({format_size(file.size)} in all)"
        )
    try:
        to_come = documents.read(part, skip=done)
        if isinstance(documents.config.kind, Reader):
            to_come = _behind(documents.read(part), done, [each.chunk for each in found])
        for count, run in enumerate(_runs(to_come), start=len(found)):
            yield chunk_path(folder, number, count), part, run
    except (DamagedTransfer, _OtherDocuments):  # It is unknown which bytes, or documents, are wrong.
        damaged.append(number)
        raise


class _OtherDocuments(UserError):
    """A reader yields other documents than it did."""


def _behind(documents: Iterator[Document], done: int, chunks: Sequence[Chunk]) -> Iterator[Document]:
    """Returns the documents after the first `done`; raises unless the stored chunks were made from those."""
    expected = deque(digest for chunk in chunks for digest in chunk.digests.tolist())
    for document in itertools.islice(documents, done):
        if expected and hashlib.blake2b(document.text.encode(), digest_size=16).digest() == expected[0]:
            expected.popleft()
    if expected:
        raise _OtherDocuments(
            "corpus.kind: the reader yields other documents than before, or in another order, and the tokenised ones "
            "are dropped; make it read in a fixed order, and run again"
        )
    return documents


def _store(tokenizer: Tokenizer, to_make: tuple[Path, CorpusPart, Run]) -> Stored:
    """Makes the chunk of a run of documents, and stores it; run by a worker."""
    path, part, run = to_make
    chunk = encode_chunk(run, tokenizer)
    write_chunk(path, chunk)
    return Stored(path, part, chunk._replace(ids=np.empty(0)), is_new=True)


def _runs(documents: Iterable[Document]) -> Iterator[Run]:
    """Yields the runs of documents that become chunks; at least one, if an empty one."""
    texts, fractions, bad, read, size = [], [], [], 0, 0
    for document in documents:
        if size >= CHUNK_CHARACTERS:
            yield Run(texts, fractions, bad, read, False)
            texts, fractions, bad, read, size = [], [], [], 0, 0
        read += 1
        size += len(document.text)
        if document.bad:
            bad.append(document.bad)
        elif document.text and not document.text.isspace():
            texts.append(document.text)
            fractions.append(split_fraction(document))
    yield Run(texts, fractions, bad, read, True)
