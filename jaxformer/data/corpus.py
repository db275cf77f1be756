"""Documents in: in a fixed order, each with a stable key, from a corpus with a digest, an origin and a licence."""

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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
from jaxformer.data.documents import Document, to_document
from jaxformer.data.globs import has_suffix
from jaxformer.data.kinds import KINDS, CorpusPart, Kind, kind_of
from jaxformer.data.reader import Reader
from jaxformer.data.records import PACKED, BadRecord, Record
from jaxformer.data.remote import fixed_parts, is_remote
from jaxformer.data.source_files import SourceFile, content_digests
from jaxformer.record import flatten


@dataclass(frozen=True)
class CorpusConfig:
    """Where documents come from."""

    kind: Annotated[str, OneOf(*KINDS, "mixture")] | Reader
    """'pystdlib' (the running Python's standard library and help topics; nothing to download), 'text' (each file a
    document, or several if it is long), 'jsonl' (each line an object; plain, .gz or .zst), 'parquet' (each row a
    document), 'tfds' (a dataset of TensorFlow Datasets) or 'mixture' (of `parts`); or a `Reader` of your own.
    """
    path: str = ""
    """A file, a folder or a glob (`**` enters folders), here or at hf://datasets/OWNER/NAME@REVISION/, gs:// or s3://.
    Hidden files are taken only if a glob names their dot. For 'tfds' a dataset's name or the folder of a prepared one.
    If the revision is a branch, its commit is looked up once and kept in the cache; `jaxformer prepare --newest` looks
    it up again, and a new commit is another corpus.
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
    """Its licence, recorded with every run. Another path or kind resets origin and licence."""
    validation_share: Annotated[float, Bounds(above=0, below=1)] = 0.02
    """Share of the documents kept for validation, at least one: those with the smallest hashes of their keys. Of a
    single text, the last bytes, unless `tokens` may end it before.
    """
    tokens: NonNegativeInt = 0
    """Training tokens to prepare, without BOS and EOS: documents are taken in reading order until the training ones
    have so many, the last one whole; 0 takes all.
    """
    decontaminate: bool = False
    """Whether training documents that share an n-gram with an item of the tasks in `evaluation.task_data` are removed;
    for a mixture, in all its parts.
    """
    weight: NonNegativeFloat = 1.0
    """For a part of a mixture, its share of the training rows, relative to the other parts' weights; 0 if only a phase
    of the training uses it.
    """
    parts: tuple["CorpusConfig", ...] = ()
    """The corpora of a 'mixture'."""
    skip_bad_records: Annotated[float, Bounds(at_least=0, below=1)] = execution(0.0)
    """Share of the records that may be bad (not UTF-8, not JSON, without the field, with a lone surrogate). They are
    left out, counted and reported; 0 stops at the first. If a 'text' file is not UTF-8, its rest is left out.
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
        if isinstance(self.kind, str) and self.kind != "mixture":
            needs_path = KINDS[self.kind].needs_path
            require(bool(self.path) or not needs_path, f"corpus.kind {self.kind!r} needs corpus.path")
            require(
                needs_path or not self.path,
                f"corpus.path ({self.path!r}) has no meaning for kind {self.kind!r}; set corpus.kind",
            )

    def opened(self) -> Kind:
        """Returns the kind of a corpus that is no mixture, with its fields of the configuration."""
        return kind_of(
            self.kind,
            self.path,
            self.split,
            self.text_field,
            self.key_field,
            self.validation_share,
            self.tokens,
        )


@dataclass(frozen=True)
class Documents:
    """A corpus, opened. Iterating reads it from the start, always in the same order, part by part."""

    config: CorpusConfig
    """The opened configuration."""
    digest: str
    """Hexadecimal SHA-256 of the sources, how they are read, and how much of them."""
    source_digest: str
    """The same for all of the sources."""
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
    """Files that were not taken, and which of the taken ones are empty; '' for none."""

    def __iter__(self) -> Iterator[Document]:
        for part in self.parts():
            yield from self.read(part)

    def parts(self, file: int | None = None) -> Iterator[CorpusPart]:
        """Yields the parts of the corpus, or of one file, in reading order; opens a file when it comes to it.

        A text too long for a part is one all the same.
        """
        chosen = range(len(self.files)) if file is None else range(file, file + 1)
        return self.config.opened().parts(self.files, chosen)

    def read(self, part: CorpusPart, skip: int = 0, text_bytes: int = 0) -> Iterator[Document]:
        """Yields the documents of a part, without the first `skip`, bad ones among them.

        Of Parquet files and TFDS datasets only the needed parts are read. Other files are read from their start, since
        lines have unknown positions, and a compressed file cannot be entered elsewhere.

        Args:
            text_bytes: about how much text is needed, if it is little, so that little more of a file of records is
                read; 0 for all.

        Raises:
            UserError: a file is damaged, or a record is bad and `skip_bad_records` is 0.
        """
        hint = ""
        for found in self.config.opened().read(self.files, part, skip, text_bytes):
            try:
                yield self._to_document(found)
            except BadRecord as error:
                if not self.config.skip_bad_records:
                    raise UserError(f"{error}{hint}") from error
                yield Document("", "", bad=str(error))
            hint = " (corpus.skip_bad_records leaves out a share of bad records)"  # At the first one, all may be bad.

    def _to_document(self, found: Document | Record | BadRecord) -> Document:
        if isinstance(found, BadRecord):
            raise found
        if isinstance(found, Record):
            return to_document(found, self.config.text_field, self.config.key_field)
        return found

    def sample(self, limit_bytes: int) -> Iterator[Document]:
        """Yields documents with about so many bytes of text, reading little more; all documents of a smaller corpus.

        They are the first of each file, and more from larger files if the smaller ones have too few. With very many
        files some are left out, evenly; a TFDS dataset gives its first ones.
        """
        kind, count = self.config.opened(), len(self.files)
        if not (kind.is_sampled_by_file and self.files):
            yield from _first(iter(self), limit_bytes)
            return
        most = max(kind.files_to_sample(limit_bytes), math.ceil(count * limit_bytes / max(1, self.source_bytes)))
        count = min(count, most)
        chosen = [i * len(self.files) // count for i in range(count)]
        for rank, i in enumerate(sorted(chosen, key=lambda i: self.files[i].size)):
            share = limit_bytes // (count - rank)
            whole = kind.whole(self.files, i)
            for document in _first(self.read(whole, text_bytes=max(1, share)), share):
                limit_bytes -= len(document.text.encode())
                yield document


def check_sources(config: CorpusConfig) -> None:
    """Raises `UserError` unless each part of a corpus has files; remote places are not checked."""
    for part in parts_of(config):
        part.opened().check()


def source_bytes(config: CorpusConfig) -> int:
    """Returns the bytes of the text of a corpus that is no mixture; 0 if it is not in plain files on this machine.

    Raises:
        UserError: there are none.
    """
    is_here = config.kind in ("pystdlib", "text", "jsonl") and not is_remote(config.path)
    files = config.opened().find().files if is_here else ()
    is_packed = any(has_suffix(file.name, PACKED) for file in files)
    return 0 if is_packed else sum(file.size for file in files)


def load_documents(config: CorpusConfig, *, newest: bool = False) -> Documents:
    """Opens a corpus that is not a mixture (open its parts one by one).

    New or changed local files are read once for the digest (`source_files.content_digests`).

    Args:
        newest: looks up the commit of a Hub branch again.

    Raises:
        UserError: nothing is found at the path.
    """
    kind = config.opened()
    sources = kind.find(newest=newest)
    named = config.kind if isinstance(config.kind, str) else flatten(config.kind, science_only=True)
    reading = [kind.version(sources.files), named, config.split, config.text_field, config.key_field]
    if config.skip_bad_records:
        reading.append(config.skip_bad_records)
    digest = hashlib.sha256(json.dumps([reading, sources.beside_files]).encode())
    for file, content in zip(sources.files, content_digests(sources.files, "corpus file"), strict=True):
        digest.update(json.dumps([file.name, content]).encode())
    of_all = digest.hexdigest()
    whole = hashlib.sha256(json.dumps([of_all, config.tokens]).encode()).hexdigest() if config.tokens else of_all
    return Documents(
        config,
        digest=whole,
        source_digest=of_all,
        origin=config.origin or sources.origin,
        licence=config.licence or sources.licence or "not stated",
        commit=sources.commit,
        files=sources.files,
        source_bytes=sum(file.size for file in sources.files),
        passed_over=sources.passed_over,
    )


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

    It is the name of the Hub's repository, else of the file, of the folder, or of the folder around a glob.
    """
    names = []
    for part in parts_of(config):
        repository = re.match(r"hf://datasets/[^/@]+/([^/@]+)", part.path)
        last = repository[1] if repository else (fixed_parts(Path(part.path).parts) or [""])[-1].partition(".")[0]
        kind = part.kind if isinstance(part.kind, str) else repr(part.kind).partition("(")[0]
        name = re.sub(r"[^\w-]+", "_", last).strip("_") or kind
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        names.append(next(each for each in candidates if each not in names))
    return names


def unique_documents(documents: Iterable[Document], counts: Counter) -> Iterator[Document]:
    """Yields each distinct non-empty text once, the first one; counts what it leaves out.

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


def split_fraction(document: Document) -> float:
    """Returns a number in [0, 1]: a document is for validation if it is below `CorpusConfig.validation_share`."""
    return key_fraction(document.key) if document.fraction is None else document.fraction


def key_fraction(key: str) -> float:
    """Returns a number in [0, 1) that depends only on the key and is uniform over keys."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
