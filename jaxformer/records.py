"""Records of JSON lines, Parquet files and TFDS datasets, each with the place where it stands.

Everywhere `what` begins the message of an error: 'corpus file', or the data of a task.
"""

import glob
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.config import UserError, require

SUFFIXES = {"text": (".txt",), "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"), "parquet": (".parquet",)}


class Record(NamedTuple):
    """The fields of a record, and where it stands: file and line, row or record."""

    where: str
    fields: Mapping[str, Any]


def expanded(path: str) -> Path:
    """Returns a path with `~` replaced by a home folder, if there is one."""
    return Path(os.path.expanduser(path))  # Unlike pathlib's, it takes the name of a user who is not there.


def find_files(path: str, suffixes: tuple[str, ...], what: str) -> tuple[Path, ...]:
    """Returns the files at a path in sorted order: the file itself, the matches of a glob, or a folder's by suffix."""
    try:
        target = expanded(path)
        if target.is_file():
            return (target,)
        if target.is_dir():
            files = sorted(p for p in target.rglob("*") if p.is_file() and p.name.endswith(suffixes))
            require(bool(files), f"{what} {path}: the folder holds no {' or '.join(suffixes)} file")
        else:
            files = sorted(Path(p) for p in glob.glob(str(target), recursive=True) if Path(p).is_file())
            require(bool(files), f"{what} {path}: no such file or folder, and as a glob it matches none")
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from error
    return tuple(files)


def file_digest(path: Path, what: str) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from error


def decode(data: bytes, where: str) -> str:
    """Returns the text of UTF-8 bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 at byte {error.start} (0x{data[error.start]:02x}); convert or remove it"
        ) from error


def read_jsonl(files: Iterable[Path], what: str) -> Iterator[Record]:
    """Yields the objects of JSON lines: plain, gzip (.gz) or Zstandard (.zst); blank lines are passed over."""
    for path in files:
        offset = 0
        with _open_compressed(path, what) as file:
            for number, line in enumerate(_lines(file, path, what), start=1):
                where = f"{what} {path}, line {number}"
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{where}: not UTF-8 at byte {offset + error.start} "
                        f"(0x{line[error.start]:02x}); convert or remove it"
                    ) from error
                offset += len(line)
                if text.strip():
                    try:
                        fields = json.loads(text)
                    except (ValueError, RecursionError) as error:
                        is_syntax = isinstance(error, json.JSONDecodeError)
                        reason = f"{error.msg} at column {error.colno}" if is_syntax else str(error)
                        raise UserError(f"{where}: not JSON: {reason}") from error
                    is_object = isinstance(fields, dict)
                    require(is_object, f"{where}: a record must be an object, not {type(fields).__name__}")
                    yield Record(where, fields)


def read_parquet(files: Iterable[Path], what: str, columns: list[str] | None = None) -> Iterator[Record]:
    """Yields the rows of Parquet files, with some columns or all."""
    import pyarrow
    import pyarrow.parquet

    for path in files:
        try:
            table = pyarrow.parquet.ParquetFile(path)
            require_fields(columns or [], table.schema_arrow.names, f"{what} {path}")
            row = 0
            for rows in table.iter_batches(batch_size=1024, columns=columns):
                for fields in rows.to_pylist():
                    row += 1
                    yield Record(f"{what} {path}, row {row}", fields)
        except UnicodeDecodeError as error:
            raise UserError(f"{what} {path}: a text is not UTF-8 ({error.reason}); convert or remove it") from error
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{what} {path}: damaged or not Parquet: {error}") from error


def read_tfds(builder, split: str, what: str, columns: list[str] | None = None) -> Iterator[Record]:
    """Yields the records of a TFDS dataset, with some features or all; texts are `str`, a class label is its number."""
    where = f"{what} {builder.info.full_name}, {split}"

    def read(function, *arguments):
        try:
            return function(*arguments)
        except Exception as error:  # TFDS and ArrayRecord raise many kinds.
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{where}: it cannot be read ({reason}); prepare it with file_format=array_record"
            ) from error

    source = read(lambda: builder.as_data_source(split=split))
    for row in range(read(len, source)):
        fields, where = read(source.__getitem__, row), f"{what} {builder.info.full_name}, {split}, record {row}"
        require_fields(columns or [], fields, where)
        yield Record(where, _plain({name: fields[name] for name in columns or fields}, where))


def open_tfds(name_or_folder: str, split: str, what: str):
    """Returns the builder of a TFDS dataset that is prepared here: its name, or its folder.

    Raises:
        UserError: there is none, or it lacks the split.
    """
    import tensorflow_datasets as tfds

    try:
        if Path(name_or_folder).is_dir():
            builder = tfds.builder_from_directory(name_or_folder)
        else:
            try:  # What is prepared can be read without the code that prepared it, which may need TensorFlow.
                builder = tfds.core.read_only_builder.builder_from_files(name_or_folder)
            except tfds.core.registered.DatasetNotFoundError:
                builder = tfds.builder(name_or_folder)
    except Exception as error:  # TFDS raises many kinds; each means that nothing readable is at this path.
        raise UserError(f"{what} {name_or_folder}: no TFDS dataset: {str(error).splitlines()[0]}") from error
    require(
        builder.info.splits and split.partition("[")[0] in builder.info.splits,
        f"{what} {name_or_folder}: split {split!r} is not prepared here; prepared: "
        f"{', '.join(builder.info.splits or {}) or 'none (prepare it with file_format=array_record)'}",
    )
    return builder


def require_fields(wanted: Iterable[str], present: Iterable[str], where: str) -> None:
    """Raises `UserError` with what is present unless all fields are."""
    for name in wanted:
        require(name in present, f"{where}: no field {name!r}; it has {', '.join(map(str, present))}")


def _lines(file: io.BufferedIOBase, path: Path, what: str) -> Iterator[bytes]:
    try:
        yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{what} {path}: damaged or not {path.suffix} data: {error}") from error


def _open_compressed(path: Path, what: str) -> io.BufferedIOBase:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rb")
        if path.suffix == ".zst":
            import pyarrow

            return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"), 1 << 20)
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror or error}") from error


def _plain(value: Any, where: str) -> Any:
    """Returns a TFDS value as plain Python: bytes as text, arrays as lists."""
    if isinstance(value, bytes):
        return decode(value, where)
    if isinstance(value, Mapping):
        return {name: _plain(each, where) for name, each in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), where)
    if isinstance(value, list):
        return [_plain(each, where) for each in value]
    return value
