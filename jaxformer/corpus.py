"""Documents in: in a fixed order, each with a stable key, from a corpus with a digest, an origin and a licence."""

import glob
import gzip
import hashlib
import io
import json
import os
import sys
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxformer.config import UserError, check_types, execution, require, require_one_of

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
                return _read_jsonl(self.files, self.config)
            case "parquet":
                return _read_parquet(self.files, self.config)
            case "tfds":
                return _read_tfds(self.config)
        raise AssertionError(self.config.kind)


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
        builder = _tfds_builder(config)
        files = tuple(sorted(Path(builder.data_dir).iterdir()))
        origin = origin or f"TFDS {builder.info.full_name}"
        licence = licence or str(builder.info.redistribution_info.license or "")
        names = [path.name for path in files]
        extra = ""
    else:
        suffixes = {"text": (".txt",), "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"), "parquet": (".parquet",)}
        files = _find_files(config.path, suffixes[config.kind])
        origin = origin or config.path
        root = _root(config.path)
        names = [path.relative_to(root).as_posix() for path in files]
        extra = ""
    reading = [READER_VERSION, config.kind, config.split, config.text_field, config.key_field]
    digest = hashlib.sha256(json.dumps([reading, extra]).encode())
    for name, path in zip(names, files, strict=True):
        digest.update(json.dumps([name, _file_digest(path)]).encode())
    source_bytes = sum(path.stat().st_size for path in files)
    return Documents(config, digest.hexdigest(), origin, licence or "not stated", files, source_bytes)


def parts_of(config: CorpusConfig) -> tuple[CorpusConfig, ...]:
    """Returns the corpora that a configuration names: the parts of a mixture, or itself."""
    return config.parts if config.kind == "mixture" else (config,)


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


def _find_files(path: str, suffixes: tuple[str, ...]) -> tuple[Path, ...]:
    """Returns the files at a path in sorted order: the file itself, the matches of a glob, or a folder's by suffix."""
    try:
        target = _expanded(path)
        if target.is_file():
            return (target,)
        if target.is_dir():
            files = sorted(p for p in target.rglob("*") if p.is_file() and p.name.endswith(suffixes))
            require(bool(files), f"corpus.path {path}: the folder holds no {' or '.join(suffixes)} file")
        else:
            files = sorted(Path(p) for p in glob.glob(str(target), recursive=True) if Path(p).is_file())
            require(bool(files), f"corpus.path {path}: no such file or folder, and as a glob it matches none")
    except OSError as error:
        raise UserError(f"corpus.path {path}: {error.strerror}") from error
    return tuple(files)


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(path))  # Unlike pathlib's, it takes the name of a user who is not there.


def _root(path: str) -> Path:
    """Returns the folder to which keys and recorded names are relative."""
    target = _expanded(path)
    if target.is_dir():
        return target
    fixed = []
    for part in target.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"corpus file {path}: {error.strerror}") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"corpus file {path}: {error.strerror}") from error


def _decode(data: bytes, path: Path | str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"corpus file {path}: not UTF-8 at byte {error.start} (0x{data[error.start]:02x}); convert or remove it"
        ) from error


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
        yield Document(path.relative_to(root).as_posix(), _decode(_read_bytes(path), path))
    for name, text in sorted(_help_topics().items()):
        yield Document(f"topic/{name}", text)


def _read_text(files: tuple[Path, ...], root: Path) -> Iterator[Document]:
    for path in files:
        # A file's name may be no Unicode text; what it cannot say is written as escapes.
        key = path.relative_to(root).as_posix().encode("utf-8", "backslashreplace").decode()
        for number, text in enumerate(_cut(_decode(_read_bytes(path), path))):
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


def _read_jsonl(files: tuple[Path, ...], config: CorpusConfig) -> Iterator[Document]:
    for path in files:
        offset = 0
        with _open_compressed(path) as file:
            for number, line in enumerate(_lines(file, path), start=1):
                where = f"{path}, line {number}"
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"corpus file {where}: not UTF-8 at byte {offset + error.start} "
                        f"(0x{line[error.start]:02x}); convert or remove it"
                    ) from error
                offset += len(line)
                if text.strip():
                    try:
                        record = json.loads(text)
                    except (ValueError, RecursionError) as error:
                        is_syntax = isinstance(error, json.JSONDecodeError)
                        reason = f"{error.msg} at column {error.colno}" if is_syntax else str(error)
                        raise UserError(f"corpus file {where}: not JSON: {reason}") from error
                    yield _to_document(record, config, where)


def _lines(file: io.BufferedIOBase, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"corpus file {path}: damaged or not {path.suffix} data: {error}") from error


def _open_compressed(path: Path) -> io.BufferedIOBase:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rb")
        if path.suffix == ".zst":
            import pyarrow

            return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"), 1 << 20)
        return path.open("rb")
    except OSError as error:
        raise UserError(f"corpus file {path}: {error.strerror or error}") from error


def _read_parquet(files: tuple[Path, ...], config: CorpusConfig) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    columns = [config.text_field, *([config.key_field] if config.key_field else [])]
    for path in files:
        try:
            table = pyarrow.parquet.ParquetFile(path)
            _require_fields(columns, table.schema_arrow.names, str(path))
            row = 0
            for records in table.iter_batches(batch_size=1024, columns=columns):
                for record in records.to_pylist():
                    row += 1
                    yield _to_document(record, config, f"{path}, row {row}")
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"corpus file {path}: damaged or not Parquet: {error}") from error


def _read_tfds(config: CorpusConfig) -> Iterator[Document]:
    builder = _tfds_builder(config)
    for row, record in enumerate(builder.as_data_source(split=config.split)):
        where = f"{builder.info.full_name}, {config.split}, record {row}"
        for name in {config.text_field, config.key_field}:
            if isinstance(record.get(name), bytes):
                record[name] = _decode(record[name], where)
        yield _to_document(record, config, where)


def _tfds_builder(config: CorpusConfig):
    import tensorflow_datasets as tfds

    try:
        is_prepared = Path(config.path).is_dir()
        builder = tfds.builder_from_directory(config.path) if is_prepared else tfds.builder(config.path)
    except Exception as error:  # TFDS raises many kinds; each means that nothing readable is at this path.
        raise UserError(f"corpus.path {config.path}: no TFDS dataset: {str(error).splitlines()[0]}") from error
    require(
        builder.info.splits and config.split.partition("[")[0] in builder.info.splits,
        f"corpus.path {config.path}: split {config.split!r} is not prepared here; prepared: "
        f"{', '.join(builder.info.splits or {}) or 'none (prepare it with file_format=array_record)'}",
    )
    return builder


def _to_document(record: dict, config: CorpusConfig, where: str) -> Document:
    require(isinstance(record, dict), f"corpus file {where}: a record must be an object, not {type(record).__name__}")
    _require_fields([config.text_field, *([config.key_field] if config.key_field else [])], record, where)
    text = record[config.text_field]
    require(isinstance(text, str), f"corpus file {where}: field {config.text_field!r} must be text, not {text!r:.40}")
    encoded = _encode(text, config.text_field, where)
    if not config.key_field:
        return Document(hashlib.blake2b(encoded, digest_size=16).hexdigest(), text)
    key = record[config.key_field]
    require(key is not None, f"corpus file {where}: field {config.key_field!r} must identify the record; it is null")
    _encode(str(key), config.key_field, where)
    return Document(str(key), text)


def _encode(text: str, field: str, where: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"corpus file {where}: a lone surrogate at character {error.start} of field {field!r} is no Unicode text"
        ) from error


def _require_fields(wanted: list[str], present, where: str) -> None:
    for name in wanted:
        require(name in present, f"corpus file {where}: no field {name!r}; it has {', '.join(map(str, present))}")
