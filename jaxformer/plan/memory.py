"""The memory of a training step at its peak, by formula.

It is the layout that XLA gives the step on a GPU, where the blocks are a loop. Throughout a step there are parameters,
moments, the batch, and the kernels in the compute dtype. What the blocks keep for the backward pass, L times over, is
whole at two moments, and the peak is the higher one of them:

- in the loss, a chunk's logits in float32 and their gradient are alive;
- at the first block of the backward pass, the wide arrays of one feed-forward and the kernels' gradients are.

What a block keeps is not written here: JAX counts it, by tracing the gradient, so that it stays right whatever the
model's options and parts are or come to be; and so it does for an auxiliary loss. What a part makes within a layer and
does not keep, such as logits of an attention of its own, is not seen. `tools/check_memory.py` holds all of this to what
the compiler says.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx

from jaxformer.attention.dispatch import Implementation
from jaxformer.attention.reference import rows_at_once
from jaxformer.data.packing import Batch
from jaxformer.devices.device import named_has_bfloat16
from jaxformer.experiment.experiment import Experiment
from jaxformer.flops import embedding_parameters, forward_operations, kernel_parameters, parameter_count
from jaxformer.layers import Rows, optimized
from jaxformer.loss import default_chunk_tokens
from jaxformer.loss_kernels import TILES
from jaxformer.model import ModelConfig, Transformer, abstract_model
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
    auxiliary: int
    """What the auxiliary loss keeps for its backward pass."""
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
        return resident + self.saved + self.auxiliary + max(self.loss, self.backward)


class Target(NamedTuple):
    """A device, at hand or not, and how a step is computed on it."""

    kind: str
    """JAX's name of it, or a part of that."""
    platform: str
    """'gpu' or 'cpu'; it decides how many logits there are at once."""
    memory: int
    """Bytes that JAX may take; 0 where it is not known."""
    attention: str
    """The implementation's name."""
    dtype: Any
    """Dtype of the matmuls."""
    data: int = 1
    fsdp: int = 1
    """`data` and `fsdp`: how many such devices there are along the axes of the mesh. What is split along `fsdp` is
    whole for a layer, or for the tables, at a time.
    """

    def is_recorded(self, record: Mapping[str, Any]) -> bool:
        """Returns whether the `config.json` of a run says that it computes on this device, and on as many."""
        return (record.get("device"), record.get("devices", 1)) == (self.kind, self.devices)

    @property
    def devices(self) -> int:
        """How many such devices compute a step together."""
        return self.data * self.fsdp


class _Step(NamedTuple):
    """A step on one device, as what it holds is counted from."""

    model: ModelConfig
    """Its `remat` is the one that takes effect."""
    target: Target
    row_length: int
    rows_per_step: int
    """On this device; `rows` of them are a micro-batch."""
    micro_batches: int
    rows: int
    tokens: int
    """Tokens of a micro-batch on this device."""
    size: int
    """Bytes of a number in the compute dtype."""
    parameters: int
    """All of the model's; `kernels` are those of the blocks' matrices, `tables` those of the token tables."""
    kernels: int
    tables: int


def step_memory(experiment: Experiment, target: Target) -> StepMemory:
    """Returns the memory of an experiment's step, on one of the target's devices.

    Args:
        experiment: without phases, and with `model.remat` and `training.micro_batches` as the step is computed,
            neither left open.
    """
    model, training, T = experiment.model, experiment.training, experiment.packing.row_length
    if target.fsdp > 1 and model.remat == "none":
        model = dataclasses.replace(model, remat="elementwise")  # What `mesh.with_whole` keeps.
    rows_per_step = training.rows_per_step // target.devices
    rows = rows_per_step // training.micro_batches
    step = _Step(
        model,
        target,
        T,
        rows_per_step,
        training.micro_batches,
        rows,
        tokens=rows * T,
        size=jnp.dtype(target.dtype).itemsize,
        parameters=parameter_count(model),
        kernels=kernel_parameters(model),
        tables=embedding_parameters(model),
    )
    kept = saved_activations(model, T, target.attention, target.dtype)
    auxiliary = _kept_by_auxiliary(any_remat(model), T, target.attention, target.dtype)
    return StepMemory(
        parameters=4 * step.parameters // target.fsdp,
        optimizer=_optimizer_bytes(any_remat(model), experiment.optimizer, training.steps) // target.fsdp,
        batch=_batch(step),
        kernels=_kernels(step),
        gradients=_gradients(step),
        **{kind: rows * of_row for kind, of_row in kept._asdict().items()},
        auxiliary=rows * auxiliary,
        loss=_loss(step),
        backward=_backward(step),
    )


def any_remat(model: ModelConfig) -> ModelConfig:
    """Returns a model for what does not depend on its `remat`, and is counted once for all."""
    return dataclasses.replace(model, remat="none")


def _hidden_width(model: ModelConfig, row_length: int) -> float:
    """Returns how many features of a token feed a feed-forward's activation, on average over the layers."""
    return forward_operations(model, row_length).hidden / (2 * model.width * model.depth)


def _batch(step: _Step) -> int:
    angles = step.tokens * step.model.K * 4
    return step.rows_per_step * step.row_length * len(Batch._fields) * 4 + angles  # int32 and float32.


def _kernels(step: _Step) -> int:
    is_cast, is_split = step.size < 4, step.target.fsdp > 1
    unembedding = step.model.vocabulary_size * step.model.width
    cast = (step.kernels // step.target.fsdp + unembedding) * step.size if is_cast else 0
    return cast + (4 * step.tables if is_split else 0)


def _kernel_gradients(step: _Step) -> int:
    return step.kernels * step.size // step.target.fsdp


def _gradients(step: _Step) -> int:
    if step.micro_batches == 1:
        return 4 * step.tables  # The kernels' are in `_backward`: they take the place of the logits.
    # Of a table that is split only the parts' sum stays, and the sums keep the kernels' gradients in place throughout.
    fsdp = step.target.fsdp
    return 4 * step.tables // fsdp + 4 * step.parameters // fsdp + _kernel_gradients(step)


def _loss(step: _Step) -> int:
    model, platform = step.model, step.target.platform
    most = model.loss_chunk_tokens or default_chunk_tokens(model.vocabulary_size, platform)
    chunk = -(-step.tokens // -(-step.tokens // most))
    if platform == "cpu":  # It writes the logits' gradient over the logits, but for the only chunk of a micro-batch.
        of_one = 8 if step.micro_batches > 1 and chunk == step.tokens else 4
    else:  # Kernels keep no logits.
        of_one = step.size if _has_loss_kernels(step) else 4 + step.size
    logits = chunk * model.vocabulary_size * of_one
    return logits + 3 * step.tokens * model.width * step.size


def admits_loss_kernels(kind: str, dtype: Any, width: int) -> bool:
    """Returns whether a GPU, by its name, can run the loss's kernels, as `loss_kernels.why_not` says of one here."""
    return jnp.dtype(dtype).itemsize == 2 and width % 16 == 0 and named_has_bfloat16(kind)


def _has_loss_kernels(step: _Step) -> bool:
    target, model = step.target, step.model
    can_run = target.platform == "gpu" and admits_loss_kernels(target.kind, target.dtype, model.width)
    return model.loss in TILES or (model.loss == "auto" and can_run)


def _backward(step: _Step) -> int:
    model = step.model
    # Recomputed, the hidden features are alive before and after the activation, beside the gradients of both.
    wide = (2 if model.remat == "none" else 4) * _hidden_width(any_remat(model), step.row_length)
    block = max(round((wide + 2 * model.width) * step.tokens * step.size), step.rows * _recomputed(step))
    kernel_gradients = _kernel_gradients(step) if step.micro_batches == 1 else 0
    whole_layers = 2 * step.kernels // model.depth * step.size if step.target.fsdp > 1 else 0
    return block + _einsum_attention_backward(step) + kernel_gradients + whole_layers


def _recomputed(step: _Step) -> int:
    """Returns the bytes that the blocks between two steps of their loop compute again, for one row."""
    of_all = (step.row_length, step.target.attention, step.target.dtype)
    without, kept = (sum(saved_activations(each, *of_all)) for each in (any_remat(step.model), step.model))
    return (without - kept) * step.model.group // step.model.depth


def _einsum_attention_backward(step: _Step) -> int:
    """Returns the bytes that `xla` attention takes: queries, keys and values turned round, their gradients, logits."""
    model, T, platform = step.model, step.row_length, step.target.platform
    if step.target.attention != "xla":
        return 0
    rows = step.rows if platform == "cpu" else rows_at_once(step.rows, T, model.heads, platform)
    logits = 0 if platform == "cpu" else _LOGITS_ALIVE * 4 * rows * model.heads * T * T // 2
    return 2 * (model.heads + 2 * model.G) * model.K * rows * T * step.size + logits


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
    sizes = dict.fromkeys(SavedActivations._fields, 0)
    for leaf in _residuals(model, row_length, attention, dtype):
        sizes[_kind(leaf, model.width)] += leaf.size * leaf.dtype.itemsize
    return SavedActivations(**sizes)


def _kind(leaf: jax.ShapeDtypeStruct, width: int) -> str:
    """Returns the field of `SavedActivations` that an array (L, ...) belongs to, by its shape alone.

    Those of attention have an axis of heads, and those of the feed-forward a width of its own. Where this is the
    stream's, all counts as the stream's; the sum is right whatever the widths.
    """
    if leaf.ndim > 3:
        return "attention"
    return "stream" if leaf.shape[-1] == width else "feed_forward"


def _residuals(model: ModelConfig, row_length: int, attention: str, dtype: Any) -> list[Any]:
    """Returns what the gradient of one row through the blocks keeps, each array stacked over the blocks."""

    def transform(model: Transformer, x_ND: jax.Array, rows: Rows):
        return model.transform(x_ND, rows)[0]

    # What is stacked has an axis of tokens beside that of the layers.
    kept, groups = _kept(transform, model, row_length, attention, dtype), model.depth // model.group
    return [each for each in kept if each.shape[:1] == (groups,) and each.ndim > 1]


@functools.cache
def _kept_by_auxiliary(model: ModelConfig, row_length: int, attention: str, dtype: Any) -> int:
    """Returns the bytes that the gradient of one row through the auxiliary loss keeps; of what is by token, alone."""

    def losses(model: Transformer, features_ND: jax.Array, rows: Rows):
        sums = model.auxiliary_loss and model.auxiliary_loss(model, features_ND, rows, rows.tokens_BT)
        return sums and sums.losses

    kept = _kept(losses, model, row_length, attention, dtype)
    return sum(each.size * each.dtype.itemsize for each in kept if row_length in each.shape)


def _kept(function: Callable, model: ModelConfig, row_length: int, attention: str, dtype: Any) -> list[Any]:
    """Returns what the gradient of a function of the model, `x_ND` and rows keeps for one row, parameters not counted.

    They are there anyway.
    """
    implementation = Implementation("xla" if attention == "xla" else "pallas")
    graphdef, params = nnx.split(abstract_model(model, attention=implementation))
    integers_1T = jax.ShapeDtypeStruct((1, row_length), jnp.int32)
    x_ND = jax.ShapeDtypeStruct((row_length, model.width), dtype)

    def residuals(params, x_ND, positions_1T, starts_1T, ends_1T):
        rows = Rows(positions_1T, positions_1T, starts_1T, ends_1T, jnp.ones(positions_1T.shape, jnp.float32))
        params = cast_kernels(params, dtype)
        given = {id(leaf) for leaf in jax.tree.leaves(params)}
        pullback = jax.vjp(lambda params, x_ND: function(nnx.merge(graphdef, params), x_ND, rows), params, x_ND)[1]
        return [leaf for leaf in jax.tree.leaves(pullback) if id(leaf) not in given]

    return _without_copies(jax.make_jaxpr(residuals)(params, x_ND, integers_1T, integers_1T, integers_1T).jaxpr)


def _without_copies(jaxpr: Any) -> list[Any]:
    """Returns what a program returns, as shapes; what a loop stacks twice, once."""
    stacked = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            body = equation.params["jaxpr"].jaxpr
            originals = _originals(body)
            for output, inner in zip(equation.outvars, body.outvars, strict=True):
                stacked[output] = originals.get(inner, inner) if isinstance(inner, jax.extend.core.Var) else output
    returned = [var for var in jaxpr.outvars if isinstance(var, jax.extend.core.Var)]
    return [*{stacked.get(var, var): var.aval for var in returned}.values()]


def _originals(jaxpr: Any) -> dict[Any, Any]:
    """Returns the variable that each of those of a program is a copy of, which are one array where it is compiled."""
    originals = {}
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr")
        if equation.primitive.name in ("name", "reduce_precision"):
            copies = zip(equation.outvars, equation.invars[:1], strict=True)
        elif equation.primitive.name in ("remat2", "checkpoint"):  # By the version of JAX.
            given = dict(zip(inner.invars, equation.invars, strict=True))
            returned = zip(equation.outvars, inner.outvars, strict=True)
            copies = [(output, given[each]) for output, each in returned if each in given]
        else:
            continue
        originals |= {copy: originals.get(original, original) for copy, original in copies}
    return originals


@functools.cache
def _optimizer_bytes(model: ModelConfig, config: OptimizerConfig, steps: int) -> int:
    """Returns the bytes of the optimizer's state: AdamW keeps two moments, Muon one of the kernels."""
    params = optimized(nnx.state(abstract_model(model)))
    leaves = jax.tree.leaves(jax.eval_shape(make_optimizer(config, steps, model).init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
