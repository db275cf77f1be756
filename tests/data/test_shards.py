import itertools
import json
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.config import UserError
from jaxformer.data import chunks, preparation, shards
from jaxformer.data.corpus import CorpusConfig, key_fraction, load_documents
from jaxformer.data.preparation import prepare
from jaxformer.data.shards import SPLITS, open_shards

pytestmark = pytest.mark.device_free

SHARE = 0.2


@pytest.fixture(scope="module", autouse=True)
def small_records():
    """Records of 16 tokens, so that most documents are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "RECORD_TOKENS", 16)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, make_texts):
    """A corpus of 84 files: 81 distinct texts, two repetitions and one empty."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = make_texts(78)
    # Two documents whose tokens end exactly at a record's end: each digit is a token.
    texts += ["1234567890123456", "12345678901234567890123456789012", "ünïcödé \U0001f9ea"]
    for i, text in enumerate([*texts, texts[3], texts[7], " \n"]):
        (folder / f"{i:03}.txt").write_text(text)
    return load_documents(CorpusConfig(kind="text", path=str(folder), validation_share=SHARE, licence="CC0-1.0"))


@pytest.fixture(scope="module")
def texts_of_split(corpus):
    """The distinct texts of each split, in the order of the corpus; worked out without the library's counting."""
    split_of = {}
    for document in corpus:
        if document.text.strip():
            split_of.setdefault(document.text, "validation" if key_fraction(document.key) < SHARE else "train")
    return {split: [text for text, s in split_of.items() if s == split] for split in SPLITS}


@pytest.fixture(scope="module")
def folder(corpus, tokenizer, tmp_path_factory):
    """The corpus's shards."""
    return prepare(corpus, tokenizer, tmp_path_factory.mktemp("prepared"), progress=False)


@pytest.fixture(scope="module")
def training(folder):
    return open_shards(folder, "train")


@pytest.fixture(scope="module")
def training_ids(texts_of_split, tokenizer):
    """The ids of each training document, straight from the tokenizer."""
    return [np.array(tokenizer.encode(text)) for text in texts_of_split["train"]]


def read_all(opened) -> list[list[int]]:
    return [opened.read(i, 0, int(opened.tokens[i])).tolist() for i in range(len(opened))]


@pytest.mark.parametrize("split", SPLITS)
def test_every_document_comes_back_whole_and_in_order(folder, tokenizer, texts_of_split, split):
    opened = open_shards(folder, split)
    assert len(opened) == len(texts_of_split[split]) > 5
    assert max(opened.tokens) > 3 * shards.RECORD_TOKENS
    for ids, text in zip(read_all(opened), texts_of_split[split], strict=True):
        assert ids == tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert min(ids) >= 0 and max(ids) < opened.manifest.vocabulary_size
        assert not {opened.manifest.bos_id, opened.manifest.eos_id} & set(ids)


@given(st.data())
def test_a_piece_of_a_document_is_the_slice_of_the_whole(training, training_ids, data):
    document = data.draw(st.integers(0, len(training) - 1))
    stop = data.draw(st.integers(1, len(training_ids[document])))
    start = data.draw(st.integers(0, stop - 1))
    np.testing.assert_array_equal(training.read(document, start, stop), training_ids[document][start:stop])


def test_pieces_that_begin_or_end_at_a_record_are_right(training, training_ids):
    begin = 0
    for document, ids in enumerate(training_ids[:12]):
        near = range(-begin % 16, len(ids) + 2, 16)
        edges = {0, len(ids), *(e for edge in near for e in (edge - 1, edge, edge + 1) if 0 <= e <= len(ids))}
        begin += len(ids)
        for start in edges:
            for stop in edges:
                if start < stop:
                    np.testing.assert_array_equal(training.read(document, start, stop), ids[start:stop])


@given(st.data())
def test_many_pieces_are_those_read_one_by_one_and_no_record_is_read_twice(training, training_ids, data):
    documents = np.array(data.draw(st.lists(st.integers(0, len(training) - 1), max_size=9)), np.int64)
    lengths = [len(training_ids[document]) for document in documents]
    stops = np.array([data.draw(st.integers(0, length)) for length in lengths], np.int64)
    starts = np.array([data.draw(st.integers(0, stop)) for stop in stops], np.int64)
    with mock.patch.object(shards._Files, "read", autospec=True, side_effect=shards._Files.read) as read:
        ids = training.read_pieces(documents, starts, stops)
    records = [record for call in read.call_args_list for record in call.args[1].tolist()]
    assert len(set(records)) == len(records)
    expected = [training_ids[i][start:stop] for i, start, stop in zip(documents, starts, stops, strict=True)]
    np.testing.assert_array_equal(ids, np.concatenate([np.empty(0, np.int64), *expected]))


def test_an_empty_piece_is_empty_also_at_the_end_of_a_record_and_of_the_split(folder):
    opened = open_shards(folder, "train")
    at_border = np.flatnonzero(np.cumsum(opened.tokens) % shards.RECORD_TOKENS == 0).tolist()
    assert at_border, "no document ends with a record"
    for document in [*at_border, len(opened) - 1]:
        tokens = int(opened.tokens[document])
        for at in (0, 5, tokens):
            assert opened.read(document, at, at).tolist() == []


def test_tfds_reads_the_records_which_are_the_stream_of_all_ids_cut_at_every_16(folder, texts_of_split, tokenizer):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder / "token_shards" / "1.0.0"))
    for split in SPLITS:
        records = [record["ids"].tolist() for record in builder.as_data_source(split=split)]
        stream = [i for text in texts_of_split[split] for i in tokenizer.encode(text)]
        assert records == [stream[first : first + 16] for first in range(0, len(stream), 16)]


def test_the_manifest_and_the_index_count_what_is_there(folder, corpus, tokenizer, texts_of_split):
    manifest = open_shards(folder, "train").manifest
    ids = {split: [tokenizer.encode(text) for text in texts_of_split[split]] for split in SPLITS}
    sizes = {split: [len(text.encode()) for text in texts_of_split[split]] for split in SPLITS}
    assert manifest.documents == {split: len(ids[split]) for split in SPLITS}
    assert sum(manifest.documents.values()) == 81
    assert manifest.tokens == {split: sum(map(len, ids[split])) for split in SPLITS}
    assert manifest.text_bytes == {split: sum(sizes[split]) for split in SPLITS}
    assert (manifest.duplicates, manifest.empty) == (2, 1)
    assert (manifest.vocabulary_size, manifest.bos_id, manifest.eos_id) == (400, tokenizer.bos_id, tokenizer.eos_id)
    assert (manifest.corpus_digest, manifest.tokenizer_digest) == (corpus.digest, tokenizer.digest)
    assert (manifest.origin, manifest.licence) == (corpus.config.path, "CC0-1.0")
    for split in SPLITS:
        opened = open_shards(folder, split)
        assert opened.tokens.tolist() == [len(x) for x in ids[split]]
        assert opened.text_bytes.tolist() == sizes[split]


def train_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*train.array_record*"))


@pytest.mark.parametrize("file_records", [1, 13])
def test_several_shard_files_read_the_same_as_one(corpus, tokenizer, folder, tmp_path, monkeypatch, file_records):
    expected = {split: read_all(open_shards(folder, split)) for split in SPLITS}
    monkeypatch.setattr(shards, "FILE_RECORDS", file_records)
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 500)
    many = prepare(corpus, tokenizer, tmp_path, progress=False)
    assert len(train_files(many)) > 3 and len(train_files(folder)) == 1
    for split in SPLITS:
        opened = open_shards(many, split)
        assert read_all(opened) == expected[split]
        assert opened.read_documents(np.arange(len(opened))).tolist() == [i for ids in expected[split] for i in ids]


def test_a_split_read_before_can_be_pickled_and_reads_the_same(training):
    before = read_all(training)
    assert read_all(pickle.loads(pickle.dumps(training))) == before


class FakeTokenizer:
    """A tokenizer of a large vocabulary, with the ids that it is told to give."""

    vocabulary_size, bos_id, eos_id, digest = 70_000, 1, 2, "fake"

    is_lossless = True

    def __init__(self, ids):
        self.ids = ids

    def encode_batch(self, texts):
        return [np.array(self.ids, np.int32) for _ in texts]


def test_ids_beyond_16_bits_come_back(corpus, tmp_path):
    ids = [0, 65_535, 65_536, 69_999] * 9
    opened = open_shards(prepare(corpus, FakeTokenizer(ids), tmp_path, progress=False), "train")
    assert read_all(opened)[0] == ids


@pytest.mark.parametrize("ids", [[5, 70_000], [-1], []])
def test_ids_outside_of_the_vocabulary_are_never_written(corpus, tmp_path, ids):
    with pytest.raises(AssertionError, match=r"document '.* has ids outside of the tokenizer's vocabulary"):
        prepare(corpus, FakeTokenizer(ids), tmp_path, progress=False)
    assert finished(tmp_path) == []


# Once, complete or absent.


def finished(cache: Path) -> list[str]:
    """Returns the names in a cache that look like finished shards."""
    return [p.name for p in cache.glob("shards/*") if p.suffix not in (".lock", ".unfinished")]


def test_a_corpus_is_prepared_once_wherever_it_lies(corpus, tokenizer, folder, tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("prepared again")

    monkeypatch.setattr(preparation, "_write", refuse)
    cache = folder.parent.parent
    assert prepare(corpus, tokenizer, cache) == folder
    shutil.copytree(corpus.config.path, tmp_path / "moved")
    config = replace(corpus.config, path=str(tmp_path / "moved"), weight=2.0)
    assert prepare(load_documents(config), tokenizer, cache) == folder
    (tmp_path / "moved" / "more.txt").write_text("more")
    for other in (config, replace(corpus.config, validation_share=0.3)):
        with pytest.raises(AssertionError, match="prepared again"):
            prepare(load_documents(other), tokenizer, cache)
    with pytest.raises(AssertionError, match="prepared again"):
        prepare(corpus, FakeTokenizer([5]), cache)


PREPARE = """
import os, signal, sys
from pathlib import Path
from jaxformer.data import preparation
from jaxformer.data import shard_writer
from jaxformer.data import shards
from jaxformer.data import chunks
from jaxformer.data.corpus import CorpusConfig, load_documents
from jaxformer.data.tokenizer import load_tokenizer

class WithoutTensorFlow:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == "tensorflow" else self.finder.find_spec(name, path, target)

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def die_at_tenth(path, chunk):
    die() if len(list(path.parent.iterdir())) == 10 else write_chunk(path, chunk)  # One is the layout.

corpus, share, model, cache, fate = sys.argv[1:]
chunks.CHUNK_CHARACTERS = 500
shards.RECORD_TOKENS = 16
write_chunk = chunks.write_chunk
if fate == "die while tokenising":
    chunks.write_chunk = die_at_tenth
elif fate == "die while writing shard files":
    shard_writer.write_file = die
elif fate == "die before the manifest":
    preparation.Manifest = die
elif fate == "die before the end":
    write_whole = preparation.write_whole
    preparation.write_whole = lambda *args: write_whole(*args) or die()
else:
    sys.meta_path[:] = map(WithoutTensorFlow, sys.meta_path)
documents = load_documents(CorpusConfig(kind="text", path=corpus, validation_share=float(share), licence="CC0-1.0"))
folder = preparation.prepare(documents, load_tokenizer(model), Path(cache), progress=False)
opened = shards.open_shards(folder, "train")
print(opened.read(0, 0, int(opened.tokens[0])).tolist(), "tensorflow" in sys.modules)
"""


def prepare_elsewhere(corpus, tokenizer_path, cache, fate: str) -> subprocess.CompletedProcess:
    """Prepares and reads the corpus in another process, which can be made to die on the way."""
    arguments = [corpus.config.path, str(SHARE), str(tokenizer_path), str(cache), fate]
    return subprocess.run([sys.executable, "-c", PREPARE, *arguments], capture_output=True, text=True)


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns what a folder of shards holds, but for when its files were verified."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "verified.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "fate", ["die while tokenising", "die while writing shard files", "die before the manifest", "die before the end"]
)
def test_a_killed_preparation_leaves_nothing_finished_and_goes_on_to_the_same_bytes(
    corpus, tokenizer, tokenizer_path, folder, tmp_path, monkeypatch, fate
):
    done = prepare_elsewhere(corpus, tokenizer_path, tmp_path, fate)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert finished(tmp_path) == []
    (unfinished,) = tmp_path.glob("shards/*.unfinished")
    kept = list(unfinished.glob("chunks/*.npz"))
    assert len(kept) >= 9
    encoded = []
    encode = chunks.encode_chunk
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 500)
    monkeypatch.setattr(chunks, "encode_chunk", lambda run, *rest: encoded.append(run.read) or encode(run, *rest))
    redone = prepare(corpus, tokenizer, tmp_path, progress=False)
    assert finished(tmp_path) == [redone.name]
    assert files_of(redone) == files_of(folder)
    documents_kept = sum(run.read for run in itertools.islice(chunks._runs(corpus), len(kept)))
    assert sum(encoded) == 84 - documents_kept, "what was tokenised is not tokenised again"
    assert (sum(encoded) > 0) == (fate == "die while tokenising")


def test_shards_are_written_and_read_without_tensorflow(corpus, tokenizer_path, training_ids, tmp_path):
    done = prepare_elsewhere(corpus, tokenizer_path, tmp_path, "live")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{training_ids[0].tolist()} False\n"


@pytest.mark.parametrize(
    ("texts", "share", "message"),
    [
        (["one lonely text"], 1e-6, "1 documents with text cannot be split"),
        (["one text", "another"], 1 - 1e-6, "its 2 documents cannot be split; the hashes of all 2 keys lie below"),
        (["", " \n"], 0.5, "0 documents with text cannot be split"),
    ],
)
def test_a_corpus_too_small_for_a_split_is_a_user_error_and_leaves_nothing_finished(
    tmp_path, tokenizer, texts, share, message
):
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    documents = load_documents(CorpusConfig(kind="text", path=str(tmp_path), validation_share=share))
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            prepare(documents, tokenizer, tmp_path / "cache", progress=False)
        assert finished(tmp_path / "cache") == []


def test_a_small_corpus_keeps_the_document_of_smallest_hash_for_validation(tmp_path, tokenizer):
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text(f"document number {i}")
    documents = load_documents(CorpusConfig(kind="text", path=str(tmp_path), validation_share=1e-6))
    folder = prepare(documents, tokenizer, tmp_path / "cache", progress=False)
    validation, training = open_shards(folder, "validation"), open_shards(folder, "train")
    smallest = min(documents, key=lambda document: key_fraction(document.key))
    assert [len(validation), len(training)] == [1, 4]
    assert tokenizer.decode(validation.read(0, 0, int(validation.tokens[0]))) == smallest.text


def test_a_corpus_that_turns_out_damaged_is_named_and_leaves_nothing_finished(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "a b c"}\n' * 3 + "no json\n")
    documents = load_documents(CorpusConfig(kind="jsonl", path=str(tmp_path)))
    with pytest.raises(UserError, match=r"a\.jsonl, line 4: not JSON"):
        prepare(documents, tokenizer, tmp_path / "cache", progress=False)
    assert finished(tmp_path / "cache") == []


def test_a_corpus_file_that_vanished_since_it_was_opened_is_named(tmp_path, tokenizer):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    documents = load_documents(CorpusConfig(kind="text", path=str(tmp_path)))
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UserError, match=r"b\.txt"):
        prepare(documents, tokenizer, tmp_path / "cache", progress=False)
    assert finished(tmp_path / "cache") == []


# Damage.


def invert(path: Path, start: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:start] + bytes(255 - b for b in data[start : start + 8]) + data[start + 8 :])


def edit_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in manifest.items() if value is not None}))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: train_files(folder)[0].unlink(),
        lambda folder: train_files(folder)[0].write_bytes(b""),
        lambda folder: train_files(folder)[0].write_bytes(train_files(folder)[0].read_bytes()[:-100]),
        lambda folder: train_files(folder)[0].write_bytes(train_files(folder)[0].read_bytes()[:1000]),
        lambda folder: invert(train_files(folder)[0], 2000),  # amid the ids; most of so small a file is padding
        lambda folder: shutil.rmtree(folder / "token_shards"),
        lambda folder: (folder / "index.npz").unlink(),
        lambda folder: (folder / "index.npz").write_bytes((folder / "index.npz").read_bytes()[:-10]),
        lambda folder: invert(folder / "index.npz", 200),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff"),
        lambda folder: edit_manifest(folder, tokens=None),
        lambda folder: edit_manifest(folder, format_version=0),
    ],
    ids=[
        "shard missing",
        "shard empty",
        "shard end missing",
        "shard truncated",
        "shard bytes changed",
        "dataset missing",
        "index missing",
        "index truncated",
        "index bytes changed",
        "manifest missing",
        "manifest no JSON",
        "manifest no object",
        "manifest no text",
        "manifest lacks a field",
        "another version",
    ],
)
def test_damage_is_a_user_error_that_names_the_folder_and_says_what_to_do(folder, tmp_path, spoil):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    read_all(open_shards(copy, "train"))
    spoil(copy)
    with pytest.raises(UserError, match=rf"^token shards {copy}: .*; delete the folder and run again"):
        read_all(open_shards(copy, "train"))


def test_a_bit_that_rots_after_the_shards_were_opened_is_reported_where_they_are_read(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (path,) = train_files(copy)
    whole = path.read_bytes()
    for at in range(500, 4000, 250):
        training = open_shards(copy, "train")
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match=rf"^token shards {copy}: split 'train' cannot be read .*; delete the fold"):
            read_all(training)
        path.write_bytes(whole)


def test_damage_of_either_split_is_reported_before_anything_is_read(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (path,) = copy.rglob("*-validation.array_record-*")
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    open_shards(copy, "train")
    with pytest.raises(UserError, match=f"^token shards {copy}: a file of split 'validation' is damaged"):
        open_shards(copy, "validation")


@pytest.mark.parametrize("name", ["x[1]", "a\\b", "**"])
def test_shards_are_the_same_below_any_name_and_read_by_many_threads_at_once(
    name, corpus, tokenizer, training, tmp_path
):
    (tmp_path / name).mkdir()
    opened = open_shards(prepare(corpus, tokenizer, tmp_path / name / "cache", progress=False), "train")
    assert opened.manifest == training.manifest
    expected = read_all(training)
    begin = threading.Barrier(8)

    def read(_):
        begin.wait()
        return read_all(opened)

    with ThreadPoolExecutor(8) as executor:
        assert all(ids == expected for ids in executor.map(read, range(8)))
    assert [path.name for path in tmp_path.iterdir()] == [name]
