"""Tasks in cloze form: a question has a few options, and a model chooses the one that it finds likeliest.

A further published task needs a function from a row to an `Item`, in `items.py`, and a line in `TASKS`; your own task
is a `Task` in an experiment file.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxformer.config import UserError, check_fields, require, require_one_of
from jaxformer.data.globs import has_suffix
from jaxformer.data.records import SUFFIXES, good_records, open_tfds, read_jsonl, read_parquet, read_tfds
from jaxformer.evaluation import items
from jaxformer.evaluation.items import Item, checked
from jaxformer.host.digests import file_digest
from jaxformer.host.paths import expanded
from jaxformer.record import Part, describe_failure, flatten, loaded_kinds

# In place of a path: the task's dataset prepared by TFDS.
TFDS = "tfds"


@dataclass(frozen=True)
class Task(Part):
    """A versioned specification of a task. Your own, a value in `evaluation.tasks`, defines `to_item`."""

    name: str
    """Name of its results, and of the file with its rows."""
    version: int = 1
    """Increase it when the same row gives other options and the digest of its code does not show it."""
    options: int = 0
    """Options of each item; 0 for two or more, and 1 if the model must write the answer itself."""
    primary: str = "acc"
    """The accuracy to report: 'acc', or 'acc_norm' if options differ in length."""
    has_acc_norm: bool = True
    """Whether it is useful to divide by the lengths of the options."""
    official_items: ClassVar[int] = 0
    """Items in the reported split; 0 for those in its file."""
    equals: ClassVar[str] = ""
    """The task of lm-evaluation-harness whose requests these are, and its version there; '' for none."""
    tfds: ClassVar[tuple[str, str] | None] = None
    """The dataset's name in TFDS and the split, or None."""

    def __post_init__(self):
        kind = type(self).__name__
        check_fields(self, kind)
        is_free = re.fullmatch(r"[a-z][a-z0-9_]*", self.name) and not re.search(r"_\d+$|^validation$", self.name)
        require(
            bool(is_free),
            f"{kind}.name ({self.name!r}) must be of small letters, digits and '_', as files are named "
            "after it, and neither 'validation' nor end with a number behind '_'",
        )
        require(self.options >= 0, f"{kind}.options ({self.options}) must be at least 0")
        require_one_of(f"{kind}.primary", self.primary, ["acc", *(["acc_norm"] if self.has_acc_norm else [])])

    def to_item(self, row: Mapping[str, Any]) -> Item:
        """Returns the item of a row; raises `UserError` if the row is not the task's."""
        raise NotImplementedError(f"{type(self).__name__} does not define to_item(row)")


@dataclass(frozen=True, kw_only=True)
class _Published(Task):
    """A published task, with the same requests as lm-evaluation-harness."""

    official_items: int
    equals: str
    tfds: tuple[str, str] | None = None
    item_of: Callable[[Mapping[str, Any]], Item]

    def to_item(self, row):
        return self.item_of(row)


class TaskData(NamedTuple):
    """The items of a task, in the order of their rows."""

    task: Task
    items: list[Item]
    source: str
    """The file or the TFDS dataset that they were read from."""
    digest: str
    """Hexadecimal SHA-256 of the file, or of the dataset's files."""

    def texts(self) -> list[str]:
        """Returns each item's question and right answer, without the cloze form's additions, as others publish it."""
        answered = ("".join(item.options[item.gold]) for item in self.items)
        return [re.sub(r"(^|\n)Question: |\nAnswer:", "\n", text) for text in answered]

    def items_digest(self, chosen: np.ndarray) -> str:
        """Returns the hexadecimal SHA-256 of some items: equal for the very same questions."""
        questions = [[self.items[i].options, self.items[i].gold] for i in chosen.tolist()]
        own = [] if isinstance(self.task, _Published) else [flatten(self.task, science_only=True)]
        identity = [self.task.name, self.task.version, questions, *own]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @property
    def official_items(self) -> int:
        """Items in the reported split."""
        return self.task.official_items or len(self.items)

    def result_name(self, chosen: np.ndarray) -> str:
        """Returns the name of the results of some items: the task's, with their number unless they are all."""
        return self.task.name if len(chosen) == len(self.items) else f"{self.task.name}_{len(chosen)}"

    def describe_equal_options(self) -> str | None:
        """Returns a line on the items that have the same option twice; None without any."""
        equal = [number for number, item in enumerate(self.items) if item.has_equal_options]
        if not equal:
            return None
        numbers = ", ".join(map(str, equal[:5])) + (", ..." if len(equal) > 5 else "")
        return (
            f"{self.task.name} data {self.source}: {len(equal)} of {len(self.items)} items have the same option twice "
            f"(items {numbers}, from 0); of equals the first counts as chosen"
        )


def fixed_choice(total: int, count: int | None) -> np.ndarray:
    """Returns the indices of a fixed random choice, in order; all if `count` is None or too many.

    The first rows would be no fair choice: some files are sorted. A larger choice contains a smaller one.
    """
    return np.sort(np.random.default_rng(0).permutation(total)[:count])


def load_task(task: str | Task, data: str) -> TaskData:
    """Returns a task with its items.

    Args:
        task: your own, or the name of one of `TASKS`.
        data: a file of JSON lines or Parquet in the official format; a folder with such a file named after the task
            (`hellaswag.jsonl`, `arc_easy.parquet`, ...); the folder of a prepared TFDS dataset; or 'tfds' for the
            dataset that is prepared in TFDS's own folder.

    Raises:
        UserError: an unknown task, no data, or a row that is damaged or not of this task, with its file and number; or
            your own code fails.
    """
    if isinstance(task, str):
        require_one_of("task", task, TASKS)
        task = TASKS[task]
    records, source, digest = _open(task, data)
    found = []
    for where, fields in good_records(records):
        try:
            found.append(_item(task, fields))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    require(bool(found), f"{task.name} data {source}: no rows")
    return TaskData(task, found, source, digest)


def own_tasks() -> list[Task]:
    """Returns your own tasks that this process has loaded and that need no further values than their class."""
    found = []
    for kind in loaded_kinds(Task):
        with contextlib.suppress(TypeError):
            found.append(kind())  # pyright: ignore[reportCallIssue]
    return found


def _item(task: Task, row: Mapping[str, Any]) -> Item:
    """Returns the item of a row, which is one of the task's."""
    try:
        item = task.to_item(row)
    except UserError:
        raise
    except Exception as error:
        if isinstance(task, _Published):
            raise
        raise UserError(f"{task.name}: {describe_failure(task, error)}") from error
    options = len(checked(item).options)
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
        f"{what} {target}: unknown kind; give a file that ends with {', '.join(suffixes)}",
    )
    read = read_parquet if has_suffix(target.name, SUFFIXES["parquet"]) else read_jsonl
    return read([target], what), str(target), _digest(target, what)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _Published(
            "hellaswag", 1, 4, "acc_norm", item_of=items.hellaswag, official_items=10_042, equals="hellaswag 1.0",
            tfds=("hellaswag", "validation"),
        ),
        _Published(
            "arc_easy", 1, 0, item_of=items.question_and_answer, official_items=2_376, equals="arc_easy 1.0",
            tfds=("ai2_arc/ARC-Easy", "test"),
        ),
        _Published(
            "winogrande", 1, 2, item_of=items.winogrande, official_items=1_267, equals="winogrande 1.0",
            tfds=("winogrande", "validation"), has_acc_norm=False,
        ),
        _Published(
            "piqa", 1, 2, item_of=items.piqa, official_items=1_838, equals="piqa 1.0", tfds=("piqa", "validation")
        ),
        _Published(
            "openbookqa", 1, 0, "acc_norm", item_of=items.openbookqa, official_items=500, equals="openbookqa 1.0",
            tfds=("openbookqa", "test"),
        ),
        _Published(
            "arc_challenge", 1, 0, "acc_norm", item_of=items.question_and_answer, official_items=1_172,
            equals="arc_challenge 1.0", tfds=("ai2_arc/ARC-Challenge", "test"),
        ),
        _Published(
            "boolq", 1, 2, item_of=items.boolq, official_items=3_270, equals="boolq 2.0",
            tfds=("super_glue/boolq", "validation"), has_acc_norm=False,
        ),
        _Published(
            "lambada", 1, 1, item_of=items.lambada, official_items=5_153, equals="lambada_openai 1.0",
            has_acc_norm=False,
        ),
    )
}  # fmt: skip
