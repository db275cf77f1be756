"""CompleteP: AdamW whose numbers hold at any width and depth (Dey et al. 2025, arXiv 2505.01618, table 1, alpha = 1).

This is the optimizer's part of it. The model's: what a block adds to the stream is divided by depth / base_depth, the
variance of the kernels at first by width / base_width (and does not depend on the depth), and so are the logits.
"""

from dataclasses import dataclass, replace

import jax
import optax
from flax import nnx

from jaxformer.config import PositiveInt, check_fields
from jaxformer.model import ModelConfig
from jaxformer.optimizer import Optimizer, OptimizerConfig, groups_of, transform_of


@dataclass(frozen=True)
class CompleteP(Optimizer):
    """AdamW by multiples of a base size's width and depth, at which it is AdamW itself.

    - The kernels' learning rate is divided by the multiple of the width. Their decay per unit of learning rate is
      multiplied by it, so that the decay per step is the same: it is not scaled here.
    - Adam's epsilon is divided by the multiple of the width, and within blocks by that of the depth too.
    - All else is as it is at the base: gains, too, whose learning rate has a factor only if alpha < 1.

    The width of a head is to stay as it is, so that the attention's scale does.
    """

    base_width: PositiveInt
    """`model.width` at which the learning rate, decay and epsilon were tuned."""
    base_depth: PositiveInt
    """`model.depth` at which they were."""

    def __post_init__(self):
        check_fields(self, "CompleteP")

    def transform(self, config: OptimizerConfig, model: ModelConfig) -> optax.GradientTransformation:
        """Returns Adam, scaled by group."""
        wider, deeper = model.width / self.base_width, model.depth / self.base_depth

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


def _scaled_as(params) -> nnx.State:
    """Returns a tree of names: by which rule each parameter is scaled."""

    def name(path, group):
        is_of_block = jax.tree_util.keystr(path, simple=True, separator=".").startswith("blocks.")
        if group == "matrix":
            return "kernels"
        return "gains of blocks" if is_of_block else "others"

    return jax.tree_util.tree_map_with_path(name, groups_of(params))
