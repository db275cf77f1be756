"""A corpus in chunks: runs of documents, tokenised once each into a file that is whole or absent.

What a chunk turns into depends on its documents and the tokenizer alone, so it does not matter which process or machine
makes it, when, or after how many that were killed. Chunks of a part are numbered; the last one says so.
"""

import hashlib
import io
import json
import shutil
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.data import corpus
from jaxformer.data.corpus import Document, Documents, Part, key_fraction
from jaxformer.data.remote import DamagedTransfer, is_remote
from jaxformer.data.shards import id_dtype
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.host.console import format_size, print_notice
from jaxformer.host.files import write_whole

# Text of a chunk, characters: enough for all threads, little enough that a killed preparation loses seconds.
CHUNK_CHARACTERS = 8_000_000

# Bump when the same documents would be cut in another way.
_LAYOUT_VERSION = 1

# Bad records that are reported one by one.
FIRST_BAD = 3


class Chunk(NamedTuple):
    """The documents of a run that hold text of which the tokenizer keeps something, tokenised."""

    ids: np.ndarray
    """Ids of all of them, one after another."""
    tokens: np.ndarray
    text_bytes: np.ndarray
    """`tokens` and `text_bytes`: int32 (documents,), of each."""
    digests: np.ndarray
    """16 bytes (documents,), of its text."""
    fractions: np.ndarray
    """float64 (documents,), the hash of its key, which decides its split."""
    read: np.ndarray
    """Documents of the run, also those that hold no text, and bad records."""
    is_last: np.ndarray
    """Whether it ends its part."""
    bad: np.ndarray = np.array(0)
    """Records of the run that are left out, as they are bad."""
    first_bad: np.ndarray = np.empty(0, np.str_)
    """What is wrong with the first few of them, and where."""


def encode_chunk(documents: list[Document], tokenizer: Tokenizer, is_last: bool) -> Chunk:
    """Returns the chunk of some documents."""
    chosen = [document for document in documents if document.text.strip()]
    encoded = tokenizer.encode_batch([document.text for document in chosen])
    if not tokenizer.is_lossless:  # One may keep nothing of a text, as of control characters.
        chosen = [document for document, ids in zip(chosen, encoded, strict=True) if ids.size]
        encoded = [ids for ids in encoded if ids.size]
    for document, ids in zip(chosen, encoded, strict=True):
        if ids.size == 0 or ids.min() < 0 or ids.max() >= tokenizer.vocabulary_size:
            raise AssertionError(f"document {document.key!r} has ids outside of the tokenizer's vocabulary")
    bad = [document.bad for document in documents if document.bad]
    bytes_of = [document.text.encode() for document in chosen]
    return Chunk(
        ids=np.concatenate([np.empty(0, np.int32), *encoded]).astype(id_dtype(tokenizer.vocabulary_size)),
        tokens=np.array([len(ids) for ids in encoded], np.int32),
        text_bytes=np.array([len(each) for each in bytes_of], np.int32),
        digests=np.array([hashlib.blake2b(each, digest_size=16).digest() for each in bytes_of], "V16"),
        fractions=np.array([key_fraction(document.key) for document in chosen], np.float64),
        read=np.array(len(documents)),
        is_last=np.array(is_last),
        bad=np.array(len(bad)),
        first_bad=np.array(bad[:FIRST_BAD], np.str_),
    )


def open_chunks(folder: Path) -> None:
    """Creates a folder of chunks, or empties one whose chunks are cut in another way, as by code of another day."""
    layout = folder / "layout.json"
    cut = [_LAYOUT_VERSION, corpus.PART_BYTES, corpus.PART_RECORDS, CHUNK_CHARACTERS]
    content = json.dumps(cut).encode()
    if not (layout.exists() and layout.read_bytes() == content):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_whole(layout, content)


def chunk_path(folder: Path, part: int, number: int) -> Path:
    """Returns where a chunk of a part lies in a folder of chunks."""
    return folder / f"{part:06d}_{number:06d}.npz"


def write_chunk(path: Path, chunk: Chunk) -> None:
    """Writes a chunk, whole or not at all."""
    file = io.BytesIO()
    np.savez(file, **chunk._asdict())
    write_whole(path, file.getvalue())


def read_chunk(path: Path, *, with_ids: bool) -> Chunk | None:
    """Returns a chunk, without its ids unless they are wanted; None where it is absent or damaged (by its CRCs)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            wanted = [name for name in Chunk._fields if with_ids or name != "ids"]
            wanted = [name for name in wanted if name in file or name not in Chunk._field_defaults]
            return Chunk(**{"ids": np.empty(0), **{name: file[name] for name in wanted}})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


class Stored(NamedTuple):
    """A chunk that lies in its file."""

    path: Path
    part: Part
    """The part that it belongs to."""
    chunk: Chunk
    """Chunk without its ids."""
    is_new: bool
    """Whether it was made just now."""


def tokenise(documents: Documents, tokenizer: Tokenizer, folder: Path) -> Iterator[Stored]:
    """Yields the chunks of a corpus in reading order, once each is stored; makes those that are not.

    Two chunks are tokenised at a time, each by all threads, so that no processor waits for the slowest thread of one,
    while another is read and yet another is stored. Threads do as well as processes here (6.7 against 6.3 MB/s on two
    cores), and share their memory.
    """
    with ThreadPoolExecutor(max_workers=2) as executor:
        waiting: deque[Stored | _Coming] = deque()
        for number, part in enumerate(documents.parts()):
            for task in _chunks_of(documents, part, number, tokenizer, folder, executor):
                waiting.append(task)
                while len(waiting) > 2:
                    yield _stored(waiting.popleft())
        while waiting:
            yield _stored(waiting.popleft())


def tokenise_part(documents: Documents, part: Part, number: int, tokenizer: Tokenizer, folder: Path) -> None:
    """Stores the chunks of one part that are not stored yet."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        for task in _chunks_of(documents, part, number, tokenizer, folder, executor):
            _stored(task)


def stored_chunks(part: Part, number: int, folder: Path) -> list[Stored]:
    """Returns the chunks of a part that are stored, from its first to the one before the first that is not."""
    found: list[Stored] = []
    while not (found and found[-1].chunk.is_last):
        path = chunk_path(folder, number, len(found))
        chunk = read_chunk(path, with_ids=False)
        if chunk is None:
            break
        found.append(Stored(path, part, chunk, is_new=False))
    return found


def _chunks_of(
    documents: Documents, part: Part, number: int, tokenizer: Tokenizer, folder: Path, executor: ThreadPoolExecutor
) -> Iterator["Stored | _Coming"]:
    """Yields the chunks of a part: those that are stored, and the others as they are being made."""
    found = stored_chunks(part, number, folder)
    yield from found
    if found and found[-1].chunk.is_last:
        return
    done, file = sum(int(each.chunk.read) for each in found), documents.files[part.file]
    if done and documents.config.kind == "jsonl" and is_remote(file.path):
        print_notice(
            f"corpus file {file.path}: {done:,} documents of it are tokenised; those are read again, not tokenised "
            f"again, from its start ({format_size(file.size)} in all)"
        )
    rest = documents.read(part, skip=done)
    try:
        for count, (run, is_last) in enumerate(_runs(rest), start=len(found)):
            path = chunk_path(folder, number, count)
            yield _Coming(path, part, executor.submit(encode_chunk, run, tokenizer, is_last))
    except DamagedTransfer:  # Noticed at the end of a file: which of its bytes are wrong, nobody knows.
        for path in folder.glob(f"{number:06d}_*.npz"):
            path.unlink()
        raise


class _Coming(NamedTuple):
    """A chunk that is being made."""

    path: Path
    part: Part
    chunk: Future


def _stored(task: Stored | _Coming) -> Stored:
    """Returns a chunk once it is stored."""
    if isinstance(task, Stored):
        return task
    chunk = task.chunk.result()
    write_chunk(task.path, chunk)
    return Stored(task.path, task.part, chunk._replace(ids=None), is_new=True)


def _runs(documents: Iterable[Document]) -> Iterator[tuple[list[Document], bool]]:
    """Yields the runs of documents that become chunks, and whether each is the last; at least one, if an empty one."""
    run, size = [], 0
    for document in documents:
        if size >= CHUNK_CHARACTERS:
            yield run, False
            run, size = [], 0
        run.append(document)
        size += len(document.text)
    yield run, True
