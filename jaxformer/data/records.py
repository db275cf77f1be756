"""Records of JSON lines, Parquet files and TFDS datasets, each with the place where it stands.

Everywhere `what` begins the message of an error: 'corpus file', or the data of a task.
"""

import contextlib
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jaxformer.config import UserError, require
from jaxformer.data.source_files import open_file
from jaxformer.host.paths import expanded

SUFFIXES = {"text": (".txt",), "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz"), "parquet": (".parquet",)}


class Record(NamedTuple):
    """The fields of a record, and where it stands: file and line, row or record."""

    where: str
    fields: Mapping[str, Any]


def decode(data: bytes, where: str) -> str:
    """Returns the text of UTF-8 bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 at byte {error.start} (0x{data[error.start]:02x}); convert or remove it"
        ) from error


def read_jsonl(files: Iterable[str | os.PathLike], what: str) -> Iterator[Record]:
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


def read_parquet(
    files: Iterable[str | os.PathLike],
    what: str,
    columns: list[str] | None = None,
    row_groups: tuple[int, int] | None = None,
) -> Iterator[Record]:
    """Yields the rows of Parquet files, with some columns or all, a row group at a time.

    Args:
        row_groups: of each file those in [first, stop); None for all.
    """
    for path in files:
        with _parquet(path, what) as table:
            require_fields(columns or [], table.schema_arrow.names, f"{what} {path}")
            first, stop = row_groups or (0, table.metadata.num_row_groups)
            row = sum(table.metadata.row_group(i).num_rows for i in range(first))
            for group in range(first, stop):
                for rows in table.iter_batches(batch_size=1024, row_groups=[group], columns=columns):
                    for fields in rows.to_pylist():
                        row += 1
                        yield Record(f"{what} {path}, row {row}", fields)


def row_group_bytes(path: str | os.PathLike, what: str) -> list[int]:
    """Returns the bytes of each row group of a Parquet file, uncompressed, from the end of the file alone."""
    with _parquet(path, what) as table:
        return [table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups)]


@contextlib.contextmanager
def _parquet(path: str | os.PathLike, what: str):
    """Opens a Parquet file for a `with` block, and tells what is wrong with it there as one line."""
    import pyarrow
    import pyarrow.parquet

    try:
        with open_file(path, what) as file, pyarrow.parquet.ParquetFile(file) as table:
            yield table
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path}: a text is not UTF-8 ({error.reason}); convert or remove it") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{what} {path}: damaged or not Parquet: {error}") from error


def read_tfds(
    builder, split: str, what: str, columns: list[str] | None = None, rows: tuple[int, int] | None = None
) -> Iterator[Record]:
    """Yields the records of a TFDS dataset, with some features or all; texts are `str`, a class label is its number.

    Args:
        rows: those in [first, stop); None for all.
    """
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
    for row in range(*(rows or (0, read(len, source)))):
        fields, where = read(source.__getitem__, row), f"{what} {builder.info.full_name}, {split}, record {row}"
        require_fields(columns or [], fields, where)
        yield Record(where, _plain({name: fields[name] for name in columns or fields}, where))


def open_tfds(name_or_folder: str, split: str, what: str):
    """Returns the builder of a TFDS dataset that is prepared here: its name, or its folder.

    Raises:
        UserError: there is none, or it lacks the split.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        if expanded(name_or_folder).is_dir():
            builder = tfds.builder_from_directory(str(expanded(name_or_folder)))
        else:
            try:  # What is prepared can be read without the code that prepared it, which may need TensorFlow.
                builder = read_only_builder.builder_from_files(name_or_folder)
            except registered.DatasetNotFoundError:
                builder = tfds.builder(name_or_folder)
    except Exception as error:  # TFDS raises many kinds; each means that nothing readable is at this path.
        raise UserError(f"{what} {name_or_folder}: no TFDS dataset: {str(error).splitlines()[0]}") from error
    require(
        bool(builder.info.splits) and split.partition("[")[0] in builder.info.splits,
        f"{what} {name_or_folder}: split {split!r} is not prepared here; prepared: "
        f"{', '.join(builder.info.splits or {}) or 'none (prepare it with file_format=array_record)'}",
    )
    return builder


def require_fields(wanted: Iterable[str], present: Iterable[str], where: str) -> None:
    """Raises `UserError` with what is present unless all fields are."""
    for name in wanted:
        require(name in present, f"{where}: no field {name!r}; it has {', '.join(map(str, present))}")


def _lines(file: io.BufferedIOBase, path: str | os.PathLike, what: str) -> Iterator[bytes]:
    try:
        yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{what} {path}: damaged or not {os.path.splitext(path)[1]} data: {error}") from error


def _open_compressed(path: str | os.PathLike, what: str) -> io.BufferedIOBase:
    file = open_file(path, what)
    if os.fspath(path).endswith(".gz"):
        return gzip.open(file, "rb")
    if os.fspath(path).endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"), 1 << 20)
    return file


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
