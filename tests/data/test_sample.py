"""What a sample of a corpus of many files reads of them, counted."""

import gzip
import io
import json
import os
from typing import Any, ClassVar

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.spec import AbstractFileSystem

from jaxformer.data import source_files
from jaxformer.data.corpus import CorpusConfig, load_documents

pytestmark = pytest.mark.device_free

FILES, LIMIT = 300, 4_000_000
FOOTER = 64 << 10  # What Arrow reads of the end of a Parquet file.


class Counted(AbstractFileSystem):
    """A store whose files all hold the same, and which counts what is requested of them."""

    protocol, cachable = "counted", False
    names: tuple[str, ...] = ()
    data = b""
    requests: ClassVar[list[tuple[str, Any, Any]]] = []
    """(file, first byte, one behind the last) of each."""

    def info(self, path, **kwargs):
        name = self._strip_protocol(path)
        if name in self.names:
            return {"name": name, "size": len(self.data), "type": "file", "ETag": "1"}
        return {"name": name, "size": 0, "type": "directory"}

    def ls(self, path, detail=True, **kwargs):
        return [self.info(name) for name in self.names]

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.requests.append((path, start, end))
        return self.data[start:end]


class CountedFile(io.FileIO):
    """A local file whose bytes that are read are counted."""

    read_bytes = 0

    def readinto(self, buffer):
        count = super().readinto(buffer)
        CountedFile.read_bytes += count or 0
        return count


def write_forms(texts: list[str]) -> dict[str, tuple[str, bytes]]:
    """Returns the name's end and the content of a file of texts, by its form."""
    lines = "".join(json.dumps({"id": f"<urn:{i}>", "text": text}) + "\n" for i, text in enumerate(texts)).encode()
    packed, parquet = pyarrow.BufferOutputStream(), io.BytesIO()
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(lines)
    columns = {"id": [f"<urn:{i}>" for i in range(len(texts))], "text": texts, "score": [3.5] * len(texts)}
    pyarrow.parquet.write_table(pyarrow.table(columns), parquet, row_group_size=1000)
    return {
        "plain": (".jsonl", lines),
        "gzip": (".jsonl.gz", gzip.compress(lines, 6)),
        "Zstandard": (".jsonl.zst", packed.getvalue().to_pybytes()),
        "Parquet": (".parquet", parquet.getvalue()),
    }


FORMS = ("plain", "gzip", "Zstandard", "Parquet")


@pytest.fixture(scope="module")
def forms(make_texts):
    """Files of 3 MB of text, by their form."""
    texts = make_texts(9600)
    return write_forms(["\n".join(texts[first : first + 8]) for first in range(0, len(texts), 8)])


def take(kind: str, path: str) -> tuple[int, int]:
    """Returns how many bytes of text a sample of a corpus takes, and how many files gave some."""
    opened = set()
    documents = load_documents(CorpusConfig(kind=kind, path=path, key_field="id"))
    assert len(documents.files) == FILES
    read = documents.read

    def watched(part, **kwargs):
        opened.add(part.file)
        return read(part, **kwargs)

    object.__setattr__(documents, "read", watched)
    return sum(len(document.text.encode()) for document in documents.sample(LIMIT)), len(opened)


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_of_300_remote_files_requests_at_most_twice_what_it_takes(form, forms, monkeypatch):
    suffix, data = forms[form]
    monkeypatch.setattr(Counted, "names", tuple(f"bucket/{i:03}{suffix}" for i in range(FILES)))
    monkeypatch.setattr(Counted, "data", data)
    monkeypatch.setattr(Counted, "requests", [])
    fsspec.register_implementation("counted", Counted, clobber=True)
    taken, files = take("parquet" if form == "Parquet" else "jsonl", "counted://bucket")
    assert LIMIT <= taken < 1.01 * LIMIT
    requested = [stop - start for _, start, stop in Counted.requests]
    footers = [stop - start for _, start, stop in Counted.requests if stop == len(data)] if form == "Parquet" else []
    assert len(footers) in (0, files), "a footer is read once"
    assert sum(requested) - sum(footers) <= 2 * taken
    assert len(requested) <= 5 * files, "a footer, the schema and dictionaries, and pages of the two columns"


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_of_300_local_files_reads_at_most_twice_what_it_takes(form, forms, tmp_path, monkeypatch):
    suffix, data = forms[form]
    (tmp_path / f"000{suffix}").write_bytes(data)
    for i in range(1, FILES):
        os.link(tmp_path / f"000{suffix}", tmp_path / f"{i:03}{suffix}")

    monkeypatch.setattr(source_files, "open", lambda path, mode: io.BufferedReader(CountedFile(path)), raising=False)
    monkeypatch.setattr(CountedFile, "read_bytes", 0)
    taken, files = take("parquet" if form == "Parquet" else "jsonl", str(tmp_path))
    assert LIMIT <= taken < 1.01 * LIMIT
    assert 0 < CountedFile.read_bytes - (FOOTER * files if form == "Parquet" else 0) <= 2 * taken
