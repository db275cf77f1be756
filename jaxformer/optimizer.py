"""The learning-rate schedule and the Optax chain: clipped AdamW or Muon, with decay on matrices only."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxformer.config import Bounds, NonNegativeFloat, NonNegativeInt, OneOf, PositiveFloat, check_fields, require
from jaxformer.model import Kernel, Table

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "wsd")

# Root mean square of Muon's updates, at which AdamW's learning rate and decay suit it (Liu et al. 2025, arXiv
# 2502.16982).
_MUON_RMS = 0.2


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, and the schedule of the learning rate."""

    learning_rate: PositiveFloat
    """Peak."""
    warmup_steps: NonNegativeInt
    """Steps of linear increase from 0."""
    final_learning_rate_share: Annotated[float, Bounds(at_least=0, at_most=1)] = 0.1
    """Learning rate at the last step, as a share of the peak."""
    b1: Annotated[float, Bounds(at_least=0, below=1)] = 0.9
    """Decay of the first moment, per step."""
    b2: Annotated[float, Bounds(at_least=0, below=1)] = 0.95
    """Decay of the second moment, per step."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled, per unit of learning rate, on matrices (embeddings among them) only."""
    clip_norm: PositiveFloat = 1.0
    """Largest global norm of the gradient."""
    name: Annotated[str, OneOf(*OPTIMIZERS)] = "adamw"
    """'adamw' (Loshchilov & Hutter 2017, arXiv 1711.05101), or 'muon' (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon) for the kernels and AdamW, as above, for all else; the learning rate and the
    decay are those of both.
    """
    muon_momentum: Annotated[float, Bounds(at_least=0, below=1)] = 0.95
    """Decay of Muon's moment, per step; other optimizers have none."""
    schedule: Annotated[str, OneOf(*SCHEDULES)] = "cosine"
    """'cosine', or 'wsd' for the peak from the warmup on and a decay as 1 - sqrt at the end (Hu et al. 2024, arXiv
    2404.06395; the shape is that of Hägele et al. 2024, arXiv 2405.18392).
    """
    decay_share: Annotated[float, Bounds(above=0, at_most=1)] = 0.2
    """Share of the steps, the last ones, in which 'wsd' decays; other schedules have none."""

    def __post_init__(self):
        check_fields(self, "optimizer")

    def effective(self) -> "OptimizerConfig":
        """Returns the same optimizer with the default for each field that it takes no notice of."""
        inert = {"muon_momentum": 0.95} if self.name != "muon" else {}
        inert |= {"decay_share": 0.2} if self.schedule != "wsd" else {}
        return dataclasses.replace(self, **inert)


def check_schedule(config: OptimizerConfig, steps: int) -> None:
    """Raises `UserError` where the schedule does not fit in a run of `steps` steps."""
    require(
        config.warmup_steps < steps,
        f"optimizer.warmup_steps ({config.warmup_steps}) must be less than training.steps ({steps})",
    )
    decay_steps = _decay_steps(config, steps)
    require(
        config.schedule != "wsd" or config.warmup_steps + decay_steps <= steps,
        f"optimizer.warmup_steps ({config.warmup_steps}) and the {decay_steps} steps of optimizer.decay_share "
        f"({config.decay_share}) must not exceed training.steps ({steps}) together",
    )


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate by step in [0, steps): linear warmup to the peak, then down to the final share of it.

    Step 0 already has a positive rate, peak / (warmup_steps + 1), so that no step is spent on nothing. With 'wsd' the
    last `decay_share` of the steps, at least one, are below the peak.
    """
    check_schedule(config, steps)
    peak, warmup_steps = config.learning_rate, config.warmup_steps
    first = peak / (warmup_steps + 1)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=first,
            peak_value=peak,
            warmup_steps=warmup_steps,
            decay_steps=max(steps - 1, warmup_steps + 1),
            end_value=peak * config.final_learning_rate_share,
        )
    decay_steps = _decay_steps(config, steps)
    last_of_peak = steps - 1 - decay_steps - warmup_steps

    def stable_and_decay(count):
        """The rate by the number of steps after the warmup."""
        root = jnp.sqrt(jnp.clip((count - last_of_peak) / decay_steps, 0, 1))
        return peak * (1 - root + config.final_learning_rate_share * root)

    return optax.join_schedules([optax.linear_schedule(first, peak, warmup_steps), stable_and_decay], [warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns the chain for a run of `steps` steps over an `nnx.State` of parameters."""
    schedule = make_schedule(config, steps)
    optimizer = optax.adamw(
        schedule, b1=config.b1, b2=config.b2, eps=config.epsilon, weight_decay=config.weight_decay, mask=is_matrix
    )
    if config.name == "muon":
        optimizer = optax.partition({"muon": _muon(config, schedule), "adamw": optimizer}, _optimizer_of)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def is_matrix(params: nnx.State) -> nnx.State:
    """Returns a tree of bools: True for the parameters that are matrices, stacked over layers or not."""
    return _by_parameter(lambda p: isinstance(p, (Kernel, Table)), params)


def _muon(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns Muon for stacked kernels (L, in, out): each layer's matrix is orthogonalised by itself, in float32.

    Matrices that are stored as one are orthogonalised as one: queries, keys and values of all heads, and SwiGLU's gate
    and value. It is assembled from Optax's parts, since `optax.contrib.muon` has NAdam, not AdamW, for all else. Optax
    corrects the bias of the Nesterov moment, which Jordan et al. do not: that changes the first steps a little.
    """

    def last_two_axes(updates):
        # All axes but these are batch axes to Optax. It asks for the tree of the updates, whose leaves are the arrays.
        return jax.tree.map(lambda _: MuonDimensionNumbers(-2, -1), updates)

    def to_consistent_rms(updates, _):
        # An orthogonal matrix has a mean square of 1 / max(in, out).
        return jax.tree.map(lambda x: _MUON_RMS * max(x.shape[-2:]) ** 0.5 * x, updates)

    return optax.chain(
        scale_by_muon(beta=config.muon_momentum, nesterov=True, weight_dimension_numbers=last_two_axes),
        optax.stateless(to_consistent_rms),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )


def _optimizer_of(params: nnx.State) -> nnx.State:
    """Returns a tree of names: which optimizer updates each parameter."""
    return _by_parameter(lambda p: "muon" if isinstance(p, Kernel) else "adamw", params)


def _by_parameter(function, params: nnx.State) -> nnx.State:
    return jax.tree.map(function, params, is_leaf=lambda p: isinstance(p, nnx.Variable))


def _decay_steps(config: OptimizerConfig, steps: int) -> int:
    return max(1, round(config.decay_share * steps))
