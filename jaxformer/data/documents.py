"""Documents of each kind of source: texts with keys."""

import codecs
import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.config import UserError
from jaxformer.data.records import BadRecord, Record, decode, not_utf8, require_content, require_text
from jaxformer.data.source_files import SourceFile, open_file

# A longer text file is several documents. Those of one file stay together, as they are about one thing, unless there
# is no other file: then those that begin in its last part are for validation.
TEXT_CHARACTERS = 1 << 16

# The last part of an only text is for validation as at most so many documents, each of so many bytes at least, since
# each begins without context and ends with an EOS.
_END_DOCUMENTS, _END_BYTES = 8, 1 << 10

# Of a text file that are read at a time.
_BLOCK_BYTES = 1 << 20


class Document(NamedTuple):
    """A text with a key that stays the same when files are reordered; what has the same key stays together."""

    key: str
    text: str
    bad: str = ""
    """Why there is no text: what is wrong with the record, which is left out, and where it stands."""
    fraction: float | None = None
    """Of a piece of a single text, in (0, 1]: it is for validation if below `corpus.validation_share`. Of any other
    document None: the hash of its key decides.
    """


def _pystdlib_root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def pystdlib_files() -> tuple[SourceFile, ...]:
    """Returns the source files of the running Python's standard library, sorted by name.

    Raises:
        UserError: a distribution left them out.
    """
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
    found = (SourceFile(str(path), path.relative_to(root).as_posix(), path.stat().st_size) for path in files)
    return tuple(sorted(found, key=lambda file: file.name))


def help_topics() -> dict[str, str]:
    """Returns the help texts of the language reference; none where a distribution leaves them out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return topics


def read_pystdlib(files: Sequence[SourceFile]) -> Iterator[Document]:
    """Yields the source files of the standard library and the help texts behind them."""
    for file in files:
        yield Document(file.name, decode(_read_bytes(file.path), f"corpus file {file.path}"))
    for name, text in sorted(help_topics().items()):
        yield Document(f"topic/{name}", text)


def may_be_cut(file: SourceFile) -> bool:
    """Returns whether a text file may be several documents, by its size."""
    return file.size > TEXT_CHARACTERS


def read_text(files: Sequence[SourceFile]) -> Iterator[Document | BadRecord]:
    """Yields each file as a document, or as several of at most `TEXT_CHARACTERS` and one key if it is long.

    A byte order mark at its start is no part of the text. Of a file that is not UTF-8 what is wrong is yielded in the
    place of the document in which it stands, and nothing behind it.
    """
    for file in files:
        try:
            for text in _cut_text(_read_blocks(file.path)):
                yield Document(_key(file), text)
        except BadRecord as error:
            yield error


def read_only_text(file: SourceFile, validation_share: float) -> Iterator[Document | BadRecord]:
    """Yields the only file of a corpus as documents of a key each, in other respects as `read_text` does.

    Args:
        validation_share: of the file's bytes, the last ones, that is for validation, from a line on where there is one,
            as several documents, by which an error can be told; 0 leaves the split to the keys.
    """
    first, behind = int(file.size * (1 - validation_share)) + 1, 0
    held_out = file.size - first
    count = min(_END_DOCUMENTS, max(1, held_out // _END_BYTES))
    starts = [first + held_out * i // count for i in range(count + 1)]
    windows = [range(first, first + held_out // 2), *map(range, starts[1:], starts[2:])]
    try:
        for number, text in enumerate(_cut_again(_cut_text(_read_blocks(file.path)), windows)):
            fraction = (file.size - behind) / max(1, file.size) if validation_share else None
            yield Document(f"{_key(file)}#{number}" if number else _key(file), text, fraction=fraction)
            behind += len(text.encode())
    except BadRecord as error:
        yield error


def _key(file: SourceFile) -> str:
    """Returns a file's name; it may be no Unicode text, and what it cannot say is written as escapes."""
    return file.name.encode("utf-8", "backslashreplace").decode()


def _read_blocks(path: str) -> Iterator[str]:
    """Yields the text of a file, a block at a time."""
    decoder, read, where = codecs.getincrementaldecoder("utf-8")(), 0, f"corpus file {path}"
    is_start = True
    try:
        with open_file(path, "corpus file") as file:
            require_content(file.peek(), where)
            require_text(file.peek(), where)
            while block := file.read(_BLOCK_BYTES):
                begun = len(decoder.getstate()[0])  # Bytes of a character that ends in this block.
                try:
                    text = decoder.decode(block)
                except UnicodeDecodeError as error:
                    place = read - begun + error.start
                    raise BadRecord(not_utf8(where, place, error.object[error.start])) from error
                yield text.removeprefix("\ufeff") if is_start else text
                is_start = is_start and not text
                read += len(block)
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}") from error
    if begun := decoder.getstate()[0]:
        raise BadRecord(not_utf8(where, read - len(begun), begun[0]))


def _cut_text(blocks: Iterable[str]) -> Iterator[str]:
    """Yields a text in pieces of at most `TEXT_CHARACTERS`, cut after a blank line, else a line, else anywhere."""
    text, first = "", 0
    for block in blocks:
        text, first = text[first:] + block, 0
        while len(text) - first > TEXT_CHARACTERS:
            last = first + TEXT_CHARACTERS
            blank, line = text.rfind("\n\n", first, last), text.rfind("\n", first, last)
            end = blank + 2 if blank >= 0 else line + 1 if line >= 0 else last
            yield text[first:end]
            first = end
    yield text[first:]


def _cut_again(texts: Iterable[str], windows: Sequence[range]) -> Iterator[str]:
    """Yields texts cut once in each window of bytes: behind the first line that ends there, else where it begins."""
    behind = 0
    for text in texts:
        data = text.encode()
        for window in windows:
            start = window.start - behind
            if 0 < start < len(data):
                end = data.find(b"\n", start, window.stop - behind) + 1 or start
                while end < len(data) and 0x80 <= data[end] < 0xC0:  # Within a character.
                    end += 1
                if end < len(data):
                    yield data[:end].decode()
                    data, behind = data[end:], behind + end
        yield data.decode()
        behind += len(data)


def to_document(record: Record, text_field: str, key_field: str) -> Document:
    """Returns the document of a record; without a key field its key is a digest of its text. A null is no text.

    Raises:
        BadRecord: a field is missing, or is not what it must be.
    """
    where, fields = record
    for option, name in (("text_field", text_field), ("key_field", key_field)):
        if name and name not in fields:
            has = ", ".join(map(str, fields))
            nothing = ", or to '' for a digest of the text" if option == "key_field" else ""
            raise BadRecord(f"{where}: no field {name!r}; it has {has}: set corpus.{option} to one{nothing}")
    text = "" if fields[text_field] is None else fields[text_field]
    if isinstance(text, bytes):  # A column of Parquet that its writer did not mark as text.
        text = decode(text, f"{where}, field {text_field!r}")
    if not isinstance(text, str):
        raise BadRecord(f"{where}: field {text_field!r} must be text, not {text!r:.40}")
    encoded = _encode(text, text_field, where)
    if not key_field:
        return Document(hashlib.blake2b(encoded, digest_size=16).hexdigest(), text)
    key = fields[key_field]
    if key is None:
        raise BadRecord(f"{where}: field {key_field!r} must identify the record; it is null")
    _encode(str(key), key_field, where)
    return Document(str(key), text)


def _read_bytes(path: str) -> bytes:
    try:
        with open_file(path, "corpus file") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"corpus file {path}: {error.strerror}") from error


def _encode(text: str, field: str, where: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord(
            f"{where}: a lone surrogate at character {error.start} of field {field!r} is no Unicode text"
        ) from error
