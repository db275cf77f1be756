"""When and on how much a run is evaluated."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxformer.config import (
    NonNegativeInt,
    NonNegativeInt32,
    PositiveInt32,
    check_fields,
    execution,
    require,
    require_one_of,
)
from jaxformer.evaluation.tasks import TASKS, Task
from jaxformer.record import flatten


@dataclass(frozen=True)
class EvaluationConfig:
    """When and on how much a run is validated and its tasks are scored."""

    every_steps: PositiveInt32 = execution(500)
    """Steps between evaluations; the last step is always evaluated."""
    validation_bytes: NonNegativeInt = 0
    """UTF-8 bytes of validation text for each corpus, taken as whole documents, so that models with different
    tokenizers read the same text; 0 for all.
    """
    rows_per_batch: PositiveInt32 = execution(8)
    """Rows that are evaluated at once; rounded up to a multiple of the devices."""
    task_data: str = execution("")
    """A folder with a file named after each task, in its official format: `hellaswag.jsonl`, `arc_easy.parquet`, ...;
    or 'tfds' for prepared TFDS datasets; '' scores no tasks.
    """
    tasks: str | tuple[str | Task, ...] = execution("hellaswag,arc_easy,winogrande")
    """Names of the tasks, separated by commas; or a tuple of names and of `Task`s of your own."""
    task_items: NonNegativeInt = execution(500)
    """Items of each task to score at every evaluation, a fixed choice; 0 for none before the last step. The last step
    scores all.
    """
    sample_tokens: NonNegativeInt32 = execution(200)
    """Tokens of the sample at every evaluation, generated with the same seed; 0 for none."""

    def __post_init__(self):
        check_fields(self, "evaluation")
        own = [name for task in self.tasks if isinstance(task, Task) for name in task_names([task])]
        for name in own:
            is_free = name not in TASKS and own.count(name) == 1
            require(is_free, f"evaluation.tasks: {name!r} is also the name of another task; give yours another name")
        for name in task_names(self.tasks):
            require_one_of("evaluation.tasks", name, [*TASKS, *own])


def task_names(tasks: str | Sequence[str | Task | Mapping[str, Any]]) -> list[str]:
    """Returns the names of tasks, each once: from a text, or from tasks in a configuration or its record."""
    named = re.split(r"[,\s]+", tasks) if isinstance(tasks, str) else tasks
    records = (flatten(task) if isinstance(task, Task) else task for task in named)
    names = (record if isinstance(record, str) else str(record.get("name", "")) for record in records)
    return list(dict.fromkeys(filter(None, names)))
