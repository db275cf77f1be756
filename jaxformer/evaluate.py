"""Validation loss in nats per target and in bits per byte of text."""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from jaxformer.config import check_types, execution, require
from jaxformer.packing import PackingConfig, Plan, pad_rows, plan_rows, read_rows
from jaxformer.shards import Shards
from jaxformer.step import TrainState, eval_step


@dataclass(frozen=True)
class EvaluationConfig:
    """When and on how much a run is validated.

    every_steps: steps between validations; the last step is always validated.
    validation_bytes: UTF-8 bytes of validation text for each corpus, taken as whole documents, so that models with
        different tokenizers read the same text; 0 for all.
    rows_per_batch: rows that are evaluated at once.
    sample_tokens: tokens of the text that is generated at the end; 0 for none.
    """

    every_steps: int = execution(500)
    validation_bytes: int = 0
    rows_per_batch: int = execution(8)
    sample_tokens: int = execution(200)

    def __post_init__(self):
        check_types(self)
        for name in ("every_steps", "rows_per_batch"):
            value = getattr(self, name)
            require(1 <= value < 1 << 31, f"evaluation.{name} ({value}) must be at least 1 and less than 2**31")
        for name in ("validation_bytes", "sample_tokens"):
            require(getattr(self, name) >= 0, f"evaluation.{name} ({getattr(self, name)}) must not be negative")
        require(self.sample_tokens < 1 << 31, f"evaluation.sample_tokens ({self.sample_tokens}) must be below 2**31")


class ValidationSet(NamedTuple):
    """Validation documents of one corpus, planned into rows."""

    shards: Shards
    plan: Plan
    text_bytes: int
    """UTF-8 bytes of the documents' text."""


def select_validation(shards: Shards, config: EvaluationConfig, packing: PackingConfig) -> ValidationSet:
    """Returns a fixed choice of whole documents with at least the wanted bytes, or all.

    It is the same for every seed, tokenizer and packing of the training rows: validation rows are always best-fit. A
    longer row gives longer documents more context.
    """
    order = np.random.default_rng(0).permutation(len(shards))
    if config.validation_bytes:
        enough = np.searchsorted(np.cumsum(shards.text_bytes[order]), config.validation_bytes) + 1
        order = order[:enough]
    plan = plan_rows(shards.tokens[order], dataclasses.replace(packing, method="best_fit"), seed=0)
    return ValidationSet(
        shards, dataclasses.replace(plan, documents=order[plan.documents]), int(shards.text_bytes[order].sum())
    )


def validate(state: TrainState, sets: list[ValidationSet], config: EvaluationConfig) -> dict[str, float]:
    """Returns `loss`, nats per target, and `bits_per_byte`, over all documents of the sets.

    Bits per byte are the bits that the model needs for the documents' text and the EOS that ends each, divided by the
    text's UTF-8 bytes; unlike nats per token they compare models with different tokenizers.
    """
    rows_per_batch = config.rows_per_batch
    sums, targets, text_bytes = [], 0.0, 0
    for shards, plan, size in sets:
        text_bytes += size
        for first in range(0, len(plan), rows_per_batch):
            batch = read_rows(shards, plan, np.arange(first, min(first + rows_per_batch, len(plan))))
            sums.append(_jitted_sum()(state, pad_rows(batch, rows_per_batch)))
            targets += float(batch.loss_weights_BT.sum())
    nats = float(np.sum(jax.device_get(sums), dtype=np.float64))
    return {"loss": nats / targets, "bits_per_byte": nats / math.log(2) / text_bytes}


@functools.cache
def _jitted_sum():
    return jax.jit(lambda state, batch: eval_step(state, batch).sum())
