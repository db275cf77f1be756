"""Validation in nats per token and bits per byte, document by document, and the scores of tasks, item by item."""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from jaxformer.config import TrainingFailure, UserError, check_types, execution, require, require_one_of
from jaxformer.data.packing import PackingConfig, Plan, pad_rows, plan_rows, read_rows
from jaxformer.data.shards import Shards
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.devices.mesh import whole_rows
from jaxformer.evaluation.loglikelihood import CannotBeScored, Encoded, encode, score
from jaxformer.evaluation.scores import Estimate, ItemScores, chance, estimate, estimate_ratio, score_items
from jaxformer.evaluation.tasks import TASKS, TaskData, fixed_choice, load_task
from jaxformer.step import TrainState, eval_step


@dataclass(frozen=True)
class EvaluationConfig:
    """When and on how much a run is validated and its tasks are scored.

    every_steps: steps between evaluations; the last step is always evaluated.
    validation_bytes: UTF-8 bytes of validation text for each corpus, taken as whole documents, so that models with
        different tokenizers read the same text; 0 for all.
    rows_per_batch: rows that are evaluated at once; on several devices, rounded up to a multiple of them.
    task_data: a folder that holds a file named after each task, in its official format: `hellaswag.jsonl`,
        `arc_easy.parquet`, ...; or 'tfds' for what is prepared there; '' scores no tasks.
    tasks: names of the tasks, separated by commas.
    task_items: items of each task that are scored at every evaluation, a fixed choice; 0 for none before the last
        step, which scores all.
    sample_tokens: tokens of the text that is generated at the end; 0 for none.
    """

    every_steps: int = execution(500)
    validation_bytes: int = 0
    rows_per_batch: int = execution(8)
    task_data: str = execution("")
    tasks: str = execution("hellaswag,arc_easy,winogrande")
    task_items: int = execution(500)
    sample_tokens: int = execution(200)

    def __post_init__(self):
        check_types(self)
        for name in ("every_steps", "rows_per_batch"):
            value = getattr(self, name)
            require(1 <= value < 1 << 31, f"evaluation.{name} ({value}) must be at least 1 and less than 2**31")
        for name in ("validation_bytes", "task_items", "sample_tokens"):
            require(getattr(self, name) >= 0, f"evaluation.{name} ({getattr(self, name)}) must not be negative")
        require(self.sample_tokens < 1 << 31, f"evaluation.sample_tokens ({self.sample_tokens}) must be below 2**31")
        for name in task_names(self.tasks):
            require_one_of("evaluation.tasks", name, TASKS)


def task_names(text: str) -> list[str]:
    """Returns the names in a text that separates them by commas, each once."""
    return list(dict.fromkeys(name for name in re.split(r"[,\s]+", text) if name))


class ValidationSet(NamedTuple):
    """Validation documents of one corpus, planned into rows.

    documents: int64, their indices in the shards.
    """

    name: str
    shards: Shards
    documents: np.ndarray
    plan: Plan


class DocumentLosses(NamedTuple):
    """The loss of each validation document of one corpus.

    documents: int64, indices in the corpus's validation shards.
    nats: float64, cross-entropy of the document's text and its EOS.
    targets: int64, tokens in it, EOS among them.
    text_bytes: int64, UTF-8 bytes of its text.
    digest: of the corpus's sources.
    """

    name: str
    documents: np.ndarray
    nats: np.ndarray
    targets: np.ndarray
    text_bytes: np.ndarray
    digest: str


def select_validation(shards: Shards, config: EvaluationConfig, packing: PackingConfig, name: str) -> ValidationSet:
    """Returns a fixed choice of whole documents with at least the wanted bytes, or all.

    It is the same for every seed, tokenizer and packing of the training rows: validation rows are always best-fit, and
    a document never sees its neighbours, whatever `packing.document_mask` is. A longer row gives longer documents more
    context. Of a corpus that was read up to a budget they are the first ones, else they are drawn: runs on two budgets
    of a corpus are then validated on the same documents.
    """
    drawn = np.random.default_rng(0).permutation(len(shards))
    order = np.arange(len(shards)) if shards.manifest.budget else drawn
    if config.validation_bytes:
        enough = np.searchsorted(np.cumsum(shards.text_bytes[order]), config.validation_bytes) + 1
        order = order[:enough]
    plan = plan_rows(shards.tokens[order], dataclasses.replace(packing, method="best_fit"), seed=0)
    return ValidationSet(name, shards, order, dataclasses.replace(plan, documents=order[plan.documents]))


def validate(state: TrainState, sets: Sequence[ValidationSet], config: EvaluationConfig) -> list[DocumentLosses]:
    """Returns the loss of every document of each set.

    Raises:
        TrainingFailure: a loss is not finite.
    """
    return [_document_losses(state, chosen, config.rows_per_batch) for chosen in sets]


def validation_scalars(losses: Sequence[DocumentLosses]) -> dict[str, float]:
    """Returns `loss`, nats per target, and `bits_per_byte` over all documents, each with its `_standard_error`.

    Of several corpora it gives those of each too, behind its name: `wiki/loss`. Bits per byte are the bits that the
    model needs for the documents' text and the EOS that ends each, divided by the text's UTF-8 bytes; unlike nats per
    token they compare models with different tokenizers. Standard errors are those of documents drawn independently.
    """
    scalars = {}
    for prefix, chosen in [("", losses), *((f"{one.name}/", [one]) for one in losses if len(losses) > 1)]:
        estimates = {
            "loss": estimate_ratio([(one.nats, one.targets) for one in chosen]),
            "bits_per_byte": estimate_ratio([(one.nats / math.log(2), one.text_bytes) for one in chosen]),
        }
        scalars |= flatten_estimates({prefix + name: value for name, value in estimates.items()})
    return scalars


def flatten_estimates(estimates: dict[str, Estimate]) -> dict[str, float]:
    """Returns each mean by its name, and each standard error by the name and `_standard_error`."""
    means = {name: value.mean for name, value in estimates.items()}
    return means | {f"{name}_standard_error": value.standard_error for name, value in estimates.items()}


def _document_losses(state: TrainState, chosen: ValidationSet, rows_per_batch: int) -> DocumentLosses:
    name, shards, documents, plan = chosen
    rows_per_batch = whole_rows(state.mesh, rows_per_batch)
    waiting = []
    for first in range(0, len(plan), rows_per_batch):
        batch = read_rows(shards, plan, np.arange(first, min(first + rows_per_batch, len(plan))))
        waiting.append(_jitted_eval_step()(state, pad_rows(batch, rows_per_batch)))
    rows = np.concatenate(jax.device_get(waiting))
    if not np.isfinite(rows).all():
        raise TrainingFailure(f"the loss of validation documents of {name} is not finite")
    # Pieces stand one behind another from the beginning of their row, and what follows them weighs nothing.
    before = np.cumsum(plan.lengths, dtype=np.int64) - plan.lengths
    row_of = np.repeat(np.arange(len(plan)), np.diff(plan.rows))
    begins = row_of * plan.row_length + before - before[plan.rows[:-1]][row_of]
    nats_of_pieces = np.add.reduceat(rows.reshape(-1).astype(np.float64), begins)
    nats = np.bincount(plan.documents, nats_of_pieces, minlength=len(shards))
    return DocumentLosses(
        name,
        documents,
        nats[documents],
        shards.tokens[documents] + 1,
        shards.text_bytes[documents],
        shards.manifest.source_digest,
    )


@functools.cache
def _jitted_eval_step():
    return jax.jit(eval_step)


class EncodedTask(NamedTuple):
    """A task as token requests: those of all options of all items, one after another."""

    data: TaskData
    encoded: Encoded

    def requests(self, chosen: np.ndarray) -> np.ndarray:
        """Returns the numbers of the requests of some items, int64."""
        first = np.cumsum([0] + [len(item.options) for item in self.data.items])
        return np.concatenate([np.arange(first[i], first[i + 1]) for i in chosen.tolist()])


class TaskScores(NamedTuple):
    """The scores of some items of a task.

    chosen: int64, their indices.
    log_likelihoods: nats of each item's options.
    items: their scores.
    """

    task: EncodedTask
    chosen: np.ndarray
    log_likelihoods: list[np.ndarray]
    items: ItemScores

    @property
    def name(self) -> str:
        """The task's name, and how many items were scored unless all were."""
        data = self.task.data
        return data.task.name if len(self.chosen) == len(data.items) else f"{data.task.name}_{len(self.chosen)}"

    def among(self, chosen: np.ndarray) -> "TaskScores":
        """Returns the scores of some of these items."""
        places = np.searchsorted(self.chosen, chosen)
        lls = [self.log_likelihoods[i] for i in places.tolist()]
        return TaskScores(self.task, chosen, lls, ItemScores(*(values[places] for values in self.items)))

    def estimates(self) -> dict[str, Estimate]:
        """Returns the mean of each score that is of use for the task."""
        task = self.task.data.task
        unused = set() if task.has_acc_norm else {"acc_norm"}
        unused |= {"margin"} if task.options == 1 else set()
        return {name: estimate(values) for name, values in self.items._asdict().items() if name not in unused}

    def chance(self) -> float | None:
        """Returns the accuracy of guessing; None where items have one option."""
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
    names = task_names(config.tasks) if config.task_data else []
    data, is_file = config.task_data, os.path.isfile(os.path.expanduser(config.task_data))
    require(
        not is_file or len(names) <= 1,
        f"task data {data}: one file for {len(names)} tasks ({', '.join(names)}); give a folder, or a task",
    )
    return [load_task(name, config.task_data) for name in names]


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
    vocabulary_size: int,
    items: int | None = None,
    label: str | None = None,
) -> TaskScores:
    """Returns the scores of a fixed choice of so many items of a task, or of all.

    Args:
        packing, vocabulary_size, label: as in `cloze.score`.

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
        vocabulary_size=vocabulary_size,
        label=label,
    )
    asked = [data.items[i] for i in chosen.tolist()]
    begins = np.cumsum([0] + [len(item.options) for item in asked])
    log_likelihoods = np.split(nats, begins[1:-1])
    gold = begins[:-1] + [item.gold for item in asked]
    return TaskScores(task, chosen, log_likelihoods, score_items(asked, log_likelihoods, is_greedy[gold]))
