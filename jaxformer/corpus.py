"""Documents in: in a fixed order, each with a stable key, from a corpus with a digest, an origin and a licence."""

import glob
import hashlib
import itertools
import json
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxformer.config import UserError, check_types, execution, require, require_one_of
from jaxformer.records import (
    SUFFIXES,
    Record,
    decode,
    expanded,
    file_digest,
    find_files,
    open_tfds,
    read_jsonl,
    read_parquet,
    read_tfds,
    require_fields,
)

KINDS = ("pystdlib", "text", "jsonl", "parquet", "tfds", "mixture")

# A longer text file is several documents, so that a single file can be split into training and validation.
TEXT_CHARACTERS = 1 << 16

# Bump when the same files would give other documents, so that nothing prepared before is taken for the new.
READER_VERSION = 1


@dataclass(frozen=True)
class CorpusConfig:
    """Where documents come from.

    kind: 'pystdlib' (the running Python's standard library and help topics; nothing to download), 'text' (each file
        a document, or several if it is long), 'jsonl' (each line an object; plain, .gz or .zst), 'parquet' (each row
        a document), 'tfds' (a dataset of TensorFlow Datasets) or 'mixture' (of `parts`).
    path: a file, a folder or a glob (`**` enters folders); for 'tfds' a dataset's name or the folder of a prepared one.
    split: the split of a 'tfds' dataset that is read, or a slice of one.
    text_field: the field of a 'jsonl', 'parquet' or 'tfds' record that holds the text.
    key_field: the field that identifies a record; '' for a digest of its text.
    origin: where the corpus comes from, recorded with every run; '' for the path.
    licence: its licence, recorded with every run.
    validation_share: share of the documents, those with the smallest hashes of their keys, that is kept for
        validation; at least one document is.
    tokens: the most training tokens that are prepared; 0 for all.
    weight: share of the training rows, in proportion to the other parts' weights, as a part of a mixture.
    parts: the corpora of a 'mixture'.
    """

    kind: str
    path: str = ""
    split: str = "train"
    text_field: str = "text"
    key_field: str = ""
    origin: str = execution("")
    licence: str = execution("")
    validation_share: float = 0.02
    tokens: int = 0
    weight: float = 1.0
    parts: tuple["CorpusConfig", ...] = ()

    def __post_init__(self):
        check_types(self)
        require_one_of("corpus.kind", self.kind, KINDS)
        require(0 < self.validation_share < 1, f"corpus.validation_share ({self.validation_share}) must lie in (0, 1)")
        require(0 < self.weight < float("inf"), f"corpus.weight ({self.weight}) must be positive and finite")
        if self.kind == "mixture":
            require(len(self.parts) >= 2, f"a corpus of kind 'mixture' needs two parts or more, not {len(self.parts)}")
            require(all(p.kind != "mixture" for p in self.parts), "a part of a mixture must not be a mixture")
            require(not self.path, f"a corpus of kind 'mixture' takes no path ({self.path!r}); set it on the parts")
        else:
            require(not self.parts, f"corpus.parts need corpus.kind 'mixture', not {self.kind!r}")
        if self.kind in ("text", "jsonl", "parquet", "tfds"):
            require(bool(self.path), f"corpus.kind {self.kind!r} needs corpus.path")
        if self.kind == "pystdlib":
            require(not self.path, f"corpus.path ({self.path!r}) has no meaning for kind 'pystdlib'; set corpus.kind")


class Document(NamedTuple):
    """A text with a key that stays the same when files are reordered."""

    key: str
    text: str


@dataclass(frozen=True)
class Documents:
    """A corpus, opened. Iterating reads it from the start, always in the same order.

    config: what was opened.
    digest: hexadecimal SHA-256 of the sources and of the way in which they are read.
    origin: where it comes from.
    licence: its licence.
    files: the source files, in reading order.
    source_bytes: of the files together, compressed where they are.
    """

    config: CorpusConfig
    digest: str
    origin: str
    licence: str
    files: tuple[Path, ...]
    source_bytes: int

    def __iter__(self) -> Iterator[Document]:
        match self.config.kind:
            case "pystdlib":
                return _read_pystdlib(self.files)
            case "text":
                return _read_text(self.files, _root(self.config.path))
            case "jsonl":
                records = read_jsonl(self.files, "corpus file")
            case "parquet":
                records = read_parquet(self.files, "corpus file", _columns(self.config))
            case "tfds":
                builder = open_tfds(self.config.path, self.config.split, "corpus.path")
                records = read_tfds(builder, self.config.split, "corpus file", _columns(self.config))
            case _:
                raise AssertionError(self.config.kind)
        return (_to_document(record, self.config) for record in records)


def load_documents(config: CorpusConfig) -> Documents:
    """Opens a corpus that is not a mixture (open its parts one by one); reads its sources once for the digest.

    Raises:
        UserError: nothing is found at the path.
    """
    origin, licence = config.origin, config.licence
    if config.kind == "pystdlib":
        files = _pystdlib_files()
        origin = origin or f"standard library of Python {sys.version.split()[0]}"
        licence = licence or "PSF-2.0"
        names = [path.relative_to(_pystdlib_root()).as_posix() for path in files]
        extra = json.dumps(_help_topics(), sort_keys=True)
    elif config.kind == "tfds":
        builder = open_tfds(config.path, config.split, "corpus.path")
        files = tuple(sorted(Path(builder.data_dir).iterdir()))
        origin = origin or f"TFDS {builder.info.full_name}"
        licence = licence or str(builder.info.redistribution_info.license or "")
        names = [path.name for path in files]
        extra = ""
    else:
        files = find_files(config.path, SUFFIXES[config.kind], "corpus.path")
        origin = origin or config.path
        root = _root(config.path)
        names = [path.relative_to(root).as_posix() for path in files]
        extra = ""
    reading = [READER_VERSION, config.kind, config.split, config.text_field, config.key_field]
    digest = hashlib.sha256(json.dumps([reading, extra]).encode())
    for name, path in zip(names, files, strict=True):
        digest.update(json.dumps([name, file_digest(path, "corpus file")]).encode())
    source_bytes = sum(path.stat().st_size for path in files)
    return Documents(config, digest.hexdigest(), origin, licence or "not stated", files, source_bytes)


def parts_of(config: CorpusConfig) -> tuple[CorpusConfig, ...]:
    """Returns the corpora that a configuration names: the parts of a mixture, or itself."""
    return config.parts if config.kind == "mixture" else (config,)


def part_names(config: CorpusConfig) -> list[str]:
    """Returns a short name for each of the corpora of `parts_of`, from its path: all of them different."""
    names = []
    for part in parts_of(config):
        name = re.sub(r"[^\w-]+", "_", Path(part.path).name.partition(".")[0]).strip("_") or part.kind
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        names.append(next(each for each in candidates if each not in names))
    return names


def unique_documents(documents: Documents, counts: Counter) -> Iterator[Document]:
    """Yields each distinct non-empty text once, the first to come; counts what it leaves out.

    Adds to `counts`: 'duplicates' (exact repetitions) and 'empty' (nothing but whitespace).
    """
    seen = set()
    for document in documents:
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


def is_validation(key: str, threshold: float) -> bool:
    """Returns whether the document of this key is kept for validation."""
    return key_fraction(key) < threshold


def _root(path: str) -> Path:
    """Returns the folder to which keys and recorded names are relative."""
    target = expanded(path)
    if target.is_dir():
        return target
    fixed = []
    for part in target.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"corpus file {path}: {error.strerror}") from error


def _pystdlib_root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _pystdlib_files() -> tuple[Path, ...]:
    # Tests repeat each other, lib2to3 repeats the grammar, encodings are tables, and help topics are read apart.
    left_out = {
        "__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3",
        "encodings", "pydoc_data", "turtledemo", "ensurepip",
    }  # fmt: skip
    root = _pystdlib_root()
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - left_out)
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    if len(files) < 100:
        raise UserError(f"corpus.kind 'pystdlib': this Python keeps no source files in {root}; choose another corpus")
    return tuple(sorted(files, key=lambda path: path.relative_to(root).as_posix()))


def _help_topics() -> dict[str, str]:
    """Returns the help texts of the language reference; none where a distribution leaves them out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return topics


def _read_pystdlib(files: tuple[Path, ...]) -> Iterator[Document]:
    root = _pystdlib_root()
    for path in files:
        yield Document(path.relative_to(root).as_posix(), decode(_read_bytes(path), f"corpus file {path}"))
    for name, text in sorted(_help_topics().items()):
        yield Document(f"topic/{name}", text)


def _read_text(files: tuple[Path, ...], root: Path) -> Iterator[Document]:
    for path in files:
        # A file's name may be no Unicode text; what it cannot say is written as escapes.
        key = path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()
        for number, text in enumerate(_cut(decode(_read_bytes(path), f"corpus file {path}"))):
            yield Document(f"{key}#{number}" if number else key, text)


def _cut(text: str) -> Iterator[str]:
    """Yields a text in pieces of at most `TEXT_CHARACTERS`, cut after a blank line, else a line, else anywhere."""
    first = 0
    while len(text) - first > TEXT_CHARACTERS:
        last = first + TEXT_CHARACTERS
        blank, line = text.rfind("\n\n", first, last), text.rfind("\n", first, last)
        end = blank + 2 if blank >= 0 else line + 1 if line >= 0 else last
        yield text[first:end]
        first = end
    yield text[first:]


def _to_document(record: Record, config: CorpusConfig) -> Document:
    where, fields = record
    require_fields(_columns(config), fields, where)
    text = fields[config.text_field]
    require(isinstance(text, str), f"{where}: field {config.text_field!r} must be text, not {text!r:.40}")
    encoded = _encode(text, config.text_field, where)
    if not config.key_field:
        return Document(hashlib.blake2b(encoded, digest_size=16).hexdigest(), text)
    key = fields[config.key_field]
    require(key is not None, f"{where}: field {config.key_field!r} must identify the record; it is null")
    _encode(str(key), config.key_field, where)
    return Document(str(key), text)


def _columns(config: CorpusConfig) -> list[str]:
    return [config.text_field, *([config.key_field] if config.key_field else [])]


def _encode(text: str, field: str, where: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: a lone surrogate at character {error.start} of field {field!r} is no Unicode text"
        ) from error
