"""The data of a run: prepared, planned into rows and checked against the configuration."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.config import require
from jaxformer.data.corpus import Documents, load_documents, part_names, parts_of
from jaxformer.data.overlap import held_out_elsewhere
from jaxformer.data.packing import PackingConfig, Plan, packing_report, plan_rows
from jaxformer.data.preparation import prepare
from jaxformer.data.shards import Shards, open_shards
from jaxformer.data.tokenizer import Tokenizer, prepare_tokenizer
from jaxformer.evaluation.task_scores import EncodedTask, encode_task, load_tasks
from jaxformer.evaluation.validation import ValidationSet, select_validation
from jaxformer.experiment.experiment import Experiment
from jaxformer.host.cache import cache_folder


class PreparedCorpus(NamedTuple):
    """A corpus as token shards, and what of it is trained on."""

    name: str
    training: Shards
    validation: Shards
    held_out_elsewhere: np.ndarray
    """int64, indices of the training documents that are validation documents of another corpus: no row holds them."""

    @property
    def documents(self) -> np.ndarray:
        """The indices of the documents that are trained on, int64, ascending."""
        return np.delete(np.arange(len(self.training)), self.held_out_elsewhere)

    def removed(self) -> dict[str, int]:
        """Returns the documents and tokens that are not trained on."""
        tokens = self.training.tokens[self.held_out_elsewhere]
        return {"documents": len(tokens), "tokens": int(tokens.sum())}

    def describe_removed(self) -> str:
        """Returns what is not trained on and why, as text; '' where there is none of it."""
        if not len(self.held_out_elsewhere):
            return ""
        removed = self.removed()
        return (
            f"{removed['documents']:,} of {len(self.training):,} training documents ({removed['tokens']:,} tokens) "
            "removed: other corpora are validated on them"
        )


class Data(NamedTuple):
    """All that a run reads: corpora, and of each its training rows, weight and validation set; and tasks."""

    tokenizer: Tokenizer
    corpora: list[PreparedCorpus]
    plans: list[Plan]
    weights: list[float]
    validation: list[ValidationSet]
    tasks: list[EncodedTask]

    @property
    def shards(self) -> list[Shards]:
        """The training shards of each corpus."""
        return [corpus.training for corpus in self.corpora]


def digests(data: Data) -> dict[str, str]:
    """Returns what identifies the data and its order, by name, for a run to resume on nothing else."""
    found = {"tokenizer": data.tokenizer.digest}
    for i, (corpus, plan) in enumerate(zip(data.corpora, data.plans, strict=True)):
        manifest = corpus.training.manifest
        found |= {f"corpus.{i}": manifest.corpus_digest, f"plan.{i}": plan.digest()}
        if manifest.commit:
            found[f"commit.{i}"] = manifest.commit
        if len(corpus.held_out_elsewhere):
            found[f"corpus.{i}.removed"] = hashlib.sha256(corpus.held_out_elsewhere.astype("<i8").tobytes()).hexdigest()
    return found


def removals(data: Data) -> dict[str, dict[str, int]]:
    """Returns the documents and tokens of each corpus that are not trained on, where there are any, by its name."""
    return {corpus.name: corpus.removed() for corpus in data.corpora if len(corpus.held_out_elsewhere)}


def task_digests(data: Data) -> dict[str, str]:
    """Returns what identifies the items of each task, by its name."""
    return {task.task.name: task.items_digest(np.arange(len(task.items))) for task, _ in data.tasks}


def open_corpora(experiment: Experiment) -> tuple[list[Documents], Tokenizer]:
    """Returns the corpora of an experiment and their tokenizer, which is trained if it is not in the cache.

    Raises:
        UserError: a corpus is not there, or the tokenizer does not fit the model.
    """
    corpora = [load_documents(config) for config in parts_of(experiment.corpus)]
    tokenizer = prepare_tokenizer(corpora, experiment.tokenizer, cache_folder())
    require(
        tokenizer.vocabulary_size <= experiment.model.vocabulary_size,
        f"the tokenizer's vocabulary ({tokenizer.vocabulary_size}) must not exceed "
        f"model.vocabulary_size ({experiment.model.vocabulary_size})",
    )
    return corpora, tokenizer


def prepare_corpora(
    experiment: Experiment, corpora: Sequence[Documents], tokenizer: Tokenizer, *, beam: Sequence[str] | None = None
) -> list[PreparedCorpus]:
    """Returns the corpora of an experiment as token shards; prepares what is not in the cache.

    Args:
        beam: as in `prepare`.

    Raises:
        UserError: as of `prepare`; or shards are damaged, or others are validated on all that a corpus trains on.
    """
    folders = [prepare(documents, tokenizer, cache_folder(), beam=beam) for documents in corpora]
    training = [open_shards(folder, "train") for folder in folders]
    validation = [open_shards(folder, "validation") for folder in folders]
    for documents, shards in zip(corpora, training, strict=True):
        _check_shards(documents, tokenizer, shards)
    prepared = []
    for i, name in enumerate(part_names(experiment.corpus)):
        others = validation[:i] + validation[i + 1 :]
        removed = held_out_elsewhere(training[i], others, cache_folder()) if others else np.empty(0, np.int64)
        require(
            len(removed) < len(training[i]),
            f"corpus {training[i].manifest.origin}: other corpora of the mixture are validated on all "
            f"{len(removed):,} documents to train on; leave it out, or lower their validation_share",
        )
        prepared.append(PreparedCorpus(name, training[i], validation[i], removed))
    return prepared


def _check_shards(documents: Documents, tokenizer: Tokenizer, shards: Shards) -> None:
    """Raises `UserError` unless shards were made of a corpus by a tokenizer."""
    manifest = shards.manifest
    for what, ours, theirs in (
        ("tokenizer", tokenizer.digest, manifest.tokenizer_digest),
        ("corpus", documents.digest, manifest.corpus_digest),
        ("vocabulary_size", tokenizer.vocabulary_size, manifest.vocabulary_size),
        ("bos_id", tokenizer.bos_id, manifest.bos_id),
        ("eos_id", tokenizer.eos_id, manifest.eos_id),
    ):
        require(
            ours == theirs,
            f"token shards {shards.folder}: made with another {what} ({theirs!s:.12}, not {ours!s:.12}); delete the "
            "folder and run again to prepare it anew",
        )


def prepare_data(experiment: Experiment, seed: int) -> Data:
    """Returns the data of a run, tokenised and planned; prepares what is not in the cache."""
    packing = experiment.packing
    tasks = load_tasks(experiment.evaluation)  # Refused before hours of preparation.
    documents, tokenizer = open_corpora(experiment)
    encoded_tasks = [encode_task(task, tokenizer, packing.row_length) for task in tasks]
    corpora = prepare_corpora(experiment, documents, tokenizer)
    plans = [plan_rows(each.training.tokens, packing, seed=seed, documents=each.documents) for each in corpora]
    rows = sum(map(len, plans))
    require(
        rows >= experiment.training.rows_per_step,
        f"corpus {experiment.corpus.path or experiment.corpus.kind}: {rows} rows of {packing.row_length} tokens "
        f"are fewer than training.rows_per_step ({experiment.training.rows_per_step}); give it more text",
    )
    for corpus, plan in zip(corpora, plans, strict=True):
        _check_fill(corpus, plan, packing)
    weights = [config.weight for config in parts_of(experiment.corpus)]
    validation = [select_validation(each.validation, experiment.evaluation, packing, each.name) for each in corpora]
    return Data(tokenizer, corpora, plans, weights, validation, encoded_tasks)


def _check_fill(corpus: PreparedCorpus, plan: Plan, packing: PackingConfig) -> None:
    """Raises `UserError` with the cause where the rows are filled too little."""
    report = packing_report(plan, corpus.training.tokens, corpus.documents)
    inputs = int(plan.lengths.sum(dtype=np.int64))
    if packing.documents_per_row and report.documents_per_row > 0.9 * packing.documents_per_row:
        cause = f"raise packing.documents_per_row ({packing.documents_per_row})"
    elif len(plan) == -(-inputs // packing.row_length):  # No packing takes fewer rows.
        cause = f"{report.documents:,} training documents of {inputs:,} tokens are too few; give it more text"
    else:
        cause = f"shorten packing.row_length ({packing.row_length})"
    require(
        report.fill >= packing.minimum_fill,
        f"corpus {corpus.training.manifest.origin}: packing fills {report.fill:.1%} of the rows ({report.rows:,} of "
        f"{packing.row_length} tokens), less than packing.minimum_fill ({packing.minimum_fill:.0%}); {cause}, or lower "
        "the minimum",
    )
