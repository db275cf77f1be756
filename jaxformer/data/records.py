"""Records of JSON lines, Parquet files and TFDS datasets, each with its place.

`what` begins the message of an error: 'corpus file', or the data of a task. A bad record is yielded as a `BadRecord`,
so that it can be left out; an error of a whole file is raised.
"""

import codecs
import contextlib
import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxformer.config import UserError, require
from jaxformer.data.globs import has_suffix
from jaxformer.data.source_files import open_file
from jaxformer.host.paths import expanded

PACKED = (".gz", ".zst")
SUFFIXES = {"text": (".txt",), "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz"), "parquet": (".parquet",)}

# Of texts, where none is named as above: beside other files these are about them.
OTHER_TEXTS = (".md", ".py")


class Record(NamedTuple):
    """The fields of a record, and its place: file and line, row or record."""

    where: str
    fields: Mapping[str, Any]


class BadRecord(UserError):
    """The fault of one record of many, and its place."""


def good_records(records: Iterable[Record | BadRecord]) -> Iterator[Record]:
    """Yields records; raises the first that is bad."""
    for record in records:
        if isinstance(record, BadRecord):
            raise record
        yield record


def decode(data: bytes, where: str) -> str:
    """Returns the text of UTF-8 bytes.

    Raises:
        BadRecord: they are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord(not_utf8(where, error.start, data[error.start])) from error


def not_utf8(where: str, place: int, byte: int) -> str:
    """Returns the message about a byte that is not UTF-8."""
    return f"{where}: not UTF-8 at byte {place} (0x{byte:02x}); convert or remove it"


# Beginnings of files in other formats, which no text has.
_FORMS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "Zstandard", b"\xfd7zXZ": "xz", b"PK\3\4": "zip"}
_POINTER = b"version https://git-lfs.github.com/spec/"


def require_content(start: bytes, where: str) -> None:
    """Raises `UserError` if the first bytes of a file are a pointer to its content."""
    require(
        not start.startswith(_POINTER),
        f"{where}: a pointer of Git LFS, without its content; fetch that with `git lfs pull`",
    )


def require_text(start: bytes, where: str) -> None:
    """Raises `BadRecord` if the first bytes of a file show another format than UTF-8 text.

    UTF-16 and UTF-32 begin with a byte order mark, or have zeros in every other place, which are valid UTF-8 too.
    """
    form = next((form for mark, form in _FORMS.items() if start.startswith(mark)), None)
    if form:
        raise BadRecord(f"{where}: {form} data, not UTF-8 text; unpack it, or give it the name and kind of what it is")
    has_mark = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    if has_mark or (len(start) > 3 and b"\0\0" in (start[:3:2], start[1:4:2])):
        raise BadRecord(f"{where}: UTF-16 or UTF-32, not UTF-8; convert it (iconv -f UTF-16 -t UTF-8)")


# The most and the fewest bytes unpacked at a time: fewer if little text of a file is read.
_MOST_UNPACKED, _LEAST_UNPACKED = 1 << 20, 1 << 13

# Rows of a Parquet file that are made at a time.
_ROWS, _FEW_ROWS = 1024, 16


def read_jsonl(
    files: Iterable[str | os.PathLike], what: str, fields: Iterable[str] = (), text_bytes: int = 0
) -> Iterator[Record | BadRecord]:
    """Yields the objects of JSON lines: plain, gzip (.gz) or Zstandard (.zst).

    Blank lines are skipped, and so is a byte order mark at the start of any line, as in joined files: JSON has none.

    Args:
        fields: those that must not occur twice; none for all.
        text_bytes: about how many bytes are needed of a file, so that little more is read; 0 for all.
    """
    for path in files:
        offset = 0
        with _open_compressed(path, what, text_bytes) as file:
            for number, line in enumerate(_lines(file, path, what), start=1):
                where = f"{what} {path}, line {number}"
                if number == 1:
                    _require_lines(line, f"{what} {path}")
                try:
                    found = _parse(line, offset, where)
                    if isinstance(found, _Object) and (repeated := _repeated(fields or found, found.names)):
                        raise BadRecord(f"{where}: {repeated}")
                    if found is not None:
                        yield Record(where, found)
                except BadRecord as error:
                    yield error
                offset += len(line)


def _require_lines(line: bytes, where: str) -> None:
    """Raises `UserError` if the first line of a file shows that its lines are no records."""
    try:
        require_text(line, where)
    except BadRecord as error:
        raise UserError(str(error)) from error
    text = line.removeprefix(codecs.BOM_UTF8).strip()
    require(
        text != b"{" and not text.startswith(b"["),
        f"{where}: one JSON {'object over several lines' if text == b'{' else 'array'}, not JSON lines; write each "
        "record on a line of its own (jq -c '.[]' FILE, or jq -c . FILE where it holds objects)",
    )


class _Object(dict):
    """A JSON object in which a name occurs twice; it has the last value."""

    names: tuple[str, ...]
    """All names, in order."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    found = _Object(found)
    found.names = tuple(name for name, _ in pairs)
    return found


# `json.loads` makes a new one for each line, which takes as long as parsing a short line.
_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parse(line: bytes, offset: int, where: str) -> dict[str, Any] | None:
    """Returns the object of a line, or None for a blank one.

    Args:
        offset: bytes of the file before the line.

    Raises:
        BadRecord: the line has none.
    """
    try:
        text = line.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadRecord(not_utf8(where, offset + error.start, line[error.start])) from error
    if not text.strip():
        return None
    try:
        found = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        is_syntax = isinstance(error, json.JSONDecodeError)
        reason = f"{error.msg} at column {error.colno}" if is_syntax else str(error)
        raise BadRecord(f"{where}: not JSON: {reason}") from error
    if not isinstance(found, dict):
        raise BadRecord(f"{where}: a record must be an object, not {type(found).__name__}")
    return found


def read_parquet(
    files: Iterable[str | os.PathLike],
    what: str,
    columns: list[str] | None = None,
    row_groups: tuple[int, int] | None = None,
    skip: int = 0,
    text_bytes: int = 0,
) -> Iterator[Record | BadRecord]:
    """Yields the rows of Parquet files, with some columns or all, a row group at a time.

    Args:
        row_groups: of each file, in [first, stop); None for all.
        skip: rows to leave out at the start; a row group without others is not read.
        text_bytes: as of `read_jsonl`; a file's footer and whole pages are read.
    """
    for path in files:
        with _parquet(path, what, text_bytes) as table:
            names = table.schema_arrow.names
            require_fields(columns or [], names, f"{what} {path}")
            repeated = _repeated(columns or names, names)
            require(not repeated, f"{what} {path}: {repeated}")
            first, stop = row_groups or (0, table.metadata.num_row_groups)
            stop = min(stop, table.metadata.num_row_groups)
            row = sum(table.metadata.row_group(i).num_rows for i in range(first))
            for group in range(first, stop):
                rows_of_group = table.metadata.row_group(group).num_rows
                if skip >= rows_of_group:
                    row, skip = row + rows_of_group, skip - rows_of_group
                    continue
                size = _FEW_ROWS if text_bytes else _ROWS
                # With threads the columns of a row group compete for one file, and its requests vary.
                for rows in table.iter_batches(size, row_groups=[group], columns=columns, use_threads=not text_bytes):
                    left_out = min(skip, len(rows))
                    row, skip = row + left_out, skip - left_out
                    for fields in _rows(rows.slice(left_out)):
                        row += 1
                        where = f"{what} {path}, row {row}"
                        is_bad = isinstance(fields, UnicodeDecodeError)
                        yield BadRecord(f"{where}: not UTF-8 ({fields.reason})") if is_bad else Record(where, fields)


def _rows(batch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """Yields the rows of a batch of Arrow; of one with a text that is not UTF-8, the error."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(len(batch)):
            try:
                yield from batch.slice(row, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield error


def row_group_bytes(path: str | os.PathLike, what: str) -> list[int]:
    """Returns the uncompressed bytes of each row group of a Parquet file, reading only the end of the file."""
    with _parquet(path, what) as table:
        return [table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups)]


@contextlib.contextmanager
def _parquet(path: str | os.PathLike, what: str, text_bytes: int = 0):
    """Opens a Parquet file for a `with` block, and raises its errors there as one line."""
    import pyarrow
    import pyarrow.parquet

    # Without a buffer a column of a row group is read at once, with one by pages.
    buffer = _buffer_bytes(text_bytes) if text_bytes else 0
    try:
        with (
            open_file(path, what, 2 * buffer) as file,
            pyarrow.parquet.ParquetFile(file, buffer_size=buffer, pre_buffer=not buffer) as table,
        ):
            yield table
    except (pyarrow.ArrowException, OSError) as error:
        with open_file(path, what) as file:
            require_content(file.read(len(_POINTER)), f"{what} {path}")
        raise UserError(f"{what} {path}: damaged or not Parquet: {error}") from error


def read_tfds(
    builder, split: str, what: str, columns: list[str] | None = None, rows: tuple[int, int] | None = None
) -> Iterator[Record | BadRecord]:
    """Yields the records of a TFDS dataset, with some features or all; texts are `str`, a class label is its number.

    Args:
        rows: in [first, stop); None for all.
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
        try:
            yield Record(where, _plain({name: fields[name] for name in columns or fields}, where))
        except BadRecord as error:
            yield error


def open_tfds(name_or_folder: str, split: str, what: str):
    """Returns the builder of a TFDS dataset prepared here, given its name or its folder.

    Raises:
        UserError: there is none, or it lacks the split.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        if expanded(name_or_folder).is_dir():
            builder = tfds.builder_from_directory(str(expanded(name_or_folder)))
        else:
            try:  # Prepared data can be read without the code that prepared them, which may need TensorFlow.
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
    """Raises `UserError`, with the present fields, unless all wanted ones are there."""
    for name in wanted:
        require(name in present, f"{where}: no field {name!r}; it has {', '.join(map(str, present))}")


def _repeated(wanted: Iterable[str], present: Sequence[str]) -> str:
    """Returns the message about a field that occurs several times, so that it is ambiguous; '' for none."""
    counts = Counter(present)
    name = next((name for name in wanted if counts[name] > 1), None)
    return "" if name is None else f"{counts[name]} fields are named {name!r}; keep one, or rename the others"


def _lines(file: io.BufferedIOBase, path: str | os.PathLike, what: str) -> Iterator[bytes]:
    try:
        yield from file
    except (OSError, EOFError, zlib.error) as error:
        form = f"{what} {path}: damaged or not {os.path.splitext(path)[1]} data"
        if "too much memory" in str(error):
            form = (
                f"{what} {path}: packed with a window above 128 MB; pack it without --long (zstd -dc --long=31 | zstd)"
            )
        raise UserError(f"{form}: {error}") from error


def _open_compressed(path: str | os.PathLike, what: str, text_bytes: int = 0) -> io.BufferedIOBase:
    """Opens a file of lines, and unpacks it by its suffix."""
    is_packed = has_suffix(os.fspath(path), PACKED)
    # Compressed text has a third or more of its size.
    file = open_file(path, what, -(-text_bytes // 3) if is_packed else text_bytes)
    require_content(file.peek(), f"{what} {path}")
    if not is_packed:
        return file
    size = _buffer_bytes(text_bytes)
    packed = _ShortReads(file, size) if text_bytes else file
    if has_suffix(os.fspath(path), (".gz",)):
        return gzip.open(packed, "rb")
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(packed, "zstd"), size)


def _buffer_bytes(text_bytes: int) -> int:
    """Returns how many bytes are read ahead at a time if about so much text is read, or all (0)."""
    return min(max(text_bytes // 64, _LEAST_UNPACKED), _MOST_UNPACKED) if text_bytes else _MOST_UNPACKED


class _ShortReads(io.RawIOBase):
    """A file that returns at most so many bytes at a time, to limit a library's read-ahead."""

    def __init__(self, file: io.BufferedReader, most: int):
        self._file, self._most = file, most

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer) -> int:
        """Reads into a buffer; returns the bytes that were read, 0 at the end."""
        data = self._file.read1(min(len(buffer), self._most))
        buffer[: len(data)] = data
        return len(data)


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
