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

# A longer text file becomes several documents. They stay in one split, as they are about one thing, unless there is no
# other file: then those that begin in its last part are for validation.
TEXT_CHARACTERS = 1 << 16

# The last part of a single text gives at most so many validation documents, of at least so many bytes, since each
# begins without context and ends with an EOS.
_END_DOCUMENTS, _END_BYTES = 8, 1 << 10

# Bytes of a text file that are read at a time.
_BLOCK_BYTES = 1 << 20


class Document(NamedTuple):
    """A text with a key that stays the same when files are reordered; documents of one key stay in one split."""

    key: str
    text: str
    bad: str = ""
    """Why there is no text: the fault of the record, which is left out, and its place."""
    fraction: float | None = None
    """For a piece of a single text, in (0, 1]: it is for validation if below `corpus.validation_share`. None for any
    other document: the hash of its key decides.
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
    """Returns the help texts of the language reference; none if a distribution leaves them out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return topics


def read_pystdlib(files: Sequence[SourceFile]) -> Iterator[Document]:
    """Yields the source files of the standard library, then the help texts."""
    for file in files:
        yield Document(file.name, decode(_read_bytes(file.path), f"corpus file {file.path}"))
    for name, text in sorted(help_topics().items()):
        yield Document(f"topic/{name}", text)


def may_be_cut(file: SourceFile) -> bool:
    """Returns whether a text file is large enough to become several documents."""
    return file.size > TEXT_CHARACTERS


def read_text(files: Sequence[SourceFile]) -> Iterator[Document | BadRecord]:
    """Yields each file as a document, or as several of at most `TEXT_CHARACTERS` and one key if it is long.

    A byte order mark at its start is not part of the text. If a file is not UTF-8, the error is yielded in place of the
    document that has it, and nothing after it.
    """
    for file in files:
        try:
            for text in _cut_text(_read_blocks(file.path)):
                yield Document(_key(file), text)
        except BadRecord as error:
            yield error


def read_only_text(file: SourceFile, validation_share: float) -> Iterator[Document | BadRecord]:
    """Yields the only file of a corpus as documents with a key each, otherwise as `read_text` does.

    Args:
        validation_share: share of the file's bytes, at its end, for validation. It begins at a line if possible, and
            gives several documents, to estimate an error; 0 leaves the split to the keys.
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
    """Returns a file's name, with escapes for what is not Unicode."""
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
                begun = len(decoder.getstate()[0])  # Bytes before this block of a character that ends in it.
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
    """Yields texts cut once in each window of bytes: after the first line that ends there, else at its start."""
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
        BadRecord: a field is missing or invalid.
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
