"""Documents in: in a fixed order, each with a stable key, from a corpus with a digest, an origin and a licence."""

import hashlib
import itertools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from jaxformer.config import (
    Bounds,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    UserError,
    check_fields,
    execution,
    require,
)
from jaxformer.data.documents import (
    Document,
    help_topics,
    may_be_cut,
    pystdlib_files,
    read_pystdlib,
    read_text,
    to_document,
)
from jaxformer.data.records import (
    SUFFIXES,
    BadRecord,
    Record,
    open_tfds,
    read_jsonl,
    read_parquet,
    read_tfds,
    row_group_bytes,
)
from jaxformer.data.remote import fixed_parts, is_remote
from jaxformer.data.source_files import SourceFile, content_digests, find_files, has_byte_order_mark, pinned

KINDS = ("pystdlib", "text", "jsonl", "parquet", "tfds", "mixture")

# Versions of the reader, by what they changed. Add one where the same files would give other documents, so that nothing
# prepared before is taken for the new.
MARKS_VERSION, PIECES_VERSION = 2, 3

# Text of a part, bytes: enough that opening its file is nothing beside reading it.
PART_BYTES = 128 << 20

# Records of a part of a 'tfds' corpus.
PART_RECORDS = 1 << 16

# Files of a corpus that a sample is taken from, at least: of a larger number as many as hold the sample.
_SAMPLE_FILES = 64

# Of Parquet files only so many that each gives as much text, bytes, but some at least: their pages are read whole, and
# the first one of a text column holds the text of about 1024 rows, 1 or 2 MB when packed.
_PARQUET_SAMPLE_BYTES, _PARQUET_SAMPLE_FILES = 1 << 20, 4


@dataclass(frozen=True)
class CorpusConfig:
    """Where documents come from."""

    kind: Annotated[str, OneOf(*KINDS)]
    """'pystdlib' (the running Python's standard library and help topics; nothing to download), 'text' (each file a
    document, or several if it is long), 'jsonl' (each line an object; plain, .gz or .zst), 'parquet' (each row a
    document), 'tfds' (a dataset of TensorFlow Datasets) or 'mixture' (of `parts`).
    """
    path: str = ""
    """A file, a folder or a glob (`**` enters folders), here or at hf://datasets/OWNER/NAME@REVISION/, gs:// or s3://;
    what is hidden is taken only where a glob names its dot. For 'tfds' a dataset's name or the folder of a prepared
    one. Without a commit as its revision, that of the branch is looked up once and remembered in the cache; `jaxformer
    prepare --newest` looks it up again, and a branch that moved is another corpus.
    """
    split: str = "train"
    """The split of a 'tfds' dataset that is read, or a slice of one."""
    text_field: str = "text"
    """The field of a 'jsonl', 'parquet' or 'tfds' record that holds the text."""
    key_field: str = ""
    """The field that identifies a record; '' for a digest of its text."""
    origin: str = execution("")
    """Where the corpus comes from, recorded with every run; '' for the path."""
    licence: str = execution("")
    """Its licence, recorded with every run. Whoever sets another path or kind states origin and licence anew."""
    validation_share: Annotated[float, Bounds(above=0, below=1)] = 0.02
    """Share of the documents, those with the smallest hashes of their keys, that is kept for validation; at least one
    document is.
    """
    tokens: NonNegativeInt = 0
    """Training tokens that are prepared, without BOS and EOS: documents are taken in reading order until those for
    training hold so many, the last one whole; 0 takes all.
    """
    decontaminate: bool = False
    """Whether training documents that share an n-gram with an item of the tasks in `evaluation.task_data` are removed;
    of a mixture, those of all its parts.
    """
    weight: NonNegativeFloat = 1.0
    """Share of the training rows, in proportion to the other parts' weights, as a part of a mixture; 0 leaves it to a
    phase of the training.
    """
    parts: tuple["CorpusConfig", ...] = ()
    """The corpora of a 'mixture'."""
    skip_bad_records: Annotated[float, Bounds(at_least=0, below=1)] = execution(0.0)
    """Share of the records that may be bad (not UTF-8, not JSON, without the field, with a lone surrogate) and are then
    left out, counted and reported; 0 stops at the first. Of a 'text' file that is not UTF-8 the rest is left out.
    """

    def __post_init__(self):
        check_fields(self, "corpus")
        if self.kind == "mixture":
            require(len(self.parts) >= 2, f"a corpus of kind 'mixture' needs two parts or more, not {len(self.parts)}")
            require(all(p.kind != "mixture" for p in self.parts), "a part of a mixture must not be a mixture")
            require(not self.path, f"a corpus of kind 'mixture' takes no path ({self.path!r}); set it on the parts")
            require(
                not self.tokens, f"a corpus of kind 'mixture' takes no tokens ({self.tokens}); set them on the parts"
            )
            require(
                not self.skip_bad_records,
                f"a corpus of kind 'mixture' takes no skip_bad_records ({self.skip_bad_records}); set it on the parts",
            )
        else:
            require(not self.parts, f"corpus.parts need corpus.kind 'mixture', not {self.kind!r}")
        if self.kind in ("text", "jsonl", "parquet", "tfds"):
            require(bool(self.path), f"corpus.kind {self.kind!r} needs corpus.path")
        if self.kind == "pystdlib":
            require(not self.path, f"corpus.path ({self.path!r}) has no meaning for kind 'pystdlib'; set corpus.kind")


class Part(NamedTuple):
    """What can be read of a corpus by itself: [first, stop) of the files, of a file's row groups or of the records."""

    file: int
    """The number of the file, or of the first one."""
    first: int
    stop: int
    size: int
    """Bytes of the sources, as in `Documents.source_bytes`; of parts of one file in proportion."""


@dataclass(frozen=True)
class Documents:
    """A corpus, opened. Iterating reads it from the start, always in the same order, part by part."""

    config: CorpusConfig
    """What was opened."""
    digest: str
    """Hexadecimal SHA-256 of the sources, of the way in which they are read, and of how much of them."""
    source_digest: str
    """The same for all of them."""
    origin: str
    """Where it comes from."""
    licence: str
    """Its licence."""
    commit: str
    """Commit of the Hugging Face Hub, to which the files are pinned; '' for files elsewhere."""
    files: tuple[SourceFile, ...]
    """The source files, in reading order."""
    source_bytes: int
    """Bytes of the files together, compressed where they are."""
    passed_over: str
    """What lies beside the files and was not taken, and which of them are empty; '' for nothing."""

    def __iter__(self) -> Iterator[Document]:
        for part in self.parts():
            yield from self.read(part)

    def parts(self, file: int | None = None) -> Iterator[Part]:
        """Yields the parts of the corpus, or of one file, in reading order; opens a file when it comes to it.

        A text too long for a part is one all the same.
        """
        chosen = range(len(self.files)) if file is None else range(file, file + 1)
        match self.config.kind:
            case "pystdlib":
                yield Part(0, 0, len(self.files), self.source_bytes)
            case "text":
                yield from self._runs_of_files(chosen)
            case "jsonl":
                yield from (Part(i, 0, 0, self.files[i].size) for i in chosen)
            case "parquet":
                for i in chosen:
                    yield from self._runs_of_row_groups(i)
            case "tfds":
                builder = open_tfds(self.config.path, self.config.split, "corpus.path")
                rows = builder.info.splits[self.config.split].num_examples
                for first in range(0, rows, PART_RECORDS):
                    stop = min(first + PART_RECORDS, rows)
                    size = self.source_bytes * stop // rows - self.source_bytes * first // rows
                    yield Part(0, first, stop, size)

    def read(self, part: Part, skip: int = 0, text_bytes: int = 0) -> Iterator[Document]:
        """Yields the documents of a part, without the first `skip`, bad ones among them.

        What holds none of the others is not read, of Parquet files and TFDS datasets. Other files are read from their
        start: what a line of them begins at is known only then, and a compressed file cannot be entered elsewhere.

        Args:
            text_bytes: about how much text is taken, if it is little, so that little more of a file of records is read;
                0 for all.

        Raises:
            UserError: a file is damaged, or a record is bad and `skip_bad_records` is 0.
        """
        hint = ""
        for found in self._outcomes(part, skip, text_bytes):
            try:
                yield self._to_document(found)
            except BadRecord as error:
                if not self.config.skip_bad_records:
                    raise UserError(f"{error}{hint}") from error
                yield Document("", "", bad=str(error))
            hint = " (corpus.skip_bad_records leaves out a share of bad records)"  # Of the first, all may be like it.

    def _to_document(self, found: Document | Record | BadRecord) -> Document:
        if isinstance(found, BadRecord):
            raise found
        if isinstance(found, Record):
            return to_document(found, self.config.text_field, self.config.key_field)
        return found

    def _outcomes(self, part: Part, skip: int, text_bytes: int) -> Iterator[Document | Record | BadRecord]:
        """Returns what the files hold: documents where there are no records, records, and what is bad among them."""
        config, what, path = self.config, "corpus file", self.files[part.file].path
        columns = [config.text_field, *([config.key_field] if config.key_field else [])]
        match self.config.kind:
            case "pystdlib":
                return itertools.islice(read_pystdlib(self.files), skip, None)
            case "text":
                pieces = read_text(self.files[part.first : part.stop], is_only=len(self.files) == 1)
                return itertools.islice(pieces, skip, None)
            case "jsonl":
                return itertools.islice(read_jsonl([path], what, columns, text_bytes), skip, None)
            case "parquet":
                return read_parquet([path], what, columns, (part.first, part.stop), skip, text_bytes)
            case "tfds":
                builder = open_tfds(config.path, config.split, "corpus.path")
                return read_tfds(builder, config.split, what, columns, (part.first + skip, part.stop))
            case _:
                raise AssertionError(config.kind)

    def sample(self, limit_bytes: int) -> Iterator[Document]:
        """Yields documents of about so much text, bytes, reading little more; all of a corpus that holds no more.

        They are the first of each file, and of the larger files more, where the smaller ones have not enough; of very
        many files some are left out, evenly; of a TFDS dataset they are the first.
        """
        if self.config.kind in ("pystdlib", "tfds"):
            yield from _first(iter(self), limit_bytes)
            return
        count, most = len(self.files), _SAMPLE_FILES
        if self.config.kind == "parquet":
            most = min(most, max(_PARQUET_SAMPLE_FILES, limit_bytes // _PARQUET_SAMPLE_BYTES))
        count = min(count, max(most, math.ceil(count * limit_bytes / max(1, self.source_bytes))))
        chosen = [i * len(self.files) // count for i in range(count)]
        for rank, i in enumerate(sorted(chosen, key=lambda i: self.files[i].size)):
            share = limit_bytes // (count - rank)
            for document in _first(self.read(self._whole(i), text_bytes=max(1, share)), share):
                limit_bytes -= len(document.text.encode())
                yield document

    def _whole(self, file: int) -> Part:
        """Returns a whole file as one part, without opening it."""
        first, stop = (0, sys.maxsize) if self.config.kind == "parquet" else (file, file + 1)
        return Part(file, first, stop, self.files[file].size)

    def _runs_of_files(self, chosen: Sequence[int]) -> Iterator[Part]:
        first, size = chosen[0], 0
        for i in chosen:
            size += self.files[i].size
            if size >= PART_BYTES or i == chosen[-1]:
                yield Part(first, first, i + 1, size)
                first, size = i + 1, 0

    def _runs_of_row_groups(self, file: int) -> Iterator[Part]:
        sizes = np.cumsum([0, *row_group_bytes(self.files[file].path, "corpus file")])
        first = 0
        while first < len(sizes) - 1:
            stop = min(int(np.searchsorted(sizes, sizes[first] + PART_BYTES)), len(sizes) - 1)
            share = (sizes[stop] - sizes[first]) / max(1, sizes[-1])
            yield Part(file, first, stop, int(self.files[file].size * share))
            first = stop


def check_sources(config: CorpusConfig) -> None:
    """Raises `UserError` unless there are files of each part of a corpus; remote places are not looked at."""
    for part in parts_of(config):
        if part.kind == "pystdlib":
            pystdlib_files()
        elif part.kind == "tfds":
            open_tfds(part.path, part.split, "corpus.path")
        elif not is_remote(part.path):
            find_files(part.path, SUFFIXES[part.kind], "corpus.path")


def load_documents(config: CorpusConfig, *, newest: bool = False) -> Documents:
    """Opens a corpus that is not a mixture (open its parts one by one).

    Local files that are new or were written to are read once for the digest (`source_files.content_digests`).

    Args:
        newest: looks up again at which commit a branch of the Hub stands.

    Raises:
        UserError: nothing is found at the path.
    """
    origin, licence = config.origin, config.licence
    extra = commit = passed_over = ""
    if config.kind == "pystdlib":
        files = pystdlib_files()
        origin = origin or f"standard library of Python {sys.version.split()[0]}"
        licence = licence or "PSF-2.0"
        extra = json.dumps(help_topics(), sort_keys=True)
    elif config.kind == "tfds":
        builder = open_tfds(config.path, config.split, "corpus.path")
        paths = sorted(Path(builder.data_dir).iterdir())
        files = tuple(SourceFile(str(path), path.name, path.stat().st_size) for path in paths)
        origin = origin or f"TFDS {builder.info.full_name}"
        licence = licence or str(builder.info.redistribution_info.license or "")
    else:
        path, commit = pinned(config.path, "corpus.path", newest=newest)
        listing = find_files(path, SUFFIXES[config.kind], "corpus.path")
        files, passed_over = listing.files, str(listing)
        origin, extra = origin or path, commit
    reading = [_reader_version(config, files), config.kind, config.split, config.text_field, config.key_field]
    if config.skip_bad_records:
        reading.append(config.skip_bad_records)
    digest = hashlib.sha256(json.dumps([reading, extra]).encode())
    for file, content in zip(files, content_digests(files, "corpus file"), strict=True):
        digest.update(json.dumps([file.name, content]).encode())
    sources = digest.hexdigest()
    whole = hashlib.sha256(json.dumps([sources, config.tokens]).encode()).hexdigest() if config.tokens else sources
    source_bytes = sum(file.size for file in files)
    return Documents(config, whole, sources, origin, licence or "not stated", commit, files, source_bytes, passed_over)


def _reader_version(config: CorpusConfig, files: Sequence[SourceFile]) -> int:
    """Returns the version of the reader that was the last to change something in a corpus, which keeps its digest else.

    Since `MARKS_VERSION` a byte order mark of a text file is no text, for which nobody has looked at a remote place;
    since `PIECES_VERSION` the pieces of one of several files have one key.
    """
    if config.kind != "text":
        return 1
    if len(files) > 1 and any(may_be_cut(file) for file in files):
        return PIECES_VERSION
    return MARKS_VERSION if is_remote(config.path) or any(map(has_byte_order_mark, files)) else 1


def _first(documents: Iterator[Document], limit_bytes: int) -> Iterator[Document]:
    """Yields documents until their texts hold so many bytes, at least one."""
    size = 0
    for document in documents:
        yield document
        size += len(document.text.encode())
        if size >= limit_bytes:
            return


def parts_of(config: CorpusConfig) -> tuple[CorpusConfig, ...]:
    """Returns the corpora that a configuration names: the parts of a mixture, or itself."""
    return config.parts if config.kind == "mixture" else (config,)


def part_names(config: CorpusConfig) -> list[str]:
    """Returns a short name for each of the corpora of `parts_of`, all of them different.

    It is that of the Hub's repository, else that of the file, or of the folder or the one around a glob.
    """
    names = []
    for part in parts_of(config):
        repository = re.match(r"hf://datasets/[^/@]+/([^/@]+)", part.path)
        last = repository[1] if repository else (fixed_parts(Path(part.path).parts) or [""])[-1].partition(".")[0]
        name = re.sub(r"[^\w-]+", "_", last).strip("_") or part.kind
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        names.append(next(each for each in candidates if each not in names))
    return names


def unique_documents(documents: Iterable[Document], counts: Counter) -> Iterator[Document]:
    """Yields each distinct non-empty text once, the first to come; counts what it leaves out.

    Adds to `counts`: 'bad' (records), 'duplicates' (exact repetitions) and 'empty' (nothing but whitespace).
    """
    seen = set()
    for document in documents:
        if document.bad:
            counts["bad"] += 1
            continue
        if not document.text.strip():
            counts["empty"] += 1
            continue
        digest = hashlib.blake2b(document.text.encode(), digest_size=16).digest()
        if digest in seen:
            counts["duplicates"] += 1
            continue
        seen.add(digest)
        yield document


def key_fraction(key: str) -> float:
    """Returns a number in [0, 1) that depends on the key alone and is uniform over keys."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
