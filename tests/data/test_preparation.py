import gzip
import json
import os
import shutil
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from jaxformer.config import UserError
from jaxformer.data import beam, chunks, kinds, preparation, selection, shard_writer, shards
from jaxformer.data import corpus as corpus_module
from jaxformer.data.chunks import Chunk, Stored, encode_chunk, read_chunk, tokenise, write_chunk
from jaxformer.data.corpus import CorpusConfig, load_documents, unique_documents
from jaxformer.data.packing import PackingConfig
from jaxformer.data.preparation import prepare
from jaxformer.data.selection import Selection, split_notice
from jaxformer.data.shards import SPLITS, open_shards
from jaxformer.data.tokenizer import sample_texts
from jaxformer.evaluation.config import EvaluationConfig
from jaxformer.evaluation.validation import select_validation
from jaxformer.host import digests
from jaxformer.host.workers import Workers

pytestmark = pytest.mark.device_free

SHARE = 0.15


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks and shard files of a few documents, and parts of a few row groups."""
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 1500)
    monkeypatch.setattr(kinds, "PART_BYTES", 4000)
    monkeypatch.setattr(shards, "RECORD_TOKENS", 64)
    monkeypatch.setattr(shards, "FILE_RECORDS", 40)


def write_parquet(path: Path, texts: list[str]) -> None:
    """Writes texts in the columns of FineWeb-EDU, in row groups of 5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"text": texts, "id": [f"<urn:{path.stem}:{i}>" for i in range(len(texts))], "score": [3.5] * len(texts)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_texts):
    """Three Parquet files of 60 texts, of which some repeat others of the same file or of another, or are empty."""
    folder = tmp_path_factory.mktemp("parquet")
    texts = make_texts(180)
    texts[70], texts[71], texts[150], texts[179], texts[33] = texts[3], texts[69], texts[71], texts[100], " \n"
    for number in range(3):
        write_parquet(folder / f"{number}.parquet", texts[number * 60 : number * 60 + 60])
    return folder


@pytest.fixture
def documents(folder):
    return load_documents(config(folder))


def config(folder, **fields) -> CorpusConfig:
    return CorpusConfig(kind="parquet", path=str(folder), key_field="id", validation_share=SHARE, **fields)


def contents(folder: Path) -> dict[str, list[tuple[list[int], int]]]:
    """Returns the ids and the text's bytes of every document of shards, by split."""
    found = {}
    for split in SPLITS:
        opened = open_shards(folder, split)
        ids = (opened.read(i, 0, int(opened.tokens[i])).tolist() for i in range(len(opened)))
        found[split] = list(zip(ids, opened.text_bytes.tolist(), strict=True))
    return found


def expected(documents, tokenizer, budget: float = np.inf) -> dict[str, list[tuple[list[int], int]]]:
    """Returns what `contents` must be, worked out document by document."""
    found = {split: [] for split in SPLITS}
    tokens = 0
    for document in unique_documents(documents, Counter()):
        if tokens >= budget:
            break
        ids = tokenizer.encode(document.text)
        split = "validation" if corpus_module.key_fraction(document.key) < SHARE else "train"
        found[split].append((ids, len(document.text.encode())))
        tokens += len(ids) * (split == "train")
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns what a folder of shards holds, but for when its files were verified."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "verified.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# Chunks, selection, shards.


def test_documents_of_many_chunks_and_shard_files_are_those_of_the_corpus_in_order(documents, tokenizer, tmp_path):
    folder = prepare(documents, tokenizer, tmp_path, progress=False)
    found = contents(folder)
    assert found == expected(documents, tokenizer)
    assert len(list(folder.rglob("*-train.array_record*"))) > 3
    assert len(found["validation"]) > 5
    manifest = open_shards(folder, "train").manifest
    assert (manifest.duplicates, manifest.empty) == (3, 1)
    assert not (folder / "chunks").exists()


def test_parts_of_a_corpus_are_its_documents_in_order(documents):
    parts = list(documents.parts())
    assert len({part.file for part in parts}) == 3 and len(parts) > 6
    assert [document for part in parts for document in documents.read(part)] == list(documents)
    assert abs(sum(part.size for part in parts) - documents.source_bytes) <= len(parts)


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30), st.floats(0, 1)), max_size=8), min_size=1),
    st.integers(0, 200),
)
def test_the_selection_is_that_of_one_pass_over_all_documents(runs, budget):
    selection = Selection(SHARE, budget)
    kept, seen, tokens = [], set(), 0
    for number, run in enumerate(runs):
        if selection.is_full:
            break
        sizes = np.array([size for _, size, _ in run], np.int32)
        digests = np.array([bytes(15) + bytes([text]) for text, _, _ in run], "V16")
        fractions = np.array([fraction for _, _, fraction in run], np.float64)
        chunk = Chunk(None, sizes, sizes * 4, digests, fractions, np.array(len(run)), np.array(False))
        selection.add(Stored(Path(str(number)), None, chunk, is_new=True))
        for place, (text, size, fraction) in enumerate(run):
            if text not in seen and (not budget or tokens < budget):
                kept.append((number, sum(sizes[:place]), size, size * 4, fraction))
                tokens += size * (fraction >= SHARE)
            seen.add(text)
    assert (selection.documents, selection.training_tokens) == (len(kept), tokens)
    if kept:
        smallest = max(SHARE, np.nextafter(min(fraction for *_, fraction in kept), 1))
        for split, selected in selection.finish().items():
            of_split = [each for *each, f in kept if (f < smallest) == (split == "validation")]
            assert [list(each) for each in zip(*(x.tolist() for x in selected), strict=True)] == of_split


def test_many_digests_are_reported_apart_whether_recent_or_not(monkeypatch):
    monkeypatch.setattr("jaxformer.data.selection._RECENT", 50)
    selection, seen = Selection(SHARE, 0), set()
    rng = np.random.default_rng(0)
    for _ in range(40):
        values = rng.integers(0, 700, 30).tolist()
        digests = np.array([value.to_bytes(2, "big") * 7 + b"\0\0" for value in values], "V16")
        is_new = [value not in seen and value not in values[:i] for i, value in enumerate(values)]
        assert selection._is_new(digests).tolist() == is_new
        seen |= set(values)


def test_parts_of_text_files_are_runs_of_files_in_order(tmp_path):
    for i in range(50):
        (tmp_path / f"{i:02}.txt").write_text("x" * (9000 if i == 20 else 900))
    documents = load_documents(CorpusConfig(kind="text", path=str(tmp_path)))
    parts = list(documents.parts())
    assert [part.stop - part.first for part in parts] == [5, 5, 5, 5, 1, 5, 5, 5, 5, 5, 4]
    assert sum(part.size for part in parts) == documents.source_bytes
    assert [document for part in parts for document in documents.read(part)] == list(documents)


# A budget of tokens.


@pytest.mark.parametrize("budget", [700, 2000, 2001])
def test_a_budget_takes_documents_in_order_until_training_has_so_many_tokens(folder, tokenizer, tmp_path, budget):
    documents = load_documents(config(folder, tokens=budget))
    found = contents(prepare(documents, tokenizer, tmp_path, progress=False))
    assert found == expected(documents, tokenizer, budget)
    assert found["validation"]
    tokens = [len(ids) for ids, _ in found["train"]]
    assert sum(tokens[:-1]) < budget <= sum(tokens)


def test_an_only_text_is_trained_on_up_to_where_its_end_is_validated_on(make_texts, tokenizer, tmp_path):
    text = "\n".join(make_texts(40))
    (tmp_path / "book.txt").write_text(text)
    documents = load_documents(CorpusConfig("text", str(tmp_path / "book.txt"), validation_share=0.1))
    found = contents(prepare(documents, tokenizer, tmp_path / "cache", progress=False))
    (train,), (validation,) = found["train"], found["validation"]
    assert tokenizer.decode(train[0]) + tokenizer.decode(validation[0]) == text
    assert 0.09 < validation[1] / len(text.encode()) <= 0.1
    held_out = "".join(document.text for document in list(documents)[1:])
    assert held_out not in "".join(sample_texts(documents, 1 << 20)), "the tokenizer is not trained on it"


def test_a_budget_too_small_for_two_documents_is_reported(folder, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"1 documents with text cannot be split .*; raise corpus\.tokens \(1\)"):
        prepare(load_documents(config(folder, tokens=1)), tokenizer, tmp_path, progress=False)


def test_a_budget_that_the_corpus_cannot_fill_is_reported_with_numbers(folder, tokenizer, tmp_path):
    tokens = {}
    for budget in (0, 2000, 10**9):
        documents = load_documents(config(folder, tokens=budget))
        manifest = open_shards(prepare(documents, tokenizer, tmp_path, progress=False), "train").manifest
        tokens[budget] = manifest.tokens["train"]
        line = preparation.unfilled_budget(manifest)
        assert bool(line) is (budget == 10**9)
    assert f"holds {tokens[0]:,} tokens to train on, 0.0% of the 1,000,000,000 of corpus.tokens" in line
    assert tokens[10**9] == tokens[0]


@pytest.mark.parametrize("wanted", [600, 0])
def test_two_budgets_of_a_corpus_are_validated_on_the_same_documents(folder, tokenizer, tmp_path, wanted):
    found = []
    for budget in (2500, 5000):
        shards = open_shards(
            prepare(load_documents(config(folder, tokens=budget)), tokenizer, tmp_path, progress=False), "validation"
        )
        chosen = select_validation(shards, EvaluationConfig(validation_bytes=wanted), PackingConfig(64), "texts")
        documents = [shards.read(i, 0, int(shards.tokens[i])).tolist() for i in chosen.documents]
        found.append((shards.manifest.source_digest, documents))
    (one, few), (other, more) = found
    assert one == other and few == more[: len(few)]
    assert (few == more) is bool(wanted)


def test_no_file_is_opened_once_the_budget_is_reached(folder, tokenizer, tmp_path, monkeypatch):
    opened = []
    read = kinds.read_parquet
    monkeypatch.setattr(kinds, "read_parquet", lambda files, *rest: opened.extend(files) or read(files, *rest))
    prepare(load_documents(config(folder, tokens=900)), tokenizer, tmp_path, progress=False)
    assert {Path(path).name for path in opened} == {"0.parquet"}


def test_another_budget_is_another_corpus_of_the_same_sources_and_no_budget_is_as_it_was(folder):
    whole, some, more = (load_documents(config(folder, tokens=tokens)) for tokens in (0, 500, 600))
    assert len({whole.digest, some.digest, more.digest}) == 3
    assert whole.source_digest == some.source_digest == more.source_digest == whole.digest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": -1}, r"corpus\.tokens \(-1\) must be at least 0"),
        (
            {"kind": "mixture", "path": "", "tokens": 5, "parts": (CorpusConfig(kind="pystdlib"),) * 2},
            r"takes no tokens \(5\); set them on the parts",
        ),
    ],
)
def test_a_budget_that_means_nothing_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        CorpusConfig(**{"kind": "text", "path": "a", **fields})


# Several processes.


def test_any_number_of_processes_makes_the_same_bytes(documents, tokenizer, tmp_path):
    whole = files_of(prepare(documents, tokenizer, tmp_path / "one", progress=False))
    for count in (2, 4):
        made = prepare(documents, tokenizer, tmp_path / str(count), processes=count, progress=False)
        assert files_of(made) == whole


def test_a_bad_record_ends_several_processes_as_it_ends_one_and_what_stood_before_it_is_kept(
    make_texts, tokenizer, tmp_path
):
    documents = load_documents(replace(write_torn(tmp_path / "torn.jsonl", make_texts(60), 50), skip_bad_records=0))
    found = []
    for count in (1, 3):
        with pytest.raises(UserError) as caught:
            prepare(documents, tokenizer, tmp_path / str(count), processes=count, progress=False)
        (folder,) = tmp_path.glob(f"{count}/shards/*/chunks")
        found.append((str(caught.value), files_of(folder)))
    assert found[0] == found[1] and "line 11: not JSON" in found[0][0] and len(found[0][1]) > 1


def test_a_worker_that_is_killed_ends_a_preparation_in_one_line_and_it_goes_on_to_the_same_bytes(
    documents, tokenizer, tmp_path
):
    whole = files_of(prepare(documents, tokenizer, tmp_path / "whole", progress=False))
    with pytest.raises(UserError, match=r"killed by SIGKILL.*resumes where it stopped, and fewer tokenizer\.processes"):
        prepare(documents, Deadly(tokenizer), tmp_path / "killed", processes=2, progress=False)
    assert files_of(prepare(documents, tokenizer, tmp_path / "killed", progress=False)) == whole


class Deadly:
    """A tokenizer whose process the system kills."""

    def __init__(self, tokenizer):
        self.digest, self.tokenizer = tokenizer.digest, tokenizer

    def encode_batch(self, texts):
        os.kill(os.getpid(), signal.SIGKILL)


# Stopped and gone on with.


class Stop(BaseException):
    """Stands for a kill: nothing handles it."""


def test_stopped_after_any_number_of_chunks_it_goes_on_to_the_same_bytes(documents, tokenizer, tmp_path, monkeypatch):
    whole = files_of(prepare(documents, tokenizer, tmp_path / "whole", progress=False))
    made = []

    def write_some(path, chunk):
        if len(made) % 4 == 3:
            made.append("stopped")
            raise Stop
        made.append(path.name)
        write_chunk(path, chunk)

    monkeypatch.setattr(chunks, "write_chunk", write_some)
    for _ in range(100):
        try:
            folder = prepare(documents, tokenizer, tmp_path / "stopped", progress=False)
            break
        except Stop:
            pass
    assert made.count("stopped") > 5
    names = [name for name in made if name != "stopped"]
    assert len(names) == len(set(names)), "nothing that was stored is made again"
    assert files_of(folder) == whole


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "text"])
def test_stopped_while_shards_are_written_it_goes_on_to_the_same_bytes(folder, kind, tokenizer, tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    texts = [document.text for document in load_documents(config(folder))]
    if kind == "parquet":
        write_parquet(source / "a.parquet", texts)
    elif kind == "jsonl":
        (source / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    else:
        for number, text in enumerate(texts):
            (source / f"{number:03}.txt").write_text(text)
    documents = load_documents(CorpusConfig(kind=kind, path=str(source), validation_share=SHARE))
    whole = files_of(prepare(documents, tokenizer, tmp_path / "whole", progress=False))
    read = shard_writer._ids
    for reads in (1, 7):
        reader = mock.Mock(side_effect=[*[mock.DEFAULT] * reads, Stop], wraps=read)
        monkeypatch.setattr(shard_writer, "_ids", reader)
        with pytest.raises(Stop):
            prepare(documents, tokenizer, tmp_path / "stopped", progress=False)
    monkeypatch.setattr(shard_writer, "_ids", read)
    assert files_of(prepare(documents, tokenizer, tmp_path / "stopped", progress=False)) == whole


def test_full_disk_under_the_shards_is_reported_and_what_was_tokenised_stays(
    documents, tokenizer, tmp_path, monkeypatch
):
    whole = files_of(prepare(documents, tokenizer, tmp_path / "whole", progress=False))
    with monkeypatch.context() as patch:
        patch.setattr(preparation.shutil, "disk_usage", lambda _: mock.Mock(free=1000))
        with pytest.raises(
            UserError, match=r"take up to 0.\d MB, but 0.\d MB are free; free space there, and the same"
        ):
            prepare(documents, tokenizer, tmp_path / "full", progress=False)
    with monkeypatch.context() as patch:  # As ArrayRecord tells it.
        patch.setattr(
            shard_writer, "_ids", mock.Mock(side_effect=RuntimeError("write() failed: No space left on device"))
        )
        with pytest.raises(UserError, match=r"cache .*: No space left on device; free space there"):
            prepare(documents, tokenizer, tmp_path / "full", progress=False)
    monkeypatch.setattr(chunks, "encode_chunk", stop)
    assert files_of(prepare(documents, tokenizer, tmp_path / "full", progress=False)) == whole


@pytest.mark.parametrize(("module", "name", "value"), [(chunks, "CHUNK_CHARACTERS", 700), (kinds, "PART_BYTES", 2500)])
def test_chunks_cut_in_another_way_are_made_again(documents, tokenizer, tmp_path, monkeypatch, module, name, value):
    whole = files_of(prepare(documents, tokenizer, tmp_path / "whole", progress=False))
    with monkeypatch.context() as patch:
        patch.setattr(module, name, value)
        patch.setattr(preparation, "write_shard_files", stop)
        with pytest.raises(Stop):
            prepare(documents, tokenizer, tmp_path / "stopped", progress=False)
    assert files_of(prepare(documents, tokenizer, tmp_path / "stopped", progress=False)) == whole


def test_files_that_change_while_they_are_read_are_refused_and_nothing_of_them_stays(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    for i in range(9):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"text {i}")
    settings = CorpusConfig(kind="text", path=str(tmp_path / "texts"), validation_share=0.5)
    write = chunks.write_chunk

    def write_and_change(path, chunk):
        (tmp_path / "texts" / "5.txt").write_text("text X")
        write(path, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(chunks, "write_chunk", write_and_change)
        with pytest.raises(UserError, match="its files changed while they were read; run again"):
            prepare(load_documents(settings), tokenizer, tmp_path, progress=False)
    assert not list(tmp_path.rglob("chunks"))
    prepare(load_documents(settings), tokenizer, tmp_path, progress=False)


def test_a_file_that_is_still_being_written_is_named_as_that_and_not_as_damaged(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n{"te')
    documents = load_documents(CorpusConfig(kind="jsonl", path=str(path)))
    with pytest.raises(UserError, match="line 3: not JSON"):
        prepare(documents, tokenizer, tmp_path, progress=False)
    path.write_text('{"text": "one"}\n{"text": "two"}\n{"text": "thr')
    with pytest.raises(UserError, match=r"its files changed while they were read \(.*\); run again"):
        prepare(documents, tokenizer, tmp_path, progress=False)
    assert not list(tmp_path.rglob("chunks"))


# Bad records, and splits that are not what was meant.


def write_torn(path: Path, texts: list[str], every: int) -> CorpusConfig:
    """Writes JSON lines in which one is torn after every so many; returns a corpus that leaves them out."""
    lines = [json.dumps({"text": text}) for text in texts]
    for place in range(len(lines), 0, -every):
        lines.insert(place, '{"text": "torn')
    path.write_text("\n".join(lines))
    return CorpusConfig(kind="jsonl", path=str(path), validation_share=SHARE, skip_bad_records=0.5)


def test_without_bad_records_the_shards_are_those_of_the_good_ones_however_it_was_stopped(
    make_texts, tokenizer, tmp_path, monkeypatch, capsys
):
    texts = make_texts(60)
    torn = load_documents(write_torn(tmp_path / "torn.jsonl", texts, every=4))
    (tmp_path / "good.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    good = load_documents(replace(torn.config, path=str(tmp_path / "good.jsonl")))
    expected = contents(prepare(good, tokenizer, tmp_path / "good", progress=False))
    whole = prepare(torn, tokenizer, tmp_path / "whole", progress=False)
    assert contents(whole) == expected
    manifest = open_shards(whole, "train").manifest
    assert (manifest.bad, manifest.empty, manifest.keys) == (15, 0, 60)
    assert len(manifest.first_bad) == 3 and manifest.first_bad[0].startswith(
        f"corpus file {tmp_path}/torn.jsonl, line 5"
    )
    assert "left out 15 of 75 records, as they are bad: corpus file" in capsys.readouterr().err
    write = chunks.write_chunk
    for stop_at in (1, 2, 3):
        writes = mock.Mock(side_effect=[*[mock.DEFAULT] * stop_at, Stop], wraps=write)
        monkeypatch.setattr(chunks, "write_chunk", writes)
        with pytest.raises(Stop):
            prepare(torn, tokenizer, tmp_path / "stopped", progress=False)
    monkeypatch.setattr(chunks, "write_chunk", write)
    assert files_of(prepare(torn, tokenizer, tmp_path / "stopped", progress=False)) == files_of(whole)


def test_too_many_bad_records_end_a_preparation_before_all_are_read(make_texts, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_ENOUGH_RECORDS", 30)
    config = replace(write_torn(tmp_path / "torn.jsonl", make_texts(200), every=4), skip_bad_records=0.1)
    with pytest.raises(
        UserError, match=r"of (\d\d) records, as they are bad: .* more than corpus.skip_bad_records \(0.1\)"
    ):
        prepare(load_documents(config), tokenizer, tmp_path, progress=False)
    assert not list(tmp_path.rglob("chunks"))


def write_keyed(path: Path, texts: list[str], keys: int) -> CorpusConfig:
    records = ({"text": text, "source": f"site {i % keys}"} for i, text in enumerate(texts))
    path.write_text("\n".join(map(json.dumps, records)))
    return CorpusConfig(kind="jsonl", path=str(path), key_field="source", validation_share=0.05)


def test_one_key_for_all_documents_is_refused_by_that_name(make_texts, tokenizer, tmp_path):
    documents = load_documents(write_keyed(tmp_path / "a.jsonl", make_texts(60), keys=1))
    with pytest.raises(
        UserError, match=r"its 60 documents cannot be split; all have one key, .*key_field \('source'\)"
    ):
        prepare(documents, tokenizer, tmp_path, progress=False)
    assert not list(tmp_path.rglob("chunks"))


def test_keys_are_counted_but_for_what_repeats_by_chance():
    fractions = np.random.default_rng(0).random(1000)
    assert selection._keys(fractions) == 1000
    assert selection._keys(np.concatenate([fractions, fractions[:1]])) == 1000
    assert selection._keys(np.repeat(fractions[:2], 500)) == 2


@pytest.mark.parametrize(
    ("share", "keys", "documents", "message"),
    [
        (0.05, 120, {"train": 114, "validation": 6}, None),
        (0.02, 10, {"train": 9, "validation": 1}, None),
        (0.05, 100, {"train": 114, "validation": 6}, "the 120 documents have 100 keys (corpus.key_field 'id')"),
        (0.05, 2, {"train": 60, "validation": 60}, "validation got 50.0% of the documents (60), but"),
        (0.05, 9, {"train": 9_990, "validation": 10}, "validation got 0.1% of the documents (10), but"),
        (0.05, 10**7, {"train": 9_490_000, "validation": 510_000}, None),
    ],
)
def test_a_split_that_is_far_from_its_share_is_reported(share, keys, documents, message):
    settings = CorpusConfig(kind="jsonl", path="a", key_field="id", validation_share=share)
    notice = split_notice(settings, "a", keys, documents, documents)
    assert notice is None if message is None else message in notice


def test_the_end_of_a_single_text_is_its_share_by_tokens():
    settings, documents = CorpusConfig(kind="text", path="a", validation_share=0.1), {"train": 7, "validation": 9}
    assert split_notice(settings, "a", 16, documents, {"train": 900, "validation": 110}) is None
    assert "56.2% of the documents" in split_notice(settings, "a", 16, documents, {"train": 500, "validation": 500})


def test_what_was_left_of_others_is_reported_with_its_room(folder, tokenizer, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_shard_files", stop)
        for _ in range(2):
            with pytest.raises(Stop):
                prepare(load_documents(config(folder, tokens=900)), tokenizer, tmp_path, progress=False)
    assert capsys.readouterr().err == "", "it goes on with its own"
    prepare(load_documents(config(folder)), tokenizer, tmp_path, progress=False)
    (line,) = capsys.readouterr().err.splitlines()
    (left,) = tmp_path.glob("shards/*.unfinished")
    assert f"other unfinished preparations take 0.0 MB in {left.parent}: {left.name}; delete" in line
    shutil.rmtree(left)
    monkeypatch.setattr(preparation, "FORMAT_VERSION", 99)
    other = prepare(load_documents(config(folder)), tokenizer, tmp_path, progress=False)
    (line,) = capsys.readouterr().err.splitlines()
    (old,) = {each.name for each in other.parent.iterdir() if each.is_dir()} - {other.name}
    assert "token shards in a format that this version does not read take" in line and f": {old}; delete" in line


def test_a_damaged_chunk_is_made_again(documents, tokenizer, tmp_path):
    folder = tmp_path / "chunks"
    folder.mkdir()
    stored = list(tokenise(documents, enumerate(documents.parts()), tokenizer, folder, Workers(1)))
    whole = {each.path: each.path.read_bytes() for each in stored}
    for each in (stored[1], stored[-1]):
        data = bytearray(whole[each.path])
        data[data.index(each.chunk.tokens.tobytes())] ^= 1
        each.path.write_bytes(data)
        assert read_chunk(each.path, with_ids=False) is None
    again = list(tokenise(documents, enumerate(documents.parts()), tokenizer, folder, Workers(1)))
    assert [each.path for each in again] == [each.path for each in stored]
    assert {path: path.read_bytes() for path in whole} == whole


def test_ids_that_were_damaged_before_they_were_written_are_reported_and_made_again(documents, tokenizer, tmp_path):
    whole = files_of(prepare(documents, tokenizer, tmp_path / "whole", progress=False))

    def damage(folder, paths, *args, **kwargs):
        ids = read_chunk(paths[2], with_ids=True).ids
        data = bytearray(paths[2].read_bytes())
        data[data.index(ids.tobytes())] ^= 1
        paths[2].write_bytes(data)
        shard_writer.write_shard_files(folder, paths, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "write_shard_files", damage)
        with pytest.raises(UserError, match="what was prepared is damaged; run again to make this file again"):
            prepare(documents, tokenizer, tmp_path / "damaged", progress=False)
    assert files_of(prepare(documents, tokenizer, tmp_path / "damaged", progress=False)) == whole


def test_a_chunk_depends_on_its_documents_alone(documents, tokenizer, tmp_path, monkeypatch):
    run = list(documents)[30:40]
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 10**6)
    (whole,) = chunks._runs(run)
    write_chunk(tmp_path / "a.npz", encode_chunk(whole, tokenizer))
    chunk = read_chunk(tmp_path / "a.npz", with_ids=True)
    assert np.split(chunk.ids, np.cumsum(chunk.tokens)[:-1])[0].tolist() == tokenizer.encode(run[0].text)
    assert int(chunk.read) == 10 and len(chunk.tokens) == 9, "one of them is empty"


def test_progress_reports_tokens_share_and_rate_and_counts_what_was_there_as_no_work(
    documents, tokenizer, tmp_path, monkeypatch
):
    bars = []

    def shown(**fields):
        bars.append(tqdm(**{**fields, "disable": False}))
        return bars[-1]

    monkeypatch.setattr(preparation, "progress_bar", shown)
    monkeypatch.setattr(preparation, "write_shard_files", stop)
    for _ in range(2):
        with pytest.raises(Stop):
            prepare(documents, tokenizer, tmp_path)
    first, second = bars
    assert first.n == second.n > 4000
    assert first.total == second.total == pytest.approx(first.n, rel=1e-3)
    assert (first.initial, second.initial) == (0, second.n)


def stop(*args, **kwargs):
    raise Stop


# Over Apache Beam.


@pytest.mark.parametrize("budget", [0, 2500])
def test_beams_workers_write_the_same_bytes(folder, tokenizer, tmp_path, budget):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    documents = load_documents(config(folder, tokens=budget))
    here = prepare(documents, tokenizer, tmp_path / "here", progress=False)
    there = prepare(documents, tokenizer, tmp_path / "there", progress=False, beam=["--runner=DirectRunner"])
    assert files_of(there) == files_of(here)
    assert contents(there) == contents(here)


def test_what_goes_wrong_over_beam_is_one_line(tokenizer, tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n')
    documents = load_documents(CorpusConfig(kind="jsonl", path=str(tmp_path / "a.jsonl")))
    with pytest.raises(UserError, match=r"^Apache Beam: corpus file .*a\.jsonl.*line 2.*\Z"):
        prepare(documents, tokenizer, tmp_path, progress=False, beam=["--runner=DirectRunner"])
    with pytest.raises(UserError, match=r"^--runner=Foo: these are no options of an Apache Beam pipeline$"):
        prepare(documents, tokenizer, tmp_path, progress=False, beam=["--runner=Foo"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Traceback:\n  File x\njaxformer.config.UserError: bad line 2 [while running 'Map']\n\nat end", "bad line 2"),
        ("no\nsuch host\n", "such host"),
        ("", "RuntimeError"),
    ],
)
def test_of_a_traceback_of_a_worker_its_reason_is_reported(text, line):
    with pytest.raises(UserError, match=f"^Apache Beam: {line}"), beam._in_one_line():
        raise RuntimeError(text)


def test_without_beam_a_pipeline_is_refused_with_what_to_install(documents, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(UserError, match=r"Apache Beam needs it; pip install 'jaxformer\[beam\]'"):
        prepare(documents, tokenizer, tmp_path, progress=False, beam=[])


# A sample for the tokenizer.


def sizes(documents) -> int:
    return sum(len(document.text.encode()) for document in documents)


def test_a_sample_comes_from_every_file_and_reads_little_more_than_it_takes(folder, monkeypatch):
    documents = load_documents(config(folder))
    read = []
    original = corpus_module.to_document
    monkeypatch.setattr(corpus_module, "to_document", lambda *args: read.append(1) or original(*args))
    sampled = list(documents.sample(6000))
    assert {document.key.split(":")[1] for document in sampled} == {"0", "1", "2"}
    assert 6000 <= sizes(sampled) < 7000
    assert len(read) == len(sampled)


def test_a_sample_of_a_corpus_that_is_no_larger_is_all_of_it(documents):
    assert sorted(documents.sample(10**9)) == sorted(documents)


def test_a_sample_of_compressed_files_counts_their_text(tmp_path):
    for number in range(8):
        lines = (json.dumps({"text": f"{number} {i:05} " + "word " * 20}) for i in range(100))
        (tmp_path / f"{number}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    documents = load_documents(CorpusConfig(kind="jsonl", path=str(tmp_path)))
    limit = sizes(documents) // 2
    assert documents.source_bytes < limit
    taken = Counter(document.text[0] for document in documents.sample(limit))
    assert set(taken.values()) <= {50, 51} and len(taken) == 8


def test_of_very_many_files_a_sample_takes_some_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "_SAMPLE_FILES", 3)
    for i in range(100):
        (tmp_path / f"{i:02}.txt").write_text(f"{i:02}" + "x" * 98)
    documents = load_documents(CorpusConfig(kind="text", path=str(tmp_path)))
    assert [document.key for document in documents.sample(1000)] == [f"{i}0.txt".zfill(6) for i in range(10)]


def test_what_a_small_file_lacks_a_large_one_gives(tmp_path):
    for name, count in (("a", 300), ("b", 2)):
        lines = (json.dumps({"text": f"{name}{i:08}"}) for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    documents = load_documents(CorpusConfig(kind="jsonl", path=str(tmp_path)))
    sampled = [document.text[0] for document in documents.sample(900)]
    assert (sampled.count("a"), sampled.count("b")) == (98, 2)


# Verified once.


def test_a_shard_file_is_read_to_verify_it_once_and_again_when_it_changed(documents, tokenizer, tmp_path, monkeypatch):
    folder = prepare(documents, tokenizer, tmp_path, progress=False)
    read, original = [], digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda path: read.append(str(path)) or original(path))
    open_shards(folder, "train")
    assert read == []
    path = sorted(folder.rglob("*-train.array_record*"))[0]
    os.utime(path)
    open_shards(folder, "train")
    open_shards(folder, "train")
    assert read == [str(path)]
    (folder / "verified.json").unlink()
    open_shards(folder, "train")
    assert len(read) == 1 + len(list(folder.rglob("*-train.array_record*")))


def test_rot_that_keeps_size_and_time_of_a_verified_file_is_reported_where_it_is_read(documents, tokenizer, tmp_path):
    folder = prepare(documents, tokenizer, tmp_path, progress=False)
    path = sorted(folder.rglob("*-train.array_record*"))[0]
    status = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:2000] + bytes(255 - each for each in data[2000:2008]) + data[2008:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    opened = open_shards(folder, "train")
    with pytest.raises(UserError, match="split 'train' cannot be read"):
        [opened.read(i, 0, int(opened.tokens[i])) for i in range(len(opened))]


def test_a_budget_changes_what_is_prepared_and_not_the_tokenizer(folder, tmp_path, monkeypatch):
    from jaxformer.data.tokenizer import TokenizerConfig, prepare_tokenizer

    of_all, of_some = (load_documents(config(folder, tokens=tokens)) for tokens in (0, 500))
    settings = TokenizerConfig(vocabulary_size=400, training_bytes=5000)
    first = prepare_tokenizer([of_all], settings, tmp_path)
    assert prepare_tokenizer([of_some], settings, tmp_path).digest == first.digest
    assert len(list((tmp_path / "tokenizers").glob("*.model"))) == 1
    assert prepare_tokenizer([of_all], replace(settings, training_bytes=6000), tmp_path).digest != first.digest


def test_pieces_of_one_file_lie_in_one_split_and_are_known_to_belong_together(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("jaxformer.data.documents.TEXT_CHARACTERS", 60)
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(8):
        lines = (f"book {number} has a line {i} of some length\n\n" for i in range(4))
        (folder / f"{number}.txt").write_text("".join(lines))
    several = CorpusConfig(kind="text", path=str(folder), validation_share=0.4)
    only = replace(several, path=str(folder / "0.txt"))
    before = [load_documents(each).digest for each in (several, only)]
    shards_of = {split: open_shards(prepare(load_documents(several), tokenizer, tmp_path), split) for split in SPLITS}
    books = {
        split: [int(tokenizer.decode(read.read_documents(np.array([i])).tolist())[5]) for i in range(len(read))]
        for split, read in shards_of.items()
    }
    assert not set(books["train"]) & set(books["validation"]) and min(map(len, books.values())) > 4
    validation = shards_of["validation"]
    assert len(validation.sources) == len(validation) and len(shards_of["train"].sources) == 0
    assert validation.sources.tolist() == [books["validation"].index(book) for book in books["validation"]]
    # A file that is alone can be split in no other way.
    alone = open_shards(prepare(load_documents(only), tokenizer, tmp_path), "validation")
    assert alone.sources.tolist() == list(range(len(alone))) and len(load_documents(only).files) == 1
    # What was prepared when each piece had a key of its own is another corpus; the file that is alone is the same.
    monkeypatch.setattr(kinds, "PIECES_VERSION", 9)
    after = [load_documents(each).digest for each in (several, only)]
    assert (before[0] != after[0], before[1] != after[1]) == (True, False)
