"""The learning-rate schedule and the Optax chain: clipped AdamW with decay on matrices only."""

from dataclasses import dataclass

import jax
import optax
from flax import nnx

from jaxformer.config import check_types, require
from jaxformer.model import Kernel, Table


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) with linear warmup and cosine decay.

    learning_rate: peak.
    warmup_steps: steps of linear increase from 0.
    final_learning_rate_share: learning rate at the last step, as a share of the peak.
    b1: decay of the first moment, per step.
    b2: decay of the second moment, per step.
    epsilon: added to the root of the second moment.
    weight_decay: decoupled, per unit of learning rate, on matrices (embeddings among them) only.
    clip_norm: largest global norm of the gradient.
    """

    learning_rate: float
    warmup_steps: int
    final_learning_rate_share: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self):
        check_types(self)
        for name in ("learning_rate", "epsilon", "clip_norm"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"optimizer.{name} ({value}) must be positive and finite")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name} ({value}) must lie in [0, 1)")
        require(self.warmup_steps >= 0, f"optimizer.warmup_steps ({self.warmup_steps}) must not be negative")
        require(
            0 <= self.final_learning_rate_share <= 1,
            f"optimizer.final_learning_rate_share ({self.final_learning_rate_share}) must lie in [0, 1]",
        )
        require(
            0 <= self.weight_decay < float("inf"),
            f"optimizer.weight_decay ({self.weight_decay}) must be finite and not negative",
        )


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate by step in [0, steps): linear warmup to the peak, then cosine to the final share.

    Step 0 already has a positive rate, peak / (warmup_steps + 1), so that no step is spent on nothing.
    """
    require(
        config.warmup_steps < steps,
        f"optimizer.warmup_steps ({config.warmup_steps}) must be less than training.steps ({steps})",
    )
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / (config.warmup_steps + 1),
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=max(steps - 1, config.warmup_steps + 1),
        end_value=config.learning_rate * config.final_learning_rate_share,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns the chain for a run of `steps` steps over an `nnx.State` of parameters."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=is_matrix,
        ),
    )


def is_matrix(params: nnx.State) -> nnx.State:
    """Returns a tree of bools: True for the parameters that are matrices, stacked over layers or not."""
    return jax.tree.map(lambda p: isinstance(p, (Kernel, Table)), params, is_leaf=lambda p: isinstance(p, nnx.Variable))
