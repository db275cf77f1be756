import gzip
import hashlib
import itertools
import json
import lzma
import os
import random
import re
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jaxformer.config import UserError
from jaxformer.data.corpus import (
    CorpusConfig,
    key_fraction,
    load_documents,
    part_names,
    parts_of,
    split_fraction,
    unique_documents,
)

pytestmark = pytest.mark.device_free

TEXTS = ["plain", "", "  \n", "ünï \u2028 \u2581 \U0001f9ea", "two\nlines\r\n", "plain", "tail"]


def read(kind: str, path, **fields) -> list:
    """Returns the documents at a path."""
    return list(load_documents(CorpusConfig(kind=kind, path=str(path), **fields)))


def texts_of(documents) -> list[str]:
    return [document.text for document in documents]


def pairs_of(documents) -> list[tuple[str, str]]:
    """Returns the keys and texts."""
    return [(document.key, document.text) for document in documents]


def digest_of(path, kind="text", **fields) -> str:
    return load_documents(CorpusConfig(kind=kind, path=str(path), **fields)).digest


def to_lines(texts) -> bytes:
    """Returns JSON lines, as bytes, with the characters as they are (no escapes)."""
    return b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def zstd(data: bytes) -> bytes:
    """Returns one zstd frame."""
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def write_tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_tfds(folder: Path, records: list[dict], features: dict, name: str = "tiny") -> Path:
    """Prepares a TFDS dataset of one split, `train`, in ArrayRecord form; returns its folder."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            """A dataset for tests."""

            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                yield from enumerate(records)

        Tiny.name = name
        builder = Tiny(data_dir=str(folder), file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(builder.data_dir)


# What each kind reads.


def test_each_text_file_of_a_folder_is_a_document_in_the_order_of_the_names(tmp_path):
    files = {"b.txt": b"two\r\n", "a/z.txt": "ü".encode(), "c.md": b"not text", "a.txt": b"\xef\xbb\xbfone"}
    write_tree(tmp_path, files)
    documents = read("text", tmp_path)
    assert pairs_of(documents) == [("a/z.txt", "ü"), ("a.txt", "one"), ("b.txt", "two\r\n")]


def test_other_texts_of_a_folder_are_read_where_none_is_named_txt(tmp_path):
    for name in ("a.md", "b.py", "c.rst"):
        (tmp_path / name).write_text(name)
    assert texts_of(read("text", tmp_path)) == ["a.md", "b.py"]
    (tmp_path / "d.txt").write_text("d.txt")
    assert texts_of(read("text", tmp_path)) == ["d.txt"]


def test_a_text_file_of_any_suffix_is_a_document(tmp_path):
    write_tree(tmp_path, {"code.py": b"x = 1\n", "other.py": b"y"})
    assert pairs_of(read("text", tmp_path / "code.py")) == [("code.py", "x = 1\n")]


def test_a_glob_enters_folders_and_keys_are_relative_to_its_fixed_part(tmp_path):
    write_tree(tmp_path, {"in/x.py": b"x", "in/deep/y.py": b"y", "in/z.txt": b"z", "out.py": b"out"})
    documents = read("text", tmp_path / "in" / "**" / "*.py")
    assert pairs_of(documents) == [("deep/y.py", "y"), ("x.py", "x")]


def test_a_relative_path_gives_the_same_documents_and_digest(tmp_path, monkeypatch):
    write_tree(tmp_path / "in", {"x.txt": b"x", "deep/y.txt": b"y"})
    monkeypatch.chdir(tmp_path)
    for relative in ("in", "./in/../in", "in/**/*.txt"):
        assert read("text", relative) == read("text", tmp_path / "in")
        assert digest_of(relative) == digest_of(tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    assert [d.key for d in read("text", "*.txt")] == ["x.txt"]


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", lambda lines: lines),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", zstd),
    ],
)
def test_each_json_line_is_a_document_compressed_or_not(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(to_lines(TEXTS)))
    assert texts_of(read("jsonl", tmp_path / name)) == TEXTS
    assert read("jsonl", tmp_path) == read("jsonl", tmp_path / name)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
def test_members_of_a_compressed_file_are_read_as_one_also_where_they_cut_a_line(tmp_path, suffix, compress):
    lines = to_lines([*TEXTS, *(f"line {i}" for i in range(5000))])
    cuts = [0, 17, 18, len(lines) // 2 + 3, len(lines)]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"".join(compress(lines[a:b]) for a, b in itertools.pairwise(cuts)) + compress(b""))
    plain = tmp_path / "a.jsonl"
    plain.write_bytes(lines)
    assert read("jsonl", path) == read("jsonl", plain)
    assert len(read("jsonl", path)) == 5000 + len(TEXTS)


def test_blank_lines_and_a_missing_last_newline_are_no_matter(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\n{"text": "a"}\r\n  \n\n{"text": "b"}')
    assert texts_of(read("jsonl", tmp_path / "a.jsonl")) == ["a", "b"]


def test_each_parquet_row_is_a_document_in_order_over_row_groups_and_files(tmp_path):
    texts = [f"row {i}" for i in range(2500)]
    for name, part in (("a", texts[:2000]), ("b", texts[2000:])):
        table = pyarrow.table({"body": part, "id": [f"{name}{i}" for i in range(len(part))], "other": [1] * len(part)})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=300)
    documents = read("parquet", tmp_path, text_field="body", key_field="id")
    assert texts_of(documents) == texts
    assert [d.key for d in documents[1999:2001]] == ["a1999", "b0"]


def test_each_record_of_a_tfds_split_is_a_document(tmp_path):
    import tensorflow_datasets as tfds

    features = {"body": tfds.features.Text(), "id": np.int64}
    folder = write_tfds(tmp_path, [{"body": text, "id": 7 + i} for i, text in enumerate(TEXTS)], features)
    corpus = load_documents(CorpusConfig(kind="tfds", path=str(folder), text_field="body", key_field="id"))
    assert pairs_of(corpus) == [(str(7 + i), text) for i, text in enumerate(TEXTS)]
    assert corpus.origin == "TFDS tiny/1.0.0"
    assert corpus.digest != digest_of(folder, "tfds", text_field="body")
    with pytest.raises(UserError, match=r"split 'test' is not prepared here; prepared: train"):
        read("tfds", folder, text_field="body", split="test")
    with pytest.raises(UserError, match=r"no field 'text'; it has body, id"):
        read("tfds", folder)


def test_a_tfds_field_that_is_not_read_may_hold_any_bytes(tmp_path):
    import tensorflow_datasets as tfds

    features = {"text": tfds.features.Text(), "raw": tfds.features.Tensor(shape=(), dtype=np.object_)}
    folder = write_tfds(tmp_path, [{"text": "fine", "raw": b"\xff\xfe"}], features)
    assert texts_of(read("tfds", folder)) == ["fine"]


def test_a_tfds_text_that_is_not_utf8_is_a_user_error_that_names_the_record(tmp_path):
    import tensorflow_datasets as tfds

    features = {"text": tfds.features.Tensor(shape=(), dtype=np.object_)}
    folder = write_tfds(tmp_path, [{"text": b"fine"}, {"text": b"caf\xe9"}], features)
    with pytest.raises(UserError, match=r"tiny/1\.0\.0, train, record 1: .*UTF-8"):
        read("tfds", folder)


def test_pystdlib_is_the_source_of_this_python_without_its_tests():
    corpus = load_documents(CorpusConfig(kind="pystdlib"))
    documents = list(corpus)
    by_key = {d.key: d.text for d in documents}
    assert len(by_key) == len(documents) > 300
    root = Path(sysconfig.get_paths()["stdlib"])
    assert by_key["json/decoder.py"] == (root / "json" / "decoder.py").read_bytes().decode()
    assert not [key for key in by_key if re.search(r"(^|/)(test|tests|site-packages|__pycache__)/", key)]
    files = [key for key in by_key if not key.startswith("topic/")]
    assert files == sorted(files)
    assert corpus.licence == "PSF-2.0"
    assert corpus.digest == load_documents(CorpusConfig(kind="pystdlib")).digest


# Order, keys, digests.


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_the_order_does_not_depend_on_the_order_in_which_files_were_written(tmp_path, kind):
    orders = []
    for turn, names in enumerate((["b", "a", "c/d", "c/a"], ["c/a", "c/d", "a", "b"])):
        for name in names:
            path = tmp_path / str(turn) / f"{name}.{'txt' if kind == 'text' else kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "parquet":
                pyarrow.parquet.write_table(pyarrow.table({"text": [name, name * 2]}), path)
            else:
                path.write_bytes(name.encode() if kind == "text" else to_lines([name, name * 2]))
        orders.append(read(kind, tmp_path / str(turn)))
    assert orders[0] == orders[1]
    assert len(orders[0]) == (4 if kind == "text" else 8)


def test_reading_twice_gives_the_same(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(to_lines(TEXTS))
    corpus = load_documents(CorpusConfig(kind="jsonl", path=str(tmp_path)))
    assert list(corpus) == list(corpus)


def test_keyless_records_keep_keys_and_split_when_files_are_renamed_and_lines_reordered(tmp_path):
    texts = [f"text {i}" for i in range(300)]
    write_tree(tmp_path / "one", {"a.jsonl": to_lines(texts)})
    shuffled = random.Random(0).sample(texts, len(texts))
    write_tree(
        tmp_path / "two", {"x.jsonl": to_lines(shuffled[:99]), "y/z.jsonl.gz": gzip.compress(to_lines(shuffled[99:]))}
    )
    one, two = read("jsonl", tmp_path / "one"), read("jsonl", tmp_path / "two")
    assert [d.key for d in one] != [d.key for d in two]
    assert {d.text: d.key for d in one} == {d.text: d.key for d in two}
    kept = [{d.text for d in documents if key_fraction(d.key) < 0.2} for documents in (one, two)]
    assert kept[0] == kept[1]
    assert 0 < len(kept[0]) < 300


def test_a_key_field_identifies_a_record_whatever_its_text(tmp_path):
    write_tree(tmp_path, {"a.jsonl": b'{"text": "a", "id": 5}\n{"text": "b", "id": "5x"}\n'})
    assert pairs_of(read("jsonl", tmp_path, key_field="id")) == [("5", "a"), ("5x", "b")]


def test_the_key_of_a_text_file_does_not_depend_on_where_its_folder_lies(tmp_path):
    for home in ("here", "there/deep"):
        write_tree(tmp_path / home, {"a.txt": b"a", "b/c.txt": b"c"})
    assert read("text", tmp_path / "here") == read("text", tmp_path / "there" / "deep")
    assert digest_of(tmp_path / "here") == digest_of(tmp_path / "there" / "deep")


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_the_digest_changes_with_any_byte_and_not_with_a_touch(tmp_path, kind):
    name = "a.txt" if kind == "text" else "a.jsonl"
    write_tree(tmp_path, {name: to_lines(["abc"]), f"b/{name}": to_lines(["def"])})
    before = digest_of(tmp_path, kind)
    os.utime(tmp_path / name, (1, 1))
    assert digest_of(tmp_path, kind) == before
    (tmp_path / name).write_bytes(to_lines(["abd"]))
    changed = digest_of(tmp_path, kind)
    (tmp_path / name).write_bytes(to_lines(["abc"]))
    assert digest_of(tmp_path, kind) == before != changed
    (tmp_path / name).rename(tmp_path / f"c{name}")
    assert digest_of(tmp_path, kind) not in (before, changed)


def test_the_digest_changes_with_the_field_that_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a", "body": "b"}\n')
    digests = [digest_of(tmp_path, "jsonl", **f) for f in ({}, {"text_field": "body"}, {"key_field": "body"})]
    assert len(set(digests)) == 3


def test_bytes_moved_from_one_file_to_the_next_change_the_digest(tmp_path):
    write_tree(tmp_path / "one", {"a.txt": b"ab", "b.txt": b"c"})
    write_tree(tmp_path / "two", {"a.txt": b"a", "b.txt": b"bc"})
    assert digest_of(tmp_path / "one") != digest_of(tmp_path / "two")


def test_origin_and_licence_are_the_configurations_own_where_it_states_them(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    plain = load_documents(CorpusConfig(kind="text", path=str(tmp_path)))
    stated = load_documents(CorpusConfig(kind="text", path=str(tmp_path), origin="my disk", licence="CC0-1.0"))
    assert (plain.origin, plain.licence) == (str(tmp_path), "not stated")
    assert (stated.origin, stated.licence) == ("my disk", "CC0-1.0")
    assert stated.digest == plain.digest
    assert stated.source_bytes == 1


# The split, duplicates and empties.


def test_a_key_falls_where_its_hash_says():
    key = "sub/folder/ü.txt"
    expected = int(hashlib.blake2b(key.encode(), digest_size=8).hexdigest(), 16) / 2**64
    assert key_fraction(key) == expected


def test_the_split_of_existing_corpora_is_as_it_was():
    message = "every validation set changes with this number: bump shards.FORMAT_VERSION, then update it"
    assert key_fraction("document") == 0.19871005208779186, message


def test_the_share_is_kept_and_a_larger_share_keeps_what_a_smaller_one_kept():
    keys = [f"key {i}" for i in range(10_000)]
    small, large = ({key for key in keys if key_fraction(key) < share} for share in (0.1, 0.3))
    assert small < large
    # Five standard deviations of a binomial count.
    assert abs(len(small) - 1000) < 150
    assert abs(len(large) - 3000) < 230


def test_a_duplicate_is_kept_once_and_counted_as_are_empty_texts(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(to_lines(TEXTS))
    write_tree(tmp_path, {"b.jsonl": to_lines(["tail", "plain ", "\u3000\t"])})
    counts = Counter()
    corpus = load_documents(CorpusConfig(kind="jsonl", path=str(tmp_path)))
    assert texts_of(unique_documents(corpus, counts)) == [TEXTS[0], TEXTS[3], TEXTS[4], TEXTS[6], "plain "]
    assert counts == {"duplicates": 2, "empty": 3}


# What can be wrong.


@pytest.mark.parametrize("path", ["missing", "missing.txt", "miss*.txt"])
def test_a_path_at_which_nothing_is_found_is_named(tmp_path, path):
    with pytest.raises(UserError, match=rf"corpus\.path .*{re.escape(path)}: no such file"):
        load_documents(CorpusConfig(kind="text", path=str(tmp_path / path)))


@pytest.mark.parametrize(
    ("kind", "suffix"), [("text", ".txt or .md or .py"), ("jsonl", ".json.gz"), ("parquet", ".parquet")]
)
def test_a_folder_without_a_file_of_the_kind_is_refused_with_the_suffixes_it_needs(tmp_path, kind, suffix):
    write_tree(tmp_path, {"README.rst": b"nothing to read"})
    with pytest.raises(UserError, match=rf"the folder holds no .*{re.escape(suffix)} file"):
        load_documents(CorpusConfig(kind=kind, path=str(tmp_path)))


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_a_tfds_dataset_is_refused_by_name(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"corpus\.path .*{name}: no TFDS dataset"):
        load_documents(CorpusConfig(kind="tfds", path=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("kind", "name", "data", "byte"),
    [
        ("text", "a.txt", b"caf\xe9 au lait", 3),
        ("jsonl", "a.jsonl", b'{"text": "\xc3\xbc"}\n{"text": "caf\xe9"}\n', 28),
        ("jsonl", "a.jsonl.gz", gzip.compress(b'{"text": "\xc3\xbc"}\n{"text": "caf\xe9"}\n', mtime=0), 28),
        ("jsonl", "a.jsonl.zst", zstd(b'{"text": "\xc3\xbc"}\n') + zstd(b'{"text": "caf\xe9"}\n'), 28),
    ],
)
def test_what_is_not_utf8_is_named_by_file_and_byte(tmp_path, kind, name, data, byte):
    write_tree(tmp_path, {name: data})
    with pytest.raises(UserError, match=rf"{re.escape(name)}.*: not UTF-8 at byte {byte} \(0xe9\)"):
        read(kind, tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{'text': 1}", "line 3: not JSON: .* at column 2"),
        (b'{"text": "a"', "line 3: not JSON"),
        (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "line 3: not JSON"),
        (b'{"body": "a", "id": 1}', "line 3: no field 'text'; it has body, id"),
        (b'["text"]', "line 3: a record must be an object, not list"),
        (b'"text"', "line 3: a record must be an object, not str"),
        (b'{"text": 7}', "line 3: field 'text' must be text, not 7"),
        (b'{"text": ["a"]}', r"line 3: field 'text' must be text, not \['a'\]"),
        (b'{"text": "a\\ud800"}', "line 3: a lone surrogate at character 1"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message):
    path = write_tree(tmp_path, {"a.jsonl": to_lines(["a", "b"]) + line + b"\n"}) / "a.jsonl"
    with pytest.raises(UserError, match=rf"corpus file {re.escape(str(path))}, {message}"):
        read("jsonl", path)


def test_a_byte_order_mark_at_the_start_of_a_line_is_passed_over_and_one_in_a_text_stays(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.jsonl").write_bytes(mark + to_lines(["a", "\ufeffb"]) + mark + b"\n" + mark + to_lines(["c"]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(mark + to_lines(["d"])) + gzip.compress(mark + to_lines(["e"])))
    assert texts_of(read("jsonl", tmp_path)) == ["a", "\ufeffb", "c", "d", "e"]


@pytest.mark.parametrize("block", [1, 2, 3, 4, 100])
def test_a_text_begins_behind_its_byte_order_mark(tmp_path, monkeypatch, block):
    (tmp_path / "a.txt").write_text("\ufeff\ufeffone\ufeff", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\ufeff", encoding="utf-8")
    monkeypatch.setattr("jaxformer.data.documents._BLOCK_BYTES", block)
    assert texts_of(read("text", tmp_path)) == ["\ufeffone\ufeff", ""]


def test_a_byte_order_mark_changes_the_digest_of_a_text_corpus_and_nothing_else_does(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")  # The digest of an only text has a version of its own.
    (tmp_path / "a.jsonl").write_bytes(to_lines(["one"]))
    before = [digest_of(tmp_path), digest_of(tmp_path, "jsonl"), digest_of(tmp_path, key_field="text")]
    monkeypatch.setattr("jaxformer.data.kinds.MARKS_VERSION", 3)
    assert before == [digest_of(tmp_path), digest_of(tmp_path, "jsonl"), digest_of(tmp_path, key_field="text")]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    marked = digest_of(tmp_path)
    monkeypatch.setattr("jaxformer.data.kinds.MARKS_VERSION", 1)
    assert digest_of(tmp_path) != marked


def test_the_digest_of_an_existing_corpus_is_as_it_was(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "a.jsonl").write_bytes(to_lines(["one"]))
    message = "what was prepared of every such corpus is prepared anew: is its content another?"
    of_budget = load_documents(CorpusConfig(kind="text", path=str(tmp_path), tokens=2))
    assert of_budget.source_digest[:16] == "cf8bbd773c8b69f3", message
    assert digest_of(tmp_path)[:16] == "276ae6812d846116", message
    (tmp_path / "b.txt").write_text("two")
    assert digest_of(tmp_path)[:16] == "36a15a834d589e2f", message
    assert digest_of(tmp_path, "jsonl")[:16] == "8a53281cf773300a", message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_another_encoding_of_unicode_is_named(tmp_path, kind, encoding):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(to_lines(["caf\u00e9"]).decode().encode(encoding))
    with pytest.raises(UserError, match=r"UTF-16 or UTF-32, not UTF-8; convert it \(iconv"):
        read(kind, path)


@pytest.mark.parametrize(
    ("pack", "form"),
    [(gzip.compress, "gzip"), (zstd, "Zstandard"), (lzma.compress, "xz"), (lambda data: b"PK\3\4" + data, "zip")],
)
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_packed_file_of_another_name_is_named(tmp_path, kind, pack, form):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(pack(to_lines(["a"])))
    with pytest.raises(UserError, match=rf"{form} data, not UTF-8 text; unpack it"):
        read(kind, path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_pointer_of_git_lfs_is_no_content_and_never_skipped(tmp_path, name):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:665232916d127eb726be0e\nsize 146946961\n"
    kind = {"a.txt": "text", "a.parquet": "parquet"}.get(name, "jsonl")
    (tmp_path / name).write_bytes(pointer)
    for share in (0.0, 0.99):
        with pytest.raises(UserError, match=rf"{re.escape(name)}: a pointer of Git LFS, .*`git lfs pull`"):
            read(kind, tmp_path / name, skip_bad_records=share)


def test_a_window_that_is_too_large_is_named_and_is_no_damage(tmp_path):
    # printf '{"text": "a"}\n' | zstd --long=31
    (tmp_path / "a.jsonl.zst").write_bytes(bytes.fromhex("28b52ffd04a87100007b2274657874223a202261227d0afc0c4858"))
    with pytest.raises(UserError, match=r"a\.jsonl\.zst: packed with a window above 128 MB; pack it without --long"):
        read("jsonl", tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[\n{"text": "a"}\n]', "one JSON array, not JSON lines"),
        (b'\xef\xbb\xbf[{"text": "a"}]\n', "one JSON array, not JSON lines"),
        (b'{\r\n "text": "a"\r\n}', "one JSON object over several lines, not JSON lines"),
    ],
)
def test_a_file_of_one_json_value_is_named_as_that_and_never_skipped(tmp_path, data, message):
    (tmp_path / "a.jsonl").write_bytes(data)
    for share in (0.0, 0.99):
        with pytest.raises(UserError, match=message):
            read("jsonl", tmp_path / "a.jsonl", skip_bad_records=share)


def test_a_name_that_stands_twice_is_refused_where_it_is_read(tmp_path):
    write_tree(tmp_path, {"a.jsonl": b'{"text": "a", "n": 1, "n": {"m": 1, "m": 2}, "id": 1, "id": 2}\n'})
    assert pairs_of(read("jsonl", tmp_path, key_field="text")) == [("a", "a")]
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: 2 fields are named 'id'"):
        read("jsonl", tmp_path, key_field="id")


def test_a_parquet_column_is_read_whatever_form_its_text_has(tmp_path):
    texts = ["a", None, "\u00fc", "a"]
    encoded = [text and text.encode() for text in texts]
    forms = {
        "dictionary": pyarrow.array(texts).dictionary_encode(),
        "large": pyarrow.array(texts, pyarrow.large_string()),
        "view": pyarrow.array(texts, pyarrow.string_view()),
        "bytes": pyarrow.array(encoded, pyarrow.binary()),
        "large_bytes": pyarrow.array(encoded, pyarrow.large_binary()),
    }
    for name, column in forms.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / f"{name}.parquet")
        assert texts_of(read("parquet", tmp_path / f"{name}.parquet")) == ["a", "", "\u00fc", "a"], name


def not_utf8() -> pyarrow.Array:
    """Returns a column of three texts, of which the second is not UTF-8."""
    offsets = pyarrow.py_buffer(np.arange(4, dtype=np.int32).tobytes())
    return pyarrow.StringArray.from_buffers(3, offsets, pyarrow.py_buffer(b"a\xe9b"))


def test_bad_records_are_left_out_up_to_a_share_with_their_places(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": not_utf8()}), tmp_path / "a.parquet")
    lines = to_lines(["a"]) + b'{"text": "caf\xe9"}\n{"text": 7}\n{"body": "a"}\n["a"]\n{"text": "b\\ud800"}\n{"te'
    write_tree(tmp_path, {"a.jsonl": lines + b"\n" + to_lines(["c"]), "a.txt": b"caf\xe9", "b.txt": b"b"})
    for kind, texts in (("parquet", ["a", "b"]), ("jsonl", ["a", "c"]), ("text", ["b"])):
        documents = read(kind, tmp_path, skip_bad_records=0.5)
        assert [document.text for document in documents if not document.bad] == texts
        bad = [document for document in documents if document.bad]
        assert not any(document.text for document in bad)
        assert len(bad) == (6 if kind == "jsonl" else 1)
        with pytest.raises(UserError, match=re.escape(bad[0].bad)):
            read(kind, tmp_path)
        counts = Counter()
        assert texts_of(unique_documents(documents, counts)) == texts
        assert counts == {"bad": len(bad)}


def test_a_share_of_bad_records_is_part_of_the_digest_and_none_is_as_it_was(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(to_lines(["a"]))
    digests = [digest_of(tmp_path, "jsonl", skip_bad_records=share) for share in (0.0, 0.1, 0.2)]
    assert len(set(digests)) == 3 and digests[0] == digest_of(tmp_path, "jsonl")


def test_a_missing_key_field_is_named(tmp_path):
    write_tree(tmp_path, {"a.jsonl": to_lines(["a"])})
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: no field 'id'; it has text"):
        read("jsonl", tmp_path, key_field="id")


def test_a_key_that_is_no_unicode_text_is_refused_by_line(tmp_path):
    write_tree(tmp_path, {"a.jsonl": b'{"text": "a", "id": "\\ud800"}\n'})
    with pytest.raises(UserError, match=r"a\.jsonl, line 1"):
        read("jsonl", tmp_path, key_field="id")


def test_a_file_name_that_is_not_utf8_is_refused_or_gives_a_key_that_can_be_hashed(tmp_path):
    try:
        with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "wb") as file:
            file.write(b"a")
    except OSError:
        pytest.skip("this file system admits only UTF-8 names")
    try:
        documents = read("text", tmp_path)
    except UserError:
        return
    assert 0 <= key_fraction(documents[0].key) < 1


LINES = to_lines([f"line {i} {i * i * 7919}" for i in range(3000)])


def damage(data: bytes, start: int) -> bytes:
    """Returns the data with 16 bytes inverted."""
    return data[:start] + bytes(255 - b for b in data[start : start + 16]) + data[start + 16 :]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: damage(data, 10),
        lambda data: data + b"rubbish",
        lambda data: LINES,
    ],
    ids=["last byte missing", "half", "first block damaged", "rubbish after it", "not compressed"],
)
def test_a_damaged_compressed_file_is_a_user_error_that_names_it(tmp_path, suffix, compress, spoil):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(spoil(compress(LINES)))
    with pytest.raises(UserError, match=rf"corpus file {re.escape(str(path))}"):
        read("jsonl", path)


def test_a_changed_checksum_of_a_gzip_file_is_a_user_error_that_names_it(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(LINES)
    path.write_bytes(packed[:-8] + bytes(4) + packed[-4:])
    with pytest.raises(UserError, match=rf"corpus file {re.escape(str(path))}: damaged"):
        read("jsonl", path)


@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"", lambda data: data[:-9], lambda data: damage(data, 4), lambda data: damage(data, len(data) // 4)],
    ids=["empty", "truncated", "page header damaged", "page damaged"],
)
def test_a_damaged_parquet_file_is_a_user_error_that_names_it(tmp_path, spoil):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"row {i} {i * 7919}" for i in range(3000)]}), path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=rf"corpus file {re.escape(str(path))}: damaged or not Parquet"):
        read("parquet", path)


def test_a_parquet_column_that_is_missing_or_holds_no_text_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a", "b"], "n": [1, 2]}), path)
    with pytest.raises(UserError, match=r"a\.parquet: no field 'text'; it has body, n"):
        read("parquet", path)
    with pytest.raises(UserError, match=r"a\.parquet, row 1: field 'n' must be text, not 1"):
        read("parquet", path, text_field="n")


PART = CorpusConfig(kind="text", path="a")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "jsnol", "path": "a"}, r"did you mean jsonl\?"),
        ({"kind": "text"}, r"corpus\.kind 'text' needs corpus\.path"),
        ({"kind": "pystdlib", "path": "a"}, r"corpus\.path \('a'\) has no meaning for kind 'pystdlib'"),
        ({"kind": "mixture"}, "needs two parts or more, not 0"),
        ({"kind": "mixture", "parts": (PART,)}, "needs two parts or more, not 1"),
        ({"kind": "mixture", "parts": (PART, PART), "path": "a"}, r"takes no path \('a'\)"),
        (
            {"kind": "mixture", "parts": (PART, PART), "skip_bad_records": 0.1},
            r"takes no skip_bad_records \(0\.1\); set it on the parts",
        ),
        (
            {"kind": "text", "path": "a", "parts": (PART, PART)},
            r"corpus\.parts need corpus\.kind 'mixture', not 'text'",
        ),
        (
            {"kind": "mixture", "parts": (PART, CorpusConfig(kind="mixture", parts=(PART, PART)))},
            "a part of a mixture must not be a mixture",
        ),
        ({"kind": "text", "path": "a", "weight": -1.0}, r"corpus\.weight \(-1\.0\) must be at least 0"),
        ({"kind": "text", "path": "a", "weight": float("nan")}, r"corpus\.weight \(nan\) must be finite"),
        ({"kind": "text", "path": "a", "validation_share": 0.0}, r"share \(0\.0\) must be above 0 and below 1"),
        ({"kind": "text", "path": "a", "validation_share": 1.0}, r"share \(1\.0\) must be above 0 and below 1"),
    ],
)
def test_a_configuration_that_breaks_a_rule_is_refused_with_rule_and_value(fields, message):
    with pytest.raises(UserError, match=message):
        CorpusConfig(**fields)


def test_the_parts_of_a_mixture_are_read_one_by_one_and_another_corpus_is_its_own_part():
    other = CorpusConfig(kind="text", path="b", weight=3.0)
    assert parts_of(CorpusConfig(kind="mixture", parts=(PART, other))) == (PART, other)
    assert parts_of(PART) == (PART,)


def test_a_long_text_file_is_several_documents_that_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxformer.data.documents.TEXT_CHARACTERS", 20)
    text = "first part\n\nsecond part\nthird part\nno end of a line in sight here" + "x" * 45 + "\n\nlast\n"
    (tmp_path / "book.txt").write_text(text)
    documents = read("text", tmp_path / "book.txt")
    assert "".join(texts_of(documents)) == text
    assert [len(t) <= 20 for t in texts_of(documents)] == [True] * len(documents)
    assert texts_of(documents)[:2] == ["first part\n\n", "second part\n"]
    assert [d.key for d in documents[:3]] == ["book.txt", "book.txt#1", "book.txt#2"]
    assert len({d.key for d in documents}) == len(documents)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{i}: {'word ' * (i % 9)}\n{'' if i % 7 else chr(10)}" for i in range(400)),
        "".join(f"{i} \u00fc \U0001f600\r\n" for i in range(700)),
        "\u65e5\u672c\u8a9e" * 999,
        "\u65e5\u672c\u8a9e" * 999 + "\n",
        "\ufeffa title\n" + "x" * 5000,
    ],
)
@pytest.mark.parametrize("characters", [100, 1 << 16])
def test_the_end_of_an_only_text_is_for_validation_and_all_before_it_for_training(
    tmp_path, monkeypatch, text, share, characters
):
    monkeypatch.setattr("jaxformer.data.documents.TEXT_CHARACTERS", characters)
    (tmp_path / "a.txt").write_bytes(text.encode())
    text = text.removeprefix("\ufeff")
    documents = read("text", tmp_path, validation_share=share)
    assert "".join(texts_of(documents)) == text
    is_end = [split_fraction(document) < share for document in documents]
    assert is_end == sorted(is_end) and len({split_fraction(document) for document in documents}) == len(documents)
    end = "".join(document.text for document, held_out in zip(documents, is_end, strict=True) if held_out)
    assert share / 2 < len(end.encode()) / len(text.encode()) <= share
    assert sum(is_end) >= min(8, len(end.encode()) >> 10) - 1, "too few to tell an error by"
    lines = text.splitlines(keepends=True)
    if max(map(len, lines)) < 100:
        assert end in ["".join(lines[i:]) for i in range(1, len(lines))]


def test_hashes_split_an_only_text_that_a_budget_may_end_before_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxformer.data.documents.TEXT_CHARACTERS", 100)
    (tmp_path / "a.txt").write_text("some words\n" * 400)
    for tokens, is_whole in ((0, True), (4399, False), (4400, True)):
        found = read("text", tmp_path, tokens=tokens, validation_share=0.1)
        assert [document.fraction is not None for document in found] == [is_whole] * len(found)
        assert [document.key for document in found[:2]] == ["a.txt", "a.txt#1"]


def test_a_text_file_is_read_in_blocks_that_change_nothing(tmp_path, monkeypatch):
    text = "".join(f"{i} \u00fc \U0001f600 {'word ' * (i % 9)}\n{'' if i % 7 else chr(10)}" for i in range(300))
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr("jaxformer.data.documents.TEXT_CHARACTERS", 100)
    whole = read("text", tmp_path)
    for block in (1, 7, 64, 1000):
        monkeypatch.setattr("jaxformer.data.documents._BLOCK_BYTES", block)
        assert read("text", tmp_path) == whole
    assert "".join(texts_of(whole)) == text


@pytest.mark.parametrize(("data", "byte"), [(b"abc\xe9 au lait", 3), (b"\xc3\xbc\xc3", 2), (b"caf\xc3(", 3)])
@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_the_place_of_what_is_not_utf8_is_right_whatever_the_blocks(tmp_path, monkeypatch, data, byte, block):
    (tmp_path / "a.txt").write_bytes(data)
    monkeypatch.setattr("jaxformer.data.documents._BLOCK_BYTES", block)
    with pytest.raises(UserError, match=rf"not UTF-8 at byte {byte} \(0x{data[byte]:02x}\)"):
        read("text", tmp_path)


def test_a_null_is_a_document_without_text(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "a.parquet")
    assert texts_of(read("parquet", tmp_path)) == ["a", ""]
    write_tree(tmp_path, {"a.jsonl": b'{"text": null}\n'})
    assert texts_of(read("jsonl", tmp_path)) == [""]


def test_names_of_parts_are_short_and_all_different():
    paths = [
        "x/a_2.jsonl",
        "a.jsonl.gz",
        "y/a.jsonl",
        "my text/*.txt",
        "b c.parquet",
        "a.txt",
        "/data/fw/**/*.txt",
        "*.txt",
    ]
    paths += ["hf://datasets/HuggingFaceFW/fineweb-edu@main/sample/10BT/*.txt", "s3://bucket/wiki/*.txt"]
    parts = [*(CorpusConfig(kind="text", path=path) for path in paths), CorpusConfig(kind="pystdlib")]
    names = part_names(CorpusConfig(kind="mixture", parts=tuple(parts)))
    assert names == ["a_2", "a", "a_3", "my_text", "b_c", "a_4", "fw", "text", "fineweb-edu", "wiki", "pystdlib"]
