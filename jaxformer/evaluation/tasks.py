"""Tasks in cloze form: a question is a few options, and a model takes the one that it finds likeliest.

Another task takes a function from a row to an `Item`, in `items.py`, and a line in `TASKS`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.config import UserError, require, require_one_of
from jaxformer.data.globs import has_suffix
from jaxformer.data.records import SUFFIXES, good_records, open_tfds, read_jsonl, read_parquet, read_tfds
from jaxformer.evaluation import items
from jaxformer.evaluation.items import Item, checked
from jaxformer.host.digests import file_digest
from jaxformer.host.paths import expanded

# In place of a path: a dataset of TFDS that is prepared under the task's own name.
TFDS = "tfds"


@dataclass(frozen=True)
class Task:
    """A versioned specification of a task."""

    name: str
    version: int
    """Raised when the same row would give other options."""
    to_item: Callable[[Mapping[str, Any]], Item]
    """The item of an official row; raises `UserError` where the row is not one."""
    options: int
    """Options of each item; 0 for two or more, and 1 where the model is to write the answer itself."""
    official_items: int
    """Items in the split that is reported."""
    equals: str
    """The task of lm-evaluation-harness whose requests these are, and its version there."""
    tfds: tuple[str, str] | None = None
    """The dataset's name in TFDS and the split, or None."""
    primary: str = "acc"
    """The accuracy to report: 'acc', or 'acc_norm' where options differ in length."""
    has_acc_norm: bool = True
    """Whether it is of use to divide by the lengths of the options."""


class TaskData(NamedTuple):
    """The items of a task, in the order of their rows."""

    task: Task
    items: list[Item]
    source: str
    """The file or the TFDS dataset that they were read from."""
    digest: str
    """Hexadecimal SHA-256 of the file, or of the dataset's files."""

    def texts(self) -> list[str]:
        """Returns each item's question and right answer, without what the cloze form adds: as others may publish it."""
        answered = ("".join(item.options[item.gold]) for item in self.items)
        return [re.sub(r"(^|\n)Question: |\nAnswer:", "\n", text) for text in answered]

    def items_digest(self, chosen: np.ndarray) -> str:
        """Returns the hexadecimal SHA-256 of some items: equal where the very same questions are put."""
        questions = [[self.items[i].options, self.items[i].gold] for i in chosen.tolist()]
        return hashlib.sha256(json.dumps([self.task.name, self.task.version, questions]).encode()).hexdigest()

    def result_name(self, chosen: np.ndarray) -> str:
        """Returns the name of the results of some items: the task's, and how many they are unless they are all."""
        return self.task.name if len(chosen) == len(self.items) else f"{self.task.name}_{len(chosen)}"

    def describe_equal_options(self) -> str | None:
        """Returns a line on the items that have the same option twice; None where there are none."""
        equal = [number for number, item in enumerate(self.items) if item.has_equal_options]
        if not equal:
            return None
        numbers = ", ".join(map(str, equal[:5])) + (", ..." if len(equal) > 5 else "")
        return (
            f"{self.task.name} data {self.source}: {len(equal)} of {len(self.items)} items have the same option twice "
            f"(items {numbers}, from 0); of equals the first counts as chosen"
        )


def fixed_choice(total: int, count: int | None) -> np.ndarray:
    """Returns the indices of a choice that is always the same, in order; all if `count` is None or too many.

    The first rows would be no fair choice: some files are sorted. A larger choice holds a smaller one.
    """
    return np.sort(np.random.default_rng(0).permutation(total)[:count])


def load_task(name: str, data: str) -> TaskData:
    """Returns a task with its items.

    Args:
        name: one of `TASKS`.
        data: a file of JSON lines or Parquet in the official format; a folder with such a file named after the task
            (`hellaswag.jsonl`, `arc_easy.parquet`, ...); the folder of a prepared TFDS dataset; or 'tfds' for the
            dataset that is prepared in TFDS's own folder.

    Raises:
        UserError: an unknown task, no data, or a row that is damaged or not of this task, with its file and number.
    """
    require_one_of("task", name, TASKS)
    task = TASKS[name]
    records, source, digest = _open(task, data)
    found = []
    for where, fields in good_records(records):
        try:
            found.append(_of_task(task, checked(task.to_item(fields))))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    require(bool(found), f"{name} data {source}: no rows")
    return TaskData(task, found, source, digest)


def _of_task(task: Task, item: Item) -> Item:
    options = len(item.options)
    require(
        options == task.options or (not task.options and options > 1), f"{task.name} has no item of {options} options"
    )
    return item


def _digest(path: Path, what: str) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from error


def _open(task: Task, data: str):
    """Returns (records, source, digest) of a task's data."""
    what = f"{task.name} data"
    target = expanded(data)
    try:
        is_folder, is_there, is_tfds = target.is_dir(), target.exists(), (target / "features.json").is_file()
    except OSError as error:
        raise UserError(f"{what} {data}: {error.strerror}") from error
    if data == TFDS or is_tfds:
        if task.tfds is None:
            raise UserError(f"{what} {data}: TFDS has no data of this task; give a file")
        name, split = task.tfds
        builder = open_tfds(name if data == TFDS else str(target), split, what)
        files = sorted(path for path in Path(builder.data_dir).iterdir() if path.is_file())
        digest = hashlib.sha256("".join(path.name + _digest(path, what) for path in files).encode()).hexdigest()
        return read_tfds(builder, split, what), f"{builder.data_dir}, {split}", digest
    require(is_there, f"{what} {data}: no such file or folder")
    suffixes = SUFFIXES["jsonl"] + SUFFIXES["parquet"]
    if is_folder:
        found = [path for suffix in suffixes if (path := target / f"{task.name}{suffix}").is_file()]
        names = f"{task.name}.jsonl or {task.name}.parquet"
        require(bool(found), f"{what} {data}: the folder holds no {names}; add it, give a file, or leave the task out")
        require(len(found) == 1, f"{what} {data}: {' and '.join(p.name for p in found)} are one too many; keep one")
        target = found[0]
    require(
        has_suffix(target.name, suffixes),
        f"{what} {target}: of no known kind; give a file that ends with {', '.join(suffixes)}",
    )
    read = read_parquet if has_suffix(target.name, SUFFIXES["parquet"]) else read_jsonl
    return read([target], what), str(target), _digest(target, what)


TASKS = {
    task.name: task
    for task in (
        Task(
            "hellaswag", 1, items.hellaswag, 4, 10_042, "hellaswag 1.0", ("hellaswag", "validation"),
            primary="acc_norm",
        ),
        Task("arc_easy", 1, items.question_and_answer, 0, 2_376, "arc_easy 1.0", ("ai2_arc/ARC-Easy", "test")),
        Task(
            "winogrande", 1, items.winogrande, 2, 1_267, "winogrande 1.0", ("winogrande", "validation"),
            has_acc_norm=False,
        ),
        Task("piqa", 1, items.piqa, 2, 1_838, "piqa 1.0", ("piqa", "validation")),
        Task(
            "openbookqa", 1, items.openbookqa, 0, 500, "openbookqa 1.0", ("openbookqa", "test"), primary="acc_norm"
        ),
        Task(
            "arc_challenge", 1, items.question_and_answer, 0, 1_172, "arc_challenge 1.0",
            ("ai2_arc/ARC-Challenge", "test"), primary="acc_norm",
        ),
        Task("boolq", 1, items.boolq, 2, 3_270, "boolq 2.0", ("super_glue/boolq", "validation"), has_acc_norm=False),
        Task("lambada", 1, items.lambada, 1, 5_153, "lambada_openai 1.0", has_acc_norm=False),
    )
}  # fmt: skip
