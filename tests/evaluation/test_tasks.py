"""The same items from every format, digests, the fixed choice, and the message of every kind of bad data."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.config import UserError
from jaxformer.evaluation import items
from jaxformer.evaluation.items import Item, Option
from jaxformer.evaluation.tasks import TASKS, TaskData, fixed_choice, load_task

pytestmark = pytest.mark.device_free


def scene(number: int) -> dict:
    """Returns an official row of HellaSwag."""
    return {
        "activity_label": f"Sc\u00e8ne {number}",
        "ctx_a": "A man sits.",
        "ctx_b": "he",
        "ctx": "A man sits. he",
        "endings": [f"goes {number}.", "sleeps [step] well.", "\u201celse\u201d", "du"],
        "label": str(number % 3),
        "source_id": f"activitynet~{number // 2}",
    }


def question(number: int) -> dict:
    """Returns an official row of ARC, with labels 1, 2, ... in every second."""
    labels = list("12345" if number % 2 else "ABCDE")[: 3 + number % 3]
    return {
        "id": f"id-{number}",
        "question": f"Why {number}\u00b0?",
        "choices": {"text": [f"cause {label}" for label in labels], "label": labels},
        "answerKey": labels[number % len(labels)],
    }


def pronoun(number: int) -> dict:
    """Returns an official row of WinoGrande."""
    return {
        "sentence": f"Ann met Zo\u00eb {number} times as _ liked her.",
        "option1": "Ann",
        "option2": "Zo\u00eb",
        "answer": "12"[number % 2],
    }


OFFICIAL = {"hellaswag": scene, "arc_easy": question, "winogrande": pronoun}
ONE_ROW = {
    "hellaswag": scene(1),
    "arc_easy": question(1),
    "arc_challenge": question(2),
    "winogrande": pronoun(1),
    "openbookqa": {"question_stem": "Ice is", "choices": question(2)["choices"], "answerKey": "A"},
    "piqa": {"goal": "Sit.", "sol1": "On a chair.", "sol2": "On a fork.", "label": 0},
    "boolq": {"question": "is ice cold", "passage": "Ice is frozen.", "answer": True},
    "lambada": {"text": "He lit the candle"},
}


def rows_of(task: str, number: int = 5) -> list[dict]:
    return [OFFICIAL[task](i) for i in range(number)]


def to_lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write_parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


def write_file(path: Path, rows: list[dict]) -> Path:
    """Writes rows in the format that the name of the file tells."""
    if path.suffix == ".parquet":
        return write_parquet(path, rows)
    pack = {".jsonl": bytes, ".gz": gzip.compress, ".zst": lambda b: pyarrow.compress(b, codec="zstd", asbytes=True)}
    path.write_bytes(pack[path.suffix](to_lines(rows)))
    return path


@pytest.fixture(scope="module")
def tfds_folders(tmp_path_factory):
    """TFDS's data folder with the three default tasks as TFDS itself writes their fields, and the folder of each."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tfds")
    features = tfds.features
    text, labels = features.Text(), list("ABCDE")

    def as_question(row):
        number_of = {"1": 0, "2": 1, "3": 2, "4": 3, "5": 4} | {label: i for i, label in enumerate(labels)}
        offered = zip(row["choices"]["text"], row["choices"]["label"], strict=True)
        choices = [{"text": each, "label": number_of[label]} for each, label in offered]
        return row | {"choices": choices, "answerKey": number_of[row["answerKey"]]}

    def as_scene(row):
        fields = {name: row[name] for name in ("activity_label", "endings", "source_id")}
        return fields | {"context": row["ctx"], "label": int(row["label"]), "split_type": "indomain"}

    def as_pronoun(row):
        return {name: row[name] for name in ("sentence", "option1", "option2")} | {"label": int(row["answer"]) - 1}

    label = features.ClassLabel(names=labels)
    arc = {"id": text, "question": text, "choices": features.Sequence({"text": text, "label": label})}
    scenes = {"context": text, "endings": features.Sequence(text), "activity_label": text, "label": np.int32}
    datasets = {
        "arc_easy": ("ai2_arc", "ARC-Easy", arc | {"answerKey": label}, as_question),
        "hellaswag": ("hellaswag", None, scenes | {"split_type": text, "source_id": text}, as_scene),
        "winogrande": (
            "winogrande",
            None,
            {"sentence": text, "option1": text, "option2": text, "label": features.ClassLabel(num_classes=2)},
            as_pronoun,
        ),
    }
    folders = {}
    for task, (dataset, config, fields, convert) in datasets.items():
        with tfds.core.registered.skip_registration():

            class Tiny(tfds.core.GeneratorBasedBuilder):
                """A dataset for tests."""

                VERSION = tfds.core.Version("1.0.0")
                name = dataset
                BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

                def _info(self, fields=fields):
                    return tfds.core.DatasetInfo(
                        builder=self, features=features.FeaturesDict(fields), disable_shuffling=True
                    )

                def _split_generators(self, dl_manager, split=TASKS[task].tfds[1]):
                    return {split: self._generate_examples()}

                def _generate_examples(self, task=task, convert=convert):
                    yield from enumerate(map(convert, rows_of(task)))

            builder = Tiny(data_dir=str(root), file_format="array_record")
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        folders[task] = Path(builder.data_dir)
    return root, folders


@pytest.fixture
def tfds_home(tfds_folders, monkeypatch):
    """Sets the folder in which TFDS looks for datasets by name; returns a function that sets another."""
    from tensorflow_datasets.core import constants
    from tensorflow_datasets.core.utils import file_utils

    def use(folder):
        monkeypatch.setattr(constants, "DATA_DIR", str(folder))
        monkeypatch.setattr(file_utils, "_REGISTERED_DATA_DIRS", set())

    use(tfds_folders[0])
    return use


# The same items from every format.


@pytest.mark.parametrize("task", OFFICIAL)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_every_file_format_gives_the_items_of_its_rows_in_order(tmp_path, task, suffix):
    path = write_file(tmp_path / f"any name{suffix}", rows_of(task))
    data = load_task(task, str(path))
    assert data.items == [TASKS[task].to_item(row) for row in rows_of(task)]
    assert data.task is TASKS[task]
    assert data.source == str(path)
    assert data.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_folder_gives_the_file_that_is_named_after_the_task(tmp_path, suffix):
    for task in OFFICIAL:
        write_file(tmp_path / f"{task}{suffix}", rows_of(task))
    write_file(tmp_path / f"hellaswag_train{suffix}", rows_of("hellaswag", 9))
    for task in OFFICIAL:
        assert load_task(task, str(tmp_path)) == load_task(task, str(tmp_path / f"{task}{suffix}"))
        assert len(load_task(task, str(tmp_path)).items) == 5


@pytest.mark.parametrize("task", OFFICIAL)
def test_a_prepared_tfds_dataset_gives_the_official_items_by_folder_and_by_name(
    tmp_path, tfds_folders, tfds_home, task
):
    official = load_task(task, str(write_file(tmp_path / "a.jsonl", rows_of(task))))
    by_folder, by_name = load_task(task, str(tfds_folders[1][task])), load_task(task, "tfds")
    assert by_folder.items == by_name.items == official.items
    assert by_folder.source == by_name.source == f"{tfds_folders[1][task]}, {TASKS[task].tfds[1]}"
    assert by_folder.digest == by_name.digest != official.digest
    everything = np.arange(5)
    assert by_name.items_digest(everything) == official.items_digest(everything)


def test_a_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_file(tmp_path / "piqa.jsonl", [ONE_ROW["piqa"]])
    assert load_task("piqa", "~").source == load_task("piqa", "~/piqa.jsonl").source == str(path)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_every_task_loads_a_row_of_its_official_format(tmp_path, task, suffix):
    data = load_task(task, str(write_file(tmp_path / f"{task}{suffix}", [ONE_ROW[task]])))
    assert data.items == [TASKS[task].to_item(ONE_ROW[task])]
    assert data.items[0].options[0].text


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("piqa", "Sit. On a chair."),
        ("boolq", "Ice is frozen. is ice cold? yes"),
        ("lambada", "He lit the candle"),
        ("openbookqa", "Ice is solid"),
    ],
)
def test_the_text_of_an_item_is_its_question_and_right_answer_alone(tmp_path, task, text):
    row = ONE_ROW[task] | ({"choices": {"label": ["A", "B"], "text": ["solid", "hot"]}} if task == "openbookqa" else {})
    (found,) = load_task(task, str(write_file(tmp_path / f"{task}.jsonl", [row]))).texts()
    assert " ".join(found.split()) == text


def test_tasks_have_their_own_names_splits_and_metrics():
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in ONE_ROW}
    assert len({task.tfds for task in TASKS.values()}) == len(TASKS)
    assert {name: task.primary for name, task in TASKS.items() if task.primary != "acc"} == dict.fromkeys(
        ["hellaswag", "openbookqa", "arc_challenge"], "acc_norm"
    )
    assert {name for name, task in TASKS.items() if not task.has_acc_norm} == {"winogrande", "boolq", "lambada"}
    of_arc = [vars(TASKS[name])["item_of"] for name in ("arc_easy", "arc_challenge")]
    assert of_arc == [items.question_and_answer] * 2


# Digests.


def test_a_digest_is_that_of_the_bytes(tmp_path):
    rows = rows_of("hellaswag")
    first = load_task("hellaswag", str(write_file(tmp_path / "a.jsonl", rows)))
    again = load_task("hellaswag", str(write_file(tmp_path / "b.jsonl", rows)))
    (tmp_path / "c.jsonl").write_bytes(to_lines(rows) + b"\n")
    blank = load_task("hellaswag", str(tmp_path / "c.jsonl"))
    assert first.digest == again.digest != blank.digest
    assert first.items == again.items == blank.items


def test_a_digest_of_a_tfds_dataset_changes_with_one_byte_of_it(tmp_path, tfds_folders):
    copy = tmp_path / "winogrande" / "1.0.0"
    shutil.copytree(tfds_folders[1]["winogrande"], copy)
    before = load_task("winogrande", str(copy))
    assert before.digest == load_task("winogrande", str(tfds_folders[1]["winogrande"])).digest
    info = copy / "dataset_info.json"
    info.write_text(info.read_text() + " ")
    after = load_task("winogrande", str(copy))
    assert after.digest != before.digest
    assert after.items == before.items


def test_the_digest_of_items_is_equal_where_the_same_questions_are_asked(tmp_path):
    rows = rows_of("arc_easy")
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.parquet")]
    loaded = [load_task("arc_easy", str(write_file(path, rows))) for path in paths]
    chosen = np.array([0, 3])
    assert len({data.items_digest(chosen) for data in loaded}) == 1
    assert len({data.digest for data in loaded}) == 3
    longer = load_task("arc_easy", str(write_file(tmp_path / "d.jsonl", rows_of("arc_easy", 9))))
    assert longer.items_digest(chosen) == loaded[0].items_digest(chosen)


def test_the_digest_of_items_is_another_for_any_other_question():
    def digest(items, chosen=(0, 1), task="arc_easy"):
        return TaskData(TASKS[task], items, "source", "digest").items_digest(np.array(chosen))

    one, two = Item((Option("a", " b"), Option("a", " c")), 0), Item((Option("d", " e"), Option("d", " f")), 1)
    reference = digest([one, two])
    others = [
        digest([one._replace(gold=1), two]),
        digest([one._replace(options=one.options[::-1]), two]),
        digest([one._replace(options=(Option("a", " b "), one.options[1])), two]),
        digest([one._replace(options=(Option("a ", "b"), one.options[1])), two]),
        digest([two, one]),
        digest([one, two], [0]),
        digest([one, two], [1]),
        digest([one, two], task="arc_challenge"),
    ]
    assert len({reference, *others}) == 1 + len(others)
    assert digest([one, two._replace(group="other")]) == reference


# The fixed choice.


@given(st.integers(1, 400), st.integers(0, 420), st.integers(0, 420))
def test_a_fixed_choice_is_sorted_and_holds_every_smaller_one(total, a, b):
    small, large = (fixed_choice(total, count) for count in sorted((a, b)))
    assert len(small) == min(a, b, total)
    assert set(small.tolist()) <= set(large.tolist()) <= set(range(total))
    for chosen in (small, large):
        assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(fixed_choice(total, None), np.arange(total))


def test_a_fixed_choice_is_the_same_always_and_from_all_parts():
    chosen = fixed_choice(1000, 100)
    np.testing.assert_array_equal(chosen, fixed_choice(1000, 100))
    # Golden: which questions the numbers of earlier runs were scored on. To change it is to change every such number.
    assert fixed_choice(1000, 6).tolist() == [162, 206, 222, 459, 711, 814]
    assert np.bincount(chosen // 250, minlength=4).min() >= 15, "a quarter of the rows is hardly chosen"


# Bad data.


def refused(task: str, path, message: str) -> str:
    with pytest.raises(UserError, match=message) as caught:
        load_task(task, str(path))
    return str(caught.value)


GOOD = to_lines([scene(0)])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD[:-9], r"not JSON: Unterminated string|not JSON: Expecting"),
        (b'{"label": \n', r"not JSON: Expecting value at column"),
        (b"caf\xe9\n", r"not UTF-8 at byte \d+ \(0xe9\); convert or remove it"),
        (b"[1, 2]\n", r"a record must be an object, not list"),
        (b'"text"\n', r"a record must be an object, not str"),
        (b"[" * 100_000 + b"\n", r"not JSON"),
        (to_lines([question(0)]), r"no field 'ctx_a'|no field 'activity_label'"),
        (to_lines([{k: v for k, v in scene(0).items() if k != "endings"}]), r"no field 'endings'"),
        (to_lines([scene(0) | {"endings": []}]), r"it has no options"),
        (to_lines([scene(0) | {"endings": ["a", "", "b", "c"]}]), r"option 1 is empty"),
        (to_lines([scene(0) | {"endings": None}]), r"field 'endings' must be a list of texts, not None"),
        (to_lines([scene(0) | {"label": 7}]), r"its answer \(7\) is not one of 4 options from 0"),
        (b'{"activity_label": "\\ud800", ' + GOOD[1:].partition(b", ")[2], r"option 0 holds a lone surrogate"),
    ],
)
@pytest.mark.parametrize("name", ["bad.jsonl", "bad.jsonl.gz"])
def test_a_bad_line_is_a_user_error_that_names_file_and_line(tmp_path, name, line, message):
    path = tmp_path / name
    path.write_bytes((gzip.compress if name.endswith(".gz") else bytes)(GOOD + b"\n" + line))
    text = refused("hellaswag", path, message)
    assert text.startswith(f"hellaswag data {path}, line 3: ")
    assert "\n" not in text and len(text) < 500


def test_a_foreign_tasks_file_is_refused_at_its_first_line(tmp_path):
    for other, row in ONE_ROW.items():
        path = write_file(tmp_path / f"{other}.jsonl", [row])
        for task in set(TASKS) - {other}:
            if {task, other} == {"arc_easy", "arc_challenge"}:  # Of one form.
                assert load_task(task, str(path)).items
            else:
                text = refused(task, path, r"no field '\w+'; it has ")
                assert text.startswith(f"{task} data {path}, line 1: ")


def test_a_lone_surrogate_is_a_user_error_in_every_task(tmp_path):
    def spoiled(value):
        if isinstance(value, dict):
            return {name: each if name == "label" else spoiled(each) for name, each in value.items()}
        if isinstance(value, list):
            return [spoiled(each) for each in value]
        return value + " \ud800" if isinstance(value, str) else value

    for task, row in ONE_ROW.items():
        path = tmp_path / f"{task}.jsonl"
        for name, value in row.items():
            path.write_text(json.dumps(row | {name: spoiled(value)}))
            try:
                loaded = load_task(task, str(path)).items
            except UserError as error:
                assert str(error).startswith(f"{task} data {path}, line 1: ")
            else:
                assert loaded[0].options == TASKS[task].to_item(row).options, "the field is not read"


def test_a_bad_parquet_row_is_a_user_error_that_names_file_and_row(tmp_path):
    rows = rows_of("hellaswag")
    rows[3] |= {"label": "-1"}
    path = write_parquet(tmp_path / "a.parquet", rows)
    text = refused("hellaswag", path, r"its answer \(-1\) is not one of 4 options")
    assert text.startswith(f"hellaswag data {path}, row 4: ")


def test_a_parquet_text_that_is_not_utf8_is_a_user_error_that_names_the_file(tmp_path):
    text = pyarrow.array([b"fine", b"caf\xe9 noir"]).cast(pyarrow.binary()).view(pyarrow.string())
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path)
    refused("lambada", path, r"lambada data .*a\.parquet.*UTF-8")


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-9], lambda b: b[:9], lambda b: b"PAR1" + b[40:]])
def test_damaged_parquet_is_a_user_error_that_names_the_file(tmp_path, damage):
    path = write_parquet(tmp_path / "a.parquet", rows_of("hellaswag"))
    path.write_bytes(damage(path.read_bytes()))
    assert refused("hellaswag", path, r"damaged or not Parquet").startswith(f"hellaswag data {path}: ")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:40] + b"\0" * 20 + b[60:], lambda b: b"plain text\n" * 9]
)
def test_a_damaged_compressed_file_is_a_user_error_that_names_it(tmp_path, suffix, damage):
    path = write_file(tmp_path / f"a.jsonl{suffix}", rows_of("hellaswag", 50))
    path.write_bytes(damage(path.read_bytes()))
    text = refused("hellaswag", path, r"damaged or not \.(gz|zst) data|not JSON|not UTF-8")
    assert text.startswith(f"hellaswag data {path}")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_without_rows_is_a_user_error(tmp_path, name):
    if name == "a.parquet":
        table = pyarrow.Table.from_pylist(rows_of("winogrande"))
        pyarrow.parquet.write_table(table.slice(0, 0), tmp_path / name)
    else:
        write_file(tmp_path / name, [])
    assert refused("winogrande", tmp_path / name, r"no rows") == f"winogrande data {tmp_path / name}: no rows"


def test_an_empty_file_is_a_user_error(tmp_path):
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        (tmp_path / name).write_bytes(b"")
        assert refused("winogrande", tmp_path / name, r"no rows|damaged").startswith("winogrande data ")


def test_a_path_of_no_use_is_a_user_error_that_says_what_to_give(tmp_path):
    csv = tmp_path / "a.csv"
    csv.write_text("a,b\n")
    refused("piqa", csv, r"piqa data .*a\.csv: unknown kind; give a file that ends with \.jsonl, .*\.parquet")
    refused("piqa", tmp_path / "none.jsonl", r"piqa data .*none\.jsonl: no such file or folder")
    refused("piqa", tmp_path, r"piqa data .*: the folder holds no piqa\.jsonl or piqa\.parquet; add it, give a file")
    refused("piqa", "x" * 5000, r"piqa data x+: ")
    refused("piqa", "a\0b", r"piqa data a\0b: ")


def test_two_files_for_a_task_are_one_too_many(tmp_path):
    for name in ("piqa.jsonl.gz", "piqa.parquet"):
        write_file(tmp_path / name, [ONE_ROW["piqa"]])
    refused("piqa", tmp_path, r"piqa\.jsonl\.gz and piqa\.parquet are one too many; keep one")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("helaswag", r"task = 'helaswag' is unknown; did you mean hellaswag\?; choose from arc_challenge, arc_easy"),
        ("", r"task = '' is unknown; choose from"),
    ],
)
def test_an_unknown_task_is_refused_with_the_nearest(tmp_path, name, message):
    refused(name, tmp_path, message)


def test_a_tfds_dataset_that_is_not_prepared_is_a_user_error(tmp_path, tfds_home, tfds_folders):
    tfds_home(tmp_path)
    for task in OFFICIAL:
        refused(task, "tfds", rf"{task} data {TASKS[task].tfds[0].partition('/')[0]}.*: (no TFDS dataset|split)")
    folders = tfds_folders[1]
    refused("winogrande", folders["arc_easy"], r"winogrande data .*: split 'validation' is not prepared here.*: test")
    text = refused("winogrande", folders["hellaswag"], r"no field 'sentence'; it has ")
    assert text.startswith("winogrande data hellaswag/1.0.0, validation, record 0: ")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("dataset_info.json", lambda b: b"{", r"no TFDS dataset"),
        ("features.json", lambda b: b"{", r"no TFDS dataset"),
        ("dataset_info.json", lambda b: b.replace(b"array_record", b"tfrecord"), r""),  # TFDS's own default.
        ("*.array_record*", lambda b: b[:-100], r""),
        ("*.array_record*", lambda b: b"", r""),
        ("*.array_record*", None, r""),
    ],
)
def test_a_damaged_tfds_dataset_is_a_user_error(tmp_path, tfds_folders, name, damage, message):
    copy = tmp_path / "hellaswag" / "1.0.0"
    shutil.copytree(tfds_folders[1]["hellaswag"], copy)
    (path,) = copy.glob(name)
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    refused("hellaswag", copy, rf"hellaswag data .*{message}")
