"""The pure training step: state and batch in, state and metrics out."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jaxformer.attention.dispatch import Implementation
from jaxformer.config import NonNegativeFloat, NonNegativeInt32, OneOf, PositiveInt32, check_fields, execution, require
from jaxformer.data.packing import Batch
from jaxformer.data.phases import Phase
from jaxformer.devices.device import has_bfloat16
from jaxformer.devices.mesh import (
    COPIED,
    FSDP,
    copied,
    gathered_rows,
    gradient_on_parts,
    on_parts,
    partition,
    specs_by_use,
    state_sharding,
    whole,
    with_whole,
)
from jaxformer.devices.options import fixed_options
from jaxformer.layers import Kernel, Rows, SelfUpdated, by_place, optimized
from jaxformer.loss import LossSums, cross_entropy, token_scores
from jaxformer.model import SAVED, ModelConfig, Transformer
from jaxformer.skip_steps import Guard, init_guard, judge

# Steps of a profile: a trace of more is large, and shows nothing new.
_MOST_PROFILED = 100


@dataclass(frozen=True)
class TrainingConfig:
    """How long a run is and how large its steps are."""

    steps: PositiveInt32
    """Optimizer updates."""
    rows_per_step: PositiveInt32
    """Rows of the batch of one update, over all micro-batches."""
    phases: tuple[Phase, ...] = ()
    """From which step on the batches have other rows, another row length or other weights of the corpus's parts."""
    micro_batches: NonNegativeInt32 = execution(1)
    """Parts of a batch that are computed one after another to save memory; the result is the same. 0 chooses with
    `model.remat`, for the device's memory.
    """
    compute_dtype: Annotated[str, OneOf("auto", "float32", "bfloat16")] = "auto"
    """Compute dtype of matmuls: 'float32', 'bfloat16', or 'auto' for bfloat16 on a GPU and float32 on a CPU."""
    skip_spikes_above: NonNegativeFloat = 0.0
    """A step whose loss lies this many standard deviations above the last 128 changes nothing; 0 for no limit. A step
    whose loss or gradient is not finite never changes anything.
    """
    device: Annotated[str, OneOf("auto", "cpu", "gpu")] = execution("auto")
    """'gpu', 'cpu', or 'auto' for a GPU where JAX finds one."""
    startup_proof: bool = execution(True)
    """Prove on the first batch, before the first step, that no gradient flows between documents."""
    log_every_steps: PositiveInt32 = execution(10)
    """Steps between progress lines."""
    peak_tflops: NonNegativeFloat = execution(0.0)
    """Peak of the device for the model FLOPs utilisation; 0 looks it up."""
    profile: str = execution("")
    """Steps to trace, and whose largest kernels to print: FIRST:LAST, from 1, both included; '' for none."""

    def __post_init__(self):
        check_fields(self, "training")
        profiled = self.profiled_steps
        require(
            not self.profile
            or (0 < len(profiled) <= _MOST_PROFILED and profiled[0] > 0 and profiled[-1] <= self.steps),
            f"training.profile ({self.profile!r}) must be FIRST:LAST, at most {_MOST_PROFILED} of the steps 1 to "
            f"{self.steps}",
        )
        for name, rows in self._rows_by_name().items():
            require(
                rows % (self.micro_batches or 1) == 0,
                f"training.micro_batches ({self.micro_batches}) must divide training.{name} ({rows})",
            )

    @property
    def profiled_steps(self) -> range:
        """Numbers, from 1, of the steps to profile."""
        bounds = re.fullmatch(r"(\d{1,9}):(\d{1,9})", self.profile or "1:0")
        return range(int(bounds[1]), int(bounds[2]) + 1) if bounds else range(0)

    def _rows_by_name(self) -> dict[str, int]:
        phases = {f"phases.{i}.rows_per_step": phase.rows_per_step for i, phase in enumerate(self.phases)}
        return {"rows_per_step": self.rows_per_step, **phases}


def compute_dtype(config: TrainingConfig) -> Any:
    """Returns the dtype of the matmuls on the default device."""
    if config.compute_dtype == "auto":
        return jnp.bfloat16 if has_bfloat16(jax.devices()[0]) else jnp.float32
    return jnp.dtype(config.compute_dtype)


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes, as data; and what it needs to know, as static fields."""

    step: jax.Array
    params: nnx.State
    opt_state: Any
    guard: Guard
    graphdef: nnx.GraphDef = flax.struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = flax.struct.field(pytree_node=False)
    compute_dtype: Any = flax.struct.field(pytree_node=False)
    micro_batches: int = flax.struct.field(pytree_node=False)
    skip_spikes_above: float = flax.struct.field(pytree_node=False)
    mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def model(self) -> Transformer:
        """The model with its kernels in the compute dtype; whole on every device of a mesh."""
        return nnx.merge(self.graphdef, copied(self.mesh, cast_kernels(self.params, self.compute_dtype)))


@fixed_options()
def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    attention: str | Implementation = "xla",
    compute_dtype: Any = jnp.float32,
    micro_batches: int = 1,
    skip_spikes_above: float = 0.0,
    mesh: Mesh | None = None,
    token_count: int | None = None,
    params: nnx.State | None = None,
) -> TrainState:
    """Returns the state before step 0; parameters and optimizer state are float32.

    Args:
        attention: the implementation, or its name, such as `choose_implementation` returns.
        compute_dtype: dtype of the matmuls.
        micro_batches: parts of the batch, a divisor of its rows, whose gradients are summed before the update.
        skip_spikes_above: score of a loss, in standard deviations, above which a step changes nothing; 0 for none.
        mesh: of several devices, which hold the state and compute it together; values are the same as on one device.
        token_count: ids that the tokenizer has; None for all of `config.vocabulary_size`.
        params: parameters to begin with, which are donated; None draws them by the seed.
    """
    mesh = None if mesh is None or mesh.size == 1 else mesh

    def init(params, key):
        rngs = nnx.Rngs(params=key)
        graphdef, drawn = nnx.split(Transformer(config, rngs=rngs, attention=attention, token_count=token_count))
        params = drawn if params is None else params
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(optimized(params)),
            guard=init_guard(),
            graphdef=graphdef,
            optimizer=optimizer,
            compute_dtype=compute_dtype,
            micro_batches=micro_batches,
            skip_spikes_above=skip_spikes_above,
            mesh=mesh,
        )

    # Made where it stays: no device ever holds all of it.
    # The seed is an argument, so that what is compiled for one is there for all.
    key = jax.random.key(seed)
    shardings = mesh and state_sharding(mesh, jax.eval_shape(init, params, key))
    return jax.jit(init, out_shardings=shardings, donate_argnums=0)(params, key)


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one update, and its metrics as scalars on the device.

    A step whose loss or gradient is not finite, or whose loss is a spike to be skipped, changes neither parameters nor
    optimizer state, including the schedule's count. `compile_step` jits it.

    Metrics: `loss` (nats per target), `gradient_norm` (before clipping), `targets` (sum of the loss weights),
    `spike_score` (of the loss, in standard deviations), `counts` (whether the step changed anything), `skipped` (steps
    so far that did not), `non_finite_in_a_row`, and `reported`, by name: what the layers report, an array by layer, and
    by group the norms of the parameters before the update and of what was added to them.
    """
    grads, sums = gradients(state, batch)
    loss, norm = sums.nats / sums.weight, optax.tree.norm(optimized(grads))
    counts, score, guard = judge(state.guard, loss, norm, skip_spikes_above=state.skip_spikes_above)
    with jax.named_scope("optimizer"):
        before = (state.params, state.opt_state)
        *after, updates = _update(state, grads)
        params, opt_state = jax.tree.map(lambda new, old: jnp.where(counts, new, old), tuple(after), before)
    metrics = {
        "loss": loss,
        "gradient_norm": norm,
        "targets": sums.weight,
        "spike_score": score,
        "counts": counts,
        "skipped": guard.skipped,
        "non_finite_in_a_row": guard.non_finite_in_a_row,
        "reported": {
            **{name: total / sums.weight for name, total in sums.reported.items()},
            **{f"parameter_norm/{group}": norm for group, norm in norms_by_group(state.params).items()},
            **{f"update_norm/{group}": jnp.where(counts, x, 0) for group, x in norms_by_group(updates).items()},
        },
    }
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, guard=guard), metrics


@jax.named_scope("metrics")
def norms_by_group(params: nnx.State) -> dict[str, jax.Array]:
    """Returns the norm of the parameters, or of a tree with their structure, by part of the model."""
    squares = {}
    for path, leaf in nnx.to_flat_state(params):
        group = next(name for name in path if isinstance(name, str) and name not in ("blocks", "layers"))
        squares[group] = squares.get(group, 0.0) + jnp.sum(jnp.square(leaf[...]))
    return {group: jnp.sqrt(total) for group, total in squares.items()}


def _update(state: TrainState, grads: nnx.State) -> tuple[Any, Any, Any]:
    """Returns the parameters and the optimizer's state after one update, and the optimizer's updates."""
    params = optimized(state.params)
    updates, opt_state = state.optimizer.update(optimized(grads), state.opt_state, params)
    moved: Any = optax.apply_updates(params, updates)
    by_rule = jax.tree.map(
        lambda p, gradient: p.replace(p.rule(p[...], gradient[...])),
        *(nnx.filter_state(tree, SelfUpdated) for tree in (state.params, grads)),
        is_leaf=lambda p: isinstance(p, nnx.Variable),
    )
    return nnx.merge_state(moved, by_rule), opt_state, updates


def compile_step(state: TrainState) -> Callable:
    """Returns `train_step` jitted for a state, which is donated; the new state lies on the same devices."""
    mesh = state.mesh
    shardings = (state_sharding(mesh, state), NamedSharding(mesh, COPIED)) if mesh else None
    # By default XLA copies all of the state on a CPU before a step writes it: 4 % of a step of 27 million parameters.
    options = {"xla_cpu_copy_insertion_use_region_analysis": True} if jax.default_backend() == "cpu" else None
    return jax.jit(train_step, donate_argnums=0, out_shardings=shardings, compiler_options=options)


def gradients(state: TrainState, batch: Batch) -> tuple[nnx.State, LossSums]:
    """Returns the float32 gradient of the mean objective over all weighted tokens of a batch, and the loss's sums.

    It is the same, up to rounding, whatever the micro-batches.
    """
    merge = _merging(state)

    def objective(params, micro_batch):
        sums = _batch_loss(merge(params), micro_batch)
        return sums.objective, sums

    def gradient_sums(params, batch):
        # Cast once a step, outside of the scans over micro-batches and layers.
        params = cast_kernels(params, state.compute_dtype)
        gradient = jax.grad(objective, has_aux=True)
        if state.micro_batches == 1:
            return gradient(params, batch)
        return _accumulate(gradient, params, batch, state.micro_batches)

    if state.mesh is None:
        grads, sums = gradient_sums(state.params, batch)
    else:
        grads, sums = gradient_on_parts(state.mesh, gradient_sums, state.params, batch)
    return jax.tree.map(lambda g: g.astype(jnp.float32) / sums.weight, grads), sums


def with_model(state: TrainState, function: Callable, rows: Any, *, split_rows: bool = True) -> Any:
    """Returns `function(model, rows)`, computed by all devices of the state's mesh; to be called within `jax.jit`.

    Args:
        function: of the model, its kernels in the compute dtype, and of rows to results by row.
        split_rows: whether each device takes its own rows, a multiple of the devices in all; else each computes all of
            them, and the results are of any kind.
    """
    if state.mesh is None:
        return function(state.model, rows)
    merge = _merging(state)

    def on_each(params, rows):
        results = function(merge(cast_kernels(params, state.compute_dtype)), rows)
        return gathered_rows(results) if split_rows else results

    return on_parts(state.mesh, on_each, state.params, rows, split_rows=split_rows)


def _merging(state: TrainState) -> Callable[[nnx.State], Transformer]:
    """Returns the function from parameters to the model; on a mesh, from a device's parts of them."""
    mesh = state.mesh
    if mesh is None:
        return functools.partial(nnx.merge, state.graphdef)
    others, of_layer = specs_by_use(partition(mesh, state.params))

    def merge(parts):
        model = nnx.merge(state.graphdef, whole(parts, others))
        if mesh.shape[FSDP] > 1:
            model.with_layers = functools.partial(with_whole, of_layer, SAVED["elementwise"])
        return model

    return merge


def eval_step(state: TrainState, batch: Batch) -> jax.Array:
    """Returns each target's weighted cross-entropy in nats, float32 `nats_BT`; 0 at padding."""
    return with_model(state, _token_nats, batch)


def _token_nats(model: Transformer, batch: Batch) -> jax.Array:
    scores = token_scores(
        model.features_and_sums(rows_of(batch))[0],
        model.unembedding_VD,
        batch.targets_BT.reshape(-1),
        logit_soft_cap=model.config.logit_soft_cap,
        token_count=model.token_count,
        chunk_tokens=model.config.loss_chunk_tokens,
        implementation=model.config.loss,
    )
    return scores.nats_N.reshape(batch.targets_BT.shape) * batch.loss_weights_BT


def cast_kernels(params: nnx.State, dtype: Any) -> nnx.State:
    """Returns the parameters with kernels in `dtype`; tables and gains of norms stay float32."""
    return jax.tree.map(
        lambda p: p.replace(p[...].astype(dtype)) if isinstance(p, Kernel) else p,
        params,
        is_leaf=lambda p: isinstance(p, nnx.Variable),
    )


def rows_of(batch: Batch) -> Rows:
    """Returns what a model knows of a batch."""
    bounds = batch.document_starts_BT, batch.document_ends_BT
    return Rows(*map(jnp.asarray, (batch.tokens_BT, batch.positions_BT, *bounds, batch.loss_weights_BT)))


def _batch_loss(model: Transformer, batch: Batch) -> LossSums:
    rows = rows_of(batch)
    features_ND, of_layers = model.features_and_sums(rows)
    sums = cross_entropy(
        features_ND,
        model.unembedding_VD,
        batch.targets_BT.reshape(-1),
        batch.loss_weights_BT.reshape(-1),
        logit_soft_cap=model.config.logit_soft_cap,
        token_count=model.token_count,
        z_loss_coefficient=model.config.z_loss,
        chunk_tokens=model.config.loss_chunk_tokens,
        implementation=model.config.loss,
    )
    losses, metrics = of_layers.losses, of_layers.metrics
    if model.auxiliary_loss is not None:
        beside = by_place(auxiliary_loss=model.auxiliary_loss(model, features_ND, rows, batch.targets_BT))
        losses, metrics = losses | beside.losses, metrics | beside.metrics
    return sums._replace(objective=sum(map(jnp.sum, losses.values()), sums.objective), reported={**losses, **metrics})


def _accumulate(gradient, params, batch: Batch, micro_batches: int):
    """Returns the float32 sums of gradients and losses over equal parts of the batch, one part at a time."""
    rows = batch.tokens_BT.shape[0]
    require(rows % micro_batches == 0, f"micro_batches ({micro_batches}) must divide the rows of a batch ({rows})")
    parts = jax.tree.map(lambda x: x.reshape(micro_batches, rows // micro_batches, *x.shape[1:]), batch)

    def add(totals, part):
        return jax.tree.map(lambda total, new: total + new.astype(jnp.float32), totals, gradient(params, part)), None

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.float32),
        jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts)),
    )
    return jax.lax.scan(add, zeros, parts)[0]
