"""Validation in nats per token and bits per byte, document by document."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxformer.config import TrainingFailure
from jaxformer.data.packing import PackingConfig, Plan, pad_rows, plan_rows, read_rows
from jaxformer.data.shards import Shards
from jaxformer.devices.mesh import whole_rows
from jaxformer.evaluation.config import EvaluationConfig
from jaxformer.evaluation.scores import estimate_ratio, flatten_estimates
from jaxformer.step import TrainState, eval_step


class ValidationSet(NamedTuple):
    """Validation documents of one corpus, planned into rows."""

    name: str
    shards: Shards
    documents: np.ndarray
    """int64, their indices in the shards."""
    plan: Plan


class DocumentLosses(NamedTuple):
    """The loss of each validation document of one corpus."""

    name: str
    documents: np.ndarray
    """int64, indices in the corpus's validation shards."""
    nats: np.ndarray
    """float64, cross-entropy of the document's text and its EOS."""
    targets: np.ndarray
    """int64, tokens in it, including EOS."""
    text_bytes: np.ndarray
    """int64, UTF-8 bytes of its text."""
    digest: str
    """Digest of the corpus's sources."""
    sources: np.ndarray
    """int64, equal for pieces of one file and documents with one key, which do not vary independently."""


def select_validation(shards: Shards, config: EvaluationConfig, packing: PackingConfig, name: str) -> ValidationSet:
    """Returns a fixed choice of whole documents with at least the wanted bytes, or all.

    It is the same for every seed, tokenizer and packing of the training rows: validation rows are always best-fit, and
    a document never sees its neighbours, for any `packing.document_mask`. A longer row gives longer documents more
    context. For a corpus read up to a budget they are the first documents, else they are drawn at random. So runs on
    two budgets of a corpus are validated on the same documents.
    """
    drawn = np.random.default_rng(0).permutation(len(shards))
    order = np.arange(len(shards)) if shards.manifest.budget else drawn
    if config.validation_bytes:
        enough = np.searchsorted(np.cumsum(shards.text_bytes[order]), config.validation_bytes) + 1
        order = order[:enough]
    plan = plan_rows(shards.tokens, dataclasses.replace(packing, method="best_fit"), seed=0, documents=order)
    return ValidationSet(name, shards, order, plan)


def validate(state: TrainState, sets: Sequence[ValidationSet], config: EvaluationConfig) -> list[DocumentLosses]:
    """Returns the loss of every document of each set.

    Raises:
        TrainingFailure: a loss is not finite.
    """
    return [_document_losses(state, chosen, config.rows_per_batch) for chosen in sets]


def validation_scalars(losses: Sequence[DocumentLosses]) -> dict[str, float]:
    """Returns `loss`, nats per target, and `bits_per_byte` over all documents, each with its `_standard_error`.

    With several corpora also of each, after its name: `wiki/loss`. Bits per byte are the bits that the model needs for
    the documents' text and the EOS that ends each, divided by the text's UTF-8 bytes; unlike nats per token they
    compare models with different tokenizers. Standard errors assume independently drawn sources, each with all of its
    documents.
    """
    scalars = {}
    for prefix, chosen in [("", losses), *((f"{one.name}/", [one]) for one in losses if len(losses) > 1)]:
        estimates = {
            "loss": estimate_ratio([_by_source(one, one.nats, one.targets) for one in chosen]),
            "bits_per_byte": estimate_ratio(
                [_by_source(one, one.nats / math.log(2), one.text_bytes) for one in chosen]
            ),
        }
        scalars |= flatten_estimates({prefix + name: value for name, value in estimates.items()})
    return scalars


def _by_source(losses: DocumentLosses, above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the parts of a ratio, summed over the documents of each source; unchanged if none has two."""
    distinct, source_of = np.unique(losses.sources, return_inverse=True)
    if len(distinct) == len(losses.sources):
        return above, below
    return np.bincount(source_of, above), np.bincount(source_of, below)


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
    # Pieces follow each other from the beginning of their row, and the rest has no weight.
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
        shards.sources[documents],
    )


@functools.cache
def _jitted_eval_step():
    return jax.jit(eval_step)
