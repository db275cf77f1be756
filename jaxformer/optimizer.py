"""The learning-rate schedule and the Optax chain: a clipped gradient, an optimizer's direction, decay, learning rate.

An optimizer is AdamW, Muon, or your own (`Optimizer`), which may hold another. All matrices decay, or what your own
part (`Decay`) says.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxformer.config import Bounds, NonNegativeFloat, NonNegativeInt, OneOf, PositiveFloat, check_fields, require
from jaxformer.layers import Kernel, Table
from jaxformer.model import ModelConfig
from jaxformer.record import Part

OPTIMIZERS = ("adamw", "muon")
DECAYS = ("matrices",)
SCHEDULES = ("cosine", "wsd")

# Kinds of parameters to an optimizer: tables that are looked up, a table that unembeds and does nothing else, kernels,
# and all the rest, such as the gains of norms. A tied table is an embedding.
GROUPS = ("embedding", "unembedding", "matrix", "gain")

# Root mean square of Muon's updates, at which AdamW's learning rate and decay suit it (Liu et al. 2025, arXiv
# 2502.16982).
MUON_RMS = 0.2


@dataclass(frozen=True)
class Optimizer(Part):
    """Your own optimizer: the direction of descent.

    Clipping comes before it. Decay, the learning rate and its factors by group come after it, and are not its own task.
    One that modifies another, a name or a part, holds that in a field and gets its transformation by `transform_of`.
    """

    def transform(self, config: "OptimizerConfig", model: ModelConfig) -> optax.GradientTransformation:
        """Returns the transformation of a gradient to the direction, as those that Optax names `scale_by_...`.

        Args:
            config: numbers for any optimizer; learning rate, decay and clipping are applied elsewhere.
            model: for what the shapes of the parameters do not show, such as the width of a head.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define transform(config, model)")


@dataclass(frozen=True)
class Decay(Part):
    """What is decayed, in place of all matrices."""

    def decayed(self, group: str, parameter: jax.Array, direction: jax.Array) -> jax.Array:
        """Returns what is subtracted from a parameter, once multiplied by decay and learning rate.

        Args:
            group: one of `GROUPS`.
            parameter: all of its layers.
            direction: of descent: what the optimizer subtracts, once multiplied by the learning rate.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define decayed(group, parameter, direction)")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, its decay, and the schedule of the learning rate."""

    learning_rate: PositiveFloat
    """Peak learning rate."""
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
    """Decoupled, per unit of learning rate."""
    decay: Annotated[str, OneOf(*DECAYS)] | Decay = "matrices"
    """What decays: 'matrices', embeddings among them, or a `Decay` of `jaxformer.parts` or of your own."""
    clip_norm: PositiveFloat = 1.0
    """Largest global norm of the gradient."""
    name: Annotated[str, OneOf(*OPTIMIZERS)] | Optimizer = "adamw"
    """'adamw' (Loshchilov & Hutter 2017, arXiv 1711.05101); 'muon' (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon) for the kernels and AdamW for all else, with the same learning rate and
    decay; or an `Optimizer` of `jaxformer.parts` or of your own.
    """
    muon_momentum: Annotated[float, Bounds(at_least=0, below=1)] = 0.95
    """Decay of Muon's moment, per step; AdamW has none."""
    schedule: Annotated[str, OneOf(*SCHEDULES)] = "cosine"
    """'cosine', or 'wsd' for the peak from the warmup on and a decay as 1 - sqrt at the end (Hu et al. 2024, arXiv
    2404.06395; the shape is that of Hägele et al. 2024, arXiv 2405.18392).
    """
    decay_share: Annotated[float, Bounds(above=0, at_most=1)] = 0.2
    """Share of the steps, the last ones, in which 'wsd' decays; other schedules ignore it."""
    embedding_rate: PositiveFloat = 1.0
    """Factor of the learning rate for tables that are looked up: of tokens, even if tied, and of positions."""
    unembedding_rate: PositiveFloat = 1.0
    """Factor of the learning rate for a separate unembedding table."""
    matrix_rate: PositiveFloat = 1.0
    """Factor of the learning rate for the kernels."""
    gain_rate: PositiveFloat = 1.0
    """Factor of the learning rate for all else, such as the gains of norms."""

    def __post_init__(self):
        check_fields(self, "optimizer")

    def effective(self) -> "OptimizerConfig":
        """Returns the same optimizer with the default for each field that it ignores."""
        inert: dict[str, Any] = {"muon_momentum": 0.95} if self.name == "adamw" else {}
        inert |= {"decay_share": 0.2} if self.schedule != "wsd" else {}
        inert |= {"decay": "matrices"} if self.weight_decay == 0 else {}
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

    Step 0 already has a positive rate, peak / (warmup_steps + 1), so that no step is wasted. With 'wsd' the
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


def decay_start(config: OptimizerConfig, steps: int) -> int:
    """Returns the step from which on the learning rate depends on the length of the run: 0 for 'cosine'."""
    return steps - _decay_steps(config, steps) if config.schedule == "wsd" else 0


def make_optimizer(
    config: OptimizerConfig, steps: int, model: ModelConfig | None = None
) -> optax.GradientTransformation:
    """Returns the chain for a run of `steps` steps over an `nnx.State` of parameters.

    Args:
        config: of the optimizer, its decay and its schedule.
        steps: of the run.
        model: whose parameters they are, for an `Optimizer` that uses it; the named ones do not.
    """
    descend = optax.scale_by_learning_rate(make_schedule(config, steps))
    if config.name == "muon":
        # Decayed and scaled by kind: the state that checkpoints have.
        of_kernels = optax.chain(*_muon(config), _decay(config, mask=None), descend)
        of_others = optax.chain(_adam(config), _decay(config, mask=is_matrix), descend)
        optimizer = optax.partition({"muon": of_kernels, "adamw": of_others}, _optimizer_of)
    else:
        direction = transform_of(config.name, config, model)  # pyright: ignore[reportArgumentType]
        optimizer = optax.chain(direction, _decay(config, mask=is_matrix), descend)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer, *_rates(config))


def transform_of(
    optimizer: str | Optimizer, config: OptimizerConfig, model: ModelConfig
) -> optax.GradientTransformation:
    """Returns the transformation of a gradient to the direction of an optimizer, by its name or its part."""
    if isinstance(optimizer, Optimizer):
        return optimizer.transform(config, model)
    return muon(config) if optimizer == "muon" else _adam(config)


def muon(
    config: OptimizerConfig, coefficients: tuple[tuple[float, float, float], ...] = ()
) -> optax.GradientTransformation:
    """Returns Muon for the kernels and Adam for all else.

    Args:
        config: of both.
        coefficients: (a, b, c) of a x + b x^3 + c x^5, of each iteration of the orthogonalisation; () for Muon's five.
    """
    return optax.partition({"muon": optax.chain(*_muon(config, coefficients)), "adamw": _adam(config)}, _optimizer_of)


def decayed(decay: str | Decay, group: str, parameter: jax.Array, direction: jax.Array) -> jax.Array:
    """Returns what is decayed of a parameter, by the name of a decay or its part, as `Decay.decayed` does."""
    if isinstance(decay, Decay):
        return decay.decayed(group, parameter, direction)
    return jnp.zeros_like(parameter) if group == "gain" else parameter


def is_matrix(params: nnx.State) -> nnx.State:
    """Returns a tree of bools: True for the parameters that are matrices, stacked over layers or not."""
    return jax.tree.map(lambda group: group != "gain", groups_of(params))


def groups_of(params: nnx.State) -> nnx.State:
    """Returns a tree of names, one of `GROUPS` for each parameter: by its class, and tables by their own name too."""

    def group(path, parameter):
        if isinstance(parameter, Kernel):
            return "matrix"
        if not isinstance(parameter, Table):
            return "gain"
        return "unembedding" if jax.tree_util.keystr(path[-1:], simple=True) == "unembedding" else "embedding"

    return jax.tree_util.tree_map_with_path(group, params, is_leaf=_is_variable)


def map_groups(function: Callable[..., jax.Array], updates: Any, *trees: Any) -> Any:
    """Returns a tree of `function(group, update, *others)` for each parameter, given trees of arrays of its shape."""

    def mapped(group, update, *others):
        return update.replace(function(group, update[...], *(other[...] for other in others)))

    return jax.tree.map(mapped, groups_of(updates), updates, *trees)


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon)


def _muon(config: OptimizerConfig, coefficients: tuple = ()) -> tuple[optax.GradientTransformation, ...]:
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
        return jax.tree.map(lambda x: MUON_RMS * max(x.shape[-2:]) ** 0.5 * x, updates)

    iterations = {"ns_coeffs": coefficients, "ns_steps": len(coefficients)} if coefficients else {}
    return (
        scale_by_muon(beta=config.muon_momentum, nesterov=True, weight_dimension_numbers=last_two_axes, **iterations),
        optax.stateless(to_consistent_rms),
    )


def _decay(config: OptimizerConfig, mask: Callable[[nnx.State], nnx.State] | None) -> optax.GradientTransformation:
    """Returns the decay of all matrices that a mask selects, or of a part, which selects by itself."""
    if not isinstance(config.decay, Decay):
        return optax.add_decayed_weights(config.weight_decay, mask)

    def with_decay(group, direction, parameter):
        return direction + config.weight_decay * decayed(config.decay, group, parameter, direction)

    return optax.stateless(functools.partial(map_groups, with_decay))


def _rates(config: OptimizerConfig) -> tuple[optax.GradientTransformation, ...]:
    """Returns the scaling by group; nothing where all factors are 1, so that the state is as without them."""
    rates = {group: getattr(config, f"{group}_rate") for group in GROUPS}
    if set(rates.values()) == {1.0}:
        return ()
    return (optax.stateless(lambda updates, _: map_groups(lambda group, update: rates[group] * update, updates)),)


def _optimizer_of(params: nnx.State) -> nnx.State:
    """Returns a tree of names: which optimizer updates each parameter."""
    return jax.tree.map(lambda group: "muon" if group == "matrix" else "adamw", groups_of(params))


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _decay_steps(config: OptimizerConfig, steps: int) -> int:
    return max(1, round(config.decay_share * steps))
