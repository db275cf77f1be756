"""CompleteP: hyperparameters that hold at any width and depth (Dey et al. 2025, arXiv 2505.01618, table 1, alpha = 1).

It is three values: `CompleteP` of the optimizer, and `CompletePScaling` and `CompletePResidual` of the model. At the
base's width and depth the run is the plain one, bit by bit. At other sizes keep the head width, and so the attention's
scale, and let the feed-forward's width grow with the model's.
"""

from dataclasses import dataclass, replace

import jax
import optax
from flax import nnx

from jaxformer.config import PositiveInt, check_fields
from jaxformer.layers import Sums
from jaxformer.model import ModelConfig, Residual, Scaling
from jaxformer.optimizer import Optimizer, OptimizerConfig, groups_of, transform_of


@dataclass(frozen=True)
class CompleteP(Optimizer):
    """AdamW by multiples of a base size's width and depth, at which it is AdamW itself.

    - The kernels' learning rate is divided by the multiple of the width. Their decay per unit of learning rate is
      multiplied by it, so that the decay per step is the same: it is not scaled here.
    - Adam's epsilon is divided by the multiple of the width, and within blocks by that of the depth too.
    - All else is as at the base; so are gains, whose learning rate has a factor only if alpha < 1.
    """

    base_width: PositiveInt
    """`model.width` at which the learning rate, decay and epsilon were tuned."""
    base_depth: PositiveInt
    """`model.depth` at which they were tuned."""

    def __post_init__(self):
        check_fields(self, "CompleteP")

    def transform(self, config: OptimizerConfig, model: ModelConfig) -> optax.GradientTransformation:
        """Returns Adam, scaled by group."""
        wider, deeper = model.width / self.base_width, model.depth / self.base_depth
        if wider == deeper == 1:  # Compiled group by group, the values would differ in their last bits.
            return transform_of("adamw", config, model)

        def adam(divisor: float) -> optax.GradientTransformation:
            return transform_of("adamw", replace(config, epsilon=config.epsilon / divisor), model)

        return optax.partition(
            {
                "kernels": optax.chain(adam(wider * deeper), optax.scale(1 / wider)),
                "gains of blocks": adam(wider * deeper),
                "others": adam(wider),
            },
            _scaled_as,
        )


@dataclass(frozen=True)
class CompletePScaling(Scaling):
    """Initial values and logits: kernels have the base's standard deviation over the root of the multiple of the width.

    Logits are divided by that multiple. Tables, and the factor of the matrices that write to the stream, stay the
    base's.
    """

    base_width: PositiveInt
    base_depth: PositiveInt

    def __post_init__(self):
        check_fields(self, "CompletePScaling")

    def of_kernels(self, width: int, depth: int) -> float:
        """Returns the root of the multiple of the width, inverted."""
        return (self.base_width / width) ** 0.5

    def of_writing(self, width: int, depth: int) -> float:
        """Returns what it is at the base."""
        return super().of_writing(self.base_width, self.base_depth)

    def of_tables(self, width: int, depth: int) -> float:
        """Returns what it is at the base."""
        return super().of_tables(self.base_width, self.base_depth)

    def of_logits(self, width: int, depth: int) -> float:
        """Returns the multiple of the width, inverted."""
        return self.base_width / width


@dataclass(frozen=True)
class CompletePResidual(Residual):
    """Divides the output of each attention and feed-forward by the multiple of the depth."""

    base_depth: PositiveInt

    def __post_init__(self):
        check_fields(self, "CompletePResidual")

    def make(self, config: ModelConfig, *, rngs: nnx.Rngs, index: jax.Array) -> nnx.Module:
        """Returns the rule, which has no parameters."""
        return _AddScaled(self.base_depth / config.depth)


class _AddScaled(nnx.Module):
    def __init__(self, scale: float):
        self.scale = scale

    def __call__(self, x_ND: jax.Array, layer) -> tuple[jax.Array, Sums]:
        y_ND, sums = layer(x_ND)
        return x_ND + self.scale * y_ND, sums


def _scaled_as(params) -> nnx.State:
    """Returns a tree of names: the rule that scales each parameter."""

    def name(path, group):
        is_of_block = jax.tree_util.keystr(path, simple=True, separator=".").startswith("blocks.")
        if group == "matrix":
            return "kernels"
        return "gains of blocks" if is_of_block else "others"

    return jax.tree_util.tree_map_with_path(name, groups_of(params))
