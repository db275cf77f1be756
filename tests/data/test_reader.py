"""Corpora that a reader of one's own reads: their documents, digests and preparation, and what is refused."""

from dataclasses import dataclass

import pytest

import jaxformer.data.chunks
import jaxformer.data.kinds
from jaxformer.config import UserError, execution
from jaxformer.data.corpus import CorpusConfig, check_sources, load_documents, part_names
from jaxformer.data.documents import Document
from jaxformer.data.preparation import prepare
from jaxformer.data.reader import Reader
from jaxformer.experiment.files import load_parts
from jaxformer.record import from_dict, loaded_kinds, to_dict

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]


@dataclass(frozen=True)
class Chats(Reader):
    """Files of texts that blank lines separate, each with a key."""

    mark: str = ""
    buffer: int = execution(0)
    suffixes = (".log",)

    def read(self, file):
        for number, text in enumerate(file.open().read().decode().split("\n\n")):
            yield Document(f"{file.name}#{number}", self.mark + text)


@dataclass(frozen=True)
class Counting(Reader):
    """Texts that no file holds."""

    count: int = 9

    def read(self, file):
        assert file is None
        return (f"number {number}" for number in range(self.count))


@dataclass(frozen=True)
class Yielding(Reader):
    """A reader of whatever a test wants."""

    what: str = "good"

    def read(self, file):
        yield "a text"
        yield {
            "none": None,
            "bytes": b"text",
            "pair": ("key", "text"),
            "key": Document(3, "text"),  # pyright: ignore[reportArgumentType]
            "surrogate": "\ud800",
            "bad": Document("", "", bad="torn"),
            "fraction": Document("a", "text", fraction=0.5),
        }.get(self.what, "another")
        if self.what == "raises":
            raise KeyError("speaker")


class Nothing(Yielding):
    """A reader that returns nothing."""

    def read(self, file):
        return None


Nothing = dataclass(frozen=True)(Nothing)


@pytest.fixture
def logs(tmp_path, make_texts):
    """A folder of three files of 40 texts, beside one of another kind."""
    folder = tmp_path / "logs"
    folder.mkdir()
    texts = [text.replace("\n", " ") for text in make_texts(120)]
    for number in range(3):
        (folder / f"{number}.log").write_text("\n\n".join(texts[40 * number : 40 * number + 40]))
    (folder / "about.md").write_text("no log")
    return folder


def config(path="", reader: Reader | None = None, **fields) -> CorpusConfig:
    return CorpusConfig(kind=reader or Chats(), path=str(path), validation_share=0.2, **fields)


def test_documents_are_those_of_the_reader_file_by_file_with_its_keys_or_digests_of_the_texts(logs, monkeypatch):
    monkeypatch.setattr(jaxformer.data.kinds, "PART_BYTES", 10)
    documents = load_documents(config(logs))
    expected = [
        Document(f"{file.name}#{number}", text)
        for file in sorted(logs.glob("*.log"))
        for number, text in enumerate(file.read_text().split("\n\n"))
    ]
    assert list(documents) == expected and len(list(documents.parts())) == 3
    assert [*documents.read(next(documents.parts()), skip=38)] == expected[38:40]
    assert documents.passed_over == "1 of another kind (about.md)" and documents.origin == str(logs)
    few = [document.key.partition("#")[0] for document in documents.sample(600)]
    assert set(few) == {"0.log", "1.log", "2.log"} and len(few) < 20
    counted = load_documents(config(reader=Counting(3)))
    (jsonl := logs / "same.jsonl").write_text("".join(f'{{"text": "number {number}"}}\n' for number in range(3)))
    assert list(counted) == list(load_documents(CorpusConfig(kind="jsonl", path=str(jsonl))))
    assert counted.origin == "Counting(count=3)"
    mixture = CorpusConfig(kind="mixture", parts=(config(reader=Counting(3)), config(logs), config(reader=Counting())))
    assert part_names(mixture) == ["Counting", "logs", "Counting_2"]
    assert from_dict(CorpusConfig, to_dict(mixture)) == mixture


def test_the_digest_changes_with_the_data_the_fields_and_the_code_and_not_with_how_it_is_read(logs, tmp_path):
    def digest(**fields):
        return load_documents(config(logs, Chats(**fields))).digest

    before = digest()
    assert digest(buffer=7) == before != digest(mark="> ")
    assert load_documents(config(reader=Counting(3))).digest != load_documents(config(reader=Counting(4))).digest
    (logs / "about.md").write_text("not read")
    assert digest() == before
    (logs / "1.log").write_text("another")
    assert digest() != before
    code = "from dataclasses import dataclass\nfrom jaxformer.data.reader import Reader\n@dataclass(frozen=True)\n"
    code += "class Two(Reader):\n    def read(self, file):\n        yield 'a'\n        yield 'b'\n"
    digests = {}
    for name, change in (("same", "# why\n"), ("again", ""), ("other", "Y = 3\n")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "two.py").write_text(code + change)
        load_parts(folder / "two.py")
        (kind,) = [each for each in loaded_kinds(Reader) if each._source and each._source.path.parent == folder]
        digests[name] = load_documents(config(reader=kind())).digest
    assert digests["same"] == digests["again"] != digests["other"]


def files_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "verified.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_several_processes_and_a_preparation_that_was_stopped_make_the_same_bytes(
    logs, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(jaxformer.data.chunks, "CHUNK_CHARACTERS", 1500)
    documents = load_documents(config(logs))
    whole = files_of(prepare(documents, tokenizer, tmp_path / "one", progress=False))
    assert whole == files_of(prepare(documents, tokenizer, tmp_path / "two", progress=False, processes=2))
    assert len(whole) > 5
    with pytest.raises(KeyboardInterrupt):
        stop_after_chunks(3, documents, tokenizer, tmp_path / "three")
    assert whole == files_of(prepare(documents, tokenizer, tmp_path / "three", progress=False))


def stop_after_chunks(count, documents, tokenizer, cache):
    """Prepares a corpus until so many chunks are stored."""
    write, written = jaxformer.data.chunks.write_chunk, []

    def stopping(path, chunk):
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(write(path, chunk))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxformer.data.chunks, "write_chunk", stopping)
        prepare(documents, tokenizer, cache, progress=False)


def test_a_reader_that_reads_in_another_order_is_refused_where_it_would_go_on_and_begins_anew(
    logs, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(jaxformer.data.chunks, "CHUNK_CHARACTERS", 1500)
    documents = load_documents(config(logs))
    with pytest.raises(KeyboardInterrupt):
        stop_after_chunks(3, documents, tokenizer, tmp_path)
    read = Chats.read
    monkeypatch.setattr(Chats, "read", lambda self, file: sorted(read(self, file), key=lambda each: each.text))
    with pytest.raises(UserError, match="the reader yields other documents than before, or in another order"):
        prepare(documents, tokenizer, tmp_path, progress=False)
    sorted_shards = files_of(prepare(documents, tokenizer, tmp_path, progress=False))
    assert sorted_shards == files_of(prepare(documents, tokenizer, tmp_path / "anew", progress=False))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none", r", document 2: it must yield texts, or Document\(key, text\), and no None"),
        ("bytes", r", document 2: it must yield texts, or Document\(key, text\), and no b'text'"),
        ("pair", r", document 2: it must yield texts, or Document\(key, text\), and no \('key', 'text'\)"),
        ("key", r", document 2: it must yield texts, or Document\(key, text\), and no Document\(key=3, "),
        ("fraction", r", document 2: it must yield texts, or Document\(key, text\), and no Document\(key='a', "),
        ("raises", r", behind document 2: KeyError: 'speaker' \(test_reader\.py, line \d+\)$"),
        ("surrogate", ", document 2: a lone surrogate at character 0"),
        ("bad", ", document 2: torn"),
    ],
)
def test_what_is_no_document_is_refused_in_one_line(what, message):
    documents = load_documents(config(reader=Yielding(what)))
    with pytest.raises(UserError, match=rf"^corpus\.kind Yielding\(what='{what}'\){message}") as error:
        list(documents)
    assert "\n" not in str(error.value)


def test_a_bad_document_can_be_left_out_and_what_is_no_document_cannot():
    for what in ("surrogate", "bad"):
        found = list(load_documents(config(reader=Yielding(what), skip_bad_records=0.5)))
        assert [each.text for each in found] == ["a text", ""] and found[1].bad
    with pytest.raises(UserError, match="no None"):
        list(load_documents(config(reader=Yielding("none"), skip_bad_records=0.5)))


def test_a_reader_and_a_path_that_do_not_fit_are_refused(logs, monkeypatch):
    def refused(match, path="", reader=None):
        for use in (check_sources, load_documents):
            with pytest.raises(UserError, match=match):
                use(config(path, reader))

    refused(r"^corpus\.kind Chats\(mark='', buffer=0\) reads \.log files; set corpus\.path$")
    refused(r"^corpus\.path \('x'\) has no meaning for Counting\(count=9\), which has no suffixes", "x", Counting())
    (logs.parent / "empty").mkdir()
    refused(r"the folder holds no \.log file", logs.parent / "empty")
    monkeypatch.setattr(Chats, "suffixes", ".log")
    refused(r"suffixes \('\.log'\) must be a tuple of texts, as \('\.log',\)$", logs)
    with pytest.raises(UserError, match=r"^corpus\.kind must be text, .* or Reader, not the class Chats; give Chats"):
        CorpusConfig(kind=Chats)  # pyright: ignore[reportArgumentType]


def test_a_corpus_of_which_nothing_can_be_prepared_is_refused(logs, tokenizer, tmp_path, monkeypatch):
    def refused(match, made, **options):
        with pytest.raises(UserError, match=match):
            prepare(load_documents(made), tokenizer, tmp_path, progress=False, **options)

    refused(r"Nothing\(what='good'\): TypeError: 'NoneType' object is not iterable", config(reader=Nothing()))
    refused("0 documents with text cannot be split into training and validation", config(reader=Counting(0)))
    refused(r"Beam's workers have no code of an experiment's file; prepare without", config(reader=Counting()), beam=[])
    monkeypatch.setattr(Chats, "read", lambda self, file: (Document("one", f"{file.name} {i}") for i in range(4)))
    refused("documents of one key stay together; let the reader give each its own, or none", config(logs))
