"""The kinds of corpora, a class each: where its documents are, and how they are read in parts."""

import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from jaxformer.config import UserError
from jaxformer.data.documents import (
    Document,
    help_topics,
    may_be_cut,
    pystdlib_files,
    read_only_text,
    read_pystdlib,
    read_text,
)
from jaxformer.data.globs import has_suffix
from jaxformer.data.reader import Reader, check_path, read_own
from jaxformer.data.records import (
    OTHER_TEXTS,
    SUFFIXES,
    BadRecord,
    Record,
    open_tfds,
    read_jsonl,
    read_parquet,
    read_tfds,
    row_group_bytes,
)
from jaxformer.data.remote import is_remote
from jaxformer.data.source_files import Listing, SourceFile, find_files, has_byte_order_mark, pinned
from jaxformer.host.paths import expanded

# Versions of the reader, by their change. Add one if the same files would give other documents, so that older prepared
# data are not reused.
MARKS_VERSION, PIECES_VERSION, ONLY_VERSION = 2, 3, 5

# Text of a part, bytes: enough that opening its file takes little of the time.
PART_BYTES = 128 << 20

# Records of a part of a 'tfds' corpus.
PART_RECORDS = 1 << 16

# The fewest files that a sample is taken from; more if the sample needs them.
_SAMPLE_FILES = 64

# For Parquet files, bytes of text that each should give, and the fewest files: their pages are read whole, and the
# first page of a text column holds the text of about 1024 rows, 1 or 2 MB when packed.
_PARQUET_SAMPLE_BYTES, _PARQUET_SAMPLE_FILES = 1 << 20, 4


class CorpusPart(NamedTuple):
    """A part of a corpus that can be read by itself: [first, stop) of the files, a file's row groups or the records."""

    file: int
    """The number of the file, or of the first one."""
    first: int
    stop: int
    size: int
    """Bytes of the sources, as in `Documents.source_bytes`; in proportion for parts of one file."""


class Sources(NamedTuple):
    """The sources of a corpus, and what is known about them."""

    files: tuple[SourceFile, ...]
    """In reading order."""
    origin: str
    licence: str = ""
    commit: str = ""
    """Of the Hugging Face Hub, to which the files are pinned."""
    passed_over: str = ""
    """Files that were not taken, and which of the taken ones are empty."""
    beside_files: str = ""
    """What the documents depend on, beside the files."""


@dataclass(frozen=True)
class Kind:
    """A kind of corpus, with its fields of a `CorpusConfig`. By default it consists of files, some of them per part."""

    path: str
    split: str
    text_field: str
    key_field: str
    validation_share: float
    tokens: int

    needs_path: ClassVar[bool] = True
    """Whether it needs a path; else it must have none."""
    is_sampled_by_file: ClassVar[bool] = True
    """Whether a sample is taken from each file; else from the beginning of the corpus."""

    def suffixes(self) -> tuple[str, ...]:
        """Returns the suffixes of its files, for a folder."""
        return ()

    def check(self) -> None:
        """Raises `UserError` unless its sources exist; remote places are not checked."""
        if not is_remote(self.path):
            self.listing(self.path)

    def listing(self, path: str) -> Listing:
        """Returns the files at a path; raises `UserError` if there are none."""
        return find_files(path, self.suffixes(), "corpus.path")

    def find(self, *, newest: bool = False) -> Sources:
        """Returns its sources.

        Args:
            newest: looks up the commit of a Hub branch again.
        """
        path, commit = pinned(self.path, "corpus.path", newest=newest)
        listing = self.listing(path)
        return Sources(listing.files, path, commit=commit, passed_over=str(listing), beside_files=commit)

    def version(self, files: Sequence[SourceFile]) -> int:
        """Returns the last version of its reader that changed something in a corpus of some files."""
        return 1

    def parts(self, files: Sequence[SourceFile], chosen: Sequence[int]) -> Iterator[CorpusPart]:
        """Yields the parts of the chosen files, by their numbers, in reading order."""
        first, size = chosen[0], 0
        for i in chosen:
            size += files[i].size
            if size >= PART_BYTES or i == chosen[-1]:
                yield CorpusPart(first, first, i + 1, size)
                first, size = i + 1, 0

    def whole(self, files: Sequence[SourceFile], file: int) -> CorpusPart:
        """Returns a whole file as one part, without opening it."""
        return CorpusPart(file, file, file + 1, files[file].size)

    def read(
        self, files: Sequence[SourceFile], part: CorpusPart, skip: int, text_bytes: int
    ) -> Iterator[Document | Record | BadRecord]:
        """Yields the contents of a part: documents, or records and bad records.

        Args:
            skip, text_bytes: as of `Documents.read`.
        """
        raise NotImplementedError

    def files_to_sample(self, limit_bytes: int) -> int:
        """Returns the fewest files that a sample of so much text is taken from."""
        return _SAMPLE_FILES

    def shared_keys(self, documents: int, keys: int) -> str:
        """Returns a line on documents that share keys."""
        return (
            f"the {documents:,} documents have {keys:,} keys (corpus.key_field {self.key_field!r}), and documents of "
            "one key stay together"
        )

    def one_key(self) -> str:
        """Returns why documents with one key cannot be split, and what to do."""
        return (
            "all have one key, and documents of one key stay together; set corpus.key_field "
            f"({self.key_field!r}) to a field that identifies a record, or to '' for a digest of its text"
        )

    def _columns(self) -> list[str]:
        return [self.text_field, *([self.key_field] if self.key_field else [])]


class _StandardLibrary(Kind):
    """The running Python's standard library and help topics."""

    needs_path = is_sampled_by_file = False

    def check(self) -> None:
        pystdlib_files()

    def find(self, *, newest: bool = False) -> Sources:
        origin = f"standard library of Python {sys.version.split()[0]}"
        topics = json.dumps(help_topics(), sort_keys=True)
        return Sources(pystdlib_files(), origin, "PSF-2.0", beside_files=topics)

    def parts(self, files, chosen):
        yield CorpusPart(0, 0, len(files), sum(file.size for file in files))

    def read(self, files, part, skip, text_bytes):
        return itertools.islice(read_pystdlib(files), skip, None)


class _Text(Kind):
    """Text files, each a document, or several if it is long."""

    def suffixes(self):
        return SUFFIXES["text"]

    def listing(self, path):
        """Returns files named .txt; for a local folder without any, other text files."""
        try:
            return super().listing(path)
        except UserError:
            if not os.path.isdir(expanded(path)):
                raise
            return find_files(path, SUFFIXES["text"] + OTHER_TEXTS, "corpus.path")

    def version(self, files):
        """Since `MARKS_VERSION` a byte order mark is no text; remote places are not checked for one.

        Since `PIECES_VERSION` the pieces of one of several files have one key; since `ONLY_VERSION` the end of a single
        file is for validation, as several documents.
        """
        if self._share_of_end(files):
            return ONLY_VERSION
        if len(files) > 1 and any(may_be_cut(file) for file in files):
            return PIECES_VERSION
        return MARKS_VERSION if is_remote(self.path) or any(map(has_byte_order_mark, files)) else 1

    def read(self, files, part, skip, text_bytes):
        is_only, chosen = len(files) == 1, files[part.first : part.stop]
        pieces = read_only_text(files[0], self._share_of_end(files)) if is_only else read_text(chosen)
        return itertools.islice(pieces, skip, None)

    def _share_of_end(self, files: Sequence[SourceFile]) -> float:
        """Returns the share at the end of a single file that is for validation; 0 if a budget may end it before."""
        is_whole = len(files) == 1 and (not self.tokens or self.tokens >= files[0].size)
        return self.validation_share if is_whole else 0.0

    def shared_keys(self, documents, keys):
        return f"the {documents:,} documents are pieces of {keys:,} files, and those of one file stay together"

    def one_key(self):
        return (
            "all are pieces of one file, and those stay together where there are others; give it alone, or with more "
            "files"
        )


class _JsonLines(Kind):
    """Files of JSON lines, each a record."""

    def suffixes(self):
        return SUFFIXES["jsonl"]

    def parts(self, files, chosen):
        return (CorpusPart(i, 0, 0, files[i].size) for i in chosen)

    def read(self, files, part, skip, text_bytes):
        records = read_jsonl([files[part.file].path], "corpus file", self._columns(), text_bytes)
        return itertools.islice(records, skip, None)


class _Parquet(Kind):
    """Parquet files, each row a record; a run of row groups is a part."""

    def suffixes(self):
        return SUFFIXES["parquet"]

    def parts(self, files, chosen):
        for file in chosen:
            sizes = np.cumsum([0, *row_group_bytes(files[file].path, "corpus file")])
            first = 0
            while first < len(sizes) - 1:
                stop = min(int(np.searchsorted(sizes, sizes[first] + PART_BYTES)), len(sizes) - 1)
                share = (sizes[stop] - sizes[first]) / max(1, sizes[-1])
                yield CorpusPart(file, first, stop, int(files[file].size * share))
                first = stop

    def whole(self, files, file):
        return CorpusPart(file, 0, sys.maxsize, files[file].size)

    def read(self, files, part, skip, text_bytes):
        row_groups = (part.first, part.stop)
        return read_parquet([files[part.file].path], "corpus file", self._columns(), row_groups, skip, text_bytes)

    def files_to_sample(self, limit_bytes):
        return min(_SAMPLE_FILES, max(_PARQUET_SAMPLE_FILES, limit_bytes // _PARQUET_SAMPLE_BYTES))


class _Tfds(Kind):
    """A dataset of TensorFlow Datasets; a run of records is a part."""

    is_sampled_by_file = False

    def check(self):
        self._open()

    def find(self, *, newest: bool = False) -> Sources:
        builder = self._open()
        paths = sorted(Path(builder.data_dir).iterdir())
        files = tuple(SourceFile(str(path), path.name, path.stat().st_size) for path in paths)
        return Sources(files, f"TFDS {builder.info.full_name}", str(builder.info.redistribution_info.license or ""))

    def parts(self, files, chosen):
        rows, source_bytes = self._open().info.splits[self.split].num_examples, sum(file.size for file in files)
        for first in range(0, rows, PART_RECORDS):
            stop = min(first + PART_RECORDS, rows)
            yield CorpusPart(0, first, stop, source_bytes * stop // rows - source_bytes * first // rows)

    def read(self, files, part, skip, text_bytes):
        rows = (part.first + skip, part.stop)
        return read_tfds(self._open(), self.split, "corpus file", self._columns(), rows)

    def _open(self):
        return open_tfds(self.path, self.split, "corpus.path")


@dataclass(frozen=True)
class _Own(Kind):
    """A corpus read by your own reader."""

    reader: Reader

    def suffixes(self):
        return self.reader.suffixes

    def check(self):
        check_path(self.reader, self.path)
        if self.path:
            super().check()

    def find(self, *, newest: bool = False) -> Sources:
        check_path(self.reader, self.path)
        return super().find(newest=newest) if self.path else Sources((), repr(self.reader))

    def parts(self, files, chosen):
        return super().parts(files, chosen) if files else iter([CorpusPart(0, 0, 0, 0)])

    def read(self, files, part, skip, text_bytes):
        found = read_own(self.reader, files[part.first : part.stop] if files else [None])
        return itertools.islice(found, skip, None)

    def shared_keys(self, documents, keys):
        return f"the {documents:,} documents have {keys:,} keys, and documents of one key stay together"

    def one_key(self):
        return "all have one key, and documents of one key stay together; let the reader give each its own, or none"


KINDS: dict[str, type[Kind]] = {
    "pystdlib": _StandardLibrary,
    "text": _Text,
    "jsonl": _JsonLines,
    "parquet": _Parquet,
    "tfds": _Tfds,
}


def kind_of(
    named: str | Reader, path: str, split: str, text_field: str, key_field: str, validation_share: float, tokens: int
) -> Kind:
    """Returns the kind of `CorpusConfig.kind`, except a mixture, with other fields of a `CorpusConfig`."""
    taken = (path, split, text_field, key_field, validation_share, tokens)
    return KINDS[named](*taken) if isinstance(named, str) else _Own(*taken, named)


def kind_at(path: str, named: str | Reader) -> str | Reader:
    """Returns the kind of a corpus at another path: as before, if it reads such files, or by their names.

    Args:
        path: as of `CorpusConfig`; of a remote one only its suffix counts.
        named: the kind before.

    Raises:
        UserError: it took no path, and the names of the files show no kind, or several; or a folder has more other
            texts than files of the kind, which would be skipped.
    """
    own = named.suffixes if isinstance(named, Reader) else SUFFIXES.get(named, ())
    every = tuple(dict.fromkeys((*sum(SUFFIXES.values(), ()), *OTHER_TEXTS, *own)))
    if named == "mixture" or (named == "tfds" and not has_suffix(path, every)):
        return named
    try:
        names = _names_at(path, every)
    except UserError as error:
        if own:  # Opening it says the same.
            return named
        raise UserError(f"{error}; for a TFDS dataset set corpus.kind=tfds") from error

    def count(suffixes: tuple[str, ...]) -> int:
        return sum(has_suffix(name, suffixes) for name in names)

    others = {suffix: count((suffix,)) for suffix in OTHER_TEXTS}
    found = [kind for kind, suffixes in SUFFIXES.items() if count(suffixes)] or ["text"] * any(others.values())
    if own and (count(own) or len(found) != 1):  # The kind stays.
        if isinstance(named, Reader):
            return named
        found = [named]
    read = sum(count(SUFFIXES[kind]) for kind in found)
    # In a folder, other texts are read only if there is nothing else.
    passed_over = sum(others.values()) if read and os.path.isdir(expanded(path)) else 0
    if len(found) == 1 and passed_over <= read:
        return found[0]
    problem = "files of several kinds" if found else "of no kind by its name"
    choices = f"set corpus.kind to {' or '.join(found or [*SUFFIXES, 'tfds'])}"
    if passed_over > read:
        most = max(others, key=others.__getitem__)
        problem += f", most of them {most}"
        choices += f", or corpus.path to a glob such as {path.rstrip('/')}/**/*{most}"
    raise UserError(f"corpus.path {path}: {problem}; {choices}")


def _names_at(path: str, suffixes: tuple[str, ...]) -> list[str]:
    """Returns the names of the files at a path, as far as they are known without a remote request."""
    if has_suffix(path, suffixes) or is_remote(path):
        return [path]
    return [file.name for file in find_files(path, suffixes, "corpus.path").files]
