"""What a run will cost, before any data is read: parameters, FLOPs, memory, disk and time."""

import time

import jax
import numpy as np
from clu import parameter_overview
from flax import nnx

from jaxformer.corpus import parts_of
from jaxformer.experiment import Experiment, make_state
from jaxformer.flops import training_flops_per_token
from jaxformer.packing import Batch
from jaxformer.progress import duration
from jaxformer.retention import most_kept
from jaxformer.step import TrainState, train_step

# Steps that are timed for the estimate, after one that is not.
_TIMED_STEPS = 3


def estimate_run_seconds(experiment: Experiment) -> float:
    """Returns how long a run will take here, by a few steps on random tokens: compilation, steps and validations.

    A validation's tokens, of 4 bytes each, take a third of a training step's; preparing the corpus comes on top.
    """
    training, T = experiment.training, experiment.packing.row_length
    batch = _random_batch(training.rows_per_step, T, experiment.model.vocabulary_size)
    _, compiled, seconds = _time_steps(make_state(experiment, seed=0), batch)
    evaluation = experiment.evaluation
    tokens = len(parts_of(experiment.corpus)) * evaluation.validation_bytes / 4
    validations = -(-training.steps // evaluation.every_steps)
    return compiled + seconds * (training.steps + validations * tokens / (3 * training.rows_per_step * T))


def print_plan(experiment: Experiment) -> None:
    """Compiles the step of an experiment, runs it a few times on random tokens, and prints what the run will take."""
    training, row_length = experiment.training, experiment.packing.row_length
    state = make_state(experiment, seed=0)
    print(parameter_overview.get_parameter_overview(nnx.to_pure_dict(state.params), include_stats=False))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    embeddings = count_embeddings(experiment)
    tokens_per_step = training.rows_per_step * row_length
    flops = training_flops_per_token(experiment.model, row_length)
    print(f"parameters  {parameters:,}, {parameters - embeddings:,} without embeddings")
    print(
        f"compute     {flops / 1e6:,.1f} MFLOPs per token, {flops * tokens_per_step * training.steps:.3g} FLOPs in all"
    )
    print(f"tokens      {tokens_per_step:,} a step, {tokens_per_step * training.steps:,} in {training.steps:,} steps")

    batch = _random_batch(training.rows_per_step, row_length, experiment.model.vocabulary_size)
    step, compiled, seconds = _time_steps(state, batch)
    memory = step.memory_analysis()
    resident = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    activations = memory.temp_size_in_bytes
    print(f"memory      {_gigabytes(resident + activations)} on the device for a step")
    print(
        f"            {_gigabytes(resident)} of state and batch, {_gigabytes(activations)} of activations and gradients"
    )
    checkpoint = sum(leaf.nbytes for leaf in jax.tree.leaves(state))  # Muon keeps one moment, AdamW two.
    most = most_kept(experiment.checkpoint, training.steps)
    print(f"checkpoints {_gigabytes(checkpoint * most)} on disk at most, for {most} of {_gigabytes(checkpoint)}")
    print(f"time        {duration(seconds * training.steps)} on this device ({jax.devices()[0].device_kind})")
    print(f"            {tokens_per_step / seconds:,.0f} tokens/s in {_TIMED_STEPS} steps on random tokens, after")
    print(f"            {compiled:.0f} s of compilation; preparing the corpus and validating come on top")


def _time_steps(state: TrainState, batch: Batch) -> tuple[jax.stages.Compiled, float, float]:
    """Returns the compiled step, the seconds that compiling it took, and those of a step; the state is used up."""
    started = time.perf_counter()
    step = jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()
    compiled = time.perf_counter() - started
    state, metrics = jax.block_until_ready(step(state, batch))
    started = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return step, compiled, (time.perf_counter() - started) / _TIMED_STEPS


def count_embeddings(experiment: Experiment) -> int:
    """Returns the parameters of the token tables: one if they are tied, else two."""
    model = experiment.model
    return model.vocabulary_size * model.width * (1 if model.tied_embeddings else 2)


def _random_batch(rows: int, row_length: int, vocabulary_size: int) -> Batch:
    """Returns rows of random tokens, one document each: the dearest case for attention."""
    tokens_BT = np.random.default_rng(0).integers(0, vocabulary_size, (rows, row_length), dtype=np.int32)
    zeros_BT = np.zeros_like(tokens_BT)
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=tokens_BT,
        loss_weights_BT=np.ones(tokens_BT.shape, np.float32),
        segment_ids_BT=zeros_BT + 1,
        positions_BT=zeros_BT + np.arange(row_length, dtype=np.int32),
        document_starts_BT=zeros_BT,
        document_ends_BT=zeros_BT + row_length,
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
