"""The data of a run: prepared, planned into rows and checked against the configuration."""

from typing import NamedTuple

import numpy as np

from jaxformer.config import require
from jaxformer.data.corpus import Documents, load_documents, part_names, parts_of
from jaxformer.data.packing import PackingConfig, Plan, packing_report, plan_rows
from jaxformer.data.preparation import prepare, unfilled_budget
from jaxformer.data.shards import Shards, open_shards
from jaxformer.data.tokenizer import Tokenizer, prepare_tokenizer
from jaxformer.evaluation.task_scores import EncodedTask, encode_task, load_tasks
from jaxformer.evaluation.validation import ValidationSet, select_validation
from jaxformer.experiment.experiment import Experiment
from jaxformer.host.cache import cache_folder
from jaxformer.host.console import print_notice


class Data(NamedTuple):
    """All that a run reads: of each corpus training shards, their plan and weight, and a validation set; and tasks."""

    tokenizer: Tokenizer
    shards: list[Shards]
    plans: list[Plan]
    weights: list[float]
    validation: list[ValidationSet]
    tasks: list[EncodedTask]


def digests(data: Data) -> dict[str, str]:
    """Returns what identifies the data and its order, by name, for a run to resume on nothing else."""
    of_parts = [
        {f"corpus.{i}": shards.manifest.corpus_digest, f"plan.{i}": plan.digest()}
        | ({f"commit.{i}": shards.manifest.commit} if shards.manifest.commit else {})
        for i, (shards, plan) in enumerate(zip(data.shards, data.plans, strict=True))
    ]
    return {"tokenizer": data.tokenizer.digest} | {name: value for part in of_parts for name, value in part.items()}


def task_digests(data: Data) -> dict[str, str]:
    """Returns what identifies the items of each task, by its name."""
    return {task.task.name: task.items_digest(np.arange(len(task.items))) for task, _ in data.tasks}


def open_corpora(experiment: Experiment, *, newest: bool = False) -> tuple[list[Documents], Tokenizer]:
    """Returns the corpora of an experiment and their tokenizer, which is trained if it is not in the cache.

    Args:
        newest: looks up again at which commits branches of the Hub stand.

    Raises:
        UserError: a corpus is not there, or the tokenizer does not fit the model.
    """
    corpora = [load_documents(config, newest=newest) for config in parts_of(experiment.corpus)]
    tokenizer = prepare_tokenizer(corpora, experiment.tokenizer, cache_folder())
    require(
        tokenizer.vocabulary_size <= experiment.model.vocabulary_size,
        f"the tokenizer's vocabulary ({tokenizer.vocabulary_size}) must not exceed "
        f"model.vocabulary_size ({experiment.model.vocabulary_size})",
    )
    return corpora, tokenizer


def prepare_data(experiment: Experiment, seed: int) -> Data:
    """Returns the data of a run, tokenised and planned; prepares what is not in the cache."""
    packing = experiment.packing
    tasks = load_tasks(experiment.evaluation)  # Refused before hours of preparation.
    corpora, tokenizer = open_corpora(experiment)
    encoded_tasks = [encode_task(task, tokenizer, packing.row_length) for task in tasks]
    shards, plans, validation = [], [], []
    for name, documents in zip(part_names(experiment.corpus), corpora, strict=True):
        folder = prepare(documents, tokenizer, cache_folder())
        training = open_shards(folder, "train")
        manifest = training.manifest
        for what, ours, theirs in (
            ("tokenizer", tokenizer.digest, manifest.tokenizer_digest),
            ("corpus", documents.digest, manifest.corpus_digest),
            ("vocabulary_size", tokenizer.vocabulary_size, manifest.vocabulary_size),
            ("bos_id", tokenizer.bos_id, manifest.bos_id),
            ("eos_id", tokenizer.eos_id, manifest.eos_id),
        ):
            require(
                ours == theirs,
                f"token shards {folder}: made with another {what} ({theirs!s:.12}, not {ours!s:.12}); delete the "
                "folder and run again to prepare it anew",
            )
        plan = plan_rows(training.tokens, packing, seed=seed)
        fill = packing_report(plan, training.tokens).fill
        require(
            fill >= packing.minimum_fill,
            f"corpus {documents.origin}: packing fills {fill:.1%} of the rows, less than packing.minimum_fill "
            f"({packing.minimum_fill:.0%}); {_fuller(packing)}, or lower the minimum",
        )
        print_notice(unfilled_budget(manifest))
        shards.append(training)
        plans.append(plan)
        validation.append(select_validation(open_shards(folder, "validation"), experiment.evaluation, packing, name))
    rows = sum(map(len, plans))
    require(
        rows >= experiment.training.rows_per_step,
        f"corpus {experiment.corpus.path or experiment.corpus.kind}: {rows} rows of {packing.row_length} tokens "
        f"are fewer than training.rows_per_step ({experiment.training.rows_per_step})",
    )
    weights = [config.weight for config in parts_of(experiment.corpus)]
    return Data(tokenizer, shards, plans, weights, validation, encoded_tasks)


def _fuller(packing: PackingConfig) -> str:
    """Returns what fills the rows better."""
    if packing.documents_per_row:
        return f"raise packing.documents_per_row ({packing.documents_per_row})"
    return f"shorten packing.row_length ({packing.row_length})"
