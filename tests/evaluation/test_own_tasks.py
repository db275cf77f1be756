"""Tasks of one's own: their items, names and digests, and what is refused."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from jaxformer.config import UserError
from jaxformer.evaluation.config import EvaluationConfig, task_names
from jaxformer.evaluation.items import Item, Option
from jaxformer.evaluation.task_scores import load_tasks
from jaxformer.evaluation.tasks import Task, load_task, own_tasks
from jaxformer.experiment.files import load_parts
from jaxformer.record import PartOfARecord, flatten, from_dict, to_dict

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

GOOD = (Option("1 and 2 make", " 3"), Option("1 and 2 make", " 4"))


@dataclass(frozen=True)
class Addition(Task):
    """Which sum is right?"""

    name: str = "addition"
    options: int = 2
    word: str = "make"

    def to_item(self, row):
        context = f"{row['a']} and {row['b']} {self.word}"
        return Item(tuple(Option(context, f" {each}") for each in row["answers"]), row["right"])


@dataclass(frozen=True)
class Returning(Task):
    """A task of whatever a test wants."""

    name: str = "returning"
    options: int = 2

    def to_item(self, row):
        if row["what"] == "raises":
            return row["missing"]
        if row["what"] == "refuses":
            raise UserError("no question")
        return {
            "none": None,
            "pair": (GOOD, 0),
            "list": Item(list(GOOD), 0),  # pyright: ignore[reportArgumentType]
            "texts": Item((" 3", " 4"), 0),  # pyright: ignore[reportArgumentType]
            "bytes": Item((GOOD[0], Option("a", b" b")), 0),  # pyright: ignore[reportArgumentType]
            "letter": Item(GOOD, "A"),  # pyright: ignore[reportArgumentType]
            "beyond": Item(GOOD, 2),
            "three": Item((*GOOD, GOOD[0]), 0),
            "joined": Item((GOOD[0], Option("1 and 2 make", "4")), 0),
            "nothing": Item((), 0),
        }[row["what"]]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_items_of_an_own_task_are_read_from_a_file_of_its_name_among_others(tmp_path):
    write(tmp_path / "addition.jsonl", {"a": 1, "b": 2, "answers": [3, 4], "right": 0})
    write(tmp_path / "lambada.jsonl", {"text": "one two three"})
    config = EvaluationConfig(task_data=str(tmp_path), tasks=("lambada", Addition(), "lambada"))
    lambada, addition = load_tasks(config)
    assert (lambada.task.name, addition.task, addition.items) == ("lambada", Addition(), [Item(GOOD, 0)])
    assert addition.official_items == 1 and lambada.official_items == 5153
    assert load_tasks(EvaluationConfig(tasks=(Addition(),))) == []


def test_what_identifies_an_own_task_are_its_fields_and_its_code_beside_the_questions(tmp_path):
    data = write(tmp_path / "addition.jsonl", {"a": 1, "b": 2, "answers": [3, 4], "right": 0})

    def digest(task):
        loaded = load_task(task, str(data))
        return loaded.items_digest(np.arange(len(loaded.items)))

    code = "from dataclasses import dataclass\nfrom jaxformer.experiment import Item, Option, Task\n"
    code += "@dataclass(frozen=True)\nclass Addition(Task):\n    name: str = 'addition'\n    options: int = 2\n"
    code += "    def to_item(self, row):\n        return Item((Option('a', ' b'), Option('a', ' c')), 0)\n"
    digests = {}
    for name, change in (("same", ""), ("again", "# why\n"), ("other", "Y = 1\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(code + change)
        load_parts(tmp_path / name / "mine.py")
        (task,) = [each for each in own_tasks() if type(each)._source.path.parent.name == name]  # pyright: ignore
        digests[name] = digest(task)
    assert digests["same"] == digests["again"] != digests["other"]
    assert len({digest(Addition()), digest(Addition(primary="acc_norm")), digest(Addition(version=2))}) == 3


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none", "to_item must return an Item, not None"),
        ("pair", r"to_item must return an Item, not \(\(Option"),
        ("list", r"its options must be a tuple of Option\(context, continuation\), not \[Option"),
        ("texts", r"its options must be a tuple of Option\(context, continuation\), not \(' 3'"),
        ("bytes", "what it holds must be texts, not "),
        ("letter", r"its answer \('A'\) must be the number of an option, from 0"),
        ("beyond", r"its answer \(2\) is not one of 2 options from 0"),
        ("three", "returning has no item of 3 options"),
        ("joined", "option 1 must begin with the space after its context"),
        ("nothing", "it has no options"),
        ("raises", r"returning: KeyError: 'missing' \(test_own_tasks\.py, line \d+\)"),
        ("refuses", "no question"),
    ],
)
def test_what_is_no_item_is_refused_in_one_line_with_its_row(tmp_path, what, message):
    path = write(tmp_path / "returning.jsonl", {"what": what})
    with pytest.raises(UserError, match=rf"^returning data {path}, line 1: {message}") as error:
        load_task(Returning(), str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (Addition("piqa"),), "'piqa' is also the name of another task; give yours another name"),
        (lambda: (Addition(), Returning("addition")), "'addition' is also the name of another task"),
        (lambda: (Addition(), "adition"), "= 'adition' is unknown; did you mean addition"),
        (lambda: Addition(), r"must be text or a tuple of \(text or Task\), not Addition\("),
        (lambda: (Addition,), "must be text or Task, not the class Addition; give Addition"),
        (lambda: (Addition("a/b"),), r"Addition\.name \('a/b'\) must be of small letters, digits and '_'"),
        (lambda: (Addition("sums_500"),), r"Addition\.name \('sums_500'\) .* nor end with a number"),
        (lambda: (Addition("validation"),), "neither 'validation'"),
        (lambda: (Addition(options=-1),), r"Addition\.options \(-1\) must be at least 0"),
        (lambda: (Addition(primary="f1"),), r"Addition\.primary = 'f1' is unknown"),
        (lambda: (Addition(primary="acc_norm", has_acc_norm=False),), r"primary = 'acc_norm' is unknown"),
    ],
)
def test_tasks_that_cannot_be_scored_side_by_side_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        EvaluationConfig(tasks=make())


def test_a_record_names_own_tasks_whether_their_code_is_known_or_not():
    config = EvaluationConfig(tasks=("piqa", Addition(word="give")))
    record = json.loads(json.dumps(to_dict(config)))
    assert from_dict(EvaluationConfig, record) == config
    assert task_names(config.tasks) == task_names(record["tasks"]) == ["piqa", "addition"]
    record["tasks"][1]["code"] = "0" * 16
    unknown = from_dict(EvaluationConfig, record)
    assert type(unknown.tasks[1]) is PartOfARecord and task_names(unknown.tasks) == ["piqa", "addition"]
    assert "tasks.1.word" in flatten(config) and not any("tasks" in name for name in flatten(config, science_only=True))
    with pytest.raises(UserError, match=r"^Addition\(.*word='give'\) is code of test_own_tasks\.py, .*--code=FILE"):
        load_task(unknown.tasks[1], "/")
