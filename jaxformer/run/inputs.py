"""The data of a run: prepared, planned into rows and checked against the configuration."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.config import require
from jaxformer.data.contamination import Contamination, find_contamination
from jaxformer.data.corpus import Documents, load_documents, part_names, parts_of
from jaxformer.data.overlap import held_out_elsewhere
from jaxformer.data.packing import PackingConfig, Plan, packing_report, plan_rows
from jaxformer.data.phases import deal_documents
from jaxformer.data.preparation import prepare, unfilled_budget
from jaxformer.data.round_trip import RoundTrip, find_round_trip
from jaxformer.data.shards import Shards, open_shards
from jaxformer.data.tokenizer import Tokenizer, prepare_tokenizer
from jaxformer.evaluation.task_scores import EncodedTask, encode_task, load_tasks
from jaxformer.evaluation.tasks import TaskData
from jaxformer.evaluation.validation import ValidationSet, select_validation
from jaxformer.experiment.experiment import Experiment, spans_of
from jaxformer.host.cache import cache_folder
from jaxformer.host.console import print_notice


class PreparedCorpus(NamedTuple):
    """A corpus as token shards, and the documents that are left out."""

    name: str
    training: Shards
    validation: Shards
    held_out_elsewhere: np.ndarray
    """int64, indices of training documents that another corpus validates on; they are removed."""
    contamination: dict[str, Contamination]
    """What the training documents share with each task."""
    decontaminate: bool
    """Whether documents that share text with a task are removed."""
    round_trip: RoundTrip | None
    """The text that the tokenizer loses; None if it never loses any."""

    @property
    def removed(self) -> np.ndarray:
        """The indices of the removed training documents, int64, ascending."""
        found = [each.documents for each in self.contamination.values()] if self.decontaminate else []
        return np.unique(np.concatenate([self.held_out_elsewhere, *found]))

    @property
    def documents(self) -> np.ndarray:
        """The indices of the documents that are trained on, int64, ascending."""
        return np.delete(np.arange(len(self.training)), self.removed)

    @property
    def tokens(self) -> int:
        """The tokens that are trained on, without BOS and EOS."""
        return int(self.training.tokens[self.documents].sum())

    def describe(self) -> list[str]:
        """Returns a line for each reason to remove training documents, removed or not."""
        lines, held_out = [], self.held_out_elsewhere
        if len(held_out):
            lines.append(
                f"{len(held_out):,} of {len(self.training):,} training documents "
                f"({int(self.training.tokens[held_out].sum()):,} tokens) removed: other corpora validate on them"
            )
        for name, task in self.contamination.items():
            lines.append(f"{name}: {task.describe(is_removed=self.decontaminate)}")
        return lines


class Data(NamedTuple):
    """All that a run reads: corpora with their training rows and validation sets, and tasks."""

    tokenizer: Tokenizer
    corpora: list[PreparedCorpus]
    plans: dict[int, list[Plan]]
    """By row length, the rows of each corpus."""
    validation: list[ValidationSet]
    tasks: list[EncodedTask]

    @property
    def shards(self) -> list[Shards]:
        """The training shards of each corpus."""
        return [corpus.training for corpus in self.corpora]


def digests(data: Data) -> dict[str, str]:
    """Returns what identifies the data and its order, by name; a run resumes only with the same."""
    found = {"tokenizer": data.tokenizer.digest}
    for i, corpus in enumerate(data.corpora):
        manifest = corpus.training.manifest
        found[f"corpus.{i}"] = manifest.corpus_digest
        for row_length, plans in data.plans.items():
            found[f"plan.{i}.{row_length}" if len(data.plans) > 1 else f"plan.{i}"] = plans[i].digest()
        if manifest.commit:
            found[f"commit.{i}"] = manifest.commit
        if len(corpus.removed):
            found[f"corpus.{i}.removed"] = hashlib.sha256(corpus.removed.astype("<i8").tobytes()).hexdigest()
    return found


def contents(data: Data) -> dict[str, dict]:
    """Returns a description of each corpus, by its name.

    It has the origin, the removed training documents, the text shared with tasks, and the text that the tokenizer
    loses.
    """
    found = {}
    for corpus in data.corpora:
        found[corpus.name] = {
            "origin": corpus.training.manifest.origin,
            "licence": corpus.training.manifest.licence,
            "commit": corpus.training.manifest.commit,
            "training_documents": len(corpus.documents),
            "training_tokens": corpus.tokens,
            "removed_documents": len(corpus.removed),
            "held_out_elsewhere": len(corpus.held_out_elsewhere),
            "contamination": {
                name: {"ngram_words": task.ngram_words, "items": task.shared_items, "documents": len(task.documents)}
                for name, task in corpus.contamination.items()
            },
            "round_trip": corpus.round_trip and dataclasses.asdict(corpus.round_trip),
        }
    return found


def task_digests(data: Data) -> dict[str, str]:
    """Returns what identifies the items of each task, by its name."""
    return {task.task.name: task.items_digest(np.arange(len(task.items))) for task, _ in data.tasks}


def open_corpora(experiment: Experiment, *, newest: bool = False) -> tuple[list[Documents], Tokenizer]:
    """Returns the corpora of an experiment and their tokenizer, which is trained if it is not in the cache.

    Args:
        newest: looks up the commits of Hub branches again.

    Raises:
        UserError: a corpus is missing, the tokenizer does not fit the model, or one would be trained for weights that
            have one.
    """
    require(
        not experiment.init_from or bool(experiment.tokenizer.path),
        f"init_from {experiment.init_from}: tokenizer.path is empty, and another tokenizer would be trained; take that "
        "of the weights, jaxformer.run.init_from.with_tokenizer(experiment, folder)",
    )
    corpora = [load_documents(config, newest=newest) for config in parts_of(experiment.corpus)]
    tokenizer = prepare_tokenizer(corpora, experiment.tokenizer, cache_folder(), newest=newest)
    most = -(-tokenizer.vocabulary_size // 128) * 128  # Rows in multiples of 128 are the fastest.
    require(
        tokenizer.vocabulary_size <= experiment.model.vocabulary_size,
        f"the tokenizer's vocabulary ({tokenizer.vocabulary_size}) must not exceed "
        f"model.vocabulary_size ({experiment.model.vocabulary_size}); set that to {most} or more",
    )
    return corpora, tokenizer


def prepare_corpora(
    experiment: Experiment,
    corpora: Sequence[Documents],
    tokenizer: Tokenizer,
    tasks: Sequence[TaskData],
    *,
    beam: Sequence[str] | None = None,
) -> list[PreparedCorpus]:
    """Returns the corpora of an experiment as token shards, and what is left out of their documents.

    Args:
        tasks: to search for in the training documents.
        beam: as in `prepare`.

    Raises:
        UserError: as of `prepare`; shards are damaged; or nothing is left to train on.
    """
    cache = cache_folder()
    round_trips = [find_round_trip(documents, tokenizer, cache) for documents in corpora]
    for name, trip in zip(part_names(experiment.corpus), round_trips, strict=True):
        print_notice(f"corpus {name}: {trip}" if trip and trip.changed_documents else None)
    processes = experiment.tokenizer.processes
    folders = [prepare(documents, tokenizer, cache, processes=processes, beam=beam) for documents in corpora]
    training = [open_shards(folder, "train") for folder in folders]
    validation = [open_shards(folder, "validation") for folder in folders]
    texts = {task.task.name: task.texts() for task in tasks}
    prepared = []
    for i, (name, documents, shards) in enumerate(zip(part_names(experiment.corpus), corpora, training, strict=True)):
        _check_shards(documents, tokenizer, shards)
        others = validation[:i] + validation[i + 1 :]
        corpus = PreparedCorpus(
            name,
            shards,
            validation[i],
            held_out_elsewhere(shards, others, cache) if others else np.empty(0, np.int64),
            find_contamination(shards, tokenizer, texts, cache) if texts else {},
            experiment.corpus.decontaminate or documents.config.decontaminate,
            round_trips[i],
        )
        require(
            len(corpus.removed) < len(shards),
            f"corpus {shards.manifest.origin}: all {len(shards):,} training documents are removed, since other corpora "
            "validate on them or tasks contain them; lower the others' validation_share, or leave the corpus out",
        )
        prepared.append(corpus)
    return prepared


def _check_shards(documents: Documents, tokenizer: Tokenizer, shards: Shards) -> None:
    """Raises `UserError` unless shards were made from a corpus by a tokenizer."""
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
            "folder and run again to prepare it again",
        )


def prepare_data(experiment: Experiment, seed: int) -> Data:
    """Returns the data of a run, tokenised and planned; prepares what is not in the cache.

    Raises:
        UserError: as of `open_corpora` and `prepare_corpora`, or there is too little text for the rows.
    """
    packing = experiment.packing
    tasks = load_tasks(experiment.evaluation)  # Errors come before hours of preparation.
    documents, tokenizer = open_corpora(experiment)
    encoded_tasks = [encode_task(task, tokenizer, packing.row_length) for task in tasks]
    corpora = prepare_corpora(experiment, documents, tokenizer, tasks)
    plans = _plan_corpora(experiment, corpora, seed)
    for corpus in corpora:
        print_notice(unfilled_budget(corpus.training.manifest))
    validation = [select_validation(each.validation, experiment.evaluation, packing, each.name) for each in corpora]
    return Data(tokenizer, corpora, plans, validation, encoded_tasks)


def _plan_corpora(experiment: Experiment, corpora: Sequence[PreparedCorpus], seed: int) -> dict[int, list[Plan]]:
    """Returns the rows of each corpus by row length; a document is in rows of one length.

    Raises:
        UserError: there is too little text for the rows, or it fills too little of them.
    """
    spans, dealt = spans_of(experiment), []
    for i, corpus in enumerate(corpora):
        shares = dict.fromkeys((span.row_length for span in spans), 0.0)
        for span in spans:
            shares[span.row_length] += span.steps * span.tokens_per_step * span.weights[i] / sum(span.weights)
        dealt.append(deal_documents(corpus.training.tokens, corpus.documents, shares, seed=seed))
        for row_length in shares:
            is_read = any(span.weights[i] for span in spans if span.row_length == row_length)
            require(
                len(dealt[i][row_length]) > 0 or not is_read,
                f"corpus {corpus.training.manifest.origin}: its {len(corpus.documents):,} documents are too few to "
                f"fill rows of {row_length} tokens too; give it more text, or its phases rows of one length",
            )
    packings = {length: dataclasses.replace(experiment.packing, row_length=length) for length in dealt[0]}
    plans = {
        length: [
            plan_rows(corpus.training.tokens, packing, seed=seed, documents=documents[length])
            for corpus, documents in zip(corpora, dealt, strict=True)
        ]
        for length, packing in packings.items()
    }
    for span in spans:
        rows = sum(len(plan) for plan, weight in zip(plans[span.row_length], span.weights, strict=True) if weight)
        require(
            rows >= span.rows_per_step,
            f"corpus {experiment.corpus.path or experiment.corpus.kind}: {rows} rows of {span.row_length} tokens "
            f"are fewer than training.rows_per_step ({span.rows_per_step}); give it more text",
        )
    for length, packing in packings.items():
        for corpus, documents, plan in zip(corpora, dealt, plans[length], strict=True):
            if len(plan):
                _check_fill(corpus, plan, documents[length], packing)
    return plans


def _check_fill(corpus: PreparedCorpus, plan: Plan, documents: np.ndarray, packing: PackingConfig) -> None:
    """Raises `UserError` with the cause if the rows are filled too little."""
    report = packing_report(plan, corpus.training.tokens, documents)
    inputs = int(plan.lengths.sum(dtype=np.int64))
    if packing.documents_per_row and report.documents_per_row > 0.9 * packing.documents_per_row:
        cause = f"raise packing.documents_per_row ({packing.documents_per_row})"
    elif len(plan) == -(-inputs // packing.row_length):  # No packing needs fewer rows.
        cause = f"{report.documents:,} training documents of {inputs:,} tokens are too few; give it more text"
    else:
        cause = f"shorten packing.row_length ({packing.row_length})"
    require(
        report.fill >= packing.minimum_fill,
        f"corpus {corpus.training.manifest.origin}: packing fills {report.fill:.1%} of the rows ({report.rows:,} of "
        f"{packing.row_length} tokens), less than packing.minimum_fill ({packing.minimum_fill:.0%}); {cause}, or lower "
        "the minimum",
    )
