"""The memory of a training step at its peak, by formula.

It is the layout that XLA gives the step on a GPU, where the blocks are a loop. Throughout a step there are parameters,
moments, the batch, and the kernels in the compute dtype. What the blocks keep for the backward pass, L times over, is
whole at two moments, and the peak is the higher one of them:

- in the loss, a chunk's logits in float32 and their gradient are alive;
- at the first block of the backward pass, the wide arrays of one feed-forward and the kernels' gradients are.

What a block keeps is not written here: it is asked of JAX, by tracing the gradient, so that it stays right whatever the
model's options are or come to be. `tools/check_memory.py` holds all of this to what the compiler says.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.attention.dispatch import Implementation
from jaxformer.attention.reference import rows_at_once
from jaxformer.experiment.experiment import Experiment
from jaxformer.flops import matmul_parameters, parameter_count
from jaxformer.loss import default_chunk_tokens
from jaxformer.model import ModelConfig, Transformer
from jaxformer.optimizer import OptimizerConfig, make_optimizer
from jaxformer.step import cast_kernels

# Arrays of the size of the logits of half of all pairs that are alive at once in the backward pass of `xla` attention.
_LOGITS_ALIVE = 2


class StepMemory(NamedTuple):
    """Bytes of a step, by what they hold."""

    parameters: int
    """float32."""
    optimizer: int
    """The moments, float32."""
    batch: int
    """Batch of all rows, and the angles of the rotation."""
    kernels: int
    """Their copy in the compute dtype, and the unembedding's."""
    gradients: int
    """Gradients of the kernels, in the compute dtype, and of the tables, and the float32 sums over micro-batches."""
    attention: int
    """What the blocks keep of queries, keys, values and what follows from them."""
    feed_forward: int
    """What the blocks keep that is as wide as the feed-forward."""
    stream: int
    """What else the blocks keep: the stream, and its norms."""
    loss: int
    """Alive in the loss alone: logits and their gradient, and the features'."""
    backward: int
    """Alive in the backward pass of one block alone."""

    @property
    def saved(self) -> int:
        """Bytes that the blocks keep for the backward pass."""
        return self.attention + self.feed_forward + self.stream

    @property
    def peak(self) -> int:
        """Bytes of the step at its peak."""
        resident = self.parameters + self.optimizer + self.batch + self.kernels + self.gradients
        return resident + self.saved + max(self.loss, self.backward)


def step_memory(
    experiment: Experiment,
    *,
    attention: str,
    dtype: Any,
    remat: str,
    micro_batches: int,
    platform: str,
    data: int = 1,
    fsdp: int = 1,
) -> StepMemory:
    """Returns the memory of an experiment's step.

    Args:
        attention: the implementation's name.
        dtype: of the matmuls.
        remat: `model.remat`, not 'auto'; it and `micro_batches` stand for those of the experiment.
        platform: 'gpu' or 'cpu'; it decides how many logits there are at once.
        data, fsdp: devices along the axes of the mesh; the memory is that of one of them. What is split along `fsdp` is
            whole for a layer, or for the tables, at a time.
    """
    model, T = experiment.model, experiment.packing.row_length
    if fsdp > 1 and remat == "none":
        remat = "elementwise"  # What `mesh.Parts` keeps.
    rows_here = experiment.training.rows_per_step // (data * fsdp)
    rows = rows_here // micro_batches
    D, V, N, size = model.width, model.vocabulary_size, rows * T, jnp.dtype(dtype).itemsize
    kernels, parameters = matmul_parameters(model) - V * D, parameter_count(model)
    tables = (1 if model.tied_embeddings else 2) * V * D
    is_cast = size < 4
    kept = saved_activations(dataclasses.replace(model, remat=remat), T, attention, dtype)
    chunk = min(N, model.loss_chunk_tokens or default_chunk_tokens(V, platform))
    gradients = 4 * tables
    if micro_batches > 1:  # Of a table that is split only the parts' sum stays.
        gradients = 4 * tables // fsdp + 4 * parameters // fsdp
    # A CPU writes the logits' gradient over the logits.
    loss = chunk * V * (4 if platform == "cpu" else 4 + size) + 3 * N * D * size
    # Recomputed, the hidden features are alive before and after the activation, beside the gradients of both.
    wide = (2 if remat == "none" else 4) * (2 if model.activation == "swiglu" else 1)
    backward = (wide * model.F + 2 * D) * N * size
    if attention == "xla":  # Queries, keys and values turned round, and their gradients.
        turn = rows if platform == "cpu" else rows_at_once(rows, T, model.heads, platform)
        backward += 2 * (model.heads + 2 * model.G) * model.K * turn * T * size
        if platform != "cpu":
            backward += _LOGITS_ALIVE * 4 * turn * model.heads * T * T // 2
    # The sum over micro-batches keeps the kernels' gradients in place throughout; else the logits' place is reused.
    if micro_batches > 1:
        gradients += kernels * size // fsdp
    else:
        backward += kernels * size // fsdp
    if fsdp > 1:
        backward += 2 * kernels // model.depth * size
    return StepMemory(
        parameters=4 * parameters // fsdp,
        optimizer=_optimizer_bytes(model, experiment.optimizer, experiment.training.steps) // fsdp,
        batch=rows_here * T * 7 * 4 + (0 if model.learned_positions else N * model.K * 4),
        kernels=((kernels // fsdp + V * D) * size if is_cast else 0) + (4 * tables if fsdp > 1 else 0),
        gradients=gradients,
        attention=rows * kept.attention,
        feed_forward=rows * kept.feed_forward,
        stream=rows * kept.stream,
        loss=loss,
        backward=backward,
    )


class SavedActivations(NamedTuple):
    """Bytes that all blocks together keep for the backward pass, for one row."""

    attention: int
    feed_forward: int
    stream: int


@functools.cache
def saved_activations(model: ModelConfig, row_length: int, attention: str, dtype: Any) -> SavedActivations:
    """Returns what JAX keeps of the blocks, found by tracing the gradient: nothing is computed.

    cuDNN keeps what our own attention does.
    """
    kept = _residuals(model, row_length, attention, dtype)
    wide = {model.F, 2 * model.F}
    sizes = {"attention": 0, "feed_forward": 0, "stream": 0}
    for leaf in kept:
        kind = "attention" if leaf.ndim > 3 else "feed_forward" if leaf.shape[-1] in wide else "stream"
        sizes[kind] += leaf.size * leaf.dtype.itemsize
    return SavedActivations(**sizes)


def _residuals(model: ModelConfig, row_length: int, attention: str, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    """Returns what the gradient of one row through the blocks keeps, each array stacked over the blocks."""
    implementation = Implementation("xla" if attention == "xla" else "pallas")
    transformer = nnx.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(params=0), attention=implementation))
    graphdef, params = nnx.split(transformer)
    integers_1T = jax.ShapeDtypeStruct((1, row_length), jnp.int32)
    x_ND = jax.ShapeDtypeStruct((row_length, model.width), dtype)

    def residuals(params, x_ND, positions_1T, starts_1T, ends_1T):
        def transform(params, x_ND):
            return nnx.merge(graphdef, params).transform(x_ND, positions_1T, starts_1T, ends_1T)

        params = cast_kernels(params, dtype)
        given = {id(leaf) for leaf in jax.tree.leaves(params)}
        kept = jax.tree.leaves(jax.vjp(transform, params, x_ND)[1])
        # Parameters are there anyway. What is stacked has an axis of tokens beside that of the layers.
        return [leaf for leaf in kept if id(leaf) not in given and leaf.shape[:1] == (model.depth,) and leaf.ndim > 1]

    return jax.eval_shape(residuals, params, x_ND, integers_1T, integers_1T, integers_1T)


@functools.cache
def _optimizer_bytes(model: ModelConfig, config: OptimizerConfig, steps: int) -> int:
    """Returns the bytes of the optimizer's state: AdamW keeps two moments, Muon one of the kernels."""
    params = nnx.eval_shape(lambda: nnx.state(Transformer(model, rngs=nnx.Rngs(params=0))))
    leaves = jax.tree.leaves(jax.eval_shape(make_optimizer(config, steps).init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
