"""The scores of tasks, item by item."""

import os
from typing import NamedTuple

import numpy as np

from jaxformer.config import UserError, require
from jaxformer.data.packing import PackingConfig
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.evaluation.config import EvaluationConfig, task_names
from jaxformer.evaluation.loglikelihood import CannotBeScored, Encoded, encode, score
from jaxformer.evaluation.scores import (
    Estimate,
    ItemScores,
    chance,
    estimate,
    score_items,
)
from jaxformer.evaluation.tasks import TaskData, fixed_choice, load_task
from jaxformer.host.paths import expanded
from jaxformer.step import TrainState


class EncodedTask(NamedTuple):
    """A task as token requests, for all options of all items in order."""

    data: TaskData
    encoded: Encoded

    def requests(self, chosen: np.ndarray) -> np.ndarray:
        """Returns the numbers of the requests of some items, int64."""
        first = np.cumsum([0] + [len(item.options) for item in self.data.items]).tolist()
        return np.concatenate([np.arange(first[i], first[i + 1]) for i in chosen.tolist()])


class TaskScores(NamedTuple):
    """The scores of some items of a task."""

    task: EncodedTask
    chosen: np.ndarray
    """int64, their indices."""
    log_likelihoods: list[np.ndarray]
    """Nats of each item's options."""
    items: ItemScores
    """Their scores."""

    @property
    def name(self) -> str:
        """The task's name, with the number of scored items unless all were."""
        return self.task.data.result_name(self.chosen)

    def among(self, chosen: np.ndarray) -> "TaskScores":
        """Returns the scores of some of these items."""
        places = np.searchsorted(self.chosen, chosen)
        lls = [self.log_likelihoods[i] for i in places.tolist()]
        return TaskScores(self.task, chosen, lls, ItemScores(*(values[places] for values in self.items)))

    def estimates(self) -> dict[str, Estimate]:
        """Returns the mean of each score that is useful for the task."""
        task = self.task.data.task
        unused = set() if task.has_acc_norm else {"acc_norm"}
        unused |= {"margin"} if task.options == 1 else set()
        return {name: estimate(values) for name, values in self.items._asdict().items() if name not in unused}

    def chance(self) -> float | None:
        """Returns the accuracy of guessing; None if items have one option."""
        items = [self.task.data.items[i] for i in self.chosen.tolist()]
        return None if self.task.data.task.options == 1 else chance(items)

    def requests(self) -> np.ndarray:
        """Returns the numbers of the items' requests."""
        return self.task.requests(self.chosen)


def load_tasks(config: EvaluationConfig) -> list[TaskData]:
    """Returns the tasks of a configuration with their items; none without data.

    Raises:
        UserError: as of `load_task`.
    """
    tasks = task_names(config.tasks) if isinstance(config.tasks, str) else dict.fromkeys(config.tasks)
    tasks = list(tasks) if config.task_data else []
    data, is_file = config.task_data, os.path.isfile(expanded(config.task_data))
    require(
        not is_file or len(tasks) <= 1,
        f"task data {data}: one file for {len(tasks)} tasks ({', '.join(task_names(tasks))}); give a folder, or a task",
    )
    return [load_task(task, config.task_data) for task in tasks]


def encode_task(data: TaskData, tokenizer: Tokenizer, row_length: int) -> EncodedTask:
    """Returns the requests of a task.

    Raises:
        UserError: a continuation is longer than a row.
    """
    try:
        return EncodedTask(data, encode([each for item in data.items for each in item.options], tokenizer, row_length))
    except CannotBeScored as error:
        ends = np.cumsum([len(item.options) for item in data.items])
        row = int(np.searchsorted(ends, error.number, side="right")) + 1
        raise UserError(
            f"{data.task.name} data {data.source}, row {row}: {error}; leave the task out, or raise packing.row_length"
        ) from error


def score_task(
    state: TrainState,
    task: EncodedTask,
    packing: PackingConfig,
    *,
    rows_per_batch: int,
    items: int | None = None,
    label: str | None = None,
) -> TaskScores:
    """Returns the scores of a fixed choice of so many items of a task, or of all.

    Args:
        packing, label: as in `loglikelihood.score`.

    Raises:
        TrainingFailure: a log-likelihood is not finite.
    """
    data = task.data
    chosen = fixed_choice(len(data.items), items)
    nats, is_greedy = score(
        state,
        [task.encoded.requests[number] for number in task.requests(chosen).tolist()],
        packing,
        rows_per_batch=rows_per_batch,
        label=label,
    )
    scored = [data.items[i] for i in chosen.tolist()]
    begins = np.cumsum([0] + [len(item.options) for item in scored])
    log_likelihoods = np.split(nats, begins[1:-1])
    gold = begins[:-1] + [item.gold for item in scored]
    return TaskScores(task, chosen, log_likelihoods, score_items(scored, log_likelihoods, is_greedy[gold]))
