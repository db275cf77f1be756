"""Your own corpus readers: for files that no kind of jaxformer reads, or for documents without files."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxformer.config import UserError, require
from jaxformer.data.documents import Document, to_document
from jaxformer.data.records import BadRecord, Record
from jaxformer.data.source_files import SourceFile
from jaxformer.record import Part, describe_failure


@dataclass(frozen=True)
class Reader(Part):
    """How the documents of a corpus are read, as the value of `corpus.kind`.

    It reads in one process, which passes the texts to those that tokenise. A resumed preparation reads a file again and
    skips the documents that it has: so it must yield the same documents, in the same order, every time.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes of the files that it reads, in lower case, as ('.log',): `corpus.path` names the files as for any kind,
    and their content is part of the corpus's digest. Without suffixes it reads no files, and only its fields and code
    count.
    """

    def read(self, file: Any) -> Iterable[str | Document]:
        """Yields the documents of a file: a text, whose key is then its digest, or a `Document` with a key.

        Args:
            file: a `SourceFile`, read with `file.open()` wherever it lies; None if it reads no files.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define read(file)")


def check_path(reader: Reader, path: str) -> None:
    """Raises `UserError` unless a corpus has a path exactly if its reader reads files."""
    suffixes = reader.suffixes
    is_tuple = isinstance(suffixes, tuple) and all(isinstance(each, str) for each in suffixes)
    require(is_tuple, f"{reader!r}: suffixes ({suffixes!r}) must be a tuple of texts, as ('.log',)")
    require(bool(path) or not suffixes, f"corpus.kind {reader!r} reads {' and '.join(suffixes)} files; set corpus.path")
    require(
        bool(suffixes) or not path,
        f"corpus.path ({path!r}) has no meaning for {reader!r}, which has no suffixes of files to read",
    )


def read_own(reader: Reader, files: Sequence[SourceFile | None]) -> Iterator[Document | BadRecord]:
    """Yields the documents that a reader makes from files, or from None, in order.

    Raises:
        UserError: it fails, or yields something that is no document.
    """
    for file in files:
        where, number = f"corpus.kind {reader!r}{f', {file.path}' if file else ''}", 0
        try:
            for number, found in enumerate(reader.read(file), start=1):
                yield _document(found, f"{where}, document {number}")
        except UserError:
            raise
        except Exception as error:
            behind = f", behind document {number}" if number else ""
            raise UserError(f"{where}{behind}: {describe_failure(reader, error)}") from error


def _document(found: object, where: str) -> Document | BadRecord:
    is_document = isinstance(found, Document)
    is_whole = is_document and all(isinstance(each, str) for each in found[:3]) and found.fraction is None
    if not (isinstance(found, str) or is_whole):
        raise UserError(f"{where}: it must yield texts, or Document(key, text), and no {found!r:.60}")
    if is_document and found.bad:
        return BadRecord(f"{where}: {found.bad}")
    fields = {"key": found.key, "text": found.text} if is_document else {"text": found}
    try:
        return to_document(Record(where, fields), "text", "key" if is_document else "")
    except BadRecord as error:
        return error
