"""What the benchmarks of the training step share: sizes, batches, and our step on them."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Others share the device.

import jax
import numpy as np

from jaxformer.data.packing import Batch
from jaxformer.experiment.experiment import Experiment, make_state
from jaxformer.experiment.resolution import load_experiment
from jaxformer.flops import parameter_count
from jaxformer.step import compile_step

RESULTS = Path(__file__).parent / "results"


class Size(NamedTuple):
    """A model, and the batches on which it is measured."""

    vocabulary_size: int
    width: int
    depth: int
    heads: int
    cpu: tuple[int, int]
    gpu: tuple[int, int]
    """`cpu` and `gpu`: rows and tokens of a row, by the platform."""


# 1m is the experiment `baseline`; the others have heads of 64 features. All have tied embeddings.
SIZES = {
    "1m": Size(4096, 128, 4, 4, (8, 256), (256, 256)),
    "27m": Size(32_768, 384, 8, 6, (4, 512), (32, 2048)),
    "100m": Size(32_768, 640, 16, 10, (2, 512), (32, 2048)),
    "500m": Size(32_768, 960, 42, 15, (1, 512), (8, 2048)),
}


class Case(NamedTuple):
    """A size on batches of one shape, of which each row holds so many documents."""

    size: str
    rows: int
    row_length: int
    documents: int


def case_of(size: str, rows: int = 0, row_length: int = 0, documents: int = 3) -> Case:
    """Returns the case with 0 replaced by what this device's platform suits."""
    default_rows, default_length = getattr(SIZES[size], "cpu" if jax.default_backend() == "cpu" else "gpu")
    return Case(size, rows or default_rows, row_length or default_length, documents)


def experiment_of(case: Case, micro_batches: int = 1, **model_changes) -> Experiment:
    """Returns the baseline at the size and the shape of the case."""
    size = SIZES[case.size]
    baseline = load_experiment("baseline")
    sizes = {name: getattr(size, name) for name in ("vocabulary_size", "width", "depth", "heads")}
    model = dataclasses.replace(baseline.model, **sizes | model_changes)
    tokenizer = dataclasses.replace(baseline.tokenizer, vocabulary_size=model.vocabulary_size)
    return dataclasses.replace(
        baseline,
        model=model,
        tokenizer=tokenizer,
        packing=dataclasses.replace(baseline.packing, row_length=case.row_length),
        training=dataclasses.replace(baseline.training, rows_per_step=case.rows, micro_batches=micro_batches),
    )


def random_batch(case: Case, seed: int = 0, vocabulary_size: int = 0) -> Batch:
    """Returns full rows of random tokens, of the size's vocabulary or another, cut into documents at random places."""
    _, rows, T, documents = case
    random = np.random.default_rng(seed)
    tokens_BT = random.integers(0, vocabulary_size or SIZES[case.size].vocabulary_size, (rows, T), dtype=np.int32)
    is_first_BT = np.zeros((rows, T), bool)
    for row in is_first_BT:
        row[random.choice(np.arange(1, T), documents - 1, replace=False)] = True
    segment_ids_BT = 1 + np.cumsum(is_first_BT, axis=1, dtype=np.int32)
    indices_1T = np.arange(T, dtype=np.int32)[None, :]
    starts_BT = np.maximum.accumulate(np.where(is_first_BT, indices_1T, 0), axis=1)
    next_starts_BT = np.where(np.roll(is_first_BT, -1, axis=1), indices_1T + 1, T)
    ends_BT = np.minimum.accumulate(next_starts_BT[:, ::-1], axis=1)[:, ::-1]
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=np.roll(tokens_BT, -1, axis=1),
        loss_weights_BT=np.ones((rows, T), np.float32),
        segment_ids_BT=segment_ids_BT,
        positions_BT=indices_1T - starts_BT,
        document_starts_BT=starts_BT,
        document_ends_BT=np.ascontiguousarray(ends_BT),
    )


def jaxformer_step(case: Case, turn: int = 1) -> tuple[Callable[[], None], int]:
    """Returns a function that makes `turn` steps and waits for them, and the model's parameters."""
    experiment = experiment_of(case)
    state = make_state(experiment, seed=0, token_count=experiment.model.vocabulary_size)
    batch, step = random_batch(case), compile_step(state)

    def run():
        nonlocal state
        for _ in range(turn):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run, parameter_count(experiment.model)
