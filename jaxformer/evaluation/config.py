"""When and on how much a run is evaluated."""

import re
from dataclasses import dataclass

from jaxformer.config import NonNegativeInt, NonNegativeInt32, PositiveInt32, check_fields, execution, require_one_of
from jaxformer.evaluation.tasks import TASKS


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
    """Rows that are evaluated at once; on several devices, rounded up to a multiple of them."""
    task_data: str = execution("")
    """A folder that holds a file named after each task, in its official format: `hellaswag.jsonl`, `arc_easy.parquet`,
    ...; or 'tfds' for what is prepared there; '' scores no tasks.
    """
    tasks: str = execution("hellaswag,arc_easy,winogrande")
    """Names of the tasks, separated by commas."""
    task_items: NonNegativeInt = execution(500)
    """Items of each task that are scored at every evaluation, a fixed choice; 0 for none before the last step, which
    scores all.
    """
    sample_tokens: NonNegativeInt32 = execution(200)
    """Tokens of the text that is generated at the end; 0 for none."""

    def __post_init__(self):
        check_fields(self, "evaluation")
        for name in task_names(self.tasks):
            require_one_of("evaluation.tasks", name, TASKS)


def task_names(text: str) -> list[str]:
    """Returns the names in a text that separates them by commas, each once."""
    return list(dict.fromkeys(name for name in re.split(r"[,\s]+", text) if name))
