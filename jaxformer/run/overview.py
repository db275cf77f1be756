"""What a run says of itself before its first step."""

import jax
import jax.numpy as jnp

from jaxformer.attention.dispatch import Choice
from jaxformer.data.packing import packing_report
from jaxformer.experiment.experiment import Experiment
from jaxformer.flops import training_flops_per_token
from jaxformer.host.console import say
from jaxformer.plan.estimate import count_embeddings
from jaxformer.run.inputs import Data
from jaxformer.step import TrainState


def describe(experiment: Experiment, state: TrainState, data: Data, attention: Choice, fit: str) -> None:
    """Prints, once at the start, what will run on what; fit is what `fit_to_device` says."""
    training, row_length = experiment.training, experiment.packing.row_length
    device = jax.devices()[0]
    devices = 1 if state.mesh is None else state.mesh.size
    tokens_per_step = training.rows_per_step * row_length
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    flops = training_flops_per_token(experiment.model, row_length)
    say(f"device      {devices} x {device.device_kind}, {jnp.dtype(state.compute_dtype).name} matmuls")
    if state.mesh is not None:
        parts = ", ".join(f"{name} {size}" for name, size in state.mesh.shape.items())
        say(f"mesh        {parts}; {jax.process_count()} processes; {training.rows_per_step // devices} rows a device")
    say(f"attention   {attention}")
    say(f"memory      {fit}")
    say(f"tokenizer   {data.tokenizer.vocabulary_size} pieces, digest {data.tokenizer.digest[:12]}")
    for shards, plan, weight in zip(data.shards, data.plans, data.weights, strict=True):
        m = shards.manifest
        share = f", {weight / sum(data.weights):.0%} of the rows" if len(data.shards) > 1 else ""
        say(f"corpus      {m.origin} (licence: {m.licence}), digest {m.corpus_digest[:12]}{share}")
        say(
            f"            {m.documents['train']:,} documents, {m.tokens['train']:,} tokens to train on, "
            f"{m.documents['validation']:,} to validate; {m.duplicates} duplicates and {m.empty} empty removed"
        )
        say(f"packing     {packing_report(plan, shards.tokens)}")
    for task, encoded in data.tasks:
        cut = f", {encoded.is_truncated.sum():,} requests cut to a row" if encoded.is_truncated.any() else ""
        count = f"{len(task.items):,} of {task.task.official_items:,} official items"
        say(f"task        {task.task.name}: {count}, {task.source}, digest {task.digest[:12]}{cut}")
    say(f"model       {parameters:,} parameters, {parameters - count_embeddings(experiment):,} without embeddings")
    say(
        f"training    {training.steps:,} steps of {training.rows_per_step} rows x {row_length} = {tokens_per_step:,} "
        f"tokens, {training.steps * tokens_per_step:,} in all; {flops / 1e6:,.1f} MFLOPs per token"
    )
